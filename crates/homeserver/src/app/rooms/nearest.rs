//! The event nearest to a time: `/timestamp_to_event`.
//!
//! Specification: client-server API, "Jumping to an event by its time".

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
        let near = self
            .rooms
            .nearest(&visit.reader, &visit.room, time, towards);
        let nearest = near.await?.event.ok_or(ReadError::NothingNear)?;
        Ok((nearest.event_id, nearest.time))
    }
}
