//! Rooms that use a policy server, over the wire.

use homeserver_events::SigningKey;

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
    assert_eq!(world.last().await, sent["event_id"].as_str().unwrap());
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
