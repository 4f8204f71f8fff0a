//! Events and state of rooms, asked of other servers.
//!
//! Nothing that comes back is believed because it was asked for: each event is read by the rules of
//! the room, has to be of that room (and to be the one that was asked for), and its signatures are
//! checked as if it had been sent. What fails is left out and costs nothing else.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events", "Retrieving
//! events", "Retrieving event authorisation information".

mod nearest;
mod read;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use homeserver_events::{Pdu, Rules};
use homeserver_rooms::Room;
use homeserver_runtime::{PoolClosed, Runtime};
use http::StatusCode;
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};
use serde::Serialize;
use tokio::sync::Semaphore;

pub use self::nearest::NearestElsewhere;
use self::read::{Listed, Lists};
use crate::{Call, CallError, CheckError, Dropped, Limits, Path, Peers, Verifier};

/// Events that one call for history may ask for: more make one answer too large.
pub const MAX_PAGE: usize = 100;
/// Ids that one call may name: as many as an event may follow, several times.
const MAX_NAMED: usize = 100;
/// Events that are fetched one by one at most, for one question.
const MAX_SINGLE: usize = 500;
/// Of them at once, of one server: other calls to it need their turns.
const SINGLE_AT_ONCE: usize = 4;
/// Servers that are asked for the same event.
const MAX_SERVERS: usize = 5;
/// Entries of a state or of an auth chain: beyond, no server could serve the room.
const MAX_STATE: usize = 500_000;
/// Bytes of an answer with one event, which may have an `unsigned` beside its 64 KiB.
const EVENT_BODY: usize = 256 * 1024;
/// Bytes of an answer with up to [`MAX_PAGE`] events.
const PAGE_BODY: usize = 10 * 1024 * 1024;
/// Bytes of an answer that lists the ids of a state.
const IDS_BODY: usize = 32 * 1024 * 1024;
/// Bytes of an answer with a whole state or auth chain. A larger state is fetched event by event.
const STATE_BODY: usize = 64 * 1024 * 1024;
/// Whole states that are held at once.
const STATES_AT_ONCE: usize = 2;
/// How long usual answers are waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long whole states are waited for.
const STATE_PATIENCE: Duration = Duration::from_mins(2);
/// How long an answer may stand still.
const STALL: Duration = Duration::from_secs(15);
/// How long the keys are waited for that events were signed with.
const KEY_PATIENCE: Duration = Duration::from_secs(20);
/// Answers up to this many bytes are read where they arrive, longer ones on the pool.
const READ_HERE: usize = 64 * 1024;

/// The room of which something is wanted.
#[derive(Clone, Copy, Debug)]
pub struct RoomOf<'a> {
    /// Its id.
    pub id: &'a RoomId,
    /// The rules of its version.
    pub rules: &'static Rules,
}

impl<'a> From<&'a Room> for RoomOf<'a> {
    fn from(room: &'a Room) -> Self {
        Self {
            id: &room.id,
            rules: room.rules,
        }
    }
}

/// Why nothing came of a question.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server did not answer, or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Nothing could be checked here.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// It answered with something else.
    #[error("the server answered something else than was asked: {0}")]
    NotAsAsked(&'static str),
    /// The one event that was asked for is not to be used.
    #[error(transparent)]
    Dropped(#[from] Dropped),
}

impl From<PoolClosed> for FetchError {
    fn from(error: PoolClosed) -> Self {
        Self::Check(error.into())
    }
}

/// The ids of the state before an event, and of the auth events of that state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateIds {
    /// The state.
    pub state: Vec<OwnedEventId>,
    /// The auth chain of the state.
    pub auth_chain: Vec<OwnedEventId>,
}

/// The state before an event, and the auth events of that state.
#[derive(Clone, Debug)]
pub struct StateEvents {
    /// The state, as far as its events are to be used.
    pub state: Vec<Pdu>,
    /// The auth chain of the state, as far as its events are to be used.
    pub auth_chain: Vec<Pdu>,
}

/// What was given of the events that were asked for.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Those that are to be used.
    pub events: Vec<Pdu>,
    /// Those of which only something was given that nobody can use, wrongly signed or malformed,
    /// while all who were asked answered: there is no such event.
    pub unusable: Vec<OwnedEventId>,
}

/// What was found out about an event that is not here.
#[derive(Clone, Copy, Default)]
struct Doubt {
    /// Something was given under its id that cannot be used.
    bad: bool,
    /// It may be had another time.
    open: bool,
}

