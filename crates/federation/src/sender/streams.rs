//! Follows what is not in the journal: who types, who is online.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use homeserver_rooms::{Membership, Room, RoomNumber, UserNumber as RoomUser};
use homeserver_storage::Position;
use homeserver_users::{StreamToken, UserNumber};
use ruma::{OwnedServerName, ServerName};
use tokio::time::Instant;

use super::{Inner, SenderError, edus::OwedEdus};

/// How long changes of presence are gathered: they come in crowds and concern many servers.
const PRESENCE_GATHERED: Duration = Duration::from_secs(1);

/// After so long other servers are told again who is here: they forget it after half an hour.
const PRESENCE_RENEWED: Duration = Duration::from_mins(20);

/// Users whose presence is told together; if more change at once, they are told when they change
/// again.
const PRESENCES: usize = 10_000;

impl Inner {
    /// Tells other servers who types, until shutdown.
    pub(super) async fn follow_typing(self: Arc<Self>) {
        let mut changed = self.users.typing.subscribe();
        let mut since = self.users.typing.token();
        loop {
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return,
                news = changed.changed() => if news.is_err() { return },
            }
            if let Err(error) = self.note_typing(&mut since).await {
                tracing::warn!(%error, "other servers are not told who types");
            }
        }
    }

    async fn note_typing(self: &Arc<Self>, since: &mut StreamToken) -> Result<(), SenderError> {
        let before = std::mem::replace(since, self.users.typing.token());
        for notice in self.users.typing.notices(before) {
            if !self.rooms.is_local(&notice.user) {
                continue;
            }
            let room = RoomNumber(notice.room);
            let room = self.rooms.room_by_number(room).await?;
            let servers = self.others_in(&room, self.store.durable()).await?;
            let key = (notice.room, notice.user);
            self.note_edus(servers.iter(), |owed| owed.typing.note(key.clone()));
        }
        Ok(())
    }

    /// Tells other servers who is online, until shutdown.
    pub(super) async fn follow_presence(self: Arc<Self>) {
        let mut changed = self.users.presence.subscribe();
        let mut since = self.users.presence.token();
        let mut renew_at = Instant::now() + PRESENCE_RENEWED;
        loop {
            let is_renewal = tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return,
                () = tokio::time::sleep_until(renew_at) => true,
                news = changed.changed() => if news.is_err() { return } else { false },
            };
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return,
                () = tokio::time::sleep(PRESENCE_GATHERED) => {}
            }
            if is_renewal {
                renew_at = Instant::now() + PRESENCE_RENEWED;
                // Changes wait for the next turn: who has gone is no news here.
                let mut present = self.users.presence.own(PRESENCES);
                present.retain(|user| self.is_here(*user));
                self.note_presences(present).await;
            } else {
                changed.mark_unchanged();
                let before = std::mem::replace(&mut since, self.users.presence.token());
                let changes = self.users.presence.own_changes(before, PRESENCES);
                let changed = changes.into_iter().map(|(user, _)| user);
                self.note_presences(changed.collect()).await;
            }
        }
    }

    /// Notes for all servers that share a room with these users how they are.
    async fn note_presences(self: &Arc<Self>, users: Vec<UserNumber>) {
        for user in users {
            match self.sharing_with(user, self.store.durable()).await {
                Ok(servers) => {
                    self.note_edus(servers.iter(), |owed| owed.presence.note(user));
                }
                // It keeps nobody from hearing of the others.
                Err(error) => {
                    tracing::warn!(%error, user = user.0, "a presence is not told to other servers");
                }
            }
        }
    }

    /// Whether a user belongs to this server.
    pub(super) async fn is_ours(&self, user: UserNumber) -> Result<bool, SenderError> {
        let id = self.users.user_id(user).await?;
        Ok(id.is_some_and(|id| self.rooms.is_local(&id)))
    }

    /// The servers in a room at a position that may be told something.
    pub(super) async fn others_in(
        &self,
        room: &Room,
        at: Position,
    ) -> Result<Vec<OwnedServerName>, SenderError> {
        let servers = self.rooms.servers_at(room, at).await?;
        let others = servers.iter().filter(|server| self.is_told(server));
        Ok(others.cloned().collect())
    }

    fn is_told(&self, server: &ServerName) -> bool {
        self.federation.peers.may_call(server)
    }

    /// The servers that share a room with one of our users at a position.
    pub(super) async fn sharing_with(
        &self,
        user: UserNumber,
        at: Position,
    ) -> Result<BTreeSet<OwnedServerName>, SenderError> {
        let mut sharing = BTreeSet::new();
        for membership in self.rooms.memberships(RoomUser(user.0), at).await? {
            if membership.membership != Membership::Join {
                continue;
            }
            let room = self.rooms.room_by_number(membership.room).await?;
            for server in self.rooms.servers_at(&room, at).await?.iter() {
                if !sharing.contains(server) && self.is_told(server) {
                    sharing.insert(server.clone());
                }
            }
        }
        Ok(sharing)
    }

    /// Notes for some servers what they are to be told.
    pub(super) fn note_edus<'a>(
        self: &Arc<Self>,
        servers: impl Iterator<Item = &'a OwnedServerName>,
        mut note: impl FnMut(&mut OwedEdus),
    ) {
        let mut idle = Vec::new();
        {
            let mut state = self.state.lock();
            for server in servers {
                state.change(server, |owed| note(&mut owed.edus));
                if state.needs_worker(server) {
                    idle.push(server.clone());
                }
            }
        }
        for server in idle {
            self.employ(server);
        }
    }
}
