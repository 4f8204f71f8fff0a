//! The tables of this crate, ids `0xa0`–`0xbf`, each with the layout of its key.

use homeserver_storage::{Position, Table, TableSpec};

use crate::{
    health::HealthRow,
    inbound::rows::{AnswerRow, NotedRow, WaitingEdu, WaitingPdu},
    keys::known::ServerKeys,
    membership::undo::UnsureJoin,
    sender::rows::BehindRow,
};

/// (server name) → the keys that it published, and its last document.
pub(crate) const SERVER_KEYS: Table<String, ServerKeys> = Table::new(0xa0, "server_keys");

/// (server name) → since when it fails, and when it is asked again; none if it is well.
pub(crate) const HEALTH: Table<String, HealthRow> = Table::new(0xa2, "health");

/// (room number, sequence) → an event of a transaction that was answered, to be judged.
pub(crate) const INBOUND_PDUS: Table<(u64, u64), WaitingPdu> = Table::new(0xa8, "inbound_pdus");

/// (origin, sequence) → an EDU of a transaction that was answered and that must not be lost.
pub(crate) const INBOUND_EDUS: Table<(String, u64), WaitingEdu> = Table::new(0xa9, "inbound_edus");

/// (half hour since 1970, digest of origin and transaction id) → what the transaction was answered.
pub(crate) const INBOUND_ANSWERS: Table<(u64, [u8; 16]), AnswerRow> =
    Table::new(0xaa, "inbound_answers");

/// (room number, event id) → an event that was refused since too many wait, to be fetched later.
pub(crate) const INBOUND_NOTED: Table<(u64, String), NotedRow> = Table::new(0xab, "inbound_noted");

/// (user, room id) → servers that were handed a join of which it is not known what became of it.
pub(crate) const UNSURE_JOINS: Table<(String, String), UnsureJoin> =
    Table::new(0xac, "unsure_joins");

/// (server name) → what it lacks beside events; for every server that lacks anything.
pub(crate) const BEHIND: Table<String, BehindRow> = Table::new(0xb8, "behind");

/// (server name, room number) → the first position from which the server lacks events of the room.
pub(crate) const BEHIND_ROOMS: Table<(String, u64), Position> = Table::new(0xb9, "behind_rooms");

/// All tables of this crate, for [`homeserver_storage::Store::open`].
pub const TABLES: &[TableSpec] = &[
    SERVER_KEYS.spec(),
    HEALTH.spec(),
    INBOUND_PDUS.spec(),
    INBOUND_EDUS.spec(),
    INBOUND_ANSWERS.spec(),
    INBOUND_NOTED.spec(),
    UNSURE_JOINS.spec(),
    BEHIND.spec(),
    BEHIND_ROOMS.spec(),
];
