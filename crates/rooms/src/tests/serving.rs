//! What other servers may ask of a room.

use homeserver_storage::Position;
use ruma::{ServerName, server_name};
use serde_json::json;

use super::{
    forks::shared_room,
    support::{Server, event, user},
};
use crate::{MembershipChange, Room};

async fn joined(server: &Server, room: &Room, name: &str, at: Position) -> bool {
    let name = ServerName::parse(name).unwrap();
    server.rooms.server_joined(room, &name, at).await.unwrap()
}

#[tokio::test]
async fn the_acl_is_that_of_the_current_state() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let bad = server_name!("bad.example:8448");
    assert!(server.rooms.acl(&room).await.unwrap().allows(bad));
    for (content, allows) in [
        (json!({ "allow": ["*"], "deny": ["bad.example"] }), false),
        (json!({ "allow": ["*"] }), true),
        (json!({}), false),
    ] {
        let acl = event("m.room.server_acl", Some(""), &content);
        let sent = server.try_send(&user("alice"), &zed.room, acl).await;
        sent.unwrap();
        let first = server.rooms.acl(&room).await.unwrap();
        assert_eq!(first.allows(bad), allows, "{content}");
        let again = server.rooms.acl(&room).await.unwrap();
        assert!(std::sync::Arc::ptr_eq(&first, &again), "it is read once");
    }
}

#[tokio::test]
async fn a_server_is_in_a_room_while_one_of_its_users_is() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let room = server.room(&zed.room).await;
    let with_zed = server.rooms.durable();
    assert!(joined(&server, &room, "there.example", with_zed).await);
    assert!(joined(&server, &room, "THERE.example.", with_zed).await);
    assert!(!joined(&server, &room, "there.example:8448", with_zed).await);
    assert!(!joined(&server, &room, "there.example", with_zed - 1).await);
    assert!(joined(&server, &room, "here.example", with_zed - 1).await);

    let leave = json!({ "membership": "leave" });
    let key = zed.user.to_string();
    let leave = zed.make(&[join], "m.room.member", Some(&key), leave).await;
    zed.receive(&leave).await;
    let without = server.rooms.durable();
    assert!(!joined(&server, &room, "there.example", without).await);
    assert!(joined(&server, &room, "there.example", with_zed).await);
    assert!(!joined(&server, &room, "elsewhere.example", without).await);
    let leave = MembershipChange::Leave;
    server
        .member(&user("alice"), &zed.room, leave)
        .await
        .unwrap();
    assert!(!joined(&server, &room, "here.example", server.rooms.durable()).await);
}
