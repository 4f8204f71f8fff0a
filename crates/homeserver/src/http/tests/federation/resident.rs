//! Users of other servers in rooms of this one: what is let in, and above all what is not.

use axum::body::HttpBody as _;

use super::{peer::Peer, *};

pub(super) const FEDERATION: &str = "/_matrix/federation";

/// A homeserver with a user, and a peer.
pub(super) struct World {
    pub(super) network: Arc<Network>,
    pub(super) here: Fresh,
    pub(super) alice: LoggedIn,
    pub(super) peer: Peer,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Router::new()).await
    }

    /// A world whose peer serves `router`.
    pub(super) async fn with(router: Router) -> Self {
        let network = Arc::new(Network::default());
        let here = join(&network, "here.example").await;
        let alice = here.register("alice").await;
        let peer = Peer::join(&network, "peer.example", router);
        Self {
            network,
            here,
            alice,
            peer,
        }
    }

    pub(super) async fn room(&self, wish: Value) -> String {
        let path = "/_matrix/client/v3/createRoom";
        let made = self.here.post(path, Some(&self.alice.token), wish).await;
        made.ok()["room_id"].as_str().unwrap().to_owned()
    }

    pub(super) async fn public_room(&self, version: &str) -> String {
        self.room(json!({ "preset": "public_chat", "room_version": version }))
            .await
    }

    /// The content of a state event, as alice sees it.
    pub(super) async fn state(&self, room: &str, kind: &str, key: &str) -> Value {
        let path = format!("{}/state/{kind}/{}", client_path(room), encode(key));
        self.here.get(&path, Some(&self.alice.token)).await.body
    }

    pub(super) async fn set_state(
        &self,
        room: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> Answer {
        let path = format!("{}/state/{kind}/{}", client_path(room), encode(key));
        self.here.put(&path, Some(&self.alice.token), content).await
    }

    pub(super) async fn do_in(&self, room: &str, what: &str, body: Value) -> Answer {
        let path = format!("{}/{what}", client_path(room));
        self.here.post(&path, Some(&self.alice.token), body).await
    }

    /// What `make_{step}` answers to the peer.
    pub(super) async fn make(&self, step: &str, room: &str, user: &str) -> Answer {
        let mut path = format!(
            "{FEDERATION}/v1/make_{step}/{}/{}",
            encode(room),
            encode(user)
        );
        if step != "leave" {
            let versions: Vec<_> = (1..=12).map(|n| format!("ver={n}")).collect();
            path = format!("{path}?{}", versions.join("&"));
        }
        self.peer.get(&self.here, &path).await
    }

    pub(super) async fn send(&self, step: &str, room: &str, id: &str, event: &Value) -> Answer {
        let version = if step.starts_with("knock") {
            "v1"
        } else {
            "v2"
        };
        let (step, query) = step.split_once('?').unwrap_or((step, ""));
        let path = format!(
            "{FEDERATION}/{version}/send_{step}/{}/{}?{query}",
            encode(room),
            encode(id)
        );
        self.peer.put(&self.here, &path, event).await
    }

    /// A signed event that `make_{step}` gave the template of.
    pub(super) async fn made(&self, step: &str, room: &str, user: &str) -> (String, Value) {
        let made = self.make(step, room, user).await.ok();
        let version = made["room_version"].as_str().unwrap();
        self.peer.seal(&made["event"], version)
    }

    /// Joins a user of the peer.
    pub(super) async fn join(&self, room: &str, user: &str) -> Value {
        let (id, event) = self.made("join", room, user).await;
        self.send("join", room, &id, &event).await.ok()
    }
}

pub(super) fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

pub(super) fn client_path(room: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}", encode(room))
}

