//! What belongs to users, across servers: device lists and keys of users of other servers, and what
//! other servers are told of ours.
//!
//! - `ask`: the calls, and what of the answers is believed.
//! - `lists`: device lists that are followed: when one is fetched, and the task that fetches what is
//!   stale.
//! - `keys`: what clients here ask about users of other servers.
//! - `met`: in which rooms users meet.
//! - `told`: what other servers are told of our device lists; [`edus`]: how it is written.
//! - `heard`: what other servers tell of their users; `presence`: who of them is online.
//! - `profile`: profiles of users of other servers.
//!
//! Specification: server-server API, "Device Management", "End-to-End Encryption", "Send-to-device
//! messaging", "Typing Notifications", "Presence", "Receipts".

mod ask;
pub mod edus;
mod heard;
mod keys;
mod lists;
mod met;
mod presence;
mod profile;
mod told;

pub use self::{
    ask::Claims,
    keys::{ClaimedKeys, FoundKeys, ServerFailures},
    told::DeviceListEdus,
};

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak, atomic::AtomicU64},
};

use homeserver_rooms::{RoomError, Rooms};
use homeserver_runtime::Runtime;
use homeserver_storage::{StorageError, Store};
use homeserver_users::{Failure, UserNumber, Users};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName, UserId};
use tokio::sync::Notify;

use self::{
    heard::WaitingReceipts,
    met::MetRooms,
    presence::WaitingPresences,
    profile::{ByBytes, CachedProfile},
};
use crate::{CallError, Peers, is_same_server};

/// Servers whose rooms are remembered.
const SERVERS_REMEMBERED: usize = 1_000;

/// Profiles that are remembered, about.
const PROFILES_REMEMBERED: usize = 500;

/// Bytes of profiles that are remembered: each may have 64 KiB.
const PROFILE_BYTES: u64 = 4 * 1024 * 1024;

/// What is asked for could not be found out, or not be stored.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// A room could not be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// What belongs to users could not be read or written.
    #[error(transparent)]
    Users(#[from] Failure),
    /// The journal could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Another server did not answer as it should.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl UsersError {
    /// Whether the same may go well later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Room(error) => error.is_passing(),
            Self::Users(error) => error.is_passing(),
            Self::Storage(error) => error.is_passing(),
            Self::Call(_) => true,
        }
    }
}

/// Users of other servers, and what their servers are told of ours. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteUsers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    own: OwnedServerName,
    store: Store,
    rooms: Arc<Rooms>,
    users: Users,
    peers: Peers,
    runtime: Runtime,
    /// Lists that are being fetched: of those who find one stale at the same time, one fetches it.
    fetching: Mutex<HashMap<UserNumber, Weak<tokio::sync::Mutex<()>>>>,
    /// Wakes the task that fetches stale lists.
    stale: Notify,
    /// Servers that told something since the task last looked: they are not left alone any longer.
    alive: Mutex<BTreeSet<OwnedServerName>>,
    /// Rooms in which the users of a server may be met.
    met: Cache<OwnedServerName, MetRooms>,
    /// Look-ups of these, and users who came into rooms: those outdate them.
    looked_up: AtomicU64,
    came: AtomicU64,
    presences: Mutex<WaitingPresences>,
    receipts: Mutex<WaitingReceipts>,
    /// Wakes the task that puts down receipts whose events have come, and presences.
    waiting: Notify,
    profiles: Cache<ruma::OwnedUserId, CachedProfile, ByBytes>,
}

impl RemoteUsers {
    /// Over these parts. Starts the tasks that fetch stale lists and put down waiting receipts, which
    /// end with the runtime's shutdown.
    pub fn start(
        own: OwnedServerName,
        (store, rooms, users): (&Store, &Arc<Rooms>, &Users),
        peers: &Peers,
        runtime: &Runtime,
    ) -> Self {
        let remote = Self {
            inner: Arc::new(Inner {
                own,
                store: store.clone(),
                rooms: Arc::clone(rooms),
                users: users.clone(),
                peers: peers.clone(),
                runtime: runtime.clone(),
                fetching: Mutex::default(),
                stale: Notify::new(),
                alive: Mutex::default(),
                met: Cache::new(SERVERS_REMEMBERED),
                looked_up: AtomicU64::default(),
                came: AtomicU64::default(),
                presences: Mutex::default(),
                receipts: Mutex::default(),
                waiting: Notify::new(),
                profiles: Cache::with_weighter(PROFILES_REMEMBERED, PROFILE_BYTES, ByBytes),
            }),
        };
        runtime.tasks.spawn(remote.clone().fetch_stale_lists());
        runtime.tasks.spawn(remote.clone().put_down_what_waits());
        remote
    }

    /// Whether a user belongs to this server.
    fn is_own(&self, user: &UserId) -> bool {
        user.server_name() == self.inner.own
    }

    /// Whether a user belongs to this other server: nobody may speak of the users of a third.
    fn is_of(&self, user: &UserId, server: &ServerName) -> bool {
        is_same_server(user.server_name(), server) && !is_same_server(server, &self.inner.own)
    }
}
