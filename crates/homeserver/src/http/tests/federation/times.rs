//! Jumping to a time of which the history is elsewhere.

use std::time::Duration;

use axum::{Json, routing};
use homeserver_rooms::NewEvent;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::value::to_raw_value;

use super::{
    history::create_room,
    resident::{World, client_path, encode},
    *,
};

const V3: &str = "/_matrix/client/v3";

/// Messages of the history, a second apart.
const MESSAGES: u64 = 150;
const FIRST: u64 = START + 10_000;

/// The time of a message.
fn time_of(message: u64) -> u64 {
    FIRST + message * 1_000
}

/// Fills a room of alice's with its history.
async fn fill(here: &Fresh, alice: &LoggedIn, room: &OwnedRoomId) {
    let sender = OwnedUserId::try_from(alice.user.as_str()).unwrap();
    let event = |n: u64| {
        let content = json!({ "msgtype": "m.text", "body": n.to_string() });
        let event = NewEvent {
            event_type: "m.room.message".to_owned(),
            state_key: None,
            content: to_raw_value(&content).unwrap(),
            timestamp: Some(time_of(n)),
        };
        (sender.clone(), event)
    };
    let events: Vec<_> = (0..MESSAGES).map(event).collect();
    let administration = here.homeserver.administration();
    administration.append_events(room, &events).await.unwrap();
    here.clock.advance(Duration::from_mins(10));
}

/// A user of another server who came into the room afterwards.
async fn newcomer(network: &Arc<Network>, via: &str, room: &OwnedRoomId) -> (Fresh, LoggedIn) {
    let there = join(network, "bb.example").await;
    there.clock.advance(Duration::from_mins(10));
    let bob = there.register("bob").await;
    let path = format!("{V3}/join/{}?via={via}", encode(room.as_str()));
    there.post(&path, Some(&bob.token), json!({})).await.ok();
    // This waits until all of the room's state is there.
    let path = format!("{}/joined_members", client_path(room.as_str()));
    there.get(&path, Some(&bob.token)).await.ok();
    (there, bob)
}

/// The message that is found, and its time.
async fn found(
    there: &Fresh,
    bob: &LoggedIn,
    room: &OwnedRoomId,
    (time, dir): (u64, char),
) -> (String, u64) {
    let room = room.as_str();
    let path = format!(
        "/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={time}&dir={dir}",
        encode(room)
    );
    let near = there.get(&path, Some(&bob.token)).await.ok();
    let id = encode(near["event_id"].as_str().unwrap());
    let path = format!("{}/event/{id}", client_path(room));
    let event = there.get(&path, Some(&bob.token)).await.ok();
    let time = near["origin_server_ts"].as_u64().unwrap();
    assert_eq!(event["origin_server_ts"], time);
    let shown = event["content"]["body"].as_str();
    (shown.unwrap_or_default().to_owned(), time)
}

/// Bodies of all messages, paged back to.
async fn paged(there: &Fresh, bob: &LoggedIn, room: &OwnedRoomId) -> Vec<String> {
    let (mut bodies, mut from) = (Vec::new(), String::new());
    for _ in 0..30 {
        let base = client_path(room.as_str());
        let path = format!("{base}/messages?dir=b&limit=40{from}");
        let page = there.get(&path, Some(&bob.token)).await.ok();
        let events = page["chunk"].as_array().unwrap().iter();
        let shown = events.filter_map(|event| event["content"]["body"].as_str());
        bodies.extend(shown.map(ToOwned::to_owned));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return bodies,
        }
    }
    panic!("no end: {bodies:?}");
}

