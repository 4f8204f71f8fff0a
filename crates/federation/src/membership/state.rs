//! The state of a room as another server tells it when somebody joins, and what of it is believed.
//!
//! The answer is read whole, under a bound, and cut into its events without copying them. Each
//! event is checked by itself; the order in which they can be judged follows from their auth events.
//! What is lacking of the auth chain is asked for, a bounded number of events; what then still lacks
//! something is left out, together with all that builds on it.
//!
//! Specification: server-server API, `send_join`.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use homeserver_events::{Pdu, Rules, rules::RoomIdFormat};
use homeserver_rooms::{Imported, MAX_PARTIAL_SERVERS};
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, ServerName};
use serde::{
    Deserialize,
    de::{self, Deserializer, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Failure, Inner, Template, usual};
use crate::{Call, CallError, Path};

/// Entries of the answer at most: beyond, no server could serve the room.
const MAX_EVENTS: usize = 600_000;
/// Events of the auth chain that are asked for one by one.
const MAX_FETCHED: usize = 200;
/// Of those at once.
const FETCHED_AT_ONCE: usize = 4;
/// Times that is done: what was fetched may lack something itself.
const FETCHES: usize = 3;
/// Bytes of an answer with one event and what is around it.
const EVENT_BODY: usize = 256 * 1024;
/// How long the keys of all servers in the state are waited for.
const KEY_PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);

/// The answer to a join, cut into its events.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) state: Vec<Bytes>,
    pub(super) auth_chain: Vec<Bytes>,
    /// The join as the other server signed it.
    pub(super) event: Option<Bytes>,
    /// The servers that are said to be in the room, if members are left out.
    pub(super) servers: Option<Vec<OwnedServerName>>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    state: Listed<'a>,
    #[serde(borrow)]
    auth_chain: Listed<'a>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(default)]
    members_omitted: bool,
    #[serde(borrow)]
    servers_in_room: Option<Listed<'a>>,
}

/// The answer to a question for a state.
#[derive(Deserialize)]
struct RawState<'a> {
    #[serde(borrow)]
    pdus: Listed<'a>,
    #[serde(borrow)]
    auth_chain: Listed<'a>,
}

/// A list of at most [`MAX_EVENTS`] values, which is given up where it is longer.
struct Listed<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Listed<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Listed<'de>;

            fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(to, "at most {MAX_EVENTS} events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut events = Vec::new();
                while let Some(event) = list.next_element()? {
                    if events.len() == MAX_EVENTS {
                        return Err(de::Error::invalid_length(MAX_EVENTS + 1, &self));
                    }
                    events.push(event);
                }
                Ok(Listed(events))
            }
        }

        deserializer.deserialize_seq(Reader)
    }
}

impl Told {
    /// Reads the body of an answer.
    pub(super) fn read(body: &Bytes) -> Result<Self, Failure> {
        let raw: Raw<'_> = object(body)?;
        let mut told = Self::cut(body, raw.state, raw.auth_chain)?;
        told.event = raw.event.map(|raw| cut(body, raw));
        if raw.members_omitted {
            let listed = raw.servers_in_room.map(|listed| listed.0);
            let names = listed.unwrap_or_default().into_iter();
            let names = names.take(MAX_PARTIAL_SERVERS);
            let read = |name: &RawValue| serde_json::from_str::<OwnedServerName>(name.get()).ok();
            let mut seen = HashSet::new();
            let servers = names.filter_map(read);
            told.servers = Some(servers.filter(|name| seen.insert(name.clone())).collect());
        }
        Ok(told)
    }

    /// Reads the body of an answer to `GET /state`.
    pub(super) fn of_state(body: &Bytes) -> Result<Self, Failure> {
        let raw: RawState<'_> = object(body)?;
        Self::cut(body, raw.pdus, raw.auth_chain)
    }

    fn cut(body: &Bytes, state: Listed<'_>, auth_chain: Listed<'_>) -> Result<Self, Failure> {
        if state.0.len() + auth_chain.0.len() > MAX_EVENTS {
            return Err(Failure::answer("too many events"));
        }
        Ok(Self {
            state: state.0.into_iter().map(|raw| cut(body, raw)).collect(),
            auth_chain: auth_chain.0.into_iter().map(|raw| cut(body, raw)).collect(),
            event: None,
            servers: None,
        })
    }
}

