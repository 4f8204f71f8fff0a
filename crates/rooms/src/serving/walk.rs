//! Walks down the graph of a room for other servers: /backfill and `/get_missing_events`.

use std::{
    collections::{BinaryHeap, HashSet},
    sync::Arc,
};

use homeserver_events::Pdu;
use ruma::OwnedEventId;

use super::{
    ServerVisit,
    sights::{ServerSights, shown},
};
use crate::{Rooms, error::RoomError, event::StoredEvent, numbers::EventNumber};

/// Events of one answer to /backfill at most, whatever is asked for.
pub const MAX_BACKFILL_SERVED: usize = 100;

/// Events of one answer to `/get_missing_events` at most, whatever is asked for.
pub const MAX_MISSING_SERVED: usize = 50;

/// Events looked at for one answer: what is not served (rejected events) is walked over.
const LOOKED_AT: usize = 1000;

/// Events named by one question that are looked at.
const MAX_NAMED: usize = 100;

/// A question for missing events.
#[derive(Clone, Copy, Debug)]
pub struct MissingAsked<'a> {
    /// Events whose previous events are wanted.
    pub latest: &'a [OwnedEventId],
    /// Events that the server has: they and what is only below them is not wanted.
    pub earliest: &'a [OwnedEventId],
    /// Events of a lesser depth are not wanted.
    pub min_depth: u64,
    /// How many at most.
    pub limit: usize,
}

impl Rooms {
    /// These events and those before them, newest first.
    pub async fn serve_backfill(
        &self,
        visit: &ServerVisit,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Pdu>, RoomError> {
        let limit = limit.min(MAX_BACKFILL_SERVED);
        let mut walk = Walk::new(self, visit).await?;
        let mut next = BinaryHeap::new();
        for event in walk.named(from).await? {
            walk.meet(event, |event| next.push(ByHeight(event)));
        }
        if next.is_empty() {
            return Err(RoomError::UnknownEvent);
        }
        while let Some(ByHeight(event)) = next.pop() {
            if walk.served.len() >= limit || !walk.look() {
                break;
            }
            walk.serve(&event).await?;
            for before in walk.before(&event).await? {
                walk.meet(before, |event| next.push(ByHeight(event)));
            }
        }
        Ok(walk.served)
    }

    /// The events between two sets of events, breadth first from the latest ones, then sorted:
    /// oldest first.
    pub async fn serve_missing(
        &self,
        visit: &ServerVisit,
        asked: MissingAsked<'_>,
    ) -> Result<Vec<Pdu>, RoomError> {
        let limit = asked.limit.min(MAX_MISSING_SERVED);
        let mut walk = Walk::new(self, visit).await?;
        for event in walk.named(asked.earliest).await? {
            walk.met.insert(event.number);
        }
        let mut layer = Vec::new();
        for event in walk.named(asked.latest).await? {
            walk.meet(event, |event| layer.push(event));
        }
        let mut found = Vec::new();
        while !layer.is_empty() {
            let mut below = Vec::new();
            for event in std::mem::take(&mut layer) {
                for before in walk.before(&event).await? {
                    if before.pdu.depth() >= asked.min_depth {
                        walk.meet(before, |event| below.push(event));
                    }
                }
            }
            for event in &below {
                if walk.served.len() >= limit || !walk.look() {
                    break;
                }
                if walk.serve(event).await? {
                    found.push((event.height, event.number));
                }
            }
            if walk.served.len() >= limit || walk.looked_at >= LOOKED_AT {
                break;
            }
            layer = below;
        }
        let mut events: Vec<_> = found.into_iter().zip(walk.served).collect();
        events.sort_by_key(|(place, _)| *place);
        Ok(events.into_iter().map(|(_, event)| event).collect())
    }
}

/// A walk on its way.
struct Walk<'a> {
    rooms: &'a Rooms,
    visit: &'a ServerVisit,
    sights: ServerSights<'a>,
    met: HashSet<EventNumber>,
    looked_at: usize,
    served: Vec<Pdu>,
}

impl<'a> Walk<'a> {
    async fn new(rooms: &'a Rooms, visit: &'a ServerVisit) -> Result<Self, RoomError> {
        Ok(Self {
            rooms,
            visit,
            sights: visit.sights(rooms).await?,
            met: HashSet::new(),
            looked_at: 0,
            served: Vec::new(),
        })
    }

    /// Those of the named events that have a place in the graph.
    async fn named(&self, ids: &[OwnedEventId]) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut events = Vec::new();
        for id in ids.iter().take(MAX_NAMED) {
            match self.rooms.placed(&self.visit.room, id).await {
                Ok(event) => events.push(event),
                Err(RoomError::UnknownEvent | RoomError::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(events)
    }

    /// Takes an event that was not met before.
    fn meet(&mut self, event: Arc<StoredEvent>, take: impl FnOnce(Arc<StoredEvent>)) {
        if self.met.insert(event.number) {
            take(event);
        }
    }

    /// Counts an event that is looked at. Gives whether that is still allowed.
    fn look(&mut self) -> bool {
        self.looked_at += 1;
        self.looked_at <= LOOKED_AT
    }

    /// Serves an event as it is shown to the server. Gives whether it is.
    async fn serve(&mut self, event: &StoredEvent) -> Result<bool, RoomError> {
        let how = self.sights.of(event).await?;
        let served = shown(event, how);
        let is_served = served.is_some();
        self.served.extend(served);
        Ok(is_served)
    }

    /// The previous events of an event that are here and have a place. One that cannot be read
    /// costs only itself.
    async fn before(&self, event: &StoredEvent) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let room = &self.visit.room;
        let found = match self.rooms.events.find_all(room, &event.prev).await {
            Ok(found) => found,
            Err(error) if error.is_damage() => {
                let mut found = Vec::new();
                for number in &event.prev {
                    match self.rooms.events.find(room, *number).await {
                        Err(error) if error.is_damage() => {
                            tracing::warn!(%error, event = number.0, "an event cannot be read");
                        }
                        event => found.push(event?),
                    }
                }
                found
            }
            Err(error) => return Err(error),
        };
        let placed = found.into_iter().flatten();
        Ok(placed.filter(|event| event.is_placed()).collect())
    }
}

/// Events with the newest one as the greatest.
struct ByHeight(Arc<StoredEvent>);

impl ByHeight {
    fn key(&self) -> (u64, EventNumber) {
        (self.0.height, self.0.number)
    }
}

impl PartialEq for ByHeight {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByHeight {}

impl PartialOrd for ByHeight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByHeight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
