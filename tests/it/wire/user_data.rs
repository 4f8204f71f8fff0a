//! Profiles, account data, tags, filters, push rules, read markers.

use homeserver_tests::{Server, encode};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn profiles_have_custom_fields() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let base = format!("/_matrix/client/v3/profile/{}", encode(&alice.user));
    alice
        .put(
            &format!("{base}/displayname"),
            json!({ "displayname": "Alice" }),
        )
        .await
        .ok();
    alice
        .put(
            &format!("{base}/avatar_url"),
            json!({ "avatar_url": "mxc://a/b" }),
        )
        .await
        .ok();
    alice
        .put(
            &format!("{base}/org.example.pet"),
            json!({ "org.example.pet": "cat" }),
        )
        .await
        .ok();
    let profile = bob.get(&base).await.ok();
    assert_eq!(profile["displayname"], "Alice");
    assert_eq!(profile["org.example.pet"], "cat");
    let field = bob.get(&format!("{base}/displayname")).await.ok();
    assert_eq!(field, json!({ "displayname": "Alice" }));
    let path = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.member/{}",
        encode(&room),
        encode(&alice.user)
    );
    let member = alice.get(&path).await.ok();
    assert_eq!(
        (&member["displayname"], &member["membership"]),
        (&json!("Alice"), &json!("join"))
    );

    let refused = bob
        .put(
            &format!("{base}/displayname"),
            json!({ "displayname": "x" }),
        )
        .await;
    refused.expect_error(403, "M_FORBIDDEN");
    alice.delete(&format!("{base}/org.example.pet")).await.ok();
    let gone = bob.get(&format!("{base}/org.example.pet")).await;
    gone.expect_error(404, "M_NOT_FOUND");
    let long = "k".repeat(256);
    let long = alice
        .put(&format!("{base}/{long}"), json!({ (&long): 1 }))
        .await;
    long.expect_error(400, "M_KEY_TOO_LARGE");
    let large = json!({ "org.example.large": "x".repeat(70_000) });
    let large = alice.put(&format!("{base}/org.example.large"), large).await;
    large.expect_error(400, "M_PROFILE_TOO_LARGE");
    let stranger = bob
        .get("/_matrix/client/v3/profile/@nobody:localhost")
        .await;
    stranger.expect_error(404, "M_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn account_data_belongs_to_its_user() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let user = format!("/_matrix/client/v3/user/{}", encode(&alice.user));
    let in_room = format!("{user}/rooms/{}", encode(&room));
    let since = alice.sync("timeout=0").await["next_batch"]
        .as_str()
        .unwrap()
        .to_owned();
    alice
        .put(&format!("{user}/account_data/m.direct"), json!({ "a": [] }))
        .await
        .ok();
    alice
        .put(
            &format!("{in_room}/account_data/org.example"),
            json!({ "b": 1 }),
        )
        .await
        .ok();
    alice
        .put(
            &format!("{in_room}/tags/m.favourite"),
            json!({ "order": 0.25 }),
        )
        .await
        .ok();
    assert_eq!(
        alice
            .get(&format!("{user}/account_data/m.direct"))
            .await
            .ok(),
        json!({ "a": [] })
    );
    let tags = alice.get(&format!("{in_room}/tags")).await.ok();
    assert_eq!(tags["tags"]["m.favourite"]["order"], 0.25);

    let synced = alice
        .sync(&format!("timeout=0&since={}", encode(&since)))
        .await;
    let global = synced["account_data"]["events"].as_array().unwrap();
    assert!(global.iter().any(|event| event["type"] == "m.direct"));
    let own = synced["rooms"]["join"][&room]["account_data"]["events"]
        .as_array()
        .unwrap();
    assert!(own.iter().any(|event| event["type"] == "org.example"));
    assert!(own.iter().any(|event| event["type"] == "m.tag"));

    alice
        .delete(&format!("{in_room}/tags/m.favourite"))
        .await
        .ok();
    assert_eq!(
        alice.get(&format!("{in_room}/tags")).await.ok()["tags"],
        json!({})
    );
    let missing = alice.get(&format!("{user}/account_data/org.none")).await;
    missing.expect_error(404, "M_NOT_FOUND");
    let path = format!("{user}/account_data/m.direct");
    bob.get(&path).await.expect_error(403, "M_FORBIDDEN");
    bob.put(&path, json!({}))
        .await
        .expect_error(403, "M_FORBIDDEN");
    for kind in ["m.push_rules", "m.fully_read"] {
        let refused = alice
            .put(&format!("{user}/account_data/{kind}"), json!({}))
            .await;
        assert_eq!(refused.status, 405, "{kind}: {}", refused.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_kept() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let user = format!("/_matrix/client/v3/user/{}/filter", encode(&alice.user));
    let filter = json!({ "room": { "timeline": { "limit": 3 } } });
    let id = alice.post(&user, filter.clone()).await.text("filter_id");
    assert_eq!(
        alice.get(&format!("{user}/{id}")).await.ok()["room"]["timeline"]["limit"],
        3
    );
    alice.sync(&format!("timeout=0&filter={id}")).await;
    alice
        .get(&format!("{user}/no-such-filter"))
        .await
        .expect_error(404, "M_NOT_FOUND");
    bob.post(&user, filter)
        .await
        .expect_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn push_rules_change() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let base = "/_matrix/client/v3/pushrules/";
    let rules = alice.get(base).await.ok();
    assert_eq!(rules["global"]["override"][0]["rule_id"], ".m.rule.master");
    let rule = format!("{base}global/content/soup");
    alice
        .put(&rule, json!({ "pattern": "soup", "actions": ["notify"] }))
        .await
        .ok();
    assert_eq!(alice.get(&rule).await.ok()["pattern"], "soup");
    alice
        .put(&format!("{rule}/enabled"), json!({ "enabled": false }))
        .await
        .ok();
    assert_eq!(
        alice.get(&format!("{rule}/enabled")).await.ok()["enabled"],
        false
    );
    alice
        .put(&format!("{rule}/actions"), json!({ "actions": [] }))
        .await
        .ok();
    assert_eq!(
        alice.get(&format!("{rule}/actions")).await.ok()["actions"],
        json!([])
    );
    let synced = alice.sync("timeout=0").await;
    let data = synced["account_data"]["events"].as_array().unwrap();
    let pushed = data
        .iter()
        .find(|event| event["type"] == "m.push_rules")
        .unwrap();
    assert_eq!(pushed["content"]["global"]["content"][0]["rule_id"], "soup");
    alice.delete(&rule).await.ok();
    alice.get(&rule).await.expect_error(404, "M_NOT_FOUND");
    alice.delete(&rule).await.expect_error(404, "M_NOT_FOUND");
    let reserved = format!("{base}global/content/.mine");
    let reserved = alice
        .put(&reserved, json!({ "pattern": "x", "actions": [] }))
        .await;
    assert_eq!(reserved.status, 400, "{}", reserved.body);
    let before = format!("{base}global/content/bread?before=no-such-rule");
    let before = alice
        .put(&before, json!({ "pattern": "x", "actions": [] }))
        .await;
    assert_eq!(before.status, 404, "{}", before.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_markers_move_together() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let room = alice.create_room(json!({})).await;
    let event = alice.say(&room, "read").await;
    let path = format!("/_matrix/client/v3/rooms/{}/read_markers", encode(&room));
    alice
        .post(&path, json!({ "m.fully_read": event, "m.read": event }))
        .await
        .ok();
    let synced = alice.sync("timeout=0").await;
    let data = synced["rooms"]["join"][&room]["account_data"]["events"]
        .as_array()
        .unwrap();
    let marker = data
        .iter()
        .find(|event| event["type"] == "m.fully_read")
        .unwrap();
    assert_eq!(marker["content"]["event_id"], json!(event));
    let path = format!(
        "/_matrix/client/v3/rooms/{}/receipt/m.unheard/{}",
        encode(&room),
        event
    );
    assert_eq!(alice.post(&path, json!({})).await.status, 400);
}
