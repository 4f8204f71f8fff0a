//! Measures the engines, beside a bare write and `fdatasync` of the same bytes on the same disk.
//! `cargo run --release -p homeserver-storage --example bench_storage [-- FOLDER [SECONDS]]`.
//!
//! A batch is what a short message costs: an event of 700 bytes, eight index rows, one journal
//! entry with two topics. Nothing here is a test: absolute figures depend on disk and load.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use homeserver_runtime::{Clock, Runtime, SystemClock};
use homeserver_storage::{
    At, Batch, Bytes, Direction, Durability, Entry, EntryKind, ScanRange, Store, Table, TableSpec,
    Topic, engines::memory::MemoryEngine, maintenance::EngineKind,
};

/// `(room, position)` → event.
const EVENTS: Table<(u64, u64), Bytes> = Table::new(0x20, "events");
/// `(index, room, number)` → number.
const INDEXES: Table<(u8, u64, u64), u64> = Table::new(0x21, "indexes");
const TABLES: &[TableSpec] = &[EVENTS.spec(), INDEXES.spec()];
const EVENT_BYTES: usize = 700;
const SMALL_ROWS: u64 = 1_000_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn message(room: u64, number: u64, event: &Bytes) -> Batch {
    let mut batch = Batch::new();
    batch.assert_absent(&INDEXES, &(0_u8, room, number));
    let append = batch.append(
        &Entry::new(EntryKind::kept(1), &[room, number]),
        &[Topic::new(1, room), Topic::new(2, room + 7)],
    );
    batch.put(&EVENTS, &(room, At::from(append)), event);
    for index in 0..8_u8 {
        batch.put(&INDEXES, &(index, room, number), &number);
    }
    batch
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    const TICK: u64 = 10;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * TICK)
}

