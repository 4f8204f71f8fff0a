use std::time::Duration;

use serde_json::json;

use super::{fresh, own_password};

const DEVICES: &str = "/_matrix/client/v3/devices";
const DELETE: &str = "/_matrix/client/v3/delete_devices";

#[tokio::test]
async fn devices_are_listed_shown_and_renamed() {
    let fresh = fresh().await;
    let one = fresh.register("alice").await;
    fresh.clock.advance(Duration::from_secs(5));
    let two = fresh.login("alice").await;
    let bob = fresh.register("bob").await;
    fresh.get(DEVICES, Some(&two.token)).await.ok();
    let body = fresh.get(DEVICES, Some(&one.token)).await.ok();
    let devices = body["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    // What is not known is left out.
    let nameless = devices.iter().find(|it| it["device_id"] == two.device);
    let nameless = nameless.unwrap().as_object().unwrap();
    assert!(!nameless.contains_key("display_name") && !nameless.contains_key("last_seen_ip"));
    let path = format!("{DEVICES}/{}", two.device);
    let device = fresh.get(&path, Some(&one.token)).await.ok();
    assert_eq!(device["device_id"], two.device);
    fresh
        .get(&path, Some(&bob.token))
        .await
        .refused(404, "M_NOT_FOUND");
    fresh.get(&path, None).await.refused(401, "M_MISSING_TOKEN");

    let name = json!({ "display_name": "Phone" });
    fresh.put(&path, Some(&one.token), name.clone()).await.ok();
    fresh.put(&path, Some(&one.token), json!({})).await.ok();
    let device = fresh.get(&path, Some(&one.token)).await.ok();
    assert_eq!(device["display_name"], "Phone");
    // Written without waiting, but before the new name.
    assert_eq!(device["last_seen_ts"], 1_700_000_005_000_u64);
    fresh
        .put(&path, Some(&bob.token), name.clone())
        .await
        .refused(404, "M_NOT_FOUND");
    let missing = format!("{DEVICES}/MISSING");
    fresh
        .put(&missing, Some(&one.token), name)
        .await
        .refused(404, "M_NOT_FOUND");
    fresh
        .put(&missing, Some(&one.token), json!({}))
        .await
        .refused(404, "M_NOT_FOUND");
    let long = json!({ "display_name": "x".repeat(2_000) });
    fresh
        .put(&path, Some(&one.token), long)
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn deleting_a_device_takes_the_password_and_ends_its_tokens() {
    let fresh = fresh().await;
    let [one, two] = [fresh.register("alice").await, fresh.login("alice").await];
    fresh.register("bob").await;
    let path = format!("{DEVICES}/{}", two.device);
    let asked = fresh.delete(&path, Some(&one.token), json!({})).await;
    assert_eq!(asked.status, 401);
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.password"] }])
    );
    let session = &asked.body["session"];
    for mut auth in [own_password("bob"), own_password("alice")] {
        auth["session"] = session.clone();
        if auth == own_password("bob") || auth["identifier"]["user"] == "bob" {
            let answer = fresh
                .delete(&path, Some(&one.token), json!({ "auth": auth }))
                .await;
            answer.refused(401, "M_FORBIDDEN");
            assert_eq!(answer.body["session"], *session);
        } else {
            fresh
                .delete(&path, Some(&one.token), json!({ "auth": auth }))
                .await
                .ok();
        }
    }
    assert!(!fresh.is_good(&two.token).await);
    fresh
        .get(&path, Some(&one.token))
        .await
        .refused(404, "M_NOT_FOUND");
    // What is gone can be deleted again.
    let auth = json!({ "auth": own_password("alice") });
    fresh.delete(&path, Some(&one.token), auth).await.ok();
}

#[tokio::test]
async fn several_devices_are_deleted_by_one_request_for_just_them() {
    let fresh = fresh().await;
    let one = fresh.register("alice").await;
    let two = fresh.login("alice").await;
    let three = fresh.login("alice").await;
    let bob = fresh.register("bob").await;
    let body = json!({ "devices": [two.device, "MISSING", bob.device] });
    let asked = fresh.post(DELETE, Some(&one.token), body.clone()).await;
    assert_eq!(asked.status, 401);
    let mut proven = body;
    proven["auth"] = own_password("alice");
    proven["auth"]["session"] = asked.body["session"].clone();
    fresh
        .post(DELETE, Some(&one.token), proven.clone())
        .await
        .ok();
    assert!(!fresh.is_good(&two.token).await);
    assert!(fresh.is_good(&three.token).await && fresh.is_good(&bob.token).await);
    // The session is spent.
    proven["auth"] = json!({ "session": proven["auth"]["session"] });
    let answer = fresh.post(DELETE, Some(&one.token), proven).await;
    assert_eq!(answer.status, 401);
    fresh
        .post(DELETE, Some(&one.token), json!({}))
        .await
        .refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn ids_that_no_device_can_have_are_not_there() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let long = "x".repeat(2_000);
    let path = format!("{DEVICES}/{long}");
    fresh
        .get(&path, Some(&alice.token))
        .await
        .refused(404, "M_NOT_FOUND");
    let user = &alice.user;
    let claim = json!({ "one_time_keys": { user: { &long: &long, &alice.device: &long } } });
    let claimed = fresh
        .post("/_matrix/client/v3/keys/claim", Some(&alice.token), claim)
        .await
        .ok();
    assert_eq!(claimed["one_time_keys"], json!({}));
    let many: Vec<_> = (0..=homeserver_users::MAX_DEVICES)
        .map(|number| format!("D{number}"))
        .collect();
    fresh
        .post(DELETE, Some(&alice.token), json!({ "devices": many }))
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn messages_to_devices_are_objects() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    for content in [json!(null), json!(7), json!("x"), json!([])] {
        let body = json!({ "messages": { &alice.user: { "*": content } } });
        let path = "/_matrix/client/v3/sendToDevice/org.example/1";
        let answer = fresh.put(path, Some(&alice.token), body).await;
        answer.refused(400, "M_BAD_JSON");
    }
}
