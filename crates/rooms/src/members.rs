//! Who is in a state: what readers of a whole room ask beside its summary.

use homeserver_events::StatusKind;
use homeserver_storage::{Direction, Position, ScanRange};
use ruma::{EventId, OwnedUserId, UserId};

use crate::{
    Rooms, StateKey, error::RoomError, numbers::EventNumber, room::Room, rows::Membership,
    states::PendingNodes, tables, tree::StateRoot, visible::membership_of,
};

pub(crate) const MEMBER: &str = "m.room.member";

impl Rooms {
    /// Whether the user belongs to this server.
    pub fn is_local(&self, user: &UserId) -> bool {
        *user.server_name() == self.options.server_name
    }

    /// Whether a user is joined in a state.
    pub async fn is_joined_in(
        &self,
        room: &Room,
        root: StateRoot,
        user: &UserId,
    ) -> Result<bool, RoomError> {
        let member = self.state_event(room, root, MEMBER, user.as_str()).await?;
        let membership = member.and_then(|event| membership_of(&event));
        Ok(membership == Some(Membership::Join))
    }

    /// Everybody who is joined in a state. Costs as much as the room has members.
    pub async fn joined_users(
        &self,
        room: &Room,
        root: StateRoot,
    ) -> Result<Vec<OwnedUserId>, RoomError> {
        let members = self.state_of_type(room, root, MEMBER).await?;
        let numbers: Vec<_> = members.iter().map(|(_, event)| *event).collect();
        let events = self.events.load_all(room, &numbers).await?;
        let joined = members
            .iter()
            .zip(&events)
            .filter(|(_, event)| membership_of(event) == Some(Membership::Join));
        let users = joined.filter_map(|((key, _), _)| UserId::parse(key.state_key()).ok());
        Ok(users.collect())
    }

    /// Whether this server had joined users in a room all the time from `after` to `upto`.
    pub async fn stayed(
        &self,
        room: &Room,
        (after, upto): (Position, Position),
    ) -> Result<bool, RoomError> {
        let key = (room.number.0, self.options.server_name.as_str().to_owned());
        let range = ScanRange::prefix(&key).upto(&(key.0, key.1.as_str(), upto));
        let log = &tables::SERVER_LOG;
        let rows = self.store.scan(log, range, Direction::Backward, 1).await?;
        // The last change before `upto`, which is the last one before `after`.
        let last = rows.first();
        Ok(last.is_some_and(|((_, _, at), present)| *at <= after && *present == 1))
    }

    /// The depth of the event with which this server came into a room last, as far as that is known:
    /// what is below it is history.
    pub async fn depth_of_arrival(&self, room: &Room) -> Result<Option<u64>, RoomError> {
        let key = (room.number.0, self.options.server_name.as_str().to_owned());
        let (range, log) = (ScanRange::prefix(&key), &tables::SERVER_LOG);
        let rows = self.store.scan(log, range, Direction::Backward, 1).await?;
        let Some(((_, _, at), 1)) = rows.into_iter().next() else {
            return Ok(None);
        };
        let key = (room.number.0, at);
        let Some(arrival) = self.store.get(&tables::ARRIVALS, &key).await? else {
            return Ok(None);
        };
        let event = self.events.load(room, arrival.event).await?;
        Ok(event.over_gap.then(|| event.pdu.depth()))
    }

    /// Where an event arrived that is accepted and part of the room's history; zero if it came later
    /// than what follows it. Whether a user may see it is not looked at.
    pub async fn arrival_of(
        &self,
        room: &Room,
        event: &EventId,
    ) -> Result<Option<Position>, RoomError> {
        let Some(number) = self.events.number(room.number, event).await? else {
            return Ok(None);
        };
        let event = self.events.find(room, number).await?;
        let accepted = [StatusKind::Accepted, StatusKind::PartialAccepted];
        let event = event.filter(|event| accepted.contains(&event.status.kind()));
        Ok(event.map(|event| event.position.unwrap_or(0)))
    }

    /// A whole state but for the keys of one type: without its members, say. Costs as much as is
    /// given, not as much as there is of that type.
    pub async fn state_except(
        &self,
        room: &Room,
        root: StateRoot,
        event_type: &str,
    ) -> Result<Vec<(StateKey, EventNumber)>, RoomError> {
        let place = self.states.place(event_type, "");
        let items = self
            .states
            .except(room.number, &PendingNodes::new(), root, place)
            .await?;
        self.with_keys(items).await
    }
}
