//! Media of other servers, kept here once they were fetched. Whoever fetches them is elsewhere; to
//! this crate they are contents under another server's name, of nobody's account. Together they may
//! take so many bytes; what was fetched first makes room for what is new, and is fetched again when
//! it is asked for again.

use homeserver_storage::{Batch, BlobError, BlobId, Direction, ScanRange};
use ruma::ServerName;
use tokio::io::AsyncRead;

use crate::{
    Declared, Failure, Media, MediaId, UploadError,
    tables::{BLOBS_IN_USE, FileRow, MEDIA, MediaRow, MediaState, REMOTE},
    upload::{MAX_ATTEMPTS, put_usage},
};

/// What is kept of other servers has an account as users do, under a name that nobody has.
pub(crate) const OF_OTHERS: &str = "";

/// Media that make room for one, at most.
const MAX_REMOVED: usize = 1_000;

impl Media {
    /// Whether a content is here.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn is_here(&self, server: &ServerName, id: &MediaId) -> Result<bool, Failure> {
        let key = (server.as_str(), id.as_str());
        let row = self.parts.store.get(&MEDIA, &key).await?;
        Ok(row.is_some_and(|row| matches!(row.state, MediaState::Stored(_))))
    }

    /// Keeps a content of another server, unless it is here already. Reads `content` to its end, or
    /// a little beyond the limit of an upload.
    ///
    /// # Errors
    /// When the content is too large or breaks off, and when it cannot be stored.
    pub async fn keep_remote(
        &self,
        server: &ServerName,
        id: &MediaId,
        declared: &Declared,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<(), UploadError> {
        let options = &self.parts.options;
        let largest = options.max_upload_size.min(options.max_bytes_remote);
        let file = self.take_in_within(declared, content, largest);
        let file = match file.await {
            Err(UploadError::Failure(Failure::Blob(BlobError::TooLarge { .. }))) => {
                return Err(UploadError::TooLarge(largest));
            }
            other => other?,
        };
        let blob = BlobId(file.blob);
        let kept = self.keep_file(server, id, file).await;
        // One of which it is not known whether it is kept is found by the sweep.
        if matches!(kept, Ok(false) | Err(UploadError::OverQuota)) {
            self.delete_blob(blob).await;
        }
        kept.map(drop)
    }

    /// Gives whether the medium was not here before.
    async fn keep_file(
        &self,
        server: &ServerName,
        id: &MediaId,
        file: FileRow,
    ) -> Result<bool, UploadError> {
        let options = &self.parts.options;
        let key = (server.as_str(), id.as_str());
        if self.is_here(server, id).await? {
            return Ok(false);
        }
        self.make_room(file.length).await?;
        for _ in 0..MAX_ATTEMPTS {
            if self.is_here(server, id).await? {
                return Ok(false);
            }
            let (before, mut usage) = self.usage_row(OF_OTHERS).await?;
            usage.files += 1;
            usage.bytes = usage.bytes.saturating_add(file.length);
            // Many small ones may not have made room in one go: the next one goes on.
            let most = options.max_bytes_remote;
            if usage.bytes > most.saturating_add(options.max_upload_size) {
                return Err(UploadError::OverQuota);
            }
            let mut batch = Batch::new();
            put_usage(&mut batch, OF_OTHERS, before, usage);
            batch.assert_absent(&MEDIA, &key);
            let row = MediaRow {
                // Of nobody here.
                uploader: String::new(),
                created_at: file.stored_at,
                state: MediaState::Stored(file.clone()),
            };
            batch.put(&MEDIA, &key, &row);
            batch.put(&BLOBS_IN_USE, &BlobId(file.blob), &());
            let place = (file.stored_at, server.as_str(), id.as_str());
            batch.put(&REMOTE, &place, &());
            if self.committed(batch).await? {
                return Ok(true);
            }
        }
        Err(Failure::Busy.into())
    }

    /// Removes the oldest of what is kept of other servers until there is room for so many bytes, or
    /// very many were removed. Gives whether there is more to remove.
    pub(crate) async fn make_room(&self, bytes: u64) -> Result<bool, Failure> {
        let most = self.parts.options.max_bytes_remote.saturating_sub(bytes);
        for _ in 0..MAX_REMOVED {
            if self.usage_row(OF_OTHERS).await?.1.bytes <= most {
                return Ok(false);
            }
            let all = ScanRange::all();
            let oldest = self.parts.store.scan(&REMOTE, all, Direction::Forward, 1);
            let Some(((at, server, id), ())) = oldest.await?.into_iter().next() else {
                return Ok(false);
            };
            let known = match (ServerName::parse(&server), MediaId::parse(&id)) {
                (Ok(server), Ok(id)) => self.delete(&server, &id).await?,
                _ => false,
            };
            if !known {
                let mut batch = Batch::new();
                batch.delete(&REMOTE, &(at, server, id));
                self.committed(batch).await?;
            }
        }
        Ok(true)
    }
}
