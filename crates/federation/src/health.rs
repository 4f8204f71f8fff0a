//! Which servers fail, since when, and when each is asked again.
//!
//! A server that fails is left alone for a pause that doubles with each further failure. It ends
//! with an answer, or with a sign of life: a request of its own that proved to come from it. All
//! names of one server count as one. What is known is kept over restarts, so that a server which is gone is not asked again by each; a
//! crash may lose the last half minute of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use homeserver_events::names::canonical_name;
use homeserver_runtime::{Entropy, Runtime};
use homeserver_storage::{
    Batch, CommitError, Direction, Durability, ScanRange, StorageError, Store,
};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::tables::HEALTH;

/// Failing servers that are remembered; beyond, the one that is due first is forgotten.
const MAX_FAILING: usize = 10_000;

/// A server that gives signs of life but is not reached is tried so often at most.
const SIGN_PAUSE: Duration = Duration::from_secs(5);

/// How often what changed is written down.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Rows of one batch.
const ROWS_AT_ONCE: usize = 500;

/// The pauses between attempts (`federation.retry_min` and `retry_max`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// After the first failure.
    pub shortest: Duration,
    /// After many.
    pub longest: Duration,
}

impl Retry {
    /// The pause after so many failures in a row, spread from 0.8 to 1.2 of itself by `jitter`,
    /// which is any number, so that servers which failed together are not asked together.
    pub fn pause(self, failures: u32, jitter: u64) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        let pause = self.shortest.saturating_mul(doubled).min(self.longest);
        let per_mille = 800 + u32::try_from(jitter % 401).unwrap_or_default();
        pause.saturating_mul(per_mille) / 1_000
    }
}

/// What is stored of a failing server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HealthRow {
    /// Milliseconds since 1970.
    failing_since: u64,
    attempts: u32,
    /// Milliseconds since 1970.
    next_at: u64,
}
homeserver_storage::row!(HealthRow, 1);

/// How a server fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// Failures in a row.
    pub attempts: u32,
    /// How long it is still left alone.
    pub pause: Duration,
}

/// The health of other servers. Cheap to clone; clones share what is known.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    retry: Retry,
    store: Store,
    runtime: Runtime,
    servers: Mutex<Servers>,
}

#[derive(Debug, Default)]
struct Servers {
    /// By their canonical names.
    failing: BTreeMap<OwnedServerName, Server>,
    /// Names whose row differs from what is known.
    unsaved: BTreeSet<OwnedServerName>,
}

/// A failing server. Times are of the monotonic clock, but for `since`.
#[derive(Debug)]
struct Server {
    since: u64,
    attempts: u32,
    failed_at: Duration,
    due: Duration,
    /// Told when `due` comes sooner than it was said.
    sooner: Arc<Notify>,
}

