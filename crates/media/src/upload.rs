//! Uploads: a content at once, or an id first and its content later.

use std::time::Duration;

use homeserver_storage::{Batch, BlobError, BlobId, CommitError};
use ruma::{OwnedMxcUri, UserId};
use tokio::io::AsyncRead;

use crate::{
    Failure, Media, MediaId,
    intake::Hashing,
    serving::clean_content_type,
    tables::{
        BLOBS_IN_USE, FileRow, MEDIA, MediaRow, MediaState, PENDING, PendingRow, UPLOADS, USAGE,
        UsageRow,
    },
};

/// Ids that one user may have reserved without having uploaded their contents.
pub const MAX_PENDING_UPLOADS: u64 = 100;

/// How long a reserved id waits for its content.
pub const UNUSED_EXPIRES_AFTER: Duration = Duration::from_hours(24);

/// Bytes of a file name that are kept.
const MAX_FILE_NAME: usize = 1_024;

/// Attempts to commit while the same user's other uploads commit.
pub(crate) const MAX_ATTEMPTS: usize = 32;

/// What the uploader says of a content.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// The `Content-Type`.
    pub content_type: Option<String>,
    /// The file's name.
    pub file_name: Option<String>,
    /// The `Content-Length`: lets an upload that is too large be refused at once.
    pub length: Option<u64>,
}

/// A reserved id.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// Where the content will be.
    pub uri: OwnedMxcUri,
    /// Until when it must have come, in milliseconds since the Unix epoch.
    pub expires_at: u64,
}

/// What a user has uploaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Contents.
    pub files: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Reserved ids without content.
    pub pending: u64,
}

/// Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The content is larger than one upload may be, in bytes.
    #[error("the content is larger than {0} bytes")]
    TooLarge(u64),
    /// The user's uploads would take more than allowed together.
    #[error("the user has uploaded too much")]
    OverQuota,
    /// The user has [`MAX_PENDING_UPLOADS`] ids reserved.
    #[error("too many ids are reserved without content")]
    TooManyPending,
    /// The id was never reserved, or waited too long.
    #[error("no such reserved id")]
    NotFound,
    /// Another user reserved the id.
    #[error("the id was reserved by another user")]
    NotUploader,
    /// The id has its content already.
    #[error("the content is there already")]
    AlreadyUploaded,
    /// The content broke off.
    #[error("the content could not be read")]
    Content(#[source] std::io::Error),
    /// The store could not do it.
    #[error(transparent)]
    Failure(Failure),
}

impl<T: Into<Failure>> From<T> for UploadError {
    fn from(failure: T) -> Self {
        Self::Failure(failure.into())
    }
}

