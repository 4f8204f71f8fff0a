//! Engines that block, of which the first to be opened again panics when it is read.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;

use super::*;
use crate::{
    Direction,
    engine::{BatchResult, KeyRange},
};

/// Opens them on a disk.
#[derive(Debug)]
pub(super) struct StartledDisk {
    pub(super) disk: FaultyDisk,
    pub(super) opened: AtomicU64,
}

#[async_trait]
impl OpenEngine for StartledDisk {
    async fn probe(&self) -> Result<(), EngineError> {
        self.disk.probe().await
    }

    async fn open(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let inner = self.disk.open().await?;
        let panics = self.opened.fetch_add(1, Ordering::SeqCst) == 1;
        Ok(Arc::new(Startled { inner, panics }))
    }
}

#[derive(Debug)]
struct Startled {
    inner: Arc<dyn Engine>,
    panics: bool,
}

#[async_trait]
impl Engine for Startled {
    fn name(&self) -> &'static str {
        "startled"
    }

    fn blocks(&self) -> bool {
        true
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if self.panics {
            // Without the words of the panic hook: it is on purpose.
            std::panic::resume_unwind(Box::new("a planned panic"));
        }
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
        self.inner.commit(group).await
    }

    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        self.inner.drop_range(range).await
    }

    fn watch(&self) -> watch::Receiver<Position> {
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
