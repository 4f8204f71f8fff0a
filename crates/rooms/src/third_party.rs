//! Third-party invites: whether somebody may send one, and what was offered by one.
//!
//! Identity servers are asked elsewhere; that a proof was signed by a key of the offer is one of the
//! authorisation rules.
//!
//! Specification: client-server API, "Third-party invites"; server-server API, "Third-party invites".

use std::sync::Arc;

use homeserver_events::Pdu;
use ruma::UserId;
use serde_json::json;

use crate::{
    Rooms, command::NewEvent, edit::RoomEdit, error::RoomError, live::Wants, room::Room,
    rows::Membership,
};

pub(crate) const THIRD_PARTY_INVITE: &str = "m.room.third_party_invite";

impl Rooms {
    /// Fails unless a user of this server may send a third-party invite to the room now.
    ///
    /// # Errors
    /// When the room does not let them.
    pub async fn check_third_party_invite(
        &self,
        room: &Arc<Room>,
        sender: &UserId,
    ) -> Result<(), RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        if edit.membership(sender).await? != Some(Membership::Join) {
            return Err(RoomError::forbidden("you are not in this room"));
        }
        let content = json!({ "display_name": "", "public_key": "", "key_validity_url": "" });
        let event = NewEvent::of(THIRD_PARTY_INVITE, Some("token"), &content);
        edit.propose(sender, &event).await?;
        Ok(())
    }

    /// The third-party invite with this token in the state of the room.
    pub async fn third_party_invite(
        &self,
        room: &Arc<Room>,
        token: &str,
    ) -> Result<Option<Pdu>, RoomError> {
        let root = self.state_at(room.number, self.durable()).await?.root;
        let found = self.state_value(room, root, THIRD_PARTY_INVITE, token);
        let Some(number) = found.await? else {
            return Ok(None);
        };
        Ok(Some(self.events.load(room, number).await?.pdu.clone()))
    }
}
