//! Who is asking: the account and device behind an access token.

use ruma::{OwnedDeviceId, OwnedUserId};

/// The authenticated side of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// The account.
    pub(crate) user: OwnedUserId,
    /// The device that the access token belongs to.
    pub(crate) device: OwnedDeviceId,
    /// Whether the account may use the administrators' endpoints.
    pub(crate) admin: bool,
}

/// Why a token gives no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// There is no such token, or it was revoked.
    #[error("unknown access token")]
    Unknown,
    /// The token expired; its device still exists and may log in again or refresh.
    #[error("expired access token")]
    Expired,
}

/// Gives the session of an access token.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {}

impl Sessions {
    /// The session of `token`.
    pub(crate) async fn authenticate(&self, token: &str) -> Result<Session, SessionError> {
        let _ = token;
        Err(SessionError::Unknown)
    }
}
