//! Events over gaps: what is fetched below one is read once and in its order, and what comes late
//! leaves the room as if it had come in time.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_events::{Pdu, StatusKind};
use homeserver_storage::{Direction, ScanRange, engines::memory::MemoryEngine};
use proptest::prelude::*;
use ruma::{EventId, OwnedEventId, OwnedRoomId};
use serde_json::json;

use super::{
    batches::{conversation, receive_all},
    forks::Elsewhere,
    mortal::copy,
    peer::{Peer, peer},
    support::{Server, event, user},
};
use crate::{
    Backfilled, Gap, Incoming, Received, RoomError, ToldState, Towards, VisibleEvent, tables,
};

/// The state before an event, as the peer tells it, made known here.
async fn state_before(server: &Server, peer: &Peer, id: &EventId) -> Vec<OwnedEventId> {
    let (theirs, there) = (&peer.server.rooms, peer.server.room(&peer.room).await);
    let number = theirs.events.number(there.number, id).await.unwrap();
    let event = theirs.events.load(&there, number.unwrap()).await.unwrap();
    // A rejected one has no state of its own; nothing is changed by it.
    let root = event.status.before().copied().unwrap_or(event.after);
    let mut events = Vec::new();
    let mut ahead: Vec<_> = theirs.state_all(&there, root).await.unwrap();
    while let Some((key, number)) = ahead.pop() {
        let event = theirs.events.load(&there, number).await.unwrap();
        ahead.extend(event.auth.iter().map(|number| (key.clone(), *number)));
        events.push(event);
    }
    events.sort_by_key(|event| event.auth_height);
    let pdus: Vec<Pdu> = events.iter().map(|event| event.pdu.clone()).collect();
    let room = server.room(&peer.room).await;
    let taken = server.rooms.receive_outliers(&room, pdus).await.unwrap();
    assert!(taken.left_out.is_empty());
    let state = theirs.state_all(&there, root).await.unwrap();
    let mut ids = Vec::new();
    for (_, number) in state {
        let event = theirs.events.load(&there, number).await.unwrap();
        ids.push(event.pdu.event_id().to_owned());
    }
    ids
}

/// Receives an event with the state before it, and nothing of what it follows.
async fn over_gap(server: &Server, peer: &Peer, pdu: &Pdu) -> StatusKind {
    let state = state_before(server, peer, pdu.event_id()).await;
    let room = server.room(&peer.room).await;
    let event = Incoming::from(pdu.clone());
    let received = server
        .rooms
        .receive_over_gap(&room, event, state.into())
        .await;
    match received.unwrap() {
        Received::Judged { status, .. } => status,
        missing @ Received::Missing { .. } => panic!("{missing:?}"),
    }
}

/// Fetches up to `count` events below a gap.
async fn fetch(server: &Server, peer: &Peer, gap: &Gap, count: usize) -> Backfilled {
    let mut some: Vec<Pdu> = Vec::new();
    let mut next = gap.missing.clone();
    while let Some(id) = next.pop() {
        let known = |pdu: &&Pdu| pdu.event_id() == id;
        let Some(pdu) = peer.made.iter().find(known) else {
            continue;
        };
        if some.len() < count {
            next.extend(pdu.prev_events().to_vec());
            some.push(pdu.clone());
        }
    }
    let lowest = some.last().unwrap().event_id().to_owned();
    let state = state_before(server, peer, &lowest).await;
    let auth = some.iter().flat_map(Pdu::auth_events);
    let auth = auth.filter_map(|id| peer.made.iter().find(|pdu| pdu.event_id() == id));
    let auth: Vec<_> = auth.cloned().collect();
    let room = server.room(&peer.room).await;
    server.rooms.receive_outliers(&room, auth).await.unwrap();
    let states = vec![(lowest, state.into())];
    let filled = server.rooms.backfill(&room, gap, some, states).await;
    let filled = filled.unwrap();
    assert_eq!(filled.left_out, [] as [OwnedEventId; 0]);
    filled
}

fn ids(events: &[VisibleEvent]) -> impl Iterator<Item = OwnedEventId> + '_ {
    events.iter().map(|event| event.pdu().event_id().to_owned())
}

