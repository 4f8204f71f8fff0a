//! What is in a database after a crash, and whether it is whole.

use std::{collections::BTreeMap, error::Error, path::Path};

use homeserver_runtime::Runtime;
use homeserver_storage::{Direction, OpenError, Position, ScanRange, StorageError, Store};

use super::child::{Acked, HEADS, Kind, ROWS, ROWS_PER_BATCH, TABLES, WRITERS, value};

/// Why there is nothing to say about what survived.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// An error, with all its sources.
    Refused(String),
    /// A torn batch, a wrong value, a hole.
    Wrong(String),
}

fn refused(error: &dyn Error) -> Unreadable {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words = format!("{words}: {error}");
        source = error.source();
    }
    Unreadable::Refused(words)
}

impl From<StorageError> for Unreadable {
    fn from(error: StorageError) -> Self {
        // Bytes that no longer are what they were, given out as a row, are wrong values.
        match error {
            StorageError::Decode { .. } => Self::Wrong(format!("{error:?}")),
            error => refused(&error),
        }
    }
}

impl From<OpenError> for Unreadable {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Storage(error) => error.into(),
            OpenError::Format { .. } | OpenError::OtherTable { .. } => {
                Self::Wrong(format!("{error:?}"))
            }
            error => refused(&error),
        }
    }
}

/// The batches in the database, after checking that each is whole and that together they are a
/// prefix of what was committed.
pub(super) async fn survivors(kind: Kind, path: &Path) -> Result<Acked, Unreadable> {
    if kind == Kind::PlainSled {
        return plain_sled(path);
    }
    let engine = kind.engine().open(path).map_err(|error| refused(&error))?;
    let store = Store::open(engine, &[TABLES], &Runtime::system()).await?;
    let found = whole_batches(&store).await;
    store.close().await?;
    found
}

async fn whole_batches(store: &Store) -> Result<Acked, Unreadable> {
    let wrong = |why: String| Err(Unreadable::Wrong(why));
    let journal = store
        .journal()
        .read_all(0, Position::MAX, usize::MAX)
        .await?;
    let mut found = Acked::new();
    for (place, (position, entry)) in (1..).zip(&journal) {
        if *position != place {
            return wrong(format!("position {place} is missing, {position} is there"));
        }
        found.insert((entry.numbers[0], entry.numbers[1], *position));
    }
    if store.durable() != journal.len() as u64 {
        return wrong(format!(
            "{} entries, durable {}",
            journal.len(),
            store.durable()
        ));
    }
    let mut heads: BTreeMap<u64, (u64, Position)> = BTreeMap::new();
    for (writer, number, position) in &found {
        let before = heads.insert(*writer, (*number, *position));
        if before.map_or(0, |(number, _)| number) + 1 != *number {
            return wrong(format!(
                "writer {writer}: batch {number} comes after {before:?}"
            ));
        }
    }
    for writer in 0..WRITERS {
        let head = store.get(&HEADS, &writer).await?;
        let head = head.map(|head| (head.value, head.known()));
        if head != heads.get(&writer).copied() {
            return wrong(format!(
                "writer {writer}: head {head:?}, journal {:?}",
                heads.get(&writer)
            ));
        }
    }
    let rows = store
        .scan(&ROWS, ScanRange::all(), Direction::Forward, usize::MAX)
        .await?;
    if rows.len() as u64 != found.len() as u64 * ROWS_PER_BATCH {
        return wrong(format!("{} rows of {} batches", rows.len(), found.len()));
    }
    for ((writer, number, row), bytes) in rows {
        if bytes != value(writer, number, row) {
            return wrong(format!(
                "row {row} of batch {number} of writer {writer} is changed"
            ));
        }
    }
    Ok(found)
}

fn plain_sled(path: &Path) -> Result<Acked, Unreadable> {
    let opened = std::panic::catch_unwind(|| sled::open(path));
    let Ok(Ok(database)) = opened else {
        return Err(Unreadable::Refused("sled cannot open it".to_owned()));
    };
    let number = |key: Result<sled::IVec, sled::Error>| {
        let number = u64::from_be_bytes(key.ok()?.as_ref().try_into().ok()?);
        Some((0, number, number))
    };
    Ok(database.iter().keys().filter_map(number).collect())
}
