//! The same questions to this crate and to ruma's implementation: hashes, redaction, signatures,
//! and the authorisation rules along generated histories of a room.
//!
//! ruma documents room versions 1 to 5 as a best effort; the rules are compared there too, since
//! the generated events stay within what it reads.

use std::collections::BTreeMap;

use homeserver_events::auth::{self, AuthEvent};
use homeserver_events::canonical;
use homeserver_events::{
    CanonicalObject, KeyLifetime, Pdu, PublishedKey, RoomVersion, Verified, hash, redact_object,
    required_servers, sign_json, verify_event,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use ruma::canonical_json::CanonicalJsonObject;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::room_version_rules::RoomVersionRules;
use ruma::serde::Base64;
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName, UInt, UserId};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::properties::{cases, object};
use crate::room::{self, ALICE, Proposal, Room, USERS, key};

fn theirs(object: &CanonicalObject) -> CanonicalJsonObject {
    serde_json::from_str(&canonical::to_string(object)).unwrap()
}

fn their_rules(version: RoomVersion) -> RoomVersionRules {
    version.rules().version_id().rules().unwrap()
}

fn any_version() -> impl Strategy<Value = RoomVersion> {
    prop::sample::select(RoomVersion::ALL.to_vec())
}

/// Contents with the keys that redaction cares about, and others.
fn redactable_content() -> impl Strategy<Value = Value> {
    let keys = prop::sample::subsequence(
        vec![
            "membership",
            "creator",
            "join_rule",
            "allow",
            "ban",
            "events",
            "events_default",
            "kick",
            "redact",
            "state_default",
            "users",
            "users_default",
            "invite",
            "notifications",
            "aliases",
            "history_visibility",
            "redacts",
            "join_authorised_via_users_server",
            "displayname",
            "room_version",
            "additional_creators",
        ],
        0..=21,
    );
    let invite = prop::sample::select(vec![
        json!(null),
        json!({}),
        json!({ "signed": { "token": "t" }, "display_name": "x" }),
        json!({ "display_name": "x" }),
    ]);
    (keys, invite).prop_map(|(keys, invite)| {
        let mut content = json!({});
        for (index, key) in keys.into_iter().enumerate() {
            content[key] = json!({ "value": index });
        }
        if !invite.is_null() {
            content["third_party_invite"] = invite;
        }
        content
    })
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn hashes_and_redaction_agree(
        version in any_version(),
        content in redactable_content(),
        more in object(),
        event_type in prop::sample::select(vec![
            "m.room.member", "m.room.create", "m.room.join_rules", "m.room.power_levels",
            "m.room.aliases", "m.room.history_visibility", "m.room.redaction", "m.room.message",
            "m.room.third_party_invite", "m.room.server_acl",
        ]),
    ) {
        let event = json!({
            "type": event_type, "content": content, "room_id": "!r:one.example",
            "sender": ALICE, "depth": 7, "origin_server_ts": 8, "origin": "one.example",
            "membership": "join", "prev_state": [], "state_key": "", "redacts": "$x:one.example",
            "hashes": { "sha256": "abc" }, "signatures": { "a": { "ed25519:b": "c" } },
            "prev_events": [], "auth_events": [], "event_id": "$e:one.example",
            "unsigned": { "age": 1 },
        });
        let text = event.to_string();
        let mut ours =
            canonical::parse_object(text.as_bytes(), version.rules().strictness).unwrap();
        ours.extend(more.into_iter().filter(|(key, _)| !event.as_object().unwrap().contains_key(key)));
        let rules = their_rules(version);

        let redacted = ruma::canonical_json::redact(theirs(&ours), &rules.redaction, None).unwrap();
        prop_assert_eq!(theirs(&redact_object(&ours, version.rules())), redacted);
        prop_assert_eq!(
            hash::encode_base64(hash::content_hash(&ours)),
            ruma_signatures::content_hash(&theirs(&ours)).unwrap().encode()
        );
        let reference = hash::reference_hash(&ours, version.rules());
        let expected = ruma_signatures::reference_hash(&theirs(&ours), &rules).unwrap();
        prop_assert!(
            hash::encode_base64(reference) == expected
                || hash::encode_base64_url(reference) == expected
        );
        if let Some(id) = hash::event_id_of_hash(&reference, version.rules()) {
            prop_assert_eq!(id.as_str(), format!("${expected}"));
        }
    }

    #[test]
    fn signatures_agree(version in any_version(), body in "[a-z]{0,9}", change in 0_u8..6) {
        let mut room = Room::new(version);
        let content = match change {
            4 => json!({ "membership": "invite", "third_party_invite": {} }),
            5 => json!({ "membership": "join", "join_authorised_via_users_server": room::BOB }),
            _ => json!({ "body": body }),
        };
        let event = match change {
            4 | 5 => room::state(ALICE, "m.room.member", ALICE, content),
            _ => room::message(ALICE, "m.room.message", content),
        };
        let event = room.build(&event);
        let mut object = event.to_object().unwrap();
        match change {
            1 => { object.insert("type".to_owned(), "m.room.other".into()); }
            2 => { object.insert("content".to_owned(), CanonicalObject::new().into_value()); }
            3 => { sign_json(&mut object, "two.example", &key()); }
            _ => {}
        }
        let changed = Pdu::of_object(&object, version.rules()).unwrap();
        let public = key().verify_key();
        let known = |_: &ServerName, id: &str| {
            let lifetime = KeyLifetime::ValidUntil(u64::MAX);
            (id == key().id().as_str()).then_some(PublishedKey { key: public, lifetime })
        };
        let ours = verify_event(&changed, version.rules(), &known);

        let set = BTreeMap::from([(
            key().id().to_string(),
            Base64::new(public.as_bytes().to_vec()),
        )]);
        let map = BTreeMap::from([
            ("one.example".to_owned(), set.clone()),
            ("two.example".to_owned(), set),
        ]);
        let rules = their_rules(version);
        let expected = ruma_signatures::verify_event(&map, &theirs(&object), &rules);
        let agree = matches!(
            (&ours, &expected),
            (Ok(Verified::All), Ok(ruma_signatures::Verified::All))
                | (Ok(Verified::HashMismatch(_)), Ok(ruma_signatures::Verified::Signatures))
                | (Err(_), Err(_))
        );
        prop_assert!(agree, "{ours:?} and {expected:?}");

        let servers = required_servers(&changed, version.rules()).unwrap();
        let expected = ruma_signatures::required_server_signatures_to_verify_event(
            &theirs(&object), &rules.signatures,
        );
        prop_assert_eq!(servers, expected.unwrap().into_iter().collect::<Vec<_>>());
    }
}

