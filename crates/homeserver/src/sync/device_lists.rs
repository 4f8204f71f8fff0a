//! Whose devices must be asked for again, and whose no more.
//!
//! Specification: client-server API, "Tracking the device list for a user".

use std::collections::BTreeSet;

use homeserver_rooms::{Membership, RoomNumber, UserNumber};
use homeserver_storage::Position;
use ruma::{OwnedUserId, UserId};

use super::{SyncEngine, SyncError, changes::DeviceListChanges, memberships::Memberships};
use crate::app::{acquaintance::Company, session::Session};

const MEMBER: &str = "m.room.member";

/// What changed in (`since`, `upto`]. Without `since`, everybody whom the user shares a room with
/// is new.
pub(super) async fn between(
    engine: &SyncEngine,
    session: &Session,
    since: Option<Position>,
    upto: Position,
) -> Result<DeviceListChanges, SyncError> {
    let number = UserNumber(session.user_number.0);
    let mine = engine.memberships_at(number, upto).await?;
    let mut met = BTreeSet::new();
    let mut parted = BTreeSet::new();
    match since {
        Some(since) => members(engine, &mine, (since, upto), &mut met, &mut parted).await?,
        None => {
            for room in &mine.joined {
                met.extend(joined_in(engine, RoomNumber(*room), upto).await?);
            }
        }
    }
    let lists = &engine.users.device_lists;
    let after = since.unwrap_or(upto);
    let mut moved = lists.changed(after, upto).await?;
    moved.extend(lists.signed_by(session.user_number, after, upto).await?);
    let mut company = Company::new(&engine.rooms, &mine.joined, upto);
    // Who was met is in a room of the user.
    let mut changed = met;
    changed.remove(&session.user);
    for user in moved {
        if let Some(user) = engine.users.user_id(user).await?
            && (user == session.user || changed.contains(&user) || company.has(&user).await?)
        {
            changed.insert(user);
        }
    }
    let mut left = Vec::new();
    for user in parted {
        if user != session.user && !company.has(&user).await? {
            left.push(user);
        }
    }
    Ok(DeviceListChanges {
        changed: changed.into_iter().collect(),
        left,
    })
}

/// Who came into the user's rooms and who went, and whom the user met or left by coming or going.
async fn members(
    engine: &SyncEngine,
    mine: &Memberships,
    (since, upto): (Position, Position),
    met: &mut BTreeSet<OwnedUserId>,
    parted: &mut BTreeSet<OwnedUserId>,
) -> Result<(), SyncError> {
    let user = mine.all.first().map(|one| one.user);
    let Some(user) = user else { return Ok(()) };
    let touched = engine.touched(user, mine, (since, upto)).await?;
    for membership in &mine.all {
        let room = membership.room;
        let is_new = membership.since > since;
        if !is_new && !touched.rooms.contains(&room.0) {
            continue;
        }
        let before = engine.rooms.membership(user, room, since).await?;
        let was_in = before.is_some_and(|before| before.membership == Membership::Join);
        match (was_in, membership.membership == Membership::Join) {
            // All who became known are met now; a few of them were known before.
            (true, true) if engine.rooms.made_whole_in(room, (since, upto)).is_some() => {
                met.extend(joined_in(engine, room, upto).await?);
            }
            (true, true) => {
                let (came, went) = changed_in(engine, room, since, upto).await?;
                met.extend(came);
                parted.extend(went);
            }
            (false, true) => met.extend(joined_in(engine, room, upto).await?),
            (true, false) => parted.extend(joined_in(engine, room, since).await?),
            (false, false) => {}
        }
    }
    Ok(())
}

/// Who came into a room and who went between two positions.
async fn changed_in(
    engine: &SyncEngine,
    room: RoomNumber,
    since: Position,
    upto: Position,
) -> Result<(Vec<OwnedUserId>, Vec<OwnedUserId>), SyncError> {
    let rooms = &engine.rooms;
    let before = rooms.state_at(room, since).await?.root;
    let after = rooms.state_at(room, upto).await?.root;
    let room = rooms.room_by_number(room).await?;
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for change in rooms.state_difference(&room, before, after).await? {
        if change.key.event_type() != MEMBER {
            continue;
        }
        let Ok(user) = UserId::parse(change.key.state_key()) else {
            continue;
        };
        let was_in = rooms.is_joined_in(&room, before, &user).await?;
        match (was_in, rooms.is_joined_in(&room, after, &user).await?) {
            (false, true) => came.push(user),
            (true, false) => went.push(user),
            _ => {}
        }
    }
    Ok((came, went))
}

/// Everybody who was in a room at a position.
async fn joined_in(
    engine: &SyncEngine,
    room: RoomNumber,
    at: Position,
) -> Result<Vec<OwnedUserId>, SyncError> {
    let root = engine.rooms.state_at(room, at).await?.root;
    let room = engine.rooms.room_by_number(room).await?;
    Ok(engine.rooms.joined_users(&room, root).await?)
}