/// Bytes that the files of a folder take on disk.
fn on_disk(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => on_disk(&entry.path()),
        Ok(about) => about.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// What a run of commits cost.
struct Run {
    commits: u64,
    elapsed: Duration,
    cpu: Duration,
}

impl Run {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn print(&self, name: &str, senders: u64, disk: Option<u64>) {
        let count = self.commits.max(1) as f64;
        let per_second = count / self.elapsed.as_secs_f64();
        let cpu = self.cpu.as_secs_f64() * 1_000.0 / count;
        let disk = disk.map_or("-".to_owned(), |disk| format!("{:.0}", disk as f64 / count));
        print_line(&format!(
            "{name:<12} {senders:>8} {per_second:>12.0} {cpu:>14.3} {disk:>14}"
        ));
    }
}

#[expect(clippy::print_stdout, reason = "this program's output")]
fn print_line(line: &str) {
    println!("{line}");
}

async fn commits(store: &Store, senders: u64, time: Duration) -> Run {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let (runtime, event) = (Runtime::system(), Bytes::from(vec![b'x'; EVENT_BYTES]));
    let done = Arc::new(AtomicU64::new(0));
    let (started, cpu_before) = (clock.monotonic(), cpu());
    for room in 0..senders {
        let (store, event, done) = (store.clone(), event.clone(), Arc::clone(&done));
        let clock = Arc::clone(&clock);
        let base = started.as_nanos() as u64;
        runtime.tasks.spawn(async move {
            for number in base.. {
                if clock.monotonic().saturating_sub(started) > time
                    || store.commit(message(room, number, &event)).await.is_err()
                {
                    return;
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    runtime
        .tasks
        .shutdown(time * 2 + Duration::from_secs(10))
        .await;
    Run {
        commits: done.load(Ordering::Relaxed),
        elapsed: clock.monotonic().saturating_sub(started),
        cpu: cpu().saturating_sub(cpu_before),
    }
}

/// One writer that appends as many bytes as a batch has to one file and syncs it.
fn bare_loop(folder: &Path, time: Duration) -> Result<Run, Failure> {
    let clock = SystemClock::default();
    let mut file = File::create(folder.join("bare"))?;
    let event = Bytes::from(vec![b'x'; EVENT_BYTES]);
    let bytes = vec![b'x'; message(1, 1, &event).bytes()];
    let (started, cpu_before, mut done) = (clock.monotonic(), cpu(), 0);
    while clock.monotonic().saturating_sub(started) < time {
        file.write_all(&bytes)?;
        file.sync_data()?;
        done += 1;
    }
    Ok(Run {
        commits: done,
        elapsed: clock.monotonic().saturating_sub(started),
        cpu: cpu().saturating_sub(cpu_before),
    })
}

async fn open(kind: EngineKind, folder: &Path) -> Result<Store, Failure> {
    let engine = kind.open(folder)?;
    Ok(Store::open(engine, &[TABLES], &Runtime::system()).await?)
}

async fn throughput(folder: &Path, time: Duration) -> Result<(), Failure> {
    print_line("engine        senders    commits/s  CPU ms/commit   bytes/commit");
    bare_loop(folder, time)?.print("bare loop", 1, None);
    for senders in [1, 16] {
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, &[TABLES], &Runtime::system()).await?;
        commits(&store, senders, time)
            .await
            .print("memory", senders, None);
    }
    for (name, kind) in [("fjall", EngineKind::Fjall), ("sled", EngineKind::Sled)] {
        for senders in [1, 16] {
            let path = folder.join(format!("{name}-{senders}"));
            let store = open(kind, &path).await?;
            let run = commits(&store, senders, time).await;
            store.close().await?;
            drop(store);
            run.print(name, senders, Some(on_disk(&path)));
        }
    }
    Ok(())
}

/// Fills a database with small rows; then is closed, or waits to be killed while it commits.
async fn fill(kind: EngineKind, folder: &Path, clean: bool) -> Result<(), Failure> {
    let store = open(kind, folder).await?;
    let mut tickets = Vec::new();
    for first in (0..SMALL_ROWS).step_by(500) {
        let mut batch = Batch::new();
        for number in first..first + 500 {
            batch.put(&INDEXES, &(0_u8, 1_u64, number), &number);
        }
        tickets.push(store.submit(batch, Durability::Lazy).await?);
    }
    for ticket in tickets {
        ticket.await?;
    }
    store.commit(Batch::new()).await?;
    if clean {
        store.close().await?;
        return Ok(());
    }
    print_line("ready");
    commits(&store, 16, Duration::from_mins(10)).await;
    Ok(())
}

async fn start_up(name: &str, kind: EngineKind, folder: &Path, clean: bool) -> Result<(), Failure> {
    let path = folder.join(format!("{name}-start-{clean}"));
    if clean {
        fill(kind, &path, true).await?;
    } else {
        fill_and_kill(name, &path)?;
    }
    let clock = SystemClock::default();
    let store = open(kind, &path).await?;
    let newest = store
        .scan(&INDEXES, ScanRange::all(), Direction::Backward, 1)
        .await?;
    let opened = clock.monotonic().as_millis();
    let how = if clean {
        "a clean stop"
    } else {
        "SIGKILL under load"
    };
    let rows = newest.len();
    print_line(&format!(
        "{name:<6} after {how}: first of {rows} row read in {opened} ms"
    ));
    Ok(store.close().await?)
}

/// Fills in a child process, lets it commit for two seconds, and kills it.
fn fill_and_kill(name: &str, path: &Path) -> Result<(), Failure> {
    use std::io::{BufRead as _, BufReader};
    let mut child = Command::new(std::env::current_exe()?)
        .args(["fill", name])
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    std::thread::park_timeout(Duration::from_secs(2));
    child.kill()?;
    child.wait()?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, name, path] = arguments.as_slice()
        && first == "fill"
    {
        return fill(name.parse()?, Path::new(path), false).await;
    }
    let parent = arguments
        .first()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.get(1).map_or(Ok(5), |text| text.parse())?;
    let folder = parent.join(format!("bench-storage-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    throughput(&folder, Duration::from_secs(seconds)).await?;
    print_line(&format!("\nstart-up with {SMALL_ROWS} small rows"));
    for (name, kind) in [("fjall", EngineKind::Fjall), ("sled", EngineKind::Sled)] {
        for clean in [true, false] {
            start_up(name, kind, &folder, clean).await?;
        }
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
