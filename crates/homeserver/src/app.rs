//! What the server does, without saying how the request came: no axum, no status codes.

pub(crate) mod interactive;
pub(crate) mod limits;
pub(crate) mod passwords;
pub(crate) mod session;
