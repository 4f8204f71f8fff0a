//! Rooms that are elsewhere: joined, knocked on, invited to, left.

mod malformed;

use homeserver_events::{Draft, RoomVersion};
use serde_json::value::to_raw_value;

use super::*;

/// What is done to an answer.
type Change = fn(&mut Value);

/// What is done to the text of an answer.
type Spoil = fn(&str) -> String;

const CLIENT: &str = "/_matrix/client/v3";

/// A network that changes what servers answer.
#[derive(Debug, Default)]
struct Meddler {
    network: Arc<Network>,
    /// Paths that contain the text are answered with the JSON changed in this way.
    changes: Mutex<Vec<(String, Change)>>,
    /// Answers to joins are this text, and come in small pieces.
    spoilt: Mutex<Option<Spoil>>,
    /// Events that are added to every state and auth chain.
    added: Mutex<Vec<Value>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Transport for Meddler {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        let path = outgoing.request.uri().path().to_owned();
        self.asked.lock().push(path.clone());
        let limit = outgoing.limits.body;
        let reply = self.network.send(outgoing).await?;
        let spoil = *self.spoilt.lock();
        if let Some(spoil) = spoil.filter(|_| path.contains("/send_join/")) {
            let body = reply.body.whole().await?;
            let body = spoil(std::str::from_utf8(&body).unwrap()).into_bytes();
            let pieces = body.chunks(7).map(bytes::Bytes::copy_from_slice);
            let pieces: Vec<_> = pieces.map(Ok).collect();
            return Ok(Reply {
                status: reply.status,
                headers: reply.headers,
                body: ReplyBody::new(stream::iter(pieces), limit),
            });
        }
        let changes: Vec<_> = self.changes.lock().clone();
        let mut changes = changes
            .into_iter()
            .filter(|(part, _)| path.contains(&**part));
        let change = changes.next().map(|(_, change)| change);
        let has_state = path.contains("/send_join/") || path.contains("/v1/state/");
        let added = self.added.lock().clone();
        if change.is_none() && (!has_state || added.is_empty()) {
            return Ok(reply);
        }
        let body = reply.body.whole().await?;
        let mut body: Value = serde_json::from_slice(&body).unwrap();
        for list in ["state", "pdus", "auth_chain"] {
            let events = body.get_mut(list).and_then(Value::as_array_mut);
            if let Some(events) = events.filter(|_| has_state) {
                events.extend(added.clone());
            }
        }
        if let Some(change) = change {
            change(&mut body);
        }
        let body = bytes::Bytes::from(body.to_string());
        Ok(Reply {
            status: reply.status,
            headers: reply.headers,
            body: ReplyBody::new(stream::iter([Ok(body)]), limit),
        })
    }
}

/// `a.example` with Alice, and `bb.example` with Bob, whose calls are meddled with.
struct World {
    meddler: Arc<Meddler>,
    a: Fresh,
    b: Fresh,
    alice: LoggedIn,
    bob: LoggedIn,
}

impl World {
    async fn new() -> Self {
        let meddler = Arc::new(Meddler::default());
        let network = Arc::clone(&meddler.network);
        let a = join(&network, "a.example").await;
        let b = join_over(&network, Arc::clone(&meddler) as _, "bb.example").await;
        let (alice, bob) = (a.register("alice").await, b.register("bob").await);
        Self {
            meddler,
            a,
            b,
            alice,
            bob,
        }
    }

    async fn room(&self, more: Value) -> String {
        let mut body = json!({ "name": "far", "preset": "public_chat" });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let path = format!("{CLIENT}/createRoom");
        let created = self.a.post(&path, Some(&self.alice.token), body).await;
        created.ok()["room_id"].as_str().unwrap().to_owned()
    }

    async fn join(&self, room: &str) -> Answer {
        let path = format!("{CLIENT}/join/{}?via=a.example", encode(room));
        self.b.post(&path, Some(&self.bob.token), json!({})).await
    }

    /// What Bob does in the room, or somebody else there.
    async fn bob(&self, room: &str, what: &str) -> Answer {
        let path = format!("{CLIENT}/rooms/{}/{what}", encode(room));
        self.b.post(&path, Some(&self.bob.token), json!({})).await
    }

