//! What a reader may see: the only way from a stored event to somebody who asked for it.
//!
//! A [`VisibleEvent`] is made by a visibility check through the event's own room and by nothing
//! else, so a function that takes one cannot leak an event. Checks look at the state around the
//! event, and at the reader's memberships up to a position.

use std::{collections::HashMap, sync::Arc};

use homeserver_events::{
    Pdu,
    visibility::{Around, HistoryVisibility, Later, Membership as Seen, Sight, may_see},
};
use homeserver_storage::Position;
use ruma::{EventId, OwnedUserId};

use crate::{
    Rooms,
    error::RoomError,
    event::StoredEvent,
    numbers::{EventNumber, UserNumber},
    room::Room,
    rows::{Membership, Origin},
    token::HistoryKey,
    tree::StateRoot,
};

/// Somebody who reads, at a position of the journal. Reads show what was so at that position.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The user.
    pub user: OwnedUserId,
    /// The user's number; `None` for users who were never mentioned anywhere.
    pub number: Option<UserNumber>,
    /// Nothing newer is shown. At most the durable position.
    pub position: Position,
}

/// An event that the reader whose check made this may see.
#[derive(Clone, Debug)]
pub struct VisibleEvent {
    event: Arc<StoredEvent>,
    membership: Option<Membership>,
    redacted_by: Option<EventNumber>,
}

impl VisibleEvent {
    /// The event. When it was redacted, this is its redacted form.
    pub fn pdu(&self) -> &Pdu {
        &self.event.pdu
    }

    /// Its number in the room.
    pub fn number(&self) -> EventNumber {
        self.event.number
    }

    /// Where it arrived; `None` for events that were fetched as history.
    pub fn position(&self) -> Option<Position> {
        self.event.position
    }

    /// Where it stands in the history.
    pub fn history_key(&self) -> HistoryKey {
        self.event.history_key()
    }

    /// The state right before it.
    pub fn state_before(&self) -> StateRoot {
        self.event.before()
    }

    /// The state right after it.
    pub fn state_after(&self) -> StateRoot {
        self.event.after
    }

    /// The reader's membership at the event, with the change the event makes (`unsigned.membership`).
    pub fn reader_membership(&self) -> Option<Membership> {
        self.membership
    }

    /// The device and transaction that made it. To be told to that device only.
    pub fn origin(&self) -> Option<&Origin> {
        self.event.origin.as_ref()
    }

    /// The redaction that was applied to it (`unsigned.redacted_because`); load it with
    /// [`Rooms::visible`].
    pub fn redacted_by(&self) -> Option<EventNumber> {
        self.redacted_by
    }

    /// The state event it replaced (`unsigned.prev_content`, `unsigned.replaces_state`); load it
    /// with [`Rooms::replaced_state`].
    pub fn replaces(&self) -> Option<EventNumber> {
        self.event.replaces
    }
}

impl Rooms {
    /// The event of a membership of the user whose membership it is: everybody may see what was
    /// done to themselves, also who was only invited.
    pub async fn membership_event(
        &self,
        room: &Room,
        membership: &crate::UserMembership,
    ) -> Result<VisibleEvent, RoomError> {
        if membership.room != room.number {
            return Err(RoomError::UnknownEvent);
        }
        let event = self.events.load(room, membership.event).await?;
        Ok(VisibleEvent {
            membership: Some(membership.membership),
            redacted_by: event.redacted_by,
            event,
        })
    }
}

impl StoredEvent {
    pub(crate) fn history_key(&self) -> HistoryKey {
        HistoryKey {
            height: self.height,
            live: self.position.is_some(),
            tie: self.position.or(self.backfill_tie).unwrap_or(0),
        }
    }
}

/// A join, in the order of arrival and in that of the history.
struct LastJoin {
    position: Position,
    height: u64,
}

/// What one reader may see of one room, with what was found out on the way.
pub(crate) struct Sights<'a> {
    rooms: &'a Rooms,
    room: &'a Room,
    reader: &'a Reader,
    /// Where a reader who is out joined last.
    last_join: Option<LastJoin>,
    joined_now: bool,
    /// Visibility and membership by state.
    known: HashMap<StateRoot, (HistoryVisibility, Option<Membership>)>,
}

impl<'a> Sights<'a> {
    pub(crate) async fn new(
        rooms: &'a Rooms,
        room: &'a Room,
        reader: &'a Reader,
    ) -> Result<Self, RoomError> {
        let (mut last_join, mut joined_now) = (None, false);
        if let Some(user) = reader.number {
            let now = rooms.membership(user, room.number, reader.position).await?;
            joined_now = now.is_some_and(|now| now.membership == Membership::Join);
            if !joined_now {
                let join = rooms.last_join(user, room.number, reader.position);
                if let Some(join) = join.await? {
                    let height = rooms.events.load(room, join.event).await?.height;
                    let position = join.since;
                    last_join = Some(LastJoin { position, height });
                }
            }
        }
        Ok(Self {
            rooms,
            room,
            reader,
            last_join,
            joined_now,
            known: HashMap::new(),
        })
    }

    /// The position of the reader.
    pub(crate) fn position(&self) -> Position {
        self.reader.position
    }

