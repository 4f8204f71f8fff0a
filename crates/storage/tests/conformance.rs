//! One suite for all engines: what the contract in `homeserver_storage::engine` says, through the
//! store that everybody uses. A new engine adds one line at the end.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use homeserver_runtime::{Entropy, Runtime, SeededEntropy};
use homeserver_storage::{
    At, Batch, CommitError, Direction, Durability, Engine, EngineError, Entry, EntryKind,
    OpenError, Position, ScanRange, Store, Table, TableSpec, Topic,
    engine::{Group, KeyRange},
    engines::{
        faulty::{FaultPlan, FaultyEngine},
        fjall::{FjallEngine, FjallOptions},
        memory::MemoryEngine,
        sled::SledEngine,
    },
};

/// `(number, name)` → number.
const ROWS: Table<(u64, String), u64> = Table::new(0x20, "rows");
/// `(position)` → number.
const LOG: Table<Position, u64> = Table::new(0x21, "log");
/// `(name)` → bytes.
const LARGE: Table<String, homeserver_storage::Bytes> = Table::new(0x22, "large");
const TABLES: &[TableSpec] = &[ROWS.spec(), LOG.spec(), LARGE.spec()];
const TOPIC: Topic = Topic::new(1, 1);

type Opened = Result<Arc<dyn Engine>, EngineError>;

/// How the suite gets at an engine.
trait Backend {
    /// Whether what is committed is there after opening the same folder again.
    const PERSISTENT: bool = true;
    fn open(path: &Path) -> Opened;
}

async fn store_on(engine: Arc<dyn Engine>) -> Store {
    Store::open(engine, &[TABLES], &Runtime::system())
        .await
        .unwrap()
}

async fn store<B: Backend>(path: &Path) -> Store {
    store_on(B::open(path).unwrap()).await
}

fn put(number: u64, name: &str, value: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(&ROWS, &(number, name), &value);
    batch
}

async fn names(
    store: &Store,
    range: ScanRange<(u64, String)>,
    direction: Direction,
) -> Vec<String> {
    let rows = store.scan(&ROWS, range, direction, 1_000).await.unwrap();
    rows.into_iter().map(|((_, name), _)| name).collect()
}

async fn scans_are_ordered_and_bounded<B: Backend>(path: &Path) {
    let store = store::<B>(path).await;
    for (number, name) in [(2, "c"), (1, "x"), (2, "a"), (2, "d"), (3, "x"), (2, "b")] {
        store.commit(put(number, name, 1)).await.unwrap();
    }
    let two = || ScanRange::prefix(&2_u64);
    assert_eq!(
        names(&store, two(), Direction::Forward).await,
        ["a", "b", "c", "d"]
    );
    assert_eq!(
        names(&store, two(), Direction::Backward).await,
        ["d", "c", "b", "a"]
    );
    let middle = || two().after(&(2_u64, "a")).upto(&(2_u64, "c"));
    assert_eq!(
        names(&store, middle(), Direction::Forward).await,
        ["b", "c"]
    );
    assert_eq!(
        names(&store, middle(), Direction::Backward).await,
        ["c", "b"]
    );
    let none = two().after(&(2_u64, "d"));
    assert!(names(&store, none, Direction::Forward).await.is_empty());
    let limited = store
        .scan(&ROWS, two(), Direction::Backward, 2)
        .await
        .unwrap();
    assert_eq!(limited.len(), 2);
    let inverted = ScanRange::all().from(&3_u64).before(&1_u64);
    assert!(names(&store, inverted, Direction::Forward).await.is_empty());
}

