//! Every authorisation rule of every room version, with an event that breaks it and one that does
//! not (advisory CVE-2022-31152: rules that some servers did not apply).

use homeserver_events::auth::{self, AuthEvent, Levels, PowerLevels};
use homeserver_events::canonical;
use homeserver_events::{
    AuthError, CanonicalObject, Pdu, PowerLevel, RoomVersion, SigningKey, sign_json,
};
use ruma::EventId;
use serde_json::{Value, json};

use crate::room::{self, ALICE, BOB, CAROL, DAVE, Room, key, member, message, state};

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

fn create_is_refused(version: RoomVersion, content: &Value, why: &str) {
    let room = Room::created(version, content);
    let error = room.check(room.last()).unwrap_err();
    assert_eq!(error.to_string(), why, "{version:?} {content}");
}

#[test]
fn rule_1_create() {
    each(|version| {
        let good = room::create_content(version);
        let room = Room::created(version, &good);
        assert_eq!(room.check(room.last()), Ok(()));
        for unknown in [json!("99"), json!(""), json!(1), json!(null)] {
            let content = json!({ "creator": ALICE, "room_version": unknown });
            create_is_refused(version, &content, "the room version is not known");
        }
    });
    for version in before(11) {
        create_is_refused(version, &json!({}), "the create event names no creator");
    }
    for version in since(11) {
        let room = Room::created(*version, &json!({ "room_version": version.as_str() }));
        assert_eq!(room.check(room.last()), Ok(()));
    }
}

#[test]
fn rule_1_create_with_prev_events_or_foreign_room_id() {
    each(|version| {
        let mut room = Room::new(version);
        let again = state(ALICE, "m.room.create", "", room::create_content(version));
        let mut draft = room.draft(&again);
        if room.rules.create_is_implied() {
            draft.room_id = None;
        }
        draft.auth_events.clear();
        let event = draft
            .clone()
            .seal(room.rules, room::user(ALICE).server_name(), &key())
            .unwrap();
        let error = room.check(&event).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a create event must not have prev events"
        );

        if !room.rules.create_is_implied() {
            draft.prev_events.clear();
            draft.sender = room::user(BOB).to_owned();
            let server = room::user(BOB).server_name();
            let event = draft.seal(room.rules, server, &key()).unwrap();
            let error = room.check(&event).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the room id is not of the sender's server"
            );
        }
    });
}

#[test]
fn rule_1_additional_creators() {
    let version = RoomVersion::V12;
    for bad in [
        json!(null),
        json!(ALICE),
        json!([1]),
        json!(["alice"]),
        json!(["@alice"]),
        json!([ALICE, "@a:"]),
        json!([format!("@{}:one.example", "a".repeat(250))]),
    ] {
        let content = json!({ "room_version": "12", "additional_creators": bad });
        create_is_refused(
            version,
            &content,
            "additional_creators is not a list of user ids",
        );
        // Older versions do not know the key.
        let content = json!({ "creator": ALICE, "room_version": "11", "additional_creators": bad });
        let room = Room::created(RoomVersion::V11, &content);
        assert_eq!(room.check(room.last()), Ok(()));
    }
}

#[test]
fn rules_2_and_3_auth_events() {
    each(|version| {
        let mut room = Room::new(version);
        room.must(&member(BOB, BOB, "join"));
        let proposal = message(BOB, "m.room.message", json!({}));
        let good = room.build(&proposal);
        assert_eq!(room.check(&good), Ok(()));
        let create = room.lookup("m.room.create", "").unwrap();
        let levels = room.lookup("m.room.power_levels", "").unwrap();
        let alice = room.lookup("m.room.member", ALICE).unwrap();
        let rules = room.lookup("m.room.join_rules", "").unwrap();
        let mut old = room.clone();
        let more = json!({ "users": { ALICE: 100 }, "ban": 51 });
        let more = if room.rules.create_is_implied() {
            json!({ "ban": 51 })
        } else {
            more
        };
        let other_levels = old.must(&state(ALICE, "m.room.power_levels", "", more));
        room.events.extend(old.events);
        let not_state = room.must(&proposal);

        let mut why = |extra: &Pdu| {
            let mut draft = room.draft(&proposal);
            draft.auth_events.push(extra.reference().unwrap());
            let server = draft.sender.server_name().to_owned();
            let event = draft.seal(room.rules, &server, &key()).unwrap();
            match room.check(&event) {
                Err(AuthError::AuthEvent { event_id, why }) => {
                    assert_eq!(event_id, extra.event_id());
                    why
                }
                other => panic!("{version:?}: {other:?}"),
            }
        };
        let twice = "has the type and state key of another entry";
        let unexpected = "is not one that authorises this event";
        assert_eq!(why(&levels), twice);
        assert_eq!(why(&other_levels), twice);
        assert_eq!(why(&alice), unexpected);
        assert_eq!(why(&rules), unexpected);
        assert_eq!(why(&not_state), "is not a state event");
        let implied = create.rules().create_is_implied();
        assert_eq!(why(&create), if implied { unexpected } else { twice });
    });
}

