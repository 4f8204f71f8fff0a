//! Stored events: what a row of the event table means, and the cache of them.
//!
//! A [`StoredEvent`] is what writers and the crate itself work with. It may not be shown to
//! anybody: readers get a [`crate::VisibleEvent`], which only a visibility check makes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use homeserver_events::{EventStatus, Pdu, hash::content_hash_matches};
use homeserver_storage::{Bytes, Position, Store};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::EventId;
use smallvec::SmallVec;

use crate::{
    error::RoomError,
    numbers::{EventNumber, RoomNumber},
    room::Room,
    rows::{EventRow, Origin},
    tables::{EVENT_IDS, EVENTS},
    tree::StateRoot,
};

/// Events read from the store in one go.
const EVENTS_AT_ONCE: usize = 200;

/// An event with all that is known about it.
#[derive(Clone, Debug)]
pub(crate) struct StoredEvent {
    pub(crate) number: EventNumber,
    pub(crate) room: RoomNumber,
    pub(crate) pdu: Pdu,
    pub(crate) status: EventStatus<StateRoot>,
    pub(crate) after: StateRoot,
    /// Where it arrived; `None` for backfilled events and outliers.
    pub(crate) position: Option<Position>,
    pub(crate) height: u64,
    pub(crate) backfill_tie: Option<u64>,
    pub(crate) auth_height: u64,
    pub(crate) auth: SmallVec<[EventNumber; 4]>,
    pub(crate) prev: SmallVec<[EventNumber; 1]>,
    pub(crate) over_gap: bool,
    pub(crate) replaces: Option<EventNumber>,
    pub(crate) redacted_by: Option<EventNumber>,
    pub(crate) origin: Option<Origin>,
}

impl StoredEvent {
    /// The row of this event.
    pub(crate) fn row(&self) -> EventRow {
        EventRow {
            id: self.pdu.event_id().to_owned(),
            status: self.status.clone(),
            after: self.after,
            height: self.height,
            backfill_tie: self.backfill_tie,
            auth_height: self.auth_height,
            auth: self.auth.clone(),
            prev: self.prev.clone(),
            over_gap: self.over_gap,
            replaces: self.replaces,
            redacted_by: self.redacted_by,
            origin: self.origin.clone(),
            json: Bytes::copy_from_slice(self.pdu.json()),
        }
    }

    fn from_row(
        room: &Room,
        number: EventNumber,
        position: Position,
        row: EventRow,
    ) -> Result<Self, RoomError> {
        let pdu = Pdu::from_stored(&row.json, row.id, room.rules)
            .map_err(|error| RoomError::damaged(format!("event {}: {error}", number.0)))?;
        Ok(Self {
            number,
            room: room.number,
            pdu,
            status: row.status,
            after: row.after,
            position: (position > 0).then_some(position),
            height: row.height,
            backfill_tie: row.backfill_tie,
            auth_height: row.auth_height,
            auth: row.auth,
            prev: row.prev,
            over_gap: row.over_gap,
            replaces: row.replaces,
            redacted_by: row.redacted_by,
            origin: row.origin,
        })
    }

    /// Whether it has a place in the graph of its room, and so a state around it. What an import
    /// brought has none until it is received with its previous events; a rejected event may have one.
    pub(crate) fn is_placed(&self) -> bool {
        self.height > 0
    }

    /// What the event says if it is received in this form: what is here stays, only what lost its
    /// body on the way gets it back. In old room versions anybody may make another event under the
    /// same id.
    pub(crate) fn body_of(&self, received: &Pdu) -> Pdu {
        let same = || {
            let (here, there) = (self.pdu.reference(), received.reference());
            matches!((here, there), (Ok(here), Ok(there)) if here == there)
        };
        let is_whole = |pdu: &Pdu| {
            pdu.to_object()
                .is_ok_and(|event| content_hash_matches(&event))
        };
        if self.redacted_by.is_none() && !is_whole(&self.pdu) && is_whole(received) && same() {
            received.clone()
        } else {
            self.pdu.clone()
        }
    }

    /// The state before the event; empty for outliers and rejected events.
    pub(crate) fn before(&self) -> StateRoot {
        self.status.before().copied().unwrap_or_default()
    }

    /// Whether this is a state event of the given type with the given key.
    pub(crate) fn is_state(&self, event_type: &str, state_key: &str) -> bool {
        self.pdu.event_type() == event_type && self.pdu.state_key() == Some(state_key)
    }
}

#[derive(Clone)]
struct Weigh;

impl Weighter<(RoomNumber, EventNumber), Arc<StoredEvent>> for Weigh {
    fn weight(&self, _: &(RoomNumber, EventNumber), event: &Arc<StoredEvent>) -> u64 {
        event.pdu.json().len() as u64 + 600
    }
}

/// Reads events.
pub(crate) struct Events {
    store: Store,
    cache: Cache<(RoomNumber, EventNumber), Arc<StoredEvent>, Weigh>,
    /// Counts rewrites of rows, so that a read that began before one is not cached after it.
    rewrites: Mutex<u64>,
    /// Of the store, when rows were last cached.
    generation: AtomicU64,
}