impl Doubt {
    fn add(&mut self, error: &FetchError) {
        match error {
            FetchError::Dropped(Dropped::KeysUnknown(_)) | FetchError::Check(_) => self.open = true,
            FetchError::Dropped(_) => self.bad = true,
            FetchError::Call(CallError::Refused { status, .. }) => {
                self.open |= !status.is_client_error() || *status == StatusCode::TOO_MANY_REQUESTS;
            }
            FetchError::Call(_) => self.open = true,
            FetchError::NotAsAsked(_) => {}
        }
    }
}

/// Which events are missing.
#[derive(Clone, Copy, Debug)]
pub struct MissingEvents<'a> {
    /// Events whose previous ones are wanted.
    pub latest: &'a [OwnedEventId],
    /// Events that are here, as are those before them.
    pub earliest: &'a [OwnedEventId],
    /// The least depth of interest.
    pub min_depth: u64,
    /// Events at most, up to [`MAX_PAGE`].
    pub limit: usize,
}

#[derive(Serialize)]
struct MissingBody<'a> {
    latest_events: &'a [OwnedEventId],
    earliest_events: &'a [OwnedEventId],
    min_depth: u64,
    limit: usize,
}

/// Asks other servers for events and checks what they answer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    peers: Peers,
    verifier: Verifier,
    runtime: Runtime,
    states: Arc<Semaphore>,
}

impl Fetcher {
    /// A fetcher that asks by `peers` and checks by `verifier`.
    pub fn new(peers: Peers, verifier: Verifier, runtime: Runtime) -> Self {
        Self {
            peers,
            verifier,
            runtime,
            states: Arc::new(Semaphore::new(STATES_AT_ONCE)),
        }
    }

    /// One event of a room.
    ///
    /// # Errors
    /// When it is not to be had there, or not to be used.
    pub async fn event(
        &self,
        server: &ServerName,
        room: RoomOf<'_>,
        id: &EventId,
    ) -> Result<Pdu, FetchError> {
        let call = Call::get(Path::v1("event").segment(id));
        let call = call.limits(limits(EVENT_BODY, PATIENCE));
        let lists = self.read(server, call, Listed::Pdus, 1).await?;
        let only = lists.first.into_iter().next();
        let only = only.ok_or(FetchError::NotAsAsked("no event"))?;
        let mut checked = self.check(vec![only], room).await?;
        let event = checked.pop().ok_or(FetchError::NotAsAsked("no event"))??;
        if event.event_id() != id {
            return Err(FetchError::NotAsAsked("another event"));
        }
        if event.room_id() != room.id {
            return Err(FetchError::NotAsAsked("an event of another room"));
        }
        Ok(event)
    }

    /// Events of a room by their ids, each from the first of the servers that has it. What nobody
    /// has is not among them.
    pub async fn events(
        &self,
        servers: &[OwnedServerName],
        room: RoomOf<'_>,
        ids: &[OwnedEventId],
    ) -> Fetched {
        let mut lacking: Vec<OwnedEventId> = ids.iter().take(MAX_SINGLE).cloned().collect();
        let mut doubts: HashMap<OwnedEventId, Doubt> = HashMap::new();
        let mut fetched = Fetched::default();
        for server in servers.iter().take(MAX_SERVERS) {
            if lacking.is_empty() {
                break;
            }
            let ask = async |id: OwnedEventId| {
                let answer = self.event(server, room, &id).await;
                (id, answer)
            };
            let asked = stream::iter(std::mem::take(&mut lacking)).map(ask);
            let answers: Vec<_> = asked.buffer_unordered(SINGLE_AT_ONCE).collect().await;
            for (id, answer) in answers {
                match answer {
                    Ok(event) => fetched.events.push(event),
                    Err(error) => {
                        tracing::debug!(%error, %server, %id, "an event was not fetched");
                        doubts.entry(id.clone()).or_default().add(&error);
                        lacking.push(id);
                    }
                }
            }
        }
        lacking.retain(|id| doubts.get(id).is_some_and(|doubt| doubt.bad && !doubt.open));
        fetched.unusable = lacking;
        fetched
    }

    /// Events between those that are here and those that name previous ones which are not.
    ///
    /// # Errors
    /// When the server does not answer as asked.
    pub async fn missing_events(
        &self,
        server: &ServerName,
        room: RoomOf<'_>,
        asked: MissingEvents<'_>,
    ) -> Result<Vec<Pdu>, FetchError> {
        let limit = asked.limit.min(MAX_PAGE);
        let body = MissingBody {
            latest_events: &asked.latest[..asked.latest.len().min(MAX_NAMED)],
            earliest_events: &asked.earliest[..asked.earliest.len().min(MAX_NAMED)],
            min_depth: asked.min_depth,
            limit,
        };
        let body = serde_json::to_vec(&body);
        let body = body.map_err(|error| CallError::OwnRequest(error.to_string()))?;
        let call = Call::post(Path::v1("get_missing_events").segment(room.id), body);
        let call = call.limits(limits(PAGE_BODY, PATIENCE));
        let lists = self.read(server, call, Listed::Events, limit).await?;
        self.usable(server, lists.first, room).await
    }

