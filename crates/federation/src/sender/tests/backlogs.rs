//! Servers that were away.

use std::{sync::Arc, time::Duration};

use homeserver_rooms::MembershipChange;

use super::{
    super::owed::BACKLOG_OF_ROOM,
    support::{Answers, Here, name, user},
};

const ZED: &str = "@zed:there.example";
const THERE: &str = "there.example";

/// Time after which rows were written, if any are to be.
const WRITTEN: Duration = Duration::from_secs(3);

#[tokio::test(start_paused = true)]
async fn a_server_that_was_away_gets_everything_once_and_in_order() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    let mut said = Vec::new();
    for number in 0..500 {
        match number {
            125 => here.wire.set(THERE, Answers::Unreachable),
            375 => here.wire.set(THERE, Answers::Well),
            _ => {}
        }
        here.say(&room, &format!("m{number}")).await;
        said.push(format!("m{number}"));
    }
    let there = name(THERE);
    assert!(here.federation.health.failing(&there).is_some());
    tokio::time::sleep(WRITTEN).await;
    assert_eq!(here.rows().await, [(THERE.to_owned(), 1)]);
    // Nothing is sent before it is due, or shows that it is there.
    let requests = here.wire.requests(THERE);
    tokio::time::sleep(Duration::from_hours(3)).await;
    assert_eq!(here.wire.requests(THERE), requests);
    here.clock.advance(Duration::from_secs(5));
    here.federation.health.alive(&there);
    here.until_sent(THERE).await;
    assert_eq!(here.wire.heard(THERE), said);
    assert!(here.federation.health.failing(&there).is_none());
    tokio::time::sleep(WRITTEN).await;
    assert_eq!(here.rows().await, []);
    here.say(&room, "after").await;
    here.until_sent(THERE).await;
    assert_eq!(here.wire.heard(THERE).last().unwrap(), "after");
}

#[tokio::test(start_paused = true)]
async fn a_restart_forgets_nothing_and_repeats_nothing() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.remote_member(&room, &user("@yan:yonder.example"), "join")
        .await;
    here.say(&room, "one").await;
    here.until_sent(THERE).await;
    here.wire.set(THERE, Answers::Unreachable);
    here.say(&room, "two").await;
    here.until_sent("yonder.example").await;
    let here = here.restart().await;
    assert_eq!(here.rows().await, [(THERE.to_owned(), 1)]);
    here.say(&room, "three").await;
    here.until_sent("yonder.example").await;
    let here = here.restart().await;
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    here.say(&room, "four").await;
    for server in [THERE, "yonder.example"] {
        here.until_sent(server).await;
        assert_eq!(here.wire.heard(server), ["one", "two", "three", "four"]);
    }
    let here = here.restart().await;
    here.until_sent(THERE).await;
    assert_eq!(here.wire.heard(THERE).len(), 4);
    assert_eq!(here.rows().await, []);
}

/// A crash between what is acknowledged and what is written of it.
#[tokio::test(start_paused = true)]
async fn what_was_not_written_down_is_read_again() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.wire.set(THERE, Answers::Never);
    here.say(&room, "one").await;
    here.until(|here| here.wire.requests(THERE) == 1).await;
    here.wire.set(THERE, Answers::Well);
    // The first never ends in order; it waits for an answer still.
    let again = Here::on(Arc::clone(&here.engine), Arc::clone(&here.wire)).await;
    again.until_sent(THERE).await;
    assert_eq!(again.wire.heard(THERE), ["one"]);
}

#[tokio::test(start_paused = true)]
async fn the_rooms_of_a_backlog_are_caught_up_one_after_the_other() {
    let here = Here::start().await;
    let mut rooms = Vec::new();
    for _ in 0..3 {
        let room = here.create().await;
        here.remote_member(&room, &user(ZED), "join").await;
        rooms.push(room);
    }
    here.wire.set(THERE, Answers::Status(502));
    let mut said = Vec::new();
    for number in 0..90 {
        let body = format!("r{} m{number}", number % 3);
        here.say(&rooms[number % 3], &body).await;
        said.push(body);
    }
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    let heard = here.wire.heard(THERE);
    assert_eq!(heard.len(), said.len());
    for room in ["r0", "r1", "r2"] {
        let of_room = |all: &[String]| -> Vec<String> {
            let all = all.iter().filter(|body| body.starts_with(room));
            all.cloned().collect()
        };
        assert_eq!(of_room(&heard), of_room(&said));
    }
    // They are packed together.
    let sizes: Vec<_> = here.wire.transactions(THERE);
    let sizes: Vec<_> = sizes
        .iter()
        .map(|one| one["pdus"].as_array().unwrap().len())
        .collect();
    assert_eq!(sizes, [50, 40]);
}

#[tokio::test(start_paused = true)]
async fn of_a_very_long_backlog_the_oldest_and_the_newest_are_sent() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.wire.set(THERE, Answers::Unreachable);
    let count = BACKLOG_OF_ROOM + 200;
    for number in 0..count {
        here.say(&room, &format!("m{number}")).await;
    }
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    let heard = here.wire.heard(THERE);
    assert_eq!(heard.len(), BACKLOG_OF_ROOM + 1);
    assert_eq!(
        heard[BACKLOG_OF_ROOM - 1],
        format!("m{}", BACKLOG_OF_ROOM - 1)
    );
    assert_eq!(heard[BACKLOG_OF_ROOM], format!("m{}", count - 1));
    here.say(&room, "after").await;
    here.until_sent(THERE).await;
    assert_eq!(here.wire.heard(THERE).last().unwrap(), "after");
    assert_eq!(here.wire.heard(THERE).len(), BACKLOG_OF_ROOM + 2);
}

/// It does not get what was said while it was not in the room.
#[tokio::test(start_paused = true)]
async fn a_backlog_holds_what_was_said_while_the_server_was_in_the_room() {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.wire.set(THERE, Answers::Unreachable);
    here.say(&room, "in").await;
    here.member(&room, MembershipChange::Kick { user: user(ZED) })
        .await;
    here.say(&room, "out").await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.say(&room, "in again").await;
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    let heard = here.wire.heard(THERE);
    assert_eq!(heard, ["in", "m.room.member", "in again"]);
}
