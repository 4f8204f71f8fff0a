//! Reading request bodies: how large each may be, how long it may take, and how many bytes of one
//! client and of all together are held at once.
//!
//! Media uploads are not read here: they go to the disk as they come.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::StatusCode,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use ruma::api::error::ErrorKind;
use tokio::time::timeout;

use super::ApiError;
use crate::app::limits::LimitKey;

/// Bytes of a request body that is not a media upload. Key backups and to-device messages are the
/// largest that clients send.
pub(crate) const MAX_BODY: usize = 8 * 1024 * 1024;

/// Bytes of the body of somebody who has not shown an access token: a login, a registration or a
/// password change is far smaller.
pub(crate) const MAX_STRANGERS_BODY: usize = 64 * 1024;

/// How long a request body may take to arrive.
pub(crate) const BODY_PATIENCE: Duration = Duration::from_mins(1);

/// How long nothing of it may arrive.
const STALL_PATIENCE: Duration = Duration::from_secs(10);

/// Where a body begins to be a large one.
const SMALL_BODY: usize = 64 * 1024;

/// When to ask again if too many bodies are being read.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Which bytes are counted together, so that neither strangers nor those who send much keep anybody
/// from sending a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    /// What is sent without an access token.
    Strangers,
    /// What is sent with one, as far as it is within the first [`SMALL_BODY`] of a body.
    Small,
    /// What is sent beyond that.
    Large,
    /// What other servers send.
    Servers,
}

const POOLS: usize = 4;

impl Pool {
    /// The pool of a piece with which a body of this client becomes `length` long.
    fn of(client: &LimitKey, length: usize) -> Self {
        match client {
            LimitKey::User(_) if length <= SMALL_BODY => Self::Small,
            LimitKey::User(_) => Self::Large,
            LimitKey::Server(_) => Self::Servers,
            _ => Self::Strangers,
        }
    }

    /// Bytes of all clients that are held at once.
    fn of_all(self) -> usize {
        match self {
            Self::Strangers | Self::Small => 32 * 1024 * 1024,
            Self::Large => 64 * 1024 * 1024,
            Self::Servers => 128 * 1024 * 1024,
        }
    }

    /// Bytes of one client that are held at once: sixteen small bodies, or two large ones, of the
    /// greatest size. Behind a proxy that is not trusted all servers have one address.
    fn of_one(self) -> usize {
        match self {
            Self::Strangers | Self::Small => 1024 * 1024,
            Self::Large => 2 * MAX_BODY,
            Self::Servers => 64 * 1024 * 1024,
        }
    }
}

/// What may be held of all bodies of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct BodyBudget {
    held: Arc<Mutex<HeldBytes>>,
}

/// How many bytes are held, by [`Pool`].
#[derive(Debug, Default)]
struct HeldBytes {
    of_all: [usize; POOLS],
    /// Clients of whom anything is held.
    of_one: HashMap<LimitKey, [usize; POOLS]>,
}

impl HeldBytes {
    /// Takes these bytes, unless that were too much of the client or of all. Those whose address is
    /// not known are many: none of them has a share of its own.
    fn take(&mut self, client: &LimitKey, pool: Pool, bytes: usize) -> Option<()> {
        let index = pool as usize;
        let all = self.of_all[index].checked_add(bytes)?;
        let own = self.of_one.get(client).map_or(0, |held| held[index]);
        let own = own.checked_add(bytes)?;
        let shared = matches!(client, LimitKey::Nobody | LimitKey::Server(None));
        if all > pool.of_all() || (own > pool.of_one() && !shared) {
            return None;
        }
        self.of_all[index] = all;
        self.of_one.entry(client.clone()).or_default()[index] = own;
        Some(())
    }

    fn give_back(&mut self, client: &LimitKey, bytes: [usize; POOLS]) {
        let Some(own) = self.of_one.get_mut(client) else {
            return;
        };
        for (pool, bytes) in bytes.into_iter().enumerate() {
            self.of_all[pool] -= bytes;
            own[pool] -= bytes;
        }
        if *own == [0; POOLS] {
            self.of_one.remove(client);
        }
    }
}

