//! Blobs: contents too large for rows, such as media. On local files here; whoever keeps them
//! elsewhere implements [`BlobStore`].
//!
//! A blob is written once and never changed. The row that names a blob is committed after the blob
//! is durable; a blob that no row names is garbage, found by [`BlobStore::list`].

mod memory;

use std::{
    fmt,
    fmt::Write as _,
    io,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use homeserver_runtime::{Entropy, Runtime, WorkPool};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::DecodeError;

/// Bytes read from a stream and written to its file at once.
const CHUNK: usize = 64 * 1024;
/// Blobs are spread over folders named by so many hexadecimal digits of their id.
const FOLDER_DIGITS: usize = 2;
/// The folder of uploads that are not complete.
const INCOMING: &str = "incoming";

pub use memory::MemoryBlobs;

/// Names a blob: random, so that it tells nothing of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 16]);

impl fmt::Display for BlobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl FromStr for BlobId {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let digits_only = text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(text, 16);
        match number {
            Ok(number) if text.len() == 32 && digits_only => Ok(Self(number.to_be_bytes())),
            _ => Err(DecodeError::new(
                "a blob's name",
                "not 32 hexadecimal digits",
            )),
        }
    }
}

crate::key!(BlobId([u8; 16]));

/// A blob cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob.
    #[error("there is no blob {0}")]
    NotFound(BlobId),
    /// The stream holds more than it may.
    #[error("the blob is larger than {limit} bytes")]
    TooLarge {
        /// How many it may hold.
        limit: u64,
    },
    /// The stream that is being stored broke off.
    #[error("the content ended early")]
    Source(#[source] io::Error),
    /// The store's disk or network said no.
    #[error("{what} {at}")]
    Io {
        /// What was being done, as in "cannot write".
        what: &'static str,
        /// To what.
        at: String,
        /// What it said.
        source: io::Error,
    },
}

/// A blob that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBlob {
    /// Its name.
    pub id: BlobId,
    /// Its length in bytes.
    pub length: u64,
}

/// Where blobs are kept. Object-safe.
#[async_trait]
pub trait BlobStore: fmt::Debug + Send + Sync + 'static {
    /// Stores a stream of at most `limit` bytes. Durable when it returns; after an error nothing is
    /// kept.
    async fn put(
        &self,
        content: &mut (dyn AsyncRead + Send + Unpin),
        limit: u64,
    ) -> Result<StoredBlob, BlobError>;

    /// Length of a blob in bytes.
    async fn length(&self, id: BlobId) -> Result<u64, BlobError>;

    /// A stream of the bytes `range` of a blob; what lies beyond its end is left out.
    async fn get(
        &self,
        id: BlobId,
        range: Range<u64>,
    ) -> Result<Box<dyn AsyncRead + Send + Sync + Unpin>, BlobError>;

    /// Removes a blob. No error if it is not there.
    async fn delete(&self, id: BlobId) -> Result<(), BlobError>;

    /// At most `limit` blobs with ids greater than `after`, in order.
    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>, BlobError>;
}

impl dyn BlobStore {
    /// Stores bytes. Durable when it returns.
    pub async fn put_bytes(&self, content: &[u8]) -> Result<StoredBlob, BlobError> {
        let mut reader = content;
        self.put(&mut reader, content.len() as u64).await
    }

    /// A whole blob in memory, if it is no longer than `limit`.
    pub async fn read(&self, id: BlobId, limit: u64) -> Result<Bytes, BlobError> {
        let length = self.length(id).await?;
        if length > limit {
            return Err(BlobError::TooLarge { limit });
        }
        let mut content = Vec::with_capacity(length as usize);
        let mut stream = self.get(id, 0..length).await?;
        let read = stream.read_to_end(&mut content).await;
        read.map_err(|source| BlobError::Io {
            what: "cannot read blob",
            at: id.to_string(),
            source,
        })?;
        Ok(content.into())
    }
}

/// Blobs as files: `<root>/<two digits of the id>/<id>`.
#[derive(Debug)]
pub struct FileBlobs {
    root: PathBuf,
    entropy: Arc<dyn Entropy>,
    blocking: WorkPool,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BlobError + use<'a> {
    move |source| BlobError::Io {
        what,
        at: path.display().to_string(),
        source,
    }
}

/// Makes the entries of a folder durable.
fn sync_folder(path: &Path) -> Result<(), BlobError> {
    std::fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("cannot sync folder", path))
}

