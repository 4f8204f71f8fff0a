//! Applying redactions.

use homeserver_events::redact;
use homeserver_storage::{Direction, ScanRange};
use ruma::OwnedEventId;
use serde::Deserialize;

use super::{RoomEdit, declared_relation};
use crate::{
    command::NewEvent, delta::Appended, error::RoomError, event::StoredEvent, numbers::EventNumber,
    tables::WAITING_REDACTIONS,
};

/// Redactions of one event that may wait for it; more tell nothing new.
const MAX_WAITING: usize = 16;

/// The target of a redaction that a client sends. From version 11 on it is in the content by
/// itself; before, clients may put it there too, in any version (client-server API v1.18).
pub(crate) fn redacts(event: &NewEvent) -> Result<Option<OwnedEventId>, RoomError> {
    #[derive(Deserialize)]
    struct Content {
        redacts: OwnedEventId,
    }
    if event.event_type != "m.room.redaction" {
        return Ok(None);
    }
    let content: Content = serde_json::from_str(event.content.get())
        .map_err(|_| RoomError::BadContent("content.redacts is not an event id".to_owned()))?;
    Ok(Some(content.redacts))
}

impl RoomEdit<'_> {
    /// Whether a redaction takes effect: its sender has the power to redact, or its target is of
    /// the same server (room versions, "Handling redactions").
    pub(crate) async fn takes_effect(
        &self,
        redaction: &StoredEvent,
        target: &StoredEvent,
    ) -> Result<bool, RoomError> {
        let sender = redaction.pdu.sender();
        let same_server = sender.server_name() == target.pdu.sender().server_name();
        Ok(same_server || self.levels().await?.may_redact(sender))
    }

    /// Redactions that came before this event.
    pub(crate) async fn waiting_redactions(
        &self,
        target: EventNumber,
    ) -> Result<Vec<EventNumber>, RoomError> {
        let range = ScanRange::prefix(&(self.room().number.0, target.0));
        let table = &WAITING_REDACTIONS;
        let rows = self
            .rooms
            .store
            .scan(table, range, Direction::Forward, MAX_WAITING)
            .await?;
        Ok(rows
            .into_iter()
            .map(|((_, _, redaction), ())| EventNumber(redaction))
            .collect())
    }

    /// Redacts the target of an accepted redaction, or notes that it waits for its target.
    pub(crate) async fn note_redaction(&mut self, appended: &Appended) -> Result<(), RoomError> {
        let redaction = &appended.event;
        if redaction.pdu.event_type() != "m.room.redaction" {
            return Ok(());
        }
        let Some(target) = redaction.pdu.redacts() else {
            return Ok(());
        };
        let number = self.mention(target).await?;
        match self.rooms.events.find(self.room(), number).await? {
            Some(target) if self.takes_effect(redaction, &target).await? => {
                self.redact(&target, redaction).await
            }
            Some(_) => Ok(()),
            None => {
                self.delta.waiting.push((number, redaction.number, true));
                Ok(())
            }
        }
    }

    /// Replaces an event by its redacted form and takes its relation out of the index.
    pub(crate) async fn redact(
        &mut self,
        target: &StoredEvent,
        redaction: &StoredEvent,
    ) -> Result<(), RoomError> {
        if target.redacted_by.is_some() {
            return Ok(());
        }
        let pdu = redact(&target.pdu, self.room().rules)
            .map_err(|error| RoomError::damaged(error.to_string()))?;
        if let (Some(relation), Some(position)) = (declared_relation(target), target.position) {
            let (room, height) = (self.room().number.0, target.height);
            let related = self.mention(&relation.target).await?.0;
            for rel_type in [String::new(), relation.rel_type] {
                let key = (room, related, rel_type, height, 1, position);
                self.delta.unrelated.push(key);
            }
        }
        self.note_uncounted(target).await?;
        self.delta.rewritten.push(StoredEvent {
            pdu,
            redacted_by: Some(redaction.number),
            ..target.clone()
        });
        Ok(())
    }
}
