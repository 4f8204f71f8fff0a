//! The server-server protocol: what this server asks of others and what others may ask of it.
//!
//! HTTP stays in the crate `homeserver`; here is what a request must hold ([`x_matrix`],
//! [`signed_request`]), and the keys that vouch for it ([`keys`]).
//!
//! Specification: server-server API.

pub mod keys;
pub mod signed_request;
pub mod x_matrix;

pub use signed_request::{Claim, RequestError, SignedRequest};
pub use x_matrix::{XMatrix, XMatrixError};
