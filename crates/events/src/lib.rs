//! What a Matrix event is and which events are allowed. Pure and synchronous.
//!
//! Everything that servers must agree on about an event is decided here: its canonical JSON
//! ([`canonical`]), its form and limits ([`pdu`], [`limits`]), its hashes and id ([`hash`]), its
//! signatures ([`keys`], [`signatures`]), what is left of it after a redaction ([`redaction`]), and
//! whether the authorisation rules allow it ([`auth`]). What differs between room versions is one
//! table, [`rules`]. From there on: which state holds after a fork ([`resolve`]), who may see an
//! event ([`visibility`]), which servers may take part ([`server_acl`]), and whom it notifies
//! ([`push`]).
//!
//! The crate deliberately knows no clock, no randomness, no storage and no network, and its answers
//! never depend on the order of a hash map: the same input gives the same answer on every server.

pub mod auth;
pub mod canonical;
pub mod draft;
pub mod handshake;
pub mod hash;
pub mod keys;
pub mod limits;
pub mod names;
pub mod pdu;
pub mod policy;
pub mod push;
pub mod redaction;
pub mod resolve;
pub mod rules;
pub mod server_acl;
pub mod signatures;
pub mod status;
pub mod visibility;

pub use auth::{AuthError, PowerLevel, PowerLevels};
pub use canonical::{CanonicalError, CanonicalObject, CanonicalValue, Strictness};
pub use draft::{Draft, SealError};
pub use handshake::{
    CoSignError, Handshake, NotTheStep, Step, fulfils_third_party_invite, relays,
    with_signatures_of,
};
pub use keys::{KeyError, SigningKey, VerifyKey};
pub use pdu::{EventReference, Pdu, PduError};
pub use policy::PolicyServer;
pub use redaction::{redact, redact_object};
pub use rules::{RoomVersion, Rules};
pub use server_acl::ServerAcl;
pub use signatures::{
    KeyLifetime, KeySource, PublishedKey, Verified, VerifyError, claimed_keys, claimed_keys_in,
    required_servers, sign_json, verify_event, verify_event_in, verify_json,
};
pub use status::{EventStatus, RejectReason, SoftFailReason, StatusKind};
