//! Which rows wait, by room: kept in memory beside the rows, so that a worker is told what is new
//! and nobody takes more than a share.
//!
//! A room is here exactly while it has rows or a worker. Whether a worker ends is decided under the
//! same lock under which it is told of rows: no wake-up falls between. Each row is known by its
//! number until it is removed, so that its place is given back once, whatever happens on the way.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
/// Rows of one room that servers may have which are not in it. Anybody can have as many names as they
/// like, so that it is one share for all of them.
const MAX_OF_STRANGERS_IN_ROOM: usize = 500;
/// The same in all rooms.
const MAX_OF_STRANGERS: usize = 20_000;
/// Rows in all: some gigabytes in the worst case.
pub const MAX_IN_ALL: usize = 200_000;
/// Events of one room that were refused for want of room and are fetched when it is worked off.
const MAX_NOTED: usize = 1_000;
/// Of them, events that one server may have sent.
const MAX_NOTED_OF_ORIGIN: usize = 500;
/// Such events in all.
const MAX_NOTED_IN_ALL: usize = 20_000;

/// Why an event gets no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many events are waiting to be judged")]
pub(crate) struct Full;

/// What a server is to a room whose events it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has users there.
    Member,
    /// It has none, as far as is known here.
    Stranger,
}

/// Whose a row is.
#[derive(Clone, Debug)]
struct Owner {
    origin: OwnedServerName,
    standing: Standing,
}

impl Owner {
    fn strangers(&self) -> usize {
        usize::from(self.standing == Standing::Stranger)
    }
}

/// The promise of a row. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Place {
    queues: Arc<Queues>,
    room: RoomNumber,
    owner: Owner,
    kept: bool,
}

impl Place {
    /// The row is on disk: its place is given back when it is removed.
    pub(crate) fn keep(mut self, row: u64) {
        self.kept = true;
        let mut state = self.queues.state.lock();
        let queue = state.rooms.entry(self.room).or_default();
        queue.kept.insert(row, self.owner.clone());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            self.queues.give_back(self.room, &self.owner);
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
    /// Of them those of servers that are not in the rooms.
    strangers: usize,
    noted: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// Rows and places that were promised.
    rows: usize,
    strangers: usize,
    origins: HashMap<OwnedServerName, usize>,
    /// The rows on disk, and who sent them.
    kept: BTreeMap<u64, Owner>,
    /// Rows that the worker has not taken yet.
    ready: BTreeSet<u64>,
    working: bool,
    changed: Arc<Notify>,
    /// Events that were refused, and who sent them.
    noted: BTreeMap<OwnedEventId, OwnedServerName>,
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
        (origin, standing): (&ServerName, Standing),
    ) -> Result<Place, Full> {
        let owner = Owner {
            origin: origin.to_owned(),
            standing,
        };
        let stranger = owner.strangers();
        let state = &mut *self.state.lock();
        let of_origin = state.origins.get(origin).copied().unwrap_or_default();
        let is_full = state.rows >= MAX_IN_ALL
            || of_origin >= MAX_OF_ORIGIN
            || stranger > 0 && state.strangers >= MAX_OF_STRANGERS;
        if is_full {
            return Err(Full);
        }
        let queue = state.rooms.entry(room).or_default();
        let here = queue.origins.get(origin).copied().unwrap_or_default();
        let is_full = queue.rows >= MAX_IN_ROOM
            || here >= MAX_OF_ORIGIN_IN_ROOM
            || stranger > 0 && queue.strangers >= MAX_OF_STRANGERS_IN_ROOM;
        if is_full {
            return Err(Full);
        }
        queue.rows += 1;
        queue.strangers += stranger;
        queue.origins.insert(origin.to_owned(), here + 1);
        state.rows += 1;
        state.strangers += stranger;
        state.origins.insert(origin.to_owned(), of_origin + 1);
        Ok(Place {
            queues: Arc::clone(self),
            room,
            owner,
            kept: false,
        })
    }

