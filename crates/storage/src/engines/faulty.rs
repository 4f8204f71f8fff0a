//! Faults on purpose: a wrapper that fails, delays and crashes another engine by a seeded plan.
//! For tests and simulations.
//!
//! It keeps what every group since the last fsync replaced, so that [`FaultyEngine::crash`] can give
//! the database as a power loss would leave it: every synced group, and of the others a prefix.
//! [`FaultyDisk`] opens such engines one after the other, each on what the one before it left.

mod disk;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use homeserver_runtime::{Entropy, SeededEntropy};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

pub use disk::FaultyDisk;

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
    /// The engine panics in a commit, and does not close itself. Otherwise like
    /// [`Fault::FailedSync`]. A read is not affected.
    Panic,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Self; 5] = [
        Self::Error,
        Self::Full,
        Self::ShortWrite,
        Self::FailedSync,
        Self::Panic,
    ];
}

/// When what goes wrong. Calls (reads, scans, commits) are counted from 0.
#[derive(Debug, Clone)]
pub struct FaultPlan {
    /// Decides everything random.
    pub seed: u64,
    /// Faults at numbered calls.
    pub at: Vec<(u64, Fault)>,
    /// Besides those, so many of 1,000 calls fail, in a random way. Of reads the seed decides by what
    /// is read and when, not by how many came before: the order in which tasks are woken up by the
    /// same news is nobody's choice.
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
    faults: Arc<Faults>,
    /// One commit at a time, so that what is remembered of each is right.
    turn: tokio::sync::Mutex<()>,
    closed: AtomicBool,
    durable: watch::Sender<Position>,
}

/// What goes wrong, and what it left behind; outlives the engine.
#[derive(Debug)]
struct Faults {
    plan: FaultPlan,
    random: SeededEntropy,
    began: Instant,
    calls: AtomicU64,
    /// Nothing goes wrong now.
    rests: AtomicBool,
    /// Numbers of the calls that were commits.
    commits: Mutex<Vec<u64>>,
    leftover: Mutex<Leftover>,
}

/// What is not certainly on disk.
#[derive(Debug, Default)]
struct Leftover {
    unsynced: Vec<Before>,
    /// Written, but its fsync failed. Nobody reads it before a reopening has decided.
    undecided: Option<Group>,
}

impl Faults {
    fn new(plan: FaultPlan) -> Arc<Self> {
        Arc::new(Self {
            random: SeededEntropy::new(plan.seed),
            began: Instant::now(),
            plan,
            calls: AtomicU64::new(0),
            rests: AtomicBool::new(false),
            commits: Mutex::default(),
            leftover: Mutex::default(),
        })
    }

    fn number(&self) -> u64 {
        let random: &dyn Entropy = &self.random;
        random.number()
    }

    /// What chance has for a read of these keys at this moment, in whatever order they are.
    fn chance_of<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> u64 {
        let now = self.began.elapsed().as_millis();
        let of_key = |key| {
            let mut hasher = DefaultHasher::new();
            (self.plan.seed, now, key).hash(&mut hasher);
            hasher.finish()
        };
        keys.map(of_key).fold(0, u64::wrapping_add)
    }

    /// Counts a call and says what goes wrong with it. `chance` decides, if anything random may.
    fn next(&self, chance: impl FnOnce() -> u64) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.rests.load(Ordering::SeqCst) {
            return None;
        }
        let planned = self.plan.at.iter().find(|(at, _)| *at == call);
        if let Some((_, fault)) = planned {
            return Some(*fault);
        }
        let chance = if self.plan.per_thousand > 0 {
            chance()
        } else {
            return None;
        };
        let all = Fault::ALL;
        let fault = all[(chance / 1_000 % all.len() as u64) as usize];
        (chance % 1_000 < self.plan.per_thousand).then_some(fault)
    }

    /// A group whose fsync failed turns out to be there or not.
    async fn decide(&self, inner: &dyn Engine) -> Result<(), EngineError> {
        let undecided = self.leftover.lock().undecided.take();
        let Some(mut group) = undecided else {
            return Ok(());
        };
        if self.number().is_multiple_of(2) {
            return Ok(());
        }
        match inner.commit(&mut group).await {
            Ok(_) => Ok(()),
            Err(CommitFailure::NotApplied(error) | CommitFailure::Unknown(error)) => {
                Err(EngineError::Backend {
                    engine: "faulty",
                    message: error.to_string(),
                })
            }
        }
    }
}

