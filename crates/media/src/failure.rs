//! What can go wrong below media.

use homeserver_runtime::PoolClosed;
use homeserver_storage::{BlobError, CommitError, StorageError};

/// The store or the disk could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Reading a row failed.
    #[error("the store could not be read")]
    Read(#[from] StorageError),
    /// Writing rows failed, or nobody knows whether it did.
    #[error("the change could not be committed")]
    Commit(#[from] CommitError),
    /// Reading or writing a blob failed.
    #[error("the blob store failed")]
    Blob(#[from] BlobError),
    /// The job was not done: the server is shutting down, or a decoder crashed.
    #[error("the work was not finished")]
    Pool(#[from] PoolClosed),
    /// Other writers were faster too often in a row. Nothing was changed.
    #[error("too many others are changing the same thing")]
    Busy,
}