fn kinds(events: &Value) -> Vec<&str> {
    let events = events.as_array().unwrap().iter();
    events
        .map(|event| event["type"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_user_of_another_server_joins_a_room_of_every_version() {
    let world = World::new().await;
    for version in ["1", "2", "3", "6", "9", "10", "11", "12"] {
        let room = world.public_room(version).await;
        let user = world.peer.user("bob");
        let made = world.make("join", &room, &user).await.ok();
        assert_eq!(made["room_version"], version);
        assert_eq!(made["event"]["sender"], user.as_str());
        let (id, event) = world.peer.seal(&made["event"], version);
        let answer = world.send("join", &room, &id, &event).await.ok();
        assert_eq!(answer["members_omitted"], false);
        // The state before, with who was there, and what allows it.
        let state = kinds(&answer["state"]);
        for kind in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
            assert!(state.contains(&kind), "{version}: {state:?}");
        }
        assert_eq!(state.iter().filter(|k| **k == "m.room.member").count(), 1);
        assert!(!kinds(&answer["auth_chain"]).is_empty(), "{version}");
        // Signed by both servers, and otherwise as it was sent.
        let signatures = answer["event"]["signatures"].as_object().unwrap();
        let signed: Vec<_> = signatures.keys().collect();
        assert_eq!(signed, ["here.example", "peer.example"], "{version}");
        assert_eq!(answer["event"]["content"], event["content"]);
        let member = world.state(&room, "m.room.member", &user).await;
        assert_eq!(member["membership"], "join", "{version}");
        // Once more, and in the old form.
        let again = world.send("join", &room, &id, &event).await.ok();
        assert_eq!(again, answer);
        let old = format!(
            "{FEDERATION}/v1/send_join/{}/{}",
            encode(&room),
            encode(&id)
        );
        let old = world.peer.put(&world.here, &old, &event).await.ok();
        assert_eq!(old[0], 200);
        assert_eq!(old[1], answer);

        let (id, event) = world.made("leave", &room, &user).await;
        assert_eq!(
            world.send("leave", &room, &id, &event).await.ok(),
            json!({})
        );
        assert_eq!(
            world.send("leave", &room, &id, &event).await.ok(),
            json!({})
        );
        let member = world.state(&room, "m.room.member", &user).await;
        assert_eq!(member["membership"], "leave", "{version}");
        world
            .make("leave", &room, &user)
            .await
            .refused(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn members_are_left_out_on_request_but_for_those_who_name_the_room() {
    let world = World::new().await;
    let room = world.public_room("12").await;
    for name in ["bob", "carol", "dave"] {
        world.join(&room, &world.peer.user(name)).await;
    }
    let (id, event) = world.made("join", &room, &world.peer.user("eve")).await;
    let step = "join?omit_members=true";
    let answer = world.send(step, &room, &id, &event).await.ok();
    assert_eq!(answer["members_omitted"], true);
    let servers = json!(["here.example", "peer.example"]);
    assert_eq!(answer["servers_in_room"], servers);
    let members = |answer: &Value| {
        let state = kinds(&answer["state"]);
        state.iter().filter(|k| **k == "m.room.member").count()
    };
    assert_eq!(members(&answer), 4);
    world
        .set_state(&room, "m.room.name", "", json!({ "name": "Garden" }))
        .await
        .ok();
    let (id, event) = world.made("join", &room, &world.peer.user("frank")).await;
    let answer = world.send(step, &room, &id, &event).await.ok();
    assert_eq!(members(&answer), 0);
    // What is in the state is not in the auth chain, but what allows the state is.
    let chain = kinds(&answer["auth_chain"]);
    assert!(chain.contains(&"m.room.member"), "{chain:?}");
    assert!(!chain.contains(&"m.room.create"), "{chain:?}");
    // A server that was not in the room before is not among those in it.
    let other = Peer::join(&world.network, "other.example", Router::new());
    let user = other.user("zoe");
    let path = format!(
        "{FEDERATION}/v1/make_join/{}/{}?ver=12",
        encode(&room),
        encode(&user)
    );
    let made = other.get(&world.here, &path).await.ok();
    let (id, event) = other.seal(&made["event"], "12");
    let path = format!(
        "{FEDERATION}/v2/send_join/{}/{}?omit_members=true",
        encode(&room),
        encode(&id)
    );
    let answer = other.put(&world.here, &path, &event).await.ok();
    assert_eq!(answer["servers_in_room"], servers);
}

#[tokio::test]
async fn templates_are_for_users_of_the_asking_server_whom_the_room_admits() {
    let world = World::new().await;
    let public = world.public_room("11").await;
    let private = world.room(json!({ "preset": "private_chat" })).await;
    let bob = world.peer.user("bob");
    let nobody = "@mallory:elsewhere.example";
    for (step, room, user, status, code) in [
        ("join", &*public, nobody, 403, "M_FORBIDDEN"),
        ("join", &public, &world.alice.user, 403, "M_FORBIDDEN"),
        ("join", &private, &bob, 403, "M_FORBIDDEN"),
        ("join", "!unknown:here.example", &bob, 404, "M_NOT_FOUND"),
        ("leave", &public, &bob, 403, "M_FORBIDDEN"),
        ("leave", &public, nobody, 403, "M_FORBIDDEN"),
        ("knock", &public, &bob, 403, "M_FORBIDDEN"),
        ("knock", &private, &bob, 403, "M_FORBIDDEN"),
        ("knock", &public, nobody, 403, "M_FORBIDDEN"),
    ] {
        let made = world.make(step, room, user).await;
        assert_eq!(made.status, status, "{step} {room} {user}");
        made.refused(status, code);
    }
    // A version that the server does not know, or does not say that it knows.
    for query in ["", "?ver=10", "?ver=org.example"] {
        let path = format!(
            "{FEDERATION}/v1/make_join/{}/{}{query}",
            encode(&public),
            encode(&bob)
        );
        let made = world.peer.get(&world.here, &path).await;
        made.refused(400, "M_INCOMPATIBLE_ROOM_VERSION");
        assert_eq!(made.body["room_version"], "11");
    }
    // Whoever is banned, or whose server is.
    let ban = json!({ "user_id": bob });
    world.do_in(&public, "ban", ban).await.ok();
    world
        .make("join", &public, &bob)
        .await
        .refused(403, "M_FORBIDDEN");
    let acl = json!({ "allow": ["*"], "deny": ["peer.example"] });
    world
        .set_state(&public, "m.room.server_acl", "", acl)
        .await
        .ok();
    let carol = world.peer.user("carol");
    world
        .make("join", &public, &carol)
        .await
        .refused(403, "M_FORBIDDEN");
    // A room where nobody of this server is any more.
    let left = world.public_room("11").await;
    world.join(&left, &carol).await;
    world.do_in(&left, "leave", json!({})).await.ok();
    world
        .make("join", &left, &bob)
        .await
        .refused(404, "M_NOT_FOUND");
    // Rooms that do not federate.
    let own = world
        .room(json!({ "preset": "public_chat", "creation_content": { "m.federate": false } }))
        .await;
    world
        .make("join", &own, &bob)
        .await
        .refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn what_is_handed_over_is_the_event_that_the_request_names() {
    let world = World::new().await;
    let room = world.public_room("11").await;
    let other_room = world.public_room("11").await;
    let (bob, carol) = (world.peer.user("bob"), world.peer.user("carol"));
    let made = world.make("join", &room, &bob).await.ok();
    let template = &made["event"];
    let changed = |pointer: &str, value: Value| {
        let mut event = template.clone();
        *event.pointer_mut(pointer).unwrap() = value;
        world.peer.seal(&event, "11")
    };
    let cases = [
        ("another room", changed("/room_id", json!(other_room))),
        ("another type", changed("/type", json!("m.room.topic"))),
        ("a message", {
            let mut event = template.clone();
            event.as_object_mut().unwrap().remove("state_key");
            world.peer.seal(&event, "11")
        }),
        ("a ban", changed("/content/membership", json!("ban"))),
        ("a leave", changed("/content/membership", json!("leave"))),
        ("no membership", changed("/content", json!({}))),
        ("somebody else's", changed("/state_key", json!(carol))),
        ("no user", changed("/state_key", json!("bob"))),
        ("our user's", changed("/sender", json!(world.alice.user))),
        (
            "a stranger's",
            changed("/sender", json!("@m:elsewhere.example")),
        ),
    ];
    for (what, (id, event)) in cases {
        let answer = world.send("join", &room, &id, &event).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.body);
        answer.refused(400, "M_INVALID_PARAM");
    }
    // The path names another event.
    let (id, event) = world.peer.seal(template, "11");
    let other = world.send("join", &room, "$other", &event).await;
    other.refused(400, "M_INVALID_PARAM");
    // Not signed by its server, or by nobody.
    let mallory = Peer::join(&world.network, "m.example", Router::new());
    let (forged_id, forged) = mallory.seal(template, "11");
    let answer = world.send("join", &room, &forged_id, &forged).await;
    answer.refused(400, "M_INVALID_PARAM");
    let mut renamed = forged.clone();
    renamed["signatures"] = json!({ "peer.example": forged["signatures"]["m.example"] });
    let answer = world.send("join", &room, &forged_id, &renamed).await;
    answer.refused(400, "M_INVALID_PARAM");
    // Changed after it was hashed.
    let mut changed = event.clone();
    changed["content"]["displayname"] = json!("Bob");
    let answer = world.send("join", &room, &id, &changed).await;
    answer.refused(400, "M_INVALID_PARAM");
    // Not an event at all.
    for body in [json!({}), json!({ "type": "m.room.member" })] {
        let answer = world.send("join", &room, &id, &body).await;
        answer.refused(400, "M_BAD_JSON");
    }
    // Too many previous events, and some that nobody here knows.
    let mut many = template.clone();
    let prev: Vec<_> = (0..21).map(|n| format!("$unknown{n}")).collect();
    many["prev_events"] = json!(prev);
    let many = many.to_string();
    let many: Value = serde_json::from_str(&many).unwrap();
    let answer = world.send("join", &room, &id, &many).await;
    answer.refused(400, "M_BAD_JSON");
    let mut unfounded = template.clone();
    unfounded["prev_events"] = json!(["$unknown"]);
    let (unfounded_id, unfounded) = world.peer.seal(&unfounded, "11");
    let answer = world.send("join", &room, &unfounded_id, &unfounded).await;
    answer.refused(400, "M_INVALID_PARAM");
    // Another server hands it over.
    let path = format!(
        "{FEDERATION}/v2/send_join/{}/{}",
        encode(&room),
        encode(&id)
    );
    let answer = mallory.put(&world.here, &path, &event).await;
    answer.refused(400, "M_INVALID_PARAM");
    // Nobody came in by any of this.
    let member = world.state(&room, "m.room.member", &bob).await;
    assert_eq!(member["errcode"], "M_NOT_FOUND");
    // And what was made in time is not let in after a ban.
    world
        .do_in(&room, "ban", json!({ "user_id": bob }))
        .await
        .ok();
    let answer = world.send("join", &room, &id, &event).await;
    answer.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_restricted_room_admits_members_of_its_rooms_for_as_long_as_they_are() {
    let world = World::new().await;
    let space = world.public_room("10").await;
    let rules = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": space }],
    });
    let restrict = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rules }]);
    let room = world
        .room(json!({ "room_version": "10", "initial_state": restrict }))
        .await;
    let (bob, carol) = (world.peer.user("bob"), world.peer.user("carol"));
    world
        .make("join", &room, &bob)
        .await
        .refused(403, "M_FORBIDDEN");
    for user in [&bob, &carol] {
        world.join(&space, user).await;
    }
    let made = world.make("join", &room, &bob).await.ok();
    let voucher = "join_authorised_via_users_server";
    assert_eq!(made["event"]["content"][voucher], world.alice.user.as_str());
    let (id, event) = world.peer.seal(&made["event"], "10");
    let answer = world.send("join", &room, &id, &event).await.ok();
    assert!(answer["event"]["signatures"]["here.example"].is_object());
    // Somebody else of ours vouches, who is not there.
    let mut forged = world.make("join", &room, &carol).await.ok()["event"].clone();
    forged["content"][voucher] = json!("@eve:here.example");
    let (id, event) = world.peer.seal(&forged, "10");
    let answer = world.send("join", &room, &id, &event).await;
    answer.refused(403, "M_FORBIDDEN");
    // A user of another server vouches, whose server did not sign.
    forged["content"][voucher] = json!(bob);
    forged["content"][voucher] = json!("@eve:elsewhere.example");
    let (id, event) = world.peer.seal(&forged, "10");
    let answer = world.send("join", &room, &id, &event).await;
    answer.refused(403, "M_FORBIDDEN");
    // The template was made in time, but the condition does not hold any more.
    let (id, event) = world.made("join", &room, &carol).await;
    world
        .do_in(&space, "kick", json!({ "user_id": carol }))
        .await
        .ok();
    let answer = world.send("join", &room, &id, &event).await;
    answer.refused(403, "M_FORBIDDEN");
    world
        .make("join", &room, &carol)
        .await
        .refused(403, "M_FORBIDDEN");
    // Whoever is invited needs no voucher... but is asked elsewhere first: see the invites.
    // A room that this server does not know cannot be looked into.
    let rules = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": "!unknown:elsewhere.example" }],
    });
    world
        .set_state(&room, "m.room.join_rules", "", rules)
        .await
        .ok();
    let made = world.make("join", &room, &carol).await;
    made.refused(400, "M_UNABLE_TO_AUTHORISE_JOIN");
}

