//! The history: pages of events in the order of the graph, for /messages, /context, /relations.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use homeserver_storage::{Direction, Position, ScanRange};
use ruma::OwnedEventId;

use crate::{
    Rooms,
    error::RoomError,
    event::StoredEvent,
    numbers::EventNumber,
    room::Room,
    rows::GapRow,
    tables,
    token::{HistoryKey, HistoryToken, Place, Towards},
    visible::{Reader, Sights, VisibleEvent},
};

/// Events looked at for one page. A page that finds too little among so many ends early, with a
/// token to go on.
pub(crate) const LOOKED_AT_PER_PAGE: usize = 1000;

/// Rows passed over for one page because what they name was told by a timeline. A page that has to
/// pass over more ends early, with a token to go on.
const PASSED_PER_PAGE: usize = 50_000;

/// Rows read in one go while passing over.
const PASSED_AT_ONCE: usize = 1000;

/// Gaps of a room that are looked at, the newest ones.
const MAX_GAPS: usize = 1000;

/// Places of events over gaps, and whether something is missing there still.
pub(crate) type Gaps = BTreeMap<HistoryKey, bool>;

/// The greatest page.
pub const MAX_PAGE: usize = 1000;

/// A page of history.
#[derive(Clone, Debug)]
pub struct HistoryPage {
    /// In the order of reading.
    pub events: Vec<VisibleEvent>,
    /// Where to go on; `None` at the end of the room.
    pub next: Option<HistoryToken>,
    /// The page ends at events that this server does not have.
    pub at_gap: bool,
}

/// Events around one event.
#[derive(Clone, Debug)]
pub struct Context {
    /// The event in the middle.
    pub event: VisibleEvent,
    /// Before it, newest first.
    pub before: Vec<VisibleEvent>,
    /// After it, oldest first.
    pub after: Vec<VisibleEvent>,
    /// The place before all of them.
    pub start: HistoryToken,
    /// The place after all of them.
    pub end: HistoryToken,
}

/// Which events of a page are wanted.
pub type Wanted<'a> = &'a (dyn Fn(&VisibleEvent) -> bool + Send + Sync);

impl Rooms {
    /// A token for the place at `position` in the order of arrival.
    pub fn token_at(&self, position: Position) -> HistoryToken {
        HistoryToken::at_position(self.store.epoch(), position)
    }

    /// Reads a token that a client sends; refuses tokens of another database and of the future.
    pub fn parse_token(&self, text: &str) -> Result<HistoryToken, RoomError> {
        let token = HistoryToken::parse(text)?;
        if token.epoch != self.store.epoch() || token.bound > self.store.durable() {
            return Err(RoomError::InvalidToken);
        }
        Ok(token)
    }

    /// A page of up to `limit` events from a place. `from` absent means the newest (backwards) or
    /// the oldest (forwards) end. Nothing at or past `to` is shown.
    pub async fn history(
        &self,
        reader: &Reader,
        room: &Room,
        from: Option<HistoryToken>,
        (towards, limit): (Towards, usize),
        wanted: Wanted<'_>,
    ) -> Result<HistoryPage, RoomError> {
        let limit = limit.min(MAX_PAGE);
        let from = from.unwrap_or_else(|| match towards {
            Towards::Older => self.token_at(reader.position),
            Towards::Newer => HistoryToken {
                place: Place::Start,
                ..self.token_at(reader.position)
            },
        });
        if limit == 0 {
            return Ok(HistoryPage {
                events: Vec::new(),
                next: Some(from),
                at_gap: false,
            });
        }
        let mut page = Page {
            sights: Sights::new(self, room, reader).await?,
            wanted,
            limit,
            looked_at: 0,
            events: Vec::new(),
            next: None,
            at_gap: false,
        };
        match (towards, from.place) {
            (Towards::Newer, Place::Bound) => self.page_of_arrivals(room, from, &mut page).await?,
            _ => self.page_of_history(room, from, towards, &mut page).await?,
        }
        Ok(HistoryPage {
            events: page.events,
            next: page.next,
            at_gap: page.at_gap,
        })
    }

