//! Rooms that use a policy server, over the wire.

use homeserver_events::{
    CanonicalObject, Pdu, SigningKey, Strictness,
    canonical::{parse_object, to_string},
    sign_json,
};

use super::{
    inbound::World,
    peer::{NewEvent, Peer},
    *,
};

const SIGN: &str = "/_matrix/policy/v1/sign";

/// A world whose room names a policy server, which signs what it is asked for; a user of it is in
/// the room.
async fn policed() -> (World, Arc<Peer>) {
    let world = World::new().await;
    let policy = world.servers.add("policy.example", 7);
    let key = SigningKey::from_seed("policy_server", &[8; 32]).unwrap();
    let public = key.verify_key().to_base64();
    policy.recommends_by(key);
    let content = json!({ "via": "policy.example", "public_keys": { "ed25519": public } });
    set_policy(&world, content).await;
    // Nobody of it is there: it is not asked.
    say(&world, "before").await.ok();
    assert!(policy.asked().is_empty());
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let join = policy.event(&NewEvent {
        sender: "bot",
        kind: "m.room.member",
        state_key: Some("@bot:policy.example"),
        content: json!({ "membership": "join" }),
        auth: rules.await,
        ..world.message(&[world.last().await])
    });
    policy.send(&world.here, "join", &[&join]).await;
    world.until(&join).await;
    (world, policy)
}

async fn set_policy(world: &World, content: Value) {
    let path = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.policy",
        world.room
    );
    world
        .here
        .put(&path, Some(&world.alice.token), content)
        .await
        .ok();
}

async fn say(world: &World, body: &str) -> Answer {
    let content = json!({ "msgtype": "m.text", "body": body });
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.room.message/{body}",
        world.room
    );
    world
        .here
        .put(&path, Some(&world.alice.token), content)
        .await
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_here_is_sealed_by_the_policy_server() {
    let (world, policy) = policed().await;
    let sent = say(&world, "hello").await.ok();
    assert_eq!(policy.asked(), [SIGN]);
    let id = sent["event_id"].as_str().unwrap();
    assert_eq!(world.last().await, id);
    // The device that sent it knows it again.
    let path = format!("/_matrix/client/v3/rooms/{}/event/{id}", world.room);
    let event = world.here.get(&path, Some(&world.alice.token)).await.ok();
    assert_eq!(event["unsigned"]["transaction_id"], "hello");
    // A repetition is the same event.
    assert_eq!(say(&world, "hello").await.ok(), sent);
    assert!(policy.asked().is_empty());
    // Its refusal goes to the client as it is.
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "spam", "more": 7 });
    policy.instead(SIGN, 400, refusal.clone());
    let refused = say(&world, "spam").await;
    assert_eq!((refused.status, refused.body), (400, refusal));
    assert_eq!(world.last().await, sent["event_id"].as_str().unwrap());
    // A signature that is none, and silence, are no recommendations either.
    let wrong = json!({ "policy.example": { "ed25519:policy_server": "AAAA" } });
    policy.instead(SIGN, 200, wrong);
    say(&world, "wrong").await.refused(403, "M_FORBIDDEN");
    policy.silent(true);
    say(&world, "silent").await.refused(403, "M_FORBIDDEN");
    // The event that names the server is not shown to it.
    set_policy(&world, json!({})).await;
    policy.silent(false);
    say(&world, "free").await.ok();
}

#[tokio::test(start_paused = true)]
async fn what_the_policy_server_does_not_recommend_is_not_shown() {
    let (world, policy) = policed().await;
    let event = |body: &str, after: &ruma::EventId| {
        world.peer.event(&NewEvent {
            content: json!({ "msgtype": "m.text", "body": body }),
            ..world.message(&[after.to_owned()])
        })
    };
    let good = event("good", &world.last().await);
    world.send("1", &[&good]).await;
    world.until(&good).await;
    assert_eq!(policy.asked(), [SIGN]);
    policy.instead(
        SIGN,
        400,
        json!({ "errcode": "M_FORBIDDEN", "error": "spam" }),
    );
    let bad = event("bad", good.event_id());
    world.send("2", &[&bad]).await;
    set_policy(&world, json!({})).await;
    let free = event("free", good.event_id());
    world.send("3", &[&free]).await;
    world.until(&free).await;
    assert!(!world.is_seen(&bad).await);
}

fn levels_path(world: &World) -> String {
    let room = &world.room;
    format!("/_matrix/client/v3/rooms/{room}/state/m.room.power_levels")
}

#[tokio::test(start_paused = true)]
async fn what_replaces_a_room_is_sealed_too() {
    let (world, policy) = policed().await;
    let alice = Some(&*world.alice.token);
    let path = |what: &str| format!("/_matrix/client/v3/rooms/{}/{what}", world.room);
    let upgrade = async || {
        let body = json!({ "new_version": "11" });
        world.here.post(&path("upgrade"), alice, body).await
    };
    let tombstone = path("state/m.room.tombstone");
    policy.instead(
        SIGN,
        400,
        json!({ "errcode": "M_FORBIDDEN", "error": "stays" }),
    );
    upgrade().await.refused(400, "M_FORBIDDEN");
    world
        .here
        .get(&tombstone, alice)
        .await
        .refused(404, "M_NOT_FOUND");
    policy.recommends();
    policy.asked();
    let new = upgrade().await.ok();
    // The tombstone, and the power levels that silence the room.
    assert_eq!(policy.asked(), [SIGN, SIGN]);
    let old = world.here.get(&tombstone, alice).await.ok();
    assert_eq!(old["replacement_room"], new["replacement_room"]);
}

