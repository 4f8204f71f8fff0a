//! Create events (rule 1), and the choice of auth events (rules 2 and 3).

use homeserver_events::auth::{self, AuthEvent};
use homeserver_events::{AuthError, Pdu, RoomVersion};
use ruma::EventId;
use serde_json::{Value, json};

use super::{before, each, since};
use crate::room::{self, ALICE, BOB, Room, key, member, message, state};

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
