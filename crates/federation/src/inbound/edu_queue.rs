//! Which EDUs wait, by the server that sent them: rows of those that are kept, and the others
//! themselves.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Notify;

use super::read_edu::PassingEdu;

/// Rows of one server. Messages to devices beyond are lost, as they would be with an inbox that is
/// full.
const MAX_ROWS: usize = 20_000;
/// Rows of all servers.
const MAX_ROWS_IN_ALL: usize = 200_000;
/// EDUs of one server that are outdated soon and wait: newer ones say what older ones said.
const MAX_PASSING: usize = 500;
/// Servers of which anything is known.
const MAX_ORIGINS: usize = 100_000;

/// The EDUs of all servers.
#[derive(Debug, Default)]
pub(super) struct EduQueues {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    origins: HashMap<OwnedServerName, Queue>,
    rows: usize,
}

#[derive(Debug, Default)]
struct Queue {
    rows: usize,
    ready: BTreeSet<u64>,
    passing: VecDeque<PassingEdu>,
    working: bool,
    /// Told when no row is left.
    emptied: Arc<Notify>,
}

/// What a worker is given.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) passing: Vec<PassingEdu>,
    pub(super) rows: Vec<u64>,
}

impl EduQueues {
    /// Takes the place of a row that is about to be written, unless there are too many.
    pub(super) fn take_place(&self, origin: &ServerName) -> bool {
        let state = &mut *self.state.lock();
        let queue = state.origins.entry(origin.to_owned()).or_default();
        if queue.rows >= MAX_ROWS || state.rows >= MAX_ROWS_IN_ALL {
            if queue.is_idle() {
                state.origins.remove(origin);
            }
            return false;
        }
        queue.rows += 1;
        state.rows += 1;
        true
    }

    /// Whether a server has rows, or any on their way.
    pub(super) fn knows(&self, origin: &ServerName) -> bool {
        self.state.lock().origins.contains_key(origin)
    }

    /// Counts a row that was found on disk.
    pub(super) fn found(&self, origin: &ServerName, row: u64) {
        let state = &mut *self.state.lock();
        let queue = state.origins.entry(origin.to_owned()).or_default();
        queue.rows += 1;
        queue.ready.insert(row);
        state.rows += 1;
    }

    /// A row is gone, or was never written.
    pub(super) fn give_back(&self, origin: &ServerName) {
        let state = &mut *self.state.lock();
        if let Some(queue) = state.origins.get_mut(origin) {
            queue.rows = queue.rows.saturating_sub(1);
            state.rows = state.rows.saturating_sub(1);
            if queue.rows == 0 {
                queue.emptied.notify_waiters();
            }
            if queue.is_idle() {
                state.origins.remove(origin);
            }
        }
    }

    /// Tells the worker of rows that are on disk. Gives whether one has to be started.
    #[must_use]
    pub(super) fn arrived(&self, origin: &ServerName, rows: &[u64]) -> bool {
        let mut state = self.state.lock();
        let queue = state.origins.entry(origin.to_owned()).or_default();
        queue.ready.extend(rows);
        queue.start()
    }

    /// Waits until no row of a server is left, but not for longer than `patience`.
    pub(super) async fn until_handed_on(&self, origin: &ServerName, patience: Duration) {
        let emptied = {
            let state = self.state.lock();
            let queue = state.origins.get(origin).filter(|queue| queue.rows > 0);
            let Some(queue) = queue else { return };
            // It hears from now on what is told while the lock is not held.
            Arc::clone(&queue.emptied).notified_owned()
        };
        // What takes longer is handed on later.
        let _ = tokio::time::timeout(patience, emptied).await;
    }

    /// Hands EDUs over that are not kept; the oldest make room. Gives whether a worker has to be
    /// started.
    #[must_use]
    pub(super) fn pass_on(&self, origin: &ServerName, edus: Vec<PassingEdu>) -> bool {
        let mut state = self.state.lock();
        if edus.is_empty() || state.origins.len() >= MAX_ORIGINS {
            return false;
        }
        let queue = state.origins.entry(origin.to_owned()).or_default();
        queue.passing.extend(edus);
        let excess = queue.passing.len().saturating_sub(MAX_PASSING);
        queue.passing.drain(..excess);
        queue.start()
    }

    /// Servers with rows and without a worker, which are from now on said to have one.
    pub(super) fn without_workers(&self) -> Vec<OwnedServerName> {
        let mut state = self.state.lock();
        let idle = state.origins.iter_mut().filter(|(_, queue)| !queue.working);
        idle.map(|(origin, queue)| {
            queue.working = true;
            origin.clone()
        })
        .collect()
    }

    /// What is to be done, up to `limit` rows.
    pub(super) fn ready(&self, origin: &ServerName, limit: usize) -> Work {
        let mut state = self.state.lock();
        let mut work = Work::default();
        if let Some(queue) = state.origins.get_mut(origin) {
            work.passing.extend(queue.passing.drain(..));
            while work.rows.len() < limit
                && let Some(row) = queue.ready.pop_first()
            {
                work.rows.push(row);
            }
        }
        work
    }

    /// Puts rows back that are to be tried again.
    pub(super) fn put_back(&self, origin: &ServerName, rows: &[u64]) {
        let mut state = self.state.lock();
        let queue = state.origins.entry(origin.to_owned()).or_default();
        queue.ready.extend(rows);
    }

    /// Ends the worker of a server, unless there is something to do.
    pub(super) fn may_end(&self, origin: &ServerName) -> bool {
        let mut state = self.state.lock();
        let Some(queue) = state.origins.get_mut(origin) else {
            return true;
        };
        if !queue.ready.is_empty() || !queue.passing.is_empty() {
            return false;
        }
        queue.working = false;
        if queue.rows == 0 {
            state.origins.remove(origin);
        }
        true
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.rows == 0 && self.ready.is_empty() && self.passing.is_empty() && !self.working
    }

    fn start(&mut self) -> bool {
        !std::mem::replace(&mut self.working, true)
    }
}
