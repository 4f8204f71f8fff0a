//! Creating rooms, memberships, sending, state, redaction, aliases, directories, upgrades.

use homeserver_tests::{Client, Server, encode};
use serde_json::{Value, json};

async fn three(server: &Server) -> [Client; 3] {
    let nobody = server.client();
    [
        nobody.register("alice").await,
        nobody.register("bob").await,
        nobody.register("carol").await,
    ]
}

fn in_room(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", encode(room))
}

async fn state(client: &Client, room: &str, kind: &str) -> Value {
    client
        .get(&in_room(room, &format!("state/{kind}/")))
        .await
        .ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn presets_make_the_rooms_they_promise() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let cases = [
        ("private_chat", "invite", "shared", "can_join"),
        ("trusted_private_chat", "invite", "shared", "can_join"),
        ("public_chat", "public", "shared", "forbidden"),
    ];
    for (preset, join_rule, visibility, guests) in cases {
        let room = alice
            .create_room(json!({ "preset": preset, "invite": [bob.user] }))
            .await;
        assert_eq!(
            state(&alice, &room, "m.room.join_rules").await["join_rule"],
            join_rule
        );
        let history = state(&alice, &room, "m.room.history_visibility").await;
        assert_eq!(history["history_visibility"], visibility, "{preset}");
        let access = state(&alice, &room, "m.room.guest_access").await;
        assert_eq!(access["guest_access"], guests, "{preset}");
        let create = state(&alice, &room, "m.room.create").await;
        assert_eq!(create["room_version"], "12");
        let trusted = preset == "trusted_private_chat";
        assert_eq!(
            create["additional_creators"] == json!([bob.user]),
            trusted,
            "{create}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_room_version_can_be_created_and_used() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    for version in 1..=12 {
        let version = version.to_string();
        let wish = json!({
            "room_version": version, "preset": "public_chat", "name": format!("v{version}"),
            "topic": "all versions",
        });
        let room = alice.create_room(wish).await;
        assert_eq!(room.contains(':'), version != "12", "{room}");
        bob.join(&room).await;
        let event = bob.say(&room, "hello").await;
        let path = in_room(
            &room,
            &format!("redact/{}/{}", encode(&event), bob.transaction()),
        );
        bob.put(&path, json!({ "reason": "typo" })).await.ok();
        let seen = alice
            .get(&in_room(&room, &format!("event/{}", encode(&event))))
            .await
            .ok();
        assert_eq!(seen["content"], json!({}), "version {version}: {seen}");
        assert_eq!(
            seen["unsigned"]["redacted_because"]["content"]["reason"],
            "typo"
        );
    }
    let unknown = alice
        .post(
            "/_matrix/client/v3/createRoom",
            json!({ "room_version": "99" }),
        )
        .await;
    unknown.expect_error(400, "M_UNSUPPORTED_ROOM_VERSION");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_is_in_the_room() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let room = alice
        .create_room(json!({
            "name": "Kitchen", "topic": "Soup", "room_alias_name": "kitchen",
            "visibility": "public", "creation_content": { "m.federate": false },
            "initial_state": [{ "type": "m.room.avatar", "content": { "url": "mxc://a/b" } }],
            "power_level_content_override": { "events_default": 7 },
            "invite": [bob.user], "is_direct": true,
        }))
        .await;
    assert_eq!(state(&alice, &room, "m.room.name").await["name"], "Kitchen");
    assert_eq!(state(&alice, &room, "m.room.topic").await["topic"], "Soup");
    assert_eq!(
        state(&alice, &room, "m.room.avatar").await["url"],
        "mxc://a/b"
    );
    assert_eq!(
        state(&alice, &room, "m.room.create").await["m.federate"],
        false
    );
    assert_eq!(
        state(&alice, &room, "m.room.power_levels").await["events_default"],
        7
    );
    let alias = state(&alice, &room, "m.room.canonical_alias").await;
    assert_eq!(alias["alias"], "#kitchen:localhost");
    let invite = in_room(&room, &format!("state/m.room.member/{}", encode(&bob.user)));
    let invite = alice.get(&invite).await.ok();
    assert_eq!(
        (&invite["membership"], &invite["is_direct"]),
        (&json!("invite"), &json!(true))
    );

    let again = json!({ "room_alias_name": "kitchen" });
    let again = alice.post("/_matrix/client/v3/createRoom", again).await;
    again.expect_error(400, "M_ROOM_IN_USE");
    let bad = json!({ "initial_state": [{ "type": "m.room.name" }] });
    alice
        .post("/_matrix/client/v3/createRoom", bad)
        .await
        .expect_error(400, "M_BAD_JSON");
}

/// Shipped clients name the creator in the power levels of a version 12 room, which the room
/// version forbids.
#[tokio::test(flavor = "multi_thread")]
async fn a_creator_in_the_power_level_override_is_dropped() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let levels = json!({ "users": { (&alice.user): 100, (&bob.user): 50 } });
    let room = alice
        .create_room(json!({ "power_level_content_override": levels }))
        .await;
    let users = state(&alice, &room, "m.room.power_levels").await["users"].clone();
    assert_eq!(users, json!({ (&bob.user): 50 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn memberships_come_and_go() {
    let server = Server::start().await;
    let [alice, bob, carol] = three(&server).await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let join = in_room(&room, "join");
    bob.post(&join, json!({}))
        .await
        .expect_error(403, "M_FORBIDDEN");
    bob.post(&in_room(&room, "leave"), json!({}))
        .await
        .expect_error(403, "M_FORBIDDEN");
    alice
        .post(&in_room(&room, "invite"), json!({ "user_id": bob.user }))
        .await
        .ok();
    bob.post(&join, json!({ "reason": "why not" })).await.ok();
    bob.post(&join, json!({})).await.ok(); // idempotent
    let invite = alice
        .post(&in_room(&room, "invite"), json!({ "user_id": bob.user }))
        .await;
    invite.expect_error(403, "M_FORBIDDEN");
    let joined = alice.get(&in_room(&room, "joined_members")).await.ok();
    assert_eq!(joined["joined"].as_object().unwrap().len(), 2);
    assert_eq!(
        bob.get("/_matrix/client/v3/joined_rooms").await.ok()["joined_rooms"],
        json!([room])
    );

    let kick = json!({ "user_id": bob.user, "reason": "noise" });
    carol
        .post(&in_room(&room, "kick"), kick.clone())
        .await
        .expect_error(403, "M_FORBIDDEN");
    alice.post(&in_room(&room, "kick"), kick).await.ok();
    alice
        .post(&in_room(&room, "ban"), json!({ "user_id": bob.user }))
        .await
        .ok();
    let back = alice
        .post(&in_room(&room, "invite"), json!({ "user_id": bob.user }))
        .await;
    back.expect_error(403, "M_FORBIDDEN");
    alice
        .post(&in_room(&room, "unban"), json!({ "user_id": bob.user }))
        .await
        .ok();
    let unban = alice
        .post(&in_room(&room, "unban"), json!({ "user_id": bob.user }))
        .await;
    unban.expect_error(403, "M_FORBIDDEN");
    alice
        .post(&in_room(&room, "invite"), json!({ "user_id": bob.user }))
        .await
        .ok();
    bob.post(&in_room(&room, "leave"), json!({})).await.ok();
    bob.post(&in_room(&room, "forget"), json!({})).await.ok();
    let early = alice.post(&in_room(&room, "forget"), json!({})).await;
    assert_eq!(early.status, 400, "still joined: {}", early.body);
    bob.get(&in_room(&room, "messages?dir=b"))
        .await
        .expect_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn knocking() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let rule = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let room = alice
        .create_room(json!({ "initial_state": rule, "name": "Door" }))
        .await;
    let knock = format!("/_matrix/client/v3/knock/{}", encode(&room));
    bob.post(
        &format!("/_matrix/client/v3/join/{}", encode(&room)),
        json!({}),
    )
    .await
    .expect_error(403, "M_FORBIDDEN");
    assert_eq!(
        bob.post(&knock, json!({ "reason": "hello" }))
            .await
            .text("room_id"),
        room
    );
    let knocked = bob.sync("timeout=0").await;
    let state = &knocked["rooms"]["knock"][&room]["knock_state"]["events"];
    assert!(
        state
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["content"]["name"] == "Door")
    );
    alice
        .post(&in_room(&room, "invite"), json!({ "user_id": bob.user }))
        .await
        .ok();
    bob.join(&room).await;
    let closed = alice.create_room(json!({ "preset": "private_chat" })).await;
    let knock = format!("/_matrix/client/v3/knock/{}", encode(&closed));
    bob.post(&knock, json!({}))
        .await
        .expect_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn restricted_rooms_open_to_members_of_another() {
    let server = Server::start().await;
    let [alice, bob, carol] = three(&server).await;
    let club = alice.create_room(json!({ "preset": "public_chat" })).await;
    let rule = json!([{ "type": "m.room.join_rules", "content": {
        "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }],
    } }]);
    let room = alice.create_room(json!({ "initial_state": rule })).await;
    bob.join(&club).await;
    bob.join(&room).await;
    let path = format!("/_matrix/client/v3/join/{}", encode(&room));
    carol
        .post(&path, json!({}))
        .await
        .expect_error(403, "M_FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_counts_once() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let path = in_room(&room, "send/m.room.message/t");
    let body = json!({ "msgtype": "m.text", "body": "once" });
    let first = alice.put(&path, body.clone()).await.text("event_id");
    let (second, third) = tokio::join!(alice.put(&path, body.clone()), alice.put(&path, json!({})));
    assert_eq!(
        (second.text("event_id"), third.text("event_id")),
        (first.clone(), first.clone())
    );
    assert_ne!(bob.put(&path, body.clone()).await.text("event_id"), first);
    let other_device = server.client().login("alice").await;
    assert_ne!(other_device.put(&path, body).await.text("event_id"), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn sending_is_judged() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let levels = json!({ "events_default": 50 });
    let wish = json!({ "preset": "public_chat", "power_level_content_override": levels });
    let room = alice.create_room(wish).await;
    let text = json!({ "msgtype": "m.text", "body": "hello" });
    let outside = bob.send_event(&room, "m.room.message", text.clone()).await;
    outside.expect_error(403, "M_FORBIDDEN");
    bob.join(&room).await;
    let low = bob.send_event(&room, "m.room.message", text.clone()).await;
    low.expect_error(403, "M_FORBIDDEN");
    let nowhere = alice
        .send_event("!nowhere:localhost", "m.room.message", text)
        .await;
    assert!([403, 404].contains(&nowhere.status), "{}", nowhere.body);
    let large = json!({ "msgtype": "m.text", "body": "x".repeat(70_000) });
    alice
        .send_event(&room, "m.room.message", large)
        .await
        .expect_error(413, "M_TOO_LARGE");
    let float = json!({ "msgtype": "m.text", "body": "x", "half": 0.5 });
    alice
        .send_event(&room, "m.room.message", float)
        .await
        .expect_error(400, "M_BAD_JSON");
    let path = in_room(&room, "send/m.room.message/rubbish");
    let rubbish = alice
        .send(reqwest::Method::PUT, &path, None, b"{not json".to_vec())
        .await;
    rubbish.unwrap().expect_error(400, "M_NOT_JSON");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaction_counts_once() {
    let server = Server::start().await;
    let [alice, ..] = three(&server).await;
    let room = alice.create_room(json!({})).await;
    let target = alice.say(&room, "like me").await;
    let reaction = |key: &str| json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": target, "key": key } });
    alice
        .send_event(&room, "m.reaction", reaction("👍"))
        .await
        .ok();
    alice
        .send_event(&room, "m.reaction", reaction("🎉"))
        .await
        .ok();
    let again = alice.send_event(&room, "m.reaction", reaction("👍")).await;
    again.expect_error(400, "M_DUPLICATE_ANNOTATION");
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_set_and_read() {
    let server = Server::start().await;
    let [alice, bob, carol] = three(&server).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let set = alice
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Soup" }))
        .await;
    let event = set.text("event_id");
    let whole = alice
        .get(&in_room(&room, "state/m.room.topic/?format=event"))
        .await
        .ok();
    assert_eq!(
        (&whole["event_id"], &whole["content"]["topic"]),
        (&json!(event), &json!("Soup"))
    );
    assert_eq!(
        alice.get(&in_room(&room, "state/m.room.topic")).await.ok()["topic"],
        "Soup"
    );
    let refused = bob
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Bread" }))
        .await;
    refused.expect_error(403, "M_FORBIDDEN");
    let all = bob.get(&in_room(&room, "state")).await.ok();
    assert!(
        all.as_array()
            .unwrap()
            .iter()
            .any(|event| event["type"] == "m.room.topic")
    );
    let missing = alice.get(&in_room(&room, "state/org.example.none/")).await;
    missing.expect_error(404, "M_NOT_FOUND");
    carol
        .get(&in_room(&room, "state"))
        .await
        .expect_error(403, "M_FORBIDDEN");
    let alias = json!({ "alias": "#not-there:localhost" });
    let alias = alice
        .set_state(&room, "m.room.canonical_alias", "", alias)
        .await;
    alias.expect_error(400, "M_BAD_ALIAS");
    let key = alice
        .set_state(&room, "org.example.key", "with/slash", json!({ "a": 1 }))
        .await;
    key.ok();
    let path = in_room(&room, "state/org.example.key/with%2Fslash");
    assert_eq!(alice.get(&path).await.ok(), json!({ "a": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn redaction_needs_the_power_or_the_authorship() {
    let server = Server::start().await;
    let [alice, bob, carol] = three(&server).await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    carol.join(&room).await;
    let event = bob.say(&room, "regret").await;
    let redact = |client: &Client| {
        in_room(
            &room,
            &format!("redact/{}/{}", encode(&event), client.transaction()),
        )
    };
    carol
        .put(&redact(&carol), json!({}))
        .await
        .expect_error(403, "M_FORBIDDEN");
    alice
        .put(&redact(&alice), json!({ "reason": "order" }))
        .await
        .ok();
    let gone = carol
        .get(&in_room(&room, &format!("event/{}", encode(&event))))
        .await
        .ok();
    assert_eq!(gone["content"], json!({}));
    assert_eq!(
        gone["unsigned"]["redacted_because"]["sender"],
        json!(alice.user)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_and_directories() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Garden" }))
        .await;
    let path = "/_matrix/client/v3/directory/room/%23garden:localhost";
    bob.get(path).await.expect_error(404, "M_NOT_FOUND");
    alice.put(path, json!({ "room_id": room })).await.ok();
    alice
        .put(path, json!({ "room_id": room }))
        .await
        .expect_error(409, "M_UNKNOWN");
    let found = server.client().get(path).await.ok();
    assert_eq!(found["room_id"], json!(room));
    assert!(
        found["servers"]
            .as_array()
            .unwrap()
            .contains(&json!("localhost"))
    );
    bob.delete(path).await.expect_error(403, "M_FORBIDDEN");
    let listed = alice.get(&in_room(&room, "aliases")).await.ok();
    assert_eq!(listed["aliases"], json!(["#garden:localhost"]));
    bob.join("#garden:localhost").await;

    let visibility = format!("/_matrix/client/v3/directory/list/room/{}", encode(&room));
    assert_eq!(
        server.client().get(&visibility).await.ok()["visibility"],
        "private"
    );
    let refused = bob
        .put(&visibility, json!({ "visibility": "public" }))
        .await;
    refused.expect_error(403, "M_FORBIDDEN");
    alice
        .put(&visibility, json!({ "visibility": "public" }))
        .await
        .ok();
    let rooms = server
        .client()
        .get("/_matrix/client/v3/publicRooms")
        .await
        .ok();
    assert_eq!(rooms["chunk"][0]["room_id"], json!(room));
    assert_eq!(rooms["chunk"][0]["num_joined_members"], 2);
    let search = |term: &str| json!({ "filter": { "generic_search_term": term } });
    let path_rooms = "/_matrix/client/v3/publicRooms";
    let hit = bob.post(path_rooms, search("gard")).await.ok();
    assert_eq!(hit["chunk"].as_array().unwrap().len(), 1);
    let miss = bob.post(path_rooms, search("kitchen")).await.ok();
    assert_eq!(miss["chunk"], json!([]));
    alice.delete(path).await.ok();
    bob.get(path).await.expect_error(404, "M_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let wish = json!({
        "room_version": "10", "preset": "public_chat", "name": "Old", "room_alias_name": "moving",
    });
    let old = alice.create_room(wish).await;
    bob.join(&old).await;
    let path = in_room(&old, "upgrade");
    bob.post(&path, json!({ "new_version": "12" }))
        .await
        .expect_error(403, "M_FORBIDDEN");
    let unknown = alice.post(&path, json!({ "new_version": "99" })).await;
    unknown.expect_error(400, "M_UNSUPPORTED_ROOM_VERSION");
    let new = alice
        .post(&path, json!({ "new_version": "12" }))
        .await
        .text("replacement_room");
    let tombstone = state(&bob, &old, "m.room.tombstone").await;
    assert_eq!(tombstone["replacement_room"], json!(new));
    let create = state(&alice, &new, "m.room.create").await;
    assert_eq!(create["predecessor"]["room_id"], json!(old));
    assert_eq!(state(&alice, &new, "m.room.name").await["name"], "Old");
    let alias = "/_matrix/client/v3/directory/room/%23moving:localhost";
    assert_eq!(bob.get(alias).await.ok()["room_id"], json!(new));
}
