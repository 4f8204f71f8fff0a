//! Rooms of partial state: joined through a server that left out most members.
//!
//! Such a room is here, and may be read and written in, before its whole state is. What is judged in
//! it meanwhile is marked `partial` and listed; when the state is whole (see `whole`), all of it is
//! judged again, in order.
//!
//! A membership that the state lacks is unknown, not absent. Where an event's own auth events show
//! it, and the state has nothing under that key, it becomes part of the state before the event: that
//! is what the event's server went by. So whoever has spoken is known from then on.
//!
//! Which servers are in the room cannot be read from its members either; what the other server said
//! about that is kept, and our events go there.
//!
//! Specification: server-server API, `send_join` (`members_omitted`, `servers_in_room`).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use homeserver_storage::{
    AppendRef, At, Batch, Direction, Position, Positioned, ScanRange, StorageError, Store,
};
use parking_lot::Mutex;
use ruma::{OwnedEventId, OwnedServerName, ServerName, UserId};
use tokio::sync::watch;

use crate::{
    Rooms,
    delta::RoomDelta,
    edit::RoomEdit,
    error::RoomError,
    event::StoredEvent,
    members::MEMBER,
    numbers::{EventNumber, RoomNumber},
    room::Room,
    rows::{PartialRow, PartialStage, ServersRow},
    tables,
    tree::StateRoot,
    visible::content_text,
};

/// Servers that may be told to be in a room of partial state: what else there is, the whole state
/// tells.
pub const MAX_PARTIAL_SERVERS: usize = 5000;

/// Servers of one row: as many as surely fit into a value.
const SERVERS_A_ROW: usize = 400;

/// What is known of a room that was taken in with partial state.
#[derive(Clone, Debug)]
pub(crate) struct PartialRoom {
    /// The join that it was taken in with.
    pub(crate) join: EventNumber,
    /// Where that arrived.
    pub(crate) since: Position,
    /// Where its state became whole.
    pub(crate) whole: Option<Position>,
    /// Its servers are known by its members, also of the time before.
    settled: bool,
    /// Who is said to be in it, until then.
    servers: Arc<[OwnedServerName]>,
}

/// The rooms that were taken in with partial state, also those that are whole by now.
pub(crate) struct Partials {
    rooms: Mutex<HashMap<RoomNumber, PartialRoom>>,
    changed: watch::Sender<()>,
}

impl Partials {
    /// Those of a store.
    pub(crate) async fn load(store: &Store) -> Result<Self, StorageError> {
        let (all, forward) = (ScanRange::all, Direction::Forward);
        let found = store.scan(&tables::PARTIAL_ROOMS, all(), forward, usize::MAX);
        let mut rooms = HashMap::new();
        for (number, row) in found.await? {
            let whole = store.get(&tables::MADE_WHOLE, &number).await?;
            let range = ScanRange::prefix(&number);
            let told = store.scan(&tables::PARTIAL_SERVERS, range, forward, usize::MAX);
            let told = told.await?.into_iter();
            let servers = told.flat_map(|(_, row)| row.servers).collect();
            let room = PartialRoom {
                join: row.value.join,
                since: known(row.position),
                whole: whole.map(known),
                settled: row.value.stage == PartialStage::Whole,
                servers,
            };
            rooms.insert(RoomNumber(number), room);
        }
        Ok(Self {
            rooms: Mutex::new(rooms),
            changed: watch::Sender::default(),
        })
    }

    /// A room was taken in, with partial state or with all of it.
    pub(crate) fn arrived(
        &self,
        room: RoomNumber,
        since: Position,
        partial: Option<(EventNumber, Vec<OwnedServerName>)>,
    ) {
        let mut rooms = self.rooms.lock();
        match partial {
            Some((join, servers)) => {
                let partial = PartialRoom {
                    join,
                    since,
                    whole: None,
                    settled: false,
                    servers: servers.into(),
                };
                rooms.insert(room, partial);
            }
            None => {
                rooms.remove(&room);
            }
        }
        drop(rooms);
        self.changed.send_replace(());
    }

    /// The state of a room is whole from this position on.
    pub(crate) fn whole(&self, room: RoomNumber, at: Position) {
        if let Some(partial) = self.rooms.lock().get_mut(&room) {
            partial.whole = Some(at);
        }
        self.changed.send_replace(());
    }

    /// The members of a room say which servers are in it.
    pub(crate) fn settled(&self, room: RoomNumber) {
        if let Some(partial) = self.rooms.lock().get_mut(&room) {
            partial.settled = true;
            partial.servers = Arc::default();
        }
        self.changed.send_replace(());
    }