    /// Counts a row that was found on disk, whatever the bounds say.
    pub(crate) fn found(&self, room: RoomNumber, origin: &ServerName, row: u64) {
        let state = &mut *self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        let owner = Owner {
            origin: origin.to_owned(),
            // What it was then is not known any more.
            standing: Standing::Member,
        };
        if queue.kept.insert(row, owner).is_some() {
            return;
        }
        queue.rows += 1;
        *queue.origins.entry(origin.to_owned()).or_default() += 1;
        queue.ready.insert(row);
        state.rows += 1;
        *state.origins.entry(origin.to_owned()).or_default() += 1;
    }

    /// A row is gone: gives its place back.
    pub(crate) fn remove(&self, room: RoomNumber, row: u64) {
        let state = &mut *self.state.lock();
        let Some(queue) = state.rooms.get_mut(&room) else {
            return;
        };
        queue.ready.remove(&row);
        if let Some(owner) = queue.kept.remove(&row) {
            state.give_back(room, &owner);
        }
    }

    /// Gives the place of a row back that was never written.
    fn give_back(&self, room: RoomNumber, owner: &Owner) {
        self.state.lock().give_back(room, owner);
    }

    /// Whether a room has rows, or any on their way.
    pub(crate) fn knows(&self, room: RoomNumber) -> bool {
        self.state.lock().rooms.contains_key(&room)
    }

    /// Has all rows of a room judged again: nobody knows any more what became of them.
    pub(crate) fn all_again(&self, room: RoomNumber) {
        let mut state = self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        queue.ready.extend(queue.kept.keys());
        queue.changed.notify_one();
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

    /// Notes an event that was refused. Gives whether it is noted now and was not before.
    pub(crate) fn note(&self, room: RoomNumber, id: &OwnedEventId, origin: &ServerName) -> bool {
        let state = &mut *self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        let of_origin = queue.noted.values().filter(|by| **by == *origin).count();
        let full = queue.noted.len() >= MAX_NOTED
            || of_origin >= MAX_NOTED_OF_ORIGIN
            || state.noted >= MAX_NOTED_IN_ALL;
        if full || queue.noted.contains_key(id) {
            if queue.is_idle() {
                state.rooms.remove(&room);
            }
            return false;
        }
        queue.noted.insert(id.clone(), origin.to_owned());
        state.noted += 1;
        true
    }

    /// Notes an event that was found among those that were refused, whatever the bounds say.
    pub(crate) fn found_noted(&self, room: RoomNumber, id: OwnedEventId, origin: OwnedServerName) {
        let state = &mut *self.state.lock();
        let queue = state.rooms.entry(room).or_default();
        if queue.noted.insert(id, origin).is_none() {
            state.noted += 1;
        }
    }

    /// Up to `limit` of the events that were refused, with who sent them, from the one after `skip`
    /// others on, and then from the first one.
    pub(crate) fn noted(
        &self,
        room: RoomNumber,
        (skip, limit): (usize, usize),
    ) -> Vec<(OwnedEventId, OwnedServerName)> {
        let state = self.state.lock();
        let Some(queue) = state.rooms.get(&room) else {
            return Vec::new();
        };
        let limit = limit.min(queue.noted.len());
        let noted = queue.noted.iter().cycle().skip(skip).take(limit);
        noted
            .map(|(id, origin)| (id.clone(), origin.clone()))
            .collect()
    }

    /// How many events of a room were refused and not fetched yet.
    pub(crate) fn noted_count(&self, room: RoomNumber) -> usize {
        let state = self.state.lock();
        state.rooms.get(&room).map_or(0, |queue| queue.noted.len())
    }

    /// Whether a room has refused events, and has worked off enough to take them.
    pub(crate) fn may_fetch_noted(&self, room: RoomNumber) -> bool {
        let state = self.state.lock();
        let queue = state.rooms.get(&room);
        queue.is_some_and(|queue| !queue.noted.is_empty() && queue.rows <= MAX_IN_ROOM / 2)
    }

    /// Whether an event was refused before.
    pub(crate) fn is_noted(&self, room: RoomNumber, id: &OwnedEventId) -> bool {
        let state = self.state.lock();
        let queue = state.rooms.get(&room);
        queue.is_some_and(|queue| queue.noted.contains_key(id))
    }

    /// Forgets events that were refused: they are here, or not to be had.
    pub(crate) fn forget_noted(&self, room: RoomNumber, ids: &[OwnedEventId]) {
        let state = &mut *self.state.lock();
        let Some(queue) = state.rooms.get_mut(&room) else {
            return;
        };
        for id in ids {
            if queue.noted.remove(id).is_some() {
                state.noted -= 1;
            }
        }
        if queue.is_idle() {
            state.rooms.remove(&room);
        }
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        let counts = state.rows + state.strangers + state.noted;
        state.rooms.is_empty() && state.origins.is_empty() && counts == 0
    }
}

impl State {
    fn give_back(&mut self, room: RoomNumber, owner: &Owner) {
        let Some(queue) = self.rooms.get_mut(&room) else {
            return;
        };
        queue.rows = queue.rows.saturating_sub(1);
        queue.strangers = queue.strangers.saturating_sub(owner.strangers());
        self.rows = self.rows.saturating_sub(1);
        self.strangers = self.strangers.saturating_sub(owner.strangers());
        count_down(&mut queue.origins, &owner.origin);
        count_down(&mut self.origins, &owner.origin);
        if queue.is_idle() {
            self.rooms.remove(&room);
        }
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
            places.push(queues.take_place(ROOM, (a, Standing::Member)).unwrap());
        }
        assert!(queues.take_place(ROOM, (a, Standing::Member)).is_err());
        for _ in MAX_OF_ORIGIN_IN_ROOM..MAX_IN_ROOM {
            places.push(queues.take_place(ROOM, (b, Standing::Member)).unwrap());
        }
        assert!(queues.take_place(ROOM, (b, Standing::Member)).is_err());
        assert!(
            queues
                .take_place(RoomNumber(2), (b, Standing::Member))
                .is_ok(),
            "other rooms have their own"
        );
        drop(places);
        assert!(queues.is_empty());
    }

