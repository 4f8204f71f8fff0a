//! What the algorithms ask of a single event.

use std::borrow::Cow;

use serde::Deserialize;

use crate::{
    Pdu, PowerLevel, auth,
    auth::{AuthTypes, LevelName, Levels},
    rules::Rules,
};

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

fn membership(event: &Pdu) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Member<'a> {
        #[serde(borrow)]
        membership: Cow<'a, str>,
    }
    event
        .content_as::<Member<'_>>()
        .ok()
        .map(|member| member.membership)
}

/// The keys of the state that authorises an event.
pub(super) fn auth_types(rules: &Rules, event: &Pdu) -> AuthTypes {
    auth::auth_types_of(rules, event)
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
