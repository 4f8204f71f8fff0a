//! The state of a room as another server told it when somebody joins, and what of it is believed.
//!
//! Each event was checked by itself (see `hear`), and is held as its text; the order in which they
//! can be judged follows from their auth events. What is lacking of the auth chain is asked for, a
//! bounded number of events; what then still lacks something is left out, together with all that
//! builds on it.
//!
//! Specification: server-server API, `send_join`.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use homeserver_events::{Pdu, PduError, Rules, rules::RoomIdFormat};
use homeserver_rooms::{IMPORT_PART, IMPORT_PART_BYTES, ImportId, Imported, PartTaken};
use ruma::{EventId, OwnedEventId, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Failure, Inner, Template, usual};
use crate::{Asking, Call, CallError, CheckError, Dropped, Path};

/// Events of the auth chain that are asked for one by one.
const MAX_FETCHED: usize = 200;
/// Of those at once.
const FETCHED_AT_ONCE: usize = 4;
/// Times that is done: what was fetched may lack something itself.
const FETCHES: usize = 3;
/// Bytes of an answer with one event and what is around it.
pub(super) const EVENT_BODY: usize = 256 * 1024;
/// How long the keys of events of the auth chain are waited for.
const KEY_PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);
/// Parts of an import whose events are made of their texts while one is written.
const PARTS_AHEAD: usize = 2;

/// The events of a room's state, checked, and those that authorise them.
#[derive(Debug, Default)]
pub(super) struct Checked {
    numbers: HashMap<Arc<str>, usize>,
    entries: Vec<Entry>,
    /// The create events of the state.
    creates: Vec<Pdu>,
}

/// An event, or one that another one names.
#[derive(Debug)]
struct Entry {
    id: Arc<str>,
    /// `None` if it is only named.
    text: Option<Box<[u8]>>,
    of_state: bool,
    /// The events that authorise it, by their numbers, each once.
    auth: Box<[u32]>,
}

/// Events in an order in which each comes after its auth events.
pub(super) struct Ordered {
    checked: Checked,
    order: std::vec::IntoIter<u32>,
}

/// The texts of one part of an import.
type Texts = Vec<(Arc<str>, Box<[u8]>, bool)>;

impl Checked {
    /// The event that made the room.
    pub(super) fn create(&self, template: &Template) -> Result<Pdu, Failure> {
        let [create] = &*self.creates else {
            let how_many = self.creates.len();
            let why = format!("the state has {how_many} create events");
            return Err(Failure::Answer(why));
        };
        check_version(create, template.rules)?;
        Ok(create.clone())
    }

    /// Takes an event that was checked, if it is of this room. Gives how many were left out.
    pub(super) fn take(
        &mut self,
        room: &RoomId,
        verified: Result<Pdu, Dropped>,
        of_state: bool,
    ) -> usize {
        match verified {
            Ok(pdu) if pdu.room_id() == room && !(of_state && pdu.state_key().is_none()) => {
                self.add(&pdu, of_state);
                0
            }
            Ok(_) | Err(_) => 1,
        }
    }

    fn add(&mut self, pdu: &Pdu, of_state: bool) {
        let number = self.number(pdu.event_id());
        if self.entries[number].text.is_none() {
            let mut auth: Vec<u32> = Vec::with_capacity(pdu.auth_events().len());
            for id in pdu.auth_events() {
                let named = self.number(id) as u32;
                if !auth.contains(&named) {
                    auth.push(named);
                }
            }
            let entry = &mut self.entries[number];
            entry.auth = auth.into();
            entry.text = Some(pdu.json().into());
        }
        let entry = &mut self.entries[number];
        let is_new = of_state && !std::mem::replace(&mut entry.of_state, true);
        if is_new && pdu.state_pair() == Some(("m.room.create", "")) {
            self.creates.push(pdu.clone());
        }
    }

    fn number(&mut self, id: &EventId) -> usize {
        if let Some(number) = self.numbers.get(id.as_str()) {
            return *number;
        }
        let (id, number): (Arc<str>, _) = (id.as_str().into(), self.entries.len());
        self.numbers.insert(Arc::clone(&id), number);
        self.entries.push(Entry {
            id,
            text: None,
            of_state: false,
            auth: Box::default(),
        });
        number
    }

    /// How many events are there, or named.
    pub(super) fn known(&self) -> usize {
        self.entries.len()
    }

    /// Auth events that are not among them.
    fn lacking(&self) -> impl Iterator<Item = OwnedEventId> {
        let only_named = self.entries.iter().filter(|entry| entry.text.is_none());
        only_named.filter_map(|entry| EventId::parse(&*entry.id).ok())
    }