/// What the peer hands over, and the answer.
async fn hand_over(world: &World, step: &str, event: &Pdu, body: Value) -> Answer {
    let id = event.event_id();
    let path = format!("/_matrix/federation/{step}/{}/{id}", world.room);
    let body = body.to_string().into();
    world.peer.ask(&world.here, Method::PUT, &path, body).await
}

#[tokio::test(start_paused = true)]
async fn memberships_that_are_handed_over_are_shown_to_the_policy_server() {
    let (world, policy) = policed().await;
    let dave = world.here.register("dave").await;
    let (path, alice) = (levels_path(&world), Some(&*world.alice.token));
    let mut levels = world.here.get(&path, alice).await.ok();
    levels["invite"] = json!(0);
    world.here.put(&path, alice, levels).await.ok();
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let rules = rules.await;
    let mut of_mallory = vec![rules[0].clone(), rules[2].clone()];
    of_mallory.push(world.join.event_id().to_owned());
    let member = |sender: &'static str, target: &str, membership: &str, prev: &ruma::EventId| {
        let auth = if sender == "bob" { &rules } else { &of_mallory };
        world.peer.event(&NewEvent {
            sender,
            kind: "m.room.member",
            state_key: Some(target),
            content: json!({ "membership": membership }),
            auth: auth.clone(),
            ..world.message(&[prev.to_owned()])
        })
    };
    let last = world.last().await;
    let bob = "@bob:peer.example";
    let mallory = "@mallory:peer.example";
    let join = member("bob", bob, "join", &last);
    let leave = member("mallory", mallory, "leave", &last);
    let invite = member("mallory", &dave.user, "invite", &last);
    let json = |event: &Pdu| serde_json::from_slice::<Value>(event.json()).unwrap();
    let invited = json!({ "room_version": "11", "event": json(&invite), "invite_room_state": [] });
    policy.asked();
    policy.instead(SIGN, 400, json!({ "errcode": "M_FORBIDDEN" }));
    for (step, event, body) in [
        ("v2/send_join", &join, json(&join)),
        ("v2/send_leave", &leave, json(&leave)),
        ("v2/invite", &invite, invited.clone()),
    ] {
        let refused = hand_over(&world, step, event, body).await;
        assert_eq!(policy.asked(), [SIGN], "{step}");
        refused.refused(403, "M_FORBIDDEN");
        assert_eq!(world.last().await, last, "{step}");
    }
    policy.recommends();
    let joined = hand_over(&world, "v2/send_join", &join, json(&join))
        .await
        .ok();
    let signatures = &joined["event"]["signatures"];
    assert!(signatures["policy.example"]["ed25519:policy_server"].is_string());
    assert_eq!(policy.asked(), [SIGN]);
    assert_eq!(world.last().await, join.event_id());
    let signed = hand_over(&world, "v2/invite", &invite, invited).await.ok();
    assert!(signed["event"]["signatures"]["here.example"].is_object());
    hand_over(&world, "v2/send_leave", &leave, json(&leave))
        .await
        .ok();
    // What was taken before is not shown again.
    policy.asked();
    hand_over(&world, "v2/send_join", &join, json(&join))
        .await
        .ok();
    assert!(policy.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_joins_with_a_proof_is_in_the_room_and_not_only_invited() {
    let (world, policy) = policed().await;
    let alice = Some(&*world.alice.token);
    let dave = world.here.register("dave").await;
    let path = |what: &str| format!("/_matrix/client/v3/rooms/{}/{what}", world.room);
    let rules = json!({ "join_rule": "invite" });
    let to = path("state/m.room.join_rules");
    world.here.put(&to, alice, rules).await.ok();
    let key = SigningKey::from_seed("0", &[9; 32]).unwrap();
    let offer = json!({ "display_name": "d...", "public_key": key.verify_key().to_base64() });
    let to = path("state/m.room.third_party_invite/token");
    world.here.put(&to, alice, offer).await.ok();
    let block = json!({ "mxid": dave.user, "token": "token", "sender": world.alice.user });
    let block = block.to_string();
    let mut block: CanonicalObject = parse_object(block.as_bytes(), Strictness::Lenient).unwrap();
    sign_json(&mut block, "id.example", &key);
    let block: Value = serde_json::from_str(&to_string(&block)).unwrap();
    policy.asked();
    let proof = json!({ "third_party_signed": block });
    world
        .here
        .post(&path("join"), Some(&dave.token), proof)
        .await
        .ok();
    // Both the invite and the join are shown to it.
    assert_eq!(policy.asked(), [SIGN, SIGN]);
    let to = path(&format!("state/m.room.member/{}", dave.user));
    let member = world.here.get(&to, alice).await.ok();
    assert_eq!(member["membership"], "join");
}
