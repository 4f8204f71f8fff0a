//! The mainline ordering.
//!
//! The mainline, the chain of power levels events behind the resolved one, is followed only as far
//! down as the events to be sorted require.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use super::{
    AuthHeight, EventNumber, judge,
    known::Known,
    limits::{Budget, Stop},
};

#[derive(Debug)]
pub(super) struct Mainline {
    /// The mainline as far as it was followed, newest first.
    line: Vec<EventNumber>,
    index: HashMap<EventNumber, usize>,
    has_ended: bool,
    /// Positions of events by the power levels event that they cite.
    positions: HashMap<EventNumber, Position>,
}

/// A mainline position; `None` is the specification's ∞.
type Position = Option<usize>;

impl Mainline {
    /// The mainline of this power levels event.
    pub(super) fn new(power_levels: Option<EventNumber>) -> Self {
        Self {
            line: power_levels.into_iter().collect(),
            index: power_levels.into_iter().map(|number| (number, 0)).collect(),
            has_ended: power_levels.is_none(),
            positions: HashMap::new(),
        }
    }

    /// Sorts events by the mainline ordering.
    pub(super) fn sort(
        &mut self,
        events: &[EventNumber],
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<Vec<EventNumber>, Stop> {
        known.require_with_auth(events.iter().copied())?;
        let cited: BTreeSet<_> = events
            .iter()
            .filter_map(|number| cited_power_levels(*number, known))
            .collect();
        for levels in cited {
            if !self.positions.contains_key(&levels) {
                let position = self.position(levels, known, budget)?;
                self.positions.insert(levels, position);
            }
        }
        let mut ranked = Vec::with_capacity(events.len());
        for number in events {
            budget.spend_steps(1)?;
            let Some(loaded) = known.event(*number) else {
                continue;
            };
            let levels = cited_power_levels(*number, known);
            let position = levels.and_then(|levels| self.positions.get(&levels).copied().flatten());
            let place = position.unwrap_or(usize::MAX);
            let event = &loaded.event;
            ranked.push((
                Reverse(place),
                event.origin_server_ts(),
                event.event_id(),
                *number,
            ));
        }
        ranked.sort();
        Ok(ranked.into_iter().map(|(.., number)| number).collect())
    }

    /// The mainline position of an event that cites this power levels event.
    fn position(
        &mut self,
        levels: EventNumber,
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<Position, Stop> {
        let mut current = levels;
        loop {
            budget.spend_steps(1)?;
            known.require_with_auth([current])?;
            let height = known.links(current).map_or(0, |links| links.height);
            self.follow_down_to(height, known, budget)?;
            if let Some(position) = self.index.get(&current) {
                return Ok(Some(*position));
            }
            if self.ends_above(height, known) {
                return Ok(None);
            }
            match cited_power_levels(current, known) {
                Some(next) => current = next,
                None => return Ok(None),
            }
        }
    }

    /// Follows the mainline until it is no higher than `height`.
    fn follow_down_to(
        &mut self,
        height: AuthHeight,
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<(), Stop> {
        while let (false, Some(&last)) = (self.has_ended, self.line.last()) {
            known.require_with_auth([last])?;
            if known.links(last).is_none_or(|links| links.height <= height) {
                break;
            }
            budget.spend_steps(1)?;
            match cited_power_levels(last, known) {
                Some(next) => {
                    self.index.insert(next, self.line.len());
                    self.line.push(next);
                }
                None => self.has_ended = true,
            }
        }
        Ok(())
    }

    /// Whether no event this low can be on the mainline.
    fn ends_above(&self, height: AuthHeight, known: &Known) -> bool {
        let end = self.line.last().and_then(|last| known.links(*last));
        self.has_ended && end.is_none_or(|end| end.height > height)
    }
}

/// The power levels event among the auth events of an event.
fn cited_power_levels(number: EventNumber, known: &Known) -> Option<EventNumber> {
    let mut auth = known.auth_of(number);
    let levels = auth.find(|auth| judge::is_power_levels(&auth.event))?;
    Some(levels.links.number)
}
