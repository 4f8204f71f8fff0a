//! The tables of this crate, ids `0x40`–`0x6f`, each with the layout of its key.
//!
//! "user" is a user number, "device" a device number, "room" a room number.

use homeserver_storage::{Bytes, Position, Positioned, Table, TableSpec};

use crate::{
    account::AccountRow,
    account_data::{ChangeRow, ContentRow},
    cross_signing::CrossSigningKeyRow,
    device::{DeviceRow, Seen},
    device_list::DeviceChangeRow,
    inbox::{MessageRow, TransactionRow},
    keys::{CountsRow, DeviceKeysRow, FallbackKeyRow, OneTimeKeyKey, OneTimeKeyRow},
    outgoing::OutgoingRow,
    profile::ProfileRow,
    receipt::{ReceiptChangeRow, ReceiptKey, ReceiptRow},
    remote_list::{RemoteDeviceRow, RemoteListRow},
    signature::{SignatureKey, SignatureRow},
};

/// (user) → the account.
pub(crate) const ACCOUNTS: Table<u64, AccountRow> = Table::new(0x40, "accounts");

/// () → user number of the first account ever.
pub(crate) const FIRST_ACCOUNT: Table<(), u64> = Table::new(0x41, "first_account");

/// (user, device id) → the device; its position is the device number.
pub(crate) const DEVICES: Table<(u64, String), Positioned<DeviceRow>> = Table::new(0x42, "devices");

/// (device) → when and from where it was last used.
pub(crate) const DEVICE_SEEN: Table<u64, Seen> = Table::new(0x43, "device_seen");

/// (device) → (): deleted, but not everything of it is swept away yet.
pub(crate) const DEVICE_REMAINS: Table<u64, ()> = Table::new(0x44, "device_remains");

/// (user) → all profile fields.
pub(crate) const PROFILES: Table<u64, ProfileRow> = Table::new(0x45, "profiles");

/// (user, room or 0, type) → the content and the position at which it was set.
pub(crate) const ACCOUNT_DATA: Table<(u64, u64, String), Positioned<ContentRow>> =
    Table::new(0x46, "account_data");

/// (user, position) → which value was set there; only for the last value of each.
pub(crate) const ACCOUNT_DATA_CHANGES: Table<(u64, Position), ChangeRow> =
    Table::new(0x47, "account_data_changes");

/// (room, user) → arrival position of the event that the fully read marker stands at.
pub(crate) const READ_MARKERS: Table<(u64, u64), Position> = Table::new(0x48, "read_markers");

/// (user, hash of the filter) → the filter's JSON.
pub(crate) const FILTERS: Table<(u64, u128), Bytes> = Table::new(0x49, "filters");

/// (room, user, 0 public or 1 private, thread: empty, `main` or an event id) → the receipt and
/// the position at which it moved.
pub(crate) const RECEIPTS: Table<ReceiptKey, Positioned<ReceiptRow>> = Table::new(0x4a, "receipts");

/// (room, position) → which receipt moved there; only for where each stands now.
pub(crate) const RECEIPT_CHANGES: Table<(u64, Position), ReceiptChangeRow> =
    Table::new(0x4b, "receipt_changes");

/// (device) → its identity keys.
pub(crate) const DEVICE_KEYS: Table<u64, DeviceKeysRow> = Table::new(0x50, "device_keys");

/// (device, algorithm, position of the upload, place in the upload) → a waiting one-time key.
pub(crate) const ONE_TIME_KEYS: Table<OneTimeKeyKey, OneTimeKeyRow> =
    Table::new(0x51, "one_time_keys");

/// (device, algorithm, key id) → where in `ONE_TIME_KEYS` the key waits.
pub(crate) const ONE_TIME_KEY_IDS: Table<(u64, String, String), Positioned<u64>> =
    Table::new(0x52, "one_time_key_ids");

/// (device) → waiting one-time keys by algorithm.
pub(crate) const ONE_TIME_KEY_COUNTS: Table<u64, CountsRow> =
    Table::new(0x53, "one_time_key_counts");

