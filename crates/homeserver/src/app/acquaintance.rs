//! Who shares a room with whom.

use std::{collections::HashMap, sync::Arc};

use homeserver_rooms::{Membership, Room, RoomError, RoomNumber, Rooms, StateRoot};
use homeserver_storage::Position;
use ruma::UserId;

/// Rooms looked up one by one for a user; beyond it, all of the user's rooms are read at once.
const ROOMS_LOOKED_UP: usize = 8;

/// Whether a local user and another are in a room together now.
pub(crate) async fn share_a_room(
    rooms: &Rooms,
    one: &UserId,
    other: &UserId,
) -> Result<bool, RoomError> {
    let at = rooms.durable();
    let reader = rooms.reader(one.to_owned(), at).await?;
    let Some(number) = reader.number else {
        return Ok(false);
    };
    let mine = rooms.memberships(number, at).await?;
    let joined = mine.iter().filter(|one| one.membership == Membership::Join);
    let mut joined: Vec<u64> = joined.map(|one| one.room.0).collect();
    joined.sort_unstable();
    Company::new(rooms, &joined, at).has(other).await
}

/// Who is in one of some rooms at a position. Remembers what it looked up of them, so that to ask for
/// many users costs little more than to ask for one.
#[derive(Debug)]
pub(crate) struct Company<'a> {
    rooms: &'a Rooms,
    joined: &'a [u64],
    at: Position,
    /// The states of rooms, where users of other servers are looked up.
    states: HashMap<u64, (Arc<Room>, StateRoot)>,
}

impl<'a> Company<'a> {
    /// Of these rooms, which are sorted.
    pub(crate) fn new(rooms: &'a Rooms, joined: &'a [u64], at: Position) -> Self {
        Self {
            rooms,
            joined,
            at,
            states: HashMap::new(),
        }
    }

    /// Whether a user is in one of the rooms.
    pub(crate) async fn has(&mut self, user: &UserId) -> Result<bool, RoomError> {
        if self.rooms.is_local(user) {
            return self.has_local(user).await;
        }
        for number in self.joined {
            if !self.states.contains_key(number) {
                let root = self
                    .rooms
                    .state_at(RoomNumber(*number), self.at)
                    .await?
                    .root;
                let room = self.rooms.room_by_number(RoomNumber(*number)).await?;
                self.states.insert(*number, (room, root));
            }
            if let Some((room, root)) = self.states.get(number)
                && self.rooms.is_joined_in(room, *root, user).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn has_local(&self, user: &UserId) -> Result<bool, RoomError> {
        let (rooms, joined, at) = (self.rooms, self.joined, self.at);
        let reader = rooms.reader(user.to_owned(), at).await?;
        let Some(number) = reader.number else {
            return Ok(false);
        };
        if joined.len() <= ROOMS_LOOKED_UP {
            for room in joined {
                let membership = rooms.membership(number, RoomNumber(*room), at).await?;
                if membership.is_some_and(|one| one.membership == Membership::Join) {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        let theirs = rooms.memberships(number, at).await?;
        Ok(theirs.iter().any(|one| {
            one.membership == Membership::Join && joined.binary_search(&one.room.0).is_ok()
        }))
    }
}
