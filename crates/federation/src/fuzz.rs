//! What other servers send before they are known, mutated: who signs a request, and their keys.

use homeserver_events::{
    KeyLifetime, SigningKey, Strictness,
    canonical::{parse_object, to_string},
    sign_json,
};
use homeserver_fuzz::Target;
use ruma::server_name;

use crate::{
    KeyDocument, XMatrix,
    keys::document::{LONGEST_TRUST, MAX_KEYS},
};

/// Bytes of a header that is read, at most.
const LONGEST: usize = 4096;

/// What is read can be written, and is read again as the same.
#[test]
fn x_matrix() {
    let seeds = [
        r#"X-Matrix origin="origin.example:8448",destination="here.example",key="ed25519:a_key",sig="ab+/cd""#,
        r"x-matrix  ,SIG=ab+/cd== , Key=ed25519:a, ORIGIN=[::1]:8448,,",
        r#"X-Matrix origin = "origin.exam\ple",key="ed\"25519\\",signature="",new="\"x\",y=z""#,
    ];
    let words = [
        "X-Matrix ",
        "origin=",
        "destination=",
        "key=",
        "sig=",
        "signature=",
        "\"",
        "\\",
        "\t",
        ",",
        "a.example",
        "[::]",
        "1.2.3.4:80",
    ];
    Target::new("x_matrix")
        .seeds(seeds)
        .words(&words)
        .run(|input| {
            let Ok(read) = XMatrix::parse(input) else {
                return false;
            };
            let written = read.to_string();
            // It has quotes that need not have been there.
            if written.len() <= LONGEST {
                assert_eq!(XMatrix::parse(written.as_bytes()), Ok(read), "{written}");
            }
            true
        });
}

const NOW: u64 = 1_700_000_000_000;

/// A document with two current keys, of which the first signs, and an old one.
fn document(key: &SigningKey) -> String {
    let public = |seed| {
        let key = SigningKey::from_seed("x", &[seed; 32]).unwrap();
        key.verify_key().to_base64()
    };
    format!(
        r#"{{"server_name":"there.example","valid_until_ts":{NOW},"new":[1,"a"],
        "verify_keys":{{"ed25519:a":{{"key":"{}"}},"ed25519:c":{{"key":"{}"}}}},
        "old_verify_keys":{{"ed25519:b":{{"key":"{}","expired_ts":1000}}}},
        "signatures":{{"notary.example":{{"ed25519:n":"AAAA"}}}}}}"#,
        key.verify_key().to_base64(),
        public(3),
        public(2),
    )
}

/// Mutated as it came, which breaks its signature, and once more with a signature that fits.
#[test]
fn key_documents() {
    let there = server_name!("there.example");
    let key = SigningKey::from_seed("a", &[1; 32]).unwrap();
    let unsigned = document(&key);
    let words = [
        "server_name",
        "there.example",
        "valid_until_ts",
        "verify_keys",
        "old_verify_keys",
        "expired_ts",
        "signatures",
        "ed25519:a",
        "9007199254740991",
    ];
    Target::new("key_documents")
        .seeds([unsigned])
        .words(&words)
        .run(|input| {
            let as_it_came = KeyDocument::read(input, there, NOW);
            let Ok(mut object) = parse_object(input, Strictness::Lenient) else {
                assert!(as_it_came.is_err());
                return false;
            };
            sign_json(&mut object, there.as_str(), &key);
            let Ok(read) = KeyDocument::from_object(object, there, NOW) else {
                return false;
            };
            check(&read);
            let again = KeyDocument::read(read.to_json().as_bytes(), there, NOW);
            assert_eq!(again.as_ref(), Ok(&read));
            // At a time that no clock shows.
            assert!(KeyDocument::read(read.to_json().as_bytes(), there, u64::MAX).is_ok());
            true
        });
}

fn check(read: &KeyDocument) {
    assert!((1..=MAX_KEYS).contains(&read.keys().len()));
    let trusted = NOW + LONGEST_TRUST.as_millis() as u64;
    for (id, key) in read.keys() {
        assert!(id.starts_with("ed25519:"), "{id}");
        if let KeyLifetime::ValidUntil(until) = key.lifetime {
            assert!(until <= trusted && until <= read.valid_until(), "{id}");
        }
    }
    // What was signed is handed on as it was.
    let handed_on = parse_object(read.to_json().as_bytes(), Strictness::Lenient).unwrap();
    assert_eq!(to_string(&handed_on), read.to_json());
}

/// What is taken of a transaction is within its limits, and cut out of it.
#[test]
fn transactions() {
    let origin = server_name!("there.example");
    let seeds = [
        r#"{"origin":"there.example","origin_server_ts":1,"pdus":[{"room_id":"!r:there.example","type":"m.x","sender":"@a:there.example","content":{},"depth":1,"origin_server_ts":1,"prev_events":[],"auth_events":["$a"],"hashes":{"sha256":"AAAA"},"signatures":{"there.example":{"ed25519:a":"AAAA"}}}],"edus":[]}"#,
        r#"{"edus":[{"edu_type":"m.typing","content":{"room_id":"!r:x","user_id":"@a:there.example","typing":true}},{"edu_type":"m.receipt","content":{"!r:x":{"m.read":{"@a:there.example":{"data":{"ts":1,"thread_id":"main"},"event_ids":["$e"]}}}}},{"edu_type":"m.presence","content":{"push":[{"user_id":"@a:there.example","presence":"online","last_active_ago":1}]}}]}"#,
        r#"{"pdus":[{"event_id":"$e:x"},7,null],"edus":[{"edu_type":"m.direct_to_device","content":{"sender":"@a:there.example","type":"m.x","message_id":"1","messages":{"@b:here.example":{"*":{"a":1}}}}},{"edu_type":"m.device_list_update","content":{"user_id":"@a:there.example","device_id":"D","stream_id":1,"prev_id":[2],"deleted":true}},{"edu_type":"m.signing_key_update","content":{"user_id":"@a:there.example"}}]}"#,
    ];
    let words = [
        "pdus",
        "edus",
        "edu_type",
        "content",
        "room_id",
        "event_id",
        "user_id",
        "m.read",
        "m.receipt",
        "m.typing",
        "m.presence",
        "@a:there.example",
        "@b:here.example",
    ];
    Target::new("transactions")
        .seeds(seeds)
        .words(&words)
        .run(|input| crate::inbound::reads_as_a_transaction(origin, input));
}