trait IntoValue {
    fn into_value(self) -> homeserver_events::CanonicalValue;
}

impl IntoValue for CanonicalObject {
    fn into_value(self) -> homeserver_events::CanonicalValue {
        homeserver_events::CanonicalValue::Object(self)
    }
}

/// One of our events as ruma's rules look at it.
#[derive(Clone, Debug)]
struct Theirs {
    pdu: Pdu,
    event_id: OwnedEventId,
    event_type: TimelineEventType,
    redacts: Option<OwnedEventId>,
    rejected: bool,
}

impl Theirs {
    fn new(pdu: &Pdu, rejected: bool) -> Self {
        Self {
            pdu: pdu.clone(),
            event_id: pdu.event_id().to_owned(),
            event_type: pdu.event_type().into(),
            redacts: pdu.redacts().map(ToOwned::to_owned),
            rejected,
        }
    }
}

impl ruma_state_res::Event for Theirs {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        let implied =
            self.pdu.rules().create_is_implied() && self.pdu.event_type() == "m.room.create";
        (!implied).then_some(self.pdu.room_id())
    }

    fn sender(&self) -> &UserId {
        self.pdu.sender()
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::try_from(self.pdu.origin_server_ts()).unwrap())
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        self.pdu.content()
    }

    fn state_key(&self) -> Option<&str> {
        self.pdu.state_key()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.pdu.prev_events().iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.pdu.auth_events().iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

/// ruma's judgement of an event on this state.
fn their_check(room: &Room, event: &Pdu) -> Result<(), String> {
    let rules = their_rules(room.rules.version).authorization;
    let lookup = |event_type: &StateEventType, key: &str| {
        room.lookup(&event_type.to_string(), key)
            .map(|event| Theirs::new(&event, false))
    };
    let event = Theirs::new(event, false);
    ruma_state_res::check_state_dependent_auth_rules(&rules, event, lookup)
}

#[derive(Clone, Debug)]
enum Step {
    Member {
        sender: usize,
        target: usize,
        membership: &'static str,
        via: Option<usize>,
    },
    ThirdParty {
        sender: usize,
        target: usize,
        signed: bool,
    },
    Offer {
        sender: usize,
    },
    JoinRule {
        sender: usize,
        rule: &'static str,
    },
    Levels {
        sender: usize,
        content: Value,
    },
    Event {
        sender: usize,
        event_type: &'static str,
        key: Option<&'static str>,
    },
    Redaction {
        sender: usize,
    },
}

fn level() -> impl Strategy<Value = Value> {
    let levels = vec![0, 1, 24, 25, 49, 50, 51, 99, 100, 101, -1];
    let number = prop::sample::select(levels);
    (number, 0_u8..12).prop_map(|(level, form)| match form {
        0 => json!(level.to_string()),
        1 => json!(format!(" +00{} ", level.max(0))),
        _ => json!(level),
    })
}

fn levels() -> impl Strategy<Value = Value> {
    let named = prop::collection::btree_map(
        prop::sample::select(vec![
            "users_default",
            "events_default",
            "state_default",
            "ban",
            "redact",
            "kick",
            "invite",
        ]),
        level(),
        0..3,
    );
    let users = prop::collection::btree_map(prop::sample::select(USERS.to_vec()), level(), 0..4);
    let events = prop::collection::btree_map(
        prop::sample::select(vec![
            "m.room.power_levels",
            "m.room.topic",
            "m.room.message",
        ]),
        level(),
        0..2,
    );
    let rooms = prop::option::of(level());
    (named, users, events, rooms).prop_map(|(named, mut users, events, room)| {
        // Most histories keep somebody in power.
        users.entry(ALICE).or_insert(json!(100));
        let mut content = json!({ "users": users, "events": events });
        for (name, level) in named {
            content[name] = level;
        }
        if let Some(level) = room {
            content["notifications"] = json!({ "room": level });
        }
        content
    })
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0_usize..4;
    let membership = prop::sample::select(vec![
        "join", "join", "invite", "leave", "ban", "knock", "odd",
    ]);
    let rule = prop::sample::select(vec![
        "public",
        "invite",
        "knock",
        "restricted",
        "knock_restricted",
        "private",
    ]);
    let event_type = prop::sample::select(vec![
        "m.room.message",
        "m.room.topic",
        "m.room.aliases",
        "org.example.custom",
    ]);
    let key = prop::sample::select(vec![
        None,
        Some(""),
        Some("one.example"),
        Some("@alice:one.example"),
        Some("@odd"),
    ]);
    prop_oneof![
        6 => (user.clone(), user.clone(), membership, prop::option::of(user.clone())).prop_map(
            |(sender, target, membership, via)| Step::Member { sender, target, membership, via }
        ),
        3 => (user.clone(), prop::sample::select(vec!["join", "leave", "knock"])).prop_map(
            |(sender, membership)| {
                Step::Member { sender, target: sender, membership, via: Some(0) }
            }
        ),
        1 => (user.clone(), user.clone(), any::<bool>())
            .prop_map(|(sender, target, signed)| Step::ThirdParty { sender, target, signed }),
        1 => user.clone().prop_map(|sender| Step::Offer { sender }),
        2 => (user.clone(), rule).prop_map(|(sender, rule)| Step::JoinRule { sender, rule }),
        3 => (user.clone(), levels())
            .prop_map(|(sender, content)| Step::Levels { sender, content }),
        2 => (user.clone(), event_type, key)
            .prop_map(|(sender, event_type, key)| Step::Event { sender, event_type, key }),
        1 => user.prop_map(|sender| Step::Redaction { sender }),
    ]
}

fn proposal(room: &Room, step: &Step) -> Proposal {
    match step {
        Step::Member {
            sender,
            target,
            membership,
            via,
        } => {
            let mut content = json!({ "membership": membership });
            if let Some(via) = via {
                content["join_authorised_via_users_server"] = json!(USERS[*via]);
            }
            room::state(USERS[*sender], "m.room.member", USERS[*target], content)
        }
        Step::ThirdParty {
            sender,
            target,
            signed,
        } => {
            let mut block = CanonicalObject::from([
                ("mxid".to_owned(), USERS[*target].into()),
                ("token".to_owned(), "token".into()),
            ]);
            if *signed {
                sign_json(&mut block, "id.example", &key());
            } else {
                block.insert("signatures".to_owned(), CanonicalObject::new().into_value());
            }
            let block: Value = serde_json::from_str(&canonical::to_string(&block)).unwrap();
            let content =
                json!({ "membership": "invite", "third_party_invite": { "signed": block } });
            room::state(USERS[*sender], "m.room.member", USERS[*target], content)
        }
        Step::Offer { sender } => {
            let content = json!({ "public_key": key().verify_key().to_base64() });
            room::state(
                USERS[*sender],
                "m.room.third_party_invite",
                "token",
                content,
            )
        }
        Step::JoinRule { sender, rule } => room::state(
            USERS[*sender],
            "m.room.join_rules",
            "",
            json!({ "join_rule": rule }),
        ),
        Step::Levels { sender, content } => {
            room::state(USERS[*sender], "m.room.power_levels", "", content.clone())
        }
        Step::Event {
            sender,
            event_type,
            key,
        } => Proposal {
            state_key: key.map(ToOwned::to_owned),
            ..room::message(USERS[*sender], event_type, json!({}))
        },
        Step::Redaction { sender } => Proposal {
            redacts: Some(room.last().event_id().to_owned()),
            ..room::message(USERS[*sender], "m.room.redaction", json!({}))
        },
    }
}

proptest! {
    #![proptest_config(cases(1_000))]

    /// Along a history, every event is judged alike; allowed ones change the state.
    #[test]
    fn the_rules_agree_along_a_history(
        version in any_version(),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let mut room = Room::new(version);
        for step in &steps {
            let proposal = proposal(&room, step);
            let event = room.build(&proposal);
            let ours = auth::check(room.rules, &event, &|event_type, key| {
                room.lookup(event_type, key)
            });
            let theirs = their_check(&room, &event);
            prop_assert_eq!(
                ours.is_ok(), theirs.is_ok(), "{:?}: {:?} and {:?}", proposal, ours, theirs
            );
            if ours.is_ok() {
                room.take(event);
            }
        }
    }

    /// Whatever list of auth events an event names, both implementations say the same of it.
    #[test]
    fn the_choice_of_auth_events_agrees(
        version in any_version(),
        step in step(),
        picks in prop::collection::vec(0_usize..8, 0..6),
        rejected in prop::option::of(0_usize..8),
        honest in any::<bool>(),
    ) {
        let mut room = Room::new(version);
        room.must(&room::member(room::BOB, room::BOB, "join"));
        room.must(&room::message(ALICE, "m.room.message", json!({})));
        let other = Room::created(version, &json!({
            "creator": ALICE, "room_version": version.as_str(), "other": true,
        }));
        let mut pool: Vec<Pdu> = room.events.values().cloned().collect();
        pool.extend(other.events.values().cloned());

        let proposal = proposal(&room, &step);
        let mut draft = room.draft(&proposal);
        if !honest {
            draft.auth_events =
                picks.iter().map(|pick| pool[pick % pool.len()].reference().unwrap()).collect();
        }
        let server = draft.sender.server_name().to_owned();
        let event = draft.seal(room.rules, &server, &key()).unwrap();

        let find = |id: &EventId| {
            let at = pool.iter().position(|event| event.event_id() == id)?;
            Some((pool[at].clone(), rejected == Some(at)))
        };
        let ours = auth::check_auth_events(room.rules, &event, &|id| {
            find(id).map(|(event, rejected)| {
                if rejected { AuthEvent::Rejected(event) } else { AuthEvent::Allowed(event) }
            })
        });
        let theirs = ruma_state_res::check_state_independent_auth_rules(
            &their_rules(version).authorization,
            Theirs::new(&event, false),
            |id| find(id).map(|(event, rejected)| Theirs::new(&event, rejected)),
        );
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} and {:?}", ours, theirs);
    }

    /// The auth events that a new event should name.
    #[test]
    fn the_selection_agrees(version in any_version(), step in step()) {
        let room = Room::new(version);
        let proposal = proposal(&room, &step);
        let content = serde_json::value::to_raw_value(&proposal.content).unwrap();
        let mut ours: Vec<(String, String)> = auth::auth_types(
            room.rules,
            &proposal.event_type,
            room::user(&proposal.sender),
            proposal.state_key.as_deref(),
            &content,
        ).into_iter().map(|(event_type, key)| (event_type.to_owned(), key)).collect();
        let mut theirs: Vec<(String, String)> = ruma_state_res::auth_types_for_event(
            &proposal.event_type.as_str().into(),
            room::user(&proposal.sender),
            proposal.state_key.as_deref(),
            &content,
            &their_rules(version).authorization,
        ).unwrap().into_iter().map(|(event_type, key)| (event_type.to_string(), key)).collect();
        ours.sort();
        theirs.sort();
        prop_assert_eq!(ours, theirs);
    }
}

