//! The algorithm of room version 1.
//!
//! Power levels, then join rules, then members, each key by itself: its events from the least
//! depth up, as long as each is allowed after the one before. Other keys take the deepest event
//! that is allowed. Events of equal depth are ordered by the SHA-1 of their id.

use std::{cmp::Reverse, collections::BTreeMap};

use sha1::{Digest, Sha1};

use super::{
    EventNumber, StateKey,
    checks::{self, Base, PartialState},
    conflict::Conflict,
    known::Known,
    limits::{Budget, Stop},
};
use crate::rules::Rules;

pub(super) fn resolve(
    rules: &'static Rules,
    conflict: &Conflict,
    known: &mut Known,
    budget: &mut Budget,
) -> Result<BTreeMap<StateKey, EventNumber>, Stop> {
    let events: Vec<_> = conflict.events().iter().copied().collect();
    let mut state = PartialState::new(Base::UnconflictedAlone);
    checks::prepare(rules, &events, &state, known)?;
    let mut open = BTreeMap::<&StateKey, Vec<EventNumber>>::new();
    for (key, values) in conflict.values() {
        let events = by_depth(values, known);
        budget.spend_steps(events.len())?;
        match events.as_slice() {
            // Only some states have it, but none has another: no conflict in this version.
            [only] => state.set(&key.0, &key.1, *only),
            _ => drop(open.insert(key, events)),
        }
    }
    for pass in [
        Pass::PowerLevels,
        Pass::JoinRules,
        Pass::Members,
        Pass::Others,
    ] {
        let mut winners = Vec::new();
        for (key, events) in open.extract_if(.., |key, _| pass.takes(key)) {
            budget.spend_steps(events.len())?;
            let winner = match pass {
                Pass::Others => deepest_allowed(rules, &events, &state, known),
                _ => last_allowed(rules, key, &events, &mut state, known),
            };
            winners.extend(winner.map(|winner| (key, winner)));
        }
        for ((event_type, state_key), winner) in winners {
            state.set(event_type, state_key, winner);
        }
    }
    state.settle(conflict, known)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    PowerLevels,
    JoinRules,
    Members,
    Others,
}

impl Pass {
    fn takes(self, (event_type, state_key): &StateKey) -> bool {
        match self {
            Self::PowerLevels => event_type == "m.room.power_levels" && state_key.is_empty(),
            Self::JoinRules => event_type == "m.room.join_rules",
            Self::Members => event_type == "m.room.member",
            Self::Others => true,
        }
    }
}

/// The different events of a key by ascending depth, then descending SHA-1.
fn by_depth(values: &[Option<EventNumber>], known: &Known) -> Vec<EventNumber> {
    let mut events: Vec<_> = values.iter().copied().flatten().collect();
    events.sort_unstable();
    events.dedup();
    events.sort_by_cached_key(|number| {
        known.event(*number).map(|loaded| {
            let digest: [u8; 20] = Sha1::digest(loaded.event.event_id().as_bytes()).into();
            (loaded.event.depth(), Reverse(digest))
        })
    });
    events
}

/// Follows the events upwards for as long as each is allowed where the one before holds. Leaves the
/// state as it was.
fn last_allowed(
    rules: &'static Rules,
    key: &StateKey,
    events: &[EventNumber],
    state: &mut PartialState,
    known: &Known,
) -> Option<EventNumber> {
    let (first, rest) = events.split_first()?;
    let mut winner = *first;
    for event in rest {
        state.set(&key.0, &key.1, winner);
        if !checks::is_allowed(rules, *event, state, known) {
            break;
        }
        winner = *event;
    }
    state.unset(&key.0, &key.1);
    Some(winner)
}

/// The deepest event that is allowed; if none is, the one with the least depth, as other servers
/// have it: a room's state never loses a key.
fn deepest_allowed(
    rules: &'static Rules,
    events: &[EventNumber],
    state: &PartialState,
    known: &Known,
) -> Option<EventNumber> {
    let allowed = |event: &&EventNumber| checks::is_allowed(rules, **event, state, known);
    events
        .iter()
        .rev()
        .find(allowed)
        .or(events.first())
        .copied()
}
