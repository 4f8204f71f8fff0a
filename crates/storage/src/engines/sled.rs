//! sled 0.34: embedded; selectable, tested like the default.
//!
//! Its own `flush` ends in `sync_file_range` on Linux, which survives a kill but no power loss:
//! after the flush this engine calls `fdatasync` on its own handle of sled's one file. sled's
//! recovery can leave a batch torn, or one missing before others, when its file is damaged: every
//! group writes a marker of what it did, and the last ones are compared with the rows at open.
//! What sled has applied can be read before it is on disk: `replaced` hides it until it is.

mod marker;

use std::{
    collections::BTreeSet,
    fs::File,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use self::marker::Markers;
use super::{
    local::{LOCK_WAIT, Local, lock_folder, write_again},
    replaced::{Before, Replaced},
};
use crate::{
    Position,
    engine::{
        BatchResult, CommitFailure, Direction, Durability, Engine, EngineError, Group, KeyRange,
    },
    judge::WriteSet,
    system::POSITION_KEY,
};

const NAME: &str = "sled";
/// Rows removed by one write of [`Engine::drop_range`].
const DROP_STEP: usize = 1_000;
/// How often opening waits for sled's own lock. No other process can hold it, only the threads of
/// a database that this one closed a moment ago.
const SLED_LOCK_TRIES: u32 = 500;
/// Bytes of keys and values that are read at the next start without a word (a tenth of a second).
const MUCH_WRITTEN: usize = 16 * 1024 * 1024;
/// Bytes of pages kept in memory.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// A database of sled in one folder.
pub struct SledEngine {
    path: PathBuf,
    database: sled::Db,
    /// sled's one file, to be synced.
    file: File,
    local: Local,
    replaced: Replaced,
    markers: Mutex<Markers>,
    /// Dropped last, when sled has let go of its file.
    end: End,
}

impl std::fmt::Debug for SledEngine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("SledEngine");
        debug.field("path", &self.path).finish_non_exhaustive()
    }
}

impl SledEngine {
    /// Opens the database in the folder `path`, or makes one there. Blocks.
    ///
    /// # Errors
    /// [`EngineError::InUse`] when another process has it open, [`EngineError::Damaged`] when a
    /// batch is torn or missing, or the file cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EngineError> {
        let engine = Self::open_unchecked(path.as_ref())?;
        let last = engine.local.last();
        super::local::check_last_position(&engine, last, &engine.file_path())?;
        let markers = Markers::check(&engine).map_err(|why| engine.damaged(&why))?;
        *engine.markers.lock() = markers;
        Ok(engine)
    }

    /// Takes back torn batches and what came after them; gives what was done, in words.
    pub(crate) fn repair(path: &Path) -> Result<Vec<String>, EngineError> {
        let engine = Self::open_unchecked(path)?;
        let undone = marker::undo(&engine).map_err(|why| engine.damaged(&why))?;
        if undone == 0 {
            return Ok(Vec::new());
        }
        let forgotten = quietly(|| {
            marker::forget(&engine)?;
            engine.database.flush()
        });
        forgotten.map_err(|error| translate(&engine.path, error))?;
        engine.sync()?;
        Ok(vec![format!(
            "the last {undone} groups of batches were taken back"
        )])
    }

    /// Opens without comparing the markers with the rows, to save what can be read.
    pub(crate) fn open_unchecked(path: &Path) -> Result<Self, EngineError> {
        let path = path.to_owned();
        Ending::wait(&path);
        let lock = lock_folder(&path)?;
        write_unclean_again(&lock, &path)?;
        let (database, file) = open_database(&path)?;
        let last =
            quietly(|| database.get(POSITION_KEY)).map_err(|error| translate(&path, error))?;
        let last = Local::position(last.as_deref()).ok_or_else(|| EngineError::Damaged {
            file: path.join("db"),
            why: "its position counter is not a number".to_owned(),
        })?;
        Ok(Self {
            end: End {
                path: path.clone(),
                lock,
                written: AtomicUsize::new(0),
                closed: AtomicBool::new(false),
            },
            path,
            database,
            file,
            local: Local::new(last),
            replaced: Replaced::default(),
            markers: Mutex::default(),
        })
    }

    fn file_path(&self) -> PathBuf {
        self.path.join("db")
    }

    fn damaged(&self, why: &str) -> EngineError {
        EngineError::Damaged {
            file: self.file_path(),
            why: why.to_owned(),
        }
    }

    fn lookup(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = quietly(|| self.database.get(key));
        let found = found.map_err(|error| translate(&self.path, error))?;
        let found = found.map(|value| Bytes::copy_from_slice(&value));
        Ok(self.replaced.value(key, found))
    }

    fn write(&self, writes: &WriteSet<'_>, durability: Durability) -> Result<(), EngineError> {
        let before = |(key, _): &(&[u8], _)| Ok((key.to_vec(), self.lookup(key)?));
        let before: Result<Before, EngineError> = writes.writes.iter().map(before).collect();
        let before = before?;
        let mut batch = sled::Batch::default();
        self.markers.lock().next(writes, &before, &mut batch);
        self.replaced.hide(before);
        for (key, value) in &writes.writes {
            let bytes = key.len() + value.map_or(0, <[u8]>::len);
            self.end.written.fetch_add(bytes, Ordering::Relaxed);
            match value {
                Some(value) => batch.insert(*key, *value),
                None => batch.remove(*key),
            }
        }
        let applied = quietly(|| {
            self.database.apply_batch(batch)?;
            if durability == Durability::Durable {
                self.database.flush()?;
            }
            Ok(())
        });
        applied.map_err(|error| translate(&self.path, error))?;
        if durability == Durability::Durable {
            self.sync()?;
        }
        self.replaced.show();
        Ok(())
    }

    /// The first `limit` rows that sled has, on disk or not.
    fn scan_applied(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let rows = quietly(|| {
            let within = self
                .database
                .range(range.start.as_slice()..range.end.as_slice());
            let visible = |row: &sled::Result<(sled::IVec, sled::IVec)>| !matches!(row, Ok((key, _)) if marker::is_marker(key));
            match direction {
                Direction::Forward => within.filter(visible).take(limit).collect(),
                Direction::Backward => within.rev().filter(visible).take(limit).collect(),
            }
        });
        let rows: Vec<_> = rows.map_err(|error| translate(&self.path, error))?;
        let owned = |(key, value): (sled::IVec, sled::IVec)| {
            (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))
        };
        Ok(rows.into_iter().map(owned).collect())
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.file.sync_data().map_err(|source| EngineError::Io {
            what: "cannot sync",
            path: self.file_path(),
            source,
        })
    }
}

