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
    Memory(Mutex<Option<Arc<FaultyEngine>>>),
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
        Self {
            faults: Faults::new(plan),
            kind: Kind::Memory(Mutex::new(None)),
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

    /// What the last engine leaves behind, without faults. Nobody has it open any more.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn left(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let inner: Arc<dyn Engine> = match &self.kind {
            Kind::Memory(last) => {
                let last = last.lock().take();
                match last {
                    Some(last) => Arc::new(last.crash().await?),
                    None => Arc::new(MemoryEngine::new()),
                }
            }
            Kind::Folder(open) => open()?,
        };
        self.faults.decide(&*inner).await?;
        Ok(inner)
    }

    fn fault(&self) -> Result<(), EngineError> {
        match self.faults.next() {
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
            *last.lock() = Some(Arc::clone(&engine));
        }
        Ok(engine)
    }
}
