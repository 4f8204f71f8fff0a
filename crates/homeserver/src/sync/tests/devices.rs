//! Keys, device lists, to-device messages.

use super::*;

/// Uploads identity keys with signatures that no server checks; another `key` is a change.
pub(super) async fn upload_keys(user: &User, key: &str) {
    let (id, device) = (user.id(), &user.session.device);
    let name = format!("ed25519:{device}");
    let keys = json!({
        "user_id": id, "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { name.clone(): key }, "signatures": { id: { name: "signature" } },
    });
    let body = json!({ "device_keys": keys });
    user.post("keys/upload", body).await.ok();
}

fn changed(sync: &Value) -> Vec<String> {
    let list = sync["device_lists"]["changed"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .map(|user| user.as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn messages_to_a_device_wait_until_they_are_acknowledged() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let phone = world.device("bob").await;
    let start = next(&bob.sync("").await);
    let body = json!({ "messages": { bob.id(): { "*": { "secret": 1 } } } });
    alice
        .put("sendToDevice/org.example.test/t1", body.clone())
        .await
        .ok();
    // The same transaction again sends nothing.
    alice
        .put("sendToDevice/org.example.test/t1", body)
        .await
        .ok();
    let expected =
        json!({ "type": "org.example.test", "sender": alice.id(), "content": { "secret": 1 } });
    let first = bob.since(&start, "").await;
    assert_eq!(events(&first["to_device"]), std::slice::from_ref(&expected));
    // Not acknowledged yet: told again.
    let again = bob.since(&start, "").await;
    assert_eq!(events(&again["to_device"]), std::slice::from_ref(&expected));
    let after = bob.since(&next(&again), "").await;
    assert!(after.get("to_device").is_none());
    // It is gone for good, also with the old token.
    assert!(bob.since(&start, "").await.get("to_device").is_none());
    // The token of one device acknowledges nothing for another.
    let phone_token = phone.since(&next(&again), "").await;
    assert_eq!(events(&phone_token["to_device"]), [expected]);
}

#[tokio::test]
async fn many_messages_come_in_pages() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let mut token = next(&bob.sync("").await);
    for number in 0..130 {
        let body =
            json!({ "messages": { bob.id(): { bob.session.device.clone(): { "n": number } } } });
        alice
            .put(&format!("sendToDevice/x/t{number}"), body)
            .await
            .ok();
    }
    let mut seen = Vec::new();
    while seen.len() < 130 {
        let sync = bob.since(&token, "").await;
        let page = events(&sync["to_device"]);
        assert!(!page.is_empty() && page.len() <= 100);
        seen.extend(
            page.into_iter()
                .map(|event| event["content"]["n"].as_u64().unwrap()),
        );
        token = next(&sync);
    }
    assert_eq!(seen, (0..130).collect::<Vec<_>>());
}

#[tokio::test]
async fn key_counts_are_always_told_and_wake() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let sync = alice.sync("").await;
    assert_eq!(sync["device_one_time_keys_count"], json!({}));
    assert_eq!(sync["device_unused_fallback_key_types"], json!([]));
    let upload = json!({
        "one_time_keys": { "curve25519:A": "a2V5", "curve25519:B": "a2V5Mg" },
        "fallback_keys": { "curve25519:F": "a2V5Mw" },
    });
    let counts = alice.post("keys/upload", upload.clone()).await.ok();
    assert_eq!(counts["one_time_key_counts"], json!({ "curve25519": 2 }));
    alice.post("keys/upload", upload).await.ok();
    let other = json!({ "one_time_keys": { "curve25519:A": "b3RoZXI" } });
    assert_eq!(alice.post("keys/upload", other).await.status, 400);
    let sync = alice.since(&next(&sync), "timeout=60000").await;
    assert_eq!(
        sync["device_one_time_keys_count"],
        json!({ "curve25519": 2 })
    );
    assert_eq!(
        sync["device_unused_fallback_key_types"],
        json!(["curve25519"])
    );

    let bob = world.user("bob").await;
    let claim =
        json!({ "one_time_keys": { alice.id(): { alice.session.device.clone(): "curve25519" } } });
    let mut names = Vec::new();
    for _ in 0..3 {
        let claimed = bob.post("keys/claim", claim.clone()).await.ok();
        let keys = &claimed["one_time_keys"][alice.id()][&alice.session.device];
        names.extend(keys.as_object().unwrap().keys().cloned());
    }
    assert_eq!(names, ["curve25519:A", "curve25519:B", "curve25519:F"]);
    let sync = alice.since(&next(&sync), "timeout=60000").await;
    assert_eq!(sync["device_unused_fallback_key_types"], json!([]));
}

#[tokio::test]
async fn changed_device_lists_are_told_to_those_who_share_a_room() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let stranger = world.user("stranger").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let start = next(&alice.sync("").await);
    bob.join(&room).await;
    let sync = alice.since(&start, "").await;
    assert_eq!(changed(&sync), [bob.id()]);
    let token = next(&sync);
    for user in [&bob, &stranger] {
        upload_keys(user, "key").await;
    }
    let sync = alice.since(&token, "").await;
    assert_eq!(changed(&sync), [bob.id()]);

    let between = alice
        .get(&format!("keys/changes?from={start}&to={}", next(&sync)))
        .await
        .ok();
    assert_eq!(between["changed"], json!([bob.id()]));
    alice
        .get("keys/changes?from=x&to=y")
        .await
        .refused(400, "M_INVALID_PARAM");
    bob.leave(&room).await;
    let sync = alice.since(&next(&sync), "").await;
    assert_eq!(sync["device_lists"]["left"], json!([bob.id()]));
}

#[tokio::test]
async fn the_first_cross_signing_upload_and_a_probe_need_no_password() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    for path in [
        "/_matrix/client/unstable/keys/device_signing/upload",
        "/_matrix/client/v3/keys/device_signing/upload",
    ] {
        let token = Some(&*alice.session.token);
        world.fresh.post(path, token, Value::Null).await.ok();
        world.fresh.post(path, token, json!({})).await.ok();
    }
    let master = |key: &str| {
        let id = format!("ed25519:{key}");
        json!({ "master_key": { "user_id": alice.id(), "usage": ["master"], "keys": { id: key } } })
    };
    let first = master("XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI");
    alice
        .post("keys/device_signing/upload", first.clone())
        .await
        .ok();
    alice.post("keys/device_signing/upload", first).await.ok();
    let other = master("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    let challenge = alice
        .post("keys/device_signing/upload", other.clone())
        .await;
    assert_eq!(challenge.status, 401);
    assert!(challenge.body["flows"].is_array());
    let mut proven = other;
    proven["auth"] = crate::http::tests::own_password("alice");
    proven["auth"]["session"] = challenge.body["session"].clone();
    alice.post("keys/device_signing/upload", proven).await.ok();
    let keys = alice
        .post("keys/query", json!({ "device_keys": { alice.id(): [] } }))
        .await
        .ok();
    assert!(keys["master_keys"][alice.id()].is_object());
}
