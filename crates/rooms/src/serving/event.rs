//! One event by its id, which does not say in which room it is.

use homeserver_events::Pdu;
use ruma::{EventId, ServerName};

use super::sights::{ServerSights, Shown, shown};
use crate::{
    Rooms,
    error::RoomError,
    numbers::{EventNumber, RoomNumber},
    whereabouts::rooms_of,
};

/// Rooms looked at in one go. Where servers choose the ids of events, several rooms may have one.
const ROOMS_AT_ONCE: usize = 20;

impl Rooms {
    /// An event that a server asks for by its id: whole if the server may see it, redacted if the
    /// server is in the room and may not. `Forbidden` for an event of a room that the server has
    /// nothing to do with.
    pub async fn serve_event(&self, server: &ServerName, id: &EventId) -> Result<Pdu, RoomError> {
        let mut is_here = false;
        let mut after = None;
        loop {
            let rooms = rooms_of(&self.store, id, after, ROOMS_AT_ONCE).await?;
            for room in &rooms {
                let Some(number) = self.events.number(*room, id).await? else {
                    continue;
                };
                match self.event_in(server, *room, number).await {
                    Ok(Some(event)) => return Ok(event),
                    Ok(None) => {}
                    Err(RoomError::Forbidden(_)) => is_here = true,
                    Err(error) => return Err(error),
                }
            }
            match rooms.last() {
                Some(last) if rooms.len() == ROOMS_AT_ONCE => after = Some(*last),
                _ if is_here => return Err(RoomError::forbidden("your server may not see it")),
                _ => return Err(RoomError::UnknownEvent),
            }
        }
    }

    /// An event of this room as the server sees it; `None` if it is not here.
    async fn event_in(
        &self,
        server: &ServerName,
        room: RoomNumber,
        number: EventNumber,
    ) -> Result<Option<Pdu>, RoomError> {
        let Some(room) = self.directory.by_number(room).await? else {
            return Ok(None);
        };
        if self.is_unsettled(room.number) {
            return Err(RoomError::forbidden("your server may not see it yet"));
        }
        let Some(event) = self.events.find(&room, number).await? else {
            return Ok(None);
        };
        if event.status.is_rejected() {
            return Ok(None);
        }
        let position = self.durable();
        let mut sights = ServerSights::new(self, &room, server, position).await?;
        let how = sights.of(&event).await?;
        if how == Shown::No || !self.acl(&room).await?.allows(server) {
            return Err(RoomError::forbidden("your server may not see it"));
        }
        Ok(shown(&event, how))
    }
}