/// Random batches with asserts, submitted in bursts, against a map.
async fn batches_do_what_a_map_does<B: Backend>(path: &Path) {
    let store = store::<B>(path).await;
    let random = SeededEntropy::new(7);
    let random: &dyn Entropy = &random;
    let mut model: BTreeMap<(u64, String), u64> = BTreeMap::new();
    let mut given = 0;
    for _burst in 0..20 {
        let mut expected = Vec::new();
        for _ in 0..=random.number() % 12 {
            let (mut batch, mut after) = (Batch::new(), model.clone());
            let key = || (random.number() % 3, format!("{}", random.number() % 4));
            let asserted = key();
            let holds = match (random.number() % 4, model.get(&asserted)) {
                (0, found) => {
                    batch.assert_absent(&ROWS, &asserted);
                    found.is_none()
                }
                (1, found) => {
                    batch.assert_present(&ROWS, &asserted);
                    found.is_some()
                }
                (_, found) => {
                    let wanted = found.copied().unwrap_or(1);
                    batch.assert_value(&ROWS, &asserted, &wanted);
                    found == Some(&wanted)
                }
            };
            for _ in 0..random.number() % 4 {
                let (key, value) = (key(), random.number() % 5);
                if value == 0 {
                    batch.delete(&ROWS, &key);
                    after.remove(&key);
                } else {
                    batch.put(&ROWS, &key, &value);
                    after.insert(key, value);
                }
            }
            let append = batch.append(&Entry::new(EntryKind::trimmed(1), &[7]), &[TOPIC]);
            batch.put(&LOG, &At::from(append), &7);
            let ticket = store.submit(batch, Durability::Durable).await.unwrap();
            if holds {
                model = after;
                given += 1;
            }
            expected.push((ticket, holds.then_some(given)));
        }
        for (ticket, position) in expected {
            match (ticket.await, position) {
                (Ok(committed), Some(position)) => assert_eq!(committed.positions[0], position),
                (Err(CommitError::Conflict { .. }), None) => {}
                (outcome, expected) => panic!("{outcome:?} where {expected:?} was expected"),
            }
        }
        let rows = store
            .scan(&ROWS, ScanRange::all(), Direction::Forward, 1_000)
            .await;
        assert_eq!(rows.unwrap(), model.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(store.durable(), given);
    }
    let log = store
        .scan(&LOG, ScanRange::all(), Direction::Forward, 1_000)
        .await
        .unwrap();
    assert!(log.iter().map(|(position, _)| *position).eq(1..=given));
    let journal = store
        .journal()
        .read(TOPIC, 0, Position::MAX, 1_000)
        .await
        .unwrap();
    assert!(journal.iter().map(|(position, _)| *position).eq(1..=given));
}

async fn the_largest_rows_fit<B: Backend>(path: &Path) {
    let store = store::<B>(path).await;
    let name = "n".repeat(511 - 3);
    let value = homeserver_storage::Bytes::from(vec![7; 128 * 1024]);
    let mut batch = Batch::new();
    batch.put(&LARGE, &name, &value);
    batch.put(&LARGE, &"", &homeserver_storage::Bytes::new());
    store.commit(batch).await.unwrap();
    assert_eq!(store.get(&LARGE, &name).await.unwrap(), Some(value));
    assert_eq!(store.get(&LARGE, &"").await.unwrap().unwrap().len(), 0);
    assert_eq!(store.get(&LARGE, &"x").await.unwrap(), None);
}

async fn the_watch_tells_durable_positions<B: Backend>(path: &Path) {
    let store = store::<B>(path).await;
    let mut watch = store.subscribe();
    let mut batch = Batch::new();
    batch.append(&Entry::new(EntryKind::trimmed(1), &[]), &[TOPIC]);
    batch.append(&Entry::new(EntryKind::trimmed(1), &[]), &[TOPIC]);
    let ticket = store.submit(batch, Durability::Durable).await.unwrap();
    watch.wait_for(|position| *position == 2).await.unwrap();
    assert_eq!(ticket.await.unwrap().positions.as_slice(), [1, 2]);
    let last = store
        .journal()
        .last(&[TOPIC, Topic::new(9, 9)])
        .await
        .unwrap();
    assert_eq!(last, [Some(2), None]);
}

async fn a_dropped_range_is_gone<B: Backend>(path: &Path) {
    let store = store::<B>(path).await;
    for number in 0..3_u64 {
        let mut batch = Batch::new();
        for name in 0..900 {
            batch.put(&ROWS, &(number, format!("{name:04}")), &1);
        }
        store.commit(batch).await.unwrap();
    }
    for _again in 0..2 {
        store
            .drop_range(&ROWS, ScanRange::prefix(&1_u64))
            .await
            .unwrap();
        let rows = store
            .scan(&ROWS, ScanRange::all(), Direction::Forward, 10_000)
            .await
            .unwrap();
        assert_eq!(rows.len(), 1_800);
        assert!(rows.iter().all(|((number, _), _)| *number != 1));
    }
}

async fn a_closed_engine_refuses_commits<B: Backend>(path: &Path) {
    if !B::PERSISTENT {
        return;
    }
    let engine = B::open(path).unwrap();
    let store = store_on(Arc::clone(&engine)).await;
    store.commit(put(1, "a", 1)).await.unwrap();
    store.close().await.unwrap();
    let group = &mut Group {
        batches: vec![put(1, "b", 1)],
        durability: Durability::Durable,
    };
    assert!(engine.commit(group).await.is_err());
    assert_eq!(store.get(&ROWS, &(1_u64, "b")).await.unwrap(), None);
    let everything = KeyRange::everything();
    assert!(engine.drop_range(&everything).await.is_err());
    assert_eq!(store.get(&ROWS, &(1_u64, "a")).await.unwrap(), Some(1));
    assert_eq!(store.get(&ROWS, &(1_u64, "a")).await.unwrap(), Some(1));
}

async fn everything_is_there_after_opening_again<B: Backend>(path: &Path) {
    if !B::PERSISTENT {
        return;
    }
    let mut epoch = None;
    for opening in 0..4_u64 {
        let store = store::<B>(path).await;
        assert_eq!(store.durable(), opening);
        assert_eq!(*epoch.get_or_insert(store.epoch()), store.epoch());
        let rows = store
            .scan(&ROWS, ScanRange::all(), Direction::Forward, 100)
            .await
            .unwrap();
        assert_eq!(rows.len() as u64, opening);
        let mut batch = put(opening, "x", opening);
        batch.append(&Entry::new(EntryKind::trimmed(1), &[opening]), &[TOPIC]);
        let committed = store.commit(batch).await.unwrap();
        assert_eq!(committed.positions[0], opening + 1);
        if opening % 2 == 0 {
            store.close().await.unwrap();
        }
    }
}

async fn a_second_opening_is_refused<B: Backend>(path: &Path) {
    if !B::PERSISTENT {
        return;
    }
    let first = B::open(path).unwrap();
    let second = B::open(path).map(drop);
    let error = second.unwrap_err();
    assert!(matches!(error, EngineError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&path.display().to_string()));
    drop(first);
    B::open(path).unwrap();
}

async fn a_checkpoint_is_the_same_database<B: Backend>(path: &Path) {
    if !B::PERSISTENT {
        return;
    }
    let store = store::<B>(&path.join("original")).await;
    for number in 0..2_500 {
        let mut batch = put(number, "x", number);
        batch.append(&Entry::new(EntryKind::trimmed(1), &[number]), &[TOPIC]);
        drop(store.submit(batch, Durability::Durable).await.unwrap());
    }
    let copied = path.join("copy");
    store.checkpoint(&copied).await.unwrap();
    store.commit(put(9_999, "later", 1)).await.unwrap();
    let copy = self::store::<B>(&copied).await;
    assert_eq!((copy.durable(), copy.epoch()), (2_500, store.epoch()));
    let rows = copy
        .scan(&ROWS, ScanRange::all(), Direction::Forward, 10_000)
        .await
        .unwrap();
    assert_eq!(rows.len(), 2_500);
    let mut batch = Batch::new();
    batch.append(&Entry::new(EntryKind::trimmed(1), &[]), &[]);
    assert_eq!(copy.commit(batch).await.unwrap().positions[0], 2_501);
}

async fn tables_keep_their_meaning<B: Backend>(path: &Path) {
    let engine = B::open(path).unwrap();
    drop(store_on(Arc::clone(&engine)).await);
    let renamed: Table<u64, u64> = Table::new(0x20, "something else");
    let opened = Store::open(engine, &[&[renamed.spec()]], &Runtime::system()).await;
    assert!(matches!(
        opened,
        Err(OpenError::OtherTable { id: 0x20, .. })
    ));
}

async fn the_engine_itself_shows_every_row_once<B: Backend>(path: &Path) {
    let engine = B::open(path).unwrap();
    let store = store_on(Arc::clone(&engine)).await;
    for number in 0..10 {
        store.commit(put(number, "x", number)).await.unwrap();
    }
    let everything = KeyRange::everything();
    let forward = engine
        .scan(&everything, Direction::Forward, 10_000)
        .await
        .unwrap();
    let mut backward = engine
        .scan(&everything, Direction::Backward, 10_000)
        .await
        .unwrap();
    backward.reverse();
    assert_eq!(forward, backward);
    let keys: Vec<Vec<u8>> = forward.iter().map(|(key, _)| key.to_vec()).collect();
    assert!(keys.is_sorted() && keys.len() > 10);
    let values = engine.multi_get(&keys).await.unwrap();
    assert!(
        values
            .into_iter()
            .eq(forward.into_iter().map(|(_, value)| Some(value)))
    );
}

macro_rules! conformance {
    ($($backend:ident: [$($case:ident),* $(,)?])*) => {$(
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let folder = tempfile::tempdir().unwrap();
                    super::$case::<super::backends::$backend>(&folder.path().join("db")).await;
                }
            )*
        }
    )*};
    ($($backend:ident),*) => {
        conformance! {$(
            $backend: [
                scans_are_ordered_and_bounded,
                batches_do_what_a_map_does,
                the_largest_rows_fit,
                the_watch_tells_durable_positions,
                a_dropped_range_is_gone,
                a_closed_engine_refuses_commits,
                everything_is_there_after_opening_again,
                a_second_opening_is_refused,
                a_checkpoint_is_the_same_database,
                tables_keep_their_meaning,
                the_engine_itself_shows_every_row_once,
            ]
        )*}
    };
}