/// The comparison above is worth something only if histories have both outcomes in them.
#[test]
fn histories_have_allowed_and_refused_events() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut allowed, mut refused) = (0, 0);
    for _ in 0..100 {
        let histories = (any_version(), prop::collection::vec(step(), 1..24));
        let (version, steps) = histories.new_tree(&mut runner).unwrap().current();
        let mut room = Room::new(version);
        for step in &steps {
            let event = proposal(&room, step);
            match room.try_event(&event) {
                Ok(_) => allowed += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(
        allowed > 200 && refused > 200,
        "{allowed} allowed, {refused} refused"
    );
}

proptest! {
    #![proptest_config(cases(2_000))]

    /// What this crate takes for an event, ruma does too. (Not the reverse: ruma looks at fewer
    /// fields.)
    #[test]
    fn accepted_forms_agree(
        version in any_version(),
        field in prop::sample::select(vec![
            "type", "sender", "room_id", "state_key", "content", "depth", "prev_events",
            "auth_events", "origin_server_ts", "hashes", "signatures", "event_id",
        ]),
        value in prop::option::of(prop_oneof![
            crate::properties::value(),
            "[@!$][a-z]{0,300}:one.example".prop_map(Into::into),
            (-3_i64..3).prop_map(homeserver_events::CanonicalValue::Integer),
        ]),
    ) {
        let mut room = Room::new(version);
        let event = room.build(&room::message(ALICE, "m.room.message", json!({})));
        let mut object = event.to_object().unwrap();
        match value {
            Some(value) => object.insert(field.to_owned(), value),
            None => object.remove(field),
        };
        if Pdu::of_object(&object, version.rules()).is_ok() {
            let rules = their_rules(version).event_format;
            let result = ruma_state_res::check_pdu_format(&theirs(&object), &rules);
            prop_assert_eq!(result, Ok(()));
        }
    }
}
