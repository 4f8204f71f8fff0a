//! A server with rooms and users for tests.

use std::sync::Arc;

use homeserver_events::SigningKey;
use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{Engine, Store, engines::memory::MemoryEngine};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId, UserId,
    owned_server_name,
};
use serde_json::{Value, json, value::to_raw_value};

use crate::{
    CreateRoom, MemberProfile, MembershipChange, NewEvent, Reader, Room, RoomAction, RoomAnswer,
    RoomCommand, RoomError, Rooms, RoomsOptions, TABLES, VisibleEvent,
};

pub(super) struct Server {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) rooms: Arc<Rooms>,
    pub(super) clock: Arc<ManualClock>,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::on(Arc::new(MemoryEngine::new())).await
    }

    pub(super) async fn on(engine: Arc<dyn Engine>) -> Self {
        Self::try_on(engine).await.unwrap()
    }

    pub(super) async fn try_on(engine: Arc<dyn Engine>) -> Result<Self, RoomError> {
        Self::named(owned_server_name!("here.example"), engine).await
    }

    pub(super) async fn named(
        server_name: OwnedServerName,
        engine: Arc<dyn Engine>,
    ) -> Result<Self, RoomError> {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 42);
        let opened = Store::open(Arc::clone(&engine), &[TABLES], &runtime).await;
        let store = opened.map_err(|error| RoomError::damaged(error.to_string()))?;
        let options = RoomsOptions {
            server_name,
            signing_key: Arc::new(SigningKey::from_seed("test", &[5; 32]).unwrap()),
            old_keys: Vec::new(),
            default_version: RoomVersionId::V12,
        };
        let rooms = Rooms::open(store, &runtime, options).await?;
        Ok(Self {
            engine,
            rooms,
            clock,
        })
    }

    /// The same database, opened by a new process.
    pub(super) async fn restart(&self) -> Self {
        Self::on(Arc::clone(&self.engine)).await
    }

    pub(super) async fn act(
        &self,
        sender: &UserId,
        action: RoomAction,
    ) -> Result<RoomAnswer, RoomError> {
        self.rooms
            .execute(RoomCommand::new(sender.to_owned(), action))
            .await
    }

    pub(super) async fn create(&self, sender: &UserId, create: CreateRoom) -> OwnedRoomId {
        match self
            .act(sender, RoomAction::Create(Box::new(create)))
            .await
            .unwrap()
        {
            RoomAnswer::Created { room, .. } => room,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn try_send(
        &self,
        sender: &UserId,
        room: &OwnedRoomId,
        event: NewEvent,
    ) -> Result<OwnedEventId, RoomError> {
        let room = room.clone();
        event_of(self.act(sender, RoomAction::Send { room, event }).await)
    }

    pub(super) async fn say(
        &self,
        sender: &UserId,
        room: &OwnedRoomId,
        body: &str,
    ) -> OwnedEventId {
        self.try_send(sender, room, message(body)).await.unwrap()
    }

    pub(super) async fn member(
        &self,
        sender: &UserId,
        room: &OwnedRoomId,
        change: MembershipChange,
    ) -> Result<OwnedEventId, RoomError> {
        let action = RoomAction::Membership {
            room: room.clone(),
            change,
            reason: None,
        };
        event_of(self.act(sender, action).await)
    }

    pub(super) async fn join(
        &self,
        sender: &UserId,
        room: &OwnedRoomId,
    ) -> Result<OwnedEventId, RoomError> {
        self.member(sender, room, join()).await
    }

    pub(super) async fn room(&self, id: &OwnedRoomId) -> Arc<Room> {
        self.rooms.room(id).await.unwrap().unwrap()
    }

    pub(super) async fn reader(&self, user: &UserId) -> Reader {
        let position = self.rooms.durable();
        self.rooms.reader(user.to_owned(), position).await.unwrap()
    }

    /// All that a user sees in the timeline of a room, oldest first.
    pub(super) async fn timeline(&self, user: &UserId, room: &OwnedRoomId) -> Vec<VisibleEvent> {
        let (reader, room) = (self.reader(user).await, self.room(room).await);
        let slice = self
            .rooms
            .timeline(&reader, &room, 0, 500, &|_| true)
            .await
            .unwrap();
        assert!(!slice.limited);
        slice.events
    }

    /// The content of a state event now.
    pub(super) async fn state(
        &self,
        room: &OwnedRoomId,
        event_type: &str,
        state_key: &str,
    ) -> Option<Value> {
        let room = self.room(room).await;
        let now = self
            .rooms
            .state_at(room.number, self.rooms.durable())
            .await
            .unwrap();
        let event = self
            .rooms
            .state_event(&room, now.root, event_type, state_key)
            .await
            .unwrap();
        event.map(|event| event.pdu.content_as().unwrap())
    }
}

fn event_of(answer: Result<RoomAnswer, RoomError>) -> Result<OwnedEventId, RoomError> {
    match answer? {
        RoomAnswer::Sent { event, .. } => Ok(event),
        other => panic!("{other:?}"),
    }
}

pub(super) fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:here.example")).unwrap()
}

pub(super) fn join() -> MembershipChange {
    MembershipChange::Join {
        profile: MemberProfile::default(),
    }
}

pub(super) fn invite(name: &str) -> MembershipChange {
    MembershipChange::Invite {
        user: user(name),
        profile: MemberProfile::default(),
        is_direct: false,
    }
}

pub(super) fn message(body: &str) -> NewEvent {
    event(
        "m.room.message",
        None,
        &json!({ "msgtype": "m.text", "body": body }),
    )
}

pub(super) fn event(event_type: &str, state_key: Option<&str>, content: &Value) -> NewEvent {
    NewEvent {
        event_type: event_type.to_owned(),
        state_key: state_key.map(ToOwned::to_owned),
        content: to_raw_value(content).unwrap(),
        timestamp: None,
    }
}

pub(super) fn kinds(events: &[VisibleEvent]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event.pdu().event_type())
        .collect()
}
