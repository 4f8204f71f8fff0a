//! The timeline: events of a room in the order they arrived, as /sync tells them.

use homeserver_storage::{Direction, Position, ScanRange};

use crate::{
    Rooms,
    error::RoomError,
    numbers::{EventNumber, RoomNumber},
    room::Room,
    rows::ArrivalRow,
    tables,
    visible::{Reader, Sights, VisibleEvent},
};

/// Arrivals looked at for one slice. Where a reader may see so few of so many, the slice ends and
/// says that it is limited.
const ARRIVALS_LOOKED_AT: usize = 1000;

/// Arrivals read from the index in one go, beside the limit of the slice.
const ARRIVALS_AT_ONCE: usize = 20;

/// The newest events of a span, and where they begin.
#[derive(Clone, Debug, Default)]
pub struct TimelineSlice {
    /// Oldest first.
    pub events: Vec<VisibleEvent>,
    /// Something between `after` and the first event was left out.
    pub limited: bool,
    /// The first event arrived after this position, and nothing that the reader may see lies
    /// between. The bound of `prev_batch`.
    pub start: Position,
}

/// An arrival: what happened in a room and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The position.
    pub position: Position,
    /// The event.
    pub event: EventNumber,
}

impl Rooms {
    /// The newest `limit` events that arrived in (`after`, the reader's position] and that `reader`
    /// may see and `wanted` accepts. A slice never reaches over a gap in the history: it is cut
    /// there and limited.
    pub async fn timeline(
        &self,
        reader: &Reader,
        room: &Room,
        after: Position,
        limit: usize,
        wanted: &(dyn Fn(&VisibleEvent) -> bool + Send + Sync),
    ) -> Result<TimelineSlice, RoomError> {
        let mut sights = Sights::new(self, room, reader).await?;
        let mut slice = TimelineSlice {
            events: Vec::new(),
            limited: false,
            start: after,
        };
        let mut before = reader.position + 1;
        let mut looked_at = 0;
        'pages: loop {
            let page = (limit + ARRIVALS_AT_ONCE).min(ARRIVALS_LOOKED_AT);
            let arrivals = self
                .arrivals_before(room.number, after, before, page)
                .await?;
            let last_page = arrivals.len() < page;
            let numbers: Vec<_> = arrivals.iter().map(|arrival| arrival.event).collect();
            let events = self.events.load_all(room, &numbers).await?;
            for (arrival, event) in arrivals.iter().zip(events) {
                looked_at += 1;
                // Also of one that was filled since: what is in it never arrived.
                let gap = event.over_gap;
                let visible = sights.check(event).await?;
                if let Some(visible) = visible.filter(|event| wanted(event)) {
                    if slice.events.len() == limit {
                        slice.limited = true;
                        slice.start = arrival.position;
                        break 'pages;
                    }
                    slice.events.push(visible);
                }
                if gap || looked_at >= ARRIVALS_LOOKED_AT {
                    slice.limited = true;
                    slice.start = arrival.position - 1;
                    break 'pages;
                }
                before = arrival.position;
            }
            if last_page {
                break;
            }
        }
        slice.events.reverse();
        Ok(slice)
    }

    /// Arrivals in (`after`, `before`), newest first.
    async fn arrivals_before(
        &self,
        room: RoomNumber,
        after: Position,
        before: Position,
        limit: usize,
    ) -> Result<Vec<Arrival>, RoomError> {
        let range = ScanRange::prefix(&room.0)
            .after(&(room.0, after))
            .before(&(room.0, before));
        let rows = self
            .store
            .scan(&tables::ARRIVALS, range, Direction::Backward, limit)
            .await?;
        let arrival = |((_, position), row): (_, ArrivalRow)| Arrival {
            position,
            event: row.event,
        };
        Ok(rows.into_iter().map(arrival).collect())
    }

    /// Arrivals of a room in (`after`, `upto`], oldest first: what readers of the whole server walk
    /// (push, counts, search). Not for showing; see [`Rooms::visible`].
    pub async fn arrivals(
        &self,
        room: RoomNumber,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<Arrival>, RoomError> {
        let range = ScanRange::prefix(&room.0)
            .after(&(room.0, after))
            .upto(&(room.0, upto));
        let rows = self
            .store
            .scan(&tables::ARRIVALS, range, Direction::Forward, limit)
            .await?;
        let arrival = |((_, position), row): (_, ArrivalRow)| Arrival {
            position,
            event: row.event,
        };
        Ok(rows.into_iter().map(arrival).collect())
    }

    /// The position of the last arrival in a room at or before `upto`.
    pub async fn last_arrival(
        &self,
        room: RoomNumber,
        upto: Position,
    ) -> Result<Option<Arrival>, RoomError> {
        let arrivals = self.arrivals_before(room, 0, upto + 1, 1).await?;
        Ok(arrivals.into_iter().next())
    }
}
