//! Which rows wait, by room: kept in memory beside the rows, so that a worker is told what is new
//! and nobody takes more than a share.
//!
//! A room is here exactly while it has rows or a worker. Whether a worker ends is decided under the
//! same lock under which it is told of rows: no wake-up falls between.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use homeserver_rooms::RoomNumber;
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use tokio::sync::Notify;

/// Rows of one room on disk.
pub const MAX_IN_ROOM: usize = 10_000;
/// Of them, rows that one server may have there: others in the room must get in.
pub const MAX_OF_ORIGIN_IN_ROOM: usize = 8_000;
/// Rows of one server in all rooms.
pub const MAX_OF_ORIGIN: usize = 20_000;
/// Rows in all: some gigabytes in the worst case.
pub const MAX_IN_ALL: usize = 200_000;
/// Events of one room that were refused for want of room and are fetched when it is worked off.
const MAX_NOTED: usize = 100;

/// Why an event gets no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many events are waiting to be judged")]
pub(crate) struct Full;

/// The promise of a row. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Place {
    queues: Arc<Queues>,
    room: RoomNumber,
    origin: OwnedServerName,
    kept: bool,
}

impl Place {
    /// The row may be on disk: whoever removes it gives the place back.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            self.queues.give_back(self.room, &self.origin);
        }
    }
}

/// The rows of all rooms.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rooms: HashMap<RoomNumber, Queue>,
    origins: HashMap<OwnedServerName, usize>,
    rows: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// The next row of the room; unknown until the rows on disk were looked at.
    next: Option<u64>,
    /// Rows and places that were promised.
    rows: usize,
    origins: HashMap<OwnedServerName, usize>,
    /// Rows that the worker has not taken yet.
    ready: BTreeSet<u64>,
    working: bool,
    changed: Arc<Notify>,
    noted: Vec<(OwnedEventId, OwnedServerName)>,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.rows == 0 && self.ready.is_empty() && self.noted.is_empty() && !self.working
    }
}

impl Queues {
    /// Promises a row of a room to an origin.
    pub(crate) fn take_place(
        self: &Arc<Self>,
        room: RoomNumber,
        origin: &ServerName,
    ) -> Result<Place, Full> {
        let state = &mut *self.state.lock();
        let of_origin = state.origins.get(origin).copied().unwrap_or_default();
        if state.rows >= MAX_IN_ALL || of_origin >= MAX_OF_ORIGIN {
            return Err(Full);
        }
        let queue = state.rooms.entry(room).or_default();
        let here = queue.origins.get(origin).copied().unwrap_or_default();
        if queue.rows >= MAX_IN_ROOM || here >= MAX_OF_ORIGIN_IN_ROOM {
            return Err(Full);
        }
        queue.rows += 1;
        queue.origins.insert(origin.to_owned(), here + 1);
        state.rows += 1;
        state.origins.insert(origin.to_owned(), of_origin + 1);
        Ok(Place {
            queues: Arc::clone(self),
            room,
            origin: origin.to_owned(),
            kept: false,
        })
    }

    /// Counts a row that was found on disk, whatever the bounds say.
    pub(crate) fn found(&self, room: RoomNumber, origin: &ServerName, row: u64) {
        let state = &mut *self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        queue.rows += 1;
        *queue.origins.entry(origin.to_owned()).or_default() += 1;
        queue.next = queue.next.max(Some(row + 1));
        queue.ready.insert(row);
        state.rows += 1;
        *state.origins.entry(origin.to_owned()).or_default() += 1;
    }

    /// Gives a place back: its row is gone, or was never written.
    pub(crate) fn give_back(&self, room: RoomNumber, origin: &ServerName) {
        let state = &mut *self.state.lock();
        if let Some(queue) = state.rooms.get_mut(&room) {
            queue.rows = queue.rows.saturating_sub(1);
            state.rows = state.rows.saturating_sub(1);
            count_down(&mut queue.origins, origin);
            count_down(&mut state.origins, origin);
            if queue.is_idle() {
                state.rooms.remove(&room);
            }
        }
    }

    /// The number of the next row, if it is known.
    pub(crate) fn next(&self, room: RoomNumber) -> Option<u64> {
        self.state.lock().rooms.get(&room)?.next
    }

    /// Says which row is the next; `None` to have the disk looked at.
    pub(crate) fn set_next(&self, room: RoomNumber, next: Option<u64>) {
        let mut state = self.state.lock();
        state.rooms.entry(room).or_default().next = next;
    }

    /// Tells the worker of rows that are on disk. Gives whether one has to be started.
    #[must_use]
    pub(crate) fn arrived(&self, room: RoomNumber, rows: &[u64]) -> bool {
        let mut state = self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        queue.ready.extend(rows);
        queue.changed.notify_one();
        !std::mem::replace(&mut queue.working, true)
    }

