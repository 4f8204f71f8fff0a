//! Long conversations: nothing is lost, nothing is out of order, whoever was away.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use homeserver_tests::{Client, Federation, Server};
use serde_json::json;
use tokio::time::Instant;

use super::stage::{
    Kind, bodies_of, eventually_within, history, is_member, judge, sees, talk, user,
};

/// Messages that each side sends while the other one is away, and as many again with both there.
const MESSAGES: usize = 250;

/// A long history is fetched within this time. Synapse takes seconds for a page.
const HISTORY_PATIENCE: Duration = Duration::from_mins(3);

/// Says things one after the other; gives the last event.
async fn monologue(speaker: &Client, room: &str, part: &str) -> String {
    let mut last = String::new();
    for number in 0..MESSAGES {
        last = speaker.say(room, &format!("{part} {number}")).await;
    }
    last
}

fn expected(parts: &[&str]) -> Vec<String> {
    let mut expected = Vec::new();
    for part in parts {
        expected.extend((0..MESSAGES).map(|number| format!("{part} {number}")));
    }
    expected
}

/// Waits until a reader's server has all that each speaker said, in order and once.
async fn reads_all(reader: &Client, room: &str, speakers: &[&Client], parts: &[&str]) {
    let expected = expected(parts);
    let mut said = Vec::new();
    let what = format!("{} reads everything", reader.user);
    eventually_within(HISTORY_PATIENCE, &what, async || {
        let history = history(reader, room).await;
        let of = |speaker: &&Client| bodies_of(&history, speaker);
        said = speakers.iter().map(of).collect();
        for said in &mut said {
            said.retain(|body| body != "a word");
        }
        let all = said.iter().all(|said| said.len() >= expected.len());
        all.then_some(())
    })
    .await;
    for said in said {
        assert_eq!(said, expected);
    }
}

struct Cast {
    near: Server,
    far: Server,
    alice: Client,
    bob: Client,
    room: String,
}

/// Each server is down while the other one talks; then both talk at once.
async fn with_outages(cast: &mut Cast) {
    let Cast {
        near,
        far,
        alice,
        bob,
        room,
    } = cast;
    far.kill().await;
    let last = monologue(alice, room, "alone").await;
    far.restart().await;
    is_back(bob, alice, room, &last).await;
    near.kill().await;
    let last = monologue(bob, room, "alone").await;
    near.restart().await;
    is_back(alice, bob, room, &last).await;
    let (hers, his) = tokio::join!(
        monologue(alice, room, "together"),
        monologue(bob, room, "together")
    );
    tokio::join!(sees(alice, room, &his), sees(bob, room, &hers));
    for reader in [&*alice, &*bob] {
        reads_all(reader, room, &[alice, bob], &["alone", "together"]).await;
    }
}

/// Waits until somebody who was away has the last thing that was said. A server tries less and less
/// often to reach another one, until that one says something.
async fn is_back(who: &Client, other: &Client, room: &str, last: &str) {
    let hello = who.send_event(room, "org.example.hello", json!({})).await;
    let hello = hello.text("event_id");
    tokio::join!(sees(other, room, &hello), sees(who, room, last));
}

/// A third server joins through either, pages back to the first message, and all talk.
async fn joined_by_a_third(cast: &Cast, third: &Server) {
    for (through, inviter) in [(&cast.near, &cast.alice), (&cast.far, &cast.bob)] {
        let carol = user(third, "carol").await;
        carol.join_via(&cast.room, through.name()).await.ok();
        is_member(inviter, &cast.room, &carol, "join").await;
        let (alice, bob) = (&cast.alice, &cast.bob);
        reads_all(&carol, &cast.room, &[alice, bob], &["alone", "together"]).await;
        talk(alice, &carol, &cast.room).await;
        talk(bob, &carol, &cast.room).await;
        carol.act(&cast.room, "leave", json!({})).await.ok();
        for reader in [alice, bob] {
            is_member(reader, &cast.room, &carol, "leave").await;
        }
    }
}

async fn conversation(near: Kind, far: Kind, third: Kind) {
    let federation = Federation::new();
    let (near, far, third) = tokio::join!(
        near.start(&federation),
        far.start(&federation),
        third.start(&federation)
    );
    let (alice, bob) = (user(&near, "alice").await, user(&far, "bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join_via(&room, near.name()).await.ok();
    is_member(&alice, &room, &bob, "join").await;
    let mut cast = Cast {
        near,
        far,
        alice,
        bob,
        room,
    };
    let played = AssertUnwindSafe(async {
        let begun = Instant::now();
        with_outages(&mut cast).await;
        println!("a conversation with outages: {:.1?}", begun.elapsed());
        joined_by_a_third(&cast, &third).await;
        println!("joined by a third: {:.1?}", begun.elapsed());
    });
    let well = played.catch_unwind().await.is_ok();
    judge(&[&cast.near, &cast.far, &third], well);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ours_and_synapse_joined_by_ours() {
    conversation(Kind::Ours, Kind::Synapse, Kind::Ours).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_of_ours_joined_by_synapse() {
    conversation(Kind::Ours, Kind::Ours, Kind::Synapse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_of_ours() {
    conversation(Kind::Ours, Kind::Ours, Kind::Ours).await;
}
