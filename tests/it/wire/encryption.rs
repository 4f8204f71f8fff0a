//! Keys and to-device messages: what every client does at login with encryption on.

use homeserver_tests::{Client, Server, encode};
use serde_json::{Value, json};

fn device_keys(client: &Client) -> Value {
    json!({
        "user_id": client.user, "device_id": client.device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            (format!("curve25519:{}", client.device)): "curve",
            (format!("ed25519:{}", client.device)): "ed",
        },
        "signatures": { (&client.user): { (format!("ed25519:{}", client.device)): "signature" } },
    })
}

async fn two(server: &Server) -> (Client, Client) {
    let nobody = server.client();
    (nobody.register("alice").await, nobody.register("bob").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn device_keys_are_uploaded_and_queried() {
    let server = Server::start().await;
    let (alice, bob) = two(&server).await;
    let upload = "/_matrix/client/v3/keys/upload";
    let keys = json!({ "device_keys": device_keys(&alice) });
    let counts = alice.post(upload, keys.clone()).await.ok();
    assert_eq!(
        counts["one_time_key_counts"]["signed_curve25519"]
            .as_u64()
            .unwrap_or(0),
        0
    );
    bob.post(upload, keys)
        .await
        .expect_error(400, "M_INVALID_PARAM");
    let query = json!({ "device_keys": { (&alice.user): [] } });
    let found = bob.post("/_matrix/client/v3/keys/query", query).await.ok();
    let device = &found["device_keys"][&alice.user][&alice.device];
    assert_eq!(device["keys"], device_keys(&alice)["keys"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_time_keys_are_claimed_once_in_order() {
    let server = Server::start().await;
    let (alice, bob) = two(&server).await;
    let upload = "/_matrix/client/v3/keys/upload";
    // 32 bytes in unpadded base64, as keys are.
    let key = |name: &str| json!({ "key": name.repeat(43), "signatures": {} });
    let body = json!({
        "device_keys": device_keys(&alice),
        "one_time_keys": {
            "signed_curve25519:A": key("a"), "signed_curve25519:B": key("b"),
        },
        "fallback_keys": { "signed_curve25519:F": { "key": "e".repeat(43), "fallback": true, "signatures": {} } },
    });
    let counts = alice.post(upload, body).await.ok();
    assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 2);
    let wish =
        json!({ "one_time_keys": { (&alice.user): { (&alice.device): "signed_curve25519" } } });
    let claim = async || {
        let claimed = bob
            .post("/_matrix/client/v3/keys/claim", wish.clone())
            .await
            .ok();
        let keys = claimed["one_time_keys"][&alice.user][&alice.device].clone();
        keys.as_object().unwrap().values().next().unwrap()["key"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        [claim().await, claim().await, claim().await, claim().await],
        ["a", "b", "e", "e"].map(|name| name.repeat(43))
    );
    let synced = alice.sync("timeout=0").await;
    assert_eq!(
        synced["device_one_time_keys_count"]["signed_curve25519"]
            .as_u64()
            .unwrap_or(0),
        0
    );
    assert_eq!(synced["device_unused_fallback_key_types"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_to_devices_come_until_they_are_acknowledged() {
    let server = Server::start().await;
    let (alice, bob) = two(&server).await;
    let since = encode(bob.sync("timeout=0").await["next_batch"].as_str().unwrap());
    let path = "/_matrix/client/v3/sendToDevice/org.example.note/t1";
    let body = json!({ "messages": { (&bob.user): { "*": { "note": "hello" } } } });
    alice.put(path, body.clone()).await.ok();
    alice.put(path, body).await.ok(); // the same transaction
    let query = format!("timeout=0&since={since}");
    let first = bob.sync(&query).await;
    let events = first["to_device"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (&events[0]["sender"], &events[0]["content"]["note"]),
        (&json!(alice.user), &json!("hello"))
    );
    let again = bob.sync(&query).await;
    assert_eq!(
        again["to_device"]["events"].as_array().unwrap().len(),
        1,
        "not acknowledged yet"
    );
    let next = encode(first["next_batch"].as_str().unwrap());
    let then = bob.sync(&format!("timeout=0&since={next}")).await;
    assert_eq!(
        then["to_device"]["events"].as_array().map_or(0, Vec::len),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_devices_are_told_to_those_who_share_a_room() {
    let server = Server::start().await;
    let (alice, bob) = two(&server).await;
    let carol = server.client().register("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let before = bob.sync("timeout=0").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    let carols = carol.sync("timeout=0").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    let keys = json!({ "device_keys": device_keys(&alice) });
    alice
        .post("/_matrix/client/v3/keys/upload", keys)
        .await
        .ok();
    let told = bob
        .sync(&format!("timeout=0&since={}", encode(&before)))
        .await;
    assert_eq!(told["device_lists"]["changed"], json!([alice.user]));
    let untold = carol
        .sync(&format!("timeout=0&since={}", encode(&carols)))
        .await;
    assert!(!untold["device_lists"].to_string().contains(&alice.user));
    let to = told["next_batch"].as_str().unwrap();
    let path = format!(
        "/_matrix/client/v3/keys/changes?from={}&to={}",
        encode(&before),
        encode(to)
    );
    assert_eq!(bob.get(&path).await.ok()["changed"], json!([alice.user]));
    let leave = format!("/_matrix/client/v3/rooms/{}/leave", encode(&room));
    alice.post(&leave, json!({})).await.ok();
    let left = bob.sync(&format!("timeout=0&since={}", encode(to))).await;
    assert_eq!(left["device_lists"]["left"], json!([alice.user]));
}
