//! A disk with faults, and the engines opened on it one after the other.

use std::{fmt, sync::Arc, sync::atomic::Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Fault, FaultPlan, Faults, FaultyEngine, error};
use crate::{
    engine::{Engine, EngineError, OpenEngine},
    engines::memory::MemoryEngine,
};

type OpenFolder = dyn Fn() -> Result<Arc<dyn Engine>, EngineError> + Send + Sync;

/// Opens engines that go wrong as planned. Looking whether to open, and opening, are calls that
/// are counted and may fail, too.
pub struct FaultyDisk {
    faults: Arc<Faults>,
    kind: Kind,
}

enum Kind {
    /// What the last engine left is what a power loss would leave.
    Memory(Mutex<Arc<FaultyEngine>>),
    /// What the last engine left is in files.
    Folder(Box<OpenFolder>),
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = to.debug_struct("FaultyDisk");
        debug.field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl FaultyDisk {
    /// Databases in memory. Each opening crashes the engine before it.
    #[must_use]
    pub fn memory(plan: FaultPlan) -> Self {
        Self::memory_on(plan, MemoryEngine::new())
    }

    /// Like [`FaultyDisk::memory`], with what is in `first`.
    #[must_use]
    pub fn memory_on(plan: FaultPlan, first: MemoryEngine) -> Self {
        let faults = Faults::new(plan);
        let first = FaultyEngine::with(Arc::new(first), Arc::clone(&faults));
        Self {
            faults,
            kind: Kind::Memory(Mutex::new(Arc::new(first))),
        }
    }

    /// Databases in files, opened by `open`.
    #[must_use]
    pub fn folder(
        plan: FaultPlan,
        open: impl Fn() -> Result<Arc<dyn Engine>, EngineError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            faults: Faults::new(plan),
            kind: Kind::Folder(Box::new(open)),
        }
    }

    /// Calls so far, of all engines.
    pub fn calls(&self) -> u64 {
        self.faults.calls.load(Ordering::SeqCst)
    }

    /// Which of the calls were commits.
    pub fn commits(&self) -> Vec<u64> {
        self.faults.commits.lock().clone()
    }

    /// What the last engine leaves behind, without faults. Nobody has it open any more.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn left(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let inner: Arc<dyn Engine> = match &self.kind {
            Kind::Memory(last) => {
                let last = Arc::clone(&last.lock());
                Arc::new(last.crash().await?)
            }
            Kind::Folder(open) => open()?,
        };
        self.faults.decide(&*inner).await?;
        Ok(inner)
    }

    /// Has nothing go wrong for a while (`true`), or go wrong again as planned.
    pub fn rest(&self, rests: bool) {
        self.faults.rests.store(rests, Ordering::SeqCst);
    }

    /// Whoever has the last engine open writes nothing more to it, and the next one finds what a
    /// power loss leaves now. Databases in files are left as they are.
    ///
    /// # Errors
    /// When what is left cannot be read.
    pub async fn lose_power(&self) -> Result<(), EngineError> {
        if let Kind::Memory(last) = &self.kind {
            let left = self.left().await?;
            let engine = FaultyEngine::with(left, Arc::clone(&self.faults));
            *last.lock() = Arc::new(engine);
        }
        Ok(())
    }

    fn fault(&self) -> Result<(), EngineError> {
        match self.faults.next(|| self.faults.number()) {
            Some(fault @ (Fault::Error | Fault::Full)) => Err(error(fault)),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl OpenEngine for FaultyDisk {
    async fn probe(&self) -> Result<(), EngineError> {
        self.fault()
    }

    async fn open(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.fault()?;
        let engine = FaultyEngine::with(self.left().await?, Arc::clone(&self.faults));
        let engine = Arc::new(engine);
        if let Kind::Memory(last) = &self.kind {
            *last.lock() = Arc::clone(&engine);
        }
        Ok(engine)
    }
}