    async fn alice(&self, room: &str, what: &str, user: &str) -> Answer {
        let path = format!("{CLIENT}/rooms/{}/{what}", encode(room));
        let body = json!({ "user_id": user });
        self.a.post(&path, Some(&self.alice.token), body).await
    }

    /// Waits until so many members are known to Bob.
    async fn bob_has_members(&self, room: &str, count: usize) {
        let path = format!("{CLIENT}/rooms/{}/joined_members", encode(room));
        let members = self.b.get(&path, Some(&self.bob.token)).await.ok();
        assert_eq!(members["joined"].as_object().unwrap().len(), count);
    }

    async fn sync(&self, since: Option<&str>) -> Value {
        sync(&self.b, &self.bob, since).await
    }

    /// What one says, the other reads.
    async fn talk(&self, room: &str, word: &str) {
        say(&self.b, &self.bob, room, &format!("{word} of bob")).await;
        until_read(&self.a, &self.alice, room, &format!("{word} of bob")).await;
        say(&self.a, &self.alice, room, &format!("{word} of alice")).await;
        until_read(&self.b, &self.bob, room, &format!("{word} of alice")).await;
    }

    /// Changes an answer until the next call of this.
    fn change(&self, path: &str, change: Change) {
        *self.meddler.changes.lock() = vec![(path.to_owned(), change)];
    }

    async fn members(&self, room: &str) -> Value {
        let path = format!(
            "{CLIENT}/rooms/{}/state/m.room.member/{}",
            encode(room),
            encode(&self.bob.user)
        );
        self.a.get(&path, Some(&self.alice.token)).await.body
    }
}

async fn join_over(network: &Arc<Network>, over: Arc<dyn Transport>, name: &str) -> Fresh {
    let name = ServerName::parse(name).unwrap();
    let mut config = Config {
        server_name: name.clone(),
        ..Config::default()
    };
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    let clock = Arc::new(ManualClock::new(START));
    let homeserver = Homeserver::configured(config)
        .engine(Arc::new(MemoryEngine::new()))
        .transport(over)
        .runtime(Runtime::simulated(Arc::clone(&clock), 77))
        .open()
        .await
        .unwrap();
    let router = homeserver.router();
    network.routers.lock().insert(name, router.clone());
    Fresh {
        homeserver,
        router,
        clock,
    }
}

fn encode(text: &str) -> String {
    let set = percent_encoding::NON_ALPHANUMERIC;
    percent_encoding::utf8_percent_encode(text, set).to_string()
}

async fn sync(server: &Fresh, user: &LoggedIn, since: Option<&str>) -> Value {
    let since = since.map_or(String::new(), |since| format!("&since={since}"));
    let path = format!("{CLIENT}/sync?timeout=0{since}");
    server.get(&path, Some(&user.token)).await.ok()
}

async fn say(server: &Fresh, user: &LoggedIn, room: &str, words: &str) {
    let path = format!(
        "{CLIENT}/rooms/{}/send/m.room.message/{}",
        encode(room),
        encode(words)
    );
    let body = json!({ "msgtype": "m.text", "body": words });
    server.put(&path, Some(&user.token), body).await.ok();
}

/// Waits until a room's timeline has a message.
async fn until_read(server: &Fresh, user: &LoggedIn, room: &str, words: &str) {
    until(async || {
        let synced = sync(server, user, None).await;
        let events = synced["rooms"]["join"][room]["timeline"]["events"].clone();
        let events = events.as_array().cloned().unwrap_or_default();
        events.iter().any(|event| event["content"]["body"] == words)
    })
    .await;
}

