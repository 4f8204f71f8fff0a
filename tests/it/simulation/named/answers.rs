//! Questions of honest servers that are answered with something else.

use super::*;
use crate::simulation::liar::Lie;
use ruma::OwnedUserId;

/// Questions that one event leads to, in the minutes of a scenario, of one server.
const MAX_QUESTIONS: usize = 60;
/// Bytes that are taken of an answer before it is given up, and one piece more. The state of a room
/// may be as large as this.
const MAX_TAKEN: usize = 65 * 1024 * 1024;
/// What may be answered, in order.
const ENDPOINTS: [&str; 5] = [
    "/get_missing_events/",
    "/state_ids/",
    "/state/",
    "/event/",
    "/event_auth/",
];

/// A message after one that is there when it is asked for.
fn gap(stage: &Stage) -> (Pdu, Pdu) {
    let hidden = stage
        .liar
        .aside(&stage.room, stage.liar.message(&stage.room, "between"));
    let event = stage.liar.message(&stage.room, "after").after(&[&hidden]);
    (hidden, stage.liar.aside(&stage.room, event))
}

/// A message by an event that is there when it is asked for.
fn lacking(stage: &Stage) -> (Pdu, Pdu) {
    let profile = stage.liar.profile(&stage.room, "unseen");
    let profile = stage.liar.aside(&stage.room, profile);
    let mut new = stage.liar.message(&stage.room, "by it");
    *new.auth.last_mut().unwrap() = profile.event_id().to_owned();
    (profile, stage.liar.aside(&stage.room, new))
}

/// Nobody shows the event after the gap.
const NOBODY: &[&[usize]] = &[&[]];
/// Where the state before it that is told is of no use, that of the room decides.
const WHO_WAS_SENT_IT: &[&[usize]] = &[&[], &[0]];

/// Tells all wrong answers in turn: the events that need others are not taken or taken well, and
/// nobody is kept from anything else. The event after the gap may be shown by `allowed`.
async fn answered(stage: &Stage, lies: &[Lie], bad: &[&Pdu], allowed: &[&[usize]]) {
    for lie in lies {
        for endpoint in ENDPOINTS {
            stage.liar.lie(endpoint, lie.clone());
        }
        stage.liar.asked();
        let ((hidden, after), (_, by)) = (gap(stage), lacking(stage));
        for event in [&after, &by] {
            stage.send(&[0], event).await;
        }
        sleep(Duration::from_mins(1)).await;
        let said = stage.say(1, "meanwhile").await;
        stage.until_all(&said).await;
        let asked = stage.liar.asked();
        let questions = |server: &str| {
            let asked = asked.iter().filter(|(from, _)| from == server);
            asked.count()
        };
        assert!(questions("s0.example") > 0, "{lie:?}");
        for server in stage.names() {
            let questions = questions(server.as_str());
            assert!(questions <= MAX_QUESTIONS * 2, "{lie:?}: {questions}");
        }
        for event in bad.iter().chain([&&hidden, &&by]) {
            assert!(stage.shown_by(event).await.is_empty(), "{lie:?}");
        }
        let shown_by = stage.shown_by(&after).await;
        assert!(
            allowed.contains(&shown_by.as_slice()),
            "{lie:?}: {shown_by:?}"
        );
        stage.liar.repent();
    }
    // What was answered badly is well answered later.
    let (hidden, after) = gap(stage);
    stage.send(&[0], &after).await;
    stage.until(0, after.event_id().as_str()).await;
    stage.until(0, hidden.event_id().as_str()).await;
    stage.agree().await;
}

#[test]
fn garbage_is_no_answer() {
    staged("11", async |stage| {
        let texts = [
            "",
            "{",
            "[]",
            "null",
            "<html></html>",
            "{\"events\":7,\"pdus\":{},\"pdu_ids\":\"x\"}",
        ];
        let mut lies: Vec<_> = texts
            .into_iter()
            .map(|text| Lie::Text(text.to_owned()))
            .collect();
        lies.push(Lie::Text("[".repeat(100_000)));
        answered(stage, &lies, &[], NOBODY).await;
    });
}

#[test]
fn errors_are_no_answer() {
    staged("11", async |stage| {
        let lies = [400, 401, 403, 404, 429, 500, 502].map(|status| Lie::Json(status, json!({})));
        answered(stage, &lies, &[], NOBODY).await;
    });
}

#[test]
fn empty_lists_are_no_answer() {
    staged("11", async |stage| {
        let empty = json!({ "events": [], "pdus": [], "pdu_ids": [], "auth_chain": [],
            "auth_chain_ids": [] });
        answered(stage, &[Lie::Json(200, empty)], &[], NOBODY).await;
    });
}

#[test]
fn other_events_than_those_that_were_asked_for_are_no_answer() {
    staged("12", async |stage| {
        let victim = OwnedUserId::try_from(stage.user(1)).unwrap();
        let new = stage.liar.message(&stage.room, "I am another");
        let forged = stage.liar.forge(&stage.room, new, &victim);
        let value = |event: &Pdu| serde_json::from_slice::<Value>(event.json()).unwrap();
        let mut elsewhere = value(&forged);
        elsewhere["room_id"] = json!("!elsewhere:liar.example");
        let known = stage.liar.knows(&stage.room, |known| {
            let events = known.events.values();
            events.map(value).collect::<Vec<_>>()
        });
        let all = |events: Vec<Value>| {
            let ids = vec![forged.event_id(); events.len()];
            json!({ "events": events, "pdus": events, "auth_chain": events,
                "pdu_ids": ids, "auth_chain_ids": ids })
        };
        let lies = [
            all(vec![value(&forged)]),
            all(vec![elsewhere]),
            all(known.unwrap()),
            all(vec![value(&forged); 500]),
        ];
        let lies = lies.map(|lie| Lie::Json(200, lie));
        answered(stage, &lies, &[&forged], WHO_WAS_SENT_IT).await;
    });
}