/// The timeline and all pages before it, newest first. What is missing on the way is fetched, if
/// anything is.
async fn all(server: &Server, peer: &Peer, fetched: Option<usize>) -> Vec<OwnedEventId> {
    let (rooms, room) = (&server.rooms, server.room(&peer.room).await);
    let reader = server.reader(&user("alice")).await;
    let slice = rooms.timeline(&reader, &room, 0, 500, &|_| true);
    let slice = slice.await.unwrap();
    let mut found: Vec<_> = ids(&slice.events).collect();
    found.reverse();
    let mut token = Some(rooms.token_at(slice.start));
    while let Some(from) = token {
        let way = (Towards::Older, 5);
        let page = rooms.history(&reader, &room, Some(from), way, &|_| true);
        let page = page.await.unwrap();
        found.extend(ids(&page.events));
        token = page.next;
        if let (Some(count), Some(place), true) = (fetched, page.next, page.at_gap) {
            while let Some(gap) = rooms.gap_at(&room, &place).await.unwrap() {
                let filled = fetch(server, peer, &gap, count).await;
                assert!(filled.taken > 0);
            }
        }
    }
    found
}

/// The state of a room now, by ids, with what is counted of it.
async fn state(server: &Server, room: &OwnedRoomId) -> BTreeMap<String, String> {
    let (rooms, here) = (&server.rooms, server.room(room).await);
    let now = rooms.state_at(here.number, rooms.durable()).await.unwrap();
    let mut state = BTreeMap::new();
    for (key, number) in rooms.state_all(&here, now.root).await.unwrap() {
        let event = rooms.events.load(&here, number).await.unwrap();
        let key = format!("{:?}", key.pair());
        state.insert(key, event.pdu.event_id().to_string());
    }
    let mut servers = rooms.servers(here.number, 99).await.unwrap();
    servers.sort();
    state.insert("servers".to_owned(), format!("{servers:?}"));
    state.insert("joined".to_owned(), now.joined.to_string());
    state.insert("invited".to_owned(), now.invited.to_string());
    state
}

#[tokio::test]
async fn what_is_fetched_below_a_gap_is_read_once_and_in_its_order() {
    for version in ["10", "12"] {
        let (memory, mut peer) = peer(version).await;
        let before = Server::on(copy(&memory).await).await;
        let before = before.timeline(&user("alice"), &peer.room).await;
        for turn in 0..20 {
            let said = peer.say(&turn.to_string()).await;
            if turn % 4 == 0 {
                let topic = json!({ "topic": turn.to_string() });
                peer.set("m.room.topic", "", topic).await;
                let reaction = json!({ "m.relates_to": {
                    "rel_type": "m.annotation", "event_id": said.event_id(), "key": "+",
                } });
                let zed = peer.zed.clone();
                peer.send(&zed, event("m.reaction", None, &reaction)).await;
            }
        }
        let mut expected: Vec<_> = ids(&before).collect();
        expected.extend(peer.made.iter().map(|pdu| pdu.event_id().to_owned()));
        expected.reverse();
        let last = peer.made.last().unwrap().clone();
        for count in [1, 3, 7, 50] {
            let server = Server::on(copy(&memory).await).await;
            assert_eq!(over_gap(&server, &peer, &last).await, StatusKind::Accepted);
            let topic = server.state(&peer.room, "m.room.topic", "").await;
            assert_eq!(topic.unwrap()["topic"], "16");
            // Without anybody to ask there is what is here.
            let here = all(&server, &peer, None).await;
            assert_eq!(here[0], expected[0]);
            assert_eq!(here[1..], expected[peer.made.len()..]);
            assert_eq!(all(&server, &peer, Some(count)).await, expected, "{count}");
            // Once it is here nothing is asked for, by another process neither.
            let again = server.restart().await;
            assert_eq!(all(&again, &peer, None).await, expected, "{count}");
            let topic = again.state(&peer.room, "m.room.topic", "").await;
            assert_eq!(topic.unwrap()["topic"], "16");
            again.say(&user("alice"), &peer.room, "on").await;
        }
    }
}

