//! Whose redactions take effect, and on what.

use homeserver_events::StatusKind;
use ruma::{OwnedEventId, OwnedRoomId, user_id};
use serde_json::json;

use super::{
    forks::{Elsewhere, shared_room},
    support::{Server, event, user},
};
use crate::{CreateRoom, RoomAction, RoomError};

async fn content(server: &Server, room: &OwnedRoomId, id: &OwnedEventId) -> String {
    let reader = server.reader(&user("alice")).await;
    let room = server.room(room).await;
    let event = server.rooms.visible_by_id(&reader, &room, id).await;
    event.unwrap().unwrap().pdu().content_str().to_owned()
}

/// The id of the event that stands for a type.
async fn standing(server: &Server, room: &OwnedRoomId, event_type: &str) -> OwnedEventId {
    let room = server.room(room).await;
    let now = server.rooms.state_at(room.number, server.rooms.durable());
    let root = now.await.unwrap().root;
    let event = server.rooms.state_event(&room, root, event_type, "").await;
    event.unwrap().unwrap().pdu.event_id().to_owned()
}

#[tokio::test]
async fn what_holds_a_room_together_is_not_redacted() {
    let server = Server::start().await;
    let alice = user("alice");
    let room = server.create(&alice, CreateRoom::default()).await;
    let acl = json!({ "allow": ["*"], "deny": ["bad.example"] });
    let acl = event("m.room.server_acl", Some(""), &acl);
    server.try_send(&alice, &room, acl).await.unwrap();
    // A message of that type is a message.
    let message = event("m.room.server_acl", None, &json!({ "body": "no state" }));
    let message = server.try_send(&alice, &room, message).await.unwrap();
    for kind in ["m.room.create", "m.room.server_acl"] {
        let target = standing(&server, &room, kind).await;
        let before = content(&server, &room, &target).await;
        let redact = RoomAction::Redact {
            room: room.clone(),
            target: target.clone(),
            reason: None,
        };
        let answer = server.act(&alice, redact).await;
        assert!(matches!(answer, Err(RoomError::Forbidden(_))), "{answer:?}");
        let sent = event("m.room.redaction", None, &json!({ "redacts": target }));
        let answer = server.try_send(&alice, &room, sent).await;
        assert!(matches!(answer, Err(RoomError::Forbidden(_))), "{answer:?}");
        assert_eq!(content(&server, &room, &target).await, before);
    }
    let redact = RoomAction::Redact {
        room: room.clone(),
        target: message.clone(),
        reason: None,
    };
    server.act(&alice, redact).await.unwrap();
    assert_eq!(content(&server, &room, &message).await, "{}");
}

/// Receives a redaction of another server. It is part of the room whether it takes effect or not.
async fn redact(elsewhere: &mut Elsewhere<'_>, after: &mut OwnedEventId, target: &OwnedEventId) {
    let prev = std::slice::from_ref(&*after);
    let content = json!({ "redacts": target });
    let redaction = elsewhere.make(prev, "m.room.redaction", None, content);
    let redaction = redaction.await;
    assert_eq!(elsewhere.receive(&redaction).await, StatusKind::Accepted);
    *after = redaction.event_id().to_owned();
}

#[tokio::test]
async fn a_redaction_takes_the_power_or_the_server_of_its_target() {
    let server = Server::start().await;
    let (mut elsewhere, _) = shared_room(&server, "11").await;
    let room = elsewhere.room.clone();
    let said = server.say(&user("alice"), &room, "said").await;
    let mut after = said.clone();
    let mut spoken = Vec::new();
    for name in ["@zed:there.example", "@carl:there.example"] {
        elsewhere.user = name.try_into().unwrap();
        for (kind, key, content) in [
            ("m.room.member", Some(name), json!({ "membership": "join" })),
            ("m.room.message", None, json!({ "body": name })),
        ] {
            let prev = std::slice::from_ref(&after);
            let pdu = elsewhere.make(prev, kind, key, content).await;
            assert_eq!(elsewhere.receive(&pdu).await, StatusKind::Accepted);
            after = pdu.event_id().to_owned();
        }
        spoken.push(after.clone());
    }
    let create = standing(&server, &room, "m.room.create").await;
    let levels = standing(&server, &room, "m.room.power_levels").await;
    let name = standing(&server, &room, "m.room.name").await;
    // Carl has no power, but shares a server with Zed.
    elsewhere.user = user_id!("@carl:there.example").to_owned();
    for target in [&said, &name, &create, &levels] {
        let before = content(&server, &room, target).await;
        redact(&mut elsewhere, &mut after, target).await;
        assert_eq!(content(&server, &room, target).await, before);
    }
    redact(&mut elsewhere, &mut after, &spoken[0]).await;
    assert_eq!(content(&server, &room, &spoken[0]).await, "{}");
    elsewhere.user = user_id!("@zed:there.example").to_owned();
    for target in [&said, &name, &spoken[1]] {
        redact(&mut elsewhere, &mut after, target).await;
        assert_eq!(content(&server, &room, target).await, "{}");
    }
    let before = content(&server, &room, &create).await;
    redact(&mut elsewhere, &mut after, &create).await;
    assert_eq!(content(&server, &room, &create).await, before);
}
