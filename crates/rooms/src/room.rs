//! What never changes about a room, and finding it.

use std::sync::Arc;

use homeserver_events::Rules;
use homeserver_storage::Store;
use quick_cache::sync::Cache;
use ruma::{OwnedRoomId, RoomId, RoomVersionId};

use crate::{
    error::RoomError,
    numbers::{EventNumber, RoomNumber},
    rows::RoomRow,
    tables::{ROOM_IDS, ROOMS},
};

/// Rooms whose facts are kept at hand.
const ROOMS_AT_HAND: usize = 4096;

/// A room that this server knows. Holding one allows nothing: reads check for whom they are.
#[derive(Clone, Debug)]
pub struct Room {
    /// Its number in this database.
    pub number: RoomNumber,
    /// Its id.
    pub id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
    /// The rules of its version.
    pub rules: &'static Rules,
    /// The event that made it; zero where that is not known, of a room that is elsewhere.
    pub(crate) create: EventNumber,
}

/// Finds rooms by id or number.
pub(crate) struct RoomDirectory {
    store: Store,
    by_id: Cache<OwnedRoomId, Arc<Room>>,
    by_number: Cache<RoomNumber, Arc<Room>>,
}

impl RoomDirectory {
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            by_id: Cache::new(ROOMS_AT_HAND),
            by_number: Cache::new(ROOMS_AT_HAND),
        }
    }

    pub(crate) async fn by_id(&self, id: &RoomId) -> Result<Option<Arc<Room>>, RoomError> {
        if let Some(room) = self.by_id.get(id) {
            return Ok(Some(room));
        }
        match self.store.get(&ROOM_IDS, &id.as_str()).await? {
            Some(number) => self.by_number(RoomNumber(number)).await,
            None => Ok(None),
        }
    }

    pub(crate) async fn by_number(
        &self,
        number: RoomNumber,
    ) -> Result<Option<Arc<Room>>, RoomError> {
        if let Some(room) = self.by_number.get(&number) {
            return Ok(Some(room));
        }
        let Some(row) = self.store.get(&ROOMS, &number.0).await? else {
            return Ok(None);
        };
        let id = row.room_id.as_str();
        if self.store.get(&ROOM_IDS, &id).await? != Some(number.0) {
            // It is elsewhere (see `outside`): not found by its id, and its row may yet change.
            return Room::from_row(number, row).map(|room| Some(Arc::new(room)));
        }
        // The row that was read before may be that of a room which was still elsewhere.
        let Some(row) = self.store.get(&ROOMS, &number.0).await? else {
            return Ok(None);
        };
        let room = Arc::new(Room::from_row(number, row)?);
        self.by_id.insert(room.id.clone(), Arc::clone(&room));
        self.by_number.insert(number, Arc::clone(&room));
        Ok(Some(room))
    }
}

impl Room {
    fn from_row(number: RoomNumber, row: RoomRow) -> Result<Self, RoomError> {
        let rules = Rules::for_version(&row.version)
            .ok_or_else(|| RoomError::UnsupportedRoomVersion(row.version.to_string()))?;
        Ok(Self {
            number,
            id: row.room_id,
            version: row.version,
            rules,
            create: row.create,
        })
    }

    pub(crate) fn row(&self) -> RoomRow {
        RoomRow {
            room_id: self.id.clone(),
            version: self.version.clone(),
            create: self.create,
        }
    }
}
