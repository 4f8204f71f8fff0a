//! Properties of canonical JSON, hashes, redaction and signatures on generated input.

use homeserver_events::canonical::{self, CanonicalObject, CanonicalValue, Strictness};
use homeserver_events::{
    KeyLifetime, PublishedKey, RoomVersion, Verified, VerifyKey, hash, redact, redact_object,
    verify_event, verify_json,
};
use proptest::prelude::*;
use ruma::ServerName;
use serde_json::Value;

use crate::room::{self, ALICE, Room, key};

fn number() -> impl Strategy<Value = CanonicalValue> {
    (-(1_i64 << 53) + 1..1 << 53).prop_map(CanonicalValue::Integer)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,8}", "[\\x00-\\x1f\"\\\\/\\x7f]{0,4}", "[a-z]{1,6}"]
}

pub(crate) fn value() -> impl Strategy<Value = CanonicalValue> {
    let leaf = prop_oneof![
        Just(CanonicalValue::Null),
        any::<bool>().prop_map(CanonicalValue::Bool),
        number(),
        text().prop_map(CanonicalValue::String),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(CanonicalValue::Array),
            prop::collection::btree_map(text(), inner, 0..4).prop_map(CanonicalValue::Object),
        ]
    })
}

pub(crate) fn object() -> impl Strategy<Value = CanonicalObject> {
    prop::collection::btree_map(text(), value(), 0..6)
}

pub(crate) fn cases(cheap: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let overridden = std::env::var("PROPTEST_CASES").is_ok();
    ProptestConfig {
        cases: if overridden { default.cases } else { cheap },
        ..default
    }
}

fn any_version() -> impl Strategy<Value = RoomVersion> {
    prop::sample::select(RoomVersion::ALL.to_vec())
}

proptest! {
    #![proptest_config(cases(10_000))]

    /// Written and read again gives the same value, and the writing is what serde_json reads.
    #[test]
    fn canonical_json_round_trips(object in object()) {
        let text = canonical::to_string(&object);
        for strictness in [Strictness::Strict, Strictness::Lenient] {
            let again = canonical::parse_object(text.as_bytes(), strictness).unwrap();
            prop_assert_eq!(&again, &object);
        }
        let as_serde: Value = serde_json::from_str(&text).unwrap();
        let pretty = serde_json::to_string_pretty(&as_serde).unwrap();
        let again = canonical::parse_object(pretty.as_bytes(), Strictness::Strict).unwrap();
        prop_assert_eq!(canonical::to_string(&again), text);
    }

    /// Whatever bytes come, both readers answer without panicking, strict accepts no more than
    /// lenient, and lenient no more than what serde_json reads.
    #[test]
    fn reading_is_total(text in "[\\[\\]{}:,\"\\\\a-u0-9eE+. -]{0,40}") {
        let strict = canonical::parse(text.as_bytes(), Strictness::Strict);
        let lenient = canonical::parse(text.as_bytes(), Strictness::Lenient);
        if let Ok(strict) = strict {
            prop_assert_eq!(Some(strict), lenient.clone().ok());
        }
        let serde = serde_json::from_str::<Value>(&text);
        prop_assert_eq!(lenient.is_ok(), serde.is_ok(), "{}", text);
    }

    /// What lenient reading makes of a number reads as itself again.
    #[test]
    fn lenient_numbers_are_stable(number in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,6})?([eE][+-]?[0-9]{1,3})?") {
        if let Ok(value) = canonical::parse(number.as_bytes(), Strictness::Lenient) {
            let mut text = String::new();
            canonical::write_value(&value, &mut text);
            let again = canonical::parse(text.as_bytes(), Strictness::Lenient).unwrap();
            prop_assert_eq!(again, value);
            let (before, after): (f64, f64) = (number.parse().unwrap(), text.parse().unwrap());
            let zeroes = before.abs().to_bits() == 0 && after.abs().to_bits() == 0;
            prop_assert!(zeroes || before.to_bits() == after.to_bits());
        }
    }

    /// Redacting twice is redacting once, and changes neither the reference hash nor the id.
    #[test]
    fn redaction_is_idempotent(version in any_version(), content in object(), more in object()) {
        let rules = version.rules();
        for event_type in ["m.room.member", "m.room.power_levels", "m.room.create", "x"] {
            let mut event = more.clone();
            event.insert("type".to_owned(), event_type.into());
            let mut content = content.clone();
            for (index, key) in (0..).zip(["membership", "creator", "invite", "allow"]) {
                content.insert(key.to_owned(), CanonicalValue::Integer(index));
            }
            event.insert("content".to_owned(), CanonicalValue::Object(content));
            let once = redact_object(&event, rules);
            prop_assert_eq!(&redact_object(&once, rules), &once);
            prop_assert_eq!(
                hash::reference_hash(&event, rules),
                hash::reference_hash(&once, rules)
            );
        }
    }
}

