//! What the server reads in the content of events that clients send. Everything else in a content
//! is the clients' own business.

use homeserver_rooms::NewEvent;
use ruma::{OwnedEventId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ChangeError;

/// Refuses a redaction that names no event. In all room versions clients name it in the content.
pub(super) fn check_redaction(content: &RawValue) -> Result<(), ChangeError> {
    #[derive(Deserialize)]
    struct Redaction {
        #[serde(rename = "redacts")]
        _redacts: OwnedEventId,
    }
    match serde_json::from_str::<Redaction>(content.get()) {
        Ok(_) => Ok(()),
        Err(_) => Err(ChangeError::BadContent(
            "A redaction names the event that it redacts",
        )),
    }
}

/// The user whom a state event invites.
pub(super) fn invited_by_state(event: &NewEvent) -> Option<OwnedUserId> {
    #[derive(Deserialize)]
    struct Member {
        membership: String,
    }
    if event.event_type != "m.room.member" {
        return None;
    }
    let member: Member = serde_json::from_str(event.content.get()).ok()?;
    let user = UserId::parse(event.state_key.as_deref()?).ok()?;
    (member.membership == "invite").then_some(user)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;

    fn event(event_type: &str, state_key: Option<&str>, content: &Value) -> NewEvent {
        NewEvent {
            event_type: event_type.to_owned(),
            state_key: state_key.map(str::to_owned),
            content: to_raw_value(content).unwrap(),
            timestamp: None,
        }
    }

    #[test]
    fn redactions_name_their_target() {
        let check = |content: &Value| check_redaction(&to_raw_value(content).unwrap());
        assert!(check(&json!({"redacts": "$a", "reason": "spam", "more": 1})).is_ok());
        for bad in [json!({}), json!({"redacts": 1}), json!({"redacts": "a"})] {
            assert!(check(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn member_events_with_membership_invite_invite() {
        let invite = json!({"membership": "invite"});
        let cases = [
            (event("m.room.member", Some("@a:b"), &invite), Some("@a:b")),
            (
                event(
                    "m.room.member",
                    Some("@a:b"),
                    &json!({"membership": "join"}),
                ),
                None,
            ),
            (event("m.room.member", Some("a"), &invite), None),
            (event("m.room.member", None, &invite), None),
            (event("m.room.name", Some("@a:b"), &invite), None),
        ];
        for (event, invited) in cases {
            let found = invited_by_state(&event);
            assert_eq!(
                found.as_ref().map(|user| user.as_str()),
                invited,
                "{event:?}"
            );
        }
    }
}
