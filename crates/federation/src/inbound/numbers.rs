//! The numbers that rows get: dense from the last row on disk on, never given twice while the room
//! or the server has rows or anything on its way. What was not written leaves a hole.

use std::collections::{HashMap, hash_map::Entry};

use homeserver_rooms::RoomNumber;
use homeserver_storage::{Direction, ScanRange, StorageError, Store};
use ruma::{OwnedServerName, ServerName};

use super::{edu_queue::EduQueues, queue::Queues};
use crate::tables::{INBOUND_EDUS, INBOUND_PDUS};

/// Rooms and servers that are kept before those are looked for that have nothing.
const KEPT: usize = 10_000;

/// The next numbers, as far as the disk was looked at for them. Whoever holds this alone gives
/// numbers, until the batches with their rows are queued.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    rooms: HashMap<RoomNumber, u64>,
    origins: HashMap<OwnedServerName, u64>,
}

impl Numbers {
    /// The number of the next event of a room, to be counted on by who uses it.
    pub(super) async fn of_room(
        &mut self,
        store: &Store,
        room: RoomNumber,
    ) -> Result<&mut u64, StorageError> {
        match self.rooms.entry(room) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let range = ScanRange::prefix(&room.0);
                let last = store.scan(&INBOUND_PDUS, range, Direction::Backward, 1);
                let last = last.await?;
                Ok(unknown.insert(last.first().map_or(0, |((_, number), _)| number + 1)))
            }
        }
    }

    /// The number of the next EDU of a server, to be counted on by who uses it.
    pub(super) async fn of_origin(
        &mut self,
        store: &Store,
        origin: &ServerName,
    ) -> Result<&mut u64, StorageError> {
        match self.origins.entry(origin.to_owned()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let range = ScanRange::prefix(&origin.as_str());
                let last = store.scan(&INBOUND_EDUS, range, Direction::Backward, 1);
                let last = last.await?;
                Ok(unknown.insert(last.first().map_or(0, |((_, number), _)| number + 1)))
            }
        }
    }

    /// Forgets those that have nothing on disk or on its way there, if there are many.
    pub(super) fn tidy(&mut self, queues: &Queues, edus: &EduQueues) {
        if self.rooms.len() + self.origins.len() > KEPT {
            self.rooms.retain(|room, _| queues.knows(*room));
            self.origins.retain(|origin, _| edus.knows(origin));
        }
    }
}