#[tokio::test]
async fn a_time_before_what_is_here_is_found_elsewhere_and_its_surroundings_are_read() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let alice = here.register("alice").await;
    let wish = json!({ "preset": "public_chat", "room_version": "11" });
    let room = create_room(&here, &alice, wish).await;
    fill(&here, &alice, &room).await;
    let (there, bob) = newcomer(&network, "a.example", &room).await;
    let between = time_of(60) + 500;
    let cases = [
        (between, 'f', 61),
        (between, 'b', 60),
        (time_of(70), 'f', 70),
    ];
    for (time, dir, expected) in cases {
        let near = found(&there, &bob, &room, (time, dir)).await;
        assert_eq!(
            near,
            (expected.to_string(), time_of(expected)),
            "{time} {dir}"
        );
    }
    // What was fetched is here now.
    let name = ServerName::parse("a.example").unwrap();
    let router = network.routers.lock().remove(&name).unwrap();
    let near = found(&there, &bob, &room, (between, 'b')).await;
    assert_eq!(near.0, "60");
    network.routers.lock().insert(name, router);

    // The event's surroundings, and the whole history, each event once.
    let path = format!(
        "/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={between}&dir=b",
        encode(room.as_str())
    );
    let near = there.get(&path, Some(&bob.token)).await.ok();
    let id = encode(near["event_id"].as_str().unwrap());
    let path = format!("{}/context/{id}?limit=40", client_path(room.as_str()));
    let around = there.get(&path, Some(&bob.token)).await.ok();
    let before = around["events_before"].as_array().unwrap();
    let bodies: Vec<_> = before
        .iter()
        .map(|event| &event["content"]["body"])
        .collect();
    let expected: Vec<_> = (40..60).rev().map(|n| Value::from(n.to_string())).collect();
    assert_eq!(bodies, expected.iter().collect::<Vec<_>>());
    let all: Vec<_> = (0..MESSAGES).rev().map(|n| n.to_string()).collect();
    assert_eq!(paged(&there, &bob, &room).await, all);
}

#[tokio::test]
async fn what_is_missing_right_before_an_event_is_fetched_for_its_context() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let alice = here.register("alice").await;
    let wish = json!({ "preset": "public_chat", "room_version": "11" });
    let room = create_room(&here, &alice, wish).await;
    fill(&here, &alice, &room).await;
    let (there, bob) = newcomer(&network, "a.example", &room).await;
    let base = client_path(room.as_str());
    let path = format!("{base}/messages?dir=b&limit=1");
    let page = there.get(&path, Some(&bob.token)).await.ok();
    let joined = encode(page["chunk"][0]["event_id"].as_str().unwrap());
    let without = |body: &Value| body["events_before"].as_array().unwrap().is_empty();
    let path = format!("{base}/context/{joined}?limit=0");
    let alone = there.get(&path, Some(&bob.token)).await.ok();
    assert!(without(&alone), "nothing before it is wanted");
    // So nobody was asked for it.
    let name = ServerName::parse("a.example").unwrap();
    let router = network.routers.lock().remove(&name).unwrap();
    let path = format!("{base}/context/{joined}?limit=20");
    let around = there.get(&path, Some(&bob.token)).await.ok();
    assert!(without(&around), "it is not here");
    network.routers.lock().insert(name, router);
    there.clock.advance(Duration::from_mins(10));
    let around = there.get(&path, Some(&bob.token)).await.ok();
    let before = around["events_before"].as_array().unwrap();
    assert_eq!(before.len(), 10);
    assert_eq!(before[0]["content"]["body"], (MESSAGES - 1).to_string());
    // The state is that after the event, with who is in the room.
    let state = around["state"].as_array().unwrap();
    let member = |user: &str| state.iter().any(|event| event["state_key"] == user);
    assert!(member(&alice.user) && member(&bob.user));
}

#[tokio::test]
async fn a_server_that_lies_about_times_only_costs_an_attempt() {
    let lie = |id: &'static str, time: u64| {
        let path = "/_matrix/federation/v1/timestamp_to_event/{room}";
        let answer = json!({ "event_id": id, "origin_server_ts": time });
        Router::new().route(path, routing::get(async move || Json(answer.clone())))
    };
    let wanted = time_of(60) + 500;
    for lie in [
        // An event that there is not, and one in the other direction.
        lie("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", wanted),
        lie("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", wanted - 1),
    ] {
        let world = World::with(lie).await;
        let room = world.public_room("11").await;
        world.join(&room, &world.peer.user("mallory")).await;
        let room = OwnedRoomId::try_from(room).unwrap();
        fill(&world.here, &world.alice, &room).await;
        let (there, bob) = newcomer(&world.network, "here.example", &room).await;
        let near = found(&there, &bob, &room, (wanted, 'f')).await;
        assert_eq!(near.0, "61");
    }
}
