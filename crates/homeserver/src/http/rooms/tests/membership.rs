//! Who may join, knock, invite, leave, kick, ban and forget.

use serde_json::{Value, json};

use super::{User, World, encode, in_room};

const NOWHERE: &str = "!nowhere:example.org";

async fn act(user: &User, room: &str, action: &str, body: &Value) -> (u16, String) {
    let answer = user.post(&in_room(room, action), body.clone()).await;
    let code = answer.body["errcode"].as_str().unwrap_or_default();
    (answer.status, code.to_owned())
}

/// What somebody does, in this order, and what is answered.
type Step<'a> = (&'a User, &'a str, Value, u16, &'a str);

async fn check(room: &str, steps: &[Step<'_>]) {
    for (number, (user, action, body, status, code)) in steps.iter().enumerate() {
        let found = act(user, room, action, body).await;
        let expected = (*status, (*code).to_owned());
        assert_eq!(
            found, expected,
            "step {number}: {} {action} {body}",
            user.id
        );
    }
}

#[tokio::test]
async fn a_private_room() {
    let world = World::new().await;
    let [alice, bob, carol] = [
        world.user("alice").await,
        world.user("bob").await,
        world.user("carol").await,
    ];
    let room = alice.create(json!({ "preset": "private_chat" })).await;
    let none = json!({});
    let (to_bob, to_carol) = (json!({ "user_id": bob.id }), json!({ "user_id": carol.id }));
    let steps: &[Step<'_>] = &[
        (&bob, "join", none.clone(), 403, "M_FORBIDDEN"),
        (&bob, "invite", to_carol.clone(), 403, "M_FORBIDDEN"),
        (&bob, "leave", none.clone(), 403, "M_FORBIDDEN"),
        (&bob, "kick", to_carol.clone(), 403, "M_FORBIDDEN"),
        (&bob, "ban", to_carol.clone(), 403, "M_FORBIDDEN"),
        (&bob, "unban", to_carol.clone(), 403, "M_FORBIDDEN"),
        (&alice, "invite", json!({}), 400, "M_BAD_JSON"),
        (
            &alice,
            "invite",
            json!({ "user_id": "bob" }),
            400,
            "M_BAD_JSON",
        ),
        (&alice, "kick", json!({}), 400, "M_MISSING_PARAM"),
        (&alice, "kick", to_bob.clone(), 403, "M_FORBIDDEN"),
        (&alice, "unban", to_bob.clone(), 403, "M_FORBIDDEN"),
        (&alice, "invite", to_bob.clone(), 200, ""),
        (&alice, "invite", to_bob.clone(), 200, ""),
        (&bob, "join", json!({ "reason": "because" }), 200, ""),
        (&bob, "join", none.clone(), 200, ""),
        (&alice, "invite", to_bob.clone(), 403, "M_FORBIDDEN"),
        (
            &bob,
            "kick",
            json!({ "user_id": alice.id }),
            403,
            "M_FORBIDDEN",
        ),
        (&bob, "ban", to_carol.clone(), 403, "M_FORBIDDEN"),
        (&bob, "forget", none.clone(), 400, "M_UNKNOWN"),
        (
            &alice,
            "kick",
            json!({ "user_id": bob.id, "reason": "noise" }),
            200,
            "",
        ),
        (&bob, "join", none.clone(), 403, "M_FORBIDDEN"),
        (&alice, "ban", to_bob.clone(), 200, ""),
        (&alice, "invite", to_bob.clone(), 403, "M_FORBIDDEN"),
        (&bob, "join", none.clone(), 403, "M_FORBIDDEN"),
        (&alice, "unban", to_bob.clone(), 200, ""),
        (&alice, "invite", to_bob.clone(), 200, ""),
        (&bob, "leave", none.clone(), 200, ""),
        (&bob, "forget", none.clone(), 200, ""),
    ];
    check(&room, steps).await;
}

#[tokio::test]
async fn a_room_that_is_not_there() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let other = json!({ "user_id": "@bob:example.org" });
    let steps: &[Step<'_>] = &[
        (&alice, "join", json!({}), 403, "M_FORBIDDEN"),
        (&alice, "leave", json!({}), 403, "M_FORBIDDEN"),
        (&alice, "forget", json!({}), 403, "M_FORBIDDEN"),
        (&alice, "invite", other.clone(), 403, "M_FORBIDDEN"),
        (&alice, "kick", other.clone(), 403, "M_FORBIDDEN"),
        (&alice, "ban", other.clone(), 403, "M_FORBIDDEN"),
        (&alice, "unban", other.clone(), 403, "M_FORBIDDEN"),
    ];
    check(NOWHERE, steps).await;
    let knock = |name: &str| format!("/_matrix/client/v3/knock/{}", encode(name));
    alice
        .post(&knock(NOWHERE), json!({}))
        .await
        .refused(404, "M_NOT_FOUND");
    let alias = alice.post(&knock("#nowhere:example.org"), json!({})).await;
    alias.refused(404, "M_NOT_FOUND");
    let join = "/_matrix/client/v3/join/%23nowhere:example.org";
    alice
        .post(join, json!({}))
        .await
        .refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn every_action_needs_a_token() {
    let world = World::new().await;
    let nobody = world.nobody();
    for action in ["join", "leave", "forget", "invite", "kick", "ban", "unban"] {
        let answer = nobody.post(&in_room(NOWHERE, action), json!({})).await;
        answer.refused(401, "M_MISSING_TOKEN");
    }
}

#[tokio::test]
async fn joining_by_alias_and_id_without_a_body() {
    let world = World::new().await;
    let [alice, bob, carol] = [
        world.user("alice").await,
        world.user("bob").await,
        world.user("carol").await,
    ];
    let wish = json!({ "preset": "public_chat", "room_alias_name": "here" });
    let room = alice.create(wish).await;
    let paths = [
        (
            &bob,
            "/_matrix/client/v3/join/%23here:example.org".to_owned(),
        ),
        (
            &bob,
            format!(
                "/_matrix/client/r0/join/{}?server_name=example.org",
                encode(&room)
            ),
        ),
        (&carol, in_room(&room, "join")),
    ];
    for (user, path) in paths {
        let answer = user.send(http::Method::POST, &path, Value::Null).await.ok();
        assert_eq!(answer["room_id"], json!(room), "{path}");
        let joined = user.get("/_matrix/client/v3/joined_rooms").await.ok();
        assert_eq!(joined["joined_rooms"], json!([room]));
    }
}

#[tokio::test]
async fn member_events_show_profile_and_reason() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let name = format!("/_matrix/client/v3/profile/{}/displayname", bob.id);
    bob.put(&name, json!({ "displayname": "Bobby" })).await.ok();
    let room = alice
        .create(json!({ "invite": [bob.id], "is_direct": true }))
        .await;
    let member = in_room(&room, &format!("state/m.room.member/{}", encode(&bob.id)));
    let invite = alice.get(&member).await.ok();
    let expected = json!({ "membership": "invite", "is_direct": true, "displayname": "Bobby" });
    assert_eq!(invite, expected);
    bob.post(&in_room(&room, "join"), json!({ "reason": "tea" }))
        .await
        .ok();
    let join = alice.get(&member).await.ok();
    let shown = [&join["membership"], &join["displayname"], &join["reason"]];
    assert_eq!(shown, ["join", "Bobby", "tea"]);
    let kick = json!({ "user_id": bob.id, "reason": "no tea" });
    alice.post(&in_room(&room, "kick"), kick).await.ok();
    let kicked = alice.get(&member).await.ok();
    assert_eq!(
        [&kicked["membership"], &kicked["reason"]],
        ["leave", "no tea"]
    );
}

