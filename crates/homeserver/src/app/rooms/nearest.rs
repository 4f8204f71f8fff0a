//! The event nearest to a time: `/timestamp_to_event`, answered from what this server has.
//!
//! There is no index of times: the clocks of senders are not in the order of history. They nearly
//! are, though, so the place is found by halving the history and then looking around there.
//!
//! Specification: client-server API, "Jumping to an event by its time".

use homeserver_rooms::{HistoryKey, HistoryToken, Place, Towards, VisibleEvent};
use ruma::{OwnedEventId, RoomId};

use super::read::{ReadError, RoomReads, Visit};
use crate::app::session::Session;

/// Events looked at on either side of the place found, among which clocks may disagree.
const LOOKED_AROUND: usize = 50;

impl RoomReads {
    /// The event nearest to `time` among those at or after it (`Newer`) or at or before it
    /// (`Older`), and its time. Times are in milliseconds.
    pub(crate) async fn nearest(
        &self,
        session: &Session,
        room: &RoomId,
        time: u64,
        towards: Towards,
    ) -> Result<(OwnedEventId, u64), ReadError> {
        let visit = self.enter(&session.user, room).await?;
        let newest = self.some(&visit, None, (Towards::Older, 1)).await?;
        let newest = newest.first().ok_or(ReadError::NothingNear)?;
        let (mut low, mut high) = (0, newest.history_key().height + 1);
        // The first height whose event is not before the time lies in low..=high.
        while low < high {
            let middle = low + (high - low) / 2;
            let place = self.at_height(&visit, middle);
            let found = self.some(&visit, Some(place), (Towards::Newer, 1)).await?;
            // Nothing to see from here on for long: a time before the reader's.
            let is_early = found.first().is_none_or(|event| time_of(event) < time);
            if is_early {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let place = self.at_height(&visit, low);
        let mut near = self
            .some(&visit, Some(place), (Towards::Older, LOOKED_AROUND))
            .await?;
        near.reverse();
        near.extend(
            self.some(&visit, Some(place), (Towards::Newer, LOOKED_AROUND))
                .await?,
        );
        let nearest = nearest_of(near.iter().map(time_of), time, towards);
        let event = nearest
            .and_then(|at| near.get(at))
            .ok_or(ReadError::NothingNear)?;
        Ok((event.pdu().event_id().to_owned(), time_of(event)))
    }

    fn at_height(&self, visit: &Visit, height: u64) -> HistoryToken {
        let first = HistoryKey {
            height,
            live: false,
            tie: 0,
        };
        HistoryToken {
            place: Place::Before(first),
            ..self.rooms.token_at(visit.reader.position)
        }
    }

    async fn some(
        &self,
        visit: &Visit,
        from: Option<HistoryToken>,
        span: (Towards, usize),
    ) -> Result<Vec<VisibleEvent>, ReadError> {
        let (reader, room) = (&visit.reader, &visit.room);
        let page = self
            .rooms
            .history(reader, room, from, span, &|_| true)
            .await?;
        Ok(page.events)
    }
}

fn time_of(event: &VisibleEvent) -> u64 {
    event.pdu().origin_server_ts()
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
