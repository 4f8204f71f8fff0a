//! What is missing before an event and cannot be had: the state there is taken from another server.

use homeserver_events::Pdu;
use ruma::OwnedEventId;

use super::{
    inbound::World,
    peer::{NewEvent, Peer},
    *,
};

const NORA: &str = "@nora:peer.example";
const MISSING: &str = "/_matrix/federation/v1/get_missing_events";

/// Nora's join, which nobody sends, and a message of Mallory's after it.
async fn unseen(world: &World, by: &Peer) -> (Pdu, Pdu) {
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let join = by.event(&NewEvent {
        sender: "nora",
        kind: "m.room.member",
        state_key: Some(NORA),
        content: json!({ "membership": "join" }),
        auth: rules.await,
        ..world.message(&[world.join.event_id().to_owned()])
    });
    let after = world
        .peer
        .event(&world.message(&[join.event_id().to_owned()]));
    // Not by this way.
    world.peer.instead(MISSING, 200, json!({ "events": [] }));
    world.peer.has(&after);
    (join, after)
}

/// All events of the room's state.
async fn whole_state(world: &World) -> Vec<OwnedEventId> {
    let path = format!("/_matrix/client/v3/rooms/{}/state", world.room);
    let state = world.here.get(&path, Some(&world.alice.token)).await.ok();
    let id = |event: &Value| OwnedEventId::try_from(event["event_id"].as_str().unwrap()).unwrap();
    state.as_array().unwrap().iter().map(id).collect()
}

async fn is_joined(world: &World, user: &str) -> bool {
    let path = format!("/_matrix/client/v3/rooms/{}/joined_members", world.room);
    let members = world.here.get(&path, Some(&world.alice.token)).await.ok();
    members["joined"].get(user).is_some()
}

