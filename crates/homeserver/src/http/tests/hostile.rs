//! What a server may send that must not be believed, over the wire.

use homeserver_events::Pdu;
use ruma::OwnedEventId;

use super::{
    inbound::World,
    peer::{NewEvent, Peer},
    *,
};

/// The text of an event with one part of it replaced.
fn altered(event: &Pdu, part: &str, by: &str) -> String {
    let json = event.json_str();
    assert!(json.contains(part), "{json}");
    json.replacen(part, by, 1)
}

impl World {
    /// Sends events as texts.
    async fn send_texts(&self, id: &str, pdus: &[String]) -> Value {
        let body = format!(r#"{{"pdus":[{}]}}"#, pdus.join(","));
        let answer = self.peer.transaction(&self.here, id, &body).await;
        answer.ok()["pdus"].take()
    }

    fn after_join(&self) -> NewEvent<'_> {
        self.message(&[self.join.event_id().to_owned()])
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_canonical_costs_only_itself_and_nothing_later() {
    let world = World::new().await;
    let chain = world.chain(&world.join, 3);
    let depths = [
        r#""depth":9007199254740992"#,
        r#""depth":-9007199254740992"#,
        r#""depth":-1"#,
        r#""depth":"20""#,
        r#""depth":null"#,
        r#""depth":20.5"#,
        r#""depth":1e3"#,
        r#""dep":20"#,
    ];
    let mut texts: Vec<String> = depths
        .iter()
        .map(|depth| altered(&chain[1], r#""depth":20"#, depth))
        .collect();
    texts.push(altered(
        &chain[1],
        r#""content":{"#,
        r#""content":{"x":1.5,"#,
    ));
    texts.push(altered(
        &chain[1],
        r#""body":"1""#,
        r#""body":"1","big":9007199254740993"#,
    ));
    texts.insert(3, chain[0].json_str().to_owned());
    texts.push(chain[2].json_str().to_owned());
    let results = world.send_texts("1", &texts).await;
    assert_eq!(results[chain[0].event_id().as_str()], json!({}));
    world.until(&chain[0]).await;
    assert!(!world.is_seen(&chain[1]).await);
    // Both servers go on.
    world.send("2", &[&chain[1]]).await;
    world.until(&chain[2]).await;
    let body = json!({ "msgtype": "m.text", "body": "on" });
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.room.message/1",
        world.room
    );
    world
        .here
        .put(&path, Some(&world.alice.token), body)
        .await
        .ok();
}

#[tokio::test(start_paused = true)]
async fn signatures_that_are_missing_unknown_or_wrong_prove_nothing() {
    let world = World::new().await;
    let event = world.peer.event(&world.after_join());
    let signature = event.json_str().split(r#""ed25519:a":""#).nth(1).unwrap();
    let signature = signature.split('"').next().unwrap();
    let of_peer = format!(r#"{{"peer.example":{{"ed25519:a":"{signature}"}}}}"#);
    let forgeries = [
        "{}".to_owned(),
        r#"{"peer.example":{}}"#.to_owned(),
        r#"{"peer.example":{"ed25519:a":7}}"#.to_owned(),
        r#"{"peer.example":{"ed25519:a":""}}"#.to_owned(),
        r#"{"peer.example":{"ed25519:a":"AAAA"}}"#.to_owned(),
        format!(r#"{{"peer.example":{{"ed25519:new":"{signature}"}}}}"#),
        format!(r#"{{"here.example":{{"ed25519:a":"{signature}"}}}}"#),
        format!(r#"{{"PEER.example":{{"ed25519:a":"{signature}"}}}}"#),
    ];
    for (number, forged) in forgeries.iter().enumerate() {
        let text = altered(&event, &of_peer, forged);
        let id = number.to_string();
        world.send_texts(&id, &[text]).await;
    }
    let next = world.peer.event(&NewEvent {
        content: json!({ "body": "next" }),
        ..world.after_join()
    });
    world.send("next", &[&next]).await;
    world.until(&next).await;
    tokio::time::sleep(std::time::Duration::from_mins(5)).await;
    assert!(!world.is_seen(&event).await);
    world.send("good", &[&event]).await;
    world.until(&event).await;
}

#[tokio::test(start_paused = true)]
async fn fetched_events_are_checked_like_those_that_are_sent() {
    let world = World::new().await;
    let chain = world.chain(&world.join, 2);
    let evil = Peer::new("peer.example", 9);
    // The same event, signed with another key.
    let forged = evil.event(&NewEvent {
        content: json!({ "msgtype": "m.text", "body": "0" }),
        ..world.after_join()
    });
    assert_eq!(forged.event_id(), chain[0].event_id());
    world.peer.has(&forged);
    world.peer.has(&chain[1]);
    world.send("1", &[&chain[1]]).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(!world.peer.asked().is_empty());
    assert!(!world.is_seen(&chain[0]).await && !world.is_seen(&chain[1]).await);
    world.peer.has(&chain[0]);
    world.until(&chain[1]).await;
    assert!(world.is_seen(&chain[0]).await);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_the_acl_denies_is_told_so_for_each_event() {
    let world = World::new().await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.server_acl",
        world.room
    );
    let acl = json!({ "allow": ["*"], "deny": ["PEER.example"], "allow_ip_literals": false });
    world
        .here
        .put(&path, Some(&world.alice.token), acl)
        .await
        .ok();
    let chain = world.chain(&world.join, 2);
    let results = world.send("1", &[&chain[0], &chain[1]]).await;
    for event in &chain {
        let error = &results[event.event_id().as_str()]["error"];
        assert!(error.as_str().unwrap().contains("ACL"), "{results}");
        assert!(!world.is_seen(event).await);
    }
}

#[tokio::test(start_paused = true)]
async fn auth_events_of_another_room_allow_nothing() {
    let world = World::new().await;
    let body = json!({ "preset": "public_chat", "room_version": "11", "power_level_content_override":
        { "users": { "@mallory:peer.example": 100, "@alice:here.example": 100 } } });
    let path = "/_matrix/client/v3/createRoom";
    let other = world
        .here
        .post(path, Some(&world.alice.token), body)
        .await
        .ok();
    let other = other["room_id"].as_str().unwrap();
    let path = format!("/_matrix/client/v3/rooms/{other}/state");
    let state = world.here.get(&path, Some(&world.alice.token)).await.ok();
    let mut state = state.as_array().unwrap().iter();
    let levels = state.find(|event| event["type"] == "m.room.power_levels");
    let levels = OwnedEventId::try_from(levels.unwrap()["event_id"].as_str().unwrap()).unwrap();
    let topic = world.peer.event(&NewEvent {
        kind: "m.room.topic",
        state_key: Some(""),
        content: json!({ "topic": "mine" }),
        auth: vec![world.auth[0].clone(), levels, world.auth[2].clone()],
        ..world.after_join()
    });
    world.peer.has(&topic);
    world.send("1", &[&topic]).await;
    let next = world.peer.event(&world.after_join());
    world.send("2", &[&next]).await;
    world.until(&next).await;
    assert!(!world.is_seen(&topic).await);
}

#[tokio::test(start_paused = true)]
async fn a_room_gets_no_second_create_event() {
    let world = World::new().await;
    let create = world.peer.event(&NewEvent {
        kind: "m.room.create",
        state_key: Some(""),
        content: json!({ "room_version": "11" }),
        prev: Vec::new(),
        auth: Vec::new(),
        depth: 1,
        ..world.after_join()
    });
    world.send("1", &[&create]).await;
    let next = world.peer.event(&world.after_join());
    world.send("2", &[&next]).await;
    world.until(&next).await;
    assert!(!world.is_seen(&create).await);
    assert_eq!(world.state(&["m.room.create"]).await, world.auth[..1]);
}

#[tokio::test(start_paused = true)]
async fn events_of_rooms_that_are_not_here_are_answered_by_name() {
    let world = World::new().await;
    let elsewhere = ruma::owned_room_id!("!elsewhere:peer.example");
    let event = world.peer.event(&NewEvent {
        room: &elsewhere,
        ..world.after_join()
    });
    let results = world.send("1", &[&event]).await;
    assert!(results[event.event_id().as_str()]["error"].is_string());
    // As is what claims a place in a room that this server has left.
    let path = format!("/_matrix/client/v3/rooms/{}/leave", world.room);
    world
        .here
        .post(&path, Some(&world.alice.token), json!({}))
        .await
        .ok();
    let event = world.peer.event(&world.after_join());
    let results = world.send("2", &[&event]).await;
    assert!(results[event.event_id().as_str()]["error"].is_string());
}
