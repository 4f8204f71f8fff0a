//! What the integration tests share: a homeserver as its own process, and a plain HTTP client that
//! records every answer for the schema check.
//!
//! Tests drive the server from outside, as a client does: nothing here knows its insides.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on must say why"
)]

mod client;
pub mod coverage;
mod federation;
mod peers;
mod record;
mod replies;
mod server;
pub mod table;

pub use client::{Answer, Client, encode};
pub use federation::Federation;
pub use peers::{Peers, run_peer};
pub use server::{Server, ServerOptions};
