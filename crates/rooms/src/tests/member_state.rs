//! Member events that clients send like any other state: nobody gets further this way than by the
//! endpoints for memberships.

use ruma::{OwnedEventId, OwnedRoomId, RoomVersionId, UserId};
use serde_json::{Value, json};

use super::support::{Server, event, invite, user};
use crate::{CreateRoom, InitialState, MemberProfile, MembershipChange, Preset, RoomError};

const VOUCHER: &str = "join_authorised_via_users_server";

async fn set(
    server: &Server,
    sender: &UserId,
    room: &OwnedRoomId,
    target: &UserId,
    content: &Value,
) -> Result<OwnedEventId, RoomError> {
    let member = event("m.room.member", Some(target.as_str()), content);
    server.try_send(sender, room, member).await
}

async fn shown(server: &Server, room: &OwnedRoomId, of: &UserId) -> Value {
    let state = server.state(room, "m.room.member", of.as_str()).await;
    state.unwrap_or_default()
}

fn refused<T: std::fmt::Debug>(answer: &Result<T, RoomError>) {
    assert!(matches!(answer, Err(RoomError::Forbidden(_))), "{answer:?}");
}

/// A club, and a room for the members of the club.
async fn restricted(server: &Server, owner: &UserId, rule: &str) -> (OwnedRoomId, OwnedRoomId) {
    let open = CreateRoom {
        preset: Some(Preset::PublicChat),
        ..CreateRoom::default()
    };
    let club = server.create(owner, open).await;
    let rules = json!({
        "join_rule": rule,
        "allow": [{ "type": "m.room_membership", "room_id": club }],
    });
    let create = CreateRoom {
        version: Some(RoomVersionId::V10),
        initial_state: vec![InitialState {
            event_type: "m.room.join_rules".to_owned(),
            state_key: String::new(),
            content: serde_json::from_value(rules).unwrap(),
        }],
        ..CreateRoom::default()
    };
    let room = server.create(owner, create).await;
    (club, room)
}

#[tokio::test]
async fn nobody_names_who_vouches_for_them() {
    let server = Server::start().await;
    let (alice, bob, carol) = (user("alice"), user("bob"), user("carol"));
    for rule in ["restricted", "knock_restricted"] {
        let (club, room) = restricted(&server, &alice, rule).await;
        server.join(&bob, &club).await.unwrap();
        let claimed = json!({ "membership": "join", VOUCHER: alice, "displayname": "M" });
        refused(&set(&server, &carol, &room, &carol, &claimed).await);
        refused(&server.join(&carol, &room).await);
        let wrong = json!({ "membership": "join", VOUCHER: carol, "displayname": "B" });
        set(&server, &bob, &room, &bob, &wrong).await.unwrap();
        let expected = json!({ "membership": "join", VOUCHER: alice, "displayname": "B" });
        assert_eq!(shown(&server, &room, &bob).await, expected);
        let profile = MemberProfile {
            displayname: Some("Bobby".to_owned()),
            avatar_url: None,
        };
        let show = MembershipChange::Show { profile };
        server.member(&bob, &room, show).await.unwrap();
        let expected = json!({ "membership": "join", "displayname": "Bobby" });
        assert_eq!(shown(&server, &room, &bob).await, expected);
        set(&server, &bob, &room, &bob, &wrong).await.unwrap();
        let expected = json!({ "membership": "join", "displayname": "B" });
        assert_eq!(
            shown(&server, &room, &bob).await,
            expected,
            "nobody vouches for a member who changes a name"
        );
        server.member(&alice, &room, invite("carol")).await.unwrap();
        set(&server, &carol, &room, &carol, &claimed).await.unwrap();
        let expected = json!({ "membership": "join", "displayname": "M" });
        assert_eq!(shown(&server, &room, &carol).await, expected);
        for change in ["leave", "ban"] {
            let content = json!({ "membership": change, VOUCHER: alice });
            set(&server, &alice, &room, &bob, &content).await.unwrap();
            let expected = json!({ "membership": change });
            assert_eq!(shown(&server, &room, &bob).await, expected);
        }
        refused(&set(&server, &bob, &room, &bob, &wrong).await);
    }
}

