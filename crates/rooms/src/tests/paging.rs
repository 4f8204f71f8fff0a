//! Timeline and paging back from any `prev_batch` give every visible event exactly once.

use proptest::prelude::*;
use serde_json::json;

use super::support::{Server, event, invite, user};
use crate::{
    CreateRoom, HistoryKey, MembershipChange, Place, Towards,
    history::{Gaps, LOOKED_AT_PER_PAGE},
};

#[derive(Clone, Copy, Debug)]
enum Step {
    Say,
    Visibility(&'static str),
    Invite,
    Join,
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Say),
        1 => prop::sample::select(&["shared", "joined", "invited", "world_readable"][..])
            .prop_map(Step::Visibility),
        1 => Just(Step::Invite),
        1 => Just(Step::Join),
        1 => Just(Step::Leave),
    ]
}

/// Does a step; what the rules refuse is not done.
async fn perform(server: &Server, room: &ruma::OwnedRoomId, step: Step) {
    let (alice, bob) = (user("alice"), user("bob"));
    let done = match step {
        Step::Say => Ok(server.say(&alice, room, "x").await),
        Step::Visibility(visibility) => {
            let content = json!({ "history_visibility": visibility });
            let event = event("m.room.history_visibility", Some(""), &content);
            server.try_send(&alice, room, event).await
        }
        Step::Invite => server.member(&alice, room, invite("bob")).await,
        Step::Join => server.join(&bob, room).await,
        Step::Leave => server.member(&bob, room, MembershipChange::Leave).await,
    };
    drop(done);
}

