//! The rooms that this server lists for everybody, and its aliases.
//!
//! Whether a room is listed is part of its head, and so is how many users are joined; a row for
//! each listed room stands in the order of the directory, and moves in the batch that changes
//! either. So a page costs what it shows, however many rooms are listed.

use std::sync::Arc;

use homeserver_storage::{Batch, Direction, Reverse64, ScanRange};
use ruma::{OwnedRoomAliasId, OwnedServerName, OwnedUserId, RoomAliasId};

use crate::{
    Rooms,
    error::RoomError,
    numbers::RoomNumber,
    reads::ROWS_AT_ONCE,
    room::Room,
    rows::Head,
    tables::{ALIASES, DIRECTORY, HEADS, ROOM_ALIASES},
};

/// Where an alias points.
#[derive(Clone, Debug)]
pub struct AliasTarget {
    /// The room.
    pub room: Arc<Room>,
    /// Who made the alias.
    pub creator: OwnedUserId,
    /// Servers in the room, this one first.
    pub servers: Vec<OwnedServerName>,
}

/// A place in the directory: the largest rooms come first, among equals the older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryPlace {
    /// Joined users.
    pub joined: u64,
    /// The room.
    pub room: RoomNumber,
}

/// Moves the row of a room in the directory to where its head says.
pub(crate) fn write_listed(batch: &mut Batch, room: RoomNumber, seen: Option<&Head>, head: &Head) {
    let place = |head: &Head| head.listed.then_some((Reverse64(head.joined), room.0));
    let (was, is) = (seen.and_then(place), place(head));
    if was == is {
        return;
    }
    if let Some(was) = was {
        batch.delete(&DIRECTORY, &was);
    }
    if let Some(is) = is {
        batch.put(&DIRECTORY, &is, &());
    }
}

impl Rooms {
    /// Whether a room is listed in this server's directory.
    pub async fn is_published(&self, room: RoomNumber) -> Result<bool, RoomError> {
        let head = self.store.get(&HEADS, &room.0).await?;
        Ok(head.is_some_and(|head| head.listed))
    }

    /// The rooms listed in this server's directory beyond a place, at most `limit`: forwards the
    /// smaller ones, backwards the larger ones, the nearest first.
    pub async fn published(
        &self,
        beyond: Option<DirectoryPlace>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(DirectoryPlace, Arc<Room>)>, RoomError> {
        let key = beyond.map(|place| (Reverse64(place.joined), place.room.0));
        let range = match (key, direction) {
            (None, _) => ScanRange::all(),
            (Some(key), Direction::Forward) => ScanRange::all().after(&key),
            (Some(key), Direction::Backward) => ScanRange::all().before(&key),
        };
        let rows = self.store.scan(&DIRECTORY, range, direction, limit).await?;
        let mut rooms = Vec::with_capacity(rows.len());
        for ((Reverse64(joined), number), ()) in rows {
            let room = RoomNumber(number);
            let place = DirectoryPlace { joined, room };
            rooms.push((place, self.room_by_number(room).await?));
        }
        Ok(rooms)
    }

    /// How many rooms are listed, counted up to `limit`.
    pub async fn count_published(&self, limit: usize) -> Result<usize, RoomError> {
        let all = ScanRange::all();
        let scan = self.store.scan(&DIRECTORY, all, Direction::Forward, limit);
        Ok(scan.await?.len())
    }

    /// Where a local alias points.
    pub async fn alias(&self, alias: &RoomAliasId) -> Result<Option<AliasTarget>, RoomError> {
        let Some(row) = self.store.get(&ALIASES, &alias.as_str()).await? else {
            return Ok(None);
        };
        let room = self.room_by_number(RoomNumber(row.room)).await?;
        let servers = self.servers(room.number, ROWS_AT_ONCE).await?;
        Ok(Some(AliasTarget {
            room,
            creator: row.creator,
            servers,
        }))
    }

    /// The local aliases of a room.
    pub async fn aliases(&self, room: RoomNumber) -> Result<Vec<OwnedRoomAliasId>, RoomError> {
        let range = ScanRange::prefix(&room.0);
        let forward = Direction::Forward;
        let scan = self.store.scan(&ROOM_ALIASES, range, forward, ROWS_AT_ONCE);
        let parse = |name: String| RoomAliasId::parse(name).ok();
        let rows = scan.await?.into_iter();
        Ok(rows.filter_map(|((_, name), ())| parse(name)).collect())
    }
}
