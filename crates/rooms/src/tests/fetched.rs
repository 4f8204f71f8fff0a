//! Who sees what was fetched as history: it has no position, only a place in the history.

use std::sync::Arc;

use ruma::OwnedEventId;
use serde_json::json;

use super::support::{Server, event, invite, user};
use crate::{CreateRoom, MembershipChange, Room, event::StoredEvent, visible::Sights};

async fn stored(server: &Server, room: &Room, id: &OwnedEventId) -> Arc<StoredEvent> {
    let number = server.rooms.events.number(room.number, id).await.unwrap();
    let event = server.rooms.events.load(room, number.unwrap());
    event.await.unwrap()
}

/// The event as if it had been fetched as history.
fn fetched(event: &StoredEvent) -> Arc<StoredEvent> {
    Arc::new(StoredEvent {
        position: None,
        backfill_tie: Some(u64::MAX),
        ..event.clone()
    })
}

#[tokio::test]
async fn who_has_left_sees_no_history_from_after_leaving() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let id = server.create(&alice, CreateRoom::default()).await;
    let shared = json!({ "history_visibility": "shared" });
    let shared = event("m.room.history_visibility", Some(""), &shared);
    server.try_send(&alice, &id, shared).await.unwrap();
    let early = server.say(&alice, &id, "before bob").await;
    server.member(&alice, &id, invite("bob")).await.unwrap();
    server.join(&bob, &id).await.unwrap();
    let with_bob = server.say(&alice, &id, "with bob").await;
    let left = MembershipChange::Leave;
    server.member(&bob, &id, left).await.unwrap();
    let late = server.say(&alice, &id, "after bob").await;

    let room = server.room(&id).await;
    let sees = async |name: &str, id: &OwnedEventId| {
        let reader = server.reader(&user(name)).await;
        let mut sights = Sights::new(&server.rooms, &room, &reader).await.unwrap();
        let live = stored(&server, &room, id).await;
        let history = fetched(&live);
        let live = sights.check(live).await.unwrap().is_some();
        let history = sights.check(history).await.unwrap().is_some();
        assert_eq!(live, history, "{name}: the way it came makes no difference");
        history
    };
    for (id, bob_sees) in [(&early, true), (&with_bob, true), (&late, false)] {
        assert!(sees("alice", id).await);
        assert_eq!(sees("bob", id).await, bob_sees);
        assert!(!sees("stranger", id).await);
    }
    // Once more in the room, bob sees it all.
    server.member(&alice, &id, invite("bob")).await.unwrap();
    assert!(!sees("bob", &late).await, "invited only");
    server.join(&bob, &id).await.unwrap();
    assert!(sees("bob", &late).await);
}
