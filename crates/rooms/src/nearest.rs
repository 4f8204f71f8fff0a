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
    /// The newest place around there below which events are missing, of which one may be nearer.
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
            gap: None,
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
        look.gap = None;
        let mut near = look.some(low, Towards::Older, LOOKED_AROUND).await?;
        near.reverse();
        near.extend(look.some(low, Towards::Newer, LOOKED_AROUND).await?);
        let nearest = nearest_of(near.iter().map(|event| time_of(event)), time, towards);
        let event = nearest.and_then(|at| near.get(at)).map(|event| Nearest {
            event_id: event.pdu.event_id().to_owned(),
            time: time_of(event),
        });
        let gap = look.gap.map(|key| HistoryToken {
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
    /// The newest event that was passed and has previous events that are missing.
    gap: Option<HistoryKey>,
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
                    self.gap = self.gap.max(Some(event.history_key()));
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
