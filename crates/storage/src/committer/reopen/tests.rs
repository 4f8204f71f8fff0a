mod startled;

use std::sync::atomic::AtomicU64;

use homeserver_runtime::Runtime;

use self::startled::StartledDisk;
use super::*;
use crate::{
    Store,
    engine::Conflict,
    engines::{
        faulty::{Fault, FaultPlan, FaultyDisk},
        memory::MemoryEngine,
    },
    handle::Handle,
};

fn lazy_put() -> Batch {
    let mut batch = Batch::new();
    batch.put(&META, &"some", &Bytes::from_static(b"value"));
    batch
}

fn group(batches: Vec<Batch>, durability: Durability) -> Group {
    Group {
        batches,
        durability,
    }
}

#[test]
fn lazy_batches_are_kept_until_something_was_synced() {
    let disk = FaultyDisk::memory(FaultPlan::none(0));
    let recovery = Recovery::new(Arc::new(disk), 0);
    let kept = || recovery.lazy.lock().batches.len();
    let done: BatchResult = Ok(crate::engine::Committed {
        positions: smallvec::SmallVec::new(),
    });
    let mut asserts = Batch::new();
    asserts.assert_absent(&META, &"other");
    let mut refused = lazy_put();
    let assert = refused.assert_absent(&META, &"some");
    let conflict: BatchResult = Err(Conflict {
        assert,
        found: None,
    });

    let results = std::slice::from_ref(&done);
    let _ = recovery.committed(group(vec![lazy_put()], Durability::Lazy), results);
    assert_eq!(kept(), 1);
    let nothing = vec![asserts, refused];
    let results = [done.clone(), conflict];
    let _ = recovery.committed(group(nothing, Durability::Durable), &results);
    assert_eq!(kept(), 1, "nothing was written, so nothing was synced");
    let _ = recovery.committed(group(vec![lazy_put()], Durability::Durable), &[done]);
    assert_eq!(kept(), 0);
}

#[tokio::test]
async fn nobody_waits_for_an_engine_that_will_not_come() {
    let runtime = Runtime::system();
    let handle = Handle::new(Arc::new(MemoryEngine::new()));
    handle.take_away(&runtime).await.unwrap();
    let mut waiting = std::pin::pin!(handle.engine());
    assert!(waiting.as_mut().now_or_never().is_none());
    handle.give_up();
    let closed = |answer| matches!(answer, Some(Err(EngineError::Closed)));
    assert!(closed(waiting.now_or_never()));
    assert!(closed(handle.engine().now_or_never()));
}

/// Opens a store on engines of which the second panics when it is read.
async fn startled(plan: FaultPlan) -> (Arc<StartledDisk>, Store) {
    let disk = Arc::new(StartledDisk {
        disk: FaultyDisk::memory(plan),
        opened: AtomicU64::new(0),
    });
    let engine = disk.open().await.unwrap();
    let opener = Arc::clone(&disk) as _;
    let store = Store::open_lasting(engine, opener, &[], &Runtime::system()).await;
    (disk, store.unwrap())
}

#[tokio::test]
async fn an_engine_that_panics_when_it_is_tried_is_opened_once_more() {
    let (disk, store) = startled(FaultPlan::none(1)).await;
    store.commit(lazy_put()).await.unwrap();
    let last = *disk.disk.commits().last().unwrap();

    let (disk, store) = startled(FaultPlan::once(1, last, Fault::FailedSync)).await;
    let unknown = store.commit(lazy_put()).await;
    assert!(matches!(unknown, Err(CommitError::Unknown(_))));
    // It waits for the engine.
    store.commit(lazy_put()).await.unwrap();
    assert_eq!(disk.opened.load(Ordering::SeqCst), 3);
}
