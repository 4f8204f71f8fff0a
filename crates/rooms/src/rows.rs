//! The rows of the rooms, as stored.
//!
//! Fields are only ever added with a new row version; see the snapshot tests.

use homeserver_events::EventStatus;
use homeserver_storage::{
    Batch, Bytes, DecodeError, Position, Row, RowWriter, row,
    row::{decode_versioned, encode_versioned},
};
use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomVersionId};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    numbers::{EventNumber, KeyNumber},
    tables::SERVER_COUNTS,
    tally::{ClassCounts, Tally},
    tree::{KeyHash, StateRoot},
};

/// What never changes about a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoomRow {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) version: RoomVersionId,
    /// The event that made the room.
    pub(crate) create: EventNumber,
}
row!(RoomRow, 1);

/// An event that nothing follows yet: the next event of this server names it as previous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extremity {
    pub(crate) number: EventNumber,
    pub(crate) id: OwnedEventId,
    /// Our own height in the history.
    pub(crate) height: u64,
    /// Its reference hash, where its room version sends that beside the id.
    pub(crate) reference_hash: Option<[u8; 32]>,
    /// The depth its sender claims, on which ours builds.
    pub(crate) depth: u64,
    /// The state after it.
    pub(crate) after: StateRoot,
}

/// The tip of a room: all that the next event builds on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Counts the batches of the room, so that no two tips are equal.
    pub(crate) sequence: u64,
    pub(crate) extremities: SmallVec<[Extremity; 1]>,
    /// The resolved state.
    pub(crate) root: StateRoot,
    pub(crate) joined: u64,
    pub(crate) invited: u64,
    /// What was counted up to here.
    pub(crate) tally: Tally,
    /// What the tree nodes of this room are marked with that are written now. See `sweep::nodes`.
    pub(crate) generation: u64,
    /// Everybody may find the room in this server's directory.
    pub(crate) listed: bool,
    /// The greatest height of what has arrived.
    pub(crate) highest: u64,
    /// A state that the extremities alone do not carry: what forgotten extremities or an import
    /// brought. It is resolved together with theirs until an event of this server, whose state is
    /// the room's, follows them.
    pub(crate) apart: Option<StateRoot>,
}
row!(Head, 1);

impl Head {
    /// The height of the next event.
    pub(crate) fn next_height(&self) -> u64 {
        self.extremities.iter().map(|e| e.height).max().unwrap_or(0) + 1
    }
}

/// An event that arrived, and how it was counted; see [`crate::tally`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ArrivalRow {
    pub(crate) event: EventNumber,
    /// The number of its class under the default push rules.
    pub(crate) class: u8,
    /// The root of its thread, zero for none.
    pub(crate) thread: u64,
    /// What the room has counted, this event included.
    pub(crate) tally: Tally,
    /// The greatest height of what has arrived in the room, this event included.
    pub(crate) highest: u64,
}
row!(ArrivalRow, 1);
row!(ClassCounts, 1);

/// An event with what this server knows about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EventRow {
    pub(crate) id: OwnedEventId,
    /// What was decided about it, with the state before it.
    pub(crate) status: EventStatus<StateRoot>,
    /// The state after the event.
    pub(crate) after: StateRoot,
    pub(crate) height: u64,
    /// Set for backfilled events, which have no arrival position: the tie of their history key.
    pub(crate) backfill_tie: Option<u64>,
    /// One more than the greatest of its auth events, zero without any.
    pub(crate) auth_height: u64,
    pub(crate) auth: SmallVec<[EventNumber; 4]>,
    pub(crate) prev: SmallVec<[EventNumber; 1]>,
    /// Some previous events were missing when it came; see the gap rows.
    pub(crate) over_gap: bool,
    /// The state event with the same key that this one replaced.
    pub(crate) replaces: Option<EventNumber>,
    /// The redaction that was applied to this event.
    pub(crate) redacted_by: Option<EventNumber>,
    /// The device and transaction id of the request that made it.
    pub(crate) origin: Option<Origin>,
    /// The event as received, canonical; replaced by its redacted form when it is redacted.
    #[serde(with = "bytes_as_slice")]
    pub(crate) json: Bytes,
}
row!(EventRow, 1);