/// Bytes of the largest body that a client may send.
fn limit_of(client: &LimitKey) -> usize {
    match client {
        LimitKey::User(_) => MAX_BODY,
        _ => MAX_STRANGERS_BODY,
    }
}

/// A whole body, with its share of the budget, which is given back when this is dropped. Without
/// `Debug`: a body may be a password.
#[derive(Default)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _share: Option<Share>,
}

/// What is held of one body.
struct Share {
    budget: BodyBudget,
    client: LimitKey,
    taken: [usize; POOLS],
}

impl Share {
    /// Takes the share of a piece with which the body becomes `length` long.
    fn grow(&mut self, piece: usize, length: usize) -> Option<()> {
        let pool = Pool::of(&self.client, length);
        self.budget.held.lock().take(&self.client, pool, piece)?;
        self.taken[pool as usize] += piece;
        Some(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.lock().give_back(&self.client, self.taken);
    }
}

impl BodyBudget {
    /// Reads a whole body.
    pub(super) async fn read(&self, body: Body, client: LimitKey) -> Result<Held, ApiError> {
        let limit = limit_of(&client);
        self.read_at_most(body, client, limit).await
    }

    /// Reads a whole body of at most `limit` bytes. A length that is announced and too large is
    /// refused before anything is read.
    pub(super) async fn read_at_most(
        &self,
        body: Body,
        client: LimitKey,
        limit: usize,
    ) -> Result<Held, ApiError> {
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large(limit));
        }
        let read = timeout(BODY_PATIENCE, self.collect(body, client, limit));
        read.await.unwrap_or_else(|_| Err(too_slow()))
    }

    /// Copies the pieces of a body into one: a piece may be one byte of a whole buffer. The room for
    /// an announced length is reserved and not touched before it is needed.
    async fn collect(
        &self,
        mut body: Body,
        client: LimitKey,
        limit: usize,
    ) -> Result<Held, ApiError> {
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
        let mut bytes = Vec::with_capacity(announced.min(limit));
        let mut share = Share {
            budget: self.clone(),
            client,
            taken: [0; POOLS],
        };
        loop {
            let frame = timeout(STALL_PATIENCE, body.frame()).await;
            let Some(frame) = frame.map_err(|_| too_slow())? else {
                break;
            };
            let frame = frame.map_err(|_| ApiError::not_json("The body ended early"))?;
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + piece.len();
            if length > limit {
                return Err(too_large(limit));
            }
            let grown = share.grow(piece.len(), length);
            grown.ok_or_else(|| ApiError::limit_exceeded(PAUSE))?;
            bytes.extend_from_slice(&piece);
        }
        Ok(Held {
            bytes: bytes.into(),
            _share: Some(share),
        })
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::too_large(format!("The body is larger than {limit} bytes"))
}

