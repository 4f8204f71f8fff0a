//! What an operator does to a database that is not being served: check, recover, convert. The
//! program calls these; they report progress and print nothing. They block between their awaits
//! and belong on a thread of their own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use bytes::Bytes;
use homeserver_runtime::Entropy;

use crate::{
    Batch, Direction, Durability, Engine, EngineError, Key as _, KeyReader, Row as _,
    engine::{CommitFailure, Group, KeyRange},
    engines::{
        fjall::{FjallEngine, FjallOptions},
        sled::SledEngine,
    },
    journal::Filed,
    system::{JOURNAL, META, NAMES, NUMBERS, REGISTERED, TOPIC_ENTRIES, UNFINISHED},
};

/// Rows read and written at once.
const STEP: usize = 500;
/// Problems that a check lists; more are only counted.
pub const LISTED_PROBLEMS: usize = 100;

/// The engines that keep a database in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// The default.
    Fjall,
    /// The other one.
    Sled,
}

impl EngineKind {
    /// Opens the database in `path`, or makes one there. Blocks.
    pub fn open(self, path: &Path) -> Result<Arc<dyn Engine>, EngineError> {
        Ok(match self {
            Self::Fjall => Arc::new(FjallEngine::open(path, FjallOptions::default())?),
            Self::Sled => Arc::new(SledEngine::open(path)?),
        })
    }

    /// Whether there is a database of this engine in `path`.
    pub fn is_in(self, path: &Path) -> bool {
        match self {
            Self::Fjall => path.join("keyspaces").is_dir(),
            Self::Sled => path.join("db").is_file(),
        }
    }
}

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        match name {
            "fjall" => Ok(Self::Fjall),
            "sled" => Ok(Self::Sled),
            _ => Err(UnknownEngine(name.to_owned())),
        }
    }
}

/// There is no such engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no storage engine {0:?}; there are \"fjall\" and \"sled\"")]
pub struct UnknownEngine(String);

/// How far a long operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, as in "copying rows".
    pub step: &'static str,
    /// How many of them are done.
    pub done: u64,
}

/// Hears how far a long operation is.
pub type OnProgress<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// A database cannot be checked, recovered or converted.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The engine cannot read or write.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A copy could not be written.
    #[error("cannot write the copy")]
    Write(#[from] CommitFailure),
    /// There is no database to work on.
    #[error("there is no database of this engine in {}", .0.display())]
    Missing(PathBuf),
    /// A copy goes into an empty database only.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// Nothing here can repair it.
    #[error("{} cannot be recovered ({why}): restore a backup", path.display())]
    Lost {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Number of rows.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Rows of each table, by its number.
    pub tables: BTreeMap<u8, u64>,
    /// What is wrong, the first [`LISTED_PROBLEMS`].
    pub problems: Vec<String>,
    /// How many things are wrong.
    pub problem_count: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0
    }

    fn problem(&mut self, problem: String) {
        self.problem_count += 1;
        if self.problems.len() < LISTED_PROBLEMS {
            self.problems.push(problem);
        }
    }
}

/// Reads every row of the database in `path` and compares the tables of storage with each other.
pub async fn check(
    kind: EngineKind,
    path: &Path,
    progress: OnProgress<'_>,
) -> Result<CheckReport, MaintenanceError> {
    let engine = existing(kind, path)?;
    let report = check_rows(&*engine, progress).await?;
    engine.close().await?;
    Ok(report)
}

fn existing(kind: EngineKind, path: &Path) -> Result<Arc<dyn Engine>, MaintenanceError> {
    if !kind.is_in(path) {
        return Err(MaintenanceError::Missing(path.to_owned()));
    }
    Ok(kind.open(path)?)
}

async fn check_rows(
    engine: &dyn Engine,
    progress: OnProgress<'_>,
) -> Result<CheckReport, MaintenanceError> {
    let mut report = CheckReport::default();
    let registered = REGISTERED.spec().id;
    let mut range = KeyRange::everything();
    loop {
        let rows = engine.scan(&range, Direction::Forward, STEP).await?;
        let Some((last, _)) = rows.last() else { break };
        let last = last.clone();
        for (key, value) in &rows {
            report.rows += 1;
            report.bytes += (key.len() + value.len()) as u64;
            let table = key.first().copied().unwrap_or_default();
            let count = report.tables.entry(table).or_default();
            *count += 1;
            if *count == 1 && engine.get(&[registered, table]).await?.is_none() {
                report.problem(format!("rows of table {table}, which nobody registered"));
            }
            if let Some(problem) = check_row(engine, key, value).await? {
                report.problem(problem);
            }
        }
        let done = report.rows;
        progress(Progress {
            step: "checking rows",
            done,
        });
        range.start = after(&last);
    }
    if engine.get(&META.key_bytes(&"format")).await?.is_none() {
        report.problem("the database was never set up".to_owned());
    }
    Ok(report)
}

