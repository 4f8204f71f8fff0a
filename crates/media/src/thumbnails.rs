//! Thumbnails of stored media: made once, kept as blobs.

use std::time::Duration;

use bytes::Bytes;
use homeserver_storage::{Batch, BlobId};
use ruma::ServerName;
use tokio::sync::Mutex;

use crate::{
    Access, Download, DownloadError, Failure, Media, MediaId, STRIPES,
    queue::Turn,
    serving::content_disposition,
    tables::{BLOBS_IN_USE, FileRow, MEDIA, MediaState, THUMBNAILS, ThumbnailKey, ThumbnailRow},
    thumbnail::{self, Animation, Method, Thumbnail, ThumbnailError, Wanted},
};

/// Thumbnails of one medium: all sizes that are ever made, still and moving.
pub(crate) const MAX_THUMBNAILS: usize = thumbnail::SIZES * 2;

/// Bytes of an image that is read into memory to be made smaller.
const MAX_ORIGINAL: u64 = 64 * 1024 * 1024;

/// There is no thumbnail to hand out.
#[derive(Debug, thiserror::Error)]
pub enum ThumbnailRequestError {
    /// There is not even the original.
    #[error(transparent)]
    Original(#[from] DownloadError),
    /// The original is not an image that is made smaller here.
    #[error(transparent)]
    Thumbnail(#[from] ThumbnailError),
    /// Too many thumbnails are waiting to be made, of this client or of all.
    #[error("too many thumbnails are asked for")]
    Crowded,
}

impl<T: Into<Failure>> From<T> for ThumbnailRequestError {
    fn from(failure: T) -> Self {
        Self::Original(DownloadError::Failure(failure.into()))
    }
}

impl Media {
    /// A thumbnail of an image: one that was made before, or a new one, or the original where
    /// that is small enough. Waits like [`Media::open_file`]. What `who` asks for is made one after
    /// the other.
    pub async fn thumbnail(
        &self,
        (server, id): (&ServerName, &MediaId),
        wanted: Wanted,
        who: &str,
        access: Access,
        patience: Duration,
    ) -> Result<Download, ThumbnailRequestError> {
        let file = self.file(server, id, access, patience).await?;
        let wanted = wanted.normalised();
        let key = key(server, id, wanted);
        if let Some(row) = self.parts.store.get(&THUMBNAILS, &key).await? {
            return self.stored_thumbnail(file, row).await;
        }
        let queue = &self.parts.thumbnailing;
        let place = queue
            .enter(who)
            .map_err(|_| ThumbnailRequestError::Crowded)?;
        let own = place.own_turn().await?;
        // One request makes it, the others find it.
        let _turn = self.turn(&key).lock().await;
        if let Some(row) = self.parts.store.get(&THUMBNAILS, &key).await? {
            return self.stored_thumbnail(file, row).await;
        }
        match self.make_thumbnail(&file, wanted, place.turn(own)).await? {
            Thumbnail::Original { content_type } => {
                let row = ThumbnailRow {
                    blob: None,
                    content_type: content_type.to_owned(),
                };
                self.keep(&key, &file, &row).await?;
                self.stored_thumbnail(file, row).await
            }
            Thumbnail::Made {
                bytes,
                content_type,
            } => {
                self.keep_made(&key, &file, &bytes, content_type).await?;
                Ok(Download {
                    content_type: content_type.to_owned(),
                    content_disposition: disposition(content_type),
                    length: bytes.len() as u64,
                    content: Box::new(std::io::Cursor::new(bytes)),
                })
            }
        }
    }

    async fn stored_thumbnail(
        &self,
        file: FileRow,
        row: ThumbnailRow,
    ) -> Result<Download, ThumbnailRequestError> {
        let (blob, length) = row.blob.unwrap_or((file.blob, file.length));
        let content = self.parts.blobs.get(BlobId(blob), 0..length).await?;
        Ok(Download {
            content_disposition: disposition(&row.content_type),
            content_type: row.content_type,
            length,
            content,
        })
    }

    async fn make_thumbnail(
        &self,
        file: &FileRow,
        wanted: Wanted,
        turn: impl Future<Output = Result<Turn, Failure>>,
    ) -> Result<Thumbnail, ThumbnailRequestError> {
        if file.length > MAX_ORIGINAL {
            return Err(ThumbnailError::TooLarge.into());
        }
        let parts = &self.parts;
        let turn = turn.await?;
        let original = parts.blobs.read(BlobId(file.blob), MAX_ORIGINAL).await?;
        let job = move || thumbnail::make(&original, wanted);
        Ok(turn.run(&parts.runtime.cpu, job).await??)
    }

    async fn keep_made(
        &self,
        key: &ThumbnailKey,
        file: &FileRow,
        bytes: &Bytes,
        content_type: &str,
    ) -> Result<(), Failure> {
        let stored = self.parts.blobs.put_bytes(bytes).await?;
        let row = ThumbnailRow {
            blob: Some((stored.id.0, stored.length)),
            content_type: content_type.to_owned(),
        };
        if !self.keep(key, file, &row).await? {
            self.delete_blob(stored.id).await;
        }
        Ok(())
    }

    /// Keeps a thumbnail unless the medium was deleted meanwhile.
    async fn keep(
        &self,
        key: &ThumbnailKey,
        file: &FileRow,
        row: &ThumbnailRow,
    ) -> Result<bool, Failure> {
        let of_medium = (key.0.as_str(), key.1.as_str());
        let store = &self.parts.store;
        let medium = store.get(&MEDIA, &of_medium).await?;
        let still = medium
            .filter(|row| matches!(&row.state, MediaState::Stored(now) if now.blob == file.blob));
        let Some(medium) = still else {
            return Ok(false);
        };
        let mut batch = Batch::new();
        batch.assert_value(&MEDIA, &of_medium, &medium);
        batch.assert_absent(&THUMBNAILS, key);
        batch.put(&THUMBNAILS, key, row);
        if let Some((blob, _)) = row.blob {
            batch.put(&BLOBS_IN_USE, &BlobId(blob), &());
        }
        self.committed(batch).await
    }

    fn turn(&self, key: &ThumbnailKey) -> &Mutex<()> {
        let sum = key.1.bytes().fold(0_usize, |sum, byte| {
            sum.wrapping_mul(31) + usize::from(byte)
        });
        &self.parts.turns[sum % STRIPES]
    }
}

fn key(server: &ServerName, id: &MediaId, wanted: Wanted) -> ThumbnailKey {
    let method = match wanted.method {
        Method::Scale => 0,
        Method::Crop => 1,
    };
    let animation = match wanted.animation {
        Animation::Still => 0,
        Animation::Moving => 1,
    };
    let (width, height) = (wanted.width, wanted.height);
    (
        server.to_string(),
        id.to_string(),
        width,
        height,
        method,
        animation,
    )
}

/// Thumbnails have no name of their own.
fn disposition(content_type: &str) -> String {
    content_disposition(content_type, Some("thumbnail"))
}
