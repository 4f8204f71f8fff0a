//! The size and form limits of events ([Client-Server API, size limits][1], and the event formats
//! of the room versions).
//!
//! [1]: https://spec.matrix.org/v1.19/client-server-api/#size-limits

/// Greatest size of a whole event in bytes, as canonical JSON in the federation format with its
/// signatures. An event of exactly this size is allowed.
pub const MAX_PDU_BYTES: usize = 65_536;

/// Greatest length in bytes of `sender`, `room_id`, `event_id`, `type` and `state_key`.
pub const MAX_ID_BYTES: usize = 255;

/// Greatest number of entries in `prev_events`.
pub const MAX_PREV_EVENTS: usize = 20;

/// Greatest number of entries in `auth_events`.
pub const MAX_AUTH_EVENTS: usize = 10;

/// How deeply arrays and objects of an event may be nested. This is what `serde_json`, and with it
/// every consumer in this workspace and every ruma client, is able to read.
pub const MAX_JSON_DEPTH: usize = 127;

/// Greatest integer of canonical JSON (2^53 − 1), in room versions 6 and later also the greatest
/// `depth`.
pub const MAX_CANONICAL_INTEGER: i64 = (1 << 53) - 1;

/// Greatest `depth` of an event in room versions 1 to 5 (2^63 − 1).
pub const MAX_LENIENT_DEPTH: u64 = i64::MAX as u64;
