//! A room's state and the events that authorise it, as a server that joins is given them.
//!
//! Specification: server-server API, `PUT /send_join`.

use std::sync::Arc;

use homeserver_events::{Pdu, StatusKind};
use homeserver_storage::Position;
use ruma::{EventId, OwnedServerName, UserId};

use crate::{
    Rooms, error::RoomError, event::StoredEvent, numbers::EventNumber, reads::HEROES, room::Room,
    rows::Membership, serving::ServedChain, visible::membership_of,
};

/// Members of whom the heroes are chosen.
const HERO_CANDIDATES: usize = 100;

/// Servers of a room that are listed at most.
const MAX_SERVERS: usize = 50_000;

/// What the server of a user who joined is given.
#[derive(Debug)]
pub struct Handover {
    /// The join, as it is stored.
    pub event: Pdu,
    /// Whether membership events are left out of the state.
    pub members_omitted: bool,
    /// Servers that were in the room before, where members are left out.
    pub servers: Vec<OwnedServerName>,
    /// The state before the join, and the auth chains of that and of the join.
    pub chain: ServedChain,
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
        let Some(arrived) = event.position else {
            return Ok(None);
        };
        if event.status.kind() != StatusKind::Accepted {
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
            servers = self.servers_before(room, arrived).await?;
        }
        let both = (state, &*event.auth);
        Ok(Some(Handover {
            event: event.pdu.clone(),
            members_omitted: omit_members,
            servers,
            chain: ServedChain::of_both(self, room, both, omit_members),
        }))
    }

    /// The servers that were in the room when the join arrived, without one that came with it: who
    /// repeats an old join is not told who came since.
    async fn servers_before(
        &self,
        room: &Room,
        arrived: Position,
    ) -> Result<Vec<OwnedServerName>, RoomError> {
        let servers = self.servers_at(room, arrived.saturating_sub(1)).await?;
        Ok(servers.iter().take(MAX_SERVERS).cloned().collect())
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
