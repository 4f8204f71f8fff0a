//! Several servers in one room, cut off from each other for a while: whatever they did meanwhile,
//! and in whatever order they hear of it, in the end they have one state.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use homeserver_events::{Pdu, StatusKind};
use homeserver_storage::engines::memory::MemoryEngine;
use proptest::prelude::*;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId};
use serde_json::{Value, json, value::to_raw_value};

use super::{
    forks::Elsewhere,
    mortal::copy,
    support::{Server, event, message},
};
use crate::{CreateRoom, NewEvent, Preset, Received};

const SERVERS: [&str; 3] = ["here.example", "b.example", "c.example"];

/// One server's part in a step.
#[derive(Clone, Copy, Debug)]
enum Act {
    Say,
    /// State with a key of the server's own, by its admin.
    Own,
    /// State that all servers set, by the admin or the other user.
    Name {
        by_admin: bool,
    },
    /// The admin bans, unbans or removes the other user of a server.
    Member {
        target: usize,
        membership: &'static str,
    },
    /// The other user joins, or leaves.
    Rejoin,
    Leave,
    /// The admin changes the level of the other user of a server.
    Level {
        target: usize,
        level: i64,
    },
    JoinRule(&'static str),
    /// Another server hears all that this one knows, the last first or the first first.
    Tell {
        target: usize,
        backwards: bool,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let target = || 0..SERVERS.len();
    let membership = prop::sample::select(&["ban", "leave"][..]);
    prop_oneof![
        3 => Just(Act::Say),
        2 => Just(Act::Own),
        2 => any::<bool>().prop_map(|by_admin| Act::Name { by_admin }),
        2 => (target(), membership)
            .prop_map(|(target, membership)| Act::Member { target, membership }),
        2 => Just(Act::Rejoin),
        1 => Just(Act::Leave),
        1 => (target(), prop::sample::select(&[0, 50][..]))
            .prop_map(|(target, level)| Act::Level { target, level }),
        1 => prop::sample::select(&["public", "invite"][..]).prop_map(Act::JoinRule),
        3 => (target(), any::<bool>())
            .prop_map(|(target, backwards)| Act::Tell { target, backwards }),
    ]
}

fn admin(server: usize) -> OwnedUserId {
    OwnedUserId::try_from(format!("@admin:{}", SERVERS[server])).unwrap()
}

fn other(server: usize) -> OwnedUserId {
    OwnedUserId::try_from(format!("@other:{}", SERVERS[server])).unwrap()
}

struct Federation {
    room: OwnedRoomId,
    servers: Vec<Server>,
    /// Every event since the servers went their own ways; each after those it builds on.
    events: Vec<Pdu>,
    /// Which of them each server knows.
    known: Vec<BTreeSet<usize>>,
    /// What each server set last of its own.
    own: BTreeMap<usize, u64>,
    levels_changed: bool,
}

impl Federation {
    /// Servers with equal databases: each has the room as it was up to here.
    async fn start(version: &str) -> Self {
        let memory = Arc::new(MemoryEngine::new());
        let first = Server::on(memory.clone()).await;
        let mut levels = BTreeMap::new();
        for server in 0..SERVERS.len() {
            levels.insert(other(server), 50);
            if server > 0 || version != "12" {
                levels.insert(admin(server), 100);
            }
        }
        let create = CreateRoom {
            preset: Some(Preset::PublicChat),
            version: Some(RoomVersionId::try_from(version).unwrap()),
            power_level_content_override: Some(to_raw_value(&json!({ "users": levels })).unwrap()),
            ..CreateRoom::default()
        };
        let room = first.create(&admin(0), create).await;
        first.join(&other(0), &room).await.unwrap();
        let mut last = first.say(&admin(0), &room, "begin").await;
        for server in 1..SERVERS.len() {
            for user in [admin(server), other(server)] {
                let mut joining = Elsewhere {
                    server: &first,
                    room: room.clone(),
                    user,
                    time: 1_700_000_000_000,
                };
                last = joining.join(&last).await;
            }
        }
        let mut servers = Vec::new();
        for name in SERVERS {
            let engine = copy(&memory).await;
            let name = ruma::ServerName::parse(name).unwrap();
            servers.push(Server::named(name, engine).await.unwrap());
        }
        Self {
            room,
            known: vec![BTreeSet::new(); servers.len()],
            servers,
            events: Vec::new(),
            own: BTreeMap::new(),
            levels_changed: false,
        }
    }

    /// Sends an event, if the server's state allows it.
    async fn send(&mut self, at: usize, sender: &OwnedUserId, new: NewEvent) -> bool {
        for server in &self.servers {
            server.clock.advance(Duration::from_millis(10));
        }
        let server = &self.servers[at];
        let Ok(id) = server.try_send(sender, &self.room, new).await else {
            return false;
        };
        let pdu = stored(server, &self.room, &id).await;
        if !self.events.iter().any(|event| event.event_id() == id) {
            self.known[at].insert(self.events.len());
            self.events.push(pdu);
        }
        true
    }

    async fn send_state(
        &mut self,
        at: usize,
        sender: OwnedUserId,
        (event_type, key): (&str, &str),
        content: Value,
    ) -> bool {
        let new = event(event_type, Some(key), &content);
        self.send(at, &sender, new).await
    }

    async fn act(&mut self, at: usize, turn: u64, act: Act) {
        match act {
            Act::Say => {
                self.send(at, &admin(at), message("x")).await;
            }
            Act::Own => {
                let key = ("org.example.own", SERVERS[at]);
                let set = self.send_state(at, admin(at), key, json!({ "turn": turn }));
                assert!(set.await, "an admin may do so");
                self.own.insert(at, turn);
            }
            Act::Name { by_admin } => {
                let by = if by_admin { admin(at) } else { other(at) };
                let name = json!({ "name": turn.to_string() });
                self.send_state(at, by, ("m.room.name", ""), name).await;
            }
            Act::Member { target, membership } => {
                let (user, content) = (other(target), json!({ "membership": membership }));
                let key = ("m.room.member", user.as_str());
                self.send_state(at, admin(at), key, content).await;
            }
            Act::Rejoin | Act::Leave => {
                let user = other(at);
                let membership = if matches!(act, Act::Leave) {
                    "leave"
                } else {
                    "join"
                };
                let content = json!({ "membership": membership, "displayname": turn.to_string() });
                let key = ("m.room.member", user.as_str());
                self.send_state(at, user.clone(), key, content).await;
            }
            Act::Level { target, level } => {
                let levels = self.servers[at].state(&self.room, "m.room.power_levels", "");
                let mut levels = levels.await.unwrap();
                levels["users"][other(target).as_str()] = json!(level);
                let key = ("m.room.power_levels", "");
                self.levels_changed |= self.send_state(at, admin(at), key, levels).await;
            }
            Act::JoinRule(rule) => {
                let rule = json!({ "join_rule": rule });
                let key = ("m.room.join_rules", "");
                self.send_state(at, admin(at), key, rule).await;
            }
            Act::Tell { target, backwards } => self.tell((at, target), backwards).await,
        }
    }

    /// Hands over all that one server knows and the other does not. What comes before what it
    /// builds on is handed over again.
    async fn tell(&mut self, (from, to): (usize, usize), backwards: bool) {
        let new = self.known[from].difference(&self.known[to]);
        let mut left: Vec<usize> = new.copied().collect();
        if backwards {
            left.reverse();
        }
        let (rooms, room) = (
            &self.servers[to].rooms,
            self.servers[to].room(&self.room).await,
        );
        while !left.is_empty() {
            let mut later = Vec::new();
            for index in &left {
                let pdu = self.events[*index].clone();
                match rooms.receive(&room, pdu).await.unwrap() {
                    Received::Judged { .. } => drop(self.known[to].insert(*index)),
                    Received::Missing { .. } => later.push(*index),
                }
            }
            assert!(later.len() < left.len(), "nothing is missing for ever");
            left = later;
        }
    }

    async fn tell_all(&mut self) {
        for _ in 0..2 {
            for from in 0..SERVERS.len() {
                for to in 0..SERVERS.len() {
                    self.tell((from, to), (from + to) % 2 == 0).await;
                }
            }
        }
    }

    /// The partition is over: everybody hears everything, and joins the branches.
    async fn heal(&mut self) {
        self.tell_all().await;
        for at in 0..SERVERS.len() {
            assert!(self.send(at, &admin(at), message("healed")).await);
            self.tell_all().await;
            let healed = self.events.last().unwrap();
            for server in &self.servers {
                assert_eq!(
                    status(server, &self.room, healed).await,
                    StatusKind::Accepted
                );
            }
        }
    }

    /// The whole state of the room at a server, by event ids.
    async fn state(&self, at: usize) -> BTreeMap<(String, String), OwnedEventId> {
        let server = &self.servers[at];
        let (rooms, room) = (&server.rooms, server.room(&self.room).await);
        let now = rooms.state_at(room.number, rooms.durable()).await.unwrap();
        let mut state = BTreeMap::new();
        for (key, number) in rooms.state_all(&room, now.root).await.unwrap() {
            let event = rooms.events.load(&room, number).await.unwrap();
            let key = (key.event_type().to_owned(), key.state_key().to_owned());
            state.insert(key, event.pdu.event_id().to_owned());
        }
        state
    }

    async fn check(&self) {
        let state = self.state(0).await;
        for (at, name) in SERVERS.iter().enumerate().skip(1) {
            assert_eq!(self.state(at).await, state, "{name} and the first");
        }
        for server in 0..SERVERS.len() {
            let member = ("m.room.member".to_owned(), admin(server).to_string());
            assert!(state.contains_key(&member));
        }
        // Nothing of what nobody else touched is lost. (Where levels change, an older event may
        // be nearer to the mainline, and that is how the specification has it.)
        for (at, turn) in self.own.iter().filter(|_| !self.levels_changed) {
            let own = self.servers[0].state(&self.room, "org.example.own", SERVERS[*at]);
            assert_eq!(own.await.unwrap()["turn"], *turn);
        }
    }
}

async fn stored(server: &Server, room: &OwnedRoomId, id: &OwnedEventId) -> Pdu {
    let room = server.room(room).await;
    let number = server.rooms.events.number(room.number, id).await.unwrap();
    let event = server.rooms.events.load(&room, number.unwrap());
    event.await.unwrap().pdu.clone()
}

async fn status(server: &Server, room: &OwnedRoomId, pdu: &Pdu) -> StatusKind {
    let room = server.room(room).await;
    let number = server.rooms.events.number(room.number, pdu.event_id());
    let event = server
        .rooms
        .events
        .load(&room, number.await.unwrap().unwrap());
    event.await.unwrap().status.kind()
}

proptest! {
    #[test]
    fn servers_that_were_cut_off_come_to_one_state(
        version in prop::sample::select(&["2", "10", "12"][..]),
        steps in prop::collection::vec((0..SERVERS.len(), act()), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut federation = Federation::start(version).await;
            for (turn, (at, act)) in (0..).zip(steps) {
                federation.act(at, turn, act).await;
            }
            federation.heal().await;
            federation.check().await;
        });
    }
}

/// Two servers whose users come and go quickly, told of each other out of order.
#[tokio::test]
async fn those_who_rejoin_quickly_are_in_the_room_everywhere() {
    for version in ["10", "12"] {
        let mut federation = Federation::start(version).await;
        for turn in 0..10 {
            for at in [1, 2] {
                federation.act(at, turn, Act::Leave).await;
                federation.act(at, turn, Act::Rejoin).await;
            }
            if turn % 3 == 0 {
                let backwards = turn % 2 == 0;
                let told = Act::Tell {
                    target: 0,
                    backwards,
                };
                federation.act(1, turn, told).await;
                federation.act(2, turn, told).await;
            }
        }
        federation.heal().await;
        federation.check().await;
        for server in &federation.servers {
            let made = &server.rooms.resolutions.made;
            assert!(
                made.load(Ordering::Relaxed) > 0,
                "there was something to resolve"
            );
            for at in 1..3 {
                let user = other(at);
                let member = server.state(&federation.room, "m.room.member", user.as_str());
                let member = member.await.unwrap();
                assert_eq!(member["membership"], "join", "{user}");
                assert_eq!(member["displayname"], "9", "{user}");
            }
        }
    }
}
