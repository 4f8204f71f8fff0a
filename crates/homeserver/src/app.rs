//! What the server does, without saying how the request came: no axum, no status codes.

pub(crate) mod session;
