//! A server that lies. It has keys of its own and speaks the federation API over the simulated
//! network, and keeps to none of its rules unless it wants to: it joins rooms as others do, signs
//! events with whatever in them, gives each server another one, keeps some to itself, and answers
//! questions with something else.

mod answers;
mod events;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use homeserver::{
    events::{Pdu, RoomVersion, Rules, SigningKey},
    federation::{Limits, Outgoing, SignedRequest, Transport as _},
};
use http::Method;
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, ServerName};
use serde_json::{Value, json};

pub(super) use self::{
    answers::{Lie, Streamed},
    events::{New, altered},
};
use super::{
    network::{Line, Network},
    world::START,
};

/// The name of the server.
pub(super) const NAME: &str = "liar.example";
/// What it asks of others.
const LIMITS: Limits = Limits {
    body: 64 * 1024 * 1024,
    deadline: std::time::Duration::from_mins(1),
    stall: std::time::Duration::from_mins(1),
};

/// A server that lies, with one user.
#[derive(Debug)]
pub(super) struct Liar {
    pub(super) name: OwnedServerName,
    pub(super) user: OwnedUserId,
    pub(super) key: Arc<SigningKey>,
    line: Line,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    rooms: BTreeMap<OwnedRoomId, Known>,
    /// Events that only these servers are given, where they ask.
    withheld: BTreeMap<OwnedEventId, BTreeSet<OwnedServerName>>,
    /// What it answers where a path has this in it.
    lies: Vec<(String, Lie)>,
    /// Who asked for what, but for transactions.
    asked: Vec<(OwnedServerName, String)>,
    /// Bytes that were taken of its endless answers.
    poured: usize,
    transactions: u64,
}

/// What it knows of a room.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) rules: &'static Rules,
    pub(super) events: BTreeMap<OwnedEventId, Pdu>,
    /// Nothing that it knows follows these.
    latest: BTreeSet<OwnedEventId>,
    /// The state as it was when it joined, its own join included.
    pub(super) joined_at: BTreeMap<(String, String), OwnedEventId>,
    pub(super) join: OwnedEventId,
    /// The state before events, as it tells it; otherwise that at its join.
    told: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
}

impl Known {
    /// Takes an event in.
    fn learn(&mut self, event: &Pdu) {
        let id = event.event_id().to_owned();
        for prev in event.prev_events() {
            self.latest.remove(prev);
        }
        let mut others = self.events.values();
        if !others.any(|other| other.prev_events().contains(&id)) {
            self.latest.insert(id.clone());
        }
        self.events.insert(id, event.clone());
    }
}

impl Liar {
    /// A server with a key from this seed, which others reach from now on.
    pub(super) fn enter(network: &Arc<Network>, seed: u8) -> Arc<Self> {
        let name = ServerName::parse(NAME).unwrap();
        let line = Line::of(network, &name);
        let liar = Arc::new(Self {
            user: OwnedUserId::try_from(format!("@mallory:{name}")).unwrap(),
            key: Arc::new(SigningKey::from_seed("a", &[seed; 32]).unwrap()),
            name,
            line,
            inside: Mutex::default(),
        });
        let answering = Arc::clone(&liar);
        let router = Router::new().fallback(move |request: http::Request<Body>| {
            let liar = Arc::clone(&answering);
            async move { liar.answer(request).await }
        });
        network.connect(&liar.name, router);
        liar
    }

