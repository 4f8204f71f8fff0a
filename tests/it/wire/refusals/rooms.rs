//! Rooms that are not there, or not for everybody.

use homeserver_tests::{Client, Server, encode};
use serde_json::{Value, json};

use super::Refusals;

const NOWHERE: &str = "/_matrix/client/v3/rooms/!nowhere:localhost";

async fn three(server: &Server) -> [Client; 3] {
    let nobody = server.client();
    [
        nobody.register("alice").await,
        nobody.register("bob").await,
        nobody.register("carol").await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_takes_membership() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let id = alice.create_room(json!({})).await;
    let room = format!("/_matrix/client/v3/rooms/{}", encode(&id));
    let newer = room.replace("/v3/", "/v1/");
    let mut refusals = Refusals::default();
    for path in [
        format!("{room}/state"),
        format!("{room}/state/m.room.create/"),
        format!("{room}/members"),
        format!("{room}/joined_members"),
        format!("{room}/messages?dir=b"),
        format!("{room}/aliases"),
        format!("{NOWHERE}/state"),
        format!("{NOWHERE}/members"),
    ] {
        let request = format!("GET {path}");
        refusals
            .check(&bob, &request, Value::Null, "403 M_FORBIDDEN")
            .await;
    }
    for (path, expected) in [
        (format!("{room}/event/$none"), "404 M_NOT_FOUND"),
        (format!("{room}/context/$none"), "404 M_NOT_FOUND"),
        (format!("{newer}/relations/$none"), "404 M_NOT_FOUND"),
        (
            format!("{newer}/relations/$none/m.thread"),
            "404 M_NOT_FOUND",
        ),
        (
            format!("{newer}/relations/$none/m.thread/m.room.message"),
            "404 M_NOT_FOUND",
        ),
        (
            format!("{newer}/timestamp_to_event?dir=f&ts=9999999999999"),
            "404 M_NOT_FOUND",
        ),
        (
            format!("{newer}/timestamp_to_event?dir=sideways&ts=1"),
            "400 M_INVALID_PARAM",
        ),
        (
            format!("{newer}/timestamp_to_event?dir=f"),
            "400 M_MISSING_PARAM",
        ),
        (format!("{room}/messages"), "400 M_MISSING_PARAM"),
        (
            format!("{room}/messages?dir=b&to=nonsense"),
            "400 M_INVALID_PARAM",
        ),
        (format!("{room}/members?at=nonsense"), "400 M_INVALID_PARAM"),
        (
            "/_matrix/client/v3/rooms/nonsense/aliases".to_owned(),
            "400 M_INVALID_PARAM",
        ),
        (
            "/_matrix/client/v1/room_summary/%21none:localhost".to_owned(),
            "404 M_NOT_FOUND",
        ),
        (
            "/_matrix/client/v1/rooms/%21none:localhost/hierarchy".to_owned(),
            "403 M_FORBIDDEN",
        ),
        (
            "/_matrix/client/v1/rooms/%21none:localhost/hierarchy?limit=0".to_owned(),
            "400 M_INVALID_PARAM",
        ),
    ] {
        let request = format!("GET {path}");
        refusals
            .check(&alice, &request, Value::Null, expected)
            .await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_that_cannot_be() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let block = json!({ "default_action": "block" });
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.invite_permission_config",
        bob.user
    );
    bob.put(&path, block).await.ok();
    let mut refusals = Refusals::default();
    let powerless = json!({
        "room_version": "11", "name": "Mine",
        "power_level_content_override": { "users": { (&alice.user): 0 } },
    });
    for (wish, expected) in [
        (powerless, "400 M_INVALID_ROOM_STATE"),
        (
            json!({ "room_version": "99" }),
            "400 M_UNSUPPORTED_ROOM_VERSION",
        ),
        (json!({ "invite": [bob.user] }), "403 M_INVITE_BLOCKED"),
        (
            json!({ "invite_3pid": [{
                "id_server": "/", "id_access_token": "t", "medium": "email", "address": "a@b",
            }] }),
            "400 M_INVALID_PARAM",
        ),
    ] {
        let request = "POST /_matrix/client/v3/createRoom";
        refusals.check(&alice, request, wish, expected).await;
    }
    let id = alice.create_room(json!({})).await;
    let room = format!("/_matrix/client/v3/rooms/{}", encode(&id));
    let invite = json!({ "user_id": bob.user });
    let member = json!({ "membership": "invite" });
    for (request, body, expected) in [
        (
            format!("POST {room}/invite"),
            invite,
            "403 M_INVITE_BLOCKED",
        ),
        (
            format!("PUT {room}/state/m.room.member/{}", bob.user),
            member,
            "403 M_INVITE_BLOCKED",
        ),
        (
            format!("PUT {room}/state/m.room.canonical_alias/"),
            json!({ "alias": "no alias" }),
            "400 M_INVALID_PARAM",
        ),
        (
            format!("PUT {room}/state/org.example.large/"),
            json!({ "text": "x".repeat(70_000) }),
            "413 M_TOO_LARGE",
        ),
        (
            format!("POST {room}/invite"),
            json!({ "id_server": "/", "id_access_token": "t", "medium": "email", "address": "a@b" }),
            "400 M_INVALID_PARAM",
        ),
    ] {
        refusals.check(&alice, &request, body, expected).await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_take_membership_and_power() {
    let server = Server::start().await;
    let [alice, bob, carol] = three(&server).await;
    let id = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&id).await;
    let event = alice.say(&id, "mine").await;
    let room = format!("/_matrix/client/v3/rooms/{}", encode(&id));
    let event = encode(&event);
    let about = |user: &Client| json!({ "user_id": user.user });
    let mut refusals = Refusals::default();
    for (who, request, body, expected) in [
        (
            &bob,
            format!("POST {room}/ban"),
            about(&alice),
            "403 M_FORBIDDEN",
        ),
        (
            &bob,
            format!("POST {room}/kick"),
            about(&alice),
            "403 M_FORBIDDEN",
        ),
        (
            &bob,
            format!("POST {room}/unban"),
            about(&carol),
            "403 M_FORBIDDEN",
        ),
        (
            &carol,
            format!("POST {room}/invite"),
            about(&bob),
            "403 M_FORBIDDEN",
        ),
        (
            &carol,
            format!("POST {room}/leave"),
            json!({}),
            "403 M_FORBIDDEN",
        ),
        (
            &carol,
            format!("PUT {room}/redact/{event}/t1"),
            json!({}),
            "403 M_FORBIDDEN",
        ),
        (
            &carol,
            format!("POST {room}/report/{event}"),
            json!({ "reason": "x" }),
            "404 M_NOT_FOUND",
        ),
        (
            &bob,
            format!("POST {room}/report/$none"),
            json!({ "reason": "x" }),
            "404 M_NOT_FOUND",
        ),
        (
            &bob,
            format!("POST {NOWHERE}/report"),
            json!({ "reason": "x" }),
            "404 M_NOT_FOUND",
        ),
        (
            &bob,
            format!("POST {room}/upgrade"),
            json!({ "new_version": "12" }),
            "403 M_FORBIDDEN",
        ),
        (
            &bob,
            "POST /_matrix/client/v3/knock/%23none:localhost".to_owned(),
            json!({}),
            "404 M_NOT_FOUND",
        ),
        (
            &bob,
            "POST /_matrix/client/v3/join/%23none:localhost".to_owned(),
            json!({}),
            "404 M_NOT_FOUND",
        ),
    ] {
        refusals.check(who, &request, body, expected).await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn directories() {
    let server = Server::start().await;
    let [alice, bob, _] = three(&server).await;
    let id = alice.create_room(json!({ "preset": "public_chat" })).await;
    let list = "/_matrix/client/v3/directory/list/room";
    let aliases = "/_matrix/client/v3/directory/room";
    let mut refusals = Refusals::default();
    for (request, body, expected) in [
        (
            format!("GET {list}/!none:localhost"),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {list}/!none:localhost"),
            json!({ "visibility": "public" }),
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {list}/{}", encode(&id)),
            json!({ "visibility": "public" }),
            "403 M_FORBIDDEN",
        ),
        (
            format!("GET {aliases}/nonsense"),
            Value::Null,
            "400 M_INVALID_PARAM",
        ),
        (
            format!("PUT {aliases}/nonsense"),
            json!({ "room_id": id }),
            "400 M_INVALID_PARAM",
        ),
        (
            format!("PUT {aliases}/%23garden:elsewhere"),
            json!({ "room_id": id }),
            "400 M_INVALID_PARAM",
        ),
        (
            format!("DELETE {aliases}/%23none:localhost"),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            format!("GET {aliases}/%23none:localhost"),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
    ] {
        refusals.check(&bob, &request, body, expected).await;
    }
    refusals.must_be_as_expected();
}
