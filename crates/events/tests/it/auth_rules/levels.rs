//! Power levels: what they are worth, and who may change them (rule 10).

use homeserver_events::auth::{Levels, PowerLevels};
use homeserver_events::{PowerLevel, RoomVersion};
use serde_json::{Value, json};

use super::{before, each, since, with_levels};
use crate::room::{self, ALICE, BOB, CAROL, DAVE, Room, member, message, state};

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
