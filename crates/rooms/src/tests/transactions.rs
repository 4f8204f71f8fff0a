//! Transaction ids: one effect, one answer, across duplicates and restarts.

use std::{sync::Arc, time::Duration};

use ruma::owned_device_id;

use super::support::{Server, message, user};
use crate::{CreateRoom, RoomAction, RoomCommand, RoomError, TRANSACTION_LIFETIME, live::QUEUE};

fn send(room: &ruma::OwnedRoomId, body: &str, device: &str, id: &str) -> RoomCommand {
    send_from(room, body, (device, u64::from(device.as_bytes()[0])), id)
}

fn send_from(
    room: &ruma::OwnedRoomId,
    body: &str,
    (device, number): (&str, u64),
    id: &str,
) -> RoomCommand {
    let action = RoomAction::Send {
        room: room.clone(),
        event: message(body),
    };
    let command = RoomCommand::new(user("alice"), action);
    command.with_transaction((device.into(), number), "send", id)
}

#[tokio::test]
async fn a_transaction_happens_once() {
    let server = Server::start().await;
    let alice = user("alice");
    let room = server.create(&alice, CreateRoom::default()).await;
    let first = server
        .rooms
        .execute(send(&room, "one", "A", "1"))
        .await
        .unwrap();
    let again = server
        .rooms
        .execute(send(&room, "one", "A", "1"))
        .await
        .unwrap();
    assert_eq!(first, again);
    let restarted = server.restart().await;
    assert_eq!(
        restarted
            .rooms
            .execute(send(&room, "one", "A", "1"))
            .await
            .unwrap(),
        first
    );
    let device = restarted
        .rooms
        .execute(send(&room, "one", "B", "1"))
        .await
        .unwrap();
    let other = restarted
        .rooms
        .execute(send(&room, "one", "A", "2"))
        .await
        .unwrap();
    assert!(device != first && other != first && other != device);
    let events = restarted.timeline(&alice, &room).await;
    assert_eq!(events.len(), 9);
    let origin = events[6].origin().unwrap();
    assert_eq!(
        (&origin.device, origin.transaction.as_str()),
        (&owned_device_id!("A"), "1")
    );

    restarted
        .clock
        .advance(Duration::from_millis(TRANSACTION_LIFETIME + 1));
    restarted
        .rooms
        .execute(send(&room, "late", "A", "3"))
        .await
        .unwrap();
    assert_eq!(restarted.rooms.sweep_transactions().await.unwrap(), 3);
}

/// A client that logs in again under its old device id may count from the start.
#[tokio::test]
async fn a_device_that_is_made_again_begins_anew() {
    let server = Server::start().await;
    let room = server.create(&user("alice"), CreateRoom::default()).await;
    let mut answers = Vec::new();
    for number in [1, 2, 2] {
        let command = send_from(&room, "one", ("A", number), "1");
        answers.push(server.rooms.execute(command).await.unwrap());
    }
    assert!(answers[0] != answers[1] && answers[1] == answers[2]);
}

#[tokio::test]
async fn duplicates_in_flight_wait_for_the_first() {
    let server = Server::start().await;
    let room = server.create(&user("alice"), CreateRoom::default()).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let rooms = Arc::clone(&server.rooms);
        let command = send(&room, "one", "A", "1");
        waiting.push(async move { rooms.execute(command).await.unwrap() });
    }
    let answers = futures_util::future::join_all(waiting).await;
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(server.timeline(&user("alice"), &room).await.len(), 7);
}

#[tokio::test]
async fn many_senders_in_one_room_make_one_line() {
    let server = Server::start().await;
    let alice = user("alice");
    let room = server.create(&alice, CreateRoom::default()).await;
    let sends = (0..200).map(|number| server.say(&alice, &room, "x").then_number(number));
    let sent = futures_util::future::join_all(sends).await;
    let timeline = server.timeline(&alice, &room).await;
    assert_eq!(timeline.len(), 206);
    for (_, id) in sent {
        assert_eq!(
            timeline
                .iter()
                .filter(|event| event.pdu().event_id() == id)
                .count(),
            1
        );
    }
    for pair in timeline.windows(2) {
        let follows = pair[1].pdu().prev_events();
        assert_eq!(follows, [pair[0].pdu().event_id().to_owned()]);
        assert!(pair[0].history_key() < pair[1].history_key());
    }
}

/// Who finds the line full is told to come again; everybody in it is served.
#[tokio::test]
async fn a_room_has_so_many_in_its_line() {
    let server = Server::start().await;
    let alice = user("alice");
    let room = server.create(&alice, CreateRoom::default()).await;
    let live = server.rooms.live.room(server.room(&room).await.number);
    let mut line: Vec<_> = (1..QUEUE).map(|_| live.queue().unwrap()).collect();
    server.say(&alice, &room, "the last place").await;
    line.push(live.queue().unwrap());
    let refused = server.try_send(&alice, &room, message("no place")).await;
    assert!(matches!(refused, Err(RoomError::Busy)), "{refused:?}");
    let other = server.create(&alice, CreateRoom::default()).await;
    server
        .say(&alice, &other, "rooms have lines of their own")
        .await;
    drop(line);
    server.say(&alice, &room, "again").await;
}

/// Names a future's output.
trait Numbered: Future + Sized {
    fn then_number(self, number: usize) -> impl Future<Output = (usize, Self::Output)> {
        async move { (number, self.await) }
    }
}

impl<F: Future> Numbered for F {}
