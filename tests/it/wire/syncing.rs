//! /sync as clients use it.

use std::time::Duration;

use homeserver_tests::{Client, Server, encode};
use serde_json::{Value, json};

fn next(answer: &Value) -> String {
    encode(answer["next_batch"].as_str().unwrap())
}

async fn two(server: &Server) -> (Client, Client, String) {
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Kitchen" }))
        .await;
    bob.join(&room).await;
    (alice, bob, room)
}

fn bodies(timeline: &Value) -> Vec<&str> {
    let events = timeline["events"].as_array().unwrap().iter();
    events
        .filter_map(|event| event["content"]["body"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_then_incremental() {
    let server = Server::start().await;
    let (alice, bob, room) = two(&server).await;
    alice.say(&room, "first").await;
    let initial = bob.sync("timeout=0").await;
    let joined = &initial["rooms"]["join"][&room];
    assert_eq!(bodies(&joined["timeline"]), ["first"]);
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    let quiet = bob
        .sync(&format!("timeout=0&since={}", next(&initial)))
        .await;
    assert!(quiet.get("rooms").is_none_or(|rooms| {
        rooms
            .get("join")
            .is_none_or(|join| join.as_object().unwrap().is_empty())
    }));
    alice.say(&room, "second").await;
    let more = bob.sync(&format!("timeout=0&since={}", next(&quiet))).await;
    let timeline = &more["rooms"]["join"][&room]["timeline"];
    assert_eq!(bodies(timeline), ["second"]);
    assert!(!timeline["limited"].as_bool().unwrap_or(false));
    // The same token gives the same answer.
    let again = bob.sync(&format!("timeout=0&since={}", next(&quiet))).await;
    assert_eq!(
        bodies(&again["rooms"]["join"][&room]["timeline"]),
        ["second"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_sync_is_woken() {
    let server = Server::start().await;
    let (alice, bob, room) = two(&server).await;
    let since = next(&bob.sync("timeout=0").await);
    let query = format!("timeout=30000&since={since}");
    let (heard, _) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(20), bob.sync(&query)),
        alice.say(&room, "wake up"),
    );
    let heard = heard.expect("the message wakes the waiting sync");
    assert_eq!(
        bodies(&heard["rooms"]["join"][&room]["timeline"]),
        ["wake up"]
    );
    let quiet = bob
        .sync(&format!("timeout=50&since={}", next(&heard)))
        .await;
    assert!(
        quiet["next_batch"].is_string(),
        "a time-out is an empty answer"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_timeline_comes_with_the_state_it_skips() {
    let server = Server::start().await;
    let (alice, bob, room) = two(&server).await;
    let since = next(&bob.sync("timeout=0").await);
    alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Soup" }))
        .await
        .ok();
    for number in 0..15 {
        alice.say(&room, &format!("{number}")).await;
    }
    let filter = encode(&json!({ "room": { "timeline": { "limit": 5 } } }).to_string());
    let synced = bob
        .sync(&format!("timeout=0&since={since}&filter={filter}"))
        .await;
    let joined = &synced["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(bodies(&joined["timeline"]), ["10", "11", "12", "13", "14"]);
    let state = joined["state"]["events"].as_array().unwrap();
    assert_eq!(state.len(), 1, "{state:?}");
    assert_eq!(state[0]["content"]["topic"], "Soup");

    let after = format!("timeout=0&since={since}&filter={filter}&use_state_after=true");
    let joined = bob.sync(&after).await["rooms"]["join"][&room].clone();
    assert!(joined.get("state").is_none());
    assert_eq!(
        joined["state_after"]["events"][0]["content"]["topic"],
        "Soup"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_and_leaves() {
    let server = Server::start().await;
    let (alice, bob, room) = two(&server).await;
    let since = next(&bob.sync("timeout=0").await);
    let other = alice
        .create_room(json!({ "name": "Other", "invite": [bob.user] }))
        .await;
    let leave = format!("/_matrix/client/v3/rooms/{}/leave", encode(&room));
    bob.post(&leave, json!({})).await.ok();
    let synced = bob.sync(&format!("timeout=0&since={since}")).await;
    let invite = synced["rooms"]["invite"][&other]["invite_state"]["events"]
        .as_array()
        .unwrap();
    for kind in ["m.room.create", "m.room.name", "m.room.member"] {
        assert!(
            invite.iter().any(|event| event["type"] == kind),
            "{kind} in {invite:?}"
        );
    }
    assert!(
        invite.iter().all(|event| event.get("event_id").is_none()),
        "stripped: {invite:?}"
    );
    let left = &synced["rooms"]["leave"][&room]["timeline"]["events"];
    assert_eq!(
        left.as_array().unwrap().last().unwrap()["content"]["membership"],
        "leave"
    );
    let after = alice.say(&room, "behind your back").await;
    let later = bob
        .sync(&format!("timeout=0&since={}", next(&synced)))
        .await;
    assert!(!later.to_string().contains(&after), "{later}");
    let fresh = bob.sync("timeout=0").await;
    assert!(
        fresh["rooms"]["leave"].get(&room).is_none(),
        "left rooms only on request"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_loaded_lazily() {
    let server = Server::start().await;
    let (alice, bob, room) = two(&server).await;
    let nobody = server.client();
    for name in ["carol", "dave", "erin"] {
        nobody.register(name).await.join(&room).await;
    }
    alice.say(&room, "only me").await;
    let filter = json!({ "room": {
        "timeline": { "limit": 1 }, "state": { "lazy_load_members": true },
    } });
    let filter = encode(&filter.to_string());
    let synced = bob.sync(&format!("timeout=0&filter={filter}")).await;
    let state = synced["rooms"]["join"][&room]["state"]["events"]
        .as_array()
        .unwrap();
    let members: Vec<_> = state
        .iter()
        .filter(|event| event["type"] == "m.room.member")
        .map(|event| event["state_key"].as_str().unwrap())
        .collect();
    assert!(members.contains(&alice.user.as_str()), "{members:?}");
    assert!(!members.contains(&"@erin:localhost"), "{members:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_come_with_the_events_and_go_with_the_receipt() {
    let server = Server::start().await;
    let (alice, bob, room) = two(&server).await;
    let since = next(&bob.sync("timeout=0").await);
    alice.say(&room, "one").await;
    let mention = json!({
        "msgtype": "m.text", "body": "bob: two", "m.mentions": { "user_ids": [bob.user] },
    });
    let event = alice
        .send_event(&room, "m.room.message", mention)
        .await
        .text("event_id");
    let synced = bob.sync(&format!("timeout=0&since={since}")).await;
    let counts = &synced["rooms"]["join"][&room]["unread_notifications"];
    assert_eq!(
        counts,
        &json!({ "notification_count": 2, "highlight_count": 1 })
    );
    let receipt = format!(
        "/_matrix/client/v3/rooms/{}/receipt/m.read/{}",
        encode(&room),
        encode(&event)
    );
    bob.post(&receipt, json!({})).await.ok();
    let read = bob
        .sync(&format!("timeout=0&since={}", next(&synced)))
        .await;
    let counts = &read["rooms"]["join"][&room]["unread_notifications"];
    assert_eq!(
        counts,
        &json!({ "notification_count": 0, "highlight_count": 0 })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_receipts_and_presence() {
    let server = Server::start().await;
    let (alice, bob, room) = two(&server).await;
    let event = alice.say(&room, "read me").await;
    let since = next(&alice.sync("timeout=0").await);
    let encoded = encode(&room);
    let typing = format!(
        "/_matrix/client/v3/rooms/{encoded}/typing/{}",
        encode(&bob.user)
    );
    bob.put(&typing, json!({ "typing": true, "timeout": 30_000 }))
        .await
        .ok();
    let receipt = format!(
        "/_matrix/client/v3/rooms/{encoded}/receipt/m.read/{}",
        encode(&event)
    );
    bob.post(&receipt, json!({})).await.ok();
    let status = format!("/_matrix/client/v3/presence/{}/status", encode(&bob.user));
    bob.put(
        &status,
        json!({ "presence": "unavailable", "status_msg": "lunch" }),
    )
    .await
    .ok();
    assert_eq!(alice.get(&status).await.ok()["status_msg"], "lunch");

    let synced = alice.sync(&format!("timeout=0&since={since}")).await;
    let ephemeral = synced["rooms"]["join"][&room]["ephemeral"]["events"]
        .as_array()
        .unwrap();
    let of = |kind: &str| {
        ephemeral
            .iter()
            .find(|event| event["type"] == kind)
            .unwrap()
    };
    assert_eq!(of("m.typing")["content"]["user_ids"], json!([bob.user]));
    assert!(of("m.receipt")["content"][&event]["m.read"][&bob.user]["ts"].is_u64());
    let presence = synced["presence"]["events"].as_array().unwrap();
    assert!(
        presence
            .iter()
            .any(|event| event["content"]["status_msg"] == "lunch")
    );
    let other = format!(
        "/_matrix/client/v3/rooms/{encoded}/typing/{}",
        encode(&alice.user)
    );
    bob.put(&other, json!({ "typing": true }))
        .await
        .expect_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_are_refused() {
    let server = Server::start().await;
    let (alice, ..) = two(&server).await;
    let answer = alice.get("/_matrix/client/v3/sync?since=nonsense").await;
    answer.expect_error(400, "M_INVALID_PARAM");
    let answer = alice.get("/_matrix/client/v3/sync?filter=%7Bbroken").await;
    assert_eq!(answer.status, 400);
}
