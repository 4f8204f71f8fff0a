//! Timelines, state beside them, `unsigned`, long polling.

use std::collections::HashMap;

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

#[tokio::test]
async fn a_first_sync_shows_the_room_and_later_ones_what_is_new() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({ "name": "Home" })).await;
    alice.say(&room, "one").await;
    let first = alice.sync("").await;
    let shown = joined(&first, &room);
    assert_eq!(bodies(&timeline(shown)), ["one"]);
    // What is in the timeline is not in the state, and together they are the whole state.
    let mut keys: Vec<_> = events(&shown["state"])
        .into_iter()
        .chain(timeline(shown))
        .filter(|event| event.get("state_key").is_some())
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    keys.sort();
    let expected = [
        "m.room.create",
        "m.room.guest_access",
        "m.room.history_visibility",
        "m.room.join_rules",
        "m.room.member",
        "m.room.name",
        "m.room.power_levels",
    ];
    assert_eq!(keys, expected);
    assert!(
        timeline(shown)
            .iter()
            .all(|event| event.get("room_id").is_none())
    );
    for hidden in [
        "auth_events",
        "prev_events",
        "hashes",
        "signatures",
        "depth",
    ] {
        assert!(timeline(shown)[0].get(hidden).is_none(), "{hidden}");
    }

    let second = alice.since(&next(&first), "").await;
    assert!(second.get("rooms").is_none(), "{second}");
    alice.say(&room, "two").await;
    let third = alice.since(&next(&second), "").await;
    assert_eq!(bodies(&timeline(joined(&third, &room))), ["two"]);
    assert_eq!(joined(&third, &room)["timeline"]["limited"], false);
    assert!(events(&joined(&third, &room)["state"]).is_empty());
    // An old token gives it again.
    let again = alice.since(&next(&first), "").await;
    assert_eq!(bodies(&timeline(joined(&again, &room))), ["two"]);
}

#[tokio::test]
async fn a_limited_timeline_comes_with_the_state_of_the_gap_and_a_way_back() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({})).await;
    let first = alice.sync("").await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "new" }))
        .await;
    for number in 0..5 {
        alice.say(&room, &number.to_string()).await;
    }
    let limit = filter(&json!({ "room": { "timeline": { "limit": 3 } } }));
    let second = alice.since(&next(&first), &limit).await;
    let shown = joined(&second, &room);
    assert_eq!(shown["timeline"]["limited"], true);
    assert_eq!(bodies(&timeline(shown)), ["2", "3", "4"]);
    let state = events(&shown["state"]);
    assert_eq!(of_type(&state, "m.room.topic").len(), 1);

    let from = shown["timeline"]["prev_batch"].as_str().unwrap();
    let path = format!(
        "rooms/{}/messages?dir=b&from={from}&to={}&limit=50",
        encoded(&room),
        next(&first)
    );
    let page = alice.get(&path).await.ok();
    let page = page["chunk"].as_array().unwrap().clone();
    assert_eq!(bodies(&page), ["1", "0"]);
    assert_eq!(of_type(&page, "m.room.topic").len(), 1);
}

#[tokio::test]
async fn state_after_is_the_state_at_the_end_under_either_name() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({})).await;
    let first = alice.sync("").await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "new" }))
        .await;
    for (parameter, name) in [
        ("use_state_after=true", "state_after"),
        (
            "org.matrix.msc4222.use_state_after=true",
            "org.matrix.msc4222.state_after",
        ),
    ] {
        let second = alice.since(&next(&first), parameter).await;
        let shown = joined(&second, &room);
        assert!(shown.get("state").is_none(), "{shown}");
        assert_eq!(of_type(&events(&shown[name]), "m.room.topic").len(), 1);
        assert_eq!(of_type(&timeline(shown), "m.room.topic").len(), 1);
        alice.say(&room, "no state").await;
        let third = alice.since(&next(&second), parameter).await;
        assert_eq!(joined(&third, &room)[name], json!({ "events": [] }));
    }
}

#[tokio::test]
async fn full_state_tells_the_state_again() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({ "name": "Home" })).await;
    let first = alice.sync("").await;
    let again = alice
        .since(&next(&first), "full_state=true&timeout=60000")
        .await;
    let state = events(&joined(&again, &room)["state"]);
    assert_eq!(of_type(&state, "m.room.name").len(), 1);
    assert_eq!(of_type(&state, "m.room.create").len(), 1);
    assert!(timeline(joined(&again, &room)).is_empty());
}