/// What is wrong with a row of storage's own tables, if anything is.
async fn check_row(
    engine: &dyn Engine,
    key: &[u8],
    value: &Bytes,
) -> Result<Option<String>, EngineError> {
    let Some((table, rest)) = key.split_first() else {
        return Ok(Some("a row without a key".to_owned()));
    };
    let mut reader = KeyReader::new(rest);
    let problem = if *table == TOPIC_ENTRIES.spec().id {
        let Ok((kind, id, position)) = <(u8, u64, u64)>::read(&mut reader) else {
            return Ok(Some("a journal topic that cannot be read".to_owned()));
        };
        let entry = engine.get(&JOURNAL.key_bytes(&position)).await?;
        entry
            .is_none()
            .then(|| format!("topic ({kind}, {id}) names position {position}, which has no entry"))
    } else if *table == JOURNAL.spec().id {
        let entry = Filed::decode(value);
        entry.err().map(|error| format!("a journal entry: {error}"))
    } else if *table == NUMBERS.spec().id {
        let (Ok((kind, name)), Ok(number)) =
            (<(u8, String)>::read(&mut reader), u64::decode(value))
        else {
            return Ok(Some("a number that cannot be read".to_owned()));
        };
        let named = engine.get(&NAMES.key_bytes(&(kind, number))).await?;
        let agrees = named.as_deref() == Some(name.as_bytes());
        (!agrees).then(|| format!("number {number} of {name:?} (kind {kind}) has another name"))
    } else {
        None
    };
    Ok(problem)
}

/// What a recovery did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverReport {
    /// What was dropped or taken back, in words; empty if nothing was wrong.
    pub repairs: Vec<String>,
    /// The database as it is now.
    pub check: CheckReport,
}

/// Brings a damaged database to the last state of which everything before is whole, and gives it a
/// new epoch. What is taken off is kept beside it where it is a file of its own.
///
/// # Errors
/// [`MaintenanceError::Lost`] when no such state can be reached.
pub async fn recover(
    kind: EngineKind,
    path: &Path,
    entropy: &dyn Entropy,
    progress: OnProgress<'_>,
) -> Result<RecoverReport, MaintenanceError> {
    if !kind.is_in(path) {
        return Err(MaintenanceError::Missing(path.to_owned()));
    }
    let lost = |error: EngineError| match error {
        EngineError::Damaged { why, .. } => MaintenanceError::Lost {
            path: path.to_owned(),
            why,
        },
        other => MaintenanceError::Engine(other),
    };
    let repairs = match kind {
        EngineKind::Fjall => FjallEngine::repair(path),
        EngineKind::Sled => SledEngine::repair(path),
    };
    let repairs = repairs.map_err(lost)?;
    let engine = kind.open(path).map_err(lost)?;
    let check = check_rows(&*engine, progress)
        .await
        .map_err(|error| match error {
            MaintenanceError::Engine(error) => lost(error),
            other => other,
        })?;
    if !repairs.is_empty() {
        let mut batch = Batch::new();
        batch.put(&META, &"epoch", &Bytes::from(entropy.number().encode()));
        write(&*engine, batch, Durability::Durable).await?;
    }
    engine.close().await?;
    Ok(RecoverReport { repairs, check })
}

/// Copies the database in `from` into a new one in `into`, of another (or the same) engine, with a
/// new epoch. Gives the number of rows. Until it is complete the copy cannot be opened as a store.
pub async fn convert(
    from: (EngineKind, &Path),
    into: (EngineKind, &Path),
    entropy: &dyn Entropy,
    progress: OnProgress<'_>,
) -> Result<u64, MaintenanceError> {
    let source = existing(from.0, from.1)?;
    let target = into.0.open(into.1)?;
    let anything = target
        .scan(&KeyRange::everything(), Direction::Forward, 1)
        .await?;
    if !anything.is_empty() {
        return Err(MaintenanceError::NotEmpty(into.1.to_owned()));
    }
    let mut mark = Batch::new();
    mark.put(&META, &UNFINISHED, &Bytes::new());
    write(&*target, mark, Durability::Durable).await?;
    let copied = copy(&*source, &*target, progress).await?;
    let mut finish = Batch::new();
    finish.put(&META, &"epoch", &Bytes::from(entropy.number().encode()));
    finish.delete(&META, &UNFINISHED);
    write(&*target, finish, Durability::Durable).await?;
    target.close().await?;
    source.close().await?;
    Ok(copied)
}

async fn copy(
    source: &dyn Engine,
    target: &dyn Engine,
    progress: OnProgress<'_>,
) -> Result<u64, MaintenanceError> {
    let (mut range, mut done) = (KeyRange::everything(), 0);
    loop {
        let rows = source.scan(&range, Direction::Forward, STEP).await?;
        let Some((last, _)) = rows.last() else {
            return Ok(done);
        };
        range.start = after(last);
        let mut batch = Batch::new();
        for (key, value) in &rows {
            if batch.bytes() + key.len() + value.len() > crate::batch::MAX_BATCH {
                let full = std::mem::take(&mut batch);
                write(target, full, Durability::Lazy).await?;
            }
            batch.put_raw(key, value);
        }
        write(target, batch, Durability::Lazy).await?;
        done += rows.len() as u64;
        progress(Progress {
            step: "copying rows",
            done,
        });
    }
}

async fn write(
    engine: &dyn Engine,
    batch: Batch,
    durability: Durability,
) -> Result<(), CommitFailure> {
    let mut group = Group {
        batches: vec![batch],
        durability,
    };
    engine.commit(&mut group).await.map(drop)
}

/// The smallest key after `key`.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

#[cfg(test)]
mod tests;
