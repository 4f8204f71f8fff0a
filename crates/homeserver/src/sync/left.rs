//! What is told of rooms that the user is not in: invites, knocks, and rooms that were left.

use std::sync::Arc;

use homeserver_rooms::{Membership, Room, UserMembership};
use serde_json::value::RawValue;

use super::{
    SyncError,
    changes::{LeftRoom, StrippedRoom},
    pass::{Pass, allows_datum},
    state::StateSpan,
};

impl Pass<'_> {
    /// An invite, unless it is from somebody whom the user ignores.
    pub(super) async fn invite(
        &self,
        room: &Room,
        membership: &UserMembership,
    ) -> Result<Option<StrippedRoom>, SyncError> {
        let numbers = [membership.event];
        let events = self
            .engine
            .rooms
            .visible(&self.reader, room, &numbers)
            .await?;
        let inviter = events.first().map(|event| event.pdu().sender());
        if inviter.is_some_and(|inviter| !self.hears(inviter)) {
            return Ok(None);
        }
        Ok(Some(self.stripped(room, membership).await?))
    }

    /// A room of which only stripped state is told.
    pub(super) async fn stripped(
        &self,
        room: &Room,
        membership: &UserMembership,
    ) -> Result<StrippedRoom, SyncError> {
        let events = self.engine.rooms.stripped_state(membership).await?;
        let events = events.into_iter();
        Ok(StrippedRoom {
            room: room.id.clone(),
            events: events
                .filter_map(|json| RawValue::from_string(json).ok())
                .collect(),
        })
    }

    /// A room up to the user's leaving.
    pub(super) async fn left_room(
        &self,
        room: &Arc<Room>,
        left: &UserMembership,
    ) -> Result<Option<LeftRoom>, SyncError> {
        let rooms = &self.engine.rooms;
        let before = match self.since {
            Some(since) => {
                rooms
                    .membership(self.user(), room.number, since.position)
                    .await?
            }
            None => None,
        };
        let before = before.map(|before| before.membership);
        let was_out = matches!(before, Some(Membership::Leave | Membership::Ban));
        let was_joined = before == Some(Membership::Join);
        let after = match before {
            None => 0,
            Some(_) => self.after(),
        };
        let slice = self.slice(room, after, left.since).await?;
        if was_out && slice.events.is_empty() {
            return Ok(None);
        }
        let span = StateSpan {
            since: was_joined.then(|| self.after()),
            upto: left.since,
            anew: !was_joined,
        };
        let (slice, state) = self.state(room, slice, span, true).await?;
        let mut account_data = match self.since {
            None => self.stored_account_data(room).await?,
            Some(_) => Vec::new(),
        };
        let filter = &self.request.filter.room_account_data;
        account_data.retain(|datum| allows_datum(filter, datum));
        Ok(Some(LeftRoom {
            room: room.id.clone(),
            state: state.section,
            timeline: self.written(room, slice).await?,
            account_data,
        }))
    }
}