impl FileBlobs {
    /// Blobs under `root`, which is made if missing. Uploads that a crash left behind are removed.
    pub fn open(root: impl Into<PathBuf>, runtime: &Runtime) -> Result<Self, BlobError> {
        let root = root.into();
        let incoming = root.join(INCOMING);
        if incoming.exists() {
            std::fs::remove_dir_all(&incoming).map_err(failed("cannot empty", &incoming))?;
        }
        std::fs::create_dir_all(&incoming).map_err(failed("cannot make folder", &incoming))?;
        sync_folder(&root)?;
        Ok(Self {
            root,
            entropy: Arc::clone(&runtime.entropy),
            blocking: runtime.blocking.clone(),
        })
    }

    fn folder(&self, id: BlobId) -> PathBuf {
        let mut name = String::new();
        // Writing to a string cannot fail.
        let _ = write!(name, "{id}");
        name.truncate(FOLDER_DIGITS);
        self.root.join(name)
    }

    fn path(&self, id: BlobId) -> PathBuf {
        self.folder(id).join(id.to_string())
    }

    /// Copies the stream into a file and makes it durable; gives the length.
    async fn receive(
        path: &Path,
        content: &mut (dyn AsyncRead + Send + Unpin),
        limit: u64,
    ) -> Result<u64, BlobError> {
        let mut file = tokio::fs::File::create_new(path)
            .await
            .map_err(failed("cannot create", path))?;
        let mut buffer = vec![0; CHUNK];
        let mut length = 0;
        loop {
            let read = content.read(&mut buffer).await.map_err(BlobError::Source)?;
            if read == 0 {
                break;
            }
            length += read as u64;
            if length > limit {
                return Err(BlobError::TooLarge { limit });
            }
            file.write_all(&buffer[..read])
                .await
                .map_err(failed("cannot write", path))?;
        }
        file.flush().await.map_err(failed("cannot write", path))?;
        file.sync_all().await.map_err(failed("cannot sync", path))?;
        Ok(length)
    }

    /// Moves a complete upload to its place, durably.
    async fn settle(&self, from: PathBuf, id: BlobId) -> Result<(), BlobError> {
        let (root, folder, path) = (self.root.clone(), self.folder(id), self.path(id));
        let job = move || {
            if !folder.exists() {
                std::fs::create_dir_all(&folder).map_err(failed("cannot make folder", &folder))?;
                sync_folder(&root)?;
            }
            std::fs::rename(&from, &path).map_err(failed("cannot move to", &path))?;
            sync_folder(&folder)
        };
        self.run(job).await
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let done = self.blocking.run(job).await;
        done.unwrap_or_else(|closed| {
            Err(BlobError::Io {
                what: "cannot use",
                at: self.root.display().to_string(),
                source: io::Error::other(closed),
            })
        })
    }
}

/// An error of opening or looking at a blob's file.
fn not_found(id: BlobId, path: &Path, error: io::Error) -> BlobError {
    if error.kind() == io::ErrorKind::NotFound {
        BlobError::NotFound(id)
    } else {
        failed("cannot open", path)(error)
    }
}

#[async_trait]
impl BlobStore for FileBlobs {
    async fn put(
        &self,
        content: &mut (dyn AsyncRead + Send + Unpin),
        limit: u64,
    ) -> Result<StoredBlob, BlobError> {
        let id = BlobId(self.entropy.bytes());
        let incoming = self.root.join(INCOMING).join(id.to_string());
        let stored = match Self::receive(&incoming, content, limit).await {
            Ok(length) => self
                .settle(incoming.clone(), id)
                .await
                .map(|()| StoredBlob { id, length }),
            Err(error) => Err(error),
        };
        if stored.is_err() {
            // What cannot be removed now is removed at the next start.
            let _ = tokio::fs::remove_file(&incoming).await;
        }
        stored
    }

