//! Every authorisation rule of every room version, with an event that breaks it and one that does
//! not (advisory CVE-2022-31152: rules that some servers did not apply).

mod choice;
mod levels;
mod member;

use homeserver_events::{Pdu, RoomVersion, auth};
use serde_json::{Value, json};

use crate::room::{self, ALICE, BOB, CAROL, DAVE, Room, member, message, state};

fn each(check: impl Fn(RoomVersion)) {
    for version in RoomVersion::ALL {
        check(version);
    }
}

/// The versions from the one with this number on.
fn since(number: usize) -> &'static [RoomVersion] {
    let all: &'static [RoomVersion] = &RoomVersion::ALL;
    &all[number - 1..]
}

/// The versions before the one with this number.
fn before(number: usize) -> Vec<RoomVersion> {
    RoomVersion::ALL[..number - 1].to_vec()
}

fn with_levels(version: RoomVersion, mut levels: Value) -> Room {
    let mut room = Room::new(version);
    if !room.rules.create_is_implied() && levels["users"].get(ALICE).is_none() {
        levels["users"][ALICE] = json!(100);
    }
    for user in [BOB, CAROL] {
        room.must(&member(user, user, "join"));
    }
    room.must(&state(ALICE, "m.room.power_levels", "", levels));
    room
}

fn join_rule(room: &mut Room, rule: &str) {
    room.must(&state(
        ALICE,
        "m.room.join_rules",
        "",
        json!({ "join_rule": rule }),
    ));
}

#[test]
fn rule_4_rooms_that_do_not_federate() {
    each(|version| {
        let mut content = room::create_content(version);
        content["m.federate"] = json!(false);
        let mut room = Room::created(version, &content);
        room.must(&member(ALICE, ALICE, "join"));
        room.must(&state(
            ALICE,
            "m.room.join_rules",
            "",
            json!({ "join_rule": "public" }),
        ));
        room.must(&member(CAROL, CAROL, "join"));
        let why = "the room does not federate with the sender's server";
        room.refused(&member(BOB, BOB, "join"), why);
    });
}

#[test]
fn aliases_until_version_5() {
    for version in before(6) {
        let mut room = with_levels(version, json!({ "state_default": 50, "users": {} }));
        let aliases = |key: Option<&str>| room::Proposal {
            state_key: key.map(ToOwned::to_owned),
            ..message(BOB, "m.room.aliases", json!({ "aliases": [] }))
        };
        room.must(&aliases(Some("two.example")));
        let why = "aliases may only be set for the sender's own server";
        room.refused(&aliases(Some("one.example")), why);
        room.refused(&aliases(None), why);
    }
    for version in since(6) {
        let mut room = with_levels(*version, json!({ "state_default": 50, "users": {} }));
        let aliases = state(
            BOB,
            "m.room.aliases",
            "two.example",
            json!({ "aliases": [] }),
        );
        room.refused(
            &aliases,
            "the sender's power level is too low for this type of event",
        );
        room.must(&state(
            ALICE,
            "m.room.aliases",
            "two.example",
            json!({ "aliases": [] }),
        ));
    }
}

#[test]
fn rules_6_to_9_other_events() {
    each(|version| {
        let levels = json!({
            "events": { "m.room.topic": 30, "org.example": 20 }, "events_default": 10,
            "state_default": 40, "invite": 35,
            "users": { BOB: 30, CAROL: 5 },
        });
        let mut room = with_levels(version, levels);
        let too_low = "the sender's power level is too low for this type of event";
        let text = json!({});
        room.refused(
            &message(DAVE, "m.room.message", text.clone()),
            "the sender is not in the room",
        );
        room.refused(&message(CAROL, "m.room.message", text.clone()), too_low);
        room.must(&message(BOB, "m.room.message", text.clone()));
        room.must(&message(BOB, "org.example", text.clone()));
        room.must(&state(BOB, "m.room.topic", "", text.clone()));
        room.refused(&state(BOB, "m.room.name", "", text.clone()), too_low);
        let offer = |sender| state(sender, "m.room.third_party_invite", "t", json!({}));
        room.refused(&offer(BOB), "the sender may not invite");
        // 7 stands before 8: the level of the type does not matter.
        room.must(&offer(ALICE));
        let other = "the state key is another user's id";
        room.refused(&state(BOB, "org.example", ALICE, text.clone()), other);
        room.refused(&state(BOB, "org.example", "@", text.clone()), other);
        room.must(&state(BOB, "org.example", BOB, text));
    });
}

#[test]
fn redactions_in_versions_1_and_2_are_authorised() {
    for version in before(3) {
        let mut room = with_levels(version, json!({ "redact": 50, "users": {} }));
        let alices = room.must(&message(ALICE, "m.room.message", json!({})));
        let redaction = |sender: &str, target: &Pdu| room::Proposal {
            redacts: Some(target.event_id().to_owned()),
            ..message(sender, "m.room.redaction", json!({}))
        };
        room.refused(
            &redaction(BOB, &alices),
            "the sender may not redact this event",
        );
        room.must(&redaction(CAROL, &alices));
        let bobs = room.must(&message(BOB, "m.room.message", json!({})));
        room.must(&redaction(ALICE, &bobs));
        let nothing = message(BOB, "m.room.redaction", json!({}));
        room.refused(&nothing, "the sender may not redact this event");
    }
}

#[test]
fn redactions_are_applied_by_level_or_by_server() {
    each(|version| {
        let mut room = with_levels(version, json!({ "redact": 50, "users": {} }));
        let alices = room.must(&message(ALICE, "m.room.message", json!({})));
        let bobs = room.must(&message(BOB, "m.room.message", json!({})));
        let mut applies = |sender: &str, target: &Pdu| {
            let redaction = room.build(&room::Proposal {
                redacts: Some(target.event_id().to_owned()),
                ..message(sender, "m.room.redaction", json!({}))
            });
            assert_eq!(redaction.redacts(), Some(target.event_id()));
            auth::redaction_applies(room.rules, &redaction, target, &|event_type, key| {
                room.lookup(event_type, key)
            })
            .unwrap()
        };
        assert!(applies(ALICE, &alices));
        assert!(applies(ALICE, &bobs), "by level");
        assert!(applies(CAROL, &alices), "by server");
        assert!(!applies(BOB, &alices));
        assert!(applies(BOB, &bobs));
    });
}
