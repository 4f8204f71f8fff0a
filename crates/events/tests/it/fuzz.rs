//! What other servers and clients send, mutated: `homeserver_fuzz` makes the inputs.

use homeserver_events::canonical::{self, CanonicalValue, Strictness};
use homeserver_events::limits::{
    MAX_AUTH_EVENTS, MAX_ID_BYTES, MAX_JSON_DEPTH, MAX_PDU_BYTES, MAX_PREV_EVENTS,
};
use homeserver_events::push::{self, PushEvent, SenderPermission};
use homeserver_events::rules::EventIdFormat;
use homeserver_events::{
    KeyLifetime, Pdu, PowerLevel, PublishedKey, RoomVersion, Rules, ServerAcl, SigningKey,
    Verified, VerifyError, VerifyKey, auth, hash, redact, verify_event,
};
use homeserver_fuzz::Target;
use ruma::{ServerName, push::Ruleset, user_id};
use serde_json::{Value, json};

use crate::room::{ALICE, BOB, Room, key, member, message, state};

/// What events, rules and requests are written with.
const WORDS: [&str; 30] = [
    "\"content\":",
    "\"type\":",
    "\"state_key\":\"\"",
    "\"room_id\":",
    "\"sender\":",
    "\"depth\":",
    "\"prev_events\":[]",
    "\"auth_events\":[]",
    "\"hashes\":",
    "\"sha256\"",
    "\"signatures\":{}",
    "\"unsigned\":{}",
    "\"redacts\":",
    "\"origin_server_ts\":",
    "\"membership\":\"join\"",
    "\"third_party_invite\":",
    "\"join_authorised_via_users_server\":",
    "m.room.member",
    "m.room.power_levels",
    "m.room.create",
    "m.room.redaction",
    "\"users\":",
    "\"creator\":",
    "\"additional_creators\":",
    "@alice:one.example",
    "!room:one.example",
    "$event:one.example",
    "@:",
    "[::1]:8448",
    "\"m.mentions\":{\"room\":true}",
];

#[test]
fn canonical_json() {
    let seeds = [
        r#"{"a":[1,-2,{"b":"\u00e9\"\\\n"}],"c":null,"d":true,"ä":"\ud83d\ude00"}"#,
        r#"{"a":1e3,"b":0.5,"c":-0,"d":9007199254740993,"a":[]}"#,
        "[9007199254740991,-9007199254740991]",
        " { \"a\" : [ ] , \"\" : { } } ",
    ];
    Target::new("canonical_json")
        .seeds(seeds)
        .words(&WORDS)
        .run(|input| {
            let strict = canonical::parse(input, Strictness::Strict);
            let lenient = canonical::parse(input, Strictness::Lenient);
            if let Ok(value) = &strict {
                let serde: Value = serde_json::from_slice(input).expect("serde reads no less");
                let written = serde_json::from_slice::<Value>(text(value).as_bytes()).unwrap();
                assert_eq!(serde, written, "another value than serde's");
                assert_eq!(Some(value), lenient.as_ref().ok());
            }
            let Ok(value) = lenient else { return false };
            assert!(depth(&value) <= MAX_JSON_DEPTH);
            let written = text(&value);
            let again = canonical::parse(written.as_bytes(), Strictness::Lenient);
            assert_eq!(again.map(|again| text(&again)), Ok(written));
            true
        });
}

fn text(value: &CanonicalValue) -> String {
    let mut text = String::new();
    canonical::write_value(value, &mut text);
    text
}

