//! The authorisation rules of every room version: may this event be in the room, given this state?
//!
//! An event is checked against its own auth events, against the state before it and against the
//! current state. [`check_auth_events`] judges the choice of `auth_events` themselves (and create
//! events wholly); [`check`] applies the rules that look at a state, whichever state the caller
//! hands in. The signature rules (`join_authorised_via_users_server` among them) are in
//! [`crate::signatures`]; only the `signed` block of a third-party invite is checked here.
//!
//! The numbers in comments are those of the rules of room version 12; older versions have the same
//! rules under other numbers. Source: `content/rooms` of the specification, with the notes on
//! history in its fragments.

mod levels;
mod member;
mod power_levels;
mod selection;
mod state;
mod third_party;

use ruma::{OwnedEventId, UserId};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

pub use levels::{LevelName, Levels, PowerLevel, PowerLevels, UnreadableLevel};
pub(crate) use selection::auth_types_of;
pub use selection::{AuthEvent, AuthTypes, auth_types, check_auth_events};
pub use third_party::{OfferedKey, proving_keys};

use self::state::State;
use crate::limits::MAX_ID_BYTES;
use crate::pdu::Pdu;
use crate::rules::{CreatorRule, RoomIdFormat, RoomVersion, Rules};

/// Looks up an event of the state by type and state key.
pub type StateLookup<'a> = &'a dyn Fn(&str, &str) -> Option<Pdu>;

/// Why an event is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// An auth event is not known. This is no judgement: fetch it and ask again.
    #[error("the auth event {0} is not known")]
    MissingAuthEvent(OwnedEventId),
    /// The choice of `auth_events` is wrong.
    #[error("the auth event {event_id} {why}")]
    AuthEvent {
        /// The entry that is wrong.
        event_id: OwnedEventId,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A rule forbids the event.
    #[error("{0}")]
    Refused(&'static str),
    /// A power level that the decision needs cannot be read.
    #[error("a power level of the room cannot be read")]
    Levels(#[from] UnreadableLevel),
}

/// Reads an optional field such that, unlike with a plain `Option`, a `null` counts as present:
/// rules ask whether a property is there.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Refuses with this reason unless the condition holds.
fn ensure(condition: bool, otherwise: &'static str) -> Result<(), AuthError> {
    if condition {
        Ok(())
    } else {
        Err(AuthError::Refused(otherwise))
    }
}

/// The rules that depend on a state (rules 1 and 4 to 11).
pub fn check(rules: &'static Rules, event: &Pdu, lookup: StateLookup<'_>) -> Result<(), AuthError> {
    if event.event_type() == "m.room.create" {
        return check_create(rules, event);
    }
    let state = State::new(rules, lookup)?;

    // 4. A room that does not federate takes events of the creating server only.
    ensure(
        state.federates() || event.sender().server_name() == state.create().sender().server_name(),
        "the room does not federate with the sender's server",
    )?;
    if rules.aliases_rule && event.event_type() == "m.room.aliases" {
        return ensure(
            event.state_key() == Some(event.sender().server_name().as_str()),
            "aliases may only be set for the sender's own server",
        );
    }
    if event.event_type() == "m.room.member" {
        return member::check(event, &state);
    }
    // 6.
    ensure(
        state.is_joined(event.sender()),
        "the sender is not in the room",
    )?;

    let levels = state.levels();
    let sender_level = levels.user(event.sender())?;
    if event.event_type() == "m.room.third_party_invite" {
        // 7.
        let needed = levels.named(LevelName::Invite)?;
        return ensure(sender_level >= needed, "the sender may not invite");
    }
    // 8.
    let needed = levels.event(event.event_type(), event.state_key().is_some())?;
    ensure(
        sender_level >= needed,
        "the sender's power level is too low for this type of event",
    )?;
    // 9.
    let about_other_user = event
        .state_key()
        .is_some_and(|key| key.starts_with('@') && key != event.sender());
    ensure(!about_other_user, "the state key is another user's id")?;

    match event.event_type() {
        "m.room.power_levels" => power_levels::check(event, &state, sender_level),
        "m.room.redaction" if rules.redaction_rule => ensure(
            sender_level >= levels.named(LevelName::Redact)? || same_id_domain(event),
            "the sender may not redact this event",
        ),
        _ => Ok(()),
    }
}

/// Rule 1: create events.
fn check_create(rules: &Rules, event: &Pdu) -> Result<(), AuthError> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        room_version: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        creator: Option<&'a RawValue>,
    }
    ensure(
        event.prev_events().is_empty(),
        "a create event must not have prev events",
    )?;
    if rules.room_id == RoomIdFormat::Domain {
        ensure(
            event.room_id().server_name() == Some(event.sender().server_name()),
            "the room id is not of the sender's server",
        )?;
    }
    let content: Content<'_> = event
        .content_as()
        .map_err(|_| AuthError::Refused("the content of the create event cannot be read"))?;
    if let Some(version) = content.room_version {
        let version: Option<String> = serde_json::from_str(version.get()).ok();
        let known = version.is_some_and(|version| RoomVersion::parse(&version).is_some());
        ensure(known, "the room version is not known")?;
    }
    match rules.creators {
        CreatorRule::Content => ensure(
            content.creator.is_some(),
            "the create event names no creator",
        ),
        CreatorRule::Sender => Ok(()),
        CreatorRule::SenderAndAdditional => {
            let additional = additional_creators(event);
            ensure(
                additional.is_some(),
                "additional_creators is not a list of user ids",
            )
        }
    }
}

/// `additional_creators` of a create event; `None` if it has a wrong form.
fn additional_creators(create: &Pdu) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        additional_creators: Option<&'a RawValue>,
    }
    let content: Content<'_> = create.content_as().ok()?;
    let Some(list) = content.additional_creators else {
        return Some(Vec::new());
    };
    let list: Vec<String> = serde_json::from_str(list.get()).ok()?;
    list.iter().all(|user| is_user_id(user)).then_some(list)
}

/// Whether this passes the checks that a `sender` has to pass.
fn is_user_id(text: &str) -> bool {
    text.len() <= MAX_ID_BYTES && <&UserId>::try_from(text).is_ok()
}

/// Whether a redaction of room version 1 or 2 comes from the server whose event it redacts.
fn same_id_domain(redaction: &Pdu) -> bool {
    let own = redaction.event_id().server_name();
    own.is_some() && own == redaction.redacts().and_then(|target| target.server_name())
}

/// Whether an accepted redaction is to be applied to its target: the target is the event it names,
/// in the same room, and either the sender has the redact level in this state or the redaction
/// comes from the target's own server.
///
/// From room version 3 on the authorisation rules let redactions through, and this decides.
pub fn redaction_applies(
    rules: &'static Rules,
    redaction: &Pdu,
    target: &Pdu,
    lookup: StateLookup<'_>,
) -> Result<bool, AuthError> {
    let names_it = redaction.redacts() == Some(target.event_id());
    if !names_it || redaction.room_id() != target.room_id() {
        return Ok(false);
    }
    let same_server = if rules.redaction_rule {
        same_id_domain(redaction)
    } else {
        redaction.sender().server_name() == target.sender().server_name()
    };
    if same_server {
        return Ok(true);
    }
    let state = State::new(rules, lookup)?;
    let levels = state.levels();
    Ok(levels.user(redaction.sender())? >= levels.named(LevelName::Redact)?)
}
