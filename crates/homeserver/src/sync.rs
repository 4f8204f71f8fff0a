//! The sync engine: what changed for one device since it last asked.
//!
//! Computing and writing are apart. A [`pass`](self) over the journal between two positions gives
//! `changes::Changes`, a value; `v3` writes it as the response of `GET /_matrix/client/v3/sync`.
//! Other ways of writing the same can stand beside it.
//!
//! Everything is read at one durable position P: what decides *which* rooms, users and events are
//! looked at comes from history rows at P. Receipts and account data that are newer than P are
//! told next time.
//!
//! Specification: client-server API, "Syncing".

pub(crate) mod changes;
pub(crate) mod count;
mod device_lists;
mod ephemeral;
pub(crate) mod filter;
mod lazy;
mod left;
mod memberships;
mod pass;
mod room;
mod state;
mod streams;
pub(crate) mod token;
mod touched;
pub(crate) mod v3;
mod wake;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use homeserver_rooms::{RoomError, Rooms};
use homeserver_runtime::Runtime;
use homeserver_storage::{Position, StorageError, Store};
use homeserver_users::{Failure, Users};
use ruma::presence::PresenceState;
use tokio::sync::Semaphore;

use self::{
    changes::{Changes, DeviceListChanges},
    count::CountMemos,
    filter::Filter,
    lazy::SentMembers,
    memberships::MembershipCache,
    pass::Pass,
    token::SyncToken,
    wake::{Hears, Wakeups},
};
use crate::app::{push_rules::PushRules, session::Session};

/// The longest that a request waits for news.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_mins(5);

/// First syncs, and others that tell everything, that are computed at once. Each gathers its response
/// in memory: the state of every room of the user, with up to [`filter::MAX_LIMIT`] events each.
const WHOLE_AT_ONCE: usize = 8;

/// What a device asks for.
#[derive(Clone, Debug)]
pub(crate) struct SyncRequest {
    /// Where it stands; `None` for a first sync.
    pub(crate) since: Option<SyncToken>,
    /// What it wants to see.
    pub(crate) filter: Filter,
    /// Whether the whole state is told again.
    pub(crate) full_state: bool,
    /// At which end of the timeline state is told.
    pub(crate) state_at: StateAt,
    /// How asking shows in the user's presence.
    pub(crate) presence: PresenceState,
    /// How long to wait for news.
    pub(crate) timeout: Duration,
}

/// At which end of the timeline state is told, and under which name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateAt {
    /// `state`.
    Start,
    /// `state_after`.
    End,
    /// `state_after` under its name from before it was in the specification.
    UnstableEnd,
}

/// Changes could not be computed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// A room could not be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// What belongs to the user could not be read.
    #[error(transparent)]
    Users(#[from] Failure),
    /// The journal could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Computes what changed for devices. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SyncEngine {
    store: Store,
    rooms: Arc<Rooms>,
    users: Users,
    rules: PushRules,
    runtime: Runtime,
    wakeups: Wakeups,
    memberships: MembershipCache,
    counts: CountMemos,
    sent_members: SentMembers,
    whole: Arc<Semaphore>,
}

impl SyncEngine {
    /// An engine over these rooms and users. Starts the tasks that wake waiting requests.
    pub(crate) fn start(
        store: &Store,
        rooms: &Arc<Rooms>,
        users: &Users,
        rules: &PushRules,
        runtime: &Runtime,
    ) -> Self {
        let engine = Self {
            store: store.clone(),
            rooms: Arc::clone(rooms),
            users: users.clone(),
            rules: rules.clone(),
            runtime: runtime.clone(),
            wakeups: Wakeups::start(store, runtime),
            memberships: MembershipCache::default(),
            counts: CountMemos::new(store),
            sent_members: SentMembers::default(),
            whole: Arc::new(Semaphore::new(WHOLE_AT_ONCE)),
        };
        runtime.tasks.spawn(engine.clone().follow_typing());
        runtime.tasks.spawn(engine.clone().follow_presence());
        engine
    }

    /// What changed, as soon as something has; nothing, when the time is over.
    pub(crate) async fn sync(
        &self,
        session: &Session,
        request: &SyncRequest,
    ) -> Result<Changes, SyncError> {
        let since = self.continuing(request.since).await?;
        self.acknowledge(session, since).await?;
        let timeout = request.timeout.min(MAX_TIMEOUT);
        let number = session.user_number;
        self.users
            .presence
            .syncing(number, &request.presence, timeout);

        let deadline = tokio::time::Instant::now() + timeout;
        let at_once = since.is_none() || request.full_state;
        let hears = Hears {
            typing: request.filter.ephemeral.allows_type("m.typing"),
            presence: request.filter.presence.allows_type("m.presence"),
        };
        loop {
            let parked = self.wakeups.park(self.bells(session).await?, hears);
            let changes = self.changes(session, since, request).await?;
            if at_once || !changes.is_empty() {
                return Ok(changes);
            }
            tokio::select! {
                biased;
                () = parked.knocked() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(changes),
                () = self.runtime.tasks.stopping() => return Ok(changes),
            }
        }
    }

    /// What changed in (`since`, now]. The whole state of all rooms is told to few at once: its
    /// cost and size follow the number of the user's rooms.
    pub(crate) async fn changes(
        &self,
        session: &Session,
        since: Option<SyncToken>,
        request: &SyncRequest,
    ) -> Result<Changes, SyncError> {
        let is_whole = since.is_none() || request.full_state;
        let _place = match is_whole.then(|| self.whole.acquire()) {
            // The semaphore is never closed.
            Some(place) => place.await.ok(),
            None => None,
        };
        let pass = Pass::begin(self, session, since, request).await?;
        pass.run().await
    }

    /// Which device lists changed between two tokens.
    pub(crate) async fn device_list_changes(
        &self,
        session: &Session,
        from: SyncToken,
        to: SyncToken,
    ) -> Result<DeviceListChanges, SyncError> {
        let upto = to.position.min(self.store.durable());
        let since = self.continuing(Some(from)).await?;
        let since = since.map(|since| since.position);
        device_lists::between(self, session, since.filter(|since| *since <= upto), upto).await
    }

    /// The token, if a reader may continue from it.
    async fn continuing(&self, token: Option<SyncToken>) -> Result<Option<SyncToken>, SyncError> {
        let trimmed = self.store.journal().trim_point().await?;
        let (epoch, durable) = (self.store.epoch(), self.store.durable());
        Ok(token.filter(|token| token.continues(epoch, trimmed, durable)))
    }

    /// Deletes the messages that the token shows to have arrived at this very device.
    async fn acknowledge(
        &self,
        session: &Session,
        since: Option<SyncToken>,
    ) -> Result<(), SyncError> {
        let device = session.device_number;
        match since.filter(|since| since.device == device.0 && since.to_device > 0) {
            Some(since) => Ok(self
                .users
                .inbox
                .acknowledge(device, since.to_device)
                .await?),
            None => Ok(()),
        }
    }

    /// Where a device stands that has been told everything up to `upto`.
    fn token(&self, session: &Session, upto: Position) -> SyncToken {
        SyncToken {
            epoch: self.store.epoch(),
            position: upto,
            to_device: upto,
            device: session.device_number.0,
            typing: self.users.typing.token(),
            presence: self.users.presence.token(),
        }
    }
}
