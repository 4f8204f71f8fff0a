//! Who is in a state: what readers of a whole room ask beside its summary.

use ruma::{OwnedUserId, UserId};

use crate::{
    Rooms, StateKey, error::RoomError, numbers::EventNumber, room::Room, rows::Membership,
    states::PendingNodes, tree::StateRoot, visible::membership_of,
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