/// The request that an event of this server was made by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The device that sent the request.
    pub device: OwnedDeviceId,
    /// The transaction id in it.
    pub transaction: String,
}

/// The state of a room from a position on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateLogRow {
    /// The resolved state.
    pub root: StateRoot,
    /// How many users are joined in it.
    pub joined: u64,
    /// How many users are invited in it.
    pub invited: u64,
}
row!(StateLogRow, 1);

/// A node of a state tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// That of the room when the node was last written.
    pub(crate) generation: u64,
    #[serde(with = "bytes_as_slice")]
    pub(crate) encoded: Bytes,
}
row!(NodeRow, 1);

/// What a user is to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Membership {
    /// Invited.
    Invite,
    /// In the room.
    Join,
    /// Asking to be let in.
    Knock,
    /// Not in the room, nor ever, or not any more.
    Leave,
    /// Kept out.
    Ban,
}

impl Membership {
    /// Reads the word of the specification.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "invite" => Self::Invite,
            "join" => Self::Join,
            "knock" => Self::Knock,
            "leave" => Self::Leave,
            "ban" => Self::Ban,
            _ => return None,
        })
    }

    /// The word of the specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invite => "invite",
            Self::Join => "join",
            Self::Knock => "knock",
            Self::Leave => "leave",
            Self::Ban => "ban",
        }
    }
}

/// How many users of a server are joined. Below zero while a debt of a switch is open that will
/// count users who have left already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinedUsers(pub(crate) i64);
row!(JoinedUsers, 1);

impl JoinedUsers {
    /// After so many have come (or gone, if negative).
    #[must_use]
    pub(crate) fn changed(self, by: i64) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// Whether the server is in the room.
    pub(crate) fn present(self) -> bool {
        self.0 > 0
    }

    /// Writes the row.
    pub(crate) fn put(self, batch: &mut Batch, key: &(u64, &str)) {
        if self.0 == 0 {
            batch.delete(&SERVER_COUNTS, key);
        } else {
            batch.put(&SERVER_COUNTS, key, &self);
        }
    }
}

/// A membership of a local user, from a position on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MembershipRow {
    pub(crate) membership: Membership,
    pub(crate) event: EventNumber,
    /// The user does not want to see the room any more.
    pub(crate) forgotten: bool,
}
row!(MembershipRow, 1);

/// The state shown to somebody who is invited or knocks, as stripped events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StrippedRow {
    pub(crate) events: Vec<String>,
}
row!(StrippedRow, 1);

/// Servers by which a user is known to a room that is elsewhere: that of the inviter, or the one
/// that passed on a knock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ViaRow {
    pub(crate) servers: Vec<OwnedServerName>,
}
row!(ViaRow, 1);

/// A room that was joined with part of its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartialRow {
    /// The join that it was taken in with.
    pub(crate) join: EventNumber,
    pub(crate) stage: PartialStage,
}
row!(PartialRow, 1);

/// How far a room of partial state has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PartialStage {
    /// Its whole state is not here.
    Partial,
    /// It is prepared, as this import, and its events are being judged again.
    Judging(u64),
    /// It is whole; servers are being noted.
    Settling,
    /// All is done.
    Whole,
}

/// Some servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServersRow {
    pub(crate) servers: Vec<OwnedServerName>,
}
row!(ServersRow, 1);

/// Where an alias points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AliasRow {
    pub(crate) room: u64,
    pub(crate) creator: OwnedUserId,
}
row!(AliasRow, 1);

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransactionRow {
    /// Milliseconds since the epoch.
    pub(crate) time: u64,
    pub(crate) effect: Effect,
}
row!(TransactionRow, 1);

/// An answer whose position is that of its batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Effect {
    Created(OwnedRoomId),
    Sent(OwnedEventId),
    Upgraded(OwnedRoomId),
    /// Nothing was changed: an event that says the same stood there.
    Stood(OwnedEventId, Position),
    Done,
}

/// The key of a relation: see [`crate::tables::RELATIONS`].
pub(crate) type RelationKey = (u64, u64, String, u64, u8, Position);

/// An event that relates to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelationRow {
    pub(crate) event: EventNumber,
    pub(crate) rel_type: String,
    pub(crate) event_type: String,
    /// `m.relates_to.key` of an annotation.
    pub(crate) key: Option<String>,
    pub(crate) sender: OwnedUserId,
}
row!(RelationRow, 1);

