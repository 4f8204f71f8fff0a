//! The conflicted state subgraph of v2.1: all paths of auth events from one conflicted event to
//! another.
//!
//! A walk down from the conflicted events to the height of the lowest of them, then one pass
//! upwards over what it met, keeping what leads to a conflicted event.

use std::collections::BTreeSet;

use super::{
    AuthHeight, EventNumber,
    known::Known,
    limits::{Budget, Stop},
};

#[derive(Debug)]
pub(super) struct Subgraph {
    conflicted: BTreeSet<EventNumber>,
    met: BTreeSet<(AuthHeight, EventNumber)>,
    frontier: BTreeSet<EventNumber>,
}

impl Subgraph {
    pub(super) fn new(conflicted: &BTreeSet<EventNumber>) -> Self {
        Self {
            conflicted: conflicted.clone(),
            met: BTreeSet::new(),
            frontier: conflicted.clone(),
        }
    }

    pub(super) fn run(
        &mut self,
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<BTreeSet<EventNumber>, Stop> {
        known.require_links(self.conflicted.iter().copied())?;
        let heights = self
            .conflicted
            .iter()
            .filter_map(|number| known.links(*number));
        let lowest = heights.map(|links| links.height).min().unwrap_or_default();
        while !self.frontier.is_empty() {
            known.require_links(self.frontier.iter().copied())?;
            for number in std::mem::take(&mut self.frontier) {
                let Some(links) = known.links(number) else {
                    continue;
                };
                if !self.met.insert((links.height, number)) || links.height <= lowest {
                    continue;
                }
                budget.spend_steps(links.auth.len())?;
                self.frontier.extend(links.auth.iter().copied());
            }
        }
        let mut leading = BTreeSet::new();
        for (_, number) in &self.met {
            let Some(links) = known.links(*number) else {
                continue;
            };
            budget.spend_steps(links.auth.len())?;
            let leads = links.auth.iter().any(|auth| leading.contains(auth));
            if leads || self.conflicted.contains(number) {
                leading.insert(*number);
            }
        }
        Ok(leading)
    }
}
