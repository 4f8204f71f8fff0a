//! The HTTP face: routing, extraction, errors. Handlers are thin; what a request does is in `app`.
//!
//! # Adding an endpoint
//!
//! One file per area under `http/`, with `pub(super) fn routes() -> Routes`, and one line in
//! [`router`]:
//!
//! ```text
//! pub(super) fn routes() -> Routes {
//!     Routes::new()
//!         .ruma(send_message_event)
//!         // A path that ruma does not list; missing trailing parameters are empty strings.
//!         .ruma_also(&["/_matrix/client/v3/rooms/{room}/state/{type}"], send_state_event)
//!         // An endpoint that ruma has no type for: any axum handler.
//!         .raw("/_matrix/client/v3/account/3pid", Counted::As(LimitClass::Other), post(refuse_3pid))
//! }
//!
//! async fn send_message_event(
//!     State(rooms): State<Rooms>,          // any component, see `Components`
//!     session: Session,                    // 401 without a valid token; Option<Session> is allowed
//!     Ruma(request): Ruma<send_message_event::v3::Request>, // last
//! ) -> Result<Ruma<send_message_event::v3::Response>, ApiError> { … }
//! ```
//!
//! The method and all paths (r0, v3, unstable) come from ruma; path parameters are decoded after
//! the path was split. Errors of `app` and of the crates below become [`ApiError`] in `http/error.rs`
//! and nowhere else. In a raw handler, [`Path`](axum::extract::Path) works as usual, but parameters
//! are named by their index: `{p0}`, `{p1}`.

mod account;
mod address;
mod bodies;
mod components;
mod cors;
mod devices;
mod discovery;
mod error;
mod federation;
mod interactive;
mod limits;
mod login;
mod media;
mod operator;
mod pages;
mod panics;
mod register;
mod rooms;
mod routes;
mod ruma_types;
mod session;
mod sync;
mod user;

pub(crate) use address::{PeerAddress, TrustedProxies};
pub(crate) use bodies::BodyBudget;
#[cfg(test)]
pub(crate) use bodies::{MAX_BODY, MAX_STRANGERS_BODY};
pub(crate) use components::{Components, Foundation};
pub(crate) use error::ApiError;
pub(crate) use interactive::Interactive;
pub(crate) use routes::{Counted, Routes};
pub(crate) use ruma_types::{Ruma, Unparsed, json_answer};

use axum::{Router, middleware};

use crate::config::Surface;

/// The HTTP API of one homeserver, as far as `surfaces` name it.
///
/// The operators' registration endpoint is where other homeservers have it: beside the clients'
/// endpoints, and protected by its own secret.
pub(crate) fn router(components: Components, surfaces: &[Surface]) -> Router {
    let mut routes = Routes::new();
    if surfaces.contains(&Surface::Client) {
        routes = routes.merge(client_routes());
    }
    if surfaces.contains(&Surface::Client) || surfaces.contains(&Surface::Admin) {
        routes = routes.merge(operator::routes());
    }
    if surfaces.contains(&Surface::Federation) && components.federation.enabled {
        routes = routes.merge(federation::routes());
    }
    routes
        .into_router(&components)
        .fallback(error::unknown_path)
        .method_not_allowed_fallback(error::unknown_method)
        .layer(middleware::from_fn(panics::answer))
        .layer(middleware::from_fn(cors::answer))
        .with_state(components)
}

/// What Matrix clients use.
fn client_routes() -> Routes {
    Routes::new()
        .merge(account::routes())
        .merge(devices::routes())
        .merge(discovery::routes())
        .merge(login::routes())
        .merge(media::routes())
        .merge(pages::routes())
        .merge(register::routes())
        .merge(rooms::routes())
        .merge(sync::routes())
        .merge(user::routes())
}

#[cfg(test)]
pub(crate) mod tests;
