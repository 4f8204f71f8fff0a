//! Opening the engine anew after a commit whose outcome is unknown, without a restart.
//!
//! Those who wait for the failed group are told that its outcome is unknown. What was queued after
//! it stays in the queue and is judged against what recovery finds: where it builds on a row that
//! did not survive its assert fails, and it is decided again. If opening takes longer than
//! [`HOLD`], the queue is refused until it succeeds.
//!
//! Nothing that anybody has read is lost by it: a durable group is read only once it is on disk,
//! and lazy ones are kept here until an fsync has covered them, and are written again. So numbers
//! and caches stay true; only rows of the failed group may be new to them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use homeserver_runtime::PoolClosed;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Shared, Waiting, Working};
use crate::{
    Batch, CommitError, Durability, Engine, EngineError, OpenEngine, Position, Row as _,
    engine::{BatchResult, CommitFailure, Group},
    system::META,
};

/// How long queued batches wait for the engine before they are refused.
const HOLD: Duration = Duration::from_secs(5);
/// How long the second attempt waits; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait between attempts. They go on until the process stops.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Bytes of lazy batches that are kept; above that the next group is made durable.
const MAX_LAZY: usize = 1024 * 1024;

/// What is needed to open the engine anew.
#[derive(Debug)]
pub(super) struct Recovery {
    opener: Arc<dyn OpenEngine>,
    /// The durable position of one engine after the other.
    durable: watch::Sender<Position>,
    /// The database's epoch; 0 until it is known.
    epoch: AtomicU64,
    lazy: Mutex<Lazy>,
}

/// Batches that were read and may be lost, in their order.
#[derive(Debug, Default)]
struct Lazy {
    batches: Vec<Batch>,
    bytes: usize,
}

#[derive(Debug, thiserror::Error)]
enum ReopenError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("it takes no writes")]
    Commit(#[source] CommitFailure),
    #[error("it ends at position {found}, and {acknowledged} was acknowledged")]
    Lost {
        found: Position,
        acknowledged: Position,
    },
    #[error("it is another database now")]
    OtherEpoch,
    #[error("shutting down")]
    ShuttingDown,
}

impl ReopenError {
    /// Whether no further attempt can succeed.
    fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Engine(EngineError::Damaged { .. })
                | Self::Lost { .. }
                | Self::OtherEpoch
                | Self::ShuttingDown
        )
    }
}

