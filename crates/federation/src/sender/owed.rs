//! What a server has not acknowledged yet. Pure: who sends it, and when, is the worker's.
//!
//! A server that keeps up has a queue of events in the order of their arrival. One that does not is
//! *behind*: of each room is known from where on it lacks events, and they are read from the room
//! when it is their turn. Nothing of a queue is written down unless it stands there for a while.

use std::collections::{BTreeMap, VecDeque};

use homeserver_rooms::{EventNumber, RoomNumber};
use homeserver_storage::Position;

use super::{edus::OwedEdus, rows::BehindRow, state::Lacking};

/// Events in the queue of a server; with more of them it is behind.
pub(super) const QUEUE: usize = 500;

/// Events of one room that are sent of a backlog; what is newer is left to be asked for.
pub(super) const BACKLOG_OF_ROOM: usize = 1_000;

/// Arrivals of one room that are looked at for a backlog, most of which others sent.
pub(super) const LOOKED_AT_OF_ROOM: usize = 20_000;

/// Rooms of whose events a server that is away is owed. Of more of them, that in which it was owed
/// nothing for the longest is left to be asked for when the server is back.
pub(super) const ROOMS: usize = 2_000;

/// An event that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) room: RoomNumber,
    pub(super) event: EventNumber,
    pub(super) position: Position,
}

/// The events of a room that a server lacks lie between two positions, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Position,
    pub(super) last: Position,
    /// How many of them were sent.
    pub(super) sent: usize,
    /// How many arrivals were looked at for that.
    pub(super) looked_at: usize,
}

impl Span {
    fn at(position: Position) -> Self {
        Self::between(position, position)
    }

    fn between(from: Position, last: Position) -> Self {
        Self {
            from,
            last: last.max(from),
            sent: 0,
            looked_at: 0,
        }
    }

    /// Whether so much was sent, or looked at, that the rest is left to be asked for.
    pub(super) fn is_enough(&self) -> bool {
        self.sent >= BACKLOG_OF_ROOM || self.looked_at >= LOOKED_AT_OF_ROOM
    }
}

/// Part of the backlog of a room that the server has, or does not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) room: RoomNumber,
    pub(super) upto: Position,
    pub(super) sent: usize,
    pub(super) looked_at: usize,
}

/// What a server lacks.
#[derive(Debug, Default)]
pub(super) struct Owed {
    queue: VecDeque<Queued>,
    /// Not empty: the server is behind, and the queue is empty.
    rooms: BTreeMap<RoomNumber, Span>,
    /// What else it is to be told.
    pub(super) edus: OwedEdus,
}

/// What is to be sent next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Queue(Vec<Queued>),
    /// Rooms with a backlog, that which is the longest behind first.
    Backlog(Vec<(RoomNumber, Span)>),
}

impl Owed {
    /// What the rows say: of each room the first position that the server lacks. Entries of the
    /// journal up to `upto` will not come again.
    pub(super) fn stored(lacking: &Lacking, upto: Position) -> Self {
        let spans = lacking
            .rooms
            .iter()
            .map(|(room, from)| (RoomNumber(*room), Span::between(*from, upto)));
        Self {
            queue: VecDeque::new(),
            rooms: spans.collect(),
            edus: OwedEdus::stored(&lacking.rest.unwrap_or_default(), upto),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.rooms.is_empty() && self.edus.is_empty()
    }

    /// Events in the queue, and rooms with a backlog.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.queue.len(), self.rooms.len())
    }

    /// One more event, which arrived after all others.
    pub(super) fn push(&mut self, queued: Queued) {
        if self.rooms.is_empty() && self.queue.len() < QUEUE {
            self.queue.push_back(queued);
            return;
        }
        self.fall_behind();
        self.owe(queued);
    }

    /// Empties the queue: the server does not keep up.
    pub(super) fn fall_behind(&mut self) {
        for queued in std::mem::take(&mut self.queue) {
            self.owe(queued);
        }
    }

