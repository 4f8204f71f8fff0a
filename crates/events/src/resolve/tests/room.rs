//! A room whose events are made up, in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ruma::{EventId, OwnedEventId};
use serde_json::{Value, json};

use super::super::{
    Above, Ahead, Answer, AuthHeight, Conflict, Limits, Links, LoadedEvent, Resolution, Step, split,
};
use super::{EventNumber, Need, State};
use crate::{
    Pdu, RoomVersion, Rules,
    rules::{EventIdFormat, ReferenceShape},
};

/// All events of a room.
pub(super) struct TestRoom {
    pub(super) rules: &'static Rules,
    events: HashMap<EventNumber, LoadedEvent>,
    numbers: HashMap<OwnedEventId, EventNumber>,
    /// Event numbers order nothing; different rooms number differently.
    mask: EventNumber,
}

/// What a resolution asked for.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Usage {
    pub(super) rounds: usize,
    pub(super) links: usize,
    pub(super) events: usize,
}

impl TestRoom {
    pub(super) fn new(version: RoomVersion) -> Self {
        Self::numbered(version, 0)
    }

    pub(super) fn numbered(version: RoomVersion, mask: EventNumber) -> Self {
        let rules = version.rules();
        Self {
            rules,
            events: HashMap::new(),
            numbers: HashMap::new(),
            mask,
        }
    }

    /// Adds an event in the shape of room versions 3 and later, with its `event_id`. What only a
    /// real server could fill in is filled in.
    pub(super) fn add(&mut self, json: Value) -> EventNumber {
        let shown = json.to_string();
        self.try_add(json).unwrap_or_else(|| {
            panic!("no event, twice the same, or without its auth events: {shown}")
        })
    }

    /// Like [`TestRoom::add`], of anything.
    pub(super) fn try_add(&mut self, mut json: Value) -> Option<EventNumber> {
        let id = EventId::parse(json.get("event_id")?.as_str()?).ok()?;
        let auth = json.get("auth_events").map(ids).unwrap_or_default()?;
        let auth = auth.iter().map(|id| self.numbers.get(id).copied());
        let auth: Vec<_> = auth.collect::<Option<_>>()?;
        let rejected = json.get("rejected") == Some(&Value::Bool(true));
        let fields = json.as_object_mut()?;
        fields.remove("rejected");
        fields.remove("test-comments");
        if self.rules.event_id != EventIdFormat::Field {
            fields.remove("event_id");
        }
        fields
            .entry("depth")
            .or_insert_with(|| (self.events.len() + 1).into());
        fields.insert("hashes".into(), json!({ "sha256": "" }));
        fields.insert("signatures".into(), json!({}));
        if self.rules.references == ReferenceShape::Pairs {
            for list in ["auth_events", "prev_events"] {
                let ids = fields.get(list).map(ids).unwrap_or_default()?;
                let pairs = ids.iter().map(|id| json!([id, { "sha256": "" }]));
                fields.insert(list.into(), pairs.collect());
            }
        }
        let stored = serde_json::to_vec(&json).ok()?;
        let event = Pdu::from_stored(&stored, id.clone(), self.rules).ok()?;
        if self.numbers.contains_key(&id) {
            return None;
        }
        let number = (self.events.len() as u64 + 1) ^ self.mask;
        let below = auth.iter().map(|auth| self.events[auth].links.height);
        let height = below.max().map_or(0, |height| height + 1);
        let links = Links {
            number,
            height,
            auth: auth.into(),
            is_power_levels: event.is_state("m.room.power_levels", ""),
            in_all: None,
        };
        self.events.insert(
            number,
            LoadedEvent {
                links,
                rejected,
                event,
            },
        );
        self.numbers.insert(id, number);
        Some(number)
    }

    pub(super) fn number(&self, id: &EventId) -> EventNumber {
        *self
            .numbers
            .get(id)
            .unwrap_or_else(|| panic!("no event {id}"))
    }