    /// The visibility and the reader's membership in a state.
    async fn at(
        &mut self,
        root: StateRoot,
    ) -> Result<(HistoryVisibility, Option<Membership>), RoomError> {
        if let Some(known) = self.known.get(&root) {
            return Ok(*known);
        }
        let (rooms, room) = (self.rooms, self.room);
        let visibility = rooms
            .state_event(room, root, "m.room.history_visibility", "")
            .await?;
        let visibility = visibility
            .and_then(|event| content_text(&event, "history_visibility"))
            .map_or(HistoryVisibility::DEFAULT, |name| {
                HistoryVisibility::from_name(&name)
            });
        let member = rooms
            .state_event(room, root, "m.room.member", self.reader.user.as_str())
            .await?;
        let membership = member.and_then(|event| membership_of(&event));
        self.known.insert(root, (visibility, membership));
        Ok((visibility, membership))
    }

    /// The event for the reader, if the reader may see it.
    pub(crate) async fn check(
        &mut self,
        event: Arc<StoredEvent>,
    ) -> Result<Option<VisibleEvent>, RoomError> {
        let arrived_later = event.position.is_some_and(|at| at > self.reader.position);
        if event.room != self.room.number || arrived_later || !event.status.is_shown() {
            return Ok(None);
        }
        let before = self.at(event.before()).await?;
        let own = event.is_state("m.room.member", self.reader.user.as_str());
        let after = if own || event.is_state("m.room.history_visibility", "") {
            self.at(event.after).await?
        } else {
            before
        };
        // What was fetched as history did not arrive: it is where it stands in the history that
        // tells whether it was before the join.
        let later = |join: &LastJoin| match event.position {
            Some(at) => join.position > at,
            None => join.height > event.height,
        };
        let later = if self.joined_now || self.last_join.as_ref().is_some_and(later) {
            Later::Joined
        } else {
            Later::NeverJoined
        };
        let sight = Sight {
            visibility: Around {
                before: before.0,
                after: after.0,
            },
            membership: Around {
                before: seen(before.1),
                after: seen(after.1),
            },
            later,
        };
        Ok(may_see(&sight).then(|| VisibleEvent {
            membership: after.1,
            redacted_by: event.redacted_by,
            event,
        }))
    }
}

fn seen(membership: Option<Membership>) -> Seen {
    match membership {
        Some(Membership::Join) => Seen::Join,
        Some(Membership::Invite) => Seen::Invite,
        _ => Seen::Outside,
    }
}

/// A text in the content of an event.
pub(crate) fn content_text(event: &StoredEvent, field: &str) -> Option<String> {
    let content: serde_json::Value = serde_json::from_str(event.pdu.content().get()).ok()?;
    Some(content.get(field)?.as_str()?.to_owned())
}

/// The membership that a member event states.
pub(crate) fn membership_of(event: &StoredEvent) -> Option<Membership> {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: String,
    }
    let content: Content = serde_json::from_str(event.pdu.content().get()).ok()?;
    Membership::parse(&content.membership)
}

impl Rooms {
    /// The events of `numbers` that `reader` may see, in their order. Events of other rooms, later
    /// events and events that are never shown are left out.
    pub async fn visible(
        &self,
        reader: &Reader,
        room: &Room,
        numbers: &[EventNumber],
    ) -> Result<Vec<VisibleEvent>, RoomError> {
        let mut sights = Sights::new(self, room, reader).await?;
        let mut visible = Vec::with_capacity(numbers.len());
        for event in self
            .events
            .find_all(room, numbers)
            .await?
            .into_iter()
            .flatten()
        {
            visible.extend(sights.check(event).await?);
        }
        Ok(visible)
    }

    /// One event of a room by its id, if it is here and `reader` may see it.
    pub async fn visible_by_id(
        &self,
        reader: &Reader,
        room: &Room,
        id: &EventId,
    ) -> Result<Option<VisibleEvent>, RoomError> {
        let Some(number) = self.events.number(room.number, id).await? else {
            return Ok(None);
        };
        Ok(self.visible(reader, room, &[number]).await?.pop())
    }

    /// Events of a state for a reader who may see that state: a member now, a former member at the
    /// time of leaving, or anybody in a world-readable room. See [`Rooms::state_root_for`], which
    /// decides that and gives the root; nothing else makes a [`ReadableState`].
    pub async fn state_events(
        &self,
        state: &ReadableState,
        numbers: &[EventNumber],
    ) -> Result<Vec<VisibleEvent>, RoomError> {
        let events = self.events.load_all(&state.room, numbers).await?;
        Ok(events
            .into_iter()
            .map(|event| VisibleEvent {
                membership: None,
                redacted_by: event.redacted_by,
                event,
            })
            .collect())
    }

    /// The state event that `event` replaced, for `prev_content`.
    pub async fn replaced_state(
        &self,
        room: &Room,
        event: &VisibleEvent,
    ) -> Result<Option<VisibleEvent>, RoomError> {
        let Some(number) = event.event.replaces else {
            return Ok(None);
        };
        let replaced = self.events.find(room, number).await?;
        Ok(replaced.map(|event| VisibleEvent {
            membership: None,
            redacted_by: event.redacted_by,
            event,
        }))
    }
}

/// A state that some reader may see whole.
#[derive(Clone, Debug)]
pub struct ReadableState {
    pub(crate) room: Arc<Room>,
    /// The state.
    pub root: StateRoot,
    /// The position it is read at: that of the reader, or where the reader left.
    pub position: Position,
}

impl ReadableState {
    /// The room whose state it is.
    pub fn room(&self) -> &Room {
        &self.room
    }
}
