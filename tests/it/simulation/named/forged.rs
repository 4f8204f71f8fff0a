//! Signatures and hashes that do not hold, twins, and what is too large.

use super::*;
use crate::simulation::liar::{Lie, altered};
use homeserver::events::SigningKey;
use ruma::OwnedUserId;

#[test]
fn signatures_that_do_not_hold_prove_nothing() {
    staged("11", async |stage| {
        let event = stage
            .liar
            .aside(&stage.room, stage.liar.message(&stage.room, "mine"));
        let json: Value = serde_json::from_slice(event.json()).unwrap();
        let own = &json["signatures"]["liar.example"]["ed25519:a"];
        let wrong = [
            json!({}),
            json!({ "liar.example": {} }),
            json!({ "liar.example": { "ed25519:a": "AAAA" } }),
            json!({ "liar.example": { "ed25519:other": own } }),
            json!({ "s1.example": { "ed25519:a": own } }),
            json!({ "LIAR.example": { "ed25519:a": own } }),
        ];
        for signatures in wrong {
            let text = altered(&event, &[("signatures", signatures)]);
            for server in stage.names() {
                stage.liar.send_text(&server, text.clone()).await;
            }
        }
        stage.agree().await;
        assert!(stage.shown_by(&event).await.is_empty());
        // They displaced nothing.
        stage.send(&[0, 1, 2], &event).await;
        stage.until_all(event.event_id().as_str()).await;
    });
}

#[test]
fn nobody_speaks_in_the_name_of_a_user_elsewhere() {
    for version in ["10", "12"] {
        staged(version, async |stage| {
            let victim = OwnedUserId::try_from(stage.user(1)).unwrap();
            let mut new = stage.liar.message(&stage.room, "I am another");
            *new.auth.last_mut().unwrap() = stage
                .liar
                .knows(&stage.room, |known| {
                    known.at_join("m.room.member", stage.user(1))
                })
                .unwrap();
            let forged = stage.liar.forge(&stage.room, new.clone(), &victim);
            let leave = json!({ "membership": "leave" });
            let left = new.state("m.room.member", stage.user(1), leave);
            let left = stage.liar.forge(&stage.room, left, &victim);
            for event in [&forged, &left] {
                stage.liar.keep(&stage.room, event);
                for server in stage.names() {
                    stage.liar.send(&server, &[event]).await;
                }
            }
            // One that is signed follows them.
            let after = stage
                .liar
                .message(&stage.room, "after")
                .after(&[&forged, &left]);
            let after = stage.liar.aside(&stage.room, after);
            for server in stage.names() {
                stage.liar.send(&server, &[&after]).await;
            }
            stage.agree().await;
            assert!(stage.shown_by(&forged).await.is_empty());
            assert!(stage.shown_by(&left).await.is_empty());
            for number in 0..3 {
                let member = stage.state(number, "m.room.member", stage.user(1)).await;
                assert_eq!(member["membership"], "join");
            }
        });
    }
}

#[test]
fn an_event_with_a_wrong_hash_is_what_a_redaction_leaves_of_it() {
    for version in ["10", "12"] {
        staged(version, async |stage| {
            let event = stage
                .liar
                .seal(&stage.room, stage.liar.message(&stage.room, "mine"));
            let id = event.event_id().as_str();
            stage.liar.withhold(event.event_id(), &[]);
            let other = json!({ "msgtype": "m.text", "body": "other" });
            let text = altered(&event, &[("content", other)]);
            for server in stage.names() {
                let answer = stage.liar.send_text(&server, text.clone()).await;
                assert_eq!(answer.unwrap().1["pdus"][id], json!({}));
            }
            stage.until_all(id).await;
            stage.agree().await;
            for number in 0..3 {
                let shown = stage.shown(number, id).await.unwrap();
                assert_eq!(shown["content"], json!({}), "{shown}");
            }
        });
    }
}

#[test]
fn a_twin_takes_nothing_of_an_event_that_is_there() {
    staged("11", async |stage| {
        let event = stage
            .liar
            .seal(&stage.room, stage.liar.message(&stage.room, "true"));
        let id = event.event_id().as_str();
        stage.send(&[0, 1, 2], &event).await;
        stage.until_all(id).await;
        let twins: [&[(&str, Value)]; 4] = [
            &[("content", json!({ "body": "false" }))],
            &[(
                "signatures",
                json!({ "liar.example": { "ed25519:a": "AAAA" } }),
            )],
            &[(
                "unsigned",
                json!({ "age": 1, "redacted_because": {}, "prev_content": { "body": "false" } }),
            )],
            &[
                ("content", json!({})),
                ("unsigned", json!({ "m.relations": { "m.replace": {} } })),
            ],
        ];
        for twin in twins {
            for server in stage.names() {
                stage.liar.send_text(&server, altered(&event, twin)).await;
            }
        }
        stage.agree().await;
        for number in 0..3 {
            let shown = stage.shown(number, id).await.unwrap();
            assert_eq!(shown["content"]["body"], "true");
            for lie in ["redacted_because", "prev_content", "m.relations"] {
                assert!(shown["unsigned"].get(lie).is_none(), "{shown}");
            }
        }
    });
}

