//! Filling what is missing before an event: the events between, or else the state before it.
//!
//! Asked first is the server that sent the event, then its sender's, then others in the room. All
//! of it is bounded: a peer can name any number of events that never were.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events", "Retrieving event
//! authorisation information".

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use homeserver_events::Pdu;
use homeserver_rooms::{Incoming, Received, Room, RoomError, Rooms};
use ruma::{EventId, OwnedEventId, OwnedServerName, ServerName};

use super::{Inner, desk::in_order};
use crate::{FetchError, Fetcher, MissingEvents, RoomOf, StateIds, is_same_server};

/// Events that one call for missing events asks for: what other servers ask for, too.
const MISSING_AT_ONCE: usize = 10;
/// Such calls for one event: a longer gap is bridged by its state.
const MAX_ROUNDS: usize = 30;
/// Servers that are asked.
const MAX_SERVERS: usize = 4;
/// Steps of judging what was fetched, each of which fills one gap.
const MAX_STEPS: usize = 12;
/// Rounds in which auth events of auth events are fetched one by one.
const MAX_AUTH_ROUNDS: usize = 8;
/// Events of a state that are fetched one by one; where more are missing, the whole state is.
const MAX_SINGLE: usize = 100;
/// How long filling one gap may take in all.
const PATIENCE: Duration = Duration::from_mins(10);

/// Why a gap stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum GapError {
    /// The room cannot tell.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// Nobody gave what is missing.
    #[error("no server gave {0}")]
    NotGiven(&'static str),
    /// It took too many steps, or too long.
    #[error("it is larger than the limit of {0}")]
    OverLimit(&'static str),
}

/// What came of filling a gap: the events that were judged, and whether the one that it was for is
/// among them.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) judged: Vec<OwnedEventId>,
    pub(super) outcome: Result<(), GapError>,
}

/// A gap while it is filled.
pub(super) struct Gap<'a> {
    inner: &'a Inner,
    room: &'a Arc<Room>,
    servers: Vec<OwnedServerName>,
    judged: Vec<OwnedEventId>,
}

impl Inner {
    /// Fetches what is missing for an event and judges it.
    pub(super) async fn fill(&self, room: &Arc<Room>, origin: &ServerName, event: Pdu) -> Filled {
        let first = [origin.to_owned(), event.sender().server_name().to_owned()];
        let servers = match self.servers_for(room, &first).await {
            Ok(servers) => servers,
            Err(error) => {
                return Filled {
                    judged: Vec::new(),
                    outcome: Err(error.into()),
                };
            }
        };
        let mut gap = Gap::new(self, room, servers);
        let filled = tokio::time::timeout(PATIENCE, gap.fill(event)).await;
        let outcome = filled.unwrap_or(Err(GapError::OverLimit("ten minutes")));
        Filled {
            judged: gap.judged,
            outcome,
        }
    }

    /// Whom to ask: these, then others in the room.
    pub(super) async fn servers_for(
        &self,
        room: &Room,
        first: &[OwnedServerName],
    ) -> Result<Vec<OwnedServerName>, RoomError> {
        let mut servers: Vec<OwnedServerName> = Vec::with_capacity(MAX_SERVERS);
        let joined = self
            .parts
            .rooms
            .servers(room.number, MAX_SERVERS + 2)
            .await?;
        for server in first.iter().cloned().chain(joined) {
            let known = servers.iter().any(|known| is_same_server(known, &server));
            if !known && server != self.parts.own && servers.len() < MAX_SERVERS {
                servers.push(server);
            }
        }
        Ok(servers)
    }
}

impl<'a> Gap<'a> {
    /// A gap of this room, about which these servers are asked.
    pub(super) fn new(
        inner: &'a Inner,
        room: &'a Arc<Room>,
        servers: Vec<OwnedServerName>,
    ) -> Self {
        Self {
            inner,
            room,
            servers,
            judged: Vec::new(),
        }
    }

