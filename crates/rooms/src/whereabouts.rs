//! In which rooms an event is: event ids do not say so, and other servers ask by them alone.
//!
//! The index is by a digest of the id, so that a row is short, and names a room; whether the event
//! is there is looked up in the room. Rows are written with those of their events.

use async_trait::async_trait;
use homeserver_storage::{
    Batch, Bytes, Direction, ScanRange, StorageError, Store,
    migrations::{Migration, Step},
};
use ruma::EventId;
use sha2::{Digest, Sha256};

use crate::{
    numbers::RoomNumber,
    tables::{EVENT_IDS, EVENT_ROOMS},
};

/// Events that one step of the migration indexes: as many as a batch has operations, but for some.
const EVENTS_AT_ONCE: usize = 900;

/// The key of an event id in the index.
pub(crate) fn event_digest(id: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(id)[..16]);
    short
}

/// Notes that an event is in a room.
pub(crate) fn put_whereabouts(batch: &mut Batch, room: u64, id: &EventId) {
    batch.put(&EVENT_ROOMS, &(event_digest(id.as_str()), room), &());
}

/// Some rooms in which an event may be, after `after`.
pub(crate) async fn rooms_of(
    store: &Store,
    id: &EventId,
    after: Option<RoomNumber>,
    limit: usize,
) -> Result<Vec<RoomNumber>, StorageError> {
    let digest = event_digest(id.as_str());
    let range = ScanRange::prefix(&digest);
    let range = match after {
        Some(after) => range.after(&(digest, after.0)),
        None => range,
    };
    let rows = store.scan(&EVENT_ROOMS, range, Direction::Forward, limit);
    let rooms = rows
        .await?
        .into_iter()
        .map(|((_, room), ())| RoomNumber(room));
    Ok(rooms.collect())
}

/// Indexes the events of a database that was made before there was the index.
#[derive(Debug)]
pub struct IndexEventRooms;

#[async_trait]
impl Migration for IndexEventRooms {
    fn number(&self) -> u32 {
        1
    }

    fn name(&self) -> &'static str {
        "an index of the rooms of events"
    }

    async fn step(&self, store: &Store, place: Option<Bytes>) -> Result<Step, StorageError> {
        let range = match place.as_deref().and_then(read_place) {
            Some((room, id)) => ScanRange::all().after(&(room, id)),
            None => ScanRange::all(),
        };
        let forward = Direction::Forward;
        let rows = store
            .scan(&EVENT_IDS, range, forward, EVENTS_AT_ONCE)
            .await?;
        let mut batch = Batch::new();
        for ((room, id), _) in &rows {
            batch.put(&EVENT_ROOMS, &(event_digest(id), *room), &());
        }
        let last = rows.last().filter(|_| rows.len() == EVENTS_AT_ONCE);
        let next = last.map(|((room, id), _)| write_place(*room, id));
        Ok(Step { batch, next })
    }
}

fn write_place(room: u64, id: &str) -> Bytes {
    [&room.to_be_bytes(), id.as_bytes()].concat().into()
}

fn read_place(place: &[u8]) -> Option<(u64, &str)> {
    let (room, id) = place.split_first_chunk()?;
    Some((u64::from_be_bytes(*room), std::str::from_utf8(id).ok()?))
}
