//! How one event names another: an id, in room versions 1 and 2 with its reference hash.

use std::borrow::Cow;
use std::fmt;

use ruma::{EventId, OwnedEventId};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::{Pdu, PduError};
use crate::canonical::{CanonicalError, CanonicalObject, CanonicalValue};
use crate::hash::{self, Hash};
use crate::limits::MAX_ID_BYTES;
use crate::rules::ReferenceShape;

/// An event that a new event follows or is authorised by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventReference {
    /// The event's id.
    pub event_id: OwnedEventId,
    /// Its reference hash, which room versions 1 and 2 send beside the id; unused in others.
    pub reference_hash: Option<Hash>,
}

impl From<OwnedEventId> for EventReference {
    /// A reference for room version 3 and later.
    fn from(event_id: OwnedEventId) -> Self {
        Self {
            event_id,
            reference_hash: None,
        }
    }
}

impl From<&EventId> for EventReference {
    fn from(event_id: &EventId) -> Self {
        event_id.to_owned().into()
    }
}

impl Pdu {
    /// A reference to this event that is complete in its room version.
    pub fn reference(&self) -> Result<EventReference, CanonicalError> {
        let reference_hash = match self.rules().references {
            ReferenceShape::Ids => None,
            ReferenceShape::Pairs => Some(hash::reference_hash(&self.to_object()?, self.rules())),
        };
        Ok(EventReference {
            event_id: self.event_id().to_owned(),
            reference_hash,
        })
    }
}

impl EventReference {
    /// The JSON of the reference. `None` if the room version sends the hash and it is missing.
    pub(crate) fn to_value(&self, shape: ReferenceShape) -> Option<CanonicalValue> {
        let id = CanonicalValue::from(self.event_id.as_str());
        match shape {
            ReferenceShape::Ids => Some(id),
            ReferenceShape::Pairs => {
                let hash = hash::encode_base64(self.reference_hash?);
                let hashes = CanonicalObject::from([("sha256".to_owned(), hash.into())]);
                Some(CanonicalValue::Array(vec![
                    id,
                    CanonicalValue::Object(hashes),
                ]))
            }
        }
    }
}

/// An entry of `prev_events` or `auth_events` as it was sent.
pub(super) struct SentReference<'a> {
    id: Cow<'a, str>,
    shape: ReferenceShape,
}

impl<'de: 'a, 'a> Deserialize<'de> for SentReference<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReferenceVisitor)
    }
}

struct ReferenceVisitor;

impl<'de> Visitor<'de> for ReferenceVisitor {
    type Value = SentReference<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an event id, or a pair of an event id and hashes")
    }

    fn visit_borrowed_str<E: de::Error>(self, id: &'de str) -> Result<Self::Value, E> {
        Ok(SentReference {
            id: Cow::Borrowed(id),
            shape: ReferenceShape::Ids,
        })
    }

    fn visit_str<E: de::Error>(self, id: &str) -> Result<Self::Value, E> {
        Ok(SentReference {
            id: Cow::Owned(id.to_owned()),
            shape: ReferenceShape::Ids,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
        let id: Option<String> = pair.next_element()?;
        let hashes: Option<serde_json::Map<String, serde_json::Value>> = pair.next_element()?;
        let more: Option<IgnoredAny> = pair.next_element()?;
        match (id, hashes, more) {
            (Some(id), Some(_), None) => Ok(SentReference {
                id: Cow::Owned(id),
                shape: ReferenceShape::Pairs,
            }),
            _ => Err(de::Error::custom(
                "a reference must be a pair of an event id and hashes",
            )),
        }
    }
}

/// The ids of references, which must have the shape of the room version.
pub(super) fn ids(
    references: Vec<SentReference<'_>>,
    shape: ReferenceShape,
    field: &'static str,
) -> Result<Vec<OwnedEventId>, PduError> {
    references
        .into_iter()
        .map(|reference| {
            if reference.shape != shape {
                return Err(PduError::ReferenceForm(field));
            }
            if reference.id.len() > MAX_ID_BYTES {
                return Err(PduError::FieldTooLong(field));
            }
            EventId::parse(reference.id.as_ref()).map_err(|_| PduError::Identifier(field))
        })
        .collect()
}
