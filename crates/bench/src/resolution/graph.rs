//! A room whose state has come apart, made up: its events in memory, and the states to resolve.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use homeserver_events::{
    Pdu, RoomVersion, Rules,
    auth::{auth_types, check},
    resolve::{
        Above, Ahead, Answer, AuthHeight, Conflict, EventNumber, Limits, Links, LoadedEvent, Need,
        Resolution, StateKey, Step, split,
    },
};
use ruma::{EventId, OwnedEventId, UserId};
use serde_json::{Value, json};

use crate::Error;

/// A whole state.
pub(super) type State = BTreeMap<StateKey, EventNumber>;

/// The number of the create event; the others count up from it.
const CREATE: EventNumber = 1;

/// What is filled in for a signature.
const SIGNATURE: &str =
    "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw";

/// An event that a user sends.
pub(super) struct Deed<'a> {
    pub(super) sender: &'a str,
    pub(super) kind: &'a str,
    pub(super) key: &'a str,
    pub(super) content: Value,
}

/// A room and the states of its branches.
pub(super) struct Graph {
    pub(super) rules: &'static Rules,
    pub(super) states: Vec<State>,
    events: Vec<LoadedEvent>,
    /// Milliseconds since 1970, of the newest event.
    now: u64,
}

/// Where the states of a graph differ, and what they have in common.
pub(super) struct Split {
    pub(super) conflict: Conflict,
    pub(super) common: State,
    in_all: HashSet<EventNumber>,
    /// Of what they have in common, the highest first.
    heights: Vec<(AuthHeight, EventNumber)>,
}

/// What a resolution took.
#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) rounds: usize,
    pub(super) links: usize,
    pub(super) events: usize,
}

fn broken(error: &dyn std::fmt::Display) -> Error {
    Error::Server(error.to_string())
}

impl Graph {
    /// A room of one branch without events.
    pub(super) fn new(version: RoomVersion) -> Self {
        Self {
            rules: version.rules(),
            states: vec![State::new()],
            events: Vec::new(),
            now: 1_700_000_000_000,
        }
    }

    /// From here on there are two branches.
    pub(super) fn fork(&mut self) {
        self.states.truncate(1);
        self.states.push(self.states[0].clone());
    }

    /// Sends an event on a branch, `later` milliseconds after the last one.
    pub(super) fn send(&mut self, branch: usize, deed: &Deed<'_>, later: u64) -> Result<(), Error> {
        self.now += later;
        let (event, auth) = self.event(branch, deed)?;
        let state = &self.states[branch];
        let fetch = |kind: &str, key: &str| {
            let number = state.get(&(kind.to_owned(), key.to_owned()))?;
            Some(self.loaded(*number).event.clone())
        };
        check(self.rules, &event, &fetch).map_err(|error| broken(&error))?;
        let height = auth.iter().map(|number| self.loaded(*number).links.height);
        let links = Links {
            number: self.events.len() as u64 + CREATE,
            height: height.max().map_or(0, |height| height + 1),
            auth: auth.into(),
            is_power_levels: event.is_state("m.room.power_levels", ""),
            in_all: None,
        };
        let key = (deed.kind.to_owned(), deed.key.to_owned());
        self.states[branch].insert(key, links.number);
        self.events.push(LoadedEvent {
            links,
            rejected: false,
            event,
        });
        Ok(())
    }

    /// An event, and those that authorise it.
    fn event(&self, branch: usize, deed: &Deed<'_>) -> Result<(Pdu, Vec<EventNumber>), Error> {
        let sender = UserId::parse(deed.sender).map_err(|error| broken(&error))?;
        let content = serde_json::value::to_raw_value(&deed.content);
        let content = content.map_err(|error| broken(&error))?;
        let keys = auth_types(self.rules, deed.kind, &sender, Some(deed.key), &content);
        let state = &self.states[branch];
        let auth: Vec<_> = keys
            .into_iter()
            .filter_map(|(kind, key)| state.get(&(kind.to_owned(), key)).copied())
            .collect();
        let ids: Vec<_> = auth
            .iter()
            .map(|number| self.id(*number).as_str())
            .collect();
        let previous = self.events.last().map(|last| last.event.event_id());
        let mut json = json!({
            "type": deed.kind,
            "state_key": deed.key,
            "sender": deed.sender,
            "content": deed.content,
            "origin_server_ts": self.now,
            "depth": self.events.len() + 1,
            "prev_events": previous.as_slice(),
            "auth_events": ids,
            "hashes": { "sha256": &SIGNATURE[..43] },
            "signatures": { sender.server_name().as_str(): { "ed25519:a": SIGNATURE } },
        });
        if !self.rules.create_is_implied() {
            json["room_id"] = "!room:example.org".into();
        } else if let Some(create) = self.events.first() {
            json["room_id"] = create.event.event_id().as_str().replace('$', "!").into();
        }
        let stored = json.to_string();
        let id = id_of(self.events.len() as u64)?;
        let event = Pdu::from_stored(stored.as_bytes(), id, self.rules);
        Ok((event.map_err(|error| broken(&error))?, auth))
    }

