//! Read receipts: up to where a user has read a room, per thread, publicly or privately.
//!
//! One receipt per (room, user, type, thread). The caller names the arrival position of the
//! event; a receipt never moves back. Private receipts are only ever given to their owner. That
//! the event is in the room, and the user too, is the caller's to check.
//!
//! Spec: Client-Server API, "Receipts".

use homeserver_storage::{At, Batch, Position, Positioned};
use ruma::{OwnedEventId, events::receipt::ReceiptThread};
use serde::{Deserialize, Serialize};

use crate::{
    Failure, UserNumber,
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    journal,
    tables::{RECEIPT_CHANGES, RECEIPTS},
};

/// Receipts of one room that are read at once; the oldest positions come first.
pub const MAX_RECEIPTS: usize = 100_000;

/// Receipts of one user in one room: one per thread and type.
pub const MAX_RECEIPTS_OF_USER: usize = 10_000;

/// Whether others may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReceiptKind {
    /// `m.read`: everybody in the room is told.
    Public,
    /// `m.read.private`: only the user's own devices are told.
    Private,
}

impl ReceiptKind {
    fn code(self) -> u8 {
        match self {
            Self::Public => 0,
            Self::Private => 1,
        }
    }

    fn from_code(code: u8) -> Result<Self, Failure> {
        match code {
            0 => Ok(Self::Public),
            1 => Ok(Self::Private),
            _ => Err(Failure::Damaged("receipt")),
        }
    }
}

/// A receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Who has read.
    pub user: UserNumber,
    /// Whether others may know.
    pub kind: ReceiptKind,
    /// What was read: the room as a whole, its main timeline, or one thread.
    pub thread: ReceiptThread,
    /// Up to and including which event.
    pub event_id: OwnedEventId,
    /// The arrival position of that event in the room.
    pub arrival: Position,
    /// When the server was told, in milliseconds since the Unix epoch.
    pub at: u64,
}

/// A receipt as stored, and where it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReceipt {
    /// The receipt.
    pub receipt: Receipt,
    /// When it moved there.
    pub position: Position,
}

/// Row of [`RECEIPTS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReceiptRow {
    event_id: String,
    arrival: u64,
    at: u64,
}
homeserver_storage::row!(ReceiptRow, 1);

/// Row of [`RECEIPT_CHANGES`]: which receipt moved at that position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReceiptChangeRow {
    user: u64,
    kind: u8,
    thread: String,
}
homeserver_storage::row!(ReceiptChangeRow, 1);

/// Key of [`RECEIPTS`].
pub(crate) type ReceiptKey = (u64, u64, u8, String);

/// The receipts in this server's rooms, also those of remote users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Receipts {
    ground: Ground,
}

impl Receipts {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// Moves a receipt forward. `None` if it stands at that event, or further on, already.
    pub async fn set(&self, room: u64, receipt: &Receipt) -> Result<Option<Position>, Failure> {
        let thread = receipt.thread.as_str().unwrap_or_default().to_owned();
        let user = receipt.user;
        let key: ReceiptKey = (room, user.0, receipt.kind.code(), thread);
        for _ in 0..MAX_ATTEMPTS {
            let before = self.ground.store.get(&RECEIPTS, &key).await?;
            if before
                .as_ref()
                .is_some_and(|before| before.value.arrival >= receipt.arrival)
            {
                return Ok(None);
            }
            let (kind, topic) = match receipt.kind {
                ReceiptKind::Public => (journal::RECEIPT_CHANGED, journal::receipts(room)),
                ReceiptKind::Private => (journal::PRIVATE_RECEIPT_CHANGED, journal::user(user)),
            };
            let mut batch = Batch::new();
            match &before {
                Some(before) => {
                    batch.assert_value(&RECEIPTS, &key, before);
                    batch.delete(&RECEIPT_CHANGES, &(room, before.known()));
                    batch.remove_entry(before.known(), &[topic]);
                }
                None => {
                    batch.assert_absent(&RECEIPTS, &key);
                }
            }
            let entry = journal::entry(kind, &[room, user.0]);
            let position = At::Append(batch.append(&entry, &[topic]));
            let value = ReceiptRow {
                event_id: receipt.event_id.to_string(),
                arrival: receipt.arrival,
                at: receipt.at,
            };
            batch.put(&RECEIPTS, &key, &Positioned::new(position, value));
            let change = ReceiptChangeRow {
                user: key.1,
                kind: key.2,
                thread: key.3.clone(),
            };
            batch.put(&RECEIPT_CHANGES, &(room, position), &change);
            if let Attempt::Done(positions) = self.ground.attempt(batch).await? {
                return Ok(Some(positions.first()));
            }
        }
        Err(Failure::Busy)
    }