#[test]
fn an_event_that_is_too_large_costs_only_itself() {
    staged("11", async |stage| {
        let good = stage
            .liar
            .seal(&stage.room, stage.liar.message(&stage.room, "good"));
        let large = altered(
            &good,
            &[("unsigned", json!({ "much": "x".repeat(65_536) }))],
        );
        let long = altered(&good, &[("type", json!("x".repeat(256)))]);
        let depth = altered(&good, &[("depth", json!(1_u64 << 53))]);
        let texts = [
            large,
            long,
            "7".to_owned(),
            "{}".to_owned(),
            good.json_str().to_owned(),
        ];
        for server in stage.names() {
            stage.liar.transact(&server, "large", &texts, &[]).await;
            // No number that signed JSON may hold: the request itself is not to be read as signed.
            stage.liar.send_text(&server, depth.clone()).await;
        }
        stage.until_all(good.event_id().as_str()).await;
        stage.agree().await;
    });
}

#[test]
fn transactions_that_are_too_long_are_refused_whole() {
    staged("11", async |stage| {
        let good = stage
            .liar
            .aside(&stage.room, stage.liar.message(&stage.room, "good"));
        let edu = json!({ "edu_type": "m.test", "content": {} });
        let pdus = vec![good.json_str().to_owned(); 51];
        for server in stage.names() {
            let many = stage.liar.transact(&server, "pdus", &pdus, &[]).await;
            assert_eq!(many.unwrap().0, 400);
            let many = stage
                .liar
                .transact(&server, "edus", &[], &vec![edu.clone(); 101])
                .await;
            assert_eq!(many.unwrap().0, 400);
        }
        stage.agree().await;
        assert!(stage.shown_by(&good).await.is_empty());
    });
}

#[test]
fn nothing_is_taken_for_rooms_that_the_server_is_not_in() {
    staged("11", async |stage| {
        let body = json!({ "preset": "private_chat", "room_version": "11" });
        let path = "/_matrix/client/v3/createRoom";
        let made = stage.call(0, Method::POST, path, body).await;
        let private = made["room_id"].as_str().unwrap().to_owned();
        let state = format!("/_matrix/client/v3/rooms/{}/state", encode(&private));
        let before = stage.call(0, Method::GET, &state, Value::Null).await;
        let event = stage
            .liar
            .aside(&stage.room, stage.liar.message(&stage.room, "let me in"));
        let join = json!({ "membership": "join" });
        for room in [private.as_str(), "!nowhere:liar.example"] {
            for content in [json!({ "body": "x" }), join.clone()] {
                let mut fields = vec![("room_id", json!(room)), ("content", content)];
                if fields[1].1 == join {
                    fields.push(("type", json!("m.room.member")));
                    fields.push(("state_key", json!(stage.liar.user)));
                }
                let text = altered(&event, &fields);
                stage.liar.send_text(&stage.name(0), text).await;
            }
        }
        let room = &private;
        let user = &stage.liar.user;
        let target = format!("/_matrix/federation/v1/make_join/{room}/{user}?ver=11");
        let refused = stage
            .liar
            .ask(&stage.name(0), Method::GET, &target, "")
            .await;
        assert_eq!(refused.unwrap().0, 403);
        for what in ["state", "state_ids", "backfill", "event_auth"] {
            let id = before[0]["event_id"].as_str().unwrap();
            let target = match what {
                "backfill" => format!("/_matrix/federation/v1/backfill/{room}?v={id}&limit=9"),
                "event_auth" => format!("/_matrix/federation/v1/event_auth/{room}/{id}"),
                _ => format!("/_matrix/federation/v1/{what}/{room}?event_id={id}"),
            };
            let refused = stage
                .liar
                .ask(&stage.name(0), Method::GET, &target, "")
                .await;
            assert!(refused.unwrap().0 >= 400, "{what}");
        }
        let after = stage.call(0, Method::GET, &state, Value::Null).await;
        let ids = |state: &Value| -> Vec<Value> {
            let events = state.as_array().unwrap().iter();
            events.map(|event| event["event_id"].clone()).collect()
        };
        assert_eq!(ids(&after), ids(&before));
        stage.agree().await;
    });
}

#[test]
fn nobody_vouches_for_keys_of_others() {
    staged("11", async |stage| {
        let ghost = OwnedUserId::try_from("@admin:ghost.example").unwrap();
        let key = Arc::new(SigningKey::from_seed("g", &[7; 32]).unwrap());
        let keys = stage.liar.vouch(ghost.server_name(), &key);
        let keys = json!({ "server_keys": [keys] });
        stage
            .liar
            .lie("/_matrix/key/v2/query", Lie::Json(200, keys));
        let join = stage.liar.profile(&stage.room, "");
        let mut join = join.state(
            "m.room.member",
            ghost.as_str(),
            json!({ "membership": "join" }),
        );
        // By the rules alone, not by a membership.
        join.auth.remove(2);
        let join = stage.liar.invent(&stage.room, join, (&ghost, &key));
        let after = stage.liar.message(&stage.room, "after").after(&[&join]);
        let after = stage.liar.aside(&stage.room, after);
        for event in [&join, &after] {
            for server in stage.names() {
                stage.liar.send(&server, &[event]).await;
            }
        }
        sleep(Duration::from_mins(1)).await;
        stage.agree().await;
        assert!(stage.shown_by(&join).await.is_empty());
        for number in 0..3 {
            assert_eq!(
                stage.state(number, "m.room.member", ghost.as_str()).await,
                Value::Null
            );
        }
    });
}
