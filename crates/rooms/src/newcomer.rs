//! Who came into a room by an event: other servers and users are then told what they could not hear
//! before.

use ruma::{OwnedUserId, UserId};

use crate::{
    Rooms, error::RoomError, members::MEMBER, numbers::EventNumber, room::Room, rows::Membership,
    visible::membership_of,
};

impl Rooms {
    /// The user who is in a room since this event arrived, and was not before it.
    pub async fn newcomer(
        &self,
        room: &Room,
        event: EventNumber,
    ) -> Result<Option<OwnedUserId>, RoomError> {
        let event = self.events.load(room, event).await?;
        let Some((MEMBER, user)) = event.pdu.state_pair() else {
            return Ok(None);
        };
        if !event.status.is_shown() || membership_of(&event) != Some(Membership::Join) {
            return Ok(None);
        }
        if let Some(replaced) = event.replaces {
            let before = self.events.load(room, replaced).await?;
            if membership_of(&before) == Some(Membership::Join) {
                return Ok(None);
            }
        }
        Ok(UserId::parse(user).ok())
    }
}
