//! Errors of identity servers and of third-party invites.

use axum::http::StatusCode;
use homeserver_federation::IdentityError;
use ruma::api::error::ErrorKind;
use serde_json::json;

use super::{ApiError, resident::bad_gateway};
use crate::{app::rooms::ExchangeError, http::bodies::PAUSE};

impl From<IdentityError> for ApiError {
    /// For clients. What they can do something about goes on to them.
    fn from(error: IdentityError) -> Self {
        let message = error.to_string();
        match error {
            IdentityError::Disabled => Self::forbidden(message),
            IdentityError::Request(_) => Self::invalid_param(message),
            IdentityError::Busy => Self::limit_exceeded(PAUSE),
            IdentityError::Refused {
                status, errcode, ..
            } => match errcode.as_str() {
                "M_TERMS_NOT_SIGNED" => {
                    let body = json!({ "errcode": errcode, "error": message });
                    Self::json(StatusCode::FORBIDDEN, body)
                }
                "M_UNRECOGNIZED" | "M_INVALID_PARAM" | "M_INVALID_EMAIL" => {
                    Self::invalid_param(message)
                }
                _ if status.is_client_error() => {
                    Self::new(StatusCode::FORBIDDEN, ErrorKind::ThreepidDenied, message)
                }
                _ => bad_gateway(message),
            },
            IdentityError::Unreachable(_) | IdentityError::Answer(_) => bad_gateway(message),
        }
    }
}

impl From<ExchangeError> for ApiError {
    /// For the server of the invited user.
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Resident(error) => error.into(),
            ExchangeError::Change(error) => error.into(),
        }
    }
}
