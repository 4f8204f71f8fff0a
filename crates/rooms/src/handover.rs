//! A room's state and the events that authorise it, as a server that joins is given them: in
//! pieces, so that a room of any size takes little memory.
//!
//! Specification: server-server API, `PUT /send_join`.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use homeserver_events::{Pdu, StatusKind};
use ruma::{EventId, OwnedServerName, UserId};

use crate::{
    Rooms, error::RoomError, event::StoredEvent, numbers::EventNumber, reads::HEROES, room::Room,
    rows::Membership, tables::SERVER_COUNTS, visible::membership_of,
};

/// Events of one piece.
const PIECE: usize = 100;

/// Events that a whole handover may have: a state, and all that ever authorised it. More than that
/// ends it with an error.
const MAX_EVENTS: usize = 2_000_000;

/// Members of whom the heroes are chosen.
const HERO_CANDIDATES: usize = 100;

/// Servers of a room that are listed at most.
const MAX_SERVERS: usize = 50_000;

/// The state before a join, read piece by piece: first all pieces of the state, then all of the
/// auth chain.
pub struct Handover {
    rooms: Arc<Rooms>,
    room: Arc<Room>,
    /// The join, as it is stored.
    pub event: Pdu,
    /// Whether membership events are left out of the state.
    pub members_omitted: bool,
    /// Servers that were in the room before.
    pub servers: Vec<OwnedServerName>,
    state: std::vec::IntoIter<EventNumber>,
    wanted: BTreeSet<EventNumber>,
    seen: HashSet<EventNumber>,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Handover")
            .field("room", &self.room.id)
            .field("event", &self.event)
            .finish_non_exhaustive()
    }
}

impl Rooms {
    /// What the server of a user who joined by this event is given. `None` if there is no such
    /// accepted event in the room. With `omit_members` the state holds of the members only those
    /// that a name for the room is made of, and the auth chain no event of the state.
    pub async fn handover(
        self: &Arc<Self>,
        room: &Arc<Room>,
        join: &EventId,
        omit_members: bool,
    ) -> Result<Option<Handover>, RoomError> {
        let Some(number) = self.events.number(room.number, join).await? else {
            return Ok(None);
        };
        let Some(event) = self.events.find(room, number).await? else {
            return Ok(None);
        };
        if event.status.kind() != StatusKind::Accepted || !event.is_placed() {
            return Ok(None);
        }
        let root = event.before();
        let mut state: Vec<EventNumber> = if omit_members {
            let members = self.states.place("m.room.member", "");
            let pending = crate::states::PendingNodes::new();
            let rest = self
                .states
                .except(room.number, &pending, root, members)
                .await?;
            rest.into_iter().map(|item| item.event).collect()
        } else {
            let all = self.states.all(room.number, root).await?;
            all.into_iter().map(|item| item.event).collect()
        };
        let mut servers = Vec::new();
        if omit_members {
            state.extend(self.nameless_heroes(room, &event).await?);
            servers = self.servers_before(room, &event).await?;
        }
        let mut seen = HashSet::new();
        if omit_members {
            seen.extend(state.iter().copied());
        }
        let mut handover = Handover {
            rooms: Arc::clone(self),
            room: Arc::clone(room),
            event: event.pdu.clone(),
            members_omitted: omit_members,
            servers,
            state: state.into_iter(),
            wanted: BTreeSet::new(),
            seen,
        };
        handover.want(&event);
        Ok(Some(handover))
    }

    /// The servers in the room now, without one that came with this very join.
    async fn servers_before(
        &self,
        room: &Room,
        join: &StoredEvent,
    ) -> Result<Vec<OwnedServerName>, RoomError> {
        let mut servers = self.servers(room.number, MAX_SERVERS).await?;
        let origin = join.pdu.sender().server_name();
        let key = (room.number.0, origin.as_str());
        let counted = self.store.get(&SERVER_COUNTS, &key).await?;
        if counted.is_none_or(|joined| !joined.changed(-1).present()) {
            servers.retain(|server| server != origin);
        }
        Ok(servers)
    }

    /// The members whom a room is named after that has no name: they are not left out.
    async fn nameless_heroes(
        &self,
        room: &Room,
        join: &StoredEvent,
    ) -> Result<Vec<EventNumber>, RoomError> {
        let root = join.before();
        for named in ["m.room.name", "m.room.canonical_alias"] {
            if self.state_value(room, root, named, "").await?.is_some() {
                return Ok(Vec::new());
            }
        }
        let members = self
            .some_of_type(room, root, "m.room.member", HERO_CANDIDATES)
            .await?;
        let mut heroes = Vec::new();
        for (key, number) in members {
            if heroes.len() == HEROES {
                break;
            }
            let is_user = UserId::parse(key.state_key()).is_ok();
            if !is_user || key.state_key() == join.pdu.sender().as_str() {
                continue;
            }
            let event = self.events.load(room, number).await?;
            if matches!(
                membership_of(&event),
                Some(Membership::Join | Membership::Invite)
            ) {
                heroes.push(number);
            }
        }
        Ok(heroes)
    }
}

impl Handover {
    /// The next events of the state; none when there are no more.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn state(&mut self) -> Result<Vec<Pdu>, RoomError> {
        let numbers: Vec<_> = self.state.by_ref().take(PIECE).collect();
        self.load(&numbers).await
    }

    /// The next events of the auth chain, after all of the state was read; none when there are no
    /// more.
    ///
    /// # Errors
    /// When they cannot be read, and when there are too many.
    pub async fn auth_chain(&mut self) -> Result<Vec<Pdu>, RoomError> {
        if self.seen.len() > MAX_EVENTS {
            return Err(RoomError::Unresolved("events in an auth chain".to_owned()));
        }
        let mut numbers = Vec::with_capacity(PIECE);
        while numbers.len() < PIECE
            && let Some(number) = self.wanted.pop_last()
        {
            numbers.push(number);
        }
        self.load(&numbers).await
    }

    async fn load(&mut self, numbers: &[EventNumber]) -> Result<Vec<Pdu>, RoomError> {
        let (rooms, room) = (Arc::clone(&self.rooms), Arc::clone(&self.room));
        let events = rooms.events.load_all(&room, numbers).await?;
        for event in &events {
            self.want(event);
        }
        Ok(events.into_iter().map(|event| event.pdu.clone()).collect())
    }

    /// Notes what authorises an event.
    fn want(&mut self, event: &StoredEvent) {
        for number in &event.auth {
            if self.seen.insert(*number) {
                self.wanted.insert(*number);
            }
        }
    }
}