#[tokio::test]
async fn each_reader_gets_its_own_unsigned() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let phone = world.device("alice").await;
    let bob = world.user("bob").await;
    let carol = world.user("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let first = bob.say(&room, "hello?").await;
    let relation = json!({ "rel_type": "m.reference", "event_id": first });
    let content = json!({ "msgtype": "m.text", "body": "hello", "m.relates_to": relation });
    let message = alice.send(&room, "m.room.message", content).await;
    carol.join(&room).await;
    let room_id = room.clone();
    let ignored = json!({ "ignored_users": { alice.id(): {} } });
    let path = format!(
        "user/{}/account_data/m.ignored_user_list",
        encoded(bob.id())
    );
    bob.put(&path, ignored).await.ok();

    // What a user is shown of the message, on every way of reading.
    let seen = async |user: &User| {
        let (room, event) = (encoded(&room), encoded(&message));
        let sync = timeline(joined(&user.sync("").await, &room_id));
        let page = user
            .get(&format!("rooms/{room}/messages?dir=b&limit=50"))
            .await
            .ok();
        let context = user
            .get(&format!("rooms/{room}/context/{event}?limit=0"))
            .await
            .ok();
        let around = format!("rooms/{room}/context/{}?limit=50", encoded(&first));
        let around = user.get(&around).await.ok();
        let direct = user.get(&format!("rooms/{room}/event/{event}")).await.ok();
        let fresh = &user.world.fresh;
        let relations = format!(
            "/_matrix/client/v1/rooms/{room}/relations/{}",
            encoded(&first)
        );
        let relations = fresh.get(&relations, Some(&user.session.token)).await.ok();
        let lists = [
            sync,
            page["chunk"].as_array().unwrap().clone(),
            around["events_after"].as_array().unwrap().clone(),
            relations["chunk"].as_array().unwrap().clone(),
        ];
        let find = |list: Vec<Value>| list.into_iter().find(|event| event["event_id"] == *message);
        let listed: Vec<_> = lists.into_iter().map(find).collect();
        (listed, [direct, context["event"].clone()])
    };
    // (reader, its membership at the event, whether it is its device that sent it)
    let readers = [
        (&alice, "join", true),
        (&phone, "join", false),
        (&carol, "leave", false),
    ];
    for (reader, membership, is_origin) in readers {
        let (listed, asked) = seen(reader).await;
        let listed = listed.into_iter().map(Option::unwrap);
        for (way, event) in listed.chain(asked).enumerate() {
            let unsigned = &event["unsigned"];
            assert_eq!(unsigned["membership"], membership, "{way} {event}");
            assert_eq!(unsigned["age"], 0, "{way} {event}");
            assert_eq!(
                unsigned["transaction_id"].is_string(),
                is_origin,
                "{way} {event}"
            );
        }
    }
    let (listed, asked) = seen(&bob).await;
    assert_eq!(listed, [None, None, None, None]);
    // Who asks for the very event gets it, as anybody else would.
    for event in asked {
        assert_eq!(event["unsigned"]["membership"], "join");
        assert!(event["unsigned"].get("transaction_id").is_none());
    }
    // What is ignored is messages, never state.
    let shown = timeline(joined(&bob.sync("").await, &room));
    assert_eq!(of_type(&shown, "m.room.create").len(), 1);
}

#[tokio::test]
async fn replaced_state_and_redactions_are_in_unsigned() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({})).await;
    let old = alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "old" }))
        .await;
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "new" }))
        .await;
    let message = alice.say(&room, "secret").await;
    let path = format!("rooms/{}/redact/{}/r1", encoded(&room), encoded(&message));
    let redaction = alice.put(&path, json!({ "reason": "oops" })).await.ok();
    let sync = alice.sync("").await;
    let events = timeline(joined(&sync, &room));
    let topic = of_type(&events, "m.room.topic").pop().unwrap();
    assert_eq!(topic["unsigned"]["prev_content"], json!({ "topic": "old" }));
    assert_eq!(topic["unsigned"]["replaces_state"], *old);
    assert_eq!(topic["unsigned"]["prev_sender"], *alice.id());
    let redacted = events
        .iter()
        .find(|event| event["event_id"] == *message)
        .unwrap();
    assert_eq!(redacted["content"], json!({}));
    let because = &redacted["unsigned"]["redacted_because"];
    assert_eq!(because["event_id"], redaction["event_id"]);
    assert_eq!(because["redacts"], *message);
    assert_eq!(because["content"]["reason"], "oops");
}

