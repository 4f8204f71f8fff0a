//! A new event of this server, from typed parts to a sealed [`Pdu`].
//!
//! Sealing is the only way in which the server's key signs an event that did not exist before.
//! Whether the event is allowed is not decided here.

use std::borrow::Cow;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::canonical::{self, CanonicalError, CanonicalObject, CanonicalValue};
use crate::hash;
use crate::keys::SigningKey;
use crate::limits::{MAX_CANONICAL_INTEGER, MAX_PDU_BYTES};
use crate::pdu::{EventReference, Pdu, PduError};
use crate::redaction::redact_object;
use crate::rules::{EventIdFormat, RedactsPlace, RoomIdFormat, Rules};
use crate::signatures::{insert_signature, signed_text};

/// What a new event is made of.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The room. `None` exactly for the create event of room version 12 and later.
    pub room_id: Option<OwnedRoomId>,
    /// The sender, a user of this server; of any, in an invite that proves to fulfil a third-party
    /// invite of theirs.
    pub sender: OwnedUserId,
    /// The event type.
    pub event_type: String,
    /// The state key of a state event.
    pub state_key: Option<String>,
    /// The content, an object. It need not be canonical.
    pub content: Box<RawValue>,
    /// Now, in milliseconds since 1970.
    pub origin_server_ts: u64,
    /// The events that this one follows.
    pub prev_events: Vec<EventReference>,
    /// The events that allow this one.
    pub auth_events: Vec<EventReference>,
    /// One more than the greatest depth of `prev_events`; greater values than the room version
    /// allows are cut to its limit.
    pub depth: u64,
    /// The target of a redaction. It is put where the room version wants it; in room version 11 and
    /// later that is in the content.
    pub redacts: Option<OwnedEventId>,
}

/// Why a draft cannot become an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The content is not JSON that the room version accepts.
    #[error("the content is not acceptable JSON")]
    Content(#[from] CanonicalError),
    /// The sender is not a user of the signing server.
    #[error("the sender is not a user of this server")]
    ForeignSender,
    /// The room version sends reference hashes, and the one of this event was not given.
    #[error("the reference hash of {0} is missing")]
    MissingReferenceHash(OwnedEventId),
    /// A number is out of the range of canonical JSON.
    #[error("the timestamp is out of range")]
    Timestamp,
    /// The event breaks a limit or a rule of form.
    #[error("the event cannot be sealed")]
    Form(#[source] PduError),
    /// The event is larger than [`MAX_PDU_BYTES`].
    #[error("the event is larger than {MAX_PDU_BYTES} bytes")]
    TooLarge,
}

impl Draft {
    /// Hashes and signs the event, and gives it its id.
    ///
    /// In room versions 1 and 2 the id is derived from the content hash, so that sealing needs no
    /// randomness: equal drafts are the same event.
    pub fn seal(
        self,
        rules: &'static Rules,
        server_name: &ServerName,
        key: &SigningKey,
    ) -> Result<Pdu, SealError> {
        if self.sender.server_name() != server_name && !self.fulfils_third_party_invite() {
            return Err(SealError::ForeignSender);
        }
        let wants_room_id =
            rules.room_id == RoomIdFormat::Domain || self.event_type != "m.room.create";
        if wants_room_id != self.room_id.is_some() {
            return Err(SealError::Form(PduError::RoomId));
        }
        let mut object = self.into_object(rules)?;
        let mut event_id = None;
        if rules.event_id == EventIdFormat::Field {
            let opaque = hash::encode_base64_url(hash::content_hash(&object));
            object.insert(
                "event_id".to_owned(),
                format!("${opaque}:{server_name}").into(),
            );
        }
        let content_hash = hash::encode_base64(hash::content_hash(&object));
        let hashes = CanonicalObject::from([("sha256".to_owned(), content_hash.into())]);
        object.insert("hashes".to_owned(), CanonicalValue::Object(hashes));

        // One text serves the signature and the reference hash: neither covers `signatures`.
        let redacted = redact_object(&object, rules);
        let text = signed_text(&redacted);
        if rules.event_id != EventIdFormat::Field {
            event_id = hash::event_id_of_hash(&hash::sha256(text.as_bytes()), rules);
        }
        let signature = key.sign(text.as_bytes());
        insert_signature(
            &mut object,
            server_name.as_str(),
            key.id().as_str(),
            signature,
        );

        let json = canonical::to_string(&object);
        if json.len() > MAX_PDU_BYTES {
            return Err(SealError::TooLarge);
        }
        Pdu::assemble(json, event_id, rules).map_err(SealError::Form)
    }

    /// Whether the event is an invite with a proof of a third-party invite, which any server in the
    /// room may make in the name of whoever sent that: the identity server's signature vouches for it.
    fn fulfils_third_party_invite(&self) -> bool {
        #[derive(Deserialize)]
        struct Content<'a> {
            membership: Cow<'a, str>,
            #[serde(borrow)]
            third_party_invite: Option<&'a RawValue>,
        }
        let content = serde_json::from_str::<Content<'_>>(self.content.get());
        self.event_type == "m.room.member"
            && content.is_ok_and(|content| {
                content.membership == "invite" && content.third_party_invite.is_some()
            })
    }

    /// The event without hashes and signatures: what another server may sign for its own user
    /// (server-server API, `make_join`). Nobody signs it here, so the sender may be anybody's.
    ///
    /// # Errors
    /// As [`Draft::seal`], but for the size.
    pub fn template(self, rules: &'static Rules) -> Result<CanonicalObject, SealError> {
        self.into_object(rules)
    }

    fn into_object(self, rules: &Rules) -> Result<CanonicalObject, SealError> {
        let mut content = canonical::parse_object(self.content.get().as_bytes(), rules.strictness)?;
        let mut object = CanonicalObject::new();
        let mut put = |key: &str, value: CanonicalValue| object.insert(key.to_owned(), value);
        if let Some(redacts) = self.redacts {
            let redacts = CanonicalValue::from(redacts.as_str());
            match rules.redacts {
                RedactsPlace::TopLevel => put("redacts", redacts),
                RedactsPlace::Content => content.insert("redacts".to_owned(), redacts),
            };
        }
        if let Some(room_id) = self.room_id {
            put("room_id", room_id.as_str().into());
        }
        if let Some(state_key) = self.state_key {
            put("state_key", state_key.into());
        }
        let ts = i64::try_from(self.origin_server_ts).map_err(|_| SealError::Timestamp)?;
        if ts > MAX_CANONICAL_INTEGER {
            return Err(SealError::Timestamp);
        }
        let depth = self.depth.min(rules.max_depth);
        put("sender", self.sender.as_str().into());
        put("type", self.event_type.into());
        put("content", CanonicalValue::Object(content));
        put("origin_server_ts", CanonicalValue::Integer(ts));
        put(
            "depth",
            CanonicalValue::Integer(i64::try_from(depth).unwrap_or(i64::MAX)),
        );
        put("prev_events", references(&self.prev_events, rules)?);
        put("auth_events", references(&self.auth_events, rules)?);
        Ok(object)
    }
}

fn references(references: &[EventReference], rules: &Rules) -> Result<CanonicalValue, SealError> {
    let values = references.iter().map(|reference| {
        reference
            .to_value(rules.references)
            .ok_or_else(|| SealError::MissingReferenceHash(reference.event_id.clone()))
    });
    values
        .collect::<Result<Vec<_>, _>>()
        .map(CanonicalValue::Array)
}
