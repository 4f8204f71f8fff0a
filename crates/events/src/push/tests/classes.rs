//! Classes: the promise that counts can be added up from them.

use proptest::prelude::*;
use ruma::{EventId, OwnedEventId, event_id};

use super::{
    ALICE, Class, Context, PushEvent, Rules, Value, alice, classify, default_ruleset, json, pdu,
    permission,
};
use crate::push::{Classification, MAX_MENTIONED_USERS, Relation, thread_root};

pub(super) fn class_of(json: &Value, sender_level: i64) -> Classification {
    let mut json = json.clone();
    json["sender"] = "@bob:example.org".into();
    json["room_id"] = "!r:example.org".into();
    classify(&pdu(&json), &permission(sender_level))
}

/// What the class says about Alice.
fn by_class(found: &Classification) -> (bool, bool) {
    if found.invites.as_deref() == Some(alice()) {
        (true, false)
    } else if found.mentions.users.iter().any(|user| user == alice()) {
        (true, true)
    } else {
        (found.class.notifies(), found.class.highlights())
    }
}

pub(super) fn events() -> impl Strategy<Value = Value> {
    let types = prop::sample::select(vec![
        "m.room.message",
        "m.room.encrypted",
        "m.room.member",
        "m.room.tombstone",
        "m.reaction",
        "m.room.server_acl",
        "m.call.invite",
        "m.room.topic",
        "M.Room.Message",
        "m.sticker",
    ]);
    let state_keys = prop::sample::select(vec![None, Some(""), Some(ALICE), Some("@carol:x")]);
    let msgtypes = prop::sample::select(vec![
        json!(null),
        json!("m.text"),
        json!("m.notice"),
        json!("M.NOTICE"),
    ]);
    let memberships = prop::sample::select(vec![json!(1), json!("invite"), json!("join")]);
    let mentions = prop::sample::select(vec![
        json!(null),
        json!({}),
        json!({ "user_ids": [ALICE, ALICE, "@carol:x", 5, "nobody"] }),
        json!({ "user_ids": ["@carol:x"], "room": true }),
        json!({ "user_ids": ALICE, "room": "true" }),
        json!([ALICE]),
    ]);
    let relations = prop::sample::select(vec![
        json!(null),
        json!({ "rel_type": "m.replace", "event_id": "$a" }),
        json!({ "rel_type": "m.thread", "event_id": "$a" }),
        json!("m.replace"),
    ]);
    (
        types,
        state_keys,
        msgtypes,
        memberships,
        mentions,
        relations,
    )
        .prop_map(
            |(event_type, state_key, msgtype, membership, mentions, relation)| {
                let mut event = json!({
                    "type": event_type, "sender": "@bob:example.org", "room_id": "!r:example.org",
                    "content": { "msgtype": msgtype, "membership": membership, "body": "x",
                                 "m.mentions": mentions, "m.relates_to": relation },
                });
                if let Some(state_key) = state_key {
                    event["state_key"] = state_key.into();
                }
                event
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(
        super::globs::cases()) })]

    #[test]
    fn classes_agree_with_default_rules(json in events(), level in 0..100_i64, members in 2..4_u64) {
        let permission = permission(level);
        let context = Context { member_count: members, display_name: None, permission: &permission };
        let rules = Rules::compile(alice(), &default_ruleset(alice()));
        let outcome = rules.evaluate(&PushEvent::new(&pdu(&json)), &context);
        let by_rules = outcome.map_or((false, false), |found| (found.notify, found.highlight));
        prop_assert_eq!(by_class(&class_of(&json, level)), by_rules);
    }
}

#[test]
fn mentions_are_kept_once_without_the_sender_up_to_a_limit() {
    let mentioning = |users: Vec<String>| {
        class_of(
            &json!({ "type": "m.room.message",
            "content": { "m.mentions": { "user_ids": users } } }),
            0,
        )
        .mentions
    };
    let found = mentioning(vec![
        ALICE.into(),
        "@bob:example.org".into(),
        ALICE.into(),
        "x".into(),
    ]);
    assert_eq!(
        (found.users.as_slice(), found.overflow),
        ([alice().to_owned()].as_slice(), false)
    );
    let many = |count| (0..count).map(|n| format!("@u{n}:x")).collect::<Vec<_>>();
    assert_eq!(
        mentioning(many(MAX_MENTIONED_USERS)).users.len(),
        MAX_MENTIONED_USERS
    );
    let found = mentioning(many(MAX_MENTIONED_USERS + 1));
    assert!(found.overflow && found.users.is_empty());
}

#[test]
fn a_notice_mentions_nobody() {
    let found = class_of(
        &json!({ "type": "m.room.message", "content": {
        "msgtype": "m.notice", "m.mentions": { "user_ids": [ALICE], "room": true } } }),
        100,
    );
    assert_eq!(
        (found.class, found.mentions.users.len()),
        (Class::Notice, 0)
    );
}

#[test]
fn numbers_of_classes_are_stored() {
    for (number, class) in Class::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(class.number()), number);
        assert_eq!(Class::from_number(class.number()), Some(class));
    }
    assert_eq!(Class::from_number(11), None);
}

#[test]
fn relations() {
    let relation = |relates_to: Value| {
        class_of(
            &json!({ "type": "m.x", "content": { "m.relates_to": relates_to } }),
            0,
        )
        .relation
    };
    assert_eq!(
        relation(json!({ "rel_type": "m.annotation", "event_id": "$a", "key": "👍" })),
        Some(Relation {
            rel_type: "m.annotation".into(),
            event_id: event_id!("$a").to_owned(),
            key: Some("👍".into()),
        })
    );
    assert_eq!(relation(json!({ "event_id": "$a" })), None);
    assert_eq!(
        relation(json!({ "rel_type": "m.thread", "event_id": "no sigil" })),
        None
    );
    assert_eq!(
        relation(json!({ "m.in_reply_to": { "event_id": "$a" } })),
        None
    );
    assert_eq!(relation(json!(7)), None);
}

#[test]
fn thread_roots_are_found_within_three_hops() {
    let related = |rel_type: &str, event_id: &str| Relation {
        rel_type: rel_type.into(),
        event_id: OwnedEventId::try_from(event_id).unwrap(),
        key: None,
    };
    // $4 annotates $3, which edits $2, which annotates $1, which is in the thread of $root.
    let relation_of = |id: &EventId| match id.as_str() {
        "$1" => Some(related("m.thread", "$root")),
        "$2" => Some(related("m.annotation", "$1")),
        "$3" => Some(related("m.replace", "$2")),
        "$loop" => Some(related("m.reference", "$loop")),
        _ => None,
    };
    let root_from = |relation: Relation| thread_root(Some(&relation), relation_of);
    let root = Some(event_id!("$root").to_owned());
    assert_eq!(root_from(related("m.thread", "$root")), root);
    assert_eq!(root_from(related("m.annotation", "$1")), root);
    assert_eq!(root_from(related("m.annotation", "$2")), root);
    assert_eq!(root_from(related("m.annotation", "$3")), root);
    assert_eq!(root_from(related("m.annotation", "$4")), None);
    assert_eq!(root_from(related("m.annotation", "$loop")), None);
    assert_eq!(thread_root(None, relation_of), None);
}