    /// Rooms with rows and without a worker, which are from now on said to have one.
    pub(crate) fn without_workers(&self) -> Vec<RoomNumber> {
        let mut state = self.state.lock();
        let idle = state.rooms.iter_mut().filter(|(_, queue)| !queue.working);
        idle.map(|(room, queue)| {
            queue.working = true;
            *room
        })
        .collect()
    }

    /// Up to `limit` rows that are to be judged, the oldest first.
    pub(crate) fn ready(&self, room: RoomNumber, limit: usize) -> Vec<u64> {
        let mut state = self.state.lock();
        let mut rows = Vec::new();
        if let Some(queue) = state.rooms.get_mut(&room) {
            while rows.len() < limit
                && let Some(row) = queue.ready.pop_first()
            {
                rows.push(row);
            }
        }
        rows
    }

    /// Puts rows back that are to be judged again.
    pub(crate) fn put_back(&self, room: RoomNumber, rows: &[u64]) {
        let mut state = self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        queue.ready.extend(rows);
        queue.changed.notify_one();
    }

    /// Tells when rows arrive.
    pub(crate) fn changed(&self, room: RoomNumber) -> Arc<Notify> {
        let mut state = self.state.lock();
        Arc::clone(&state.rooms.entry(room).or_default().changed)
    }

    /// Ends the worker of a room, unless there are rows that it was not given yet.
    pub(crate) fn may_end(&self, room: RoomNumber) -> bool {
        let mut state = self.state.lock();
        let Some(queue) = state.rooms.get_mut(&room) else {
            return true;
        };
        if !queue.ready.is_empty() || !queue.noted.is_empty() {
            return false;
        }
        queue.working = false;
        if queue.is_idle() {
            state.rooms.remove(&room);
        }
        true
    }

    /// Notes an event that was refused.
    pub(crate) fn note(&self, room: RoomNumber, id: OwnedEventId, origin: &ServerName) {
        let mut state = self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        if queue.noted.len() < MAX_NOTED {
            queue.noted.push((id, origin.to_owned()));
        }
    }

    /// The events that were refused, to be fetched now.
    pub(crate) fn noted(&self, room: RoomNumber) -> Vec<(OwnedEventId, OwnedServerName)> {
        let mut state = self.state.lock();
        let queue = state.rooms.get_mut(&room);
        queue.map_or_else(Vec::new, |queue| std::mem::take(&mut queue.noted))
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.rooms.is_empty() && state.origins.is_empty() && state.rows == 0
    }
}

fn count_down(counts: &mut HashMap<OwnedServerName, usize>, origin: &ServerName) {
    if let Some(count) = counts.get_mut(origin) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    const ROOM: RoomNumber = RoomNumber(1);

    #[test]
    fn a_server_takes_its_share_and_leaves_the_rest() {
        let queues = Arc::new(Queues::default());
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        let mut places = Vec::new();
        for _ in 0..MAX_OF_ORIGIN_IN_ROOM {
            places.push(queues.take_place(ROOM, a).unwrap());
        }
        assert!(queues.take_place(ROOM, a).is_err());
        for _ in MAX_OF_ORIGIN_IN_ROOM..MAX_IN_ROOM {
            places.push(queues.take_place(ROOM, b).unwrap());
        }
        assert!(queues.take_place(ROOM, b).is_err());
        assert!(
            queues.take_place(RoomNumber(2), b).is_ok(),
            "other rooms have their own"
        );
        drop(places);
        assert!(queues.is_empty());
    }

    #[test]
    fn a_server_is_bounded_over_all_rooms() {
        let queues = Arc::new(Queues::default());
        let a = server_name!("a.example");
        let places: Vec<_> = (0..MAX_OF_ORIGIN + 7)
            .filter_map(|number| {
                let room = RoomNumber(number as u64 / 100);
                queues.take_place(room, a).ok()
            })
            .collect();
        assert_eq!(places.len(), MAX_OF_ORIGIN);
        assert!(queues.take_place(ROOM, server_name!("b.example")).is_ok());
    }

    #[test]
    fn a_worker_does_not_end_while_rows_are_ready() {
        let queues = Arc::new(Queues::default());
        let a = server_name!("a.example");
        queues.take_place(ROOM, a).unwrap().keep();
        queues.take_place(ROOM, a).unwrap().keep();
        assert!(queues.arrived(ROOM, &[2, 1]), "the first is told to start");
        assert!(!queues.arrived(ROOM, &[3]), "the second is not");
        assert_eq!(queues.ready(ROOM, 2), [1, 2]);
        assert!(!queues.may_end(ROOM));
        assert_eq!(queues.ready(ROOM, 2), [3]);
        queues.give_back(ROOM, a);
        assert!(queues.may_end(ROOM));
        assert!(!queues.is_empty(), "a row is left");
        assert_eq!(queues.without_workers(), [ROOM]);
        assert!(queues.without_workers().is_empty());
        queues.give_back(ROOM, a);
        assert!(queues.may_end(ROOM));
        assert!(queues.is_empty());
    }
}
