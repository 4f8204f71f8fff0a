//! Fetching history: what is missing below an event that was received over a gap, when somebody
//! pages back to it.
//!
//! One gap of a room is filled at a time; who pages to it in the meantime waits for that and has the
//! benefit. What a server gives leads down from the gap or is of no use; the state before the lowest
//! of it is collected from the same server, so that everything is judged and shown by the state of
//! its own time.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use homeserver_events::Pdu;
use homeserver_rooms::{Gap as Hole, HistoryToken, MAX_BACKFILL, Room, RoomError, RoomNumber};
use parking_lot::Mutex;
use ruma::{EventId, ServerName};
use tokio::time::timeout;

use super::{
    Inbound,
    gap::{Gap, GapError},
};

/// How long whoever pages waits for what is missing.
const PATIENCE: Duration = Duration::from_secs(20);
/// Answers that are asked for at one place: what leads down from there may not fit into one.
const MAX_ROUNDS: usize = 4;
/// Times that what is here is looked through for what is missing below it, for one answer.
const MAX_LOOKS: usize = 10;
/// Events below which nothing is known, of one answer, whose states are asked for.
const MAX_ENDS: usize = 5;

/// One filler in each room at a time.
#[derive(Debug, Default)]
pub(super) struct Fillers {
    rooms: Mutex<HashMap<RoomNumber, Arc<tokio::sync::Mutex<()>>>>,
}

impl Fillers {
    fn of(&self, room: RoomNumber) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.rooms.lock().entry(room).or_default())
    }

    /// Forgets a room in which nobody fills or waits.
    fn leave(&self, room: RoomNumber, filler: Arc<tokio::sync::Mutex<()>>) {
        let mut rooms = self.rooms.lock();
        drop(filler);
        if rooms
            .get(&room)
            .is_some_and(|one| Arc::strong_count(one) == 1)
        {
            rooms.remove(&room);
        }
    }
}

impl Inbound {
    /// Fetches what is missing right below the place of a token. Gives whether there is more to read
    /// there now; there is not where nobody gave anything in time.
    ///
    /// # Errors
    /// When the room cannot be read or written.
    pub async fn backfill(
        &self,
        room: &Arc<Room>,
        place: &HistoryToken,
    ) -> Result<bool, RoomError> {
        self.alone(room, self.fill_below(room, place)).await
    }

    /// Does something about what is missing in a room while nobody else does, if that is done in
    /// time.
    pub(super) async fn alone(
        &self,
        room: &Arc<Room>,
        filling: impl Future<Output = Result<bool, RoomError>>,
    ) -> Result<bool, RoomError> {
        let fillers = &self.inner.fillers;
        let filler = fillers.of(room.number);
        let filled = timeout(PATIENCE, async {
            // The state of the past is known by that of the join.
            self.inner.parts.rooms.until_whole(room.number).await;
            let _alone = filler.lock().await;
            filling.await
        });
        let filled = filled.await;
        fillers.leave(room.number, filler);
        filled.unwrap_or(Ok(false))
    }

    /// Fills until nothing is missing there, or nothing more is given.
    async fn fill_below(&self, room: &Arc<Room>, place: &HistoryToken) -> Result<bool, RoomError> {
        let rooms = &self.inner.parts.rooms;
        for round in 0..MAX_ROUNDS {
            if !self.fill_once(room, place).await? {
                return Ok(round > 0);
            }
            if rooms.gap_at(room, place).await?.is_none() {
                break;
            }
        }
        Ok(true)
    }

    /// The gap, without what came in the meantime and with what is missing below that.
    async fn still_missing(
        &self,
        room: &Arc<Room>,
        place: &HistoryToken,
        mut hole: Hole,
    ) -> Result<Option<Hole>, RoomError> {
        let rooms = &self.inner.parts.rooms;
        for _ in 0..MAX_LOOKS {
            let here = rooms.backfill(room, &hole, Vec::new(), Vec::new()).await?;
            if here.closed {
                return Ok(None);
            }
            let Some(next) = rooms.gap_at(room, place).await? else {
                return Ok(None);
            };
            if next == hole {
                break;
            }
            hole = next;
        }
        Ok(Some(hole))
    }