/// (device, algorithm) → the fallback key.
pub(crate) const FALLBACK_KEYS: Table<(u64, String), FallbackKeyRow> =
    Table::new(0x54, "fallback_keys");

/// (user, 0 master, 1 self-signing, 2 user-signing) → the cross-signing key.
pub(crate) const CROSS_SIGNING_KEYS: Table<(u64, u8), CrossSigningKeyRow> =
    Table::new(0x55, "cross_signing_keys");

/// (target user, signer's user, id of the target key, id of the signing key) → the signature.
pub(crate) const SIGNATURES: Table<SignatureKey, SignatureRow> = Table::new(0x56, "signatures");

/// (user, position) → (): the user's device list changed. Never overwritten.
pub(crate) const DEVICE_LIST_CHANGES: Table<(u64, Position), ()> =
    Table::new(0x57, "device_list_changes");

/// (device, position) → a message waiting for the device.
pub(crate) const INBOX: Table<(u64, Position), MessageRow> = Table::new(0x58, "inbox");

/// (sending device, hash of type and transaction id) → how far the request was carried out.
pub(crate) const TO_DEVICE_TRANSACTIONS: Table<(u64, u128), TransactionRow> =
    Table::new(0x59, "to_device_transactions");

/// (start in Unix milliseconds, sending device, hash) → (): finds old transactions.
pub(crate) const TO_DEVICE_TRANSACTIONS_BY_TIME: Table<(u64, u64, u128), ()> =
    Table::new(0x5a, "to_device_transactions_by_time");

/// (user of this server, position) → which of the user's devices changed there, as other servers
/// are told. Never overwritten.
pub(crate) const DEVICE_CHANGES: Table<(u64, Position), DeviceChangeRow> =
    Table::new(0x5b, "device_changes");

/// (user of another server) → what is known of the user's device list.
pub(crate) const REMOTE_LISTS: Table<u64, RemoteListRow> = Table::new(0x5c, "remote_lists");

/// (user of another server, device id) → the device.
pub(crate) const REMOTE_DEVICES: Table<(u64, String), RemoteDeviceRow> =
    Table::new(0x5d, "remote_devices");

/// (user of another server) → (): the device list has to be fetched.
pub(crate) const STALE_LISTS: Table<u64, ()> = Table::new(0x5e, "stale_lists");

/// (server, position) → messages for the server's devices.
pub(crate) const OUTGOING: Table<(String, Position), OutgoingRow> = Table::new(0x5f, "outgoing");

/// (position, server) → (): in which order messages were queued.
pub(crate) const OUTGOING_BY_POSITION: Table<(Position, String), ()> =
    Table::new(0x60, "outgoing_by_position");

/// All tables of this crate, for the registry.
pub const TABLES: &[TableSpec] = &[
    ACCOUNTS.spec(),
    FIRST_ACCOUNT.spec(),
    DEVICES.spec(),
    DEVICE_SEEN.spec(),
    DEVICE_REMAINS.spec(),
    PROFILES.spec(),
    ACCOUNT_DATA.spec(),
    ACCOUNT_DATA_CHANGES.spec(),
    READ_MARKERS.spec(),
    FILTERS.spec(),
    RECEIPTS.spec(),
    RECEIPT_CHANGES.spec(),
    DEVICE_KEYS.spec(),
    ONE_TIME_KEYS.spec(),
    ONE_TIME_KEY_IDS.spec(),
    ONE_TIME_KEY_COUNTS.spec(),
    FALLBACK_KEYS.spec(),
    CROSS_SIGNING_KEYS.spec(),
    SIGNATURES.spec(),
    DEVICE_LIST_CHANGES.spec(),
    INBOX.spec(),
    TO_DEVICE_TRANSACTIONS.spec(),
    TO_DEVICE_TRANSACTIONS_BY_TIME.spec(),
    DEVICE_CHANGES.spec(),
    REMOTE_LISTS.spec(),
    REMOTE_DEVICES.spec(),
    STALE_LISTS.spec(),
    OUTGOING.spec(),
    OUTGOING_BY_POSITION.spec(),
];
