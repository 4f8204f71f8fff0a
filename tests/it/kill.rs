//! A server that is killed in the middle of its work: what was acknowledged is there, once.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_tests::{Client, Server, ServerOptions, encode};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;

const SENDERS: usize = 8;
/// The kill comes when this many events were acknowledged.
const ACKNOWLEDGED_BEFORE_THE_KILL: usize = 60;

/// Sends under one transaction id after the other until the server is gone; notes what it
/// acknowledged. Gives the transaction that got no answer.
async fn send_until_gone(
    client: Client,
    room: String,
    sender: usize,
    acknowledged: Arc<Mutex<BTreeMap<String, String>>>,
) -> String {
    for number in 0.. {
        let transaction = format!("s{sender}n{number}");
        match send(&client, &room, &transaction).await {
            Some(event) => acknowledged.lock().await.insert(transaction, event),
            None => return transaction,
        };
    }
    unreachable!("the loop has no end of its own")
}

async fn send(client: &Client, room: &str, transaction: &str) -> Option<String> {
    let room = encode(room);
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{transaction}");
    let body = json!({ "msgtype": "m.text", "body": transaction })
        .to_string()
        .into_bytes();
    let answer = client
        .send(Method::PUT, &path, Some("application/json"), body)
        .await
        .ok()?;
    (answer.status == 200).then(|| answer.text("event_id"))
}

/// Every message of the room, by body, oldest first.
async fn messages(client: &Client, room: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut from = String::new();
    loop {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/messages?dir=f&limit=100&from={from}",
            encode(room)
        );
        let page = client.get(path.trim_end_matches("&from=")).await.ok();
        for event in page["chunk"].as_array().unwrap() {
            if event["type"] == "m.room.message" {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                found.push((text(&event["content"]["body"]), text(&event["event_id"])));
            }
        }
        match page["end"].as_str() {
            Some(end) => from = encode(end),
            None => return found,
        }
    }
}

async fn acknowledged_events_survive(engine: &'static str) {
    let mut server = Server::start_with(ServerOptions {
        engine,
        ..Default::default()
    })
    .await;
    let alice = server.client().register("alice").await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let before = alice.sync("timeout=0").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();

    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let work = send_until_gone(
                alice.clone(),
                room.clone(),
                sender,
                Arc::clone(&acknowledged),
            );
            tokio::task::JoinSet::from_iter([work])
        })
        .collect();
    while acknowledged.lock().await.len() < ACKNOWLEDGED_BEFORE_THE_KILL {
        tokio::task::yield_now().await;
    }
    server.kill().await;
    let mut unanswered = Vec::new();
    for mut sender in senders {
        unanswered.push(sender.join_next().await.unwrap().unwrap());
    }
    server.restart().await;

    // The unanswered ones may or may not be there; under the same transaction they are there once.
    let mut expected = acknowledged.lock().await.clone();
    for transaction in unanswered {
        let event = send(&alice, &room, &transaction)
            .await
            .expect("the server is back");
        expected.insert(transaction, event);
    }
    for (transaction, event) in &expected {
        assert_eq!(send(&alice, &room, transaction).await.as_ref(), Some(event));
    }
    let mut there = messages(&alice, &room).await;
    there.sort();
    assert_eq!(there, expected.into_iter().collect::<Vec<_>>());

    let after = alice
        .sync(&format!("timeout=0&since={}", encode(&before)))
        .await;
    let timeline = &after["rooms"]["join"][&room]["timeline"]["events"];
    assert!(
        !timeline.as_array().unwrap().is_empty(),
        "sync goes on from the old token: {after}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fjall_keeps_what_was_acknowledged() {
    acknowledged_events_survive("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_keeps_what_was_acknowledged() {
    acknowledged_events_survive("sled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_ends_well_and_starts_again() {
    let mut server = Server::start().await;
    let alice = server.client().register("alice").await;
    let room = alice.create_room(json!({})).await;
    let event = alice.say(&room, "before the stop").await;
    assert!(server.stop().await, "{}", server.log());
    server.restart().await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/event/{}",
        encode(&room),
        encode(&event)
    );
    assert_eq!(
        alice.get(&path).await.ok()["content"]["body"],
        "before the stop"
    );
}
