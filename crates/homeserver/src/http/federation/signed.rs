//! Requests that other servers signed, as arguments of handlers.
//!
//! Whoever asks is known before a handler is called: 401 without a valid signature. What a request
//! may cost before that is bounded by address: keys of strangers are fetched as often as the class
//! `other` of the rate limits allows, bodies have a share of what is held of all of them.
//!
//! A request has its place among those of its server until its answer is written or given up: many
//! slow readers hold no more answers than fast ones ([`hold_place`]).
//!
//! Specification: server-server API, "Request Authentication".

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts as _, RawPathParams, Request},
    http::{StatusCode, request::Parts},
    middleware::Next,
    response::Response,
};

use homeserver_federation::{
    FrontError,
    front::{Arrived as Unproven, Place},
    keys::KeyProblem,
};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use ruma::{
    OwnedServerName,
    api::{IncomingRequest, error::ErrorKind},
};

use crate::{
    app::limits::{LimitClass, LimitKey},
    http::{ApiError, Components, bodies::Held, routes::RumaArgument, ruma_types::Arrived},
};

/// Bytes of the largest body: a transaction of 50 events and 100 other messages of the greatest
/// size, with room for what is around them.
pub(crate) const MAX_BODY: usize = 12 * 1024 * 1024;

/// A request of another server, as ruma's type of it.
pub(crate) struct Signed<T> {
    /// The server that sent it.
    pub(crate) origin: OwnedServerName,
    /// What it asks.
    pub(crate) request: T,
}

/// A request of another server whose body the handler reads by itself.
pub(crate) struct SignedBody {
    /// The server that sent it.
    pub(crate) origin: OwnedServerName,
    /// The whole body.
    pub(crate) body: Held,
}

/// Where the place of a request waits for its answer.
#[derive(Clone, Debug, Default)]
struct PlaceOfAnswer(Arc<Mutex<Option<Place>>>);

/// Keeps the place that a request was given until its answer is gone.
pub(super) async fn hold_place(mut request: Request, next: Next) -> Response {
    let place = PlaceOfAnswer::default();
    request.extensions_mut().insert(place.clone());
    let response = next.run(request).await;
    let place = place.0.lock().take();
    let held = |body: Body| {
        let body = body.map_err(move |error| {
            let _held_as_long_as_the_body = &place;
            error
        });
        Body::new(body)
    };
    response.map(held)
}

impl<T: IncomingRequest> FromRequest<Components> for Signed<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Components) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let arguments = RawPathParams::from_request_parts(&mut parts, state)
            .await
            .map_err(|error| ApiError::invalid_param(error.body_text()))?;
        let arguments = arguments
            .iter()
            .map(|(_, value)| value.to_owned())
            .collect();
        let proven = prove(&parts, body, state).await?;
        let arrived = Arrived {
            parts,
            arguments,
            body: proven.body,
        };
        Ok(Self {
            origin: proven.origin,
            request: arrived.parse()?,
        })
    }
}

impl<T: IncomingRequest + 'static> RumaArgument for Signed<T> {
    type Request = T;
}

impl FromRequest<Components> for SignedBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Components) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        prove(&parts, body, state).await
    }
}

/// Reads a request and finds out who sent it.
async fn prove(parts: &Parts, body: Body, state: &Components) -> Result<SignedBody, ApiError> {
    let front = &state.federation.front;
    let address = state.proxies.client(&parts.extensions, &parts.headers);
    let claim = front.claim(&parts.headers)?;
    let at_hand = front.keys_at_hand(&claim).await?;
    let keys = if let Some(keys) = at_hand {
        keys
    } else {
        let client = LimitKey::address(address);
        state.limits.take(LimitClass::Other, client)?;
        front.keys_of(&claim).await?
    };
    let client = LimitKey::server(address);
    let body = state.bodies.read_at_most(body, client, MAX_BODY).await?;
    let target = parts.uri.path_and_query();
    let arrived = Unproven {
        method: parts.method.as_str(),
        target: target.map_or("/", |target| target.as_str()),
        body: &body.bytes,
    };
    let origin = front.check(claim, keys, arrived).await?;
    let place = front.place(&origin)?;
    let answer = parts.extensions.get::<PlaceOfAnswer>();
    if let Some(answer) = answer {
        *answer.0.lock() = Some(place);
    }
    Ok(SignedBody { origin, body })
}

impl From<FrontError> for ApiError {
    fn from(error: FrontError) -> Self {
        let unauthorized = |error: FrontError| {
            let kind = ErrorKind::Unauthorized;
            Self::new(StatusCode::UNAUTHORIZED, kind, error.to_string())
        };
        match error {
            FrontError::Key(KeyProblem::Storage(error)) => error.into(),
            FrontError::Busy | FrontError::Key(KeyProblem::Busy) => {
                Self::limit_exceeded(crate::http::bodies::PAUSE)
            }
            FrontError::NotAdmitted(_) | FrontError::Key(KeyProblem::NotAdmitted(_)) => {
                Self::forbidden("This server does not speak to yours")
            }
            FrontError::Header(_)
            | FrontError::Request(_)
            | FrontError::Key(_)
            | FrontError::OwnServer => unauthorized(error),
        }
    }
}
