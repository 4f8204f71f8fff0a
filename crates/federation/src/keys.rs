//! The keys by which servers are known: what others publish, and what this one does.

pub mod document;
pub(crate) mod known;
pub mod own;
pub mod ring;

pub use document::{DocumentError, KeyDocument};
pub use own::{OldKey, OwnKeys};
pub use ring::{Asking, KeyProblem, KeyRing, Keys, Wanted};
