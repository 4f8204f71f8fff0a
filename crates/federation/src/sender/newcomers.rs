//! What a join makes worth telling: who is in the room could not be heard of before.
//!
//! A server that comes into a room is told which of our users in it are here now, and the servers of
//! a room are told of a user of ours who comes into it. From then on they hear of changes.
//!
//! Specification: server-server API, "Presence".

use std::sync::Arc;

use homeserver_rooms::{EventNumber, Membership, Room, RoomNumber};
use homeserver_storage::Position;
use homeserver_users::UserNumber;
use ruma::{OwnedServerName, presence::PresenceState};

use super::{Inner, SenderError};

/// Users of ours in one room whose presence a server that comes into it is told.
const TOLD_TO_NEWCOMERS: usize = 1_000;

/// Servers of one room that are told of a user of ours who comes into it.
const SERVERS_TOLD: usize = 10_000;

impl Inner {
    /// Notes what those are to be told who meet by an event.
    pub(super) async fn note_newcomer(
        self: &Arc<Self>,
        (room, event): (RoomNumber, EventNumber),
        position: Position,
    ) -> Result<(), SenderError> {
        let room = self.rooms.room_by_number(room).await?;
        let Some(user) = self.rooms.newcomer(&room, event).await? else {
            return Ok(());
        };
        if self.rooms.is_local(&user) {
            let servers = self.others_in(&room, position).await?;
            for server in &servers {
                self.remote_users.may_meet(server);
            }
            let number = self.users.number(&user).await?;
            if self.is_here(number) {
                let servers = servers.iter().take(SERVERS_TOLD);
                self.note_edus(servers, |owed| owed.presence.note(number));
            }
            return Ok(());
        }
        let server = user.server_name().to_owned();
        self.remote_users.may_meet(&server);
        let before = position.saturating_sub(1);
        if !self.rooms.server_joined(&room, &server, before).await?
            && self.federation.peers.may_call(&server)
        {
            self.note_present(&room, server).await?;
        }
        Ok(())
    }

    /// Notes for a server which of our users in a room are here.
    async fn note_present(
        self: &Arc<Self>,
        room: &Room,
        server: OwnedServerName,
    ) -> Result<(), SenderError> {
        let members = self
            .rooms
            .local_members(room.number, TOLD_TO_NEWCOMERS)
            .await?;
        let present = members
            .iter()
            .filter(|one| one.membership == Membership::Join)
            .map(|one| UserNumber(one.user.0))
            .filter(|user| self.is_here(*user));
        for user in present {
            self.note_edus(std::iter::once(&server), |owed| owed.presence.note(user));
        }
        Ok(())
    }

    /// Whether there is something to be told of a user's presence.
    pub(super) fn is_here(&self, user: UserNumber) -> bool {
        let presence = self.users.presence.of(user);
        presence.is_some_and(|presence| presence.state != PresenceState::Offline)
    }
}
