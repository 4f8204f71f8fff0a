use std::sync::Arc;

use homeserver_runtime::Runtime;

use super::*;
use crate::{EntryKind, Store, Topic, engines::memory::MemoryEngine, maintenance};

const EVENT: EntryKind = EntryKind::kept(1);
const NEWS: EntryKind = EntryKind::trimmed(2);
const ROOM: Topic = Topic::new(1, 7);
const USER: Topic = Topic::new(2, 9);

async fn store() -> Store {
    let engine = Arc::new(MemoryEngine::new());
    let store = Store::open(engine, &[], &Runtime::system()).await;
    store.unwrap()
}

/// Appends an event and news, so often.
async fn append(store: &Store, times: u64) {
    for number in 0..times {
        let mut batch = Batch::new();
        batch.append(&Entry::new(EVENT, &[number]), &[ROOM]);
        batch.append(&Entry::new(NEWS, &[number]), &[ROOM, USER]);
        store.commit(batch).await.unwrap();
    }
}

/// Removes all that may go; gives how many entries that were.
async fn remove_all(journal: &Journal) -> usize {
    let mut removed = 0;
    while let Some(expired) = journal.expired().await.unwrap() {
        removed += expired.entries.len();
        assert!(expired.entries.iter().all(|(_, entry)| entry.kind == NEWS));
        journal.remove_expired(expired).await.unwrap();
    }
    removed
}

#[tokio::test]
async fn what_is_old_goes_with_its_topics_and_the_rest_stays() {
    let store = store().await;
    let journal = store.journal();
    append(&store, 150).await;
    journal.note_time(1_000).await.unwrap();
    append(&store, 10).await;
    journal.note_time(2_000).await.unwrap();
    append(&store, 1).await;

    assert_eq!(journal.move_trim_point(999).await.unwrap(), 0);
    assert_eq!(remove_all(&journal).await, 0);
    assert_eq!(journal.move_trim_point(1_999).await.unwrap(), 300);
    // The point is moved; nothing is gone before the next step.
    assert_eq!(journal.read_all(0, 400, 400).await.unwrap().len(), 322);
    assert_eq!(remove_all(&journal).await, 150);
    assert_eq!(remove_all(&journal).await, 0);

    let all = journal.read_all(0, 400, 400).await.unwrap();
    assert_eq!(all.len(), 322 - 150);
    assert_eq!(all[150].0, 301);
    assert!(all[..150].iter().all(|(_, entry)| entry.kind == EVENT));
    assert_eq!(journal.read(ROOM, 0, 400, 400).await.unwrap().len(), 172);
    assert_eq!(journal.read(USER, 0, 400, 400).await.unwrap().len(), 11);

    // A second time, from where the first ended.
    assert_eq!(journal.move_trim_point(2_000).await.unwrap(), 320);
    assert_eq!(remove_all(&journal).await, 10);
    assert_eq!(journal.read(USER, 0, 400, 400).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_slowest_consumer_is_waited_for() {
    let store = store().await;
    let journal = store.journal();
    append(&store, 20).await;
    journal.note_time(1_000).await.unwrap();
    store.cursor("fast").advance(40).await.unwrap();
    store.cursor("slow").advance(10).await.unwrap();
    store.commit(Batch::new()).await.unwrap();
    assert_eq!(journal.move_trim_point(5_000).await.unwrap(), 10);
    assert_eq!(remove_all(&journal).await, 5);
    store.cursor("slow").advance(40).await.unwrap();
    store.commit(Batch::new()).await.unwrap();
    assert_eq!(journal.move_trim_point(5_000).await.unwrap(), 40);
    assert_eq!(journal.trim_point().await.unwrap(), 40);
    assert_eq!(remove_all(&journal).await, 15);
    // Never backwards, even if the clock is.
    assert_eq!(journal.move_trim_point(1).await.unwrap(), 40);
}

#[tokio::test]
async fn a_trimmed_topic_may_have_moved_until_the_trim_point() {
    let store = store().await;
    let journal = store.journal();
    append(&store, 5).await;
    journal.note_time(1_000).await.unwrap();
    append(&store, 1).await;
    let other = Topic::new(2, 10);
    let before = journal.last(&[USER, other]).await.unwrap();
    assert_eq!(before, [Some(12), None]);
    journal.move_trim_point(1_000).await.unwrap();
    remove_all(&journal).await;
    let after = journal.last(&[USER, other]).await.unwrap();
    assert_eq!(after, [Some(12), Some(10)]);
}

#[tokio::test]
async fn the_times_of_what_is_trimmed_go_too() {
    let store = store().await;
    let journal = store.journal();
    for time in 0..30 {
        append(&store, 1).await;
        journal.note_time(time).await.unwrap();
    }
    assert_eq!(journal.move_trim_point(19).await.unwrap(), 40);
    let times = store
        .scan(&TIMES, ScanRange::all(), Direction::Forward, 100)
        .await
        .unwrap();
    assert_eq!(times.first(), Some(&(19, 40)));
    assert_eq!(times.len(), 11);
}

const DAY: u64 = 24 * 60 * 60 * 1_000;
const TODAY: u64 = 20_000 * DAY;

#[tokio::test]
async fn a_clock_that_was_decades_behind_makes_nothing_old() {
    let store = store().await;
    let journal = store.journal();
    for wrong in [0, 1_000] {
        append(&store, 5).await;
        journal.note_time(wrong).await.unwrap();
        // Nothing was noted since, or only with the right clock.
        assert_eq!(journal.move_trim_point(TODAY - 30 * DAY).await.unwrap(), 0);
    }
    append(&store, 5).await;
    journal.note_time(TODAY).await.unwrap();
    assert_eq!(journal.move_trim_point(TODAY - 30 * DAY).await.unwrap(), 0);
    append(&store, 5).await;
    journal.note_time(TODAY + 31 * DAY).await.unwrap();
    let before = TODAY + DAY;
    assert_eq!(journal.move_trim_point(before).await.unwrap(), 30);
}

#[tokio::test]
async fn a_clock_that_was_a_little_behind_makes_nothing_old() {
    let store = store().await;
    let journal = store.journal();
    for day in 0..30 {
        append(&store, 1).await;
        journal.note_time(TODAY + day * DAY).await.unwrap();
    }
    append(&store, 1).await;
    journal.note_time(TODAY - 10 * DAY).await.unwrap();
    assert_eq!(journal.move_trim_point(TODAY - DAY).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trimmed_database_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let kind = maintenance::EngineKind::Fjall;
    let engine = kind.open(folder.path()).unwrap();
    let store = Store::open(engine, &[], &Runtime::system()).await.unwrap();
    append(&store, 200).await;
    store.journal().note_time(1).await.unwrap();
    store.journal().move_trim_point(1).await.unwrap();
    assert_eq!(remove_all(&store.journal()).await, 200);
    store.close().await.unwrap();
    drop(store);
    let report = maintenance::check(kind, folder.path(), &mut |_| {}).await;
    let report = report.unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.tables[&JOURNAL.spec().id], 200);
    assert_eq!(report.tables[&TOPIC_ENTRIES.spec().id], 200);
}
