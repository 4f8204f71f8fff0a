//! What other servers ask of the history and the state of rooms, answered.
//!
//! Who may ask, and what is shown, is decided by [`homeserver_rooms`]; here are the answers as
//! JSON. Stored events are copied as they stand. A state with its auth chain is written while it is
//! read, so a room of any size takes little memory.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events", "Retrieving
//! events", "Retrieving event authorisation information".

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use homeserver_events::Pdu;
use homeserver_rooms::{MissingAsked, RoomError, Rooms, Towards};
use homeserver_runtime::Runtime;
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};

use crate::written::{Frame, Writers};

/// Answers other servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct History {
    rooms: Arc<Rooms>,
    own: OwnedServerName,
    runtime: Runtime,
    writers: Writers,
}

/// What is told about an event: what it was judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// `GET /state/{roomId}`: the state before it, and the auth chains of that.
    State,
    /// `GET /state_ids/{roomId}`: their ids.
    StateIds,
    /// `GET /event_auth/{roomId}/{eventId}`: its auth chain.
    AuthChain,
}

impl Basis {
    fn frame(self) -> Frame {
        let (state, chain, ids) = match self {
            Self::State => ("{\"pdus\":[", "],\"auth_chain\":[", false),
            Self::StateIds => ("{\"pdu_ids\":[", "],\"auth_chain_ids\":[", true),
            Self::AuthChain => ("", "{\"auth_chain\":[", false),
        };
        Frame {
            state: state.to_owned(),
            chain,
            end: "]}",
            ids,
        }
    }
}

impl History {
    /// For the rooms of the server of this name.
    pub fn new(own: OwnedServerName, rooms: Arc<Rooms>, runtime: Runtime) -> Self {
        Self {
            rooms,
            own,
            writers: Writers::new(runtime.tasks.clone()),
            runtime,
        }
    }

    /// The answer to `GET /event/{eventId}`.
    pub async fn event(&self, origin: &ServerName, event: &EventId) -> Result<String, RoomError> {
        let event = self.rooms.serve_event(origin, event).await?;
        Ok(self.transaction(&[event]))
    }

    /// The answer to `GET /backfill/{roomId}`.
    pub async fn backfill(
        &self,
        origin: &ServerName,
        room: &RoomId,
        (from, limit): (&[OwnedEventId], usize),
    ) -> Result<String, RoomError> {
        let visit = self.rooms.enter_as_server(origin, room).await?;
        let events = self.rooms.serve_backfill(&visit, from, limit).await?;
        Ok(self.transaction(&events))
    }

    /// The answer to `POST /get_missing_events/{roomId}`.
    pub async fn missing_events(
        &self,
        origin: &ServerName,
        room: &RoomId,
        asked: MissingAsked<'_>,
    ) -> Result<String, RoomError> {
        let visit = self.rooms.enter_as_server_at(origin, room, asked.latest);
        let visit = visit.await?;
        let events = self.rooms.serve_missing(&visit, asked).await?;
        Ok(format!("{{\"events\":[{}]}}", listed(&events)))
    }

    /// The answer to `GET /timestamp_to_event/{roomId}`; `None` if there is no such event.
    pub async fn nearest(
        &self,
        origin: &ServerName,
        room: &RoomId,
        (time, towards): (u64, Towards),
    ) -> Result<Option<String>, RoomError> {
        let visit = self.rooms.enter_as_server(origin, room).await?;
        let near = self.rooms.serve_nearest(&visit, time, towards).await?;
        Ok(near.event.map(|event| {
            let (id, time) = (event.event_id, event.time);
            serde_json::json!({ "event_id": id, "origin_server_ts": time }).to_string()
        }))
    }

    /// What an event was judged by, in pieces.
    pub async fn basis(
        &self,
        origin: &ServerName,
        (room, event): (&RoomId, &EventId),
        basis: Basis,
    ) -> Result<impl Stream<Item = Result<Bytes, RoomError>> + Send + use<>, RoomError> {
        let asked = [event];
        let visit = self.rooms.enter_as_server_at(origin, room, &asked).await?;
        let turn = self.writers.turn(origin).await?;
        let chain = match basis {
            Basis::State | Basis::StateIds => self.rooms.serve_state(&visit, event).await?,
            Basis::AuthChain => self.rooms.serve_auth_chain(&visit, event).await?,
        };
        Ok(self.writers.write(turn, chain, basis.frame()))
    }

    fn transaction(&self, events: &[Pdu]) -> String {
        let (own, now) = (&self.own, self.runtime.clock.unix_millis());
        let pdus = listed(events);
        // A server name has no character that would have to be escaped.
        format!("{{\"origin\":\"{own}\",\"origin_server_ts\":{now},\"pdus\":[{pdus}]}}")
    }
}

fn listed(events: &[Pdu]) -> String {
    let events: Vec<_> = events.iter().map(Pdu::json_str).collect();
    events.join(",")
}
