//! Who shares a room with whom.

use homeserver_rooms::{Membership, RoomError, RoomNumber, Rooms};
use homeserver_storage::Position;
use ruma::UserId;

/// Rooms looked up one by one for a user; beyond it, all of the user's rooms are read at once.
const ROOMS_LOOKED_UP: usize = 8;

/// Whether two local users are in a room together now.
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
    is_in_one_of(rooms, &joined, other, at).await
}

/// Whether a user is in one of these rooms at a position. The rooms are sorted.
pub(crate) async fn is_in_one_of(
    rooms: &Rooms,
    joined: &[u64],
    user: &UserId,
    at: Position,
) -> Result<bool, RoomError> {
    if !rooms.is_local(user) {
        for room in joined {
            let root = rooms.state_at(RoomNumber(*room), at).await?.root;
            let room = rooms.room_by_number(RoomNumber(*room)).await?;
            if rooms.is_joined_in(&room, root, user).await? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
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
    Ok(theirs
        .iter()
        .any(|one| one.membership == Membership::Join && joined.binary_search(&one.room.0).is_ok()))
}
