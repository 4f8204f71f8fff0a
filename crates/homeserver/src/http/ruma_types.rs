//! ruma's request and response types as axum extractor and response.

use std::marker::PhantomData;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
    http::{header, request::Parts},
    response::{IntoResponse, Response},
};
use ruma::api::{
    IncomingRequest, IncomingRequestExt, Metadata, OutgoingResponse, OutgoingResponseExt,
    path_builder::PathBuilder,
};
use serde::de::DeserializeOwned;

use super::{ApiError, Components, bodies::Held, limits};

/// A ruma request as argument, a ruma response as result.
pub(crate) struct Ruma<T>(pub(crate) T);

impl<T: IncomingRequest> FromRequest<Components> for Ruma<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Components) -> Result<Self, ApiError> {
        let arrived = arrive::<T>(request, state).await?;
        Ok(Self(arrived.parse()?))
    }
}

/// A request of type `T` that was routed and limited as one, but whose body the handler reads by
/// itself.
pub(crate) struct Unparsed<T> {
    body: Held,
    request: PhantomData<fn() -> T>,
}

impl<T> Unparsed<T> {
    /// The body as JSON.
    pub(crate) fn json<B: DeserializeOwned>(&self) -> Result<B, ApiError> {
        refuse_array(&self.body.bytes)?;
        Ok(serde_json::from_slice(&self.body.bytes)?)
    }
}

impl<T: Metadata> FromRequest<Components> for Unparsed<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Components) -> Result<Self, ApiError> {
        let arrived = arrive::<T>(request, state).await?;
        Ok(Self {
            body: arrived.body,
            request: PhantomData,
        })
    }
}

/// A request that was let through and read, not yet parsed.
pub(super) struct Arrived {
    /// Its head.
    pub(super) parts: Parts,
    /// The path's parameters, decoded.
    pub(super) arguments: Vec<String>,
    /// The whole body.
    pub(super) body: Held,
}

/// Checks the rate limit, then reads the body. Of a `GET` there is none, whatever was sent.
pub(super) async fn arrive<T: Metadata>(
    request: Request,
    state: &Components,
) -> Result<Arrived, ApiError> {
    let (mut parts, body) = request.into_parts();
    limits::check::<T>(&parts, state)?;
    let parameters = RawPathParams::from_request_parts(&mut parts, state)
        .await
        .map_err(|error| ApiError::invalid_param(error.body_text()))?;
    let arguments = parameters.iter().map(|(_, value)| value.to_owned());
    let body = if T::METHOD == http::Method::GET {
        Held::default()
    } else {
        let client = limits::client(&parts, state);
        state.bodies.read(body, client).await?
    };
    Ok(Arrived {
        arguments: arguments.collect(),
        body,
        parts,
    })
}

impl Arrived {
    /// Parses the request; parameters that its path lacks are empty.
    pub(super) fn parse<T: IncomingRequest>(self) -> Result<T, ApiError> {
        let path = T::PATH_BUILDER.all_paths().next().unwrap_or_default();
        let expected = path.matches('{').count();
        let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        arguments.resize(expected.max(arguments.len()), "");
        // ruma reads an empty body as an empty object for most requests, but not for all.
        let is_bare_post = self.body.bytes.is_empty() && T::METHOD == http::Method::POST;
        let body = if is_bare_post {
            b"{}"
        } else {
            &self.body.bytes[..]
        };
        if T::METHOD != http::Method::GET {
            refuse_array(body)?;
        }
        let request = http::Request::from_parts(self.parts, body);
        Ok(T::try_from_http_request(request, &arguments)?)
    }
}

/// serde reads an array as the fields of a structure in their order; a request's body is an object.
fn refuse_array(body: &[u8]) -> Result<(), ApiError> {
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::bad_json("The body is not an object"));
    }
    Ok(())
}

impl<T: OutgoingResponse> IntoResponse for Ruma<T> {
    fn into_response(self) -> Response {
        match self.0.try_into_http_response::<Vec<u8>>() {
            Ok(mut response) => {
                // Answers are about one user at one moment: no cache may keep them.
                response
                    .headers_mut()
                    .entry(header::CACHE_CONTROL)
                    .or_insert(header::HeaderValue::from_static("no-store"));
                response.map(Body::from)
            }
            Err(error) => ApiError::internal(&error).into_response(),
        }
    }
}

/// A JSON answer of an endpoint that ruma has no type for.
pub(crate) fn json_answer(value: &serde_json::Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, value.to_string()).into_response()
}
