//! Running ahead: bringing the links of events that are likely to be asked for next.
//!
//! An auth chain is followed one generation at a time, and each takes a round. So after each round
//! of a walk twice as many generations come along as in the round before: a chain of any length
//! takes few rounds, and what comes along for nothing stays in proportion to what is needed.

use std::collections::HashSet;

use super::{
    EventNumber,
    known::{Links, Need},
};

/// Generations that come along at most.
pub const MAX_GENERATIONS: usize = 1_024;

/// Links that come along with one answer, at most.
pub const MAX_LINKS_AHEAD: usize = 4_096;

/// Which links to load for a [`Need`]: first those that it names, then some below them.
#[derive(Debug)]
pub struct Ahead {
    generations: usize,
    room: usize,
    seen: HashSet<EventNumber>,
}

impl Ahead {
    /// For a need, with those that it names.
    pub fn of(need: &Need) -> (Self, Vec<EventNumber>) {
        let ahead = Self {
            generations: need.generations,
            room: MAX_LINKS_AHEAD,
            seen: need.links.clone().into_iter().collect(),
        };
        (ahead, need.links.iter().copied().collect())
    }

    /// After these were loaded, what to load next; nothing at the end.
    pub fn below(&mut self, loaded: &[Links]) -> Vec<EventNumber> {
        if self.generations == 0 {
            return Vec::new();
        }
        self.generations -= 1;
        let auth = loaded.iter().flat_map(|links| links.auth.iter().copied());
        let mut next: Vec<_> = auth.filter(|number| self.seen.insert(*number)).collect();
        next.truncate(self.room);
        self.room -= next.len();
        next
    }
}
