//! The process that commits until it is killed, and how it is started.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::UNIX_EPOCH,
};

use super::damage::{files_below, trim_reserved};
use homeserver_runtime::Runtime;
use homeserver_storage::{
    Batch, Bytes, Entry, EntryKind, Position, Positioned, Store, Table, TableSpec, Topic,
    maintenance::EngineKind,
};

/// `(writer, batch number, row)` → bytes that follow from the key.
pub(crate) const ROWS: Table<(u64, u64, u64), Bytes> = Table::new(0x20, "rows");
/// `(writer)` → position and number of its last batch.
pub(crate) const HEADS: Table<u64, Positioned<u64>> = Table::new(0x21, "heads");
pub(crate) const TABLES: &[TableSpec] = &[ROWS.spec(), HEADS.spec()];

pub(crate) const WRITERS: u64 = 4;
pub(crate) const ROWS_PER_BATCH: u64 = 7;

/// Writer, batch number, position.
pub(crate) type Ack = (u64, u64, Position);
pub(crate) type Acked = BTreeSet<Ack>;

const KIND: &str = "STORAGE_CRASH_CHILD";
const FOLDER: &str = "STORAGE_CRASH_FOLDER";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fjall,
    Sled,
    /// sled with its own `flush` only, for the control.
    PlainSled,
}

impl Kind {
    pub(crate) fn engine(self) -> EngineKind {
        match self {
            Self::Fjall => EngineKind::Fjall,
            Self::Sled | Self::PlainSled => EngineKind::Sled,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Kill,
    /// Killed, and what was not synced is dropped.
    PowerLoss,
}

/// The bytes of a row; a few are large.
pub(crate) fn value(writer: u64, number: u64, row: u64) -> Bytes {
    let length = if (number + row).is_multiple_of(29) {
        3_000
    } else {
        20 + (number * 31 + row) % 180
    };
    (0..length)
        .map(|byte| (writer * 7 + number * 13 + row * 17 + byte) as u8)
        .collect()
}

pub(crate) fn batch_of(writer: u64, number: u64) -> Batch {
    let mut batch = Batch::new();
    let append = batch.append(
        &Entry::new(EntryKind::trimmed(1), &[writer, number]),
        &[Topic::new(1, writer)],
    );
    for row in 0..ROWS_PER_BATCH {
        batch.put(&ROWS, &(writer, number, row), &value(writer, number, row));
    }
    batch.put(&HEADS, &writer, &Positioned::new(append, number));
    batch
}

/// Commits until it is killed. Run by [`run_child`] in a process of its own.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    let Ok(kind) = std::env::var(KIND) else {
        return;
    };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    match kind.as_str() {
        "Fjall" => super::runtime().block_on(commit_forever(EngineKind::Fjall, &folder)),
        "Sled" => super::runtime().block_on(commit_forever(EngineKind::Sled, &folder)),
        _ => plain_sled(&folder),
    }
}

fn report((writer, number, position): Ack) {
    let line = format!("ack {writer} {number} {position}\n");
    let mut out = std::io::stdout().lock();
    // When the other side is gone, the kill is on its way.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

async fn commit_forever(kind: EngineKind, folder: &Path) {
    let runtime = Runtime::system();
    let engine = kind.open(folder).unwrap();
    let store = Store::open(engine, &[TABLES], &runtime).await.unwrap();
    for writer in 0..WRITERS {
        let store = store.clone();
        runtime.tasks.spawn(async move {
            let head = store.get(&HEADS, &writer).await.unwrap();
            for number in head.map_or(0, |head| head.value) + 1.. {
                let committed = store.commit(batch_of(writer, number)).await.unwrap();
                report((writer, number, committed.positions[0]));
            }
        });
    }
    std::future::pending::<()>().await;
}

/// The same rows through sled alone, acknowledged after its `flush`.
fn plain_sled(folder: &Path) {
    let database = sled::open(folder).unwrap();
    for number in 1_u64.. {
        let mut batch = sled::Batch::default();
        batch.insert(&number.to_be_bytes(), value(0, number, 0).as_ref());
        database.apply_batch(batch).unwrap();
        database.flush().unwrap();
        report((0, number, number));
    }
}

/// Runs a child on the database in `path` until it has acknowledged `acks` batches, ends it as
/// `ending` says, and gives what it acknowledged.
pub(crate) fn run_child(kind: Kind, path: &Path, ending: Ending, acks: u64) -> Acked {
    // The paths that the preloaded model sees are resolved ones.
    let parent = path.parent().unwrap().canonicalize().unwrap();
    let path = parent.join(path.file_name().unwrap());
    let shadows = parent.join("shadows");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "child::child",
            "--include-ignored",
            "--nocapture",
        ])
        .env(KIND, format!("{kind:?}"))
        .env(FOLDER, &path)
        .stdout(Stdio::piped());
    if ending == Ending::PowerLoss {
        let _ = std::fs::remove_dir_all(&shadows);
        std::fs::create_dir_all(&shadows).unwrap();
        everything_is_synced(&path, &shadows);
        command
            .env("LD_PRELOAD", interposer())
            .env("POWER_LOSS_ROOT", &path)
            .env("POWER_LOSS_SHADOWS", &shadows);
    }
    let acked = read_acks(command.spawn().unwrap(), acks);
    if ending == Ending::PowerLoss {
        lose_power(&path, &shadows);
    }
    acked
}

fn read_acks(mut child: Child, acks: u64) -> Acked {
    let mut acked = Acked::new();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines {
        let Ok(line) = line else { break };
        // libtest writes lines of its own; a line that the kill cut short is no acknowledgement.
        let mut words = line
            .split(' ')
            .skip_while(|word| !word.ends_with("ack"))
            .skip(1);
        let mut number = || words.next()?.parse().ok();
        if let (Some(writer), Some(batch), Some(position)) = (number(), number(), number()) {
            acked.insert((writer, batch, position));
        }
        if acked.len() as u64 == acks {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(
        acked.len() as u64 >= acks,
        "the child ended by itself after {acked:?}"
    );
    acked
}

/// Where the model keeps what survives of a file.
fn shadow(file: &Path, shadows: &Path) -> PathBuf {
    let about = file.metadata().unwrap();
    let born = about.created().unwrap().duration_since(UNIX_EPOCH).unwrap();
    let (inode, nanos) = (about.ino(), born.subsec_nanos());
    shadows.join(format!("{inode}-{}-{nanos}", born.as_secs()))
}

/// What there is before the child starts counts as on disk.
fn everything_is_synced(folder: &Path, shadows: &Path) {
    for file in files_below(folder) {
        std::fs::copy(&file, shadow(&file, shadows)).unwrap();
    }
}

/// Every file becomes what it was at its last sync; empty if it never was synced.
fn lose_power(folder: &Path, shadows: &Path) {
    for file in files_below(folder) {
        let shadow = shadow(&file, shadows);
        if shadow.exists() {
            std::fs::rename(&shadow, &file).unwrap();
        } else {
            std::fs::write(&file, b"").unwrap();
        }
    }
    trim_reserved(folder);
}

/// The model of power loss, compiled once per test run.
fn interposer() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("power_loss.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interposer/power_loss.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .args([source, "-ldl", "-lpthread"])
            .status()
            .expect("a C compiler: apt-get install gcc");
        assert!(status.success());
        (folder, library)
    });
    &built.1
}
