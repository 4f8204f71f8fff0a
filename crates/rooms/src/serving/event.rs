//! One event by its id, which does not say in which room it is.

use homeserver_events::Pdu;
use homeserver_storage::{Direction, ScanRange};
use ruma::{EventId, OwnedServerName, ServerName};

use super::sights::{ServerSights, Shown, shown};
use crate::{
    Rooms,
    error::RoomError,
    numbers::{EventNumber, RoomNumber},
    tables::{EVENT_IDS, ROOMS},
};

/// Rooms asked for an event in one go.
const ROOMS_AT_ONCE: usize = 500;

/// Servers of which is remembered in which room they asked last: who asks for one event asks for
/// others beside it.
pub(crate) const ASKERS: usize = 1000;

/// In which room each server asked last.
pub(crate) type LastAsked = quick_cache::sync::Cache<OwnedServerName, RoomNumber>;

impl Rooms {
    /// An event that a server asks for by its id: whole if the server may see it, redacted if the
    /// server is in the room and may not. `Forbidden` for an event of a room that the server has
    /// nothing to do with.
    pub async fn serve_event(&self, server: &ServerName, id: &EventId) -> Result<Pdu, RoomError> {
        let last = self.last_asked.get(server);
        if let Some(room) = last {
            let key = (room.0, id.as_str());
            if let Some(number) = self.store.get(&EVENT_IDS, &key).await?
                && let Ok(Some(event)) = self.event_in(server, room, EventNumber(number)).await
            {
                return Ok(event);
            }
        }
        let mut is_here = false;
        let mut range = ScanRange::all();
        loop {
            let forward = Direction::Forward;
            let rooms = self
                .store
                .scan(&ROOMS, range, forward, ROOMS_AT_ONCE)
                .await?;
            let keys: Vec<_> = rooms.iter().map(|(room, _)| (*room, id.as_str())).collect();
            let numbers = self.store.multi_get(&EVENT_IDS, &keys).await?;
            for ((room, _), number) in keys.iter().zip(numbers) {
                let Some(number) = number else { continue };
                let room = RoomNumber(*room);
                match self.event_in(server, room, EventNumber(number)).await {
                    Ok(Some(event)) => {
                        self.last_asked.insert(server.to_owned(), room);
                        return Ok(event);
                    }
                    Ok(None) => {}
                    Err(RoomError::Forbidden(_)) => is_here = true,
                    Err(error) => return Err(error),
                }
            }
            match rooms.last() {
                Some((last, _)) if rooms.len() == ROOMS_AT_ONCE => {
                    range = ScanRange::all().after(last);
                }
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
