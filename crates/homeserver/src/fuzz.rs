//! What clients and operators write, mutated.

mod requests;

use homeserver_fuzz::{Target, read_row, rows::stored};
use homeserver_storage::Row as _;
use ruma::{api::client::filter::FilterDefinition, event_id, room_id, user_id};
use serde_json::{Value, json, value::RawValue};

use crate::{
    app::{invitation, pushers, settings, tokens},
    client_event::{EventBody, EventParts, ReadEvent, Unsigned},
    config::{Config, DOCUMENTED},
    sync::{
        filter::{EventShape, Filter, MAX_LIMIT},
        token::SyncToken,
    },
};

#[test]
fn sync_tokens() {
    let seeds = [
        "sff_12_3_4_5_6_7_8",
        "s0_0_0_0_0_0_0_0",
        "s1_18446744073709551615_2_3_a_5_b_7",
    ];
    Target::new("sync_tokens")
        .seeds(seeds)
        .words(&["_", "s", "f"])
        .run(|input| {
            let token = std::str::from_utf8(input).ok();
            let Some(token) = token.and_then(|text| text.parse::<SyncToken>().ok()) else {
                return false;
            };
            assert_eq!(token.to_string().parse(), Ok(token));
            true
        });
}

/// Whether `*` of the pattern can stand for something that makes it the text.
fn star(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| star(rest, &text[skip..])),
        Some((wanted, rest)) => text
            .split_first()
            .is_some_and(|(found, text)| wanted == found && star(rest, text)),
    }
}

#[test]
fn filters() {
    let seeds = [
        json!({"room": {"timeline": {"limit": 7, "types": ["m.*", "*.b*c"], "not_types": ["m.x"],
            "contains_url": true, "lazy_load_members": true, "senders": ["@a:b"],
            "unread_thread_notifications": true}, "rooms": ["!a:b"], "include_leave": true}}),
        json!({"event_fields": ["content.body", "a\\.b.c"], "event_format": "federation",
            "presence": {"not_types": ["*"]}, "account_data": {"limit": 0, "not_senders": []},
            "room": {"state": {"lazy_load_members": true, "include_redundant_members": true},
                "not_rooms": ["!a:b"], "ephemeral": {"types": []}}}),
    ];
    let words = [
        "\"types\":[\"*\"]",
        "\"senders\":[]",
        "\"limit\":",
        "\"rooms\":[]",
        "*",
        "m.room.message",
    ];
    let seeds = seeds.map(|seed| seed.to_string());
    Target::new("filters")
        .seeds(seeds)
        .words(&words)
        .run(|input| {
            let Ok(definition) = serde_json::from_slice::<FilterDefinition>(input) else {
                return false;
            };
            let patterns = definition.room.timeline.clone();
            let Ok(filter) = Filter::compile(definition) else {
                return false;
            };
            assert!(filter.timeline.limit() <= MAX_LIMIT);
            let content: &RawValue = serde_json::from_str("{\"url\":\"mxc://a/b\"}").unwrap();
            for event_type in ["m.room.message", "", "a.bbc", "*"] {
                let event = EventShape {
                    event_type,
                    sender: Some("@a:b"),
                    content: Some(content),
                };
                let parts = [
                    &filter.timeline,
                    &filter.state,
                    &filter.presence,
                    &filter.account_data,
                ];
                for part in parts {
                    let allowed = part.allows(event);
                    assert!(!allowed || !part.allows_nothing());
                    assert!(!allowed || part.allows_type(event_type) && part.allows_sender("@a:b"));
                }
                let short = |list: &[String]| {
                    list.iter()
                        .all(|p| p.len() < 24 && p.matches('*').count() < 4)
                };
                let (only, never) = (patterns.types.as_deref(), patterns.not_types.as_slice());
                if short(only.unwrap_or_default()) && short(never) {
                    let any = |list: &[String]| {
                        list.iter()
                            .any(|p| star(p.as_bytes(), event_type.as_bytes()))
                    };
                    let expected = !any(never) && only.is_none_or(any);
                    assert_eq!(
                        filter.timeline.allows_type(event_type),
                        expected,
                        "{event_type}"
                    );
                }
            }
            filter.rooms.allows(room_id!("!a:b"));
            true
        });
}