fn depth(value: &CanonicalValue) -> usize {
    match value {
        CanonicalValue::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        CanonicalValue::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Events of a room of each version. The first byte of an input says which version.
fn events() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (number, version) in RoomVersion::ALL.into_iter().enumerate() {
        let mut room = Room::new(version);
        room.must(&member(BOB, BOB, "join"));
        let content = json!({"body": "hello alice", "m.mentions": {"user_ids": [ALICE]}});
        room.must(&message(BOB, "m.room.message", content));
        room.must(&state(ALICE, "m.room.topic", "", json!({"topic": "ä"})));
        let redaction = json!({"redacts": room.last().event_id(), "reason": "x"});
        room.must(&message(ALICE, "m.room.redaction", redaction));
        for event in room.events.values() {
            seeds.push([&[number as u8], event.json()].concat());
        }
    }
    seeds
}

/// The event that an input is, if it is one.
fn event_of(input: &[u8]) -> Option<(Pdu, &'static Rules)> {
    let (version, json) = input.split_first()?;
    let version = usize::from(*version) % RoomVersion::ALL.len();
    let rules = RoomVersion::ALL[version].rules();
    Some((Pdu::parse(json, rules).ok()?, rules))
}

#[test]
fn pdu() {
    Target::new("pdu")
        .seeds(events())
        .words(&WORDS)
        .run(|input| {
            let Some((event, rules)) = event_of(input) else {
                return false;
            };
            check_limits(&event);
            // What is stored is canonical, and the same event.
            let again = Pdu::parse(event.json(), rules).expect("parses again");
            assert_eq!(again, event);
            let stored = Pdu::from_stored(event.json(), event.event_id().to_owned(), rules);
            assert_eq!(stored.as_ref(), Ok(&event));
            let object = event.to_object().expect("is an object");
            assert_eq!(canonical::to_string(&object), event.json_str());
            assert!(
                serde_json::from_str::<Value>(event.content_str())
                    .unwrap()
                    .is_object()
            );
            // A redaction keeps the id, and takes nothing further when done again.
            if let Ok(redacted) = redact(&event, rules) {
                assert_eq!(redact(&redacted, rules).as_ref(), Ok(&redacted));
                if rules.event_id != EventIdFormat::Field {
                    let object = redacted.to_object().unwrap();
                    let hash = hash::reference_hash(&object, rules);
                    let id = hash::event_id_of_hash(&hash, rules);
                    assert_eq!(id.as_deref(), Some(event.event_id()));
                }
            }
            true
        });
}

fn check_limits(event: &Pdu) {
    assert!(event.json().len() <= MAX_PDU_BYTES);
    assert!(event.prev_events().len() <= MAX_PREV_EVENTS);
    assert!(event.auth_events().len() <= MAX_AUTH_EVENTS);
    let fields = [
        event.event_id().as_str(),
        event.room_id().as_str(),
        event.sender().as_str(),
        event.event_type(),
        event.state_key().unwrap_or_default(),
    ];
    assert!(fields.iter().all(|field| field.len() <= MAX_ID_BYTES));
    assert!(event.depth() <= event.rules().max_depth);
}

#[test]
fn hashes_and_signatures() {
    let signing = key();
    Target::new("hashes_and_signatures")
        .seeds(events())
        .words(&WORDS)
        .run(|input| {
            let Some((event, rules)) = event_of(input) else {
                return false;
            };
            let published = PublishedKey {
                key: signing.verify_key(),
                lifetime: KeyLifetime::ValidUntil(u64::MAX),
            };
            let known = |_: &ServerName, id: &str| (id == signing.id()).then_some(published);
            match verify_event(&event, rules, &known) {
                Ok(Verified::All) => {
                    let object = event.to_object().unwrap();
                    assert!(hash::content_hash_matches(&object));
                }
                Ok(Verified::HashMismatch(copy)) => {
                    assert_eq!(redact(&event, rules), Ok(copy));
                }
                Err(error) => assert!(!matches!(error, VerifyError::Json(_)), "{error}"),
            }
            true
        });
}

#[test]
fn signing_keys() {
    let stored = key().to_stored();
    let public = key().verify_key().to_base64();
    let seeds = [stored.as_str(), public.as_str(), "ed25519 a_b AAAA"];
    Target::new("signing_keys").seeds(seeds).run(|input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return false;
        };
        let signing = SigningKey::from_stored(text);
        if let Ok(key) = &signing {
            let again = SigningKey::from_stored(&key.to_stored()).expect("is read again");
            assert_eq!(again.verify_key(), key.verify_key());
        }
        let public = VerifyKey::from_base64(text);
        if let Ok(key) = public {
            assert_eq!(VerifyKey::from_base64(&key.to_base64()), Ok(key));
        }
        signing.is_ok() || public.is_ok()
    });
}

/// An event held against the rooms of the seeds: whatever it says, it is judged, and an event of
/// somebody who is not there is refused.
#[test]
fn authorisation() {
    let rooms: Vec<Room> = RoomVersion::ALL.into_iter().map(Room::new).collect();
    Target::new("authorisation")
        .seeds(events())
        .words(&WORDS)
        .run(|input| {
            let Some((event, rules)) = event_of(input) else {
                return false;
            };
            let room = rooms
                .iter()
                .find(|room| room.rules.version == rules.version);
            let room = room.expect("a room of each version");
            let lookup = |event_type: &str, key: &str| room.lookup(event_type, key);
            let outcome = auth::check(rules, &event, &lookup);
            let joins = ["m.room.create", "m.room.member"].contains(&event.event_type());
            if !joins && event.sender() != ALICE && outcome.is_ok() {
                assert!(rules.aliases_rule && event.event_type() == "m.room.aliases");
            }
            let key = event.state_key();
            let (kind, sender) = (event.event_type(), event.sender());
            let types = auth::auth_types(rules, kind, sender, key, event.content());
            assert!(types.len() <= MAX_AUTH_EVENTS);
            true
        });
}