/// A rejected event has no place to hang a gap on; what is below it is found from above.
#[tokio::test]
async fn history_goes_on_below_a_rejected_event() {
    let (memory, mut peer) = peer("11").await;
    for turn in 0..5 {
        peer.say(&turn.to_string()).await;
    }
    let mut next = peer.made.last().unwrap().event_id().to_owned();
    let mut made = Vec::new();
    let mut elsewhere = Elsewhere {
        server: &peer.server,
        room: peer.room.clone(),
        user: peer.zed.clone(),
        time: 1_700_000_100_000,
    };
    let levels = json!({ "users": { "@zed:there.example": 100 } });
    let body = json!({ "body": "on" });
    for (event_type, key, content) in [
        ("m.room.power_levels", Some(""), levels),
        ("m.room.message", None, body.clone()),
        ("m.room.message", None, body),
    ] {
        let prev = std::slice::from_ref(&next);
        let pdu = elsewhere.make(prev, event_type, key, content).await;
        let rejected = key.is_some();
        let status = elsewhere.receive(&pdu).await;
        assert_eq!(status == StatusKind::Rejected, rejected, "{status:?}");
        next = pdu.event_id().to_owned();
        made.push(pdu);
    }
    peer.made.extend(made);
    let server = Server::on(copy(&memory).await).await;
    let last = peer.made.last().unwrap().clone();
    let old = server.timeline(&user("alice"), &peer.room).await;
    let mut expected: Vec<_> = ids(&old).collect();
    let shown = peer
        .made
        .iter()
        .filter(|pdu| pdu.event_type() != "m.room.power_levels");
    expected.extend(shown.map(|pdu| pdu.event_id().to_owned()));
    expected.reverse();
    for count in [1, 2, 50] {
        let server = Server::on(copy(&memory).await).await;
        assert_eq!(over_gap(&server, &peer, &last).await, StatusKind::Accepted);
        assert_eq!(all(&server, &peer, Some(count)).await, expected, "{count}");
        let levels = server.state(&peer.room, "m.room.power_levels", "").await;
        assert_eq!(levels.unwrap()["users"]["@zed:there.example"], 50);
    }
}

/// A room of the peer with some messages, and events by zed after them that are rejected, each after
/// the one before; then messages by zed.
async fn with_rejected(rejected: usize, messages: usize) -> (Arc<MemoryEngine>, Peer) {
    let (memory, mut peer) = peer("11").await;
    for turn in 0..3 {
        peer.say(&turn.to_string()).await;
    }
    let mut next = peer.made.last().unwrap().event_id().to_owned();
    let mut made = Vec::new();
    let mut elsewhere = Elsewhere {
        server: &peer.server,
        room: peer.room.clone(),
        user: peer.zed.clone(),
        time: 1_700_000_100_000,
    };
    let levels = json!({ "users": { "@zed:there.example": 100 } });
    for turn in 0..rejected + messages {
        let prev = std::slice::from_ref(&next);
        let (event_type, key, content, status) = if turn < rejected {
            let rejected = StatusKind::Rejected;
            ("m.room.power_levels", Some(""), levels.clone(), rejected)
        } else {
            let body = json!({ "body": "on" });
            ("m.room.message", None, body, StatusKind::Accepted)
        };
        let pdu = elsewhere.make(prev, event_type, key, content).await;
        assert_eq!(elsewhere.receive(&pdu).await, status);
        next = pdu.event_id().to_owned();
        made.push(pdu);
    }
    peer.made.extend(made);
    (memory, peer)
}

/// What a reader has to find of all that, newest first.
async fn shown(server: &Server, peer: &Peer) -> Vec<OwnedEventId> {
    let old = server.timeline(&user("alice"), &peer.room).await;
    let made = peer.made.iter();
    let made = made.filter(|pdu| pdu.event_type() == "m.room.message");
    let made = made.map(|pdu| pdu.event_id().to_owned());
    let mut shown: Vec<_> = ids(&old).chain(made).collect();
    shown.reverse();
    shown
}

/// They are looked through in steps, of which none ends the gap.
#[tokio::test]
async fn history_goes_on_below_very_many_hidden_events() {
    let (memory, peer) = with_rejected(450, 2).await;
    let server = Server::on(copy(&memory).await).await;
    let expected = shown(&server, &peer).await;
    let rejected = &peer.made[3..453];
    assert_eq!(
        over_gap(&server, &peer, &rejected[0]).await,
        StatusKind::Rejected
    );
    receive_all(&server, &peer.room, &rejected[1..]).await;
    let last = peer.made.last().unwrap();
    assert_eq!(over_gap(&server, &peer, last).await, StatusKind::Accepted);
    assert_eq!(all(&server, &peer, Some(1)).await, expected);
}

/// The gap is below an event that is not shown; those after it are not over any gap themselves.
#[tokio::test]
async fn what_is_missing_below_a_hidden_event_is_looked_for_below_the_live_one_after_it() {
    for hidden in [1, 2] {
        let (memory, peer) = with_rejected(hidden, 2).await;
        let server = Server::on(copy(&memory).await).await;
        let expected = shown(&server, &peer).await;
        let first = &peer.made[3];
        assert_eq!(over_gap(&server, &peer, first).await, StatusKind::Rejected);
        // In one batch: the hidden one may be on its way to the disk still.
        receive_all(&server, &peer.room, &peer.made[4..]).await;
        assert_eq!(all(&server, &peer, Some(2)).await, expected);
    }
}

