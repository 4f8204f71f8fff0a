//! Which rule wins, and what its actions come to.

use ruma::push::{RuleKind, Ruleset};
use serde_json::{Value, json};

use super::{ALICE, alice, default_ruleset, evaluate, message};

fn rule(id: &str, actions: &Value) -> Value {
    json!({ "rule_id": id, "default": false, "enabled": true, "conditions": [], "actions": actions })
}

fn picked(rules: &Value, json: &Value) -> String {
    evaluate(rules, json)
        .map(|outcome| outcome.rule_id)
        .unwrap_or_default()
}

/// Alice's default rules as JSON, for a test to change.
fn defaults() -> Value {
    serde_json::to_value::<Ruleset>(default_ruleset(alice())).unwrap()
}

#[test]
fn kinds_are_tried_in_order() {
    let simple = |id: &str| json!({ "rule_id": id, "default": false, "enabled": true, "actions": ["notify"] });
    let mut content = simple("word");
    content["pattern"] = "tea".into();
    let mut rules = json!({
        "underride": [rule("under", &json!([]))],
        "sender": [simple("@bob:example.org")],
        "room": [simple("!r:example.org")],
        "content": [content],
        "override": [rule("over", &json!([]))],
    });
    let message = message("time for tea");
    for (kind, expected) in [
        ("override", "over"),
        ("content", "word"),
        ("room", "!r:example.org"),
        ("sender", "@bob:example.org"),
        ("underride", "under"),
    ] {
        assert_eq!(picked(&rules, &message), expected);
        rules[kind] = json!([]);
    }
    assert_eq!(picked(&rules, &message), "");
}

#[test]
fn own_rules_stand_before_the_servers() {
    // Stored in whatever order, the user's own rule decides before the default ones.
    let mut rules = defaults();
    rules["override"]
        .as_array_mut()
        .unwrap()
        .push(rule("mine", &json!([])));
    rules["override"]
        .as_array_mut()
        .unwrap()
        .push(rule("mine too", &json!(["notify"])));
    let mut notice = message("x");
    notice["content"]["msgtype"] = "m.notice".into();
    assert_eq!(picked(&rules, &notice), "mine");

    // But the master rule decides before everything.
    for rule in rules["override"].as_array_mut().unwrap() {
        if rule["rule_id"] == ".m.rule.master" {
            rule["enabled"] = true.into();
        }
    }
    assert_eq!(picked(&rules, &notice), ".m.rule.master");
}

#[test]
fn disabled_rules_never_match() {
    let mut mine = rule("mine", &json!(["notify"]));
    mine["enabled"] = false.into();
    let rules = json!({ "override": [mine], "underride": [rule("other", &json!([]))] });
    assert_eq!(picked(&rules, &message("x")), "other");
}

#[test]
fn rooms_and_senders_are_exact() {
    let rules = json!({
        "room": [{ "rule_id": "!R:example.org", "default": false, "enabled": true, "actions": [] }],
        "sender": [{ "rule_id": "@b*:example.org", "default": false, "enabled": true, "actions": [] }],
    });
    assert_eq!(picked(&rules, &message("x")), "");
}

#[test]
fn own_events_match_nothing() {
    let rules = json!({ "override": [rule("all", &json!(["notify"]))] });
    let mut own = message("x");
    assert_eq!(picked(&rules, &own), "all");
    own["sender"] = ALICE.into();
    assert_eq!(picked(&rules, &own), "");
}

#[test]
fn too_many_conditions_match_nothing() {
    let condition = json!({ "kind": "event_match", "key": "type", "pattern": "*" });
    let mut many = rule("many", &json!(["notify"]));
    many["conditions"] = vec![condition; crate::push::MAX_CONDITIONS + 1].into();
    assert_eq!(picked(&json!({ "override": [many] }), &message("x")), "");
}

#[test]
fn actions() {
    for (actions, notify, highlight, sound) in [
        (json!([]), false, false, None),
        (json!(["dont_notify"]), false, false, None),
        (json!(["coalesce"]), false, false, None),
        (json!(["notify"]), true, false, None),
        (
            json!(["notify", { "set_tweak": "highlight" }]),
            true,
            true,
            None,
        ),
        (
            json!(["notify", { "set_tweak": "highlight", "value": true }]),
            true,
            true,
            None,
        ),
        (
            json!(["notify", { "set_tweak": "highlight", "value": false }]),
            true,
            false,
            None,
        ),
        (json!([{ "set_tweak": "highlight" }]), false, false, None),
        (
            json!(["notify", { "set_tweak": "sound", "value": "ring" }]),
            true,
            false,
            Some("ring"),
        ),
        (
            json!(["notify", { "set_tweak": "org.example", "value": [1] }]),
            true,
            false,
            None,
        ),
    ] {
        let rules = json!({ "override": [rule("r", &actions)] });
        let outcome = evaluate(&rules, &message("x")).unwrap();
        assert_eq!(
            (outcome.notify, outcome.highlight),
            (notify, highlight),
            "{actions}"
        );
        assert_eq!(outcome.sound.as_deref(), sound, "{actions}");
        assert_eq!(outcome.kind, RuleKind::Override);
    }
}

#[test]
fn default_rules_on_common_events() {
    let rules = defaults();
    let with = |patch: &dyn Fn(&mut Value)| {
        let mut json = message("hello");
        patch(&mut json);
        picked(&rules, &json)
    };
    assert_eq!(with(&|_| ()), ".m.rule.message");
    assert_eq!(
        with(&|e| e["type"] = "m.room.encrypted".into()),
        ".m.rule.encrypted"
    );
    assert_eq!(
        with(&|e| e["type"] = "m.call.invite".into()),
        ".m.rule.call"
    );
    assert_eq!(
        with(&|e| e["type"] = "m.reaction".into()),
        ".m.rule.reaction"
    );
    assert_eq!(with(&|e| e["type"] = "m.room.topic".into()), "");
    let mention = json!({ "user_ids": ["@carol:x", ALICE] });
    assert_eq!(
        with(&|e| e["content"]["m.mentions"] = mention.clone()),
        ".m.rule.is_user_mention"
    );
    // Bob has level 0 and may not mention the room.
    assert_eq!(
        with(&|e| e["content"]["m.mentions"] = json!({ "room": true })),
        ".m.rule.message"
    );
}
