//! A server signs with another key: others learn it, and believe what the old one signed until then.

use std::time::Duration;

use bytes::Bytes;
use homeserver_events::{Draft, Rules};
use homeserver_storage::Engine;
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::value::to_raw_value;

use super::{
    history::{create_room, say},
    resident::{client_path, encode},
    *,
};

const PATIENCE: Duration = Duration::from_mins(1);

/// `a.example` on a database, in the network.
async fn open(network: &Arc<Network>, engine: &Arc<dyn Engine>, clock: &Arc<ManualClock>) -> Fresh {
    let name = ServerName::parse("a.example").unwrap();
    let mut config = Config {
        server_name: name.clone(),
        ..Config::default()
    };
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    let homeserver = Homeserver::configured(config)
        .engine(Arc::clone(engine))
        .transport(Arc::clone(network) as _)
        .runtime(Runtime::simulated(Arc::clone(clock), 5))
        .open()
        .await
        .unwrap();
    let router = homeserver.router();
    network.routers.lock().insert(name, router.clone());
    Fresh {
        homeserver,
        router,
        clock: Arc::clone(clock),
    }
}

async fn enter(server: &Fresh, who: &LoggedIn, room: &OwnedRoomId) {
    let path = format!(
        "/_matrix/client/v3/join/{}?via=a.example",
        encode(room.as_str())
    );
    server.post(&path, Some(&who.token), json!({})).await.ok();
}

/// Waits until a user sees an event.
async fn seen(server: &Fresh, who: &LoggedIn, room: &OwnedRoomId, event: &str) {
    let path = format!("{}/event/{}", client_path(room.as_str()), encode(event));
    let look = async {
        while server.get(&path, Some(&who.token)).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap();
}

#[tokio::test]
async fn events_of_both_keys_are_believed_each_in_its_time() {
    let network = Arc::new(Network::default());
    let clock = Arc::new(ManualClock::new(START));
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let before = open(&network, &engine, &clock).await;
    let there = join(&network, "bb.example").await;
    let alice = before.register("alice").await;
    let bob = there.register("bob").await;
    let wish = json!({ "preset": "public_chat", "room_version": "11" });
    let room = create_room(&before, &alice, wish).await;
    enter(&there, &bob, &room).await;
    let old = before.homeserver.components().federation.own_keys.clone();
    let old_id = old.signing_key().id().to_string();

    let administration = before.homeserver.administration();
    let new_id = administration.rotate_signing_key().await.unwrap();
    assert!(before.homeserver.shutdown().await);
    for clock in [&clock, &there.clock] {
        clock.advance(Duration::from_mins(5));
    }
    let here = open(&network, &engine, &clock).await;
    let document = get(&here, "/_matrix/key/v2/server").await.ok();
    assert!(document["verify_keys"][&new_id].is_object(), "{document}");
    let expired = &document["old_verify_keys"][&old_id]["expired_ts"];
    assert_eq!(*expired, START);

    // Who knew the old key only finds the new one.
    let said = say(&here, &alice, &room, "anew").await;
    seen(&there, &bob, &room, said.as_str()).await;
    // The other way round, requests to the server are answered as before.
    let answer = say(&there, &bob, &room, "heard").await;
    seen(&here, &alice, &room, answer.as_str()).await;

    // A third server, which never saw the old key in use, joins a room whose state it signed; it is a
    // notary of both.
    let third = join(&network, "ccc.example").await;
    third.clock.advance(Duration::from_mins(5));
    let carol = third.register("carol").await;
    enter(&third, &carol, &room).await;
    let path = format!("{}/messages?dir=b&limit=20", client_path(room.as_str()));
    let page = third.get(&path, Some(&carol.token)).await.ok();
    let read: Vec<_> = page["chunk"].as_array().unwrap().iter().collect();
    let is_read = |id: &str| read.iter().any(|event| event["event_id"] == id);
    assert!(is_read(said.as_str()) && read.iter().any(|event| event["type"] == "m.room.create"));
    let vouched = get(&third, "/_matrix/key/v2/query/a.example").await.ok();
    let vouched = &vouched["server_keys"][0];
    assert!(vouched["verify_keys"][&new_id].is_object(), "{vouched}");
    assert_eq!(vouched["old_verify_keys"][&old_id]["expired_ts"], START);
    assert!(vouched["signatures"]["ccc.example"].is_object());

    // The old key signs nothing that is newer than its end.
    let rules = Rules::for_version(&ruma::RoomVersionId::V11).unwrap();
    let event = |time: u64| {
        let draft = Draft {
            room_id: Some(room.clone()),
            sender: OwnedUserId::try_from(alice.user.as_str()).unwrap(),
            event_type: "m.room.message".to_owned(),
            state_key: None,
            content: to_raw_value(&json!({ "body": "x" })).unwrap(),
            origin_server_ts: time,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 1,
            redacts: None,
        };
        let sealed = draft.seal(rules, old.server(), old.signing_key()).unwrap();
        Bytes::copy_from_slice(sealed.json())
    };
    for server in [&there, &third, &here] {
        let verifier = &server.homeserver.components().federation.verifier;
        let events = vec![event(START), event(START + 1)];
        let checked = verifier.verify(events, rules, PATIENCE).await.unwrap();
        let good: Vec<_> = checked.iter().map(Result::is_ok).collect();
        assert_eq!(good, [true, false]);
    }
}
