//! What a backend implements, and all it implements.
//!
//! # The contract
//! - One ordered keyspace of bytes. Reads see the latest applied writes; there are no snapshots,
//!   readers bound themselves by positions.
//! - [`Engine::commit`] takes a group of batches, in order. It reads the asserted keys, lets
//!   [`judge`](crate::judge) decide, and writes what remains atomically; durably if the group is
//!   [`Durability::Durable`]. Groups become visible and durable in the order of the calls: a crash
//!   keeps a prefix. Several processes on one engine see one order of positions, without gaps.
//! - A durable group is read by nobody before it is on disk, and by nobody as long as its outcome
//!   is unknown: what was read, a crash does not take back. (Lazy ones may be lost after they were
//!   read; the store writes them again after a reopening.)
//! - The outcome is `Ok` (written, durable if asked), [`CommitFailure::NotApplied`] (nothing of it
//!   is or will be there) or [`CommitFailure::Unknown`] (a reopening decides). After `Unknown` the
//!   engine refuses all commits.
//! - [`Engine::watch`] tells the durable position; another process's commits too, where there are
//!   other processes. A lost wake-up costs latency only.
//! - [`Engine::drop_range`] is idempotent, resumable and not atomic.
//! - An engine that [`blocks`](Engine::blocks) waits for its disk on the calling thread: its futures
//!   are ready when first polled. The store calls its writes and long reads on the blocking pool.

use std::{fmt::Debug, path::Path, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::{AssertRef, Batch, Position};

/// A backend. See the module for the contract.
#[async_trait]
pub trait Engine: Debug + Send + Sync + 'static {
    /// Its name in the configuration and in messages.
    fn name(&self) -> &'static str;

    /// Whether calls wait for a disk on the calling thread.
    fn blocks(&self) -> bool;

    /// The value of a key.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// The values of keys, in the order of the keys.
    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, EngineError>;

    /// The first `limit` rows of `range` in `direction`.
    async fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError>;

    /// Judges and writes a group; the results are in the order of its batches.
    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure>;

    /// Removes every key of a range that nothing names any more.
    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError>;

    /// The durable position, and news of it.
    fn watch(&self) -> watch::Receiver<Position>;

    /// Writes a copy of everything, as of the last commit, into the empty or missing folder `into`.
    /// No commit runs meanwhile.
    async fn checkpoint(&self, into: &Path) -> Result<(), EngineError>;

    /// Nothing was committed for a while: a chance to make the next start-up short.
    async fn idle(&self) -> Result<(), EngineError>;

    /// Makes everything durable and the next start-up short. Commits after it are refused.
    async fn close(&self) -> Result<(), EngineError>;
}

/// Opens an engine whose only user is this process: at the start, and again after a commit whose
/// outcome is unknown.
#[async_trait]
pub trait OpenEngine: Debug + Send + Sync + 'static {
    /// Whether opening may succeed now: the disk takes writes again. The failed engine is still
    /// there and read from; it is given up for a promising attempt only.
    async fn probe(&self) -> Result<(), EngineError>;

    /// Opens it, with everything that recovery after a crash does. The one before is dropped. What
    /// is read from it is on disk, even where the failure left it in the system's cache only.
    async fn open(&self) -> Result<Arc<dyn Engine>, EngineError>;
}

/// Whether the answer waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Answered after the fsync.
    Durable,
    /// Answered when applied; may be lost by a crash together with everything after it. Takes no
    /// position. For consumer cursors and the like.
    Lazy,
}

/// Batches to be judged in order and written together.
#[derive(Debug)]
pub struct Group {
    /// In the order of their submission.
    pub batches: Vec<Batch>,
    /// Durable if any of them is.
    pub durability: Durability,
}

/// What became of one batch of a group that was written.
pub type BatchResult = Result<Committed, Conflict>;

/// A batch is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The position of each append, in their order; see [`AppendRef::index`](crate::AppendRef).
    pub positions: SmallVec<[Position; 2]>,
}

/// A batch was dropped because of an assert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The first assert that does not hold.
    pub assert: AssertRef,
    /// The bytes of the row that is there.
    pub found: Option<Bytes>,
}

/// A group was not, or not certainly, written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitFailure {
    /// Nothing of it is in the store, nor will be.
    #[error("nothing was written")]
    NotApplied(#[source] Arc<EngineError>),
    /// Only reopening the store tells whether it is there.
    #[error("it is not known whether it was written")]
    Unknown(#[source] Arc<EngineError>),
}

impl CommitFailure {
    /// Whether the engine takes no more commits.
    pub fn ends_the_engine(&self) -> bool {
        match self {
            Self::Unknown(_) => true,
            Self::NotApplied(error) => matches!(**error, EngineError::Closed),
        }
    }
}

/// Which way a scan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Greatest key first.
    Backward,
}

/// Keys from `start`, included, to `end`, excluded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// The smallest key that may be in it.
    pub start: Vec<u8>,
    /// The smallest key beyond it.
    pub end: Vec<u8>,
}

impl KeyRange {
    /// Every key of a database.
    pub fn everything() -> Self {
        // Tables are never numbered 255, so this is beyond every key.
        Self {
            start: Vec::new(),
            end: vec![u8::MAX],
        }
    }

    /// Keys that begin with `start`.
    pub fn prefix(start: Vec<u8>) -> Self {
        let mut end = start.clone();
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => return Self::everything(),
        }
        Self { start, end }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Leaves out keys smaller than `start`.
    pub fn raise_start(&mut self, start: Vec<u8>) {
        if start > self.start {
            self.start = start;
        }
    }

    /// Leaves out keys from `end` on.
    pub fn lower_end(&mut self, end: Vec<u8>) {
        if end < self.end {
            self.end = end;
        }
    }
}

/// An engine cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The operating system said no.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done, as in "cannot read".
        what: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// What is on disk is damaged.
    #[error("{} is damaged: {why}; `homeserver storage recover` saves what is whole", file.display())]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The database's folder.
        path: PathBuf,
    },
    /// It was closed, or closed itself after a failure.
    #[error("the storage engine is closed for writing")]
    Closed,
    /// The backend's own words.
    #[error("{engine}: {message}")]
    Backend {
        /// Which engine.
        engine: &'static str,
        /// What it said.
        message: String,
    },
    /// This engine has no such operation.
    #[error("the {engine} engine cannot {what}")]
    Unsupported {
        /// Which engine.
        engine: &'static str,
        /// What it cannot do.
        what: &'static str,
    },
}
