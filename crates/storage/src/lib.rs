//! Ordered key-value store with atomic asserted batches, the journal and blobs; and its engines.
//!
//! What everybody works with is [`Store`]: typed [`Table`]s are read from it, a [`Batch`] of
//! changes is committed to it, and everything that happens is appended to its [`Journal`]. Below
//! it is an [`Engine`], which only knows bytes: in memory, embedded on local files, or shared by
//! several processes.
//!
//! This crate knows nothing of Matrix. It implements the section "Storage" of
//! `docs/contracts.md`; where the two differ, one of them is wrong.

pub mod batch;
pub mod blobs;
mod committer;
pub mod cursor;
pub mod engine;
pub mod engines;
#[cfg(test)]
mod fuzz;
mod handle;
pub mod journal;
pub mod judge;
pub mod key;
pub mod maintenance;
pub mod migrations;
pub mod numbers;
pub mod row;
mod store;
mod system;
pub mod table;

pub use batch::{AppendRef, AssertRef, Batch, TooLarge};
pub use blobs::{BlobError, BlobId, BlobStore, FileBlobs, MemoryBlobs, StoredBlob};
pub use bytes::Bytes;
pub use committer::{CommitError, Committed, Durability, Ticket};
pub use cursor::Cursor;
pub use engine::{Direction, Engine, EngineError, OpenEngine};
pub use journal::{Entry, EntryKind, Journal, Topic};
pub use key::{At, DecodeError, Key, KeyReader, KeyWriter, Reverse64, ToKey};
pub use numbers::{Interner, NumberKind, USERS};
pub use row::{Positioned, Row, RowWriter};
pub use store::{OpenError, StorageError, Store};
pub use system::TABLES;
pub use table::{ScanRange, Table, TableSpec};

/// A place in the journal's total order. Dense; 0 is before everything, the first append is 1.
pub type Position = u64;
