//! The engine in use. It is taken away while it is opened anew: who needs it meanwhile waits.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use homeserver_runtime::Runtime;
use tokio::sync::watch;

use crate::engine::{Engine, EngineError};

/// How long a read waits for an engine that is being opened.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// How long reopening waits for reads that still use the failed engine.
const READERS_PATIENCE: Duration = Duration::from_secs(30);

/// Gives out the engine in use.
#[derive(Debug)]
pub(crate) struct Handle {
    current: watch::Sender<Option<Arc<InUse>>>,
    /// No engine will be given any more.
    gone: AtomicBool,
    /// How often the engine was replaced.
    generation: AtomicU64,
    pub(crate) name: &'static str,
    pub(crate) blocks: bool,
}

/// An engine, and who holds it.
#[derive(Debug)]
pub(crate) struct InUse {
    engine: Arc<dyn Engine>,
    /// Dropped after the engine.
    dropped: watch::Sender<()>,
}

impl Deref for InUse {
    type Target = dyn Engine;

    fn deref(&self) -> &Self::Target {
        &*self.engine
    }
}

impl InUse {
    fn new(engine: Arc<dyn Engine>) -> Arc<Self> {
        Arc::new(Self {
            engine,
            dropped: watch::Sender::default(),
        })
    }
}

impl Handle {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            name: engine.name(),
            blocks: engine.blocks(),
            current: watch::Sender::new(Some(InUse::new(engine))),
            gone: AtomicBool::new(false),
            generation: AtomicU64::new(0),
        }
    }

    /// The engine, unless it is being opened anew.
    pub(crate) fn now(&self) -> Option<Arc<InUse>> {
        self.current.borrow().clone()
    }

    /// The engine. Waits a while if it is being opened anew.
    pub(crate) async fn engine(&self) -> Result<Arc<InUse>, EngineError> {
        if let Some(engine) = self.now() {
            return Ok(engine);
        }
        let mut current = self.current.subscribe();
        let over =
            |engine: &Option<Arc<InUse>>| engine.is_some() || self.gone.load(Ordering::SeqCst);
        let given = tokio::time::timeout(READ_PATIENCE, current.wait_for(over)).await;
        match given {
            Ok(Ok(engine)) => engine.clone().ok_or(EngineError::Closed),
            _ => Err(EngineError::Closed),
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Drops the engine; resolves when nobody reads from it any more. It stays if somebody does so
    /// for too long.
    pub(crate) async fn take_away(&self, runtime: &Runtime) -> Result<(), EngineError> {
        let Some(engine) = self.current.send_replace(None) else {
            return Ok(());
        };
        let mut dropped = engine.dropped.subscribe();
        let again = Arc::downgrade(&engine);
        // Dropping an engine may wait for its threads.
        let _ = runtime.blocking.run(move || drop(engine)).await;
        if tokio::time::timeout(READERS_PATIENCE, dropped.changed())
            .await
            .is_ok()
        {
            return Ok(());
        }
        self.current.send_replace(again.upgrade());
        Err(EngineError::Backend {
            engine: self.name,
            message: "somebody reads from the failed engine for too long".to_owned(),
        })
    }

    /// If there is no engine now, there will be none: nobody waits for it any more.
    pub(crate) fn give_up(&self) {
        self.gone.store(true, Ordering::SeqCst);
        // Wakes those who wait.
        self.current.send_modify(|_| {});
    }

    /// Puts an engine that was opened anew into use.
    pub(crate) fn give(&self, engine: Arc<dyn Engine>) {
        // First, so that nobody who has read from the new one takes the old generation's word.
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.current.send_replace(Some(InUse::new(engine)));
    }
}
