//! The backends. Each implements [`Engine`](crate::Engine), and nothing else.

mod local;
pub mod memory;
