//! Joins with partial state: what users and servers can do meanwhile, and what follows.

use super::*;

const CLIENT: &str = "/_matrix/client/v3";

/// A filter with which members are loaded lazily.
const LAZY: &str = r#"{"room":{"state":{"lazy_load_members":true}}}"#;

/// A network in which the states of rooms are told to one server, or not.
#[derive(Debug, Default)]
struct Gate {
    network: Arc<Network>,
    closed: std::sync::atomic::AtomicBool,
    /// Servers that are said to be in rooms, if not as it is.
    servers: Mutex<Option<Value>>,
}

#[async_trait]
impl Transport for Gate {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        let path = outgoing.request.uri().path().to_owned();
        if path.contains("/v1/state/") && self.closed.load(std::sync::atomic::Ordering::SeqCst) {
            // No more than this request fails: the server is well.
            let refused = json!({ "errcode": "M_NOT_FOUND", "error": "not now" }).to_string();
            return Ok(Reply {
                status: http::StatusCode::NOT_FOUND,
                headers: http::HeaderMap::new(),
                body: ReplyBody::new(stream::iter([Ok(refused.into())]), outgoing.limits.body),
            });
        }
        let limit = outgoing.limits.body;
        let reply = self.network.send(outgoing).await?;
        let servers = self.servers.lock().clone();
        let Some(servers) = servers.filter(|_| path.contains("/send_join/")) else {
            return Ok(reply);
        };
        let body = reply.body.whole().await?;
        let mut body: Value = serde_json::from_slice(&body).unwrap();
        body["servers_in_room"] = servers;
        let body = bytes::Bytes::from(body.to_string());
        Ok(Reply {
            status: reply.status,
            headers: reply.headers,
            body: ReplyBody::new(stream::iter([Ok(body)]), limit),
        })
    }
}

impl Gate {
    fn close(&self, closed: bool) {
        self.closed
            .store(closed, std::sync::atomic::Ordering::SeqCst);
    }
}

