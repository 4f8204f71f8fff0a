//! Published flaws of homeservers that concern events, each with the input that hurt and the
//! answer to expect. The names are those of the project's table of advisories
//! (`tests/data/advisories.tsv`); flaws in the authorisation rules are in `auth_rules`.

use homeserver_events::canonical::{self, Strictness};
use homeserver_events::hash::{decode_base64, encode_base64};
use homeserver_events::limits::{MAX_ID_BYTES, MAX_JSON_DEPTH, MAX_PDU_BYTES};
use homeserver_events::{
    CanonicalObject, KeyError, KeyLifetime, KeySource, Pdu, PduError, PublishedKey, RoomVersion,
    SealError, SigningKey, Verified, VerifyError, VerifyKey, redact, verify_event, verify_json,
};
use ruma::ServerName;
use serde_json::{Value, json};

use crate::room::{self, ALICE, BOB, DAVE, Room, key, member, message, state};

fn valid() -> PublishedKey {
    PublishedKey {
        key: key().verify_key(),
        lifetime: KeyLifetime::ValidUntil(u64::MAX),
    }
}

fn known(_: &ServerName, id: &str) -> Option<PublishedKey> {
    (id == "ed25519:test").then(valid)
}

/// An event of this version as JSON to spoil.
fn event(version: RoomVersion) -> Value {
    let mut room = Room::new(version);
    let event = room.build(&message(ALICE, "m.room.message", json!({ "body": "x" })));
    serde_json::from_slice(event.json()).unwrap()
}

fn parse(event: &Value, version: RoomVersion) -> Result<Pdu, PduError> {
    Pdu::parse(event.to_string().as_bytes(), version.rules())
}

fn spoiled(version: RoomVersion, spoil: impl Fn(&mut Value)) -> Result<Pdu, PduError> {
    let mut event = event(version);
    spoil(&mut event);
    parse(&event, version)
}

/// The field's value written as this text, whether or not it is JSON that `serde_json` can hold.
fn with_text(version: RoomVersion, field: &str, text: &str) -> Result<Pdu, PduError> {
    let mut event = event(version);
    event[field] = json!("REPLACED");
    let json = event.to_string().replace("\"REPLACED\"", text);
    Pdu::parse(json.as_bytes(), version.rules())
}

/// CVE-2025-30355: a depth that canonical JSON cannot hold.
#[test]
fn cve_2025_30355_depth_out_of_range() {
    for version in RoomVersion::ALL {
        assert!(with_text(version, "depth", "1").is_ok());
        for bad in [
            "-1",
            "-9007199254740992",
            "1e400",
            "\"1\"",
            "null",
            "1.5",
            "[]",
            "NaN",
        ] {
            assert!(
                with_text(version, "depth", bad).is_err(),
                "{version:?} {bad}"
            );
        }
        let missing = spoiled(version, |event| {
            event.as_object_mut().unwrap().remove("depth");
        });
        assert!(missing.is_err());
        let strict = version >= RoomVersion::V6;
        assert!(with_text(version, "depth", "9007199254740991").is_ok());
        assert_eq!(
            with_text(version, "depth", "9007199254740992").is_ok(),
            !strict
        );
        assert_eq!(
            with_text(version, "depth", "9223372036854775807").is_ok(),
            !strict
        );
        assert!(with_text(version, "depth", "9223372036854775808").is_err());
    }
}

/// CVE-2020-26890: NaN, infinities, floats and large integers.
#[test]
fn cve_2020_26890_numbers_that_are_no_json() {
    for version in RoomVersion::ALL {
        let strict = version >= RoomVersion::V6;
        for bad in [
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "-1e999",
            "0x10",
            "01",
            "+1",
            ".5",
        ] {
            let content = format!("{{\"n\":{bad}}}");
            assert!(
                with_text(version, "content", &content).is_err(),
                "{version:?} {bad}"
            );
        }
        for old in [
            "1.5",
            "1e3",
            "-0",
            "9007199254740992",
            "123456789012345678901234567890",
        ] {
            let content = format!("{{\"n\":{old}}}");
            let result = with_text(version, "content", &content);
            assert_eq!(result.is_ok(), !strict, "{version:?} {old}");
        }
        let mut room = Room::new(version);
        let mut draft = room.draft(&message(ALICE, "m.room.message", json!({})));
        draft.content = serde_json::from_str("{\"n\":1.5}").unwrap();
        let sealed = draft.seal(version.rules(), room::user(ALICE).server_name(), &key());
        assert_eq!(matches!(sealed, Err(SealError::Content(_))), strict);
    }
}

