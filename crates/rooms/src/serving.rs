//! What another server may read of a room.
//!
//! A server comes in by one door, [`Rooms::enter_as_server`]: it must have joined users in the
//! room and be allowed by the room's ACL. One that has none any more may ask about events of its
//! time, and sees the room as it was then ([`Rooms::enter_as_server_at`]). Behind it, events of the timeline are served whole if
//! the server may see them and redacted otherwise: their ids, links and what the rules look at is
//! what others need to follow the graph. State and auth chains are served whole, as every member
//! of the graph must be able to judge events. Rejected events are never served.
//!
//! Events are served as they are stored: without `unsigned`, byte for byte.
//!
//! Specification: Server-Server API, "Backfilling and retrieving missing events", "Retrieving
//! events", "Retrieving event authorisation information".

mod chain;
mod event;
mod sights;
mod walk;

use std::sync::Arc;

use homeserver_storage::Position;
use ruma::{EventId, OwnedServerName, RoomId, ServerName};

pub use chain::{MAX_CHAIN, Section, ServedChain, ServedEvent};
pub(crate) use sights::{ServerSights, Shown};
pub use walk::{MAX_BACKFILL_SERVED, MAX_MISSING_SERVED, MissingAsked};

use crate::{Rooms, error::RoomError, event::StoredEvent, room::Room, tree::StateRoot};

/// Events of one question by which it is found out whether a server was in the room.
const MAX_ASKED_ABOUT: usize = 20;

/// A server that was let into a room, at a position of the journal.
#[derive(Clone, Debug)]
pub struct ServerVisit {
    room: Arc<Room>,
    server: OwnedServerName,
    position: Position,
}

impl ServerVisit {
    /// The room.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// The server.
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// What the server may see of the room.
    pub(crate) async fn sights<'a>(
        &'a self,
        rooms: &'a Rooms,
    ) -> Result<ServerSights<'a>, RoomError> {
        ServerSights::new(rooms, &self.room, &self.server, self.position).await
    }
}

impl Rooms {
    /// The door for servers: `Forbidden` for one that has no joined user in the room or that the
    /// room's ACL denies, `UnknownRoom` where this server does not know the room, `PartialState` where
    /// it does not know all of it yet.
    pub async fn enter_as_server(
        &self,
        server: &ServerName,
        room: &RoomId,
    ) -> Result<ServerVisit, RoomError> {
        let room = self.room(room).await?.ok_or(RoomError::UnknownRoom)?;
        if self.is_unsettled(room.number) {
            // Which servers are in it, and were, is not known.
            return Err(RoomError::PartialState);
        }
        let position = self.durable();
        if !self.acl(&room).await?.allows(server) {
            return Err(RoomError::forbidden(
                "the room's ACL keeps your server out of it",
            ));
        }
        if !self.server_joined(&room, server, position).await? {
            return Err(RoomError::forbidden("your server is not in the room"));
        }
        Ok(ServerVisit {
            room,
            server: server.to_owned(),
            position,
        })
    }

    /// Like [`Rooms::enter_as_server`], to ask what is before these events. A server whose users
    /// have left, or were made to, comes in as it was right before the last of them at which it was
    /// in the room: otherwise it could not judge what ended its stay, and would never learn of it.
    pub async fn enter_as_server_at(
        &self,
        server: &ServerName,
        room: &RoomId,
        events: &[impl AsRef<EventId>],
    ) -> Result<ServerVisit, RoomError> {
        let refused = match self.enter_as_server(server, room).await {
            Err(refused @ RoomError::Forbidden(_)) => refused,
            outcome => return outcome,
        };
        let room = self.room(room).await?.ok_or(RoomError::UnknownRoom)?;
        if !self.acl(&room).await?.allows(server) {
            return Err(refused);
        }
        let mut last = None;
        for id in events.iter().take(MAX_ASKED_ABOUT) {
            let placed = match self.placed(&room, id.as_ref()).await {
                Err(RoomError::UnknownEvent) => continue,
                placed => placed?,
            };
            let Some(at) = placed.position else { continue };
            if self.server_joined(&room, server, at - 1).await? {
                last = last.max(Some(at - 1));
            }
        }
        let position = last.ok_or(refused)?;
        Ok(ServerVisit {
            room,
            server: server.to_owned(),
            position,
        })
    }

    /// An event of the room that has a place in its graph.
    async fn placed(&self, room: &Room, id: &EventId) -> Result<Arc<StoredEvent>, RoomError> {
        let number = self.events.number(room.number, id).await?;
        let number = number.ok_or(RoomError::UnknownEvent)?;
        let event = self.events.find(room, number).await?;
        event
            .filter(|event| event.is_placed())
            .ok_or(RoomError::UnknownEvent)
    }

    /// The state before an event, as far as it is known for certain.
    async fn known_state_before(&self, room: &Room, id: &EventId) -> Result<StateRoot, RoomError> {
        let event = self.placed(room, id).await?;
        if event.status.is_partial() {
            return Err(RoomError::UnknownEvent);
        }
        // A rejected event changes nothing: the state after it is the one before it.
        Ok(event.status.before().copied().unwrap_or(event.after))
    }

    /// The state before an event of the room, and the auth chains of that state.
    pub async fn serve_state(
        self: &Arc<Self>,
        visit: &ServerVisit,
        event: &EventId,
    ) -> Result<ServedChain, RoomError> {
        let root = self.known_state_before(&visit.room, event).await?;
        let state = self.states.all(visit.room.number, root).await?;
        let state = state.into_iter().map(|item| item.event).collect();
        Ok(ServedChain::of_state(self, &visit.room, state))
    }

    /// The auth chain of an event of the room.
    pub async fn serve_auth_chain(
        self: &Arc<Self>,
        visit: &ServerVisit,
        event: &EventId,
    ) -> Result<ServedChain, RoomError> {
        let number = self.events.number(visit.room.number, event).await?;
        let number = number.ok_or(RoomError::UnknownEvent)?;
        let event = self.events.find(&visit.room, number).await?;
        let event = event.filter(|event| !event.status.is_rejected());
        let event = event.ok_or(RoomError::UnknownEvent)?;
        Ok(ServedChain::of_event(self, &visit.room, &event.auth))
    }
}
