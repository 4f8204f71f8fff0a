//! A state and its auth chains, read portion by portion: what is held are the numbers of events,
//! never the events of a large room at once.

use std::{collections::HashSet, sync::Arc};

use homeserver_storage::{Bytes, Positioned, StorageError};
use ruma::OwnedEventId;

use crate::{
    Rooms, error::RoomError, numbers::EventNumber, room::Room, rows::EventRow, tables::EVENTS,
};

/// Events of one auth chain at most: as many as a state of a few hundred thousand members has. A
/// chain that is longer ends with an error, so that nobody takes a part of it for the whole.
pub const MAX_CHAIN: usize = 1_000_000;

/// Events read in one go.
const PORTION: usize = 200;

/// Which part of an answer an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The state itself.
    State,
    /// The auth events of what is asked for, and theirs.
    AuthChain,
}

/// An event for another server.
#[derive(Clone, Debug)]
pub struct ServedEvent {
    /// Its id.
    pub id: OwnedEventId,
    /// The event in the federation format of its room.
    pub json: Bytes,
}

/// A state with its auth chains, or the auth chain of one event, on its way out. The state comes
/// first. Each event is told once in each of the two.
#[derive(Debug)]
pub struct ServedChain {
    rooms: Arc<Rooms>,
    room: Arc<Room>,
    /// State events that were not told yet.
    state: std::vec::IntoIter<EventNumber>,
    /// Auth events that were not told yet.
    waiting: Vec<EventNumber>,
    /// Those, and what was told of the chain.
    met: HashSet<EventNumber>,
}

impl ServedChain {
    pub(super) fn of_state(rooms: &Arc<Rooms>, room: &Arc<Room>, state: Vec<EventNumber>) -> Self {
        Self {
            rooms: Arc::clone(rooms),
            room: Arc::clone(room),
            state: state.into_iter(),
            waiting: Vec::new(),
            met: HashSet::new(),
        }
    }

    pub(super) fn of_event(rooms: &Arc<Rooms>, room: &Arc<Room>, auth: &[EventNumber]) -> Self {
        let mut chain = Self::of_state(rooms, room, Vec::new());
        chain.meet(auth);
        chain
    }

    /// A state, and the auth chains of that and of an event that follows it. With `apart`, what is in
    /// the state is not in the chain.
    pub(crate) fn of_both(
        rooms: &Arc<Rooms>,
        room: &Arc<Room>,
        (state, auth): (Vec<EventNumber>, &[EventNumber]),
        apart: bool,
    ) -> Self {
        let met = apart.then(|| state.iter().copied().collect());
        let mut chain = Self::of_state(rooms, room, state);
        chain.met = met.unwrap_or_default();
        chain.meet(auth);
        chain
    }

    /// Notes auth events.
    fn meet(&mut self, auth: &[EventNumber]) {
        for number in auth {
            if self.met.insert(*number) {
                self.waiting.push(*number);
            }
        }
    }

    /// The next events, all of one section; `None` at the end. Sections come in their order.
    pub async fn next(&mut self) -> Result<Option<(Section, Vec<ServedEvent>)>, RoomError> {
        loop {
            let (section, numbers) = match self.state.as_slice() {
                [] if self.waiting.is_empty() => return Ok(None),
                [] => {
                    let from = self.waiting.len().saturating_sub(PORTION);
                    (Section::AuthChain, self.waiting.split_off(from))
                }
                _ => (Section::State, self.state.by_ref().take(PORTION).collect()),
            };
            let mut events = Vec::with_capacity(numbers.len());
            for (number, row) in self.rows(numbers).await? {
                // A rejected event is part of no state and allows nothing.
                if row.status.is_rejected() {
                    tracing::warn!(room = %self.room.id, event = number.0, "a rejected event is named by a state");
                    continue;
                }
                self.meet(&row.auth);
                let (id, json) = (row.id, row.json);
                events.push(ServedEvent { id, json });
            }
            if self.met.len() > MAX_CHAIN {
                let what = format!("the auth chain has more than {MAX_CHAIN} events");
                return Err(RoomError::TooLarge(what));
            }
            if !events.is_empty() {
                return Ok(Some((section, events)));
            }
        }
    }

    /// The rows of these events. One that cannot be read costs only itself.
    async fn rows(
        &self,
        numbers: Vec<EventNumber>,
    ) -> Result<Vec<(EventNumber, EventRow)>, RoomError> {
        let room = self.room.number.0;
        let keys: Vec<_> = numbers.iter().map(|number| (room, number.0)).collect();
        let store = &self.rooms.store;
        let rows: Vec<Option<Positioned<EventRow>>> = match store.multi_get(&EVENTS, &keys).await {
            Ok(rows) => rows,
            Err(StorageError::Decode { .. }) => {
                let mut rows = Vec::with_capacity(keys.len());
                for key in &keys {
                    match store.get(&EVENTS, key).await {
                        Err(StorageError::Decode { .. }) => rows.push(None),
                        row => rows.push(row?),
                    }
                }
                rows
            }
            Err(error) => return Err(error.into()),
        };
        let rows = numbers.into_iter().zip(rows);
        let found = rows.filter_map(|(number, row)| {
            if row.is_none() {
                tracing::warn!(room = %self.room.id, event = number.0, "an event cannot be read");
            }
            row.map(|row| (number, row.value))
        });
        Ok(found.collect())
    }
}
