//! Many events of another server at once.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_events::{Pdu, SoftFailReason, StatusKind, resolve::Limits};
use homeserver_storage::Engine;
use ruma::OwnedRoomId;
use serde_json::json;

use super::{
    forks::shared_room,
    mortal::{MortalEngine, copy},
    peer::{Peer, peer},
    support::{Server, event, message, user},
};
use crate::{Incoming, Received, RoomError, tables};

type Answer = Result<Received, RoomError>;

pub(super) async fn receive_all(server: &Server, room: &OwnedRoomId, pdus: &[Pdu]) -> Vec<Answer> {
    let room = server.room(room).await;
    let events = pdus.iter().cloned().map(Incoming::from).collect();
    server.rooms.receive_all(&room, events).await
}

fn statuses(answers: &[Answer]) -> Vec<StatusKind> {
    let status = |answer: &Answer| match answer {
        Ok(Received::Judged { status, .. }) => *status,
        other => panic!("{other:?}"),
    };
    answers.iter().map(status).collect()
}

/// Everything that readers are told of a room, in terms that do not depend on numbers.
async fn picture(server: &Server, room: &OwnedRoomId) -> Vec<String> {
    let rooms = &server.rooms;
    let (alice, here) = (user("alice"), server.room(room).await);
    let now = rooms.durable();
    let mut picture = Vec::new();
    for event in server.timeline(&alice, room).await {
        let position = event.position().unwrap();
        let state = rooms.state_at(here.number, position).await.unwrap();
        let redacted = event.redacted_by().is_some();
        let key = event.history_key();
        let at = (here.number.0, position);
        let arrival = rooms.store.get(&tables::ARRIVALS, &at).await;
        let arrival = arrival.unwrap().unwrap();
        picture.push(format!(
            "{} {} {redacted} {} {} {} {:?}",
            event.pdu().event_id(),
            key.height,
            state.joined,
            state.invited,
            arrival.class,
            arrival.tally,
        ));
    }
    let state = rooms.state_at(here.number, now).await.unwrap();
    let mut events = BTreeMap::new();
    for (key, number) in rooms.state_all(&here, state.root).await.unwrap() {
        let event = rooms.events.load(&here, number).await.unwrap();
        events.insert(format!("{:?}", key.pair()), event.pdu.event_id().to_owned());
    }
    picture.extend(events.iter().map(|(key, id)| format!("{key} {id}")));
    picture.extend(
        rooms
            .servers(here.number, 99)
            .await
            .unwrap()
            .iter()
            .map(ToString::to_string),
    );
    picture
}

/// A conversation with everything in it that changes a room.
pub(super) async fn conversation(peer: &mut Peer, turns: usize) {
    for turn in 0..turns {
        let said = peer.say(&format!("turn {turn}")).await;
        let thread = json!({
            "body": "in a thread",
            "m.relates_to": { "rel_type": "m.thread", "event_id": said.event_id() },
        });
        let zed = peer.zed.clone();
        let threaded = peer
            .send(&zed, event("m.room.message", None, &thread))
            .await;
        let reaction = json!({
            "m.relates_to": {
                "rel_type": "m.annotation", "event_id": threaded.event_id(), "key": "+",
            },
        });
        peer.send(&zed, event("m.reaction", None, &reaction)).await;
        peer.set("m.room.topic", "", json!({ "topic": turn.to_string() }))
            .await;
        let name = format!("guest{}", turn % 3);
        peer.member(&name, "join").await;
        let guest = Peer::user(&name);
        peer.send(&guest, message("hello")).await;
        if turn % 2 == 0 {
            peer.redact(&said).await;
        }
        peer.member(&name, "leave").await;
    }
}

