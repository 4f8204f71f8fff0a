//! Downloads: a content as a stream, and the headers it is served with.

use std::{fmt, time::Duration};

use homeserver_storage::BlobId;
use ruma::ServerName;
use tokio::io::AsyncRead;

use crate::{
    Failure, Media, MediaId,
    serving::content_disposition,
    tables::{FileRow, MEDIA, MediaState},
};

/// The longest that a download waits for a reserved content.
pub const MAX_WAIT: Duration = Duration::from_mins(1);

/// By which endpoints somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The authenticated ones.
    Authenticated,
    /// The old, unauthenticated ones, which serve only what came before their freeze.
    Legacy,
}

/// A content to hand out.
pub struct Download {
    /// `Content-Type`.
    pub content_type: String,
    /// `Content-Disposition`.
    pub content_disposition: String,
    /// `Content-Length`.
    pub length: u64,
    /// The content.
    pub content: Box<dyn AsyncRead + Send + Sync + Unpin>,
}

impl fmt::Debug for Download {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Download")
            .field("content_type", &self.content_type)
            .field("content_disposition", &self.content_disposition)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// There is nothing to hand out.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No such content, or not over these endpoints.
    #[error("no such content")]
    NotFound,
    /// The id is reserved, and its content did not come in time.
    #[error("the content has not been uploaded yet")]
    NotYetUploaded,
    /// The store could not do it.
    #[error(transparent)]
    Failure(Failure),
}

impl<T: Into<Failure>> From<T> for DownloadError {
    fn from(failure: T) -> Self {
        Self::Failure(failure.into())
    }
}

impl Media {
    /// Opens a content. If its id is only reserved, waits at most `patience` for it to come.
    /// `file_name` is the name to save it under, in place of the one it was uploaded with.
    pub async fn open_file(
        &self,
        server: &ServerName,
        id: &MediaId,
        access: Access,
        patience: Duration,
        file_name: Option<&str>,
    ) -> Result<Download, DownloadError> {
        let file = self.file(server, id, access, patience).await?;
        let name = file_name.or(file.file_name.as_deref());
        let content = self
            .parts
            .blobs
            .get(BlobId(file.blob), 0..file.length)
            .await?;
        Ok(Download {
            content_disposition: content_disposition(&file.content_type, name),
            content_type: file.content_type,
            length: file.length,
            content,
        })
    }

    /// The row of a content, which may have to come first.
    pub(crate) async fn file(
        &self,
        server: &ServerName,
        id: &MediaId,
        access: Access,
        patience: Duration,
    ) -> Result<FileRow, DownloadError> {
        // The first look is no waiting, however little patience there is.
        if let Some(file) = self.file_now(server, id, access).await? {
            return Ok(file);
        }
        let wait = async {
            loop {
                // Listening before looking: what arrives between the two is not missed.
                let arrived = self.parts.arrived.notified();
                if let Some(file) = self.file_now(server, id, access).await? {
                    return Ok(file);
                }
                arrived.await;
            }
        };
        let waited = tokio::time::timeout(patience.min(MAX_WAIT), wait).await;
        waited.unwrap_or(Err(DownloadError::NotYetUploaded))
    }

    /// The row of a content; `None` while its id is only reserved.
    async fn file_now(
        &self,
        server: &ServerName,
        id: &MediaId,
        access: Access,
    ) -> Result<Option<FileRow>, DownloadError> {
        let key = (server.as_str(), id.as_str());
        let row = self.parts.store.get(&MEDIA, &key).await?;
        let open = self.parts.options.allow_legacy_unauthenticated;
        match row.ok_or(DownloadError::NotFound)?.state {
            MediaState::Stored(file) if access == Access::Legacy && !open && !file.legacy => {
                Err(DownloadError::NotFound)
            }
            MediaState::Stored(file) => Ok(Some(file)),
            MediaState::Pending { .. } if access == Access::Legacy && !open => {
                Err(DownloadError::NotFound)
            }
            MediaState::Pending { expires_at } if expires_at <= self.now() => {
                Err(DownloadError::NotFound)
            }
            MediaState::Pending { .. } => Ok(None),
        }
    }
}