#[tokio::test]
async fn a_server_whose_users_may_not_invite_vouches_for_nobody() {
    let world = World::new().await;
    let space = world.public_room("11").await;
    let bob = world.peer.user("bob");
    world.join(&space, &bob).await;
    let rules = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": space }],
    });
    let state = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rules }]);
    let room = world
        .room(json!({ "room_version": "11", "initial_state": state }))
        .await;
    let levels = world.state(&room, "m.room.power_levels", "").await;
    let mut levels = levels.clone();
    levels["invite"] = json!(100);
    levels["users"][&world.alice.user] = json!(99);
    let lowered = world
        .set_state(&room, "m.room.power_levels", "", levels)
        .await;
    lowered.ok();
    let made = world.make("join", &room, &bob).await;
    made.refused(400, "M_UNABLE_TO_GRANT_JOIN");
}

#[tokio::test]
async fn a_user_of_another_server_knocks_and_is_shown_the_room() {
    let world = World::new().await;
    let knock = json!([{
        "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" },
    }]);
    let room = world
        .room(json!({ "room_version": "11", "name": "Garden", "initial_state": knock }))
        .await;
    let bob = world.peer.user("bob");
    let (id, event) = world.made("knock", &room, &bob).await;
    let answer = world.send("knock", &room, &id, &event).await.ok();
    let shown = kinds(&answer["knock_room_state"]);
    assert!(
        shown.contains(&"m.room.create") && shown.contains(&"m.room.name"),
        "{shown:?}"
    );
    // Whole events, which can be checked.
    let create = &answer["knock_room_state"][0];
    assert!(create["signatures"]["here.example"].is_object(), "{create}");
    let member = world.state(&room, "m.room.member", &bob).await;
    assert_eq!(member["membership"], "knock");
    assert_eq!(world.send("knock", &room, &id, &event).await.ok(), answer);
    // A knock is not a join.
    let (id, event) = world.made("knock", &room, &bob).await;
    let answer = world.send("join", &room, &id, &event).await;
    answer.refused(400, "M_INVALID_PARAM");
    world
        .make("join", &room, &bob)
        .await
        .refused(403, "M_FORBIDDEN");
    let (id, event) = world.made("leave", &room, &bob).await;
    world.send("leave", &room, &id, &event).await.ok();
    let member = world.state(&room, "m.room.member", &bob).await;
    assert_eq!(member["membership"], "leave");
}