impl FaultyEngine {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Engine>, plan: FaultPlan) -> Self {
        Self::with(inner, Faults::new(plan))
    }

    fn with(inner: Arc<dyn Engine>, faults: Arc<Faults>) -> Self {
        let durable = *inner.watch().borrow();
        Self {
            inner,
            faults,
            turn: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            durable: watch::Sender::new(durable),
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.faults.calls.load(Ordering::SeqCst)
    }

    /// The database as a power loss would leave it now. This engine is closed for writing.
    ///
    /// # Errors
    /// When the wrapped engine cannot be read.
    pub async fn crash(&self) -> Result<MemoryEngine, EngineError> {
        let _turn = self.turn.lock().await;
        self.closed.store(true, Ordering::SeqCst);
        let mut unsynced = std::mem::take(&mut self.faults.leftover.lock().unsynced);
        let everything = KeyRange::everything();
        let rows = self
            .inner
            .scan(&everything, Direction::Forward, usize::MAX)
            .await?;
        let mut rows: BTreeMap<Bytes, Bytes> = rows.into_iter().collect();
        let surviving = self.faults.number() % (unsynced.len() as u64 + 1);
        let lost = unsynced.drain(surviving as usize..);
        if lost.len() > 0 {
            // What came after them is lost as well.
            self.faults.leftover.lock().undecided = None;
        }
        for before in lost.rev() {
            for (key, value) in before {
                match value {
                    Some(value) => rows.insert(key.into(), value),
                    None => rows.remove(key.as_slice()),
                };
            }
        }
        let left = MemoryEngine::with_rows(rows);
        self.faults.decide(&left).await?;
        Ok(left)
    }

    fn read_fault<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> Result<(), EngineError> {
        match self.faults.next(|| self.faults.chance_of(keys)) {
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
        self.faults.leftover.lock().unsynced.push(before);
        Ok(results)
    }

    fn unknown(&self, fault: Fault) -> CommitFailure {
        self.closed.store(true, Ordering::SeqCst);
        CommitFailure::Unknown(Arc::new(error(fault)))
    }
}

fn error(fault: Fault) -> EngineError {
    let (what, kind) = match fault {
        Fault::Error => ("cannot use", std::io::ErrorKind::Other),
        Fault::Full => ("cannot write", std::io::ErrorKind::StorageFull),
        Fault::ShortWrite => ("cannot write", std::io::ErrorKind::WriteZero),
        Fault::FailedSync | Fault::Panic => ("cannot sync", std::io::ErrorKind::Other),
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
        self.read_fault(std::iter::once(key))?;
        self.inner.get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, EngineError> {
        self.read_fault(keys.iter().map(Vec::as_slice))?;
        self.inner.multi_get(keys).await
    }

    async fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.read_fault(std::iter::once(range.start.as_slice()))?;
        self.inner.scan(range, direction, limit).await
    }

    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        let _turn = self.turn.lock().await;
        if self.closed.load(Ordering::SeqCst) {
            return Err(CommitFailure::NotApplied(Arc::new(EngineError::Closed)));
        }
        let delay = self.faults.plan.delay;
        if !self.blocks() && !delay.is_zero() {
            let most = delay.as_micros() as u64;
            let wait = self.faults.number() % (most + 1);
            tokio::time::sleep(Duration::from_micros(wait)).await;
        }
        let call = self.faults.calls.load(Ordering::SeqCst);
        self.faults.commits.lock().push(call);
        match self.faults.next(|| self.faults.number()) {
            Some(fault @ (Fault::Error | Fault::Full)) => {
                return Err(CommitFailure::NotApplied(Arc::new(error(fault))));
            }
            Some(Fault::ShortWrite) => return Err(self.unknown(Fault::ShortWrite)),
            Some(fault @ (Fault::FailedSync | Fault::Panic)) => {
                let group = Group {
                    batches: std::mem::take(&mut group.batches),
                    durability: group.durability,
                };
                self.faults.leftover.lock().undecided = Some(group);
                if fault == Fault::Panic {
                    // Without the words of the panic hook: it is on purpose.
                    std::panic::resume_unwind(Box::new("a planned panic"));
                }
                return Err(self.unknown(fault));
            }
            None => {}
        }
        let results = self.write(group).await?;
        if group.durability == Durability::Durable {
            self.faults.leftover.lock().unsynced.clear();
            self.durable.send_replace(*self.inner.watch().borrow());
        }
        Ok(results)
    }

    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        let _turn = self.turn.lock().await;
        if self.closed.load(Ordering::SeqCst) {
            return Err(EngineError::Closed);
        }
        self.read_fault(std::iter::once(range.start.as_slice()))?;
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