impl Events {
    pub(crate) fn new(store: &Store, cache_bytes: u64) -> Self {
        let average = 1500;
        let items = usize::try_from(cache_bytes / average).unwrap_or(usize::MAX);
        Self {
            store: store.clone(),
            cache: Cache::with_weighter(items.max(256), cache_bytes.max(256 * average), Weigh),
            rewrites: Mutex::new(0),
            generation: AtomicU64::new(store.generation()),
        }
    }

    /// The number of an event of this room, also of one that was only mentioned.
    pub(crate) async fn number(
        &self,
        room: RoomNumber,
        id: &EventId,
    ) -> Result<Option<EventNumber>, RoomError> {
        let found = self.store.get(&EVENT_IDS, &(room.0, id.as_str())).await?;
        Ok(found.map(EventNumber))
    }

    /// The event, if it is here.
    pub(crate) async fn find(
        &self,
        room: &Room,
        number: EventNumber,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let mut found = self.find_all(room, &[number]).await?;
        Ok(found.pop().flatten())
    }

    /// The events in the order of `numbers`, where they are here.
    pub(crate) async fn find_all(
        &self,
        room: &Room,
        numbers: &[EventNumber],
    ) -> Result<Vec<Option<Arc<StoredEvent>>>, RoomError> {
        self.forget_old_generation();
        let mut found: Vec<_> = numbers
            .iter()
            .map(|number| self.cache.get(&(room.number, *number)))
            .collect();
        let absent: Vec<usize> = (0..found.len()).filter(|at| found[*at].is_none()).collect();
        for some in absent.chunks(EVENTS_AT_ONCE) {
            let rewrites = self.rewrites();
            let keys: Vec<_> = some
                .iter()
                .map(|at| (room.number.0, numbers[*at].0))
                .collect();
            let rows = self.store.multi_get(&EVENTS, &keys).await?;
            for (at, row) in some.iter().zip(rows) {
                let Some(row) = row else { continue };
                let position = row.known();
                let event = StoredEvent::from_row(room, numbers[*at], position, row.value)?;
                let event = Arc::new(event);
                self.remember(rewrites, &event);
                found[*at] = Some(event);
            }
        }
        Ok(found)
    }

    /// The event, which something in the database names.
    pub(crate) async fn load(
        &self,
        room: &Room,
        number: EventNumber,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let found = self.find(room, number).await?;
        found.ok_or_else(|| missing(room, number))
    }

    /// The events, which something in the database names, in the order of `numbers`.
    pub(crate) async fn load_all(
        &self,
        room: &Room,
        numbers: &[EventNumber],
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let found = self.find_all(room, numbers).await?;
        let events = found.into_iter().zip(numbers);
        events
            .map(|(event, number)| event.ok_or_else(|| missing(room, *number)))
            .collect()
    }

    /// The event as its row on disk has it now, whatever is cached.
    pub(crate) async fn on_disk(
        &self,
        room: &Room,
        number: EventNumber,
    ) -> Result<Option<StoredEvent>, RoomError> {
        let key = (room.number.0, number.0);
        let Some(row) = self.store.get(&EVENTS, &key).await? else {
            return Ok(None);
        };
        let position = row.known();
        StoredEvent::from_row(room, number, position, row.value).map(Some)
    }

    /// How often rows were written anew. To be asked before a row is read.
    pub(crate) fn rewrites(&self) -> u64 {
        *self.rewrites.lock()
    }

    /// Caches an event that was read, unless some row was written anew in the meantime.
    pub(crate) fn remember(&self, rewrites: u64, event: &Arc<StoredEvent>) {
        let now = self.rewrites.lock();
        if *now == rewrites {
            self.cache
                .insert((event.room, event.number), Arc::clone(event));
        }
    }

    /// Caches an event that was committed just now. If it had a row before, that was also
    /// [`Self::rewritten`].
    pub(crate) fn committed(&self, event: Arc<StoredEvent>) {
        self.cache.insert((event.room, event.number), event);
    }

    /// Forgets everything when the engine was opened anew: a rewrite whose outcome was unknown may
    /// have been done.
    fn forget_old_generation(&self) {
        let generation = self.store.generation();
        if self.generation.load(Ordering::Acquire) == generation {
            return;
        }
        let mut rewrites = self.rewrites.lock();
        *rewrites += 1;
        self.cache.clear();
        self.generation.store(generation, Ordering::Release);
    }

    /// Forgets events whose rows were written anew.
    pub(crate) fn rewritten(&self, room: RoomNumber, numbers: &[EventNumber]) {
        let mut rewrites = self.rewrites.lock();
        *rewrites += 1;
        for number in numbers {
            self.cache.remove(&(room, *number));
        }
    }
}

fn missing(room: &Room, number: EventNumber) -> RoomError {
    RoomError::damaged(format!("event {} of {} is not there", number.0, room.id))
}
