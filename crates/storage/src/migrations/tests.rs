use std::sync::Arc;

use homeserver_runtime::Runtime;

use super::*;
use crate::{
    Row as _, Table,
    engines::{
        faulty::{Fault, FaultPlan, FaultyEngine},
        memory::MemoryEngine,
    },
};

const OLD: Table<u64, u64> = Table::new(0x20, "old");
const NEW: Table<u64, u64> = Table::new(0x21, "new");
const ROWS: u64 = 40;

/// Moves rows from one table to another, tripled, three at a time.
#[derive(Debug)]
struct Triple;

#[async_trait]
impl Migration for Triple {
    fn number(&self) -> u32 {
        2
    }

    fn name(&self) -> &'static str {
        "triple"
    }

    async fn step(&self, store: &Store, place: Option<Bytes>) -> Result<Step, StorageError> {
        let range = match &place {
            Some(place) => ScanRange::all().after(&u64::decode(place).unwrap()),
            None => ScanRange::all(),
        };
        let rows = store.scan(&OLD, range, Direction::Forward, 3).await?;
        let mut batch = Batch::new();
        for (key, value) in &rows {
            batch.delete(&OLD, key);
            // Done twice it would show.
            let before = store.get(&NEW, key).await?.unwrap_or(0);
            batch.put(&NEW, key, &(before + value * 3));
        }
        let next = rows.last().map(|(key, _)| Bytes::from(key.encode()));
        Ok(Step { batch, next })
    }
}

#[derive(Debug)]
struct Other(u32);

#[async_trait]
impl Migration for Other {
    fn number(&self) -> u32 {
        self.0
    }

    fn name(&self) -> &'static str {
        "other"
    }

    async fn step(&self, _store: &Store, _place: Option<Bytes>) -> Result<Step, StorageError> {
        Ok(Step {
            batch: Batch::new(),
            next: None,
        })
    }
}

async fn open(engine: Arc<dyn crate::Engine>) -> Store {
    let tables = [OLD.spec(), NEW.spec()];
    Store::open(engine, &[&tables], &Runtime::system())
        .await
        .unwrap()
}

async fn filled() -> Arc<MemoryEngine> {
    let engine = Arc::new(MemoryEngine::new());
    let store = open(Arc::clone(&engine) as _).await;
    let mut batch = Batch::new();
    for number in 0..ROWS {
        batch.put(&OLD, &number, &number);
    }
    store.commit(batch).await.unwrap();
    engine
}

#[tokio::test]
async fn a_migration_killed_at_any_call_is_done_exactly_once() {
    let mut finished = false;
    for call in 0..200 {
        let plan = FaultPlan::once(call, call, Fault::FailedSync);
        let faulty = Arc::new(FaultyEngine::new(filled().await, plan));
        let tables = [OLD.spec(), NEW.spec()];
        if let Ok(store) =
            Store::open(Arc::clone(&faulty) as _, &[&tables], &Runtime::system()).await
        {
            finished = store
                .migrate(&[&Other(1), &Triple], &mut |_| {})
                .await
                .is_ok();
        }
        let store = open(Arc::new(faulty.crash().await.unwrap())).await;
        let mut steps = 0;
        let mut count = |progress: MigrationProgress| steps = progress.steps;
        store
            .migrate(&[&Other(1), &Triple], &mut count)
            .await
            .unwrap();
        let rows = store
            .scan(&NEW, ScanRange::all(), Direction::Forward, 1_000)
            .await
            .unwrap();
        assert!(
            rows.iter()
                .copied()
                .eq((0..ROWS).map(|number| (number, number * 3)))
        );
        let left = store
            .scan(&OLD, ScanRange::all(), Direction::Forward, 1)
            .await
            .unwrap();
        assert!(left.is_empty());
    }
    assert!(finished, "the last rounds fail after the migration");
}

#[tokio::test]
async fn a_newer_database_and_a_wrong_order_are_refused() {
    let store = open(filled().await).await;
    store
        .migrate(&[&Other(1), &Other(3)], &mut |_| {})
        .await
        .unwrap();
    let older = store.migrate(&[&Other(1)], &mut |_| {}).await;
    assert!(matches!(older, Err(MigrationError::Newer(3))));
    let order = store.migrate(&[&Other(3), &Other(1)], &mut |_| {}).await;
    assert!(matches!(order, Err(MigrationError::Order(1))));
}
