//! Filters, stored and inline.

use super::*;

#[tokio::test]
async fn filters_are_stored_and_used_by_their_owner() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let path = format!("user/{}/filter", encoded(alice.id()));
    let definition = json!({ "room": { "timeline": { "types": ["m.room.message"], "limit": 2 } } });
    let id = alice.post(&path, definition.clone()).await.ok()["filter_id"].clone();
    let id = id.as_str().unwrap();
    assert!(!id.starts_with('{'));
    assert_eq!(alice.get(&format!("{path}/{id}")).await.ok(), definition);
    alice
        .get(&format!("{path}/12345"))
        .await
        .refused(404, "M_NOT_FOUND");
    bob.get(&format!("{path}/{id}"))
        .await
        .refused(403, "M_FORBIDDEN");
    bob.post(&path, json!({})).await.refused(403, "M_FORBIDDEN");
    alice
        .post(&path, json!({ "room": 1 }))
        .await
        .refused(400, "M_BAD_JSON");

    let room = alice.create_room(json!({})).await;
    for number in 0..3 {
        alice.say(&room, &number.to_string()).await;
        alice
            .send(&room, "org.example.other", json!({ "body": "other" }))
            .await;
    }
    let sync = alice.sync(&format!("filter={id}")).await;
    assert_eq!(bodies(&timeline(joined(&sync, &room))), ["1", "2"]);
}

#[tokio::test]
async fn rooms_sections_and_fields_are_filtered() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let one = alice.create_room(json!({ "name": "One" })).await;
    let two = alice.create_room(json!({})).await;
    alice.say(&one, "hello").await;

    let sync = alice
        .sync(&filter(&json!({ "room": { "not_rooms": [two] } })))
        .await;
    assert!(joined(&sync, &one).is_object() && joined(&sync, &two).is_null());
    let sync = alice
        .sync(&filter(&json!({ "room": { "rooms": [two] } })))
        .await;
    assert!(joined(&sync, &one).is_null() && joined(&sync, &two).is_object());

    let state =
        json!({ "room": { "state": { "types": ["m.room.name"] }, "timeline": { "limit": 1 } } });
    let sync = alice.sync(&filter(&state)).await;
    let shown = events(&joined(&sync, &one)["state"]);
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["type"], "m.room.name");

    let none = json!({ "account_data": { "not_types": ["*"] }, "presence": { "types": [] } });
    let sync = alice.sync(&filter(&none)).await;
    assert!(sync.get("account_data").is_none() && sync.get("presence").is_none());

    let fields =
        json!({ "event_fields": ["type", "content.body"], "room": { "timeline": { "limit": 1 } } });
    let sync = alice.sync(&filter(&fields)).await;
    let expected = json!({ "type": "m.room.message", "content": { "body": "hello" } });
    assert_eq!(timeline(joined(&sync, &one)), [expected]);

    let federation =
        json!({ "event_format": "federation", "room": { "timeline": { "limit": 1 } } });
    let sync = alice.sync(&filter(&federation)).await;
    let event = timeline(joined(&sync, &one)).pop().unwrap();
    assert!(event["hashes"].is_object() && event["signatures"].is_object());
    assert_eq!(event["room_id"], *one);
}
