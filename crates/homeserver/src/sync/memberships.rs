//! The memberships of the users who sync, kept at hand.
//!
//! Every change of a membership is in the journal under the user's topic, so one lookup of that
//! topic's last position tells whether the list at hand is that of position P.

use std::sync::Arc;

use homeserver_rooms::{Membership, UserMembership, UserNumber};
use homeserver_storage::Position;
use homeserver_users::journal;
use quick_cache::sync::Cache;

use super::{SyncEngine, SyncError, wake::Bell};
use crate::app::session::Session;

/// Users whose memberships are kept at hand.
const USERS_AT_HAND: usize = 2_000;

/// A user's memberships at a position.
#[derive(Debug)]
pub(super) struct Memberships {
    at: Position,
    /// All of them, also of left and forgotten rooms.
    pub(super) all: Vec<UserMembership>,
    /// Numbers of the rooms that the user is in, sorted.
    pub(super) joined: Vec<u64>,
}

impl Memberships {
    /// Whether both are in some room.
    pub(super) fn share_a_room(&self, other: &Self) -> bool {
        let (fewer, more) = if self.joined.len() < other.joined.len() {
            (&self.joined, &other.joined)
        } else {
            (&other.joined, &self.joined)
        };
        fewer.iter().any(|room| more.binary_search(room).is_ok())
    }
}

/// Lists by user. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct MembershipCache {
    lists: Arc<Cache<UserNumber, Arc<Memberships>>>,
}

impl Default for MembershipCache {
    fn default() -> Self {
        Self {
            lists: Arc::new(Cache::new(USERS_AT_HAND)),
        }
    }
}

impl SyncEngine {
    /// The memberships of a local user at `at`.
    pub(super) async fn memberships_at(
        &self,
        user: UserNumber,
        at: Position,
    ) -> Result<Arc<Memberships>, SyncError> {
        let topic = journal::user(homeserver_users::UserNumber(user.0));
        let last = self.store.journal().last(&[topic]).await?;
        let changed = last.first().copied().flatten().unwrap_or(0);
        if let Some(known) = self.memberships.lists.get(&user)
            && changed <= known.at
            && changed <= at
        {
            return Ok(known);
        }
        let all = self.rooms.memberships(user, at).await?;
        let joined = all.iter().filter(|one| one.membership == Membership::Join);
        let mut joined: Vec<u64> = joined.map(|one| one.room.0).collect();
        joined.sort_unstable();
        let found = Arc::new(Memberships { at, all, joined });
        self.memberships.lists.insert(user, Arc::clone(&found));
        Ok(found)
    }

    /// What a parked request of this session is woken by.
    pub(super) async fn bells(&self, session: &Session) -> Result<Vec<Bell>, SyncError> {
        let user = UserNumber(session.user_number.0);
        let mine = self.memberships_at(user, self.store.durable()).await?;
        let rooms = mine.joined.iter().map(|room| Bell::Room(*room));
        let own = [
            Bell::User(user.0),
            Bell::Device(session.device_number.0),
            Bell::DeviceLists,
        ];
        Ok(rooms.chain(own).collect())
    }
}
