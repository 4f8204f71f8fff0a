//! The keys of other servers: kept for ever, fetched when they are needed, from the server itself
//! or from a notary, once at a time.
//!
//! A request is believed by a key that is current now; an event by one that was valid when it was
//! made. What a server once published stays known, so that its events verify after it is gone.
//!
//! Specification: server-server API, "Retrieving server keys".

mod fetch;
mod vouch;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use homeserver_events::{KeySource, PublishedKey, VerifyKey};
use homeserver_runtime::Runtime;
use homeserver_storage::{StorageError, Store};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Semaphore;

pub use self::vouch::{KeyQuery, MAX_ASKED};
use super::{OwnKeys, known::ServerKeys};
use crate::{Admission, Transport, tables::SERVER_KEYS};

/// Servers whose keys are held in memory.
const IN_MEMORY: usize = 10_000;
/// Servers that failed and are remembered for it.
const FAILURES: usize = 10_000;
/// Fetches at once.
const AT_ONCE: usize = 32;
/// Who may wait for fetches.
const MAX_WAITING: usize = 1_000;
/// Who may wait for the keys of one server: requests in its name are not its own until then.
const MAX_WAITING_FOR_ONE: usize = 100;

/// Why a key is not there.
#[derive(Debug, thiserror::Error)]
pub enum KeyProblem {
    /// The server was asked, or is not to be asked again yet, and publishes no such key.
    #[error("{0} publishes no such key that is valid now")]
    Unknown(OwnedServerName),
    /// Neither the server nor a notary gave its keys.
    #[error("the keys of {0} cannot be fetched")]
    Unreachable(OwnedServerName),
    /// The configuration does not allow to ask it.
    #[error("{0} is not allowed by the configuration")]
    NotAdmitted(OwnedServerName),
    /// Too many wait for keys.
    #[error("too many requests wait for keys")]
    Busy,
    /// What is stored cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A key that is needed to verify an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose.
    pub server: OwnedServerName,
    /// Its id, `ed25519:…`.
    pub key_id: String,
    /// When the event was made, in milliseconds since 1970, as it says itself.
    pub time: u64,
    /// Whether the room version enforces the end of a current key.
    pub enforced: bool,
}

/// The keys of other servers and our own. Cheap to clone; clones share all.
#[derive(Clone, Debug)]
pub struct KeyRing {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    own: OwnKeys,
    admission: Admission,
    /// Servers that are asked for the keys of others (`federation.key_servers`).
    notaries: Vec<OwnedServerName>,
    store: Store,
    transport: Arc<dyn Transport>,
    runtime: Runtime,
    known: Cache<OwnedServerName, Arc<ServerKeys>>,
    failures: Cache<OwnedServerName, Failure>,
    /// One fetch of each server at a time.
    turns: Mutex<HashMap<OwnedServerName, Arc<tokio::sync::Mutex<()>>>>,
    fetching: Semaphore,
    waiting: Semaphore,
}

/// When a server is asked again.
#[derive(Clone, Copy, Debug)]
struct Failure {
    attempts: u32,
    /// On the monotonic clock.
    until: Duration,
}

/// Keys that were looked up, to verify events with.
#[derive(Clone, Debug)]
pub struct Keys {
    own: OwnKeys,
    servers: BTreeMap<OwnedServerName, Arc<ServerKeys>>,
}

impl KeySource for Keys {
    fn key(&self, server: &ServerName, key_id: &str) -> Option<PublishedKey> {
        if server == self.own.server() {
            return self.own.published(key_id);
        }
        self.servers.get(server)?.key(key_id)
    }
}

