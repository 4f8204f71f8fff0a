//! Sending: what happens here goes to the servers whom it concerns.
//!
//! One reader follows the journal and notes for every server what it is owed; a worker for each
//! server that is owed something sends it, one transaction at a time. How far the reader has come
//! is a cursor; a server that has not acknowledged everything up to there has rows that say from
//! where on it lacks events, in each room. After a restart both are taken up again: what was
//! acknowledged a moment before a crash may be sent twice, nothing is lost.
//!
//! A server that fails is left alone as [`Health`](crate::Health) says, until it is due or gives a
//! sign of life. Then it gets what it lacks from the rooms themselves, oldest first; of a room in
//! which that is very much, a part and then the newest events, from which it can ask for the rest.
//!
//! Specification: server-server API, "Transactions".

mod choose;
mod course;
mod edus;
mod newcomers;
mod owed;
mod reader;
pub(crate) mod rows;
mod select;
mod state;
mod streams;
mod transaction;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use homeserver_rooms::{EventNumber, RoomError, RoomNumber, Rooms};
use homeserver_runtime::Runtime;
use homeserver_storage::{CommitError, StorageError, Store};
use homeserver_users::{Failure, Users};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::ServerName;
use tokio::sync::{Notify, Semaphore};

use self::state::State;
use crate::{Federation, RemoteUsers, UsersError, health::Failing};

/// How the sender's cursor is called.
const CURSOR: &str = "federation-sender";

/// Transactions to servers that are well that are on their way at once.
const AT_ONCE: usize = 512;

/// Transactions at once to servers that failed the last time: they may take as long as the deadline
/// and must not keep others from being sent.
const TRIED_AT_ONCE: usize = 64;

/// Bytes of events that were sent a moment ago and are kept at hand for the next server.
const EVENTS_AT_HAND: u64 = 8 * 1024 * 1024;

/// What an event at hand takes beside its JSON.
const EVENT_BYTES: u64 = 600;

/// What a sender is made of.
#[derive(Debug)]
pub struct SenderParts {
    /// Where everything is stored.
    pub store: Store,
    /// Clock, tasks.
    pub runtime: Runtime,
    /// The rooms whose events are sent.
    pub rooms: Arc<Rooms>,
    /// What belongs to users, of which other servers are told.
    pub users: Users,
    /// How other servers are called.
    pub federation: Federation,
    /// What other servers are told of device lists.
    pub remote_users: RemoteUsers,
}

/// What a sender could not do.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    /// The database could not be read.
    #[error("the database could not be read")]
    Storage(#[from] StorageError),
    /// How far it has come could not be stored.
    #[error("the database could not be written")]
    Commit(#[from] CommitError),
    /// A room could not be read.
    #[error("a room could not be read")]
    Room(#[from] RoomError),
    /// What belongs to users could not be read.
    #[error("what belongs to users could not be read")]
    Users(#[from] Failure),
    /// What other servers are told of users could not be found out.
    #[error("what is told of users could not be found out")]
    Told(#[from] UsersError),
}

impl SenderError {
    /// Whether the same may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Storage(error) => error.is_passing(),
            Self::Commit(error) => error.is_passing(),
            Self::Room(error) => error.is_passing(),
            Self::Users(error) => error.is_passing(),
            Self::Told(error) => error.is_passing(),
        }
    }
}

/// What waits for a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Events in its queue.
    pub events: usize,
    /// Rooms of which it lacks events, if it does not keep up.
    pub rooms: usize,
    /// Whether messages to devices wait for it.
    pub to_device: bool,
    /// Whether device lists changed that it was not told of.
    pub device_lists: bool,
    /// Typing, receipts and presences that it was not told of.
    pub ephemeral: usize,
    /// Whether it was not reached the last time.
    pub failing: Option<Failing>,
}

impl Pending {
    /// Whether it has acknowledged everything.
    pub fn is_nothing(&self) -> bool {
        let durable = self.to_device || self.device_lists;
        !durable && self.events + self.rooms + self.ephemeral == 0
    }
}

/// Sends what happens here to other servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    runtime: Runtime,
    rooms: Arc<Rooms>,
    users: Users,
    remote_users: RemoteUsers,
    federation: Federation,
    state: Mutex<State>,
    /// Told when a worker has nothing more to do.
    rested: Notify,
    /// Told when something was acknowledged, which is to be written down sooner or later.
    acknowledged: Notify,
    at_once: Semaphore,
    tried_at_once: Semaphore,
    at_hand: Cache<(RoomNumber, EventNumber), homeserver_events::Pdu, Weigh>,
}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<(RoomNumber, EventNumber), homeserver_events::Pdu> for Weigh {
    fn weight(&self, _: &(RoomNumber, EventNumber), event: &homeserver_events::Pdu) -> u64 {
        event.json().len() as u64 + EVENT_BYTES
    }
}

impl Sender {
    /// Takes up what was not acknowledged before, and goes on from there until shutdown. Where this
    /// server does not federate nothing is sent, then or later, of what happens until it does.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn start(parts: SenderParts) -> Result<Self, SenderError> {
        let SenderParts {
            store,
            runtime,
            rooms,
            users,
            federation,
            remote_users,
        } = parts;
        let items = usize::try_from(EVENTS_AT_HAND / EVENT_BYTES).unwrap_or(usize::MAX);
        let inner = Arc::new(Inner {
            store,
            runtime,
            rooms,
            users,
            remote_users,
            federation,
            state: Mutex::default(),
            rested: Notify::new(),
            acknowledged: Notify::new(),
            at_once: Semaphore::new(AT_ONCE),
            tried_at_once: Semaphore::new(TRIED_AT_ONCE),
            at_hand: Cache::with_weighter(items, EVENTS_AT_HAND, Weigh),
        });
        if inner.federation.enabled {
            let from = inner.take_up().await?;
            let reader = Arc::clone(&inner).follow_journal(from);
            let tasks = &inner.runtime.tasks;
            tasks.spawn(reader);
            tasks.spawn(Arc::clone(&inner).follow_typing());
            tasks.spawn(Arc::clone(&inner).follow_presence());
        } else {
            inner.stand_still().await?;
        }
        Ok(Self { inner })
    }

    /// What waits for a server.
    pub fn pending(&self, destination: &ServerName) -> Pending {
        let failing = self.inner.federation.health.failing(destination);
        let state = self.inner.state.lock();
        let Some(owed) = state.owed(destination) else {
            return Pending {
                failing,
                ..Pending::default()
            };
        };
        let (events, rooms) = owed.count();
        Pending {
            events,
            rooms,
            to_device: owed.edus.to_device.is_some(),
            device_lists: owed.edus.device_lists.is_some(),
            ephemeral: owed.edus.count(),
            failing,
        }
    }
}
