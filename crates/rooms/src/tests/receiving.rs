//! What a peer may hand over: events on rejected ones, on outliers, of other rooms, with odd
//! references or depths.

use std::sync::atomic::Ordering;

use homeserver_events::{Pdu, StatusKind};
use homeserver_storage::{Direction, ScanRange};
use ruma::{OwnedEventId, owned_event_id};
use serde_json::json;

use super::{
    forks::{Elsewhere, shared_room},
    support::{Server, event, user},
    switches::part,
};
use crate::{
    EventNumber, Received, RoomError, StateRoot,
    live::{QUEUE, RESOLVERS},
    tables,
};

/// The greatest depth that an event may have.
const DEEPEST: u64 = (1 << 53) - 1;

async fn root(zed: &Elsewhere<'_>) -> StateRoot {
    let (rooms, room) = (&zed.server.rooms, zed.server.room(&zed.room).await);
    let now = rooms.state_at(room.number, rooms.durable()).await.unwrap();
    now.root
}

async fn answer(zed: &Elsewhere<'_>, pdu: &Pdu) -> Received {
    let room = zed.server.room(&zed.room).await;
    zed.server.rooms.receive(&room, pdu.clone()).await.unwrap()
}

fn ids(id: &ruma::EventId) -> Vec<OwnedEventId> {
    vec![id.to_owned()]
}

/// An event of `zed`'s that grabs all power.
async fn grab(zed: &mut Elsewhere<'_>, prev: &[OwnedEventId]) -> Pdu {
    let levels = json!({ "users": { "@zed:there.example": 100 } });
    zed.make(prev, "m.room.power_levels", Some(""), levels)
        .await
}

/// Peers do not know that this server rejected an event, and build on it.
#[tokio::test]
async fn what_follows_a_rejected_event_has_the_state_before_that() {
    for version in ["1", "2", "11", "12"] {
        let server = Server::start().await;
        let (mut zed, join) = shared_room(&server, version).await;
        let before = root(&zed).await;
        let grab = grab(&mut zed, &[join]).await;
        assert_eq!(zed.receive(&grab).await, StatusKind::Rejected);
        let body = json!({ "body": "on" });
        let on = ids(grab.event_id());
        let message = zed.make(&on, "m.room.message", None, body.clone()).await;
        assert_eq!(zed.receive(&message).await, StatusKind::Accepted);
        assert_eq!(root(&zed).await, before, "version {version}");
        // And a change of state on top of that is one of the state before.
        let name = json!({ "name": "n" });
        let on = ids(message.event_id());
        let name = zed.make(&on, "m.room.name", Some(""), name).await;
        assert_eq!(zed.receive(&name).await, StatusKind::Accepted);
        let levels = server.state(&zed.room, "m.room.power_levels", "").await;
        assert_eq!(levels.unwrap()["users"]["@zed:there.example"], 50);
        // Those of this server go on, for another process too.
        server.say(&user("alice"), &zed.room, "ours").await;
        assert_eq!(zed.receive(&grab).await, StatusKind::Rejected, "again");
        let again = server.restart().await;
        let name = again.state(&zed.room, "m.room.name", "").await.unwrap();
        assert_eq!(name["name"], "n");
        again.say(&user("alice"), &zed.room, "ours").await;
    }
}

#[tokio::test]
async fn what_names_a_rejected_event_as_its_auth_event_is_rejected() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let before = root(&zed).await;
    let prev = std::slice::from_ref(&join);
    let grab = grab(&mut zed, prev).await;
    assert_eq!(zed.receive(&grab).await, StatusKind::Rejected);
    let name = json!({ "name": "n" });
    let mut draft = zed.draft(prev, "m.room.name", Some(""), name).await;
    let levels = zed.auth_event(&draft, "m.room.power_levels").await;
    draft.auth_events[levels] = grab.reference().unwrap();
    let name = zed.seal(draft).await;
    assert_eq!(zed.receive(&name).await, StatusKind::Rejected);
    assert_eq!(root(&zed).await, before);
}

