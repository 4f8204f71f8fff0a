//! Events on their way to other servers: which of them leave, and to whom they go.
//!
//! An event leaves if it is of a user of this server, made while this server was in the room (what
//! makes it come into a room is passed on by the server through which it came), or if it is a
//! membership that this server let in on behalf of another. It goes to the servers that were in the
//! room *before* it, and to the server of the user whose membership it changes, if that user was
//! invited or knocking. Soft-failed events never leave: they have no arrival.
//!
//! An event of another server leaves if it puts somebody out whom this server let in, and whose stay
//! its maker knew nothing of, as it made the event meanwhile: a ban on another branch. Its maker does
//! not send it to their server, and nobody else sends that one anything from then on, so that it would
//! think itself in the room for ever.
//!
//! Specification: server-server API, "PDUs", "Transactions".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use homeserver_events::{Pdu, fulfils_third_party_invite, relays};
use homeserver_storage::{Direction, Position, ScanRange};
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedServerName, ServerName, UserId};
use serde::Deserialize;

use crate::{
    ImportId, Rooms,
    error::RoomError,
    event::StoredEvent,
    members::MEMBER,
    numbers::{EventNumber, RoomNumber},
    reads::ROWS_AT_ONCE,
    room::Room,
    rows::{IndexDebtRow, JoinedUsers, Membership},
    tables,
    tree::StateRoot,
    visible::membership_of,
};

/// Servers that are remembered, of the states of all rooms together.
const SERVERS_AT_HAND: u64 = 200_000;

/// States of rooms whose servers are remembered, about.
const STATES_AT_HAND: usize = 1024;

/// Arrivals looked at for one page of a backlog.
const ARRIVALS_AT_ONCE: usize = 200;

/// Switches of a room that are not indexed yet at once, and attempts to read them while they are
/// being indexed.
const DEBTS: usize = 16;

/// Changed keys that are looked at in one go.
const KEYS_AT_ONCE: usize = 200;

/// The servers of a room in some state.
pub(crate) type Servers = Arc<[OwnedServerName]>;

/// An event that leaves.
#[derive(Clone, Debug)]
pub struct OutgoingEvent {
    /// The event, as it is sent.
    pub pdu: Pdu,
    /// Where it arrived.
    pub position: Position,
    to: To,
}

/// Whom an event is for.
#[derive(Clone, Debug)]
enum To {
    /// All servers in the room before it, and the server of a user who is invited or knocking before
    /// it, which changes that.
    Joined(Option<OwnedServerName>),
    /// The servers of users whom it puts out.
    PutOut(BTreeSet<OwnedServerName>),
}

/// The servers that an event goes to.
#[derive(Clone, Debug)]
pub struct Destinations {
    joined: Servers,
    others: BTreeSet<OwnedServerName>,
    own: OwnedServerName,
    /// The server that sent the event.
    author: Option<OwnedServerName>,
}

impl Destinations {
    /// Each of them once.
    pub fn iter(&self) -> impl Iterator<Item = &OwnedServerName> {
        let others = self.others.iter();
        let others = others.filter(|other| !self.joined.contains(other));
        let all = self.joined.iter().chain(others);
        let author = self.author.as_ref();
        all.filter(move |server| **server != self.own && Some(*server) != author)
    }
}

/// Part of what left a room for one server.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    /// The events, oldest first.
    pub events: Vec<OutgoingEvent>,
    /// Everything up to here was looked at.
    pub upto: Position,
    /// How many events that was, also of others.
    pub looked_at: usize,
}

impl Rooms {
    /// An event that arrived, if it leaves this server.
    pub async fn outgoing(
        &self,
        room: &Room,
        event: EventNumber,
    ) -> Result<Option<OutgoingEvent>, RoomError> {
        let event = self.events.load(room, event).await?;
        self.leaving(room, &event).await
    }

    /// The servers that an event goes to.
    pub async fn destinations(
        &self,
        room: &Room,
        event: &OutgoingEvent,
    ) -> Result<Destinations, RoomError> {
        let (joined, others) = match &event.to {
            To::Joined(target) => {
                let joined = self.servers_at(room, event.position - 1).await?;
                (joined, target.iter().cloned().collect())
            }
            To::PutOut(servers) => (Servers::default(), servers.clone()),
        };
        Ok(Destinations {
            joined,
            others,
            own: self.options.server_name.clone(),
            author: author(&event.pdu).map(ToOwned::to_owned),
        })
    }

