//! Changes of state larger than a batch: in one switch, killed at every step.

use std::{sync::Arc, time::Duration};

use homeserver_events::{Draft, Pdu, SigningKey};
use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{
    Direction, Engine, ScanRange, Store,
    engines::{
        faulty::{Fault, FaultPlan, FaultyEngine},
        memory::MemoryEngine,
    },
};
use ruma::{OwnedRoomId, UserId, server_name};
use serde_json::value::to_raw_value;

use super::{
    forks::shared_room,
    mortal::{MortalEngine, copy},
    support::{Server, invite, message, user},
};
use crate::{
    CreateRoom, EventNumber, IMPORT_LIFETIME, IMPORT_PART, ImportId, Imported, MembershipChange,
    PartTaken, Preset, Room, RoomError, StateRoot, tables,
};

/// Joins of other users, as another server would hand them over.
pub(super) fn joins(room: &Room, auth: &[Pdu], count: usize) -> Vec<Pdu> {
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
            prev_events: vec![auth[0].reference().unwrap()],
            auth_events: auth
                .iter()
                .map(|event| event.reference().unwrap())
                .collect(),
            depth: 9,
            redacts: None,
        };
        draft.seal(room.rules, server, &key).unwrap()
    };
    (0..count).map(join).collect()
}

pub(super) async fn public_room(server: &Server) -> Result<OwnedRoomId, RoomError> {
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

/// What allows anybody to join a public room.
pub(super) async fn allows_joins(server: &Server, room: &Room) -> Vec<Pdu> {
    try_allows_joins(server, room).await.unwrap()
}

async fn try_allows_joins(server: &Server, room: &Room) -> Result<Vec<Pdu>, RoomError> {
    let rooms = &server.rooms;
    let now = rooms.state_at(room.number, rooms.durable()).await?;
    let mut found = Vec::new();
    for event_type in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
        let event = rooms.state_event(room, now.root, event_type, "").await?;
        found.push(event.unwrap().pdu.clone());
    }
    Ok(found)
}

