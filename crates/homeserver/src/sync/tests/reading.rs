//! Receipts, unread counts, threads, read markers, typing.

use super::*;

fn counts(room: &Value) -> (u64, u64) {
    let unread = &room["unread_notifications"];
    let number = |key: &str| unread[key].as_u64().unwrap_or(99);
    (number("notification_count"), number("highlight_count"))
}

/// Two users in a room, and bob's token.
async fn two() -> (User, User, String) {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    (alice, bob, room)
}

#[tokio::test]
async fn messages_are_counted_until_they_are_read() {
    let (alice, bob, room) = two().await;
    alice.say(&room, "one").await;
    let mention =
        json!({ "msgtype": "m.text", "body": "bob!", "m.mentions": { "user_ids": [bob.id()] } });
    let second = alice.send(&room, "m.room.message", mention).await;
    let sync = bob.sync("").await;
    assert_eq!(counts(joined(&sync, &room)), (2, 1));
    // One's own events are not counted.
    assert_eq!(counts(joined(&alice.sync("").await, &room)), (0, 0));
    // The count is in the response that has the event.
    alice.say(&room, "three").await;
    let sync = bob.since(&next(&sync), "").await;
    assert_eq!(counts(joined(&sync, &room)), (3, 1));
    bob.read(&room, "m.read", &second, json!({})).await;
    let sync = bob.since(&next(&sync), "").await;
    assert_eq!(counts(joined(&sync, &room)), (1, 0));
    // A receipt never moves back; the private one counts as well.
    let third = timeline(joined(&bob.sync("").await, &room)).pop().unwrap();
    let third = third["event_id"].as_str().unwrap().to_owned();
    bob.read(&room, "m.read.private", &third, json!({})).await;
    let sync = bob.since(&next(&sync), "").await;
    assert_eq!(counts(joined(&sync, &room)), (0, 0));
}

#[tokio::test]
async fn writing_is_reading() {
    let (alice, bob, room) = two().await;
    alice.say(&room, "one").await;
    bob.say(&room, "answer").await;
    alice.say(&room, "two").await;
    assert_eq!(counts(joined(&bob.sync("").await, &room)), (1, 0));
}

#[tokio::test]
async fn muted_rooms_are_not_counted() {
    let (alice, bob, room) = two().await;
    alice.say(&room, "one").await;
    assert_eq!(counts(joined(&bob.sync("").await, &room)), (1, 0));
    let path = format!("pushrules/global/room/{}", encoded(&room));
    bob.put(&path, json!({ "actions": [] })).await.ok();
    assert_eq!(counts(joined(&bob.sync("").await, &room)), (0, 0));
}

