//! Events counted as they arrive, so that unread counts are differences of two rows.
//!
//! Every arrival row carries its event's class under the default push rules, the root of its
//! thread, and how many events of each counted class the room has had so far. What a user missed
//! is what was counted at one position less what was counted at another, less what was redacted;
//! who is mentioned, and up to where somebody has read by writing, are rows of their own. Nothing
//! here depends on how many members a room has, and nothing here knows a user's rules.
//!
//! Specification: client-server API, "Push Rules", "Threading".

use homeserver_events::push::Class;
use homeserver_storage::{Direction, Position, ScanRange, Table};
use ruma::{OwnedEventId, UserId};
use serde::{Deserialize, Serialize};

use crate::{
    Rooms,
    error::RoomError,
    numbers::{EventNumber, RoomNumber, UserNumber},
    room::Room,
    rows::ArrivalRow,
    tables::{ARRIVALS, MENTIONS, OWN_READS, THREAD_TALLIES, UNCOUNTED},
};

/// The classes that notify somebody whom they do not name.
pub const COUNTED_CLASSES: [Class; 5] = [
    Class::RoomMention,
    Class::Tombstone,
    Class::Call,
    Class::Encrypted,
    Class::Message,
];

/// Threads of one room in which one user's writing is remembered; those of the lowest numbers.
const MAX_OWN_THREADS: usize = 10_000;

/// The user under whose number events are noted that mention too many to name.
pub(crate) const EVERYBODY: UserNumber = UserNumber(0);

/// Events by counted class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCounts([u64; COUNTED_CLASSES.len()]);

impl ClassCounts {
    /// Counts one event. Gives whether its class is a counted one.
    pub fn add(&mut self, class: Class) -> bool {
        let place = COUNTED_CLASSES.iter().position(|counted| *counted == class);
        if let Some(place) = place {
            self.0[place] += 1;
        }
        place.is_some()
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let mut counts = self;
        for (count, earlier) in counts.0.iter_mut().zip(earlier.0) {
            *count = count.saturating_sub(earlier);
        }
        counts
    }

    /// How many events of each class.
    pub fn iter(&self) -> impl Iterator<Item = (Class, u64)> {
        COUNTED_CLASSES.into_iter().zip(self.0)
    }
}

/// What a room has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// In all threads and outside of them.
    pub all: ClassCounts,
    /// In threads.
    pub threaded: ClassCounts,
}

impl Tally {
    /// What is in no thread.
    pub fn main(self) -> ClassCounts {
        self.all.since(self.threaded)
    }
}

/// An arrival, as it was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedArrival {
    /// Where it arrived.
    pub position: Position,
    /// The event.
    pub event: EventNumber,
    /// What it is under default rules.
    pub class: Class,
    /// The root of its thread.
    pub thread: Option<EventNumber>,
}

impl CountedArrival {
    pub(crate) fn new(position: Position, row: &ArrivalRow) -> Self {
        Self {
            position,
            event: row.event,
            class: class_of(row.class),
            thread: root(row.thread),
        }
    }
}

/// The class with this stored number; one of a later version of this program counts as none.
pub(crate) fn class_of(number: u8) -> Class {
    Class::from_number(number).unwrap_or(Class::Unmatched)
}

/// A thread's root as rows have it: zero for none.
pub(crate) fn root(number: u64) -> Option<EventNumber> {
    (number > 0).then_some(EventNumber(number))
}

impl Rooms {
    /// What a room has counted up to `at`.
    pub async fn tally_at(&self, room: RoomNumber, at: Position) -> Result<Tally, RoomError> {
        let range = ScanRange::prefix(&room.0).upto(&(room.0, at));
        let rows = self
            .store
            .scan(&ARRIVALS, range, Direction::Backward, 1)
            .await?;
        let tally = rows.into_iter().next().map(|(_, row)| row.tally);
        Ok(tally.unwrap_or_default())
    }

    /// What a thread has counted up to `at`.
    pub async fn thread_tally_at(
        &self,
        room: RoomNumber,
        root: EventNumber,
        at: Position,
    ) -> Result<ClassCounts, RoomError> {
        let range = ScanRange::prefix(&(room.0, root.0)).upto(&(room.0, root.0, at));
        let rows = self
            .store
            .scan(&THREAD_TALLIES, range, Direction::Backward, 1)
            .await?;
        Ok(rows
            .into_iter()
            .next()
            .map(|(_, counts)| counts)
            .unwrap_or_default())
    }