async fn until(mut so: impl AsyncFnMut() -> bool) {
    let look = async {
        while !so().await {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let patience = std::time::Duration::from_secs(20);
    tokio::time::timeout(patience, look).await.unwrap();
}

fn types(events: &Value) -> Vec<String> {
    let events = events.as_array().cloned().unwrap_or_default();
    let mut types: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    types.sort();
    types
}

#[tokio::test(start_paused = true)]
async fn a_room_elsewhere_is_joined_and_talked_in() {
    for version in ["1", "6", "10", "12"] {
        let world = World::new().await;
        let room = world.room(json!({ "room_version": version })).await;
        let before = world.sync(None).await;
        let before = before["next_batch"].as_str().unwrap();
        assert_eq!(world.join(&room).await.ok()["room_id"], *room);

        // It is shown to whoever wants all members once they are there.
        world.bob_has_members(&room, 2).await;
        let synced = world.sync(Some(before)).await;
        let told = &synced["rooms"]["join"][&*room];
        assert_eq!(types(&told["timeline"]["events"]), ["m.room.member"]);
        assert_eq!(told["timeline"]["limited"], true);
        assert!(types(&told["state"]["events"]).contains(&"m.room.create".to_owned()));
        assert_eq!(told["summary"]["m.joined_member_count"], 2);
        world.talk(&room, "a word").await;
        // Nothing happens twice.
        world.join(&room).await.ok();
    }
}

#[tokio::test(start_paused = true)]
async fn an_invite_from_elsewhere_is_shown_and_accepted() {
    let world = World::new().await;
    let room = world.room(json!({ "preset": "private_chat" })).await;
    let before = world.sync(None).await;
    let before = before["next_batch"].as_str().unwrap();
    world.join(&room).await.refused(403, "M_FORBIDDEN");
    world.alice(&room, "invite", &world.bob.user).await.ok();
    let synced = world.sync(Some(before)).await;
    let told = &synced["rooms"]["invite"][&*room]["invite_state"]["events"];
    let kinds = types(told);
    for kind in ["m.room.create", "m.room.join_rules", "m.room.name"] {
        assert!(kinds.contains(&kind.to_owned()), "{kinds:?}");
    }
    for event in told.as_array().unwrap() {
        assert_eq!(event.as_object().unwrap().len(), 4, "{event}");
    }
    // A failed join takes nothing away.
    world.change("/send_join/", |answer| answer["state"] = json!([]));
    world.join(&room).await.refused(502, "M_UNKNOWN");
    world.meddler.changes.lock().clear();
    let again = world.sync(None).await;
    assert!(again["rooms"]["invite"][&*room].is_object());
    assert!(again["rooms"]["join"][&*room].is_null());

    // No client has to know who invited.
    world.bob(&room, "join").await.ok();
    let synced = world.sync(None).await;
    assert!(synced["rooms"]["invite"][&*room].is_null());
    world.talk(&room, "a word").await;
}

#[tokio::test(start_paused = true)]
async fn an_invite_from_elsewhere_is_refused_there_and_here() {
    let world = World::new().await;
    let room = world.room(json!({ "preset": "private_chat" })).await;
    world.alice(&room, "invite", &world.bob.user).await.ok();
    let before = world.sync(None).await;
    let before = before["next_batch"].as_str().unwrap();
    assert_eq!(world.members(&room).await["membership"], "invite");
    world.bob(&room, "leave").await.ok();
    let synced = world.sync(Some(before)).await;
    let left = &synced["rooms"]["leave"][&*room];
    assert_eq!(
        types(&left["timeline"]["events"]),
        ["m.room.member"],
        "{synced}"
    );
    let event = &left["timeline"]["events"][0];
    assert_eq!(event["content"]["membership"], "leave");
    until(async || world.members(&room).await["membership"] == "leave").await;
    world.bob(&room, "leave").await.ok();
    world.bob(&room, "forget").await.ok();
    let synced = world.sync(None).await;
    assert!(synced["rooms"].is_null(), "{synced}");

    // Where nobody is reached, it holds here.
    world.alice(&room, "invite", &world.bob.user).await.ok();
    let name = server_name!("a.example");
    let router = world.meddler.network.routers.lock().remove(name);
    let before = world.sync(None).await;
    assert!(before["rooms"]["invite"][&*room].is_object());
    let before = before["next_batch"].as_str().unwrap();
    world.bob(&room, "leave").await.ok();
    let synced = world.sync(Some(before)).await;
    assert!(synced["rooms"]["leave"][&*room].is_object());
    let path = format!("{CLIENT}/join/{}", encode("!other:a.example"));
    let joined = world.b.post(&path, Some(&world.bob.token), json!({})).await;
    joined.refused(502, "M_UNKNOWN");
    let routers = &world.meddler.network.routers;
    routers.lock().insert(name.to_owned(), router.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_invite_is_taken_back_and_may_come_again() {
    let world = World::new().await;
    let room = world.room(json!({ "preset": "private_chat" })).await;
    world.alice(&room, "invite", &world.bob.user).await.ok();
    let before = world.sync(None).await;
    let before = before["next_batch"].as_str().unwrap();
    assert_eq!(world.members(&room).await["membership"], "invite");
    world.alice(&room, "kick", &world.bob.user).await.ok();
    until(async || {
        let synced = world.sync(Some(before)).await;
        synced["rooms"]["leave"][&*room].is_object()
    })
    .await;
    world.bob(&room, "join").await.refused(403, "M_FORBIDDEN");
    world.alice(&room, "invite", &world.bob.user).await.ok();
    world.bob(&room, "join").await.ok();
    world.talk(&room, "a word").await;
}

#[tokio::test(start_paused = true)]
async fn a_room_that_was_left_is_joined_again_from_elsewhere() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    world.join(&room).await.ok();
    world.talk(&room, "first").await;
    world.bob(&room, "leave").await.ok();
    until(async || world.members(&room).await["membership"] == "leave").await;
    let path = format!("{CLIENT}/rooms/{}/state/m.room.name/", encode(&room));
    let name = json!({ "name": "renamed" });
    world
        .a
        .put(&path, Some(&world.alice.token), name)
        .await
        .ok();
    let before = world.sync(None).await;
    let before = before["next_batch"].as_str().unwrap();
    world.bob(&room, "join").await.ok();
    let synced = world.sync(Some(before)).await;
    assert!(synced["rooms"]["join"][&*room].is_object());
    let name = world.b.get(&path, Some(&world.bob.token)).await.ok();
    assert_eq!(name["name"], "renamed");
    world.talk(&room, "second").await;
}

#[tokio::test(start_paused = true)]
async fn several_users_join_at_once_by_one_handshake() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    let carol = world.b.register("carol").await;
    let path = format!("{CLIENT}/join/{}?via=a.example", encode(&room));
    let (bobs, carols) = tokio::join!(
        world.b.post(&path, Some(&world.bob.token), json!({})),
        world.b.post(&path, Some(&carol.token), json!({})),
    );
    bobs.ok();
    carols.ok();
    let asked = world.meddler.asked.lock().clone();
    let handshakes = asked.iter().filter(|path| path.contains("/send_join/"));
    assert_eq!(handshakes.count(), 1);
    say(&world.b, &carol, &room, "hello").await;
    until_read(&world.a, &world.alice, &room, "hello").await;
}

#[tokio::test(start_paused = true)]
async fn a_room_elsewhere_is_knocked_on() {
    let world = World::new().await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = world.room(json!({ "initial_state": [rule] })).await;
    let path = format!("{CLIENT}/knock/{}?via=a.example", encode(&room));
    let knock = async || {
        let knocked = world.b.post(&path, Some(&world.bob.token), json!({})).await;
        knocked.ok();
    };
    knock().await;
    let synced = world.sync(None).await;
    let told = &synced["rooms"]["knock"][&*room]["knock_state"]["events"];
    assert!(types(told).contains(&"m.room.name".to_owned()), "{synced}");
    assert_eq!(world.members(&room).await["membership"], "knock");
    // Taken back, made again, and answered.
    world.bob(&room, "leave").await.ok();
    until(async || world.members(&room).await["membership"] == "leave").await;
    knock().await;
    world.alice(&room, "invite", &world.bob.user).await.ok();
    let synced = world.sync(None).await;
    assert!(synced["rooms"]["knock"][&*room].is_null());
    assert!(synced["rooms"]["invite"][&*room].is_object());
    world.bob(&room, "join").await.ok();
    world.talk(&room, "a word").await;
}

#[tokio::test(start_paused = true)]
async fn a_restricted_room_is_joined_with_the_signature_of_a_resident() {
    let world = World::new().await;
    let club = world.room(json!({})).await;
    let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
    let rule = json!({ "join_rule": "restricted", "allow": allow });
    let rule = json!({ "type": "m.room.join_rules", "content": rule });
    let room = world
        .room(json!({ "preset": "private_chat", "initial_state": [rule] }))
        .await;
    let refused = world.join(&room).await;
    assert_eq!(refused.status / 100, 4, "{}", refused.body);
    world.join(&club).await.ok();
    world.change("/send_join/", |answer| {
        answer.as_object_mut().unwrap().remove("event");
    });
    world.join(&room).await.refused(502, "M_UNKNOWN");
    world.meddler.changes.lock().clear();
    world.join(&room).await.ok();
    world.talk(&room, "a word").await;
}

#[tokio::test(start_paused = true)]
async fn what_a_lying_resident_answers_to_a_join_leaves_nothing() {
    let world = World::new().await;
    let room = world.room(json!({ "room_version": "10" })).await;
    let lies: [(&str, Change); 14] = [
        ("/make_join/", |answer| answer["room_version"] = json!("11")),
        ("/make_join/", |answer| answer["room_version"] = json!("99")),
        ("/make_join/", |answer| {
            answer["event"]["type"] = json!("m.room.power_levels");
        }),
        ("/make_join/", |answer| {
            answer["event"]["sender"] = json!("@eve:bb.example");
        }),
        ("/make_join/", |answer| {
            answer["event"]["content"]["membership"] = json!("leave");
        }),
        ("/make_join/", |answer| {
            answer["event"]["room_id"] = json!("!x:a.example");
        }),
        ("/make_join/", |answer| {
            answer["event"]["auth_events"] = json!([]);
        }),
        ("/send_join/", |answer| *answer = json!([answer])),
        ("/send_join/", |answer| {
            answer["servers_in_room"] = json!("all");
        }),
        ("/send_join/", |answer| {
            // No create event.
            let state = answer["state"].as_array_mut().unwrap();
            state.retain(|event| event["type"] != "m.room.create");
        }),
        ("/send_join/", |answer| {
            // Nobody signed it.
            for event in answer["state"].as_array_mut().unwrap() {
                if event["type"] == "m.room.create" {
                    event["signatures"] = json!({});
                }
            }
        }),
        ("/send_join/", |answer| {
            // The room is another.
            for list in ["state", "auth_chain"] {
                for event in answer[list].as_array_mut().unwrap() {
                    event["room_id"] = json!("!x:a.example");
                }
            }
        }),
        ("/send_join/", |answer| {
            // Nothing that says who may join.
            for list in ["state", "auth_chain"] {
                let events = answer[list].as_array_mut().unwrap();
                events.retain(|event| event["type"] != "m.room.join_rules");
            }
        }),
        ("/send_join/", |answer| {
            answer["state"] = json!("x".repeat(1000));
        }),
    ];
    for (number, (path, lie)) in lies.into_iter().enumerate() {
        // What it lacks it is not to be asked for by and by.
        world.change(path, lie);
        let nothing: Change = |answer| *answer = json!({});
        let change = ("/v1/event/".to_owned(), nothing);
        world.meddler.changes.lock().push(change);
        let answer = world.join(&room).await;
        // The resident itself refuses what its template led to, where it is one it was told.
        let told = if number == 6 { 403 } else { 502 };
        assert_eq!(answer.status, told, "lie {number}: {}", answer.body);
        let synced = world.sync(None).await;
        assert!(synced["rooms"].is_null(), "lie {number}");
    }
    world.meddler.changes.lock().clear();
    world.join(&room).await.ok();
    world.talk(&room, "a word").await;
}

#[tokio::test]
async fn a_join_whose_answer_is_of_no_use_is_taken_back_elsewhere() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    let useless: Change = |answer| answer["state"] = json!([]);
    let is = async |membership: &str| world.members(&room).await["membership"] == membership;
    world.change("/send_join/", useless);
    world.join(&room).await.refused(502, "M_UNKNOWN");
    until(async || is("leave").await).await;
    // Also by a process that comes after it.
    world
        .meddler
        .changes
        .lock()
        .push(("/make_leave/".to_owned(), |answer| *answer = json!({})));
    world.join(&room).await.refused(502, "M_UNKNOWN");
    until(async || {
        world
            .meddler
            .asked
            .lock()
            .last()
            .unwrap()
            .contains("/make_leave/")
    })
    .await;
    assert!(is("join").await);
    world.meddler.changes.lock().clear();
    let memberships = &world.b.homeserver.components().memberships;
    memberships.resume().await.unwrap();
    until(async || is("leave").await).await;
    // What succeeds is not taken back, whatever was before.
    world.change("/send_join/", useless);
    world.join(&room).await.refused(502, "M_UNKNOWN");
    world.meddler.changes.lock().clear();
    world.join(&room).await.ok();
    memberships.resume().await.unwrap();
    world.talk(&room, "a word").await;
    assert!(is("join").await);
}

#[tokio::test]
async fn a_failed_join_of_somebody_invited_leaves_them_able_to_join_or_refuse() {
    let world = World::new().await;
    let room = world.room(json!({ "preset": "private_chat" })).await;
    let useless: Change = |answer| answer["state"] = json!([]);
    for succeeds in [true, false] {
        world.alice(&room, "invite", &world.bob.user).await.ok();
        world.change("/send_join/", useless);
        world.bob(&room, "join").await.refused(502, "M_UNKNOWN");
        world.meddler.changes.lock().clear();
        if succeeds {
            world.bob(&room, "join").await.ok();
            world.talk(&room, "a word").await;
        }
        world.bob(&room, "leave").await.ok();
        until(async || world.members(&room).await["membership"] == "leave").await;
    }
}

/// An answer is cut while it arrives: what is wrong at its end refuses what came before.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_broken_anywhere_is_refused_as_a_whole() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    let spoils: [Spoil; 9] = [
        |_| String::new(),
        |body| body[..body.len() - 1].to_owned(),
        |body| body[..body.len() / 2].to_owned(),
        |body| format!("{body}{{}}"),
        |body| format!("[{body}]"),
        |body| body.replacen('{', "{\"state\":[],", 1),
        |body| body.replacen("\"auth_chain\":[", "\"auth_chain\":[{]},", 1),
        |body| body.replacen("\"auth_chain\"", "\"chain\"", 1),
        |body| {
            let large = "x".repeat(2 * 1024 * 1024);
            body.replacen("\"state\":[", &format!("\"state\":[\"{large}\","), 1)
        },
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        *world.meddler.spoilt.lock() = Some(spoil);
        let answer = world.join(&room).await;
        assert_eq!(answer.status, 502, "{number}: {}", answer.body);
        let synced = world.sync(None).await;
        assert!(synced["rooms"].is_null(), "{number}");
    }
    // In pieces, with spaces, and with elements that are no events, it is taken.
    *world.meddler.spoilt.lock() = Some(|body| {
        let body = body.replacen("\"state\":[", "\"state\" : [ 1 , null, \"x\", ", 1);
        format!(" \n{body}\t")
    });
    world.join(&room).await.ok();
    world.talk(&room, "a word").await;
}