#[test]
fn answers_that_are_late_or_never_end_keep_nobody() {
    staged("11", async |stage| {
        let lies = [Lie::Late(Duration::from_mins(3)), Lie::Halt];
        answered(stage, &lies, &[], NOBODY).await;
    });
}

#[test]
fn of_endless_answers_no_more_is_taken_than_the_bound() {
    staged("11", async |stage| {
        let one = serde_json::to_string(&json!({ "type": "x", "filling": "x".repeat(1_000) }));
        let one = format!("{},", one.unwrap());
        let lists = [
            (
                "/get_missing_events/",
                Lie::Endless("{\"events\":[", one.clone()),
            ),
            (
                "/state_ids/",
                Lie::Endless("{\"pdu_ids\":[", "\"$some\",".to_owned()),
            ),
            ("/event/", Lie::Endless("{\"pdus\":[", one.clone())),
            ("/event_auth/", Lie::Endless("{\"auth_chain\":[", one)),
        ];
        for (endpoint, lie) in lists {
            stage.liar.lie(endpoint, lie);
        }
        for (event, endpoints) in [(gap(stage).1, 2), (lacking(stage).1, 2)] {
            stage.liar.poured();
            stage.liar.asked();
            stage.send(&[0], &event).await;
            sleep(Duration::from_secs(8)).await;
            let asked = stage.liar.asked().len();
            let poured = stage.liar.poured();
            assert!(asked >= endpoints, "{asked}");
            assert!(poured <= asked * MAX_TAKEN, "{poured} of {asked}");
            assert!(stage.shown_by(&event).await.is_empty());
        }
        stage.liar.repent();
        stage.agree().await;
    });
}

#[test]
fn a_liar_is_no_way_into_a_room() {
    for version in ["10", "12"] {
        staged(version, async |stage| {
            let path = "leave";
            stage.in_room(2, Method::POST, path, json!({})).await;
            stage.world.rooms.lock()[0]
                .unsteady
                .insert(stage.user(2).to_owned());
            let event = stage
                .liar
                .aside(&stage.room, stage.liar.message(&stage.room, "x"));
            let event: Value = serde_json::from_slice(event.json()).unwrap();
            let template = json!({ "room_version": version, "event": {
                "type": "m.room.member", "room_id": stage.room, "sender": stage.user(2),
                "state_key": stage.user(2), "content": { "membership": "join" },
                "prev_events": event["prev_events"], "auth_events": event["auth_events"],
                "depth": 7, "origin_server_ts": 1 } });
            let lies = [
                ("/make_join/", Lie::Text("{".to_owned())),
                ("/make_join/", Lie::Halt),
                (
                    "/make_join/",
                    Lie::Json(200, json!({ "room_version": "999", "event": {} })),
                ),
                ("/make_join/", Lie::Json(200, template)),
                (
                    "/send_join/",
                    Lie::Json(200, json!({ "state": [], "auth_chain": [] })),
                ),
                (
                    "/send_join/",
                    Lie::Json(
                        200,
                        json!({ "state": [event], "auth_chain": [event], "event": event }),
                    ),
                ),
                ("/send_join/", Lie::Halt),
            ];
            for (endpoint, lie) in lies {
                stage.liar.lie(endpoint, lie);
                let room = encode(&stage.room);
                let path =
                    format!("/_matrix/client/v3/join/{room}?via=liar.example&via=s0.example");
                stage.call(2, Method::POST, &path, json!({})).await;
                stage.agree().await;
                stage.in_room(2, Method::POST, "leave", json!({})).await;
            }
            let room = encode(&stage.room);
            let path = format!("/_matrix/client/v3/join/{room}?via=s0.example");
            stage.call(2, Method::POST, &path, json!({})).await;
            stage.agree().await;
        });
    }
}

#[test]
fn history_below_a_gap_is_not_made_up() {
    staged("11", async |stage| {
        let victim = OwnedUserId::try_from(stage.user(1)).unwrap();
        let forged = stage.liar.message(&stage.room, "I am another");
        let forged = stage.liar.forge(&stage.room, forged, &victim);
        let value: Value = serde_json::from_slice(forged.json()).unwrap();
        let lies = [
            Lie::Text("{\"pdus\":7}".to_owned()),
            Lie::Json(500, json!({})),
            Lie::Json(200, json!({ "pdus": [] })),
            Lie::Json(200, json!({ "pdus": vec![value; 300] })),
            Lie::Late(Duration::from_mins(3)),
            Lie::Halt,
            Lie::Endless("{\"pdus\":[", "{},".repeat(100)),
        ];
        let mut events = Vec::new();
        for lie in lies {
            let hidden = stage
                .liar
                .aside(&stage.room, stage.liar.message(&stage.room, "hidden"));
            stage.liar.withhold(hidden.event_id(), &[]);
            let event = stage.liar.message(&stage.room, "after").after(&[&hidden]);
            let event = stage.liar.aside(&stage.room, event);
            stage.send(&[0], &event).await;
            stage.until(0, event.event_id().as_str()).await;
            events.push(event);
            stage.liar.lie("/backfill/", lie);
            let history = verdict::history(&stage.world, &stage.actors[0], &stage.room).await;
            let said = stage.world.rooms.lock()[0].said.clone();
            for (_, said) in said {
                assert!(history.contains(&said), "{history:?}");
            }
            assert!(!history.contains(forged.event_id().as_str()));
            stage.liar.repent();
        }
        stage.agree().await;
        for event in &events {
            assert_eq!(stage.shown_by(event).await, [0, 1, 2]);
        }
    });
}
