//! The mainline ordering.
//!
//! The mainline, the chain of power levels events behind the resolved one, is followed only as far
//! down as the events to be sorted require, and by links alone: its events are not loaded.

use std::{cmp::Reverse, collections::HashMap};

use super::{
    AuthHeight, EventNumber,
    known::Known,
    limits::{Budget, Stop},
};

#[derive(Debug)]
pub(super) struct Mainline {
    /// The mainline as far as it was followed, newest first.
    line: Vec<EventNumber>,
    has_ended: bool,
    /// Positions of the events that cite these power levels events: those on the mainline, and all
    /// that were met on the way to it.
    positions: HashMap<EventNumber, Position>,
}

/// A mainline position; `None` is the specification's ∞.
type Position = Option<usize>;

impl Mainline {
    /// The mainline of this power levels event.
    pub(super) fn new(power_levels: Option<EventNumber>) -> Self {
        let first = power_levels.into_iter();
        Self {
            line: first.clone().collect(),
            has_ended: power_levels.is_none(),
            positions: first.map(|number| (number, Some(0))).collect(),
        }
    }

    /// Sorts events, which are loaded with their auth events, by the mainline ordering.
    pub(super) fn sort(
        &mut self,
        events: &[EventNumber],
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<Vec<EventNumber>, Stop> {
        let mut cited = Vec::with_capacity(events.len());
        for number in events {
            let levels = known.cited_power_levels(*number)?;
            if let Some(levels) = levels
                && !self.positions.contains_key(&levels)
            {
                self.find(levels, known, budget)?;
            }
            cited.push(levels);
        }
        let mut ranked = Vec::with_capacity(events.len());
        for (number, levels) in events.iter().zip(cited) {
            budget.spend_steps(1)?;
            let Some(loaded) = known.event(*number) else {
                continue;
            };
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
        ranked.sort_unstable();
        Ok(ranked.into_iter().map(|(.., number)| number).collect())
    }

    /// Finds the mainline position of events that cite this power levels event, and notes it for
    /// all that lie between it and the mainline.
    fn find(
        &mut self,
        levels: EventNumber,
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<(), Stop> {
        let mut way = Vec::new();
        let mut current = Some(levels);
        let mut position = None;
        while let Some(number) = current {
            budget.spend_steps(1)?;
            known.require_links([number])?;
            let height = known.links(number).map_or(0, |links| links.height);
            self.follow_down_to(height, known, budget)?;
            if let Some(found) = self.positions.get(&number) {
                position = *found;
                break;
            }
            way.push(number);
            if self.ends_above(height, known) {
                break;
            }
            current = known.cited_power_levels(number)?;
        }
        let noted = way.into_iter().map(|number| (number, position));
        self.positions.extend(noted);
        Ok(())
    }

    /// Follows the mainline until it is no higher than `height`.
    fn follow_down_to(
        &mut self,
        height: AuthHeight,
        known: &mut Known,
        budget: &mut Budget,
    ) -> Result<(), Stop> {
        while let (false, Some(&last)) = (self.has_ended, self.line.last()) {
            known.require_links([last])?;
            if known.links(last).is_none_or(|links| links.height <= height) {
                break;
            }
            budget.spend_steps(1)?;
            match known.cited_power_levels(last)? {
                Some(next) => {
                    self.positions.insert(next, Some(self.line.len()));
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