    pub(super) fn room(&self) -> &'a Arc<Room> {
        self.room
    }

    pub(super) fn rooms(&self) -> &'a Arc<Rooms> {
        &self.inner.parts.rooms
    }

    pub(super) fn fetcher(&self) -> &'a Fetcher {
        &self.inner.parts.fetcher
    }

    pub(super) fn of(&self) -> RoomOf<'a> {
        RoomOf::from(&**self.room)
    }

    async fn fill(&mut self, event: Pdu) -> Result<(), GapError> {
        let id = event.event_id().to_owned();
        let mut todo = self.between(event).await?;
        for _ in 0..MAX_STEPS {
            let left = self.judge(todo).await?;
            // The lowest comes first.
            let Some((lowest, prev, auth)) = left.first().cloned() else {
                return Ok(());
            };
            if !auth.is_empty() {
                self.auth_events(&lowest, auth).await?;
            } else if !prev.is_empty() {
                self.over_gap(&lowest).await?;
            }
            if self.judged.contains(&id) {
                return Ok(());
            }
            todo = left.into_iter().map(|(pdu, _, _)| pdu).collect();
        }
        Err(GapError::OverLimit("steps"))
    }

    /// Judges events, and gives those of which something is missing.
    async fn judge(
        &mut self,
        events: Vec<Pdu>,
    ) -> Result<Vec<(Pdu, Vec<OwnedEventId>, Vec<OwnedEventId>)>, GapError> {
        let events = in_order(events, |pdu| pdu);
        let incoming = self.inner.incoming(self.room, events.clone()).await?;
        let rooms = &self.inner.parts.rooms;
        let results = rooms.receive_all(self.room, incoming).await;
        let mut left = Vec::new();
        for (pdu, result) in events.into_iter().zip(results) {
            match result? {
                Received::Judged { .. } => self.judged.push(pdu.event_id().to_owned()),
                Received::Missing { prev, auth } => left.push((pdu, prev, auth)),
            }
        }
        Ok(left)
    }

    /// The events between what is here and this one, as far as they are given; itself comes last.
    async fn between(&self, event: Pdu) -> Result<Vec<Pdu>, GapError> {
        let rooms = &self.inner.parts.rooms;
        let earliest = rooms.extremities(self.room).await?;
        let mut found = vec![event];
        let mut servers = self.servers.iter();
        let mut server = servers.next();
        for _ in 0..MAX_ROUNDS {
            let latest = self.with_missing_prev(&found).await?;
            let (Some(asked), false) = (server, latest.is_empty()) else {
                break;
            };
            let missing = MissingEvents {
                latest: &latest,
                earliest: &earliest,
                min_depth: 0,
                limit: MISSING_AT_ONCE,
            };
            let fetcher = &self.inner.parts.fetcher;
            let answer = fetcher.missing_events(asked, self.of(), missing).await;
            let more = answer.unwrap_or_else(|error| {
                tracing::debug!(%error, server = %asked, "missing events were not given");
                Vec::new()
            });
            let known: HashSet<_> = found.iter().map(|pdu| pdu.event_id().to_owned()).collect();
            let before = found.len();
            let new = more
                .into_iter()
                .filter(|pdu| !known.contains(pdu.event_id()));
            found.extend(new);
            if found.len() == before {
                server = servers.next();
            }
        }
        Ok(found)
    }

    /// Those of the events that name previous ones which are neither among them nor here.
    async fn with_missing_prev(&self, events: &[Pdu]) -> Result<Vec<OwnedEventId>, GapError> {
        let known: HashSet<&EventId> = events.iter().map(Pdu::event_id).collect();
        let named = events.iter().flat_map(Pdu::prev_events);
        let unknown = named.filter(|id| !known.contains(&***id)).cloned();
        let unknown: BTreeSet<OwnedEventId> = unknown.collect();
        let unknown: Vec<_> = unknown.into_iter().collect();
        let unplaced = self.inner.parts.rooms.unplaced_of(self.room, &unknown);
        let unplaced: HashSet<_> = unplaced.await?.into_iter().collect();
        let lacking = events
            .iter()
            .filter(|pdu| pdu.prev_events().iter().any(|id| unplaced.contains(id)));
        Ok(lacking.map(|pdu| pdu.event_id().to_owned()).collect())
    }

    /// Fetches auth events of an event, and theirs.
    async fn auth_events(&self, event: &Pdu, wanted: Vec<OwnedEventId>) -> Result<(), GapError> {
        let rooms = &self.inner.parts.rooms;
        let fetcher = &self.inner.parts.fetcher;
        for server in &self.servers {
            match fetcher
                .event_auth(server, self.of(), event.event_id())
                .await
            {
                Ok(chain) => {
                    let ids: Vec<_> = chain.iter().map(|pdu| pdu.event_id().to_owned()).collect();
                    let lacking: HashSet<_> = rooms
                        .missing_of(self.room, &ids)
                        .await?
                        .into_iter()
                        .collect();
                    let new = chain
                        .into_iter()
                        .filter(|pdu| lacking.contains(pdu.event_id()));
                    self.outliers(new.collect()).await?;
                    if rooms.missing_of(self.room, &wanted).await?.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, %server, "an auth chain was not given");
                }
            }
        }
        self.one_by_one(wanted).await
    }

    /// Fetches events by their ids, and their auth events, and stores them as outliers.
    pub(super) async fn one_by_one(&self, wanted: Vec<OwnedEventId>) -> Result<(), GapError> {
        let fetcher = &self.inner.parts.fetcher;
        let rooms = &self.inner.parts.rooms;
        let mut held: Vec<Pdu> = Vec::new();
        let mut lacking = rooms.missing_of(self.room, &wanted).await?;
        for _ in 0..MAX_AUTH_ROUNDS {
            if lacking.is_empty() {
                break;
            }
            let fetched = fetcher.events(&self.servers, self.of(), &lacking).await;
            if fetched.is_empty() {
                break;
            }
            held.extend(fetched);
            let known: HashSet<&EventId> = held.iter().map(Pdu::event_id).collect();
            let named = held.iter().flat_map(Pdu::auth_events);
            let named: BTreeSet<_> = named
                .filter(|id| !known.contains(&***id))
                .cloned()
                .collect();
            let named: Vec<_> = named.into_iter().collect();
            lacking = rooms.missing_of(self.room, &named).await?;
        }
        self.outliers(held).await?;
        if rooms.missing_of(self.room, &wanted).await?.is_empty() {
            return Ok(());
        }
        Err(GapError::NotGiven("the auth events"))
    }

    async fn outliers(&self, events: Vec<Pdu>) -> Result<(), GapError> {
        let rooms = &self.inner.parts.rooms;
        let taken = rooms.receive_outliers(self.room, in_order(events, |pdu| pdu));
        let left_out = taken.await?.left_out.len();
        if left_out > 0 {
            tracing::debug!(room = %self.room.id, left_out, "auth events lack theirs");
        }
        Ok(())
    }

    /// Judges an event by the state that another server has before it.
    async fn over_gap(&mut self, event: &Pdu) -> Result<(), GapError> {
        let rooms = &self.inner.parts.rooms;
        if rooms.is_partial(self.room.number) {
            // That state would be told with all the members that are on their way.
            return Err(RoomError::PartialState.into());
        }
        // Whoever made the event knows best what was before it.
        for server in &self.maker_first(event) {
            let state = match self.state_before(server, event).await {
                Ok(state) => state,
                Err(GapError::Room(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, %server, event = %event.event_id(), "a state was not given");
                    continue;
                }
            };
            let incoming = self.inner.incoming(self.room, vec![event.clone()]).await?;
            let Some(incoming) = incoming.into_iter().next() else {
                continue;
            };
            let received = rooms.receive_over_gap(self.room, incoming, state).await?;
            if matches!(received, Received::Judged { .. }) {
                self.judged.push(event.event_id().to_owned());
                return Ok(());
            }
        }
        Err(GapError::NotGiven("the state"))
    }

    /// Whom to ask about an event: its maker, also if it is not among those that are asked for the
    /// rest, then these.
    pub(super) fn maker_first(&self, event: &Pdu) -> Vec<OwnedServerName> {
        let maker = event.sender().server_name();
        let is_own = is_same_server(maker, &self.inner.parts.own);
        let others = self.servers.iter();
        let others = others.filter(|server| !is_same_server(server, maker));
        let first = (!is_own).then(|| maker.to_owned()).into_iter();
        first.chain(others.cloned()).collect()
    }

    /// The state before an event as a server tells it. What is not here of it is fetched, as far as
    /// somebody has it.
    pub(super) async fn state_before(
        &self,
        server: &ServerName,
        event: &Pdu,
    ) -> Result<Vec<OwnedEventId>, GapError> {
        let fetcher = &self.inner.parts.fetcher;
        let rooms = &self.inner.parts.rooms;
        let not_given = |error: FetchError| {
            tracing::debug!(%error, %server, "no state");
            GapError::NotGiven("the state")
        };
        let ids = fetcher.state_ids(server, self.of(), event.event_id()).await;
        let StateIds { state, auth_chain } = ids.map_err(not_given)?;
        if state.is_empty() {
            return Err(GapError::NotGiven("any state"));
        }
        let lacking_state = rooms.missing_of(self.room, &state).await?;
        let lacking_auth = rooms.missing_of(self.room, &auth_chain).await?;
        let lacking = lacking_state.len() + lacking_auth.len();
        let fetched = if lacking > MAX_SINGLE {
            let whole = fetcher.state(server, self.of(), event.event_id()).await;
            let whole = whole.map_err(not_given)?;
            // Only what the ids named.
            let wanted: HashSet<_> = lacking_state.into_iter().chain(lacking_auth).collect();
            let both = whole.auth_chain.into_iter().chain(whole.state);
            both.filter(|pdu| wanted.contains(pdu.event_id())).collect()
        } else {
            let ids: Vec<_> = lacking_auth.into_iter().chain(lacking_state).collect();
            fetcher.events(&self.servers, self.of(), &ids).await
        };
        self.outliers(fetched).await?;
        // What nobody gives any more is not part of it.
        let still = rooms.missing_of(self.room, &state).await?.len();
        if still > state.len() / 2 {
            return Err(GapError::NotGiven("most of the state"));
        }
        Ok(state)
    }
}

impl Inner {
    /// Events with what is found out about them outside of the room.
    pub(super) async fn incoming(
        &self,
        room: &Room,
        events: Vec<Pdu>,
    ) -> Result<Vec<Incoming>, RoomError> {
        let checked = self.parts.policies.check(room, events).await?;
        let incoming = checked.into_iter();
        Ok(incoming
            .map(|(pdu, refused)| Incoming { pdu, refused })
            .collect())
    }
}
