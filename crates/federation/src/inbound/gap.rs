//! Filling what is missing before an event: the events between, or else the state before it.
//!
//! Asked first is the server that sent the event, then its sender's, then others in the room. All
//! of it is bounded: a peer can name any number of events that never were.
//!
//! A state is taken from the first server that tells one of which all can be had; of whom the events
//! are had does not matter. What nobody gives in a usable form while all answer is part of no state.
//! For what may be had later the event waits, and the more often it has waited, the more servers
//! have been asked. Only then is it judged by the rest, together with what the room has.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events", "Retrieving event
//! authorisation information".

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use homeserver_events::Pdu;
use homeserver_rooms::{Incoming, Received, Room, RoomError, Rooms, ToldState};
use ruma::{EventId, OwnedEventId, OwnedServerName, ServerName};

use super::{Inner, desk::in_order};
use crate::{FetchError, Fetcher, MissingEvents, RoomOf, StateIds, is_same_server};

/// Events that one call for missing events asks for: what other servers ask for, too.
const MISSING_AT_ONCE: usize = 10;
/// Such calls for one event: a longer gap is bridged by its state.
const MAX_ROUNDS: usize = 30;
/// Servers that are asked, each time others but for the first.
const MAX_SERVERS: usize = 5;
/// Times after which an event whose past cannot be bridged is judged by the state right before it.
const BRIDGED_AFTER: u8 = 2;
/// Times that an event waits for all of the state before it: about ten minutes.
const WAITS_FOR_ALL: u8 = 6;
/// Events of states that could not be had for so long, and are not waited for again.
pub(super) const MAX_GIVEN_UP: usize = 10_000;
/// Steps of judging what was fetched, each of which fills one gap.
const MAX_STEPS: usize = 12;
/// Rounds in which auth events of auth events are fetched one by one.
const MAX_AUTH_ROUNDS: usize = 8;
/// Events that are fetched one by one for one question, those that authorise them included; where
/// more of a state are missing, the whole state is. A peer can name any number that never were.
const MAX_SINGLE: usize = 100;
/// How far below the join of a room of partial state it is looked for state events that the state
/// there may lack: those of about the time of the join, which others did not send here.
const BELOW_JOIN: u64 = 20;
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
    /// Neither a state that was told allows the event, nor that of the room.
    #[error("no state allows it")]
    Refused,
    /// Nobody gave all of it.
    #[error("of the state, {0} events are not to be had now")]
    PartOfState(usize),
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
    /// Times that this was tried before.
    attempts: u8,
    judged: Vec<OwnedEventId>,
    /// The event whose state was asked for last.
    bridged_at: Option<OwnedEventId>,
}

/// A state as one server tells it.
pub(super) struct Told {
    pub(super) state: ToldState,
    /// What is lacking of it and may still be had.
    waits_for: Vec<OwnedEventId>,
}

impl Told {
    /// This one, or another of which less is lacking.
    fn or_better(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if other.waits_for.len() <= self.waits_for.len() => other,
            _ => self,
        }
    }
}

impl Inner {
    /// Fetches what is missing for an event and judges it, which was tried so often before.
    pub(super) async fn fill(
        &self,
        room: &Arc<Room>,
        origin: &ServerName,
        (event, attempts): (Pdu, u8),
    ) -> Filled {
        let first = [origin.to_owned(), event.sender().server_name().to_owned()];
        let servers = match self.servers_for(room, &first, attempts).await {
            Ok(servers) => servers,
            Err(error) => {
                return Filled {
                    judged: Vec::new(),
                    outcome: Err(error.into()),
                };
            }
        };
        let mut gap = Gap::new(self, room, servers);
        gap.attempts = attempts;
        let filled = tokio::time::timeout(PATIENCE, gap.fill(event)).await;
        let outcome = filled.unwrap_or(Err(GapError::OverLimit("ten minutes")));
        Filled {
            judged: gap.judged,
            outcome,
        }
    }

