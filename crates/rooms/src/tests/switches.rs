//! Changes of state larger than a batch: in one switch, killed at every step.

use std::sync::Arc;

use homeserver_events::{Draft, Pdu, SigningKey};
use homeserver_storage::engines::{
    faulty::{Fault, FaultPlan, FaultyEngine},
    memory::MemoryEngine,
};
use ruma::{OwnedRoomId, UserId, server_name};
use serde_json::value::to_raw_value;

use super::support::{Server, message, user};
use crate::{
    CreateRoom, EventNumber, IMPORT_LIFETIME, IMPORT_PART, ImportId, Preset, Room, RoomError,
    StateRoot,
};

/// Joins of other users, as another server would hand them over.
fn joins(room: &Room, create: &Pdu, count: usize) -> Vec<Pdu> {
    let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
    let join = |number: usize| {
        // Every hundredth is a user of this server, who is indexed.
        let local = number.is_multiple_of(100);
        let server = if local {
            server_name!("here.example")
        } else {
            server_name!("there.example")
        };
        let sender = UserId::parse(format!("@u{number}:{server}")).unwrap();
        let draft = Draft {
            room_id: Some(room.id.clone()),
            state_key: Some(sender.to_string()),
            sender,
            event_type: "m.room.member".to_owned(),
            content: to_raw_value(&serde_json::json!({ "membership": "join" })).unwrap(),
            origin_server_ts: 5,
            prev_events: vec![create.reference().unwrap()],
            auth_events: vec![create.reference().unwrap()],
            depth: 9,
            redacts: None,
        };
        draft.seal(room.rules, server, &key).unwrap()
    };
    (0..count).map(join).collect()
}

async fn public_room(server: &Server) -> Result<OwnedRoomId, RoomError> {
    let create = CreateRoom {
        preset: Some(Preset::PublicChat),
        version: Some(ruma::RoomVersionId::V11),
        ..CreateRoom::default()
    };
    let action = crate::RoomAction::Create(Box::new(create));
    match server.act(&user("alice"), action).await? {
        crate::RoomAnswer::Created { room, .. } => Ok(room),
        other => panic!("{other:?}"),
    }
}

async fn create_event(server: &Server, room: &Room) -> Pdu {
    server
        .rooms
        .events
        .load(room, room.create)
        .await
        .unwrap()
        .pdu
        .clone()
}

async fn root(server: &Server, room: &Room) -> StateRoot {
    server
        .rooms
        .state_at(room.number, server.rooms.durable())
        .await
        .unwrap()
        .root
}

/// Prepares what is not prepared yet, then switches.
async fn import(server: &Server, import: ImportId, pdus: &[Pdu]) -> Result<(), RoomError> {
    for (ordinal, part) in (0_u64..).zip(pdus.chunks(IMPORT_PART)) {
        server.rooms.import_part(import, ordinal, part).await?;
    }
    server.rooms.switch(import).await?;
    Ok(())
}

