//! /messages, /context, /event, /members, relations: what readers see, and what they do not.

use std::collections::BTreeSet;

use homeserver_tests::{Client, Server, encode};
use serde_json::{Value, json};

fn in_room(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", encode(room))
}

fn ids(events: &Value) -> Vec<String> {
    let events = events.as_array().unwrap().iter();
    events
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect()
}

async fn page(client: &Client, room: &str, query: &str) -> Value {
    client
        .get(&in_room(room, &format!("messages?{query}")))
        .await
        .ok()
}

/// All pages from a token on.
async fn pages(client: &Client, room: &str, direction: &str, from: &str) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), from.to_owned());
    loop {
        let query = format!("dir={direction}&limit=7&from={}", encode(&from));
        let page = page(client, room, &query).await;
        found.extend(ids(&page["chunk"]));
        match page["end"].as_str() {
            Some(end) => end.clone_into(&mut from),
            None => return found,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeline_and_paging_back_give_every_event_once() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let room = alice.create_room(json!({})).await;
    let mut sent = Vec::new();
    for number in 0..40 {
        sent.push(alice.say(&room, &format!("{number}")).await);
    }
    for limit in [1, 3, 10, 39] {
        let filter = json!({ "room": { "timeline": { "limit": limit } } }).to_string();
        let synced = alice
            .sync(&format!("timeout=0&filter={}", encode(&filter)))
            .await;
        let timeline = &synced["rooms"]["join"][&room]["timeline"];
        let mut all = ids(&timeline["events"]);
        assert_eq!(all.len(), limit);
        all.reverse();
        all.extend(pages(&alice, &room, "b", timeline["prev_batch"].as_str().unwrap()).await);
        let unique: BTreeSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len(), "an event came twice");
        let messages: Vec<_> = all
            .into_iter()
            .rev()
            .filter(|id| sent.contains(id))
            .collect();
        assert_eq!(messages, sent);
    }
    let forward = pages(&alice, &room, "f", "").await;
    assert!(forward.ends_with(&sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_directions_are_checked() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let room = alice.create_room(json!({})).await;
    let nonsense = alice
        .get(&in_room(&room, "messages?dir=b&from=nonsense"))
        .await;
    nonsense.expect_error(400, "M_INVALID_PARAM");
    let sideways = alice.get(&in_room(&room, "messages?dir=sideways")).await;
    assert_eq!(sideways.status, 400);
    let stranger = server.client().register("stranger").await;
    let refused = stranger.get(&in_room(&room, "messages?dir=b")).await;
    refused.expect_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_surroundings_of_an_event() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let room = alice.create_room(json!({})).await;
    let mut sent = Vec::new();
    for number in 0..20 {
        sent.push(alice.say(&room, &format!("{number}")).await);
    }
    let path = in_room(&room, &format!("context/{}?limit=6", encode(&sent[10])));
    let context = alice.get(&path).await.ok();
    assert_eq!(context["event"]["event_id"], json!(sent[10]));
    let before: Vec<_> = ids(&context["events_before"]).into_iter().rev().collect();
    assert_eq!(before, sent[7..10]);
    assert_eq!(ids(&context["events_after"]), sent[11..14]);
    assert!(
        context["state"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["type"] == "m.room.create")
    );
    let older = pages(&alice, &room, "b", context["start"].as_str().unwrap()).await;
    assert_eq!(older[0], sent[6]);
    let newer = pages(&alice, &room, "f", context["end"].as_str().unwrap()).await;
    assert_eq!(newer[0], sent[14]);
    let missing = alice.get(&in_room(&room, "context/$nothing")).await;
    missing.expect_error(404, "M_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_visibility_decides_what_a_later_joiner_sees() {
    let server = Server::start().await;
    let nobody = server.client();
    let [alice, bob] = [nobody.register("alice").await, nobody.register("bob").await];
    for (visibility, sees_before_invite, sees_before_join) in [
        ("world_readable", true, true),
        ("shared", true, true),
        ("invited", false, true),
        ("joined", false, false),
    ] {
        let content = json!({ "history_visibility": visibility });
        let state = json!([{ "type": "m.room.history_visibility", "content": content }]);
        let room = alice.create_room(json!({ "initial_state": state })).await;
        let before_invite = alice.say(&room, "before the invite").await;
        alice
            .post(&in_room(&room, "invite"), json!({ "user_id": bob.user }))
            .await
            .ok();
        let before_join = alice.say(&room, "before the join").await;
        bob.join(&room).await;
        let after_join = alice.say(&room, "after the join").await;
        let seen = pages(&bob, &room, "f", "").await;
        for (event, expected) in [
            (&before_invite, sees_before_invite),
            (&before_join, sees_before_join),
            (&after_join, true),
        ] {
            assert_eq!(seen.contains(event), expected, "{visibility}: {seen:?}");
            let answer = bob
                .get(&in_room(&room, &format!("event/{}", encode(event))))
                .await;
            assert_eq!(
                answer.status == 200,
                expected,
                "{visibility}: {}",
                answer.body
            );
            if !expected {
                answer.expect_error(404, "M_NOT_FOUND");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_read_through_its_own_room_only() {
    let server = Server::start().await;
    let nobody = server.client();
    let [alice, bob] = [nobody.register("alice").await, nobody.register("bob").await];
    let secret = alice.create_room(json!({})).await;
    let event = alice.say(&secret, "secret").await;
    let own = bob.create_room(json!({})).await;
    for path in ["event", "context"] {
        let answer = bob
            .get(&in_room(&own, &format!("{path}/{}", encode(&event))))
            .await;
        answer.expect_error(404, "M_NOT_FOUND");
    }
    let path = format!(
        "/_matrix/client/v1/rooms/{}/relations/{}",
        encode(&own),
        encode(&event)
    );
    bob.get(&path).await.expect_error(404, "M_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_now_and_then() {
    let server = Server::start().await;
    let nobody = server.client();
    let [alice, bob] = [nobody.register("alice").await, nobody.register("bob").await];
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let before = alice.sync("timeout=0").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    bob.join(&room).await;
    let count = |answer: Value| answer["chunk"].as_array().unwrap().len();
    assert_eq!(count(alice.get(&in_room(&room, "members")).await.ok()), 2);
    let then = in_room(&room, &format!("members?at={}", encode(&before)));
    assert_eq!(count(alice.get(&then).await.ok()), 1);
    bob.post(&in_room(&room, "leave"), json!({})).await.ok();
    assert_eq!(
        count(
            alice
                .get(&in_room(&room, "members?membership=leave"))
                .await
                .ok()
        ),
        1
    );
    assert_eq!(
        count(
            alice
                .get(&in_room(&room, "members?not_membership=leave"))
                .await
                .ok()
        ),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn relations_are_listed() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let room = alice.create_room(json!({})).await;
    let target = alice.say(&room, "target").await;
    let mut reactions = Vec::new();
    for key in ["1", "2", "3"] {
        let relates = json!({ "rel_type": "m.annotation", "event_id": target, "key": key });
        let sent = alice
            .send_event(&room, "m.reaction", json!({ "m.relates_to": relates }))
            .await;
        reactions.push(sent.text("event_id"));
    }
    let base = format!(
        "/_matrix/client/v1/rooms/{}/relations/{}",
        encode(&room),
        encode(&target)
    );
    let all = alice.get(&format!("{base}?dir=f")).await.ok();
    assert_eq!(ids(&all["chunk"]), reactions);
    let first = alice
        .get(&format!("{base}/m.annotation?limit=2"))
        .await
        .ok();
    assert_eq!(
        ids(&first["chunk"]),
        [reactions[2].clone(), reactions[1].clone()]
    );
    let next = first["next_batch"].as_str().unwrap();
    let path = format!(
        "{base}/m.annotation/m.reaction?limit=2&from={}",
        encode(next)
    );
    assert_eq!(
        ids(&alice.get(&path).await.ok()["chunk"]),
        [reactions[0].clone()]
    );
    let none = alice.get(&format!("{base}/m.thread")).await.ok();
    assert_eq!(none["chunk"], json!([]));
}
