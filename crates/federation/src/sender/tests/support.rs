//! A server with rooms, and a wire to others that answers as it is told.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use homeserver_events::{Draft, Pdu, SigningKey, StatusKind};
use homeserver_rooms::{
    CreateRoom, MembershipChange, NewEvent, Preset, Received, Room, RoomAction, RoomAnswer,
    RoomCommand, Rooms, RoomsOptions,
};
use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{Direction, Engine, ScanRange, Store, engines::memory::MemoryEngine};
use homeserver_users::Users;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, ServerName, UserId};
use serde_json::{Value, json, value::to_raw_value};

use super::super::{Sender, SenderParts};
use crate::{
    Admission, Body, Federation, FederationOptions, Outgoing, RemoteUsers, Reply, Retry, Transport,
    TransportError,
};

pub(super) const HERE: &str = "here.example";

/// How long anything is waited for: of the runtime's time, which jumps.
const PATIENCE: Duration = Duration::from_mins(2);

/// How a server answers.
#[derive(Clone, Debug)]
pub(super) enum Answers {
    Well,
    Never,
    Unreachable,
    Status(u16),
    /// 400 to whatever holds one of these texts.
    Refuses(Vec<&'static str>),
    /// 200, and an error for each event.
    RefusesEvents,
}

/// What arrived at other servers.
#[derive(Debug, Default)]
pub(super) struct Wire {
    answers: Mutex<HashMap<String, Answers>>,
    /// Bodies of transactions by destination, as far as they were answered with 200.
    arrived: Mutex<BTreeMap<String, Vec<Value>>>,
    /// Every body by its destination and transaction id.
    ids: Mutex<HashMap<(String, String), Bytes>>,
    requests: Mutex<BTreeMap<String, usize>>,
}

impl Wire {
    pub(super) fn set(&self, server: &str, answers: Answers) {
        self.answers.lock().insert(server.to_owned(), answers);
    }

    /// Requests to a server, answered or not.
    pub(super) fn requests(&self, server: &str) -> usize {
        self.requests.lock().get(server).copied().unwrap_or(0)
    }

    /// Transactions that arrived at a server.
    pub(super) fn transactions(&self, server: &str) -> Vec<Value> {
        self.arrived.lock().get(server).cloned().unwrap_or_default()
    }

    /// Events that arrived at a server, in order.
    pub(super) fn events(&self, server: &str) -> Vec<Value> {
        let transactions = self.transactions(server).into_iter();
        let events = transactions.flat_map(|one| one["pdus"].as_array().unwrap().clone());
        events.collect()
    }

    /// What the messages that arrived at a server say, and the types of other events.
    pub(super) fn heard(&self, server: &str) -> Vec<String> {
        let said = |event: &Value| {
            let body = &event["content"]["body"];
            body.as_str().or(event["type"].as_str()).unwrap().to_owned()
        };
        self.events(server).iter().map(said).collect()
    }

    fn answer(&self, outgoing: &Outgoing) -> Option<Result<u16, TransportError>> {
        let server = outgoing.destination.to_string();
        *self.requests.lock().entry(server.clone()).or_default() += 1;
        let body = outgoing.request.body().clone();
        let id = outgoing.request.uri().path().to_owned();
        let before = self.ids.lock().insert((server.clone(), id), body.clone());
        assert!(
            before.is_none_or(|before| before == body),
            "an id is used again"
        );
        let answers = self.answers.lock().get(&server).cloned();
        let text = std::str::from_utf8(&body).unwrap();
        match answers.unwrap_or(Answers::Well) {
            Answers::Never => None,
            Answers::Unreachable => Some(Err(TransportError::Unreachable(String::new()))),
            Answers::Status(status) => Some(Ok(status)),
            Answers::Refuses(words) if words.iter().any(|word| text.contains(word)) => {
                Some(Ok(400))
            }
            Answers::Well | Answers::RefusesEvents | Answers::Refuses(_) => {
                let value: Value = serde_json::from_str(text).unwrap();
                assert!(value["pdus"].as_array().unwrap().len() <= 50);
                assert!(value["edus"].as_array().unwrap().len() <= 100);
                assert_eq!(value["origin"], HERE);
                self.arrived.lock().entry(server).or_default().push(value);
                Some(Ok(200))
            }
        }
    }
}

#[async_trait]
impl Transport for Wire {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        let Some(answer) = self.answer(&outgoing) else {
            return std::future::pending().await;
        };
        let refuses = |server: &str| {
            let answers = self.answers.lock().get(server).cloned();
            matches!(answers, Some(Answers::RefusesEvents))
        };
        let mut body = json!({ "pdus": {} });
        if refuses(outgoing.destination.as_str()) {
            let sent: Value = serde_json::from_slice(outgoing.request.body()).unwrap();
            for at in 0..sent["pdus"].as_array().unwrap().len() {
                body["pdus"][format!("${at}")] = json!({ "error": "not wanted" });
            }
        }
        Ok(Reply {
            status: StatusCode::from_u16(answer?).unwrap(),
            headers: HeaderMap::new(),
            body: Body::new(
                stream::iter([Ok(Bytes::from(body.to_string()))]),
                usize::MAX,
            ),
        })
    }
}