    /// Whom to ask: these, then others in the room, each time different ones.
    pub(super) async fn servers_for(
        &self,
        room: &Room,
        first: &[OwnedServerName],
        attempts: u8,
    ) -> Result<Vec<OwnedServerName>, RoomError> {
        let mut servers: Vec<OwnedServerName> = Vec::with_capacity(MAX_SERVERS);
        let enough = (MAX_SERVERS + 2) * (usize::from(attempts) + 1);
        let rooms = &self.parts.rooms;
        let mut joined = rooms.servers(room.number, enough).await?;
        joined.retain(|server| *server != self.parts.own);
        if !joined.is_empty() {
            let begin = MAX_SERVERS * usize::from(attempts) % joined.len();
            joined.rotate_left(begin);
        }
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
            attempts: 0,
            judged: Vec::new(),
            bridged_at: None,
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

    /// Whoever made something far below may withhold it for ever: then its past is left out.
    async fn fill(&mut self, event: Pdu) -> Result<(), GapError> {
        match self.climb(event.clone()).await {
            Ok(()) => Ok(()),
            Err(GapError::Room(error)) => Err(error.into()),
            Err(error) if self.attempts < BRIDGED_AFTER => Err(error),
            Err(error) if self.bridged_at.as_deref() == Some(event.event_id()) => Err(error),
            Err(error) => {
                tracing::debug!(%error, id = %event.event_id(), "the past of an event is left out");
                let left = self.judge(vec![event], &mut None).await?;
                match left.first() {
                    Some((event, _, auth)) if auth.is_empty() => self.over_gap(event).await,
                    _ => Err(error),
                }
            }
        }
    }

    /// Judges what is missing below an event from below, and the event at last.
    async fn climb(&mut self, event: Pdu) -> Result<(), GapError> {
        let id = event.event_id().to_owned();
        let mut todo = self.between(event).await?;
        if self.rooms().is_partial(self.room.number) {
            return self.beside_join(&id, todo).await;
        }
        let (mut failed, mut refused) = (None, HashSet::new());
        for _ in 0..MAX_STEPS {
            let left = self.judge(todo, &mut failed).await?;
            if self.judged.contains(&id) {
                return Ok(());
            }
            // The lowest comes first.
            let Some((lowest, prev, auth)) = left.first().cloned() else {
                break;
            };
            if !auth.is_empty() {
                self.auth_events(&lowest, auth).await?;
            } else if !prev.is_empty() {
                match self.over_gap(&lowest).await {
                    // What follows it may be allowed.
                    Err(GapError::Refused) if *lowest.event_id() != *id => {
                        refused.insert(lowest.event_id().to_owned());
                    }
                    outcome => outcome?,
                }
            }
            if self.judged.contains(&id) {
                return Ok(());
            }
            todo = left.into_iter().map(|(pdu, _, _)| pdu).collect();
            todo.retain(|pdu: &Pdu| !refused.contains(pdu.event_id()));
        }
        Err(failed.map_or(GapError::OverLimit("steps"), GapError::Room))
    }

    /// Judges events of a room of partial state, of which the state before one would be told with all
    /// the members that are on their way. What is missing before them is left out until then.
    async fn beside_join(&mut self, id: &EventId, events: Vec<Pdu>) -> Result<(), GapError> {
        let given: HashSet<_> = events.iter().map(|pdu| pdu.event_id().to_owned()).collect();
        let mut auth: Vec<_> = events.iter().flat_map(Pdu::auth_events).cloned().collect();
        auth.retain(|id| !given.contains(id));
        self.one_by_one(&auth).await?;
        let events = in_order(events, |pdu| pdu);
        let incoming = self.inner.incoming(self.room, events.clone()).await?;
        let results = self.rooms().receive_beside_join(self.room, incoming).await;
        let mut outcome = Err(GapError::NotGiven("the event"));
        for (pdu, result) in events.iter().zip(results) {
            let judged = match result {
                Ok(Received::Judged { .. }) => {
                    self.judged.push(pdu.event_id().to_owned());
                    Ok(())
                }
                Ok(Received::Missing { .. }) => Err(GapError::NotGiven("the auth events")),
                // What allows it may be among what is missing.
                Err(RoomError::NotAllowedByTold) => Err(RoomError::PartialState.into()),
                Err(error) => Err(error.into()),
            };
            if pdu.event_id() == id {
                outcome = judged;
            }
        }
        outcome
    }

    /// Judges events, and gives those of which something is missing. What cannot be judged now ends
    /// the way for what follows it, and for nothing else.
    pub(super) async fn judge(
        &mut self,
        events: Vec<Pdu>,
        failed: &mut Option<RoomError>,
    ) -> Result<Vec<(Pdu, Vec<OwnedEventId>, Vec<OwnedEventId>)>, GapError> {
        let events = in_order(events, |pdu| pdu);
        let incoming = self.inner.incoming(self.room, events.clone()).await?;
        let rooms = &self.inner.parts.rooms;
        let results = rooms.receive_all(self.room, incoming).await;
        let mut left = Vec::new();
        let mut ended: HashSet<OwnedEventId> = HashSet::new();
        for (pdu, result) in events.into_iter().zip(results) {
            let id = pdu.event_id().to_owned();
            match result {
                Ok(Received::Judged { .. }) => self.judged.push(id),
                Ok(Received::Missing { prev, auth }) => {
                    let mut lacking = prev.iter().chain(&auth);
                    if lacking.any(|id| ended.contains(id)) {
                        ended.insert(id);
                    } else {
                        left.push((pdu, prev, auth));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, %id, "a fetched event cannot be judged now");
                    ended.insert(id);
                    failed.get_or_insert(error);
                }
            }
        }
        Ok(left)
    }

    /// The events between what is here and this one, as far as they are given; itself comes first.
    /// What is below where this server came in is history, which nobody takes for news. Only in a
    /// room of partial state, state events from right below it are wanted: nobody tells the state
    /// that they are part of.
    async fn between(&self, event: Pdu) -> Result<Vec<Pdu>, GapError> {
        let rooms = &self.inner.parts.rooms;
        let arrived = rooms.depth_of_arrival(self.room).await?.unwrap_or(0);
        let is_partial = rooms.is_partial(self.room.number);
        let below = if is_partial { BELOW_JOIN } else { 0 };
        let min_depth = arrived.saturating_sub(below);
        let id = event.event_id().to_owned();
        let earliest = rooms.extremities(self.room).await?;
        let mut found = vec![event];
        let mut servers = self.servers.iter();
        let mut server = servers.next();
        for _ in 0..MAX_ROUNDS {
            let wanted = |pdu: &&Pdu| pdu.depth() >= min_depth || *pdu.event_id() == *id;
            let latest = self.with_missing_prev(&found, wanted).await?;
            let (Some(asked), false) = (server, latest.is_empty()) else {
                break;
            };
            let missing = MissingEvents {
                latest: &latest,
                earliest: &earliest,
                min_depth,
                limit: MISSING_AT_ONCE,
            };
            let fetcher = &self.inner.parts.fetcher;
            let answer = fetcher.missing_events(asked, self.of(), missing).await;
            let more = answer.unwrap_or_else(|error| {
                tracing::debug!(%error, server = %asked, "missing events were not given");
                Vec::new()
            });
            let before = found.len();
            add_named(&mut found, more);
            if found.len() == before {
                server = servers.next();
            }
        }
        let is_state = |pdu: &Pdu| is_partial && pdu.state_key().is_some();
        found.retain(|pdu| pdu.depth() >= arrived || is_state(pdu) || *pdu.event_id() == *id);
        Ok(found)
    }

    /// Those of the events, as far as they are wanted, that name previous ones which are neither
    /// among them nor here.
    async fn with_missing_prev(
        &self,
        events: &[Pdu],
        wanted: impl Fn(&&Pdu) -> bool,
    ) -> Result<Vec<OwnedEventId>, GapError> {
        let known: HashSet<&EventId> = events.iter().map(Pdu::event_id).collect();
        let events: Vec<_> = events.iter().filter(wanted).collect();
        let named = events.iter().flat_map(|pdu| pdu.prev_events());
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
        self.one_by_one(&wanted).await?;
        if rooms.missing_of(self.room, &wanted).await?.is_empty() {
            return Ok(());
        }
        Err(GapError::NotGiven("the auth events"))
    }

    /// Fetches events by their ids, and their auth events, and stores them as outliers. Gives those
    /// that nobody can use.
    pub(super) async fn one_by_one(
        &self,
        wanted: &[OwnedEventId],
    ) -> Result<HashSet<OwnedEventId>, GapError> {
        let fetcher = &self.inner.parts.fetcher;
        let rooms = &self.inner.parts.rooms;
        let mut held: Vec<Pdu> = Vec::new();
        let (mut unusable, mut asked) = (HashSet::new(), 0);
        let mut lacking = rooms.missing_of(self.room, wanted).await?;
        for _ in 0..MAX_AUTH_ROUNDS {
            lacking.truncate(MAX_SINGLE - asked);
            asked += lacking.len();
            if lacking.is_empty() {
                break;
            }
            let fetched = fetcher.events(&self.servers, self.of(), &lacking).await;
            unusable.extend(fetched.unusable);
            if fetched.events.is_empty() {
                break;
            }
            held.extend(fetched.events);
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
        Ok(unusable)
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
        if self.inner.parts.rooms.is_partial(self.room.number) {
            // That state would be told with all the members that are on their way.
            return Err(RoomError::PartialState.into());
        }
        self.bridged_at = Some(event.event_id().to_owned());
        let (mut part, mut refusing): (Option<Told>, _) = (None, None);
        // Whoever made the event knows best what was before it.
        for server in &self.maker_first(event) {
            let told = match self.state_before(server, event).await {
                Ok(told) => told,
                Err(GapError::Room(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, %server, event = %event.event_id(), "a state was not given");
                    continue;
                }
            };
            if !told.state.whole {
                part = Some(told.or_better(part));
            } else if self.judge_by(event, told.state.clone()).await? {
                return Ok(());
            } else {
                refusing = Some(told);
            }
        }
        let Some(mut told) = part.or(refusing) else {
            return Err(GapError::NotGiven("the state"));
        };
        if !told.waits_for.is_empty() {
            self.wait_for_all(event, &told)?;
        }
        // Whatever was told, what the room has counts beside it.
        told.state.whole = false;
        if self.judge_by(event, told.state).await? {
            return Ok(());
        }
        Err(GapError::Refused)
    }

    /// Refuses to go on with a part of a state, unless all of it was waited for long enough.
    fn wait_for_all(&self, event: &Pdu, told: &Told) -> Result<(), GapError> {
        let lacking = told.waits_for.len();
        if self.attempts < WAITS_FOR_ALL {
            return Err(GapError::PartOfState(lacking));
        }
        let (id, room) = (event.event_id(), &self.room.id);
        tracing::warn!(%id, %room, lacking, "an event is judged by a part of the state before it");
        for id in &told.waits_for {
            let key = (self.room.number, id.clone());
            self.inner.given_up.insert(key, ());
        }
        Ok(())
    }

    /// Judges an event by the state before it. Gives whether it was judged: a state that does not
    /// allow it may be a lie.
    async fn judge_by(&mut self, event: &Pdu, state: ToldState) -> Result<bool, GapError> {
        let incoming = self.inner.incoming(self.room, vec![event.clone()]).await?;
        let incoming = incoming.into_iter().next();
        let incoming = incoming.ok_or(GapError::NotGiven("the event"))?;
        let rooms = &self.inner.parts.rooms;
        match rooms.receive_over_gap(self.room, incoming, state).await {
            Ok(Received::Judged { .. }) => {
                self.judged.push(event.event_id().to_owned());
                Ok(true)
            }
            Ok(Received::Missing { .. }) => Err(GapError::NotGiven("the auth events")),
            Err(RoomError::NotAllowedByTold) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The state before an event, from the first server that has all of it; otherwise from the one
    /// of whose state the least is lacking.
    pub(super) async fn told_before(&self, event: &Pdu) -> Result<Told, GapError> {
        let mut best: Option<Told> = None;
        // Whoever made the event knows best what was before it.
        for server in &self.maker_first(event) {
            match self.state_before(server, event).await {
                Ok(told) if told.state.whole => return Ok(told),
                Ok(told) => best = Some(told.or_better(best)),
                Err(GapError::Room(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, %server, event = %event.event_id(), "a state was not given");
                }
            }
        }
        best.ok_or(GapError::NotGiven("the state"))
    }

    /// Whom to ask about an event: its maker, also if it is not among those that are asked for the
    /// rest, then these.
    fn maker_first(&self, event: &Pdu) -> Vec<OwnedServerName> {
        let maker = event.sender().server_name();
        let is_own = is_same_server(maker, &self.inner.parts.own);
        let others = self.servers.iter();
        let others = others.filter(|server| !is_same_server(server, maker));
        let first = (!is_own).then(|| maker.to_owned()).into_iter();
        first.chain(others.cloned()).collect()
    }

    /// The state before an event as a server tells it. What is not here of it is fetched from
    /// whoever has it.
    async fn state_before(&self, server: &ServerName, event: &Pdu) -> Result<Told, GapError> {
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
        if lacking_state.len() + lacking_auth.len() > MAX_SINGLE {
            match fetcher.state(server, self.of(), event.event_id()).await {
                Ok(whole) => {
                    // Only what the ids named.
                    let wanted: HashSet<_> =
                        lacking_state.into_iter().chain(lacking_auth).collect();
                    let both = whole.auth_chain.into_iter().chain(whole.state);
                    let both = both.filter(|pdu| wanted.contains(pdu.event_id()));
                    self.outliers(both.collect()).await?;
                }
                // One by one, as far as that goes.
                Err(error) => tracing::debug!(%error, %server, "no whole state"),
            }
        }
        let mut wanted = rooms.missing_of(self.room, &state).await?;
        let unusable = self.one_by_one(&wanted).await?;
        wanted = rooms.missing_of(self.room, &wanted).await?;
        wanted.retain(|id| !unusable.contains(id));
        let whole = wanted.is_empty();
        let (given_up, room) = (&self.inner.given_up, self.room.number);
        wanted.retain(|id| given_up.get(&(room, id.clone())).is_none());
        Ok(Told {
            state: ToldState {
                events: state,
                whole,
            },
            waits_for: wanted,
        })
    }
}

/// Adds those events that others among them, or among those that were found before, name as
/// previous ones: others were not asked for.
fn add_named(found: &mut Vec<Pdu>, more: Vec<Pdu>) {
    let mut more: HashMap<OwnedEventId, Pdu> = more
        .into_iter()
        .map(|pdu| (pdu.event_id().to_owned(), pdu))
        .collect();
    for pdu in found.iter() {
        more.remove(pdu.event_id());
    }
    let mut looked_at = 0;
    while looked_at < found.len() {
        for id in found[looked_at].prev_events().to_vec() {
            found.extend(more.remove(&id));
        }
        looked_at += 1;
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
