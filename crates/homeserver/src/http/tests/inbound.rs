//! Transactions of other servers, over the wire.

use homeserver_events::Pdu;
use ruma::{OwnedEventId, OwnedRoomId};

use super::{
    peer::{NewEvent, Peer, START, Servers},
    *,
};
use crate::HomeserverBuilder;

/// A homeserver with a room of Alice's, in which a user of another server is, too.
pub(super) struct World {
    pub(super) here: Fresh,
    pub(super) servers: Arc<Servers>,
    pub(super) peer: Arc<Peer>,
    pub(super) alice: LoggedIn,
    pub(super) room: OwnedRoomId,
    /// The events that allow Mallory to speak.
    pub(super) auth: Vec<OwnedEventId>,
    /// Mallory's join.
    pub(super) join: Pdu,
}

async fn homeserver(servers: &Arc<Servers>, engine: Arc<MemoryEngine>) -> Fresh {
    homeserver_with(servers, |builder| builder.engine(engine)).await
}

/// A homeserver, `here.example`, whose engine `with` chooses.
pub(super) async fn homeserver_with(
    servers: &Arc<Servers>,
    with: impl FnOnce(HomeserverBuilder) -> HomeserverBuilder,
) -> Fresh {
    let mut config = Config {
        server_name: ruma::owned_server_name!("here.example"),
        ..Config::default()
    };
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    let clock = Arc::new(ManualClock::new(START));
    let builder = Homeserver::configured(config)
        .transport(Arc::clone(servers) as _)
        .runtime(Runtime::simulated(Arc::clone(&clock), 5));
    let homeserver = with(builder).open().await.unwrap();
    Fresh {
        router: homeserver.router(),
        homeserver,
        clock,
    }
}

impl World {
    pub(super) async fn new() -> Self {
        let servers = Arc::new(Servers::default());
        Self::on(&servers, Arc::new(MemoryEngine::new())).await
    }

    pub(super) async fn on(servers: &Arc<Servers>, engine: Arc<MemoryEngine>) -> Self {
        let peer = servers.add("peer.example", 1);
        let here = homeserver(servers, engine).await;
        let alice = here.register("alice").await;
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let path = "/_matrix/client/v3/createRoom";
        let created = here.post(path, Some(&alice.token), body).await.ok();
        let room = OwnedRoomId::try_from(created["room_id"].as_str().unwrap()).unwrap();
        let mut world = Self {
            join: peer.event(&NewEvent {
                room: &room,
                sender: "mallory",
                kind: "m.room.member",
                state_key: None,
                content: json!({}),
                prev: Vec::new(),
                auth: Vec::new(),
                depth: 1,
            }),
            here,
            servers: Arc::clone(servers),
            peer,
            alice,
            room,
            auth: Vec::new(),
        };
        let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
        world.auth = rules.await;
        world.join = world.peer.event(&NewEvent {
            kind: "m.room.member",
            state_key: Some("@mallory:peer.example"),
            content: json!({ "membership": "join" }),
            ..world.message(&[world.last().await])
        });
        world.send("join", &[&world.join]).await;
        world.until(&world.join).await;
        let rules = world.state(&["m.room.create", "m.room.power_levels"]);
        world.auth = rules.await;
        world.auth.push(world.join.event_id().to_owned());
        world
    }

    /// The events of these types and without a state key in the room's state.
    pub(super) async fn state(&self, types: &[&str]) -> Vec<OwnedEventId> {
        let path = format!("/_matrix/client/v3/rooms/{}/state", self.room);
        let state = self.here.get(&path, Some(&self.alice.token)).await.ok();
        let state = state.as_array().unwrap();
        let of = |kind: &&str| {
            let mut events = state.iter();
            let event = events.find(|event| event["type"] == *kind && event["state_key"] == "");
            OwnedEventId::try_from(event.unwrap()["event_id"].as_str().unwrap()).unwrap()
        };
        types.iter().map(of).collect()
    }

