//! Applying redactions.

use homeserver_events::redact;
use ruma::OwnedEventId;
use serde::Deserialize;

use super::{RoomEdit, declared_relation};
use crate::{
    command::NewEvent, delta::Appended, error::RoomError, event::StoredEvent, numbers::EventNumber,
    room::Room, tables::WAITING_REDACTIONS,
};

/// Under this name the redactions wait that take effect whoever sent their target.
pub(crate) const BY_POWER: &str = "";

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

/// Gives an event of this room its redacted form.
pub(crate) fn make_redacted(
    room: &Room,
    event: &mut StoredEvent,
    redaction: EventNumber,
) -> Result<(), RoomError> {
    let redacted = redact(&event.pdu, room.rules);
    event.pdu = redacted.map_err(|error| RoomError::damaged(error.to_string()))?;
    event.redacted_by = Some(redaction);
    Ok(())
}

impl RoomEdit<'_> {
    /// Whether a redaction takes effect: its sender has the power to redact, or its target is of
    /// the same server (room versions, "Handling redactions"). A create event stays what it is,
    /// whoever redacts it: it says what the room is and, in old versions, who made it.
    pub(crate) async fn takes_effect(
        &self,
        redaction: &StoredEvent,
        target: &StoredEvent,
    ) -> Result<bool, RoomError> {
        if target.pdu.event_type() == "m.room.create" {
            return Ok(false);
        }
        let sender = redaction.pdu.sender();
        let same_server = sender.server_name() == target.pdu.sender().server_name();
        Ok(same_server || self.levels().await?.may_redact(sender))
    }

    /// Applies a redaction that came before its target, if one of those takes effect.
    pub(crate) async fn apply_waiting(&mut self, appended: &mut Appended) -> Result<(), RoomError> {
        let (room, target) = (self.room().number.0, appended.event.number);
        let server = appended.event.pdu.sender().server_name().to_string();
        for by in [BY_POWER.to_owned(), server] {
            let key = (room, target.0, by.as_str());
            let Some(redaction) = self.rooms.store.get(&WAITING_REDACTIONS, &key).await? else {
                continue;
            };
            if appended.event.redacted_by.is_none() {
                self.make_redacted(&mut appended.event, EventNumber(redaction))?;
                appended.relation = None;
            }
            self.delta.waiting.push((target, by, None));
        }
        Ok(())
    }

    /// Gives an event its redacted form.
    pub(crate) fn make_redacted(
        &self,
        event: &mut StoredEvent,
        redaction: EventNumber,
    ) -> Result<(), RoomError> {
        make_redacted(self.room(), event, redaction)
    }

    /// Notes that a redaction waits for its target: one by those with the power to redact, and one
    /// for each server, whose users may redact what that server sent. So there are few, and none
    /// without effect is in the way of another.
    async fn wait_for(
        &mut self,
        target: EventNumber,
        redaction: &StoredEvent,
    ) -> Result<(), RoomError> {
        let sender = redaction.pdu.sender();
        let by = if self.levels().await?.may_redact(sender) {
            BY_POWER
        } else {
            sender.server_name().as_str()
        };
        let waits = (target, by.to_owned(), Some(redaction.number));
        self.delta.waiting.push(waits);
        Ok(())
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
        if target == redaction.pdu.event_id() {
            return Ok(());
        }
        let number = self.mention(target).await?;
        match self.rooms.events.find(self.room(), number).await? {
            Some(target) if self.takes_effect(redaction, &target).await? => {
                self.redact(&target, redaction).await
            }
            Some(_) => Ok(()),
            None => self.wait_for(number, redaction).await,
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
        let (live, tie) = match target.position {
            Some(position) => (1, Some(position)),
            None => (0, target.backfill_tie),
        };
        if let (Some(relation), Some(tie)) = (declared_relation(target), tie) {
            let (room, height) = (self.room().number.0, target.height);
            let related = self.mention(&relation.target).await?.0;
            for rel_type in [String::new(), relation.rel_type] {
                let key = (room, related, rel_type, height, live, tie);
                self.delta.unrelated.push(key);
            }
        }
        self.note_uncounted(target).await?;
        let mut redacted = target.clone();
        self.make_redacted(&mut redacted, redaction.number)?;
        self.delta.rewritten.push(redacted);
        Ok(())
    }
}
