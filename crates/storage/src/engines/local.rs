//! What engines of one process share: the last position, its publication, closing after a failure.

use std::{
    fs::{File, TryLockError},
    future::Future,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
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
            // It stays closed if the write panics.
            state.open = false;
            let written = write(&writes, group.durability);
            state.open = !matches!(written, Err(CommitFailure::Unknown(_)));
            written?;
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
    /// fails or panics is as unknown as a commit: commits are refused after it.
    pub(crate) fn between_commits(
        &self,
        write: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        if !state.open {
            return Err(EngineError::Closed);
        }
        state.open = false;
        let written = write();
        state.open = written.is_ok();
        written
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

/// Bytes written at once by [`write_again`].
const REWRITE_STEP: usize = 256 * 1024;

/// Writes the first `length` bytes of a file again, in their place, and waits for the disk.
///
/// After a failed fsync the system shows what was written, takes it for clean and never writes it:
/// a file that is read whole may have a hole on disk, for other processes too, until its pages are
/// dropped. Written again it is on disk as it was read. A power loss meanwhile leaves a mixture of
/// what was on disk and the same bytes: nothing worse than before.
pub(crate) fn write_again(path: &Path, length: u64) -> Result<(), EngineError> {
    let opened = File::options().read(true).write(true).open(path);
    opened
        .and_then(|file| rewrite(&file, length))
        .map_err(|source| EngineError::Io {
            what: "cannot write again",
            path: path.to_owned(),
            source,
        })
}

fn rewrite(mut file: &File, length: u64) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(REWRITE_STEP);
    let mut at = 0;
    while at < length {
        let step = (length - at).min(REWRITE_STEP as u64);
        bytes.clear();
        file.seek(SeekFrom::Start(at))?;
        file.take(step).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    file.sync_all()
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_file_is_written_again_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for length in [0, 1, REWRITE_STEP, 2 * REWRITE_STEP + 77] {
            let bytes: Vec<u8> = (0..length + 9).map(|at| (at % 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            write_again(&path, length as u64).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            let written = file.metadata().unwrap().modified().unwrap();
            assert_eq!(written > SystemTime::UNIX_EPOCH, length > 0);
        }
    }
}
