//! The journal: everything that happens, once, in one order.
//!
//! An entry is a few numbers, never content; what they mean is declared by the crate that appends
//! it. It is read by position, or by one of the topics it was appended under. Reads never show
//! anything beyond the durable position. Entries of most kinds go when they are old; see
//! [`trim`].

pub mod trim;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    Direction, Position, ScanRange, StorageError, Store, row,
    system::{JOURNAL, TOPIC_ENTRIES},
};

/// What an entry is, and whether it stays. Declared as a constant by the crate that appends it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EntryKind(u16);

impl EntryKind {
    /// Set where entries stay. Numbers of kinds are below it.
    const STAYS: u16 = 1 << 15;

    /// A kind whose entries go when all consumers have read them and they are old.
    ///
    /// # Panics
    /// At compile time, when the number has more than 15 bits.
    pub const fn trimmed(number: u16) -> Self {
        assert!(number < Self::STAYS, "the number of a kind has 15 bits");
        Self(number)
    }

    /// A kind whose entries stay as long as what they tell of.
    ///
    /// # Panics
    /// At compile time, when the number has more than 15 bits.
    pub const fn kept(number: u16) -> Self {
        assert!(number < Self::STAYS, "the number of a kind has 15 bits");
        Self(number | Self::STAYS)
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0 & !Self::STAYS
    }

    /// Whether entries of it stay.
    pub const fn stays(self) -> bool {
        self.0 & Self::STAYS != 0
    }
}

impl std::fmt::Debug for EntryKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stays = if self.stays() { "kept" } else { "trimmed" };
        write!(formatter, "{:#06x} ({stays})", self.number())
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Of that kind's layout. A reader that does not know it must stop.
    pub version: u8,
    /// Room number, event number and the like.
    pub numbers: SmallVec<[u64; 4]>,
}

impl Entry {
    /// An entry of the first version of its kind.
    pub fn new(kind: EntryKind, numbers: &[u64]) -> Self {
        Self {
            kind,
            version: 1,
            numbers: SmallVec::from_slice(numbers),
        }
    }
}

/// An entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filed {
    pub(crate) entry: Entry,
    /// What it was appended under, if it is to go one day: the rows that go with it.
    topics: SmallVec<[Topic; 2]>,
}
row!(Filed, 1);

impl Filed {
    pub(crate) fn new(entry: &Entry, topics: &[Topic]) -> Self {
        let named = if entry.kind.stays() { &[] } else { topics };
        Self {
            entry: entry.clone(),
            topics: SmallVec::from_slice(named),
        }
    }
}

/// What an entry is about, and is found by: a room, a user, a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
        let found = self
            .store
            .scan(&JOURNAL, range, Direction::Forward, limit)
            .await?;
        let entries = found.into_iter().map(|(at, filed)| (at, filed.entry));
        Ok(entries.collect())
    }

    /// The last durable position of each topic, where it has one; never before the trim point,
    /// because what was trimmed may have been newer.
    pub async fn last(&self, topics: &[Topic]) -> Result<Vec<Option<Position>>, StorageError> {
        let durable = self.store.durable();
        let trimmed = Some(self.trim_point().await?).filter(|trimmed| *trimmed > 0);
        let mut positions = Vec::with_capacity(topics.len());
        for topic in topics {
            let range =
                ScanRange::prefix(&(topic.kind, topic.id)).upto(&(topic.kind, topic.id, durable));
            let newest = self
                .store
                .scan(&TOPIC_ENTRIES, range, Direction::Backward, 1)
                .await?;
            let newest = newest.first().map(|((_, _, position), ())| *position);
            positions.push(newest.max(trimmed));
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
        let present = |(position, filed): (Position, Option<Filed>)| Some((position, filed?.entry));
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
        let topics = [Topic::new(2, 300)];
        let entry = Entry::new(EntryKind::trimmed(0x0101), &[1, 300]);
        let filed = Filed::new(&entry, &topics);
        assert_eq!(
            filed.encode(),
            [1, 0x81, 2, 1, 2, 1, 0xac, 2, 1, 2, 0xac, 2]
        );
        assert_eq!(Filed::decode(&filed.encode()).unwrap(), filed);

        let entry = Entry::new(EntryKind::kept(0x0101), &[1]);
        let filed = Filed::new(&entry, &topics);
        assert_eq!(filed.encode(), [1, 0x81, 0x82, 2, 1, 1, 1, 0]);
        assert_eq!(Filed::decode(&filed.encode()).unwrap(), filed);
    }

    #[test]
    fn a_kind_knows_its_number() {
        for kind in [EntryKind::kept(0x0102), EntryKind::trimmed(0x0102)] {
            assert_eq!(kind.number(), 0x0102);
        }
        assert_ne!(EntryKind::kept(1), EntryKind::trimmed(1));
    }
}