#[tokio::test]
async fn what_is_received_in_batches_is_as_if_it_came_one_by_one() {
    for version in ["10", "12"] {
        let (memory, mut peer) = peer(version).await;
        conversation(&mut peer, 9).await;
        let slowly = Server::on(copy(&memory).await).await;
        for pdu in &peer.made {
            let answer = receive_all(&slowly, &peer.room, std::slice::from_ref(pdu)).await;
            assert_eq!(statuses(&answer), [StatusKind::Accepted]);
        }
        let quickly = Server::on(copy(&memory).await).await;
        let answers = receive_all(&quickly, &peer.room, &peer.made).await;
        assert!(
            statuses(&answers)
                .iter()
                .all(|status| *status == StatusKind::Accepted)
        );
        let picture_of = picture(&slowly, &peer.room).await;
        assert_eq!(picture(&quickly, &peer.room).await, picture_of);
        // And to another process.
        let again = quickly.restart().await;
        assert_eq!(picture(&again, &peer.room).await, picture_of);
        let at = |answer: &Answer| match answer {
            Ok(Received::Judged { position, .. }) => position.unwrap(),
            other => panic!("{other:?}"),
        };
        let shown = again.timeline(&user("alice"), &peer.room).await;
        let arrived: Vec<_> = shown
            .iter()
            .filter_map(crate::VisibleEvent::position)
            .collect();
        let answered: Vec<_> = answers.iter().map(at).collect();
        assert!(
            arrived.ends_with(&answered),
            "each is where it is said to be"
        );
        // All of it again changes nothing, and is answered the same.
        let repeated = receive_all(&again, &peer.room, &peer.made).await;
        assert_eq!(repeated.iter().map(at).collect::<Vec<_>>(), answered);
        assert_eq!(picture(&again, &peer.room).await, picture_of);
    }
}

#[tokio::test]
async fn a_chain_of_messages_takes_few_commits() {
    let (memory, mut peer) = peer("11").await;
    for turn in 0..300 {
        peer.say(&turn.to_string()).await;
    }
    // Events in batches of about a hundred; numbers of events and users beside.
    let engine: Arc<dyn Engine> = copy(&memory).await;
    let server = Server::on(MortalEngine::new(engine, 6)).await;
    let answers = receive_all(&server, &peer.room, &peer.made).await;
    assert!(
        statuses(&answers)
            .iter()
            .all(|status| *status == StatusKind::Accepted)
    );
    assert_eq!(
        server.timeline(&user("alice"), &peer.room).await.len(),
        300 + 9
    );
}

#[tokio::test]
async fn what_is_answered_outlives_a_process_that_is_killed() {
    let (memory, mut peer) = peer("12").await;
    conversation(&mut peer, 6).await;
    let whole = Server::on(copy(&memory).await).await;
    receive_all(&whole, &peer.room, &peer.made).await;
    let picture_of = picture(&whole, &peer.room).await;
    for commits in 0..40 {
        let engine = copy(&memory).await;
        let mortal = MortalEngine::new(engine.clone(), commits);
        let Ok(server) = Server::try_on(mortal).await else {
            continue;
        };
        let answers = receive_all(&server, &peer.room, &peer.made).await;
        drop(server);
        let again = Server::on(engine).await;
        let room = again.room(&peer.room).await;
        for (answer, pdu) in answers.iter().zip(&peer.made) {
            let number = again.rooms.events.number(room.number, pdu.event_id());
            let here = number.await.unwrap().is_some();
            let judged = matches!(answer, Ok(Received::Judged { .. }));
            assert!(here || !judged, "{commits} commits: {answer:?}");
        }
        let all = receive_all(&again, &peer.room, &peer.made).await;
        assert!(
            statuses(&all)
                .iter()
                .all(|status| *status == StatusKind::Accepted)
        );
        assert_eq!(
            picture(&again, &peer.room).await,
            picture_of,
            "{commits} commits"
        );
    }
}

/// Local users write meanwhile, and the same events come on two ways.
#[tokio::test]
async fn every_event_arrives_once_whoever_else_is_at_work() {
    let (memory, mut peer) = peer("12").await;
    conversation(&mut peer, 8).await;
    let server = Server::on(copy(&memory).await).await;
    let mut reversed = peer.made.clone();
    reversed.reverse();
    let doubled: Vec<_> = peer
        .made
        .iter()
        .flat_map(|pdu| [pdu.clone(), pdu.clone()])
        .collect();
    let alice = user("alice");
    let talk = async {
        let mut said = Vec::new();
        for turn in 0..20 {
            said.push(server.say(&alice, &peer.room, &turn.to_string()).await);
        }
        said
    };
    let (once, twice, _, said) = futures_util::join!(
        receive_all(&server, &peer.room, &peer.made),
        receive_all(&server, &peer.room, &doubled),
        receive_all(&server, &peer.room, &reversed),
        talk,
    );
    for answers in [once, twice] {
        assert!(
            statuses(&answers)
                .iter()
                .all(|status| *status == StatusKind::Accepted)
        );
    }
    let shown = server.timeline(&alice, &peer.room).await;
    let shown: Vec<_> = shown
        .iter()
        .map(|event| event.pdu().event_id().to_owned())
        .collect();
    let theirs = peer.made.iter().map(|pdu| pdu.event_id().to_owned());
    for id in theirs.chain(said) {
        let times = shown.iter().filter(|shown| **shown == id).count();
        assert_eq!(times, 1, "{id}");
    }
}