/// Duplicate keys: two servers must not read two different events out of one text.
#[test]
fn duplicate_keys() {
    let twice = b"{\"a\":1,\"a\":2}";
    assert!(canonical::parse_object(twice, Strictness::Strict).is_err());
    let lenient = canonical::parse_object(twice, Strictness::Lenient).unwrap();
    assert_eq!(canonical::to_string(&lenient), "{\"a\":2}");
    for version in RoomVersion::ALL {
        let mut json = event(version).to_string();
        json.insert_str(1, "\"sender\":\"@evil:two.example\",");
        let result = Pdu::parse(json.as_bytes(), version.rules());
        if version >= RoomVersion::V6 {
            assert!(matches!(result, Err(PduError::Json(_))));
        } else {
            assert_eq!(result.unwrap().sender(), ALICE);
        }
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for strictness in [Strictness::Strict, Strictness::Lenient] {
        assert!(canonical::parse(nested(MAX_JSON_DEPTH).as_bytes(), strictness).is_ok());
        assert!(canonical::parse(nested(MAX_JSON_DEPTH + 1).as_bytes(), strictness).is_err());
        assert!(canonical::parse("[".repeat(1_000_000).as_bytes(), strictness).is_err());
        assert!(canonical::parse("{\"a\":".repeat(1_000_000).as_bytes(), strictness).is_err());
    }
    let deepest = nested(MAX_JSON_DEPTH);
    assert!(serde_json::from_str::<Value>(&deepest).is_ok());
}

/// The limit includes 65,536 bytes themselves; other implementations stop one byte short.
#[test]
fn the_size_limit_is_inclusive() {
    for version in RoomVersion::ALL {
        let empty = spoiled(version, |event| event["content"] = json!({ "body": "" })).unwrap();
        let room_left = MAX_PDU_BYTES - empty.json().len();
        for (length, fits) in [(room_left, true), (room_left + 1, false)] {
            let body = "a".repeat(length);
            let result = spoiled(version, |event| event["content"] = json!({ "body": body }));
            match result {
                Ok(event) => assert!(fits && event.json().len() == MAX_PDU_BYTES),
                Err(error) => assert!(!fits && error == PduError::TooLarge),
            }
        }
        // `unsigned` counts, although it is dropped.
        let padded = spoiled(version, |event| {
            event["unsigned"] = json!({ "pad": "a".repeat(MAX_PDU_BYTES) });
        });
        assert_eq!(padded, Err(PduError::TooLarge));

        let mut room = Room::new(version);
        let large = message(
            ALICE,
            "m.room.message",
            json!({ "body": "a".repeat(MAX_PDU_BYTES) }),
        );
        let sealed =
            room.draft(&large)
                .seal(version.rules(), room::user(ALICE).server_name(), &key());
        assert_eq!(sealed, Err(SealError::TooLarge));
    }
}

#[test]
fn identifiers_are_limited_in_bytes() {
    for version in RoomVersion::ALL {
        let sender = |length: usize| format!("@{}:one.example", "a".repeat(length - 13));
        let fields: [(&'static str, &dyn Fn(usize) -> String); 4] = [
            (
                "type",
                (&|length: usize| "ä".repeat(length / 2) + &"a".repeat(length % 2)),
            ),
            ("state_key", (&|length: usize| "a".repeat(length))),
            ("sender", (&sender)),
            (
                "room_id",
                (&|length: usize| format!("!{}", "a".repeat(length - 1))),
            ),
        ];
        for (field, value) in fields {
            let at = |length| spoiled(version, |event| event[field] = json!(value(length)));
            assert!(at(MAX_ID_BYTES).is_ok(), "{version:?} {field}");
            assert_eq!(at(MAX_ID_BYTES + 1), Err(PduError::FieldTooLong(field)));
        }
    }
}

#[test]
fn references_are_limited_in_number_and_form() {
    for version in RoomVersion::ALL {
        let pairs = version <= RoomVersion::V2;
        let pair = |id: &str| json!([id, { "sha256": "abc" }]);
        let reference = |index: usize| {
            let id = format!("$event{index}:one.example");
            if pairs { pair(&id) } else { json!(id) }
        };
        for (field, limit) in [("prev_events", 20), ("auth_events", 10)] {
            let with = |count: usize| {
                let list: Vec<Value> = (0..count).map(reference).collect();
                spoiled(version, |event| event[field] = json!(list))
            };
            assert!(with(limit).is_ok(), "{version:?} {field}");
            assert_eq!(with(limit + 1), Err(PduError::TooManyReferences(field)));
            let other_form = if pairs {
                json!("$a:one.example")
            } else {
                pair("$a:one.example")
            };
            for bad in [
                other_form,
                json!(null),
                json!(1),
                json!([]),
                json!(["$a:one.example"]),
                json!(["$a:one.example", {}, {}]),
                json!(["$a:one.example", "x"]),
                if pairs {
                    pair("no sigil")
                } else {
                    json!("no sigil")
                },
            ] {
                assert!(spoiled(version, |event| event[field] = json!([bad])).is_err());
            }
            assert!(spoiled(version, |event| event[field] = json!("x")).is_err());
        }
    }
}

/// Tuwunel 1.9.0 and others: fields of wrong types must be refusals, never panics.
#[test]
fn fields_of_wrong_types_are_refused() {
    for version in RoomVersion::ALL {
        let odd = [json!(null), json!(1), json!(true), json!([]), json!("")];
        for field in [
            "sender",
            "content",
            "origin_server_ts",
            "hashes",
            "signatures",
            "room_id",
        ] {
            for value in &odd {
                if field == "origin_server_ts" && *value == json!(1) {
                    continue;
                }
                let result = spoiled(version, |event| event[field] = value.clone());
                assert!(result.is_err(), "{version:?} {field} {value}");
            }
            let missing = spoiled(version, |event| {
                event.as_object_mut().unwrap().remove(field);
            });
            assert!(missing.is_err(), "{version:?} without {field}");
        }
        for value in [json!(null), json!(1), json!(["a"])] {
            assert!(spoiled(version, |event| event["state_key"] = value.clone()).is_err());
            assert!(spoiled(version, |event| event["type"] = value.clone()).is_err());
        }
        for signatures in [json!({ "a": 1 }), json!({ "a": { "ed25519:b": 1 } })] {
            assert!(spoiled(version, |event| event["signatures"] = signatures.clone()).is_err());
        }
        assert!(spoiled(version, |event| event["hashes"] = json!({ "sha256": 1 })).is_err());
    }
}

/// `unsigned` of a peer is never kept.
#[test]
fn unsigned_is_dropped() {
    for version in RoomVersion::ALL {
        let clean = parse(&event(version), version).unwrap();
        let with = spoiled(version, |event| {
            event["unsigned"] = json!({ "transaction_id": "x", "redacted_because": {} });
        });
        assert_eq!(with.unwrap(), clean);
    }
}

/// CVE-2025-54315: in room version 12 a create event has no room id, and makes its own.
#[test]
fn cve_2025_54315_create_event_with_room_id() {
    let room = Room::new(RoomVersion::V12);
    let create = room.lookup("m.room.create", "").unwrap();
    assert_eq!(
        create.room_id().as_str()[1..],
        create.event_id().as_str()[1..]
    );
    let mut json: Value = serde_json::from_slice(create.json()).unwrap();
    assert!(json.get("room_id").is_none());
    json["room_id"] = json!(create.room_id());
    assert_eq!(parse(&json, RoomVersion::V12), Err(PduError::RoomId));
    let message = spoiled(RoomVersion::V12, |event| {
        event.as_object_mut().unwrap().remove("room_id");
    });
    assert_eq!(message, Err(PduError::RoomId));
}

/// ruma#525: signatures that are missing, unknown, malformed.
#[test]
fn ruma_525_missing_keys_and_signatures_do_not_verify() {
    let public = |id: &str| (id == "ed25519:test").then(|| key().verify_key());
    let nobody = |_: &str| None;
    let mut object = CanonicalObject::from([("a".to_owned(), "b".into())]);
    assert!(verify_json(&object, "one.example", &public).is_err());
    homeserver_events::sign_json(&mut object, "one.example", &key());
    assert!(verify_json(&object, "one.example", &public).is_ok());
    assert!(verify_json(&object, "one.example", &nobody).is_err());
    for signatures in [
        "{}",
        "[]",
        "null",
        "{\"one.example\":{}}",
        "{\"one.example\":[]}",
        "{\"one.example\":{\"ed25519:test\":1}}",
        "{\"one.example\":{\"ed25519:test\":\"\"}}",
        "{\"one.example\":{\"ed25519:test\":\"AAAA\"}}",
        "{\"one.example\":{\"ed25519:test\":\"!!!\"}}",
        "{\"one.example\":{\"ed25519:other\":\"AAAA\"}}",
    ] {
        let value = canonical::parse(signatures.as_bytes(), Strictness::Strict).unwrap();
        object.insert("signatures".to_owned(), value);
        assert!(
            verify_json(&object, "one.example", &public).is_err(),
            "{signatures}"
        );
    }
}

/// CVE-2018-16515, CVE-2019-18835: the signature must be the sender's server's.
#[test]
fn cve_2018_16515_the_senders_server_must_have_signed() {
    for version in RoomVersion::ALL {
        let mut room = Room::new(version);
        let event = room.build(&message(ALICE, "m.room.message", json!({})));
        // Signed by a server that has a valid key, but is not the sender's.
        let json = event.json_str().replace(
            "\"signatures\":{\"one.example\"",
            "\"signatures\":{\"two.example\"",
        );
        let forged = Pdu::parse(json.as_bytes(), version.rules()).unwrap();
        let expected = VerifyError::NoUsableSignature("one.example".to_owned());
        assert_eq!(
            verify_event(&forged, version.rules(), &known),
            Err(expected)
        );
        let nobody = |_: &ServerName, _: &str| None;
        assert!(verify_event(&event, version.rules(), &nobody).is_err());
    }
    // Nor do we seal what is not ours.
    let mut room = Room::new(RoomVersion::V11);
    let draft = room.draft(&message(BOB, "m.room.message", json!({})));
    let sealed = draft.seal(room.rules, room::user(ALICE).server_name(), &key());
    assert_eq!(sealed, Err(SealError::ForeignSender));
}

/// CVE-2024-6299: expired keys.
#[test]
fn cve_2024_6299_expired_keys() {
    for version in RoomVersion::ALL {
        let mut room = Room::new(version);
        let event = room.build(&message(ALICE, "m.room.message", json!({})));
        let at = event.origin_server_ts();
        let with = |lifetime| {
            let keys = move |_: &ServerName, _: &str| {
                Some(PublishedKey {
                    key: key().verify_key(),
                    lifetime,
                })
            };
            let keys: &dyn KeySource = &keys;
            verify_event(&event, version.rules(), keys).is_ok()
        };
        assert!(!with(KeyLifetime::ExpiredAt(at - 1)));
        assert!(with(KeyLifetime::ExpiredAt(at)));
        assert!(with(KeyLifetime::ValidUntil(at)));
        let enforced = version >= RoomVersion::V5;
        assert_eq!(with(KeyLifetime::ValidUntil(at - 1)), !enforced);
    }
}

/// A third-party invite excuses the sender's server from signing; breaking the content hash must
/// not turn such an invitation into an unsigned ordinary one.
#[test]
fn a_forged_invitation_does_not_survive_by_its_redaction() {
    for version in RoomVersion::ALL {
        let mut room = Room::new(version);
        let content = json!({ "membership": "invite", "third_party_invite": { "signed": {} } });
        let event = room.build(&state(ALICE, "m.room.member", DAVE, content));
        let mut forged: Value = serde_json::from_slice(event.json()).unwrap();
        let event_id_signs = version.rules().event_id_server_signs;
        if event_id_signs {
            // In versions 1 and 2 the server in the event id has to sign in any case.
            assert!(verify_event(&event, version.rules(), &known).is_ok());
            continue;
        }
        forged["signatures"] = json!({});
        let unsigned = parse(&forged, version).unwrap();
        let kept = version.rules().redaction.keeps_version_11;
        assert_eq!(
            verify_event(&unsigned, version.rules(), &known),
            Ok(Verified::All)
        );
        forged["hashes"]["sha256"] = json!("AAAA");
        let broken = parse(&forged, version).unwrap();
        let result = verify_event(&broken, version.rules(), &known);
        if kept {
            // The redaction keeps the invite, so the rules judge it as a third-party invite.
            let Ok(Verified::HashMismatch(copy)) = result else {
                panic!("{result:?}")
            };
            assert!(room.check(&copy).is_err());
        } else {
            assert!(result.is_err());
        }
    }
}

/// CVE-2026-24044 and weak keys: a public key of small order verifies anything.
#[test]
fn weak_and_predictable_keys_are_refused() {
    let mut identity = [0; 32];
    identity[0] = 1;
    assert_eq!(VerifyKey::from_bytes(&identity), Err(KeyError::Weak));
    assert_eq!(VerifyKey::from_bytes(&[0; 32]), Err(KeyError::Weak));
    assert!(VerifyKey::from_base64("AAAA").is_err());
    assert!(matches!(
        SigningKey::from_seed("a", &[0; 32]),
        Err(KeyError::Predictable)
    ));
    for version in ["", "a b", "a:b", "ä"] {
        assert!(matches!(
            SigningKey::from_seed(version, &[7; 32]),
            Err(KeyError::Id)
        ));
    }
    for stored in [
        "",
        "ed25519 a",
        "rsa a AAAA",
        "ed25519 a AAAA",
        "ed25519 a b c",
    ] {
        assert!(SigningKey::from_stored(stored).is_err());
    }
    let debug = format!("{:?}", key());
    assert!(debug.contains("ed25519:test") && !debug.contains('7'));
}

/// CVE-2026-24044: installations whose keys came from a generator that everybody can run.
#[test]
fn cve_2026_24044_known_keys_are_refused() {
    // What Go's `math/rand` gives first when it is seeded with zero.
    let seed = [
        0x01, 0x94, 0xfd, 0xc2, 0xfa, 0x2f, 0xfc, 0xc0, 0x41, 0xd3, 0xff, 0x12, 0x04, 0x5b, 0x73,
        0xc8, 0x6e, 0x4f, 0xf9, 0x5f, 0xf6, 0x62, 0xa5, 0xee, 0xe8, 0x2a, 0xbd, 0xf4, 0x4a, 0x2d,
        0x0b, 0x75,
    ];
    for seed in [seed, [0; 32]] {
        let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
        let key = VerifyKey::from_bytes(public.as_bytes());
        assert_eq!(key, Err(KeyError::Predictable));
        let key = SigningKey::from_seed("a", &seed);
        assert!(matches!(key, Err(KeyError::Predictable)));
    }
    for known in [
        "l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og",
        "l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og=",
        "l_O9hxMVKB6Lg-3Hqf0FQQZhVESQcMzbPN1Cz2nM3og",
    ] {
        assert_eq!(VerifyKey::from_base64(known), Err(KeyError::Predictable));
    }
}

/// Signatures that satisfy the equation, but that some servers take and others refuse: an `R` of
/// small order (made with the secret key of the seed of sevens, `S = H(R, A, M) a`), and a scalar
/// with the order of the group added.
#[test]
fn signatures_that_servers_disagree_about_are_refused() {
    let hex = |text: &str| -> Vec<u8> {
        let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    };
    let public = "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c";
    let key = VerifyKey::from_bytes(&hex(public).try_into().unwrap()).unwrap();
    let signer = SigningKey::from_seed("a", &[7; 32]).unwrap();
    let mut object = canonical::parse_object(b"{}", Strictness::Strict).unwrap();
    homeserver_events::sign_json(&mut object, "a", &signer);
    let signed: Value = serde_json::from_str(&canonical::to_string(&object)).unwrap();
    let good = signed["signatures"]["a"]["ed25519:a"].as_str().unwrap();
    assert!(key.verifies(b"{}", good));

    let order = hex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut bytes = decode_base64(good).unwrap();
    let mut carried = 0;
    for (byte, more) in bytes[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(more) + carried;
        *byte = (sum & 0xff) as u8;
        carried = sum >> 8;
    }
    assert_eq!(carried, 0);
    assert!(!key.verifies(b"{}", &encode_base64(&bytes)));
    for bad in [
        "0100000000000000000000000000000000000000000000000000000000000000\
         d4c5323131ff9683cfb3d30197c786c9043f1052d6c2d5293f19d6f36b911104",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f\
         dbecfef05ade8793dd5bae1958043b5a2717498c2b7e8df8596d6b6386769703",
    ] {
        assert!(!key.verifies(b"message", &encode_base64(hex(bad))));
    }
}

/// Synapse 1.2.0: redacting the create event must leave what the room depends on.
#[test]
fn redacting_the_create_event() {
    for version in RoomVersion::ALL {
        let room = Room::new(version);
        let create = room.lookup("m.room.create", "").unwrap();
        let redacted = redact(&create, version.rules()).unwrap();
        assert_eq!(redacted.event_id(), create.event_id());
        assert_eq!(redacted.room_id(), create.room_id());
        let content: Value = redacted.content_as().unwrap();
        assert_eq!(content["creator"], json!(ALICE));
        // Before version 11 the room version goes: a room's version must not be read from here.
        assert_eq!(
            content.get("room_version").is_some(),
            version >= RoomVersion::V11
        );
        assert!(room.check(&redacted).is_ok());
    }
}

#[test]
fn redacts_is_read_at_the_place_of_the_version() {
    for version in RoomVersion::ALL {
        let in_content = version >= RoomVersion::V11;
        let event = |top: &str, content: &str| {
            spoiled(version, |event| {
                event["type"] = json!("m.room.redaction");
                event["redacts"] = json!(top);
                event["content"] = json!({ "redacts": content });
            })
            .unwrap()
        };
        let expected = if in_content {
            "$content:one.example"
        } else {
            "$top:one.example"
        };
        let both = event("$top:one.example", "$content:one.example");
        assert_eq!(both.redacts().unwrap(), expected);
        assert_eq!(event("odd", "odd").redacts(), None);
        let other = spoiled(version, |event| {
            event["redacts"] = json!("$top:one.example");
            event["content"] = json!({ "redacts": "$content:one.example" });
        });
        assert_eq!(other.unwrap().redacts(), None, "only redactions redact");
    }
}

#[test]
fn stored_events_come_back_equal() {
    for version in RoomVersion::ALL {
        let mut room = Room::new(version);
        for proposal in [
            member(ALICE, DAVE, "invite"),
            message(
                ALICE,
                "m.room.message",
                json!({ "body": "\u{0}\u{1f600}\"\\" }),
            ),
            state(ALICE, "m.room.topic", "\n", json!({})),
        ] {
            let event = room.build(&proposal);
            let id = event.event_id().to_owned();
            let stored = Pdu::from_stored(event.json(), id, version.rules()).unwrap();
            assert_eq!(stored, event);
            assert_eq!(stored.state_key(), event.state_key());
            assert_eq!(stored.content().get(), event.content_str());
            assert_eq!(stored.prev_events(), event.prev_events());
        }
        for event in room.events.values() {
            let parsed = Pdu::parse(event.json(), version.rules()).unwrap();
            assert_eq!(parsed.event_id(), event.event_id());
        }
    }
}
