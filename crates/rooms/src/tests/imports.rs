//! What an import takes, and how it links it.

use homeserver_events::{Draft, Pdu, SigningKey, StatusKind};
use homeserver_storage::{Batch, CommitError, Direction, ScanRange};
use ruma::{owned_event_id, server_name};
use serde_json::{Value, json, value::to_raw_value};

use super::{
    forks::{Elsewhere, shared_room},
    support::{Server, user},
    switches::{allows_joins, joins, part, public_room},
};
use crate::{ImportId, Imported, PartTaken, RoomError, tables};

async fn begin(zed: &Elsewhere<'_>) -> ImportId {
    let room = zed.server.room(&zed.room).await;
    zed.server.rooms.begin_import(&room).await.unwrap()
}

async fn take(zed: &Elsewhere<'_>, import: ImportId, events: &[Imported]) -> PartTaken {
    let rooms = &zed.server.rooms;
    let taken = rooms.import_part(import, 0, events);
    taken.await.unwrap()
}

async fn imported(zed: &Elsewhere<'_>, pdus: &[Pdu]) {
    let begun = begin(zed).await;
    part(zed.server, begun, 0, pdus).await.unwrap();
    zed.server.rooms.switch(begun).await.unwrap();
}

async fn status(zed: &Elsewhere<'_>, pdu: &Pdu) -> StatusKind {
    let (rooms, room) = (&zed.server.rooms, zed.server.room(&zed.room).await);
    let number = rooms.events.number(room.number, pdu.event_id());
    let event = rooms.events.load(&room, number.await.unwrap().unwrap());
    event.await.unwrap().status.kind()
}

fn levels() -> Value {
    json!({ "users": { "@zed:there.example": 100 } })
}

#[tokio::test]
async fn what_auth_events_do_not_allow_gets_into_no_state() {
    for version in ["11", "12"] {
        let server = Server::start().await;
        let (mut zed, join) = shared_room(&server, version).await;
        let prev = std::slice::from_ref(&join);
        let grab = zed
            .make(prev, "m.room.power_levels", Some(""), levels())
            .await;
        let name = json!({ "name": "n" });
        let mut on_it = zed.draft(prev, "m.room.name", Some(""), name).await;
        let at = zed.auth_event(&on_it, "m.room.power_levels").await;
        on_it.auth_events[at] = grab.reference().unwrap();
        let on_it = zed.seal(on_it).await;
        let topic = json!({ "topic": "t" });
        let topic = zed.make(prev, "m.room.topic", Some(""), topic).await;
        imported(&zed, &[grab.clone(), on_it.clone(), topic]).await;

        let now = async |event_type: &str| server.state(&zed.room, event_type, "").await.unwrap();
        assert_eq!(now("m.room.topic").await["topic"], "t");
        assert_eq!(now("m.room.name").await["name"], "first");
        let power = now("m.room.power_levels").await;
        assert_eq!(power["users"]["@zed:there.example"], 50);
        for pdu in [&grab, &on_it] {
            assert_eq!(status(&zed, pdu).await, StatusKind::Rejected);
            assert_eq!(zed.receive(pdu).await, StatusKind::Rejected, "received");
        }
        server.say(&user("alice"), &zed.room, "ours").await;
    }
}

#[tokio::test]
async fn what_the_room_rejected_stays_rejected() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let grab = zed
        .make(&[join], "m.room.power_levels", Some(""), levels())
        .await;
    assert_eq!(zed.receive(&grab).await, StatusKind::Rejected);
    imported(&zed, std::slice::from_ref(&grab)).await;
    assert_eq!(status(&zed, &grab).await, StatusKind::Rejected);
    let power = server.state(&zed.room, "m.room.power_levels", "").await;
    assert_eq!(power.unwrap()["users"]["@zed:there.example"], 50);
}

