//! An answer whose body is still to come, and why there may be none.

use std::{fmt, pin::Pin, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, StatusCode};

/// What an answer may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// Bytes of the body.
    pub body: usize,
    /// From finding the server to the last byte.
    pub deadline: Duration,
    /// The longest pause in the body.
    pub stall: Duration,
}

/// The head of an answer, and a body that is yet to come.
#[derive(Debug)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// What follows.
    pub body: Body,
}

/// A body as it arrives. It ends with an error where it passes the limits of its request.
pub struct Body {
    chunks: Pin<Box<dyn Stream<Item = Result<Bytes, TransportError>> + Send>>,
    limit: usize,
    read: usize,
}

/// Why there is no answer, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No address is known for the name.
    #[error("the server is not found: {0}")]
    Unresolved(String),
    /// Its addresses are in denied ranges. Nothing was connected.
    #[error("the server is at an address that is not to be reached")]
    Denied,
    /// Nothing listens there, or the connection broke.
    #[error("the server is not reached: {0}")]
    Unreachable(String),
    /// It cannot prove its name.
    #[error("the server does not prove its name: {0}")]
    Tls(String),
    /// The deadline passed.
    #[error("no complete answer in time")]
    Deadline,
    /// The body paused for too long.
    #[error("the answer came to a halt")]
    Stalled,
    /// The body is longer than the limit, in bytes.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The answer is not HTTP, or is compressed although nothing else than plain was asked for.
    #[error("the answer is malformed: {0}")]
    Broken(String),
}

impl Body {
    /// A body of these chunks, of at most `limit` bytes.
    pub fn new(
        chunks: impl Stream<Item = Result<Bytes, TransportError>> + Send + 'static,
        limit: usize,
    ) -> Self {
        Self {
            chunks: Box::pin(chunks),
            limit,
            read: 0,
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks, or a limit is passed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, TransportError> {
        let Some(chunk) = self.chunks.next().await.transpose()? else {
            return Ok(None);
        };
        self.read += chunk.len();
        if self.read > self.limit {
            return Err(TransportError::TooLarge(self.limit));
        }
        Ok(Some(chunk))
    }

    /// All of it.
    ///
    /// # Errors
    /// Those of [`Body::chunk`].
    pub async fn whole(mut self) -> Result<Bytes, TransportError> {
        let first = self.chunk().await?.unwrap_or_default();
        let Some(second) = self.chunk().await? else {
            return Ok(first);
        };
        let mut whole = BytesMut::from(first);
        whole.extend_from_slice(&second);
        while let Some(chunk) = self.chunk().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Body");
        debug.field("limit", &self.limit).field("read", &self.read);
        debug.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, stream};

    use super::*;

    fn body(chunks: &[&'static str], limit: usize) -> Body {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from(*chunk))).collect();
        Body::new(stream::iter(chunks), limit)
    }

    fn whole(body: Body) -> Result<Bytes, TransportError> {
        body.whole().now_or_never().unwrap()
    }

    #[test]
    fn a_body_is_read_up_to_its_limit() {
        assert_eq!(whole(body(&[], 0)).unwrap(), "");
        assert_eq!(whole(body(&["abc"], 3)).unwrap(), "abc");
        assert_eq!(whole(body(&["ab", "c", "de"], 5)).unwrap(), "abcde");
        let over = whole(body(&["ab", "c", "de"], 4));
        assert!(matches!(over, Err(TransportError::TooLarge(4))));
        let broken = Body::new(stream::iter([Err(TransportError::Stalled)]), 9);
        assert!(matches!(whole(broken), Err(TransportError::Stalled)));
    }
}
