//! Who is in a room, across servers.

use homeserver_tests::{Client, encode};
use serde_json::{Value, json};

use super::stage::{
    Feed, Stage, bodies_of, eventually, history, is_member, sees, talk, unique, user,
};

pub(super) async fn a_room_is_joined_by_its_alias(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let local = unique("alias");
    let more = json!({ "preset": "public_chat", "name": "Open", "room_alias_name": local });
    let room = stage.room(&alice, more).await;
    alice.say(&room, "before").await;
    let alias = format!("#{local}:{}", stage.near.name());
    let joined = bob.join_via(&alias, stage.near.name()).await;
    assert_eq!(joined.text("room_id"), room);
    let name = bob.state(&room, "m.room.name", "").await.ok();
    assert_eq!(name["name"], "Open");
    is_member(&alice, &room, &bob, "join").await;
    talk(&alice, &bob, &room).await;
    assert_eq!(
        bodies_of(&history(&bob, &room).await, &alice)[0],
        "before",
        "who joins pages back"
    );
    // The server is in the room already: no handshake.
    let carol = user(&stage.far, "carol").await;
    carol.join(&room).await;
    is_member(&alice, &room, &carol, "join").await;
    for (leaver, left) in [(&bob, "leave"), (&carol, "leave")] {
        leaver.act(&room, "leave", json!({})).await.ok();
        is_member(&alice, &room, leaver, left).await;
    }
}

pub(super) async fn an_invited_user_joins_or_rejects(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let more = json!({ "preset": "private_chat", "name": "Secret" });
    let room = stage.room(&alice, more).await;
    let (carol, dave) = (
        user(&stage.far, "carol").await,
        user(&stage.far, "dave").await,
    );

    // Of a server that is not in the room.
    invite(&alice, &room, &carol).await;
    carol.act(&room, "leave", json!({})).await.ok();
    is_member(&alice, &room, &carol, "leave").await;
    let mut dave_hears = invite(&alice, &room, &dave).await;
    alice
        .act(&room, "kick", json!({ "user_id": dave.user }))
        .await
        .ok();
    dave_hears.room("leave", &room).await;

    invite(&alice, &room, &bob).await;
    bob.join(&room).await;
    is_member(&alice, &room, &bob, "join").await;
    talk(&alice, &bob, &room).await;

    // Of a server that is in it. (Who has rejected an invite before cannot join there with Synapse.)
    let frank = user(&stage.far, "frank").await;
    invite(&alice, &room, &frank).await;
    frank.join(&room).await;
    is_member(&alice, &room, &frank, "join").await;
    // From the other side.
    let erin = user(&stage.near, "erin").await;
    invite(&bob, &room, &erin).await;
    erin.act(&room, "leave", json!({})).await.ok();
    is_member(&bob, &room, &erin, "leave").await;
}

/// Invites somebody and waits until they hear of it, with what the room is called.
async fn invite(alice: &Client, room: &str, guest: &Client) -> Feed {
    let mut feed = Feed::of(guest).await;
    feed.forget();
    let body = json!({ "user_id": guest.user, "reason": "come" });
    alice.act(room, "invite", body).await.ok();
    let invite = feed.room("invite", room).await;
    let events = invite["invite_state"]["events"].as_array().unwrap();
    let find = |kind: &str, key: &str| {
        let mut all = events.iter();
        let found = all.find(|event| event["type"] == kind && event["state_key"] == key);
        found.unwrap_or_else(|| panic!("no {kind} in {invite}"))
    };
    assert_eq!(find("m.room.name", "")["content"]["name"], "Secret");
    let member = find("m.room.member", &guest.user);
    assert_eq!(member["sender"], alice.user);
    assert_eq!(member["content"]["membership"], "invite");
    feed
}

async fn knock(guest: &Client, room: &str, server: &str) -> Feed {
    let (encoded, via) = (encode(room), encode(server));
    let path = format!("/_matrix/client/v3/knock/{encoded}?via={via}&server_name={via}");
    let body = json!({ "reason": "let me in" });
    guest.post(&path, body).await.ok();
    let mut feed = Feed::of(guest).await;
    let knocked = feed.room("knock", room).await;
    let events = knocked["knock_state"]["events"].as_array().unwrap();
    assert!(
        events
            .iter()
            .any(|event| event["content"]["name"] == "Closed"),
        "{knocked}"
    );
    feed.forget();
    feed
}

