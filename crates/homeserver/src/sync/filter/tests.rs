//! What filters let through.

use super::*;
use serde_json::{Value, json};

fn compiled(json: Value) -> Filter {
    Filter::compile(serde_json::from_value(json).unwrap()).unwrap()
}

fn passes(filter: &EventFilter, event_type: &str, sender: &str, content: &str) -> bool {
    let content: Box<RawValue> = serde_json::from_str(content).unwrap();
    filter.allows(EventShape {
        event_type,
        sender: Some(sender),
        content: Some(&content),
    })
}

#[test]
fn an_empty_filter_lets_everything_through() {
    let filter = compiled(json!({}));
    assert!(passes(&filter.timeline, "m.room.message", "@a:b", "{}"));
    assert_eq!(filter.timeline.limit(), DEFAULT_LIMIT);
    assert_eq!(filter.lazy, LazyMembers::All);
    assert!(!filter.thread_counts);
}

#[test]
fn conditions_on_type_sender_and_url() {
    // (filter, type, sender, content, passes)
    let cases = [
        (
            json!({"types": ["m.room.*"]}),
            "m.room.name",
            "@a:b",
            "{}",
            true,
        ),
        (
            json!({"types": ["m.room.*"]}),
            "m.reaction",
            "@a:b",
            "{}",
            false,
        ),
        (json!({"types": []}), "m.reaction", "@a:b", "{}", false),
        (
            json!({"types": ["*"], "not_types": ["m.*"]}),
            "m.reaction",
            "@a:b",
            "{}",
            false,
        ),
        (json!({"types": ["a.*.c"]}), "a.b.c", "@a:b", "{}", true),
        (json!({"types": ["a.*.c"]}), "a.c", "@a:b", "{}", false),
        (json!({"types": ["ab*ba"]}), "aba", "@a:b", "{}", false),
        (
            json!({"types": ["m.room.name"]}),
            "m.room.name2",
            "@a:b",
            "{}",
            false,
        ),
        (json!({"senders": ["@a:b"]}), "x", "@a:b", "{}", true),
        (json!({"senders": ["@a:b"]}), "x", "@c:b", "{}", false),
        (
            json!({"senders": ["@a:b"], "not_senders": ["@a:b"]}),
            "x",
            "@a:b",
            "{}",
            false,
        ),
        (
            json!({"contains_url": true}),
            "x",
            "@a:b",
            r#"{"url":"mxc://a/b"}"#,
            true,
        ),
        (
            json!({"contains_url": true}),
            "x",
            "@a:b",
            r#"{"body":"url"}"#,
            false,
        ),
        (
            json!({"contains_url": false}),
            "x",
            "@a:b",
            r#"{"url":"mxc://a/b"}"#,
            false,
        ),
        (json!({"contains_url": false}), "x", "@a:b", "{}", true),
    ];
    for (definition, event_type, sender, content, expected) in cases {
        let filter = compiled(json!({"room": {"timeline": definition}}));
        let found = passes(&filter.timeline, event_type, sender, content);
        assert_eq!(
            found, expected,
            "{definition} on {event_type} {sender} {content}"
        );
    }
}

#[test]
fn rooms_are_chosen_before_events() {
    let filter = compiled(json!({"room": {
        "rooms": ["!a:b", "!c:b"], "not_rooms": ["!c:b"],
        "timeline": {"not_rooms": ["!a:b"]},
    }}));
    let [a, c, d] = ["!a:b", "!c:b", "!d:b"].map(|id| <&RoomId>::try_from(id).unwrap());
    assert!(filter.rooms.allows(a) && !filter.rooms.allows(c) && !filter.rooms.allows(d));
    assert!(!filter.timeline.allows_room(a) && filter.state.allows_room(a));
}

#[test]
fn limits_are_capped_and_zero_stays_zero() {
    for (limit, expected) in [(0, 0), (1, 1), (100, 100), (1_000_000, MAX_LIMIT)] {
        let filter = compiled(json!({"room": {"timeline": {"limit": limit}}}));
        assert_eq!(filter.timeline.limit(), expected);
    }
}

#[test]
fn lazy_loading_and_thread_counts() {
    let filter = compiled(json!({"room": {
        "state": {"lazy_load_members": true, "include_redundant_members": true},
        "timeline": {"unread_thread_notifications": true},
    }}));
    assert_eq!(filter.lazy, LazyMembers::SendersAlways);
    assert!(filter.thread_counts);
    let filter = compiled(json!({"room": {"state": {"lazy_load_members": true}}}));
    assert_eq!(filter.lazy, LazyMembers::Senders);
}

#[test]
fn long_lists_are_refused() {
    let types = vec!["a"; MAX_LIST + 1];
    let definition = json!({"room": {"timeline": {"types": types}}});
    let definition = serde_json::from_value(definition).unwrap();
    assert_eq!(
        Filter::compile(definition).unwrap_err(),
        FilterError::ListTooLong
    );
}
