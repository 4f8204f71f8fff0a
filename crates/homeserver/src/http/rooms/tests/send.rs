//! Sending, redacting, transaction ids.

use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

use super::{World, encode, event_id, in_room};

fn send_path(room: &str, kind: &str, transaction: &str) -> String {
    in_room(room, &format!("send/{kind}/{transaction}"))
}

#[tokio::test]
async fn refusals() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let levels = json!({ "events_default": 50 });
    let wish = json!({ "preset": "public_chat", "power_level_content_override": levels });
    let room = alice.create(wish).await;
    let path = send_path(&room, "m.room.message", "t");
    let text = json!({ "msgtype": "m.text", "body": "hello" });
    bob.put(&path, text.clone())
        .await
        .refused(403, "M_FORBIDDEN");
    bob.join(&room).await;
    bob.put(&path, text.clone())
        .await
        .refused(403, "M_FORBIDDEN");
    let nowhere = send_path("!nowhere:example.org", "m.room.message", "t");
    alice
        .put(&nowhere, text.clone())
        .await
        .refused(403, "M_FORBIDDEN");
    world
        .nobody()
        .put(&path, text)
        .await
        .refused(401, "M_MISSING_TOKEN");
    let cases = [
        (json!({ "body": "x".repeat(70_000) }), 413, "M_TOO_LARGE"),
        (json!({ "half": 0.5 }), 400, "M_BAD_JSON"),
        (
            json!({ "large": 9_007_199_254_740_992_u64 }),
            400,
            "M_BAD_JSON",
        ),
        (json!([]), 400, "M_BAD_JSON"),
        (json!("text"), 400, "M_BAD_JSON"),
    ];
    for (content, status, code) in cases {
        alice.put(&path, content).await.refused(status, code);
    }
    let token = alice.token.as_deref();
    // Numbers that other servers could not read, or would read as others, are in no event.
    for (body, code) in [
        ("{not json", "M_NOT_JSON"),
        (r#"{"a": NaN}"#, "M_NOT_JSON"),
        (r#"{"a": -Infinity}"#, "M_NOT_JSON"),
        (r#"{"a": 1e999}"#, "M_BAD_JSON"),
        (r#"{"a": 1e2}"#, "M_BAD_JSON"),
        (r#"{"a": 1.0}"#, "M_BAD_JSON"),
        (r#"{"a": [{"b": -0.0}]}"#, "M_BAD_JSON"),
        (r#"{"a": -9007199254740992}"#, "M_BAD_JSON"),
    ] {
        let sent = world
            .fresh
            .send_bytes(Method::PUT, &path, token, Body::from(body));
        let answer = sent.await;
        assert_eq!(
            (answer.status, &answer.body["errcode"]),
            (400, &json!(code)),
            "{body}"
        );
    }
    let long = send_path(&room, &"t".repeat(256), "t");
    let long = alice.put(&long, json!({})).await;
    assert!([400, 413].contains(&long.status), "{}", long.body);
    // Nothing that was refused used up the transaction id.
    alice.put(&path, json!({ "body": "fits" })).await.ok();
}

#[tokio::test]
async fn a_transaction_counts_once_per_device_and_endpoint() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let phone = world.login("alice").await;
    let room = alice.create(json!({})).await;
    let path = send_path(&room, "m.room.message", "once");
    let old = path.replace("/v3/", "/r0/");
    let first = event_id(&alice.put(&path, json!({ "body": "1" })).await.ok());
    for again in [&path, &old] {
        let event = event_id(&alice.put(again, json!({ "body": "2" })).await.ok());
        assert_eq!(event, first, "{again}");
    }
    let others = [
        (&phone, path.clone()),
        (&alice, send_path(&room, "org.example.other", "once")),
        (
            &alice,
            send_path(&alice.create(json!({})).await, "m.room.message", "once"),
        ),
    ];
    for (user, path) in others {
        let event = event_id(&user.put(&path, json!({ "body": "3" })).await.ok());
        assert_ne!(event, first, "{path}");
    }
    let at_once = send_path(&room, "m.room.message", "race");
    let send = || alice.put(&at_once, json!({ "body": "race" }));
    let (one, two, three) = tokio::join!(send(), send(), send());
    let events = [one, two, three].map(|answer| event_id(&answer.ok()));
    assert!(events.iter().all(|event| *event == events[0]), "{events:?}");
}

#[tokio::test]
async fn the_transaction_id_is_for_the_sending_device_only() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let phone = world.login("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let event = alice.say(&room, "my-own").await;
    let path = in_room(&room, &format!("event/{}", encode(&event)));
    let unsigned = async |user: &super::User| user.get(&path).await.ok()["unsigned"].clone();
    assert_eq!(unsigned(&alice).await["transaction_id"], "my-own");
    for user in [&phone, &bob] {
        let unsigned = unsigned(user).await;
        assert!(unsigned.get("transaction_id").is_none(), "{unsigned}");
        assert!(unsigned["age"].is_u64(), "{unsigned}");
        assert_eq!(unsigned["membership"], "join");
    }
}

#[tokio::test]
async fn an_annotation_counts_once_until_it_is_redacted() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let target = alice.say(&room, "target").await;
    let reaction = |key: &str| json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": target, "key": key } });
    let path = |transaction: &str| send_path(&room, "m.reaction", transaction);
    let first = event_id(&alice.put(&path("1"), reaction("a")).await.ok());
    alice
        .put(&path("2"), reaction("a"))
        .await
        .refused(400, "M_DUPLICATE_ANNOTATION");
    alice.put(&path("1"), reaction("a")).await.ok();
    alice.put(&path("3"), reaction("b")).await.ok();
    bob.put(&path("4"), reaction("a")).await.ok();
    let redact = in_room(&room, &format!("redact/{}/5", encode(&first)));
    alice.put(&redact, json!({})).await.ok();
    alice.put(&path("6"), reaction("a")).await.ok();
}

#[tokio::test]
async fn threads_do_not_nest() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let root = alice.say(&room, "root").await;
    let thread = |root: &str| json!({ "rel_type": "m.thread", "event_id": root });
    let reply = event_id(&alice.relate(&room, "reply", thread(&root)).await.ok());
    alice
        .relate(&room, "nested", thread(&reply))
        .await
        .refused(400, "M_UNKNOWN");
    alice.relate(&room, "second", thread(&root)).await.ok();
    let plain = json!({ "m.in_reply_to": { "event_id": root } });
    let plain = event_id(&alice.relate(&room, "plain", plain).await.ok());
    alice.relate(&room, "from-reply", thread(&plain)).await.ok();
}

#[tokio::test]
async fn redactions_are_judged_and_applied_on_both_ways() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    for version in ["1", "10", "11", "12"] {
        let wish = json!({ "preset": "public_chat", "room_version": version });
        let room = alice.create(wish).await;
        bob.join(&room).await;
        let [hers, his, his_too] = [
            alice.say(&room, "hers").await,
            bob.say(&room, "his").await,
            bob.say(&room, "his-too").await,
        ];
        let redact =
            |event: &str, id: &str| in_room(&room, &format!("redact/{}/{id}", encode(event)));
        let refused = bob.put(&redact(&hers, "r1"), json!({})).await;
        refused.refused(403, "M_FORBIDDEN");
        let seen = async |event: &str| -> Value {
            alice
                .get(&in_room(&room, &format!("event/{}", encode(event))))
                .await
                .ok()
        };
        assert_eq!(
            seen(&hers).await["content"]["body"],
            "hers",
            "version {version}"
        );
        let done = bob
            .put(&redact(&his, "r2"), json!({ "reason": "typo" }))
            .await
            .ok();
        let gone = seen(&his).await;
        assert_eq!(gone["content"], json!({}), "version {version}");
        let because = &gone["unsigned"]["redacted_because"];
        assert_eq!(because["event_id"], done["event_id"], "version {version}");
        assert_eq!(because["content"]["reason"], "typo", "version {version}");
        assert_eq!(
            because["content"]["redacts"],
            json!(his),
            "version {version}"
        );
        assert_eq!(because["redacts"], json!(his), "version {version}");
        let sent = json!({ "redacts": his_too, "reason": "sent" });
        alice
            .put(&send_path(&room, "m.room.redaction", "r3"), sent)
            .await
            .ok();
        assert_eq!(
            seen(&his_too).await["content"],
            json!({}),
            "version {version}"
        );
    }
}

#[tokio::test]
async fn redactions_of_nothing() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let path = in_room(&room, "redact/%24nothing/t");
    let answer = alice.put(&path, json!({})).await;
    answer.refused(404, "M_NOT_FOUND");
    let path = send_path(&room, "m.room.redaction", "t");
    for content in [json!({}), json!({ "redacts": 3 })] {
        alice.put(&path, content).await.refused(400, "M_BAD_JSON");
    }
}

/// Wherever an event is shown, what was redacted is not.
#[tokio::test]
async fn nothing_redacted_is_shown_anywhere() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let wish = json!({ "preset": "public_chat", "visibility": "public" });
    let room = alice.create(wish).await;
    bob.join(&room).await;
    let root = alice.say(&room, "root").await;
    let state = async |kind: &str, content: Value| {
        event_id(&alice.set_state(&room, kind, "", content).await.ok())
    };
    let name = state("m.room.name", json!({ "name": "hush" })).await;
    let topic = state("m.room.topic", json!({ "topic": "hush" })).await;
    let replaced = state("m.room.avatar", json!({ "url": "mxc://example.org/hush" })).await;
    let newer = state("m.room.avatar", json!({ "url": "mxc://example.org/open" })).await;
    let thread = json!({ "rel_type": "m.thread", "event_id": root });
    let content = json!({ "msgtype": "m.text", "body": "hush", "m.relates_to": thread });
    let path = send_path(&room, "m.room.message", "r");
    let reply = event_id(&alice.put(&path, content).await.ok());
    let events = [&name, &topic, &replaced, &reply];
    let mut shown = vec![
        in_room(&room, "messages?dir=b&limit=100"),
        in_room(&room, "messages?dir=f&limit=100"),
        in_room(&room, &format!("relations/{}", encode(&root))).replace("/v3/", "/v1/"),
        in_room(&room, "state"),
        in_room(&room, &format!("context/{}?limit=100", encode(&root))),
        "/_matrix/client/v3/sync".to_owned(),
        "/_matrix/client/v3/sync?full_state=true".to_owned(),
        "/_matrix/client/v3/publicRooms".to_owned(),
        format!("/_matrix/client/v1/room_summary/{}", encode(&room)),
    ];
    for event in events.into_iter().chain([&newer]) {
        shown.push(in_room(&room, &format!("event/{}", encode(event))));
        shown.push(in_room(&room, &format!("context/{}", encode(event))));
    }
    let hushed = async || {
        let mut hushed = 0;
        for path in &shown {
            let answer = bob.get(path).await.ok();
            hushed += usize::from(answer.to_string().contains("hush"));
        }
        hushed
    };
    assert_eq!(
        hushed().await,
        shown.len(),
        "every one of them tells it before"
    );
    let mut redactions = Vec::new();
    for (number, event) in events.into_iter().enumerate() {
        let path = in_room(&room, &format!("redact/{}/x{number}", encode(event)));
        redactions.push(event_id(&alice.put(&path, json!({})).await.ok()));
    }
    assert_eq!(hushed().await, 0);
    for key in ["m.room.name", "m.room.topic"] {
        assert_eq!(bob.state(&room, key).await, json!({}));
    }
}

/// A redaction that was redacted is told as such, one step from each event.
#[tokio::test]
async fn a_redacted_redaction_is_one_step_away() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let mut chain = vec![alice.say(&room, "first").await];
    for number in 0..3 {
        let last = &chain[number];
        let path = in_room(&room, &format!("redact/{}/x{number}", encode(last)));
        let redaction = event_id(&alice.put(&path, json!({ "reason": "r" })).await.ok());
        chain.push(redaction);
    }
    for number in 0..3 {
        let path = in_room(&room, &format!("event/{}", encode(&chain[number])));
        let event = alice.get(&path).await.ok();
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(because["event_id"], json!(chain[number + 1]), "{event}");
        assert_eq!(because["unsigned"].get("redacted_because"), None, "{event}");
    }
}
