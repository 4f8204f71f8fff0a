//! Relations: which events relate to one, and the threads of a room.

use homeserver_storage::{Direction, Position, ScanRange};
use ruma::UserId;

use crate::{
    Rooms,
    error::RoomError,
    numbers::{EventNumber, RoomNumber},
    room::Room,
    rows::RelationRow,
    tables::{RELATIONS, THREAD_LOG},
    token::{HistoryKey, HistoryToken, Place, Towards},
    visible::{Reader, Sights, VisibleEvent},
};

/// Rows of an index looked at for one answer.
const LOOKED_AT: usize = 1000;

/// Rows read in one go.
const AT_ONCE: usize = 200;

/// Which relations are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelationFilter<'a> {
    /// Only of this `rel_type`.
    pub rel_type: Option<&'a str>,
    /// Only events of this type.
    pub event_type: Option<&'a str>,
}

/// A page of relations.
#[derive(Clone, Debug)]
pub struct RelationPage {
    /// In the order of reading.
    pub events: Vec<VisibleEvent>,
    /// Where to go on; `None` at the end.
    pub next: Option<HistoryToken>,
}

/// A thread, by its latest event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The event the thread starts from.
    pub root: EventNumber,
    /// Where its latest event arrived. Pages go on before this.
    pub latest: Position,
}

impl Rooms {
    /// Events that relate to `target` and that `reader` may see.
    pub async fn relations(
        &self,
        reader: &Reader,
        room: &Room,
        target: EventNumber,
        filter: RelationFilter<'_>,
        (from, towards, limit): (Option<HistoryToken>, Towards, usize),
    ) -> Result<RelationPage, RoomError> {
        let mut sights = Sights::new(self, room, reader).await?;
        let mut place = from.map_or(Place::Bound, |from| from.place);
        if from.is_none() && towards == Towards::Newer {
            place = Place::Start;
        }
        let mut page = RelationPage {
            events: Vec::new(),
            next: None,
        };
        let mut looked_at = 0;
        loop {
            let index = (room.number.0, target.0, filter.rel_type.unwrap_or_default());
            let rows = self.relation_rows(index, place, towards).await?;
            let last_page = rows.len() < AT_ONCE;
            for (key, row) in rows {
                looked_at += 1;
                place = match towards {
                    Towards::Older => Place::Before(key),
                    Towards::Newer => Place::After(key),
                };
                if filter
                    .event_type
                    .is_none_or(|wanted| wanted == row.event_type)
                {
                    let event = self.events.load(room, row.event).await?;
                    page.events.extend(sights.check(event).await?);
                }
                if page.events.len() >= limit || looked_at >= LOOKED_AT {
                    page.next = Some(HistoryToken {
                        place,
                        ..self.token_at(reader.position)
                    });
                    return Ok(page);
                }
            }
            if last_page {
                return Ok(page);
            }
        }
    }

    async fn relation_rows(
        &self,
        (room, target, rel_type): (u64, u64, &str),
        place: Place,
        towards: Towards,
    ) -> Result<Vec<(HistoryKey, RelationRow)>, RoomError> {
        let all = ScanRange::prefix(&(room, target, rel_type));
        let full = |key: HistoryKey| {
            (
                room,
                target,
                rel_type,
                key.height,
                u8::from(key.live),
                key.tie,
            )
        };
        let range = match (towards, place) {
            (Towards::Older, Place::Start) => return Ok(Vec::new()),
            (_, Place::Start | Place::Bound) => all,
            (Towards::Older, Place::Before(key)) => all.before(&full(key)),
            (Towards::Older, Place::After(key)) => all.upto(&full(key)),
            (Towards::Newer, Place::Before(key)) => all.from(&full(key)),
            (Towards::Newer, Place::After(key)) => all.after(&full(key)),
        };
        let direction = match towards {
            Towards::Older => Direction::Backward,
            Towards::Newer => Direction::Forward,
        };
        let rows = self
            .store
            .scan(&RELATIONS, range, direction, AT_ONCE)
            .await?;
        let row = |((_, _, _, height, live, tie), row): (crate::rows::RelationKey, RelationRow)| {
            let live = live == 1;
            (HistoryKey { height, live, tie }, row)
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Whether `sender` has an annotation with this key on the target. Looks at the newest
    /// thousand annotations.
    pub(crate) async fn has_annotation(
        &self,
        room: RoomNumber,
        target: EventNumber,
        sender: &UserId,
        key: Option<&str>,
    ) -> Result<bool, RoomError> {
        let range = ScanRange::prefix(&(room.0, target.0, "m.annotation"));
        let rows = self
            .store
            .scan(&RELATIONS, range, Direction::Backward, LOOKED_AT)
            .await?;
        Ok(rows
            .iter()
            .any(|(_, row)| row.sender == sender && row.key.as_deref() == key))
    }

    /// How many events of a relation type relate to `target`, counted up to `limit`. Redacted
    /// events do not count.
    pub async fn count_relations(
        &self,
        room: RoomNumber,
        target: EventNumber,
        rel_type: &str,
        limit: usize,
    ) -> Result<usize, RoomError> {
        let range = ScanRange::prefix(&(room.0, target.0, rel_type));
        let rows = self
            .store
            .scan(&RELATIONS, range, Direction::Forward, limit)
            .await?;
        Ok(rows.len())
    }

    /// Threads with events up to the reader's position, the one with the latest event first, before
    /// `before`. Looks at the newest thousand events in threads.
    pub async fn threads(
        &self,
        room: RoomNumber,
        before: Position,
        limit: usize,
    ) -> Result<Vec<Thread>, RoomError> {
        let mut threads: Vec<Thread> = Vec::new();
        let mut before = before;
        let mut looked_at = 0;
        while looked_at < LOOKED_AT {
            let range = ScanRange::prefix(&room.0).before(&(room.0, before));
            let rows = self
                .store
                .scan(&THREAD_LOG, range, Direction::Backward, AT_ONCE)
                .await?;
            for ((_, latest), root) in &rows {
                before = *latest;
                let root = EventNumber(*root);
                if threads.iter().any(|thread| thread.root == root) {
                    continue;
                }
                if threads.len() == limit {
                    return Ok(threads);
                }
                threads.push(Thread {
                    root,
                    latest: *latest,
                });
            }
            looked_at += rows.len();
            if rows.len() < AT_ONCE {
                break;
            }
        }
        Ok(threads)
    }
}