    fn owe(&mut self, queued: Queued) {
        let at = queued.position;
        if self.rooms.len() >= ROOMS && !self.rooms.contains_key(&queued.room) {
            let oldest = self.rooms.iter().min_by_key(|(_, span)| span.last);
            let oldest = oldest.map(|(room, _)| *room);
            oldest.and_then(|room| self.rooms.remove(&room));
        }
        let span = self.rooms.entry(queued.room);
        let span = span.or_insert_with(|| Span::at(at));
        span.last = span.last.max(at);
    }

    /// What is to be sent next, at most so many events or rooms; `None` if there is nothing.
    pub(super) fn next(&self, limit: usize) -> Option<Next> {
        if !self.queue.is_empty() {
            return Some(Next::Queue(
                self.queue.iter().take(limit).copied().collect(),
            ));
        }
        if self.rooms.is_empty() {
            return None;
        }
        let mut rooms: Vec<_> = self
            .rooms
            .iter()
            .map(|(room, span)| (*room, *span))
            .collect();
        rooms.sort_unstable_by_key(|(room, span)| (span.from, *room));
        rooms.truncate(limit);
        Some(Next::Backlog(rooms))
    }

    /// An event that was in the queue has arrived, or is given up. Those before it have too.
    pub(super) fn acknowledge(&mut self, queued: Queued) {
        if self.queue.front() == Some(&queued) {
            self.queue.pop_front();
        } else {
            // The queue was given up meanwhile.
            self.pass(Passed {
                room: queued.room,
                upto: queued.position,
                sent: 1,
                looked_at: 1,
            });
        }
    }

    /// Part of a backlog has arrived, or is given up.
    pub(super) fn pass(&mut self, passed: Passed) {
        let Some(span) = self.rooms.get_mut(&passed.room) else {
            return;
        };
        if passed.upto < span.from {
            return;
        }
        if passed.upto >= span.last {
            self.rooms.remove(&passed.room);
            return;
        }
        span.from = passed.upto + 1;
        span.sent += passed.sent;
        span.looked_at += passed.looked_at;
        if span.is_enough() && passed.sent == 0 && passed.looked_at == 0 {
            // The rest was given up: what came since is a backlog of its own.
            (span.sent, span.looked_at) = (0, 0);
        }
    }

