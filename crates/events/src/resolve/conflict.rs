//! The part of several states on which they do not agree.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::{SmallVec, smallvec};

use super::{EventNumber, StateKey};

/// The conflicted part of several states: per key, what each state has.
///
/// A key on which all states agree does not belong in here; [`Conflict::insert`] drops it.
#[derive(Debug, Clone, Default)]
pub struct Conflict {
    states: usize,
    values: BTreeMap<StateKey, Vec<Option<EventNumber>>>,
    events: BTreeSet<EventNumber>,
}

impl Conflict {
    /// No conflict yet, between this many states.
    pub fn new(states: usize) -> Self {
        Self {
            states,
            ..Self::default()
        }
    }

    /// Adds a key with its value in each state, in the same order for every key. States that
    /// are not mentioned lack the key.
    pub fn insert(&mut self, key: StateKey, mut values: Vec<Option<EventNumber>>) {
        values.resize(self.states, None);
        if values.iter().all(|value| *value == values[0]) {
            return;
        }
        self.events.extend(values.iter().flatten());
        self.values.insert(key, values);
    }

    /// How many states there are.
    pub fn states(&self) -> usize {
        self.states
    }

    /// Whether the states agree.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The keys and what each state has.
    pub fn values(&self) -> &BTreeMap<StateKey, Vec<Option<EventNumber>>> {
        &self.values
    }

    /// The conflicted state set.
    pub(super) fn events(&self) -> &BTreeSet<EventNumber> {
        &self.events
    }

    /// For each conflicted event the states that have it.
    pub(super) fn holders(&self) -> BTreeMap<EventNumber, StateSet> {
        let mut holders = BTreeMap::<_, StateSet>::new();
        for values in self.values.values() {
            for (state, value) in values.iter().enumerate() {
                if let Some(event) = value {
                    holders
                        .entry(*event)
                        .or_insert_with(|| StateSet::none(self.states))
                        .add(state);
                }
            }
        }
        holders
    }
}

/// Splits whole states into their conflict and the state they have in common. For tests and small
/// states; who has state trees takes the differences of those.
pub fn split(
    states: &[BTreeMap<StateKey, EventNumber>],
) -> (Conflict, BTreeMap<StateKey, EventNumber>) {
    let mut conflict = Conflict::new(states.len());
    let mut common = BTreeMap::new();
    let keys: BTreeSet<_> = states.iter().flat_map(BTreeMap::keys).collect();
    for key in keys {
        let values: Vec<_> = states.iter().map(|state| state.get(key).copied()).collect();
        match values[0] {
            Some(event) if values.iter().all(|value| *value == Some(event)) => {
                common.insert(key.clone(), event);
            }
            _ => conflict.insert(key.clone(), values),
        }
    }
    (conflict, common)
}

/// A set of the states being resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StateSet {
    words: SmallVec<[u64; 1]>,
}

impl StateSet {
    pub(super) fn none(states: usize) -> Self {
        Self {
            words: smallvec![0; states.div_ceil(64)],
        }
    }

    pub(super) fn all(states: usize) -> Self {
        let mut all = Self::none(states);
        (0..states).for_each(|state| all.add(state));
        all
    }

    pub(super) fn add(&mut self, state: usize) {
        self.words[state / 64] |= 1 << (state % 64);
    }

    /// Adds all of `other`; whether that added anything.
    pub(super) fn merge(&mut self, other: &Self) -> bool {
        let mut grew = false;
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            grew |= *word | more != *word;
            *word |= more;
        }
        grew
    }
}