/// Each is an answer; nothing of it panics or changes the state.
#[tokio::test]
async fn odd_auth_events_are_rejected_or_missing() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let prev = std::slice::from_ref(&join);
    let body = json!({ "body": "x" });
    let message = zed.make(prev, "m.room.message", None, body.clone()).await;
    assert_eq!(zed.receive(&message).await, StatusKind::Accepted);
    let before = root(&zed).await;
    let plain = zed.draft(prev, "m.room.message", None, body).await;

    let mut of_a_message = plain.clone();
    of_a_message.auth_events.push(message.reference().unwrap());
    let mut twice = plain.clone();
    twice.auth_events.push(twice.auth_events[0].clone());
    let mut none = plain.clone();
    none.auth_events.clear();
    for draft in [of_a_message, twice, none] {
        let pdu = zed.seal(draft).await;
        assert_eq!(zed.receive(&pdu).await, StatusKind::Rejected);
    }

    let unknown = owned_event_id!("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let mut of_an_unknown = plain;
    of_an_unknown.auth_events.push(unknown.clone().into());
    let pdu = zed.seal(of_an_unknown).await;
    let missing = Received::Missing {
        prev: Vec::new(),
        auth: vec![unknown],
    };
    assert_eq!(answer(&zed, &pdu).await, missing);
    assert_eq!(root(&zed).await, before);
}

#[tokio::test]
async fn an_event_of_another_room_is_refused_and_not_stored() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let (other, _) = shared_room(&server, "11").await;
    let body = json!({ "body": "lost" });
    let pdu = zed.make(&[join], "m.room.message", None, body).await;
    let wrong = server.room(&other.room).await;
    let refused = server.rooms.receive(&wrong, pdu.clone()).await;
    assert!(matches!(refused, Err(RoomError::UnknownRoom)));
    for room in [&zed.room, &other.room] {
        let room = server.room(room).await;
        let number = server.rooms.events.number(room.number, pdu.event_id());
        assert_eq!(number.await.unwrap(), None);
    }
    assert_eq!(zed.receive(&pdu).await, StatusKind::Accepted);
}

/// What is here only because an import named it has no state to build on.
#[tokio::test]
async fn an_outlier_is_no_previous_event() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let topic = json!({ "topic": "t" });
    let prev = std::slice::from_ref(&join);
    let topic = zed.make(prev, "m.room.topic", Some(""), topic).await;
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let topics = std::slice::from_ref(&topic);
    part(&server, begun, 0, topics).await.unwrap();
    server.rooms.switch(begun).await.unwrap();
    let before = root(&zed).await;

    let mut draft = zed
        .draft(prev, "m.room.message", None, json!({ "body": "x" }))
        .await;
    draft.prev_events = vec![topic.reference().unwrap()];
    let on_it = zed.seal(draft).await;
    let missing = Received::Missing {
        prev: ids(topic.event_id()),
        auth: Vec::new(),
    };
    assert_eq!(answer(&zed, &on_it).await, missing);
    assert_eq!(root(&zed).await, before);
    // Once it is received itself, it has one.
    assert_eq!(zed.receive(&topic).await, StatusKind::Accepted);
    assert_eq!(zed.receive(&on_it).await, StatusKind::Accepted);
    assert_eq!(root(&zed).await, before);
}

#[tokio::test]
async fn the_greatest_depth_ends_no_room() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let body = json!({ "body": "deep" });
    let mut draft = zed.draft(&[join], "m.room.message", None, body).await;
    draft.depth = DEEPEST;
    let deep = zed.seal(draft).await;
    assert_eq!(zed.receive(&deep).await, StatusKind::Accepted);
    let alice = user("alice");
    let first = server.say(&alice, &zed.room, "first").await;
    let second = server.say(&alice, &zed.room, "second").await;
    let on = std::slice::from_ref(&second);
    let mut draft = zed
        .draft(on, "m.room.message", None, json!({ "body": "shallow" }))
        .await;
    draft.depth = 1;
    let shallow = zed.seal(draft).await;
    assert_eq!(zed.receive(&shallow).await, StatusKind::Accepted);
    let shown = server.timeline(&alice, &zed.room).await;
    let last: Vec<_> = shown.iter().rev().take(4).rev().collect();
    let ids: Vec<_> = last.iter().map(|event| event.pdu().event_id()).collect();
    let in_order = [deep.event_id(), &first, &second, shallow.event_id()];
    assert_eq!(ids, in_order);
    let depths: Vec<_> = last.iter().map(|event| event.pdu().depth()).collect();
    assert_eq!(depths, [DEEPEST, DEEPEST, DEEPEST, 1]);
    assert!(last.is_sorted_by_key(|event| event.history_key()));
}

