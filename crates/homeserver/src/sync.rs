//! The sync engine: what changed for one device since it last asked.
//!
//! Computing and writing are apart. `changes` holds what changed as a value; `v3` writes it as the
//! response of `GET /_matrix/client/v3/sync`. Other ways of writing the same can stand beside it.
//!
//! Specification: client-server API, "Syncing".

pub(crate) mod changes;
pub(crate) mod filter;
pub(crate) mod token;
pub(crate) mod v3;