#[tokio::test]
async fn knocking() {
    let world = World::new().await;
    let [alice, bob, carol] = [
        world.user("alice").await,
        world.user("bob").await,
        world.user("carol").await,
    ];
    let rule = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let room = alice.create(json!({ "initial_state": rule })).await;
    let knock = format!("/_matrix/client/v3/knock/{}", encode(&room));
    let unstable = format!(
        "/_matrix/client/unstable/xyz.amorgan.knock/knock/{}",
        encode(&room)
    );
    let answer = bob.post(&knock, json!({ "reason": "please" })).await.ok();
    assert_eq!(answer["room_id"], json!(room));
    let member = in_room(&room, &format!("state/m.room.member/{}", encode(&bob.id)));
    let content = alice.get(&member).await.ok();
    assert_eq!(
        [&content["membership"], &content["reason"]],
        ["knock", "please"]
    );
    carol.post(&unstable, json!({})).await.ok();
    alice
        .post(&in_room(&room, "ban"), json!({ "user_id": carol.id }))
        .await
        .ok();
    carol
        .post(&knock, json!({}))
        .await
        .refused(403, "M_FORBIDDEN");
    alice
        .post(&in_room(&room, "invite"), json!({ "user_id": bob.id }))
        .await
        .ok();
    bob.join(&room).await;
    bob.post(&knock, json!({}))
        .await
        .refused(403, "M_FORBIDDEN");
    let closed = alice.create(json!({})).await;
    let knock = format!("/_matrix/client/v3/knock/{}", encode(&closed));
    bob.post(&knock, json!({}))
        .await
        .refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_forgotten_room_is_closed() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let event = alice.say(&room, "seen").await;
    bob.post(&in_room(&room, "leave"), json!({})).await.ok();
    let reads = ["messages?dir=b", "state", "members", "state/m.room.create"];
    for path in reads {
        bob.get(&in_room(&room, path)).await.ok();
    }
    bob.get(&in_room(&room, &format!("event/{}", encode(&event))))
        .await
        .ok();
    bob.post(&in_room(&room, "forget"), json!({})).await.ok();
    for path in reads {
        bob.get(&in_room(&room, path))
            .await
            .refused(403, "M_FORBIDDEN");
    }
    let event = bob
        .get(&in_room(&room, &format!("event/{}", encode(&event))))
        .await;
    event.refused(404, "M_NOT_FOUND");
    bob.join(&room).await;
    bob.get(&in_room(&room, "messages?dir=b")).await.ok();
}