/// What the other server left out of the state counts once it is here.
#[tokio::test]
async fn a_late_state_event_that_was_left_out_of_the_told_state_counts() {
    for (late, older) in [(0, false), (2, false), (0, true), (2, true)] {
        let (memory, mut peer) = peer("11").await;
        let server = Server::on(copy(&memory).await).await;
        let mut before = None;
        if older {
            let topic = json!({ "topic": "before" });
            let set = peer.set("m.room.topic", "", topic).await;
            receive_all(&server, &peer.room, std::slice::from_ref(&set)).await;
            before = Some(set.event_id().to_owned());
        }
        peer.made.clear();
        let topic = json!({ "topic": "left out" });
        peer.set("m.room.topic", "", topic).await;
        for turn in 0..late {
            peer.say(&turn.to_string()).await;
        }
        let last = peer.say("after the gap").await;
        let mut state = state_before(&server, &peer, last.event_id()).await;
        state.retain(|id| id != peer.made[0].event_id());
        state.extend(before);
        let room = server.room(&peer.room).await;
        let received = server
            .rooms
            .receive_over_gap(&room, last.clone().into(), state.into())
            .await;
        assert!(matches!(received, Ok(Received::Judged { .. })));
        receive_all(&server, &peer.room, &peer.made).await;
        let topic = server.state(&peer.room, "m.room.topic", "").await;
        assert_eq!(topic.unwrap()["topic"], "left out", "{late} {older}");
    }
}

/// Whoever tells a state may lie: another one may be told, or what the room has counts.
#[tokio::test]
async fn a_told_state_gets_no_event_rejected_for_good() {
    let (memory, mut peer) = peer("11").await;
    peer.say("missing").await;
    let last = peer.say("after the gap").await;
    let server = Server::on(copy(&memory).await).await;
    let whole = state_before(&server, &peer, last.event_id()).await;
    let room = server.room(&peer.room).await;
    let rooms = &server.rooms;
    let zed = rooms.state_at(room.number, rooms.durable()).await.unwrap();
    let zed = rooms.state_event(&room, zed.root, "m.room.member", peer.zed.as_str());
    let zed = zed.await.unwrap().unwrap();
    let mut lie = whole.clone();
    lie.retain(|id| id != zed.pdu.event_id());
    assert_eq!(lie.len() + 1, whole.len());
    let receive = async |told: ToldState| {
        let event = Incoming::from(last.clone());
        rooms.receive_over_gap(&room, event, told).await
    };
    let refused = receive(lie.clone().into()).await;
    assert!(matches!(refused, Err(RoomError::NotAllowedByTold)));
    let ids = [last.event_id().to_owned()];
    assert_eq!(rooms.unplaced_of(&room, &ids).await.unwrap(), ids);
    let told = ToldState {
        events: lie,
        whole: false,
    };
    let accepted = StatusKind::Accepted;
    let received = receive(told).await;
    assert!(matches!(received, Ok(Received::Judged { status, .. }) if status == accepted));
}

/// A part of a state takes nothing from the room.
#[tokio::test]
async fn what_could_not_be_had_of_a_told_state_stays_as_the_room_has_it() {
    for whole in [true, false] {
        let (memory, mut peer) = peer("11").await;
        peer.say("missing").await;
        let last = peer.say("after the gap").await;
        let server = Server::on(copy(&memory).await).await;
        let name = server.state(&peer.room, "m.room.name", "").await;
        assert!(name.is_some());
        let mut events = state_before(&server, &peer, last.event_id()).await;
        let room = server.room(&peer.room).await;
        let (rooms, mut named) = (&server.rooms, None);
        for id in &events {
            let number = rooms.events.number(room.number, id).await.unwrap();
            let event = rooms.events.load(&room, number.unwrap()).await.unwrap();
            if event.pdu.event_type() == "m.room.name" {
                named = Some(id.clone());
            }
        }
        events.retain(|id| Some(id) != named.as_ref());
        let told = ToldState { events, whole };
        let received = rooms.receive_over_gap(&room, last.clone().into(), told);
        assert!(matches!(received.await, Ok(Received::Judged { .. })));
        let number = rooms.events.number(room.number, last.event_id()).await;
        let event = rooms.events.load(&room, number.unwrap().unwrap()).await;
        let name = rooms.state_event(&room, event.unwrap().after, "m.room.name", "");
        assert_eq!(name.await.unwrap().is_none(), whole);
    }
}

