//! The tables of this crate, ids `0x70`–`0x7f`, each with the layout of its key.

use homeserver_storage::{BlobId, Table, TableSpec, row};
use serde::{Deserialize, Serialize};

/// A medium: reserved, or there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MediaRow {
    /// User id of who uploaded it, or reserved its id.
    pub(crate) uploader: String,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at: u64,
    pub(crate) state: MediaState,
}
row!(MediaRow, 1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MediaState {
    /// The id is given, the content has not come yet.
    Pending { expires_at: u64 },
    /// The content is there.
    Stored(FileRow),
}

/// A content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRow {
    pub(crate) blob: [u8; 16],
    pub(crate) length: u64,
    pub(crate) sha256: [u8; 32],
    pub(crate) content_type: String,
    pub(crate) file_name: Option<String>,
    pub(crate) stored_at: u64,
    /// Whether the old endpoints were open when it came.
    pub(crate) legacy: bool,
}

/// What one user has uploaded. Every upload asserts and replaces it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsageRow {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) pending: u64,
}
row!(UsageRow, 1);

/// Who reserved an id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingRow(pub(crate) String);
row!(PendingRow, 1);

/// A thumbnail that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ThumbnailRow {
    /// `None`: the original serves as its own thumbnail.
    pub(crate) blob: Option<([u8; 16], u64)>,
    pub(crate) content_type: String,
}
row!(ThumbnailRow, 1);

/// (server name, media id, width, height, 0 scale or 1 crop, 0 still or 1 moving).
pub(crate) type ThumbnailKey = (String, String, u32, u32, u8, u8);

/// (server name, media id) → the medium.
pub(crate) const MEDIA: Table<(String, String), MediaRow> = Table::new(0x70, "media");

/// (end of the reservation in Unix milliseconds, media id) → who reserved it.
pub(crate) const PENDING: Table<(u64, String), PendingRow> = Table::new(0x71, "pending_media");

/// (user id) → what the user has uploaded; (nothing) → what is kept of other servers.
pub(crate) const USAGE: Table<String, UsageRow> = Table::new(0x72, "media_usage");

/// (server name, media id, width, height, method, animation) → the thumbnail.
pub(crate) const THUMBNAILS: Table<ThumbnailKey, ThumbnailRow> = Table::new(0x73, "thumbnails");

/// (user id, time of the upload in Unix milliseconds, media id) → (): a user's uploads in order.
pub(crate) const UPLOADS: Table<(String, u64, String), ()> = Table::new(0x74, "media_uploads");

/// (blob id) → (): some row names this blob.
pub(crate) const BLOBS_IN_USE: Table<BlobId, ()> = Table::new(0x75, "media_blobs");

/// (time of the fetch in Unix milliseconds, server name, media id) → (): what is kept of other
/// servers, in order.
pub(crate) const REMOTE: Table<(u64, String, String), ()> = Table::new(0x76, "remote_media");

/// All tables of this crate, for the registry.
pub const TABLES: &[TableSpec] = &[
    MEDIA.spec(),
    PENDING.spec(),
    USAGE.spec(),
    THUMBNAILS.spec(),
    UPLOADS.spec(),
    BLOBS_IN_USE.spec(),
    REMOTE.spec(),
];
