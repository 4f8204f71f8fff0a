//! Servers that are cut off from each other while both go on.

use homeserver_tests::Client;
use serde_json::json;

use super::stage::{Stage, agree, is_member, sees, user};

impl Stage {
    fn cut(&self) {
        for server in [&self.near, &self.far] {
            server.close_to_others();
        }
    }

    /// Opens the way again and waits until both sides speak with each other.
    async fn heal(&self, alice: &Client, bob: &Client, room: &str) {
        for server in [&self.near, &self.far] {
            server.open_to_others();
        }
        // What a server says makes it try again to reach the other one, and tells that one it is there.
        let said = [
            alice.say(room, "hello?").await,
            bob.say(room, "hello!").await,
        ];
        tokio::join!(sees(bob, room, &said[0]), sees(alice, room, &said[1]));
    }
}

async fn topic(client: &Client, room: &str, topic: &str) {
    let content = json!({ "topic": topic });
    client
        .set_state(room, "m.room.topic", "", content)
        .await
        .ok();
}

/// Gives the power of an administrator to somebody.
async fn promote(alice: &Client, room: &str, other: &Client) {
    let mut levels = alice.state(room, "m.room.power_levels", "").await.ok();
    levels["users"][&other.user] = 100.into();
    alice
        .set_state(room, "m.room.power_levels", "", levels)
        .await
        .ok();
}

pub(super) async fn a_partition_ends_in_one_state(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    promote(&alice, &room, &bob).await;
    topic(&alice, &room, "before").await;
    let dave = user(&stage.far, "dave").await;
    dave.join_via(&room, stage.near.name()).await.ok();
    is_member(&alice, &room, &dave, "join").await;
    agree(&[&alice, &bob], &room).await;

    stage.cut();
    let carol = user(&stage.near, "carol").await;
    carol.join(&room).await;
    for turn in 0..3 {
        topic(&alice, &room, &format!("near {turn}")).await;
        topic(&bob, &room, &format!("far {turn}")).await;
        alice.say(&room, &format!("near {turn}")).await;
        bob.say(&room, &format!("far {turn}")).await;
    }
    let erin = user(&stage.far, "erin").await;
    erin.join(&room).await;
    let closed = json!({ "join_rule": "invite" });
    alice
        .set_state(&room, "m.room.join_rules", "", closed)
        .await
        .ok();
    let kick = json!({ "user_id": dave.user });
    alice.act(&room, "kick", kick).await.ok();
    let name = json!({ "displayname": "Dave the Second", "membership": "join" });
    dave.set_state(&room, "m.room.member", &dave.user, name)
        .await
        .ok();

    stage.heal(&alice, &bob, &room).await;
    agree(&[&alice, &bob], &room).await;
    topic(&bob, &room, "after").await;
    alice.say(&room, "after").await;
    agree(&[&alice, &bob], &room).await;
    let last = alice.state(&room, "m.room.topic", "").await.ok();
    assert_eq!(last["topic"], "after");
}

pub(super) async fn who_was_banned_meanwhile_stays_out(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    promote(&alice, &room, &bob).await;
    let mallory = user(&stage.far, "mallory").await;
    mallory.join_via(&room, stage.near.name()).await.ok();
    is_member(&alice, &room, &mallory, "join").await;
    agree(&[&alice, &bob], &room).await;

    stage.cut();
    let ban = json!({ "user_id": mallory.user });
    alice.act(&room, "ban", ban).await.ok();
    topic(&bob, &room, "far").await;
    for number in 0..5 {
        mallory.say(&room, &format!("unheard {number}")).await;
    }
    stage.heal(&alice, &bob, &room).await;
    is_member(&alice, &room, &mallory, "ban").await;
    is_member(&bob, &room, &mallory, "ban").await;
    agree(&[&alice, &bob], &room).await;
    let content = json!({ "msgtype": "m.text", "body": "still here" });
    let refused = mallory.send_event(&room, "m.room.message", content).await;
    refused.expect_error(403, "M_FORBIDDEN");
}
