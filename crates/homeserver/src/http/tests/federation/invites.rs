//! Users of this server invite those of others, whose servers sign or do not.

use super::{
    peer::{Peer, taking_invites},
    resident::{World, client_path},
    *,
};

/// A router whose invites are answered once there is a peer to sign them.
#[derive(Clone, Default)]
struct Signing(Arc<Mutex<Option<Arc<Peer>>>>);

impl Signing {
    /// The invite, signed as it should be.
    fn sign(&self, event: &Value, version: &str) -> Value {
        let peer = self.0.lock().clone().unwrap();
        peer.co_sign(event, version)
    }
}

/// A world whose peer answers invites by what `answer` makes of the body of a request.
async fn world(
    endpoint: &'static str,
    answer: impl Fn(&Signing, Value) -> (u16, Value) + Clone + Send + Sync + 'static,
) -> World {
    let signing = Signing::default();
    let own = signing.clone();
    let router = taking_invites(endpoint, move |body| answer(&own, body));
    let world = World::with(router).await;
    let (name, key) = (world.peer.name.clone(), Arc::clone(&world.peer.key));
    *signing.0.lock() = Some(Arc::new(Peer { name, key }));
    world
}

/// Signs what is asked.
fn willing(signing: &Signing, body: &Value) -> (u16, Value) {
    let version = body["room_version"].as_str().unwrap();
    // The state shows the room, by whole events of it.
    let state = body["invite_room_state"].as_array().unwrap();
    assert_eq!(state[0]["type"], "m.room.create");
    assert!(state.iter().all(|event| event["signatures"].is_object()));
    (
        200,
        json!({ "event": signing.sign(&body["event"], version) }),
    )
}

async fn invite(world: &World, room: &str, user: &str) -> Answer {
    world
        .do_in(room, "invite", json!({ "user_id": user }))
        .await
}

#[tokio::test]
async fn an_invite_is_signed_by_the_other_server_before_it_is_in_the_room() {
    for version in ["1", "6", "11", "12"] {
        let world = world("v2", |signing, body| willing(signing, &body)).await;
        let room = world.room(json!({ "room_version": version })).await;
        let bob = world.peer.user("bob");
        invite(&world, &room, &bob).await.ok();
        let member = world.state(&room, "m.room.member", &bob).await;
        assert_eq!(member["membership"], "invite", "{version}");
        // Who is invited may join.
        let answer = world.join(&room, &bob).await;
        let state = answer["state"].as_array().unwrap();
        let invited = state
            .iter()
            .find(|event| event["state_key"] == bob.as_str());
        let signatures = &invited.unwrap()["signatures"];
        assert!(signatures["peer.example"].is_object(), "{version}");
        assert!(signatures["here.example"].is_object(), "{version}");
    }
}

#[tokio::test]
async fn a_server_that_knows_the_old_form_only_is_asked_in_it() {
    let world = world("v1", |signing, mut event| {
        let unsigned = event.as_object_mut().unwrap().remove("unsigned").unwrap();
        assert_eq!(unsigned["invite_room_state"][0]["type"], "m.room.create");
        (200, json!([200, { "event": signing.sign(&event, "2") }]))
    })
    .await;
    let old = world.room(json!({ "room_version": "2" })).await;
    let bob = world.peer.user("bob");
    invite(&world, &old, &bob).await.ok();
    let member = world.state(&old, "m.room.member", &bob).await;
    assert_eq!(member["membership"], "invite");
    let new = world.room(json!({ "room_version": "10" })).await;
    assert_eq!(invite(&world, &new, &bob).await.status, 502);
}

