//! The keys of other servers: kept for ever, fetched when they are needed, from the server itself
//! or from a notary, once at a time.
//!
//! A request is believed by a key that is current now; an event by one that was valid when it was
//! made. What a server once published stays known, so that its events verify after it is gone.
//!
//! Specification: server-server API, "Retrieving server keys".

mod fetch;
mod vouch;
mod witness;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use homeserver_events::{KeySource, PublishedKey, VerifyKey};
use homeserver_runtime::Runtime;
use homeserver_storage::{Batch, StorageError, Store};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Semaphore;

pub use self::vouch::{KeyQuery, MAX_ASKED};
use self::witness::Word;
use super::{OwnKeys, known::ServerKeys};
use crate::{Admission, Transport, tables::SERVER_KEYS};

/// Bytes of keys that are held in memory.
const IN_MEMORY: u64 = 16 * 1024 * 1024;
/// Bytes of keys of strangers.
const STRANGERS: u64 = 4 * 1024 * 1024;
/// Servers whose keys are held in memory, as the cache expects.
const SERVERS_IN_MEMORY: usize = 10_000;
/// Servers that failed and are remembered for it.
const FAILURES: usize = 10_000;
/// Words of witnesses that are remembered, of four documents at most each.
const WORDS: usize = 1_000;
/// Who may wait for the keys of one server: requests in its name are not its own until then.
const MAX_WAITING_FOR_ONE: usize = 100;
/// Servers that are asked at once for the keys of events.
const AT_ONCE: usize = 32;

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

/// How keys are looked for that are not known.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// How long their servers are waited for, and then the witnesses. No patience asks nobody.
    pub patience: Duration,
    /// Servers that know the events and are believed what they tell of the room, as the one through
    /// which it is joined. What they say of the keys of servers that cannot be asked themselves
    /// counts for these events.
    pub witnesses: &'a [OwnedServerName],
}

impl Asking<'_> {
    /// Without witnesses.
    pub const fn for_as_long_as(patience: Duration) -> Self {
        Self {
            patience,
            witnesses: &[],
        }
    }
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
    known: Cache<OwnedServerName, Arc<ServerKeys>, Bytes>,
    /// Keys of servers that no event of theirs was wanted for yet. They are not stored: anybody can
    /// have as many names as they like.
    strangers: Cache<OwnedServerName, Arc<ServerKeys>, Bytes>,
    failures: Cache<OwnedServerName, Failure>,
    /// What witnesses said of servers that cannot be asked: (witness, server).
    said: Cache<(OwnedServerName, OwnedServerName), Word>,
    /// One fetch of each server at a time.
    turns: Mutex<HashMap<OwnedServerName, Arc<tokio::sync::Mutex<()>>>>,
    lanes: Lanes,
}

/// Weighs what is held in memory.
#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<OwnedServerName, Arc<ServerKeys>> for Bytes {
    fn weight(&self, server: &OwnedServerName, keys: &Arc<ServerKeys>) -> u64 {
        (server.as_str().len() + keys.bytes()) as u64
    }
}

/// What keys are wanted for. Anybody can make a request in the name of any server, so that waiting
/// for strangers' keys must keep nobody from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// To verify events, or requests of servers that are known.
    Known,
    /// To verify the request of a server of which nothing is known.
    Stranger,
    /// Because another server asks us for them.
    Others,
}

/// Who waits for fetches, and which are under way.
#[derive(Debug)]
struct Lanes {
    known: Lane,
    stranger: Lane,
    others: Lane,
}

#[derive(Debug)]
struct Lane {
    fetching: Semaphore,
    waiting: Arc<Semaphore>,
}

impl Lane {
    fn new(fetching: usize, waiting: usize) -> Self {
        Self {
            fetching: Semaphore::new(fetching),
            waiting: Arc::new(Semaphore::new(waiting)),
        }
    }
}

impl Lanes {
    /// How many fetch at once and how many wait, of each sort.
    fn new() -> Self {
        Self {
            known: Lane::new(AT_ONCE, 1_000),
            stranger: Lane::new(16, 200),
            others: Lane::new(8, 100),
        }
    }

