//! A ruma request that needs user-interactive authentication, with its `auth` set apart.

use axum::extract::{FromRequest, Request};
use ruma::api::{IncomingRequest, Metadata, path_builder::PathBuilder};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{ApiError, Components, ruma_types};

/// A request, what the client offers as authentication for it, and a hash of all the rest.
#[derive(Debug)]
pub(crate) struct Interactive<T> {
    /// The request.
    pub(crate) request: T,
    /// The `auth` object of its body.
    pub(crate) auth: Option<serde_json::Map<String, Value>>,
    /// Hash of path parameters and body without `auth`.
    pub(crate) body: [u8; 32],
}

impl<T: Metadata> Interactive<T> {
    /// The name of the endpoint in authentication sessions, the same on all its paths.
    pub(crate) fn endpoint() -> &'static str {
        T::PATH_BUILDER.all_paths().last().unwrap_or_default()
    }
}

impl<T: IncomingRequest> FromRequest<Components> for Interactive<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Components) -> Result<Self, ApiError> {
        let arrived = ruma_types::arrive::<T>(request, state).await?;
        let mut object = match &arrived.body[..] {
            [] => serde_json::Map::new(),
            body => match serde_json::from_slice(body)? {
                Value::Object(object) => object,
                _ => return Err(ApiError::bad_json("The body is not an object")),
            },
        };
        let auth = match object.remove("auth") {
            None | Some(Value::Null) => None,
            Some(Value::Object(auth)) => Some(auth),
            Some(_) => return Err(ApiError::bad_json("`auth` is not an object")),
        };
        let mut hash = Sha256::new();
        for argument in &arrived.arguments {
            hash.update(argument.as_bytes());
            hash.update([0]);
        }
        hash.update(Value::Object(object).to_string());
        Ok(Self {
            request: arrived.parse()?,
            auth,
            body: hash.finalize().into(),
        })
    }
}