    pub(crate) fn get(&self, room: RoomNumber) -> Option<PartialRoom> {
        self.rooms.lock().get(&room).cloned()
    }

    fn holds(&self, room: RoomNumber, what: impl Fn(&PartialRoom) -> bool) -> bool {
        self.rooms.lock().get(&room).is_some_and(what)
    }
}

/// A position of a row that was read.
fn known(at: At) -> Position {
    match at {
        At::Known(position) => position,
        At::Append(_) => 0,
    }
}

impl Rooms {
    /// Whether only part of the room's state is here.
    pub fn is_partial(&self, room: RoomNumber) -> bool {
        self.partials.holds(room, |room| room.whole.is_none())
    }

    /// Whether only part of the room's state was here at a position.
    pub fn was_partial_at(&self, room: RoomNumber, at: Position) -> bool {
        self.partials.holds(room, |room| {
            room.since <= at && room.whole.is_none_or(|whole| at < whole)
        })
    }

    /// Where the room's state became whole, if that was in (`after`, `upto`].
    pub fn made_whole_in(
        &self,
        room: RoomNumber,
        (after, upto): (Position, Position),
    ) -> Option<Position> {
        let whole = self.partials.get(room)?.whole?;
        (after < whole && whole <= upto).then_some(whole)
    }

    /// The first position, from this one on, at which the whole state of the room is known; the same
    /// if it is not known yet.
    pub fn whole_from(&self, room: RoomNumber, at: Position) -> Position {
        let partial = self.partials.get(room);
        let partial = partial.filter(|room| room.since <= at);
        partial
            .and_then(|room| room.whole)
            .map_or(at, |whole| at.max(whole))
    }