    async fn fill_once(&self, room: &Arc<Room>, place: &HistoryToken) -> Result<bool, RoomError> {
        let rooms = &self.inner.parts.rooms;
        let Some(hole) = rooms.gap_at(room, place).await? else {
            return Ok(true);
        };
        let Some(hole) = self.still_missing(room, place, hole).await? else {
            return Ok(true);
        };
        let first = [hole.sender.server_name().to_owned()];
        let servers = self.inner.servers_for(room, &first, 0).await?;
        let filling = Gap::new(&self.inner, room, servers.clone());
        for server in &servers {
            match fill_from(&filling, server, (&hole, None)).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(GapError::Room(error)) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, %server, room = %room.id, "history was not given");
                }
            }
        }
        Ok(false)
    }
}

/// Fills a gap with what one server gives, from its top or from another event below it. Gives whether
/// anything came of it.
pub(super) async fn fill_from(
    filling: &Gap<'_>,
    server: &ServerName,
    (hole, top): (&Hole, Option<&EventId>),
) -> Result<bool, GapError> {
    let rooms = filling.rooms();
    let fetcher = filling.fetcher();
    let apart = top.map(|top| [top.to_owned()]);
    let from = apart.as_ref().map_or(&hole.missing[..], |top| &top[..]);
    let asked = fetcher.backfill(server, filling.of(), from, MAX_BACKFILL);
    let mut events = asked.await.map_err(|error| {
        tracing::debug!(%error, %server, "no history");
        GapError::NotGiven("history")
    })?;
    events.truncate(MAX_BACKFILL);
    let given: HashSet<_> = events.iter().map(|pdu| pdu.event_id().to_owned()).collect();
    let auth: Vec<_> = events.iter().flat_map(Pdu::auth_events).cloned().collect();
    let mut lacking = rooms.missing_of(filling.room(), &auth).await?;
    lacking.retain(|id| !given.contains(id));
    if !lacking.is_empty() {
        // What lacks them still is left out.
        if let Err(error) = filling.one_by_one(&lacking).await {
            tracing::debug!(%error, %server, "auth events of the history are lacking");
        }
    }
    let mut states = Vec::new();
    for end in ends(filling, &events).await? {
        // History is judged by a part of a state, too: that rejects nothing.
        match filling.told_before(end).await {
            Ok(told) => states.push((end.event_id().to_owned(), told.state)),
            Err(GapError::Room(error)) => return Err(error.into()),
            Err(error) => tracing::debug!(%error, event = %end.event_id(), "no state"),
        }
    }
    let (room, given) = (filling.room(), (events.clone(), states));
    let filled = match top {
        Some(top) => rooms.backfill_apart(room, hole, top, given).await?,
        None => rooms.backfill(room, hole, given.0, given.1).await?,
    };
    Ok(filled.taken > 0)
}

/// The events of which no previous one is here or among them, the lowest first.
async fn ends<'e>(filling: &Gap<'_>, events: &'e [Pdu]) -> Result<Vec<&'e Pdu>, GapError> {
    let given: HashSet<&EventId> = events.iter().map(Pdu::event_id).collect();
    let mut ends = Vec::new();
    for event in events {
        let prev = event.prev_events();
        if prev.is_empty() || prev.iter().any(|id| given.contains(&**id)) {
            continue;
        }
        let unplaced = filling.rooms().unplaced_of(filling.room(), prev).await?;
        if unplaced.len() == prev.len() {
            ends.push(event);
        }
    }
    ends.sort_by_key(|event| event.depth());
    ends.truncate(MAX_ENDS);
    Ok(ends)
}
