use homeserver_runtime::Runtime;

use super::*;
use crate::{
    engine::Conflict,
    engines::{
        faulty::{FaultPlan, FaultyDisk},
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
