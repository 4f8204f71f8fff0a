//! Users, each of a server of their own, who do at random what users do.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use homeserver_tests::encode;
use http::Method;
use ruma::OwnedServerName;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    dice::Dice,
    network::ask,
    world::{Cast, World},
};

/// How long a user waits for an answer: far longer than one may take.
const PATIENCE: Duration = Duration::from_mins(20);

/// What the users know of a room.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub(super) id: String,
    /// Servers through which it may be joined.
    pub(super) servers: BTreeSet<OwnedServerName>,
    /// Who has left or was made to, or tried to be more than they may: what they say may be refused
    /// by servers that know better.
    pub(super) unsteady: BTreeSet<String>,
    /// Messages that were acknowledged: sender and event.
    pub(super) said: Vec<(String, String)>,
}

/// One user.
pub(super) struct Actor {
    pub(super) user: String,
    pub(super) server: OwnedServerName,
    token: String,
    dice: Dice,
    transaction: u64,
}

impl Actor {
    pub(super) async fn register(world: &World, server: &OwnedServerName, seed: u64) -> Self {
        let mut actor = Self {
            user: String::new(),
            server: server.clone(),
            token: String::new(),
            dice: Dice::new(seed),
            transaction: 0,
        };
        let body = json!({
            "username": "user", "password": "a password", "auth": { "type": "m.login.dummy" },
        });
        let path = "/_matrix/client/v3/register";
        let made = actor.call(world, Method::POST, path, body).await;
        let (status, session) = made.expect("the server runs");
        assert_eq!(status, 200, "{session}");
        let text = |field: &str| session[field].as_str().unwrap().to_owned();
        (actor.user, actor.token) = (text("user_id"), text("access_token"));
        actor
    }

