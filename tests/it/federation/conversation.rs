//! Long conversations: nothing is lost, nothing is out of order, whoever was away.

use homeserver_tests::{Client, Federation, Server};
use serde_json::json;

use super::stage::{Kind, bodies_of, eventually, history, is_member, keep_log, talk, user};

/// Messages that each side sends while the other one is away, and as many again with both there.
const MESSAGES: usize = 250;

/// Says things one after the other.
async fn monologue(speaker: &Client, room: &str, part: &str) {
    for number in 0..MESSAGES {
        speaker.say(room, &format!("{part} {number}")).await;
    }
}

fn expected(parts: &[&str]) -> Vec<String> {
    let part = |part: &str| (0..MESSAGES).map(move |number| format!("{part} {number}"));
    let part = |name: &&str| part(name).collect::<Vec<_>>();
    parts.iter().flat_map(part).collect()
}

/// Waits until a reader's server has all that each speaker said, in order and once.
async fn reads_all(reader: &Client, room: &str, speakers: &[&Client], parts: &[&str]) {
    let expected = expected(parts);
    let mut said = Vec::new();
    let what = format!("{} reads everything", reader.user);
    eventually(&what, async || {
        let history = history(reader, room).await;
        said = speakers
            .iter()
            .map(|speaker| bodies_of(&history, speaker))
            .collect();
        (said.iter().all(|said| said.len() >= expected.len())).then_some(())
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
    let Cast { near, far, alice, bob, room } = cast;
    far.kill().await;
    monologue(alice, room, "alone").await;
    far.restart().await;
    near.kill().await;
    monologue(bob, room, "alone").await;
    near.restart().await;
    tokio::join!(
        monologue(alice, room, "together"),
        monologue(bob, room, "together")
    );
    for reader in [&*alice, &*bob] {
        reads_all(reader, room, &[alice, bob], &["alone", "together"]).await;
    }
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