/// `bb.example`, over the gate, with this database.
async fn b_on(gate: &Arc<Gate>, engine: &Arc<MemoryEngine>) -> Fresh {
    let name = server_name!("bb.example").to_owned();
    let mut config = Config {
        server_name: name.clone(),
        ..Config::default()
    };
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    let clock = Arc::new(ManualClock::new(START));
    let homeserver = Homeserver::configured(config)
        .engine(Arc::clone(engine) as _)
        .transport(Arc::clone(gate) as _)
        .runtime(Runtime::simulated(Arc::clone(&clock), 77))
        .open()
        .await
        .unwrap();
    let router = homeserver.router();
    gate.network.routers.lock().insert(name, router.clone());
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

async fn until(mut so: impl AsyncFnMut() -> bool) {
    let look = async {
        while !so().await {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let patience = std::time::Duration::from_mins(1);
    tokio::time::timeout(patience, look).await.unwrap();
}

async fn join_via(server: &Fresh, user: &LoggedIn, room: &str, via: &str) -> Answer {
    let path = format!("{CLIENT}/join/{}?via={via}", encode(room));
    server.post(&path, Some(&user.token), json!({})).await
}

async fn say(server: &Fresh, user: &LoggedIn, room: &str, words: &str) {
    let place = format!("send/m.room.message/{}", encode(words));
    let path = format!("{CLIENT}/rooms/{}/{place}", encode(room));
    let body = json!({ "msgtype": "m.text", "body": words });
    server.put(&path, Some(&user.token), body).await.ok();
}

async fn sync(server: &Fresh, user: &LoggedIn, filter: &str, since: Option<&str>) -> Value {
    let since = since.map_or(String::new(), |since| format!("&since={since}"));
    let path = format!("{CLIENT}/sync?timeout=0&filter={}{since}", encode(filter));
    server.get(&path, Some(&user.token)).await.ok()
}

/// The room's part of a first, lazily loading sync.
async fn shown(server: &Fresh, user: &LoggedIn, room: &str) -> Value {
    sync(server, user, LAZY, None).await["rooms"]["join"][room].clone()
}

fn bodies(told: &Value) -> Vec<String> {
    let events = told["timeline"]["events"].as_array().cloned();
    let events = events.unwrap_or_default().into_iter();
    let body = |event: Value| event["content"]["body"].as_str().map(ToOwned::to_owned);
    events.filter_map(body).collect()
}

async fn until_read(server: &Fresh, user: &LoggedIn, room: &str, words: &str) {
    until(async || bodies(&shown(server, user, room).await).contains(&words.to_owned())).await;
}

/// The members that a part of a sync tells beside the timeline.
fn members(told: &Value) -> Vec<String> {
    let events = told["state"]["events"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let members = events
        .iter()
        .filter(|event| event["type"] == "m.room.member");
    let mut names: Vec<_> = members
        .map(|event| event["state_key"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// `a.example` with some users in a room, and `bb.example` with Bob.
struct World {
    gate: Arc<Gate>,
    engine: Arc<MemoryEngine>,
    a: Fresh,
    b: Fresh,
    /// Alice, Carol and Dave.
    theirs: Vec<LoggedIn>,
    bob: LoggedIn,
    room: String,
}

impl World {
    async fn new(version: &str) -> Self {
        let gate = Arc::new(Gate::default());
        let engine = Arc::new(MemoryEngine::new());
        let a = join(&gate.network, "a.example").await;
        let b = b_on(&gate, &engine).await;
        let bob = b.register("bob").await;
        let mut theirs = Vec::new();
        for name in ["alice", "carol", "dave"] {
            theirs.push(a.register(name).await);
        }
        let body = json!({ "name": "far", "preset": "public_chat", "room_version": version });
        let path = format!("{CLIENT}/createRoom");
        let created = a.post(&path, Some(&theirs[0].token), body).await;
        let room = created.ok()["room_id"].as_str().unwrap().to_owned();
        for user in &theirs[1..] {
            join_via(&a, user, &room, "a.example").await.ok();
        }
        Self {
            gate,
            engine,
            a,
            b,
            theirs,
            bob,
            room,
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("{CLIENT}/rooms/{}/{rest}", encode(&self.room))
    }

    /// What Bob reads of the room.
    async fn read(&self, rest: &str) -> Answer {
        self.b.get(&self.path(rest), Some(&self.bob.token)).await
    }

    fn is_partial(&self) -> bool {
        let rooms = &self.b.homeserver.components().rooms;
        !rooms.partial_rooms().is_empty()
    }

    /// What `a.example` asks the other server, as a server.
    async fn asked(&self, path: Path) -> Result<Value, CallError> {
        let peers = &self.a.homeserver.components().federation.peers;
        let answer = peers.ask(server_name!("bb.example"), Call::get(path)).await;
        answer.map(|answer| serde_json::from_slice(&answer.body).unwrap())
    }
}

fn is_not_found(answer: &Result<Value, CallError>) -> bool {
    matches!(answer, Err(CallError::Refused { errcode, .. }) if errcode == "M_NOT_FOUND")
}

#[tokio::test]
async fn a_room_is_used_before_its_members_are_known_and_after_a_restart() {
    for version in ["11", "12"] {
        let mut world = World::new(version).await;
        world.gate.close(true);
        let before = sync(&world.b, &world.bob, LAZY, None).await;
        let before = before["next_batch"].as_str().unwrap();
        let (alice, carol) = (&world.theirs[0], &world.theirs[1]);
        join_via(&world.b, &world.bob, &world.room, "a.example")
            .await
            .ok();
        assert!(world.is_partial());

        // Who loads members lazily has the room at once, others once they are there.
        let told = shown(&world.b, &world.bob, &world.room).await;
        assert!(told.is_object());
        let all = sync(&world.b, &world.bob, "{}", None).await;
        assert!(all["rooms"]["join"].is_null(), "{all}");
        let since = all["next_batch"].as_str().unwrap().to_owned();
        let name = world.read("state/m.room.name/").await.ok();
        assert_eq!(name["name"], "far");
        assert!(world.read("messages?dir=f").await.ok()["chunk"].is_array());

        // Both sides speak, Bob to servers that he is only told of.
        say(&world.b, &world.bob, &world.room, "hello").await;
        until_read(&world.a, alice, &world.room, "hello").await;
        say(&world.a, carol, &world.room, "welcome").await;
        until_read(&world.b, &world.bob, &world.room, "welcome").await;
        let told = shown(&world.b, &world.bob, &world.room).await;
        assert!(members(&told).contains(&carol.user), "{told}");
        // Somebody else joins here.
        let erin = world.b.register("erin").await;
        join_via(&world.b, &erin, &world.room, "a.example")
            .await
            .ok();

        // Other servers are sent elsewhere.
        let room = Path::v1("make_join").segment(&world.room);
        let joining = room.segment("@alice:a.example").query("ver", version);
        assert!(is_not_found(&world.asked(joining).await));
        let newest =
            world.read("messages?dir=b&limit=1").await.ok()["chunk"][0]["event_id"].clone();
        let state = Path::v1("state_ids").segment(&world.room);
        let state = state.query("event_id", newest.as_str().unwrap());
        assert!(is_not_found(&world.asked(state).await));

        // It is the same after a restart.
        world.b.homeserver.shutdown().await;
        world.b = b_on(&world.gate, &world.engine).await;
        assert!(world.is_partial());
        say(&world.b, &world.bob, &world.room, "again").await;
        until_read(&world.a, &world.theirs[0], &world.room, "again").await;

        // Whoever asks for the members waits for them.
        let lazily = sync(&world.b, &world.bob, LAZY, None).await;
        let lazily = lazily["next_batch"].as_str().unwrap().to_owned();
        let dave = format!("state/m.room.member/{}", encode(&world.theirs[2].user));
        let asking = async {
            let asked = (
                world.read("joined_members"),
                world.read("state"),
                world.read(&dave),
            );
            tokio::join!(asked.0, asked.1, asked.2)
        };
        let opening = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            world.gate.close(false);
        };
        let ((joined, state, member), ()) = tokio::join!(asking, opening);
        let joined = joined.ok();
        let state = state.ok();
        let state = state.as_array().unwrap().iter();
        let in_state = state.filter(|event| event["type"] == "m.room.member");
        assert_eq!(in_state.count(), 5);
        assert_eq!(member.ok()["membership"], "join");
        assert_eq!(joined["joined"].as_object().unwrap().len(), 5, "{joined}");
        assert!(!world.is_partial());
        let at = format!("members?at={}", encode(&lazily));
        let listed = world.read(&at).await.ok();
        assert_eq!(listed["chunk"].as_array().unwrap().len(), 5, "{listed}");

        // Then all are told of it.
        let all = sync(&world.b, &world.bob, "{}", Some(&since)).await;
        let told = &all["rooms"]["join"][&*world.room];
        assert_eq!(told["summary"]["m.joined_member_count"], 5, "{all}");
        assert!(members(told).contains(&world.theirs[2].user), "{told}");
        assert!(bodies(told).contains(&"again".to_owned()));
        let changed = all["device_lists"]["changed"].to_string();
        assert!(changed.contains(&*world.theirs[2].user), "{changed}");
        let few = sync(&world.b, &world.bob, LAZY, Some(&lazily)).await;
        let told = &few["rooms"]["join"][&*world.room];
        assert!(!members(told).contains(&world.theirs[2].user), "{told}");
        let changed = few["device_lists"]["changed"].to_string();
        assert!(changed.contains(&*world.theirs[2].user), "{changed}");
        assert!(sync(&world.b, &world.bob, LAZY, Some(before)).await["rooms"].is_object());
        let state = Path::v1("state_ids").segment(&world.room);
        let state = state.query("event_id", newest.as_str().unwrap());
        assert!(world.asked(state).await.unwrap()["pdu_ids"].is_array());
        say(&world.a, &world.theirs[2], &world.room, "so you are").await;
        until_read(&world.b, &world.bob, &world.room, "so you are").await;
    }
}

#[tokio::test]
async fn the_members_come_from_another_server_where_the_first_one_is_gone() {
    let world = World::new("11").await;
    let c = join(&world.gate.network, "ccc.example").await;
    let frank = c.register("frank").await;
    join_via(&c, &frank, &world.room, "a.example").await.ok();
    let whole = world.path("joined_members");
    c.get(&whole, Some(&frank.token)).await.ok();
    world.gate.close(true);
    join_via(&world.b, &world.bob, &world.room, "a.example")
        .await
        .ok();
    // The other server hears of the join.
    until(async || {
        let members = c.get(&whole, Some(&frank.token)).await.ok();
        members["joined"][&*world.bob.user].is_object()
    })
    .await;
    world
        .gate
        .network
        .routers
        .lock()
        .remove(server_name!("a.example"));
    world.gate.close(false);
    until(async || !world.is_partial()).await;
    let joined = world.read("joined_members").await.ok();
    assert_eq!(joined["joined"].as_object().unwrap().len(), 5);
    say(&world.b, &world.bob, &world.room, "anybody?").await;
    until_read(&c, &frank, &world.room, "anybody?").await;
}

#[tokio::test]
async fn servers_that_are_made_up_cost_nothing_but_what_is_sent_to_them() {
    let world = World::new("11").await;
    let mut servers: Vec<Value> = vec![json!(7), json!("no name!"), json!("bb.example")];
    servers.extend((0..6000).map(|number| json!(format!("s{number}.invalid"))));
    *world.gate.servers.lock() = Some(json!(servers));
    world.gate.close(true);
    join_via(&world.b, &world.bob, &world.room, "a.example")
        .await
        .ok();
    let rooms = &world.b.homeserver.components().rooms;
    let number = rooms.partial_rooms()[0];
    let told = rooms.said_to_be_in(number, usize::MAX);
    let limit = homeserver_rooms::MAX_PARTIAL_SERVERS;
    assert!((limit - 10..=limit).contains(&told.len()), "{}", told.len());
    assert_eq!(told[0], "a.example");
    say(&world.b, &world.bob, &world.room, "to all").await;
    until_read(&world.a, &world.theirs[0], &world.room, "to all").await;
    world.gate.close(false);
    until(async || !world.is_partial()).await;
    let joined = world.read("joined_members").await.ok();
    assert_eq!(joined["joined"].as_object().unwrap().len(), 4);
    assert!(rooms.said_to_be_in(number, usize::MAX).is_empty());
}

#[tokio::test]
async fn a_room_that_is_left_before_it_is_whole_is_joined_in_full() {
    let world = World::new("11").await;
    world.gate.close(true);
    join_via(&world.b, &world.bob, &world.room, "a.example")
        .await
        .ok();
    let leave = world.path("leave");
    world
        .b
        .post(&leave, Some(&world.bob.token), json!({}))
        .await
        .ok();
    let member = format!("state/m.room.member/{}", encode(&world.bob.user));
    let member = world.path(&member);
    until(async || {
        let answer = world.a.get(&member, Some(&world.theirs[0].token));
        answer.await.body["membership"] == "leave"
    })
    .await;
    join_via(&world.b, &world.bob, &world.room, "a.example")
        .await
        .ok();
    assert!(!world.is_partial());
    let joined = world.read("joined_members").await.ok();
    assert_eq!(joined["joined"].as_object().unwrap().len(), 4);
    say(&world.b, &world.bob, &world.room, "back").await;
    until_read(&world.a, &world.theirs[0], &world.room, "back").await;
}

/// Something that users of `a.example` did before they knew of the rest.
struct Aside<'a> {
    world: &'a World,
    auth: Vec<ruma::OwnedEventId>,
}

impl<'a> Aside<'a> {
    async fn new(world: &'a World) -> Self {
        let path = world.path("state");
        let state = world.a.get(&path, Some(&world.theirs[0].token)).await.ok();
        let alice = world.theirs[0].user.as_str();
        // Where the room is named by its create event, that is not named again.
        let create = world.room.contains(':').then_some("m.room.create");
        let named = state.as_array().unwrap().iter().filter(|event| {
            let kind = event["type"].as_str();
            (create.is_some() && kind == create)
                || kind == Some("m.room.power_levels")
                || event["state_key"] == alice
        });
        let id = |event: &Value| event["event_id"].as_str().unwrap().try_into().unwrap();
        let auth = named.map(id).collect();
        Self { world, auth }
    }

    /// Alice does this after an event, and her server takes it.
    async fn does(
        &self,
        (kind, state_key): (&str, Option<&str>),
        content: &Value,
        prev: (&ruma::EventId, u64),
    ) -> ruma::OwnedEventId {
        let parts = self.world.a.homeserver.components();
        let room = ruma::RoomId::parse(&*self.world.room).unwrap();
        let room = parts.rooms.room(&room).await.unwrap().unwrap();
        let draft = homeserver_events::Draft {
            room_id: Some(room.id.clone()),
            sender: ruma::UserId::parse(&*self.world.theirs[0].user).unwrap(),
            event_type: kind.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            content: serde_json::value::to_raw_value(content).unwrap(),
            origin_server_ts: START + 5,
            prev_events: vec![prev.0.to_owned().into()],
            auth_events: self.auth.iter().cloned().map(Into::into).collect(),
            depth: prev.1,
            redacts: None,
        };
        let own = &parts.federation.own_keys;
        let pdu = draft.seal(room.rules, own.server(), own.signing_key());
        let pdu = pdu.unwrap();
        let id = pdu.event_id().to_owned();
        let received = parts.rooms.receive(&room, pdu).await.unwrap();
        let accepted = homeserver_events::StatusKind::Accepted;
        assert!(
            matches!(received, homeserver_rooms::Received::Judged { status, .. } if status == accepted),
            "{received:?}"
        );
        id
    }
}

/// A branch that was older than the join when it came to light: what of it is news is taken at once,
/// also before the members are known, and no history with it.
#[tokio::test]
async fn what_follows_something_from_before_the_join_is_taken_at_once_and_no_history_with_it() {
    for (version, late) in [("11", true), ("11", false), ("12", true)] {
        let world = World::new(version).await;
        let alice = &world.theirs[0];
        for number in 0..25 {
            say(&world.a, alice, &world.room, &format!("before {number}")).await;
        }
        let path = world.path("messages?dir=b&limit=1");
        let newest = world.a.get(&path, Some(&alice.token)).await.ok();
        let old: ruma::OwnedEventId = newest["chunk"][0]["event_id"]
            .as_str()
            .unwrap()
            .try_into()
            .unwrap();
        let parts = world.a.homeserver.components();
        let place = parts
            .rooms
            .serve_event(server_name!("a.example"), &old)
            .await;
        let place = place.unwrap().depth();
        for number in 25..30 {
            say(&world.a, alice, &world.room, &format!("before {number}")).await;
        }
        world.gate.close(late);
        join_via(&world.b, &world.bob, &world.room, "a.example")
            .await
            .ok();
        until(async || late || !world.is_partial()).await;

        let aside = Aside::new(&world).await;
        let topic = json!({ "topic": "another" });
        let topic = aside
            .does(("m.room.topic", Some("")), &topic, (&old, place + 1))
            .await;
        let body = json!({ "msgtype": "m.text", "body": "aside" });
        let said = aside
            .does(("m.room.message", None), &body, (&topic, place + 2))
            .await;
        say(&world.a, alice, &world.room, "news").await;
        until_read(&world.b, &world.bob, &world.room, "news").await;
        assert_eq!(world.is_partial(), late);
        let told = world.read("state/m.room.topic/").await.ok();
        assert_eq!(told["topic"], "another");
        let arrived = async || {
            let rooms = &world.b.homeserver.components().rooms;
            let room = ruma::RoomId::parse(&*world.room).unwrap();
            let room = rooms.room(&room).await.unwrap().unwrap();
            let arrived = rooms.arrivals(room.number, 0, u64::MAX, 100).await;
            arrived.unwrap().len()
        };
        let count = arrived().await;
        assert!(
            count <= 4,
            "{count}: the join, the topic, and what was said"
        );

        world.gate.close(false);
        until(async || !world.is_partial()).await;
        assert_eq!(
            world.read("state/m.room.topic/").await.ok()["topic"],
            "another"
        );
        assert_eq!(arrived().await, count);
        say(&world.a, &world.theirs[1], &world.room, "more").await;
        until_read(&world.b, &world.bob, &world.room, "more").await;
        say(&world.b, &world.bob, &world.room, "so it is").await;
        until_read(&world.a, alice, &world.room, "so it is").await;
        // The rest is there for who pages back.
        until(async || {
            let page = world.read("messages?dir=b&limit=100").await.ok();
            let all: Vec<_> = page["chunk"].as_array().unwrap().clone();
            all.iter().any(|event| event["event_id"] == *said.as_str())
                && all
                    .iter()
                    .any(|event| event["content"]["body"] == "before 29")
        })
        .await;
    }
}