    async fn length(&self, id: BlobId) -> Result<u64, BlobError> {
        let path = self.path(id);
        match tokio::fs::metadata(&path).await {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) => Err(not_found(id, &path, error)),
        }
    }

    async fn get(
        &self,
        id: BlobId,
        range: Range<u64>,
    ) -> Result<Box<dyn AsyncRead + Send + Sync + Unpin>, BlobError> {
        use tokio::io::AsyncSeekExt as _;
        let path = self.path(id);
        let mut file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(error) => return Err(not_found(id, &path, error)),
        };
        file.seek(io::SeekFrom::Start(range.start))
            .await
            .map_err(failed("cannot read", &path))?;
        Ok(Box::new(file.take(range.end.saturating_sub(range.start))))
    }

    async fn delete(&self, id: BlobId) -> Result<(), BlobError> {
        let (folder, path) = (self.folder(id), self.path(id));
        self.run(move || match std::fs::remove_file(&path) {
            Ok(()) => sync_folder(&folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("cannot remove", &path)(error)),
        })
        .await
    }

    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>, BlobError> {
        let root = self.root.clone();
        self.run(move || list_files(&root, after, limit)).await
    }
}

/// Names in a folder that `parse` understands, sorted.
fn names<T: Ord>(folder: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, BlobError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("cannot list", folder))? {
        let entry = entry.map_err(failed("cannot list", folder))?;
        found.extend(entry.file_name().to_str().and_then(&parse));
    }
    found.sort();
    Ok(found)
}

fn list_files(root: &Path, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>, BlobError> {
    let folder_name = |name: &str| (name.len() == FOLDER_DIGITS).then(|| name.to_owned());
    let first = after.map(|id| id.to_string()[..FOLDER_DIGITS].to_owned());
    let mut listed = Vec::new();
    for folder in names(root, folder_name)? {
        if first.as_ref().is_some_and(|first| folder < *first) {
            continue;
        }
        let ids = names(&root.join(folder), |name| name.parse::<BlobId>().ok())?;
        let wanted = ids.into_iter().filter(|id| Some(*id) > after);
        listed.extend(wanted.take(limit - listed.len()));
        if listed.len() == limit {
            break;
        }
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs(root: &Path) -> Arc<dyn BlobStore> {
        Arc::new(FileBlobs::open(root, &Runtime::system()).unwrap())
    }

    #[tokio::test]
    async fn a_blob_comes_back_whole_and_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let store = blobs(folder.path());
        let content: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
        let stored = store.put_bytes(&content).await.unwrap();
        assert_eq!(stored.length, 200_000);
        let store = blobs(folder.path());
        assert_eq!(store.read(stored.id, 200_000).await.unwrap(), content);
        assert!(matches!(
            store.read(stored.id, 10).await,
            Err(BlobError::TooLarge { .. })
        ));
        let mut part = Vec::new();
        let mut stream = store.get(stored.id, 100..300_000).await.unwrap();
        stream.read_to_end(&mut part).await.unwrap();
        assert_eq!(part, content[100..]);
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_failed_upload() {
        let folder = tempfile::tempdir().unwrap();
        let store = blobs(folder.path());
        let mut content: &[u8] = &[0; 100];
        let refused = store.put(&mut content, 99).await;
        assert!(matches!(refused, Err(BlobError::TooLarge { limit: 99 })));
        assert!(store.list(None, 10).await.unwrap().is_empty());
        let left = std::fs::read_dir(folder.path().join(INCOMING)).unwrap();
        assert_eq!(left.count(), 0);
        std::fs::write(folder.path().join(INCOMING).join("left"), b"over").unwrap();
        blobs(folder.path());
        assert!(!folder.path().join(INCOMING).join("left").exists());
    }

    #[tokio::test]
    async fn deleted_blobs_are_gone_and_the_rest_is_listed_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = blobs(folder.path());
        let mut ids = Vec::new();
        for number in 0..40_u8 {
            ids.push(store.put_bytes(&[number]).await.unwrap().id);
        }
        let gone = ids.pop().unwrap();
        store.delete(gone).await.unwrap();
        store.delete(gone).await.unwrap();
        assert!(matches!(store.length(gone).await, Err(BlobError::NotFound(id)) if id == gone));
        assert!(matches!(
            store.get(gone, 0..1).await.err(),
            Some(BlobError::NotFound(_))
        ));
        ids.sort();
        let mut listed = Vec::new();
        loop {
            let page = store.list(listed.last().copied(), 7).await.unwrap();
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        assert_eq!(listed, ids);
    }

    #[test]
    fn names_are_parsed_strictly() {
        let id = BlobId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "../../../../etc/passwd",
            "+0000000000000000000000000000001",
            "AB",
        ] {
            assert!(bad.parse::<BlobId>().is_err(), "{bad}");
        }
    }
}