#[tokio::test(start_paused = true)]
async fn what_lacks_in_an_answer_is_asked_for_and_forged_members_are_left_out() {
    let world = World::new().await;
    let room = world.room(json!({ "room_version": "11" })).await;
    // The auth chain is not told, nor who may join: it is fetched. And somebody is made up.
    world.change("/send_join/", |answer| answer["auth_chain"] = json!([]));
    let forging: Change = |answer| {
        answer["auth_chain"] = json!([]);
        let state = answer["pdus"].as_array_mut().unwrap();
        let member = state.iter().find(|event| event["type"] == "m.room.member");
        let mut forged = member.unwrap().clone();
        forged["sender"] = json!("@eve:evil.example");
        forged["state_key"] = json!("@eve:evil.example");
        state.push(forged);
    };
    let change = ("/v1/state/".to_owned(), forging);
    world.meddler.changes.lock().push(change);
    world.join(&room).await.ok();
    world.bob_has_members(&room, 2).await;
    world.talk(&room, "a word").await;
}

/// A room of Carol at `ccc.example`, in which Alice is, whose server is gone then.
async fn room_with_one_who_is_gone(world: &World) -> String {
    let network = &world.meddler.network;
    let c = join(network, "ccc.example").await;
    let carol = c.register("carol").await;
    let path = format!("{CLIENT}/createRoom");
    let body = json!({ "preset": "public_chat" });
    let created = c.post(&path, Some(&carol.token), body).await.ok();
    let room = created["room_id"].as_str().unwrap().to_owned();
    let via = format!("{CLIENT}/join/{}?via=ccc.example", encode(&room));
    let joined = world.a.post(&via, Some(&world.alice.token), json!({}));
    joined.await.ok();
    network.routers.lock().remove(server_name!("a.example"));
    room
}