    /// The same world over another homeserver of its name.
    pub(super) fn with(&self, here: Fresh) -> Self {
        Self {
            here,
            servers: Arc::clone(&self.servers),
            peer: Arc::clone(&self.peer),
            alice: self.alice.clone(),
            room: self.room.clone(),
            auth: self.auth.clone(),
            join: self.join.clone(),
        }
    }

    /// The newest event of the room, as Alice sees it.
    pub(super) async fn last(&self) -> OwnedEventId {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1",
            self.room
        );
        let page = self.here.get(&path, Some(&self.alice.token)).await.ok();
        let id = page["chunk"][0]["event_id"].as_str().unwrap();
        OwnedEventId::try_from(id).unwrap()
    }

    /// What a message of Mallory's is made of, to be changed.
    pub(super) fn message(&self, prev: &[OwnedEventId]) -> NewEvent<'_> {
        NewEvent {
            room: &self.room,
            sender: "mallory",
            kind: "m.room.message",
            state_key: None,
            content: json!({ "msgtype": "m.text", "body": "hello" }),
            prev: prev.to_vec(),
            auth: self.auth.clone(),
            depth: 20,
        }
    }

    /// A chain of messages after an event.
    pub(super) fn chain(&self, after: &Pdu, length: usize) -> Vec<Pdu> {
        let mut chain = vec![after.clone()];
        for number in 0..length {
            let last = chain.last().unwrap().event_id().to_owned();
            chain.push(self.peer.event(&NewEvent {
                content: json!({ "msgtype": "m.text", "body": number.to_string() }),
                ..self.message(&[last])
            }));
        }
        chain.remove(0);
        chain
    }

    pub(super) async fn send(&self, id: &str, pdus: &[&Pdu]) -> Value {
        self.peer.send(&self.here, id, pdus).await
    }

    pub(super) async fn is_seen(&self, event: &Pdu) -> bool {
        let id = event.event_id();
        let path = format!("/_matrix/client/v3/rooms/{}/event/{id}", self.room);
        let answer = self.here.get(&path, Some(&self.alice.token)).await;
        answer.status == 200
    }

    /// Waits until Alice sees an event.
    pub(super) async fn until(&self, event: &Pdu) {
        for _ in 0..1_500 {
            if self.is_seen(event).await {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        panic!("it does not arrive: {event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn events_arrive_in_their_order_and_each_is_answered() {
    let world = World::new().await;
    let chain = world.chain(&world.join, 50);
    let refs: Vec<&Pdu> = chain.iter().collect();
    let results = world.send("1", &refs).await;
    for event in &chain {
        assert_eq!(results[event.event_id().as_str()], json!({}));
    }
    world.until(&chain[49]).await;
    assert_eq!(world.last().await, chain[49].event_id());
    // The same again is no news.
    let again = world.send("2", &refs).await;
    assert_eq!(again, results);
}

#[tokio::test(start_paused = true)]
async fn one_bad_event_costs_only_itself() {
    let world = World::new().await;
    let good = world.chain(&world.join, 2);
    let evil = Peer::new("peer.example", 9);
    let forged = evil.event(&world.message(&[world.join.event_id().to_owned()]));
    let bodies = [
        good[0].json_str().to_owned(),
        forged.json_str().to_owned(),
        "7".to_owned(),
        r#"{"room_id":7}"#.to_owned(),
        good[1].json_str().to_owned(),
    ];
    let body = format!(r#"{{"pdus":[{}]}}"#, bodies.join(","));
    let answer = world.peer.transaction(&world.here, "1", &body).await.ok();
    let results = answer["pdus"].as_object().unwrap();
    assert_eq!(results.len(), 3, "{results:?}");
    for event in &good {
        assert_eq!(results[event.event_id().as_str()], json!({}));
    }
    assert!(results[forged.event_id().as_str()]["error"].is_string());
    world.until(&good[1]).await;
    assert!(!world.is_seen(&forged).await);
}

#[tokio::test(start_paused = true)]
async fn missing_events_are_fetched_from_who_sent_their_successor() {
    let world = World::new().await;
    let chain = world.chain(&world.join, 35);
    for event in &chain {
        world.peer.has(event);
    }
    world.send("1", &[&chain[34]]).await;
    world.until(&chain[34]).await;
    for event in &chain {
        assert!(world.is_seen(event).await);
    }
    let asked = world.peer.asked();
    assert_eq!(asked.len(), 4, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_transaction_is_refused() {
    let world = World::new().await;
    let many =
        |list: &str, count: usize| format!(r#"{{"{list}":[{}]}}"#, vec!["{}"; count].join(","));
    for (body, code) in [
        (r#"{"pdus":7}"#.to_owned(), "M_BAD_JSON"),
        (many("pdus", 51), "M_BAD_JSON"),
        (many("edus", 101), "M_BAD_JSON"),
    ] {
        let answer = world.peer.transaction(&world.here, "1", &body).await;
        answer.refused(400, code);
    }
    for body in ["{}".to_owned(), many("pdus", 50), many("edus", 100)] {
        let answer = world.peer.transaction(&world.here, "1", &body).await.ok();
        assert_eq!(answer, json!({ "pdus": {} }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_is_answered_as_before_and_another_under_its_id_is_taken() {
    let world = World::new().await;
    let chain = world.chain(&world.join, 2);
    let body = |pdu: &Pdu| format!(r#"{{"pdus":[{}]}}"#, pdu.json_str());
    let send = async |pdu: &Pdu| {
        let body = body(pdu);
        let answer = world.peer.transaction(&world.here, "same", &body);
        answer.await.ok()
    };
    let first = send(&chain[0]).await;
    assert_eq!(send(&chain[0]).await, first);
    let second = send(&chain[1]).await;
    assert_ne!(second, first);
    world.until(&chain[1]).await;
    // Another server's transaction of this name is another one.
    let other = world.servers.add("other.example", 2);
    let answer = other
        .transaction(&world.here, "same", r#"{"pdus":[]}"#)
        .await;
    assert_eq!(answer.ok(), json!({ "pdus": {} }));
}

/// What was answered is on disk; what it lacks is fetched by the next start.
#[tokio::test(start_paused = true)]
async fn what_waits_is_worked_off_after_a_restart() {
    let servers = Arc::new(Servers::default());
    let engine = Arc::new(MemoryEngine::new());
    let world = World::on(&servers, Arc::clone(&engine)).await;
    let chain = world.chain(&world.join, 3);
    world.send("1", &[&chain[2]]).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(
        !world.peer.asked().is_empty(),
        "it was asked, and had nothing"
    );
    world.here.homeserver.shutdown().await;
    for event in &chain {
        world.peer.has(event);
    }
    let here = homeserver(&servers, engine).await;
    let world = World { here, ..world };
    world.until(&chain[2]).await;
    assert!(world.is_seen(&chain[0]).await);
}

/// Events of a server whose keys cannot be had wait, and nobody waits for them.
#[tokio::test(start_paused = true)]
async fn events_wait_for_the_keys_of_their_server() {
    let world = World::new().await;
    let late = Arc::new(Peer::new("late.example", 3));
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let join = late.event(&NewEvent {
        kind: "m.room.member",
        state_key: Some("@late:late.example"),
        sender: "late",
        content: json!({ "membership": "join" }),
        auth: rules.await,
        ..world.message(&[world.join.event_id().to_owned()])
    });
    let results = world.send("1", &[&join]).await;
    assert_eq!(results[join.event_id().as_str()], json!({}));
    let next = &world.chain(&world.join, 1)[0];
    world.send("2", &[next]).await;
    world.until(next).await;
    assert!(!world.is_seen(&join).await);
    world.servers.put(late);
    world.here.clock.advance(std::time::Duration::from_hours(1));
    world.until(&join).await;
}
