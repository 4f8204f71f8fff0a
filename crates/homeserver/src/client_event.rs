//! Events as clients see them.
//!
//! An event's *body*, everything but `unsigned`, is the same for all readers: [`EventBody`] is made
//! once, by copying slices of the stored JSON, with the fields of federation left out. What differs
//! per reader is [`Unsigned`], a typed value that is spliced in when the event is written. What a
//! peer or an older version of this server left in the stored `unsigned` is never copied.
//!
//! Specification: client-server API, "Room event format".

pub(crate) mod present;

use bytes::Bytes;
use ruma::{EventId, RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The parts of a stored event that clients see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventParts<'a> {
    /// `event_id`.
    pub(crate) event_id: &'a EventId,
    /// `type`.
    pub(crate) event_type: &'a str,
    /// `state_key` of a state event.
    pub(crate) state_key: Option<&'a str>,
    /// `sender`.
    pub(crate) sender: &'a UserId,
    /// `origin_server_ts`.
    pub(crate) origin_server_ts: u64,
    /// `content`.
    pub(crate) content: &'a RawValue,
    /// What a redaction redacts, wherever its room version keeps it.
    pub(crate) redacts: Option<&'a EventId>,
}

/// An event without `unsigned` and `room_id`, in the client format, shared by all readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventBody {
    /// The members of the JSON object, without the braces around them.
    members: Bytes,
}

impl EventBody {
    /// Makes the body.
    pub(crate) fn new(event: EventParts<'_>) -> Self {
        let mut out = Vec::with_capacity(event.content.get().len() + 256);
        out.extend_from_slice(br#""content":"#);
        match event.redacts {
            Some(target) => write_redaction_content(&mut out, event.content, target),
            None => out.extend_from_slice(event.content.get().as_bytes()),
        }
        member(&mut out, "event_id", event.event_id.as_str());
        out.extend_from_slice(br#","origin_server_ts":"#);
        out.extend_from_slice(event.origin_server_ts.to_string().as_bytes());
        if let Some(target) = event.redacts {
            // At the top level for clients of before room version 11, in the content for the
            // others: both, whatever the version of the room.
            member(&mut out, "redacts", target.as_str());
        }
        member(&mut out, "sender", event.sender.as_str());
        if let Some(state_key) = event.state_key {
            member(&mut out, "state_key", state_key);
        }
        member(&mut out, "type", event.event_type);
        Self {
            members: out.into(),
        }
    }
}

/// An event as one reader sees it: the shared body and what is said to this reader alone.
#[derive(Clone, Debug)]
pub(crate) struct ReadEvent {
    body: EventBody,
    /// `,"unsigned":{…}`, or nothing.
    unsigned: Vec<u8>,
}

impl ReadEvent {
    /// The event for one reader.
    pub(crate) fn new(body: EventBody, unsigned: &Unsigned<'_>) -> Self {
        let mut written = Vec::new();
        unsigned.write(&mut written);
        Self {
            body,
            unsigned: written,
        }
    }

    /// An event that is written as this object, `unsigned` included.
    pub(crate) fn verbatim(object: &serde_json::Map<String, serde_json::Value>) -> Option<Self> {
        let json = serde_json::to_vec(object).ok()?;
        let members = Bytes::from(json).slice(1..);
        let members = members.slice(..members.len().saturating_sub(1));
        Some(Self {
            body: EventBody { members },
            unsigned: Vec::new(),
        })
    }

    /// Writes the event as a JSON object. `room` is left out in /sync, where it is the key of the
    /// object around the events.
    pub(crate) fn write(&self, out: &mut Vec<u8>, room: Option<&RoomId>) {
        out.push(b'{');
        out.extend_from_slice(&self.body.members);
        if let Some(room) = room.filter(|_| !self.body.members.is_empty()) {
            member(out, "room_id", room.as_str());
        }
        out.extend_from_slice(&self.unsigned);
        out.push(b'}');
    }

    /// The event as a JSON object of its own.
    pub(crate) fn to_json(&self, room: Option<&RoomId>) -> Box<RawValue> {
        let mut out = Vec::with_capacity(self.body.members.len() + self.unsigned.len() + 80);
        self.write(&mut out, room);
        raw_value(out)
    }
}

/// Bytes that were written as JSON by this module, as a value. Empty objects stand in for what is
/// not JSON; that does not happen, since every part was a JSON value before.
pub(crate) fn raw_value(json: Vec<u8>) -> Box<RawValue> {
    String::from_utf8(json)
        .ok()
        .and_then(|json| RawValue::from_string(json).ok())
        .unwrap_or_else(|| RawValue::NULL.to_owned())
}

/// What one reader is told beside the event. Every part is computed for that reader.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsigned<'a> {
    /// Milliseconds since the event was sent.
    pub(crate) age: Option<u64>,
    /// The transaction id, for the device that sent the event, and for no other.
    pub(crate) transaction_id: Option<&'a str>,
    /// The reader's own membership at the time of the event.
    pub(crate) membership: Option<&'a str>,
    /// The state event that this one replaced.
    pub(crate) replaced: Option<Replaced<'a>>,
    /// The redaction of this event, as a client event.
    pub(crate) redacted_because: Option<&'a RawValue>,
    /// `m.relations`: bundled aggregations.
    pub(crate) relations: Option<&'a RawValue>,
}

/// The state event that was in place of a state event before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replaced<'a> {
    /// Its id.
    pub(crate) event_id: &'a EventId,
    /// Its sender.
    pub(crate) sender: &'a UserId,
    /// Its content.
    pub(crate) content: &'a RawValue,
}

