//! In which rooms users of this server and of others meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use homeserver_rooms::{Membership, Room, RoomNumber, StateRoot, UserNumber as RoomUser};
use homeserver_storage::Position;
use homeserver_users::{UserNumber, Witness};
use ruma::{OwnedServerName, ServerName, UserId};

use super::{RemoteUsers, UsersError};

const MEMBER: &str = "m.room.member";

/// Rooms of one user that are looked at for another user; the newest first.
const ROOMS_LOOKED_AT: usize = 500;

/// Users of this server whose rooms are looked at for users of another: those who are here now.
const USERS_LOOKED_AT: usize = 2_000;

/// Rooms in which the users of one server are looked for.
const ROOMS_OF_SERVER: usize = 300;

/// Rooms in which one user was met that are remembered.
const ROOMS_OF_USER: usize = 20;

/// How long the rooms of a server are remembered, and if there are none. They are looked up sooner
/// when somebody came who may meet its users.
const REMEMBERED: Duration = Duration::from_mins(5);
const REMEMBERED_NONE: Duration = Duration::from_secs(30);

/// How long they are remembered whatever happens, at least: so long, and this many times as long as it
/// took to look them up.
const LOOKED_UP_EVERY: Duration = Duration::from_secs(1);
const COST_OF_LOOKING: u32 = 20;

/// Rooms in which the users of a server may be met.
#[derive(Clone, Debug)]
pub(super) struct MetRooms {
    rooms: Arc<[RoomNumber]>,
    /// Users of this server who were known to be here.
    own: usize,
    /// Which look-up this is.
    number: u64,
    /// When they are to be looked up anew if there is reason to, and when in any case. On the
    /// monotonic clock.
    not_before: Duration,
    until: Duration,
    /// There is reason to.
    outdated: bool,
}

/// Where a user of another server was met.
#[derive(Debug)]
pub(super) struct Met {
    /// Numbers of rooms.
    pub(super) rooms: Vec<u64>,
    /// The look-up that this is from: as long as there is no newer one, the same is found.
    pub(super) look_up: u64,
    /// Whether others may have come since, so that it is worth asking again.
    pub(super) outdated: bool,
}

/// States that were looked up already, at one position.
#[derive(Default)]
pub(super) struct SeenStates(BTreeMap<u64, (Arc<Room>, StateRoot)>);

impl RemoteUsers {
    /// The rooms that a user of this server is in, the newest first.
    pub(super) async fn rooms_of(
        &self,
        user: UserNumber,
        at: Position,
    ) -> Result<Vec<RoomNumber>, UsersError> {
        let memberships = self.inner.rooms.memberships(RoomUser(user.0), at).await?;
        let mut joined: Vec<_> = memberships
            .into_iter()
            .filter(|one| one.membership == Membership::Join)
            .collect();
        joined.sort_by_key(|one| std::cmp::Reverse(one.since));
        Ok(joined.into_iter().map(|one| one.room).collect())
    }

    /// A room out of these in which a user of another server is, with their member event.
    pub(super) async fn witness(
        &self,
        rooms: &[RoomNumber],
        user: &UserId,
        (at, seen): (Position, &mut SeenStates),
    ) -> Result<Option<Witness>, UsersError> {
        for room in rooms.iter().take(ROOMS_LOOKED_AT) {
            if let Some(event) = self.member_event(*room, user, (at, seen)).await? {
                let room = room.0;
                return Ok(Some(Witness { room, event, at }));
            }
        }
        Ok(None)
    }

    /// The event by which a user is in a room.
    async fn member_event(
        &self,
        number: RoomNumber,
        user: &UserId,
        (at, seen): (Position, &mut SeenStates),
    ) -> Result<Option<u64>, UsersError> {
        let rooms = &self.inner.rooms;
        let (room, root) = if let Some((room, root)) = seen.0.get(&number.0) {
            (Arc::clone(room), *root)
        } else {
            let root = rooms.state_at(number, at).await?.root;
            let room = rooms.room_by_number(number).await?;
            seen.0.insert(number.0, (Arc::clone(&room), root));
            (room, root)
        };
        let event = rooms
            .state_value(&room, root, MEMBER, user.as_str())
            .await?;
        let Some(event) = event else { return Ok(None) };
        let joined = rooms.is_joined_in(&room, root, user).await?;
        Ok(joined.then_some(event.0))
    }

    /// Whether a room was shared with the user without interruption since the witness.
    pub(super) async fn still_holds(
        &self,
        witness: Witness,
        user: &UserId,
        (at, seen): (Position, &mut SeenStates),
    ) -> Result<bool, UsersError> {
        let number = RoomNumber(witness.room);
        let event = self.member_event(number, user, (at, seen)).await?;
        if event != Some(witness.event) {
            return Ok(false);
        }
        let rooms = &self.inner.rooms;
        let room = rooms.room_by_number(number).await?;
        Ok(rooms.stayed(&room, (witness.at, at)).await?)
    }

