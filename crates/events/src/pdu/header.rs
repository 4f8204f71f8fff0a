//! The fields of an event that the server itself looks at, read in one pass over its JSON.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::value::RawValue;

use super::PduError;
use super::reference::SentReference;
use crate::hash;
use crate::limits::{MAX_AUTH_EVENTS, MAX_ID_BYTES, MAX_PREV_EVENTS};
use crate::rules::{RedactsPlace, RoomIdFormat, Rules};

/// A string, borrowed from the JSON unless it has escapes. Unlike `Option<&str>`, an optional one
/// refuses `null`.
#[derive(Debug)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Text<'a>>, D::Error> {
    Text::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
pub(super) struct Header<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    event_id: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    room_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) sender: Text<'a>,
    #[serde(borrow, rename = "type")]
    pub(super) event_type: Text<'a>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) state_key: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) content: &'a RawValue,
    pub(super) origin_server_ts: u64,
    pub(super) depth: u64,
    #[serde(borrow)]
    pub(super) prev_events: Vec<SentReference<'a>>,
    #[serde(borrow)]
    pub(super) auth_events: Vec<SentReference<'a>>,
    #[serde(borrow)]
    pub(super) redacts: Option<&'a RawValue>,
}

impl Header<'_> {
    pub(super) fn check_limits(&self, rules: &Rules) -> Result<(), PduError> {
        let text = |field: &Option<Text<'_>>| field.as_ref().map_or(0, |text| text.0.len());
        for (field, length) in [
            ("event_id", text(&self.event_id)),
            ("room_id", text(&self.room_id)),
            ("sender", self.sender.0.len()),
            ("type", self.event_type.0.len()),
            ("state_key", text(&self.state_key)),
        ] {
            if length > MAX_ID_BYTES {
                return Err(PduError::FieldTooLong(field));
            }
        }
        if self.prev_events.len() > MAX_PREV_EVENTS {
            return Err(PduError::TooManyReferences("prev_events"));
        }
        if self.auth_events.len() > MAX_AUTH_EVENTS {
            return Err(PduError::TooManyReferences("auth_events"));
        }
        if self.depth > rules.max_depth {
            return Err(PduError::Depth);
        }
        Ok(())
    }

    /// The field `event_id` of room versions 1 and 2, which names a server.
    pub(super) fn event_id(&self) -> Result<OwnedEventId, PduError> {
        let text = self
            .event_id
            .as_ref()
            .ok_or(PduError::Identifier("event_id"))?;
        let id = EventId::parse(text.as_str()).map_err(|_| PduError::Identifier("event_id"))?;
        if id.server_name().is_some() {
            Ok(id)
        } else {
            Err(PduError::Identifier("event_id"))
        }
    }

    pub(super) fn room_id(
        &self,
        event_id: &EventId,
        rules: &Rules,
    ) -> Result<OwnedRoomId, PduError> {
        let is_create = self.event_type.as_str() == "m.room.create";
        match (&self.room_id, rules.room_id) {
            (None, RoomIdFormat::CreateEvent) if is_create => {
                hash::room_id_of_create(event_id).ok_or(PduError::RoomId)
            }
            (Some(_), RoomIdFormat::CreateEvent) if is_create => Err(PduError::RoomId),
            (None, _) => Err(PduError::RoomId),
            (Some(text), _) => {
                RoomId::parse(text.as_str()).map_err(|_| PduError::Identifier("room_id"))
            }
        }
    }

    /// Where the content, which must be an object, lies in the JSON that it was read from.
    pub(super) fn content_range(&self, json: &str) -> Result<Range<usize>, PduError> {
        let content = self.content.get();
        if !content.starts_with('{') {
            return Err(PduError::Form("content is not an object".to_owned()));
        }
        let start = content.as_ptr().addr() - json.as_ptr().addr();
        Ok(start..start + content.len())
    }
}

/// The target of a redaction event, at the place of the room version. What has a wrong form there
/// names nothing.
pub(super) fn redacts(
    event_type: &Text<'_>,
    top_level: Option<&RawValue>,
    content: &RawValue,
    rules: &Rules,
) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        redacts: Text<'a>,
    }
    if event_type.as_str() != "m.room.redaction" {
        return None;
    }
    let target = match rules.redacts {
        RedactsPlace::TopLevel => serde_json::from_str::<Text<'_>>(top_level?.get()).ok()?,
        RedactsPlace::Content => {
            serde_json::from_str::<Content<'_>>(content.get())
                .ok()?
                .redacts
        }
    };
    EventId::parse(target.as_str()).ok()
}
