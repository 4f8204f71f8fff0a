//! What the liar's user may not do, and what is said of users of others.

use super::*;
use ruma::OwnedEventId;

#[test]
fn nobody_rules_without_power() {
    for version in ["10", "11", "12"] {
        staged(version, async |stage| {
            let (liar, room) = (&stage.liar, &stage.room);
            let new = || liar.message(room, "");
            let victim = stage.user(1);
            let levels = json!({ "users": { liar.user.as_str(): 100 } });
            let member = |membership: &str| json!({ "membership": membership });
            let acts = [
                new().state("m.room.member", victim, member("ban")),
                new().state("m.room.member", victim, member("leave")),
                new().state("m.room.member", victim, member("join")),
                new().state("m.room.topic", "", json!({ "topic": "mine" })),
                new().state("m.room.power_levels", "", levels),
                new().state("m.room.join_rules", "", json!({ "join_rule": "invite" })),
                new().state("m.room.server_acl", "", json!({ "allow": [] })),
                new().state(
                    "m.room.tombstone",
                    "",
                    json!({ "replacement_room": "!x:liar.example" }),
                ),
                new().state("x", stage.user(1), json!({})),
            ];
            let mut sealed = Vec::new();
            for new in acts {
                let act = liar.aside(room, new);
                for server in stage.names() {
                    liar.send(&server, &[&act]).await;
                }
                sealed.push(act);
            }
            // Nor by an event that nobody knew of, with itself as its reason.
            let own = liar.message(room, "by my own power");
            let place = usize::from(version != "12");
            let auth = own.auth.clone();
            let mut by = own.state("m.room.topic", "", json!({ "topic": "mine" }));
            by.auth = auth;
            by.auth[place] = sealed[4].event_id().to_owned();
            let act = liar.aside(room, by);
            for server in stage.names() {
                liar.send(&server, &[&act]).await;
            }
            sealed.push(act);
            stage.agree().await;
            for act in &sealed {
                assert!(stage.shown_by(act).await.is_empty(), "{}", act.json_str());
            }
            for number in 0..3 {
                let levels = stage.state(number, "m.room.power_levels", "").await;
                assert!(levels["users"].get(liar.user.as_str()).is_none());
                assert_eq!(stage.state(number, "m.room.topic", "").await, Value::Null);
                assert_eq!(
                    stage.state(number, "m.room.member", victim).await["membership"],
                    "join"
                );
            }
        });
    }
}

#[test]
fn a_state_that_is_told_gives_no_power() {
    for version in ["11", "12"] {
        staged(version, async |stage| {
            let (liar, room) = (&stage.liar, &stage.room);
            let levels = json!({ "users": { liar.user.as_str(): 100 } });
            let levels = liar
                .message(room, "")
                .state("m.room.power_levels", "", levels);
            let levels = liar.aside(room, levels);
            let hidden = liar.aside(room, liar.message(room, "hidden"));
            liar.withhold(hidden.event_id(), &[]);
            let after = liar.message(room, "after").after(&[&hidden]);
            let ban = json!({ "membership": "ban" });
            let ban = after.clone().state("m.room.member", stage.user(1), ban);
            let (after, ban) = (liar.aside(room, after), liar.aside(room, ban));
            let state = liar.knows(room, |known| {
                let mut state = known.joined_at.clone();
                let pair = ("m.room.power_levels".to_owned(), String::new());
                state.insert(pair, levels.event_id().to_owned());
                state.into_values().collect::<Vec<OwnedEventId>>()
            });
            for event in [&after, &ban] {
                liar.tells(room, event.event_id(), state.clone().unwrap());
                for server in stage.names() {
                    liar.send(&server, &[event]).await;
                }
            }
            sleep(Duration::from_secs(20)).await;
            stage.agree().await;
            assert!(stage.shown_by(&ban).await.is_empty());
            assert!(stage.shown_by(&levels).await.is_empty());
            for number in 0..3 {
                let levels = stage.state(number, "m.room.power_levels", "").await;
                assert!(levels["users"].get(liar.user.as_str()).is_none());
                let member = stage.state(number, "m.room.member", stage.user(1)).await;
                assert_eq!(member["membership"], "join");
            }
        });
    }
}

#[test]
fn nobody_redacts_what_others_said_without_power() {
    for version in ["10", "12"] {
        staged(version, async |stage| {
            let (liar, room) = (&stage.liar, &stage.room);
            let said = stage.say(1, "to stay").await;
            stage.until_all(&said).await;
            let mut new = liar.message(room, "").with(json!({}));
            new.kind = "m.room.redaction".to_owned();
            new.redacts = Some(OwnedEventId::try_from(said.as_str()).unwrap());
            let redaction = liar.seal(room, new);
            stage.send(&[0, 1, 2], &redaction).await;
            stage.agree().await;
            for number in 0..3 {
                let shown = stage.shown(number, &said).await.unwrap();
                assert_eq!(shown["content"]["body"], "to stay");
                assert!(shown["unsigned"].get("redacted_because").is_none());
            }
        });
    }
}

#[test]
fn nothing_is_believed_about_users_of_others() {
    staged("11", async |stage| {
        let sync = "/_matrix/client/v3/sync?timeout=0";
        let first = stage.call(0, Method::GET, sync, Value::Null).await;
        let said = stage.say(1, "to be read").await;
        stage.until_all(&said).await;
        let victim = stage.user(1);
        let read = json!({ stage.room.as_str(): { "m.read": { victim: {
            "event_ids": [said], "data": { "ts": 1 } } } } });
        let edus = [
            (
                "m.typing",
                json!({ "room_id": stage.room, "user_id": victim, "typing": true }),
            ),
            ("m.receipt", read),
            (
                "m.presence",
                json!({ "push": [{ "user_id": victim, "presence": "online",
                "status_msg": "a lie", "last_active_ago": 1 }] }),
            ),
            (
                "m.direct_to_device",
                json!({ "sender": victim, "type": "m.lie", "message_id": "1",
                "messages": { stage.user(0): { "*": { "a": "lie" } } } }),
            ),
            (
                "m.device_list_update",
                json!({ "user_id": victim, "device_id": "LIE",
                "stream_id": 1, "prev_id": [] }),
            ),
            (
                "m.signing_key_update",
                json!({ "user_id": victim, "master_key": { "user_id": victim,
                "usage": ["master"], "keys": { "ed25519:lie": "lie" } } }),
            ),
        ];
        for (kind, content) in edus {
            let edu = json!({ "edu_type": kind, "content": content });
            let id = stage.liar.transaction();
            let answer = stage.liar.transact(&stage.name(0), &id, &[], &[edu]).await;
            assert_eq!(answer.unwrap().0, 200);
        }
        sleep(Duration::from_secs(5)).await;
        let since = first["next_batch"].as_str().unwrap();
        let sync = format!("{sync}&since={}", encode(since));
        let told = stage.call(0, Method::GET, &sync, Value::Null).await;
        let ephemeral = &told["rooms"]["join"][&stage.room]["ephemeral"]["events"];
        let none = |events: &Value| events.as_array().is_none_or(Vec::is_empty);
        assert!(none(ephemeral), "{ephemeral}");
        assert!(none(&told["to_device"]["events"]), "{told}");
        assert!(!told["presence"].to_string().contains("a lie"), "{told}");
        assert!(none(&told["device_lists"]["changed"]), "{told}");
    });
}