    fn of(&self, what_for: For) -> &Lane {
        match what_for {
            For::Known => &self.known,
            For::Stranger => &self.stranger,
            For::Others => &self.others,
        }
    }
}

/// What is known after a fetch.
#[derive(Clone, Debug)]
struct Fetched {
    keys: Arc<ServerKeys>,
    /// Whether it is what the server publishes now, and not only what it published once.
    is_new: bool,
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
    /// Servers whose keys do not cover what was wanted, and that could not be asked.
    unavailable: BTreeSet<OwnedServerName>,
    /// What the witnesses say of those, by server and key id.
    vouched: BTreeMap<OwnedServerName, BTreeMap<String, PublishedKey>>,
}

impl Keys {
    /// Whether keys of `server` are lacking that may be there later.
    pub fn is_unavailable(&self, server: &ServerName) -> bool {
        self.unavailable.contains(server)
    }

    /// Whether this key is only vouched for. What does not match it may be true all the same.
    pub fn is_vouched(&self, server: &ServerName, key_id: &str) -> bool {
        let heard = self.servers.get(server).and_then(|keys| keys.key(key_id));
        heard.is_none() && self.vouched_key(server, key_id).is_some()
    }

    fn vouched_key(&self, server: &ServerName, key_id: &str) -> Option<PublishedKey> {
        self.vouched.get(server)?.get(key_id).copied()
    }
}

