//! Device lists of the users of several servers, of which one never answers.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{Json, extract::Path as PathOf, routing};
use homeserver_federation::inbound::EduSink;

use super::{peer::Peer, resident::World, *};

/// More than the lists of one server that are fetched at once.
const SLOW_USERS: usize = 12;

/// A server that takes questions for device lists and never answers them.
fn silent(asked: &Arc<AtomicUsize>) -> Router {
    let asked = Arc::clone(asked);
    let never = move || {
        let asked = Arc::clone(&asked);
        async move {
            asked.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    };
    let devices = "/_matrix/federation/v1/user/devices/{user}";
    let query = "/_matrix/federation/v1/user/keys/query";
    Router::new()
        .route(devices, routing::get(never.clone()))
        .route(query, routing::post(never))
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_holds_up_no_lists_of_others() {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut world = World::with(silent(&asked)).await;
    let room = world.public_room("11").await;
    let mut slow = serde_json::Map::new();
    for number in 0..SLOW_USERS {
        let user = world.peer.user(&format!("slow{number}"));
        world.join(&room, &user).await;
        slow.insert(user, json!([]));
    }
    let devices = async |PathOf(user): PathOf<String>| {
        Json(json!({ "user_id": user, "stream_id": 99, "devices": [] }))
    };
    let devices = Router::new().route(
        "/_matrix/federation/v1/user/devices/{user}",
        routing::get(devices),
    );
    world.peer = Peer::join(&world.network, "fast.example", devices);
    let fast = world.peer.user("fast");
    world.join(&room, &fast).await;
    let query = async |users: Value| {
        let body = json!({ "device_keys": users, "timeout": 2_000 });
        let path = "/_matrix/client/v3/keys/query";
        world.here.post(path, Some(&world.alice.token), body).await
    };
    query(json!({ fast.as_str(): [] })).await.ok();
    query(Value::Object(slow)).await.ok();
    let before = asked.load(Ordering::Relaxed);
    let busy = async {
        while asked.load(Ordering::Relaxed) <= before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let patience = Duration::from_mins(5);
    tokio::time::timeout(patience, busy).await.unwrap();

    let components = world.here.homeserver.components();
    let user = OwnedUserId::try_from(fast.as_str()).unwrap();
    let number = components.users.number(&user).await.unwrap();
    let stale = async || {
        let state = components.users.remote_lists.state(number).await;
        state.unwrap().unwrap().stale
    };
    assert!(!stale().await);
    let update = json!({
        "user_id": user, "device_id": "NEW", "stream_id": 102, "prev_id": [101], "deleted": true,
    });
    let update = serde_json::from_value(update).unwrap();
    let told = components
        .remote_users
        .device_list_update(&world.peer.name, update);
    told.await.unwrap();
    assert!(stale().await);
    let fetched = async {
        while stale().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let fetched = tokio::time::timeout(Duration::from_secs(2), fetched).await;
    assert!(fetched.is_ok(), "it waits for the other server");
}
