//! A Matrix homeserver as a library.
//!
//! What a request does is in `app`, how it arrives and is answered in `http`. The library never
//! prints, exits, reads the environment or installs anything process-wide: only the binary does.

mod app;
pub mod config;
mod client_event;
mod http;
mod sync;
