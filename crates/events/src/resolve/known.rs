//! What a resolution has loaded, and what it asks for.

use std::{
    cell::OnceCell,
    collections::{BTreeSet, HashMap, VecDeque},
};

use smallvec::SmallVec;

use super::{
    AuthHeight, EventNumber, StateKey,
    ahead::MAX_GENERATIONS,
    judge,
    keyed::Keyed,
    limits::{Budget, Stop, UNCONFLICTED_CHUNK},
};
use crate::{Pdu, auth::AuthTypes, rules::Rules};

/// An event's place in the graph of auth events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links {
    /// The event.
    pub number: EventNumber,
    /// Its auth height, as stored with it.
    pub height: AuthHeight,
    /// The numbers of its `auth_events`, as stored with it.
    pub auth: SmallVec<[EventNumber; 6]>,
    /// Whether it is an `m.room.power_levels` event with an empty state key.
    pub is_power_levels: bool,
    /// Whether all states that are being resolved have it. Only [`Need::links`] asks for that.
    pub in_all: Option<bool>,
}

/// A whole event.
#[derive(Debug, Clone)]
pub struct LoadedEvent {
    /// Its place in the graph.
    pub links: Links,
    /// Whether it was rejected, so that it authorises nothing.
    pub rejected: bool,
    /// The event itself.
    pub event: Pdu,
}

/// A part of the unconflicted state, highest events first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Above {
    /// Only events higher than this.
    pub height: AuthHeight,
    /// Only what comes after this in descending order of (height, number).
    pub after: Option<(AuthHeight, EventNumber)>,
    /// At most this many; fewer mean that there are no more.
    pub limit: usize,
}

/// What a resolution needs to go on. Everything in it must be supplied; what is in several fields
/// comes from one moment, as the states that are being resolved never change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// Events of which the links are needed.
    pub links: BTreeSet<EventNumber>,
    /// For so many generations, the links of the auth events below those should come along: see
    /// [`super::Ahead`].
    pub generations: usize,
    /// Events that are needed whole.
    pub events: BTreeSet<EventNumber>,
    /// Keys of which the value is needed on which all states agree.
    pub unconflicted: BTreeSet<StateKey>,
    /// Unconflicted state events are needed in descending order of (height, number).
    pub highest: Option<Above>,
}

impl Need {
    fn is_empty(&self) -> bool {
        self.links.is_empty() && self.events.is_empty() && self.unconflicted.is_empty()
    }
}

/// What a [`Need`] is answered with.
///
/// It may bring more than was asked for, at the expense of the limits: links of links save rounds
/// where the caller has them at hand.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// For [`Need::links`], all with [`Links::in_all`].
    pub links: Vec<Links>,
    /// For [`Need::events`].
    pub events: Vec<LoadedEvent>,
    /// For [`Need::unconflicted`]: the value that all states have, `None` if they do not agree or
    /// none has one.
    pub unconflicted: Vec<(StateKey, Option<EventNumber>)>,
    /// For [`Need::highest`], in its order.
    pub highest: Vec<(AuthHeight, EventNumber)>,
}

/// All that was loaded.
#[derive(Debug)]
pub(super) struct Known {
    create: EventNumber,
    links: HashMap<EventNumber, Links>,
    events: HashMap<EventNumber, Held>,
    unconflicted: Keyed<Option<EventNumber>>,
    highest: Highest,
    need: Need,
    asked: Need,
    /// How many generations of links come along next time.
    generations: usize,
}

/// A loaded event with what it says about others, worked out once.
#[derive(Debug)]
struct Held {
    loaded: LoadedEvent,
    auth_types: OnceCell<AuthTypes>,
}

/// The unconflicted events read so far from the highest down.
#[derive(Debug, Default)]
struct Highest {
    unread: VecDeque<(AuthHeight, EventNumber)>,
    last: Option<(AuthHeight, EventNumber)>,
    /// All unconflicted events higher than this were supplied.
    whole_above: Option<AuthHeight>,
    /// How often a part was asked for.
    asked: u32,
}

impl Highest {
    /// What to ask for where events above `height` are needed. A state may hold very many events of
    /// one height, so at first it is asked for no more than is needed; a walk that goes on and on
    /// asks twice as far down each time, and for greater parts.
    fn next_part(&mut self, height: AuthHeight) -> Above {
        let doubled = self.asked.min(MAX_DOUBLED);
        let further = self.asked.checked_sub(EXACT_PARTS);
        let further = further.map_or(0, |more| 1 << more.min(MAX_FURTHER));
        self.asked = self.asked.saturating_add(1);
        Above {
            height: height.saturating_sub(further),
            after: self.last,
            limit: UNCONFLICTED_CHUNK << doubled,
        }
    }
}