    /// Arrivals of a room in (`after`, `upto`] as they were counted, newest first.
    pub async fn counted_arrivals(
        &self,
        room: RoomNumber,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<CountedArrival>, RoomError> {
        self.counted_rows(&ARRIVALS, room, (after, upto), limit)
            .await
    }

    async fn counted_rows(
        &self,
        table: &Table<(u64, Position), ArrivalRow>,
        room: RoomNumber,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<CountedArrival>, RoomError> {
        let range = ScanRange::prefix(&room.0)
            .after(&(room.0, after))
            .upto(&(room.0, upto));
        let rows = self
            .store
            .scan(table, range, Direction::Backward, limit)
            .await?;
        let arrival = |((_, position), row): (_, ArrivalRow)| CountedArrival::new(position, &row);
        Ok(rows.into_iter().map(arrival).collect())
    }

    /// The newest arrivals in (`after`, `upto`] that mention a local user.
    pub async fn mentions(
        &self,
        room: &Room,
        (number, user): (UserNumber, &UserId),
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<CountedArrival>, RoomError> {
        let mut found = self
            .mention_rows(number, room.number, (after, upto), limit)
            .await?;
        let flagged = self
            .mention_rows(EVERYBODY, room.number, (after, upto), limit)
            .await?;
        for arrival in flagged {
            let event = self.events.load(room, arrival.event).await?;
            if *event.pdu.sender() != *user && names(event.pdu.content_str(), user) {
                found.push(arrival);
            }
        }
        Ok(found)
    }

    async fn mention_rows(
        &self,
        user: UserNumber,
        room: RoomNumber,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<CountedArrival>, RoomError> {
        let range = ScanRange::prefix(&(user.0, room.0))
            .after(&(user.0, room.0, after))
            .upto(&(user.0, room.0, upto));
        let rows = self
            .store
            .scan(&MENTIONS, range, Direction::Backward, limit)
            .await?;
        let arrival =
            |((_, _, position), row): (_, ArrivalRow)| CountedArrival::new(position, &row);
        Ok(rows.into_iter().map(arrival).collect())
    }

    /// The newest arrivals in (`after`, `upto`] that were redacted since and count no more.
    pub async fn uncounted(
        &self,
        room: RoomNumber,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<CountedArrival>, RoomError> {
        self.counted_rows(&UNCOUNTED, room, (after, upto), limit)
            .await
    }

    /// Where a local user last wrote in a room: per thread, and outside of threads.
    pub async fn own_reads(
        &self,
        user: UserNumber,
        room: RoomNumber,
    ) -> Result<Vec<(Option<EventNumber>, Position)>, RoomError> {
        let range = ScanRange::prefix(&(user.0, room.0));
        let rows = self
            .store
            .scan(&OWN_READS, range, Direction::Forward, MAX_OWN_THREADS)
            .await?;
        let read = |((_, _, thread), at): (_, homeserver_storage::At)| match at {
            homeserver_storage::At::Known(at) => Some((root(thread), at)),
            homeserver_storage::At::Append(_) => None,
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// The number of an event that this server has heard of.
    pub async fn event_number(
        &self,
        room: RoomNumber,
        id: &ruma::EventId,
    ) -> Result<Option<EventNumber>, RoomError> {
        self.events.number(room, id).await
    }

    /// The id of an event, if the event is here. An id tells nothing of what is in the event.
    pub async fn event_id(
        &self,
        room: &Room,
        event: EventNumber,
    ) -> Result<Option<OwnedEventId>, RoomError> {
        let found = self.events.find(room, event).await?;
        Ok(found.map(|event| event.pdu.event_id().to_owned()))
    }
}

/// Whether the content mentions a user by name (`m.mentions`).
fn names(content: &str, user: &UserId) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.mentions")]
        mentions: Mentions,
    }
    #[derive(Deserialize)]
    struct Mentions {
        user_ids: Vec<serde_json::Value>,
    }
    let content = serde_json::from_str::<Content>(content);
    content.is_ok_and(|content| {
        content
            .mentions
            .user_ids
            .iter()
            .any(|id| id == user.as_str())
    })
}