    /// The rooms of which only part of the state is here.
    pub fn partial_rooms(&self) -> Vec<RoomNumber> {
        let rooms = self.partials.rooms.lock();
        let partial = rooms.iter().filter(|(_, room)| room.whole.is_none());
        let mut numbers: Vec<_> = partial.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Resolves when the whole state of the room is here.
    pub async fn until_whole(&self, room: RoomNumber) {
        let mut changed = self.partials.changed.subscribe();
        while self.is_partial(room) {
            // The sender is a field of these very rooms, so waiting cannot fail.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The join with which a room of partial state was taken in.
    pub async fn partial_join(&self, room: &Room) -> Result<Option<OwnedEventId>, RoomError> {
        let partial = self.partials.get(room.number);
        let Some(partial) = partial.filter(|room| room.whole.is_none()) else {
            return Ok(None);
        };
        let join = self.events.load(room, partial.join).await?;
        Ok(Some(join.pdu.event_id().to_owned()))
    }

    /// Whether everybody may join the room.
    pub async fn is_public(&self, room: &Room) -> Result<bool, RoomError> {
        let root = self.state_at(room.number, self.durable()).await?.root;
        let rules = self.state_event(room, root, "m.room.join_rules", "");
        let rule = rules
            .await?
            .and_then(|event| content_text(&event, "join_rule"));
        Ok(rule.as_deref() == Some("public"))
    }

    /// The servers that are said to be in a room of partial state, first the one that says so, at
    /// most `limit`.
    pub fn said_to_be_in(&self, room: RoomNumber, limit: usize) -> Vec<OwnedServerName> {
        let told = self.told_servers(room);
        told.iter().take(limit).cloned().collect()
    }

    /// Whether the membership of a user is known: always, but in rooms of partial state.
    pub async fn knows_member(&self, room: &Room, user: &UserId) -> Result<bool, RoomError> {
        if !self.is_partial(room.number) {
            return Ok(true);
        }
        let root = self.state_at(room.number, self.durable()).await?.root;
        let key = self.state_value(room, root, MEMBER, user.as_str());
        Ok(key.await?.is_some())
    }

    /// Whether the members of a room do not tell all its servers, now or of the time before.
    pub(crate) fn is_unsettled(&self, room: RoomNumber) -> bool {
        self.partials.holds(room, |room| !room.settled)
    }

    /// The servers that are said to be in a room of partial state.
    pub(crate) fn told_servers(&self, room: RoomNumber) -> Arc<[OwnedServerName]> {
        let rooms = self.partials.rooms.lock();
        rooms
            .get(&room)
            .map_or_else(Arc::default, |room| Arc::clone(&room.servers))
    }

    /// Whether a server is said to be in a room of partial state.
    pub(crate) fn is_told(&self, room: RoomNumber, server: &ServerName) -> bool {
        self.partials
            .holds(room, |room| room.servers.iter().any(|told| told == server))
    }

    /// Adds to the batch of an arrival that the room is partial from then on, or that it is not.
    pub(crate) fn write_partial(
        &self,
        batch: &mut Batch,
        (delta, append): (&RoomDelta, AppendRef),
        servers: Option<&[OwnedServerName]>,
    ) -> Result<Option<(EventNumber, Vec<OwnedServerName>)>, RoomError> {
        let room = delta.room.number;
        let Some(servers) = servers else {
            if self.partials.get(room).is_some() {
                // It was left before it was whole, and is taken in anew.
                batch.delete(&tables::PARTIAL_ROOMS, &room.0);
                batch.delete(&tables::MADE_WHOLE, &room.0);
                self.forget_told(batch, room);
            }
            return Ok(None);
        };
        let seen = delta.seen.as_ref();
        if seen.is_some_and(|seen| !seen.extremities.is_empty()) {
            let why = "a room that is here is not taken in with part of its state";
            return Err(RoomError::forbidden(why));
        }
        let join = delta.appended.first().map(|join| join.event.number);
        let join = join.ok_or_else(|| RoomError::damaged("an arrival without a join"))?;
        let row = PartialRow {
            join,
            stage: PartialStage::Partial,
        };
        let row = Positioned::new(At::Append(append), row);
        batch.put(&tables::PARTIAL_ROOMS, &room.0, &row);
        let servers: Vec<_> = servers.iter().take(MAX_PARTIAL_SERVERS).cloned().collect();
        for (ordinal, some) in (0_u64..).zip(servers.chunks(SERVERS_A_ROW)) {
            let servers = some.to_vec();
            let key = (room.0, ordinal);
            batch.put(&tables::PARTIAL_SERVERS, &key, &ServersRow { servers });
        }
        Ok(Some((join, servers)))
    }

    /// Deletes the rows of what was told about the servers of a room.
    pub(crate) fn forget_told(&self, batch: &mut Batch, room: RoomNumber) {
        let rows = self.told_servers(room).len().div_ceil(SERVERS_A_ROW);
        for ordinal in 0..rows as u64 {
            batch.delete(&tables::PARTIAL_SERVERS, &(room.0, ordinal));
        }
    }
}

impl RoomEdit<'_> {
    /// The state before the join with which a room of partial state was taken in.
    pub(crate) async fn state_before_join(&self) -> Result<Option<StateRoot>, RoomError> {
        let join = self.partial_join().await?;
        Ok(join.map(|join| join.before()))
    }

    /// The same, if these are the events that the join follows: that is the state after them.
    pub(crate) async fn state_at_join(
        &self,
        prev: &[OwnedEventId],
    ) -> Result<Option<StateRoot>, RoomError> {
        let Some(join) = self.partial_join().await? else {
            return Ok(None);
        };
        let named: HashSet<_> = join.pdu.prev_events().iter().collect();
        let same = prev.iter().collect::<HashSet<_>>() == named;
        Ok(same.then(|| join.before()))
    }

    /// The join with which a room of partial state was taken in.
    async fn partial_join(&self) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let partial = self.rooms.partials.get(self.room().number);
        match partial.filter(|room| room.whole.is_none()) {
            Some(partial) => self.event(partial.join).await.map(Some),
            None => Ok(None),
        }
    }

    /// In a room of partial state, a state with the members that an event's auth events show and
    /// that the state has nothing about.
    pub(crate) async fn with_known_members(
        &mut self,
        root: StateRoot,
        auth: &[Arc<StoredEvent>],
    ) -> Result<StateRoot, RoomError> {
        if !self.is_partial() {
            return Ok(root);
        }
        let unknown = self.members_unknown_in(root, auth).await?;
        if unknown.is_empty() {
            return Ok(root);
        }
        let unknown: Vec<_> = unknown.iter().map(|event| &**event).collect();
        self.edit_state(root, &unknown).await
    }

    /// The member events among these under whose keys a state has nothing.
    pub(crate) async fn members_unknown_in(
        &self,
        root: StateRoot,
        auth: &[Arc<StoredEvent>],
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let mut unknown: Vec<Arc<StoredEvent>> = Vec::new();
        for event in auth.iter().filter(|event| !event.status.is_rejected()) {
            let Some((MEMBER, user)) = event.pdu.state_pair() else {
                continue;
            };
            let is_twin = |other: &Arc<StoredEvent>| other.is_state(MEMBER, user);
            if !unknown.iter().any(is_twin) && self.state_in(root, MEMBER, user).await?.is_none() {
                unknown.push(Arc::clone(event));
            }
        }
        Ok(unknown)
    }
}