    /// Forwards from a bound: what arrived later, in that order.
    async fn page_of_arrivals(
        &self,
        room: &Room,
        from: HistoryToken,
        page: &mut Page<'_>,
    ) -> Result<(), RoomError> {
        let mut after = from.bound;
        loop {
            let wanted = page.rows_to_read();
            let upto = page.sights.position();
            let arrivals = self.arrivals(room.number, after, upto, wanted).await?;
            let numbers: Vec<_> = arrivals.iter().map(|arrival| arrival.event).collect();
            let events = self.events.load_all(room, &numbers).await?;
            for (arrival, event) in arrivals.iter().zip(events) {
                after = arrival.position;
                if page.take(event).await? {
                    page.next = Some(self.token_at(after));
                    return Ok(());
                }
            }
            if arrivals.len() < wanted {
                return Ok(());
            }
        }
    }

    async fn page_of_history(
        &self,
        room: &Room,
        from: HistoryToken,
        towards: Towards,
        page: &mut Page<'_>,
    ) -> Result<(), RoomError> {
        let gaps = match towards {
            Towards::Older => self.gaps_of(room).await?,
            Towards::Newer => Gaps::new(),
        };
        let mut place = match (towards, from.place) {
            (Towards::Older, Place::Bound) => self.below_bound(room, from.bound, &gaps).await?,
            (_, place) => place,
        };
        let is_open = |key: &HistoryKey| gaps.get(key).is_some_and(|open| *open);
        if let (Place::Bound, Place::Before(key)) = (from.place, place)
            && is_open(&key)
        {
            page.at_gap = true;
            page.next = Some(HistoryToken { place, ..from });
            return Ok(());
        }
        let mut passed = 0;
        let mut wanted = page.rows_to_read();
        // Backwards, what arrived after the bound was told by a timeline; its key says so.
        let told = |(key, _): &(HistoryKey, EventNumber)| {
            towards == Towards::Older && key.live && key.tie > from.bound
        };
        loop {
            let mut rows = self.history_rows(room, place, towards, wanted).await?;
            let is_last = rows.len() < wanted;
            wanted = page.rows_to_read();
            // Nothing is read over a gap, also where what is above it was told.
            let end = rows.iter().position(|(key, _)| is_open(key));
            rows.truncate(end.map_or(rows.len(), |end| end + 1));
            let is_last = is_last && end.is_none();
            if let Some((last, _)) = rows.last()
                && rows.iter().all(told)
            {
                place = Place::Before(*last);
                if end.is_some() {
                    page.at_gap = true;
                    page.next = Some(HistoryToken { place, ..from });
                    return Ok(());
                }
                passed += rows.len();
                if passed >= PASSED_PER_PAGE && !is_last {
                    page.next = Some(HistoryToken { place, ..from });
                    return Ok(());
                }
                wanted = PASSED_AT_ONCE;
            }
            rows.retain(|row| !told(row));
            let numbers: Vec<_> = rows.iter().map(|(_, number)| *number).collect();
            let events = self.events.load_all(room, &numbers).await?;
            for ((key, _), event) in rows.iter().zip(events) {
                let gap = is_open(key);
                place = match towards {
                    Towards::Older => Place::Before(*key),
                    Towards::Newer => Place::After(*key),
                };
                let full = page.take(event).await?;
                if full || gap {
                    page.at_gap = gap;
                    page.next = Some(HistoryToken { place, ..from });
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// The gaps of a room, and whether they are open.
    pub(crate) async fn gaps_of(&self, room: &Room) -> Result<Gaps, RoomError> {
        let range = ScanRange::prefix(&room.number.0);
        let scan = self
            .store
            .scan(&tables::GAPS, range, Direction::Backward, MAX_GAPS);
        let gap = |((_, height, live, tie), row): ((u64, u64, u8, u64), GapRow)| {
            let live = live == 1;
            (HistoryKey { height, live, tie }, !row.missing.is_empty())
        };
        Ok(scan.await?.into_iter().map(gap).collect())
    }

    /// The events that are missing at gaps of a room: what is here follows them.
    pub(crate) async fn followed_over_gaps(
        &self,
        room: &Room,
    ) -> Result<HashSet<OwnedEventId>, RoomError> {
        let range = ScanRange::prefix(&room.number.0);
        let scan = self
            .store
            .scan(&tables::GAPS, range, Direction::Backward, MAX_GAPS);
        let rows = scan.await?.into_iter();
        Ok(rows.flat_map(|(_, row): (_, GapRow)| row.missing).collect())
    }

    /// The place above everything that had arrived at a bound, and below most of what came later:
    /// only what was added to older branches since has to be passed over, and what is above the
    /// gaps that were left since: what is fetched into those never arrived.
    pub(crate) async fn below_bound(
        &self,
        room: &Room,
        bound: Position,
        gaps: &Gaps,
    ) -> Result<Place, RoomError> {
        let range = ScanRange::prefix(&room.number.0).upto(&(room.number.0, bound));
        let backward = Direction::Backward;
        let scan = self.store.scan(&tables::ARRIVALS, range, backward, 1);
        // Without any arrival there is only what was fetched as history.
        let last = scan.await?.into_iter().next();
        let Some((_, arrival)) = last else {
            return Ok(Place::Bound);
        };
        let above = HistoryKey {
            height: arrival.highest + 1,
            live: false,
            tie: 0,
        };
        let newest_gap = gaps.keys().next_back().copied();
        Ok(Place::Before(
            newest_gap.map_or(above, |gap| gap.max(above)),
        ))
    }

    /// Rows of the history index beyond a place.
    pub(crate) async fn history_rows(
        &self,
        room: &Room,
        place: Place,
        towards: Towards,
        limit: usize,
    ) -> Result<Vec<(HistoryKey, EventNumber)>, RoomError> {
        let number = room.number.0;
        let full = |key: HistoryKey| (number, key.height, u8::from(key.live), key.tie);
        let all = ScanRange::prefix(&number);
        let (range, direction) = match (towards, place) {
            (Towards::Older, Place::Start) => return Ok(Vec::new()),
            (Towards::Older, Place::Bound) => (all, Direction::Backward),
            (Towards::Older, Place::Before(key)) => (all.before(&full(key)), Direction::Backward),
            (Towards::Older, Place::After(key)) => (all.upto(&full(key)), Direction::Backward),
            (Towards::Newer, Place::Start | Place::Bound) => (all, Direction::Forward),
            (Towards::Newer, Place::Before(key)) => (all.from(&full(key)), Direction::Forward),
            (Towards::Newer, Place::After(key)) => (all.after(&full(key)), Direction::Forward),
        };
        let rows = self
            .store
            .scan(&tables::HISTORY, range, direction, limit)
            .await?;
        let row = |((_, height, live, tie), event): ((u64, u64, u8, u64), u64)| {
            let live = live == 1;
            (HistoryKey { height, live, tie }, EventNumber(event))
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Whether previous events of this one are missing still.
    pub(crate) async fn has_gap(&self, event: &StoredEvent) -> Result<bool, RoomError> {
        if !event.over_gap {
            return Ok(false);
        }
        let key = event.history_key();
        let row = (event.room.0, key.height, u8::from(key.live), key.tie);
        let row = self.store.get(&tables::GAPS, &row).await?;
        Ok(row.is_some_and(|row| !row.missing.is_empty()))
    }

    /// The events around one that `reader` may see, up to `limit` in all.
    pub async fn context(
        &self,
        reader: &Reader,
        room: &Room,
        event: VisibleEvent,
        limit: usize,
        wanted: Wanted<'_>,
    ) -> Result<Context, RoomError> {
        let key = event.history_key();
        let at = |place| HistoryToken {
            place,
            ..self.token_at(reader.position)
        };
        let half = limit.min(MAX_PAGE) / 2;
        let (older, newer) = (at(Place::Before(key)), at(Place::After(key)));
        let before = self
            .history(
                reader,
                room,
                Some(older),
                (Towards::Older, limit.min(MAX_PAGE) - half),
                wanted,
            )
            .await?;
        let after = self
            .history(reader, room, Some(newer), (Towards::Newer, half), wanted)
            .await?;
        let start = before.next.unwrap_or(at(Place::Start));
        let newest = after.events.last().map_or(key, VisibleEvent::history_key);
        let end = after.next.unwrap_or(at(Place::After(newest)));
        Ok(Context {
            event,
            before: before.events,
            after: after.events,
            start,
            end,
        })
    }
}

struct Page<'a> {
    sights: Sights<'a>,
    wanted: Wanted<'a>,
    limit: usize,
    looked_at: usize,
    events: Vec<VisibleEvent>,
    next: Option<HistoryToken>,
    at_gap: bool,
}

impl Page<'_> {
    /// How many rows to read next.
    fn rows_to_read(&self) -> usize {
        (self.limit - self.events.len()).clamp(10, 200)
    }

    /// Takes an event if it may be seen and is wanted. Gives whether the page ends after it.
    async fn take(&mut self, event: Arc<StoredEvent>) -> Result<bool, RoomError> {
        self.looked_at += 1;
        if let Some(visible) = self.sights.check(event).await?
            && (self.wanted)(&visible)
        {
            self.events.push(visible);
        }
        Ok(self.events.len() >= self.limit || self.looked_at >= LOOKED_AT_PER_PAGE)
    }
}
