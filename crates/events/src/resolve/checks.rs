//! The iterative auth checks: events applied in order to a state, each if that state allows it.

use std::collections::BTreeMap;

use super::{
    EventNumber, StateKey,
    conflict::Conflict,
    judge,
    known::Known,
    limits::{Budget, Stop},
};
use crate::{Pdu, rules::Rules};

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
#[derive(Debug, Clone)]
pub(super) struct PartialState {
    base: Base,
    applied: BTreeMap<StateKey, EventNumber>,
}

impl PartialState {
    pub(super) fn new(base: Base) -> Self {
        Self {
            base,
            applied: BTreeMap::new(),
        }
    }

    pub(super) fn set(&mut self, key: StateKey, event: EventNumber) {
        self.applied.insert(key, event);
    }

    pub(super) fn unset(&mut self, key: &StateKey) {
        self.applied.remove(key);
    }

    /// The value of a key; what the base may have for it was required before.
    fn value(&self, key: &StateKey, known: &Known) -> Option<EventNumber> {
        let beneath = || match self.base {
            Base::UnconflictedAlone | Base::Unconflicted => known.unconflicted(key),
            Base::Empty => None,
        };
        self.applied.get(key).copied().or_else(beneath)
    }

    /// Stops unless [`Self::value`] can answer for these keys.
    fn require(&self, keys: Vec<StateKey>, known: &mut Known) -> Result<(), Stop> {
        match self.base {
            Base::UnconflictedAlone | Base::Unconflicted => known.require_unconflicted(keys),
            Base::Empty => Ok(()),
        }
    }

    /// The power levels event of this state.
    pub(super) fn power_levels(&self, known: &mut Known) -> Result<Option<EventNumber>, Stop> {
        let key = ("m.room.power_levels".to_owned(), String::new());
        self.require(vec![key.clone()], known)?;
        Ok(self.value(&key, known))
    }

    /// The outcome: what was applied, except where all states agree anyway.
    pub(super) fn settle(
        &self,
        conflict: &Conflict,
        known: &mut Known,
    ) -> Result<BTreeMap<StateKey, EventNumber>, Stop> {
        let agreed = |key: &StateKey| !conflict.values().contains_key(key);
        known.require_unconflicted(self.applied.keys().filter(|key| agreed(key)).cloned())?;
        let mut outcome = self.applied.clone();
        outcome.retain(|key, _| !agreed(key) || known.unconflicted(key).is_none());
        Ok(outcome)
    }
}

/// Applies sorted events to a state.
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
        let Some(key) = judge::key(&loaded.event) else {
            continue;
        };
        if is_allowed(rules, *number, state, known) {
            state.set(key, *number);
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
    let loaded = events.iter().filter_map(|number| known.event(*number));
    let keys: Vec<_> = loaded
        .flat_map(|e| judge::auth_keys(rules, &e.event))
        .collect();
    state.require(keys.clone(), known)?;
    let values: Vec<_> = keys
        .iter()
        .filter_map(|key| state.value(key, known))
        .collect();
    known.require_events(values)
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
    let mut seen: BTreeMap<StateKey, Pdu> = BTreeMap::new();
    let create = rules
        .create_is_implied()
        .then(|| known.event(known.create()))
        .flatten();
    let own = (state.base != Base::UnconflictedAlone).then(|| known.auth_of(number));
    for auth in own
        .into_iter()
        .flatten()
        .chain(create)
        .filter(|auth| !auth.rejected)
    {
        seen.extend(judge::key(&auth.event).map(|key| (key, auth.event.clone())));
    }
    for key in judge::auth_keys(rules, &loaded.event) {
        let current = state
            .value(&key, known)
            .and_then(|number| known.event(number));
        if let Some(current) = current.filter(|current| !current.rejected) {
            seen.insert(key, current.event.clone());
        }
    }
    judge::is_allowed(rules, &loaded.event, &seen)
}