#[tokio::test]
async fn a_member_event_does_what_its_endpoint_does() {
    let server = Server::start().await;
    let (alice, bob, carol) = (user("alice"), user("bob"), user("carol"));
    let room = server.create(&alice, CreateRoom::default()).await;
    let (join, leave) = (
        json!({ "membership": "join" }),
        json!({ "membership": "leave" }),
    );
    let (invited, banned) = (
        json!({ "membership": "invite" }),
        json!({ "membership": "ban" }),
    );
    let knock = json!({ "membership": "knock" });
    refused(&set(&server, &alice, &room, &bob, &leave).await);
    refused(&set(&server, &alice, &room, &bob, &join).await);
    refused(&set(&server, &alice, &room, &bob, &knock).await);
    refused(&set(&server, &bob, &room, &bob, &join).await);
    refused(&set(&server, &bob, &room, &bob, &knock).await);
    refused(&set(&server, &bob, &room, &bob, &invited).await);
    set(&server, &alice, &room, &bob, &invited).await.unwrap();
    set(&server, &bob, &room, &bob, &join).await.unwrap();
    server.join(&bob, &room).await.unwrap();
    refused(&set(&server, &bob, &room, &carol, &banned).await);
    refused(&set(&server, &bob, &room, &alice, &banned).await);
    refused(&set(&server, &bob, &room, &alice, &leave).await);
    let kicked = set(&server, &alice, &room, &bob, &leave).await.unwrap();
    let again = set(&server, &alice, &room, &bob, &leave).await;
    assert_eq!(again.unwrap(), kicked, "the same state again");
    let reason = json!({ "membership": "leave", "reason": "still" });
    refused(&set(&server, &alice, &room, &bob, &reason).await);
    set(&server, &alice, &room, &bob, &banned).await.unwrap();
    refused(&set(&server, &bob, &room, &bob, &leave).await);
    refused(&set(&server, &alice, &room, &bob, &invited).await);
    set(&server, &alice, &room, &bob, &leave).await.unwrap();
    let unban = MembershipChange::Unban { user: bob.clone() };
    refused(&server.member(&alice, &room, unban).await);
    assert_eq!(shown(&server, &room, &bob).await, leave);
}

/// By the answer to an event nobody learns what is in a room that they are not in any more, or
/// never were in.
#[tokio::test]
async fn who_is_not_in_the_room_is_told_nothing_of_it() {
    let server = Server::start().await;
    let (alice, bob, carol) = (user("alice"), user("bob"), user("carol"));
    let create = CreateRoom {
        alias_localpart: Some("here".to_owned()),
        invite: vec![bob.clone()],
        power_level_content_override: Some(
            serde_json::from_value(json!({ "state_default": 0, "invite": 0 })).unwrap(),
        ),
        ..CreateRoom::default()
    };
    let room = server.create(&alice, create).await;
    let said = server.say(&alice, &room, "said").await;
    server.join(&bob, &room).await.unwrap();
    let topic = || event("m.room.topic", Some(""), &json!({ "topic": "by bob" }));
    server.try_send(&bob, &room, topic()).await.unwrap();
    server.member(&bob, &room, invite("dan")).await.unwrap();
    let reaction = json!({
        "m.relates_to": { "rel_type": "m.annotation", "event_id": said, "key": "+" },
    });
    let react = || event("m.reaction", None, &reaction);
    server.try_send(&bob, &room, react()).await.unwrap();
    let kick = MembershipChange::Kick { user: bob.clone() };
    server.member(&alice, &room, kick).await.unwrap();
    let alias = |name: &str| {
        let content = json!({ "alias": format!("#{name}:here.example") });
        event("m.room.canonical_alias", Some(""), &content)
    };
    let redaction = |id: &str| event("m.room.redaction", None, &json!({ "redacts": id }));
    let dan = user("dan");
    let asked = [
        topic(),
        react(),
        alias("here"),
        alias("nowhere"),
        redaction(said.as_str()),
        redaction("$unknown"),
        event(
            "m.room.member",
            Some(dan.as_str()),
            &json!({ "membership": "invite" }),
        ),
    ];
    for outsider in [&bob, &carol] {
        for event in &asked {
            match server.try_send(outsider, &room, event.clone()).await {
                Err(RoomError::Forbidden(why)) => {
                    assert_eq!(why, "you are not in this room", "{event:?}");
                }
                other => panic!("{outsider}: {event:?}: {other:?}"),
            }
        }
    }
}
