//! Errors of memberships in rooms that are elsewhere.

use axum::http::StatusCode;
use homeserver_federation::{MembershipError, membership::InviteRefused};
use homeserver_rooms::RoomError;
use ruma::{
    RoomVersionId,
    api::error::{ErrorKind, IncompatibleRoomVersionErrorData},
};

use super::{ApiError, resident::bad_gateway};
use crate::app::rooms::InviteError;

impl From<MembershipError> for ApiError {
    /// For clients. What another server says about the user goes on to them; what it says about the
    /// request is between the servers (`PUT /v2/send_join`, 400).
    fn from(error: MembershipError) -> Self {
        let message = error.to_string();
        match error {
            MembershipError::NoServers => RoomError::UnknownRoom.into(),
            MembershipError::UnknownAlias => RoomError::UnknownAlias.into(),
            MembershipError::Refused {
                errcode, version, ..
            } => refused(&errcode, version, message),
            MembershipError::Unreachable(_) => bad_gateway(message),
            MembershipError::Room(error) => error.into(),
            MembershipError::Check(error) => error.into(),
            MembershipError::Seal(_) => Self::bad_json(message),
        }
    }
}

fn refused(errcode: &str, version: Option<RoomVersionId>, message: String) -> ApiError {
    let bad_request = |kind| ApiError::new(StatusCode::BAD_REQUEST, kind, message.clone());
    match (errcode, version) {
        ("M_FORBIDDEN", _) => ApiError::forbidden(message),
        ("M_NOT_FOUND", _) => ApiError::not_found(message),
        ("M_INCOMPATIBLE_ROOM_VERSION", Some(version)) => {
            let data = IncompatibleRoomVersionErrorData::new(version);
            bad_request(ErrorKind::IncompatibleRoomVersion(data))
        }
        ("M_UNABLE_TO_AUTHORISE_JOIN", _) => bad_request(ErrorKind::UnableToAuthorizeJoin),
        ("M_UNABLE_TO_GRANT_JOIN", _) => bad_request(ErrorKind::UnableToGrantJoin),
        _ => bad_gateway(message),
    }
}

impl From<InviteError> for ApiError {
    /// For the server that invites.
    fn from(error: InviteError) -> Self {
        let message = error.to_string();
        match error {
            InviteError::Refused(refused) => refused.into(),
            InviteError::NoSuchUser(_) => Self::forbidden(message),
            InviteError::Change(error) => error.into(),
        }
    }
}

impl From<InviteRefused> for ApiError {
    fn from(error: InviteRefused) -> Self {
        let message = error.to_string();
        match error {
            InviteRefused::Version(version) => match RoomVersionId::try_from(version) {
                Ok(version) => {
                    let data = IncompatibleRoomVersionErrorData::new(version);
                    let kind = ErrorKind::IncompatibleRoomVersion(data);
                    Self::new(StatusCode::BAD_REQUEST, kind, message)
                }
                Err(_) => Self::invalid_param(message),
            },
            InviteRefused::Form(_)
            | InviteRefused::NotAnInvite(_)
            | InviteRefused::Signatures(_)
            | InviteRefused::RoomState(_)
            | InviteRefused::CoSign(_) => Self::invalid_param(message),
            InviteRefused::NoCreate => Self::missing_param(message),
            InviteRefused::NotAllowed => Self::forbidden(message),
            InviteRefused::Room(error) => error.into(),
            InviteRefused::Check(error) => error.into(),
        }
    }
}
