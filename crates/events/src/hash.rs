//! Content hash, reference hash, and the ids that follow from them ([Signing Events][1]).
//!
//! The content hash covers the whole event and tells whether it was redacted on the way. The
//! reference hash covers what a redaction keeps; from room version 3 on it *is* the event id, and in
//! room version 12 the create event's id is the room id.
//!
//! [1]: https://spec.matrix.org/v1.19/server-server-api/#signing-events

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use sha2::{Digest, Sha256};

use crate::canonical::{CanonicalObject, CanonicalValue, to_string_without};
use crate::redaction::redact_object;
use crate::rules::{EventIdFormat, Rules};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Reads with or without padding and ignores stray trailing bits, as other servers do; writes
/// without padding.
const UNPADDED: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_encode_padding(false)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, UNPADDED);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, UNPADDED);

/// Unpadded standard base64.
pub fn encode_base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// Unpadded URL-safe base64.
pub fn encode_base64_url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE.encode(bytes)
}

/// Decodes standard base64, padded or not. `None` if it is not base64.
pub fn decode_base64(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Decodes base64 in the standard or the URL-safe alphabet (public keys of identity servers come
/// in both).
pub fn decode_any_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .ok()
}

/// SHA-256 of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// The content hash: of everything but `unsigned`, `signatures` and `hashes`.
pub fn content_hash(event: &CanonicalObject) -> Hash {
    let text = to_string_without(event, &["unsigned", "signatures", "hashes"]);
    sha256(text.as_bytes())
}

/// The reference hash: of the redacted event without `signatures` and `unsigned`.
pub fn reference_hash(event: &CanonicalObject, rules: &Rules) -> Hash {
    let text = to_string_without(&redact_object(event, rules), &["signatures", "unsigned"]);
    sha256(text.as_bytes())
}

/// Whether `hashes.sha256` is the content hash. A missing or unreadable hash does not match.
pub fn content_hash_matches(event: &CanonicalObject) -> bool {
    let claimed = event
        .get("hashes")
        .and_then(CanonicalValue::as_object)
        .and_then(|hashes| hashes.get("sha256"))
        .and_then(CanonicalValue::as_str)
        .and_then(decode_base64);
    claimed.is_some_and(|claimed| claimed == content_hash(event))
}

/// The event id with this reference hash, in room versions whose ids are hashes.
pub fn event_id_of_hash(hash: &Hash, rules: &Rules) -> Option<OwnedEventId> {
    let encoded = match rules.event_id {
        EventIdFormat::Field => return None,
        EventIdFormat::HashStandard => STANDARD.encode(hash),
        EventIdFormat::HashUrlSafe => URL_SAFE.encode(hash),
    };
    EventId::parse(format!("${encoded}")).ok()
}

/// The id of the room that this create event makes, in room version 12 and later.
pub fn room_id_of_create(create: &EventId) -> Option<OwnedRoomId> {
    let opaque = create.as_str().strip_prefix('$')?;
    RoomId::parse(format!("!{opaque}")).ok()
}

/// The create event that this room id names, in room version 12 and later.
pub fn create_of_room_id(room: &RoomId) -> Option<OwnedEventId> {
    let opaque = room.as_str().strip_prefix('!')?;
    if opaque.contains(':') {
        return None;
    }
    EventId::parse(format!("${opaque}")).ok()
}
