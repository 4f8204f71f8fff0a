//! Users within the process, in rooms of another homeserver.

use std::time::Duration;

use homeserver_rooms::{CreateRoom, InitialState, Preset};
use ruma::OwnedRoomOrAliasId;
use serde_json::value::to_raw_value;

use super::*;
use crate::{
    ClientError, LocalUser,
    client::{UserEvent, UserEvents},
};

const PATIENCE: Duration = Duration::from_mins(1);

async fn user(server: &Fresh, name: &str) -> LocalUser {
    let administration = server.homeserver.administration();
    administration.create_user(name, None, false).await.unwrap();
    let id = format!("@{name}:{}", server.homeserver.server_name());
    server.homeserver.user(&id).await.unwrap()
}

/// The next event that is wanted.
async fn next(events: &mut UserEvents, wanted: impl Fn(&UserEvent) -> bool) -> UserEvent {
    let look = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap()
}

fn membership(event: &UserEvent, user: &LocalUser) -> Option<String> {
    let content: Value = event.content_as().unwrap();
    let of_user = event.state_key() == Some(user.user_id().as_str());
    of_user.then(|| content["membership"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_user_within_the_process_is_in_rooms_of_another_homeserver() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let there = join(&network, "bb.example").await;
    let (alice, bob) = (user(&here, "alice").await, user(&there, "bob").await);
    let (mut to_alice, mut to_bob) = (alice.events(), bob.events());

    // Invited, joins, speaks.
    let room = alice.create_room(CreateRoom::default()).await.unwrap();
    alice.invite(&room, bob.user_id()).await.unwrap();
    let invite = next(&mut to_bob, |event| {
        membership(event, &bob).as_deref() == Some("invite")
    });
    let invite = invite.await;
    assert_eq!((&invite.room, invite.sender()), (&room, alice.user_id()));
    assert_eq!(bob.join(room.clone()).await.unwrap(), room);
    let hello = json!({ "msgtype": "m.text", "body": "hello" });
    let said = bob.send(&room, "m.room.message", &hello).await.unwrap();
    next(&mut to_alice, |event| event.event_id() == said).await;
    let said = alice.send(&room, "m.room.message", &hello).await.unwrap();
    next(&mut to_bob, |event| event.event_id() == said).await;
    bob.leave(&room).await.unwrap();
    next(&mut to_alice, |event| {
        membership(event, &bob).as_deref() == Some("leave")
    })
    .await;

    // Refuses an invite.
    let other = alice.create_room(CreateRoom::default()).await.unwrap();
    alice.invite(&other, bob.user_id()).await.unwrap();
    bob.leave(&other).await.unwrap();
    next(&mut to_alice, |event| {
        event.room == other && membership(event, &bob).as_deref() == Some("leave")
    })
    .await;
    assert!(bob.join(other).await.is_err());
}

#[tokio::test]
async fn rooms_elsewhere_are_found_by_alias_and_knocked_at() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let there = join(&network, "bb.example").await;
    let (alice, bob) = (user(&here, "alice").await, user(&there, "bob").await);
    let mut to_alice = alice.events();
    let wanted = CreateRoom {
        preset: Some(Preset::PublicChat),
        alias_localpart: Some("open".to_owned()),
        ..CreateRoom::default()
    };
    let open = alice.create_room(wanted).await.unwrap();
    let alias = |name: &str| OwnedRoomOrAliasId::try_from(name).unwrap();
    let joined = bob.join(alias("#open:a.example")).await.unwrap();
    assert_eq!(joined, open);
    let nowhere = bob.join(alias("#closed:a.example")).await;
    assert!(matches!(nowhere, Err(ClientError::NoSuchRoom(_))));
    let unknown = bob.join(alias("!unknown:a.example")).await;
    assert!(unknown.is_err());

    let rule = to_raw_value(&json!({ "join_rule": "knock" })).unwrap();
    let wanted = CreateRoom {
        initial_state: vec![InitialState {
            event_type: "m.room.join_rules".to_owned(),
            state_key: String::new(),
            content: rule,
        }],
        ..CreateRoom::default()
    };
    let shut = alice.create_room(wanted).await.unwrap();
    let via = vec![here.homeserver.server_name().to_owned()];
    assert!(bob.join_via(shut.clone(), via.clone()).await.is_err());
    bob.knock(shut.clone(), via, Some("please".to_owned()))
        .await
        .unwrap();
    let knock = next(&mut to_alice, |event| {
        membership(event, &bob).as_deref() == Some("knock")
    });
    assert_eq!(knock.await.room, shut);
    alice.invite(&shut, bob.user_id()).await.unwrap();
    bob.join(shut).await.unwrap();
}
