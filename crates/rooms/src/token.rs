//! Tokens of the room history: places between two events, and which events count at all.
//!
//! A token names a place in the history order (height, then tie) and a bound: events that arrived
//! after the bound are not part of what a backward reader pages through, so that the page before a
//! /sync timeline and the timeline itself neither overlap nor leave anything out. Clients treat a
//! token as opaque; ours are short ASCII texts that hold the database's epoch.

use std::fmt;

use homeserver_storage::Position;
use serde::{Deserialize, Serialize};

use crate::error::RoomError;

/// Where an event stands in the history of its room. Ordered as the history is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HistoryKey {
    /// One more than the greatest height of the previous events.
    pub height: u64,
    /// Whether it arrived live; backfilled events come before live ones of the same height.
    pub live: bool,
    /// Tells events of one height apart: the arrival position of live ones.
    pub tie: u64,
}

/// A place between two events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Before the first event of the room.
    Start,
    /// Right before this event.
    Before(HistoryKey),
    /// Right after this event.
    After(HistoryKey),
    /// After everything that arrived up to the bound, and before everything that arrived later.
    Bound,
}

/// A place in a room's history, for one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryToken {
    /// The database's epoch; a token of another one is refused.
    pub epoch: u64,
    /// Reading backwards sees events that arrived at or before this position, or never arrived.
    pub bound: Position,
    /// The place.
    pub place: Place,
}

/// Which way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Towards {
    /// From newer to older events, `dir=b`.
    Older,
    /// From older to newer events, `dir=f`.
    Newer,
}

impl HistoryToken {
    /// The place at `position` in the order of arrival: `prev_batch` of a timeline whose first
    /// event arrived at `position + 1` or later, or the place a sync token stands for.
    pub fn at_position(epoch: u64, position: Position) -> Self {
        Self {
            epoch,
            bound: position,
            place: Place::Bound,
        }
    }

    /// Reads a token made by `Display`.
    pub fn parse(text: &str) -> Result<Self, RoomError> {
        Self::parse_parts(text).ok_or(RoomError::InvalidToken)
    }

    fn parse_parts(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('h')?.split('_');
        let mut number = |radix| u64::from_str_radix(parts.next()?, radix).ok();
        let (epoch, bound) = (number(16)?, number(10)?);
        let kind = parts.next()?;
        let mut key = || {
            let mut number = || parts.next()?.parse().ok();
            let (height, live, tie) = (number()?, number()?, number()?);
            Some(HistoryKey {
                height,
                live: live == 1,
                tie,
            })
        };
        let place = match kind {
            "s" => Place::Start,
            "n" => Place::Bound,
            "b" => Place::Before(key()?),
            "a" => Place::After(key()?),
            _ => return None,
        };
        parts.next().is_none().then_some(Self {
            epoch,
            bound,
            place,
        })
    }
}

impl fmt::Display for HistoryToken {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "h{:x}_{}_", self.epoch, self.bound)?;
        let key = |to: &mut fmt::Formatter<'_>, kind, key: HistoryKey| {
            write!(
                to,
                "{kind}_{}_{}_{}",
                key.height,
                u8::from(key.live),
                key.tie
            )
        };
        match self.place {
            Place::Start => to.write_str("s"),
            Place::Bound => to.write_str("n"),
            Place::Before(at) => key(to, 'b', at),
            Place::After(at) => key(to, 'a', at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back() {
        let key = HistoryKey {
            height: 7,
            live: false,
            tie: u64::MAX,
        };
        for place in [
            Place::Start,
            Place::Bound,
            Place::Before(key),
            Place::After(key),
        ] {
            let token = HistoryToken {
                epoch: 0xfeed,
                bound: 12,
                place,
            };
            assert_eq!(HistoryToken::parse(&token.to_string()).unwrap(), token);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "h",
            "s12",
            "h1_2",
            "h1_2_x",
            "h1_2_b_1_1",
            "h1_2_n_4",
            "hzz_1_n",
            "h1_-2_n",
        ] {
            assert!(HistoryToken::parse(text).is_err(), "{text}");
        }
    }
}
