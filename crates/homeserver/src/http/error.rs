//! What a client is told when something fails. The one place where errors of `app` and of the
//! crates below meet a status code.
//!
//! Specification: client-server API, "Standard error response".

mod accounts;
mod elsewhere;
mod identity;
mod resident;
mod rooms;
mod sync;

pub(crate) use self::resident::bad_gateway;

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use ruma::api::error::{
    DeserializationError, ErrorKind, FromHttpRequestError, LimitExceededErrorData, RetryAfter,
    StandardErrorBody, UnknownTokenErrorData,
};

/// An error answer: a status code and a Matrix error code, or a body of the endpoint's own.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Standard { kind: ErrorKind, message: String },
    Json(serde_json::Value),
}

impl ApiError {
    /// Any standard error.
    pub(crate) fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            body: Body::Standard { kind, message },
        }
    }

    /// An error whose body is more than a code and a message, as in user-interactive auth.
    pub(crate) fn json(status: StatusCode, body: serde_json::Value) -> Self {
        Self {
            status,
            body: Body::Json(body),
        }
    }

    /// 400 `M_INVALID_PARAM`.
    pub(crate) fn invalid_param(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidParam, message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub(crate) fn missing_param(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::MissingParam, message)
    }

    /// 400 `M_BAD_JSON`.
    pub(crate) fn bad_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::BadJson, message)
    }

    /// 400 `M_NOT_JSON`.
    pub(crate) fn not_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::NotJson, message)
    }

    /// 403 `M_FORBIDDEN`.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorKind::Forbidden, message)
    }

    /// 404 `M_NOT_FOUND`.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, message)
    }

    /// 404 `M_UNRECOGNIZED`: this server has no such endpoint.
    pub(crate) fn unrecognized() -> Self {
        let message = "Unrecognized request";
        Self::new(StatusCode::NOT_FOUND, ErrorKind::Unrecognized, message)
    }

    /// 400 `M_UNKNOWN`.
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::Unknown, message)
    }

    /// 403 `M_GUEST_ACCESS_FORBIDDEN`.
    pub(crate) fn guests_forbidden() -> Self {
        let message = "Guests are not allowed here";
        Self::new(
            StatusCode::FORBIDDEN,
            ErrorKind::GuestAccessForbidden,
            message,
        )
    }

    /// 413 `M_TOO_LARGE`.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, message)
    }

    /// 429 `M_LIMIT_EXCEEDED`, with the time to wait in header and body.
    pub(crate) fn limit_exceeded(wait: Duration) -> Self {
        let mut limit = LimitExceededErrorData::new();
        limit.retry_after = Some(RetryAfter::Delay(wait));
        let kind = ErrorKind::LimitExceeded(limit);
        Self::new(StatusCode::TOO_MANY_REQUESTS, kind, "Too many requests")
    }

    /// 500 `M_UNKNOWN`; the cause goes to the log, never to the client.
    pub(crate) fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = cause.to_string();
        let mut source = cause.source();
        while let Some(error) = source {
            chain.push_str(": ");
            chain.push_str(&error.to_string());
            source = error.source();
        }
        tracing::error!(error = chain, "a request failed inside the server");
        let message = "Internal server error";
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Unknown,
            message,
        )
    }

    /// 503 `M_UNKNOWN`: what was asked for may or may not have happened; ask again.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unknown, message)
    }

    /// 401 `M_MISSING_TOKEN`.
    pub(crate) fn missing_token() -> Self {
        let message = "Missing access token";
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::MissingToken, message)
    }

    /// 401 `M_UNKNOWN_TOKEN`.
    pub(crate) fn unknown_token(message: impl Into<String>, soft_logout: bool) -> Self {
        let mut token = UnknownTokenErrorData::new();
        token.soft_logout = soft_logout;
        let kind = ErrorKind::UnknownToken(token);
        Self::new(StatusCode::UNAUTHORIZED, kind, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = match &self.body {
            Body::Standard {
                kind: ErrorKind::LimitExceeded(limit),
                ..
            } => limit.retry_after,
            _ => None,
        };
        let body = match self.body {
            Body::Standard { kind, message } => {
                serde_json::to_vec(&StandardErrorBody::new(kind, message))
            }
            Body::Json(value) => serde_json::to_vec(&value),
        };
        let body = body.unwrap_or_else(|_| br#"{"errcode":"M_UNKNOWN","error":""}"#.to_vec());
        let mut response = (
            self.status,
            [(header::CONTENT_TYPE, "application/json")],
            body,
        )
            .into_response();
        if let Some(RetryAfter::Delay(wait)) = retry_after {
            // Whole seconds, rounded up: a client that waits as told is never refused again for it.
            let seconds = wait.as_millis().div_ceil(1000).to_string();
            if let Ok(value) = HeaderValue::try_from(seconds) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        response
    }
}

/// The answer on a path that no endpoint has.
pub(super) async fn unknown_path() -> ApiError {
    ApiError::unrecognized()
}

/// The answer on an endpoint's path when the method is not the endpoint's.
pub(super) async fn unknown_method() -> ApiError {
    let message = "Unrecognized request method";
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorKind::Unrecognized,
        message,
    )
}

impl From<FromHttpRequestError> for ApiError {
    fn from(error: FromHttpRequestError) -> Self {
        match error {
            FromHttpRequestError::Deserialization(error) => error.into(),
            other => Self::invalid_param(other.to_string()),
        }
    }
}

impl From<DeserializationError> for ApiError {
    fn from(error: DeserializationError) -> Self {
        match error {
            DeserializationError::Json(error) => error.into(),
            DeserializationError::Utf8(_) => Self::not_json("The body is not UTF-8"),
            DeserializationError::Query(error) => {
                let message = error.to_string();
                if message.contains("missing field") {
                    Self::missing_param(message)
                } else {
                    Self::invalid_param(message)
                }
            }
            other => Self::invalid_param(other.to_string()),
        }
    }
}

impl From<serde_json::Error> for ApiError {
    /// For errors in a request's body only.
    fn from(error: serde_json::Error) -> Self {
        let message = error.to_string();
        if !error.is_data() {
            Self::not_json(message)
        } else if message.contains("missing field") {
            Self::missing_param(message)
        } else {
            Self::bad_json(message)
        }
    }
}
