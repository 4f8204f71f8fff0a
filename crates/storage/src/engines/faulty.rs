//! Faults on purpose: a wrapper that fails, delays and crashes another engine by a seeded plan.
//! For tests and simulations.
//!
//! It keeps what every group since the last fsync replaced, so that [`FaultyEngine::crash`] can give
//! the database as a power loss would leave it: every synced group, and of the others a prefix.

use std::{collections::HashMap, collections::HashSet, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use homeserver_runtime::{Entropy, SeededEntropy};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::memory::MemoryEngine;
use crate::{
    Position,
    engine::{
        BatchResult, CommitFailure, Direction, Durability, Engine, EngineError, Group, KeyRange,
    },
    system::POSITION_KEY,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk gives an error before anything is written or read (EIO).
    Error,
    /// The disk is full (ENOSPC): nothing is written. A read is not affected.
    Full,
    /// Only a part is written: the outcome is unknown, and a reopening finds nothing of it.
    ShortWrite,
    /// The fsync fails: the outcome is unknown, and a reopening finds all of it or nothing.
    FailedSync,
}

/// When what goes wrong. Calls (reads, scans, commits) are counted from 0.
#[derive(Debug, Clone)]
pub struct FaultPlan {
    /// Decides everything random.
    pub seed: u64,
    /// Faults at numbered calls.
    pub at: Vec<(u64, Fault)>,
    /// Besides those, so many of 1,000 calls fail, in a random way.
    pub per_thousand: u64,
    /// Commits take up to so long, on an engine that does not block.
    pub delay: Duration,
}

impl FaultPlan {
    /// Nothing goes wrong.
    #[must_use]
    pub fn none(seed: u64) -> Self {
        Self {
            seed,
            at: Vec::new(),
            per_thousand: 0,
            delay: Duration::ZERO,
        }
    }

    /// One fault at one call.
    #[must_use]
    pub fn once(seed: u64, call: u64, fault: Fault) -> Self {
        Self {
            at: vec![(call, fault)],
            ..Self::none(seed)
        }
    }
}

/// Rows as they were before a group that is not synced yet.
type Before = HashMap<Vec<u8>, Option<Bytes>>;

/// An engine that goes wrong as planned.
#[derive(Debug)]
pub struct FaultyEngine {
    inner: Arc<dyn Engine>,
    plan: FaultPlan,
    random: SeededEntropy,
    /// One commit at a time, so that what is remembered of each is right.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    durable: watch::Sender<Position>,
}

#[derive(Debug, Default)]
struct State {
    calls: u64,
    closed: bool,
    unsynced: Vec<Before>,
}

impl FaultyEngine {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Engine>, plan: FaultPlan) -> Self {
        let durable = *inner.watch().borrow();
        Self {
            random: SeededEntropy::new(plan.seed),
            inner,
            plan,
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            durable: watch::Sender::new(durable),
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// The database as a power loss would leave it now. This engine is closed for writing.
    ///
    /// # Errors
    /// When the wrapped engine cannot be read.
    pub async fn crash(&self) -> Result<MemoryEngine, EngineError> {
        let _turn = self.turn.lock().await;
        let mut unsynced = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.unsynced)
        };
        let everything = KeyRange::everything();
        let rows = self
            .inner
            .scan(&everything, Direction::Forward, usize::MAX)
            .await?;
        let mut rows: std::collections::BTreeMap<Bytes, Bytes> = rows.into_iter().collect();
        let surviving = self.number() % (unsynced.len() as u64 + 1);
        for before in unsynced.drain(surviving as usize..).rev() {
            for (key, value) in before {
                match value {
                    Some(value) => rows.insert(key.into(), value),
                    None => rows.remove(key.as_slice()),
                };
            }
        }
        Ok(MemoryEngine::with_rows(rows))
    }

    fn number(&self) -> u64 {
        let random: &dyn Entropy = &self.random;
        random.number()
    }

    /// Counts a call and says what goes wrong with it.
    fn fault(&self) -> Option<Fault> {
        let call = {
            let mut state = self.state.lock();
            state.calls += 1;
            state.calls - 1
        };
        let planned = self.plan.at.iter().find(|(at, _)| *at == call);
        if let Some((_, fault)) = planned {
            return Some(*fault);
        }
        if self.plan.per_thousand == 0 || self.number() % 1_000 >= self.plan.per_thousand {
            return None;
        }
        let all = [
            Fault::Error,
            Fault::Full,
            Fault::ShortWrite,
            Fault::FailedSync,
        ];
        Some(all[(self.number() % 4) as usize])
    }

    fn read_fault(&self) -> Result<(), EngineError> {
        match self.fault() {
            Some(Fault::Error) => Err(error(Fault::Error)),
            _ => Ok(()),
        }
    }

    /// The rows that a group may change, as they are.
    async fn before(&self, group: &Group) -> Result<Before, EngineError> {
        let mut keys = HashSet::from([POSITION_KEY.to_vec()]);
        for batch in &group.batches {
            keys.extend(batch.ops().iter().map(|op| batch.span(op.key).to_vec()));
        }
        let keys: Vec<_> = keys.into_iter().collect();
        let values = self.inner.multi_get(&keys).await?;
        Ok(keys.into_iter().zip(values).collect())
    }

    /// Writes a group and remembers what it replaced.
    async fn write(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        let not_applied = |error| CommitFailure::NotApplied(Arc::new(error));
        let mut before = self.before(group).await.map_err(not_applied)?;
        let results = self.inner.commit(group).await?;
        // A key with a position that this group was given was not there before.
        for batch in &group.batches {
            for op in batch.ops() {
                before.entry(batch.span(op.key).to_vec()).or_insert(None);
            }
        }
        self.state.lock().unsynced.push(before);
        Ok(results)
    }

    fn unknown(&self, fault: Fault) -> CommitFailure {
        self.state.lock().closed = true;
        CommitFailure::Unknown(Arc::new(error(fault)))
    }
}

