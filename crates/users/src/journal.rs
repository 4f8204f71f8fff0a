//! What this crate appends to the journal: kinds `0x0200`–`0x02ff`, each entry a few numbers. They go when
//! they are old.
//!
//! | kind | numbers | topics |
//! |---|---|---|
//! | [`ACCOUNT_CHANGED`] | user | user |
//! | [`PROFILE_CHANGED`] | user | user |
//! | [`ACCOUNT_DATA_CHANGED`] | user, room (0 = global) | user |
//! | [`RECEIPT_CHANGED`] | room, user | receipts of the room |
//! | [`PRIVATE_RECEIPT_CHANGED`] | room, user | user |
//! | [`DEVICE_CHANGED`] | user, device number (0 = the one this entry creates) | user |
//! | [`DEVICE_DELETED`] | user, device number | user, device |
//! | [`DEVICE_LIST_CHANGED`] | user | device lists, user |
//! | [`ONE_TIME_KEYS_CHANGED`] | user, device number | device |
//! | [`SIGNATURE_ADDED`] | signer, target user | user (the signer) |
//! | [`TO_DEVICE_SENT`] | – | up to eight devices |
//! | [`TO_DEVICE_QUEUED`] | – | messages for other servers |
//!
//! Receipts have a topic kind of their own ([`TOPIC_RECEIPTS`]), because the topic of a room *is*
//! its arrival timeline and holds events only.

use homeserver_storage::{Entry, EntryKind, Topic};

use crate::{DeviceNumber, UserNumber};

/// An account was created or changed.
pub const ACCOUNT_CHANGED: EntryKind = EntryKind::trimmed(0x0200);
/// A profile changed.
pub const PROFILE_CHANGED: EntryKind = EntryKind::trimmed(0x0201);
/// A user's account data changed, global or of a room.
pub const ACCOUNT_DATA_CHANGED: EntryKind = EntryKind::trimmed(0x0202);
/// A public receipt moved.
pub const RECEIPT_CHANGED: EntryKind = EntryKind::trimmed(0x0203);
/// A private receipt moved; only its owner is told.
pub const PRIVATE_RECEIPT_CHANGED: EntryKind = EntryKind::trimmed(0x0204);
/// A device was created or renamed.
pub const DEVICE_CHANGED: EntryKind = EntryKind::trimmed(0x0205);
/// A device was deleted.
pub const DEVICE_DELETED: EntryKind = EntryKind::trimmed(0x0206);
/// What `/keys/query` says about a user changed.
pub const DEVICE_LIST_CHANGED: EntryKind = EntryKind::trimmed(0x0207);
/// One-time or fallback keys of a device were uploaded or used.
pub const ONE_TIME_KEYS_CHANGED: EntryKind = EntryKind::trimmed(0x0208);
/// A user signed a key of another, which only the signer can see.
pub const SIGNATURE_ADDED: EntryKind = EntryKind::trimmed(0x0209);
/// Messages were put into the inboxes of devices. Numbers: the devices.
pub const TO_DEVICE_SENT: EntryKind = EntryKind::trimmed(0x020a);

/// A message was queued for another server.
pub const TO_DEVICE_QUEUED: EntryKind = EntryKind::trimmed(0x020b);

/// The newest version of every entry above.
pub const VERSION: u8 = 1;

/// Topic kind: a user, by number.
pub const TOPIC_USER: u8 = 2;
/// Topic kind: a device, by device number.
pub const TOPIC_DEVICE: u8 = 3;
/// Topic kind: device lists of all users; the id is 0.
pub const TOPIC_DEVICE_LISTS: u8 = 5;
/// Topic kind: messages for devices of other servers; the id is 0.
pub const TOPIC_OUTGOING: u8 = 7;
/// Topic kind: public receipts of a room, by room number.
pub const TOPIC_RECEIPTS: u8 = 6;

pub(crate) fn entry(kind: EntryKind, numbers: &[u64]) -> Entry {
    Entry {
        kind,
        version: VERSION,
        numbers: numbers.iter().copied().collect(),
    }
}

/// The topic of what concerns one user.
pub fn user(user: UserNumber) -> Topic {
    Topic::new(TOPIC_USER, user.0)
}

/// The topic of what concerns one device.
pub fn device(device: DeviceNumber) -> Topic {
    Topic::new(TOPIC_DEVICE, device.0)
}

/// The topic of changed device lists.
pub fn device_lists() -> Topic {
    Topic::new(TOPIC_DEVICE_LISTS, 0)
}

/// The topic of messages that wait for other servers.
pub fn outgoing() -> Topic {
    Topic::new(TOPIC_OUTGOING, 0)
}

/// The topic of a room's public receipts.
pub fn receipts(room: u64) -> Topic {
    Topic::new(TOPIC_RECEIPTS, room)
}
