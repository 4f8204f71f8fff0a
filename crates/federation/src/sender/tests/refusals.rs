//! Servers that do not want what they are sent.

use std::time::Duration;

use super::support::{Answers, Here, name, user};

const THERE: &str = "there.example";

async fn shared() -> (Here, ruma::OwnedRoomId) {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user("@zed:there.example"), "join")
        .await;
    (here, room)
}

#[tokio::test(start_paused = true)]
async fn one_event_that_is_refused_is_given_up_and_no_other() {
    let (here, room) = shared().await;
    // They wait together, so that there is something to be halved.
    here.wire.set(THERE, Answers::Unreachable);
    let mut wanted = Vec::new();
    for number in 0..130 {
        let is_bad = [3, 77, 78, 129].contains(&number);
        let body = if is_bad {
            format!("poison {number}")
        } else {
            format!("m{number}")
        };
        here.say(&room, &body).await;
        if !is_bad {
            wanted.push(body);
        }
    }
    here.wire.set(THERE, Answers::Refuses(vec!["poison"]));
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    assert_eq!(here.wire.heard(THERE), wanted);
    assert!(
        here.wire.requests(THERE) < 60,
        "{}",
        here.wire.requests(THERE)
    );
    here.say(&room, "after").await;
    here.until_sent(THERE).await;
    assert_eq!(here.wire.heard(THERE).last().unwrap(), "after");
}

#[tokio::test(start_paused = true)]
async fn errors_about_events_are_no_reason_to_send_them_again() {
    let (here, room) = shared().await;
    here.wire.set(THERE, Answers::RefusesEvents);
    here.say(&room, "one").await;
    here.until_sent(THERE).await;
    here.say(&room, "two").await;
    here.until_sent(THERE).await;
    tokio::time::sleep(Duration::from_hours(3)).await;
    assert_eq!(here.wire.requests(THERE), 2);
}

#[tokio::test(start_paused = true)]
async fn who_wants_nothing_of_us_is_asked_seldom_and_gets_it_when_that_is_over() {
    let (here, room) = shared().await;
    here.wire.set(THERE, Answers::Status(403));
    here.say(&room, "one").await;
    here.say(&room, "two").await;
    tokio::time::sleep(Duration::from_hours(24)).await;
    let requests = here.wire.requests(THERE);
    assert!((20..50).contains(&requests), "{requests}");
    here.wire.set(THERE, Answers::Well);
    tokio::time::sleep(Duration::from_hours(2)).await;
    assert_eq!(here.wire.heard(THERE), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn who_refuses_everything_is_asked_less_and_less() {
    let (here, room) = shared().await;
    here.wire.set(THERE, Answers::Status(400));
    for number in 0..40 {
        here.say(&room, &format!("m{number}")).await;
    }
    tokio::time::sleep(Duration::from_hours(24)).await;
    let requests = here.wire.requests(THERE);
    assert!(requests < 60, "{requests}");
    assert!(here.federation.health.failing(&name(THERE)).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_well_is_sent_the_same_again() {
    for answers in [Answers::Status(500), Answers::Status(429)] {
        let (here, room) = shared().await;
        here.wire.set(THERE, answers.clone());
        here.say(&room, "one").await;
        let there = name(THERE);
        here.until(|here| here.federation.health.failing(&there).is_some())
            .await;
        let requests = here.wire.requests(THERE);
        tokio::time::sleep(Duration::from_hours(24)).await;
        assert_eq!(here.wire.requests(THERE), requests, "{answers:?}");
        here.wire.set(THERE, Answers::Well);
        here.clock.advance(Duration::from_secs(2));
        here.until_sent(THERE).await;
        assert_eq!(here.wire.heard(THERE), ["one"], "{answers:?}");
    }
}
