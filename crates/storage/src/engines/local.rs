//! What engines of one process share: the last position, its publication, closing after a failure.

use std::{
    fs::{File, TryLockError},
    future::Future,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Position, ScanRange,
    engine::{
        BatchResult, CommitFailure, Direction, Durability, Engine, EngineError, Group, KeyRange,
    },
    judge::{WriteSet, asserted_keys, judge},
    system::JOURNAL,
};

/// The committing half of an engine whose only writer is this process.
#[derive(Debug)]
pub(crate) struct Local {
    state: Mutex<State>,
    durable: watch::Sender<Position>,
}

#[derive(Debug)]
struct State {
    last: Position,
    open: bool,
}

impl Local {
    /// `last` is the stored last position.
    pub(crate) fn new(last: Position) -> Self {
        Self {
            state: Mutex::new(State { last, open: true }),
            durable: watch::Sender::new(last),
        }
    }

    /// The last position from its stored bytes.
    pub(crate) fn position(stored: Option<&[u8]>) -> Option<Position> {
        match stored {
            None => Some(0),
            Some(bytes) => bytes.try_into().ok().map(Position::from_be_bytes),
        }
    }

    /// Judges a group and writes it by `write`; `read` gives the value of a key.
    pub(crate) fn commit(
        &self,
        group: &mut Group,
        read: impl Fn(&[u8]) -> Result<Option<Bytes>, EngineError>,
        write: impl FnOnce(&WriteSet<'_>, Durability) -> Result<(), CommitFailure>,
    ) -> Result<Vec<BatchResult>, CommitFailure> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(CommitFailure::NotApplied(Arc::new(EngineError::Closed)));
        }
        let keys = asserted_keys(group);
        let found: Result<Vec<_>, _> = keys.iter().map(|key| read(key)).collect();
        let found = found.map_err(|error| CommitFailure::NotApplied(Arc::new(error)))?;
        let judged = judge(group, keys, found, state.last);
        let writes = WriteSet::new(group, &judged);
        if !writes.is_empty() {
            write(&writes, group.durability).inspect_err(|failure| {
                state.open &= matches!(failure, CommitFailure::NotApplied(_));
            })?;
        }
        drop(writes);
        if judged.last > state.last {
            state.last = judged.last;
            self.durable.send_replace(judged.last);
        }
        Ok(judged.results)
    }

    /// Refuses commits from now on; gives whether they were accepted so far.
    pub(crate) fn close(&self) -> bool {
        std::mem::replace(&mut self.state.lock().open, false)
    }

    /// The last position given.
    pub(crate) fn last(&self) -> Position {
        self.state.lock().last
    }

    /// Runs a write of the engine's own while no commit runs, unless commits are refused. One that
    /// fails is as unknown as a commit: commits are refused after it.
    pub(crate) fn between_commits(
        &self,
        write: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(EngineError::Closed);
        }
        write().inspect_err(|_| state.open = false)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Position> {
        self.durable.subscribe()
    }
}

/// Name of the file whose lock says that a folder is in use.
const LOCK_FILE: &str = "homeserver.lock";
/// How often, and how long each time, opening waits for a lock: an engine that was dropped a moment
/// ago gives it back from another thread.
const LOCK_TRIES: usize = 10;
pub(crate) const LOCK_WAIT: Duration = Duration::from_millis(20);

/// Makes the folder of a database if there is none, and locks it until the result is dropped.
pub(crate) fn lock_folder(path: &Path) -> Result<File, EngineError> {
    prepare_folder(path)?;
    let name = path.join(LOCK_FILE);
    let mut options = File::options();
    let opened = options.create(true).truncate(false).write(true).open(&name);
    let file = opened.map_err(|source| EngineError::Io {
        what: "cannot open",
        path: name.clone(),
        source,
    })?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(LOCK_WAIT),
            Err(TryLockError::Error(source)) => {
                return Err(EngineError::Io {
                    what: "cannot lock",
                    path: name,
                    source,
                });
            }
        }
    }
    Err(EngineError::InUse {
        path: path.to_owned(),
    })
}

/// Makes the folder of a database, durably.
fn prepare_folder(path: &Path) -> Result<(), EngineError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|source| EngineError::Io {
        what: "cannot make folder",
        path: path.to_owned(),
        source,
    })?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), EngineError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| EngineError::Io {
            what: "cannot sync folder",
            path: path.to_owned(),
            source,
        })
}

/// The journal must not go beyond the last position given: rows are missing otherwise.
pub(crate) fn check_last_position(
    engine: &dyn Engine,
    last: Position,
    file: &Path,
) -> Result<(), EngineError> {
    let journal = ScanRange::<Position>::all().bytes(JOURNAL.spec().id);
    let newest = at_once(engine.scan(&journal, Direction::Backward, 1))?;
    let newest = newest.first().map(|(key, _)| JOURNAL.read_key(key));
    match newest.transpose() {
        Ok(newest) if newest.unwrap_or(0) <= last => Ok(()),
        _ => Err(EngineError::Damaged {
            file: file.to_owned(),
            why: format!("the journal goes beyond its last position {last}"),
        }),
    }
}

/// The result of a call to an engine that blocks: it is ready when first polled.
pub(crate) fn at_once<T>(
    call: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    call.now_or_never().unwrap_or_else(|| {
        Err(EngineError::Backend {
            engine: "blocking",
            message: "suspended in a call although it blocks".to_owned(),
        })
    })
}

/// Rows written at once by a copy.
const COPY_STEP: usize = 1_000;

/// Gives every row of `from`, in order and in steps, to `write`.
pub(crate) async fn copy_rows(
    from: &dyn Engine,
    mut write: impl FnMut(Vec<(&[u8], Option<&[u8]>)>) -> Result<(), EngineError> + Send,
) -> Result<(), EngineError> {
    let mut range = KeyRange::everything();
    loop {
        let rows = from.scan(&range, Direction::Forward, COPY_STEP).await?;
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        // The smallest key after `last`.
        range.start = [last, [0].as_slice()].concat();
        let puts = rows
            .iter()
            .map(|(key, value)| (key.as_ref(), Some(value.as_ref())));
        write(puts.collect())?;
    }
}
