//! The backends. Each implements [`Engine`](crate::Engine), and nothing else.

pub mod faulty;
pub mod fjall;
mod local;
pub mod memory;
mod replaced;
pub mod sled;