#[test]
fn rules_2_and_3_missing_create_rejected_and_unknown() {
    each(|version| {
        let mut room = Room::new(version);
        let proposal = message(ALICE, "m.room.message", json!({}));
        let event = room.build(&proposal);
        let levels = room
            .lookup("m.room.power_levels", "")
            .unwrap()
            .event_id()
            .to_owned();
        let rejected = |id: &EventId| {
            let event = room.events.get(id).cloned()?;
            Some(if *id == *levels {
                AuthEvent::Rejected(event)
            } else {
                AuthEvent::Allowed(event)
            })
        };
        let error = auth::check_auth_events(room.rules, &event, &rejected).unwrap_err();
        assert_eq!(
            error,
            AuthError::AuthEvent {
                event_id: levels.clone(),
                why: "was rejected"
            }
        );
        let unknown =
            |id: &EventId| (*id != *levels).then(|| AuthEvent::Allowed(room.events[id].clone()));
        let error = auth::check_auth_events(room.rules, &event, &unknown).unwrap_err();
        assert_eq!(error, AuthError::MissingAuthEvent(levels.clone()));

        let create = room.lookup("m.room.create", "").unwrap();
        let mut draft = room.draft(&proposal);
        draft
            .auth_events
            .retain(|reference| reference.event_id != create.event_id());
        let server = draft.sender.server_name().to_owned();
        let event = draft.seal(room.rules, &server, &key()).unwrap();
        let result = room.check(&event);
        if room.rules.create_is_implied() {
            assert_eq!(result, Ok(()));
        } else {
            let why = "the auth events do not include the create event";
            assert_eq!(result, Err(AuthError::Refused(why)));
        }
    });
}

/// MSC4307: auth events of another room.
#[test]
fn rule_3_auth_events_of_another_room() {
    each(|version| {
        let mut room = Room::new(version);
        let mut content = room::create_content(version);
        content["other"] = json!(true);
        let mut other = Room::created(version, &content);
        if !room.rules.create_is_implied() {
            other.id = ruma::RoomId::parse("!other:one.example").unwrap();
        }
        let foreign = other.build(&member(ALICE, ALICE, "join"));
        room.events
            .insert(foreign.event_id().to_owned(), foreign.clone());
        let mut draft = room.draft(&message(ALICE, "m.room.message", json!({})));
        let own = room.lookup("m.room.member", ALICE).unwrap();
        draft
            .auth_events
            .retain(|reference| reference.event_id != own.event_id());
        draft.auth_events.push(foreign.reference().unwrap());
        let server = draft.sender.server_name().to_owned();
        let event = draft.seal(room.rules, &server, &key()).unwrap();
        let event_id = foreign.event_id().to_owned();
        let error = AuthError::AuthEvent {
            event_id,
            why: "is of another room",
        };
        assert_eq!(room.check(&event), Err(error));
    });
}