#[tokio::test]
async fn what_the_other_server_refuses_is_told_and_nobody_is_invited() {
    let cases = [
        (
            403,
            json!({ "errcode": "M_FORBIDDEN", "error": "no" }),
            403,
            "M_FORBIDDEN",
        ),
        (
            403,
            json!({ "errcode": "M_INVITE_BLOCKED" }),
            403,
            "M_INVITE_BLOCKED",
        ),
        (
            400,
            json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION" }),
            400,
            "M_UNSUPPORTED_ROOM_VERSION",
        ),
        (
            400,
            json!({ "errcode": "M_INVALID_PARAM" }),
            502,
            "M_UNKNOWN",
        ),
        (500, json!({}), 502, "M_UNKNOWN"),
        (200, json!({}), 502, "M_UNKNOWN"),
        (200, json!({ "event": {} }), 502, "M_UNKNOWN"),
    ];
    for (status, body, told, code) in cases {
        let answered = body.clone();
        let world = world("v2", move |_, _| (status, answered.clone())).await;
        let room = world.room(json!({})).await;
        let bob = world.peer.user("bob");
        let answer = invite(&world, &room, &bob).await;
        assert_eq!(answer.status, told, "{body}");
        answer.refused(told, code);
        let member = world.state(&room, "m.room.member", &bob).await;
        assert_eq!(member["errcode"], "M_NOT_FOUND", "{body}");
    }
}

#[tokio::test]
async fn of_the_answer_only_a_right_signature_is_taken() {
    type Change = fn(&Signing, Value) -> Value;
    let unsigned: Change = |_, event| event;
    let another: Change = |signing, mut event| {
        event["content"]["displayname"] = json!("Mallory");
        let peer = signing.0.lock().clone().unwrap();
        peer.seal(&event, "11").1
    };
    let forged: Change = |_, mut event| {
        let own = event["signatures"]["here.example"].clone();
        event["signatures"]["peer.example"] = own;
        event
    };
    for change in [unsigned, another, forged] {
        let world = world("v2", move |signing, body| {
            (
                200,
                json!({ "event": change(signing, body["event"].clone()) }),
            )
        })
        .await;
        let room = world.room(json!({ "room_version": "11" })).await;
        let bob = world.peer.user("bob");
        invite(&world, &room, &bob).await.refused(502, "M_UNKNOWN");
        let member = world.state(&room, "m.room.member", &bob).await;
        assert_eq!(member["errcode"], "M_NOT_FOUND");
    }
    // Beside its signature it adds other things, which stay behind.
    let world = world("v2", |signing, body| {
        let mut event = signing.sign(&body["event"], "11");
        event["unsigned"] = json!({ "age": 1 });
        event["signatures"]["else.example"] = json!({ "ed25519:x": "abc" });
        (200, json!({ "event": event }))
    })
    .await;
    let room = world.room(json!({ "room_version": "11" })).await;
    let bob = world.peer.user("bob");
    invite(&world, &room, &bob).await.ok();
    let joined = world.join(&room, &bob).await;
    let state = joined["state"].as_array().unwrap();
    let invited = state
        .iter()
        .find(|event| event["state_key"] == bob.as_str());
    let signatures = invited.unwrap()["signatures"].as_object().unwrap();
    let servers: Vec<_> = signatures.keys().collect();
    assert_eq!(servers, ["here.example", "peer.example"]);
}