fn cut(body: &Bytes, raw: &RawValue) -> Bytes {
    body.slice_ref(raw.get().as_bytes())
}

fn object<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, Failure> {
    // A list would be taken for a struct of its entries.
    let begins = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if begins != Some(&b'{') {
        return Err(Failure::answer("not a JSON object"));
    }
    serde_json::from_slice(body).map_err(Failure::answer)
}

/// The events of a room's state, checked, and those that authorise them.
#[derive(Debug, Default)]
pub(super) struct Checked {
    events: HashMap<OwnedEventId, Pdu>,
    state: HashSet<OwnedEventId>,
}

/// Events in an order in which each comes after its auth events.
pub(super) struct Ordered {
    pub(super) events: Vec<Imported>,
    /// Auth events that are not among them.
    pub(super) lacking: Vec<OwnedEventId>,
}

impl Checked {
    /// The event that made the room.
    pub(super) fn create(&self, template: &Template) -> Result<Pdu, Failure> {
        let mut found = self
            .state
            .iter()
            .filter_map(|id| self.events.get(id))
            .filter(|pdu| pdu.state_pair() == Some(("m.room.create", "")));
        let create = found.next();
        let create = create.ok_or_else(|| Failure::answer("the state has no create event"))?;
        if found.next().is_some() {
            return Err(Failure::answer("the state has several create events"));
        }
        check_version(create, template.rules)?;
        Ok(create.clone())
    }

    /// Sorts the events. Those that lack something are left out.
    pub(super) fn order(&self) -> Ordered {
        let mut waiting: HashMap<&EventId, usize> = HashMap::with_capacity(self.events.len());
        let mut followers: HashMap<&EventId, Vec<&Pdu>> = HashMap::new();
        let mut lacking: Vec<OwnedEventId> = Vec::new();
        let mut seen_lacking = HashSet::new();
        let mut ready = VecDeque::new();
        for pdu in self.events.values() {
            // One that is named twice is waited for once.
            let named: HashSet<_> = pdu.auth_events().iter().collect();
            if named.is_empty() {
                ready.push_back(pdu);
            }
            for id in &named {
                if self.events.contains_key(*id) {
                    followers.entry(id).or_default().push(pdu);
                } else if seen_lacking.insert(*id) {
                    lacking.push((*id).clone());
                }
            }
            waiting.insert(pdu.event_id(), named.len());
        }
        let mut events = Vec::with_capacity(self.events.len());
        while let Some(pdu) = ready.pop_front() {
            events.push(if self.state.contains(pdu.event_id()) {
                Imported::State(pdu.clone())
            } else {
                Imported::Auth(pdu.clone())
            });
            for follower in followers.remove(pdu.event_id()).unwrap_or_default() {
                if let Some(left) = waiting.get_mut(follower.event_id()) {
                    *left -= 1;
                    if *left == 0 {
                        ready.push_back(follower);
                    }
                }
            }
        }
        Ordered { events, lacking }
    }

    fn add(&mut self, pdu: Pdu, of_state: bool) {
        let id = pdu.event_id().to_owned();
        if of_state {
            self.state.insert(id.clone());
        }
        self.events.insert(id, pdu);
    }
}

/// A create event says the version of its room. In those whose id is its hash, the id was compared.
fn check_version(create: &Pdu, rules: &Rules) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Content {
        room_version: Option<String>,
    }
    let content: Content = create.content_as().map_err(Failure::answer)?;
    let version = content.room_version.as_deref().unwrap_or("1");
    if version == rules.version.as_str() {
        Ok(())
    } else {
        Err(Failure::answer("the room is of another version"))
    }
}