    #[test]
    fn servers_that_are_not_in_a_room_keep_out_none_that_are() {
        let queues = Arc::new(Queues::default());
        let mut places = Vec::new();
        for number in 0..2 * MAX_OF_STRANGERS_IN_ROOM {
            let name = format!("s{number}.example");
            let name = ServerName::parse(name).unwrap();
            let place = queues.take_place(ROOM, (&name, Standing::Stranger));
            assert_eq!(place.is_ok(), number < MAX_OF_STRANGERS_IN_ROOM);
            places.extend(place);
        }
        let a = server_name!("a.example");
        for _ in 0..MAX_OF_ORIGIN_IN_ROOM {
            places.push(queues.take_place(ROOM, (a, Standing::Member)).unwrap());
        }
        places.pop();
        places.remove(0).keep(1);
        let stranger = (server_name!("s.example"), Standing::Stranger);
        assert!(queues.take_place(ROOM, stranger).is_err());
        queues.remove(ROOM, 1);
        assert!(queues.take_place(ROOM, stranger).is_ok());
        drop(places);
        assert!(queues.is_empty());
        let rooms = 0..=MAX_OF_STRANGERS as u64 / 100;
        let taken = rooms.flat_map(|room| {
            let queues = Arc::clone(&queues);
            (0..100).map(move |number| {
                let name = ServerName::parse(format!("s{number}.example")).unwrap();
                queues.take_place(RoomNumber(room), (&name, Standing::Stranger))
            })
        });
        let taken: Vec<_> = taken.filter_map(Result::ok).collect();
        assert_eq!(taken.len(), MAX_OF_STRANGERS);
    }

