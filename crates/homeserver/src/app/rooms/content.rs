//! What the server reads in the content of events that clients send. Everything else in a content
//! is the clients' own business.

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
pub(super) fn invited_by_state(
    event_type: &str,
    state_key: Option<&str>,
    content: &RawValue,
) -> Option<OwnedUserId> {
    #[derive(Deserialize)]
    struct Member {
        membership: String,
    }
    if event_type != "m.room.member" {
        return None;
    }
    let member: Member = serde_json::from_str(content.get()).ok()?;
    let user = UserId::parse(state_key?).ok()?;
    (member.membership == "invite").then_some(user)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;

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
        let join = json!({"membership": "join"});
        for (event_type, state_key, content, invited) in [
            ("m.room.member", Some("@a:b"), &invite, Some("@a:b")),
            ("m.room.member", Some("@a:b"), &join, None),
            ("m.room.member", Some("a"), &invite, None),
            ("m.room.member", None, &invite, None),
            ("m.room.name", Some("@a:b"), &invite, None),
        ] {
            let content = to_raw_value(content).unwrap();
            let found = invited_by_state(event_type, state_key, &content);
            let found = found.as_ref().map(|user| user.as_str());
            assert_eq!(found, invited, "{event_type} {state_key:?} {content}");
        }
    }
}
