//! `createRoom` and `upgrade`.

use serde_json::{Value, json};

use super::{World, in_room};

const CREATE: &str = "/_matrix/client/v3/createRoom";

#[tokio::test]
async fn refusals() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    alice.create(json!({ "room_alias_name": "taken" })).await;
    let cases = [
        (
            json!({ "room_version": "99" }),
            400,
            "M_UNSUPPORTED_ROOM_VERSION",
        ),
        (json!({ "room_alias_name": "taken" }), 400, "M_ROOM_IN_USE"),
        (json!({ "preset": "no_such_preset" }), 400, "M_BAD_JSON"),
        (json!({ "visibility": "secret" }), 400, "M_BAD_JSON"),
        (json!({ "name": 3 }), 400, "M_BAD_JSON"),
        (
            json!({ "initial_state": [{ "type": "m.room.name" }] }),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({ "initial_state": [{ "content": {} }] }),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({ "initial_state": [{ "type": "a", "content": 3 }] }),
            400,
            "M_BAD_JSON",
        ),
        (json!({ "creation_content": [] }), 400, "M_BAD_JSON"),
        (
            json!({ "power_level_content_override": 3 }),
            400,
            "M_BAD_JSON",
        ),
        (json!({ "invite": ["nobody"] }), 400, "M_BAD_JSON"),
        (
            json!({ "room_version": "11", "name": "x", "power_level_content_override": {
                "users": { (&alice.id): 0 },
            } }),
            400,
            "M_INVALID_ROOM_STATE",
        ),
        (
            json!({ "invite_3pid": [{
                "id_server": "id.example.org/path", "id_access_token": "t", "medium": "email",
                "address": "a@example.org",
            }] }),
            400,
            "M_INVALID_PARAM",
        ),
    ];
    for (wish, status, code) in cases {
        let answer = alice.post(CREATE, wish.clone()).await;
        assert_eq!(answer.status, status, "{wish}: {}", answer.body);
        assert_eq!(answer.body["errcode"], code, "{wish}: {}", answer.body);
    }
    world
        .nobody()
        .post(CREATE, json!({}))
        .await
        .refused(401, "M_MISSING_TOKEN");
    let joined = alice.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(
        joined["joined_rooms"].as_array().unwrap().len(),
        1,
        "a refused room was made"
    );
}

#[tokio::test]
async fn an_empty_body_makes_a_private_room_on_all_paths() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    for path in [CREATE, "/_matrix/client/r0/createRoom"] {
        let answer = alice.send(http::Method::POST, path, Value::Null).await.ok();
        let room = answer["room_id"].as_str().unwrap();
        assert_eq!(
            alice.state(room, "m.room.join_rules").await["join_rule"],
            "invite"
        );
    }
}

#[tokio::test]
async fn events_come_in_the_order_of_the_specification() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice
        .create(json!({
            "room_alias_name": "order", "name": "Name", "topic": "Topic", "invite": [bob.id],
            "initial_state": [
                { "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } },
                { "type": "m.room.join_rules", "content": { "join_rule": "knock" } },
            ],
        }))
        .await;
    let page = alice
        .get(&in_room(&room, "messages?dir=f&limit=50"))
        .await
        .ok();
    let events = page["chunk"].as_array().unwrap();
    let types: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    let first = [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.canonical_alias",
    ];
    assert_eq!(types[..4], first);
    let place = |kind: &str| types.iter().rposition(|found| *found == kind).unwrap();
    assert!(
        place("m.room.history_visibility") < place("m.room.encryption"),
        "{types:?}"
    );
    assert!(
        place("m.room.encryption") < place("m.room.join_rules"),
        "{types:?}"
    );
    assert!(
        place("m.room.join_rules") < place("m.room.name"),
        "{types:?}"
    );
    assert!(place("m.room.name") < place("m.room.topic"), "{types:?}");
    assert_eq!(types.last(), Some(&"m.room.member"));
    assert_eq!(
        alice.state(&room, "m.room.join_rules").await["join_rule"],
        "knock"
    );
}

#[tokio::test]
async fn name_and_topic_win_over_initial_state() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice
        .create(json!({
            "name": "Asked", "topic": "Asked",
            "initial_state": [
                { "type": "m.room.name", "content": { "name": "State" } },
                { "type": "m.room.topic", "content": { "topic": "State" } },
            ],
        }))
        .await;
    assert_eq!(alice.state(&room, "m.room.name").await["name"], "Asked");
    assert_eq!(alice.state(&room, "m.room.topic").await["topic"], "Asked");
}

