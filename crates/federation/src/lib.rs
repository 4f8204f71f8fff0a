//! The server-server protocol: what this server asks of others and what others may ask of it.
//!
//! HTTP stays in the crate `homeserver`; here is what a request must hold ([`x_matrix`],
//! [`signed_request`]), the keys that vouch for it
//! ([`keys`]), what carries it ([`transport`]), how a server is found by its name ([`ways`]), and the calls that
//! are made of all this ([`peers`], [`health`]).
//!
//! Specification: server-server API.

pub mod admission;
pub mod error;
pub mod front;
pub mod health;
pub mod keys;
pub mod peers;
pub mod signed_request;
pub mod tables;
pub mod transport;
pub mod verify;
pub mod ways;
pub mod x_matrix;

pub use admission::Admission;
pub use error::CallError;
pub use front::{Front, FrontError};
pub use health::{Health, Retry};
pub use keys::{KeyDocument, KeyRing, OwnKeys};
pub use peers::{Answer, Call, Path, Peers, PeersOptions};
pub use signed_request::{Claim, RequestError, SignedRequest};
pub use tables::TABLES;
pub use transport::{Body, Limits, Outgoing, Reply, Transport, TransportError};
pub use verify::{CheckError, Dropped, Verifier};
pub use ways::{Ports, Ways};
pub use x_matrix::{XMatrix, XMatrixError};
