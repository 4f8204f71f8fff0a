//! Another server of the same room, which goes its own way: its users make the events that the
//! server under test receives.

use std::{sync::Arc, time::Duration};

use homeserver_events::Pdu;
use homeserver_storage::engines::memory::MemoryEngine;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, server_name};
use serde_json::{Value, json};

use super::{
    forks::shared_room,
    mortal::copy,
    support::{Server, event, message},
};
use crate::{NewEvent, RoomAction};

pub(super) struct Peer {
    pub(super) server: Server,
    pub(super) room: OwnedRoomId,
    pub(super) zed: OwnedUserId,
    /// All that it made, in its order.
    pub(super) made: Vec<Pdu>,
}

/// A database with a shared room, and the peer in it. `alice` is here, `zed` is there.
pub(super) async fn peer(version: &str) -> (Arc<MemoryEngine>, Peer) {
    let memory = Arc::new(MemoryEngine::new());
    let first = Server::on(memory.clone()).await;
    let (elsewhere, _) = shared_room(&first, version).await;
    let (room, zed) = (elsewhere.room.clone(), elsewhere.user.clone());
    let server = Server::named(
        server_name!("there.example").to_owned(),
        copy(&memory).await,
    );
    let server = server.await.unwrap();
    let made = Vec::new();
    let peer = Peer {
        server,
        room,
        zed,
        made,
    };
    (memory, peer)
}

impl Peer {
    pub(super) fn user(name: &str) -> OwnedUserId {
        OwnedUserId::try_from(format!("@{name}:there.example")).unwrap()
    }

    /// The event as the peer has it.
    pub(super) async fn stored(&self, id: &OwnedEventId) -> Pdu {
        let (rooms, room) = (&self.server.rooms, self.server.room(&self.room).await);
        let number = rooms.events.number(room.number, id).await.unwrap();
        let event = rooms.events.load(&room, number.unwrap()).await.unwrap();
        event.pdu.clone()
    }

    pub(super) async fn send(&mut self, sender: &OwnedUserId, new: NewEvent) -> Pdu {
        self.server.clock.advance(Duration::from_millis(10));
        let id = self.server.try_send(sender, &self.room, new).await.unwrap();
        let pdu = self.stored(&id).await;
        self.made.push(pdu.clone());
        pdu
    }

    pub(super) async fn say(&mut self, body: &str) -> Pdu {
        let zed = self.zed.clone();
        self.send(&zed, message(body)).await
    }

    pub(super) async fn set(&mut self, event_type: &str, key: &str, content: Value) -> Pdu {
        let zed = self.zed.clone();
        self.send(&zed, event(event_type, Some(key), &content))
            .await
    }

    pub(super) async fn member(&mut self, name: &str, membership: &str) -> Pdu {
        let user = Self::user(name);
        let content = json!({ "membership": membership });
        let new = event("m.room.member", Some(user.as_str()), &content);
        self.send(&user, new).await
    }

    pub(super) async fn redact(&mut self, target: &Pdu) -> Pdu {
        self.server.clock.advance(Duration::from_millis(10));
        let action = RoomAction::Redact {
            room: self.room.clone(),
            target: target.event_id().to_owned(),
            reason: None,
        };
        let answer = self.server.act(&self.zed, action).await.unwrap();
        let crate::RoomAnswer::Sent { event, .. } = answer else {
            panic!("{answer:?}")
        };
        let pdu = self.stored(&event).await;
        self.made.push(pdu.clone());
        pdu
    }
}
