//! Blobs in memory: for tests, and beside the memory engine.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use homeserver_runtime::{Entropy, Runtime};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{BlobError, BlobId, BlobStore, StoredBlob};

/// Blobs that are gone with the process.
#[derive(Debug)]
pub struct MemoryBlobs {
    blobs: Mutex<BTreeMap<BlobId, Bytes>>,
    entropy: Arc<dyn Entropy>,
}

impl MemoryBlobs {
    /// No blobs.
    #[must_use]
    pub fn new(runtime: &Runtime) -> Self {
        Self {
            blobs: Mutex::default(),
            entropy: Arc::clone(&runtime.entropy),
        }
    }

    fn one(&self, id: BlobId) -> Result<Bytes, BlobError> {
        let found = self.blobs.lock().get(&id).cloned();
        found.ok_or(BlobError::NotFound(id))
    }
}

#[async_trait]
impl BlobStore for MemoryBlobs {
    async fn put(
        &self,
        content: &mut (dyn AsyncRead + Send + Unpin),
        limit: u64,
    ) -> Result<StoredBlob, BlobError> {
        let mut bytes = Vec::new();
        // One byte more than allowed tells a content that is too large.
        let mut bounded = content.take(limit.saturating_add(1));
        let read = bounded.read_to_end(&mut bytes).await;
        read.map_err(BlobError::Source)?;
        let length = bytes.len() as u64;
        if length > limit {
            return Err(BlobError::TooLarge { limit });
        }
        let id = BlobId(self.entropy.bytes());
        self.blobs.lock().insert(id, bytes.into());
        Ok(StoredBlob { id, length })
    }

    async fn length(&self, id: BlobId) -> Result<u64, BlobError> {
        Ok(self.one(id)?.len() as u64)
    }

    async fn get(
        &self,
        id: BlobId,
        range: Range<u64>,
    ) -> Result<Box<dyn AsyncRead + Send + Sync + Unpin>, BlobError> {
        let blob = self.one(id)?;
        let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(blob.len());
        let (start, end) = (clamp(range.start), clamp(range.end));
        let part = blob.slice(start..end.max(start));
        Ok(Box::new(io::Cursor::new(part)))
    }

    async fn delete(&self, id: BlobId) -> Result<(), BlobError> {
        self.blobs.lock().remove(&id);
        Ok(())
    }

    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>, BlobError> {
        let blobs = self.blobs.lock();
        let ids = blobs
            .keys()
            .filter(|id| after.is_none_or(|after| **id > after));
        Ok(ids.take(limit).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blobs_are_kept_ranged_listed_and_removed() {
        let blobs: Box<dyn BlobStore> = Box::new(MemoryBlobs::new(&Runtime::system()));
        let stored = blobs.put_bytes(b"hello").await.unwrap();
        assert_eq!(stored.length, 5);
        assert_eq!(&blobs.read(stored.id, 5).await.unwrap()[..], b"hello");
        let mut part = String::new();
        let mut stream = blobs.get(stored.id, 1..99).await.unwrap();
        stream.read_to_string(&mut part).await.unwrap();
        assert_eq!(part, "ello");
        assert_eq!(blobs.list(None, 9).await.unwrap(), [stored.id]);
        assert_eq!(blobs.list(Some(stored.id), 9).await.unwrap(), []);
        assert!(matches!(
            blobs.put(&mut &b"too long"[..], 3).await,
            Err(BlobError::TooLarge { limit: 3 })
        ));
        blobs.delete(stored.id).await.unwrap();
        assert!(matches!(
            blobs.length(stored.id).await,
            Err(BlobError::NotFound(_))
        ));
    }
}
