use homeserver_runtime::{Runtime, SystemEntropy};

use super::*;
use crate::{Entry, EntryKind, NumberKind, OpenError, Store, Topic};

async fn filled(kind: EngineKind, path: &Path) -> (u64, u64) {
    let runtime = Runtime::system();
    let store = Store::open(kind.open(path).unwrap(), &[], &runtime)
        .await
        .unwrap();
    let mut last = 0;
    for number in 0..700 {
        let mut batch = Batch::new();
        batch.append(
            &Entry::new(EntryKind::trimmed(1), &[number]),
            &[Topic::new(1, number % 3)],
        );
        last = store.commit(batch).await.unwrap().positions[0];
    }
    store
        .numbers(NumberKind(1))
        .number("@alice:example.org")
        .await
        .unwrap();
    store.close().await.unwrap();
    (last, store.epoch())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_converted_database_is_the_same_under_another_epoch() {
    for (from, into) in [
        (EngineKind::Fjall, EngineKind::Sled),
        (EngineKind::Sled, EngineKind::Fjall),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let (last, epoch) = filled(from, &old).await;
        let mut told = 0;
        let mut progress = |progress: Progress| told = progress.done;
        let rows = convert((from, &old), (into, &new), &SystemEntropy, &mut progress)
            .await
            .unwrap();
        assert_eq!(told, rows);
        let report = check(into, &new, &mut |_| {}).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(report.rows, rows);
        let engine = into.open(&new).unwrap();
        let store = Store::open(engine, &[], &Runtime::system()).await.unwrap();
        assert_eq!(store.durable(), last);
        assert_ne!(store.epoch(), epoch);
        let number = store
            .numbers(NumberKind(1))
            .lookup("@alice:example.org")
            .await
            .unwrap();
        assert!(number.is_some());
        drop(store);
        let again = convert((from, &old), (into, &new), &SystemEntropy, &mut |_| {}).await;
        assert!(matches!(again, Err(MaintenanceError::NotEmpty(_))));
    }
}

#[tokio::test]
async fn an_unfinished_copy_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineKind::Fjall.open(folder.path()).unwrap();
    let mut batch = Batch::new();
    batch.put(&META, &UNFINISHED, &Bytes::new());
    write(&*engine, batch, Durability::Durable).await.unwrap();
    let opened = Store::open(engine, &[], &Runtime::system()).await;
    assert!(matches!(opened, Err(OpenError::Unfinished)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_finds_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    filled(EngineKind::Fjall, folder.path()).await;
    let engine = EngineKind::Fjall.open(folder.path()).unwrap();
    let mut batch = Batch::new();
    batch.delete(&JOURNAL, &7_u64);
    batch.put_raw(&[0x77, 1], b"");
    batch.put(&NUMBERS, &(1_u8, "@bob:example.org"), &1);
    write(&*engine, batch, Durability::Durable).await.unwrap();
    drop(engine);
    let report = check(EngineKind::Fjall, folder.path(), &mut |_| {})
        .await
        .unwrap();
    assert_eq!(report.problem_count, 3, "{:?}", report.problems);
    let none = check(EngineKind::Sled, folder.path(), &mut |_| {}).await;
    assert!(matches!(none, Err(MaintenanceError::Missing(_))));
}