#[tokio::test]
async fn threads_are_counted_by_themselves_where_asked() {
    let (alice, bob, room) = two().await;
    let root = alice.say(&room, "root").await;
    let in_thread = json!({
        "msgtype": "m.text", "body": "in thread",
        "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    let reply = alice.send(&room, "m.room.message", in_thread).await;
    let threaded =
        filter(&json!({ "room": { "timeline": { "unread_thread_notifications": true } } }));
    let sync = bob.sync(&threaded).await;
    let shown = joined(&sync, &room);
    assert_eq!(counts(shown), (1, 0));
    assert_eq!(
        shown["unread_thread_notifications"][&root]["notification_count"],
        1
    );
    assert_eq!(counts(joined(&bob.sync("").await, &room)), (2, 0));
    bob.read(&room, "m.read", &reply, json!({ "thread_id": root }))
        .await;
    let sync = bob.since(&next(&sync), &threaded).await;
    let shown = joined(&sync, &room);
    assert_eq!(counts(shown), (1, 0));
    assert!(shown.get("unread_thread_notifications").is_none());
    bob.read(&room, "m.read", &root, json!({ "thread_id": "main" }))
        .await;
    let sync = bob.since(&next(&sync), &threaded).await;
    assert_eq!(counts(joined(&sync, &room)), (0, 0));
}

#[tokio::test]
async fn receipts_are_told_to_others_and_private_ones_are_not() {
    let (alice, bob, room) = two().await;
    let message = alice.say(&room, "read me").await;
    let token = next(&alice.sync("").await);
    let own = next(&bob.sync("").await);
    bob.read(&room, "m.read.private", &message, json!({})).await;
    let sync = alice.since(&token, "").await;
    assert!(sync["rooms"]["join"].is_null(), "{sync}");
    let sync = bob.since(&own, "").await;
    let receipt = &events(&joined(&sync, &room)["ephemeral"])[0];
    assert!(receipt["content"][&message]["m.read.private"][bob.id()]["ts"].is_u64());

    bob.read(&room, "m.read", &message, json!({ "thread_id": "main" }))
        .await;
    let sync = alice.since(&token, "").await;
    let receipt = &events(&joined(&sync, &room)["ephemeral"])[0];
    assert_eq!(receipt["type"], "m.receipt");
    assert_eq!(
        receipt["content"][&message]["m.read"][bob.id()]["thread_id"],
        "main"
    );
    assert!(receipt["content"][&message].get("m.read.private").is_none());
    // A first sync has them too.
    let first = alice.sync("").await;
    assert_eq!(
        of_type(&events(&joined(&first, &room)["ephemeral"]), "m.receipt").len(),
        1
    );
}

#[tokio::test]
async fn wrong_receipts_are_refused() {
    let (alice, bob, room) = two().await;
    let message = alice.say(&room, "read me").await;
    let stranger = bob.world.user("stranger").await;
    // Of another room that bob is in, and of this server, but from before bob could see.
    let other = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&other).await;
    let elsewhere = alice.say(&other, "elsewhere").await;
    let visibility = json!({ "history_visibility": "joined" });
    let set = json!([{ "type": "m.room.history_visibility", "content": visibility }]);
    let wish = json!({ "preset": "public_chat", "initial_state": set });
    let closed = alice.create_room(wish).await;
    let hidden = alice.say(&closed, "hidden").await;
    bob.join(&closed).await;
    let in_closed = |event: &str| {
        format!(
            "rooms/{}/receipt/m.read/{}",
            encoded(&closed),
            encoded(event)
        )
    };
    let path = |kind: &str, event: &str| {
        format!("rooms/{}/receipt/{kind}/{}", encoded(&room), encoded(event))
    };
    let cases = [
        (
            &bob,
            path("m.read", &elsewhere),
            json!({}),
            404,
            "M_NOT_FOUND",
        ),
        (
            &bob,
            path("m.fully_read", &elsewhere),
            json!({}),
            404,
            "M_NOT_FOUND",
        ),
        (&bob, in_closed(&hidden), json!({}), 404, "M_NOT_FOUND"),
        (
            &stranger,
            path("m.read", &message),
            json!({}),
            403,
            "M_FORBIDDEN",
        ),
        (
            &bob,
            path("m.other", &message),
            json!({}),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &bob,
            path("m.read", "$nothing"),
            json!({}),
            404,
            "M_NOT_FOUND",
        ),
        (
            &bob,
            path("m.fully_read", &message),
            json!({ "thread_id": "main" }),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &bob,
            path("m.read", &message),
            json!({ "thread_id": "" }),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &bob,
            path("m.read", &message),
            json!({ "thread_id": 7 }),
            400,
            "M_BAD_JSON",
        ),
    ];
    for (user, path, body, status, code) in cases {
        let answer = user.post(&path, body.clone()).await;
        assert_eq!(
            (
                answer.status,
                answer.body["errcode"].as_str().unwrap_or_default()
            ),
            (status, code),
            "{path} {body}"
        );
    }
}

#[tokio::test]
async fn read_markers_set_all_three() {
    let (alice, bob, room) = two().await;
    let first = alice.say(&room, "one").await;
    let second = alice.say(&room, "two").await;
    let token = next(&bob.sync("").await);
    let path = format!("rooms/{}/read_markers", encoded(&room));
    let body = json!({ "m.fully_read": first, "m.read": second, "m.read.private": second });
    bob.post(&path, body).await.ok();
    let sync = bob.since(&token, "").await;
    let shown = joined(&sync, &room);
    let data = events(&shown["account_data"]);
    assert_eq!(
        data,
        [json!({ "type": "m.fully_read", "content": { "event_id": first } })]
    );
    assert_eq!(counts(shown), (0, 0));
    // The marker cannot be set as account data.
    let path = format!(
        "user/{}/rooms/{}/account_data/m.fully_read",
        encoded(bob.id()),
        encoded(&room)
    );
    bob.put(&path, json!({ "event_id": second }))
        .await
        .refused(405, "M_BAD_JSON");
}

#[tokio::test]
async fn typing_begins_and_ends() {
    let (alice, bob, room) = two().await;
    let token = next(&bob.sync("").await);
    let path = format!("rooms/{}/typing/{}", encoded(&room), encoded(alice.id()));
    alice
        .put(&path, json!({ "typing": true, "timeout": 30_000 }))
        .await
        .ok();
    let sync = bob.since(&token, "").await;
    let typing = &events(&joined(&sync, &room)["ephemeral"])[0];
    assert_eq!(
        *typing,
        json!({ "type": "m.typing", "content": { "user_ids": [alice.id()] } })
    );
    alice.put(&path, json!({ "typing": false })).await.ok();
    let sync = bob.since(&next(&sync), "").await;
    let typing = &events(&joined(&sync, &room)["ephemeral"])[0];
    assert_eq!(typing["content"]["user_ids"], json!([]));
    bob.put(&path, json!({ "typing": true }))
        .await
        .refused(403, "M_FORBIDDEN");
    let stranger = bob.world.user("stranger").await;
    let path = format!("rooms/{}/typing/{}", encoded(&room), encoded(stranger.id()));
    stranger
        .put(&path, json!({ "typing": true }))
        .await
        .refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn sending_a_message_ends_typing() {
    let (alice, bob, room) = two().await;
    let path = format!("rooms/{}/typing/{}", encoded(&room), encoded(alice.id()));
    alice.put(&path, json!({ "typing": true })).await.ok();
    let first = alice.say(&room, "first").await;
    let token = next(&bob.sync("").await);
    alice.put(&path, json!({ "typing": true })).await.ok();
    // Who reacts may be typing an answer.
    let relation = json!({ "rel_type": "m.annotation", "event_id": first, "key": "x" });
    alice
        .send(&room, "m.reaction", json!({ "m.relates_to": relation }))
        .await;
    let heard = |sync: &Value| {
        let ephemeral = events(&joined(sync, &room)["ephemeral"]);
        of_type(&ephemeral, "m.typing")[0]["content"]["user_ids"].clone()
    };
    let sync = bob.since(&token, "").await;
    assert_eq!(heard(&sync), json!([alice.id()]));
    alice.say(&room, "second").await;
    let sync = bob.since(&next(&sync), "").await;
    assert_eq!(heard(&sync), json!([]));
}

#[tokio::test]
async fn a_mention_of_the_room_counts_where_history_begins_with_the_join() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let visibility = json!([{
        "type": "m.room.history_visibility", "content": { "history_visibility": "joined" },
    }]);
    let room = alice
        .create_room(json!({ "preset": "public_chat", "initial_state": visibility }))
        .await;
    bob.join(&room).await;
    let content = json!({ "msgtype": "m.text", "body": "all", "m.mentions": { "room": true } });
    alice.send(&room, "m.room.message", content).await;
    let sync = bob.sync("").await;
    let unread = &joined(&sync, &room)["unread_notifications"];
    assert_eq!(unread["highlight_count"], 1);
}

#[tokio::test]
async fn typing_wakes_who_is_in_the_room() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let elsewhere = alice.create_room(json!({})).await;
    bob.join(&room).await;
    let token = next(&bob.sync("").await);
    let typing = async |room: &str| {
        let path = format!("rooms/{}/typing/{}", encoded(room), encoded(alice.id()));
        alice.put(&path, json!({ "typing": true })).await.ok();
    };
    let both = async {
        typing(&elsewhere).await;
        typing(&room).await;
    };
    let (sync, ()) = tokio::join!(bob.since(&token, "timeout=20000"), both);
    let heard = &events(&joined(&sync, &room)["ephemeral"])[0];
    assert_eq!(heard["content"]["user_ids"], json!([alice.id()]));
}