    /// A witness as of now in the room of an earlier one, if the room is still shared.
    pub(super) async fn renewed(
        &self,
        witness: Witness,
        user: &UserId,
    ) -> Result<Option<Witness>, UsersError> {
        let at = self.inner.rooms.durable();
        let number = RoomNumber(witness.room);
        let mut seen = SeenStates::default();
        let Some(event) = self.member_event(number, user, (at, &mut seen)).await? else {
            return Ok(None);
        };
        let rooms = &self.inner.rooms;
        let room = rooms.room_by_number(number).await?;
        let present = rooms.stayed(&room, (at, at)).await?;
        Ok(present.then_some(Witness {
            event,
            at,
            ..witness
        }))
    }

    /// The other servers that share a room with one of our users now.
    pub async fn servers_of(
        &self,
        user: UserNumber,
    ) -> Result<BTreeSet<OwnedServerName>, UsersError> {
        let (rooms, at) = (&self.inner.rooms, self.inner.rooms.durable());
        let mut servers = BTreeSet::new();
        for room in self.rooms_of(user, at).await? {
            let room = rooms.room_by_number(room).await?;
            servers.extend(rooms.servers_at(&room, at).await?.iter().cloned());
        }
        servers.remove(&self.inner.own);
        Ok(servers)
    }

    /// Whether one of our users shares a room with a server.
    pub(super) async fn shares_with(
        &self,
        user: UserNumber,
        server: &ServerName,
        at: Position,
    ) -> Result<bool, UsersError> {
        let rooms = &self.inner.rooms;
        for room in self.rooms_of(user, at).await? {
            let room = rooms.room_by_number(room).await?;
            if rooms.server_joined(&room, server, at).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Rooms in which a user of another server is together with users of this one who are here now,
    /// as far as they are found. `None` if nothing changed since this look-up.
    pub(super) async fn met_in(
        &self,
        user: &UserId,
        known: Option<u64>,
    ) -> Result<Option<Met>, UsersError> {
        let at = self.inner.rooms.durable();
        let may_be = self.rooms_with(user.server_name()).await?;
        if known == Some(may_be.number) {
            return Ok(None);
        }
        let mut seen = SeenStates::default();
        let mut rooms = Vec::new();
        for room in may_be.rooms.iter() {
            let event = self.member_event(*room, user, (at, &mut seen)).await?;
            if event.is_some() {
                rooms.push(room.0);
            }
            if rooms.len() == ROOMS_OF_USER {
                break;
            }
        }
        Ok(Some(Met {
            rooms,
            look_up: may_be.number,
            outdated: may_be.outdated,
        }))
    }

    /// Somebody came into a room who may meet users of this server there.
    pub(crate) fn may_meet(&self, server: &ServerName) {
        self.inner.came.fetch_add(1, Ordering::AcqRel);
        if let Some(known) = self.inner.met.get(server).filter(|known| !known.outdated) {
            let outdated = MetRooms {
                outdated: true,
                ..known
            };
            self.inner.met.insert(server.to_owned(), outdated);
        }
    }

    /// Memberships changed, it is not known of whom.
    pub(crate) fn may_meet_anybody(&self) {
        self.inner.came.fetch_add(1, Ordering::AcqRel);
        self.inner.met.clear();
    }

    /// The rooms of users of this server who are here now in which a server is, too.
    async fn rooms_with(&self, server: &ServerName) -> Result<MetRooms, UsersError> {
        let inner = &*self.inner;
        let now = inner.runtime.clock.monotonic();
        let own = inner.users.presence.own_count();
        if let Some(mut known) = inner.met.get(server) {
            known.outdated |= known.own != own;
            let is_current = known.until > now && !known.outdated;
            if is_current || known.not_before > now {
                return Ok(known);
            }
        }
        let number = inner.looked_up.fetch_add(1, Ordering::Relaxed);
        let came = inner.came.load(Ordering::Acquire);
        let (rooms, at) = (&inner.rooms, inner.rooms.durable());
        let mut looked_at = BTreeSet::new();
        let mut found = Vec::new();
        for user in inner.users.presence.own(USERS_LOOKED_AT) {
            for number in self.rooms_of(user, at).await? {
                if found.len() == ROOMS_OF_SERVER || !looked_at.insert(number.0) {
                    continue;
                }
                let room = rooms.room_by_number(number).await?;
                if rooms.server_joined(&room, server, at).await? {
                    found.push(number);
                }
            }
        }
        let holds = if found.is_empty() {
            REMEMBERED_NONE
        } else {
            REMEMBERED
        };
        let done = inner.runtime.clock.monotonic();
        let cost = done.saturating_sub(now).saturating_mul(COST_OF_LOOKING);
        let met = MetRooms {
            rooms: found.into(),
            own,
            number,
            not_before: done + cost.max(LOOKED_UP_EVERY),
            until: done + holds.max(cost),
            // Who came meanwhile may be missing.
            outdated: inner.came.load(Ordering::Acquire) != came,
        };
        inner.met.insert(server.to_owned(), met.clone());
        Ok(met)
    }
}
