//! Everything in memory: for tests and simulations. The strictest engine: it panics on misuse, so
//! that a mistake is found where it is made.

use std::{collections::BTreeMap, ops::Bound, path::Path};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::local::Local;
use crate::{
    Position,
    batch::{MAX_KEY, MAX_VALUE},
    engine::{
        BatchResult, CommitFailure, Direction, Durability, Engine, EngineError, Group, KeyRange,
    },
    system::POSITION_KEY,
};

/// A database that ends with the process. Several stores may share one, as nodes would.
#[derive(Debug)]
pub struct MemoryEngine {
    rows: RwLock<BTreeMap<Bytes, Bytes>>,
    local: Local,
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryEngine {
    /// An empty database.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rows: RwLock::default(),
            local: Local::new(0),
        }
    }

    /// Another database with the same rows.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self::with_rows(self.rows.read().clone())
    }

    /// A database with these rows, for what a crash left.
    pub(crate) fn with_rows(rows: BTreeMap<Bytes, Bytes>) -> Self {
        let last = Local::position(rows.get(POSITION_KEY).map(Bytes::as_ref));
        Self {
            rows: RwLock::new(rows),
            local: Local::new(last.unwrap_or(0)),
        }
    }
}

fn check_key(key: &[u8]) {
    assert!(
        matches!(key, [1..=254, ..]) && key.len() <= MAX_KEY,
        "not a key of any table: {key:?}"
    );
}

fn check_group(group: &Group) {
    assert!(!group.batches.is_empty(), "a group without batches");
    for batch in &group.batches {
        assert!(
            batch.check().is_ok(),
            "a batch over the limits reached the engine"
        );
        assert!(
            group.durability == Durability::Durable || batch.appends() == 0,
            "a lazy batch appends"
        );
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn blocks(&self) -> bool {
        false
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        check_key(key);
        Ok(self.rows.read().get(key).cloned())
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, EngineError> {
        let rows = self.rows.read();
        let value = |key: &Vec<u8>| {
            check_key(key);
            rows.get(key.as_slice()).cloned()
        };
        Ok(keys.iter().map(value).collect())
    }

    async fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        assert!(limit > 0, "a scan for no rows");
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.rows.read();
        let bounds = (
            Bound::Included(range.start.as_slice()),
            Bound::Excluded(range.end.as_slice()),
        );
        let within = rows.range::<[u8], _>(bounds);
        let owned = |(key, value): (&Bytes, &Bytes)| (key.clone(), value.clone());
        Ok(match direction {
            Direction::Forward => within.take(limit).map(owned).collect(),
            Direction::Backward => within.rev().take(limit).map(owned).collect(),
        })
    }

    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        check_group(group);
        let read = |key: &[u8]| Ok(self.rows.read().get(key).cloned());
        self.local.commit(group, read, |writes, _durability| {
            let mut rows = self.rows.write();
            for (key, value) in &writes.writes {
                check_key(key);
                match value {
                    Some(value) => {
                        assert!(value.len() <= MAX_VALUE, "a value over the limit");
                        rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                    }
                    None => drop(rows.remove(*key)),
                }
            }
            Ok(())
        })
    }

    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        assert!(!range.is_empty(), "a range that holds nothing: {range:?}");
        let mut rows = self.rows.write();
        rows.retain(|key, _| *key < range.start || *key >= range.end);
        Ok(())
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.local.watch()
    }

    async fn checkpoint(&self, _into: &Path) -> Result<(), EngineError> {
        Err(EngineError::Unsupported {
            engine: "memory",
            what: "copy itself to a folder",
        })
    }

    async fn idle(&self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), EngineError> {
        // Other stores may share it, as nodes share a database server.
        Ok(())
    }
}