#[tokio::test]
async fn an_import_brings_no_second_create_event_and_nothing_of_other_rooms() {
    let server = Server::start().await;
    let (zed, _) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let draft = Draft {
        room_id: Some(zed.room.clone()),
        sender: user("mallory"),
        event_type: "m.room.create".to_owned(),
        state_key: Some(String::new()),
        content: to_raw_value(&json!({ "room_version": "11" })).unwrap(),
        origin_server_ts: 1,
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        depth: 1,
        redacts: None,
    };
    let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
    let second = draft.seal(room.rules, server_name!("here.example"), &key);
    let second = second.unwrap();
    imported(&zed, std::slice::from_ref(&second)).await;
    assert_eq!(status(&zed, &second).await, StatusKind::Rejected);
    let now = server.rooms.durable();
    let now = server.rooms.state_at(room.number, now).await.unwrap();
    let create = server
        .rooms
        .state_value(&room, now.root, "m.room.create", "");
    assert_eq!(create.await.unwrap(), Some(room.create));

    let other = server.room(&public_room(&server).await.unwrap()).await;
    let foreign = joins(&other, &allows_joins(&server, &other).await, 1);
    let begun = begin(&zed).await;
    let foreign = Imported::State(foreign[0].clone());
    let refused = server.rooms.import_part(begun, 0, &[foreign]).await;
    assert!(matches!(refused, Err(RoomError::UnknownRoom)));
    assert_eq!(server.rooms.import_progress(begun).await.unwrap(), Some(0));
}

#[tokio::test]
async fn missing_auth_events_are_named_and_nothing_is_stored() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let topic = json!({ "topic": "t" });
    let mut draft = zed.draft(&[join], "m.room.topic", Some(""), topic).await;
    let unknown = owned_event_id!("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    draft.auth_events.push(unknown.clone().into());
    let topic = zed.seal(draft).await;
    let begun = begin(&zed).await;
    let taken = take(&zed, begun, &[Imported::State(topic)]).await;
    assert_eq!(taken, PartTaken::Missing(vec![unknown]));
    assert_eq!(server.rooms.import_progress(begun).await.unwrap(), Some(0));
    let all = ScanRange::all();
    let ids = server
        .rooms
        .store
        .scan(&tables::IMPORT_IDS, all, Direction::Forward, 9);
    assert!(ids.await.unwrap().is_empty());
}

/// A later profile of a user whose join is in the import itself.
fn renamed(join: &Pdu, auth: &[Pdu], room: &crate::Room, name: &str) -> Pdu {
    let auth = auth.iter().chain([join]);
    let draft = Draft {
        room_id: Some(room.id.clone()),
        state_key: Some(join.sender().to_string()),
        sender: join.sender().to_owned(),
        event_type: "m.room.member".to_owned(),
        content: to_raw_value(&json!({ "membership": "join", "displayname": name })).unwrap(),
        origin_server_ts: 6,
        prev_events: vec![join.reference().unwrap()],
        auth_events: auth.map(|event| event.reference().unwrap()).collect(),
        depth: 10,
        redacts: None,
    };
    let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
    draft
        .seal(room.rules, server_name!("there.example"), &key)
        .unwrap()
}

/// Resolution walks auth chains: those of imported events are as whole as those of received ones.
#[tokio::test]
async fn an_import_links_its_own_auth_events() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let auth = allows_joins(&server, &room).await;
    let joined = joins(&room, &auth, 2);
    let once = renamed(&joined[1], &auth, &room, "once");
    let twice = renamed(&once, &auth, &room, "twice");
    let begun = server.rooms.begin_import(&room).await.unwrap();
    // In its own part, and in one before; and only the last is part of the state.
    let chain = [&joined[1], &once].map(|pdu| Imported::Auth(pdu.clone()));
    let taken = server.rooms.import_part(begun, 0, &chain).await.unwrap();
    assert_eq!(taken, PartTaken::Stored);
    let last = [twice.clone(), joined[0].clone()].map(Imported::State);
    let taken = server.rooms.import_part(begun, 1, &last).await.unwrap();
    assert_eq!(taken, PartTaken::Stored);
    server.rooms.switch(begun).await.unwrap();

    let rooms = &server.rooms;
    let event = async |pdu: &Pdu| {
        let number = rooms.events.number(room.number, pdu.event_id()).await;
        let number = number.unwrap().unwrap();
        rooms.events.load(&room, number).await.unwrap()
    };
    let mut height = event(&auth[2])
        .await
        .auth_height
        .max(event(&auth[1]).await.auth_height);
    for pdu in [&joined[1], &once, &twice] {
        let stored = event(pdu).await;
        assert_eq!(stored.status.kind(), StatusKind::Outlier);
        let mut named = Vec::new();
        for id in pdu.auth_events() {
            let number = rooms.events.number(room.number, id).await.unwrap();
            named.push(number.unwrap());
        }
        assert_eq!(stored.auth.to_vec(), named);
        height += 1;
        assert_eq!(stored.auth_height, height);
    }
    let member = twice.state_key().unwrap();
    let now = server.state(&id, "m.room.member", member).await.unwrap();
    assert_eq!(now["displayname"], "twice");
}

