//! Numbers: short names for long ones.
//!
//! A number is given on the first mention of a name, also of things not yet seen, and never given
//! again. Each process takes blocks of [`BLOCK`] from a counter row, so gaps are normal and order
//! means nothing. The row is written lazily: whatever refers to the number is committed after it.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use quick_cache::sync::Cache;
use tokio::sync::Mutex;

use crate::{
    Batch, CommitError, DecodeError, Durability, StorageError, Store,
    store::decoding,
    system::{NAMES, NUMBER_BLOCKS, NUMBERS},
};

/// Numbers that a process takes at once.
pub const BLOCK: u64 = 65_536;
/// Names and numbers of one kind that are kept in memory, each way.
const CACHED: usize = 65_536;
/// Names that are given numbers by one batch: three operations each.
const AT_ONCE: usize = 300;
/// How often a lost race is run again.
const ATTEMPTS: usize = 16;

/// What is numbered: rooms, users, events… Declared by the crate that owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumberKind(pub u8);

/// Numbers of users. Several crates that do not know each other number users; that they name the
/// same kind is what gives a user one number. Other kinds belong to the crate that declares them.
pub const USERS: NumberKind = NumberKind(1);

/// Gives numbers to names of one kind. Cheap to clone; all of a store share their caches.
#[derive(Debug, Clone)]
pub struct Interner {
    store: Store,
    known: Arc<Known>,
}

/// What an interner remembers.
#[derive(Debug)]
pub(crate) struct Known {
    kind: NumberKind,
    numbers: Cache<Arc<str>, u64>,
    names: Cache<u64, Arc<str>>,
    block: Mutex<Range<u64>>,
}

impl Known {
    pub(crate) fn new(kind: NumberKind) -> Self {
        Self {
            kind,
            numbers: Cache::new(CACHED),
            names: Cache::new(CACHED),
            block: Mutex::new(0..0),
        }
    }
}

impl Interner {
    pub(crate) fn new(store: Store, known: Arc<Known>) -> Self {
        Self { store, known }
    }

    /// The number of `name`, given now if it has none.
    pub async fn number(&self, name: &str) -> Result<u64, StorageError> {
        for _ in 0..ATTEMPTS {
            if let Some(number) = self.lookup(name).await? {
                return Ok(number);
            }
            let number = self.next().await?;
            let mut batch = Batch::new();
            batch.assert_absent(&NUMBERS, &(self.kind(), name));
            batch.put(&NUMBERS, &(self.kind(), name), &number);
            let stored = Bytes::copy_from_slice(name.as_bytes());
            batch.put(&NAMES, &(self.kind(), number), &stored);
            match self.store.submit(batch, Durability::Lazy).await?.await {
                Ok(_) => {
                    self.remember(name, number);
                    return Ok(number);
                }
                // Somebody else was faster: theirs is the number.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StorageError::Contended("giving a number"))
    }

    /// The numbers of `names`, given now to those that have none: in few commits, however many
    /// there are.
    pub async fn numbers(&self, names: &[&str]) -> Result<Vec<u64>, StorageError> {
        let mut unknown: Vec<&str> = names.to_vec();
        unknown.retain(|name| self.known.numbers.get(*name).is_none());
        unknown.sort_unstable();
        unknown.dedup();
        for some in unknown.chunks(AT_ONCE) {
            self.give(some).await?;
        }
        let mut numbers = Vec::with_capacity(names.len());
        for name in names {
            // Mostly from memory; one by one where somebody else was faster.
            numbers.push(self.number(name).await?);
        }
        Ok(numbers)
    }

    /// Remembers the numbers of some names, and gives those that have none one. If somebody else
    /// gives one of them a number at the same time, none is given.
    async fn give(&self, names: &[&str]) -> Result<(), StorageError> {
        let keys: Vec<_> = names.iter().map(|name| (self.kind(), *name)).collect();
        let found = self.store.multi_get(&NUMBERS, &keys).await?;
        let (mut batch, mut given) = (Batch::new(), Vec::new());
        for (name, found) in names.iter().zip(found) {
            if let Some(number) = found {
                self.remember(name, number);
                continue;
            }
            let number = self.next().await?;
            batch.assert_absent(&NUMBERS, &(self.kind(), *name));
            batch.put(&NUMBERS, &(self.kind(), *name), &number);
            let stored = Bytes::copy_from_slice(name.as_bytes());
            batch.put(&NAMES, &(self.kind(), number), &stored);
            given.push((*name, number));
        }
        if given.is_empty() {
            return Ok(());
        }
        match self.store.submit(batch, Durability::Lazy).await?.await {
            Ok(_) => {
                for (name, number) in given {
                    self.remember(name, number);
                }
                Ok(())
            }
            Err(CommitError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The number of `name`, if it has one.
    pub async fn lookup(&self, name: &str) -> Result<Option<u64>, StorageError> {
        if let Some(number) = self.known.numbers.get(name) {
            return Ok(Some(number));
        }
        let number = self.store.get(&NUMBERS, &(self.kind(), name)).await?;
        if let Some(number) = number {
            self.remember(name, number);
        }
        Ok(number)
    }

    /// The name that was given `number`.
    pub async fn name(&self, number: u64) -> Result<Option<Arc<str>>, StorageError> {
        if let Some(name) = self.known.names.get(&number) {
            return Ok(Some(name));
        }
        let Some(stored) = self.store.get(&NAMES, &(self.kind(), number)).await? else {
            return Ok(None);
        };
        let name = std::str::from_utf8(&stored)
            .map_err(|_| DecodeError::new("a name", "it is not UTF-8"))
            .map_err(decoding(&NAMES))?;
        Ok(Some(self.remember(name, number)))
    }

    fn kind(&self) -> u8 {
        self.known.kind.0
    }

    fn remember(&self, name: &str, number: u64) -> Arc<str> {
        let name: Arc<str> = Arc::from(name);
        self.known.numbers.insert(Arc::clone(&name), number);
        self.known.names.insert(number, Arc::clone(&name));
        name
    }

    /// A number that nobody else is given; takes a new block when the old one is used up.
    async fn next(&self) -> Result<u64, StorageError> {
        let mut block = self.known.block.lock().await;
        for _ in 0..ATTEMPTS {
            if let Some(number) = block.next() {
                return Ok(number);
            }
            let stored = self.store.get(&NUMBER_BLOCKS, &self.kind()).await?;
            let first = stored.unwrap_or(1);
            let mut batch = Batch::new();
            match &stored {
                Some(stored) => batch.assert_value(&NUMBER_BLOCKS, &self.kind(), stored),
                None => batch.assert_absent(&NUMBER_BLOCKS, &self.kind()),
            };
            batch.put(&NUMBER_BLOCKS, &self.kind(), &(first + BLOCK));
            match self.store.submit(batch, Durability::Lazy).await?.await {
                Ok(_) => *block = first..first + BLOCK,
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StorageError::Contended("taking a block of numbers"))
    }
}