fn error(fault: Fault) -> EngineError {
    let (what, kind) = match fault {
        Fault::Error => ("cannot use", std::io::ErrorKind::Other),
        Fault::Full => ("cannot write", std::io::ErrorKind::StorageFull),
        Fault::ShortWrite => ("cannot write", std::io::ErrorKind::WriteZero),
        Fault::FailedSync => ("cannot sync", std::io::ErrorKind::Other),
    };
    EngineError::Io {
        what,
        path: "the faulty disk".into(),
        source: kind.into(),
    }
}

#[async_trait]
impl Engine for FaultyEngine {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn blocks(&self) -> bool {
        self.inner.blocks()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.read_fault()?;
        self.inner.get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, EngineError> {
        self.read_fault()?;
        self.inner.multi_get(keys).await
    }

    async fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.read_fault()?;
        self.inner.scan(range, direction, limit).await
    }

    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        let _turn = self.turn.lock().await;
        if self.state.lock().closed {
            return Err(CommitFailure::NotApplied(Arc::new(EngineError::Closed)));
        }
        if !self.blocks() && !self.plan.delay.is_zero() {
            let most = self.plan.delay.as_micros() as u64;
            tokio::time::sleep(Duration::from_micros(self.number() % (most + 1))).await;
        }
        match self.fault() {
            Some(fault @ (Fault::Error | Fault::Full)) => {
                return Err(CommitFailure::NotApplied(Arc::new(error(fault))));
            }
            Some(Fault::ShortWrite) => return Err(self.unknown(Fault::ShortWrite)),
            Some(Fault::FailedSync) => {
                self.write(group).await?;
                return Err(self.unknown(Fault::FailedSync));
            }
            None => {}
        }
        let results = self.write(group).await?;
        if group.durability == Durability::Durable {
            self.state.lock().unsynced.clear();
            self.durable.send_replace(*self.inner.watch().borrow());
        }
        Ok(results)
    }

    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        let _turn = self.turn.lock().await;
        self.read_fault()?;
        self.inner.drop_range(range).await
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.durable.subscribe()
    }

    async fn checkpoint(&self, into: &Path) -> Result<(), EngineError> {
        self.inner.checkpoint(into).await
    }

    async fn idle(&self) -> Result<(), EngineError> {
        self.inner.idle().await
    }

    async fn close(&self) -> Result<(), EngineError> {
        self.inner.close().await
    }
}