fn known(server: &ServerName, id: &str) -> Option<PublishedKey> {
    let ours = server == room::user(ALICE).server_name() && id == key().id().as_str();
    let lifetime = KeyLifetime::ValidUntil(u64::MAX);
    ours.then(|| PublishedKey {
        key: key().verify_key(),
        lifetime,
    })
}

proptest! {
    #![proptest_config(cases(1_000))]

    /// A sealed event is canonical, parses to itself, verifies, keeps its id when redacted; and any
    /// flipped character of its signature is noticed.
    #[test]
    fn sealed_events_hold(version in any_version(), content in object(), flip in 0_usize..86) {
        let mut room = Room::new(version);
        let content: Value = serde_json::from_str(&canonical::to_string(&content)).unwrap();
        let event = room.build(&room::message(ALICE, "m.room.message", content));
        let rules = version.rules();

        let parsed = homeserver_events::Pdu::parse(event.json(), rules).unwrap();
        prop_assert_eq!(&parsed, &event);
        prop_assert_eq!(verify_event(&event, rules, &known), Ok(Verified::All));
        let redacted = redact(&event, rules).unwrap();
        prop_assert_eq!(redacted.content_str(), "{}");
        let parsed = homeserver_events::Pdu::parse(redacted.json(), rules).unwrap();
        prop_assert_eq!(parsed.event_id(), event.event_id());
        let verified = verify_event(&redacted, rules, &known);
        // An empty content is its own redaction, unless the redaction removed something else.
        if event.content_str() == "{}" {
            prop_assert_eq!(verified, Ok(Verified::All));
        } else {
            prop_assert_eq!(verified, Ok(Verified::HashMismatch(redacted)));
        }

        let signature = event.to_object().unwrap()["signatures"].as_object().unwrap()
            ["one.example"].as_object().unwrap()["ed25519:test"].as_str().unwrap().to_owned();
        let mut forged: Vec<char> = signature.chars().collect();
        // The last character holds two stray bits, so it changes by four.
        forged[flip] = if forged[flip] == 'A' { 'Q' } else { 'A' };
        let forged: String = forged.into_iter().collect();
        if forged != signature {
            let json = event.json_str().replace(&signature, &forged);
            let forged = homeserver_events::Pdu::parse(json.as_bytes(), rules).unwrap();
            prop_assert!(verify_event(&forged, rules, &known).is_err());
        }
    }

    /// A changed content is noticed by the hash and costs the content, not the event.
    #[test]
    fn a_changed_content_is_redacted(version in any_version(), body in "[a-z]{1,10}") {
        let mut room = Room::new(version);
        let rules = version.rules();
        let content = serde_json::json!({ "body": body });
        let event = room.build(&room::message(ALICE, "m.room.message", content));
        let json = event.json_str().replace(&format!(r#""body":"{body}""#), r#""body":"other!""#);
        let changed = homeserver_events::Pdu::parse(json.as_bytes(), rules).unwrap();
        prop_assert_eq!(changed.event_id(), event.event_id());
        let verified = verify_event(&changed, rules, &known);
        let redacted = redact(&event, rules).unwrap();
        prop_assert_eq!(verified, Ok(Verified::HashMismatch(redacted)));
    }

    /// Signing and verifying any object.
    #[test]
    fn signed_json_verifies(mut object in object(), other in object()) {
        let public = |id: &str| (id == "ed25519:test").then(|| key().verify_key());
        homeserver_events::sign_json(&mut object, "one.example", &key());
        prop_assert_eq!(verify_json(&object, "one.example", &public), Ok(()));
        prop_assert!(verify_json(&object, "two.example", &public).is_err());
        let mut unsigned = object.clone();
        unsigned.insert("unsigned".to_owned(), CanonicalValue::Object(other));
        prop_assert_eq!(verify_json(&unsigned, "one.example", &public), Ok(()));
        let mut changed = object;
        changed.insert("one more".to_owned(), CanonicalValue::Null);
        prop_assert!(verify_json(&changed, "one.example", &public).is_err());
    }
}

#[test]
fn a_public_key_survives_its_text() {
    let public = key().verify_key();
    assert_eq!(VerifyKey::from_base64(&public.to_base64()), Ok(public));
    assert_eq!(VerifyKey::from_bytes(public.as_bytes()), Ok(public));
}