    /// Asks the user's own server; nothing if it is down.
    pub(super) async fn call(
        &self,
        world: &World,
        method: Method,
        path: &str,
        body: Value,
    ) -> Option<(u16, Value)> {
        let router = world.network.router(&self.server)?;
        let bytes = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.token));
        let asked = ask(router, request.body(bytes).unwrap());
        let Ok(answer) = timeout(PATIENCE, asked).await else {
            let line = format!("{} is left without an answer: {path}", self.user);
            world.faults.lock().push(line);
            return None;
        };
        let status = answer.status().as_u16();
        let body = serde_json::from_slice(answer.body()).unwrap_or_default();
        Some((status, body))
    }

    /// GET of something in a room, if it is there.
    pub(super) async fn read(&self, world: &World, room: &str, what: &str) -> Option<Value> {
        let path = format!("/_matrix/client/v3/rooms/{}/{what}", encode(room));
        let (status, body) = self.call(world, Method::GET, &path, Value::Null).await?;
        (status == 200).then_some(body)
    }

    async fn act_in(
        &self,
        world: &World,
        method: Method,
        room: &str,
        what: &str,
        body: Value,
    ) -> Option<Value> {
        let path = format!("/_matrix/client/v3/rooms/{}/{what}", encode(room));
        let (status, answer) = self.call(world, method, &path, body).await?;
        let line = format!("{} {what}: {status} {answer}", self.user);
        world.network.note(&line);
        let may_fail = world.cast == Cast::Disk || ["invite", "leave"].contains(&what);
        if status >= 500 && !may_fail {
            world.faults.lock().push(line);
        }
        (status == 200).then_some(answer)
    }

    /// Makes a room.
    pub(super) async fn create(&mut self, world: &World) {
        let version = self.dice.pick(&["10", "11", "12", "12"]).unwrap();
        let body = json!({ "preset": "public_chat", "room_version": version });
        let path = "/_matrix/client/v3/createRoom";
        let made = self.call(world, Method::POST, path, body).await;
        let (status, answer) = made.expect("the server runs");
        assert_eq!(status, 200, "{answer}");
        world.rooms.lock().push(Room {
            id: answer["room_id"].as_str().unwrap().to_owned(),
            servers: BTreeSet::from([self.server.clone()]),
            unsteady: BTreeSet::new(),
            said: Vec::new(),
        });
    }

    /// Does so many things, with pauses between them.
    pub(super) async fn act(&mut self, world: &World, actions: u64) {
        for _ in 0..actions {
            sleep(Duration::from_millis(self.dice.between(50, 4_000))).await;
            let rooms = world.rooms.lock().clone();
            let number = self.dice.between(0, rooms.len() as u64) as usize;
            let room = &rooms[number];
            let membership = format!("state/m.room.member/{}", encode(&self.user));
            let member = self.read(world, &room.id, &membership).await;
            if member.is_some_and(|member| member["membership"] == "join") {
                self.act_as_member(world, number, room).await;
            } else {
                self.join(world, number, room).await;
            }
        }
    }

    async fn join(&mut self, world: &World, number: usize, room: &Room) {
        let servers: Vec<_> = room.servers.iter().collect();
        let via = self.dice.pick(&servers).unwrap();
        let path = format!("/_matrix/client/v3/join/{}?via={via}", encode(&room.id));
        let joined = self.call(world, Method::POST, &path, json!({})).await;
        if let Some((status, answer)) = joined {
            let line = format!(
                "{} joins {} through {via}: {status} {answer}",
                self.user, room.id
            );
            world.network.note(&line);
            if status == 200 {
                let server = self.server.clone();
                world.rooms.lock()[number].servers.insert(server);
            }
        }
    }

    async fn act_as_member(&mut self, world: &World, number: usize, room: &Room) {
        let users: Vec<_> = room
            .servers
            .iter()
            .map(|name| format!("@user:{name}"))
            .collect();
        let other = self.dice.pick(&users).unwrap().clone();
        let unsteady = |user: &String| {
            world.rooms.lock()[number].unsteady.insert(user.clone());
        };
        let text = format!("n{}", self.dice.between(0, 1_000_000));
        match self.dice.between(0, 100) {
            0..4 => {
                unsteady(&self.user);
                self.act_in(world, Method::POST, &room.id, "leave", json!({}))
                    .await;
            }
            kind @ 4..16 if other != self.user => {
                let what = ["kick", "ban", "unban", "invite"][kind as usize % 4];
                unsteady(&other);
                let body = json!({ "user_id": other });
                self.act_in(world, Method::POST, &room.id, what, body).await;
            }
            16..30 => {
                let kind = self.dice.pick(&["m.room.topic", "m.room.name"]).unwrap();
                let body = json!({ kind[7..].to_owned(): text });
                let what = format!("state/{kind}/");
                self.act_in(world, Method::PUT, &room.id, &what, body).await;
            }
            30..35 => {
                let what = "state/m.room.power_levels/";
                if let Some(mut levels) = self.read(world, &room.id, what).await {
                    let level = *self.dice.pick(&[0, 50, 100]).unwrap();
                    levels["users"][&other] = level.into();
                    self.act_in(world, Method::PUT, &room.id, what, levels)
                        .await;
                }
            }
            35..42 => {
                if let Some((_, event)) = self.dice.pick(&room.said) {
                    self.transaction += 1;
                    let what = format!("redact/{}/{}", encode(event), self.transaction);
                    self.act_in(world, Method::PUT, &room.id, &what, json!({}))
                        .await;
                }
            }
            _ => self.say(world, number, &room.id, &text).await,
        }
    }

    async fn say(&mut self, world: &World, number: usize, room: &str, text: &str) {
        self.transaction += 1;
        let what = format!("send/m.room.message/{}", self.transaction);
        let body = json!({ "msgtype": "m.text", "body": text });
        let said = self.act_in(world, Method::PUT, room, &what, body).await;
        if let Some(event) = said.as_ref().and_then(|said| said["event_id"].as_str()) {
            let said = (self.user.clone(), event.to_owned());
            world.rooms.lock()[number].said.push(said);
        }
    }

    /// Whether the user's server has them in a room.
    pub(super) async fn is_in(&self, world: &World, room: &str) -> bool {
        let membership = format!("state/m.room.member/{}", encode(&self.user));
        let member = self.read(world, room, &membership).await;
        member.is_some_and(|member| member["membership"] == "join")
    }

    /// Says something in every room that the user is in.
    pub(super) async fn greet(&self, world: &World) {
        let rooms = world.rooms.lock().clone();
        for room in rooms {
            if self.is_in(world, &room.id).await {
                let at = world.network.age().as_millis();
                let what = format!("send/m.room.message/greeting{at}");
                let body = json!({ "msgtype": "m.text", "body": "hello" });
                self.act_in(world, Method::PUT, &room.id, &what, body).await;
            }
        }
    }
}