async fn check_whole(server: &Server, room: &Arc<Room>, pdus: &[Pdu], context: &str) {
    let rooms = &server.rooms;
    let now = rooms.state_at(room.number, rooms.durable()).await.unwrap();
    let members = rooms
        .state_of_type(room, now.root, "m.room.member")
        .await
        .unwrap();
    assert_eq!(members.len(), pdus.len() + 1, "{context}");
    assert_eq!(now.joined, pdus.len() as u64 + 1, "{context}");
    let servers = rooms.servers(room.number, 9).await.unwrap();
    assert_eq!(servers, ["here.example", "there.example"], "{context}");
    let local = rooms.local_members(room.number, 1000).await.unwrap();
    assert_eq!(local.len(), pdus.len().div_ceil(100) + 1, "{context}");
    let last = pdus.last().unwrap();
    let number = rooms
        .events
        .number(room.number, last.event_id())
        .await
        .unwrap()
        .unwrap();
    let in_state = rooms.state_value(room, now.root, "m.room.member", last.state_key().unwrap());
    assert_eq!(in_state.await.unwrap(), Some(number), "{context}");
    server.say(&user("u0"), &room.id, "in").await;
    assert!(
        server
            .try_send(&user("stranger"), &room.id, message("out"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn twenty_thousand_keys_change_in_one_switch() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &create_event(&server, &room).await, 20_000);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let before = root(&server, &room).await;
    for (ordinal, part) in (0_u64..).zip(pdus.chunks(IMPORT_PART)) {
        server
            .rooms
            .import_part(begun, ordinal, part)
            .await
            .unwrap();
    }
    assert_eq!(
        root(&server, &room).await,
        before,
        "nothing is seen before the switch"
    );
    // The room goes on meanwhile, and keeps what happened.
    let name = super::support::event("m.room.name", Some(""), &serde_json::json!({ "name": "n" }));
    server.try_send(&user("alice"), &id, name).await.unwrap();
    server.rooms.switch(begun).await.unwrap();
    assert_eq!(
        server.state(&id, "m.room.name", "").await.unwrap()["name"],
        "n"
    );
    check_whole(&server, &room, &pdus, "whole").await;
    let summary = server
        .rooms
        .summary(&server.reader(&user("alice")).await, &room)
        .await
        .unwrap();
    assert_eq!((summary.joined, summary.heroes.len()), (20_001, 5));
}

/// A fault at one call, a power loss, and then the work is gone on with.
async fn round(call: u64, fault: Fault, pdus: &mut Option<Vec<Pdu>>) -> bool {
    let context = format!("{fault:?} at call {call}");
    let engine = Arc::new(FaultyEngine::new(
        Arc::new(MemoryEngine::new()),
        FaultPlan::once(call, call, fault),
    ));
    let Ok(server) = Server::try_on(engine.clone()).await else {
        return false;
    };
    let Ok(id) = public_room(&server).await else {
        return false;
    };
    let Ok(Some(room)) = server.rooms.room(&id).await else {
        return false;
    };
    let Ok(create) = server.rooms.events.load(&room, room.create).await else {
        return false;
    };
    let pdus = &*pdus.get_or_insert_with(|| joins(&room, &create.pdu, 450));
    let Ok(begun) = server.rooms.begin_import(&room).await else {
        return false;
    };
    let done = import(&server, begun, pdus).await;

    let survivor = Server::on(Arc::new(engine.crash().await.unwrap())).await;
    let room = survivor.room(&id).await;
    let now = survivor
        .rooms
        .state_at(room.number, survivor.rooms.durable())
        .await
        .unwrap();
    let members = survivor
        .rooms
        .state_of_type(&room, now.root, "m.room.member")
        .await
        .unwrap();
    let whole = members.len() == pdus.len() + 1;
    assert!(
        whole || members.len() == 1,
        "{context}: {} members",
        members.len()
    );
    assert!(whole || done.is_err(), "{context}: told and forgotten");
    if !whole {
        assert!(
            survivor
                .rooms
                .import_progress(begun)
                .await
                .unwrap()
                .is_some(),
            "{context}"
        );
        import(&survivor, begun, pdus).await.unwrap();
    }
    check_whole(&survivor, &room, pdus, &context).await;
    done.is_err()
}

#[tokio::test]
async fn a_switch_is_whole_or_not_there_wherever_it_is_killed() {
    // The room is the same each time (entropy is seeded), so its events are made once.
    let mut pdus = None;
    let mut hit = 0;
    for call in (30..700).step_by(7) {
        let fault = [
            Fault::Error,
            Fault::Full,
            Fault::ShortWrite,
            Fault::FailedSync,
        ];
        let fault = fault[call as usize % 4];
        hit += usize::from(round(call, fault, &mut pdus).await);
    }
    assert!(hit > 20, "only {hit} imports were hit");
}

#[tokio::test]
async fn an_abandoned_import_leaves_nothing() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &create_event(&server, &room).await, 150);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let first = EventNumber(begun.0 + 1);
    server
        .rooms
        .import_part(begun, 0, &pdus[..100])
        .await
        .unwrap();
    assert!(
        server
            .rooms
            .events
            .find(&room, first)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(server.rooms.sweep_imports().await.unwrap(), 0);
    let later = std::time::Duration::from_millis(IMPORT_LIFETIME + 1);
    server.clock.advance(later);
    assert_eq!(server.rooms.sweep_imports().await.unwrap(), 1);
    assert_eq!(server.rooms.import_progress(begun).await.unwrap(), None);
    assert!(
        server
            .rooms
            .events
            .find(&room, first)
            .await
            .unwrap()
            .is_none()
    );
    // The room itself is whole, also for a process that has no node in its cache.
    let again = server.restart().await;
    again.say(&user("alice"), &id, "still here").await;
    let all = again
        .rooms
        .state_all(&room, root(&again, &room).await)
        .await
        .unwrap();
    assert_eq!(all.len(), 6);
    again.join(&user("bob"), &id).await.unwrap();
}

#[tokio::test]
async fn many_events_are_appended_at_once() {
    let server = Server::start().await;
    let alice = user("alice");
    let id = public_room(&server).await.unwrap();
    let mut events: Vec<_> = (0..700)
        .map(|n| (alice.clone(), message(&n.to_string())))
        .collect();
    let join = super::support::event(
        "m.room.member",
        Some("@bob:here.example"),
        &serde_json::json!({ "membership": "join" }),
    );
    events.insert(300, (user("bob"), join));
    events.push((user("bob"), message("last")));
    let last = server.rooms.append_many(&id, &events).await.unwrap();
    assert_eq!(last, server.rooms.durable());
    let reader = server.reader(&user("bob")).await;
    let room = server.room(&id).await;
    let slice = server
        .rooms
        .timeline(&reader, &room, 0, 710, &|_| true)
        .await
        .unwrap();
    assert_eq!(slice.events.len(), 6 + 702);
    assert!(
        slice
            .events
            .last()
            .unwrap()
            .pdu()
            .content_str()
            .contains("last")
    );
    let refused = server
        .rooms
        .append_many(&id, &[(user("eve"), message("no"))])
        .await;
    assert!(matches!(refused, Err(RoomError::Forbidden(_))));
}