    /// Makes a signed request, and gives the answer as far as it is JSON; nothing if none came.
    pub(super) async fn ask(
        &self,
        to: &ServerName,
        method: Method,
        target: &str,
        body: &str,
    ) -> Option<(u16, Value)> {
        let signed = SignedRequest {
            method: method.as_str(),
            target,
            origin: &self.name,
            destination: to,
            body: body.as_bytes(),
        };
        let header = signed.sign(&self.key).unwrap().to_string();
        let request = http::Request::builder()
            .method(method)
            .uri(target)
            .header("authorization", header)
            .header("content-type", "application/json")
            .body(Bytes::copy_from_slice(body.as_bytes()));
        let outgoing = Outgoing {
            destination: to.to_owned(),
            request: request.unwrap(),
            limits: LIMITS,
        };
        let reply = self.line.send(outgoing).await.ok()?;
        let status = reply.status.as_u16();
        let body = reply.body.whole().await.ok()?;
        Some((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Sends a transaction of these texts under an id, and gives what was answered.
    pub(super) async fn transact(
        &self,
        to: &ServerName,
        id: &str,
        pdus: &[String],
        edus: &[Value],
    ) -> Option<(u16, Value)> {
        let target = format!("/_matrix/federation/v1/send/{id}");
        let (pdus, edus) = (pdus.join(","), Value::from(edus));
        let (name, now) = (&self.name, self.now());
        let body = format!(
            r#"{{"origin":"{name}","origin_server_ts":{now},"pdus":[{pdus}],"edus":{edus}}}"#
        );
        self.ask(to, Method::PUT, &target, &body).await
    }

    /// An id that no transaction had.
    pub(super) fn transaction(&self) -> String {
        let mut inside = self.inside.lock();
        inside.transactions += 1;
        format!("t{}", inside.transactions)
    }

    /// Sends events. Gives whether each was taken.
    pub(super) async fn send(&self, to: &ServerName, pdus: &[&Pdu]) -> bool {
        let texts: Vec<_> = pdus.iter().map(|pdu| pdu.json_str().to_owned()).collect();
        let id = self.transaction();
        let Some((200, answer)) = self.transact(to, &id, &texts, &[]).await else {
            return false;
        };
        let mut ids = pdus.iter().map(|pdu| pdu.event_id().as_str());
        ids.all(|id| answer["pdus"][id] == json!({}))
    }

    /// Sends an event as this text.
    pub(super) async fn send_text(&self, to: &ServerName, text: String) -> Option<(u16, Value)> {
        let id = self.transaction();
        self.transact(to, &id, &[text], &[]).await
    }

    /// Joins a room through a server, and gives the join as it was sent, if it was let in.
    pub(super) async fn join(&self, through: &ServerName, room: &str) -> Option<(String, String)> {
        let versions = "ver=10&ver=11&ver=12";
        let user = &self.user;
        let target = format!("/_matrix/federation/v1/make_join/{room}/{user}?{versions}");
        let (status, template) = self.ask(through, Method::GET, &target, "").await?;
        if status != 200 {
            return None;
        }
        let version = RoomVersion::parse(template["room_version"].as_str()?)?;
        let join = self.signed_template(version.rules(), &template["event"]);
        let id = join.event_id();
        let target = format!("/_matrix/federation/v2/send_join/{room}/{id}");
        let asked = self.ask(through, Method::PUT, &target, join.json_str());
        let (status, answer) = asked.await?;
        if status != 200 {
            return None;
        }
        self.settle_in(version.rules(), &answer)?;
        Some((target, join.json_str().to_owned()))
    }

    /// Takes in what it was told when it joined.
    fn settle_in(&self, rules: &'static Rules, answer: &Value) -> Option<()> {
        let read = |event: &Value| Pdu::parse(event.to_string().as_bytes(), rules).ok();
        let join = read(&answer["event"])?;
        let mut known = Known {
            rules,
            events: BTreeMap::new(),
            latest: BTreeSet::new(),
            joined_at: BTreeMap::new(),
            join: join.event_id().to_owned(),
            told: BTreeMap::new(),
        };
        for event in answer["auth_chain"].as_array()?.iter().filter_map(read) {
            known.events.insert(event.event_id().to_owned(), event);
        }
        let state = answer["state"].as_array()?.iter().filter_map(read);
        for event in state.chain([join.clone()]) {
            let id = event.event_id().to_owned();
            if let Some((kind, key)) = event.state_pair() {
                let pair = (kind.to_owned(), key.to_owned());
                known.joined_at.insert(pair, id.clone());
            }
            known.events.insert(id, event);
        }
        known.learn(&join);
        self.inside
            .lock()
            .rooms
            .insert(join.room_id().to_owned(), known);
        Some(())
    }

    /// Reads what it knows of a room that it has joined.
    pub(super) fn knows<T>(&self, room: &str, read: impl FnOnce(&mut Known) -> T) -> Option<T> {
        let mut inside = self.inside.lock();
        let room = OwnedRoomId::try_from(room).unwrap();
        inside.rooms.get_mut(&room).map(read)
    }

    /// Gives an event only to these servers, where they ask for it.
    pub(super) fn withhold(&self, event: &EventId, but_from: &[&OwnedServerName]) {
        let given = but_from.iter().map(|name| (*name).clone()).collect();
        self.inside.lock().withheld.insert(event.to_owned(), given);
    }

    /// Answers something else where a path has this in it.
    pub(super) fn lie(&self, path: &str, lie: Lie) {
        self.inside.lock().lies.insert(0, (path.to_owned(), lie));
    }

    /// Answers truly again.
    pub(super) fn repent(&self) {
        self.inside.lock().lies.clear();
    }

    /// Tells this state before an event.
    pub(super) fn tells(&self, room: &str, event: &EventId, state: Vec<OwnedEventId>) {
        self.knows(room, |known| known.told.insert(event.to_owned(), state));
    }

    /// Who asked for what since the last time.
    pub(super) fn asked(&self) -> Vec<(OwnedServerName, String)> {
        std::mem::take(&mut self.inside.lock().asked)
    }

    /// Bytes that were taken of its endless answers since the last time.
    pub(super) fn poured(&self) -> usize {
        std::mem::take(&mut self.inside.lock().poured)
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, line: &str) {
        self.line.network.note(&format!("{}: {line}", self.name));
    }

    /// Now, in milliseconds since 1970.
    pub(super) fn now(&self) -> u64 {
        START + self.line.network.age().as_millis() as u64
    }
}
