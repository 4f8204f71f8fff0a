//! Which events authorise an event ([auth events selection][1]), and rules 2 and 3: whether an
//! event names the right ones.
//!
//! [1]: https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection

use ruma::{EventId, UserId};
use serde_json::value::RawValue;

use super::member::MemberContent;
use super::{AuthError, check_create, ensure, third_party};
use crate::hash;
use crate::pdu::Pdu;
use crate::rules::Rules;

/// Pairs of type and state key.
pub type AuthTypes = Vec<(&'static str, String)>;

/// The state that authorises an event with these properties: look these pairs up in the state
/// before it, and name what is there. Member events whose content cannot be read select as if the
/// unreadable part were missing; [`super::check`] refuses them.
pub fn auth_types(
    rules: &Rules,
    event_type: &str,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
) -> AuthTypes {
    select(rules, event_type, sender, state_key, content.get())
}

/// The same for a whole event.
pub(crate) fn auth_types_of(rules: &Rules, event: &Pdu) -> AuthTypes {
    let (kind, sender) = (event.event_type(), event.sender());
    select(rules, kind, sender, event.state_key(), event.content_str())
}

fn select(
    rules: &Rules,
    event_type: &str,
    sender: &UserId,
    state_key: Option<&str>,
    content: &str,
) -> AuthTypes {
    if event_type == "m.room.create" {
        return Vec::new();
    }
    let mut types = AuthTypes::with_capacity(5);
    if !rules.create_is_implied() {
        types.push(("m.room.create", String::new()));
    }
    types.push(("m.room.power_levels", String::new()));
    types.push(("m.room.member", sender.to_string()));
    if event_type == "m.room.member" {
        let mut add = |event_type: &'static str, key: String| {
            let pair = (event_type, key);
            if !types.contains(&pair) {
                types.push(pair);
            }
        };
        if let Some(target) = state_key {
            add("m.room.member", target.to_owned());
        }
        if let Ok(content) = serde_json::from_str::<MemberContent<'_>>(content) {
            add_for_membership(rules, &content, &mut add);
        }
    }
    types
}

fn add_for_membership(
    rules: &Rules,
    content: &MemberContent<'_>,
    add: &mut dyn FnMut(&'static str, String),
) {
    let membership = content.membership.as_deref();
    if matches!(membership, Some("join" | "invite" | "knock")) {
        add("m.room.join_rules", String::new());
    }
    if membership == Some("invite")
        && let Some(token) = content
            .third_party_invite
            .and_then(|invite| third_party::token(invite, rules))
    {
        add("m.room.third_party_invite", token);
    }
    if membership == Some("join")
        && rules.restricted_joins
        && let Some(user) = content.authorised_via()
    {
        add("m.room.member", user);
    }
}

/// What is known of an auth event.
#[derive(Clone, Debug)]
pub enum AuthEvent {
    /// It passed its own checks (soft-failed events did).
    Allowed(Pdu),
    /// It was rejected.
    Rejected(Pdu),
}

/// The rules that depend on no state: rule 1 for create events, and for all others rules 2 and 3,
/// that the room's create event is an allowed one and that `auth_events` are events of this room,
/// allowed themselves, each selected by the algorithm, none twice.
///
/// `lookup` is asked for the auth events, and in room version 12 and later for the create event
/// that the room id implies. Whether they in turn allow the event is for [`super::check`].
pub fn check_auth_events(
    rules: &Rules,
    event: &Pdu,
    lookup: &dyn Fn(&EventId) -> Option<AuthEvent>,
) -> Result<(), AuthError> {
    if event.event_type() == "m.room.create" {
        return check_create(rules, event);
    }
    if rules.create_is_implied() {
        check_implied_create(event, lookup)?;
    }
    let expected = auth_types(
        rules,
        event.event_type(),
        event.sender(),
        event.state_key(),
        event.content(),
    );
    let mut seen: Vec<(String, String)> = Vec::with_capacity(event.auth_events().len());
    for event_id in event.auth_events() {
        let auth_event =
            lookup(event_id).ok_or_else(|| AuthError::MissingAuthEvent(event_id.clone()))?;
        let pair = check_auth_event(event, &auth_event, &expected).map_err(|why| {
            AuthError::AuthEvent {
                event_id: event_id.clone(),
                why,
            }
        })?;
        if seen.contains(&pair) {
            let why = "has the type and state key of another entry";
            return Err(AuthError::AuthEvent {
                event_id: event_id.clone(),
                why,
            });
        }
        seen.push(pair);
    }
    let names_create = seen
        .iter()
        .any(|(event_type, _)| event_type == "m.room.create");
    ensure(
        rules.create_is_implied() || names_create,
        "the auth events do not include the create event",
    )
}

fn check_auth_event(
    event: &Pdu,
    auth_event: &AuthEvent,
    expected: &AuthTypes,
) -> Result<(String, String), &'static str> {
    let (AuthEvent::Allowed(known) | AuthEvent::Rejected(known)) = auth_event;
    if known.room_id() != event.room_id() {
        return Err("is of another room");
    }
    let Some((event_type, state_key)) = known.state_pair() else {
        return Err("is not a state event");
    };
    if !expected
        .iter()
        .any(|(wanted, key)| *wanted == event_type && key == state_key)
    {
        return Err("is not one that authorises this event");
    }
    if matches!(auth_event, AuthEvent::Rejected(_)) {
        return Err("was rejected");
    }
    Ok((event_type.to_owned(), state_key.to_owned()))
}

/// Rule 2: the room id is that of an allowed create event.
fn check_implied_create(
    event: &Pdu,
    lookup: &dyn Fn(&EventId) -> Option<AuthEvent>,
) -> Result<(), AuthError> {
    let create_id = hash::create_of_room_id(event.room_id()).ok_or(AuthError::Refused(
        "the room id does not name a create event",
    ))?;
    match lookup(&create_id) {
        None => Err(AuthError::MissingAuthEvent(create_id)),
        Some(AuthEvent::Rejected(_)) => Err(AuthError::AuthEvent {
            event_id: create_id,
            why: "was rejected",
        }),
        Some(AuthEvent::Allowed(create)) => ensure(
            create.is_state("m.room.create", ""),
            "the room id does not name a create event",
        ),
    }
}