impl KeyRing {
    /// A ring that asks the servers themselves and these notaries, over `transport`.
    pub fn new(
        own: OwnKeys,
        admission: Admission,
        notaries: Vec<OwnedServerName>,
        store: Store,
        transport: Arc<dyn Transport>,
        runtime: Runtime,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                own,
                admission,
                notaries,
                store,
                transport,
                runtime,
                known: Cache::new(IN_MEMORY),
                failures: Cache::new(FAILURES),
                turns: Mutex::default(),
                fetching: Semaphore::new(AT_ONCE),
                waiting: Semaphore::new(MAX_WAITING),
            }),
        }
    }

    /// Our own keys.
    pub fn own(&self) -> &OwnKeys {
        &self.inner.own
    }

    /// The key by which a request of `server` is checked: one that it signs with now. Fetches it if
    /// it is not known.
    ///
    /// # Errors
    /// When there is none, and when it cannot be found out.
    pub async fn request_key(
        &self,
        server: &ServerName,
        key_id: &str,
    ) -> Result<VerifyKey, KeyProblem> {
        let now = self.inner.now();
        if let Some(keys) = self.inner.known(server).await?
            && let Some(key) = keys.current(key_id, now)
        {
            if !keys.is_fresh(now) {
                self.refresh(server);
            }
            return Ok(key);
        }
        let keys = self.inner.fetch(server).await?;
        let key = keys.current(key_id, self.inner.now());
        key.ok_or_else(|| KeyProblem::Unknown(server.to_owned()))
    }

    /// The keys for verifying events: what is known, and what can be fetched of the rest within
    /// `patience`. No patience fetches nothing. What is not found is not among them.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn keys_for(
        &self,
        wanted: &[Wanted],
        patience: Duration,
    ) -> Result<Keys, StorageError> {
        let mut by_server: BTreeMap<&ServerName, Vec<&Wanted>> = BTreeMap::new();
        for wanted in wanted
            .iter()
            .filter(|one| one.server != *self.inner.own.server())
        {
            by_server.entry(&wanted.server).or_default().push(wanted);
        }
        let mut servers = BTreeMap::new();
        let mut lacking = Vec::new();
        for (server, wanted) in by_server {
            let known = self.inner.known(server).await?;
            let covers = |keys: &Arc<ServerKeys>| {
                let covered = |one: &&Wanted| keys.covers(&one.key_id, one.time, one.enforced);
                wanted.iter().all(covered)
            };
            if !known.as_ref().is_some_and(covers) {
                lacking.push(server.to_owned());
            }
            if let Some(known) = known {
                servers.insert(server.to_owned(), known);
            }
        }
        if !patience.is_zero() && !lacking.is_empty() {
            let fetched = Mutex::new(Vec::new());
            let fetching = stream::iter(lacking).for_each_concurrent(AT_ONCE, |server| {
                let fetched = &fetched;
                async move {
                    match self.inner.fetch(&server).await {
                        Ok(keys) => fetched.lock().push((server, keys)),
                        Err(error) => tracing::debug!(%error, "keys are missing"),
                    }
                }
            });
            // What came in time counts.
            let _ = tokio::time::timeout(patience, fetching).await;
            servers.extend(fetched.into_inner());
        }
        Ok(Keys {
            own: self.inner.own.clone(),
            servers,
        })
    }

    /// Fetches in the background.
    fn refresh(&self, server: &ServerName) {
        let (ring, server) = (self.clone(), server.to_owned());
        self.inner.runtime.tasks.spawn(async move {
            if let Err(error) = ring.inner.fetch(&server).await {
                tracing::debug!(%error, "keys were not refreshed");
            }
        });
    }
}

impl Inner {
    fn now(&self) -> u64 {
        self.runtime.clock.unix_millis()
    }

    /// What is known of a server, in memory or stored.
    async fn known(&self, server: &ServerName) -> Result<Option<Arc<ServerKeys>>, StorageError> {
        if let Some(keys) = self.known.get(server) {
            return Ok(Some(keys));
        }
        let stored = self.store.get(&SERVER_KEYS, &server.as_str()).await?;
        let keys = stored.map(Arc::new);
        if let Some(keys) = &keys {
            self.known.insert(server.to_owned(), Arc::clone(keys));
        }
        Ok(keys)
    }
}

#[cfg(test)]
pub(crate) mod tests;
