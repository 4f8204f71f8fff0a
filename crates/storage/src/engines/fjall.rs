//! fjall 3: embedded, log-structured; the default engine.
//!
//! One keyspace holds everything. A group is one fjall batch, made durable by `fdatasync` of
//! fjall's journal before it becomes visible. fjall replays its journal at start, so the journal is
//! kept at fjall's minimum and memtables are small, written out when the store is idle and when it
//! is closed. Before fjall sees the journal it is read by `journal_check`: fjall itself would
//! silently drop everything from a damaged place on.

mod journal_check;
mod version_check;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::sync::watch;

use super::local::{Local, lock_folder};
use crate::{
    Position,
    engine::{
        BatchResult, CommitFailure, Direction, Durability, Engine, EngineError, Group, KeyRange,
    },
    judge::WriteSet,
    system::POSITION_KEY,
};

const NAME: &str = "fjall";
/// fjall's smallest allowed value: more journal than this makes it write memtables out.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of rows kept in memory before they are written out as a table.
const MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
/// How often closing looks whether the memtables are written, and for how long.
const FLUSH_POLL: Duration = Duration::from_millis(5);
const FLUSH_POLLS: usize = 6_000;
/// Rows removed by one write of [`Engine::drop_range`].
const DROP_STEP: usize = 1_000;

/// How to run fjall.
#[derive(Debug, Clone, Copy)]
pub struct FjallOptions {
    /// Bytes of blocks kept in memory.
    pub cache_bytes: u64,
}

impl Default for FjallOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 * 1024 * 1024,
        }
    }
}

/// A database of fjall in one folder.
pub struct FjallEngine {
    path: PathBuf,
    options: FjallOptions,
    database: Database,
    rows: Keyspace,
    local: Local,
    /// Given back last.
    _lock: File,
}

impl std::fmt::Debug for FjallEngine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("FjallEngine");
        debug.field("path", &self.path).finish_non_exhaustive()
    }
}

impl FjallEngine {
    /// Opens the database in the folder `path`, or makes one there. Blocks.
    ///
    /// # Errors
    /// [`EngineError::InUse`] when another process has it open, [`EngineError::Damaged`] when its
    /// files are damaged in a way that loses commits.
    pub fn open(path: impl AsRef<Path>, options: FjallOptions) -> Result<Self, EngineError> {
        let path = path.as_ref().to_owned();
        let error = |error| translate(&path, error);
        let lock = lock_folder(&path)?;
        journal_check::check(&path)?;
        version_check::check(&path)?;
        // fjall and its tables assert what a damaged file can break.
        let opened = std::panic::catch_unwind(|| {
            let database = Database::builder(&path)
                .cache_size(options.cache_bytes)
                .max_journaling_size(JOURNAL_BYTES)
                .manual_journal_persist(true)
                .open()?;
            let rows = database.keyspace("rows", || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(MEMTABLE_BYTES)
                    .manual_journal_persist(true)
            })?;
            let last = rows.get(POSITION_KEY)?;
            Ok((database, rows, last))
        });
        let (database, rows, last) = match opened {
            Ok(opened) => opened.map_err(error)?,
            Err(_) => return Err(damaged(&path, "fjall cannot open it")),
        };
        let last = Local::position(last.as_deref())
            .ok_or_else(|| damaged(&path, "its position counter is not a number"))?;
        super::local::sync_folder(&path)?;
        let engine = Self {
            path,
            options,
            database,
            rows,
            local: Local::new(last),
            _lock: lock,
        };
        super::local::check_last_position(&engine, last, &engine.path)?;
        Ok(engine)
    }

    /// Cuts the journal where it is damaged; gives what was done, in words.
    pub(crate) fn repair(path: &Path) -> Result<Vec<String>, EngineError> {
        let _lock = lock_folder(path)?;
        journal_check::cut_damage(path)
    }

    fn write(&self, writes: &WriteSet<'_>, durability: Durability) -> Result<(), fjall::Error> {
        let mode = match durability {
            Durability::Durable => PersistMode::SyncData,
            // Handed to the operating system: a kill of this process does not lose it.
            Durability::Lazy => PersistMode::Buffer,
        };
        let mut batch =
            fjall::OwnedWriteBatch::with_capacity(self.database.clone(), writes.writes.len())
                .durability(Some(mode));
        for (key, value) in &writes.writes {
            match value {
                Some(value) => batch.insert(&self.rows, *key, *value),
                None => batch.remove(&self.rows, *key),
            }
        }
        batch.commit()
    }

    fn lookup(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = self.rows.get(key).map_err(|error| self.read_error(error))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn read_error(&self, error: fjall::Error) -> EngineError {
        translate(&self.path, error)
    }

    /// Writes memtables out as tables and waits for it. Gives whether nothing is left in memory.
    fn rotate(&self) -> Result<bool, EngineError> {
        let rotate = || {
            let rotated = self.rows.rotate_memtable();
            rotated.map_err(|error| self.read_error(error))
        };
        rotate()?;
        for _ in 0..FLUSH_POLLS {
            if self.rows.sealed_memtable_count() == 0 {
                // There is nothing to rotate where nothing was written meanwhile.
                return Ok(!rotate()?);
            }
            std::thread::park_timeout(FLUSH_POLL);
        }
        Ok(false)
    }
}

