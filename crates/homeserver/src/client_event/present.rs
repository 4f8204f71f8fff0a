//! From events that a reader may see to events as that reader sees them.

use homeserver_rooms::{Reader, Room, RoomError, Rooms, VisibleEvent};
use homeserver_runtime::Clock;
use ruma::{DeviceId, UserId};
use serde_json::{Map, Value, value::RawValue};

use super::{EventBody, EventParts, ReadEvent, Replaced, Unsigned};
use crate::sync::filter::{Filter, Format};

/// Writes events for one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Presenter<'a> {
    rooms: &'a Rooms,
    reader: &'a Reader,
    device: &'a DeviceId,
    now: u64,
    /// What a reader was who had no member event at the time.
    without_member_event: Option<&'static str>,
    format: Format,
    fields: Option<&'a [Vec<String>]>,
}

impl<'a> Presenter<'a> {
    /// Whole events in the client format.
    pub(crate) fn new(
        rooms: &'a Rooms,
        clock: &dyn Clock,
        reader: &'a Reader,
        device: &'a DeviceId,
    ) -> Self {
        Self {
            rooms,
            reader,
            device,
            now: clock.unix_millis(),
            without_member_event: Some("leave"),
            format: Format::Client,
            fields: None,
        }
    }

    /// Events of a state: what the reader was when they were sent is not looked up.
    pub(crate) fn of_state(self) -> Self {
        Self {
            without_member_event: None,
            ..self
        }
    }

    /// Events in the format and with the fields that a filter asks for.
    pub(crate) fn shaped(self, filter: &'a Filter) -> Self {
        Self {
            format: filter.format,
            fields: filter.event_fields.as_deref(),
            ..self
        }
    }

    /// The events in their order.
    pub(crate) async fn all(
        &self,
        room: &Room,
        events: &[VisibleEvent],
    ) -> Result<Vec<ReadEvent>, RoomError> {
        let mut written = Vec::with_capacity(events.len());
        for event in events {
            written.push(self.one(room, event).await?);
        }
        Ok(written)
    }

    /// One event.
    pub(crate) async fn one(
        &self,
        room: &Room,
        event: &VisibleEvent,
    ) -> Result<ReadEvent, RoomError> {
        let redaction = self.redaction(room, event).await?;
        let replaced = if event.pdu().state_key().is_some() {
            self.rooms.replaced_state(room, event).await?
        } else {
            None
        };
        let unsigned = Unsigned {
            age: Some(self.age(event)),
            transaction_id: self.transaction_id(event),
            membership: event
                .reader_membership()
                .map(homeserver_rooms::Membership::as_str)
                .or(self.without_member_event),
            replaced: replaced.as_ref().map(|before| Replaced {
                event_id: before.pdu().event_id(),
                sender: before.pdu().sender(),
                content: before.pdu().content(),
            }),
            redacted_because: redaction.as_deref(),
            relations: None,
        };
        Ok(self.shape(event, &unsigned))
    }

    fn age(&self, event: &VisibleEvent) -> u64 {
        self.now.saturating_sub(event.pdu().origin_server_ts())
    }

    /// The transaction id, if this very device sent the event.
    fn transaction_id<'e>(&self, event: &'e VisibleEvent) -> Option<&'e str> {
        let origin = event.origin()?;
        let sender: &UserId = event.pdu().sender();
        let is_own = *sender == self.reader.user && origin.device == self.device;
        is_own.then_some(&*origin.transaction)
    }

    /// The redaction of the event as a client event, if it was redacted and the reader may see why.
    async fn redaction(
        &self,
        room: &Room,
        event: &VisibleEvent,
    ) -> Result<Option<Box<RawValue>>, RoomError> {
        let Some(number) = event.redacted_by() else {
            return Ok(None);
        };
        let found = self.rooms.visible(self.reader, room, &[number]).await?;
        let written = found.first().map(|redaction| {
            let unsigned = Unsigned {
                age: Some(self.age(redaction)),
                transaction_id: self.transaction_id(redaction),
                ..Unsigned::default()
            };
            ReadEvent::new(body(redaction), &unsigned).to_json(Some(&room.id))
        });
        Ok(written)
    }

    fn shape(&self, event: &VisibleEvent, unsigned: &Unsigned<'_>) -> ReadEvent {
        let plain = ReadEvent::new(body(event), unsigned);
        if self.format == Format::Client && self.fields.is_none() {
            return plain;
        }
        let Ok(mut object) = serde_json::from_str::<Map<String, Value>>(plain.to_json(None).get())
        else {
            return plain;
        };
        if self.format == Format::Federation
            && let Ok(stored) = serde_json::from_slice::<Map<String, Value>>(event.pdu().json())
        {
            let ours = object.remove("unsigned");
            object = stored;
            object.remove("unsigned");
            object.extend(ours.map(|ours| ("unsigned".to_owned(), ours)));
        }
        if let Some(fields) = self.fields {
            object = picked(&object, fields);
        }
        ReadEvent::verbatim(&object).unwrap_or(plain)
    }
}

/// The shared body of an event.
pub(crate) fn body(event: &VisibleEvent) -> EventBody {
    let pdu = event.pdu();
    EventBody::new(EventParts {
        event_id: pdu.event_id(),
        event_type: pdu.event_type(),
        state_key: pdu.state_key(),
        sender: pdu.sender(),
        origin_server_ts: pdu.origin_server_ts(),
        content: pdu.content(),
        redacts: pdu.redacts(),
    })
}

/// The members of an object that lie on one of the paths.
fn picked(object: &Map<String, Value>, fields: &[Vec<String>]) -> Map<String, Value> {
    let mut picked = Map::new();
    for path in fields {
        pick(object, path, &mut picked);
    }
    picked
}

fn pick(from: &Map<String, Value>, path: &[String], into: &mut Map<String, Value>) {
    let Some((name, rest)) = path.split_first() else {
        return;
    };
    let Some(value) = from.get(name) else {
        return;
    };
    match value {
        Value::Object(inner) if !rest.is_empty() => {
            let place = into
                .entry(name.clone())
                .or_insert_with(|| Map::new().into());
            if let Value::Object(place) = place {
                pick(inner, rest, place);
            }
        }
        _ if rest.is_empty() => {
            into.insert(name.clone(), value.clone());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_picked_by_path() {
        let event = json!({"type": "m", "content": {"body": "x", "more": {"a": 1, "b": 2}}, "sender": "@a:b"});
        let Value::Object(event) = event else {
            unreachable!()
        };
        let paths = |paths: &[&[&str]]| -> Vec<Vec<String>> {
            let owned = paths
                .iter()
                .map(|path| path.iter().map(|part| (*part).to_owned()).collect());
            owned.collect()
        };
        let cases = [
            (
                paths(&[&["type"], &["content", "body"]]),
                json!({"type": "m", "content": {"body": "x"}}),
            ),
            (
                paths(&[&["content", "more", "a"], &["content", "more", "b"]]),
                json!({"content": {"more": {"a": 1, "b": 2}}}),
            ),
            (paths(&[&["type", "body"], &["none"]]), json!({})),
        ];
        for (fields, expected) in cases {
            assert_eq!(Value::Object(picked(&event, &fields)), expected);
        }
    }
}
