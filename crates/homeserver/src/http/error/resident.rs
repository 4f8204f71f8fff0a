//! Errors of memberships across servers, as other servers and clients are told them.

use axum::http::StatusCode;
use homeserver_federation::{CallError, CheckError, InviteError, PolicyError, ResidentError};
use ruma::api::error::{ErrorKind, IncompatibleRoomVersionErrorData};

use super::ApiError;

impl From<ResidentError> for ApiError {
    fn from(error: ResidentError) -> Self {
        let message = error.to_string();
        match error {
            ResidentError::UnknownRoom => Self::not_found(message),
            ResidentError::NotYours
            | ResidentError::Denied
            | ResidentError::NotAllowed
            | ResidentError::NotRecommended => Self::forbidden(message),
            ResidentError::Version(version) => {
                let kind = IncompatibleRoomVersionErrorData::new(version);
                let kind = ErrorKind::IncompatibleRoomVersion(kind);
                Self::new(StatusCode::BAD_REQUEST, kind, message)
            }
            ResidentError::Form(_) => Self::bad_json(message),
            ResidentError::Signatures(_) | ResidentError::Unfounded => Self::invalid_param(message),
            ResidentError::Room(error) => error.into(),
            ResidentError::Check(error) => error.into(),
        }
    }
}

impl From<CheckError> for ApiError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Storage(error) => error.into(),
            CheckError::Pool(_) => Self::unavailable("The server is stopping"),
        }
    }
}

impl From<InviteError> for ApiError {
    /// For clients. What the other server says about the user goes on to them; what it says about
    /// the request is between the servers (`PUT /v2/invite`, 400).
    fn from(error: InviteError) -> Self {
        match error {
            InviteError::Call(error) => of_call(&error),
            InviteError::Answer(_) | InviteError::NotSigned => bad_gateway(error.to_string()),
            InviteError::Nobody => Self::bad_json(error.to_string()),
            InviteError::Room(error) => error.into(),
            InviteError::Check(error) => error.into(),
        }
    }
}

impl From<PolicyError> for ApiError {
    /// For clients. What the policy server says goes on to them as it is; where it says nothing of
    /// use, the event is not sent either.
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Room(error) => error.into(),
            PolicyError::Call(CallError::Refused { status, body, .. })
                if status.is_client_error() =>
            {
                match serde_json::from_slice::<serde_json::Value>(&body) {
                    Ok(body) if body["errcode"].is_string() => Self::json(status, body),
                    _ => Self::forbidden("The policy server of the room refuses the event"),
                }
            }
            error => {
                tracing::debug!(%error, "a policy server did not sign");
                Self::forbidden("The policy server of the room did not sign the event")
            }
        }
    }
}

impl From<CallError> for ApiError {
    /// Of a question that a client's request passes on.
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Disabled | CallError::NotAdmitted(_) => Self::forbidden(error.to_string()),
            CallError::Refused {
                errcode, message, ..
            } if errcode == "M_FORBIDDEN" => Self::forbidden(message),
            CallError::Refused {
                errcode, message, ..
            } if errcode == "M_NOT_FOUND" => Self::not_found(message),
            _ => bad_gateway("The other server did not answer as it should"),
        }
    }
}

/// 502 `M_UNKNOWN`: another server that is needed does not do its part.
pub(crate) fn bad_gateway(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message)
}

fn of_call(error: &CallError) -> ApiError {
    match error {
        CallError::Disabled => ApiError::forbidden("This server does not speak to other servers"),
        CallError::NotAdmitted(_) => ApiError::forbidden(error.to_string()),
        CallError::Refused {
            status,
            errcode,
            message,
            ..
        } => match errcode.as_str() {
            "M_FORBIDDEN" => ApiError::forbidden(message),
            "M_INVITE_BLOCKED" => {
                ApiError::new(StatusCode::FORBIDDEN, ErrorKind::InviteBlocked, message)
            }
            "M_INCOMPATIBLE_ROOM_VERSION" | "M_UNSUPPORTED_ROOM_VERSION" => {
                let kind = ErrorKind::UnsupportedRoomVersion;
                ApiError::new(StatusCode::BAD_REQUEST, kind, message)
            }
            _ if *status == StatusCode::FORBIDDEN => ApiError::forbidden(message),
            _ => bad_gateway("The user's server did not accept the invite"),
        },
        CallError::OwnServer
        | CallError::BackingOff(_)
        | CallError::Busy
        | CallError::OwnRequest(_)
        | CallError::Transport(_)
        | CallError::BadAnswer(_) => bad_gateway("The user's server is not reached"),
    }
}