#[tokio::test(start_paused = true)]
async fn the_state_at_a_gap_is_taken_from_who_has_it() {
    let world = World::new().await;
    let (join, after) = unseen(&world, &world.peer).await;
    let mut state = whole_state(&world).await;
    state.push(join.event_id().to_owned());
    world.peer.has(&join);
    world.peer.has_state(after.event_id(), state);
    assert!(!is_joined(&world, NORA).await);
    world.send("1", &[&after]).await;
    world.until(&after).await;
    assert!(is_joined(&world, NORA).await);
    // Life goes on after it, on both sides.
    let next = &world.chain(&after, 1)[0];
    world.send("2", &[next]).await;
    world.until(next).await;
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
async fn forged_events_are_no_part_of_a_state() {
    let world = World::new().await;
    let evil = Peer::new("peer.example", 9);
    let (forged, after) = unseen(&world, &evil).await;
    let mut state = whole_state(&world).await;
    state.push(forged.event_id().to_owned());
    world.peer.has(&forged);
    world.peer.has_state(after.event_id(), state);
    world.send("1", &[&after]).await;
    world.until(&after).await;
    assert!(!is_joined(&world, NORA).await);
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_nobody_fills_keeps_only_its_own_events_waiting() {
    let world = World::new().await;
    let (join, after) = unseen(&world, &world.peer).await;
    let later = &world.chain(&after, 1)[0];
    let apart = &world.chain(&world.join, 1)[0];
    world.send("1", &[&after, later, apart]).await;
    world.until(apart).await;
    assert!(!world.is_seen(&after).await && !world.is_seen(later).await);
    // What is missing comes by itself.
    world.send("2", &[&join]).await;
    world.until(later).await;
    assert!(world.is_seen(&after).await && is_joined(&world, NORA).await);
}

#[tokio::test(start_paused = true)]
async fn auth_events_that_are_missing_are_fetched_and_do_not_change_the_room() {
    let world = World::new().await;
    let (join, _) = unseen(&world, &world.peer).await;
    world.peer.has(&join);
    let mut auth = world.state(&["m.room.create", "m.room.power_levels"]).await;
    auth.push(join.event_id().to_owned());
    // Nora speaks after an event before which she is not in the room.
    let early = world.peer.event(&NewEvent {
        sender: "nora",
        auth,
        ..world.message(&[world.join.event_id().to_owned()])
    });
    world.peer.has(&early);
    world.send("1", &[&early]).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let asked = world.peer.asked();
    assert!(
        asked.iter().any(|path| path.contains("/event_auth/")),
        "{asked:?}"
    );
    let next = &world.chain(&world.join, 1)[0];
    world.send("2", &[next]).await;
    world.until(next).await;
    assert!(!world.is_seen(&early).await && !is_joined(&world, NORA).await);
}

/// A user of a third server, who is in the room, and that server.
async fn third(world: &World) -> Arc<Peer> {
    let third = world.servers.add("third.example", 3);
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let join = third.event(&NewEvent {
        sender: "tom",
        kind: "m.room.member",
        state_key: Some("@tom:third.example"),
        content: json!({ "membership": "join" }),
        auth: rules.await,
        ..world.message(&[world.join.event_id().to_owned()])
    });
    let sent = third.send(&world.here, "join", &[&join]).await;
    assert_eq!(sent[join.event_id().as_str()], json!({}));
    world.until(&join).await;
    third
}

/// An id of an event that nobody has.
fn nowhere() -> OwnedEventId {
    OwnedEventId::try_from(format!("${}", "n".repeat(43))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_state_of_which_a_part_is_lacking_is_asked_of_others() {
    let world = World::new().await;
    let third = third(&world).await;
    let (join, after) = unseen(&world, &world.peer).await;
    let state = whole_state(&world).await;
    let mut lie = state.clone();
    lie.push(nowhere());
    world.peer.has_state(after.event_id(), lie);
    let mut whole = state;
    whole.push(join.event_id().to_owned());
    third.has(&join);
    third.has_state(after.event_id(), whole);
    world.send("1", &[&after]).await;
    world.until(&after).await;
    assert!(is_joined(&world, NORA).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_lacking_of_a_state_is_waited_for() {
    let world = World::new().await;
    let (join, after) = unseen(&world, &world.peer).await;
    let mut state = whole_state(&world).await;
    state.push(join.event_id().to_owned());
    world.peer.has_state(after.event_id(), state);
    world.send("1", &[&after]).await;
    tokio::time::sleep(std::time::Duration::from_mins(2)).await;
    assert!(!world.is_seen(&after).await);
    world.peer.has(&join);
    world.until(&after).await;
    assert!(is_joined(&world, NORA).await);
}

/// What nobody gives any more does not keep the room from going on, only once, and not at once.
#[tokio::test(start_paused = true)]
async fn what_is_lacking_of_a_state_is_given_up_at_last() {
    let world = World::new().await;
    let (_, after) = unseen(&world, &world.peer).await;
    let mut state = whole_state(&world).await;
    state.push(nowhere());
    world.peer.has_state(after.event_id(), state.clone());
    world.send("1", &[&after]).await;
    tokio::time::sleep(std::time::Duration::from_mins(8)).await;
    assert!(!world.is_seen(&after).await);
    tokio::time::sleep(std::time::Duration::from_mins(8)).await;
    assert!(world.is_seen(&after).await);
    // The same of another state is not waited for again.
    let unknown = world.chain(&after, 2);
    let next = &unknown[1];
    world.peer.has(next);
    world.peer.has_state(next.event_id(), state);
    world.send("2", &[next]).await;
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    assert!(world.is_seen(next).await);
}

/// A lie about the state before it gets no event rejected that the room allows.
#[tokio::test(start_paused = true)]
async fn a_state_that_does_not_allow_an_event_is_not_the_last_word() {
    let world = World::new().await;
    let (_, after) = unseen(&world, &world.peer).await;
    let mut lie = whole_state(&world).await;
    lie.retain(|id| id != world.join.event_id());
    world.peer.has_state(after.event_id(), lie);
    world.send("1", &[&after]).await;
    world.until(&after).await;
}

/// Something far below is withheld, and nobody tells the state before it.
#[tokio::test(start_paused = true)]
async fn an_event_whose_past_cannot_be_had_is_judged_by_the_state_before_it() {
    let world = World::new().await;
    let (_, low) = unseen(&world, &world.peer).await;
    let after = &world.chain(&low, 1)[0];
    let state = whole_state(&world).await;
    world.peer.has_state(after.event_id(), state);
    let path = "/_matrix/federation/v1/get_missing_events";
    let events: Vec<Value> = vec![serde_json::from_slice(low.json()).unwrap()];
    world.peer.instead(path, 200, json!({ "events": events }));
    world.send("1", &[after]).await;
    tokio::time::sleep(std::time::Duration::from_mins(1)).await;
    assert!(world.is_seen(after).await && !world.is_seen(&low).await);
}