/// A sweep of nodes that looked for imports before, in another process say, begins no generation.
#[tokio::test]
async fn an_import_that_begins_moves_the_head() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let store = &server.rooms.store;
    let head = store.get(&tables::HEADS, &room.number.0).await.unwrap();
    let mut seen_before = Batch::new();
    seen_before.assert_value(&tables::HEADS, &room.number.0, &head.unwrap());
    server.rooms.begin_import(&room).await.unwrap();
    let late = store.commit(seen_before).await;
    assert!(matches!(late, Err(CommitError::Conflict { .. })));
    server.say(&user("alice"), &id, "on").await;
}

/// Relations and redactions that came before name it by the number that it was mentioned under.
#[tokio::test]
async fn what_was_mentioned_before_it_is_imported_keeps_its_number() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let topic = json!({ "topic": "t" });
    let topic = zed
        .make(std::slice::from_ref(&join), "m.room.topic", Some(""), topic)
        .await;
    let reference = json!({
        "body": "look",
        "m.relates_to": { "rel_type": "m.reference", "event_id": topic.event_id() },
    });
    let prev = std::slice::from_ref(&join);
    let on_it = zed.make(prev, "m.room.message", None, reference).await;
    assert_eq!(zed.receive(&on_it).await, StatusKind::Accepted);
    let number = async || {
        let number = server.rooms.events.number(room.number, topic.event_id());
        number.await.unwrap().unwrap()
    };
    let mentioned = number().await;
    // An import that comes to nothing leaves the mention.
    let begun = begin(&zed).await;
    part(&server, begun, 0, std::slice::from_ref(&topic))
        .await
        .unwrap();
    assert!(
        server
            .rooms
            .events
            .find(&room, mentioned)
            .await
            .unwrap()
            .is_some()
    );
    server.rooms.abandon_arrival(begun).await.unwrap();
    assert_eq!(number().await, mentioned);
    assert!(
        server
            .rooms
            .events
            .find(&room, mentioned)
            .await
            .unwrap()
            .is_none()
    );

    imported(&zed, std::slice::from_ref(&topic)).await;
    assert_eq!(number().await, mentioned);
    let now = server.rooms.durable();
    let now = server.rooms.state_at(room.number, now).await.unwrap();
    let in_state = server
        .rooms
        .state_value(&room, now.root, "m.room.topic", "");
    assert_eq!(in_state.await.unwrap(), Some(mentioned));
    // Received with what it follows it is the same event still.
    assert_eq!(zed.receive(&topic).await, StatusKind::Accepted);
    assert_eq!(number().await, mentioned);
}

/// As many as fit, whatever their size; nothing is lost, and nothing is in another order.
#[test]
fn parts_keep_to_their_bounds() {
    let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
    let event = |body: usize| {
        let draft = Draft {
            room_id: Some(ruma::owned_room_id!("!r:there.example")),
            sender: ruma::owned_user_id!("@a:there.example"),
            event_type: "m.room.topic".to_owned(),
            state_key: Some(String::new()),
            content: to_raw_value(&json!({ "topic": "x".repeat(body) })).unwrap(),
            origin_server_ts: body as u64,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 1,
            redacts: None,
        };
        let rules = homeserver_events::RoomVersion::V11.rules();
        let sealed = draft.seal(rules, server_name!("there.example"), &key);
        Imported::State(sealed.unwrap())
    };
    let (large, small) = (event(64_000), event(1));
    let mut events = vec![large.clone(); 200];
    events.extend(std::iter::repeat_n(small, 700));
    events.push(large);
    let parts: Vec<_> = Imported::parts(&events).collect();
    let mut back = Vec::new();
    for part in &parts {
        let bytes: usize = part.iter().map(|event| event.pdu().json().len()).sum();
        assert!(!part.is_empty() && part.len() <= crate::IMPORT_PART);
        assert!(bytes <= crate::IMPORT_PART_BYTES);
        back.extend(part.iter().map(|event| event.pdu().origin_server_ts()));
    }
    let given = events.iter().map(|event| event.pdu().origin_server_ts());
    assert_eq!(back, given.collect::<Vec<_>>());
    assert!(parts.len() < 10, "{} parts", parts.len());
    assert_eq!(Imported::parts(&[]).count(), 0);
}
