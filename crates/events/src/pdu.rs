//! An event as servers exchange it: immutable, cheap to clone, and kept as its canonical JSON.
//!
//! There are two ways in. [`Pdu::parse`] takes untrusted bytes, checks form and limits and computes
//! the event id; hashes, signatures and authorisation are checked elsewhere. [`Pdu::from_stored`]
//! takes back what this crate made before and only reads the header.
//!
//! `unsigned` is not part of a [`Pdu`]: nobody vouches for it, so [`Pdu::parse`] drops it (after
//! counting it into the size). What a reader is told there is computed for that reader.

mod header;
mod reference;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

pub use reference::EventReference;

use self::header::Header;
use crate::auth::PowerLevels;
use crate::canonical::{self, CanonicalError, CanonicalObject, CanonicalValue};
use crate::hash;
use crate::limits::{MAX_ID_BYTES, MAX_PDU_BYTES};
use crate::rules::{EventIdFormat, Rules};

/// Why bytes are not an event of a room version. Such an event is dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// Not canonical JSON as the room version requires it.
    #[error("the event is not acceptable JSON")]
    Json(#[from] CanonicalError),
    /// Larger than [`MAX_PDU_BYTES`].
    #[error("the event is larger than {MAX_PDU_BYTES} bytes")]
    TooLarge,
    /// A field is missing or has a wrong type.
    #[error("the event has a wrong form: {0}")]
    Form(String),
    /// An identifier is malformed.
    #[error("the field {0} is not a valid identifier")]
    Identifier(&'static str),
    /// A field is longer than [`MAX_ID_BYTES`].
    #[error("the field {0} is longer than {MAX_ID_BYTES} bytes")]
    FieldTooLong(&'static str),
    /// `prev_events` or `auth_events` has too many entries.
    #[error("the field {0} has too many entries")]
    TooManyReferences(&'static str),
    /// `prev_events` or `auth_events` has an entry in the form of another room version.
    #[error("the field {0} has entries in the form of another room version")]
    ReferenceForm(&'static str),
    /// `depth` is greater than the room version allows.
    #[error("the depth is out of range")]
    Depth,
    /// `room_id` is missing, or present on the create event of a version that derives it.
    #[error("the room_id must be absent from the create event and present on all others")]
    RoomId,
}

/// An event in the federation format of its room version.
#[derive(Clone)]
pub struct Pdu(Arc<Inner>);

struct Inner {
    json: Box<str>,
    rules: &'static Rules,
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    event_type: Box<str>,
    state_key: Option<Box<str>>,
    content: Range<usize>,
    origin_server_ts: u64,
    depth: u64,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    redacts: Option<OwnedEventId>,
    /// Filled when the rules first ask for it: one power levels event judges many events.
    power_levels: OnceLock<PowerLevels>,
}

impl Pdu {
    /// Reads an untrusted event: canonical JSON, size, form and limits of the room version. Does
    /// not look at hashes or signatures beyond their form.
    pub fn parse(json: &[u8], rules: &'static Rules) -> Result<Self, PduError> {
        let object = canonical::parse_object(json, rules.strictness)?;
        Self::of_object(&object, rules)
    }

    /// Like [`Pdu::parse`], for an event that was read as canonical JSON already.
    pub fn of_object(object: &CanonicalObject, rules: &'static Rules) -> Result<Self, PduError> {
        check_hashes_and_signatures(object)?;
        let mut json = canonical::to_string(object);
        if json.len() > MAX_PDU_BYTES {
            return Err(PduError::TooLarge);
        }
        if object.contains_key("unsigned") {
            json = canonical::to_string_without(object, &["unsigned"]);
        }
        let hash = match rules.event_id {
            EventIdFormat::Field => None,
            _ => Some(hash::reference_hash(object, rules)),
        };
        let event_id = hash.and_then(|hash| hash::event_id_of_hash(&hash, rules));
        Self::assemble(json, event_id, rules)
    }

    /// Takes back an event that [`Pdu::json`] gave: no canonicalisation, no hashing.
    pub fn from_stored(
        json: &[u8],
        event_id: OwnedEventId,
        rules: &'static Rules,
    ) -> Result<Self, PduError> {
        let json = std::str::from_utf8(json).map_err(|_| CanonicalError::Encoding)?;
        Self::assemble(json.to_owned(), Some(event_id), rules)
    }

    /// Reads the header. Without an id it is the one in the field `event_id`.
    pub(crate) fn assemble(
        json: String,
        event_id: Option<OwnedEventId>,
        rules: &'static Rules,
    ) -> Result<Self, PduError> {
        let header: Header<'_> =
            serde_json::from_str(&json).map_err(|error| PduError::Form(error.to_string()))?;
        header.check_limits(rules)?;
        let event_id = match event_id {
            Some(event_id) => event_id,
            None => header.event_id()?,
        };
        let room_id = header.room_id(&event_id, rules)?;
        let sender =
            UserId::parse(header.sender.as_str()).map_err(|_| PduError::Identifier("sender"))?;
        let inner = Inner {
            rules,
            room_id,
            sender,
            event_type: header.event_type.as_str().into(),
            state_key: header.state_key.as_ref().map(|key| key.as_str().into()),
            content: header.content_range(&json)?,
            origin_server_ts: header.origin_server_ts,
            depth: header.depth,
            prev_events: reference::ids(header.prev_events, rules.references, "prev_events")?,
            auth_events: reference::ids(header.auth_events, rules.references, "auth_events")?,
            redacts: header::redacts(&header.event_type, header.redacts, header.content, rules),
            power_levels: OnceLock::new(),
            event_id,
            json: json.into_boxed_str(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// The rules of the room version that this event was read with.
    pub fn rules(&self) -> &'static Rules {
        self.0.rules
    }

    /// The event's id; in room version 3 and later computed from its reference hash.
    pub fn event_id(&self) -> &EventId {
        &self.0.event_id
    }

    /// The room. For the create event of room version 12 and later this follows from its id.
    pub fn room_id(&self) -> &RoomId {
        &self.0.room_id
    }

    /// Who sent the event.
    pub fn sender(&self) -> &UserId {
        &self.0.sender
    }

    /// The field `type`.
    pub fn event_type(&self) -> &str {
        &self.0.event_type
    }

    /// The state key; `None` if this is not a state event.
    pub fn state_key(&self) -> Option<&str> {
        self.0.state_key.as_deref()
    }

    /// The type and the state key, if this is a state event.
    pub fn state_pair(&self) -> Option<(&str, &str)> {
        self.state_key().map(|key| (self.event_type(), key))
    }

    /// Whether this is a state event with this type and state key.
    pub fn is_state(&self, event_type: &str, state_key: &str) -> bool {
        self.state_pair() == Some((event_type, state_key))
    }

    /// The canonical JSON of the content, an object.
    pub fn content_str(&self) -> &str {
        &self.0.json[self.0.content.clone()]
    }

    /// The content. Each call scans it once; [`Pdu::content_str`] costs nothing.
    pub fn content(&self) -> &RawValue {
        // The slice was read as JSON when the event was made, so the fallback is never taken.
        serde_json::from_str(self.content_str()).unwrap_or(RawValue::NULL)
    }

    /// The content read as some type.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content_str())
    }

    /// The content as power levels, read once. Only meaningful for `m.room.power_levels`.
    pub fn power_levels(&self) -> &PowerLevels {
        let read = || PowerLevels::read(self.content_str(), self.0.rules);
        self.0.power_levels.get_or_init(read)
    }

    /// When the sender's server says it made the event, in milliseconds since 1970.
    pub fn origin_server_ts(&self) -> u64 {
        self.0.origin_server_ts
    }

    /// The claimed depth in the room's graph.
    pub fn depth(&self) -> u64 {
        self.0.depth
    }

    /// The events that this one follows, at most [`crate::limits::MAX_PREV_EVENTS`].
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.0.prev_events
    }

    /// The events that are said to allow this one, at most [`crate::limits::MAX_AUTH_EVENTS`].
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.0.auth_events
    }

    /// The target, if this is a redaction that names one at the place of its room version.
    pub fn redacts(&self) -> Option<&EventId> {
        self.0.redacts.as_deref()
    }

    /// The whole event as canonical JSON without `unsigned`: what is stored and sent to servers.
    pub fn json(&self) -> &[u8] {
        self.0.json.as_bytes()
    }

    /// [`Pdu::json`] as text.
    pub fn json_str(&self) -> &str {
        &self.0.json
    }

    /// The event as an object, for hashing, signing and redaction.
    pub fn to_object(&self) -> Result<CanonicalObject, CanonicalError> {
        canonical::parse_object(self.json(), self.0.rules.strictness)
    }
}

impl fmt::Debug for Pdu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pdu")
            .field("event_id", &self.0.event_id)
            .field("json", &self.0.json)
            .finish_non_exhaustive()
    }
}

/// Two events are equal if they have the same id and the same bytes (signatures included).
impl PartialEq for Pdu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.event_id == other.0.event_id && self.0.json == other.0.json)
    }
}

impl Eq for Pdu {}

/// `hashes` must have a string `sha256`; `signatures` maps servers to maps of strings.
fn check_hashes_and_signatures(object: &CanonicalObject) -> Result<(), PduError> {
    let hashes = object.get("hashes").and_then(CanonicalValue::as_object);
    let sha256 = hashes.and_then(|hashes| hashes.get("sha256"));
    if sha256.and_then(CanonicalValue::as_str).is_none() {
        return Err(PduError::Form("hashes.sha256 is not a string".to_owned()));
    }
    let signatures = object.get("signatures").and_then(CanonicalValue::as_object);
    let well_formed = signatures.is_some_and(|signatures| {
        signatures.values().all(|of_server| {
            of_server.as_object().is_some_and(|of_server| {
                of_server
                    .values()
                    .all(|signature| signature.as_str().is_some())
            })
        })
    });
    if well_formed {
        Ok(())
    } else {
        Err(PduError::Form(
            "signatures is not a map of maps of strings".to_owned(),
        ))
    }
}
