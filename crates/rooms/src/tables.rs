//! Every table of the rooms: its key layout and its rows.
//!
//! A row of a room starts with the room's number, so that a purge drops ranges. *History* rows
//! carry a position in their key and are never overwritten; a *current* row is a copy of the newest
//! history row, kept for writers, and carries its position, so that a reader at an earlier position
//! knows to look at the history instead.

use homeserver_storage::{At, Bytes, Position, Positioned, Reverse64, Table, TableSpec};

use crate::rows::{
    AliasRow, ArrivalRow, EventRow, GapRow, Head, ImportPartRow, ImportRow, ImportStateRow,
    IndexDebtRow, JoinedUsers, MembershipRow, NodeRow, PartialRow, RelationKey, RelationRow,
    RoomRow, ServersRow, StateLogRow, StrippedRow, TransactionRow, TreeSweepRow, ViaRow,
};
use crate::tally::ClassCounts;

/// (room id) → room number.
pub(crate) const ROOM_IDS: Table<String, u64> = Table::new(0x10, "room_ids");
/// (room number) → what never changes about the room.
pub(crate) const ROOMS: Table<u64, RoomRow> = Table::new(0x11, "rooms");
/// (room number) → the tip of the room. Every batch that changes a room asserts and replaces it.
pub(crate) const HEADS: Table<u64, Head> = Table::new(0x12, "room_heads");
/// (room number, event id) → event number; also of events that were only mentioned.
pub(crate) const EVENT_IDS: Table<(u64, String), u64> = Table::new(0x13, "event_ids");
/// (digest of an event id, number of a room that the event is in) → nothing. See `whereabouts`.
pub(crate) const EVENT_ROOMS: Table<([u8; 16], u64), ()> = Table::new(0x34, "event_rooms");
/// (room number, event number) → the event, with the position it arrived at (zero if none).
pub(crate) const EVENTS: Table<(u64, u64), Positioned<EventRow>> = Table::new(0x14, "events");
/// (room number, arrival position) → the event and how it was counted. Live events only. History.
pub(crate) const ARRIVALS: Table<(u64, Position), ArrivalRow> = Table::new(0x15, "arrivals");
/// (room number, height, 1 for live and 0 for backfilled, tie) → event number. Ordered as history.
/// The tie of a live event is its position; that of a backfilled one counts down from `u64::MAX`.
pub(crate) const HISTORY: Table<(u64, u64, u8, Position), u64> = Table::new(0x16, "history");
/// (room number, position) → the room's resolved state from there on. History.
pub(crate) const STATE_LOG: Table<(u64, Position), StateLogRow> = Table::new(0x17, "state_log");
/// (room number, content hash) → node of the state tree.
pub(crate) const STATE_NODES: Table<(u64, [u8; 16]), NodeRow> = Table::new(0x18, "state_nodes");
/// (local user number, room number, position) → the user's membership from there on. History.
pub(crate) const MEMBERSHIPS: Table<(u64, u64, Position), MembershipRow> =
    Table::new(0x19, "memberships");
/// (local user number, room number) → the user's membership now. Current.
pub(crate) const CURRENT_MEMBERSHIPS: Table<(u64, u64), Positioned<MembershipRow>> =
    Table::new(0x1a, "current_memberships");
/// (room number, local user number) → the user's membership now. Current.
pub(crate) const LOCAL_MEMBERS: Table<(u64, u64), Positioned<MembershipRow>> =
    Table::new(0x1b, "local_members");
/// (local user number, room number, position) → the stripped state told with an invite or knock.
pub(crate) const STRIPPED_STATE: Table<(u64, u64, Position), StrippedRow> =
    Table::new(0x1c, "stripped_state");
/// (room number, server name) → how many of its users are joined. Current.
pub(crate) const SERVER_COUNTS: Table<(u64, String), JoinedUsers> =
    Table::new(0x1d, "server_counts");