impl Media {
    /// Stores a content under a new id. Reads `content` to its end, or a little beyond the limit.
    pub async fn upload(
        &self,
        uploader: &UserId,
        declared: &Declared,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<OwnedMxcUri, UploadError> {
        let id = MediaId::new(&*self.parts.runtime.entropy);
        let file = self.take_in(uploader, declared, content).await?;
        self.settle(uploader, &id, file, None).await?;
        Ok(self.uri(&id))
    }

    /// Reserves an id for a content that comes later.
    pub async fn reserve(&self, uploader: &UserId) -> Result<Reserved, UploadError> {
        let id = MediaId::new(&*self.parts.runtime.entropy);
        let now = self.now();
        let expires_at = now + UNUSED_EXPIRES_AFTER.as_millis() as u64;
        for _ in 0..MAX_ATTEMPTS {
            let mut batch = Batch::new();
            let (before, mut usage) = self.usage_row(uploader.as_str()).await?;
            if usage.pending >= MAX_PENDING_UPLOADS {
                return Err(UploadError::TooManyPending);
            }
            usage.pending += 1;
            put_usage(&mut batch, uploader.as_str(), before, usage);
            let row = MediaRow {
                uploader: uploader.to_string(),
                created_at: now,
                state: MediaState::Pending { expires_at },
            };
            batch.put(&MEDIA, &self.key(&id), &row);
            let pending = PendingRow(uploader.to_string());
            batch.put(&PENDING, &(expires_at, id.as_str()), &pending);
            if self.committed(batch).await? {
                let uri = self.uri(&id);
                return Ok(Reserved { uri, expires_at });
            }
        }
        Err(Failure::Busy.into())
    }

    /// Stores the content of a reserved id, once.
    pub async fn upload_to(
        &self,
        id: &MediaId,
        uploader: &UserId,
        declared: &Declared,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<(), UploadError> {
        // Before anything is read: most mistakes show here.
        let reserved = self.reserved(id, uploader).await?;
        let file = self.take_in(uploader, declared, content).await?;
        self.settle(uploader, id, file, Some(reserved)).await?;
        self.parts.arrived.notify_waiters();
        Ok(())
    }

    /// What a user has uploaded.
    pub async fn usage(&self, uploader: &UserId) -> Result<Usage, Failure> {
        let (_, usage) = self.usage_row(uploader.as_str()).await?;
        Ok(Usage {
            files: usage.files,
            bytes: usage.bytes,
            pending: usage.pending,
        })
    }

    /// The row of a reserved id that this user may fill now.
    async fn reserved(&self, id: &MediaId, uploader: &UserId) -> Result<MediaRow, UploadError> {
        let row = self.parts.store.get(&MEDIA, &self.key(id)).await?;
        let row = row.ok_or(UploadError::NotFound)?;
        if row.uploader != uploader.as_str() {
            return Err(UploadError::NotUploader);
        }
        match row.state {
            MediaState::Stored(_) => Err(UploadError::AlreadyUploaded),
            MediaState::Pending { expires_at } if expires_at <= self.now() => {
                Err(UploadError::NotFound)
            }
            MediaState::Pending { .. } => Ok(row),
        }
    }

    /// Puts a content into the blob store, within the limits of one upload and of the user.
    async fn take_in(
        &self,
        uploader: &UserId,
        declared: &Declared,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<FileRow, UploadError> {
        let options = &self.parts.options;
        let (_, usage) = self.usage_row(uploader.as_str()).await?;
        let left = options
            .max_bytes_per_user
            .map(|all| all.saturating_sub(usage.bytes));
        let limit = options.max_upload_size.min(left.unwrap_or(u64::MAX));
        let over_limit = || match left {
            Some(left) if left < options.max_upload_size => UploadError::OverQuota,
            _ => UploadError::TooLarge(options.max_upload_size),
        };
        if declared.length.is_some_and(|length| length > limit) {
            return Err(over_limit());
        }
        match self.take_in_within(declared, content, limit).await {
            Err(UploadError::Failure(Failure::Blob(BlobError::TooLarge { .. }))) => {
                Err(over_limit())
            }
            other => other,
        }
    }

    /// Puts a content of at most `limit` bytes into the blob store.
    pub(crate) async fn take_in_within(
        &self,
        declared: &Declared,
        content: &mut (dyn AsyncRead + Send + Unpin),
        limit: u64,
    ) -> Result<FileRow, UploadError> {
        let mut content = Hashing::new(content);
        let stored = match self.parts.blobs.put(&mut content, limit).await {
            Ok(stored) => stored,
            Err(BlobError::Source(error)) => return Err(UploadError::Content(error)),
            Err(error) => return Err(error.into()),
        };
        let file_name = declared
            .file_name
            .as_deref()
            .filter(|name| !name.is_empty());
        Ok(FileRow {
            blob: stored.id.0,
            length: stored.length,
            sha256: content.finish(),
            content_type: clean_content_type(declared.content_type.as_deref()),
            file_name: file_name.map(|name| cut(name, MAX_FILE_NAME)),
            stored_at: self.now(),
            legacy: self.parts.options.allow_legacy_unauthenticated,
        })
    }

    /// Commits the rows of a content that is in the blob store; without them the blob goes again.
    async fn settle(
        &self,
        uploader: &UserId,
        id: &MediaId,
        file: FileRow,
        reserved: Option<MediaRow>,
    ) -> Result<(), UploadError> {
        let blob = BlobId(file.blob);
        let outcome = self.commit_file(uploader, id, file, reserved).await;
        // Where nobody knows whether the rows are there, the blob stays for the sweep to judge.
        let unknown = matches!(
            outcome,
            Err(UploadError::Failure(Failure::Commit(
                CommitError::Unknown { .. }
            )))
        );
        if outcome.is_err() && !unknown {
            self.delete_blob(blob).await;
        }
        outcome
    }

    async fn commit_file(
        &self,
        uploader: &UserId,
        id: &MediaId,
        file: FileRow,
        reserved: Option<MediaRow>,
    ) -> Result<(), UploadError> {
        let key = self.key(id);
        let created_at = reserved
            .as_ref()
            .map_or(file.stored_at, |row| row.created_at);
        let quota = self.parts.options.max_bytes_per_user.unwrap_or(u64::MAX);
        for _ in 0..MAX_ATTEMPTS {
            let mut batch = Batch::new();
            let (before, mut usage) = self.usage_row(uploader.as_str()).await?;
            usage.files += 1;
            usage.bytes += file.length;
            if usage.bytes > quota {
                return Err(UploadError::OverQuota);
            }
            if let Some(reserved) = &reserved {
                // Again each time: the other upload may have been to the same id.
                let now = self.reserved(id, uploader).await?;
                if let MediaState::Pending { expires_at } = now.state {
                    batch.delete(&PENDING, &(expires_at, id.as_str()));
                }
                usage.pending = usage.pending.saturating_sub(1);
                batch.assert_value(&MEDIA, &key, reserved);
            }
            put_usage(&mut batch, uploader.as_str(), before, usage);
            let row = MediaRow {
                uploader: uploader.to_string(),
                created_at,
                state: MediaState::Stored(file.clone()),
            };
            batch.put(&MEDIA, &key, &row);
            batch.put(&BLOBS_IN_USE, &BlobId(file.blob), &());
            batch.put(
                &UPLOADS,
                &(uploader.as_str(), file.stored_at, id.as_str()),
                &(),
            );
            if self.committed(batch).await? {
                return Ok(());
            }
        }
        Err(Failure::Busy.into())
    }

    pub(crate) async fn usage_row(
        &self,
        key: &str,
    ) -> Result<(Option<UsageRow>, UsageRow), Failure> {
        let row = self.parts.store.get(&USAGE, &key).await?;
        Ok((row, row.unwrap_or_default()))
    }

    /// Commits; `false` if somebody else was faster.
    pub(crate) async fn committed(&self, batch: Batch) -> Result<bool, Failure> {
        match self.parts.store.commit(batch).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a blob that nothing names; if that fails, the sweep does it later.
    pub(crate) async fn delete_blob(&self, blob: BlobId) {
        if let Err(error) = self.parts.blobs.delete(blob).await {
            tracing::warn!(%blob, %error, "a blob that nothing names could not be deleted");
        }
    }

    /// The key of media made here.
    pub(crate) fn key(&self, id: &MediaId) -> (String, String) {
        (self.parts.options.server_name.to_string(), id.to_string())
    }

    fn uri(&self, id: &MediaId) -> OwnedMxcUri {
        format!("mxc://{}/{id}", self.parts.options.server_name).into()
    }
}

pub(crate) fn put_usage(batch: &mut Batch, key: &str, before: Option<UsageRow>, after: UsageRow) {
    match &before {
        Some(before) => batch.assert_value(&USAGE, &key, before),
        None => batch.assert_absent(&USAGE, &key),
    };
    batch.put(&USAGE, &key, &after);
}

fn cut(text: &str, limit: usize) -> String {
    let end = (0..=limit.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}