    /// Of each room the first position that the server lacks: what the rows have to say.
    pub(super) fn lacking(&self) -> Lacking {
        let mut rooms: BTreeMap<u64, Position> = BTreeMap::new();
        for queued in &self.queue {
            rooms.entry(queued.room.0).or_insert(queued.position);
        }
        let spans = self.rooms.iter().map(|(room, span)| (room.0, span.from));
        rooms.extend(spans);
        Lacking {
            rest: self
                .edus
                .row()
                .or_else(|| (!rooms.is_empty()).then(BehindRow::default)),
            rooms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(room: u64, position: Position) -> Queued {
        Queued {
            room: RoomNumber(room),
            event: EventNumber(position),
            position,
        }
    }

    fn passed(room: u64, upto: Position) -> Passed {
        Passed {
            room: RoomNumber(room),
            upto,
            sent: 1,
            looked_at: 1,
        }
    }

    fn lacking(owed: &Owed) -> Vec<(u64, Position)> {
        owed.lacking().rooms.into_iter().collect()
    }

    #[test]
    fn a_queue_empties_from_its_front() {
        let mut owed = Owed::default();
        let events = [event(1, 3), event(2, 4), event(1, 6)];
        for one in events {
            owed.push(one);
        }
        assert_eq!(owed.next(2), Some(Next::Queue(events[..2].to_vec())));
        assert_eq!(lacking(&owed), [(1, 3), (2, 4)]);
        owed.acknowledge(events[0]);
        assert_eq!(lacking(&owed), [(1, 6), (2, 4)]);
        owed.acknowledge(events[1]);
        owed.acknowledge(events[2]);
        assert!(owed.is_empty());
        assert_eq!(owed.next(9), None);
    }

    #[test]
    fn a_server_that_falls_behind_gets_its_rooms_oldest_first_and_then_keeps_up_again() {
        let mut owed = Owed::default();
        let events = [event(2, 3), event(1, 4), event(2, 6)];
        for one in events {
            owed.push(one);
        }
        owed.fall_behind();
        owed.push(event(3, 9));
        let Some(Next::Backlog(rooms)) = owed.next(2) else {
            panic!("keeps up");
        };
        let rooms: Vec<_> = rooms
            .iter()
            .map(|(room, s)| (room.0, s.from, s.last))
            .collect();
        assert_eq!(rooms, [(2, 3, 6), (1, 4, 4)]);
        // What was on its way when the queue was given up has arrived.
        owed.acknowledge(events[0]);
        assert_eq!(lacking(&owed), [(1, 4), (2, 4), (3, 9)]);
        owed.pass(passed(2, 6));
        owed.pass(passed(1, 3));
        owed.pass(passed(1, 4));
        owed.push(event(3, 12));
        owed.pass(passed(3, 9));
        assert_eq!(lacking(&owed), [(3, 10)]);
        owed.pass(passed(3, 12));
        assert!(owed.is_empty());
        owed.push(event(3, 13));
        assert_eq!(owed.count(), (1, 0));
    }

    #[test]
    fn a_queue_is_bounded() {
        let mut owed = Owed::default();
        let count = QUEUE as u64 + 5;
        (1..=count).for_each(|position| owed.push(event(7, position)));
        assert_eq!(owed.count(), (0, 1));
        assert_eq!(lacking(&owed), [(7, 1)]);
        owed.pass(passed(7, count));
        assert!(owed.is_empty());
    }

    #[test]
    fn rooms_of_a_server_that_is_away_are_bounded() {
        let mut owed = Owed::default();
        owed.push(event(1, 1));
        owed.push(event(2, 2));
        owed.fall_behind();
        let count = ROOMS as u64;
        for room in 3..=count {
            owed.push(event(room, room));
        }
        owed.push(event(1, count + 1));
        owed.push(event(count + 1, count + 2));
        let lacking = owed.lacking().rooms;
        assert_eq!(lacking.len(), ROOMS);
        assert_eq!(lacking.get(&1), Some(&1));
        assert_eq!(lacking.get(&2), None, "the longest quiet");
    }

    #[test]
    fn rows_are_taken_back_and_go_on() {
        let rows = Lacking {
            rest: None,
            rooms: BTreeMap::from([(1, 5), (2, 30)]),
        };
        let mut owed = Owed::stored(&rows, 20);
        assert_eq!(lacking(&owed), [(1, 5), (2, 30)]);
        // Read again after a crash: it was acknowledged before.
        owed.push(event(2, 21));
        assert_eq!(lacking(&owed), [(1, 5), (2, 30)]);
        owed.pass(passed(1, 19));
        assert_eq!(lacking(&owed), [(1, 20), (2, 30)]);
        owed.pass(passed(1, 20));
        owed.pass(passed(2, 30));
        assert!(owed.is_empty());
    }

    #[test]
    fn a_long_backlog_is_cut() {
        let mut owed = Owed::default();
        owed.push(event(1, 1));
        owed.fall_behind();
        owed.push(event(1, 5_000));
        owed.pass(Passed {
            sent: BACKLOG_OF_ROOM,
            ..passed(1, 1_000)
        });
        let Some(Next::Backlog(rooms)) = owed.next(9) else {
            panic!("keeps up");
        };
        assert!(rooms[0].1.is_enough());
        owed.push(event(1, 5_001));
        owed.pass(Passed {
            sent: 0,
            looked_at: 0,
            ..passed(1, 5_000)
        });
        let Some(Next::Backlog(rooms)) = owed.next(9) else {
            panic!("keeps up");
        };
        assert!(!rooms[0].1.is_enough());
        assert_eq!(lacking(&owed), [(1, 5_001)]);
    }
}