/// (room number, server name, position) → 1 while the server has joined users, 0 after. History.
pub(crate) const SERVER_LOG: Table<(u64, String, Position), u64> = Table::new(0x1e, "server_log");
/// (alias) → where it points.
pub(crate) const ALIASES: Table<String, AliasRow> = Table::new(0x1f, "aliases");
/// (room number, alias) → nothing.
pub(crate) const ROOM_ALIASES: Table<(u64, String), ()> = Table::new(0x20, "room_aliases");
/// (joined users, most first; room number) → nothing. The rooms listed in this server's directory.
pub(crate) const DIRECTORY: Table<(Reverse64, u64), ()> = Table::new(0x21, "directory");
/// (user, device and transaction digests) → what the transaction did.
pub(crate) const TRANSACTIONS: Table<([u8; 16], [u8; 16]), Positioned<TransactionRow>> =
    Table::new(0x22, "transactions");
/// (room number, target event number, relation type or "" for all, height, live, tie) → the event
/// that relates to the target. Ordered as history.
pub(crate) const RELATIONS: Table<RelationKey, RelationRow> = Table::new(0x23, "relations");
/// (room number, position) → the thread root that an event arriving there belongs to. History.
pub(crate) const THREAD_LOG: Table<(u64, Position), u64> = Table::new(0x24, "thread_log");
/// (room number, height, live, tie) of an event → the previous events of it that are missing.
pub(crate) const GAPS: Table<(u64, u64, u8, Position), GapRow> = Table::new(0x25, "gaps");
/// (room number, target event number, server of its sender or "" for one with the power to redact) →
/// the event number of a redaction whose target is not here yet.
pub(crate) const WAITING_REDACTIONS: Table<(u64, u64, String), u64> =
    Table::new(0x26, "waiting_redactions");
/// (import id) → how far a change larger than a batch has come.
pub(crate) const IMPORTS: Table<u64, ImportRow> = Table::new(0x27, "imports");
/// (import id, ordinal) → part of what the import prepared, by which an abandoned one is swept.
pub(crate) const IMPORT_PARTS: Table<(u64, u64), ImportPartRow> = Table::new(0x28, "import_parts");
/// (import id, event id) → the number of an event that the import wrote: before the switch nothing
/// else finds it.
pub(crate) const IMPORT_IDS: Table<(u64, String), u64> = Table::new(0x32, "import_ids");
/// (import id, ordinal) → the state events of a part, in their order. They are put into the tree all
/// at once, and kept until the members of the switch are indexed. See `import`.
pub(crate) const IMPORT_STATES: Table<(u64, u64), ImportStateRow> =
    Table::new(0x33, "import_states");
/// (kind of number) → the first number not yet handed out.
pub(crate) const NUMBER_BLOCKS: Table<u8, u64> = Table::new(0x29, "number_blocks");
/// (name) → a secret of this database.
pub(crate) const SECRETS: Table<String, Bytes> = Table::new(0x2a, "room_secrets");
/// (room number, position) → a state log row whose member indexes were not written. See `switch`.
pub(crate) const INDEX_DEBTS: Table<(u64, Position), IndexDebtRow> =
    Table::new(0x2b, "index_debts");
/// (room number, root's event number, position) → what the thread has counted. History.
pub(crate) const THREAD_TALLIES: Table<(u64, u64, Position), ClassCounts> =
    Table::new(0x2c, "thread_tallies");
