//! The event nearest to a time: `/timestamp_to_event`. Where history is missing right there, other
//! servers are asked.
//!
//! Specification: client-server API, "Jumping to an event by its time".

use homeserver_federation::inbound::Jump;
use homeserver_rooms::Towards;
use ruma::{OwnedEventId, RoomId};

use super::read::{ReadError, RoomReads};
use crate::app::session::Session;

impl RoomReads {
    /// The event nearest to `time` among those at or after it (`Newer`) or at or before it
    /// (`Older`), and its time. Times are in milliseconds.
    pub(crate) async fn nearest(
        &self,
        session: &Session,
        room: &RoomId,
        time: u64,
        towards: Towards,
    ) -> Result<(OwnedEventId, u64), ReadError> {
        let visit = self.enter(&session.user, room).await?;
        let (reader, here) = (&visit.reader, &visit.room);
        let mut near = self.rooms.nearest(reader, here, time, towards).await?;
        if let Some(gap) = &near.gap
            && near.event.as_ref().is_none_or(|event| event.time != time)
            && !self.rooms.is_partial(here.number)
            && self.rooms.is_resident(here).await?
        {
            let jump = Jump {
                time,
                towards,
                here: near.event.as_ref().map(|event| event.time),
            };
            if self.inbound.fetch_nearest(here, gap, jump).await? {
                near = self.rooms.nearest(reader, here, time, towards).await?;
            }
        }
        let nearest = near.event.ok_or(ReadError::NothingNear)?;
        Ok((nearest.event_id, nearest.time))
    }
}
