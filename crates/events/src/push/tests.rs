//! Push rules held against the specification's examples, and classes against default rules.

use ruma::{EventId, UserId, push::Ruleset, user_id};
use serde_json::{Value, json};

use super::{
    Class, Context, Outcome, PushEvent, Rules, SenderPermission, classify, default_ruleset,
};
use crate::{Pdu, PowerLevel, RoomVersion};

mod classes;
mod conditions;
mod globs;
mod priorities;
mod verdicts;

const ALICE: &str = "@alice:example.org";

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn permission(level: i64) -> SenderPermission {
    SenderPermission {
        sender: PowerLevel::Finite(level),
        power_levels: None,
    }
}

fn event(json: &Value) -> PushEvent {
    PushEvent::from_json(json.as_object().unwrap().clone())
}

/// The same event as servers have it.
fn pdu(json: &Value) -> Pdu {
    pdu_in(RoomVersion::V11, json)
}

fn pdu_in(version: RoomVersion, json: &Value) -> Pdu {
    let mut json = json.clone();
    let id = json.as_object_mut().unwrap().remove("event_id");
    json["origin_server_ts"] = 1.into();
    json["depth"] = 1.into();
    json["prev_events"] = json!([]);
    json["auth_events"] = json!([]);
    if version == RoomVersion::V12 && json["type"] == "m.room.create" {
        json.as_object_mut().unwrap().remove("room_id");
    }
    let id = EventId::parse(id.as_ref().and_then(Value::as_str).unwrap_or("$e")).unwrap();
    Pdu::from_stored(json.to_string().as_bytes(), id, version.rules()).unwrap()
}

fn message(body: &str) -> Value {
    json!({
        "type": "m.room.message", "sender": "@bob:example.org", "room_id": "!r:example.org",
        "event_id": "$e", "content": { "msgtype": "m.text", "body": body },
    })
}

/// Alice's outcome under these rules, in a room of ten where Bob has level 0.
fn evaluate(ruleset: &Value, json: &Value) -> Option<Outcome> {
    let ruleset: Ruleset = serde_json::from_value(ruleset.clone()).unwrap();
    let permission = permission(0);
    let context = Context {
        member_count: 10,
        display_name: Some("Alice"),
        permission: &permission,
    };
    Rules::compile(alice(), &ruleset)
        .evaluate(&event(json), &context)
        .cloned()
}

/// Whether a rule with this one condition matches.
fn matches(condition: &Value, json: &Value) -> bool {
    let rules = json!({ "override": [{
        "rule_id": "test", "default": false, "enabled": true,
        "conditions": [condition], "actions": ["notify"],
    }]});
    evaluate(&rules, json).is_some()
}

#[test]
fn default_rules_equal_the_specification() {
    let fixture = include_str!("../../tests/fixtures/push/default_rules.json")
        .replace("[the user's Matrix ID]", ALICE);
    let expected: Value = serde_json::from_str(&fixture).unwrap();
    assert_eq!(
        serde_json::to_value(default_ruleset(alice())).unwrap(),
        expected
    );
}