/// Adds state events as one part of an import.
pub(super) async fn part(
    server: &Server,
    import: ImportId,
    ordinal: u64,
    pdus: &[Pdu],
) -> Result<(), RoomError> {
    let events: Vec<_> = pdus.iter().cloned().map(Imported::State).collect();
    let taken = server.rooms.import_part(import, ordinal, &events).await?;
    assert_eq!(taken, PartTaken::Stored);
    Ok(())
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
pub(super) async fn import(
    server: &Server,
    import: ImportId,
    pdus: &[Pdu],
) -> Result<(), RoomError> {
    for (ordinal, some) in (0_u64..).zip(pdus.chunks(IMPORT_PART)) {
        part(server, import, ordinal, some).await?;
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

/// How far an import and what follows it have come, as the rows say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Progress {
    begun: bool,
    parts: u64,
    planted: u64,
    switched: bool,
    parts_with_ids: u64,
    keys_indexed: u64,
    done: bool,
}

/// Reads it without a process that would go on with the work.
async fn progress(engine: &Arc<MemoryEngine>, room: &Room, begun: Option<ImportId>) -> Progress {
    let clock = Arc::new(ManualClock::new(1));
    let runtime = Runtime::simulated(clock, 1);
    let engine: Arc<dyn Engine> = engine.clone();
    let store = Store::open(engine, &[crate::TABLES], &runtime)
        .await
        .unwrap();
    let Some(begun) = begun else {
        return Progress::default();
    };
    let import = store.get(&tables::IMPORTS, &begun.0).await.unwrap();
    let forward = Direction::Forward;
    let debts = store.scan(&tables::INDEX_DEBTS, ScanRange::all(), forward, 9);
    let debts = debts.await.unwrap();
    let of_import = ScanRange::prefix(&begun.0);
    let parts = store.scan(&tables::IMPORT_PARTS, of_import, forward, 1);
    let first = parts
        .await
        .unwrap()
        .first()
        .map_or(PARTS, |((_, part), _)| *part);
    let log = store.scan(
        &tables::STATE_LOG,
        ScanRange::prefix(&room.number.0),
        Direction::Backward,
        1,
    );
    let joined = log.await.unwrap()[0].1.joined;
    let switched = joined > 1;
    // Wholly the old state or wholly the new one.
    assert!(joined == 1 || joined == KEYS as u64 + 1, "{joined} members");
    assert_eq!(
        switched,
        import.is_none(),
        "the import ends with the switch"
    );
    assert!(debts.len() <= 1 && (switched || debts.is_empty()));
    Progress {
        begun: true,
        parts: import.as_ref().map_or(PARTS, |import| import.parts),
        planted: import.map_or(PARTS, |import| import.planted),
        switched,
        parts_with_ids: if switched { first } else { 0 },
        keys_indexed: match debts.first() {
            Some((_, debt)) => debt.done,
            None if switched => u64::MAX,
            None => 0,
        },
        done: switched && debts.is_empty(),
    }
}

/// The tree that was prepared so far.
async fn tree_of(engine: &Arc<MemoryEngine>, begun: Option<ImportId>) -> Option<StateRoot> {
    let runtime = Runtime::simulated(Arc::new(ManualClock::new(1)), 1);
    let engine: Arc<dyn Engine> = engine.clone();
    let store = Store::open(engine, &[crate::TABLES], &runtime);
    let import = store.await.unwrap().get(&tables::IMPORTS, &begun?.0).await;
    import.unwrap().map(|import| import.root)
}

/// What a process does: it begins an import or goes on with the one that was begun.
async fn go_on(
    server: &Server,
    id: &OwnedRoomId,
    begun: &mut Option<ImportId>,
    pdus: &[Pdu],
) -> Result<(), RoomError> {
    let room = server.room(id).await;
    let open = match *begun {
        Some(open) => open,
        None => server.rooms.begin_import(&room).await?,
    };
    *begun = Some(open);
    let Some(from) = server.rooms.import_progress(open).await? else {
        return Ok(());
    };
    let rest = pdus.chunks(IMPORT_PART).skip(from as usize);
    for (ordinal, some) in (from..).zip(rest) {
        part(server, open, ordinal, some).await?;
    }
    server.rooms.switch(open).await?;
    Ok(())
}

/// Rows of the tables that an import writes.
async fn rows_of_imports(server: &Server) -> [usize; 8] {
    let store = &server.rooms.store;
    macro_rules! count {
        ($($table:ident),*) => {
            [$({
                let scan = store.scan(&tables::$table, ScanRange::all(), Direction::Forward, usize::MAX);
                scan.await.unwrap().len()
            }),*]
        };
    }
    count!(
        EVENTS,
        STATE_NODES,
        IMPORTS,
        IMPORT_PARTS,
        IMPORT_IDS,
        IMPORT_STATES,
        TREE_SWEEPS,
        TREE_MARKS
    )
}

/// Abandons the import in a copy of the database: nothing of it is left.
async fn check_abandoned(engine: &Arc<MemoryEngine>, id: &OwnedRoomId, before: [usize; 8]) {
    let server = Server::on(copy(engine).await).await;
    let later = Duration::from_millis(IMPORT_LIFETIME + 1);
    server.clock.advance(later);
    server.rooms.sweep().await.unwrap();
    assert_eq!(rows_of_imports(&server).await, before);
    let room = server.room(id).await;
    let all = server
        .rooms
        .state_all(&room, root(&server, &room).await)
        .await
        .unwrap();
    assert_eq!(all.len(), 6);
    server.say(&user("alice"), id, "still here").await;
}

/// Keys that one switch changes, and the parts that prepare them.
const KEYS: usize = 20_000;
const PARTS: u64 = KEYS.div_ceil(IMPORT_PART) as u64;

#[tokio::test]
async fn twenty_thousand_keys_change_in_one_switch_killed_after_every_batch() {
    let engine = Arc::new(MemoryEngine::new());
    let server = Server::on(engine.clone()).await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, KEYS);
    let empty = rows_of_imports(&server).await;
    let (mut begun, mut at, mut commits) = (None, Progress::default(), 1);
    let (mut kills, mut tree) = (0, None);
    while !at.done {
        // A process that gets so many commits, and no more. The first ones of some reserve or give
        // numbers, which is no progress that is seen: the next process gets twice as many.
        let process = Server::try_on(MortalEngine::of_any_commits(engine.clone(), commits)).await;
        let ended = match process {
            Ok(process) => go_on(&process, &id, &mut begun, &pdus).await,
            Err(error) => Err(error),
        };
        let now = progress(&engine, &room, begun).await;
        assert!(now >= at, "{now:?} after {at:?}");
        assert!(now.done || ended.is_err(), "{now:?}: told and forgotten");
        kills += usize::from(ended.is_err());
        let grown = tree_of(&engine, begun).await;
        let moved = now != at || grown != tree;
        tree = grown;
        commits = if moved { 1 } else { commits * 2 };
        assert!(commits < 2_000, "no progress after {at:?}");
        let (before, after) = (at, now);
        at = now;
        let passed = |parts| before.parts < parts && after.parts >= parts;
        if passed(1) || passed(PARTS) {
            check_abandoned(&engine, &id, empty).await;
        }
        let just_switched = after.switched && !before.switched;
        let half_indexed = after.keys_indexed > 9000 && before.keys_indexed <= 9000;
        if just_switched || half_indexed {
            // Opened by a process that lives, it is whole.
            let survivor = Server::on(copy(&engine).await).await;
            check_whole(&survivor, &room, &pdus, &format!("{after:?}")).await;
        }
    }
    assert!(kills > PARTS as usize + 30, "only {kills} kills");
    let survivor = Server::on(engine).await;
    check_whole(&survivor, &room, &pdus, "whole").await;
    let reader = survivor.reader(&user("alice")).await;
    let summary = survivor.rooms.summary(&reader, &room).await.unwrap();
    assert_eq!(summary.joined, KEYS as u64 + 1);
    assert_eq!(summary.heroes.len(), 5);
}

#[tokio::test]
async fn a_room_goes_on_while_a_change_is_prepared() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 300);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let before = root(&server, &room).await;
    for (ordinal, some) in (0_u64..).zip(pdus.chunks(IMPORT_PART)) {
        part(&server, begun, ordinal, some).await.unwrap();
    }
    let seen = root(&server, &room).await;
    assert_eq!(seen, before, "nothing is seen before the switch");
    // What happens meanwhile is kept.
    let name = super::support::event("m.room.name", Some(""), &serde_json::json!({ "name": "n" }));
    server.try_send(&user("alice"), &id, name).await.unwrap();
    let switched = server.rooms.switch(begun).await.unwrap();
    let name = server.state(&id, "m.room.name", "").await.unwrap();
    assert_eq!(name["name"], "n");
    check_whole(&server, &room, &pdus, "whole").await;
    // Everybody whom it concerns is told, after the switch and under their own topic.
    for joined in [0, 100, 200] {
        let number = server
            .rooms
            .user_number(&user(&format!("u{joined}")))
            .await
            .unwrap();
        let mine = server
            .rooms
            .membership(number, room.number, server.rooms.durable());
        let mine = mine.await.unwrap().unwrap();
        assert!(mine.since > switched);
        let topic = crate::journal::user_topic(number);
        let told = server.rooms.store.journal().last(&[topic]).await.unwrap();
        assert_eq!(told, [Some(mine.since)]);
        let earlier = server.rooms.membership(number, room.number, switched);
        assert_eq!(
            earlier.await.unwrap(),
            None,
            "nothing is written where readers have been"
        );
    }
}

