//! What engines of one process share: the last position, its publication, closing after a failure.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Position,
    engine::{BatchResult, CommitFailure, Durability, EngineError, Group},
    judge::{WriteSet, asserted_keys, judge},
};

/// The committing half of an engine whose only writer is this process.
#[derive(Debug)]
pub(crate) struct Local {
    state: Mutex<State>,
    durable: watch::Sender<Position>,
}

#[derive(Debug)]
struct State {
    last: Position,
    open: bool,
}

impl Local {
    /// `last` is the stored last position.
    pub(crate) fn new(last: Position) -> Self {
        Self {
            state: Mutex::new(State { last, open: true }),
            durable: watch::Sender::new(last),
        }
    }

    /// The last position from its stored bytes.
    pub(crate) fn position(stored: Option<&[u8]>) -> Option<Position> {
        match stored {
            None => Some(0),
            Some(bytes) => bytes.try_into().ok().map(Position::from_be_bytes),
        }
    }

    /// Judges a group and writes it by `write`; `read` gives the value of a key.
    pub(crate) fn commit(
        &self,
        group: &mut Group,
        read: impl Fn(&[u8]) -> Result<Option<Bytes>, EngineError>,
        write: impl FnOnce(&WriteSet<'_>, Durability) -> Result<(), CommitFailure>,
    ) -> Result<Vec<BatchResult>, CommitFailure> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(CommitFailure::NotApplied(Arc::new(EngineError::Closed)));
        }
        let keys = asserted_keys(group);
        let found: Result<Vec<_>, _> = keys.iter().map(|key| read(key)).collect();
        let found = found.map_err(|error| CommitFailure::NotApplied(Arc::new(error)))?;
        let judged = judge(group, keys, found, state.last);
        let writes = WriteSet::new(group, &judged);
        if !writes.is_empty() {
            write(&writes, group.durability).inspect_err(|failure| {
                state.open &= matches!(failure, CommitFailure::NotApplied(_));
            })?;
        }
        drop(writes);
        if judged.last > state.last {
            state.last = judged.last;
            self.durable.send_replace(judged.last);
        }
        Ok(judged.results)
    }

    /// Refuses commits from now on; gives whether they were accepted so far.
    pub(crate) fn close(&self) -> bool {
        std::mem::replace(&mut self.state.lock().open, false)
    }

    /// Runs `job` while no commit does, unless commits are refused.
    pub(crate) fn between_commits<T>(&self, job: impl FnOnce() -> T) -> Option<T> {
        let state = self.state.lock();
        state.open.then(job)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Position> {
        self.durable.subscribe()
    }
}