#[tokio::test]
async fn what_was_missing_is_no_extremity_when_it_comes() {
    let (memory, mut peer) = peer("12").await;
    for turn in 0..6 {
        let topic = json!({ "topic": turn.to_string() });
        peer.set("m.room.topic", "", topic).await;
    }
    let server = Server::on(copy(&memory).await).await;
    let last = peer.made.last().unwrap().clone();
    assert_eq!(over_gap(&server, &peer, &last).await, StatusKind::Accepted);
    for answer in receive_all(&server, &peer.room, &peer.made).await {
        let judged = matches!(
            answer,
            Ok(Received::Judged {
                status: StatusKind::Accepted,
                ..
            })
        );
        assert!(judged, "{answer:?}");
    }
    let room = server.room(&peer.room).await;
    let extremities = server.rooms.extremities(&room).await.unwrap();
    assert_eq!(extremities, [last.event_id()]);
    assert_eq!(
        state(&server, &peer.room).await,
        state(&peer.server, &peer.room).await
    );
}

/// More memberships than a batch holds.
#[tokio::test]
async fn a_crowd_that_came_meanwhile_is_in_the_room() {
    let (memory, mut peer) = peer("11").await;
    for guest in 0..200 {
        peer.member(&format!("guest{guest}"), "join").await;
    }
    let said = peer.say("quite a crowd").await;
    let server = Server::on(copy(&memory).await).await;
    assert_eq!(over_gap(&server, &peer, &said).await, StatusKind::Accepted);
    let theirs = state(&peer.server, &peer.room).await;
    assert_eq!(theirs["joined"], "202");
    assert_eq!(state(&server, &peer.room).await, theirs);
    let left = peer.member("guest7", "leave").await;
    receive_all(&server, &peer.room, &[left]).await;
    assert_eq!(
        state(&server, &peer.room).await,
        state(&peer.server, &peer.room).await
    );
    let store = &server.rooms.store;
    let forward = Direction::Forward;
    let debts = store
        .scan(&tables::INDEX_DEBTS, ScanRange::all(), forward, 9)
        .await;
    assert!(debts.unwrap().is_empty());
    let imports = store
        .scan(&tables::IMPORTS, ScanRange::all(), forward, 9)
        .await;
    assert!(imports.unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Whichever events are left out at first, and whether they come later or never.
    #[test]
    fn servers_agree_on_the_state_however_they_came_by_the_events(
        version in prop::sample::select(&["10", "12"][..]),
        left_out in prop::collection::vec(any::<bool>(), 40),
        late in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (memory, mut peer) = peer(version).await;
            conversation(&mut peer, 4).await;
            let server = Server::on(copy(&memory).await).await;
            let (last, rest) = peer.made.split_last().unwrap();
            let mut skipped = Vec::new();
            for (pdu, left_out) in rest.iter().zip(left_out.iter().cycle()) {
                if *left_out {
                    skipped.push(pdu.clone());
                    continue;
                }
                let answer = receive_all(&server, &peer.room, std::slice::from_ref(pdu)).await;
                if matches!(answer[..], [Ok(Received::Missing { .. })]) {
                    assert_eq!(over_gap(&server, &peer, pdu).await, StatusKind::Accepted);
                }
            }
            let answer = receive_all(&server, &peer.room, std::slice::from_ref(last)).await;
            if matches!(answer[..], [Ok(Received::Missing { .. })]) {
                over_gap(&server, &peer, last).await;
            }
            if late {
                receive_all(&server, &peer.room, &skipped).await;
            }
            // What stayed an extremity is joined by the next event of either server.
            let said = server.say(&user("alice"), &peer.room, "whole again").await;
            let room = server.room(&peer.room).await;
            let number = server.rooms.events.number(room.number, &said).await.unwrap();
            let said = server.rooms.events.load(&room, number.unwrap()).await.unwrap();
            let answers = receive_all(&peer.server, &peer.room, std::slice::from_ref(&said.pdu)).await;
            let accepted = matches!(
                answers[..],
                [Ok(Received::Judged { status: StatusKind::Accepted, .. })]
            );
            assert!(accepted, "{answers:?}");
            let (ours, theirs) = (
                state(&server, &peer.room).await,
                state(&peer.server, &peer.room).await,
            );
            assert_eq!(ours, theirs);
        });
    }
}