#[tokio::test]
async fn what_was_received_before_the_switch_keeps_its_number() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let room = server.room(&zed.room).await;
    let prev = std::slice::from_ref(&join);
    let content = serde_json::json!({ "topic": "theirs" });
    let topic = zed.make(prev, "m.room.topic", Some(""), content).await;
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let topics = std::slice::from_ref(&topic);
    part(&server, begun, 0, topics).await.unwrap();
    zed.receive(&topic).await;
    let number = async || {
        let found = server.rooms.events.number(room.number, topic.event_id());
        found.await.unwrap().unwrap()
    };
    let received = number().await;
    server.rooms.switch(begun).await.unwrap();
    assert_eq!(number().await, received);
    let alice = server.reader(&user("alice")).await;
    let shown = server.rooms.visible_by_id(&alice, &room, topic.event_id());
    assert!(shown.await.unwrap().unwrap().position().is_some());
    let now = server.state(&zed.room, "m.room.topic", "").await.unwrap();
    assert_eq!(now["topic"], "theirs");
}

#[tokio::test]
async fn an_abandoned_import_takes_nothing_more() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 20);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    part(&server, begun, 0, &pdus[..10]).await.unwrap();
    // Killed in the middle of its sweep: it is abandoned, and its rows are still there.
    let store = &server.rooms.store;
    let row = store
        .get(&tables::IMPORTS, &begun.0)
        .await
        .unwrap()
        .unwrap();
    let abandoned = crate::rows::ImportRow {
        abandoned: true,
        ..row
    };
    let mut batch = homeserver_storage::Batch::new();
    batch.put(&tables::IMPORTS, &begun.0, &abandoned);
    store.commit(batch).await.unwrap();
    assert!(part(&server, begun, 1, &pdus[10..]).await.is_err());
    assert!(server.rooms.switch(begun).await.is_err());
    assert_eq!(server.rooms.import_progress(begun).await.unwrap(), None);
    assert_eq!(server.rooms.sweep_imports().await.unwrap(), 1);
    assert_eq!(store.get(&tables::IMPORTS, &begun.0).await.unwrap(), None);
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
    let Ok(auth) = try_allows_joins(&server, &room).await else {
        return false;
    };
    let pdus = &*pdus.get_or_insert_with(|| joins(&room, &auth, 250));
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
    for call in 30..110 {
        for turn in 0..2 {
            let fault = Fault::ALL[(call as usize + turn) % Fault::ALL.len()];
            hit += usize::from(round(call, fault, &mut pdus).await);
        }
    }
    assert!(hit > 20, "only {hit} imports were hit");
}