#[tokio::test]
async fn aliases_and_the_directory_are_told_to_servers_and_asked_of_them() {
    let world = World::new().await;
    let room = world
        .room(json!({
            "preset": "public_chat", "visibility": "public", "room_alias_name": "garden",
            "name": "Garden",
        }))
        .await;
    let query = format!("{FEDERATION}/v1/query/directory?room_alias=");
    let ask = async |alias: &str| {
        let path = format!("{query}{}", encode(alias));
        world.peer.get(&world.here, &path).await
    };
    let found = ask("#garden:here.example").await.ok();
    assert_eq!(found["room_id"], room.as_str());
    assert_eq!(found["servers"], json!(["here.example"]));
    for unknown in ["#other:here.example", "#garden:peer.example"] {
        ask(unknown).await.refused(404, "M_NOT_FOUND");
    }
    let directory = format!("{FEDERATION}/v1/publicRooms");
    let listed = world.peer.get(&world.here, &directory).await.ok();
    assert_eq!(listed["chunk"][0]["room_id"], room.as_str());
    let search = |term: &str| json!({ "filter": { "generic_search_term": term } });
    for (term, rooms) in [("gard", 1), ("desert", 0)] {
        let (peer, wish) = (&world.peer, search(term));
        let found = peer
            .ask(&world.here, Method::POST, &directory, &wish)
            .await
            .ok();
        assert_eq!(found["chunk"].as_array().unwrap().len(), rooms, "{term}");
    }
    // From the clients of another server.
    let there = super::join(&world.network, "there.example").await;
    let zoe = there.register("zoe").await;
    let path = "/_matrix/client/v3/publicRooms?server=here.example";
    let listed = there.get(path, Some(&zoe.token)).await.ok();
    assert_eq!(listed["chunk"][0]["name"], "Garden");
    for (term, rooms) in [("gard", 1), ("desert", 0)] {
        let found = there.post(path, Some(&zoe.token), search(term)).await.ok();
        assert_eq!(found["chunk"].as_array().unwrap().len(), rooms, "{term}");
    }
    let gone = "/_matrix/client/v3/publicRooms?server=gone.example";
    let answer = there.get(gone, Some(&zoe.token)).await;
    answer.refused(502, "M_UNKNOWN");
}