async fn redaction(zed: &mut Elsewhere<'_>, prev: &[OwnedEventId], of: &str) -> Pdu {
    let content = json!({ "redacts": of });
    zed.make(prev, "m.room.redaction", None, content).await
}

/// Redactions without effect, however many, are not in the way of one that has one.
#[tokio::test]
async fn no_redaction_shields_its_target_from_others() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let alice = user("alice");
    let prev = std::slice::from_ref(&join);
    // Its sender redacts it, or somebody with the power to.
    for powerful in [false, true] {
        let body = json!({ "body": "oops" });
        let target = zed.make(prev, "m.room.message", None, body).await;
        let id = target.event_id().to_owned();
        let mut eve = zed.other("@eve:elsewhere.example");
        let joined = eve.join(&join).await;
        for _ in 0..40 {
            let shield = redaction(&mut eve, std::slice::from_ref(&joined), id.as_str()).await;
            assert_eq!(eve.receive(&shield).await, StatusKind::Accepted);
        }
        let (mut redactor, on) = if powerful {
            let content = json!({ "users": {
                "@zed:there.example": 50, "@alice:here.example": 100, "@mod:elsewhere.example": 50,
            } });
            let levels = event("m.room.power_levels", Some(""), &content);
            let levels = server.try_send(&alice, &zed.room, levels).await.unwrap();
            let mut moderator = zed.other("@mod:elsewhere.example");
            let joined = moderator.join(&levels).await;
            (moderator, joined)
        } else {
            (zed.other("@zed:there.example"), join.clone())
        };
        let by = redaction(&mut redactor, std::slice::from_ref(&on), id.as_str()).await;
        assert_eq!(redactor.receive(&by).await, StatusKind::Accepted);
        assert_eq!(zed.receive(&target).await, StatusKind::Accepted);
        let shown = server.timeline(&alice, &zed.room).await;
        let shown = shown.last().unwrap();
        assert_eq!(
            (shown.pdu().event_id(), shown.pdu().content_str()),
            (&*id, "{}")
        );
        let (rooms, room) = (&server.rooms, server.room(&zed.room).await);
        let number = rooms
            .events
            .number(room.number, by.event_id())
            .await
            .unwrap();
        assert_eq!(shown.redacted_by(), number);
    }
}

/// A state event that an import brought and that was redacted is received in full later.
#[tokio::test]
async fn a_redacted_outlier_stays_redacted() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let prev = std::slice::from_ref(&join);
    let topic = json!({ "topic": "secret" });
    let topic = zed.make(prev, "m.room.topic", Some(""), topic).await;
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let topics = std::slice::from_ref(&topic);
    part(&server, begun, 0, topics).await.unwrap();
    server.rooms.switch(begun).await.unwrap();
    let redaction = redaction(&mut zed, prev, topic.event_id().as_str()).await;
    assert_eq!(zed.receive(&redaction).await, StatusKind::Accepted);
    assert_eq!(zed.receive(&topic).await, StatusKind::Accepted);
    let now = server.state(&zed.room, "m.room.topic", "").await;
    assert_eq!(now, Some(json!({})));
    let shown = server.timeline(&user("alice"), &zed.room).await;
    let shown = shown.last().unwrap();
    assert_eq!(shown.pdu().content_str(), "{}");
    assert!(shown.redacted_by().is_some());
}

