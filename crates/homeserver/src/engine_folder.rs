//! The folder of the embedded engine: opened at the start, and again after the disk has failed.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use homeserver_runtime::Runtime;
use homeserver_storage::{
    Engine, EngineError, OpenEngine,
    engines::{
        fjall::{FjallEngine, FjallOptions},
        sled::SledEngine,
    },
};

/// Bytes that the disk must take before a failed engine is opened again.
const PROBE_BYTES: usize = 1024 * 1024;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Embedded {
    /// The default.
    Fjall,
    /// The other one.
    Sled,
}

impl Embedded {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fjall => "fjall",
            Self::Sled => "sled",
        }
    }
}

/// Opens an engine off the async workers: after a crash that replays a journal.
#[derive(Debug)]
pub(crate) struct EngineFolder {
    pub(crate) kind: Embedded,
    /// Of the engine alone.
    pub(crate) path: PathBuf,
    /// Bytes for the engine's own cache.
    pub(crate) cache_bytes: u64,
    pub(crate) runtime: Runtime,
}

impl EngineFolder {
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        // The pool is gone: the process is shutting down.
        let done = self.runtime.blocking.run(job).await;
        done.unwrap_or(Err(EngineError::Closed))
    }
}

#[async_trait]
impl OpenEngine for EngineFolder {
    async fn probe(&self) -> Result<(), EngineError> {
        let file = self.path.with_extension("probe");
        self.run(move || probe(&file)).await
    }

    async fn open(&self) -> Result<Arc<dyn Engine>, EngineError> {
        let (kind, path, cache_bytes) = (self.kind, self.path.clone(), self.cache_bytes);
        let open = move || -> Result<Arc<dyn Engine>, EngineError> {
            match kind {
                Embedded::Sled => Ok(Arc::new(SledEngine::open(&path)?)),
                Embedded::Fjall => {
                    let options = FjallOptions { cache_bytes };
                    Ok(Arc::new(FjallEngine::open(&path, options)?))
                }
            }
        };
        self.run(open).await
    }
}

/// Writes and removes a file.
fn probe(path: &Path) -> Result<(), EngineError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(&vec![0x5a; PROBE_BYTES])?;
        file.sync_all()
    };
    let written = write();
    // It is in the way of nothing, and is written over the next time.
    let removed = std::fs::remove_file(path);
    written.and(removed).map_err(|source| EngineError::Io {
        what: "cannot write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_takes_writes_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        probe(&folder.path().join("fjall.probe")).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_gone_takes_no_writes() {
        let folder = tempfile::tempdir().unwrap();
        let refused = probe(&folder.path().join("gone/fjall.probe"));
        assert!(
            matches!(refused, Err(EngineError::Io { .. })),
            "{refused:?}"
        );
    }
}