impl Health {
    /// What was known when it was last written down.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub async fn open(retry: Retry, store: Store, runtime: Runtime) -> Result<Self, StorageError> {
        let all = ScanRange::all();
        let rows = store.scan(&HEALTH, all, Direction::Forward, MAX_FAILING);
        let (now, wall) = (runtime.clock.monotonic(), runtime.clock.unix_millis());
        let mut servers = Servers::default();
        for (name, row) in rows.await? {
            let Ok(stored) = OwnedServerName::try_from(name) else {
                continue;
            };
            let name = canonical_name(&stored);
            if name != stored {
                servers.unsaved.extend([stored, name.clone()]);
            }
            // The wall clock may have jumped.
            let pause = Duration::from_millis(row.next_at.saturating_sub(wall));
            let server = Server {
                since: row.failing_since,
                attempts: row.attempts,
                failed_at: now,
                due: now + pause.min(retry.longest),
                sooner: Arc::default(),
            };
            servers.failing.insert(name, server);
        }
        let servers = Mutex::new(servers);
        Ok(Self {
            inner: Arc::new(Inner {
                retry,
                store,
                runtime,
                servers,
            }),
        })
    }

    /// The pauses between attempts.
    pub fn retry(&self) -> Retry {
        self.inner.retry
    }

    /// Begins to write down what changes, until shutdown.
    pub fn start(&self) {
        let health = self.clone();
        self.inner.runtime.tasks.spawn(async move {
            let tasks = health.inner.runtime.tasks.clone();
            while !tasks.is_stopping() {
                tokio::select! {
                    biased;
                    () = tasks.stopping() => {}
                    () = tokio::time::sleep(SAVE_EVERY) => {}
                }
                if let Err(error) = health.save().await {
                    tracing::warn!(%error, "which servers fail was not stored");
                }
            }
        });
    }

    /// How a server fails; `None` if it does not.
    pub fn failing(&self, server: &ServerName) -> Option<Failing> {
        let now = self.now();
        let servers = self.inner.servers.lock();
        servers.get(server).map(|failing| Failing {
            since: failing.since,
            attempts: failing.attempts,
            pause: failing.due.saturating_sub(now),
        })
    }

    /// Waits until a server is not to be left alone any more: its pause is over, it answered, or it
    /// gave a sign of life.
    pub async fn due(&self, server: &ServerName) {
        loop {
            let now = self.now();
            let (sooner, pause) = {
                let servers = self.inner.servers.lock();
                let Some(failing) = servers.get(server) else {
                    return;
                };
                // From here on it hears of changes.
                let sooner = Arc::clone(&failing.sooner).notified_owned();
                (sooner, failing.due.saturating_sub(now))
            };
            if pause.is_zero() {
                return;
            }
            tokio::select! {
                biased;
                () = sooner => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// It answered.
    pub fn succeeded(&self, server: &ServerName) {
        self.inner.servers.lock().forget(&canonical_name(server));
    }

    /// It failed, and is left alone for `at_least`, if it asked for that, or longer. Of requests
    /// that were on their way together only the first to fail counts.
    pub fn failed(&self, server: &ServerName, at_least: Duration) {
        let Inner { retry, runtime, .. } = &*self.inner;
        let (now, wall) = (runtime.clock.monotonic(), runtime.clock.unix_millis());
        let server = canonical_name(server);
        let mut servers = self.inner.servers.lock();
        servers.make_room(&server);
        let failing = servers.failing.entry(server.clone());
        let failing = failing.or_insert_with(|| Server {
            since: wall,
            attempts: 0,
            failed_at: now,
            due: now,
            sooner: Arc::default(),
        });
        if now >= failing.due {
            failing.attempts = failing.attempts.saturating_add(1);
            failing.failed_at = now;
            let jitter = <dyn Entropy>::number(&*runtime.entropy);
            failing.due = now + retry.pause(failing.attempts, jitter);
        }
        failing.due = failing.due.max(now + at_least.min(retry.longest));
        servers.unsaved.insert(server);
    }

    /// It gave a sign of life: it is asked again at once, or as soon as it was not asked for five
    /// seconds. If it fails again, the pauses go on growing: some can ask but not be reached.
    pub fn alive(&self, server: &ServerName) {
        let server = canonical_name(server);
        let mut servers = self.inner.servers.lock();
        if let Some(failing) = servers.failing.get_mut(&server) {
            failing.due = failing.due.min(failing.failed_at + SIGN_PAUSE);
            failing.sooner.notify_waiters();
            servers.unsaved.insert(server);
        }
    }

    /// Writes down what changed since the last time.
    ///
    /// # Errors
    /// When the store does not take it; it is tried again the next time.
    pub async fn save(&self) -> Result<(), CommitError> {
        loop {
            let (names, batch) = self.changes();
            if names.is_empty() {
                return Ok(());
            }
            let written = match self.inner.store.submit(batch, Durability::Lazy).await {
                Ok(ticket) => ticket.await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                self.inner.servers.lock().unsaved.extend(names);
                return Err(error);
            }
        }
    }

    /// Some of what changed.
    fn changes(&self) -> (Vec<OwnedServerName>, Batch) {
        let (now, wall) = (self.now(), self.inner.runtime.clock.unix_millis());
        let mut batch = Batch::new();
        let mut names = Vec::new();
        let mut servers = self.inner.servers.lock();
        while names.len() < ROWS_AT_ONCE
            && let Some(name) = servers.unsaved.pop_first()
        {
            match servers.failing.get(&name) {
                None => batch.delete(&HEALTH, &name.as_str()),
                Some(failing) => {
                    let pause = failing.due.saturating_sub(now).as_millis();
                    let row = HealthRow {
                        failing_since: failing.since,
                        attempts: failing.attempts,
                        next_at: wall.saturating_add(u64::try_from(pause).unwrap_or(u64::MAX)),
                    };
                    batch.put(&HEALTH, &name.as_str(), &row);
                }
            }
            names.push(name);
        }
        (names, batch)
    }

    fn now(&self) -> Duration {
        self.inner.runtime.clock.monotonic()
    }
}

impl Servers {
    fn get(&self, server: &ServerName) -> Option<&Server> {
        self.failing.get(&canonical_name(server))
    }

    fn forget(&mut self, server: &ServerName) {
        if let Some((name, failing)) = self.failing.remove_entry(server) {
            failing.sooner.notify_waiters();
            self.unsaved.insert(name);
        }
    }

    fn make_room(&mut self, server: &ServerName) {
        if self.failing.len() >= MAX_FAILING && !self.failing.contains_key(server) {
            let first = self.failing.iter().min_by_key(|(_, failing)| failing.due);
            if let Some(first) = first.map(|(name, _)| name.clone()) {
                self.forget(&first);
            }
        }
    }
}

#[cfg(test)]
mod tests;
