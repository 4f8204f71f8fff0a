//! Remembered counts, so that events are not evaluated at every look.
//!
//! A memo is worth nothing once the user's rules or receipts are others than those it rests on; it
//! is never the truth, only a shortcut to it.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_rooms::{EventNumber, RoomNumber};
use homeserver_storage::{Batch, Durability, Position, StorageError, Store, Table, TableSpec, row};
use homeserver_users::UserNumber;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use super::ByThread;
use crate::sync::changes::Counts;

/// Pairs of user and room whose counts are at hand.
const MEMOS: usize = 20_000;

/// Events that must have been evaluated since a memo was stored for it to be stored anew: fewer are
/// evaluated again more cheaply than written down.
const WORTH_STORING: usize = 20;

/// (user number, room number) → counts up to a position.
const COUNTS: Table<(u64, u64), MemoRow> = Table::new(0x9f, "unread_counts");

pub(super) const TABLES: &[TableSpec] = &[COUNTS.spec()];

/// Row of [`COUNTS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MemoRow {
    basis: u64,
    upto: Position,
    /// Thread root or zero, notifications, highlights.
    counts: Vec<(u64, u64, u64)>,
}
row!(MemoRow, 1);

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Memo {
    /// A hash of all that the counts rest on beside the events.
    pub(super) basis: u64,
    /// Up to where the events are in them.
    pub(super) upto: Position,
    pub(super) counts: ByThread,
    /// Events that were evaluated since this was last stored.
    pub(super) unstored: usize,
}

/// Remembered counts. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::sync) struct CountMemos {
    store: Store,
    at_hand: Arc<Cache<(UserNumber, RoomNumber), Arc<Memo>>>,
}

impl CountMemos {
    pub(in crate::sync) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            at_hand: Arc::new(Cache::new(MEMOS)),
        }
    }

    pub(super) async fn find(
        &self,
        key: (UserNumber, RoomNumber),
    ) -> Result<Option<Arc<Memo>>, StorageError> {
        if let Some(memo) = self.at_hand.get(&key) {
            return Ok(Some(memo));
        }
        let row = self.store.get(&COUNTS, &(key.0.0, key.1.0)).await?;
        Ok(row.map(|row| Arc::new(Memo::from_row(row))))
    }

    pub(super) async fn remember(&self, key: (UserNumber, RoomNumber), mut memo: Memo) {
        if memo.unstored >= WORTH_STORING {
            memo.unstored = 0;
            let mut batch = Batch::new();
            batch.put(&COUNTS, &(key.0.0, key.1.0), &memo.row());
            // Nobody waits for it, nor is told: a memo that is lost is counted again.
            if let Err(error) = self.store.submit(batch, Durability::Lazy).await {
                tracing::debug!(%error, "unread counts were not stored");
            }
        }
        self.at_hand.insert(key, Arc::new(memo));
    }
}

impl Memo {
    fn row(&self) -> MemoRow {
        let count = |(thread, counts): (&Option<EventNumber>, &Counts)| {
            let root = thread.map_or(0, |root| root.0);
            (root, counts.notifications, counts.highlights)
        };
        MemoRow {
            basis: self.basis,
            upto: self.upto,
            counts: self.counts.iter().map(count).collect(),
        }
    }

    fn from_row(row: MemoRow) -> Self {
        let count = |(root, notifications, highlights): (u64, u64, u64)| {
            let thread = (root > 0).then_some(EventNumber(root));
            let counts = Counts {
                notifications,
                highlights,
            };
            (thread, counts)
        };
        Self {
            basis: row.basis,
            upto: row.upto,
            counts: row
                .counts
                .into_iter()
                .map(count)
                .collect::<BTreeMap<_, _>>(),
            unstored: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use homeserver_runtime::{ManualClock, Runtime};
    use homeserver_storage::engines::memory::MemoryEngine;

    use super::*;

    #[tokio::test]
    async fn a_memo_that_cost_something_survives_a_restart() {
        let runtime = Runtime::simulated(Arc::new(ManualClock::new(1)), 1);
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, &[TABLES], &runtime).await.unwrap();
        let memos = CountMemos::new(&store);
        for (room, unstored) in [(1, WORTH_STORING), (2, WORTH_STORING - 1)] {
            let memo = Memo {
                basis: 7,
                upto: 9,
                counts: ByThread::new(),
                unstored,
            };
            memos
                .remember((UserNumber(1), RoomNumber(room)), memo)
                .await;
        }
        // Batches of one submitter are applied in their order.
        let mut last = Batch::new();
        let row = MemoRow {
            basis: 0,
            upto: 0,
            counts: Vec::new(),
        };
        last.put(&COUNTS, &(9_u64, 9_u64), &row);
        store.commit(last).await.unwrap();
        let memos = CountMemos::new(&store);
        let found = memos.find((UserNumber(1), RoomNumber(1))).await.unwrap();
        assert_eq!(found.map(|memo| memo.upto), Some(9));
        let found = memos.find((UserNumber(1), RoomNumber(2))).await.unwrap();
        assert_eq!(found, None);
    }

    #[test]
    fn a_stored_memo_is_read_again() {
        let counts = |notifications, highlights| Counts {
            notifications,
            highlights,
        };
        let memo = Memo {
            basis: 7,
            upto: 9,
            counts: ByThread::from([(None, counts(2, 1)), (Some(EventNumber(4)), counts(1, 0))]),
            unstored: 0,
        };
        assert_eq!(Memo::from_row(memo.row()), memo);
    }
}