impl KeySource for Keys {
    fn key(&self, server: &ServerName, key_id: &str) -> Option<PublishedKey> {
        if server == self.own.server() {
            return self.own.published(key_id);
        }
        let heard = self.servers.get(server).and_then(|keys| keys.key(key_id));
        heard.or_else(|| self.vouched_key(server, key_id))
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
                known: Cache::with_weighter(SERVERS_IN_MEMORY, IN_MEMORY, Bytes),
                strangers: Cache::with_weighter(SERVERS_IN_MEMORY, STRANGERS, Bytes),
                failures: Cache::new(FAILURES),
                said: Cache::new(WORDS),
                turns: Mutex::default(),
                lanes: Lanes::new(),
            }),
        }
    }

    /// Our own keys.
    pub fn own(&self) -> &OwnKeys {
        &self.inner.own
    }

    /// Those of `key_ids` that `server` signs with now, as far as that is known here; `None` if it
    /// has to be asked.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn known_request_keys(
        &self,
        server: &ServerName,
        key_ids: &BTreeSet<&str>,
    ) -> Result<Option<BTreeMap<String, VerifyKey>>, KeyProblem> {
        let Some(keys) = self.inner.seen(server).await? else {
            return Ok(None);
        };
        let now = self.inner.now();
        let current = current(&keys, key_ids, now);
        if current.is_some() && !keys.is_fresh(now) {
            self.refresh(server);
        }
        Ok(current)
    }

    /// The keys by which a request of `server` is checked: those of `key_ids` that it signs with
    /// now. Fetches them if none of them is known.
    ///
    /// # Errors
    /// When there is none, and when it cannot be found out.
    pub async fn request_keys(
        &self,
        server: &ServerName,
        key_ids: &BTreeSet<&str>,
    ) -> Result<BTreeMap<String, VerifyKey>, KeyProblem> {
        if let Some(known) = self.known_request_keys(server, key_ids).await? {
            return Ok(known);
        }
        let known = self.inner.known(server).await?;
        let what_for = if known.is_none() {
            For::Stranger
        } else {
            For::Known
        };
        let fetched = self.inner.fetch(server, what_for).await?;
        let current = current(&fetched.keys, key_ids, self.inner.now());
        current.ok_or_else(|| KeyProblem::Unknown(server.to_owned()))
    }

    /// The keys for verifying events: what is known, and what can be fetched of the rest, or is
    /// vouched for by the witnesses. What is not found is not among them.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn keys_for(
        &self,
        wanted: &[Wanted],
        asking: Asking<'_>,
    ) -> Result<Keys, StorageError> {
        let mut by_server: BTreeMap<&ServerName, Vec<&Wanted>> = BTreeMap::new();
        for wanted in wanted
            .iter()
            .filter(|one| one.server != *self.inner.own.server())
        {
            by_server.entry(&wanted.server).or_default().push(wanted);
        }
        let mut keys = Keys {
            own: self.inner.own.clone(),
            servers: BTreeMap::new(),
            unavailable: BTreeSet::new(),
            vouched: BTreeMap::new(),
        };
        for (server, wanted) in &by_server {
            let mut known = self.inner.known(server).await?;
            if known.is_none()
                && let Some((_, stranger)) = self.inner.strangers.remove(*server)
            {
                self.inner.keep(server, &stranger).await;
                known = Some(stranger);
            }
            let covers = |keys: &Arc<ServerKeys>| {
                let covered = |one: &&Wanted| keys.covers(&one.key_id, one.time, one.enforced);
                wanted.iter().all(covered)
            };
            if !known.as_ref().is_some_and(covers) {
                keys.unavailable.insert((*server).to_owned());
            }
            if let Some(known) = known {
                keys.servers.insert((*server).to_owned(), known);
            }
        }
        if !asking.patience.is_zero() && !keys.unavailable.is_empty() {
            self.ask_servers(&mut keys, asking.patience).await;
            self.inner
                .ask_witnesses(&by_server, &mut keys, asking)
                .await;
        }
        Ok(keys)
    }

    /// Asks the servers themselves for what is lacking.
    async fn ask_servers(&self, keys: &mut Keys, patience: Duration) {
        let fetched = Mutex::new(Vec::new());
        let fetching = stream::iter(&keys.unavailable);
        let fetching = fetching.for_each_concurrent(AT_ONCE, |server| {
            let fetched = &fetched;
            async move {
                match self.inner.fetch(server, For::Known).await {
                    Ok(keys) => fetched.lock().push((server.clone(), keys)),
                    Err(error) => tracing::debug!(%error, "keys are missing"),
                }
            }
        });
        // What came in time counts.
        let _ = tokio::time::timeout(patience, fetching).await;
        for (server, fetched) in fetched.into_inner() {
            if fetched.is_new {
                keys.unavailable.remove(&server);
            }
            keys.servers.insert(server, fetched.keys);
        }
    }

    /// Whether the keys of a server are not to be had for longer than an outage of the network lasts.
    pub fn is_gone(&self, server: &ServerName) -> bool {
        self.inner.is_gone(server)
    }

    /// Fetches in the background, unless that is under way or failed a moment ago.
    fn refresh(&self, server: &ServerName) {
        if self.inner.turns.lock().contains_key(server) || self.inner.is_paused(server) {
            return;
        }
        let stranger = self.inner.strangers.get(server).is_some();
        let what_for = if stranger { For::Stranger } else { For::Known };
        let (ring, server) = (self.clone(), server.to_owned());
        self.inner.runtime.tasks.spawn(async move {
            if let Err(error) = ring.inner.fetch(&server, what_for).await {
                tracing::debug!(%error, "keys were not refreshed");
            }
        });
    }
}

/// Those of `key_ids` that are current; `None` if there is none.
fn current(
    keys: &ServerKeys,
    key_ids: &BTreeSet<&str>,
    now: u64,
) -> Option<BTreeMap<String, VerifyKey>> {
    let current = |id: &&str| Some(((*id).to_owned(), keys.current(id, now)?));
    let current: BTreeMap<_, _> = key_ids.iter().filter_map(current).collect();
    Some(current).filter(|current| !current.is_empty())
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

    /// What is known of a server, stranger or not.
    async fn seen(&self, server: &ServerName) -> Result<Option<Arc<ServerKeys>>, StorageError> {
        let known = self.known(server).await?;
        Ok(known.or_else(|| self.strangers.get(server)))
    }

    /// Stores keys.
    async fn keep(&self, server: &ServerName, keys: &Arc<ServerKeys>) {
        let mut batch = Batch::new();
        batch.put(&SERVER_KEYS, &server.as_str(), &**keys);
        if let Err(error) = self.store.commit(batch).await {
            // They are fetched again after a restart.
            tracing::warn!(%error, %server, "keys were not stored");
        }
        self.known.insert(server.to_owned(), Arc::clone(keys));
    }
}

#[cfg(test)]
pub(crate) mod tests;
