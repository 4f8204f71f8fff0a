//! The keys by which servers are known: what they publish, and what this one does.

pub mod document;
pub mod own;

pub use document::{DocumentError, KeyDocument};
pub use own::OwnKeys;