pub(super) async fn a_knock_is_answered(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let rule = json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } });
    let more = json!({ "preset": "private_chat", "name": "Closed", "initial_state": [rule] });
    let room = stage.room(&alice, more).await;
    let near = stage.near.name();
    let (carol, dave) = (
        user(&stage.far, "carol").await,
        user(&stage.far, "dave").await,
    );

    knock(&carol, &room, near).await;
    is_member(&alice, &room, &carol, "knock").await;
    carol.act(&room, "leave", json!({})).await.ok();
    // Synapse takes a knock back at home only.
    if stage.far.is_ours() {
        is_member(&alice, &room, &carol, "leave").await;
    }

    let mut dave_hears = knock(&dave, &room, near).await;
    is_member(&alice, &room, &dave, "knock").await;
    let body = json!({ "user_id": dave.user });
    alice.act(&room, "kick", body).await.ok();
    // Synapse neither tells nor hears it.
    if stage.near.is_ours() && stage.far.is_ours() {
        dave_hears.room("leave", &room).await;
    }

    let mut bob_hears = knock(&bob, &room, near).await;
    is_member(&alice, &room, &bob, "knock").await;
    let body = json!({ "user_id": bob.user });
    alice.act(&room, "invite", body).await.ok();
    bob_hears.room("invite", &room).await;
    bob.join(&room).await;
    is_member(&alice, &room, &bob, "join").await;
    talk(&alice, &bob, &room).await;
}

pub(super) async fn a_restricted_room_is_joined_by_members_of_another(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let club = stage.shared_room(&alice, &bob).await;
    let content = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": club }],
    });
    let rule = json!({ "type": "m.room.join_rules", "state_key": "", "content": content });
    let more = json!({ "preset": "private_chat", "initial_state": [rule] });
    let room = stage.room(&alice, more).await;

    let carol = user(&stage.far, "carol").await;
    let refused = carol.join_via(&room, stage.near.name()).await;
    refused.expect_error(403, "M_FORBIDDEN");
    bob.join_via(&room, stage.near.name()).await.ok();
    is_member(&alice, &room, &bob, "join").await;
    let member = alice.state(&room, "m.room.member", &bob.user).await.ok();
    assert_eq!(member["join_authorised_via_users_server"], alice.user);
    talk(&alice, &bob, &room).await;
    // Now the far server is in the room, and nobody of it may invite.
    carol.join_via(&club, stage.near.name()).await.ok();
    carol.join_via(&room, stage.near.name()).await.ok();
    is_member(&alice, &room, &carol, "join").await;
}

pub(super) async fn who_is_kicked_or_banned_is_gone(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    let carol = user(&stage.far, "carol").await;
    carol.join_via(&room, stage.near.name()).await.ok();
    is_member(&alice, &room, &carol, "join").await;
    let mut bob_hears = Feed::of(&bob).await;
    let body = json!({ "user_id": bob.user, "reason": "noise" });

    alice.act(&room, "kick", body.clone()).await.ok();
    bob_hears.room("leave", &room).await;
    is_member(&carol, &room, &bob, "leave").await;
    bob.join_via(&room, stage.near.name()).await.ok();
    is_member(&alice, &room, &bob, "join").await;

    bob_hears.forget();
    alice.act(&room, "ban", body.clone()).await.ok();
    bob_hears.room("leave", &room).await;
    is_member(&carol, &room, &bob, "ban").await;
    let refused = bob.join_via(&room, stage.near.name()).await;
    // Synapse calls it M_BAD_STATE.
    assert_eq!(refused.status, 403, "{}", refused.body);
    alice.act(&room, "unban", body).await.ok();
    is_member(&carol, &room, &bob, "leave").await;
    bob.join_via(&room, stage.near.name()).await.ok();
    talk(&alice, &bob, &room).await;
}

pub(super) async fn who_comes_back_reads_what_was_missed(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    bob.act(&room, "leave", json!({})).await.ok();
    is_member(&alice, &room, &bob, "leave").await;
    let missed: Vec<String> = (0..30).map(|number| format!("missed {number}")).collect();
    for text in &missed {
        alice.say(&room, text).await;
    }
    bob.join_via(&room, stage.near.name()).await.ok();
    let read = eventually("bob reads what he missed", async || {
        let said = bodies_of(&history(&bob, &room).await, &alice);
        (said.len() >= missed.len()).then_some(said)
    });
    assert_eq!(read.await, missed);
}

pub(super) async fn an_upgraded_room_is_followed(stage: Stage) {
    let (alice, bob) = stage.users().await;
    let room = stage.shared_room(&alice, &bob).await;
    let new = if stage.version == "12" { "11" } else { "12" };
    let body = json!({ "new_version": new });
    let next = alice
        .act(&room, "upgrade", body)
        .await
        .text("replacement_room");
    let tombstone: Value = eventually("bob sees the tombstone", async || {
        let answer = bob.state(&room, "m.room.tombstone", "").await;
        (answer.status == 200).then_some(answer.body)
    })
    .await;
    assert_eq!(tombstone["replacement_room"], next);
    bob.join_via(&next, stage.near.name()).await.ok();
    is_member(&alice, &next, &bob, "join").await;
    let create = bob.state(&next, "m.room.create", "").await.ok();
    assert_eq!(create["predecessor"]["room_id"], room);
    let event = alice.say(&next, "moved").await;
    sees(&bob, &next, &event).await;
}