/// The size of a part doubles as often as this.
const MAX_DOUBLED: u32 = 4;

/// Parts of the unconflicted state that are asked for exactly as far down as is needed.
const EXACT_PARTS: u32 = 8;

/// Later parts reach down by this power of two more than is needed, at most.
const MAX_FURTHER: u32 = 10;

impl Known {
    pub(super) fn new(create: EventNumber) -> Self {
        Self {
            create,
            links: HashMap::new(),
            events: HashMap::new(),
            unconflicted: Keyed::default(),
            highest: Highest::default(),
            need: Need::default(),
            asked: Need::default(),
            generations: 0,
        }
    }

    /// Adds an answer.
    pub(super) fn take(&mut self, answer: Answer, budget: &mut Budget) -> Result<(), Stop> {
        for links in answer.links {
            self.add_links(links, budget)?;
        }
        for loaded in answer.events {
            budget.spend_event(loaded.event.json().len())?;
            let number = loaded.links.number;
            if !self.links.contains_key(&number) {
                self.add_links(loaded.links.clone(), budget)?;
            }
            let held = Held {
                loaded,
                auth_types: OnceCell::new(),
            };
            self.events.insert(number, held);
        }
        for (key, value) in answer.unconflicted {
            self.unconflicted.insert(key, value);
        }
        if let Some(asked) = self.asked.highest.take() {
            if answer.highest.len() < asked.limit {
                self.highest.whole_above = Some(asked.height);
            }
            self.highest.last = answer.highest.last().copied().or(self.highest.last);
            self.highest.unread.extend(answer.highest);
        }
        Ok(())
    }

    fn add_links(&mut self, links: Links, budget: &mut Budget) -> Result<(), Stop> {
        if self.links.insert(links.number, links).is_none() {
            budget.spend_link()?;
        }
        Ok(())
    }

    /// What was asked for and is still not here.
    pub(super) fn still_missing(&mut self) -> Option<Need> {
        let mut asked = std::mem::take(&mut self.asked);
        asked.links.retain(|number| !self.knows_holders(*number));
        asked
            .events
            .retain(|number| !self.events.contains_key(number));
        asked
            .unconflicted
            .retain(|(event_type, key)| !self.has_unconflicted(event_type, key));
        (!asked.is_empty()).then_some(asked)
    }

    /// A walk through the links begins.
    pub(super) fn begin(&mut self) {
        self.generations = 0;
    }

    /// Hands out what was noted as needed. `ahead`: whether links may come along.
    pub(super) fn ask(&mut self, ahead: bool) -> Need {
        self.asked = std::mem::take(&mut self.need);
        if !self.asked.links.is_empty() {
            self.asked.generations = if ahead { self.generations } else { 0 };
            self.generations = (self.generations * 2).clamp(1, MAX_GENERATIONS);
        }
        self.asked.clone()
    }

    pub(super) fn create(&self) -> EventNumber {
        self.create
    }

    pub(super) fn links(&self, number: EventNumber) -> Option<&Links> {
        self.links.get(&number)
    }

    /// Whether the links of an event are here, and whether all states have it.
    pub(super) fn knows_holders(&self, number: EventNumber) -> bool {
        let links = self.links.get(&number);
        links.is_some_and(|links| links.in_all.is_some())
    }

    pub(super) fn event(&self, number: EventNumber) -> Option<&LoadedEvent> {
        self.events.get(&number).map(|held| &held.loaded)
    }

