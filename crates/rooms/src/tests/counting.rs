//! What is counted as events arrive.

use futures_util::future::join_all;
use homeserver_events::push::Class;
use homeserver_storage::Row;
use serde_json::json;

use super::support::{Server, event, user};
use crate::{
    ClassCounts, CreateRoom, EventNumber, Tally, numbers::RoomNumber, rows::ArrivalRow, tally,
};

/// The running counts in every arrival are those of the arrivals up to it.
async fn check(server: &Server, room: RoomNumber) -> Tally {
    let span = (0, server.rooms.durable());
    let arrivals = server.rooms.counted_arrivals(room, span, 1000).await;
    let mut tally = Tally::default();
    for arrival in arrivals.unwrap().into_iter().rev() {
        tally.all.add(arrival.class);
        if let Some(root) = arrival.thread {
            tally.threaded.add(arrival.class);
            let in_thread = server.rooms.thread_tally_at(room, root, arrival.position);
            assert_ne!(in_thread.await.unwrap(), ClassCounts::default());
        }
        let found = server.rooms.tally_at(room, arrival.position).await.unwrap();
        assert_eq!(found, tally, "{arrival:?}");
    }
    tally
}

fn messages(count: u64) -> ClassCounts {
    let mut counts = ClassCounts::default();
    (0..count).for_each(|_| assert!(counts.add(Class::Message)));
    counts
}

#[tokio::test]
async fn counts_run_on_over_commits_in_flight_and_restarts() {
    let server = Server::start().await;
    let alice = user("alice");
    let room_id = server.create(&alice, CreateRoom::default()).await;
    let room = server.room(&room_id).await;
    let root = server.say(&alice, &room_id, "root").await;
    let in_thread = json!({
        "msgtype": "m.text", "body": "x",
        "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    let talk = |server: &Server| {
        let rooms = server.rooms.clone();
        let (alice, room, in_thread) = (alice.clone(), room_id.clone(), in_thread.clone());
        async move {
            let sends = (0..20).map(|number| {
                let content = if number % 3 == 0 {
                    in_thread.clone()
                } else {
                    json!({ "msgtype": "m.text", "body": "x" })
                };
                let action = crate::RoomAction::Send {
                    room: room.clone(),
                    event: event("m.room.message", None, &content),
                };
                rooms.execute(crate::RoomCommand::new(alice.clone(), action))
            });
            for answer in join_all(sends).await {
                answer.unwrap();
            }
        }
    };
    talk(&server).await;
    let tally = check(&server, room.number).await;
    assert_eq!((tally.all, tally.threaded), (messages(21), messages(7)));

    let server = server.restart().await;
    talk(&server).await;
    let tally = check(&server, room.number).await;
    assert_eq!((tally.main(), tally.threaded), (messages(27), messages(14)));
    let rooms = &server.rooms;
    let number = rooms
        .event_number(room.number, &root)
        .await
        .unwrap()
        .unwrap();
    let counts = rooms.thread_tally_at(room.number, number, u64::MAX).await;
    assert_eq!(counts.unwrap(), messages(14));
    // Who writes has read: in the thread, and outside of it.
    let writer = rooms.user_number(&alice).await.unwrap();
    let reads = rooms.own_reads(writer, room.number).await.unwrap();
    let threads: Vec<_> = reads.iter().map(|(thread, _)| *thread).collect();
    assert_eq!(threads, [None, Some(number)]);
    assert_eq!(reads.iter().map(|(_, at)| *at).max(), Some(rooms.durable()));
}

#[tokio::test]
async fn what_relates_to_a_thread_is_counted_in_it() {
    let server = Server::start().await;
    let alice = user("alice");
    let room_id = server.create(&alice, CreateRoom::default()).await;
    let room = server.room(&room_id).await;
    let root = server.say(&alice, &room_id, "root").await;
    let mut target = root.clone();
    for rel_type in ["m.thread", "m.reference", "m.reference"] {
        let content = json!({
            "msgtype": "m.text", "body": "x",
            "m.relates_to": { "rel_type": rel_type, "event_id": target },
        });
        let message = event("m.room.message", None, &content);
        target = server.try_send(&alice, &room_id, message).await.unwrap();
    }
    let tally = check(&server, room.number).await;
    assert_eq!((tally.all, tally.threaded), (messages(4), messages(3)));
}

#[tokio::test]
async fn mentions_are_noted_for_local_users_and_redactions_take_off() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let room_id = server.create(&alice, CreateRoom::default()).await;
    let room = server.room(&room_id).await;
    let bob_number = server.rooms.user_number(&bob).await.unwrap();
    let mention = |users: Vec<String>| {
        let content = json!({
            "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": users },
        });
        event("m.room.message", None, &content)
    };
    let named = mention(vec![bob.to_string(), "@bob:elsewhere.example".to_owned()]);
    let named = server.try_send(&alice, &room_id, named).await.unwrap();
    let crowd = (0..300).map(|number| format!("@u{number}:here.example"));
    let crowd: Vec<_> = crowd.chain([bob.to_string()]).collect();
    server
        .try_send(&alice, &room_id, mention(crowd[..300].to_vec()))
        .await
        .unwrap();
    server
        .try_send(&alice, &room_id, mention(crowd))
        .await
        .unwrap();
    let rooms = &server.rooms;
    let span = (0, rooms.durable());
    let found = rooms
        .mentions(&room, (bob_number, &bob), span, 100)
        .await
        .unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|arrival| arrival.class == Class::Message));

    assert_eq!(rooms.uncounted(room.number, span, 100).await.unwrap(), []);
    let redact = crate::RoomAction::Redact {
        room: room_id.clone(),
        target: named,
        reason: None,
    };
    server.act(&alice, redact).await.unwrap();
    let taken_off = rooms.uncounted(room.number, span, 100).await.unwrap();
    assert_eq!(taken_off.len(), 1);
    assert_eq!(taken_off[0].position, found[0].position);
}

/// What counting adds to the rows of a message, in a room with 100,000 of them.
#[test]
fn counting_costs_few_bytes() {
    let mut tally = Tally::default();
    (0..100_000).for_each(|_| assert!(tally.all.add(Class::Message)));
    let row = ArrivalRow {
        event: EventNumber(10_000_000),
        class: Class::Message.number(),
        thread: 0,
        tally,
        highest: 0,
    };
    // Without counts, the row is an event number of eight bytes.
    assert!(row.encode().len() - 8 <= 12, "{}", row.encode().len());
    assert_eq!(tally::class_of(row.class), Class::Message);
}