#[tokio::test]
async fn an_abandoned_import_leaves_nothing() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 150);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let first = EventNumber(begun.0 + 1);
    part(&server, begun, 0, &pdus[..100]).await.unwrap();
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

/// While a switch has yet to count its members, one of them leaves.
#[tokio::test]
async fn who_leaves_before_a_switch_has_counted_them_is_not_counted() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 2);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    part(&server, begun, 0, &pdus).await.unwrap();
    // As if the process were killed between the two, and the other one did not pay yet.
    server.rooms.try_switch(begun).await.unwrap().unwrap();
    let servers = async || server.rooms.servers(room.number, 9).await.unwrap();
    assert_eq!(servers().await, ["here.example"]);
    let away = MembershipChange::Ban {
        user: pdus[1].sender().to_owned(),
    };
    server.member(&user("alice"), &id, away).await.unwrap();
    assert_eq!(servers().await, ["here.example"]);
    server.rooms.pay_debts_of(&room).await.unwrap();
    assert_eq!(servers().await, ["here.example"]);
    let now = server.rooms.durable();
    let log = server.rooms.state_at(room.number, now).await.unwrap();
    assert_eq!(log.joined, 2, "alice and u0");
    let counts = server.rooms.store.scan(
        &tables::SERVER_COUNTS,
        ScanRange::prefix(&room.number.0),
        Direction::Forward,
        9,
    );
    let counts = counts.await.unwrap();
    assert_eq!(counts.len(), 1, "{counts:?}");
    assert_eq!(counts[0].1, crate::rows::JoinedUsers(2));
}

/// What happens in the room while an import is prepared is counted once.
#[tokio::test]
async fn members_who_change_while_an_import_is_prepared_are_counted_once() {
    let server = Server::start().await;
    let id = public_room(&server).await.unwrap();
    let room = server.room(&id).await;
    let pdus = joins(&room, &allows_joins(&server, &room).await, 4);
    let begun = server.rooms.begin_import(&room).await.unwrap();
    part(&server, begun, 0, &pdus).await.unwrap();
    // One whom the import brings is banned, another one is invited, and somebody else joins.
    let alice = user("alice");
    let ban = MembershipChange::Ban {
        user: pdus[1].sender().to_owned(),
    };
    server.member(&alice, &id, ban).await.unwrap();
    server.member(&alice, &id, invite("u0")).await.unwrap();
    server.join(&user("bob"), &id).await.unwrap();
    server.rooms.switch(begun).await.unwrap();
    let now = server.rooms.durable();
    let log = server.rooms.state_at(room.number, now).await.unwrap();
    assert_eq!((log.joined, log.invited), (4, 1), "alice, bob, u2, u3; u0");
}
