//! Every kind of condition, with the specification's examples.

use ruma::UserId;
use serde_json::{Value, json};

use super::{ALICE, Class, event, matches, message, pdu_in};
use crate::{
    RoomVersion,
    push::{Context, PushEvent, Rules, SenderPermission},
};

fn check(condition: &Value, cases: &[(Value, bool)]) {
    for (json, expected) in cases {
        assert_eq!(matches(condition, json), *expected, "{condition} on {json}");
    }
}

fn with_content(content: &Value) -> Value {
    json!({ "type": "m.x", "sender": "@bob:example.org", "room_id": "!r:x", "content": content })
}

#[test]
fn event_match() {
    check(
        &json!({ "kind": "event_match", "key": "content.topic", "pattern": "lunc?*" }),
        &[
            (with_content(&json!({ "topic": "Lunch plans" })), true),
            (with_content(&json!({ "topic": "LUNCH" })), true),
            (with_content(&json!({ "topic": " lunch" })), false),
            (with_content(&json!({ "topic": "lunc" })), false),
            (with_content(&json!({ "topic": null })), false),
            (with_content(&json!({ "topic": ["lunch"] })), false),
            (with_content(&json!({})), false),
        ],
    );
    check(
        &json!({ "kind": "event_match", "key": "content.absent", "pattern": "*" }),
        &[
            (with_content(&json!({})), false),
            (with_content(&json!({ "absent": 1 })), false),
        ],
    );
    check(
        &json!({ "kind": "event_match", "key": "content.body", "pattern": "ex*ple" }),
        &[
            (message("An example event."), true),
            (message("exple"), true),
            (message("An exciting triple-whammy"), true),
            (message("examples"), false),
        ],
    );
    // Only `content.body` is searched for words; a body elsewhere is a value like any other.
    check(
        &json!({ "kind": "event_match", "key": "content.other.body", "pattern": "word" }),
        &[
            (
                with_content(&json!({ "other": { "body": "a word" } })),
                false,
            ),
            (with_content(&json!({ "other": { "body": "word" } })), true),
        ],
    );
}