/// Previous events that are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GapRow {
    pub(crate) missing: Vec<OwnedEventId>,
}
row!(GapRow, 1);

/// A change larger than a batch that is being prepared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportRow {
    pub(crate) room: u64,
    /// Milliseconds since the epoch when it last moved; an old one is abandoned.
    pub(crate) touched: u64,
    /// Parts written so far.
    pub(crate) parts: u64,
    /// The state that the change began from.
    pub(crate) base: StateRoot,
    /// The state prepared so far.
    pub(crate) root: StateRoot,
    /// What the nodes of its parts are marked with.
    pub(crate) generation: u64,
    /// Nothing is added any more and it cannot be switched in: what it prepared is being removed.
    pub(crate) abandoned: bool,
    /// Parts whose state events are in `root`. Those of the others wait in their rows.
    pub(crate) planted: u64,
}

/// Version 1 had no `planted`: every part put its state events into the tree at once.
#[derive(Deserialize)]
struct ImportRow1 {
    room: u64,
    touched: u64,
    parts: u64,
    base: StateRoot,
    root: StateRoot,
    generation: u64,
    abandoned: bool,
}

impl Row for ImportRow {
    fn encode(&self) -> Vec<u8> {
        encode_versioned(2, self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.first() != Some(&1) {
            return decode_versioned(2, "ImportRow", bytes);
        }
        let row: ImportRow1 = decode_versioned(1, "ImportRow", bytes)?;
        Ok(Self {
            room: row.room,
            touched: row.touched,
            parts: row.parts,
            base: row.base,
            root: row.root,
            generation: row.generation,
            abandoned: row.abandoned,
            planted: row.parts,
        })
    }

    fn write(&self, writer: &mut RowWriter<'_>) {
        writer.versioned(2, self);
    }
}

/// Events that an import wrote and that nothing refers to before its switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportPartRow {
    /// Events (number and id) written in this part.
    pub(crate) events: Vec<(EventNumber, OwnedEventId)>,
}
row!(ImportPartRow, 1);

/// State events of one part of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportStateRow {
    pub(crate) events: Vec<ImportedState>,
}
row!(ImportStateRow, 1);

/// A state event of an import: where it stands, and what readers of many ask about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportedState {
    pub(crate) hash: KeyHash,
    pub(crate) key: KeyNumber,
    pub(crate) event: EventNumber,
    pub(crate) auth_height: u64,
    /// Of a member event.
    pub(crate) membership: Option<Membership>,
}

/// A switch of state whose member indexes are written by a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexDebtRow {
    /// The import, whose events still lack their ids.
    pub(crate) import: u64,
    pub(crate) from: StateRoot,
    pub(crate) to: StateRoot,
    /// Changed keys whose members are indexed so far.
    pub(crate) done: u64,
}
row!(IndexDebtRow, 1);

/// How far the search for unreachable nodes in the state trees of a room has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TreeSweepRow {
    /// Nodes written before this generation go, unless some state reaches them.
    pub(crate) generation: u64,
    pub(crate) step: TreeSweepStep,
}
row!(TreeSweepRow, 1);

impl TreeSweepRow {
    /// Asks for a sweep; one that is under way begins anew.
    pub(crate) const ASKED: Self = Self {
        generation: 0,
        step: TreeSweepStep::Asked,
    };
}

/// What a sweep of nodes does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TreeSweepStep {
    /// Begin a generation.
    Asked,
    /// Mark the states of the tip and of open imports.
    Open,
    /// Mark the states in the state log after this position.
    Log(Position),
    /// Mark the states around the events after this number.
    Events(u64),
    /// Remove nodes that are old and not marked, after this one.
    Remove([u8; 16]),
    /// Nothing is left to remove; drop the marks. Never before: without marks nothing is spared.
    Unmark,
}

/// Bytes as one slice: serde would write a sequence of numbers.
mod bytes_as_slice {
    use homeserver_storage::Bytes;
    use serde::{Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        struct Slice;
        impl de::Visitor<'_> for Slice {
            type Value = Bytes;

            fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                to.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
        from.deserialize_bytes(Slice)
    }
}