    /// What of the events that arrived in (`after`, `upto`] goes to a server, at most `limit` of
    /// them and of one page of arrivals.
    pub async fn backlog(
        &self,
        room: &Room,
        server: &ServerName,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Backlog, RoomError> {
        let arrivals = self
            .arrivals(room.number, after, upto, ARRIVALS_AT_ONCE)
            .await?;
        let numbers: Vec<_> = arrivals.iter().map(|arrival| arrival.event).collect();
        let events = self.events.load_all(room, &numbers).await?;
        let is_whole = arrivals.len() < ARRIVALS_AT_ONCE;
        let mut backlog = Backlog::default();
        for (arrival, event) in arrivals.iter().zip(events) {
            if backlog.events.len() == limit {
                return Ok(backlog);
            }
            backlog.upto = arrival.position;
            backlog.looked_at += 1;
            if let Some(leaving) = self.leaving(room, &event).await?
                && self.goes_to(room, &leaving, server).await?
            {
                backlog.events.push(leaving);
            }
        }
        if is_whole {
            backlog.upto = upto;
        }
        Ok(backlog)
    }

    /// The events that nothing follows yet, of whomever, as far as a server may have them: it was in
    /// the room before them.
    pub async fn newest_for(
        &self,
        room: &Room,
        server: &ServerName,
    ) -> Result<Vec<Pdu>, RoomError> {
        let head = self.store.get(&tables::HEADS, &room.number.0).await?;
        let extremities = head.map(|head| head.extremities).unwrap_or_default();
        let numbers: Vec<_> = extremities.iter().map(|one| one.number).collect();
        let mut newest = Vec::new();
        if !self.federates(room).await? {
            return Ok(newest);
        }
        for event in self.events.load_all(room, &numbers).await? {
            let Some(position) = event.position else {
                continue;
            };
            let is_known = author(&event.pdu) == Some(server);
            if !is_known && self.was_joined(room, server, position - 1).await? {
                newest.push(event.pdu.clone());
            }
        }
        Ok(newest)
    }

    /// Whether a room is one that other servers may be in.
    async fn federates(&self, room: &Room) -> Result<bool, RoomError> {
        #[derive(Deserialize)]
        struct Create {
            #[serde(rename = "m.federate")]
            federate: Option<bool>,
        }
        let create = self.events.load(room, room.create).await?;
        let content = create.pdu.content_as::<Create>().ok();
        Ok(content.and_then(|create| create.federate) != Some(false))
    }

    async fn leaving(
        &self,
        room: &Room,
        event: &StoredEvent,
    ) -> Result<Option<OutgoingEvent>, RoomError> {
        let own = &self.options.server_name;
        let Some(position) = event.position else {
            return Ok(None);
        };
        if !event.status.is_shown() || !self.federates(room).await? {
            return Ok(None);
        }
        let is_ours = self.is_local(event.pdu.sender());
        if is_ours && !self.was_joined(room, own, position - 1).await? {
            return Ok(None);
        }
        let to = if is_ours || self.lets_in(&event.pdu) {
            To::Joined(self.target(room, event).await?)
        } else {
            let servers = self.put_out(room, event, position).await?;
            if servers.is_empty() {
                return Ok(None);
            }
            To::PutOut(servers)
        };
        Ok(Some(OutgoingEvent {
            pdu: event.pdu.clone(),
            position,
            to,
        }))
    }

    /// Whether an event is a membership of another server's user that this server let in.
    fn lets_in(&self, event: &Pdu) -> bool {
        relays(event, &self.options.server_name, &|id| self.own_key(id))
    }

    /// The servers of users whom this server let in and an event of another server puts out, which was
    /// made without knowing that they were in.
    async fn put_out(
        &self,
        room: &Room,
        event: &StoredEvent,
        position: Position,
    ) -> Result<BTreeSet<OwnedServerName>, RoomError> {
        let mut servers = BTreeSet::new();
        if event.pdu.state_key().is_none() && !event.over_gap {
            return Ok(servers);
        }
        let before = self.state_at(room.number, position - 1).await?.root;
        let after = self.state_at(room.number, position).await?.root;
        let changes = self.changed_keys(room, (before, after)).await?;
        // What it replaces its maker knew.
        let ended = changes
            .iter()
            .filter_map(|change| Some(change.before?.0))
            .filter(|number| event.replaces != Some(*number));
        let ended: Vec<_> = ended.take(KEYS_AT_ONCE).collect();
        for ended in self.events.load_all(room, &ended).await? {
            if membership_of(&ended) != Some(Membership::Join) || !self.lets_in(&ended.pdu) {
                continue;
            }
            let user = ended.pdu.sender();
            let now = self.state_event(room, after, MEMBER, user.as_str()).await?;
            if now.as_deref().and_then(membership_of) != Some(Membership::Join) {
                servers.insert(user.server_name().to_owned());
            }
        }
        Ok(servers)
    }

    /// The server of the user whose invitation or knock a membership event ends or repeats. Who was
    /// joined is in the room by its server.
    async fn target(
        &self,
        room: &Room,
        event: &StoredEvent,
    ) -> Result<Option<OwnedServerName>, RoomError> {
        let (Some((MEMBER, target)), Some(replaced)) = (event.pdu.state_pair(), event.replaces)
        else {
            return Ok(None);
        };
        let before = self.events.load(room, replaced).await?;
        let was = membership_of(&before);
        let waits = matches!(was, Some(Membership::Invite | Membership::Knock));
        let server = UserId::parse(target).map(|user| user.server_name().to_owned());
        Ok(server.ok().filter(|_| waits))
    }

    async fn goes_to(
        &self,
        room: &Room,
        event: &OutgoingEvent,
        server: &ServerName,
    ) -> Result<bool, RoomError> {
        if author(&event.pdu) == Some(server) {
            return Ok(false);
        }
        let target = match &event.to {
            To::Joined(target) => target,
            To::PutOut(servers) => return Ok(servers.contains(server)),
        };
        if target.as_deref() == Some(server) || self.is_told(room.number, server) {
            return Ok(true);
        }
        self.was_joined(room, server, event.position - 1).await
    }

    /// Whether a server had joined users at a position.
    async fn was_joined(
        &self,
        room: &Room,
        server: &ServerName,
        at: Position,
    ) -> Result<bool, RoomError> {
        if self.has_debts(room.number, at).await? {
            let servers = self.known_servers_at(room, at).await?;
            return Ok(servers.iter().any(|one| one == server));
        }
        self.server_joined(room, server, at).await
    }

    /// The servers with joined users at a position. In a room of partial state, those that are said to
    /// be in it are among them.
    pub async fn servers_at(&self, room: &Room, at: Position) -> Result<Servers, RoomError> {
        let known = self.known_servers_at(room, at).await?;
        let told = self.told_servers(room.number);
        if told.is_empty() {
            return Ok(known);
        }
        let all: BTreeSet<_> = known.iter().chain(told.iter()).cloned().collect();
        Ok(all.into_iter().collect())
    }

    /// The servers whose joined users are known at a position.
    async fn known_servers_at(&self, room: &Room, at: Position) -> Result<Servers, RoomError> {
        let root = self.state_at(room.number, at).await?.root;
        let key = (room.number, root);
        if let Some(servers) = self.servers_at_hand.0.get(&key) {
            return Ok(servers);
        }
        if self.has_debts(room.number, at).await? {
            return self.servers_with_debts(room, at).await;
        }
        let servers = self.logged_servers(room.number, at).await?;
        if !self.is_unsettled(room.number) {
            self.servers_at_hand.0.insert(key, Arc::clone(&servers));
        }
        Ok(servers)
    }

    /// The servers by the log of the room. Costs as much as servers came and went.
    async fn logged_servers(&self, room: RoomNumber, at: Position) -> Result<Servers, RoomError> {
        let mut present: BTreeMap<String, bool> = BTreeMap::new();
        let mut range = ScanRange::prefix(&room.0);
        loop {
            let table = &tables::SERVER_LOG;
            let scan = self
                .store
                .scan(table, range, Direction::Forward, ROWS_AT_ONCE);
            let rows = scan.await?;
            let full = rows.len() == ROWS_AT_ONCE;
            let last = rows.last().map(|(key, _)| key.clone());
            for ((_, server, position), is_present) in rows {
                if position <= at {
                    present.insert(server, is_present > 0);
                }
            }
            match last {
                Some(last) if full => range = ScanRange::prefix(&room.0).after(&last),
                _ => break,
            }
        }
        let names = present.into_iter().filter(|(_, is_present)| *is_present);
        Ok(parsed(names.map(|(name, _)| name)))
    }

    /// Whether the log lacks what a switch changed before a position, or at it.
    async fn has_debts(&self, room: RoomNumber, at: Position) -> Result<bool, RoomError> {
        Ok(!self.debts_of(room, at, 1).await?.is_empty())
    }

    async fn debts_of(
        &self,
        room: RoomNumber,
        at: Position,
        limit: usize,
    ) -> Result<Vec<((u64, Position), IndexDebtRow)>, RoomError> {
        let range = ScanRange::prefix(&room.0).upto(&(room.0, at));
        let table = &tables::INDEX_DEBTS;
        let rows = self.store.scan(table, range, Direction::Forward, limit);
        Ok(rows.await?)
    }

    /// The servers of a room now, where a switch is still being indexed: what the indexes count and
    /// what they do not count yet.
    async fn servers_with_debts(&self, room: &Room, at: Position) -> Result<Servers, RoomError> {
        for _ in 0..DEBTS {
            let debts = self.debts_of(room.number, at, DEBTS).await?;
            let mut counts = self.server_counts(room.number).await?;
            for (_, debt) in &debts {
                self.add_unpaid(room, debt, &mut counts).await?;
            }
            // What was paid meanwhile may be counted twice.
            if self.debts_of(room.number, at, DEBTS).await? == debts {
                let names = counts.into_iter().filter(|(_, count)| count.present());
                return Ok(parsed(names.map(|(name, _)| name)));
            }
        }
        Err(RoomError::Contended)
    }

    async fn server_counts(
        &self,
        room: RoomNumber,
    ) -> Result<BTreeMap<String, JoinedUsers>, RoomError> {
        let mut counts = BTreeMap::new();
        let mut range = ScanRange::prefix(&room.0);
        loop {
            let table = &tables::SERVER_COUNTS;
            let scan = self
                .store
                .scan(table, range, Direction::Forward, ROWS_AT_ONCE);
            let rows = scan.await?;
            let full = rows.len() == ROWS_AT_ONCE;
            let last = rows.last().map(|(key, _)| key.clone());
            counts.extend(rows.into_iter().map(|((_, server), count)| (server, count)));
            match last {
                Some(last) if full => range = ScanRange::prefix(&room.0).after(&last),
                _ => return Ok(counts),
            }
        }
    }

    /// Counts the members of a switch that are not indexed yet.
    async fn add_unpaid(
        &self,
        room: &Room,
        debt: &IndexDebtRow,
        counts: &mut BTreeMap<String, JoinedUsers>,
    ) -> Result<(), RoomError> {
        let changes = self.changed_keys(room, (debt.from, debt.to)).await?;
        let known = self.imported_members(ImportId(debt.import)).await?;
        let done = usize::try_from(debt.done).unwrap_or(usize::MAX);
        let unpaid = changes.get(done..).unwrap_or_default();
        let joined = |membership| i64::from(membership == Some(Membership::Join));
        for some in unpaid.chunks(KEYS_AT_ONCE) {
            for change in self.members_among(room, some, &known).await? {
                let by = joined(change.after) - joined(change.before);
                let server = change.user.server_name().to_string();
                let count = counts.entry(server).or_default();
                *count = count.changed(by);
            }
        }
        Ok(())
    }
}

/// The server that made an event and has it, if its sender tells.
fn author(event: &Pdu) -> Option<&ServerName> {
    let made_by_any = fulfils_third_party_invite(event);
    (!made_by_any).then(|| event.sender().server_name())
}

fn parsed(names: impl Iterator<Item = String>) -> Servers {
    names
        .filter_map(|name| ServerName::parse(name).ok())
        .collect()
}

/// The servers in states of rooms.
pub(crate) struct ServersAtHand(Cache<(RoomNumber, StateRoot), Servers, Weigh>);

#[derive(Clone)]
struct Weigh;

impl Weighter<(RoomNumber, StateRoot), Servers> for Weigh {
    fn weight(&self, _: &(RoomNumber, StateRoot), servers: &Servers) -> u64 {
        servers.len() as u64 + 1
    }
}

impl ServersAtHand {
    pub(crate) fn new() -> Self {
        Self(Cache::with_weighter(STATES_AT_HAND, SERVERS_AT_HAND, Weigh))
    }
}
