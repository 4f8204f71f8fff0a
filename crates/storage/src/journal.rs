//! The journal: everything that happens, once, in one order.
//!
//! An entry is a few numbers, never content; what they mean is declared by the crate that appends
//! it. It is read by position, or by one of the topics it was appended under. Reads never show
//! anything beyond the durable position.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    Direction, Position, ScanRange, StorageError, Store, row,
    system::{JOURNAL, TOPIC_ENTRIES},
};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is; numbered by the crate that appends it.
    pub kind: u16,
    /// Of that kind's layout. A reader that does not know it must stop.
    pub version: u8,
    /// Room number, event number and the like.
    pub numbers: SmallVec<[u64; 4]>,
}
row!(Entry, 1);

impl Entry {
    /// An entry of the first version of its kind.
    pub fn new(kind: u16, numbers: &[u64]) -> Self {
        Self {
            kind,
            version: 1,
            numbers: SmallVec::from_slice(numbers),
        }
    }
}

/// What an entry is about, and is found by: a room, a user, a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    /// What sort of thing.
    pub kind: u8,
    /// Its number.
    pub id: u64,
}

impl Topic {
    /// The thing of sort `kind` numbered `id`.
    pub const fn new(kind: u8, id: u64) -> Self {
        Self { kind, id }
    }
}

/// Reads the journal of a store.
#[derive(Debug, Clone)]
pub struct Journal {
    store: Store,
}

impl Journal {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// The first `limit` entries of `topic` with `after < position <= upto`, oldest first.
    pub async fn read(
        &self,
        topic: Topic,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StorageError> {
        let range = ScanRange::prefix(&(topic.kind, topic.id))
            .after(&(topic.kind, topic.id, after))
            .upto(&(topic.kind, topic.id, upto.min(self.store.durable())));
        self.entries(range, Direction::Forward, limit).await
    }

    /// The last `limit` entries of `topic` with `position < before`, newest first.
    pub async fn read_topic_backward(
        &self,
        topic: Topic,
        before: Position,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StorageError> {
        let before = before.min(self.store.durable().saturating_add(1));
        let range =
            ScanRange::prefix(&(topic.kind, topic.id)).before(&(topic.kind, topic.id, before));
        self.entries(range, Direction::Backward, limit).await
    }

    /// The first `limit` entries with `after < position <= upto`, oldest first.
    pub async fn read_all(
        &self,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StorageError> {
        let range = ScanRange::all()
            .after(&after)
            .upto(&upto.min(self.store.durable()));
        self.store
            .scan(&JOURNAL, range, Direction::Forward, limit)
            .await
    }

    /// The last durable position of each topic, where it has one.
    pub async fn last(&self, topics: &[Topic]) -> Result<Vec<Option<Position>>, StorageError> {
        let durable = self.store.durable();
        let mut positions = Vec::with_capacity(topics.len());
        for topic in topics {
            let range =
                ScanRange::prefix(&(topic.kind, topic.id)).upto(&(topic.kind, topic.id, durable));
            let newest = self
                .store
                .scan(&TOPIC_ENTRIES, range, Direction::Backward, 1)
                .await?;
            positions.push(newest.first().map(|((_, _, position), ())| *position));
        }
        Ok(positions)
    }

    async fn entries(
        &self,
        range: ScanRange<(u8, u64, Position)>,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StorageError> {
        let found = self
            .store
            .scan(&TOPIC_ENTRIES, range, direction, limit)
            .await?;
        let positions: Vec<Position> = found
            .into_iter()
            .map(|((_, _, position), ())| position)
            .collect();
        let entries = self.store.multi_get(&JOURNAL, &positions).await?;
        // An entry may have been superseded between the two reads.
        let present = |(position, entry): (Position, Option<Entry>)| Some((position, entry?));
        Ok(positions
            .into_iter()
            .zip(entries)
            .filter_map(present)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Row;

    #[test]
    fn the_layout_is_fixed() {
        let entry = Entry::new(0x0101, &[1, 300]);
        assert_eq!(entry.encode(), [1, 0x81, 2, 1, 2, 1, 0xac, 2]);
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
    }
}
