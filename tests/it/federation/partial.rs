//! Rooms of many members, which servers join with part of the state.

use futures_util::{StreamExt as _, stream};
use homeserver_tests::encode;
use serde_json::json;

use super::stage::{Stage, eventually, is_member, sees, state_of, user};

/// Members before the join.
const CROWD: usize = 150;
/// Of them are made at the same time.
const AT_ONCE: usize = 8;

pub(super) async fn a_room_with_a_crowd_is_used_at_once_and_known_whole_later(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let more = json!({ "preset": "public_chat", "name": "Crowd" });
    let room = stage.room(&alice, more).await;
    let crowd: Vec<_> = stream::iter(0..CROWD)
        .map(|_| async {
            let member = user(&stage.near, "member").await;
            member.join(&room).await;
            member
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;

    bob.join_via(&room, stage.near.name()).await.ok();
    let name = bob.state(&room, "m.room.name", "").await.ok();
    assert_eq!(name["name"], "Crowd");
    let said = bob.say(&room, "I know nobody").await;
    assert_eq!(
        sees(&alice, &room, &said).await["content"]["body"],
        "I know nobody"
    );
    let said = crowd[CROWD / 2].say(&room, "you know me now").await;
    sees(&bob, &room, &said).await;

    let path = format!("/_matrix/client/v3/rooms/{}/joined_members", encode(&room));
    eventually("everybody is known", async || {
        let members = bob.get(&path).await;
        let joined = members.body["joined"].as_object()?.len();
        (members.status == 200 && joined == CROWD + 2).then_some(())
    })
    .await;
    eventually("both have one state", async || {
        let (one, other) = tokio::join!(state_of(&alice, &room), state_of(&bob, &room));
        (one == other).then_some(())
    })
    .await;
    let leaver = &crowd[0];
    leaver.act(&room, "leave", json!({})).await.ok();
    is_member(&bob, &room, leaver, "leave").await;
}
