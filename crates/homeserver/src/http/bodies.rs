//! Reading request bodies: how large each may be, how long it may take, and how many bytes of all of
//! them together are held at once.
//!
//! Media uploads are not read here: they go to the disk as they come.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{StatusCode, request::Parts},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use ruma::api::error::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use crate::app::session::Session;

/// Bytes of a request body that is not a media upload. Key backups and to-device messages are the
/// largest that clients send.
pub(crate) const MAX_BODY: usize = 8 * 1024 * 1024;

/// Bytes of the body of somebody who has not shown an access token: a login, a registration or a
/// password change is far smaller.
pub(crate) const MAX_STRANGERS_BODY: usize = 64 * 1024;

/// How long a request body may take to arrive.
pub(crate) const BODY_PATIENCE: Duration = Duration::from_mins(1);

/// Bytes of strangers' bodies that are held at once.
const STRANGERS: usize = 32 * 1024 * 1024;
/// Bytes held at once of what is sent with an access token, as far as it is within the first
/// [`SMALL_BODY`] of a body.
const SMALL: usize = 32 * 1024 * 1024;
/// Bytes held at once of what is sent beyond that.
const LARGE: usize = 64 * 1024 * 1024;
/// Where a body begins to be a large one.
const SMALL_BODY: usize = 64 * 1024;

/// When to ask again if too many bodies are being read.
const PAUSE: Duration = Duration::from_secs(1);

/// What may be held of all bodies of this process. Three pools, so that neither strangers nor those
/// who send much keep anybody from sending a message.
#[derive(Clone, Debug)]
pub(crate) struct BodyBudget {
    strangers: Arc<Semaphore>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Default for BodyBudget {
    fn default() -> Self {
        Self {
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            small: Arc::new(Semaphore::new(SMALL)),
            large: Arc::new(Semaphore::new(LARGE)),
        }
    }
}

/// Who sends a body, which decides how much they may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Stranger,
    LoggedIn,
}

impl Sender {
    /// By the session that an argument before the body has left.
    pub(super) fn of(parts: &Parts) -> Self {
        match parts.extensions.get::<Session>() {
            Some(_) => Self::LoggedIn,
            None => Self::Stranger,
        }
    }

    fn limit(self) -> usize {
        match self {
            Self::Stranger => MAX_STRANGERS_BODY,
            Self::LoggedIn => MAX_BODY,
        }
    }
}

/// A whole body, with its share of the budget, which is given back when this is dropped. Without
/// `Debug`: a body may be a password.
#[derive(Default)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _share: Share,
}

#[derive(Default)]
struct Share {
    small: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

impl BodyBudget {
    /// Reads a whole body.
    pub(super) async fn read(&self, body: Body, sender: Sender) -> Result<Held, ApiError> {
        self.read_at_most(body, sender, sender.limit()).await
    }

    /// Reads a whole body of at most `limit` bytes. A length that is announced and too large is
    /// refused before anything is read.
    pub(super) async fn read_at_most(
        &self,
        body: Body,
        sender: Sender,
        limit: usize,
    ) -> Result<Held, ApiError> {
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large(limit));
        }
        match tokio::time::timeout(BODY_PATIENCE, self.collect(body, sender, limit)).await {
            Ok(read) => read,
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                ErrorKind::Unknown,
                "The body took too long to arrive",
            )),
        }
    }

    /// Copies the pieces of a body into one: a piece may be one byte of a whole buffer. The room for
    /// an announced length is reserved and not touched before it is needed.
    async fn collect(
        &self,
        mut body: Body,
        sender: Sender,
        limit: usize,
    ) -> Result<Held, ApiError> {
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
        let mut bytes = Vec::with_capacity(announced.min(limit));
        let mut share = Share::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::not_json("The body ended early"))?;
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + piece.len();
            if length > limit {
                return Err(too_large(limit));
            }
            self.take(&mut share, sender, piece.len(), length)
                .ok_or_else(|| ApiError::limit_exceeded(PAUSE))?;
            bytes.extend_from_slice(&piece);
        }
        Ok(Held {
            bytes: bytes.into(),
            _share: share,
        })
    }

    /// Takes the share of a piece with which a body becomes `length` long, unless it is used up.
    fn take(&self, share: &mut Share, sender: Sender, piece: usize, length: usize) -> Option<()> {
        let (pool, held) = match sender {
            Sender::Stranger => (&self.strangers, &mut share.small),
            Sender::LoggedIn if length <= SMALL_BODY => (&self.small, &mut share.small),
            Sender::LoggedIn => (&self.large, &mut share.large),
        };
        let piece = u32::try_from(piece).ok()?;
        let permit = Arc::clone(pool).try_acquire_many_owned(piece).ok()?;
        match held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        Some(())
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::too_large(format!("The body is larger than {limit} bytes"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::IntoResponse;
    use futures_util::stream;

    use super::*;

    /// A body without an announced length.
    fn chunked(pieces: usize, piece: usize) -> Body {
        let piece = Bytes::from(vec![b' '; piece]);
        let pieces = stream::iter(vec![Ok::<_, Infallible>(piece); pieces]);
        Body::from_stream(pieces)
    }

    fn left(budget: &BodyBudget) -> [usize; 3] {
        [&budget.strangers, &budget.small, &budget.large].map(|pool| pool.available_permits())
    }

    const ALL: [usize; 3] = [STRANGERS, SMALL, LARGE];

    #[tokio::test]
    async fn strangers_may_send_little() {
        let budget = BodyBudget::default();
        for (pieces, piece, fits) in [(64, 1024, true), (65, 1024, false), (1, 65_537, false)] {
            let read = budget.read(chunked(pieces, piece), Sender::Stranger).await;
            assert_eq!(read.is_ok(), fits, "{pieces} × {piece}");
            if let Ok(held) = read {
                assert_eq!(held.bytes.len(), pieces * piece);
                assert_eq!(left(&budget), [STRANGERS - pieces * piece, SMALL, LARGE]);
            }
            assert_eq!(left(&budget), ALL, "what was held is given back");
        }
        let larger = chunked(65, 1024);
        assert!(budget.read(larger, Sender::LoggedIn).await.is_ok());
    }

    #[tokio::test]
    async fn a_used_up_budget_refuses_and_other_pools_stay() {
        let budget = BodyBudget::default();
        let mut held = Vec::new();
        let refused = loop {
            match budget.read(chunked(128, 65_536), Sender::LoggedIn).await {
                Ok(body) => held.push(body),
                Err(error) => break error.into_response(),
            }
            assert!(held.len() < 20, "never refused");
        };
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()["retry-after"], "1");
        assert!(
            budget
                .read(chunked(1, 65_536), Sender::LoggedIn)
                .await
                .is_ok()
        );
        assert!(
            budget
                .read(chunked(1, 65_536), Sender::Stranger)
                .await
                .is_ok()
        );
        held.clear();
        assert_eq!(left(&budget), ALL);
    }
}
