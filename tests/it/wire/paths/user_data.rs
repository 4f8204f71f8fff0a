//! Profiles, account data, filters, push rules, pushers, keys, messages to devices.

use homeserver_tests::encode;
use serde_json::json;

use super::{
    super::signing::{KeyPair, device_keys},
    Teller,
};

pub(super) async fn profile(teller: &Teller) {
    let owner = teller.register("face").await;
    let base = format!("/_matrix/client/v3/profile/{}", owner.user);
    for (field, value) in [
        ("displayname", "Face"),
        ("avatar_url", "mxc://localhost/face"),
        ("org.example.pet", "cat"),
    ] {
        let path = format!("{base}/{field}");
        owner.put(&path, json!({ (field): value })).await.ok();
        let read = teller.nobody.get(&path).await.ok();
        assert_eq!(read, json!({ (field): value }));
    }
    let all = teller.nobody.get(&base).await.ok();
    assert_eq!(all["org.example.pet"], "cat");
    for field in ["displayname", "avatar_url", "org.example.pet"] {
        owner.delete(&format!("{base}/{field}")).await.ok();
    }
    assert_eq!(teller.nobody.get(&base).await.ok(), json!({}));
}

pub(super) async fn account_data(teller: &Teller) {
    let owner = teller.register("keeper").await;
    let room = owner.create_room(json!({})).await;
    let user = format!("/_matrix/client/v3/user/{}", owner.user);
    let in_room = format!("{user}/rooms/{}", encode(&room));
    for base in [&user, &in_room] {
        let path = format!("{base}/account_data/org.example.note");
        owner.put(&path, json!({ "note": 1 })).await.ok();
        assert_eq!(owner.get(&path).await.ok(), json!({ "note": 1 }));
    }
    let tag = format!("{in_room}/tags/m.favourite");
    owner.put(&tag, json!({ "order": 0.5 })).await.ok();
    let tags = owner.get(&format!("{in_room}/tags")).await.ok();
    assert_eq!(tags["tags"]["m.favourite"]["order"], 0.5);
    owner.delete(&tag).await.ok();

    let filter = json!({ "room": { "timeline": { "limit": 3 } } });
    let path = format!("{user}/filter");
    let id = owner.post(&path, filter).await.text("filter_id");
    let kept = owner.get(&format!("{path}/{id}")).await.ok();
    assert_eq!(kept["room"]["timeline"]["limit"], 3);
}

pub(super) async fn push(teller: &Teller) {
    let owner = teller.register("pushed").await;
    let all = owner.get("/_matrix/client/v3/pushrules/").await.ok();
    assert!(all["global"]["override"].is_array());
    let base = "/_matrix/client/v3/pushrules/global/";
    let rules = owner.get(base).await.ok();
    assert_eq!(rules, all["global"]);
    let rule = format!("{base}content/soup");
    owner
        .put(&rule, json!({ "pattern": "soup", "actions": ["notify"] }))
        .await
        .ok();
    for (part, value) in [("enabled", json!(false)), ("actions", json!([]))] {
        let path = format!("{rule}/{part}");
        owner.put(&path, json!({ (part): value })).await.ok();
        assert_eq!(owner.get(&path).await.ok(), json!({ (part): value }));
    }
    assert_eq!(owner.get(&rule).await.text("pattern"), "soup");
    owner.delete(&rule).await.ok();

    let pusher = json!({
        "kind": "http", "app_id": "org.example.app", "pushkey": "key", "lang": "en",
        "app_display_name": "App", "device_display_name": "Phone",
        "data": { "url": "https://push.example.org/_matrix/push/v1/notify" },
    });
    let path = "/_matrix/client/v3/pushers/set";
    owner.post(path, pusher).await.ok();
    let pushers = owner.get("/_matrix/client/v3/pushers").await.ok();
    assert_eq!(pushers["pushers"][0]["pushkey"], "key");
}

pub(super) async fn keys(teller: &Teller) {
    let owner = teller.register("keys").await;
    let (user, device) = (&owner.user, &owner.device);
    let since = owner.sync("timeout=0").await;
    let (master, own) = (KeyPair::new(user, 1), KeyPair::new(user, 2));
    let mut self_signing = own.cross_signing_key("self_signing");
    master.sign(&mut self_signing);
    let wish = json!({
        "master_key": master.cross_signing_key("master"), "self_signing_key": self_signing,
    });
    let path = "/_matrix/client/v3/keys/device_signing/upload";
    owner.post(path, wish).await.ok();
    let mut device_keys = device_keys(&owner, 3);
    let upload = "/_matrix/client/v3/keys/upload";
    owner
        .post(upload, json!({ "device_keys": device_keys }))
        .await
        .ok();
    own.sign(&mut device_keys);
    let path = "/_matrix/client/v3/keys/signatures/upload";
    let signed = json!({ (user): { (device): device_keys } });
    let answer = owner.post(path, signed).await.ok();
    assert!(answer.get("failures").is_none_or(|it| it == &json!({})));

    let one_time = json!({ "signed_curve25519:A": { "key": "b".repeat(43), "signatures": {} } });
    let uploaded = owner
        .post(upload, json!({ "one_time_keys": one_time }))
        .await
        .ok();
    assert_eq!(uploaded["one_time_key_counts"]["signed_curve25519"], 1);
    let query = json!({ "device_keys": { (user): [] } });
    let found = owner
        .post("/_matrix/client/v3/keys/query", query)
        .await
        .ok();
    assert_eq!(found["master_keys"][user]["usage"], json!(["master"]));
    let signatures = &found["device_keys"][user][device]["signatures"][user];
    assert!(signatures[format!("ed25519:{}", own.public())].is_string());
    let wish = json!({ "one_time_keys": { (user): { (device): "signed_curve25519" } } });
    let claimed = owner.post("/_matrix/client/v3/keys/claim", wish).await.ok();
    assert!(claimed["one_time_keys"][user][device].is_object());

    let path = "/_matrix/client/v3/sendToDevice/org.example.note/t1";
    let note = json!({ "messages": { (user): { (device): { "note": 1 } } } });
    owner.put(path, note).await.ok();
    let from = encode(since["next_batch"].as_str().unwrap());
    let now = owner.sync(&format!("timeout=0&since={from}")).await;
    assert_eq!(now["to_device"]["events"][0]["content"]["note"], 1);
    let to = encode(now["next_batch"].as_str().unwrap());
    let path = format!("/_matrix/client/v3/keys/changes?from={from}&to={to}");
    assert_eq!(owner.get(&path).await.ok()["changed"], json!([user]));
}
