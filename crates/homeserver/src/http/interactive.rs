//! A ruma request that needs user-interactive authentication, with its `auth` set apart.

use axum::extract::{FromRequest, Request};
use ruma::api::{IncomingRequest, Metadata, path_builder::PathBuilder};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{ApiError, Components, ruma_types};
use crate::app::{authentication::Proof, interactive::Operation, session::Session};

/// A request, what the client offers as authentication for it, and a hash of all the rest.
pub(crate) struct Interactive<T> {
    /// The request.
    pub(crate) request: T,
    /// The `auth` object of its body.
    pub(crate) proof: Option<Proof>,
    /// Hash of path parameters and body without `auth`.
    body: [u8; 32],
}

impl<T: Metadata> Interactive<T> {
    /// The request as an authentication session knows it: the same on all paths of the endpoint.
    pub(crate) fn operation(&self, session: Option<&Session>) -> Operation {
        Operation {
            endpoint: T::PATH_BUILDER.all_paths().last().unwrap_or_default(),
            user: session.map(|session| session.user.clone()),
            body: self.body,
        }
    }
}

/// The `auth` object on the wire. `user` stands in `identifier`, or, as old clients have it, beside
/// the password.
#[derive(Deserialize)]
struct AuthBody {
    #[serde(rename = "type")]
    stage: Option<String>,
    session: Option<String>,
    identifier: Option<Identifier>,
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Identifier {
    user: Option<String>,
}

impl From<AuthBody> for Proof {
    fn from(body: AuthBody) -> Self {
        Self {
            stage: body.stage,
            session: body.session,
            user: body.identifier.and_then(|it| it.user).or(body.user),
            password: body.password,
            token: body.token,
        }
    }
}

impl<T: IncomingRequest> FromRequest<Components> for Interactive<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Components) -> Result<Self, ApiError> {
        let mut arrived = ruma_types::arrive::<T>(request, state).await?;
        let mut object = match &arrived.body.bytes[..] {
            [] => serde_json::Map::new(),
            body => match serde_json::from_slice(body)? {
                Value::Object(object) => object,
                _ => return Err(ApiError::bad_json("The body is not an object")),
            },
        };
        let auth = object.remove("auth").unwrap_or_default();
        let proof: Option<AuthBody> = serde_json::from_value(auth)?;
        let rest = Value::Object(object).to_string();
        let mut hash = Sha256::new();
        for argument in &arrived.arguments {
            hash.update(argument.as_bytes());
            hash.update([0]);
        }
        hash.update(&rest);
        arrived.body.bytes = rest.into();
        Ok(Self {
            request: arrived.parse()?,
            proof: proof.map(Proof::from),
            body: hash.finalize().into(),
        })
    }
}