#[tokio::test]
async fn who_was_put_out_of_a_room_is_told_nothing_new_of_it() {
    let world = World::new().await;
    let room = world.public_room("12").await;
    let bob = world.peer.user("bob");
    let (id, event) = world.made("join", &room, &bob).await;
    let step = "join?omit_members=true";
    let first = world.send(step, &room, &id, &event).await.ok();
    assert_eq!(first["servers_in_room"], json!(["here.example"]));
    // Somebody comes from a third server: that is not what was so before the join.
    let other = Peer::join(&world.network, "other.example", Router::new());
    let zoe = other.user("zoe");
    let path = format!(
        "{FEDERATION}/v1/make_join/{}/{}?ver=12",
        encode(&room),
        encode(&zoe)
    );
    let made = other.get(&world.here, &path).await.ok();
    let (theirs, join) = other.seal(&made["event"], "12");
    let path = format!(
        "{FEDERATION}/v2/send_join/{}/{}",
        encode(&room),
        encode(&theirs)
    );
    other.put(&world.here, &path, &join).await.ok();
    assert_eq!(world.send(step, &room, &id, &event).await.ok(), first);
    // And then nothing at all.
    let kick = json!({ "user_id": bob });
    world.do_in(&room, "kick", kick.clone()).await.ok();
    let again = world.send(step, &room, &id, &event).await;
    again.refused(403, "M_FORBIDDEN");
    let knock = json!([{
        "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" },
    }]);
    let room = world.room(json!({ "initial_state": knock })).await;
    let (id, event) = world.made("knock", &room, &bob).await;
    world.send("knock", &room, &id, &event).await.ok();
    world.send("knock", &room, &id, &event).await.ok();
    world.do_in(&room, "kick", kick).await.ok();
    let again = world.send("knock", &room, &id, &event).await;
    again.refused(403, "M_FORBIDDEN");
    // A leave may be repeated: its answer tells nothing.
    let (id, event) = world.made("knock", &room, &bob).await;
    world.send("knock", &room, &id, &event).await.ok();
    let (id, event) = world.made("leave", &room, &bob).await;
    world.send("leave", &room, &id, &event).await.ok();
    world.send("leave", &room, &id, &event).await.ok();
}