/// Opens sled in a folder, and makes durable what it made or changed in doing so.
fn open_database(path: &Path) -> Result<(sled::Db, File), EngineError> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES);
    let mut tries = 0;
    let database = loop {
        match quietly(|| config.open()).map_err(|error| translate(path, error)) {
            Err(EngineError::InUse { .. }) if tries < SLED_LOCK_TRIES => {
                tries += 1;
                std::thread::park_timeout(LOCK_WAIT);
            }
            opened => break opened?,
        }
    };
    let failed = |what| {
        let path = path.join("db");
        move |source| EngineError::Io { what, path, source }
    };
    let file = File::open(path.join("db")).map_err(failed("cannot open"))?;
    file.sync_all().map_err(failed("cannot sync"))?;
    super::local::sync_folder(path)?;
    Ok((database, file))
}

/// The lock of the folder, and what is done before it is given back.
///
/// sled notes where its pages are only when it is opened; a start reads all that was written since.
/// Where that is much, it is read at the end of a database that was closed well.
struct End {
    path: PathBuf,
    /// Not empty unless the database was closed well.
    lock: File,
    /// Bytes of keys and values since the database was opened.
    written: AtomicUsize,
    closed: AtomicBool,
}

impl Drop for End {
    fn drop(&mut self) {
        let closed = self.closed.load(Ordering::SeqCst);
        if !closed || self.written.load(Ordering::Relaxed) < MUCH_WRITTEN {
            return;
        }
        let _ending = Ending::begin(&self.path);
        // Not clean meanwhile, since sled writes when it is opened, and one of its own syncs may
        // fail: killed here, the next start has to write the file again.
        let noted = mark(&self.lock, &self.path, UNCLEAN).and_then(|()| {
            // Dropped by sled in its own time; the next to open it waits for that.
            let (database, file) = open_database(&self.path)?;
            quietly(|| database.flush()).map_err(|error| translate(&self.path, error))?;
            drop(database);
            let path = self.path.join("db");
            let failed = |source| EngineError::Io {
                what: "cannot sync",
                path,
                source,
            };
            file.sync_data().map_err(failed)?;
            mark(&self.lock, &self.path, CLEAN)
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "the next start of the database will take longer");
        }
    }
}

/// The folders of databases that are read at their end now, with their locks held.
static ENDING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
/// One was removed from them.
static ENDED: Condvar = Condvar::new();

