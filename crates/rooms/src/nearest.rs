//! The event nearest to a time, among those that a user or a server may see.
//!
//! There is no index of times: the clocks of senders are not in the order of history. They nearly
//! are, though, so the place is found by halving the history and then looking around there.
//!
//! Specification: Client-Server API, "Jumping to an event by its time"; Server-Server API,
//! `timestamp_to_event`.

use std::sync::Arc;

use ruma::OwnedEventId;

use crate::{
    Rooms,
    error::RoomError,
    event::StoredEvent,
    room::Room,
    serving::{ServerSights, ServerVisit, Shown},
    token::{HistoryKey, HistoryToken, Place, Towards},
    visible::{Reader, Sights},
};

/// Events looked at on either side of the place found, among which clocks may disagree.
const LOOKED_AROUND: usize = 50;

/// Events that may not be seen are passed over, so many in a row at most.
const PASSED: usize = 1000;

/// Rows read in one go.
const ROWS: usize = 60;

/// The event nearest to a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Its id.
    pub event_id: OwnedEventId,
    /// Its time.
    pub time: u64,
}

/// What was found near a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Near {
    /// The nearest event in the direction that was asked for.
    pub event: Option<Nearest>,
    /// The place below which events are missing of which one may be nearer.
    pub gap: Option<HistoryToken>,
}

/// Whose sight decides.
enum Eyes<'a> {
    User(Sights<'a>),
    Server(ServerSights<'a>),
}

impl Eyes<'_> {
    async fn see(&mut self, event: &Arc<StoredEvent>) -> Result<bool, RoomError> {
        match self {
            Self::User(sights) => Ok(sights.check(Arc::clone(event)).await?.is_some()),
            Self::Server(sights) => {
                let shown = event.status.is_shown();
                Ok(shown && sights.of(event).await? == Shown::Whole)
            }
        }
    }
}

impl Rooms {
    /// What is nearest to `time`, in milliseconds, among what a reader may see: at or after it
    /// (`Newer`), or at or before it (`Older`).
    pub async fn nearest(
        &self,
        reader: &Reader,
        room: &Room,
        time: u64,
        towards: Towards,
    ) -> Result<Near, RoomError> {
        let eyes = Eyes::User(Sights::new(self, room, reader).await?);
        self.nearest_seen(room, eyes, (time, towards)).await
    }

    /// The same for another server.
    pub async fn serve_nearest(
        &self,
        visit: &ServerVisit,
        time: u64,
        towards: Towards,
    ) -> Result<Near, RoomError> {
        let eyes = Eyes::Server(visit.sights(self).await?);
        self.nearest_seen(visit.room(), eyes, (time, towards)).await
    }

    async fn nearest_seen(
        &self,
        room: &Room,
        eyes: Eyes<'_>,
        (time, towards): (u64, Towards),
    ) -> Result<Near, RoomError> {
        let newest = self.history_rows(room, Place::Bound, Towards::Older, 1);
        let Some((newest, _)) = newest.await?.pop() else {
            return Ok(Near::default());
        };
        let mut look = Look {
            rooms: self,
            room,
            eyes,
            gaps: Vec::new(),
        };
        let (mut low, mut high) = (0, newest.height + 1);
        // The first height whose event is not before the time lies in low..=high.
        while low < high {
            let middle = low + (high - low) / 2;
            let found = look.some(middle, Towards::Newer, 1).await?;
            // Nothing to see from here on for long: a time before the reader's.
            let is_early = found.first().is_none_or(|event| time_of(event) < time);
            if is_early {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        look.gaps.clear();
        let mut near = look.some(low, Towards::Older, LOOKED_AROUND).await?;
        near.reverse();
        near.extend(look.some(low, Towards::Newer, LOOKED_AROUND).await?);
        let nearest = nearest_of(near.iter().map(|event| time_of(event)), time, towards);
        let event = nearest.and_then(|at| near.get(at)).map(|event| Nearest {
            event_id: event.pdu.event_id().to_owned(),
            time: time_of(event),
        });
        let seen: Vec<_> = near
            .iter()
            .map(|event| (event.history_key(), time_of(event)))
            .collect();
        let gap = gap_beside(&look.gaps, &seen, (nearest, time), towards);
        let gap = gap.map(|key| HistoryToken {
            place: Place::Before(key),
            ..self.token_at(self.durable())
        });
        Ok(Near { event, gap })
    }
}

struct Look<'a> {
    rooms: &'a Rooms,
    room: &'a Room,
    eyes: Eyes<'a>,
    /// Events that were passed and have previous events that are missing.
    gaps: Vec<HistoryKey>,
}

impl Look<'_> {
    /// Up to `wanted` events that may be seen, from a height on.
    async fn some(
        &mut self,
        height: u64,
        towards: Towards,
        wanted: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let first = HistoryKey {
            height,
            live: false,
            tie: 0,
        };
        let (mut place, mut passed, mut found) = (Place::Before(first), 0, Vec::new());
        while passed < PASSED {
            let rows = self.rooms.history_rows(self.room, place, towards, ROWS);
            let rows = rows.await?;
            let is_last = rows.len() < ROWS;
            let numbers: Vec<_> = rows.iter().map(|(_, number)| *number).collect();
            let events = self.rooms.events.find_all(self.room, &numbers).await?;
            for event in events.into_iter().flatten() {
                passed += 1;
                if self.rooms.has_gap(&event).await? {
                    self.gaps.push(event.history_key());
                }
                if self.eyes.see(&event).await? {
                    found.push(event);
                }
                if found.len() == wanted {
                    return Ok(found);
                }
            }
            match rows.last() {
                Some((last, _)) if !is_last => {
                    place = match towards {
                        Towards::Older => Place::Before(*last),
                        Towards::Newer => Place::After(*last),
                    };
                }
                _ => break,
            }
        }
        Ok(found)
    }
}