#[test]
fn paths_with_dots_and_backslashes() {
    for (key, content) in [
        (
            r"content.m\.relates_to.rel_type",
            json!({ "m.relates_to": { "rel_type": "v" } }),
        ),
        (r"content.m\\foo", json!({ r"m\foo": "v" })),
        (r"content.a\x", json!({ r"a\x": "v" })),
        (r"content.a\", json!({ r"a\": "v" })),
        (r"content.a..b", json!({ "a": { "": { "b": "v" } } })),
        (r"content.a\\.b", json!({ r"a\": { "b": "v" } })),
    ] {
        let condition = json!({ "kind": "event_match", "key": key, "pattern": "v" });
        assert!(matches(&condition, &with_content(&content)), "{key}");
    }
    let unescaped = json!({ "kind": "event_match", "key": "content.m.x", "pattern": "v" });
    assert!(!matches(&unescaped, &with_content(&json!({ "m.x": "v" }))));
}

#[test]
fn event_property_is() {
    check(
        &json!({ "kind": "event_property_is", "key": r"content.m\.federate", "value": true }),
        &[
            (with_content(&json!({ "m.federate": true })), true),
            (with_content(&json!({ "m.federate": "true" })), false),
            (with_content(&json!({ "m.federate": 1 })), false),
            (with_content(&json!({})), false),
        ],
    );
    check(
        &json!({ "kind": "event_property_is", "key": "content.n", "value": 1 }),
        &[
            (with_content(&json!({ "n": 1 })), true),
            (with_content(&json!({ "n": 1.0 })), false),
            (with_content(&json!({ "n": "1" })), false),
        ],
    );
    check(
        &json!({ "kind": "event_property_is", "key": "content.n", "value": null }),
        &[
            (with_content(&json!({ "n": null })), true),
            (with_content(&json!({})), false),
        ],
    );
    // Exact, unlike event_match, also for the body.
    check(
        &json!({ "kind": "event_property_is", "key": "content.body", "value": "Tea" }),
        &[
            (message("Tea"), true),
            (message("tea"), false),
            (message("Tea time"), false),
        ],
    );
}

#[test]
fn event_property_contains() {
    check(
        &json!({ "kind": "event_property_contains", "key": "content.alt_aliases",
                 "value": "#myroom:example.com" }),
        &[
            (
                with_content(&json!({ "alt_aliases": ["#a:b", "#myroom:example.com"] })),
                true,
            ),
            (
                with_content(&json!({ "alt_aliases": [":example.com", {}, []] })),
                false,
            ),
            (
                with_content(&json!({ "alt_aliases": "#myroom:example.com" })),
                false,
            ),
            (with_content(&json!({})), false),
        ],
    );
}

#[test]
fn contains_display_name() {
    check(
        &json!({ "kind": "contains_display_name" }),
        &[
            (message("hello alice!"), true),
            (message("malice"), false),
            (with_content(&json!({ "body": 7 })), false),
        ],
    );
}

#[test]
fn a_display_name_is_no_pattern() {
    let rules = json!({ "override": [{ "rule_id": "n", "default": false, "enabled": true,
        "conditions": [{ "kind": "contains_display_name" }], "actions": ["notify"] }]});
    let rules = Rules::compile(super::alice(), &serde_json::from_value(rules).unwrap());
    let permission = super::permission(0);
    let sees = |name, body: &str| {
        let context = Context {
            member_count: 3,
            display_name: name,
            permission: &permission,
        };
        rules.evaluate(&event(&message(body)), &context).is_some()
    };
    assert!(sees(Some("a*e"), "hi a*e"));
    assert!(!sees(Some("a*e"), "hi abe"));
    assert!(!sees(Some(""), "hi"));
    assert!(!sees(None, "hi"));
}

#[test]
fn room_member_count() {
    // The room of `matches` has ten members.
    for (is, expected) in [
        ("10", true),
        ("==10", true),
        ("2", false),
        ("<10", false),
        ("<11", true),
        (">9", true),
        (">10", false),
        (">=10", true),
        ("<=10", true),
        ("<=9", false),
    ] {
        let condition = json!({ "kind": "room_member_count", "is": is });
        assert_eq!(matches(&condition, &message("x")), expected, "{is}");
    }
}

#[test]
fn sender_notification_permission() {
    let create = |version: RoomVersion| {
        let create = json!({ "type": "m.room.create", "state_key": "", "sender": ALICE,
            "room_id": "!r:example.org", "content": { "creator": ALICE } });
        pdu_in(version, &create)
    };
    let levels = |version, content: Value| {
        let mut event = with_content(&content);
        event["type"] = "m.room.power_levels".into();
        event["state_key"] = "".into();
        event["room_id"] = "!r:example.org".into();
        pdu_in(version, &event)
    };
    let allowed = |version: RoomVersion, content: Option<Value>, sender: &str, kind: &str| {
        let (rules, create) = (version.rules(), create(version));
        let sender = UserId::parse(sender).unwrap();
        let levels = content.map(|content| levels(version, content));
        SenderPermission::new(rules, &create, levels, &sender).allows(kind)
    };
    let (v11, v12) = (RoomVersion::V11, RoomVersion::V12);
    let bob = "@bob:example.org";
    // Without power levels the creator has 100 and everybody else 0.
    assert!(allowed(v11, None, ALICE, "room"));
    assert!(!allowed(v11, None, bob, "room"));
    let with_bob_at = |level: i64| Some(json!({ "users": { bob: level } }));
    assert!(allowed(v11, with_bob_at(50), bob, "room"));
    assert!(!allowed(v11, with_bob_at(49), bob, "room"));
    assert!(!allowed(v11, with_bob_at(50), ALICE, "room"));
    assert!(
        allowed(v12, with_bob_at(50), ALICE, "room"),
        "a creator of version 12"
    );
    let needing = |level: i64| Some(json!({ "notifications": { "room": level } }));
    assert!(allowed(v11, needing(0), bob, "room"));
    assert!(!allowed(v11, needing(1), bob, "room"));
    assert!(!allowed(v11, needing(0), bob, "org.example.other"));
    assert!(!allowed(
        v11,
        Some(json!({ "notifications": { "room": "0" } })),
        bob,
        "room"
    ));
    assert!(!allowed(
        v11,
        Some(json!({ "notifications": [] })),
        bob,
        "room"
    ));
    assert!(!allowed(
        v11,
        Some(json!({ "users": { bob: "100" } })),
        bob,
        "room"
    ));
    // Bob has level 0 in `matches`.
    let condition = json!({ "kind": "sender_notification_permission", "key": "room" });
    assert!(!matches(&condition, &message("@room")));
}

#[test]
fn unknown_conditions_never_match() {
    check(
        &json!({ "kind": "org.example.moon_phase", "is": "full" }),
        &[(message("x"), false)],
    );
}

#[test]
fn repeated_bodies_are_folded_once() {
    let event: PushEvent = event(&message("Tea"));
    let first = std::ptr::from_ref(event.body().unwrap());
    assert_eq!(first, std::ptr::from_ref(event.body().unwrap()));
    assert_eq!(Class::from_number(10), Some(Class::Message));
}