/// The time in which the end of a database reads it.
struct Ending(PathBuf);

impl Ending {
    fn begin(path: &Path) -> Self {
        ENDING.lock().insert(path.to_owned());
        Self(path.to_owned())
    }

    /// Waits for the end of a database in `path` that this process closed a moment ago, at most as
    /// long as for sled's own lock.
    fn wait(path: &Path) {
        let most = LOCK_WAIT * SLED_LOCK_TRIES;
        ENDED.wait_while_for(&mut ENDING.lock(), |ending| ending.contains(path), most);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        ENDING.lock().remove(&self.0);
        ENDED.notify_all();
    }
}

/// Length of the lock file while the database is in use, and after an unclean end.
const UNCLEAN: u64 = 1;
/// Its length after a clean close.
const CLEAN: u64 = 0;

/// Writes the file of a database that was not closed well again: a failed fsync may have left it
/// in the system's cache only. The mark need not be durable, since a power loss takes that cache.
fn write_unclean_again(lock: &File, path: &Path) -> Result<(), EngineError> {
    let file = path.join("db");
    let failed = |source| EngineError::Io {
        what: "cannot read",
        path: file.clone(),
        source,
    };
    let unclean = lock.metadata().map_err(failed)?.len() != CLEAN;
    if unclean && file.exists() {
        // Against threads of a database that this process closed a moment ago, which may write.
        let held = File::open(&file).map_err(failed)?;
        let mut tries = 0;
        while let Err(error) = held.try_lock() {
            if tries == SLED_LOCK_TRIES {
                return Err(failed(error.into()));
            }
            tries += 1;
            std::thread::park_timeout(LOCK_WAIT);
        }
        let length = held.metadata().map_err(failed)?.len();
        write_again(&file, length)?;
    }
    mark(lock, path, UNCLEAN)
}

fn mark(lock: &File, path: &Path, length: u64) -> Result<(), EngineError> {
    lock.set_len(length).map_err(|source| EngineError::Io {
        what: "cannot mark the lock of",
        path: path.to_owned(),
        source,
    })
}

/// Runs a call of sled, which asserts what a damaged file can break; a panic is an error here.
fn quietly<T>(call: impl FnOnce() -> sled::Result<T>) -> sled::Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(sled::Error::ReportableBug(
            "sled gave up reading its file".to_owned(),
        ))
    })
}

/// An error of sled on the database in `path`.
fn translate(path: &Path, error: sled::Error) -> EngineError {
    let file = path.join("db");
    let message = error.to_string();
    match error {
        sled::Error::Io(source) if message.contains("could not acquire lock") => {
            drop(source);
            EngineError::InUse {
                path: path.to_owned(),
            }
        }
        sled::Error::Io(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            EngineError::Io {
                what: "cannot use",
                path: file,
                source,
            }
        }
        _ => EngineError::Damaged { file, why: message },
    }
}

#[async_trait]
impl Engine for SledEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn blocks(&self) -> bool {
        true
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.lookup(key)
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, EngineError> {
        keys.iter().map(|key| self.lookup(key)).collect()
    }

    async fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let scan = |limit| self.scan_applied(range, direction, limit);
        self.replaced.rows(range, direction, limit, scan)
    }

    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        let read = |key: &[u8]| self.lookup(key);
        self.local.commit(group, read, |writes, durability| {
            let written = self.write(writes, durability);
            written.map_err(|error| CommitFailure::Unknown(Arc::new(error)))
        })
    }

    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        loop {
            let rows = self.scan(range, Direction::Forward, DROP_STEP).await?;
            if rows.is_empty() {
                return Ok(());
            }
            let writes = WriteSet {
                writes: rows.iter().map(|(key, _)| (key.as_ref(), None)).collect(),
            };
            self.local
                .between_commits(|| self.write(&writes, Durability::Durable))?;
        }
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.local.watch()
    }

    async fn checkpoint(&self, into: &Path) -> Result<(), EngineError> {
        let copy = Self::open(into)?;
        super::local::copy_rows(self, |writes| {
            copy.write(&WriteSet { writes }, Durability::Lazy)
        })
        .await?;
        copy.close().await?;
        // It is not read at its end: commits wait for this.
        copy.end.written.store(0, Ordering::Relaxed);
        Ok(())
    }

    async fn idle(&self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), EngineError> {
        if !self.local.close() {
            return Ok(());
        }
        let flushed = quietly(|| self.database.flush());
        flushed.map_err(|error| translate(&self.path, error))?;
        self.sync()?;
        mark(&self.end.lock, &self.path, CLEAN)?;
        self.end.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
