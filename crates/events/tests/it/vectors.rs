//! The examples of the specification, from the project's table of vectors.

use homeserver_events::canonical::{self, Strictness};
use homeserver_events::{CanonicalObject, RoomVersion, SigningKey, VerifyKey, hash, redaction};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/data/vectors.json")).unwrap()
}

fn object(value: &Value) -> CanonicalObject {
    canonical::parse_object(value.to_string().as_bytes(), Strictness::Strict).unwrap()
}

fn signing_key(vectors: &Value) -> SigningKey {
    let stored = format!(
        "ed25519 {} {}",
        vectors["signing_key"]["key_id"]
            .as_str()
            .unwrap()
            .strip_prefix("ed25519:")
            .unwrap(),
        vectors["signing_key"]["seed_unpadded_base64"]
            .as_str()
            .unwrap()
    );
    let key = SigningKey::from_stored(&stored).unwrap();
    // The seed of the example has stray bits at its end, so the texts differ, but not the keys.
    let read_again = SigningKey::from_stored(&key.to_stored()).unwrap();
    assert_eq!(read_again.verify_key(), key.verify_key());
    key
}

#[test]
fn unpadded_base64() {
    let vectors = vectors();
    let cases = vectors["unpadded_base64"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let (input, output) = (
            case["input"].as_str().unwrap(),
            case["output"].as_str().unwrap(),
        );
        assert_eq!(hash::encode_base64(input), output);
        assert_eq!(hash::decode_base64(output).unwrap(), input.as_bytes());
    }
}

#[test]
fn canonical_json() {
    let vectors = vectors();
    let cases = vectors["canonical_json"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    let mut strict = 0;
    for case in cases {
        let input = case["input_text"].as_str().unwrap().as_bytes();
        let canonical = case["canonical"].as_str().unwrap();
        let lenient = canonical::parse_object(input, Strictness::Lenient).unwrap();
        assert_eq!(canonical::to_string(&lenient), canonical);
        if let Ok(object) = canonical::parse_object(input, Strictness::Strict) {
            assert_eq!(object, lenient);
            strict += 1;
        }
    }
    // The last example has a negative zero and an exponent.
    assert_eq!(strict, 9);
}

#[test]
fn json_signing() {
    let vectors = vectors();
    let key = signing_key(&vectors);
    let public = vectors["signing_key"]["derived_public_key_unpadded_base64"]
        .as_str()
        .unwrap();
    assert_eq!(key.verify_key().to_base64(), public);
    let public = VerifyKey::from_base64(public).unwrap();
    let cases = vectors["json_signing"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let mut signed = object(&case["input"]);
        homeserver_events::sign_json(&mut signed, "domain", &key);
        assert_eq!(signed, object(&case["signed"]));
        let known = |id: &str| (id == key.id().as_str()).then_some(public);
        homeserver_events::verify_json(&signed, "domain", &known).unwrap();
    }
}

#[test]
fn event_signing() {
    let vectors = vectors();
    let key = signing_key(&vectors);
    // The events of the examples have the form of room version 1.
    let rules = RoomVersion::V1.rules();
    let cases = vectors["event_signing"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let mut event = object(&case["input"]);
        let content_hash = hash::encode_base64(hash::content_hash(&event));
        let hashes = CanonicalObject::from([("sha256".to_owned(), content_hash.into())]);
        event.insert(
            "hashes".to_owned(),
            homeserver_events::CanonicalValue::Object(hashes),
        );
        let mut redacted = redaction::redact_object(&event, rules);
        homeserver_events::sign_json(&mut redacted, "domain", &key);
        event.insert("signatures".to_owned(), redacted["signatures"].clone());
        assert_eq!(event, object(&case["signed"]));
        assert_eq!(
            hash::encode_base64(hash::reference_hash(&event, rules)),
            case["reference_hash_unpadded_base64_computed_here"]
                .as_str()
                .unwrap()
        );
    }
}
