//! Idle connections, kept for the next request to the same name.
//!
//! They are kept by what was proven and what is asked for (TLS name and `Host`), not by address:
//! whoever proves the name may answer for it. Connections that nobody asks for again are closed
//! when the next one of any server is asked for or comes back.

use std::{collections::HashMap, time::Duration};

use http::HeaderValue;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::time::Instant;

use crate::{endpoint::Endpoint, line::Line};

/// Idle connections kept for one name.
const PER_NAME: usize = 4;

/// Idle connections kept in all.
const IN_ALL: usize = 1_024;

/// How long one is kept unused: less than servers commonly wait (Synapse a minute), so that
/// requests seldom meet a connection that is being closed.
pub(crate) const IDLE: Duration = Duration::from_secs(45);

/// How long one is used: changes of the DNS are noticed after that, however busy it is.
const AGE: Duration = Duration::from_mins(10);

/// Whom a connection reaches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    tls_name: ServerName<'static>,
    host: HeaderValue,
}

impl Key {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        Self {
            tls_name: endpoint.tls_name.clone(),
            host: endpoint.host.clone(),
        }
    }
}

/// A connection, and since when it is there.
pub(crate) struct Pooled {
    pub(crate) line: Line,
    opened: Instant,
}

struct Idle {
    pooled: Pooled,
    since: Instant,
}

#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
}

impl Pooled {
    pub(crate) fn new(line: Line) -> Self {
        Self {
            line,
            opened: Instant::now(),
        }
    }
}

impl Idle {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < IDLE && self.pooled.opened.elapsed() < AGE
    }
}

impl Pool {
    /// The connection of `key` that was used last.
    pub(crate) fn take(&self, key: &Key) -> Option<Pooled> {
        let mut idle = self.idle.lock();
        close_stale(&mut idle);
        let of_key = idle.get_mut(key)?;
        let last = of_key.pop();
        if of_key.is_empty() {
            idle.remove(key);
        }
        last.map(|idle| idle.pooled)
    }

    /// Keeps a connection, if there is room for it.
    pub(crate) fn put(&self, key: Key, pooled: Pooled) {
        let mut idle = self.idle.lock();
        close_stale(&mut idle);
        if idle.values().map(Vec::len).sum::<usize>() >= IN_ALL {
            return;
        }
        let since = Instant::now();
        let of_key = idle.entry(key).or_default();
        if of_key.len() < PER_NAME {
            of_key.push(Idle { pooled, since });
        }
    }

    /// How many connections are idle.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.idle.lock().values().map(Vec::len).sum()
    }
}

/// Closes what was idle for too long.
fn close_stale(idle: &mut HashMap<Key, Vec<Idle>>) {
    idle.retain(|_, of_key| {
        of_key.retain(Idle::is_fresh);
        !of_key.is_empty()
    });
}