/// A redaction that waits for its target finds it when an import brings it.
#[tokio::test]
async fn an_import_brings_what_a_redaction_waits_for() {
    for powerful in [false, true] {
        let server = Server::start().await;
        let (mut zed, join) = shared_room(&server, "11").await;
        let room = server.room(&zed.room).await;
        let prev = std::slice::from_ref(&join);
        let topic = json!({ "topic": "secret" });
        let topic = zed.make(prev, "m.room.topic", Some(""), topic).await;
        let id = topic.event_id().as_str();
        let by = if powerful {
            redaction(&mut zed, prev, id).await
        } else {
            let mut eve = zed.other("@eve:there.example");
            let joined = eve.join(&join).await;
            redaction(&mut eve, std::slice::from_ref(&joined), id).await
        };
        assert_eq!(zed.receive(&by).await, StatusKind::Accepted);
        let begun = server.rooms.begin_import(&room).await.unwrap();
        let topics = std::slice::from_ref(&topic);
        part(&server, begun, 0, topics).await.unwrap();
        server.rooms.switch(begun).await.unwrap();

        let now = server.state(&zed.room, "m.room.topic", "").await;
        assert_eq!(now, Some(json!({})));
        let (store, forward) = (&server.rooms.store, Direction::Forward);
        let waiting = store.scan(&tables::WAITING_REDACTIONS, ScanRange::all(), forward, 9);
        assert_eq!(waiting.await.unwrap(), []);
        // For another process too, and when the event is received with its content.
        assert_eq!(zed.receive(&topic).await, StatusKind::Accepted);
        let again = server.restart().await;
        let now = again.state(&zed.room, "m.room.topic", "").await;
        assert_eq!(now, Some(json!({})));
        let shown = again.timeline(&user("alice"), &zed.room).await;
        let shown = shown.last().unwrap();
        assert_eq!(shown.pdu().event_id(), topic.event_id());
        assert_eq!(shown.pdu().content_str(), "{}");
        assert!(shown.redacted_by().is_some());
    }
}

/// An event that is received and redacted while an import with it is open has two numbers, and is
/// redacted under both.
#[tokio::test]
async fn what_was_redacted_while_an_import_was_open_is_redacted_in_it() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let topic = json!({ "topic": "secret" });
    let prev = std::slice::from_ref(&join);
    let topic = zed.make(prev, "m.room.topic", Some(""), topic).await;
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let topics = std::slice::from_ref(&topic);
    part(&server, begun, 0, topics).await.unwrap();
    let key = (begun.0, topic.event_id().as_str());
    let imported = server.rooms.store.get(&tables::IMPORT_IDS, &key).await;
    let imported = EventNumber(imported.unwrap().unwrap());
    assert_eq!(zed.receive(&topic).await, StatusKind::Accepted);
    let on = ids(topic.event_id());
    let redaction = redaction(&mut zed, &on, topic.event_id().as_str()).await;
    assert_eq!(zed.receive(&redaction).await, StatusKind::Accepted);
    let events = &server.rooms.events;
    let before = events.load(&room, imported).await.unwrap();
    assert_eq!(before.redacted_by, None);
    server.rooms.switch(begun).await.unwrap();

    let received = events.number(room.number, topic.event_id()).await.unwrap();
    assert_ne!(received, Some(imported));
    for number in [received.unwrap(), imported] {
        let event = events.load(&room, number).await.unwrap();
        assert_eq!(event.pdu.content_str(), "{}");
        assert!(event.redacted_by.is_some());
    }
}

/// In room versions 1 and 2 the sender chooses the id, and may name it in the event itself.
#[tokio::test]
async fn an_event_that_names_itself_neither_relates_to_nor_redacts_itself() {
    for version in ["1", "2"] {
        let server = Server::start().await;
        let (mut zed, join) = shared_room(&server, version).await;
        let room = server.room(&zed.room).await;
        let prev = std::slice::from_ref(&join);
        let relation = json!({ "rel_type": "m.reference", "event_id": "$self:there.example" });
        let content = json!({ "body": "me", "m.relates_to": relation });
        let related = zed.make(prev, "m.room.message", None, content).await;
        let redacting = redaction(&mut zed, prev, "$other:there.example").await;
        for (pdu, id) in [
            (related, "$self:there.example"),
            (redacting, "$other:there.example"),
        ] {
            let mut json: serde_json::Value = serde_json::from_slice(pdu.json()).unwrap();
            json["event_id"] = json!(id);
            json["redacts"] = json!(id);
            let pdu = Pdu::parse(json.to_string().as_bytes(), room.rules).unwrap();
            assert_eq!(zed.receive(&pdu).await, StatusKind::Accepted);
            assert_eq!(zed.receive(&pdu).await, StatusKind::Accepted, "again");
            let shown = server.timeline(&user("alice"), &zed.room).await;
            let shown = shown.last().unwrap();
            assert_eq!(shown.pdu().event_id(), id);
            assert_eq!(shown.redacted_by(), None);
        }
        let (store, forward) = (&server.rooms.store, Direction::Forward);
        let relations = store.scan(&tables::RELATIONS, ScanRange::all(), forward, 9);
        assert_eq!(relations.await.unwrap(), []);
        let waiting = store.scan(&tables::WAITING_REDACTIONS, ScanRange::all(), forward, 9);
        assert_eq!(waiting.await.unwrap(), []);
    }
}

