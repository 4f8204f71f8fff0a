//! The iterative auth checks: events applied in order to a state, each if that state allows it.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::{
    EventNumber, StateKey,
    conflict::Conflict,
    keyed::Keyed,
    known::{Known, LoadedEvent},
    limits::{Budget, Stop},
};
use crate::{auth, rules::Rules};

/// What a partially resolved state has beneath the events applied so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// The unconflicted state, and nothing else authorises (v1).
    UnconflictedAlone,
    /// The unconflicted state; what that lacks, an event's own auth events authorise (v2).
    Unconflicted,
    /// Nothing; an event's own auth events authorise (v2.1).
    Empty,
}

/// A partially resolved state.
#[derive(Debug)]
pub(super) struct PartialState {
    base: Base,
    applied: Keyed<EventNumber>,
}

impl PartialState {
    pub(super) fn new(base: Base) -> Self {
        Self {
            base,
            applied: Keyed::default(),
        }
    }

    /// Takes it away for the next phase.
    pub(super) fn take(&mut self) -> Self {
        Self {
            base: self.base,
            applied: std::mem::take(&mut self.applied),
        }
    }

    pub(super) fn set(&mut self, event_type: &str, state_key: &str, event: EventNumber) {
        self.applied.set(event_type, state_key, event);
    }

    pub(super) fn unset(&mut self, event_type: &str, state_key: &str) {
        self.applied.remove(event_type, state_key);
    }

    /// The value of a key; what the base may have for it was required before.
    fn value(&self, event_type: &str, state_key: &str, known: &Known) -> Option<EventNumber> {
        let beneath = || match self.base {
            Base::UnconflictedAlone | Base::Unconflicted => {
                known.unconflicted(event_type, state_key)
            }
            Base::Empty => None,
        };
        let applied = self.applied.get(event_type, state_key).copied();
        applied.or_else(beneath)
    }

    /// The power levels event of this state.
    pub(super) fn power_levels(&self, known: &mut Known) -> Result<Option<EventNumber>, Stop> {
        const KEY: (&str, &str) = ("m.room.power_levels", "");
        if self.base != Base::Empty {
            known.require_unconflicted([KEY])?;
        }
        Ok(self.value(KEY.0, KEY.1, known))
    }

    /// The outcome: what was applied, except where all states agree anyway.
    pub(super) fn settle(
        &self,
        conflict: &Conflict,
        known: &mut Known,
    ) -> Result<BTreeMap<StateKey, EventNumber>, Stop> {
        let outcome: BTreeMap<_, _> = self
            .applied
            .iter()
            .map(|((event_type, key), event)| {
                let key = (event_type.to_owned(), key.to_owned());
                let disputed = conflict.values().contains_key(&key);
                (key, (*event, disputed))
            })
            .collect();
        let agreed = outcome.iter().filter(|(_, (_, disputed))| !disputed);
        known.require_unconflicted(agreed.map(|(key, _)| (key.0.as_str(), key.1.as_str())))?;
        let stays =
            |key: &StateKey, disputed| disputed || known.unconflicted(&key.0, &key.1).is_none();
        let outcome = outcome.into_iter();
        Ok(outcome
            .filter(|(key, (_, disputed))| stays(key, *disputed))
            .map(|(key, (event, _))| (key, event))
            .collect())
    }
}

/// Applies sorted events to a state. Where it stops for a need it has not begun.
pub(super) fn apply(
    rules: &'static Rules,
    sorted: &[EventNumber],
    state: &mut PartialState,
    known: &mut Known,
    budget: &mut Budget,
) -> Result<(), Stop> {
    prepare(rules, sorted, state, known)?;
    for number in sorted {
        budget.spend_steps(1)?;
        let Some(loaded) = known.event(*number) else {
            continue;
        };
        let Some((event_type, state_key)) = loaded.event.state_pair() else {
            continue;
        };
        if is_allowed(rules, *number, state, known) {
            state.set(event_type, state_key, *number);
        }
    }
    Ok(())
}

/// Stops until everything that checking these events may look at is here.
pub(super) fn prepare(
    rules: &'static Rules,
    events: &[EventNumber],
    state: &PartialState,
    known: &mut Known,
) -> Result<(), Stop> {
    known.require_with_auth(events.iter().copied())?;
    if state.base != Base::Empty {
        known.require_unconflicted_auth(rules, events)?;
    }
    let mut absent = Vec::new();
    for number in events {
        for (event_type, key) in known.auth_types(rules, *number) {
            let value = state.value(event_type, key, known);
            absent.extend(value.filter(|value| known.event(*value).is_none()));
        }
    }
    known.require_events(absent)
}

/// Whether the authorisation rules allow an event in a state. What the state lacks is taken from
/// the event's own auth events where the algorithm says so, unless those were rejected.
pub(super) fn is_allowed(
    rules: &'static Rules,
    number: EventNumber,
    state: &PartialState,
    known: &Known,
) -> bool {
    let Some(loaded) = known.event(number) else {
        return false;
    };
    let create = rules
        .create_is_implied()
        .then(|| known.event(known.create()))
        .flatten();
    let own = (state.base != Base::UnconflictedAlone).then(|| known.auth_of(number));
    // The last one of a key counts.
    let own: SmallVec<[_; 8]> = own.into_iter().flatten().chain(create).collect();
    let types = known.auth_types(rules, number);
    let lookup = |event_type: &str, key: &str| {
        let may_be_asked = types
            .iter()
            .any(|(of_type, of_key)| *of_type == event_type && of_key == key);
        let current = may_be_asked.then(|| state.value(event_type, key, known));
        let current = current.flatten().and_then(|number| known.event(number));
        let counts = |loaded: &&LoadedEvent| !loaded.rejected;
        let is_of_key = |loaded: &&&LoadedEvent| loaded.event.is_state(event_type, key);
        let own = || own.iter().rev().filter(is_of_key).copied().find(counts);
        let found = current.filter(counts).or_else(own)?;
        Some(found.event.clone())
    };
    auth::check(rules, &loaded.event, &lookup).is_ok()
}