impl World {
    /// Bob joins through `ccc.example`. Gives how many are in the room for him then.
    async fn join_through_c(&self, room: &str) -> Result<usize, Value> {
        let path = format!("{CLIENT}/join/{}?via=ccc.example", encode(room));
        let joined = self.b.post(&path, Some(&self.bob.token), json!({})).await;
        if joined.status != 200 {
            assert_eq!(joined.status, 502);
            return Err(joined.body);
        }
        let path = format!("{CLIENT}/rooms/{}/joined_members", encode(room));
        let members = self.b.get(&path, Some(&self.bob.token)).await.ok();
        Ok(members["joined"].as_object().unwrap().len())
    }
}

#[tokio::test(start_paused = true)]
async fn a_room_is_joined_with_the_members_whose_servers_are_gone() {
    let world = World::new().await;
    let room = room_with_one_who_is_gone(&world).await;
    assert_eq!(world.join_through_c(&room).await, Ok(3));
}

#[tokio::test(start_paused = true)]
async fn a_state_that_cannot_be_checked_yet_is_not_taken_in_with_holes() {
    let world = World::new().await;
    let room = room_with_one_who_is_gone(&world).await;
    // The resident keeps the keys of the other server to itself.
    world.change("/key/v2/query", |answer| answer["server_keys"] = json!([]));
    for pause in [0, 7, 13, 25, 49] {
        world.b.clock.advance(std::time::Duration::from_secs(pause));
        let refused = world.join_through_c(&room).await.unwrap_err();
        let why = refused["error"].as_str().unwrap();
        assert!(why.contains("keys of a.example"), "{why}");
    }
    // It is gone, and nobody knows its keys: what it said is no part of the room for those who come.
    world.b.clock.advance(std::time::Duration::from_secs(97));
    assert_eq!(world.join_through_c(&room).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn other_candidates_are_tried() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    let c = join(&world.meddler.network, "ccc.example").await;
    let carol = c.register("carol").await;
    let via = format!("{CLIENT}/join/{}?via=a.example", encode(&room));
    c.post(&via, Some(&carol.token), json!({})).await.ok();
    // Before, it sends others elsewhere.
    let whole = format!("{CLIENT}/rooms/{}/joined_members", encode(&room));
    c.get(&whole, Some(&carol.token)).await.ok();
    let path = format!(
        "{CLIENT}/join/{}?server_name=gone.example&server_name=bb.example&server_name=ccc.example",
        encode(&room)
    );
    world
        .b
        .post(&path, Some(&world.bob.token), json!({}))
        .await
        .ok();
    world.talk(&room, "a word").await;
    let wrong = format!("{CLIENT}/join/{}", encode("#none:a.example"));
    let answer = world
        .b
        .post(&wrong, Some(&world.bob.token), json!({}))
        .await;
    answer.refused(404, "M_NOT_FOUND");
    let wrong = format!("{CLIENT}/join/{}", encode("#none:gone.example"));
    let answer = world
        .b
        .post(&wrong, Some(&world.bob.token), json!({}))
        .await;
    answer.refused(502, "M_UNKNOWN");
    let wrong = format!("{CLIENT}/join/{}", encode("!none:a.example"));
    let answer = world
        .b
        .post(&wrong, Some(&world.bob.token), json!({}))
        .await;
    answer.refused(404, "M_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn a_room_with_more_state_than_one_part_of_an_import_is_joined() {
    let world = World::new().await;
    let room = world.room(json!({})).await;
    for number in 0..230 {
        let path = format!(
            "{CLIENT}/rooms/{}/state/org.example.place/{number}",
            encode(&room)
        );
        let body = json!({ "number": number });
        world
            .a
            .put(&path, Some(&world.alice.token), body)
            .await
            .ok();
    }
    world.join(&room).await.ok();
    let path = format!("{CLIENT}/rooms/{}/state", encode(&room));
    let state = world.b.get(&path, Some(&world.bob.token)).await.ok();
    let kinds = types(&state);
    let places = kinds.iter().filter(|kind| *kind == "org.example.place");
    assert_eq!(places.count(), 230);
    world.talk(&room, "a word").await;
}

#[tokio::test(start_paused = true)]
async fn an_alias_elsewhere_leads_to_its_room() {
    let world = World::new().await;
    let room = world.room(json!({ "room_alias_name": "far" })).await;
    let alias = encode("#far:a.example");
    let path = format!("{CLIENT}/directory/room/{alias}");
    let found = world.b.get(&path, None).await.ok();
    assert_eq!(found["room_id"], *room);
    assert_eq!(found["servers"], json!(["a.example"]));
    let path = format!("{CLIENT}/join/{alias}");
    let joined = world.b.post(&path, Some(&world.bob.token), json!({})).await;
    assert_eq!(joined.ok()["room_id"], *room);
    world.talk(&room, "a word").await;
}

#[tokio::test(start_paused = true)]
async fn state_with_a_knock_that_is_none_does_no_harm() {
    let world = World::new().await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = world.room(json!({ "initial_state": [rule] })).await;
    let path = format!("{CLIENT}/knock/{}?via=a.example", encode(&room));
    let states: [Change; 3] = [
        |answer| answer["knock_room_state"] = json!(null),
        |answer| answer["knock_room_state"] = json!([null, {}, { "type": "x" }]),
        |answer| *answer = json!({}),
    ];
    for state in states {
        world.change("/send_knock/", state);
        let knocked = world.b.post(&path, Some(&world.bob.token), json!({})).await;
        knocked.ok();
        let synced = world.sync(None).await;
        let told = &synced["rooms"]["knock"][&*room]["knock_state"]["events"];
        assert_eq!(types(told), ["m.room.member"]);
        world.bob(&room, "leave").await.ok();
        until(async || world.members(&room).await["membership"] == "leave").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_knock_is_refused_by_a_server_that_it_did_not_go_through() {
    let world = World::new().await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let levels = json!({ "users": { "@carol:ccc.example": 50, "@alice:a.example": 100 } });
    let room = world
        .room(json!({
            "initial_state": [rule], "power_level_content_override": levels,
            "room_version": "11",
        }))
        .await;
    let c = join(&world.meddler.network, "ccc.example").await;
    let carol = c.register("carol").await;
    world.alice(&room, "invite", &carol.user).await.ok();
    let path = format!("{CLIENT}/rooms/{}/join", encode(&room));
    c.post(&path, Some(&carol.token), json!({})).await.ok();
    let path = format!("{CLIENT}/knock/{}?via=a.example", encode(&room));
    let knocked = world.b.post(&path, Some(&world.bob.token), json!({})).await;
    knocked.ok();
    // Somebody who has nothing to say there cannot make it look refused.
    let knocks = async || {
        let synced = world.sync(None).await;
        synced["rooms"]["knock"][&*room].is_object()
    };
    let forged = |peer: &Fresh| {
        let keys = &peer.homeserver.components().federation.own_keys;
        let draft = Draft {
            room_id: Some(room.as_str().try_into().unwrap()),
            sender: "@mallory:dddd.example".try_into().unwrap(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(world.bob.user.clone()),
            content: to_raw_value(&json!({ "membership": "leave" })).unwrap(),
            origin_server_ts: START,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 50,
            redacts: None,
        };
        let rules = RoomVersion::V11.rules();
        let sealed = draft
            .seal(rules, keys.server(), keys.signing_key())
            .unwrap();
        format!(
            r#"{{"origin":"dddd.example","origin_server_ts":1,"pdus":[{}]}}"#,
            sealed.json_str()
        )
    };
    let d = join(&world.meddler.network, "dddd.example").await;
    let call = Call::put(Path::v1("send").segment("1"), forged(&d));
    let peers = &d.homeserver.components().federation.peers;
    peers.ask(server_name!("bb.example"), call).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_mins(10)).await;
    assert!(knocks().await);
    // And who has is heard.
    let path = format!("{CLIENT}/rooms/{}/kick", encode(&room));
    until(async || {
        let body = json!({ "user_id": world.bob.user });
        c.post(&path, Some(&carol.token), body).await.status == 200
    })
    .await;
    for _ in 0..60 {
        if !knocks().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    }
    panic!("the knock stays");
}
