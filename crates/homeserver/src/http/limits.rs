//! Which endpoint is limited how: the class of an endpoint, and the check before its body is read.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::request::Parts,
    middleware::Next,
    response::Response,
};
use ruma::api::{Metadata, path_builder::PathBuilder};

use super::{ApiError, Components};
use crate::app::{
    limits::{LimitClass, LimitKey},
    session::Session,
};

/// Ends of paths whose endpoints have a class of their own. The specification marks fewer
/// endpoints as limited than servers need to limit.
const CLASSES: &[(&str, LimitClass)] = &[
    ("/login", LimitClass::Login),
    ("/refresh", LimitClass::Refresh),
    ("/register", LimitClass::Registration),
    ("/validity", LimitClass::Registration),
    ("/send/{event_type}/{txn_id}", LimitClass::Message),
    ("/state/{event_type}/{state_key}", LimitClass::Message),
    ("/redact/{event_id}/{txn_id}", LimitClass::Message),
    ("/createRoom", LimitClass::Join),
    ("/rooms/{room_id}/join", LimitClass::Join),
    ("/join/{room_id_or_alias}", LimitClass::Join),
    ("/knock/{room_id_or_alias}", LimitClass::Join),
    ("/invite", LimitClass::Invite),
    // What makes others store or load much.
    ("/sendToDevice/{event_type}/{txn_id}", LimitClass::Other),
    ("/keys/upload", LimitClass::Other),
    ("/keys/query", LimitClass::Other),
    ("/keys/claim", LimitClass::Other),
    ("/keys/signatures/upload", LimitClass::Other),
    ("/keys/device_signing/upload", LimitClass::Other),
    ("/filter", LimitClass::Other),
    ("/account_data/{event_type}", LimitClass::Other),
];

/// The class of an endpoint, if it is limited.
fn class<T: Metadata>() -> Option<LimitClass> {
    let path = T::PATH_BUILDER.all_paths().last().unwrap_or_default();
    let reads = T::METHOD == http::Method::GET;
    if path.contains("/media/") {
        return Some(LimitClass::Media);
    }
    let found = CLASSES.iter().find(|(end, _)| path.ends_with(end));
    match found {
        // Asking how one may log in is no guess at a password.
        Some((_, LimitClass::Login)) if reads => Some(LimitClass::Other),
        Some((_, class)) if !reads || T::RATE_LIMITED => Some(*class),
        _ => T::RATE_LIMITED.then_some(LimitClass::Other),
    }
}

/// Refuses a request over its limit. What is answered without a session is always limited.
pub(super) fn check<T: Metadata>(parts: &Parts, state: &Components) -> Result<(), ApiError> {
    let client = client(parts, state);
    let class = match (class::<T>(), &client) {
        (None, LimitKey::User(_)) => return Ok(()),
        (class, _) => class.unwrap_or(LimitClass::Other),
    };
    state.limits.take(class, client)?;
    Ok(())
}

/// Who asks: the account if the session was looked up before, as it is in every handler that asks
/// for one, else the address.
pub(super) fn client(parts: &Parts, state: &Components) -> LimitKey {
    match parts.extensions.get::<Session>() {
        Some(session) => LimitKey::User(session.user.clone()),
        None => LimitKey::address(state.proxies.client(&parts.extensions, &parts.headers)),
    }
}

/// See [`client`]; to be asked for after the session.
impl FromRequestParts<Components> for LimitKey {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Components) -> Result<Self, Infallible> {
        Ok(client(parts, state))
    }
}

/// The middleware of handlers that do not count by themselves.
pub(super) async fn count(
    State((components, class)): State<(Components, LimitClass)>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let address = components
        .proxies
        .client(request.extensions(), request.headers());
    components.limits.take(class, LimitKey::address(address))?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use ruma::api::client::{
        account::register,
        discovery::get_supported_versions,
        membership::join_room_by_id,
        message::send_message_event,
        session::{get_login_types, login, refresh_token},
        state::get_state_event_for_key,
    };

    use super::*;

    #[test]
    fn endpoints_have_the_class_of_their_path() {
        assert_eq!(class::<login::v3::Request>(), Some(LimitClass::Login));
        // Neither shares the bucket of password guesses.
        assert_eq!(
            class::<get_login_types::v3::Request>(),
            Some(LimitClass::Other)
        );
        assert_eq!(
            class::<refresh_token::v3::Request>(),
            Some(LimitClass::Refresh)
        );
        assert_eq!(
            class::<register::v3::Request>(),
            Some(LimitClass::Registration)
        );
        assert_eq!(
            class::<send_message_event::v3::Request>(),
            Some(LimitClass::Message)
        );
        assert_eq!(
            class::<join_room_by_id::v3::Request>(),
            Some(LimitClass::Join)
        );
        assert_eq!(class::<get_state_event_for_key::v3::Request>(), None);
        assert_eq!(class::<get_supported_versions::Request>(), None);
    }
}