impl Recovery {
    pub(super) fn new(opener: Arc<dyn OpenEngine>, durable: Position) -> Self {
        Self {
            opener,
            durable: watch::Sender::new(durable),
            epoch: AtomicU64::new(0),
            lazy: Mutex::default(),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Position> {
        self.durable.subscribe()
    }

    pub(super) fn know_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    /// Whether so much would be written again that the next group should be durable.
    pub(super) fn is_full(&self) -> bool {
        self.lazy.lock().bytes > MAX_LAZY
    }

    /// Notes a group that is in the store. The durable position says so from now on; who waits for
    /// it to move is woken by [`Recovery::announce`]. Gives whether it moved.
    #[must_use]
    pub(super) fn committed(&self, group: Group, results: &[BatchResult]) -> bool {
        let mut lazy = self.lazy.lock();
        let batches = group.batches.into_iter().zip(results);
        let mut written =
            batches.filter(|(batch, result)| result.is_ok() && !batch.ops().is_empty());
        if group.durability == Durability::Lazy {
            for (batch, _) in written {
                lazy.bytes += batch.bytes();
                lazy.batches.push(batch.without_asserts());
            }
        } else if written.next().is_some() {
            // A group that writes nothing is no reason for an engine to wait for its disk.
            *lazy = Lazy::default();
        }
        drop(lazy);
        let held = results.iter().rev().flatten();
        let mut positions = held.filter_map(|committed| committed.positions.last());
        positions.next().is_some_and(|last| self.publish(*last))
    }

    /// Gives whether it moved; nobody is woken.
    fn publish(&self, position: Position) -> bool {
        let mut moved = false;
        self.durable.send_if_modified(|durable| {
            moved = position > *durable;
            *durable = position.max(*durable);
            false
        });
        moved
    }

    /// Wakes who waits for the durable position to move.
    pub(super) fn announce(&self) {
        self.durable.send_modify(|_| {});
    }

    /// What is compared with a database that was opened, and written to it, before it is used.
    fn trial(&self, generation: u64) -> Trial {
        let mut proof = Batch::new();
        let count = Bytes::from(generation.encode());
        proof.put(&META, &"reopened", &count);
        let mut batches = self.lazy.lock().batches.clone();
        batches.push(proof);
        Trial {
            acknowledged: *self.durable.borrow(),
            epoch: self.epoch.load(Ordering::SeqCst),
            group: Group {
                batches,
                durability: Durability::Durable,
            },
        }
    }
}

/// What a database that was opened anew has to stand.
struct Trial {
    acknowledged: Position,
    epoch: u64,
    group: Group,
}

impl Trial {
    /// Is it the same database with all that was acknowledged, and does it take writes?
    async fn of(mut self, engine: Arc<dyn Engine>) -> Result<(), ReopenError> {
        let found = *engine.watch().borrow();
        if found < self.acknowledged {
            let acknowledged = self.acknowledged;
            return Err(ReopenError::Lost {
                found,
                acknowledged,
            });
        }
        let stored = engine.get(&META.key_bytes(&"epoch")).await?;
        let stored = stored
            .and_then(|row| Bytes::decode(&row).ok())
            .and_then(|number| u64::decode(&number).ok());
        if self.epoch != 0 && stored != Some(self.epoch) {
            return Err(ReopenError::OtherEpoch);
        }
        let committed = super::commit(&*engine, &mut self.group).await;
        committed.map(drop).map_err(ReopenError::Commit)
    }
}

impl Shared {
    /// Opens the engine anew and goes on with the queue. Closes the queue if that cannot be.
    pub(super) async fn reopen(working: Working, recovery: Arc<Recovery>) {
        let shared = Arc::clone(&working.shared);
        let mut attempts = std::pin::pin!(shared.attempts(&recovery));
        let opened = if let Ok(opened) = tokio::time::timeout(HOLD, &mut attempts).await {
            opened
        } else {
            shared.refuse();
            attempts.await
        };
        if opened {
            shared.queue.lock().refusing = false;
            Self::run(working);
        } else {
            shared.handle.give_up();
        }
    }

    /// Tries until it succeeds, or cannot.
    async fn attempts(&self, recovery: &Recovery) -> bool {
        let engine = self.handle.name;
        let mut wait = FIRST_WAIT;
        loop {
            let attempted = super::caught(engine, self.attempt(recovery)).await;
            match attempted.map_err(ReopenError::from).flatten() {
                Ok(()) => {
                    tracing::warn!(engine, "the database was opened again and takes writes");
                    return true;
                }
                Err(error) if error.is_final() => {
                    tracing::error!(engine, error = %super::with_causes(&error), "the database stays closed for writing");
                    return false;
                }
                Err(error) => {
                    tracing::error!(engine, error = %super::with_causes(&error), ?wait, "the database is not open again");
                }
            }
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return false,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn attempt(&self, recovery: &Recovery) -> Result<(), ReopenError> {
        recovery.opener.probe().await?;
        self.unless_stopping()?;
        self.handle.take_away(&self.runtime).await?;
        self.unless_stopping()?;
        let engine = recovery.opener.open().await?;
        let trial = recovery.trial(self.handle.generation() + 1);
        if engine.blocks() {
            let (name, tried) = (self.handle.name, Arc::clone(&engine));
            // A panic is caught in there: to the pool it would look like shutting down.
            let stood = move || super::caught(name, trial.of(tried)).now_or_never();
            let stood = self.runtime.blocking.run(stood).await;
            let stood = stood.map_err(|_: PoolClosed| ReopenError::ShuttingDown)?;
            stood.ok_or_else(|| ReopenError::Commit(super::suspended()))???;
        } else {
            trial.of(Arc::clone(&engine)).await?;
        }
        *recovery.lazy.lock() = Lazy::default();
        let durable = *engine.watch().borrow();
        self.handle.give(engine);
        if recovery.publish(durable) {
            recovery.announce();
        }
        Ok(())
    }

    fn unless_stopping(&self) -> Result<(), ReopenError> {
        if self.runtime.tasks.is_stopping() {
            return Err(ReopenError::ShuttingDown);
        }
        Ok(())
    }

    /// Refuses what waits and what comes, until the engine is there again.
    fn refuse(&self) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.refusing = true;
            std::mem::take(&mut queue.waiting)
        };
        self.space.add_permits(waiting.len());
        for waiting in waiting {
            waiting.refuse();
        }
    }
}

impl Waiting {
    /// The store is closed for writing.
    pub(super) fn refuse(self) {
        match self {
            Self::Batch { answer, .. } => drop(answer.send(Err(CommitError::Closed))),
            Self::Work { answer, .. } => drop(answer.send(Err(EngineError::Closed))),
        }
    }
}

#[cfg(test)]
mod tests;