    /// The keys of the state that authorises a loaded event.
    pub(super) fn auth_types(
        &self,
        rules: &Rules,
        number: EventNumber,
    ) -> &[(&'static str, String)] {
        let held = self.events.get(&number);
        held.map_or(&[], |held| {
            let types = || judge::auth_types(rules, &held.loaded.event);
            held.auth_types.get_or_init(types)
        })
    }

    fn has_unconflicted(&self, event_type: &str, state_key: &str) -> bool {
        self.unconflicted.get(event_type, state_key).is_some()
    }

    /// The unconflicted value of a key that was required before.
    pub(super) fn unconflicted(&self, event_type: &str, state_key: &str) -> Option<EventNumber> {
        self.unconflicted
            .get(event_type, state_key)
            .copied()
            .flatten()
    }

    /// Stops unless the links of all these events are here.
    pub(super) fn require_links(
        &mut self,
        numbers: impl IntoIterator<Item = EventNumber>,
    ) -> Result<(), Stop> {
        let missing = numbers
            .into_iter()
            .filter(|number| !self.links.contains_key(number));
        self.need.links.extend(missing);
        self.has_all_links()
    }

    /// Stops unless the links of all these events are here, and whether all states have them.
    pub(super) fn require_holders(
        &mut self,
        numbers: impl IntoIterator<Item = EventNumber>,
    ) -> Result<(), Stop> {
        for number in numbers {
            if !self.knows_holders(number) {
                self.need.links.insert(number);
            }
        }
        self.has_all_links()
    }

    fn has_all_links(&self) -> Result<(), Stop> {
        if self.need.links.is_empty() {
            Ok(())
        } else {
            Err(Stop::Need)
        }
    }

    /// Stops unless all these events are here.
    pub(super) fn require_events(
        &mut self,
        numbers: impl IntoIterator<Item = EventNumber>,
    ) -> Result<(), Stop> {
        let missing = numbers
            .into_iter()
            .filter(|number| !self.events.contains_key(number));
        self.need.events.extend(missing);
        if self.need.events.is_empty() {
            Ok(())
        } else {
            Err(Stop::Need)
        }
    }

    /// Stops unless these events and all their auth events are here.
    pub(super) fn require_with_auth(
        &mut self,
        numbers: impl IntoIterator<Item = EventNumber> + Clone,
    ) -> Result<(), Stop> {
        self.require_events(numbers.clone())?;
        for number in numbers {
            let auth = self.links.get(&number).into_iter();
            for auth in auth.flat_map(|links| &links.auth) {
                if !self.events.contains_key(auth) {
                    self.need.events.insert(*auth);
                }
            }
        }
        self.require_events([])
    }

    /// Stops unless the unconflicted values of all these keys are here.
    pub(super) fn require_unconflicted<'a>(
        &mut self,
        keys: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), Stop> {
        for (event_type, key) in keys {
            if !self.has_unconflicted(event_type, key) {
                let key = (event_type.to_owned(), key.to_owned());
                self.need.unconflicted.insert(key);
            }
        }
        if self.need.unconflicted.is_empty() {
            Ok(())
        } else {
            Err(Stop::Need)
        }
    }

    /// As [`Self::require_unconflicted`], for what authorises these loaded events.
    pub(super) fn require_unconflicted_auth(
        &mut self,
        rules: &Rules,
        events: &[EventNumber],
    ) -> Result<(), Stop> {
        let mut missing = Vec::new();
        for number in events {
            for (event_type, key) in self.auth_types(rules, *number) {
                if !self.has_unconflicted(event_type, key) {
                    missing.push(((*event_type).to_owned(), key.clone()));
                }
            }
        }
        self.need.unconflicted.extend(missing);
        self.require_unconflicted([])
    }

    /// The power levels event among the auth events of an event, by their links.
    pub(super) fn cited_power_levels(
        &mut self,
        number: EventNumber,
    ) -> Result<Option<EventNumber>, Stop> {
        let Some(links) = self.links.get(&number) else {
            self.require_links([number])?;
            return Ok(None);
        };
        let absent = |auth: &&EventNumber| !self.links.contains_key(*auth);
        let absent: Vec<_> = links.auth.iter().filter(absent).copied().collect();
        self.require_links(absent)?;
        let auth = self.links.get(&number).into_iter();
        let mut auth = auth.flat_map(|links| links.auth.iter().copied());
        let is_levels = |auth: &EventNumber| {
            let links = self.links.get(auth);
            links.is_some_and(|links| links.is_power_levels)
        };
        Ok(auth.find(is_levels))
    }

    /// The next unconflicted event higher than `height`, each once, highest first.
    pub(super) fn next_above(&mut self, height: AuthHeight) -> Result<Option<EventNumber>, Stop> {
        match self.highest.unread.front().copied() {
            Some((next, number)) if next > height => {
                if !self.knows_holders(number) {
                    // The others of this part will be followed too.
                    let unread = self.highest.unread.iter().map(|(_, number)| *number);
                    let unread: Vec<_> = unread.collect();
                    self.require_holders(unread)?;
                }
                self.highest.unread.pop_front();
                Ok(Some(number))
            }
            Some(_) => Ok(None),
            None if self
                .highest
                .whole_above
                .is_some_and(|whole| whole <= height) =>
            {
                Ok(None)
            }
            None => {
                self.need.highest = Some(self.highest.next_part(height));
                Err(Stop::Need)
            }
        }
    }

    /// The loaded auth events of a loaded event.
    pub(super) fn auth_of(&self, number: EventNumber) -> impl Iterator<Item = &LoadedEvent> {
        let links = self.links.get(&number).into_iter();
        links
            .flat_map(|links| links.auth.iter())
            .filter_map(|auth| self.event(*auth))
    }
}
