//! One lie each: a few servers that do as they should, one that lies, a network without faults, and
//! what exactly comes of it.

mod answers;
mod forged;
mod graph;
mod power;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use homeserver::events::Pdu;
use homeserver_tests::encode;
use http::Method;
use parking_lot::Mutex;
use ruma::OwnedServerName;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    actors::{Actor, Room},
    disk::Disk,
    liar::Liar,
    network::Network,
    verdict,
    world::{Cast, Host, World},
};

/// Servers that do as they should.
const HONEST: u64 = 3;
/// How long something is waited for that must come, and how often it is looked after.
const LOOKS: u64 = 90;
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The servers, and a room that all of them are in.
pub(super) struct Stage {
    world: World,
    actors: Vec<Actor>,
    liar: Arc<Liar>,
    room: String,
}

/// Plays a scenario in a room of this version.
fn staged(version: &str, play: impl AsyncFnOnce(&Stage)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let stage = Stage::set(version).await;
        play(&stage).await;
        stage.end().await;
    });
}

impl Stage {
    async fn set(version: &str) -> Self {
        let network = Arc::new(Network::new(1));
        network.heal();
        let hosts = (0..HONEST).map(|number| Host::new(number, Disk::sound(), number));
        let world = World {
            network,
            rooms: Mutex::default(),
            faults: Mutex::default(),
            cast: Cast::Liar,
            hosts: hosts.collect(),
        };
        let mut actors = Vec::new();
        for (number, host) in world.hosts.iter().enumerate() {
            host.start(&world.network, 0).await;
            actors.push(Actor::register(&world, &host.name, number as u64).await);
        }
        let body = json!({ "preset": "public_chat", "room_version": version });
        let path = "/_matrix/client/v3/createRoom";
        let (_, made) = actors[0]
            .call(&world, Method::POST, path, body)
            .await
            .unwrap();
        let room = made["room_id"].as_str().unwrap().to_owned();
        let servers: BTreeSet<_> = world.hosts.iter().map(|host| host.name.clone()).collect();
        world.rooms.lock().push(Room {
            id: room.clone(),
            servers,
            unsteady: BTreeSet::new(),
            said: Vec::new(),
        });
        let liar = Liar::enter(&world.network, 99);
        let stage = Self {
            world,
            actors,
            liar,
            room,
        };
        for number in 1..stage.actors.len() {
            let path = format!(
                "/_matrix/client/v3/join/{}?via=s0.example",
                encode(&stage.room)
            );
            stage.call(number, Method::POST, &path, json!({})).await;
        }
        stage.enter().await;
        stage.agree().await;
        stage
    }

    /// Has the liar join.
    async fn enter(&self) -> (String, String) {
        let joined = self.liar.join(&self.name(0), &self.room).await;
        joined.expect("anybody may join")
    }

    async fn end(self) {
        for host in &self.world.hosts {
            host.stop(&self.world.network).await;
        }
        self.world.network.end();
        let faults = self.world.faults.into_inner();
        assert!(faults.is_empty(), "{faults:#?}");
    }

    fn name(&self, number: usize) -> OwnedServerName {
        self.actors[number].server.clone()
    }

    fn names(&self) -> Vec<OwnedServerName> {
        self.actors
            .iter()
            .map(|actor| actor.server.clone())
            .collect()
    }

    fn user(&self, number: usize) -> &str {
        &self.actors[number].user
    }

    /// Asks a server for its user, and has it say yes.
    async fn call(&self, number: usize, method: Method, path: &str, body: Value) -> Value {
        let actor = &self.actors[number];
        let answer = actor.call(&self.world, method, path, body).await;
        let (status, answer) = answer.expect("it runs");
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn in_room(&self, number: usize, method: Method, what: &str, body: Value) -> Value {
        let path = format!("/_matrix/client/v3/rooms/{}/{what}", encode(&self.room));
        self.call(number, method, &path, body).await
    }

    /// Says something, and gives the id.
    async fn say(&self, number: usize, text: &str) -> String {
        let at = self.world.network.age().as_millis();
        let what = format!("send/m.room.message/{number}.{at}.{}", encode(text));
        let body = json!({ "msgtype": "m.text", "body": text });
        let said = self.in_room(number, Method::PUT, &what, body).await;
        let id = said["event_id"].as_str().unwrap().to_owned();
        let said = (self.user(number).to_owned(), id.clone());
        self.world.rooms.lock()[0].said.push(said);
        id
    }

    /// An event as a server shows it.
    async fn shown(&self, number: usize, event: &str) -> Option<Value> {
        let what = format!("event/{}", encode(event));
        self.actors[number]
            .read(&self.world, &self.room, &what)
            .await
    }

    /// Which of the servers show an event.
    async fn shown_by(&self, event: &Pdu) -> Vec<usize> {
        let mut by = Vec::new();
        for number in 0..self.actors.len() {
            if self
                .shown(number, event.event_id().as_str())
                .await
                .is_some()
            {
                by.push(number);
            }
        }
        by
    }

    /// Waits until a server shows an event.
    async fn until(&self, number: usize, event: &str) {
        for _ in 0..LOOKS {
            if self.shown(number, event).await.is_some() {
                return;
            }
            sleep(LOOK_PAUSE).await;
        }
        panic!("{} does not get {event}", self.user(number));
    }

    async fn until_all(&self, event: &str) {
        for number in 0..self.actors.len() {
            self.until(number, event).await;
        }
    }

    /// A state event's content.
    async fn state(&self, number: usize, kind: &str, key: &str) -> Value {
        let what = format!("state/{kind}/{}", encode(key));
        let state = self.actors[number].read(&self.world, &self.room, &what);
        state.await.unwrap_or_default()
    }

    /// Each says something that all others get, after which all have the same state.
    async fn agree(&self) {
        let mut differ = Vec::new();
        for _ in 0..5 {
            for number in 0..self.actors.len() {
                let said = self.say(number, "on").await;
                self.until_all(&said).await;
            }
            differ = verdict::differences(&self.world, &self.actors).await;
            if differ.is_empty() {
                return;
            }
        }
        let (trace, _) = self.world.network.end();
        panic!("{}\n{differ:#?}", trace.join("\n"));
    }

    /// Sends an event to servers, each of which has to take it.
    async fn send(&self, to: &[usize], event: &Pdu) {
        for number in to {
            let taken = self.liar.send(&self.name(*number), &[event]).await;
            assert!(taken, "{number} takes {}", event.json_str());
        }
    }
}