#[test]
fn rule_2_version_12_room_id_must_name_an_allowed_create_event() {
    let mut room = Room::new(RoomVersion::V12);
    let event = room.build(&message(ALICE, "m.room.message", json!({})));
    let create = room
        .lookup("m.room.create", "")
        .unwrap()
        .event_id()
        .to_owned();
    let rejected = |id: &EventId| {
        let event = room.events[id].clone();
        Some(if *id == *create {
            AuthEvent::Rejected(event)
        } else {
            AuthEvent::Allowed(event)
        })
    };
    let error = auth::check_auth_events(room.rules, &event, &rejected).unwrap_err();
    assert_eq!(
        error,
        AuthError::AuthEvent {
            event_id: create.clone(),
            why: "was rejected"
        }
    );
    let unknown =
        |id: &EventId| (*id != *create).then(|| AuthEvent::Allowed(room.events[id].clone()));
    let error = auth::check_auth_events(room.rules, &event, &unknown).unwrap_err();
    assert_eq!(error, AuthError::MissingAuthEvent(create));

    // A room id made of some other event's id, and one in the old form.
    let why = "the room id does not name a create event";
    let levels = room.lookup("m.room.power_levels", "").unwrap();
    let levels = levels.event_id().as_str().replacen('$', "!", 1);
    for room_id in [levels.as_str(), "!room:one.example"] {
        let mut draft = room.draft(&message(ALICE, "m.room.message", json!({})));
        draft.room_id = Some(ruma::RoomId::parse(room_id).unwrap());
        draft.auth_events.clear();
        let server = draft.sender.server_name().to_owned();
        let event = draft.seal(room.rules, &server, &key()).unwrap();
        assert_eq!(room.check(&event), Err(AuthError::Refused(why)));
    }
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
fn rule_5_1_member_events_have_a_key_and_a_membership() {
    each(|version| {
        let mut room = Room::new(version);
        let join = json!({ "membership": "join" });
        let why = "a member event must have a user id as state key";
        room.refused(&message(BOB, "m.room.member", join.clone()), why);
        room.refused(&state(BOB, "m.room.member", "bob", join), why);
        let why = "a member event must have a membership";
        room.refused(&state(BOB, "m.room.member", BOB, json!({})), why);
        room.refused(&member(BOB, BOB, "visit"), "the membership is not known");
        room.refused(
            &state(BOB, "m.room.member", BOB, json!({ "membership": 1 })),
            "the content of the member event cannot be read",
        );
    });
}

#[test]
fn rule_5_3_join() {
    each(|version| {
        // The creator's first join, and nobody else's.
        let mut room = Room::created(version, &room::create_content(version));
        room.refused(&member(BOB, BOB, "join"), "the sender is not invited");
        room.must(&member(ALICE, ALICE, "join"));

        let mut room = Room::new(version);
        room.refused(
            &member(BOB, CAROL, "join"),
            "nobody can join for another user",
        );
        room.must(&member(BOB, BOB, "join"));
        room.must(&member(ALICE, BOB, "ban"));
        room.refused(
            &member(BOB, BOB, "join"),
            "the sender is banned from the room",
        );
        for rule in ["invite", "knock"] {
            join_rule(&mut room, rule);
            let why = if rule == "knock" && !room.rules.knocking {
                "the join rule lets nobody in"
            } else {
                "the sender is not invited"
            };
            room.refused(&member(DAVE, DAVE, "join"), why);
        }
        join_rule(&mut room, "invite");
        room.must(&member(ALICE, DAVE, "invite"));
        room.must(&member(DAVE, DAVE, "join"));
        room.must(&member(DAVE, DAVE, "join"));
        join_rule(&mut room, "private");
        room.refused(&member(DAVE, DAVE, "join"), "the join rule lets nobody in");
    });
}

#[test]
fn rule_5_3_5_restricted_joins() {
    let via = |user: &str| {
        let content = json!({ "membership": "join", "join_authorised_via_users_server": user });
        state(DAVE, "m.room.member", DAVE, content)
    };
    each(|version| {
        for rule in ["restricted", "knock_restricted"] {
            let mut room = with_levels(version, json!({ "invite": 50, "users": {} }));
            join_rule(&mut room, rule);
            let known = if rule == "restricted" {
                room.rules.restricted_joins
            } else {
                room.rules.knock_restricted
            };
            if !known {
                room.refused(&member(DAVE, DAVE, "join"), "the join rule lets nobody in");
                continue;
            }
            let nobody = "nobody vouches for the restricted join";
            room.refused(&member(DAVE, DAVE, "join"), nobody);
            room.refused(&via("dave"), nobody);
            room.refused(
                &via(DAVE),
                "the user who vouches for the join is not in the room",
            );
            room.refused(
                &via(BOB),
                "the user who vouches for the join may not invite",
            );
            room.clone().must(&via(ALICE));
            room.must(&member(ALICE, DAVE, "invite"));
            room.must(&member(DAVE, DAVE, "join"));
        }
    });
}

#[test]
fn rule_5_4_invite() {
    each(|version| {
        let mut room = with_levels(version, json!({ "invite": 50, "users": { BOB: 50 } }));
        room.refused(
            &member(DAVE, "@eve:one.example", "invite"),
            "the sender is not in the room",
        );
        room.refused(&member(CAROL, DAVE, "invite"), "the sender may not invite");
        let inside = "the invited user is in the room or banned from it";
        room.refused(&member(BOB, CAROL, "invite"), inside);
        room.must(&member(BOB, DAVE, "invite"));
        room.must(&member(ALICE, DAVE, "ban"));
        room.refused(&member(BOB, DAVE, "invite"), inside);
    });
}

fn third_party(sender: &str, target: &str, signed: &Value) -> room::Proposal {
    let content = json!({ "membership": "invite", "third_party_invite": { "signed": signed } });
    state(sender, "m.room.member", target, content)
}

fn signed(mxid: &str, token: &str, key: &SigningKey) -> Value {
    let mut block = CanonicalObject::from([
        ("mxid".to_owned(), mxid.into()),
        ("token".to_owned(), token.into()),
    ]);
    sign_json(&mut block, "id.example", key);
    serde_json::from_str(&canonical::to_string(&block)).unwrap()
}

#[test]
fn rule_5_4_1_third_party_invites() {
    each(|version| {
        for form in ["public_key", "public_keys"] {
            let mut room = Room::new(version);
            let public = key().verify_key().to_base64();
            let content = if form == "public_key" {
                json!({ "public_key": public })
            } else {
                json!({ "public_keys": [{ "public_key": "AAAA" }, { "public_key": public }] })
            };
            room.must(&state(ALICE, "m.room.third_party_invite", "token", content));
            room.must(&member(CAROL, CAROL, "join"));
            let good = signed(DAVE, "token", &key());

            let absent = json!({ "membership": "invite", "third_party_invite": {} });
            let why = "the third-party invite has no signed block";
            room.refused(&state(ALICE, "m.room.member", DAVE, absent), why);
            let null = json!({ "membership": "invite", "third_party_invite": null });
            room.refused(&state(ALICE, "m.room.member", DAVE, null), why);
            let why = "the third-party invite has no mxid or token";
            room.refused(&third_party(ALICE, DAVE, &json!({ "mxid": DAVE })), why);
            room.refused(&third_party(ALICE, DAVE, &json!({ "token": "token" })), why);
            let why = "the third-party invite is for another user";
            room.refused(&third_party(ALICE, BOB, &good), why);
            let why = "there is no third-party invite with this token";
            room.refused(
                &third_party(ALICE, DAVE, &signed(DAVE, "other", &key())),
                why,
            );
            let why = "the third-party invite was sent by another user";
            room.refused(&third_party(CAROL, DAVE, &good), why);
            let why = "the third-party invite is not signed";
            let stranger = SigningKey::from_seed("test", &[8; 32]).unwrap();
            room.refused(
                &third_party(ALICE, DAVE, &signed(DAVE, "token", &stranger)),
                why,
            );
            let mut changed = good.clone();
            changed["extra"] = json!(1);
            room.refused(&third_party(ALICE, DAVE, &changed), why);
            room.refused(
                &third_party(ALICE, DAVE, &json!({ "mxid": DAVE, "token": "token" })),
                why,
            );
            let mut banned = room.clone();
            banned.must(&member(ALICE, DAVE, "ban"));
            let why = "the invited user is banned";
            banned.refused(&third_party(ALICE, DAVE, &good), why);
            room.must(&third_party(ALICE, DAVE, &good));
        }
    });
}

#[test]
fn rule_5_5_leave_and_kick() {
    each(|version| {
        let levels = json!({ "ban": 60, "kick": 50, "users": { BOB: 55 } });
        let mut room = with_levels(version, levels);
        let out = "the sender is not in the room, invited or knocking";
        room.refused(&member(DAVE, DAVE, "leave"), out);
        room.refused(
            &member(DAVE, CAROL, "leave"),
            "the sender is not in the room",
        );
        room.refused(&member(CAROL, BOB, "leave"), "the sender may not kick");
        room.refused(
            &member(BOB, ALICE, "leave"),
            "the sender may not kick this user",
        );
        room.refused(
            &member(BOB, "@b:two.example", "ban"),
            "the sender may not ban",
        );
        room.must(&member(BOB, CAROL, "leave"));
        room.refused(&member(CAROL, CAROL, "leave"), out);
        room.must(&member(ALICE, CAROL, "ban"));
        room.refused(&member(BOB, CAROL, "leave"), "the sender may not unban");
        room.refused(&member(CAROL, CAROL, "leave"), out);
        room.must(&member(ALICE, CAROL, "leave"));
        room.must(&member(ALICE, DAVE, "invite"));
        room.must(&member(DAVE, DAVE, "leave"));
        room.must(&member(BOB, BOB, "leave"));
    });
}

#[test]
fn rule_5_6_ban() {
    each(|version| {
        let mut room = with_levels(
            version,
            json!({ "ban": 50, "users": { BOB: 50, CAROL: 50 } }),
        );
        room.refused(&member(DAVE, BOB, "ban"), "the sender is not in the room");
        room.refused(
            &member(BOB, CAROL, "ban"),
            "the sender may not ban this user",
        );
        room.refused(
            &member(BOB, ALICE, "ban"),
            "the sender may not ban this user",
        );
        room.must(&member(BOB, DAVE, "ban"));
    });
}

#[test]
fn rule_5_7_knock() {
    for version in before(7) {
        let mut room = Room::new(version);
        join_rule(&mut room, "knock");
        room.refused(&member(BOB, BOB, "knock"), "the membership is not known");
    }
    for version in since(7) {
        for rule in ["knock", "knock_restricted"] {
            let mut room = Room::new(*version);
            let not_allowed = "the join rule does not allow knocking";
            room.refused(&member(BOB, BOB, "knock"), not_allowed);
            join_rule(&mut room, rule);
            if rule == "knock_restricted" && !room.rules.knock_restricted {
                room.refused(&member(BOB, BOB, "knock"), not_allowed);
                continue;
            }
            room.refused(
                &member(BOB, DAVE, "knock"),
                "nobody can knock for another user",
            );
            room.must(&member(BOB, BOB, "knock"));
            room.must(&member(BOB, BOB, "leave"));
            let inside = "the sender is in the room, invited or banned";
            room.refused(&member(ALICE, ALICE, "knock"), inside);
            room.must(&member(ALICE, DAVE, "invite"));
            room.refused(&member(DAVE, DAVE, "knock"), inside);
            room.must(&member(ALICE, DAVE, "ban"));
            room.refused(&member(DAVE, DAVE, "knock"), inside);
        }
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

/// CVE-2022-36009: each field of power levels at a value that is not its default, and a sender just
/// below and just at it.
#[test]
fn every_field_of_power_levels_counts() {
    each(|version| {
        let forms: Vec<fn(i64) -> Value> = match version {
            RoomVersion::V10 | RoomVersion::V11 | RoomVersion::V12 => vec![|level| json!(level)],
            _ => vec![|level| json!(level), |level| json!(format!(" +0{level} "))],
        };
        for form in forms {
            let room = |field: &str, level: i64| {
                let mut levels = json!({ "users": { BOB: form(level) }, "redact": form(37) });
                levels[field] = form(37);
                let mut room = with_levels(version, levels);
                room.must(&message(ALICE, "m.room.message", json!({})));
                room
            };
            let topic = state(BOB, "m.room.topic", "", json!({}));
            let text = message(BOB, "m.room.message", json!({}));
            for (field, event) in [
                ("events_default", text),
                ("state_default", topic),
                ("ban", member(BOB, DAVE, "ban")),
                ("kick", member(BOB, CAROL, "leave")),
                ("invite", member(BOB, DAVE, "invite")),
            ] {
                assert!(
                    room(field, 36).try_event(&event).is_err(),
                    "{version:?} {field}"
                );
                assert!(
                    room(field, 37).try_event(&event).is_ok(),
                    "{version:?} {field}"
                );
            }
            for (level, allowed) in [(36, false), (37, true)] {
                let mut room = with_levels(
                    version,
                    json!({ "users_default": form(level), "events": { "x": form(37) }, "users": {} }),
                );
                assert_eq!(
                    room.try_event(&message(BOB, "x", json!({}))).is_ok(),
                    allowed
                );
            }
        }
    });
}

fn change(room: &mut Room, sender: &str, change: impl Fn(&mut Value)) -> room::Proposal {
    let current = room.lookup("m.room.power_levels", "").unwrap();
    let mut content: Value = current.content_as().unwrap();
    change(&mut content);
    state(sender, "m.room.power_levels", "", content)
}

const TOO_HIGH: &str = "the sender's power level is too low for this change of power levels";

#[test]
fn rule_10_6_named_levels() {
    each(|version| {
        let levels = json!({
            "events": { "m.room.power_levels": 30 }, "users": { BOB: 30 },
            "kick": 31, "ban": 30, "invite": 10,
        });
        let mut room = with_levels(version, levels);
        for (field, value) in [
            ("kick", json!(30)),
            ("kick", json!(null)),
            ("ban", json!(31)),
            ("invite", json!(31)),
            ("state_default", json!(20)),
            ("redact", json!(50)),
            ("events_default", json!(31)),
            ("users_default", json!(31)),
        ] {
            let event = change(&mut room, BOB, |content| {
                if value.is_null() {
                    content.as_object_mut().unwrap().remove(field);
                } else {
                    content[field] = value.clone();
                }
            });
            room.refused(&event, TOO_HIGH);
        }
        let event = change(&mut room, BOB, |content| {
            content["ban"] = json!(20);
            content["invite"] = json!(30);
            content["users_default"] = json!(-5);
        });
        room.must(&event);
    });
}

#[test]
fn rules_10_7_to_10_10_entries() {
    each(|version| {
        let levels = json!({
            "events": { "m.room.power_levels": 30, "high": 31, "mine": 30 },
            "notifications": { "room": 31 },
            "users": { BOB: 30, CAROL: 30, DAVE: 29 },
        });
        let mut room = with_levels(version, levels);
        let mut refused = |edit: &dyn Fn(&mut Value)| {
            let event = change(&mut room, BOB, edit);
            room.refused(&event, TOO_HIGH);
        };
        refused(&|content| content["events"]["high"] = json!(1));
        refused(&|content| content["events"] = json!({ "m.room.power_levels": 30, "mine": 30 }));
        refused(&|content| content["events"]["new"] = json!(31));
        refused(&|content| content["users"][CAROL] = json!(0));
        refused(&|content| {
            content["users"].as_object_mut().unwrap().remove(CAROL);
        });
        refused(&|content| content["users"][DAVE] = json!(31));
        refused(&|content| content["users"][BOB] = json!(31));
        refused(&|content| content["users"]["@new:one.example"] = json!(31));

        let event = change(&mut room, BOB, |content| {
            content["notifications"] = json!({});
        });
        if room.rules.checks_notification_levels {
            room.refused(&event, TOO_HIGH);
        } else {
            room.clone().must(&event);
        }
        let event = change(&mut room, BOB, |content| {
            content["events"]["mine"] = json!(1);
            content["users"][DAVE] = json!(30);
            content["users"][BOB] = json!(0);
        });
        room.must(&event);
    });
}

#[test]
fn rules_10_1_to_10_3_form() {
    let change_of = |field: &str, value: Value| {
        let mut content = json!({ "users": {} });
        content[field] = value;
        content
    };
    for version in since(10) {
        let mut room = Room::new(*version);
        for field in [
            "users_default",
            "events_default",
            "state_default",
            "ban",
            "redact",
            "kick",
        ] {
            for bad in [json!("50"), json!(null), json!({}), json!([]), json!(true)] {
                let levels = state(ALICE, "m.room.power_levels", "", change_of(field, bad));
                room.refused(&levels, "the power levels are not integers");
            }
        }
        for field in ["events", "notifications", "users"] {
            for bad in [json!("x"), json!(null), json!([]), json!({ ALICE: "1" })] {
                let levels = state(ALICE, "m.room.power_levels", "", change_of(field, bad));
                room.refused(&levels, "the power levels are not integers");
            }
        }
    }
    each(|version| {
        let mut room = Room::new(version);
        let why = "the users of the power levels are not user ids with levels";
        for bad in ["alice", "@alice", "", "@a:b:c:d"] {
            let levels = json!({ "users": { bad: 1 } });
            room.refused(&state(ALICE, "m.room.power_levels", "", levels), why);
        }
    });
    for version in before(10) {
        let mut room = Room::new(version);
        let why = "the users of the power levels are not user ids with levels";
        for bad in [
            json!("1.5"),
            json!("x"),
            json!(""),
            json!("+ 1"),
            json!(null),
            json!({}),
        ] {
            let levels = json!({ "users": { ALICE: bad } });
            room.refused(&state(ALICE, "m.room.power_levels", "", levels), why);
        }
        let levels = json!({ "users": [] });
        let why = "the users of the power levels are not an object";
        room.refused(&state(ALICE, "m.room.power_levels", "", levels), why);
    }
}

#[test]
fn rule_10_4_creators_are_above_power_levels() {
    let content = json!({ "room_version": "12", "additional_creators": [BOB] });
    let mut room = Room::created(RoomVersion::V12, &content);
    room.must(&member(ALICE, ALICE, "join"));
    room.must(&state(
        ALICE,
        "m.room.join_rules",
        "",
        json!({ "join_rule": "public" }),
    ));
    room.must(&member(BOB, BOB, "join"));
    room.must(&member(CAROL, CAROL, "join"));
    let why = "the power levels list a creator of the room";
    for creator in [ALICE, BOB] {
        let levels = json!({ "users": { creator: 100 } });
        room.refused(&state(ALICE, "m.room.power_levels", "", levels), why);
    }
    // However high the levels, a creator may change them; nobody else is so high.
    let max = (1_i64 << 53) - 1;
    let levels = json!({
        "users": { CAROL: max }, "events": { "m.room.power_levels": max }, "ban": max, "kick": max,
    });
    room.must(&state(ALICE, "m.room.power_levels", "", levels));
    room.refused(
        &member(CAROL, BOB, "leave"),
        "the sender may not kick this user",
    );
    room.refused(
        &member(ALICE, BOB, "leave"),
        "the sender may not kick this user",
    );
    room.must(&state(BOB, "m.room.power_levels", "", json!({})));
    room.must(&member(BOB, CAROL, "leave"));
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

#[test]
fn levels_without_an_event() {
    each(|version| {
        let room = Room::created(version, &room::create_content(version));
        let levels = Levels::new(room.rules, room.last(), None);
        let expected = if room.rules.create_is_implied() {
            PowerLevel::Infinite
        } else {
            PowerLevel::Finite(100)
        };
        assert_eq!(levels.user(room::user(ALICE)), Ok(expected));
        assert_eq!(levels.user(room::user(BOB)), Ok(PowerLevel::Finite(0)));
        assert_eq!(levels.event("x", true), Ok(50));
        assert_eq!(levels.event("x", false), Ok(0));
        assert_eq!(levels.notification("room"), Ok(50));
    });
}

#[test]
fn historical_levels_are_read() {
    let read = |content: &str, version: RoomVersion| {
        PowerLevels::read(content, version.rules()).user(room::user(BOB))
    };
    for (written, level) in [
        ("50.57", 50),
        ("5.114698E4", 51_146),
        ("-1.9", -1),
        ("\"100\"", 100),
        ("\"000100\"", 100),
        ("\"+100\"", 100),
        ("\" -100 \"", -100),
        ("\"99999999999999999999\"", i64::MAX),
        ("99999999999999999999", i64::MAX),
    ] {
        let content = format!("{{\"users\":{{\"{BOB}\":{written}}}}}");
        assert_eq!(read(&content, RoomVersion::V1), Ok(level), "{written}");
        assert!(read(&content, RoomVersion::V10).is_err(), "{written}");
    }
    for unreadable in [
        "\"\"", "\"5.5\"", "\"1e3\"", "\"1_0\"", "\"--1\"", "\"+\"", "null", "[]",
    ] {
        let content = format!("{{\"users\":{{\"{BOB}\":{unreadable}}}}}");
        assert!(read(&content, RoomVersion::V1).is_err(), "{unreadable}");
    }
}
