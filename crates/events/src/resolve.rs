//! State resolution: which of several states of a room holds, after a fork.
//!
//! [`Resolution`] is a state machine. It is given only the part of the states that differs
//! ([`Conflict`]) and asks for what else it needs, a batch at a time: [`Resolution::step`] answers
//! [`Step::Need`] until it has [`Step::Done`], [`Step::OverLimit`] or [`Step::Missing`]. What it
//! may load and how long it may work is bounded by [`Limits`]; nothing is ever decided on less than
//! the whole answer.
//!
//! It implements the algorithms of room version 1 (`v1`), of versions 2–11 (`v2`) and of version 12
//! (`v2.1`). Where the specification leaves room, or servers have agreed on something else, it does
//! what existing servers do, because agreeing is the purpose:
//!
//! - The auth chain of a state counts the events of that state as part of it.
//! - A power event brings along those events of its auth chain that it reaches *through* the full
//!   conflicted set.
//! - `m.room.create` counts as a power event.
//! - v1: members are resolved key by key, none seeing the outcome of another; if no event of a key
//!   passes, the one with the least depth stays; a key that some state lacks is no conflict.
//!
//! What this is not: it does not load anything, does not know state trees, and does not decide what
//! happens to an event whose resolution went over a limit.
//!
//! Specification: room versions 1, 2 and 12, "State resolution".

mod ahead;
mod checks;
mod conflict;
mod difference;
mod judge;
mod keyed;
mod known;
mod limits;
mod mainline;
mod power;
mod subgraph;
mod v1;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use self::{
    ahead::{Ahead, MAX_GENERATIONS, MAX_LINKS_AHEAD},
    conflict::{Conflict, split},
    known::{Above, Answer, Links, LoadedEvent, Need},
    limits::{
        Limit, Limits, MAX_EVENT_BYTES, MAX_EVENTS, MAX_LINKS, MAX_STATES, MAX_STEPS,
        UNCONFLICTED_CHUNK,
    },
};
use self::{
    checks::{Base, PartialState},
    difference::Difference,
    known::Known,
    limits::{Budget, Stop},
    mainline::Mainline,
    subgraph::Subgraph,
};
use crate::rules::{Rules, StateResolution};

/// The number by which the caller knows an event. It orders nothing.
pub type EventNumber = u64;

/// Event type and state key.
pub type StateKey = (String, String);

/// 1 + the greatest height of an event's auth events; 0 if it has none. An event is always higher
/// than the events of its auth chain.
pub type AuthHeight = u64;

/// What [`Resolution::step`] answers.
#[derive(Debug)]
pub enum Step {
    /// Call again with this.
    Need(Need),
    /// The value of every key on which the states do not agree; such a key that is not here has no
    /// value. There may also be keys that none of the states has, from events of their auth chains.
    /// Everything else stays as it is in all of them.
    Done(BTreeMap<StateKey, EventNumber>),
    /// A bound was reached. Nothing may be concluded.
    OverLimit(Limit),
    /// These were asked for and not supplied: the caller's data is broken.
    Missing(Need),
}

/// A resolution under way.
#[derive(Debug)]
pub struct Resolution {
    rules: &'static Rules,
    conflict: Conflict,
    known: Known,
    budget: Budget,
    phase: Phase,
}

/// Where the algorithm stands. Each phase can be run again after more was loaded.
#[derive(Debug)]
enum Phase {
    Version1,
    Difference(Box<Difference>),
    Subgraph {
        difference: BTreeSet<EventNumber>,
        subgraph: Subgraph,
    },
    PowerEvents {
        conflicted: BTreeSet<EventNumber>,
    },
    PowerChecks {
        conflicted: BTreeSet<EventNumber>,
        sorted: Vec<EventNumber>,
        state: PartialState,
    },
    PowerLevels {
        remaining: Vec<EventNumber>,
        state: PartialState,
    },
    Mainline {
        remaining: Vec<EventNumber>,
        mainline: Box<Mainline>,
        state: PartialState,
    },
    Checks {
        sorted: Vec<EventNumber>,
        state: PartialState,
    },
    Settle {
        state: PartialState,
    },
}

