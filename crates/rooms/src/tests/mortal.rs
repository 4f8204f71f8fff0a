//! Processes that are killed: an engine that carries out so many durable commits and no more.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use homeserver_storage::{
    Bytes, Direction, Durability, Engine, EngineError,
    engine::{BatchResult, CommitFailure, Group, KeyRange},
    engines::{
        faulty::{FaultPlan, FaultyEngine},
        memory::MemoryEngine,
    },
};
use tokio::sync::watch;

/// The view of one process on a database that outlives it.
#[derive(Debug)]
pub(super) struct MortalEngine {
    inner: Arc<dyn Engine>,
    /// Commits that are left to it.
    left: AtomicU64,
    /// Whether those count that need not be on disk.
    lazy_too: bool,
}

impl MortalEngine {
    pub(super) fn new(inner: Arc<dyn Engine>, commits: u64) -> Arc<Self> {
        let (left, lazy_too) = (AtomicU64::new(commits), false);
        Arc::new(Self {
            inner,
            left,
            lazy_too,
        })
    }

    /// One whose life is measured in commits of all kinds.
    pub(super) fn of_any_commits(inner: Arc<dyn Engine>, commits: u64) -> Arc<Self> {
        let (left, lazy_too) = (AtomicU64::new(commits), true);
        Arc::new(Self {
            inner,
            left,
            lazy_too,
        })
    }

    /// From now on, so many durable commits are left.
    pub(super) fn leave(&self, commits: u64) {
        self.left.store(commits, Ordering::SeqCst);
    }

    fn dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }
}

/// Another database with the same rows.
pub(super) async fn copy(engine: &Arc<MemoryEngine>) -> Arc<MemoryEngine> {
    let inner = Arc::clone(engine);
    let copying = FaultyEngine::new(inner, FaultPlan::none(1));
    Arc::new(copying.crash().await.unwrap())
}

#[async_trait]
impl Engine for MortalEngine {
    fn name(&self) -> &'static str {
        "mortal"
    }

    fn blocks(&self) -> bool {
        self.inner.blocks()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, EngineError> {
        self.inner.multi_get(keys).await
    }

    async fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.inner.scan(range, direction, limit).await
    }

    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        if self.dead() {
            return Err(CommitFailure::NotApplied(Arc::new(EngineError::Closed)));
        }
        if self.lazy_too || group.durability == Durability::Durable {
            self.left.fetch_sub(1, Ordering::SeqCst);
        }
        self.inner.commit(group).await
    }

    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        if self.dead() {
            return Err(EngineError::Closed);
        }
        self.inner.drop_range(range).await
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.inner.watch()
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
