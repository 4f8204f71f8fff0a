//! Redactions of imported events that came before those could be found by id.
//!
//! Such a redaction waits under the number that its target was given when it was mentioned, or has
//! redacted the event that was received under that number; the import wrote the event under another.

use homeserver_storage::{At, Batch};

use super::{Named, stored};
use crate::{
    Rooms,
    delta::put_event,
    edit::redact::{BY_POWER, make_redacted},
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    numbers::EventNumber,
    room::Room,
    rows::Head,
    tables,
};

/// Events that are redacted by one batch: three operations each, and none is larger than 64 KiB.
const REDACTED_AT_ONCE: usize = 50;

impl Rooms {
    /// Redacts some of these events, if any is to be. Gives whether that was stored. The tip is
    /// held by the caller.
    pub(super) async fn redact_some(
        &self,
        room: &Room,
        head: &Head,
        named: &[Named<'_>],
    ) -> Result<Option<bool>, RoomError> {
        let mut batch = Batch::new();
        batch.assert_value(&tables::HEADS, &room.number.0, head);
        let mut redacted = Vec::new();
        for event in named {
            if redacted.len() == REDACTED_AT_ONCE {
                break;
            }
            let Some(known) = event.known else { continue };
            let imported = self.events.load(room, event.number).await?;
            let redaction = match &event.here {
                Some(here) if here.number != event.number => here.redacted_by,
                _ => self.waited_for(known, &imported, &mut batch).await?,
            };
            if let (Some(redaction), None) = (redaction, imported.redacted_by) {
                let mut imported = StoredEvent::clone(&imported);
                make_redacted(room, &mut imported, redaction)?;
                put_event(&mut batch, &imported, At::Known(0));
                redacted.push(imported.number);
            }
        }
        if batch.len() == 1 {
            return Ok(None);
        }
        let outcome = self.store.commit(batch).await.map_err(not_stored);
        self.events.rewritten(room.number, &redacted);
        self.resolutions.forget(room.number);
        stored(outcome).map(Some)
    }

    /// The redaction that waits for an event under the number by which it was mentioned. It waits
    /// no longer.
    async fn waited_for(
        &self,
        mentioned: EventNumber,
        event: &StoredEvent,
        batch: &mut Batch,
    ) -> Result<Option<EventNumber>, RoomError> {
        let server = event.pdu.sender().server_name();
        let mut found = None;
        for by in [BY_POWER, server.as_str()] {
            let key = (event.room.0, mentioned.0, by);
            let table = &tables::WAITING_REDACTIONS;
            if let Some(redaction) = self.store.get(table, &key).await? {
                found = found.or(Some(EventNumber(redaction)));
                batch.delete(table, &key);
            }
        }
        Ok(found)
    }
}