fn time_of(event: &StoredEvent) -> u64 {
    event.pdu.origin_server_ts()
}

/// Of the events below which others are missing the one below which a nearer one may be, given the
/// events that may be seen, the oldest first, and which of them is the nearest.
fn gap_beside(
    gaps: &[HistoryKey],
    seen: &[(HistoryKey, u64)],
    (nearest, time): (Option<usize>, u64),
    towards: Towards,
) -> Option<HistoryKey> {
    let nearest = nearest.and_then(|at| seen.get(at)).map(|(key, _)| *key);
    let gaps = gaps.iter().copied();
    match towards {
        Towards::Newer => {
            let nearest = nearest?;
            let gap = gaps.filter(|gap| *gap <= nearest).max()?;
            // What is missing is older than all from there on.
            let between =
                |(key, at): &(HistoryKey, u64)| (gap..nearest).contains(key) && *at < time;
            (!seen.iter().any(between)).then_some(gap)
        }
        Towards::Older => {
            let above = |key: HistoryKey| nearest.is_none_or(|nearest| key > nearest);
            let gap = gaps.filter(|gap| above(*gap)).min()?;
            let between = |(key, _): &(HistoryKey, u64)| above(*key) && *key < gap;
            (!seen.iter().any(between)).then_some(gap)
        }
    }
}

/// The index of the nearest time in the direction; of equally near ones the first one met when
/// going that way.
fn nearest_of(times: impl Iterator<Item = u64>, time: u64, towards: Towards) -> Option<usize> {
    let fits = times.enumerate().filter(|(_, at)| match towards {
        Towards::Newer => *at >= time,
        Towards::Older => *at <= time,
    });
    let nearest = match towards {
        Towards::Newer => fits.min_by_key(|(index, at)| (at.abs_diff(time), *index)),
        Towards::Older => {
            fits.min_by_key(|(index, at)| (at.abs_diff(time), std::cmp::Reverse(*index)))
        }
    };
    nearest.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_where_what_is_missing_may_be_nearer() {
        let key = |height| HistoryKey {
            height,
            live: true,
            tie: height,
        };
        let seen = [
            (key(10), 100),
            (key(20), 200),
            (key(21), 210),
            (key(30), 300),
        ];
        let cases: [(Towards, u64, &[u64], Option<u64>); 9] = [
            // Below the nearest, and nothing between them is too old.
            (Towards::Newer, 150, &[20], Some(20)),
            (Towards::Newer, 205, &[20], None),
            (Towards::Newer, 205, &[21, 10], Some(21)),
            (Towards::Newer, 50, &[10, 30], Some(10)),
            (Towards::Newer, 400, &[10, 20, 30], None),
            // Above the nearest, right beside it.
            (Towards::Older, 150, &[20], Some(20)),
            (Towards::Older, 150, &[10, 30], None),
            (Towards::Older, 250, &[30, 20], Some(30)),
            (Towards::Older, 50, &[30, 10], Some(10)),
        ];
        for (towards, time, gaps, expected) in cases {
            let gaps: Vec<_> = gaps.iter().copied().map(key).collect();
            let nearest = nearest_of(seen.iter().map(|(_, at)| *at), time, towards);
            let found = gap_beside(&gaps, &seen, (nearest, time), towards);
            assert_eq!(found, expected.map(key), "{towards:?} {time} {gaps:?}");
        }
    }

    #[test]
    fn the_nearest_time_in_the_direction_is_chosen() {
        let times = [10, 30, 20, 40, 40];
        let cases = [
            (Towards::Newer, 5, Some(0)),
            (Towards::Newer, 11, Some(2)),
            (Towards::Newer, 30, Some(1)),
            (Towards::Newer, 35, Some(3)),
            (Towards::Newer, 41, None),
            (Towards::Older, 5, None),
            (Towards::Older, 10, Some(0)),
            (Towards::Older, 29, Some(2)),
            (Towards::Older, 99, Some(4)),
        ];
        for (towards, time, expected) in cases {
            let found = nearest_of(times.into_iter(), time, towards);
            assert_eq!(found, expected, "{towards:?} {time}");
        }
    }
}