async fn check(steps: Vec<Step>, cut: usize, page: usize, reads_as: &'static str) {
    let server = Server::start().await;
    let room_id = server.create(&user("alice"), CreateRoom::default()).await;
    for step in steps {
        perform(&server, &room_id, step).await;
    }
    let reader = server.reader(&user(reads_as)).await;
    let room = server.room(&room_id).await;
    let rooms = &server.rooms;
    let whole = rooms
        .timeline(&reader, &room, 0, 500, &|_| true)
        .await
        .unwrap();
    let expected: Vec<_> = whole
        .events
        .iter()
        .map(crate::VisibleEvent::number)
        .collect();

    let slice = rooms
        .timeline(&reader, &room, 0, cut, &|_| true)
        .await
        .unwrap();
    let mut found: Vec<_> = slice
        .events
        .iter()
        .rev()
        .map(crate::VisibleEvent::number)
        .collect();
    // More happens before the client pages back.
    perform(&server, &room_id, Step::Say).await;
    let reader_later = server.reader(&user(reads_as)).await;
    let mut from = Some(rooms.token_at(slice.start));
    while let Some(token) = from {
        let token = rooms.parse_token(&token.to_string()).unwrap();
        let got = rooms
            .history(
                &reader_later,
                &room,
                Some(token),
                (Towards::Older, page),
                &|_| true,
            )
            .await
            .unwrap();
        found.extend(got.events.iter().map(crate::VisibleEvent::number));
        from = got.next;
    }
    found.reverse();
    assert_eq!(found, expected);

    // Forwards from the very start, everything in the same order.
    let mut forwards = Vec::new();
    let mut from = None;
    loop {
        let got = rooms
            .history(&reader, &room, from, (Towards::Newer, page), &|_| true)
            .await
            .unwrap();
        forwards.extend(got.events.iter().map(crate::VisibleEvent::number));
        from = got.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(forwards, expected);
}

proptest! {
    #[test]
    fn every_visible_event_is_told_once(
        steps in prop::collection::vec(step(), 0..25),
        cut in 1..30_usize,
        page in 1..7_usize,
        reads_as in prop::sample::select(&["alice", "bob", "nobody"][..]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(steps, cut, page, reads_as));
    }
}

#[tokio::test]
async fn visibility_follows_the_state_at_the_event() {
    let server = Server::start().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let room = server.create(&alice, CreateRoom::default()).await;
    let shared = server.say(&alice, &room, "shared").await;
    let joined = json!({ "history_visibility": "joined" });
    let joined = event("m.room.history_visibility", Some(""), &joined);
    server.try_send(&alice, &room, joined).await.unwrap();
    let hidden = server.say(&alice, &room, "hidden").await;
    server.member(&alice, &room, invite("bob")).await.unwrap();
    assert!(server.timeline(&user("nobody"), &room).await.is_empty());
    server.join(&bob, &room).await.unwrap();
    let seen = server.say(&alice, &room, "seen").await;
    let left = server
        .member(&bob, &room, MembershipChange::Leave)
        .await
        .unwrap();
    let later = server.say(&alice, &room, "later").await;
    let found = server.room(&room).await;
    let reader = server.reader(&bob).await;
    for (id, expected) in [
        (shared, true),
        (hidden, false),
        (seen, true),
        (left, true),
        (later, false),
    ] {
        let event = server
            .rooms
            .visible_by_id(&reader, &found, &id)
            .await
            .unwrap();
        assert_eq!(event.is_some(), expected, "{id}");
    }
    let state = server
        .rooms
        .state_root_for(&reader, &found)
        .await
        .unwrap()
        .unwrap();
    let mine = server
        .rooms
        .state_value(&found, state.root, "m.room.member", bob.as_str())
        .await;
    let mine = server
        .rooms
        .state_events(&state, &[mine.unwrap().unwrap()])
        .await
        .unwrap();
    assert!(mine[0].pdu().content_str().contains("leave"));
    let stranger = server.reader(&user("nobody")).await;
    assert!(
        server
            .rooms
            .state_root_for(&stranger, &found)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn an_old_token_passes_over_what_came_after_it() {
    let server = Server::start().await;
    let alice = user("alice");
    let room_id = server.create(&alice, CreateRoom::default()).await;
    let old = server.say(&alice, &room_id, "old").await;
    let token = server.rooms.token_at(server.rooms.durable());
    for number in 0..40 {
        server.say(&alice, &room_id, &number.to_string()).await;
    }
    let (reader, room) = (server.reader(&alice).await, server.room(&room_id).await);
    // It begins right above what had arrived, however much came later.
    let begin = server
        .rooms
        .below_bound(&room, token.bound, &Gaps::new())
        .await
        .unwrap();
    let shown = server
        .rooms
        .visible_by_id(&reader, &room, &old)
        .await
        .unwrap();
    let above = HistoryKey {
        height: shown.unwrap().history_key().height + 1,
        live: false,
        tie: 0,
    };
    assert_eq!(begin, Place::Before(above));
    // Fewer than are passed over, and fewer than are read at once.
    for limit in [1, 15] {
        let span = (Towards::Older, limit);
        let rooms = &server.rooms;
        let page = rooms.history(&reader, &room, Some(token), span, &|_| true);
        let page = page.await.unwrap();
        assert_eq!(page.events[0].pdu().event_id(), old);
    }
}

/// A page stops after so many events, also where none of them is shown, and says where to go on.
#[tokio::test]
async fn a_page_among_hidden_events_is_bounded_and_goes_on() {
    let server = Server::start().await;
    let room_id = server.create(&user("alice"), CreateRoom::default()).await;
    for number in 0..LOOKED_AT_PER_PAGE + 200 {
        let event = event("org.example.noise", None, &json!({ "number": number }));
        let sent = server.try_send(&user("alice"), &room_id, event).await;
        sent.unwrap();
    }
    let reader = server.reader(&user("alice")).await;
    let room = server.room(&room_id).await;
    let looked_at = std::sync::atomic::AtomicUsize::new(0);
    let wanted = |event: &crate::VisibleEvent| {
        looked_at.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        event.pdu().event_type() == "m.room.create"
    };
    for towards in [Towards::Older, Towards::Newer] {
        let (mut from, mut found, mut pages) = (None, 0, 0);
        loop {
            looked_at.store(0, std::sync::atomic::Ordering::Relaxed);
            let page = server
                .rooms
                .history(&reader, &room, from, (towards, 10), &wanted);
            let page = page.await.unwrap();
            assert!(looked_at.load(std::sync::atomic::Ordering::Relaxed) <= LOOKED_AT_PER_PAGE);
            (found, pages) = (found + page.events.len(), pages + 1);
            let Some(next) = page.next else { break };
            from = Some(next);
        }
        assert_eq!((found, pages), (1, 2), "{towards:?}");
    }
}
