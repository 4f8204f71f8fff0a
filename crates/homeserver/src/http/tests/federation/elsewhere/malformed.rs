//! Rooms whose state holds what is no event of their version.

use homeserver_events::{
    CanonicalObject, CanonicalValue, canonical, hash, redact_object, sign_json,
};

use super::{
    super::peer::{object, rules},
    *,
};

const KIND: &str = "org.example.bad";

/// An event as a server hashes and signs it, whatever is in it.
fn sealed(server: &Fresh, event: &Value, version: &str) -> Value {
    let keys = &server.homeserver.components().federation.own_keys;
    let mut event = object(event);
    let content_hash = hash::encode_base64(hash::content_hash(&event));
    let hashes = CanonicalObject::from([("sha256".to_owned(), content_hash.into())]);
    event.insert("hashes".to_owned(), CanonicalValue::Object(hashes));
    let mut redacted = redact_object(&event, rules(version));
    sign_json(&mut redacted, keys.server().as_str(), keys.signing_key());
    let signatures = redacted.remove("signatures").unwrap();
    event.insert("signatures".to_owned(), signatures);
    serde_json::from_str(&canonical::to_string(&event)).unwrap()
}

/// CVE-2025-30355 and others: they are left out, the room is joined, and both servers go on.
#[tokio::test(start_paused = true)]
async fn a_room_whose_state_holds_events_that_are_none_is_joined() {
    for version in ["6", "10", "11"] {
        let world = World::new().await;
        let room = world.room(json!({ "room_version": version })).await;
        let event = |number: usize| {
            json!({
                "room_id": room, "sender": world.alice.user, "type": KIND,
                "state_key": number.to_string(), "content": {}, "origin_server_ts": START,
                "depth": 5, "prev_events": [], "auth_events": [],
            })
        };
        let wrong = [
            ("depth", json!(9_007_199_254_740_992_u64)),
            ("depth", json!(-9_007_199_254_740_992_i64)),
            ("depth", json!(-1)),
            ("depth", json!("5")),
            ("depth", json!(1.5)),
            ("depth", Value::Null),
            ("content", json!({ "x": 1.5 })),
            ("content", json!({ "x": 9_007_199_254_740_993_u64 })),
            ("content", json!([])),
            ("sender", json!("alice")),
            ("sender", json!("@alice:")),
            ("room_id", json!("far")),
            ("prev_events", json!(["x", 7])),
            (
                "auth_events",
                json!(vec![format!("${}", "a".repeat(43)); 30]),
            ),
            ("origin_server_ts", json!("now")),
            ("state_key", json!(7)),
            ("type", json!("x".repeat(256))),
            ("content", json!({ "x": "x".repeat(70_000) })),
        ];
        let mut added = Vec::new();
        for (number, (field, value)) in wrong.into_iter().enumerate() {
            let mut event = event(number);
            event[field] = value;
            added.push(sealed(&world.a, &event, version));
        }
        added.extend([json!(7), json!({}), json!("x"), Value::Null, json!([])]);
        *world.meddler.added.lock() = added;
        world.join(&room).await.ok();
        world.bob_has_members(&room, 2).await;
        let path = format!("{CLIENT}/rooms/{}/state", encode(&room));
        let state = world.b.get(&path, Some(&world.bob.token)).await.ok();
        let kinds = types(&state);
        assert!(kinds.contains(&"m.room.name".to_owned()), "{kinds:?}");
        assert!(!kinds.contains(&KIND.to_owned()), "{version}: {state}");
        world.talk(&room, "a word").await;
        let synced = world.sync(None).await;
        assert!(synced["rooms"]["join"][&*room].is_object());
    }
}
