//! What is told of rooms that the user is not in: invites, knocks, and rooms that were left.

use std::sync::Arc;

use homeserver_rooms::{Membership, Room, UserMembership};
use serde_json::value::RawValue;

use super::{
    SyncError,
    changes::{LeftRoom, StrippedRoom},
    pass::{Pass, allows_datum},
    room::shape,
    state::StateSpan,
};

impl Pass<'_> {
    /// An invite, unless it is from somebody whom the user ignores.
    pub(super) async fn invite(
        &self,
        room: &Room,
        membership: &UserMembership,
    ) -> Result<Option<StrippedRoom>, SyncError> {
        let invite = self.engine.rooms.membership_event(room, membership).await?;
        if !self.hears(invite.pdu().sender()) {
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
        let mut slice = self.slice(room, after, left.since).await?;
        let timeline = &self.request.filter.timeline;
        if slice.events.is_empty() && !slice.limited && timeline.allows_room(&room.id) {
            // Who was only invited may not see the room, but that they are out of it.
            let leaving = rooms.membership_event(room, left).await?;
            if timeline.limit() > 0 && timeline.allows(shape(&leaving)) {
                slice.start = left.since.saturating_sub(1);
                slice.events.push(leaving);
            }
        }
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