    /// Sorts the events. Those that lack something are left out.
    pub(super) fn order(self) -> Ordered {
        let mut waiting: Vec<u32> = Vec::with_capacity(self.entries.len());
        let mut followers: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut ready = VecDeque::new();
        for (number, entry) in (0_u32..).zip(&self.entries) {
            waiting.push(entry.auth.len() as u32);
            if entry.text.is_some() && entry.auth.is_empty() {
                ready.push_back(number);
            }
            for named in &entry.auth {
                followers.entry(*named).or_default().push(number);
            }
        }
        let mut order = Vec::with_capacity(self.entries.len());
        while let Some(number) = ready.pop_front() {
            order.push(number);
            for follower in followers.remove(&number).unwrap_or_default() {
                let left = &mut waiting[follower as usize];
                *left -= 1;
                if *left == 0 {
                    ready.push_back(follower);
                }
            }
        }
        Ordered {
            checked: self,
            order: order.into_iter(),
        }
    }
}

impl Ordered {
    /// The next events, as many as one part may have.
    fn part(&mut self) -> Option<Texts> {
        let (mut part, mut bytes) = (Texts::new(), 0);
        while let Some(number) = self.order.as_slice().first() {
            let entry = &mut self.checked.entries[*number as usize];
            let length = entry.text.as_ref().map_or(0, |text| text.len());
            let is_full = part.len() == IMPORT_PART || bytes + length > IMPORT_PART_BYTES;
            if is_full && !part.is_empty() {
                break;
            }
            self.order.next();
            bytes += length;
            if let Some(text) = entry.text.take() {
                part.push((Arc::clone(&entry.id), text, entry.of_state));
            }
        }
        Some(part).filter(|part| !part.is_empty())
    }
}

/// Makes events of texts that were events before.
fn events_of(texts: Texts, rules: &'static Rules) -> Result<Vec<Imported>, PduError> {
    let event = |(id, text, of_state): (Arc<str>, Box<[u8]>, bool)| {
        let id = EventId::parse(&*id).map_err(|_| PduError::Identifier("event_id"))?;
        let pdu = Pdu::from_stored(&text, id, rules)?;
        Ok(if of_state {
            Imported::State(pdu)
        } else {
            Imported::Auth(pdu)
        })
    };
    texts.into_iter().map(event).collect()
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
    /// Sorts the events, and asks for what they lack.
    pub(super) async fn complete(
        &self,
        server: &ServerName,
        (room, rules): (&RoomId, &'static Rules),
        mut checked: Checked,
    ) -> Result<Ordered, Failure> {
        let mut asked: HashSet<OwnedEventId> = HashSet::new();
        for _ in 0..FETCHES {
            let left = MAX_FETCHED.saturating_sub(asked.len());
            let lacking = checked.lacking().filter(|id| !asked.contains(id));
            let wanted: Vec<_> = lacking.take(left).collect();
            if wanted.is_empty() {
                break;
            }
            asked.extend(wanted.iter().cloned());
            for pdu in self.fetch(server, (room, rules), wanted).await? {
                checked.add(&pdu, false);
            }
        }
        let sorted = self.runtime.cpu.run(move || checked.order()).await;
        Ok(sorted.map_err(CheckError::from)?)
    }

    /// Gives the events to an import, from part number `first` on.
    pub(super) async fn import(
        &self,
        (import, first): (ImportId, u64),
        rules: &'static Rules,
        mut ordered: Ordered,
    ) -> Result<(), Failure> {
        let parts = std::iter::from_fn(move || ordered.part());
        let events = |texts| self.runtime.cpu.run(move || events_of(texts, rules));
        let parts = stream::iter(parts).map(events).buffered(PARTS_AHEAD);
        let mut parts = std::pin::pin!(parts.zip(stream::iter(first..)));
        while let Some((part, ordinal)) = parts.next().await {
            let part = part.map_err(CheckError::from)?.map_err(Failure::answer)?;
            match self.rooms.import_part(import, ordinal, &part).await? {
                PartTaken::Stored => {}
                PartTaken::Missing(ids) => {
                    let why = format!("{} events are missing of what authorises others", ids.len());
                    return Err(Failure::Answer(why));
                }
            }
        }
        Ok(())
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
        let witnesses = [server.to_owned()];
        let asking = Asking {
            patience: KEY_PATIENCE,
            witnesses: &witnesses,
        };
        let verified = self.verifier.verify_told(found, rules, asking).await?;
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
