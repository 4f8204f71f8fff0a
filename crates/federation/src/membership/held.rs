//! Events that others send of a room while it is joined: they already see this server in it.
//!
//! Such events are not acknowledged, since the join may fail. They are held in memory for so long,
//! and taken like a transaction once the room is here: who sent them does not send them again, and
//! what nobody follows, as the leave of the last one who was there, nobody would ever ask for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use tokio::sync::mpsc;

/// Events of one room that are held, and their bytes. What is more comes by what follows it.
const MAX_EVENTS: usize = 200;
const MAX_BYTES: usize = 1024 * 1024;
/// Rooms of which events are held at once.
const MAX_ROOMS: usize = 20;
/// Rooms whose events wait to be taken.
const WAITING: usize = 20;

/// Events of a room that is here now, by who sent them.
pub type HeldEvents = BTreeMap<OwnedServerName, Vec<Bytes>>;

#[derive(Debug, Default)]
struct OfRoom {
    events: HeldEvents,
    count: usize,
    bytes: usize,
}

/// The rooms that are joined now.
#[derive(Debug)]
pub(super) struct Held {
    rooms: Arc<Mutex<HashMap<OwnedRoomId, OfRoom>>>,
    tell: mpsc::Sender<HeldEvents>,
    hear: Mutex<Option<mpsc::Receiver<HeldEvents>>>,
}

/// A room whose events are held until this is dropped.
pub(super) struct Holding {
    rooms: Arc<Mutex<HashMap<OwnedRoomId, OfRoom>>>,
    tell: mpsc::Sender<HeldEvents>,
    room: OwnedRoomId,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.rooms.lock().remove(&self.room);
    }
}

impl Holding {
    /// The room is here: what was held is handed on.
    pub(super) fn hand_on(self) {
        let held = self.rooms.lock().remove(&self.room);
        let events = held.map(|held| held.events).unwrap_or_default();
        if !events.is_empty() && self.tell.try_send(events).is_err() {
            tracing::debug!(room = %self.room, "events that came during a join are dropped");
        }
    }
}

impl Held {
    pub(super) fn new() -> Self {
        let (tell, hear) = mpsc::channel(WAITING);
        Self {
            rooms: Arc::default(),
            tell,
            hear: Mutex::new(Some(hear)),
        }
    }

    /// Where what was held comes out; once.
    pub(super) fn hear(&self) -> Option<mpsc::Receiver<HeldEvents>> {
        self.hear.lock().take()
    }

    /// Holds the events of a room from now on.
    pub(super) fn hold(&self, room: &RoomId) -> Holding {
        let mut rooms = self.rooms.lock();
        if rooms.len() < MAX_ROOMS {
            rooms.insert(room.to_owned(), OfRoom::default());
        }
        Holding {
            rooms: Arc::clone(&self.rooms),
            tell: self.tell.clone(),
            room: room.to_owned(),
        }
    }

    /// Takes an event, if its room is joined now and there is place. Gives whether it did.
    pub(super) fn take(&self, origin: &ServerName, room: &RoomId, json: &Bytes) -> bool {
        let mut rooms = self.rooms.lock();
        let Some(held) = rooms.get_mut(room) else {
            return false;
        };
        if held.count >= MAX_EVENTS || held.bytes + json.len() > MAX_BYTES {
            return false;
        }
        held.count += 1;
        held.bytes += json.len();
        // Not a part of the whole transaction, which would stay in memory for it.
        let json = Bytes::copy_from_slice(json);
        held.events.entry(origin.to_owned()).or_default().push(json);
        true
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, server_name};

    use super::*;

    #[test]
    fn events_are_held_while_a_room_is_joined_and_handed_on_once_it_is_here() {
        let held = Held::new();
        let mut heard = held.hear().unwrap();
        let (room, origin) = (room_id!("!a:a.example"), server_name!("b.example"));
        let event = Bytes::from_static(b"{}");
        assert!(!held.take(origin, room, &event), "nobody joins it");
        let failing = held.hold(room);
        assert!(held.take(origin, room, &event));
        drop(failing);
        assert!(!held.take(origin, room, &event));
        let holding = held.hold(room);
        for _ in 0..MAX_EVENTS {
            assert!(held.take(origin, room, &event));
        }
        assert!(!held.take(origin, room, &event), "there are enough");
        holding.hand_on();
        assert!(!held.take(origin, room, &event));
        assert_eq!(heard.try_recv().unwrap()[origin].len(), MAX_EVENTS);
        assert!(heard.try_recv().is_err());
        let large = Bytes::from(vec![b' '; MAX_BYTES]);
        let _holding = held.hold(room);
        assert!(held.take(origin, room, &large));
        assert!(!held.take(origin, room, &event));
    }
}