/// A fork whose branches differ in their state: the ends of the branches of this server and of
/// `zed`.
async fn forked(zed: &mut Elsewhere<'_>, join: &OwnedEventId) -> OwnedEventId {
    let ours = event("m.room.topic", Some(""), &json!({ "topic": "ours" }));
    let sent = zed.server.try_send(&user("alice"), &zed.room, ours).await;
    sent.unwrap();
    let (prev, name) = (std::slice::from_ref(join), json!({ "name": "theirs" }));
    let theirs = zed.make(prev, "m.room.name", Some(""), name).await;
    assert_eq!(zed.receive(&theirs).await, StatusKind::Accepted);
    theirs.event_id().to_owned()
}

fn resolutions(server: &Server) -> usize {
    let made = &server.rooms.resolutions.made;
    made.load(Ordering::Relaxed)
}

/// While a fork is open every event resolves its branches, but only the first has the work.
#[tokio::test]
async fn messages_on_a_fork_resolve_it_once() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let mut prev = forked(&mut zed, &join).await;
    let before = resolutions(&server);
    for _ in 0..20 {
        let on = std::slice::from_ref(&prev);
        let message = zed
            .make(on, "m.room.message", None, json!({ "body": "x" }))
            .await;
        assert_eq!(zed.receive(&message).await, StatusKind::Accepted);
        prev = message.event_id().to_owned();
    }
    assert_eq!(resolutions(&server), before, "the first of them was before");
    // Another process, which has nothing at hand, resolves it once and to the same state.
    let again = server.restart().await;
    let mut there = Elsewhere {
        server: &again,
        ..zed.other(zed.user.as_str())
    };
    for _ in 0..5 {
        let on = std::slice::from_ref(&prev);
        let message = there
            .make(on, "m.room.message", None, json!({ "body": "x" }))
            .await;
        assert_eq!(there.receive(&message).await, StatusKind::Accepted);
        prev = message.event_id().to_owned();
    }
    assert_eq!(resolutions(&again), 1);
    assert_eq!(root(&there).await, root(&zed).await);
    let third = again.restart().await;
    let state = async |event_type: &str| third.state(&zed.room, event_type, "").await.unwrap();
    assert_eq!(state("m.room.topic").await["topic"], "ours");
    assert_eq!(state("m.room.name").await["name"], "theirs");
    third.say(&user("alice"), &zed.room, "whole").await;
}

/// However long a resolution takes, the room goes on.
#[tokio::test]
async fn a_room_goes_on_while_its_states_are_resolved() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let room = server.room(&zed.room).await;
    let theirs = forked(&mut zed, &join).await;
    let name = json!({ "name": "later" });
    let later = zed.make(&[theirs], "m.room.name", Some(""), name).await;
    let live = server.rooms.live.room(room.number);
    let turn = live.resolving.lock().await;
    let asked = || server.rooms.resolutions.asked.load(Ordering::Relaxed);
    let before = asked();
    let meanwhile = async {
        // Nothing but the turn is in its way.
        let mut yields = 0;
        while asked() == before {
            tokio::task::yield_now().await;
            yields += 1;
            assert!(yields < 100_000, "it never came to resolve");
        }
        let said = server.say(&user("alice"), &zed.room, "meanwhile").await;
        drop(turn);
        said
    };
    let receiving = server.rooms.receive(&room, later.clone());
    let (received, said) = tokio::join!(receiving, meanwhile);
    let received = received.unwrap();
    let Received::Judged { status, .. } = received else {
        panic!("{received:?}");
    };
    assert_eq!(status, StatusKind::Accepted);
    let shown = server.timeline(&user("alice"), &zed.room).await;
    let last: Vec<_> = shown
        .iter()
        .rev()
        .take(2)
        .map(|e| e.pdu().event_id())
        .collect();
    assert_eq!(last, [later.event_id(), &*said]);
    let now = server.state(&zed.room, "m.room.name", "").await.unwrap();
    assert_eq!(now["name"], "later");
}

