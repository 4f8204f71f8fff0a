//! What a resolution has loaded, and what it asks for.

use std::collections::{BTreeSet, HashMap, VecDeque};

use smallvec::SmallVec;

use super::{
    AuthHeight, EventNumber, StateKey,
    limits::{Budget, Stop, UNCONFLICTED_CHUNK},
};
use crate::Pdu;

/// An event's place in the graph of auth events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links {
    /// The event.
    pub number: EventNumber,
    /// Its auth height, as stored with it.
    pub height: AuthHeight,
    /// The numbers of its `auth_events`, as stored with it.
    pub auth: SmallVec<[EventNumber; 6]>,
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
    /// For [`Need::links`].
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
    events: HashMap<EventNumber, LoadedEvent>,
    unconflicted: HashMap<StateKey, Option<EventNumber>>,
    highest: Highest,
    need: Need,
    asked: Need,
}

/// The unconflicted events read so far from the highest down.
#[derive(Debug, Default)]
struct Highest {
    unread: VecDeque<(AuthHeight, EventNumber)>,
    last: Option<(AuthHeight, EventNumber)>,
    /// All unconflicted events higher than this were supplied.
    whole_above: Option<AuthHeight>,
}

impl Known {
    pub(super) fn new(create: EventNumber) -> Self {
        Self {
            create,
            links: HashMap::new(),
            events: HashMap::new(),
            unconflicted: HashMap::new(),
            highest: Highest::default(),
            need: Need::default(),
            asked: Need::default(),
        }
    }

    /// Adds an answer.
    pub(super) fn take(&mut self, answer: Answer, budget: &mut Budget) -> Result<(), Stop> {
        for links in answer.links {
            self.add_links(links, budget)?;
        }
        for loaded in answer.events {
            budget.spend_event(loaded.event.json().len())?;
            self.add_links(loaded.links.clone(), budget)?;
            self.events.insert(loaded.links.number, loaded);
        }
        self.unconflicted.extend(answer.unconflicted);
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
        asked
            .links
            .retain(|number| !self.links.contains_key(number));
        asked
            .events
            .retain(|number| !self.events.contains_key(number));
        asked
            .unconflicted
            .retain(|key| !self.unconflicted.contains_key(key));
        (!asked.is_empty()).then_some(asked)
    }

    /// Hands out what was noted as needed.
    pub(super) fn ask(&mut self) -> Need {
        self.asked = std::mem::take(&mut self.need);
        self.asked.clone()
    }

    pub(super) fn create(&self) -> EventNumber {
        self.create
    }

    pub(super) fn links(&self, number: EventNumber) -> Option<&Links> {
        self.links.get(&number)
    }

    pub(super) fn event(&self, number: EventNumber) -> Option<&LoadedEvent> {
        self.events.get(&number)
    }

    pub(super) fn has_unconflicted(&self, key: &StateKey) -> bool {
        self.unconflicted.contains_key(key)
    }

    /// The unconflicted value of a key that was required before.
    pub(super) fn unconflicted(&self, key: &StateKey) -> Option<EventNumber> {
        self.unconflicted.get(key).copied().flatten()
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
        let links = numbers
            .into_iter()
            .filter_map(|number| self.links.get(&number));
        let auth: BTreeSet<_> = links.flat_map(|links| links.auth.iter().copied()).collect();
        self.require_events(auth)
    }

    /// Stops unless the unconflicted values of all these keys are here.
    pub(super) fn require_unconflicted(
        &mut self,
        keys: impl IntoIterator<Item = StateKey>,
    ) -> Result<(), Stop> {
        let missing = keys
            .into_iter()
            .filter(|key| !self.unconflicted.contains_key(key));
        self.need.unconflicted.extend(missing);
        if self.need.unconflicted.is_empty() {
            Ok(())
        } else {
            Err(Stop::Need)
        }
    }

    /// The next unconflicted event higher than `height`, each once, highest first.
    pub(super) fn next_above(&mut self, height: AuthHeight) -> Result<Option<EventNumber>, Stop> {
        match self.highest.unread.front().copied() {
            Some((next, number)) if next > height => {
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
                let after = self.highest.last;
                self.need.highest = Some(Above {
                    height,
                    after,
                    limit: UNCONFLICTED_CHUNK,
                });
                Err(Stop::Need)
            }
        }
    }

    /// The loaded auth events of a loaded event.
    pub(super) fn auth_of(&self, number: EventNumber) -> impl Iterator<Item = &LoadedEvent> {
        let links = self.links.get(&number).into_iter();
        links
            .flat_map(|links| links.auth.iter())
            .filter_map(|auth| self.events.get(auth))
    }
}
