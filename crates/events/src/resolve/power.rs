//! Power events and the reverse topological power ordering.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use super::{
    EventNumber, judge,
    known::Known,
    limits::{Budget, Stop},
};
use crate::rules::Rules;

/// The power events of the full conflicted set, and what of their auth chains is in that set,
/// in reverse topological power ordering.
pub(super) fn sort(
    rules: &'static Rules,
    conflicted: &BTreeSet<EventNumber>,
    known: &mut Known,
    budget: &mut Budget,
) -> Result<Vec<EventNumber>, Stop> {
    // The auth events of the others are needed too when those are checked.
    known.require_with_auth(conflicted.iter().copied())?;
    let graph = graph(conflicted, known, budget)?;
    topological(rules, &graph, known, budget)
}

/// Each event to sort with those of its auth events that are to be sorted.
type Graph = BTreeMap<EventNumber, BTreeSet<EventNumber>>;

fn graph(
    conflicted: &BTreeSet<EventNumber>,
    known: &Known,
    budget: &mut Budget,
) -> Result<Graph, Stop> {
    let is_power = |number: &EventNumber| {
        known
            .event(*number)
            .is_some_and(|e| judge::is_power_event(&e.event))
    };
    let mut graph = Graph::new();
    let mut open: Vec<_> = conflicted.iter().copied().filter(is_power).collect();
    while let Some(number) = open.pop() {
        if graph.contains_key(&number) {
            continue;
        }
        let auth = known
            .links(number)
            .into_iter()
            .flat_map(|links| links.auth.iter().copied());
        let inside: BTreeSet<_> = auth.filter(|auth| conflicted.contains(auth)).collect();
        budget.spend_steps(1 + inside.len())?;
        open.extend(&inside);
        graph.insert(number, inside);
    }
    Ok(graph)
}

/// Kahn's algorithm, always taking the smallest of the events that may come next.
fn topological(
    rules: &'static Rules,
    graph: &Graph,
    known: &Known,
    budget: &mut Budget,
) -> Result<Vec<EventNumber>, Stop> {
    let Some(create) = known.event(known.create()) else {
        return Ok(Vec::new());
    };
    let rank = |number: EventNumber| {
        let loaded = known.event(number)?;
        let event = &loaded.event;
        let mut auth = known.auth_of(number).map(|auth| &auth.event);
        let power_levels = auth.find(|auth| judge::is_power_levels(auth));
        let level = judge::sender_level(rules, event, power_levels, &create.event);
        Some(Reverse((
            Reverse(level),
            event.origin_server_ts(),
            event.event_id(),
            number,
        )))
    };
    let mut dependants = BTreeMap::<EventNumber, Vec<EventNumber>>::new();
    let mut open_auth: BTreeMap<EventNumber, usize> = BTreeMap::new();
    let mut ready = BinaryHeap::new();
    for (number, auth) in graph {
        open_auth.insert(*number, auth.len());
        if auth.is_empty() {
            ready.extend(rank(*number));
        }
        for auth in auth {
            dependants.entry(*auth).or_default().push(*number);
        }
    }
    let mut sorted = Vec::with_capacity(graph.len());
    while let Some(Reverse((.., number))) = ready.pop() {
        sorted.push(number);
        let waiting = dependants.get(&number).map_or(&[][..], Vec::as_slice);
        budget.spend_steps(1 + waiting.len())?;
        for dependant in waiting {
            if let Some(open) = open_auth.get_mut(dependant) {
                *open -= 1;
                if *open == 0 {
                    ready.extend(rank(*dependant));
                }
            }
        }
    }
    Ok(sorted)
}