/// The content of an event as clients are shown it: the same, but for `redacts`.
#[test]
fn client_events() {
    let seeds = [
        r#"{"body":"hello \"you\"\n","msgtype":"m.text"}"#,
        r#"{"redacts":"$x","reason":"y"}"#,
        r#"{"a":{"redacts":1},"b":[{}]}"#,
        "{}",
    ];
    Target::new("client_events")
        .seeds(seeds)
        .words(&["\"redacts\":", "\\u0072edacts"])
        .run(|input| {
            let canonical = homeserver_events::canonical::parse_object(
                input,
                homeserver_events::Strictness::Strict,
            );
            let Ok(canonical) =
                canonical.map(|object| homeserver_events::canonical::to_string(&object))
            else {
                return false;
            };
            let content: &RawValue = serde_json::from_str(&canonical).unwrap();
            // What the test reads again is wrapped in up to three objects, and serde_json reads
            // no value that is nested deeper than 127 levels.
            if serde_json::from_str::<Value>(&format!("[[[{canonical}]]]")).is_err() {
                return false;
            }
            let value: Value = serde_json::from_str(&canonical).unwrap();
            for redacts in [None, Some(event_id!("$target"))] {
                let body = EventBody::new(EventParts {
                    event_id: event_id!("$event"),
                    event_type: "m.room.\"x",
                    state_key: Some(&canonical),
                    sender: user_id!("@alice:example.org"),
                    origin_server_ts: 7,
                    content,
                    redacts,
                });
                let unsigned = Unsigned {
                    age: Some(1),
                    transaction_id: Some(&canonical),
                    redacted_because: Some(content),
                    ..Unsigned::default()
                };
                let event = ReadEvent::new(body, &unsigned).to_json(Some(room_id!("!a:b")));
                let written: Value = serde_json::from_str(event.get()).expect("is JSON");
                let mut expected = value.clone();
                if let (Some(target), None | Some(Value::Null)) = (redacts, value.get("redacts")) {
                    expected["redacts"] = target.as_str().into();
                }
                // A null counts as none, and then two members have the same name: the last one wins.
                if redacts.is_none() || value.get("redacts") != Some(&Value::Null) {
                    assert_eq!(written["content"], expected);
                }
                assert_eq!(written["state_key"], canonical.as_str());
                assert_eq!(written["unsigned"]["transaction_id"], canonical.as_str());
                assert_eq!(written["unsigned"]["redacted_because"], value);
            }
            true
        });
}

/// The configuration file, and after a zero byte pairs of an environment.
#[test]
fn configuration() {
    let uncommented: Vec<&str> = DOCUMENTED
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(example) if !example.starts_with(' ') && example.contains('=') => example,
            _ => line,
        })
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect();
    let whole = uncommented.join("\n");
    let mut seeds: Vec<String> = whole.split("\n[").map(|part| format!("[{part}")).collect();
    seeds[0] = seeds[0].trim_start_matches('[').to_owned();
    seeds.push(
        "\0HOMESERVER__HTTP__TRUSTED_PROXIES=[\"10.0.0.0/8\"]\nHOMESERVER__SERVER_NAME=a.b"
            .to_owned(),
    );
    let words = [
        "[[listeners]]",
        "\0HOMESERVER__",
        "=",
        "\"\"",
        "1e9",
        "[]",
        "{}",
        "10.0.0.0/33",
        "[::]:0",
    ];
    Target::new("configuration")
        .seeds(seeds)
        .words(&words)
        .run(|input| {
            let text = String::from_utf8_lossy(input);
            let (text, environment) = text.split_once('\0').unwrap_or((&text, ""));
            let pairs = environment.lines().filter_map(|line| line.split_once('='));
            match Config::parse(text, pairs) {
                Ok(config) => {
                    assert!(!config.server_name.as_str().is_empty());
                    true
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    false
                }
            }
        });
}

#[test]
fn homeserver_rows() {
    let pair = tokens::Pair {
        access: [1; 32],
        refresh: [2; 32],
    };
    let access = tokens::AccessRow {
        user: 7,
        device: "D".to_owned(),
        generation: 1,
        expires_at: Some(9),
        replaces: Some(pair),
    };
    let refresh = tokens::RefreshRow {
        user: 7,
        device: "D".to_owned(),
        generation: 1,
        access: [1; 32],
        replaces: None,
        replaced_by: Some(pair),
    };
    let brief = tokens::BriefRow {
        user: 7,
        generation: 300,
        expires_at: u64::MAX,
    };
    let invitation = invitation::TokenRow {
        uses_allowed: Some(3),
        used: 1,
        expires_at: None,
    };
    let hash = [3_u8; 32];
    let device = tokens::DEVICE_TOKENS.key_bytes(&(7_u64, "D", tokens::ACCESS, hash));
    let seeds = [
        stored(&tokens::ACCESS_TOKENS.key_bytes(&hash), &access.encode()),
        stored(&tokens::REFRESH_TOKENS.key_bytes(&hash), &refresh.encode()),
        stored(&tokens::LOGIN_TOKENS.key_bytes(&hash), &brief.encode()),
        stored(&tokens::OPENID_TOKENS.key_bytes(&hash), &brief.encode()),
        stored(&device, b""),
        stored(
            &settings::SETTINGS.key_bytes(&"a"),
            &settings::Setting("b".to_owned()).encode(),
        ),
        stored(&invitation::TOKENS.key_bytes(&"t"), &invitation.encode()),
        stored(
            &pushers::PUSHERS.key_bytes(&(7_u64, "app", "key")),
            b"\x01\x01D\x02{}",
        ),
    ];
    Target::new("homeserver_rows").seeds(seeds).run(|input| {
        read_row!(
            input,
            [
                tokens::ACCESS_TOKENS,
                tokens::REFRESH_TOKENS,
                tokens::LOGIN_TOKENS,
                tokens::OPENID_TOKENS,
                tokens::DEVICE_TOKENS,
                settings::SETTINGS,
                invitation::TOKENS,
                pushers::PUSHERS,
            ]
        )
    });
}
