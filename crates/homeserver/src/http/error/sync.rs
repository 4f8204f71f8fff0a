//! Errors of what belongs to users, as clients are told them.

use axum::http::StatusCode;
use homeserver_federation::{CallError, UsersError};
use homeserver_users::{
    AccountDataError, CrossSigningError, FilterError as StoredFilterError, KeyUploadError,
    ProfileError, TagError, ToDeviceError,
};
use ruma::{api::error::ErrorKind, push::InsertPushRuleError};
use serde_json::json;

use super::ApiError;
use crate::{
    app::{push_rules::PushRuleError, pushers::PusherError, receipts::MarkError},
    sync::{SyncError, filter::FilterError},
};

impl From<FilterError> for ApiError {
    fn from(error: FilterError) -> Self {
        Self::invalid_param(error.to_string())
    }
}

impl From<SyncError> for ApiError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Room(error) => error.into(),
            SyncError::Users(error) => error.into(),
            SyncError::Storage(error) => error.into(),
        }
    }
}

impl From<UsersError> for ApiError {
    fn from(error: UsersError) -> Self {
        match error {
            UsersError::Room(error) => error.into(),
            UsersError::Users(error) => error.into(),
            UsersError::Storage(error) => error.into(),
            // Where a client asks for something else besides, the failure is part of the answer.
            UsersError::Call(error) => Self::elsewhere(&error),
        }
    }
}

impl ApiError {
    /// Another server, which alone could have answered, did not.
    pub(in crate::http) fn elsewhere(error: &CallError) -> Self {
        let message = "The server of what you ask for does not answer";
        tracing::debug!(%error, "another server did not answer");
        Self::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message)
    }
}

impl From<AccountDataError> for ApiError {
    fn from(error: AccountDataError) -> Self {
        match error {
            AccountDataError::BadType(_) => Self::invalid_param(error.to_string()),
            AccountDataError::Managed => Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorKind::BadJson,
                error.to_string(),
            ),
            AccountDataError::TooLarge => Self::too_large(error.to_string()),
            AccountDataError::Failure(error) => error.into(),
        }
    }
}

impl From<TagError> for ApiError {
    fn from(error: TagError) -> Self {
        match error {
            TagError::NameTooLong | TagError::TooMany => Self::invalid_param(error.to_string()),
            TagError::AccountData(error) => error.into(),
        }
    }
}

impl From<StoredFilterError> for ApiError {
    fn from(error: StoredFilterError) -> Self {
        match error {
            StoredFilterError::Failure(error) => error.into(),
            other => Self::too_large(other.to_string()),
        }
    }
}

impl From<ProfileError> for ApiError {
    fn from(error: ProfileError) -> Self {
        let message = error.to_string();
        let refused = |kind| Self::new(StatusCode::BAD_REQUEST, kind, message);
        match error {
            ProfileError::KeyTooLarge => refused(ErrorKind::KeyTooLarge),
            ProfileError::ProfileTooLarge => refused(ErrorKind::ProfileTooLarge),
            ProfileError::Failure(error) => error.into(),
        }
    }
}

impl From<PushRuleError> for ApiError {
    fn from(error: PushRuleError) -> Self {
        let message = error.to_string();
        match error {
            PushRuleError::NotFound | PushRuleError::Insert(InsertPushRuleError::UnknownRuleId) => {
                Self::not_found(message)
            }
            PushRuleError::Insert(_) | PushRuleError::ServerDefault | PushRuleError::TooMany => {
                Self::invalid_param(message)
            }
            PushRuleError::Store(error) => error.into(),
        }
    }
}

impl From<PusherError> for ApiError {
    fn from(error: PusherError) -> Self {
        match error {
            PusherError::TooLarge | PusherError::TooMany => Self::invalid_param(error.to_string()),
            PusherError::DeviceGone => Self::unknown_token("Unknown access token", false),
            PusherError::Failure(error) => error.into(),
        }
    }
}

impl From<MarkError> for ApiError {
    fn from(error: MarkError) -> Self {
        let message = error.to_string();
        match error {
            MarkError::NotInRoom => Self::forbidden(message),
            MarkError::NoSuchEvent => Self::not_found(message),
            MarkError::BadThread => Self::invalid_param(message),
            MarkError::Room(error) => error.into(),
            MarkError::AccountData(error) => error.into(),
            MarkError::Users(error) => error.into(),
        }
    }
}

impl From<KeyUploadError> for ApiError {
    fn from(error: KeyUploadError) -> Self {
        match error {
            KeyUploadError::NoDevice => Self::unknown_token("The device was deleted", false),
            KeyUploadError::Failure(error) => error.into(),
            other => Self::invalid_param(other.to_string()),
        }
    }
}

impl From<CrossSigningError> for ApiError {
    fn from(error: CrossSigningError) -> Self {
        let message = error.to_string();
        match error {
            CrossSigningError::Invalid(..) => Self::invalid_param(message),
            CrossSigningError::NoMasterKey => Self::missing_param(message),
            CrossSigningError::BadSignature(_) => {
                let body = json!({ "errcode": "M_INVALID_SIGNATURE", "error": message });
                Self::json(StatusCode::BAD_REQUEST, body)
            }
            CrossSigningError::IsDeviceId(_) | CrossSigningError::NeedsAuthentication => {
                Self::forbidden(message)
            }
            CrossSigningError::Failure(error) => error.into(),
        }
    }
}

impl From<ToDeviceError> for ApiError {
    fn from(error: ToDeviceError) -> Self {
        match error {
            ToDeviceError::BadIdentifier(_) | ToDeviceError::TooManyRecipients => {
                Self::invalid_param(error.to_string())
            }
            ToDeviceError::NotCanonical => Self::bad_json(error.to_string()),
            ToDeviceError::TooLarge => Self::too_large(error.to_string()),
            ToDeviceError::Failure(error) => error.into(),
        }
    }
}