    pub(super) fn loaded(&self, number: EventNumber) -> &LoadedEvent {
        &self.events[usize::try_from(number - CREATE).unwrap_or(usize::MAX)]
    }

    pub(super) fn id(&self, number: EventNumber) -> &EventId {
        self.loaded(number).event.event_id()
    }

    pub(super) fn all(&self) -> &[LoadedEvent] {
        &self.events
    }

    /// What each branch's state and auth chains hold.
    pub(super) fn chains(&self) -> Vec<BTreeSet<EventNumber>> {
        let below = |state: &State| self.below(state.values().copied().collect());
        self.states.iter().map(below).collect()
    }

    fn below(&self, mut open: Vec<EventNumber>) -> BTreeSet<EventNumber> {
        let mut found = BTreeSet::new();
        while let Some(number) = open.pop() {
            if found.insert(number) {
                open.extend(&self.loaded(number).links.auth);
            }
        }
        found
    }

    /// The conflicted state subgraph: what lies on a path of auth events between two of these.
    pub(super) fn subgraph(&self, conflicted: &BTreeSet<EventNumber>) -> BTreeSet<EventNumber> {
        let mut leading = BTreeSet::new();
        // Auth events have lower numbers.
        for number in self.below(conflicted.iter().copied().collect()) {
            let auth = &self.loaded(number).links.auth;
            if conflicted.contains(&number) || auth.iter().any(|auth| leading.contains(auth)) {
                leading.insert(number);
            }
        }
        leading
    }

    /// The conflicted state set.
    pub(super) fn conflicted(&self) -> BTreeSet<EventNumber> {
        let (conflict, _) = split(&self.states);
        let values = conflict.values().values();
        values.flatten().copied().flatten().collect()
    }

    /// The size of the full conflicted set.
    pub(super) fn size(&self) -> usize {
        let mut full = self.conflicted();
        if self.rules.create_is_implied() {
            full = self.subgraph(&full);
        }
        let chains = self.chains();
        if let [one, other] = &chains[..] {
            full.extend(one.symmetric_difference(other));
        }
        full.len()
    }

    /// Finds out where the states differ: what a server's state trees tell.
    pub(super) fn split(&self) -> Split {
        let (conflict, common) = split(&self.states);
        let place = |number: &EventNumber| (self.loaded(*number).links.height, *number);
        let mut heights: Vec<_> = common.values().map(place).collect();
        heights.sort_unstable_by(|a, b| b.cmp(a));
        Split {
            in_all: common.values().copied().collect(),
            conflict,
            common,
            heights,
        }
    }

    /// Resolves the states; gives the value of every key in dispute.
    pub(super) fn resolve(
        &self,
        split: &Split,
        conflict: Conflict,
    ) -> Result<(State, Usage), Error> {
        let mut resolution = Resolution::new(self.rules, CREATE, conflict, Limits::default());
        let (mut answer, mut usage) = (Answer::default(), Usage::default());
        loop {
            match resolution.step(answer) {
                Step::Need(need) => {
                    answer = self.answer(&need, split);
                    usage.rounds += 1;
                    usage.links += answer.links.len();
                    usage.events += answer.events.len();
                }
                Step::Done(resolved) => return Ok((resolved, usage)),
                other => return Err(Error::Server(format!("not resolved: {other:?}"))),
            }
        }
    }

    fn answer(&self, need: &Need, split: &Split) -> Answer {
        let highest = |above: Above| {
            let from = above.after.map_or(0, |after| {
                split.heights.partition_point(|place| *place >= after)
            });
            let higher = split.heights[from..].iter().copied();
            let higher = higher.take_while(|(height, _)| *height > above.height);
            higher.take(above.limit).collect()
        };
        Answer {
            links: self.links(need, split),
            events: (need.events.iter())
                .map(|number| self.loaded(*number).clone())
                .collect(),
            unconflicted: (need.unconflicted.iter())
                .map(|key| (key.clone(), split.common.get(key).copied()))
                .collect(),
            highest: need.highest.map(highest).unwrap_or_default(),
        }
    }

    fn links(&self, need: &Need, split: &Split) -> Vec<Links> {
        let (mut ahead, mut next) = Ahead::of(need);
        let mut links: Vec<Links> = Vec::new();
        while !next.is_empty() {
            let loaded = next.iter().map(|number| Links {
                in_all: Some(split.in_all.contains(number)),
                ..self.loaded(*number).links.clone()
            });
            let loaded: Vec<_> = loaded.collect();
            next = ahead.below(&loaded);
            links.extend(loaded);
        }
        links
    }
}

/// Ids as long as real ones, in no order that means anything.
fn id_of(number: u64) -> Result<OwnedEventId, Error> {
    let scramble = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let (one, two) = (scramble(number + 1), scramble(number + 7919));
    let id = format!("${one:016x}{two:016x}{number:011x}");
    EventId::parse(id).map_err(|error| broken(&error))
}
