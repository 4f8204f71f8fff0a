//! Media: uploads, downloads and thumbnails. Untrusted bytes are handled here only.
//!
//! Contents are blobs; what is known about them are rows. A row is committed after its blob is
//! durable, and a blob is deleted after its row is gone, so that a crash leaves at most a blob
//! that nothing names, which [`Media::sweep`] finds.
//!
//! - [`Media::upload`], [`Media::reserve`] and [`Media::upload_to`] take contents in, as streams
//!   and within limits;
//! - [`Media::open_file`] hands them out, with the header values of [`serving`];
//! - [`Media::thumbnail`] makes smaller versions of images, see [`mod@thumbnail`];
//! - [`Media::keep_remote`] keeps what was fetched of another server;
//! - [`Media::delete`] removes everything of one.
//!
//! Not here: fetching from other servers, URL previews, and who may ask.
//!
//! Spec: Client-Server API, "Content Repository".

mod download;
mod failure;
#[cfg(test)]
mod fuzz;
mod id;
mod intake;
mod queue;
mod remote;
mod remove;
pub mod serving;
mod tables;
pub mod thumbnail;
mod thumbnails;
mod upload;

pub use download::{Access, Download, DownloadError, MAX_WAIT};
pub use failure::Failure;
pub use id::{BadMediaId, MAX_MEDIA_ID, MediaId};
pub use tables::TABLES;
pub use thumbnails::ThumbnailRequestError;
pub use upload::{
    Declared, MAX_PENDING_UPLOADS, Reserved, UNUSED_EXPIRES_AFTER, UploadError, Usage,
};

use std::{collections::BTreeSet, fmt, sync::Arc};

use homeserver_runtime::Runtime;
use homeserver_storage::{BlobId, BlobStore, Store};
use ruma::OwnedServerName;
use tokio::sync::{Mutex, Notify};

use queue::Queue;

/// Images that are held in memory to be made smaller, at the same time: each takes up to the size
/// of its file and [`thumbnail::MAX_DECODED_BYTES`]. Fewer if the CPU pool has no turn left over
/// for the passwords of those who log in meanwhile.
const THUMBNAILS_AT_ONCE: usize = 2;

/// Locks that keep two requests from making the same thumbnail twice.
const STRIPES: usize = 64;

/// How media are kept, from the configuration.
#[derive(Clone, Debug)]
pub struct MediaOptions {
    /// This server's name: the first half of every `mxc:` URI made here.
    pub server_name: OwnedServerName,
    /// Bytes of one upload.
    pub max_upload_size: u64,
    /// Bytes that one user's uploads may take together; `None` for no bound.
    pub max_bytes_per_user: Option<u64>,
    /// Bytes that what is kept of other servers may take together: the oldest makes room.
    pub max_bytes_remote: u64,
    /// Serve everything over the old, unauthenticated endpoints too. Without it those serve only
    /// what was uploaded while it was set: they are frozen.
    pub allow_legacy_unauthenticated: bool,
}

/// The media of one server. Cheap to clone.
#[derive(Clone)]
pub struct Media {
    parts: Arc<Parts>,
}

struct Parts {
    store: Store,
    blobs: Arc<dyn BlobStore>,
    runtime: Runtime,
    options: MediaOptions,
    /// Rings when a reserved upload has arrived.
    arrived: Notify,
    thumbnailing: Queue,
    turns: [Mutex<()>; STRIPES],
    /// Blobs that no row named when the last sweep looked.
    orphans: Mutex<BTreeSet<BlobId>>,
}

impl fmt::Debug for Media {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Media")
            .field("options", &self.parts.options)
            .finish_non_exhaustive()
    }
}

impl Media {
    /// Media over a store that knows [`TABLES`]. Starts an hourly sweep on the runtime's tasks,
    /// which ends with its shutdown.
    pub fn open(
        store: &Store,
        blobs: Arc<dyn BlobStore>,
        runtime: &Runtime,
        options: MediaOptions,
    ) -> Self {
        let turns = runtime.cpu.turns();
        let parts = Parts {
            store: store.clone(),
            blobs,
            runtime: runtime.clone(),
            options,
            arrived: Notify::new(),
            thumbnailing: Queue::new(THUMBNAILS_AT_ONCE.min(turns.saturating_sub(1))),
            turns: std::array::from_fn(|_| Mutex::new(())),
            orphans: Mutex::new(BTreeSet::new()),
        };
        let media = Self {
            parts: Arc::new(parts),
        };
        runtime.tasks.spawn(remove::sweep_hourly(media.clone()));
        media
    }

    /// How it was set up.
    pub fn options(&self) -> &MediaOptions {
        &self.parts.options
    }

    fn now(&self) -> u64 {
        self.parts.runtime.clock.unix_millis()
    }
}

#[cfg(test)]
mod tests;
