//! The redaction algorithm of every room version, and who may have a redaction applied.
//!
//! Redacting is also the first step of signing and of the reference hash, so what is kept here is
//! part of every event's identity. Applying a redaction to a stored event, hiding it from search
//! and from caches is not done here.

use crate::canonical::{self, CanonicalObject, CanonicalValue};
use crate::pdu::{Pdu, PduError};
use crate::rules::Rules;

/// Kept at the top level in every version.
const TOP_LEVEL: [&str; 12] = [
    "event_id",
    "type",
    "room_id",
    "sender",
    "state_key",
    "content",
    "hashes",
    "signatures",
    "depth",
    "prev_events",
    "auth_events",
    "origin_server_ts",
];

/// Kept at the top level in addition in versions 1 to 10.
const OLD_TOP_LEVEL: [&str; 3] = ["origin", "membership", "prev_state"];

/// The redacted form of an event. `unsigned` is not kept; the event keeps its id.
pub fn redact(event: &Pdu, rules: &'static Rules) -> Result<Pdu, PduError> {
    let object = canonical::parse_object(event.json(), rules.strictness)?;
    let redacted = canonical::to_string(&redact_object(&object, rules));
    Pdu::from_stored(redacted.as_bytes(), event.event_id().to_owned(), rules)
}

/// The redacted form of an event's JSON. Total: what has an unexpected form is not kept.
pub fn redact_object(event: &CanonicalObject, rules: &Rules) -> CanonicalObject {
    let old = rules.redaction.keeps_origin_membership_prev_state;
    let mut redacted = CanonicalObject::new();
    for (key, value) in event {
        let name = key.as_str();
        if name == "content" {
            continue;
        }
        if TOP_LEVEL.contains(&name) || (old && OLD_TOP_LEVEL.contains(&name)) {
            redacted.insert(key.clone(), value.clone());
        }
    }
    if let Some(content) = event.get("content") {
        let event_type = event
            .get("type")
            .and_then(CanonicalValue::as_str)
            .unwrap_or("");
        let kept = match content {
            CanonicalValue::Object(content) => redact_content(event_type, content, rules),
            _ => CanonicalObject::new(),
        };
        redacted.insert("content".to_owned(), CanonicalValue::Object(kept));
    }
    redacted
}

/// What is left of the content of an event of this type.
pub fn redact_content(
    event_type: &str,
    content: &CanonicalObject,
    rules: &Rules,
) -> CanonicalObject {
    let rules = &rules.redaction;
    if event_type == "m.room.create" && rules.keeps_version_11 {
        return content.clone();
    }
    let is_kept = |key: &str| match event_type {
        "m.room.member" => {
            key == "membership"
                || (key == "join_authorised_via_users_server" && rules.keeps_member_authorised_via)
        }
        "m.room.create" => key == "creator",
        "m.room.join_rules" => {
            key == "join_rule" || (key == "allow" && rules.keeps_join_rules_allow)
        }
        "m.room.power_levels" => {
            matches!(
                key,
                "ban"
                    | "events"
                    | "events_default"
                    | "kick"
                    | "redact"
                    | "state_default"
                    | "users"
                    | "users_default"
            ) || (key == "invite" && rules.keeps_version_11)
        }
        "m.room.aliases" => key == "aliases" && rules.keeps_aliases,
        "m.room.history_visibility" => key == "history_visibility",
        "m.room.redaction" => key == "redacts" && rules.keeps_version_11,
        _ => false,
    };
    let mut kept: CanonicalObject = content
        .iter()
        .filter(|(key, _)| is_kept(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if event_type == "m.room.member" && rules.keeps_version_11 {
        keep_signed_invite(content, &mut kept);
    }
    kept
}

/// Of a `third_party_invite` object only `signed` is kept; without one it stays as an empty object,
/// which is how the servers that introduced the rule read it.
fn keep_signed_invite(content: &CanonicalObject, kept: &mut CanonicalObject) {
    const KEY: &str = "third_party_invite";
    let Some(invite) = content.get(KEY).and_then(CanonicalValue::as_object) else {
        return;
    };
    let signed = invite.get_key_value("signed");
    let invite = signed
        .map(|(key, value)| (key.clone(), value.clone()))
        .into_iter()
        .collect();
    kept.insert(KEY.to_owned(), CanonicalValue::Object(invite));
}