fn too_slow() -> ApiError {
    let message = "The body took too long to arrive";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::Unknown, message)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::IntoResponse;
    use futures_util::{FutureExt, StreamExt, stream};

    use super::*;

    /// A body without an announced length.
    fn chunked(pieces: usize, piece: usize) -> Body {
        let piece = Bytes::from(vec![b' '; piece]);
        let pieces = stream::iter(vec![Ok::<_, Infallible>(piece); pieces]);
        Body::from_stream(pieces)
    }

    /// A body of which some comes, and then no more.
    fn stalled(pieces: usize, piece: usize) -> Body {
        let piece = Bytes::from(vec![b' '; piece]);
        let pieces = stream::iter(vec![Ok::<_, Infallible>(piece); pieces]);
        Body::from_stream(pieces.chain(stream::pending()))
    }

    fn user(number: usize) -> LimitKey {
        let user = format!("@user{number}:localhost");
        LimitKey::User(user.try_into().unwrap())
    }

    fn stranger(number: u8) -> LimitKey {
        LimitKey::address(Some([192, 0, 2, number].into()))
    }

    fn server(number: u8) -> LimitKey {
        LimitKey::server(Some([192, 0, 2, number].into()))
    }

    fn is_empty(budget: &BodyBudget) -> bool {
        let held = budget.held.lock();
        held.of_all == [0; POOLS] && held.of_one.is_empty()
    }

    #[tokio::test]
    async fn strangers_may_send_little() {
        let budget = BodyBudget::default();
        for (pieces, piece, fits) in [(64, 1024, true), (65, 1024, false), (1, 65_537, false)] {
            let read = budget.read(chunked(pieces, piece), stranger(1)).await;
            assert_eq!(read.is_ok(), fits, "{pieces} × {piece}");
            if let Ok(held) = read {
                assert_eq!(held.bytes.len(), pieces * piece);
                let counted = budget.held.lock().of_all;
                assert_eq!(counted, [pieces * piece, 0, 0, 0]);
            }
            assert!(is_empty(&budget), "what was held is given back");
        }
        let larger = chunked(65, 1024);
        assert!(budget.read(larger, user(1)).await.is_ok());
    }

    /// Who leaves bodies lying is refused more of them; the next one is not.
    #[tokio::test(start_paused = true)]
    async fn a_used_up_share_refuses_its_client_and_nobody_else() {
        let cases = [
            ("large", user(1), user(2), (128, 65_536), 2),
            ("small", user(1), user(2), (1, 65_536), 16),
            ("strangers", stranger(1), stranger(2), (1, 65_536), 16),
            ("servers", server(1), server(2), (1, 65_536), 1024),
        ];
        for (name, greedy, other, (pieces, piece), fit) in cases {
            let budget = BodyBudget::default();
            let read =
                |body, client: &LimitKey| budget.read_at_most(body, client.clone(), MAX_BODY);
            let mut lying = Vec::new();
            for _ in 0..fit {
                let mut body = Box::pin(read(stalled(pieces, piece), &greedy));
                assert!((&mut body).now_or_never().is_none(), "{name}");
                lying.push(body);
            }
            let refused = read(chunked(pieces, piece), &greedy).await;
            let refused = refused.err().unwrap().into_response();
            assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{name}");
            assert_eq!(refused.headers()["retry-after"], "1");
            let served = read(chunked(pieces, piece), &other).await;
            assert!(served.is_ok(), "{name}");
            drop((lying, served));
            assert!(is_empty(&budget), "{name}");
        }
    }

    /// Those who send much keep nobody from sending little.
    #[tokio::test]
    async fn a_used_up_pool_leaves_the_others() {
        let budget = BodyBudget::default();
        let mut held = Vec::new();
        for number in 0..20 {
            let read = budget.read(chunked(128, 65_536), user(number));
            held.extend(read.await.ok());
        }
        assert_eq!(held.len(), 8, "of 8 MiB each");
        let small = budget.read(chunked(1, 65_536), user(20)).await;
        let strange = budget.read(chunked(1, 65_536), stranger(1)).await;
        assert!(small.is_ok() && strange.is_ok());
    }

    #[tokio::test]
    async fn those_without_an_address_share_only_the_pool() {
        let budget = BodyBudget::default();
        let mut held = Vec::new();
        for _ in 0..600 {
            let read = budget.read(chunked(1, 65_536), LimitKey::Nobody).await;
            held.extend(read.ok());
        }
        assert_eq!(held.len() * 65_536, Pool::Strangers.of_all());
        assert_eq!(budget.held.lock().of_one.len(), 1);
        held.clear();
        assert!(is_empty(&budget));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stands_still_is_given_up() {
        let budget = BodyBudget::default();
        let begun = tokio::time::Instant::now();
        let read = budget.read(stalled(1, 1024), user(1)).await;
        let given_up = read.err().unwrap().into_response();
        assert_eq!(given_up.status(), StatusCode::REQUEST_TIMEOUT);
        assert!(begun.elapsed() < STALL_PATIENCE * 2);
        // Slow is not still, up to the whole patience.
        for (pieces, fits) in [(8, true), (20, false)] {
            let pieces = stream::iter(0..pieces).then(|_| async {
                tokio::time::sleep(STALL_PATIENCE / 2).await;
                Ok::<_, Infallible>(Bytes::from_static(b" "))
            });
            let read = budget.read(Body::from_stream(pieces), user(1)).await;
            assert_eq!(read.is_ok(), fits);
        }
        assert!(is_empty(&budget));
    }
}