#[tokio::test]
async fn a_waiting_sync_is_woken_by_what_concerns_it() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let token = next(&bob.sync("").await);
    let waiting = bob.since(&token, "timeout=60000&set_presence=offline");
    let saying = async {
        tokio::task::yield_now().await;
        alice.say(&room, "wake up").await
    };
    let (sync, _) = tokio::join!(waiting, saying);
    assert_eq!(bodies(&timeline(joined(&sync, &room))), ["wake up"]);

    let token = next(&sync);
    let waiting = bob.since(&token, "timeout=60000&set_presence=offline");
    let typing = async {
        let path = format!("rooms/{}/typing/{}", encoded(&room), encoded(alice.id()));
        alice
            .put(&path, json!({ "typing": true, "timeout": 20_000 }))
            .await
            .ok();
    };
    let (sync, ()) = tokio::join!(waiting, typing);
    let ephemeral = events(&joined(&sync, &room)["ephemeral"]);
    assert_eq!(ephemeral[0]["content"]["user_ids"], json!([alice.id()]));

    let other = alice.create_room(json!({})).await;
    let token = next(&sync);
    let waiting = bob.since(&token, "timeout=60000&set_presence=offline");
    let (sync, ()) = tokio::join!(waiting, alice.invite(&other, &bob));
    assert!(sync["rooms"]["invite"][&other].is_object(), "{sync}");
}

#[tokio::test]
async fn without_news_a_sync_waits_as_long_as_asked() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let token = next(&alice.sync("set_presence=offline").await);
    let before = tokio::time::Instant::now();
    let sync = alice
        .since(&token, "timeout=200&set_presence=offline")
        .await;
    assert!(before.elapsed() >= std::time::Duration::from_millis(200));
    assert!(sync.get("rooms").is_none());
}

#[tokio::test]
async fn broken_tokens_are_refused_and_foreign_ones_start_anew() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({})).await;
    alice
        .get("sync?since=rubbish")
        .await
        .refused(400, "M_INVALID_PARAM");
    alice
        .get("sync?filter=%7Brubbish")
        .await
        .refused(400, "M_BAD_JSON");
    alice
        .get("sync?filter=nosuchfilter")
        .await
        .refused(400, "M_INVALID_PARAM");
    let foreign = alice.sync("since=s1_1_1_1_1_1_1_1").await;
    assert!(
        !events(&joined(&foreign, &room)["state"]).is_empty()
            || !timeline(joined(&foreign, &room)).is_empty()
    );
    world
        .fresh
        .get("/_matrix/client/v3/sync", None)
        .await
        .refused(401, "M_MISSING_TOKEN");
}

/// One step of a conversation.
#[derive(Clone, Debug)]
enum Step {
    Say,
    Topic,
    Sync(usize),
}

/// Timeline ∪ paging back from every `prev_batch` = every visible event, once.
#[test]
fn no_event_is_lost_or_told_twice() {
    let step = prop_oneof![
        6 => Just(Step::Say),
        1 => Just(Step::Topic),
        2 => (1..4_usize).prop_map(Step::Sync),
    ];
    let mut runner = TestRunner::new(ProptestConfig::with_cases(12));
    let steps = prop::collection::vec(step, 1..30);
    let result = runner.run(&steps, |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(told_once(&steps));
        Ok(())
    });
    result.unwrap();
}

async fn told_once(steps: &[Step]) {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let mut sent = Vec::new();
    let mut told: HashMap<String, usize> = HashMap::new();
    let mut token = String::new();
    let all = steps.iter().chain([&Step::Sync(2)]);
    for (number, step) in all.enumerate() {
        match step {
            Step::Say => sent.push(alice.say(&room, "x").await),
            Step::Topic => {
                let content = json!({ "topic": number });
                sent.push(alice.set_state(&room, "m.room.topic", "", content).await);
            }
            Step::Sync(limit) => {
                let limit = filter(&json!({ "room": { "timeline": { "limit": limit } } }));
                let query = format!("{limit}&since={token}");
                let sync = bob.sync(&query).await;
                let shown = joined(&sync, &room).clone();
                let mut found = timeline(&shown);
                if shown["timeline"]["limited"] == true {
                    found.extend(page_back(&bob, &room, &shown, &token).await);
                }
                for event in found {
                    *told
                        .entry(event["event_id"].as_str().unwrap().to_owned())
                        .or_default() += 1;
                }
                token = next(&sync);
            }
        }
    }
    for event in &sent {
        assert_eq!(told.get(event), Some(&1), "{steps:?}");
    }
    assert!(told.values().all(|times| *times == 1), "{steps:?}");
}

/// Pages from the start of a timeline back to the last sync.
async fn page_back(user: &User, room: &str, shown: &Value, to: &str) -> Vec<Value> {
    let mut from = shown["timeline"]["prev_batch"].as_str().unwrap().to_owned();
    let mut found = Vec::new();
    loop {
        let to = if to.is_empty() {
            String::new()
        } else {
            format!("&to={to}")
        };
        let path = format!(
            "rooms/{}/messages?dir=b&from={from}&limit=3{to}",
            encoded(room)
        );
        let page = user.get(&path).await.ok();
        found.extend(page["chunk"].as_array().unwrap().clone());
        match page.get("end").and_then(Value::as_str) {
            Some(end) => from = end.to_owned(),
            None => return found,
        }
    }
}
