//! ruma's request and response types as axum extractor and response.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, RawPathParams, Request},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use ruma::api::{
    IncomingRequest, IncomingRequestExt, Metadata, OutgoingResponse, OutgoingResponseExt,
    error::ErrorKind, path_builder::PathBuilder,
};

use super::{ApiError, Components};

/// Bytes of a request body that is not a media upload. Key backups and to-device messages are the
/// largest that clients send.
pub(crate) const MAX_BODY: usize = 8 * 1024 * 1024;

/// How long a request body may take to arrive.
pub(crate) const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// A ruma request as argument, a ruma response as result.
#[derive(Debug)]
pub(crate) struct Ruma<T>(pub(crate) T);

impl<T> FromRequest<Components> for Ruma<T>
where
    T: IncomingRequest,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Components) -> Result<Self, ApiError> {
        use axum::extract::FromRequestParts;

        let (mut parts, body) = request.into_parts();
        let parameters = RawPathParams::from_request_parts(&mut parts, state)
            .await
            .map_err(|error| ApiError::invalid_param(error.body_text()))?;
        let mut arguments: Vec<&str> = parameters.iter().map(|(_, value)| value).collect();
        arguments.resize(parameter_count::<T>().max(arguments.len()), "");
        let body = read_body(body, MAX_BODY).await?;
        let request = http::Request::from_parts(parts, &body[..]);
        Ok(Self(T::try_from_http_request(request, &arguments)?))
    }
}

fn parameter_count<T: Metadata>() -> usize {
    let path = T::PATH_BUILDER.all_paths().next().unwrap_or_default();
    path.matches('{').count()
}

/// Reads a whole body of at most `limit` bytes.
pub(crate) async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let collected = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(format!(
            "The body is larger than {limit} bytes"
        ))),
        Ok(Err(_)) => Err(ApiError::not_json("The body ended early")),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            ErrorKind::Unknown,
            "The body took too long to arrive",
        )),
    }
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