#[expect(non_camel_case_types, reason = "they name test modules")]
mod backends {
    use super::{
        Arc, Backend, FaultPlan, FaultyEngine, FjallEngine, FjallOptions, MemoryEngine, Opened,
        Path, SledEngine,
    };

    pub(super) struct memory;
    impl Backend for memory {
        const PERSISTENT: bool = false;
        fn open(_path: &Path) -> Opened {
            Ok(Arc::new(MemoryEngine::new()))
        }
    }

    pub(super) struct fjall;
    impl Backend for fjall {
        fn open(path: &Path) -> Opened {
            Ok(Arc::new(FjallEngine::open(path, FjallOptions::default())?))
        }
    }

    pub(super) struct sled;
    impl Backend for sled {
        fn open(path: &Path) -> Opened {
            Ok(Arc::new(SledEngine::open(path)?))
        }
    }

    pub(super) struct faulty_memory;
    impl Backend for faulty_memory {
        const PERSISTENT: bool = false;
        fn open(path: &Path) -> Opened {
            Ok(Arc::new(FaultyEngine::new(
                memory::open(path)?,
                FaultPlan::none(1),
            )))
        }
    }

    pub(super) struct faulty_fjall;
    impl Backend for faulty_fjall {
        fn open(path: &Path) -> Opened {
            Ok(Arc::new(FaultyEngine::new(
                fjall::open(path)?,
                FaultPlan::none(1),
            )))
        }
    }
}

conformance!(memory, fjall, sled, faulty_memory, faulty_fjall);
