//! Media of other servers, kept here once they were fetched. Whoever fetches them is elsewhere; to
//! this crate they are contents under another server's name, of nobody's account.

use homeserver_storage::{Batch, BlobError, BlobId};
use ruma::ServerName;
use tokio::io::AsyncRead;

use crate::{
    Declared, Failure, Media, MediaId, UploadError,
    tables::{BLOBS_IN_USE, MEDIA, MediaRow, MediaState},
};

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
        let file = self.take_in_within(declared, content, options.max_upload_size);
        let file = match file.await {
            Err(UploadError::Failure(Failure::Blob(BlobError::TooLarge { .. }))) => {
                return Err(UploadError::TooLarge(options.max_upload_size));
            }
            other => other?,
        };
        let blob = BlobId(file.blob);
        let key = (server.as_str(), id.as_str());
        let row = MediaRow {
            // Of nobody here.
            uploader: String::new(),
            created_at: file.stored_at,
            state: MediaState::Stored(file),
        };
        let mut batch = Batch::new();
        batch.assert_absent(&MEDIA, &key);
        batch.put(&MEDIA, &key, &row);
        batch.put(&BLOBS_IN_USE, &blob, &());
        // One that was not kept, and one of which nobody knows, is found by the sweep.
        if !self.committed(batch).await? {
            self.delete_blob(blob).await;
        }
        Ok(())
    }
}
