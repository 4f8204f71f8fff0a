//! What the databases of the servers lie on: memory that never fails, or a disk that does, and that
//! loses what was not synced when its server is killed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use homeserver::{
    HomeserverBuilder,
    storage::{
        Engine, EngineError, OpenEngine,
        engines::{
            faulty::{FaultPlan, FaultyDisk},
            memory::MemoryEngine,
        },
    },
};

/// Calls of an engine of a thousand that fail: reads, scans, commits. A seed makes some tens of
/// thousands of calls.
const FAILING: u64 = 2;
/// The longest that a commit takes.
const SLOWEST: Duration = Duration::from_millis(20);

/// Where a database lies.
#[derive(Debug)]
pub(super) enum Disk {
    Sound(Arc<MemoryEngine>),
    Faulty(Arc<FaultyDisk>),
}

impl Disk {
    pub(super) fn sound() -> Self {
        Self::Sound(Arc::new(MemoryEngine::new()))
    }

    /// A disk that fails as the seed says, once it may.
    pub(super) fn faulty(seed: u64) -> Self {
        let plan = FaultPlan {
            per_thousand: FAILING,
            delay: SLOWEST,
            ..FaultPlan::none(seed)
        };
        let disk = FaultyDisk::memory(plan);
        disk.rest(true);
        Self::Faulty(Arc::new(disk))
    }

    /// Whether it fails from now on.
    pub(super) fn fails(&self, fails: bool) {
        if let Self::Faulty(disk) = self {
            disk.rest(!fails);
        }
    }

    /// Has a homeserver use it until `cut`.
    pub(super) fn under(
        &self,
        builder: HomeserverBuilder,
        cut: &Arc<AtomicBool>,
    ) -> HomeserverBuilder {
        match self {
            Self::Sound(engine) => builder.engine(Arc::clone(engine) as _),
            Self::Faulty(disk) => builder.engine_opened_by(Arc::new(Lease {
                disk: Arc::clone(disk),
                cut: Arc::clone(cut),
            })),
        }
    }

    /// Nothing that is not synced by now is there any more.
    pub(super) async fn lose_power(&self) {
        if let Self::Faulty(disk) = self {
            disk.lose_power().await.expect("memory can be read");
        }
    }
}

/// The right of one start of a server to the disk: a server that was killed opens nothing anew.
#[derive(Debug)]
struct Lease {
    disk: Arc<FaultyDisk>,
    cut: Arc<AtomicBool>,
}

impl Lease {
    fn check(&self) -> Result<(), EngineError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(EngineError::Closed);
        }
        Ok(())
    }
}

#[async_trait]
impl OpenEngine for Lease {
    async fn probe(&self) -> Result<(), EngineError> {
        self.check()?;
        self.disk.probe().await
    }

    async fn open(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.check()?;
        self.disk.open().await
    }
}
