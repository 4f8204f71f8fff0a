//! Which endpoint is limited how: the class of an endpoint, and the check before its body is read.

use axum::http::request::Parts;
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
    ("/refresh", LimitClass::Login),
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
];

/// The class of an endpoint, if it is limited.
fn class<T: Metadata>() -> Option<LimitClass> {
    let path = T::PATH_BUILDER.all_paths().last().unwrap_or_default();
    let limited = T::RATE_LIMITED || T::METHOD != http::Method::GET;
    if path.contains("/media/") {
        return Some(LimitClass::Media);
    }
    let found = CLASSES.iter().find(|(end, _)| path.ends_with(end));
    match found {
        Some((_, class)) if limited => Some(*class),
        _ => T::RATE_LIMITED.then_some(LimitClass::Other),
    }
}

/// Refuses a request over its limit. Counts by account if the session was looked up before, as it
/// is in every handler that asks for one, else by address.
pub(super) fn check<T: Metadata>(parts: &Parts, state: &Components) -> Result<(), ApiError> {
    let Some(class) = class::<T>() else {
        return Ok(());
    };
    let key = match parts.extensions.get::<Session>() {
        Some(session) => LimitKey::User(session.user.clone()),
        None => LimitKey::address(state.proxies.client(&parts.extensions, &parts.headers)),
    };
    state.limits.take(class, key)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::api::client::{
        account::register, discovery::get_supported_versions, membership::join_room_by_id,
        message::send_message_event, session::login, state::get_state_event_for_key,
    };

    use super::*;

    #[test]
    fn endpoints_have_the_class_of_their_path() {
        assert_eq!(class::<login::v3::Request>(), Some(LimitClass::Login));
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