#[tokio::test]
async fn an_invite_into_a_room_that_is_here_is_judged_whatever_it_follows() {
    let world = World::new().await;
    let dave = world.here.register("dave").await;
    let bob = world.peer.user("bob");
    for (invites, status) in [(0, 200), (50, 403)] {
        let levels = json!({ "invite": invites });
        let room = world
            .room(json!({
                "preset": "public_chat", "room_version": "11",
                "power_level_content_override": levels,
            }))
            .await;
        world.join(&room, &bob).await;
        let mut event = world.make("leave", &room, &bob).await.ok()["event"].clone();
        event["content"] = json!({ "membership": "invite" });
        event["state_key"] = json!(dave.user);
        event["prev_events"] = json!(["$unknown"]);
        let (id, event) = world.peer.seal(&event, "11");
        let path = format!("{FEDERATION}/v2/invite/{}/{}", encode(&room), encode(&id));
        let body = json!({ "room_version": "11", "event": event, "invite_room_state": [] });
        let answer = world.peer.put(&world.here, &path, &body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert_eq!(answer.body["event"].is_object(), status == 200);
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_keeps_the_place_of_its_request() {
    let world = World::new().await;
    let room = world.public_room("12").await;
    let path = format!(
        "{FEDERATION}/v1/make_join/{}/{}?ver=12",
        encode(&room),
        encode(&world.peer.user("bob"))
    );
    let begin = async || {
        let (peer, null) = (&world.peer, Value::Null);
        peer.begin(&world.here, Method::GET, &path, &null).await
    };
    let mut unread = Vec::new();
    let refused = loop {
        let answer = begin().await;
        if !answer.status().is_success() {
            break answer;
        }
        unread.push(answer);
    };
    assert_eq!(refused.status(), 429);
    assert_eq!(unread.len(), 32);
    // One that is read, and one that is given up.
    let read = unread.pop().unwrap();
    assert!(read.headers().contains_key("content-type"));
    let body = read.into_body();
    assert!(body.size_hint().exact().is_some());
    body.collect().await.unwrap();
    unread.pop();
    unread.extend([begin().await, begin().await]);
    assert!(unread.iter().all(|answer| answer.status().is_success()));
    assert_eq!(begin().await.status(), 429);
}

#[tokio::test(start_paused = true)]
async fn slow_readers_of_the_answers_to_joins_keep_nobody_out() {
    let world = World::new().await;
    let room = world.public_room("12").await;
    let (id, event) = world.made("join", &room, &world.peer.user("bob")).await;
    let path = format!(
        "{FEDERATION}/v2/send_join/{}/{}",
        encode(&room),
        encode(&id)
    );
    let begin = async || {
        let peer = &world.peer;
        peer.begin(&world.here, Method::PUT, &path, &event).await
    };
    let mut unread = Vec::new();
    for _ in 0..4 {
        let answer = begin().await;
        assert_eq!(answer.status(), 200);
        unread.push(answer);
    }
    // It has as many as it may, and others have theirs.
    assert_eq!(begin().await.status(), 503);
    let other = Peer::join(&world.network, "other.example", Router::new());
    let zoe = other.user("zoe");
    let make = format!(
        "{FEDERATION}/v1/make_join/{}/{}?ver=12",
        encode(&room),
        encode(&zoe)
    );
    let made = other.get(&world.here, &make).await.ok();
    let (theirs, join) = other.seal(&made["event"], "12");
    let send = format!(
        "{FEDERATION}/v2/send_join/{}/{}",
        encode(&room),
        encode(&theirs)
    );
    other.put(&world.here, &send, &join).await.ok();
    // What nobody takes is given up, and does not look whole.
    tokio::time::sleep(std::time::Duration::from_mins(2)).await;
    let answer = begin().await;
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();
    let late = unread.pop().unwrap().into_body().collect().await;
    assert!(late.is_err());
}
