//! A Matrix homeserver as a library.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let homeserver = homeserver::Homeserver::builder("example.org").open().await?;
//! let app: axum::Router = homeserver.router();
//! // … serve `app`, or call `homeserver.serve().await?`, and in the end:
//! homeserver.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! Several homeservers may live in one process, each with its own everything. The library never
//! prints, exits, reads the environment or installs anything process-wide: only the binary does.
//!
//! Inside, imports run downwards: `http` (routes, requests, errors) knows `app` (what the server
//! does), which knows `sync` and the crates below.

mod administration;
mod app;
mod builder;
mod client;
mod client_event;
pub mod config;
mod engine_folder;
#[cfg(test)]
mod fuzz;
mod handle;
mod http;
mod listen;
mod network;
mod signing_key;
mod sync;

pub use administration::{Administration, AdministrationError, RegistrationToken};
pub use builder::{HomeserverBuilder, OpenError};
pub use client::{ClientError, LocalUser, UserEvent, UserEvents};
pub use handle::{Homeserver, Listening};
pub use listen::ListenError;
pub use network::NetworkError;

pub use homeserver_events as events;
pub use homeserver_federation as federation;
pub use homeserver_rooms as rooms;
pub use homeserver_runtime as runtime;
pub use homeserver_storage as storage;
pub use homeserver_users as users;