#[tokio::test]
async fn events_without_those_before_them_wait_and_cost_only_themselves() {
    let (memory, mut peer) = peer("11").await;
    for turn in 0..6 {
        peer.say(&turn.to_string()).await;
    }
    let server = Server::on(copy(&memory).await).await;
    let mut some = peer.made.clone();
    let missing = some.remove(2);
    let answers = receive_all(&server, &peer.room, &some).await;
    assert_eq!(statuses(&answers[..2]), [StatusKind::Accepted; 2]);
    let absent = |id: &ruma::EventId| Received::Missing {
        prev: vec![id.to_owned()],
        auth: Vec::new(),
    };
    assert_eq!(answers[2].as_ref().unwrap(), &absent(missing.event_id()));
    for at in 3..5 {
        let before = some[at - 1].event_id();
        assert_eq!(answers[at].as_ref().unwrap(), &absent(before));
    }
    let answers = receive_all(&server, &peer.room, &peer.made).await;
    assert_eq!(statuses(&answers), [StatusKind::Accepted; 6]);
    assert_eq!(receive_all(&server, &peer.room, &[]).await.len(), 0);
}

#[tokio::test]
async fn what_a_policy_refuses_is_soft_failed_and_what_the_rules_refuse_is_rejected() {
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let room = server.room(&zed.room).await;
    let prev = std::slice::from_ref(&join);
    let levels = json!({ "users": { "@zed:there.example": 100 } });
    let grab = zed
        .make(prev, "m.room.power_levels", Some(""), levels)
        .await;
    let body = json!({ "body": "spam" });
    let spam = zed.make(prev, "m.room.message", None, body).await;
    let refused = [spam.clone(), grab].map(|pdu| Incoming {
        pdu,
        refused: Some(SoftFailReason::PolicyServer),
    });
    let answers = server.rooms.receive_all(&room, refused.to_vec()).await;
    let expected = [StatusKind::SoftFailed, StatusKind::Rejected];
    assert_eq!(statuses(&answers), expected);
    // What was decided stays, also when the event comes again with another opinion.
    assert_eq!(zed.receive(&spam).await, StatusKind::SoftFailed);
}

#[tokio::test]
async fn a_room_that_everybody_here_has_left_takes_nothing() {
    let (memory, mut peer) = peer("11").await;
    let said = peer.say("still there?").await;
    let server = Server::on(copy(&memory).await).await;
    let gone = crate::MembershipChange::Leave;
    server
        .member(&user("alice"), &peer.room, gone)
        .await
        .unwrap();
    let answers = receive_all(&server, &peer.room, std::slice::from_ref(&said)).await;
    assert!(matches!(answers[..], [Err(RoomError::NotInRoom)]));
    let room = server.room(&peer.room).await;
    let number = server.rooms.events.number(room.number, said.event_id());
    assert_eq!(number.await.unwrap(), None);
}

#[tokio::test]
async fn a_resolution_over_its_limits_is_not_tried_at_each_delivery() {
    use std::{sync::atomic::Ordering, time::Duration};
    let server = Server::start().await;
    let (mut zed, join) = shared_room(&server, "11").await;
    let name = |name: &str| json!({ "name": name });
    let ours = event("m.room.name", Some(""), &name("ours"));
    server
        .try_send(&user("alice"), &zed.room, ours)
        .await
        .unwrap();
    let prev = std::slice::from_ref(&join);
    let theirs = zed
        .make(prev, "m.room.name", Some(""), name("theirs"))
        .await;
    let limits = Limits {
        steps: 1,
        ..Limits::default()
    };
    let resolutions = &server.rooms.resolutions;
    *resolutions.limits.lock() = limits;
    let events = [theirs.clone(), theirs.clone(), theirs.clone()];
    for answer in receive_all(&server, &zed.room, &events).await {
        assert!(
            matches!(answer, Err(RoomError::Unresolved(_))),
            "{answer:?}"
        );
    }
    assert_eq!(resolutions.made.load(Ordering::Relaxed), 1);
    // The room goes on meanwhile.
    server.say(&user("alice"), &zed.room, "on").await;
    *resolutions.limits.lock() = Limits::default();
    server
        .clock
        .advance(Duration::from_millis(crate::resolving::OVER_LIMIT_LIFETIME));
    assert_eq!(zed.receive(&theirs).await, StatusKind::Accepted);
    let now = server.state(&zed.room, "m.room.name", "").await.unwrap();
    assert_eq!(now["name"], "theirs");
}