/// While states are resolved, who waits for them takes no place from others.
#[tokio::test]
async fn who_waits_for_a_resolution_is_not_in_the_queue() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let room = server.room(&zed.room).await;
    let theirs = forked(&mut zed, &join).await;
    let name = json!({ "name": "later" });
    let later = zed.make(&[theirs], "m.room.name", Some(""), name).await;
    let live = server.rooms.live.room(room.number);
    let turn = live.resolving.lock().await;
    let mut places: Vec<_> = (1..QUEUE).map(|_| live.queue().unwrap()).collect();
    let asked = || server.rooms.resolutions.asked.load(Ordering::Relaxed);
    let before = asked();
    let meanwhile = async {
        let mut yields = 0;
        while asked() == before {
            tokio::task::yield_now().await;
            yields += 1;
            assert!(yields < 100_000, "it never came to resolve");
        }
        places.push(live.queue().expect("a place is free"));
        places.clear();
        // It counts among those who wait for a resolution, which are few.
        let waiting = 1..RESOLVERS;
        let _waiting: Vec<_> = waiting.map(|_| live.resolver().unwrap()).collect();
        assert!(matches!(live.resolver(), Err(RoomError::Busy)));
        drop(turn);
    };
    let receiving = server.rooms.receive(&room, later.clone());
    let (received, ()) = tokio::join!(receiving, meanwhile);
    assert!(matches!(received.unwrap(), Received::Judged { .. }));
    drop(live.resolver().unwrap());
    let now = server.state(&zed.room, "m.room.name", "").await.unwrap();
    assert_eq!(now["name"], "later");
}

/// A reader that found the row of an import and is slow does not put it into the cache over that
/// of the judged event, which would be judged and appended again.
#[tokio::test]
async fn a_slow_reader_does_not_undo_a_judgement() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let topic = json!({ "topic": "t" });
    let topic = zed.make(&[join], "m.room.topic", Some(""), topic).await;
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let topics = std::slice::from_ref(&topic);
    part(&server, begun, 0, topics).await.unwrap();
    server.rooms.switch(begun).await.unwrap();
    let events = &server.rooms.events;
    let number = events.number(room.number, topic.event_id()).await;
    let number = number.unwrap().unwrap();

    let rewrites = events.rewrites();
    let outlier = events.load(&room, number).await.unwrap();
    assert!(!outlier.is_placed());
    let first = answer(&zed, &topic).await;
    events.remember(rewrites, &outlier);
    assert!(events.load(&room, number).await.unwrap().is_placed());
    // And whatever is cached, what was judged is not judged again.
    events.committed(outlier);
    assert_eq!(answer(&zed, &topic).await, first);
    events.rewritten(room.number, &[number]);
    let shown = server.timeline(&user("alice"), &zed.room).await;
    let of_it = |event: &&crate::VisibleEvent| event.pdu().event_id() == topic.event_id();
    assert_eq!(shown.iter().filter(of_it).count(), 1);
}

/// The branches of a fork stay the same, but what their resolution looks at changes.
#[tokio::test]
async fn what_changes_a_state_event_has_forks_resolved_anew() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let mut prev = forked(&mut zed, &join).await;
    let mut say = async |zed: &mut Elsewhere<'_>, redacts: Option<OwnedEventId>| {
        let on = std::slice::from_ref(&prev);
        let pdu = if let Some(target) = redacts {
            redaction(zed, on, target.as_str()).await
        } else {
            let body = json!({ "body": "x" });
            zed.make(on, "m.room.message", None, body).await
        };
        assert_eq!(zed.receive(&pdu).await, StatusKind::Accepted);
        prev = pdu.event_id().to_owned();
        prev.clone()
    };
    let said = say(&mut zed, None).await;
    let before = resolutions(&server);
    // A message is no part of any state.
    say(&mut zed, Some(said)).await;
    say(&mut zed, None).await;
    assert_eq!(resolutions(&server), before);
    say(&mut zed, Some(join)).await;
    assert_eq!(resolutions(&server), before);
    for _ in 0..3 {
        say(&mut zed, None).await;
        assert_eq!(resolutions(&server), before + 1);
    }
}