#[test]
fn push_rules() {
    let defaults = push::default_ruleset(user_id!("@alice:one.example"));
    let ruleset = serde_json::to_value(&defaults).unwrap();
    let own = json!({
        "content": [{"rule_id": "w", "pattern": "hel*o?", "enabled": true, "default": false,
            "actions": ["notify", {"set_tweak": "sound", "value": "default"}]}],
        "override": [{"rule_id": "c", "enabled": true, "default": false, "actions": ["notify"],
            "conditions": [
                {"kind": "event_match", "key": "content.m\\.x", "pattern": "*"},
                {"kind": "event_property_contains", "key": "content.list", "value": 1},
                {"kind": "room_member_count", "is": ">=2"},
                {"kind": "sender_notification_permission", "key": "room"}]}],
    });
    let event = json!({"type": "m.room.message", "sender": BOB, "room_id": "!r:one.example",
        "content": {"body": "Hello Alice", "m.x": "y", "list": [1, "a"]}});
    let seeds = [ruleset, own].map(|rules| json!([rules, event]).to_string());
    Target::new("push_rules")
        .seeds(seeds)
        .words(&WORDS)
        .run(|input| {
            let Ok((ruleset, event)) = serde_json::from_slice::<(Ruleset, _)>(input) else {
                return false;
            };
            let rules = push::Rules::compile(user_id!("@alice:one.example"), &ruleset);
            let permission = SenderPermission {
                sender: PowerLevel::Finite(50),
                power_levels: None,
            };
            let context = push::Context {
                member_count: 2,
                display_name: Some("Alice"),
                permission: &permission,
            };
            let event = PushEvent::from_json(event);
            if let Some(outcome) = rules.evaluate(&event, &context) {
                assert!(outcome.notify || !outcome.highlight);
            }
            true
        });
}

/// Patterns and texts, compared with a matcher that tries everything.
#[test]
fn globs() {
    fn tries(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|skip| tries(rest, &text[skip..])),
            Some((wanted, rest)) => text.split_first().is_some_and(|(found, text)| {
                (*wanted == '?' || wanted.eq_ignore_ascii_case(found)) && tries(rest, text)
            }),
        }
    }
    let seeds = ["a*b?c\naXbYc", "*\n", "?*?\nab", "**a**\nbab", "*ab\naab"];
    Target::new("globs")
        .seeds(seeds)
        .words(&["*", "?", "a", "A", "\n"])
        .run(|input| {
            let Some((pattern, text)) = std::str::from_utf8(input)
                .ok()
                .and_then(|text| text.split_once('\n'))
            else {
                return false;
            };
            let glob = push::Glob::new(pattern);
            let (whole, words) = (glob.matches_whole(text), glob.matches_words(text));
            assert!(words || !whole, "the whole text is between boundaries");
            let stars = pattern.matches('*').count();
            // What tries everything takes long, and folds no letters beyond ASCII.
            if stars <= 3 && input.len() < 60 && input.is_ascii() {
                let chars = |text: &str| text.chars().collect::<Vec<_>>();
                assert_eq!(whole, tries(&chars(pattern), &chars(text)));
            }
            true
        });
}

/// Contents of ACLs, of any form: nothing that is denied by its own name is allowed.
#[test]
fn server_acls() {
    let seeds = [
        r#"{"allow":["*"],"deny":["evil.example","*.bad.example"],"allow_ip_literals":false}"#,
        r#"{"allow":["a.example","[::1]"],"deny":"x"}"#,
        r#"{"allow":[1,"?.example",null,"**"],"allow_ip_literals":"no"}"#,
    ];
    let names = [
        "evil.example:1",
        "EVIL.example.",
        "x.bad.example",
        "1.2.3.4",
        "[::1]:80",
    ];
    Target::new("server_acls")
        .seeds(seeds)
        .words(&["\"*\"", "?", "evil.example", "[", "false"])
        .run(|input| {
            let Ok(text) = std::str::from_utf8(input) else {
                return false;
            };
            let Ok(content) = serde_json::from_str::<serde_json::Value>(text) else {
                return false;
            };
            let acl = ServerAcl::from_content(text);
            let named = |list: &str, entry: &str| {
                let entries = content[list].as_array();
                entries.is_some_and(|entries| entries.iter().any(|it| it == entry))
            };
            for name in names {
                let server = <&ruma::ServerName>::try_from(name).unwrap();
                let allows = acl.allows(server);
                assert!(!allows || content["allow"].is_array());
                assert!(!allows || !named("deny", "*"));
                let literal = name.starts_with(['1', '[']);
                assert!(!allows || !literal || content["allow_ip_literals"] != false);
                if name.to_lowercase().starts_with("evil") {
                    assert!(!allows || !named("deny", "evil.example"));
                }
            }
            content.is_object()
        });
}
