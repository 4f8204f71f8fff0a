//! What other servers ask of the history and the state of rooms, answered.
//!
//! Who may ask, and what is shown, is decided by [`homeserver_rooms`]; here are the answers as
//! JSON. Stored events are copied as they stand. A state with its auth chain is written while it is
//! read, so a room of any size takes little memory.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events", "Retrieving
//! events", "Retrieving event authorisation information".

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use homeserver_events::Pdu;
use homeserver_rooms::{
    MissingAsked, RoomError, Rooms, Section, ServedChain, ServedEvent, Towards,
};
use homeserver_runtime::Runtime;
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// States and auth chains that are written at once: each holds the numbers of its events.
const CHAINS_AT_ONCE: usize = 16;

/// How long one more waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// How long the writing of one may take: whoever reads more slowly does not keep others out.
const CHAIN_TIME: Duration = Duration::from_mins(5);

/// Answers other servers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct History {
    rooms: Arc<Rooms>,
    own: OwnedServerName,
    runtime: Runtime,
    turns: Arc<Semaphore>,
}

/// How the events of a state or a chain are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `/state`: whole events.
    State,
    /// `/state_ids`: their ids.
    StateIds,
    /// `/event_auth`: whole events of the chain alone.
    AuthChain,
}

impl Form {
    const fn before(self, section: Section) -> &'static str {
        match (self, section) {
            (Self::State, Section::State) => "{\"pdus\":[",
            (Self::State, Section::AuthChain) => "],\"auth_chain\":[",
            (Self::StateIds, Section::State) => "{\"pdu_ids\":[",
            (Self::StateIds, Section::AuthChain) => "],\"auth_chain_ids\":[",
            (Self::AuthChain, Section::State) => "",
            (Self::AuthChain, Section::AuthChain) => "{\"auth_chain\":[",
        }
    }

    fn event(self, event: &ServedEvent, to: &mut Vec<u8>) {
        match self {
            Self::State | Self::AuthChain => to.extend_from_slice(&event.json),
            Self::StateIds => {
                let id = serde_json::to_vec(event.id.as_str()).unwrap_or_default();
                to.extend_from_slice(&id);
            }
        }
    }
}

impl History {
    /// For the rooms of the server of this name.
    pub fn new(own: OwnedServerName, rooms: Arc<Rooms>, runtime: Runtime) -> Self {
        Self {
            rooms,
            own,
            runtime,
            turns: Arc::new(Semaphore::new(CHAINS_AT_ONCE)),
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
        let visit = self.rooms.enter_as_server(origin, room).await?;
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

    /// The answer to `GET /state/{roomId}`, in pieces.
    pub async fn state(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event: &EventId,
    ) -> Result<impl Stream<Item = Result<Bytes, RoomError>> + Send + use<>, RoomError> {
        let visit = self.rooms.enter_as_server(origin, room).await?;
        let turn = self.turn().await?;
        let chain = self.rooms.serve_state(&visit, event).await?;
        Ok(written(chain, Form::State, turn))
    }

    /// The answer to `GET /state_ids/{roomId}`, in pieces.
    pub async fn state_ids(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event: &EventId,
    ) -> Result<impl Stream<Item = Result<Bytes, RoomError>> + Send + use<>, RoomError> {
        let visit = self.rooms.enter_as_server(origin, room).await?;
        let turn = self.turn().await?;
        let chain = self.rooms.serve_state(&visit, event).await?;
        Ok(written(chain, Form::StateIds, turn))
    }

    /// The answer to `GET /event_auth/{roomId}/{eventId}`, in pieces.
    pub async fn auth_chain(
        &self,
        origin: &ServerName,
        room: &RoomId,
        event: &EventId,
    ) -> Result<impl Stream<Item = Result<Bytes, RoomError>> + Send + use<>, RoomError> {
        let visit = self.rooms.enter_as_server(origin, room).await?;
        let turn = self.turn().await?;
        let chain = self.rooms.serve_auth_chain(&visit, event).await?;
        Ok(written(chain, Form::AuthChain, turn))
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, RoomError> {
        let turn = timeout(TURN, Arc::clone(&self.turns).acquire_owned()).await;
        turn.map_err(|_| RoomError::Busy)?
            .map_err(|_| RoomError::Stopping)
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

/// A chain on its way to the wire.
struct Writing {
    chain: ServedChain,
    form: Form,
    /// The section that is being written.
    section: Option<Section>,
    ended: bool,
    until: tokio::time::Instant,
    _turn: OwnedSemaphorePermit,
}

/// The answer in pieces. It breaks off where the database cannot be read, so that nobody takes a
/// part for the whole.
fn written(
    chain: ServedChain,
    form: Form,
    turn: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Bytes, RoomError>> + Send + use<> {
    let writing = Writing {
        chain,
        form,
        section: None,
        ended: false,
        until: tokio::time::Instant::now() + CHAIN_TIME,
        _turn: turn,
    };
    stream::try_unfold(writing, |mut writing| async move {
        let piece = writing.next().await?;
        Ok(piece.map(|piece| (piece, writing)))
    })
}

impl Writing {
    async fn next(&mut self) -> Result<Option<Bytes>, RoomError> {
        if self.ended {
            return Ok(None);
        }
        if tokio::time::Instant::now() > self.until {
            return Err(RoomError::Busy);
        }
        let mut piece = Vec::new();
        if let Some((section, events)) = self.chain.next().await? {
            let mut first = self.enter(section, &mut piece);
            for event in &events {
                if !first {
                    piece.push(b',');
                }
                first = false;
                self.form.event(event, &mut piece);
            }
        } else {
            self.enter(Section::AuthChain, &mut piece);
            piece.extend_from_slice(b"]}");
            self.ended = true;
        }
        Ok(Some(Bytes::from(piece)))
    }

    /// Writes what stands before a section, if it is not being written already. Gives whether the
    /// next event is the first of it.
    fn enter(&mut self, section: Section, piece: &mut Vec<u8>) -> bool {
        if self.section == Some(section) {
            return false;
        }
        if self.section.is_none() && section == Section::AuthChain {
            piece.extend_from_slice(self.form.before(Section::State).as_bytes());
        }
        piece.extend_from_slice(self.form.before(section).as_bytes());
        self.section = Some(section);
        true
    }
}