/// What an import brought counted in resolutions until its own state was known.
#[tokio::test]
async fn what_turns_out_to_be_rejected_has_forks_resolved_anew() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let (alice, room) = (user("alice"), server.room(&zed.room).await);
    let levels = async |carl: u32| {
        let content = json!({ "users": {
            "@zed:there.example": 50, "@alice:here.example": 100, "@carl:there.example": carl,
        } });
        let levels = event("m.room.power_levels", Some(""), &content);
        server.try_send(&alice, &zed.room, levels).await.unwrap()
    };
    let granted = levels(50).await;
    let mut carl = zed.other("@carl:there.example");
    carl.join(&granted).await;
    let withdrawn = levels(0).await;
    // By its auth events it is allowed, by the state before it is not.
    let on = std::slice::from_ref(&withdrawn);
    let theme = json!({ "theme": "t" });
    let mut draft = carl.draft(on, "m.theme", Some(""), theme).await;
    let at = carl.auth_event(&draft, "m.room.power_levels").await;
    let number = server.rooms.events.number(room.number, &granted).await;
    let granted = server.rooms.events.load(&room, number.unwrap().unwrap());
    draft.auth_events[at] = granted.await.unwrap().pdu.reference().unwrap();
    let theme = carl.seal(draft).await;
    let begun = server.rooms.begin_import(&room).await.unwrap();
    let themes = std::slice::from_ref(&theme);
    part(&server, begun, 0, themes).await.unwrap();
    server.rooms.switch(begun).await.unwrap();

    let mut prev = forked(&mut zed, &join).await;
    let mut say = async |zed: &mut Elsewhere<'_>| {
        let on = std::slice::from_ref(&prev);
        let body = json!({ "body": "x" });
        let message = zed.make(on, "m.room.message", None, body).await;
        assert_eq!(zed.receive(&message).await, StatusKind::Accepted);
        prev = message.event_id().to_owned();
    };
    say(&mut zed).await;
    let before = resolutions(&server);
    say(&mut zed).await;
    assert_eq!(resolutions(&server), before);
    assert_eq!(carl.receive(&theme).await, StatusKind::Rejected);
    say(&mut zed).await;
    assert_eq!(resolutions(&server), before + 1);
}

/// Chains that all link to all: what is stored for an event, and what one costs, is bounded by what
/// it names itself.
#[tokio::test]
async fn links_are_stored_for_what_an_event_names_only() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "12").await;
    let room = server.room(&zed.room).await;
    let prev = std::slice::from_ref(&join);
    let before = resolutions(&server);
    let mut chain = join.clone();
    for turn in 0..60_usize {
        // Each profile names the one before, and each message on a branch of its own names it.
        let content = json!({ "membership": "join", "displayname": turn.to_string() });
        let user = zed.user.to_string();
        let on = std::slice::from_ref(&chain);
        let profile = zed.make(on, "m.room.member", Some(&user), content).await;
        assert_eq!(zed.receive(&profile).await, StatusKind::Accepted);
        let branch = zed
            .make(prev, "m.room.message", None, json!({ "body": "x" }))
            .await;
        assert_eq!(zed.receive(&branch).await, StatusKind::Accepted);
        chain = profile.event_id().to_owned();
        for pdu in [&profile, &branch] {
            let number = server
                .rooms
                .events
                .number(room.number, pdu.event_id())
                .await;
            let stored = server.rooms.events.load(&room, number.unwrap().unwrap());
            assert_eq!(stored.await.unwrap().auth.len(), pdu.auth_events().len());
        }
    }
    assert!(
        resolutions(&server) - before <= 2 * 60,
        "at most one for each event"
    );
    let member = server
        .state(&zed.room, "m.room.member", zed.user.as_str())
        .await;
    assert_eq!(member.unwrap()["displayname"], "59");
}