impl Unsigned<'_> {
    fn is_empty(&self) -> bool {
        self.age.is_none()
            && self.transaction_id.is_none()
            && self.membership.is_none()
            && self.replaced.is_none()
            && self.redacted_because.is_none()
            && self.relations.is_none()
    }

    /// Writes `,"unsigned":{…}`, or nothing.
    fn write(&self, out: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        out.extend_from_slice(br#","unsigned":{"#);
        let start = out.len();
        if let Some(age) = self.age {
            out.extend_from_slice(br#","age":"#);
            out.extend_from_slice(age.to_string().as_bytes());
        }
        if let Some(relations) = self.relations {
            out.extend_from_slice(br#","m.relations":"#);
            out.extend_from_slice(relations.get().as_bytes());
        }
        if let Some(membership) = self.membership {
            member(out, "membership", membership);
        }
        if let Some(replaced) = self.replaced {
            out.extend_from_slice(br#","prev_content":"#);
            out.extend_from_slice(replaced.content.get().as_bytes());
            member(out, "prev_sender", replaced.sender.as_str());
            member(out, "replaces_state", replaced.event_id.as_str());
        }
        if let Some(redaction) = self.redacted_because {
            out.extend_from_slice(br#","redacted_because":"#);
            out.extend_from_slice(redaction.get().as_bytes());
        }
        if let Some(transaction_id) = self.transaction_id {
            member(out, "transaction_id", transaction_id);
        }
        // Every member wrote a comma before itself.
        out.remove(start);
        out.push(b'}');
    }
}

/// The content of a redaction, with `redacts` in it and every other key kept as it is.
fn write_redaction_content(out: &mut Vec<u8>, content: &RawValue, target: &EventId) {
    #[derive(Deserialize)]
    struct Redacts {
        redacts: Option<serde::de::IgnoredAny>,
    }
    let text = content.get();
    let present = serde_json::from_str::<Redacts>(text);
    let rest = text.trim_start().strip_prefix('{');
    match (present, rest) {
        (Ok(Redacts { redacts: None }), Some(rest)) => {
            out.extend_from_slice(br#"{"redacts":"#);
            string(out, target.as_str());
            if !rest.trim_start().starts_with('}') {
                out.push(b',');
            }
            out.extend_from_slice(rest.as_bytes());
        }
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

/// Writes `,"name":"value"`. The name is one of ours and needs no escape.
pub(crate) fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    string(out, value);
}

/// Writes a JSON string.
pub(crate) fn string(out: &mut Vec<u8>, value: &str) {
    // Writing a string to memory does not fail.
    let _ = serde_json::to_writer(&mut *out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ruma::{event_id, room_id, user_id};
    use serde_json::{Value, json};

    fn raw(value: &Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(value).unwrap()
    }

    fn parts(content: &RawValue) -> EventParts<'_> {
        EventParts {
            event_id: event_id!("$event"),
            event_type: "m.room.message",
            state_key: None,
            sender: user_id!("@alice:example.org"),
            origin_server_ts: 1_700_000_000_000,
            content,
            redacts: None,
        }
    }

    fn written(body: &EventBody, room: Option<&RoomId>, unsigned: &Unsigned<'_>) -> Value {
        let event = ReadEvent::new(body.clone(), unsigned);
        serde_json::from_str(event.to_json(room).get()).unwrap()
    }

    #[test]
    fn a_message_is_written_without_unsigned_and_with_the_room_where_asked() {
        let content = raw(&json!({"body": "hello \"you\"\n"}));
        let body = EventBody::new(parts(&content));
        let mut expected = json!({
            "type": "m.room.message", "sender": "@alice:example.org", "event_id": "$event",
            "origin_server_ts": 1_700_000_000_000_u64, "content": {"body": "hello \"you\"\n"},
        });
        assert_eq!(written(&body, None, &Unsigned::default()), expected);
        expected["room_id"] = json!("!room:example.org");
        let room = room_id!("!room:example.org");
        assert_eq!(written(&body, Some(room), &Unsigned::default()), expected);
    }

    #[test]
    fn every_part_of_unsigned_stands_alone_and_together() {
        let content = raw(&json!({}));
        let other = raw(&json!({"name": "before"}));
        let body = EventBody::new(parts(&content));
        let replaced = Replaced {
            event_id: event_id!("$before"),
            sender: user_id!("@bob:example.org"),
            content: &other,
        };
        let whole = Unsigned {
            age: Some(3),
            transaction_id: Some("t\"1"),
            membership: Some("join"),
            replaced: Some(replaced),
            redacted_because: Some(&other),
            relations: Some(&other),
        };
        let expected = json!({
            "age": 3, "transaction_id": "t\"1", "membership": "join",
            "prev_content": {"name": "before"}, "prev_sender": "@bob:example.org",
            "replaces_state": "$before", "redacted_because": {"name": "before"},
            "m.relations": {"name": "before"},
        });
        assert_eq!(written(&body, None, &whole)["unsigned"], expected);
        let age = Unsigned {
            age: Some(0),
            ..Unsigned::default()
        };
        assert_eq!(written(&body, None, &age)["unsigned"], json!({"age": 0}));
        let transaction = Unsigned {
            transaction_id: Some("a"),
            ..Unsigned::default()
        };
        let expected = json!({"transaction_id": "a"});
        assert_eq!(written(&body, None, &transaction)["unsigned"], expected);
    }

    #[test]
    fn a_redaction_names_its_target_in_both_places() {
        let cases = [
            (json!({}), json!({"redacts": "$target"})),
            (
                json!({"reason": "spam"}),
                json!({"redacts": "$target", "reason": "spam"}),
            ),
            (json!({"redacts": "$target"}), json!({"redacts": "$target"})),
        ];
        for (content, expected) in cases {
            let content = raw(&content);
            let body = EventBody::new(EventParts {
                redacts: Some(event_id!("$target")),
                ..parts(&content)
            });
            let event = written(&body, None, &Unsigned::default());
            assert_eq!(event["redacts"], "$target");
            assert_eq!(event["content"], expected);
        }
    }

    proptest! {
        #[test]
        fn any_strings_stay_what_they_are(key in ".*", value in ".*", kind in ".*", state in ".*") {
            let content = raw(&json!({ key.clone(): value.clone() }));
            let body = EventBody::new(EventParts {
                event_type: &kind,
                state_key: Some(&state),
                ..parts(&content)
            });
            let unsigned = Unsigned { transaction_id: Some(&value), ..Unsigned::default() };
            let event = written(&body, None, &unsigned);
            prop_assert_eq!(event["content"][&key].as_str(), Some(&*value));
            prop_assert_eq!(event["type"].as_str(), Some(&*kind));
            prop_assert_eq!(event["state_key"].as_str(), Some(&*state));
            prop_assert_eq!(event["unsigned"]["transaction_id"].as_str(), Some(&*value));
        }
    }
}