impl Inner {
    /// Checks the events of an answer. Those of other rooms, and those that are not signed as they
    /// must be, are left out.
    pub(super) async fn check_state(
        &self,
        room: &RoomId,
        rules: &'static Rules,
        told: Told,
    ) -> Result<Checked, Failure> {
        let of_state = told.state.len();
        // Most of the auth chain is part of the state, too.
        let mut seen: HashSet<Bytes> = HashSet::with_capacity(of_state);
        let mut all = Vec::with_capacity(of_state);
        let mut is_state = Vec::with_capacity(of_state);
        let entries = told.state.into_iter().map(|event| (event, true));
        let entries = entries.chain(told.auth_chain.into_iter().map(|event| (event, false)));
        for (event, state) in entries {
            if seen.insert(event.clone()) {
                all.push(event);
                is_state.push(state);
            }
        }
        drop(seen);
        let verified = self.verifier.verify(all, rules, KEY_PATIENCE).await?;
        let mut checked = Checked::default();
        let mut dropped = 0;
        for (verified, state) in verified.into_iter().zip(is_state) {
            match verified {
                Ok(pdu) if pdu.room_id() == room && !(state && pdu.state_key().is_none()) => {
                    checked.add(pdu, state);
                }
                Ok(_) | Err(_) => dropped += 1,
            }
        }
        if dropped > 0 {
            tracing::info!(%room, dropped, "events of a room's state are not to be used");
        }
        Ok(checked)
    }

    /// Sorts the events, and asks for what they lack.
    pub(super) async fn complete(
        &self,
        server: &ServerName,
        (room, rules): (&RoomId, &'static Rules),
        mut checked: Checked,
    ) -> Result<Vec<Imported>, Failure> {
        let mut asked: HashSet<OwnedEventId> = HashSet::new();
        for _ in 0..FETCHES {
            let (back, ordered) = self
                .runtime
                .cpu
                .run(move || {
                    let ordered = checked.order();
                    (checked, ordered)
                })
                .await
                .map_err(crate::CheckError::from)?;
            checked = back;
            let mut wanted = ordered.lacking;
            wanted.retain(|id| !asked.contains(id));
            wanted.truncate(MAX_FETCHED.saturating_sub(asked.len()));
            if wanted.is_empty() {
                return Ok(ordered.events);
            }
            asked.extend(wanted.iter().cloned());
            for pdu in self.fetch(server, (room, rules), wanted).await? {
                checked.add(pdu, false);
            }
        }
        Ok(checked.order().events)
    }

    /// Events by their ids, as far as the server has them and they are to be used.
    async fn fetch(
        &self,
        server: &ServerName,
        (room, rules): (&RoomId, &'static Rules),
        ids: Vec<OwnedEventId>,
    ) -> Result<Vec<Pdu>, Failure> {
        let asked: HashSet<OwnedEventId> = ids.iter().cloned().collect();
        let answers: Vec<_> = stream::iter(ids)
            .map(async |id| self.fetch_one(server, &id).await)
            .buffer_unordered(FETCHED_AT_ONCE)
            .collect()
            .await;
        let found: Vec<Bytes> = answers.into_iter().flatten().flatten().collect();
        let verified = self.verifier.verify(found, rules, KEY_PATIENCE).await?;
        let mut events: Vec<Pdu> = verified.into_iter().flatten().collect();
        events.retain(|pdu| pdu.room_id() == room && asked.contains(pdu.event_id()));
        Ok(events)
    }

    async fn fetch_one(&self, server: &ServerName, id: &EventId) -> Result<Vec<Bytes>, CallError> {
        #[derive(Deserialize)]
        struct Transaction<'a> {
            #[serde(borrow)]
            pdus: Vec<&'a RawValue>,
        }
        let path = Path::v1("event").segment(id.as_str());
        let call = Call::get(path).limits(usual(EVENT_BODY)).urgent();
        let body = self.peers.ask(server, call).await?.body;
        let read: Result<Transaction<'_>, _> = serde_json::from_slice(&body);
        let read = read.map_err(|error| CallError::BadAnswer(error.to_string()))?;
        let pdus = read.pdus.into_iter().take(1);
        Ok(pdus
            .map(|pdu| body.slice_ref(pdu.get().as_bytes()))
            .collect())
    }
}

/// Whether the id of a room says which event made it.
pub(super) fn names_its_create(rules: &Rules) -> bool {
    rules.room_id == RoomIdFormat::CreateEvent
}