    /// Events before and with `from`.
    ///
    /// # Errors
    /// When the server does not answer as asked.
    pub async fn backfill(
        &self,
        server: &ServerName,
        room: RoomOf<'_>,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Pdu>, FetchError> {
        let limit = limit.min(MAX_PAGE);
        let mut path = Path::v1("backfill").segment(room.id);
        for id in from.iter().take(MAX_NAMED) {
            path = path.query("v", id);
        }
        let path = path.query("limit", limit.to_string());
        let call = Call::get(path).limits(limits(PAGE_BODY, PATIENCE));
        let lists = self.read(server, call, Listed::Pdus, limit).await?;
        self.usable(server, lists.first, room).await
    }

    /// The ids of the state before an event.
    ///
    /// # Errors
    /// When the server does not answer as asked.
    pub async fn state_ids(
        &self,
        server: &ServerName,
        room: RoomOf<'_>,
        event: &EventId,
    ) -> Result<StateIds, FetchError> {
        let path = Path::v1("state_ids").segment(room.id);
        let call = Call::get(path.query("event_id", event));
        let call = call.limits(limits(IDS_BODY, PATIENCE));
        let body = self.peers.ask(server, call).await?.body;
        let read = self.on_pool(body, |body| read::ids(&body, MAX_STATE));
        read.await?
    }

    /// The state before an event.
    ///
    /// # Errors
    /// When the server does not answer as asked.
    pub async fn state(
        &self,
        server: &ServerName,
        room: RoomOf<'_>,
        event: &EventId,
    ) -> Result<StateEvents, FetchError> {
        let _turn = self.states.acquire().await.map_err(|_| CallError::Busy)?;
        let path = Path::v1("state").segment(room.id);
        let call = Call::get(path.query("event_id", event));
        let call = call.limits(limits(STATE_BODY, STATE_PATIENCE));
        let lists = self.read(server, call, Listed::State, MAX_STATE).await?;
        Ok(StateEvents {
            auth_chain: self.usable(server, lists.second, room).await?,
            state: self.usable(server, lists.first, room).await?,
        })
    }

    /// The auth chain of an event.
    ///
    /// # Errors
    /// When the server does not answer as asked.
    pub async fn event_auth(
        &self,
        server: &ServerName,
        room: RoomOf<'_>,
        event: &EventId,
    ) -> Result<Vec<Pdu>, FetchError> {
        let _turn = self.states.acquire().await.map_err(|_| CallError::Busy)?;
        let path = Path::v1("event_auth").segment(room.id).segment(event);
        let call = Call::get(path).limits(limits(STATE_BODY, STATE_PATIENCE));
        let lists = self
            .read(server, call, Listed::AuthChain, MAX_STATE)
            .await?;
        self.usable(server, lists.first, room).await
    }

    /// Makes a call and reads the lists of its answer, of at most `most` entries each.
    async fn read(
        &self,
        server: &ServerName,
        call: Call,
        listed: Listed,
        most: usize,
    ) -> Result<Lists, FetchError> {
        let body = self.peers.ask(server, call).await?.body;
        self.on_pool(body, move |body| listed.read(&body, most))
            .await?
    }

    async fn on_pool<T: Send + 'static>(
        &self,
        body: Bytes,
        read: impl FnOnce(Bytes) -> T + Send + 'static,
    ) -> Result<T, PoolClosed> {
        if body.len() <= READ_HERE {
            return Ok(read(body));
        }
        self.runtime.cpu.run(move || read(body)).await
    }

    async fn check(
        &self,
        events: Vec<Bytes>,
        room: RoomOf<'_>,
    ) -> Result<Vec<Result<Pdu, Dropped>>, CheckError> {
        self.verifier.verify(events, room.rules, KEY_PATIENCE).await
    }

    /// The events that are to be used: well-formed, signed, of this room.
    async fn usable(
        &self,
        server: &ServerName,
        events: Vec<Bytes>,
        room: RoomOf<'_>,
    ) -> Result<Vec<Pdu>, FetchError> {
        let mut usable = Vec::with_capacity(events.len());
        for checked in self.check(events, room).await? {
            match checked {
                Ok(event) if event.room_id() == room.id => usable.push(event),
                Ok(event) => {
                    let id = event.event_id();
                    tracing::debug!(%server, %id, "an event of another room was answered");
                }
                Err(error) => tracing::debug!(%error, %server, "an answered event is dropped"),
            }
        }
        Ok(usable)
    }
}

fn limits(body: usize, deadline: Duration) -> Limits {
    Limits {
        body,
        deadline,
        stall: STALL,
    }
}