fn damaged(path: &Path, why: &str) -> EngineError {
    EngineError::Damaged {
        file: path.to_owned(),
        why: why.to_owned(),
    }
}

/// Whether fjall got this from reading its files wrong, not from the disk: a damaged file names
/// others that are not there, or lengths beyond its end.
fn is_damage(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(kind, InvalidData | InvalidInput | NotFound | UnexpectedEof)
}

/// An error of fjall on the database in `path`.
fn translate(path: &Path, error: fjall::Error) -> EngineError {
    let message = error.to_string();
    match error {
        fjall::Error::Locked => EngineError::InUse {
            path: path.to_owned(),
        },
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source))
            if !is_damage(source.kind()) =>
        {
            EngineError::Io {
                what: "cannot use database",
                path: path.to_owned(),
                source,
            }
        }
        fjall::Error::Poisoned | fjall::Error::KeyspaceDeleted => EngineError::Backend {
            engine: NAME,
            message,
        },
        _ => damaged(path, &message),
    }
}

#[async_trait]
impl Engine for FjallEngine {
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
        let within = self
            .rows
            .range(range.start.as_slice()..range.end.as_slice());
        let owned = |row: fjall::Guard| {
            let (key, value) = row.into_inner().map_err(|error| self.read_error(error))?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        };
        match direction {
            Direction::Forward => within.take(limit).map(owned).collect(),
            Direction::Backward => within.rev().take(limit).map(owned).collect(),
        }
    }

    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        let read = |key: &[u8]| self.lookup(key);
        self.local.commit(group, read, |writes, durability| {
            let written = self.write(writes, durability);
            written.map_err(|error| CommitFailure::Unknown(Arc::new(self.read_error(error))))
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
            self.local.between_commits(|| {
                let written = self.write(&writes, Durability::Durable);
                written.map_err(|error| self.read_error(error))
            })?;
        }
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.local.watch()
    }

    async fn checkpoint(&self, into: &Path) -> Result<(), EngineError> {
        let copy = Self::open(into, self.options)?;
        super::local::copy_rows(self, |rows| {
            let writes = WriteSet { writes: rows };
            copy.write(&writes, Durability::Lazy)
                .map_err(|error| copy.read_error(error))
        })
        .await?;
        copy.close().await
    }

    async fn idle(&self) -> Result<(), EngineError> {
        self.rotate().map(drop)
    }

    async fn close(&self) -> Result<(), EngineError> {
        if !self.local.close() {
            return Ok(());
        }
        let synced = self.database.persist(PersistMode::SyncAll);
        synced.map_err(|error| self.read_error(error))?;
        if !self.rotate()? {
            return Err(EngineError::Backend {
                engine: NAME,
                message: "cannot write its memory out as tables".to_owned(),
            });
        }
        // Everything is in tables, and nothing is written any more: the next start needs no
        // journal. fjall drops journals that it has sealed on the same condition.
        journal_check::empty_newest(&self.path)
    }
}