#[tokio::test]
async fn a_new_room_is_there_whoever_can_be_invited() {
    let world = world("v2", |signing, body| willing(signing, &body)).await;
    let (bob, gone) = (world.peer.user("bob"), "@carol:gone.example");
    let dave = world.here.register("dave").await;
    let room = world
        .room(json!({
            "invite": [bob, gone, dave.user], "is_direct": true,
            "preset": "trusted_private_chat", "room_version": "11",
        }))
        .await;
    let member = world.state(&room, "m.room.member", &bob).await;
    assert_eq!(
        (&member["membership"], &member["is_direct"]),
        (&json!("invite"), &json!(true))
    );
    let member = world.state(&room, "m.room.member", &dave.user).await;
    assert_eq!(member["membership"], "invite");
    let member = world.state(&room, "m.room.member", gone).await;
    assert_eq!(member["errcode"], "M_NOT_FOUND");
    let levels = world.state(&room, "m.room.power_levels", "").await;
    assert_eq!(levels["users"][&bob], 100);
    // By the state endpoint too.
    let eve = world.peer.user("eve");
    let content = json!({ "membership": "invite" });
    world
        .set_state(&room, "m.room.member", &eve, content.clone())
        .await
        .ok();
    let member = world.state(&room, "m.room.member", &eve).await;
    assert_eq!(member["membership"], "invite");
    world
        .set_state(&room, "m.room.member", gone, content)
        .await
        .refused(502, "M_UNKNOWN");
    // Who may not invite does not have others asked.
    let zoe = world.peer.user("zoe");
    let path = format!("{}/invite", client_path(&room));
    let answer = world
        .here
        .post(&path, Some(&dave.token), json!({ "user_id": zoe }))
        .await;
    answer.refused(403, "M_FORBIDDEN");
}

/// CVE-2023-32323: state as large as may be makes an invite that is still sent, and after it all the
/// rest.
#[tokio::test]
async fn a_room_with_large_state_is_invited_to_and_sent_from() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let world = world("v2", move |signing, body| {
        noted.lock().push(body.clone());
        willing(signing, &body)
    })
    .await;
    let room = world
        .room(json!({ "room_version": "11", "preset": "public_chat" }))
        .await;
    let large = "x".repeat(60_000);
    for (kind, field) in [
        ("m.room.name", "name"),
        ("m.room.topic", "topic"),
        ("m.room.avatar", "url"),
        ("m.room.encryption", "algorithm"),
        ("m.room.some", "text"),
    ] {
        let content = json!({ field: large });
        world.set_state(&room, kind, "", content).await.ok();
    }
    for number in 0..200 {
        let key = number.to_string();
        let content = json!({ "text": "x".repeat(1_000) });
        world
            .set_state(&room, "m.room.some", &key, content)
            .await
            .ok();
    }
    let bob = world.peer.user("bob");
    invite(&world, &room, &bob).await.ok();
    let body = seen.lock().pop().unwrap();
    assert!(body.to_string().len() < 10 * 65_536);
    let state = body["invite_room_state"].as_array().unwrap();
    let kinds: Vec<_> = state
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert!(kinds.contains(&"m.room.create") && kinds.contains(&"m.room.join_rules"));
    assert!(
        kinds.len() <= 10 && !kinds.contains(&"m.room.some"),
        "{kinds:?}"
    );
    let member = world.state(&room, "m.room.member", &bob).await;
    assert_eq!(member["membership"], "invite");

    // Between two of ours: it is shown, the room is joined, and what is said there arrives.
    let there = super::join(&world.network, "there.example").await;
    let zoe = there.register("zoe").await;
    invite(&world, &room, &zoe.user).await.ok();
    let sync = "/_matrix/client/v3/sync?timeout=0";
    let told = there.get(sync, Some(&zoe.token)).await.ok();
    let shown = &told["rooms"]["invite"][&room]["invite_state"]["events"];
    assert!(
        shown.as_array().is_some_and(|events| !events.is_empty()),
        "{shown}"
    );
    let path = format!("{}/join", client_path(&room));
    there.post(&path, Some(&zoe.token), json!({})).await.ok();
    let path = format!("{}/send/m.room.message/1", client_path(&room));
    let said = json!({ "msgtype": "m.text", "body": "hello" });
    let said = world
        .here
        .put(&path, Some(&world.alice.token), said)
        .await
        .ok();
    let id = said["event_id"].as_str().unwrap();
    let path = format!(
        "{}/event/{}",
        client_path(&room),
        super::resident::encode(id)
    );
    let look = async {
        while there.get(&path, Some(&zoe.token)).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let patience = std::time::Duration::from_mins(1);
    tokio::time::timeout(patience, look).await.unwrap();
}