impl Resolution {
    /// Prepares to resolve `conflict` in a room with these rules, whose create event is `create`.
    pub fn new(
        rules: &'static Rules,
        create: EventNumber,
        conflict: Conflict,
        limits: Limits,
    ) -> Self {
        let phase = match rules.resolution {
            StateResolution::V1 => Phase::Version1,
            StateResolution::V2 | StateResolution::V2_1 => {
                Phase::Difference(Box::new(Difference::new(&conflict)))
            }
        };
        let known = Known::new(create);
        Self {
            rules,
            conflict,
            known,
            budget: Budget::new(limits),
            phase,
        }
    }

    /// Goes on with what the last [`Step::Need`] asked for; the first call brings nothing.
    ///
    /// After anything but [`Step::Need`] the resolution is over and must not be stepped again.
    pub fn step(&mut self, answer: Answer) -> Step {
        if let Err(stop) = self.known.take(answer, &mut self.budget) {
            return self.stopped(stop);
        }
        if let Some(missing) = self.known.still_missing() {
            return Step::Missing(missing);
        }
        if self.conflict.is_empty() {
            return Step::Done(BTreeMap::new());
        }
        if self.conflict.states() > MAX_STATES {
            return Step::OverLimit(Limit::States);
        }
        loop {
            match self.advance() {
                Ok(Some(done)) => return Step::Done(done),
                Ok(None) => {}
                Err(stop) => return self.stopped(stop),
            }
        }
    }

    fn stopped(&mut self, stop: Stop) -> Step {
        match stop {
            Stop::Need => Step::Need(self.known.ask(self.budget.has_spare_links())),
            Stop::Over(limit) => Step::OverLimit(limit),
        }
    }

    /// Runs the current phase to its end and enters the next.
    fn advance(&mut self) -> Result<Option<BTreeMap<StateKey, EventNumber>>, Stop> {
        let Self {
            rules,
            conflict,
            known,
            budget,
            phase,
        } = self;
        known.require_events([known.create()])?;
        let next = match phase {
            Phase::Version1 => return v1::resolve(rules, conflict, known, budget).map(Some),
            Phase::Difference(difference) => {
                let found = difference.run(known, budget)?;
                match rules.resolution {
                    StateResolution::V2_1 => Phase::Subgraph {
                        difference: found,
                        subgraph: Subgraph::new(conflict.events()),
                    },
                    _ => Phase::PowerEvents {
                        conflicted: &found | conflict.events(),
                    },
                }
            }
            Phase::Subgraph {
                difference,
                subgraph,
            } => {
                let found = subgraph.run(known, budget)?;
                Phase::PowerEvents {
                    conflicted: &(&found | difference) | conflict.events(),
                }
            }
            Phase::PowerEvents { conflicted } => {
                let base = match rules.resolution {
                    StateResolution::V2_1 => Base::Empty,
                    _ => Base::Unconflicted,
                };
                Phase::PowerChecks {
                    sorted: power::sort(rules, conflicted, known, budget)?,
                    conflicted: std::mem::take(conflicted),
                    state: PartialState::new(base),
                }
            }
            Phase::PowerChecks {
                conflicted,
                sorted,
                state,
            } => {
                checks::apply(rules, sorted, state, known, budget)?;
                for number in sorted {
                    conflicted.remove(number);
                }
                Phase::PowerLevels {
                    remaining: conflicted.iter().copied().collect(),
                    state: state.take(),
                }
            }
            Phase::PowerLevels { remaining, state } => {
                let levels = state.power_levels(known)?;
                Phase::Mainline {
                    remaining: std::mem::take(remaining),
                    mainline: Box::new(Mainline::new(levels)),
                    state: state.take(),
                }
            }
            Phase::Mainline {
                remaining,
                mainline,
                state,
            } => Phase::Checks {
                sorted: mainline.sort(remaining, known, budget)?,
                state: state.take(),
            },
            Phase::Checks { sorted, state } => {
                checks::apply(rules, sorted, state, known, budget)?;
                Phase::Settle {
                    state: state.take(),
                }
            }
            Phase::Settle { state } => return state.settle(conflict, known).map(Some),
        };
        *phase = next;
        known.begin();
        Ok(None)
    }
}