    /// All receipts of one user in a room, private ones included: for the user's own counts.
    pub async fn of_user(
        &self,
        room: u64,
        user: UserNumber,
    ) -> Result<Vec<StoredReceipt>, Failure> {
        let prefix = (room, user.0);
        let rows = self
            .ground
            .scan_prefix(&RECEIPTS, &prefix, MAX_RECEIPTS_OF_USER)
            .await?;
        rows.into_iter()
            .map(|(key, row)| stored(key, row))
            .collect()
    }

    /// All receipts of a room that `reader` may see, by the position at which they moved.
    pub async fn in_room(
        &self,
        room: u64,
        reader: UserNumber,
        upto: Position,
    ) -> Result<Vec<StoredReceipt>, Failure> {
        self.changes(room, reader, 0, upto).await
    }

    /// The receipts of a room that last moved in `(after, upto]` and that `reader` may see,
    /// oldest first. One that moved again after `upto` is missing here and is told next time.
    pub async fn changes(
        &self,
        room: u64,
        reader: UserNumber,
        after: Position,
        upto: Position,
    ) -> Result<Vec<StoredReceipt>, Failure> {
        let from = (room, after.saturating_add(1));
        let to = (room, upto.saturating_add(1));
        let changes = self
            .ground
            .scan_between(&RECEIPT_CHANGES, from, to, MAX_RECEIPTS)
            .await?;
        let private = ReceiptKind::Private.code();
        let keys: Vec<ReceiptKey> = changes
            .into_iter()
            .filter(|(_, change)| change.kind != private || change.user == reader.0)
            .map(|(_, change)| (room, change.user, change.kind, change.thread))
            .collect();
        let rows = self.ground.store.multi_get(&RECEIPTS, &keys).await?;
        let mut receipts = Vec::with_capacity(keys.len());
        for (key, row) in keys.into_iter().zip(rows) {
            if let Some(row) = row {
                let receipt = stored(key, row)?;
                if receipt.position <= upto {
                    receipts.push(receipt);
                }
            }
        }
        Ok(receipts)
    }

    /// The public receipt that moved at a position (that of an entry of [`journal::RECEIPT_CHANGED`]),
    /// if it still stands there.
    pub async fn moved_at(
        &self,
        room: u64,
        position: Position,
    ) -> Result<Option<StoredReceipt>, Failure> {
        let store = &self.ground.store;
        let change = store.get(&RECEIPT_CHANGES, &(room, position)).await?;
        let public = ReceiptKind::Public.code();
        let Some(change) = change.filter(|change| change.kind == public) else {
            return Ok(None);
        };
        let key: ReceiptKey = (room, change.user, change.kind, change.thread);
        let row = store.get(&RECEIPTS, &key).await?;
        let row = row.filter(|row| row.known() == position);
        row.map(|row| stored(key, row)).transpose()
    }

    /// Of these rooms, those where a public receipt may have moved in `(after, upto]`: the last
    /// position of each is compared, so a room may be named whose receipts `changes` then finds
    /// to be newer than `upto`. Private receipts arrive under the user's own topic.
    pub async fn changed_rooms(&self, rooms: &[u64], after: Position) -> Result<Vec<u64>, Failure> {
        let topics: Vec<_> = rooms.iter().map(|room| journal::receipts(*room)).collect();
        let last = self.ground.store.journal().last(&topics).await?;
        let rooms = rooms.iter().zip(last);
        let changed = rooms.filter(|(_, last)| last.is_some_and(|last| last > after));
        Ok(changed.map(|(room, _)| *room).collect())
    }
}

fn stored(key: ReceiptKey, row: Positioned<ReceiptRow>) -> Result<StoredReceipt, Failure> {
    let damaged = || Failure::Damaged("receipt");
    let (_, user, kind, thread) = key;
    let thread = (!thread.is_empty()).then_some(thread);
    Ok(StoredReceipt {
        position: row.known(),
        receipt: Receipt {
            user: UserNumber(user),
            kind: ReceiptKind::from_code(kind)?,
            thread: ReceiptThread::try_from(thread).map_err(|_| damaged())?,
            event_id: row.value.event_id.try_into().map_err(|_| damaged())?,
            arrival: row.value.arrival,
            at: row.value.at,
        },
    })
}