    pub(super) fn event(&self, number: EventNumber) -> &LoadedEvent {
        &self.events[&number]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &LoadedEvent> {
        self.events.values()
    }

    /// Marks one of the events as rejected, but never the create event or join rules.
    pub(super) fn reject(&mut self, choice: usize) {
        let number = (choice % self.events.len()) as u64 + 1;
        if let Some(loaded) = self.events.get_mut(&(number ^ self.mask)) {
            let kept = ["m.room.create", "m.room.join_rules"];
            loaded.rejected = !kept.contains(&loaded.event.event_type());
        }
    }

    pub(super) fn id(&self, number: EventNumber) -> &EventId {
        self.events[&number].event.event_id()
    }

    fn create(&self) -> EventNumber {
        1 ^ self.mask
    }

    /// The state that these states resolve to.
    pub(super) fn resolve(&self, states: &[State]) -> State {
        self.resolve_within(states, Limits::default())
            .0
            .unwrap_or_else(|step| panic!("{step:?}"))
    }

    pub(super) fn resolve_within(
        &self,
        states: &[State],
        limits: Limits,
    ) -> (Result<State, Step>, Usage) {
        let (conflict, common) = split(states);
        let (step, usage) = self.run(conflict, &common, limits);
        let state = match step {
            Step::Done(resolved) => {
                let mut state = common;
                for (key, event) in resolved {
                    assert_eq!(state.insert(key, event), None, "an agreed key was resolved");
                }
                Ok(state)
            }
            other => Err(other),
        };
        (state, usage)
    }

    fn run(&self, conflict: Conflict, common: &State, limits: Limits) -> (Step, Usage) {
        let mut resolution = Resolution::new(self.rules, self.create(), conflict, limits);
        let mut answer = Answer::default();
        let mut usage = Usage::default();
        loop {
            match resolution.step(answer) {
                Step::Need(need) => {
                    assert_ne!(need, Need::default(), "asks for nothing");
                    answer = self.answer(&need, common);
                    usage.rounds += 1;
                    usage.links += answer.links.len() + need.highest.map_or(0, |_| 1);
                    usage.events += need.events.len();
                }
                over => return (over, usage),
            }
        }
    }

    /// Exactly what was asked for.
    pub(super) fn answer(&self, need: &Need, common: &State) -> Answer {
        Answer {
            links: self.links(need, common),
            events: need
                .events
                .iter()
                .map(|number| self.events[number].clone())
                .collect(),
            unconflicted: (need.unconflicted.iter())
                .map(|key| (key.clone(), common.get(key).copied()))
                .collect(),
            highest: need
                .highest
                .map(|above| self.highest(above, common))
                .unwrap_or_default(),
        }
    }

    fn links(&self, need: &Need, common: &State) -> Vec<Links> {
        let in_all: BTreeSet<_> = common.values().copied().collect();
        let (mut ahead, mut next) = Ahead::of(need);
        let mut links: Vec<Links> = Vec::new();
        while !next.is_empty() {
            let loaded = next.iter().map(|number| Links {
                in_all: Some(in_all.contains(number)),
                ..self.events[number].links.clone()
            });
            let loaded: Vec<_> = loaded.collect();
            next = ahead.below(&loaded);
            links.extend(loaded);
        }
        links
    }

    fn highest(&self, above: Above, common: &State) -> Vec<(AuthHeight, EventNumber)> {
        let mut places: Vec<_> = common
            .values()
            .map(|number| (self.events[number].links.height, *number))
            .collect();
        places.retain(|place| {
            place.0 > above.height && above.after.is_none_or(|after| *place < after)
        });
        places.sort_unstable_by(|a, b| b.cmp(a));
        places.truncate(above.limit);
        places
    }

    /// A state with ids for numbers, to compare rooms that number differently.
    pub(super) fn named(&self, state: &State) -> BTreeMap<super::StateKey, OwnedEventId> {
        state
            .iter()
            .map(|(key, number)| (key.clone(), self.id(*number).to_owned()))
            .collect()
    }
}

/// `None` if they are not all ids.
fn ids(list: &Value) -> Option<Vec<OwnedEventId>> {
    let parse = |id: &Value| EventId::parse(id.as_str()?).ok();
    list.as_array()?.iter().map(parse).collect()
}