/// (local user number, room number, arrival position) → the event there, which mentions the user.
/// User number zero: it mentions more users than are named here.
pub(crate) const MENTIONS: Table<(u64, u64, Position), ArrivalRow> = Table::new(0x2d, "mentions");
/// (room number, arrival position) → the event there, which was redacted since.
pub(crate) const UNCOUNTED: Table<(u64, Position), ArrivalRow> = Table::new(0x2e, "uncounted");
/// (local user number, room number, thread root's event number or zero) → where the user last wrote.
pub(crate) const OWN_READS: Table<(u64, u64, u64), At> = Table::new(0x2f, "own_reads");
/// (room number) → how far a sweep of the room's tree nodes has come; absent when none is due.
pub(crate) const TREE_SWEEPS: Table<u64, TreeSweepRow> = Table::new(0x30, "tree_sweeps");
/// (room number, generation, node) → nothing. The sweep of that generation found that the node and
/// all below it are reachable.
pub(crate) const TREE_MARKS: Table<(u64, u64, [u8; 16]), ()> = Table::new(0x31, "tree_marks");
/// (room id, version as it was told) → the number of a room that is not here, or not yet: local
/// users are invited to it or knock, or it is being taken in. See `outside`.
pub(crate) const OUTSIDE_ROOMS: Table<(String, String), u64> = Table::new(0x38, "outside_rooms");
/// (local user number, room number) → servers by which the user is known to the room.
pub(crate) const OUTSIDE_VIA: Table<(u64, u64), ViaRow> = Table::new(0x39, "outside_via");
/// (import id) → number of the room that is being taken in. What a killed process left goes when
/// the rooms are opened. See `arrival`.
pub(crate) const ARRIVING: Table<u64, u64> = Table::new(0x3a, "arriving");

/// (room number) → where this server came into a room of whose state only part was told then, and
/// how far it has come since. See `partial`.
pub(crate) const PARTIAL_ROOMS: Table<u64, Positioned<PartialRow>> =
    Table::new(0x3b, "partial_rooms");
/// (room number, order of judging) → event number. Events that were judged on incomplete state.
pub(crate) const PARTIAL_EVENTS: Table<(u64, u64), u64> = Table::new(0x3c, "partial_events");
/// (room number, ordinal) → some of the servers that are said to be in a room of partial state.
pub(crate) const PARTIAL_SERVERS: Table<(u64, u64), ServersRow> =
    Table::new(0x3d, "partial_servers");
/// (room number) → where the state of a room became whole that was partial before.
pub(crate) const MADE_WHOLE: Table<u64, At> = Table::new(0x3e, "made_whole");

/// All tables of this crate.
pub const TABLES: &[TableSpec] = &[
    ROOM_IDS.spec(),
    ROOMS.spec(),
    HEADS.spec(),
    EVENT_IDS.spec(),
    EVENTS.spec(),
    ARRIVALS.spec(),
    HISTORY.spec(),
    STATE_LOG.spec(),
    STATE_NODES.spec(),
    MEMBERSHIPS.spec(),
    CURRENT_MEMBERSHIPS.spec(),
    LOCAL_MEMBERS.spec(),
    STRIPPED_STATE.spec(),
    SERVER_COUNTS.spec(),
    SERVER_LOG.spec(),
    ALIASES.spec(),
    ROOM_ALIASES.spec(),
    DIRECTORY.spec(),
    TRANSACTIONS.spec(),
    RELATIONS.spec(),
    THREAD_LOG.spec(),
    GAPS.spec(),
    WAITING_REDACTIONS.spec(),
    IMPORTS.spec(),
    IMPORT_PARTS.spec(),
    NUMBER_BLOCKS.spec(),
    SECRETS.spec(),
    INDEX_DEBTS.spec(),
    THREAD_TALLIES.spec(),
    MENTIONS.spec(),
    UNCOUNTED.spec(),
    OWN_READS.spec(),
    TREE_SWEEPS.spec(),
    TREE_MARKS.spec(),
    IMPORT_IDS.spec(),
    IMPORT_STATES.spec(),
    EVENT_ROOMS.spec(),
    OUTSIDE_ROOMS.spec(),
    OUTSIDE_VIA.spec(),
    ARRIVING.spec(),
    PARTIAL_ROOMS.spec(),
    PARTIAL_EVENTS.spec(),
    PARTIAL_SERVERS.spec(),
    MADE_WHOLE.spec(),
];