    #[test]
    fn a_server_is_bounded_over_all_rooms() {
        let queues = Arc::new(Queues::default());
        let a = server_name!("a.example");
        let places: Vec<_> = (0..MAX_OF_ORIGIN + 7)
            .filter_map(|number| {
                let room = RoomNumber(number as u64 / 100);
                queues.take_place(room, (a, Standing::Member)).ok()
            })
            .collect();
        assert_eq!(places.len(), MAX_OF_ORIGIN);
        assert!(
            queues
                .take_place(ROOM, (server_name!("b.example"), Standing::Member))
                .is_ok()
        );
    }

    #[test]
    fn a_worker_does_not_end_while_rows_are_ready() {
        let queues = Arc::new(Queues::default());
        let a = server_name!("a.example");
        queues
            .take_place(ROOM, (a, Standing::Member))
            .unwrap()
            .keep(1);
        queues
            .take_place(ROOM, (a, Standing::Member))
            .unwrap()
            .keep(3);
        queues
            .take_place(ROOM, (a, Standing::Member))
            .unwrap()
            .keep(2);
        assert!(queues.arrived(ROOM, &[2, 1]), "the first is told to start");
        assert!(!queues.arrived(ROOM, &[3]), "the second is not");
        assert_eq!(queues.ready(ROOM, 2), [1, 2]);
        assert!(!queues.may_end(ROOM));
        assert_eq!(queues.ready(ROOM, 2), [3]);
        queues.remove(ROOM, 1);
        queues.remove(ROOM, 1);
        queues.remove(ROOM, 2);
        assert!(queues.may_end(ROOM));
        assert!(!queues.is_empty(), "a row is left");
        assert_eq!(queues.without_workers(), [ROOM]);
        assert!(queues.without_workers().is_empty());
        queues.all_again(ROOM);
        assert_eq!(
            queues.ready(ROOM, 2),
            [3],
            "what is not removed is not lost"
        );
        queues.remove(ROOM, 3);
        assert!(queues.may_end(ROOM));
        assert!(queues.is_empty());
    }

    #[test]
    fn refused_events_are_noted_once_and_within_bounds() {
        let queues = Arc::new(Queues::default());
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        let id = |number: usize| OwnedEventId::try_from(format!("$event{number}")).unwrap();
        for number in 0..MAX_NOTED_OF_ORIGIN {
            assert!(queues.note(ROOM, &id(number), a));
            assert!(!queues.note(ROOM, &id(number), b), "only once");
        }
        assert!(!queues.note(ROOM, &id(9_999), a), "a has its share");
        assert!(queues.note(ROOM, &id(9_999), b));
        assert!(queues.note(RoomNumber(2), &id(9_999), a), "of each room");
        let all = queues.noted(ROOM, (0, MAX_NOTED));
        assert_eq!(all.len(), MAX_NOTED_OF_ORIGIN + 1);
        assert_eq!(queues.noted(ROOM, (100, 3)), all[100..103]);
        let rest = queues.noted(ROOM, (MAX_NOTED_OF_ORIGIN, 2));
        assert_eq!(rest, [all[MAX_NOTED_OF_ORIGIN].clone(), all[0].clone()]);
        let again = queues.noted(ROOM, (12 * MAX_NOTED, MAX_NOTED));
        assert_eq!(again.len(), all.len(), "each once");
        assert!(!queues.may_end(ROOM), "it has something to fetch");
        for room in [ROOM, RoomNumber(2)] {
            let noted = queues.noted(room, (0, MAX_NOTED)).into_iter();
            let noted: Vec<_> = noted.map(|(id, _)| id).collect();
            queues.forget_noted(room, &noted);
        }
        assert!(queues.is_empty());
    }
}
