//! What the algorithms ask of a single event.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::StateKey;
use crate::{
    Pdu, PowerLevel, auth,
    auth::{LevelName, Levels},
    rules::Rules,
};

/// The key of a state event.
pub(super) fn key(event: &Pdu) -> Option<StateKey> {
    event
        .state_pair()
        .map(|(event_type, key)| (event_type.to_owned(), key.to_owned()))
}

pub(super) fn is_power_levels(event: &Pdu) -> bool {
    event.is_state("m.room.power_levels", "")
}

/// Whether an event might take away somebody's ability to do something in the room.
pub(super) fn is_power_event(event: &Pdu) -> bool {
    match event.state_pair() {
        Some(("m.room.power_levels" | "m.room.join_rules" | "m.room.create", "")) => true,
        Some(("m.room.member", user)) if user != event.sender().as_str() => {
            matches!(membership(event).as_deref(), Some("leave" | "ban"))
        }
        _ => false,
    }
}

fn membership(event: &Pdu) -> Option<String> {
    #[derive(Deserialize)]
    struct Member {
        membership: String,
    }
    event
        .content_as::<Member>()
        .ok()
        .map(|member| member.membership)
}

/// The keys of the state that authorises an event.
pub(super) fn auth_keys(rules: &Rules, event: &Pdu) -> Vec<StateKey> {
    let (sender, content) = (event.sender(), event.content());
    let types = auth::auth_types(
        rules,
        event.event_type(),
        sender,
        event.state_key(),
        content,
    );
    types
        .into_iter()
        .map(|(event_type, key)| (event_type.to_owned(), key))
        .collect()
}

/// Whether the authorisation rules allow an event where this is the state.
pub(super) fn is_allowed(
    rules: &'static Rules,
    event: &Pdu,
    state: &BTreeMap<StateKey, Pdu>,
) -> bool {
    let lookup =
        |event_type: &str, key: &str| state.get(&(event_type.to_owned(), key.to_owned())).cloned();
    auth::check(rules, event, &lookup).is_ok()
}

/// The level of an event's sender by the power levels among the event's own auth events. A level
/// that cannot be read is the default one, as other servers have it.
pub(super) fn sender_level(
    rules: &'static Rules,
    event: &Pdu,
    power_levels: Option<&Pdu>,
    create: &Pdu,
) -> PowerLevel {
    let levels = Levels::new(rules, create, power_levels.cloned());
    let unread = PowerLevel::Finite(LevelName::UsersDefault.default_level());
    levels.user(event.sender()).unwrap_or(unread)
}
