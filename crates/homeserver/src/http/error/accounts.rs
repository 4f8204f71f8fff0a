//! Errors about accounts, sessions and authentication.

use axum::http::StatusCode;
use homeserver_storage::{CommitError, StorageError};
use homeserver_users::{ChangeAccountError, DeviceError, Failure};
use ruma::api::error::ErrorKind;
use serde_json::{Value, json};

use super::ApiError;
use crate::app::{
    authentication::AuthenticationError,
    interactive::{Challenge, Failure as StageFailure},
    limits::LimitExceeded,
    login::BriefTokenError,
    passwords::PasswordError,
    registration::RegistrationError,
    session::SessionError,
};

impl From<LimitExceeded> for ApiError {
    fn from(error: LimitExceeded) -> Self {
        Self::limit_exceeded(error.wait)
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Commit(error) => error.into(),
            error if error.is_passing() => Self::unavailable("The server is busy; ask again"),
            error => Self::internal(&error),
        }
    }
}

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> Self {
        match error {
            // What is stored for a request is as large as the request makes it.
            CommitError::TooLarge(_) => Self::too_large("The change is too large to be stored"),
            CommitError::Malformed(_) => Self::internal(&error),
            error => {
                tracing::error!(%error, "a change was not committed");
                Self::unavailable("The change may not have been stored; ask again")
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(error: Failure) -> Self {
        match error {
            Failure::Commit(error) => error.into(),
            Failure::Busy => Self::unavailable("Too many changes at once; ask again"),
            Failure::Read(error) => error.into(),
            Failure::Refused | Failure::Damaged(_) => Self::internal(&error),
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Unknown => Self::unknown_token("Unknown access token", false),
            SessionError::Expired => Self::unknown_token("The access token expired", true),
            SessionError::Device(error) => error.into(),
            SessionError::Account(error) => error.into(),
            SessionError::Failure(error) => error.into(),
        }
    }
}

impl From<DeviceError> for ApiError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::NotFound => Self::not_found("No such device"),
            DeviceError::BadId | DeviceError::NameTooLong => Self::invalid_param(error.to_string()),
            DeviceError::TooMany => {
                // Not 403, which clients show as a wrong password.
                Self::unknown("Too many devices; log out of some first")
            }
            DeviceError::Failure(error) => error.into(),
        }
    }
}

impl From<ChangeAccountError> for ApiError {
    fn from(error: ChangeAccountError) -> Self {
        match error {
            ChangeAccountError::NotFound => Self::not_found("No such account"),
            ChangeAccountError::Deactivated => Self::deactivated(),
            ChangeAccountError::Failure(error) => error.into(),
        }
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Empty => Self::new(
                StatusCode::BAD_REQUEST,
                ErrorKind::WeakPassword,
                "The password is empty",
            ),
            PasswordError::TooLong => Self::invalid_param(error.to_string()),
            PasswordError::Hash(_) | PasswordError::Pool(_) => Self::internal(&error),
        }
    }
}

impl From<BriefTokenError> for ApiError {
    fn from(error: BriefTokenError) -> Self {
        match error {
            BriefTokenError::Invalid => Self::forbidden("Invalid login token"),
            BriefTokenError::Deactivated => Self::deactivated(),
            BriefTokenError::Failure(error) => error.into(),
        }
    }
}

impl From<RegistrationError> for ApiError {
    fn from(error: RegistrationError) -> Self {
        let refused = |kind, message| Self::new(StatusCode::BAD_REQUEST, kind, message);
        match error {
            RegistrationError::Closed => Self::forbidden("Registration is closed"),
            RegistrationError::InvalidUsername(why) => refused(ErrorKind::InvalidUsername, why),
            RegistrationError::InUse => refused(ErrorKind::UserInUse, "The user name is taken"),
            RegistrationError::TokenUsed => Self::forbidden("The registration token was used"),
            RegistrationError::Password(error) => error.into(),
            RegistrationError::Failure(error) => error.into(),
        }
    }
}

impl From<AuthenticationError> for ApiError {
    fn from(error: AuthenticationError) -> Self {
        match error {
            AuthenticationError::Challenge(challenge) => challenge.into(),
            AuthenticationError::WrongPassword => Self::forbidden("Invalid username or password"),
            AuthenticationError::Deactivated => Self::deactivated(),
            AuthenticationError::Limit(error) => error.into(),
            AuthenticationError::Password(error) => error.into(),
            AuthenticationError::Failure(error) => error.into(),
        }
    }
}

impl From<Challenge> for ApiError {
    fn from(challenge: Challenge) -> Self {
        let flows = challenge.flows.iter().map(|flow| {
            let stages: Vec<&str> = flow.iter().map(|stage| stage.as_str()).collect();
            json!({ "stages": stages })
        });
        let completed = challenge.completed.iter().map(|stage| stage.as_str());
        let mut body = json!({
            "flows": flows.collect::<Vec<Value>>(),
            "params": {},
            "session": challenge.session,
        });
        if !challenge.completed.is_empty() {
            body["completed"] = completed.collect();
        }
        let failure = match challenge.failure {
            None => None,
            Some(StageFailure::WrongPassword) => Some(("M_FORBIDDEN", "Invalid password")),
            Some(StageFailure::WrongToken) => {
                Some(("M_UNAUTHORIZED", "Invalid registration token"))
            }
            Some(StageFailure::UnknownStage) => Some(("M_UNRECOGNIZED", "Not a stage of any flow")),
        };
        if let Some((code, message)) = failure {
            body["errcode"] = code.into();
            body["error"] = message.into();
        }
        Self::json(StatusCode::UNAUTHORIZED, body)
    }
}

impl ApiError {
    /// 403 `M_USER_DEACTIVATED`.
    fn deactivated() -> Self {
        let message = "This account has been deactivated";
        Self::new(StatusCode::FORBIDDEN, ErrorKind::UserDeactivated, message)
    }
}
