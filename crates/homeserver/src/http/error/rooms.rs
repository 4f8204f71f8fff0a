//! Errors of rooms, as clients are told them.

use axum::http::StatusCode;
use homeserver_rooms::RoomError;
use ruma::api::error::ErrorKind;

use super::ApiError;
use crate::app::{
    reports::ReportError,
    rooms::{ChangeError, ReadError},
};

impl From<RoomError> for ApiError {
    fn from(error: RoomError) -> Self {
        let message = error.to_string();
        let bad_request = |kind| Self::new(StatusCode::BAD_REQUEST, kind, message.clone());
        match error {
            // That a room exists is told only where the endpoint says so: `naming_the_room`.
            RoomError::Forbidden(_) | RoomError::UnknownRoom | RoomError::NotInRoom => {
                Self::forbidden(message)
            }
            RoomError::UnknownEvent | RoomError::UnknownAlias => Self::not_found(message),
            RoomError::UnsupportedRoomVersion(_) => bad_request(ErrorKind::UnsupportedRoomVersion),
            RoomError::AliasInUse(_) => bad_request(ErrorKind::RoomInUse),
            RoomError::InvalidAlias(_) | RoomError::InvalidToken => {
                bad_request(ErrorKind::InvalidParam)
            }
            RoomError::BadAlias(_) => bad_request(ErrorKind::BadAlias),
            RoomError::InvalidRoomState(_) => bad_request(ErrorKind::InvalidRoomState),
            RoomError::BadContent(_) => bad_request(ErrorKind::BadJson),
            RoomError::TooLarge(_) => Self::too_large(message),
            RoomError::DuplicateAnnotation => bad_request(ErrorKind::DuplicateAnnotation),
            RoomError::StillInRoom | RoomError::NestedThread => bad_request(ErrorKind::Unknown),
            RoomError::UnableToAuthoriseJoin => bad_request(ErrorKind::UnableToAuthorizeJoin),
            RoomError::UnableToGrantJoin => bad_request(ErrorKind::UnableToGrantJoin),
            RoomError::NotAllowedByTold => Self::forbidden(message),
            RoomError::NotTheEvent(_) => Self::invalid_param(message),
            RoomError::Busy
            | RoomError::PartialState
            | RoomError::Contended
            | RoomError::Unresolved(_)
            | RoomError::Stopping => Self::unavailable(message),
            RoomError::NotStored(error) => error.into(),
            RoomError::Storage(error) => error.into(),
            RoomError::Damaged(_) => Self::internal(&error),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let message = error.to_string();
        match error {
            ChangeError::Room(error) => error.into(),
            ChangeError::InviteBlocked(_) => {
                Self::new(StatusCode::FORBIDDEN, ErrorKind::InviteBlocked, message)
            }
            ChangeError::Identity(error) => error.into(),
            ChangeError::BadContent(_) => Self::bad_json(message),
            ChangeError::Elsewhere(error) => error.into(),
            ChangeError::Invite(error) => error.into(),
            ChangeError::Policy(error) => error.into(),
            ChangeError::Users(error) => error.into(),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let message = error.to_string();
        match error {
            ReadError::NotInRoom => Self::forbidden(message),
            ReadError::NoSuchRoom
            | ReadError::NoSuchEvent
            | ReadError::NoSuchState
            | ReadError::NothingNear => Self::not_found(message),
            ReadError::BadToken => Self::invalid_param(message),
            ReadError::Room(error) => error.into(),
            ReadError::Users(error) => error.into(),
        }
    }
}

impl From<ReportError> for ApiError {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::TooLong => Self::too_large(error.to_string()),
            ReportError::Commit(error) => error.into(),
        }
    }
}

impl ApiError {
    /// The error of an endpoint whose answer may tell that there is no such room: 404.
    pub(crate) fn naming_the_room(error: ChangeError) -> Self {
        match error {
            ChangeError::Room(RoomError::UnknownRoom) => Self::not_found(error.to_string()),
            other => other.into(),
        }
    }

    /// The error of a new alias: one that is taken is a 409 there, not a refused room.
    pub(crate) fn in_directory(error: ChangeError) -> Self {
        match error {
            ChangeError::Room(RoomError::AliasInUse(_)) => {
                Self::new(StatusCode::CONFLICT, ErrorKind::Unknown, error.to_string())
            }
            other => Self::naming_the_room(other),
        }
    }

    /// The rooms answered another command than was asked: 500.
    pub(crate) fn unexpected_answer() -> Self {
        let cause = RoomError::Damaged("the answer belongs to another command".to_owned());
        Self::internal(&cause)
    }
}