/// A server that sends.
pub(super) struct Here {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) store: Store,
    pub(super) runtime: Runtime,
    pub(super) clock: Arc<ManualClock>,
    pub(super) rooms: Arc<Rooms>,
    pub(super) users: Users,
    pub(super) federation: Federation,
    pub(super) sender: Sender,
    pub(super) wire: Arc<Wire>,
}

fn own_key() -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed("test", &[5; 32]).unwrap())
}

impl Here {
    pub(super) async fn start() -> Self {
        Self::on(Arc::new(MemoryEngine::new()), Arc::default()).await
    }

    pub(super) async fn on(engine: Arc<dyn Engine>, wire: Arc<Wire>) -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 42);
        let tables = [
            homeserver_rooms::TABLES,
            homeserver_users::TABLES,
            crate::TABLES,
        ];
        let store = Store::open(Arc::clone(&engine), &tables, &runtime)
            .await
            .unwrap();
        let server_name = ServerName::parse(HERE).unwrap();
        let options = RoomsOptions {
            server_name: server_name.clone(),
            signing_key: own_key(),
            old_keys: Vec::new(),
            default_version: RoomVersionId::V11,
        };
        let rooms = Rooms::open(store.clone(), &runtime, options).await.unwrap();
        let options = FederationOptions {
            enabled: true,
            server_name,
            signing_key: own_key(),
            old_keys: Vec::new(),
            admission: Admission::new(&[], &["evil.example".to_owned()]),
            key_servers: Vec::new(),
            requests_per_destination: 1,
            request_timeout: Duration::from_secs(30),
            retry: Retry {
                shortest: Duration::from_secs(1),
                longest: Duration::from_hours(1),
            },
        };
        let transport = Arc::clone(&wire) as _;
        let federation = Federation::open(options, &store, transport, &runtime).await;
        let federation = federation.unwrap();
        let users = Users::open(&store, &runtime);
        let remote_users = RemoteUsers::start(
            name(HERE),
            (&store, &rooms, &users),
            &federation.peers,
            &runtime,
        );
        let sender = Sender::start(SenderParts {
            store: store.clone(),
            runtime: runtime.clone(),
            rooms: Arc::clone(&rooms),
            users: users.clone(),
            federation: federation.clone(),
            remote_users,
        });
        Self {
            sender: sender.await.unwrap(),
            engine,
            store,
            runtime,
            clock,
            rooms,
            users,
            federation,
            wire,
        }
    }

    /// Stops, and starts again on the same database.
    pub(super) async fn restart(self) -> Self {
        assert_eq!(self.runtime.tasks.shutdown(PATIENCE).await, 0);
        self.store.close().await.unwrap();
        Self::on(self.engine, self.wire).await
    }

    pub(super) async fn act(&self, sender: &UserId, action: RoomAction) -> RoomAnswer {
        let command = RoomCommand::new(sender.to_owned(), action);
        self.rooms.execute(command).await.unwrap()
    }

    /// A public room of alice's.
    pub(super) async fn create(&self) -> OwnedRoomId {
        self.create_with(Value::Null).await
    }

    pub(super) async fn create_with(&self, content: Value) -> OwnedRoomId {
        let create = CreateRoom {
            preset: Some(Preset::PublicChat),
            creation_content: match content {
                Value::Null => None,
                content => Some(to_raw_value(&content).unwrap()),
            },
            ..CreateRoom::default()
        };
        let action = RoomAction::Create(Box::new(create));
        match self.act(&alice(), action).await {
            RoomAnswer::Created { room, .. } => room,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn say(&self, room: &OwnedRoomId, body: &str) -> OwnedEventId {
        let content = json!({ "msgtype": "m.text", "body": body });
        let event = NewEvent {
            event_type: "m.room.message".to_owned(),
            state_key: None,
            content: to_raw_value(&content).unwrap(),
            timestamp: None,
        };
        let room = room.clone();
        match self.act(&alice(), RoomAction::Send { room, event }).await {
            RoomAnswer::Sent { event, .. } => event,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn member(&self, room: &OwnedRoomId, change: MembershipChange) {
        let action = RoomAction::Membership {
            room: room.clone(),
            change,
            reason: None,
        };
        self.act(&alice(), action).await;
    }

    pub(super) async fn room(&self, id: &OwnedRoomId) -> Arc<Room> {
        self.rooms.room(id).await.unwrap().unwrap()
    }

    /// The newest event, which alice sees, and the state event of a key.
    async fn tip(&self, room: &Room) -> Pdu {
        let at = self.rooms.durable();
        let reader = self.rooms.reader(alice(), at).await.unwrap();
        let slice = self.rooms.timeline(&reader, room, 0, 1, &|_| true).await;
        slice.unwrap().events[0].pdu().clone()
    }

    async fn state(&self, room: &Room, event_type: &str, state_key: &str) -> Option<Pdu> {
        let at = self.rooms.durable();
        let reader = self.rooms.reader(alice(), at).await.unwrap();
        let root = self.rooms.state_at(room.number, at).await.unwrap().root;
        let value = self.rooms.state_value(room, root, event_type, state_key);
        let number = value.await.unwrap()?;
        let visible = self.rooms.visible(&reader, room, &[number]).await.unwrap();
        Some(visible[0].pdu().clone())
    }

    /// An event of another server's user that follows the newest.
    pub(super) async fn make(
        &self,
        room: &OwnedRoomId,
        sender: &UserId,
        (event_type, state_key): (&str, Option<&str>),
        content: Value,
    ) -> Pdu {
        let room = self.room(room).await;
        let mut auth_events = Vec::new();
        for (event_type, state_key) in [
            ("m.room.create", ""),
            ("m.room.power_levels", ""),
            ("m.room.member", sender.as_str()),
            ("m.room.join_rules", ""),
        ] {
            let is_join = state_key == sender.as_str() || event_type != "m.room.join_rules";
            if event_type == "m.room.join_rules" && content["membership"] != "join" {
                continue;
            }
            let found = self.state(&room, event_type, state_key).await;
            assert!(is_join || found.is_some());
            auth_events.extend(found.map(|event| event.reference().unwrap()));
        }
        let tip = self.tip(&room).await;
        let draft = Draft {
            room_id: Some(room.id.clone()),
            sender: sender.to_owned(),
            event_type: event_type.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            content: to_raw_value(&content).unwrap(),
            origin_server_ts: 1_700_000_000_000,
            prev_events: vec![tip.reference().unwrap()],
            auth_events,
            depth: tip.depth() + 1,
            redacts: None,
        };
        let key = SigningKey::from_seed("far", &[9; 32]).unwrap();
        draft.seal(room.rules, sender.server_name(), &key).unwrap()
    }

    pub(super) async fn receive(&self, pdu: &Pdu) {
        let room = self.room(&pdu.room_id().to_owned()).await;
        let received = self.rooms.receive(&room, pdu.clone()).await.unwrap();
        let accepted = matches!(
            received,
            Received::Judged {
                status: StatusKind::Accepted,
                ..
            }
        );
        assert!(accepted, "{received:?}");
    }

    /// A membership that another server's user chooses.
    pub(super) async fn remote_member(
        &self,
        room: &OwnedRoomId,
        user: &UserId,
        membership: &str,
    ) -> Pdu {
        let content = json!({ "membership": membership });
        let kind = ("m.room.member", Some(user.as_str()));
        let pdu = self.make(room, user, kind, content).await;
        self.receive(&pdu).await;
        pdu
    }

    /// Waits until something is so.
    pub(super) async fn until(&self, mut is_so: impl FnMut(&Self) -> bool) {
        let look = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.unwrap();
    }

    /// Waits until a server has everything.
    pub(super) async fn until_sent(&self, server: &str) {
        let name = ServerName::parse(server).unwrap();
        // What is committed is read by the sender when others have had their turn.
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.until(|here| here.sender.pending(&name).is_nothing())
            .await;
    }

    /// The servers and rooms that rows say lack something.
    pub(super) async fn rows(&self) -> Vec<(String, u64)> {
        let (table, all) = (&crate::tables::BEHIND_ROOMS, ScanRange::all());
        let rows = self.store.scan(table, all, Direction::Forward, 100);
        let rows = rows.await.unwrap().into_iter();
        let rows: Vec<_> = rows.map(|(key, _)| key).collect();
        let mut servers: Vec<_> = rows.iter().map(|(server, _)| server.clone()).collect();
        servers.dedup();
        assert_eq!(self.behind().await, servers);
        rows
    }

    /// The servers that rows say lack something.
    pub(super) async fn behind(&self) -> Vec<String> {
        let (table, all) = (&crate::tables::BEHIND, ScanRange::all());
        let rows = self.store.scan(table, all, Direction::Forward, 100);
        let rows = rows.await.unwrap().into_iter();
        rows.map(|(name, _)| name).collect()
    }
}

pub(super) fn alice() -> OwnedUserId {
    UserId::parse(format!("@alice:{HERE}")).unwrap()
}

pub(super) fn user(id: &str) -> OwnedUserId {
    UserId::parse(id).unwrap()
}

pub(super) fn name(server: &str) -> ruma::OwnedServerName {
    ServerName::parse(server).unwrap()
}
