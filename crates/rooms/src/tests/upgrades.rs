//! What an upgraded room takes over, whoever upgrades it.

use ruma::{OwnedRoomId, RoomAliasId, RoomVersionId, UserId};
use serde_json::{Value, json, value::to_raw_value};

use super::support::{Server, event, invite, user};
use crate::{CreateRoom, RoomAction, RoomAnswer, RoomError, UpgradeRoom};

async fn upgrade(
    server: &Server,
    by: &UserId,
    room: &OwnedRoomId,
    to: &str,
) -> Result<OwnedRoomId, RoomError> {
    let upgrade = UpgradeRoom {
        room: room.clone(),
        new_version: RoomVersionId::try_from(to).unwrap(),
        additional_creators: Vec::new(),
        profile: crate::MemberProfile::default(),
    };
    match server.act(by, RoomAction::Upgrade(upgrade)).await? {
        RoomAnswer::Upgraded { replacement, .. } => Ok(replacement),
        other => panic!("{other:?}"),
    }
}

fn raw(content: &Value) -> Box<serde_json::value::RawValue> {
    to_raw_value(content).unwrap()
}

/// A moderator who may replace the room, but may set none of what makes it closed.
#[tokio::test]
async fn a_room_keeps_its_rules_when_a_moderator_upgrades_it() {
    for (from, to) in [("10", "11"), ("11", "12"), ("11", "10")] {
        let server = Server::start().await;
        let (alice, bob) = (user("alice"), user("bob"));
        let state = [
            (
                "m.room.server_acl",
                json!({ "allow": ["*"], "deny": ["bad.example"] }),
            ),
            (
                "m.room.history_visibility",
                json!({ "history_visibility": "joined" }),
            ),
            ("m.room.join_rules", json!({ "join_rule": "knock" })),
            (
                "m.room.guest_access",
                json!({ "guest_access": "forbidden" }),
            ),
            ("m.room.name", json!({ "name": "closed" })),
        ];
        let levels = json!({
            "users": { alice.as_str(): 100, bob.as_str(): 50 },
            "state_default": 50,
            "events": {
                "m.room.tombstone": 50, "m.room.server_acl": 100, "m.room.join_rules": 90,
                "m.room.history_visibility": 100, "m.room.power_levels": 95, "m.room.guest_access": 60,
            },
        });
        let create = CreateRoom {
            version: Some(RoomVersionId::try_from(from).unwrap()),
            power_level_content_override: Some(raw(&levels)),
            ..CreateRoom::default()
        };
        let room = server.create(&alice, create).await;
        for (kind, content) in &state {
            let event = event(kind, Some(""), content);
            server.try_send(&alice, &room, event).await.unwrap();
        }
        server.member(&alice, &room, invite("bob")).await.unwrap();
        server.join(&bob, &room).await.unwrap();
        let new = upgrade(&server, &bob, &room, to).await.unwrap();
        for (kind, content) in &state {
            let found = server.state(&new, kind, "").await;
            assert_eq!(found.as_ref(), Some(content), "{from} to {to}: {kind}");
        }
        let found = server.state(&new, "m.room.power_levels", "").await.unwrap();
        assert_eq!(found["events"]["m.room.server_acl"], 100);
        assert_eq!(found["users"][alice.as_str()], 100);
        let of_bob = found["users"].get(bob.as_str()).and_then(Value::as_i64);
        // In version 12 he is the creator, who has no level.
        assert_eq!(of_bob, (to != "12").then_some(50), "{from} to {to}");
        let opens = event(
            "m.room.join_rules",
            Some(""),
            &json!({ "join_rule": "public" }),
        );
        let opened = server.try_send(&bob, &new, opens).await;
        assert_eq!(opened.is_ok(), to == "12", "{opened:?}");
    }
}

/// Any member may give a room aliases, but not so many that it cannot be upgraded.
#[tokio::test]
async fn aliases_of_a_room_are_limited_and_move_with_it() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let room = server.create(&alice, CreateRoom::default()).await;
    server.member(&alice, &room, invite("bob")).await.unwrap();
    server.join(&bob, &room).await.unwrap();
    let alias = |number: usize| RoomAliasId::parse(format!("#a{number}:here.example")).unwrap();
    let set = |number: usize| RoomAction::SetAlias {
        alias: alias(number),
        room: room.clone(),
    };
    for number in 0..200 {
        server.act(&bob, set(number)).await.unwrap();
    }
    for user in [&bob, &alice] {
        let answer = server.act(user, set(200)).await;
        assert!(matches!(answer, Err(RoomError::Forbidden(_))), "{answer:?}");
    }
    let delete = RoomAction::DeleteAlias {
        alias: alias(7),
        as_admin: false,
    };
    server.act(&alice, delete).await.unwrap();
    server.act(&alice, set(200)).await.unwrap();
    let new = upgrade(&server, &alice, &room, "12").await.unwrap();
    for number in (0..=200).filter(|number| *number != 7) {
        let target = server.rooms.alias(&alias(number)).await.unwrap().unwrap();
        assert_eq!(target.room.id, new, "{number}");
    }
    let number = server.room(&room).await.number;
    assert!(server.rooms.aliases(number).await.unwrap().is_empty());
}