#[tokio::test]
async fn trusted_invitees_have_the_creators_power() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let wish = |version: &str| {
        json!({
            "preset": "trusted_private_chat", "invite": [bob.id], "room_version": version,
        })
    };
    let old = alice.create(wish("11")).await;
    let users = alice.state(&old, "m.room.power_levels").await["users"].clone();
    assert_eq!(users[&bob.id], users[&alice.id]);
    let new = alice.create(wish("12")).await;
    let creators = alice.state(&new, "m.room.create").await["additional_creators"].clone();
    assert_eq!(creators, json!([bob.id]));
    let levels = alice.state(&new, "m.room.power_levels").await;
    assert!(levels["users"].get(&alice.id).is_none(), "{levels}");
    let tombstone = levels["events"]["m.room.tombstone"].as_i64().unwrap();
    assert!(
        tombstone > levels["state_default"].as_i64().unwrap_or(50),
        "{levels}"
    );
}

#[tokio::test]
async fn nobody_is_invited_who_takes_no_invites() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let setting = format!(
        "/_matrix/client/v3/user/{}/account_data/m.invite_permission_config",
        bob.id
    );
    bob.put(&setting, json!({ "default_action": "block" }))
        .await
        .ok();
    let refused = alice.post(CREATE, json!({ "invite": [bob.id] })).await;
    refused.refused(403, "M_INVITE_BLOCKED");
    let member = json!({ "membership": "invite" });
    let state = json!([{ "type": "m.room.member", "state_key": bob.id, "content": member }]);
    let refused = alice.post(CREATE, json!({ "initial_state": state })).await;
    refused.refused(403, "M_INVITE_BLOCKED");
    let room = alice.create(json!({})).await;
    let invite = json!({ "user_id": bob.id });
    let refused = alice.post(&in_room(&room, "invite"), invite.clone()).await;
    refused.refused(403, "M_INVITE_BLOCKED");
    let refused = alice
        .set_state(&room, "m.room.member", &bob.id, member)
        .await;
    refused.refused(403, "M_INVITE_BLOCKED");
    bob.put(&setting, json!({})).await.ok();
    alice.post(&in_room(&room, "invite"), invite).await.ok();
}

#[tokio::test]
async fn upgrades_are_refused_and_done() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let wish = json!({
        "room_version": "11", "preset": "public_chat", "name": "Old", "room_alias_name": "moves",
        "creation_content": { "type": "m.space" },
    });
    let old = alice.create(wish).await;
    bob.join(&old).await;
    let path = in_room(&old, "upgrade");
    let cases = [
        (&bob, json!({ "new_version": "12" }), 403, "M_FORBIDDEN"),
        (
            &alice,
            json!({ "new_version": "99" }),
            400,
            "M_UNSUPPORTED_ROOM_VERSION",
        ),
        (&alice, json!({}), 400, "M_MISSING_PARAM"),
    ];
    for (user, body, status, code) in cases {
        user.post(&path, body).await.refused(status, code);
    }
    let body = json!({ "new_version": "12", "additional_creators": [bob.id] });
    let answer = alice.post(&path, body).await.ok();
    let new = answer["replacement_room"].as_str().unwrap();
    let create = alice.state(new, "m.room.create").await;
    assert_eq!(create["type"], "m.space");
    assert_eq!(create["predecessor"]["room_id"], json!(old));
    assert_eq!(create["additional_creators"], json!([bob.id]));
    assert_eq!(alice.state(new, "m.room.name").await["name"], "Old");
    assert_eq!(
        alice.state(new, "m.room.join_rules").await["join_rule"],
        "public"
    );
    assert_eq!(
        alice.state(&old, "m.room.tombstone").await["replacement_room"],
        json!(new)
    );
    let alias = alice
        .get("/_matrix/client/v3/directory/room/%23moves:example.org")
        .await
        .ok();
    assert_eq!(alias["room_id"], json!(new));
    let late = in_room(&old, "send/m.room.message/late");
    bob.put(&late, json!({ "body": "late" }))
        .await
        .refused(403, "M_FORBIDDEN");
    let nowhere = json!({ "new_version": "12" });
    let nowhere = alice
        .post(&in_room("!nowhere:example.org", "upgrade"), nowhere)
        .await;
    nowhere.refused(403, "M_FORBIDDEN");
}
