//! The auth difference: events that are in the auth chains of some states but not of all.
//!
//! One walk downwards by descending height, carrying with each event the set of states that reach
//! it. Only what is *partly* reached matters: an event that all states reach is followed only as
//! long as something partly reached lies below it, and the unconflicted state is read only above
//! such an event, from the highest down. So the walk stays near the fork however long the room's
//! history is.

use std::collections::{BTreeSet, HashMap};

use super::{
    AuthHeight, EventNumber,
    conflict::{Conflict, StateSet},
    known::Known,
    limits::{Budget, Stop},
};

#[derive(Debug)]
pub(super) struct Difference {
    states: usize,
    all: StateSet,
    conflicted: BTreeSet<EventNumber>,
    /// The states that have an event in their auth chain, or in themselves.
    reach: HashMap<EventNumber, StateSet>,
    /// Reached by some states, not yet followed.
    partly: BTreeSet<(AuthHeight, EventNumber)>,
    /// Reached by all states, not yet followed.
    wholly: BTreeSet<(AuthHeight, EventNumber)>,
    /// Newly reached; their height may not be known yet.
    arrived: Vec<EventNumber>,
}

impl Difference {
    pub(super) fn new(conflict: &Conflict) -> Self {
        let reach: HashMap<_, _> = conflict.holders().into_iter().collect();
        Self {
            states: conflict.states(),
            all: StateSet::all(conflict.states()),
            conflicted: conflict.events().clone(),
            arrived: conflict.events().iter().copied().collect(),
            reach,
            partly: BTreeSet::new(),
            wholly: BTreeSet::new(),
        }
    }

    /// The auth difference, without the conflicted events themselves.
    pub(super) fn run(
        &mut self,
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<BTreeSet<EventNumber>, Stop> {
        loop {
            self.queue_arrived(known, budget)?;
            let Some(&(height, number)) = self.partly.last() else {
                break;
            };
            budget.spend_steps(1)?;
            match self.wholly.last().copied() {
                Some(higher) if higher.0 > height => {
                    self.wholly.remove(&higher);
                    self.follow(higher.1, known, budget)?;
                }
                _ if self.conflicted.contains(&number)
                    || self.stays_partly(height, number, known)? =>
                {
                    self.partly.remove(&(height, number));
                    self.follow(number, known, budget)?;
                }
                // Something that may reach it arrived instead.
                _ => {}
            }
        }
        let partly = self.reach.iter().filter(|(_, states)| **states != self.all);
        let found = partly.map(|(number, _)| *number);
        Ok(found
            .filter(|number| !self.conflicted.contains(number))
            .collect())
    }

    /// Puts what was newly reached in line by its height.
    fn queue_arrived(&mut self, known: &mut Known, budget: &mut Budget) -> Result<(), Stop> {
        let arrived = self.arrived.iter().copied();
        if arrived.clone().any(|number| !known.knows_holders(number)) {
            // Those in line will be followed next: asking for what they lead to saves rounds.
            budget.spend_steps(self.partly.len())?;
            let in_line = self
                .partly
                .iter()
                .filter_map(|(_, number)| known.links(*number));
            let next: Vec<_> = in_line
                .flat_map(|links| links.auth.iter().copied())
                .collect();
            known.require_holders(arrived.chain(next))?;
        }
        for number in std::mem::take(&mut self.arrived) {
            let Some(links) = known.links(number) else {
                continue;
            };
            let place = (links.height, number);
            if self.reach.get(&number) == Some(&self.all) {
                self.partly.remove(&place);
                self.wholly.insert(place);
            } else {
                self.partly.insert(place);
            }
        }
        Ok(())
    }

    /// Lets the auth events of an event be reached by all that reach it.
    fn follow(
        &mut self,
        number: EventNumber,
        known: &Known,
        budget: &mut Budget,
    ) -> Result<(), Stop> {
        let (Some(links), Some(states)) = (known.links(number), self.reach.get(&number).cloned())
        else {
            return Ok(());
        };
        budget.spend_steps(links.auth.len())?;
        for auth in &links.auth {
            self.arrive(*auth, &states);
        }
        Ok(())
    }

    fn arrive(&mut self, number: EventNumber, states: &StateSet) {
        let reach = self
            .reach
            .entry(number)
            .or_insert_with(|| StateSet::none(self.states));
        let grew = reach.merge(states);
        if grew {
            self.arrived.push(number);
        }
    }

    /// Whether an event that some states reach is not reached by all of them after all: because it
    /// is unconflicted itself, or by way of a higher unconflicted event.
    fn stays_partly(
        &mut self,
        height: AuthHeight,
        number: EventNumber,
        known: &mut Known,
    ) -> Result<bool, Stop> {
        let in_all = known.links(number).and_then(|links| links.in_all);
        let higher = if in_all == Some(true) {
            Some(number)
        } else {
            known.next_above(height)?
        };
        let Some(reached) = higher else {
            return Ok(true);
        };
        let all = self.all.clone();
        self.arrive(reached, &all);
        Ok(false)
    }
}
