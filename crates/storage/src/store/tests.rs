use super::*;
use crate::{At, Entry, EntryKind, Positioned, Topic, engines::memory::MemoryEngine};

const ROWS: Table<(u64, String), u64> = Table::new(0x20, "rows");
const LOG: Table<(u64, Position), u64> = Table::new(0x21, "log");
const HEADS: Table<u64, Positioned<u64>> = Table::new(0x22, "heads");
const TABLES_HERE: &[TableSpec] = &[ROWS.spec(), LOG.spec(), HEADS.spec()];
const ROOM: Topic = Topic::new(1, 7);

async fn open(engine: &Arc<MemoryEngine>) -> Store {
    let engine: Arc<dyn Engine> = Arc::clone(engine) as _;
    Store::open(engine, &[TABLES_HERE], &Runtime::system())
        .await
        .unwrap()
}

async fn memory() -> Store {
    open(&Arc::new(MemoryEngine::new())).await
}

#[tokio::test]
async fn rows_come_back_in_order() {
    let store = memory().await;
    let mut batch = Batch::new();
    for (name, value) in [("b", 2), ("a", 1), ("c", 3)] {
        batch.put(&ROWS, &(1_u64, name), &value);
        batch.put(&ROWS, &(2_u64, name), &(value * 10));
    }
    batch.delete(&ROWS, &(2_u64, "b"));
    store.commit(batch).await.unwrap();
    assert_eq!(store.get(&ROWS, &(1_u64, "b")).await.unwrap(), Some(2));
    let both = store.multi_get(&ROWS, &[(2_u64, "b"), (2_u64, "c")]).await;
    assert_eq!(both.unwrap(), [None, Some(30)]);
    let range = ScanRange::prefix(&1_u64);
    let newest = store
        .scan(&ROWS, range, Direction::Backward, 2)
        .await
        .unwrap();
    assert_eq!(newest, [((1, "c".to_owned()), 3), ((1, "b".to_owned()), 2)]);
}

#[tokio::test]
async fn appends_get_dense_positions_and_fill_placeholders() {
    let store = memory().await;
    let mut tickets = Vec::new();
    for number in 0..100_u64 {
        let mut batch = Batch::new();
        let append = batch.append(&Entry::new(EntryKind::trimmed(9), &[number]), &[ROOM]);
        batch.put(&LOG, &(7_u64, At::from(append)), &number);
        batch.put(&HEADS, &7_u64, &Positioned::new(append, number));
        tickets.push(store.submit(batch, Durability::Durable).await.unwrap());
    }
    for (position, ticket) in (1..).zip(tickets) {
        assert_eq!(ticket.await.unwrap().positions.as_slice(), [position]);
    }
    assert_eq!(store.durable(), 100);
    let log = store
        .scan(&LOG, ScanRange::all(), Direction::Forward, 1_000)
        .await
        .unwrap();
    assert!(
        log.iter()
            .all(|((_, position), number)| *position == number + 1)
    );
    assert_eq!(log.len(), 100);
    assert_eq!(
        store.get(&HEADS, &7_u64).await.unwrap(),
        Some(Positioned::new(100, 99))
    );
    let journal = store.journal();
    let read = journal.read(ROOM, 10, 20, 5).await.unwrap();
    let positions: Vec<_> = read.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, [11, 12, 13, 14, 15]);
    assert_eq!(read[0].1, Entry::new(EntryKind::trimmed(9), &[10]));
    let back = journal.read_topic_backward(ROOM, 50, 2).await.unwrap();
    assert_eq!((back[0].0, back[1].0), (49, 48));
    assert_eq!(
        journal.last(&[ROOM, Topic::new(1, 8)]).await.unwrap(),
        [Some(100), None]
    );
    assert_eq!(journal.read_all(98, u64::MAX, 9).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_failed_assert_drops_its_batch_only_and_takes_no_position() {
    let store = memory().await;
    let batch = |value: u64| {
        let mut batch = Batch::new();
        batch.assert_absent(&ROWS, &(9_u64, "x"));
        let one = batch.assert_absent(&ROWS, &(1_u64, "one"));
        batch.put(&ROWS, &(1_u64, "one"), &value);
        batch.append(&Entry::new(EntryKind::trimmed(1), &[value]), &[ROOM]);
        (batch, one)
    };
    let mut tickets = Vec::new();
    for value in 1..=3 {
        let (batch, _) = batch(value);
        tickets.push(store.submit(batch, Durability::Durable).await.unwrap());
    }
    let mut last = Batch::new();
    last.assert_value(&ROWS, &(1_u64, "one"), &1);
    last.append(&Entry::new(EntryKind::trimmed(1), &[4]), &[ROOM]);
    let last = store.commit(last).await.unwrap();
    assert_eq!(last.positions.as_slice(), [2], "conflicts leave no gap");
    let expected = batch(0).1;
    let mut won = 0;
    for ticket in tickets {
        match ticket.await {
            Ok(_) => won += 1,
            Err(CommitError::Conflict { assert, found }) => {
                assert_eq!(assert, expected);
                assert_eq!(found.unwrap(), 1_u64.encode());
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn limits_are_errors() {
    let store = memory().await;
    let mut key = Batch::new();
    key.put(&ROWS, &(1_u64, "k".repeat(600)), &1);
    assert!(matches!(
        store.commit(key).await,
        Err(CommitError::TooLarge(_))
    ));
    let mut ops = Batch::new();
    for number in 0..1_001_u64 {
        ops.put(&ROWS, &(number, ""), &1);
    }
    assert!(matches!(
        store.commit(ops).await,
        Err(CommitError::TooLarge(_))
    ));
    let mut topics = Batch::new();
    topics.append(&Entry::new(EntryKind::trimmed(1), &[]), &[ROOM; 9]);
    assert!(matches!(
        store.commit(topics).await,
        Err(CommitError::TooLarge(_))
    ));
    let mut lazy = Batch::new();
    lazy.append(&Entry::new(EntryKind::trimmed(1), &[]), &[ROOM]);
    let lazy = store.submit(lazy, Durability::Lazy).await;
    assert!(matches!(lazy, Err(CommitError::Malformed(_))));
    let mut own = Batch::new();
    let append = own.append(&Entry::new(EntryKind::trimmed(1), &[]), &[]);
    own.assert_absent(&LOG, &(1_u64, At::from(append)));
    assert!(matches!(
        store.commit(own).await,
        Err(CommitError::Malformed(_))
    ));
    assert!(store.is_writable());
}

#[tokio::test]
async fn merged_batches_shift_their_references() {
    let store = memory().await;
    let part = |number: u64| {
        let mut part = Batch::new();
        let assert = part.assert_absent(&ROWS, &(number, ""));
        let append = part.append(&Entry::new(EntryKind::trimmed(1), &[number]), &[]);
        part.put(&LOG, &(number, At::from(append)), &number);
        (part, append, assert)
    };
    let (mut batch, ..) = part(1);
    let (second, append, assert) = part(2);
    let shift = batch.extend(&second);
    assert_eq!(shift.append(append).index(), 1);
    let committed = store.commit(batch.clone()).await.unwrap();
    assert_eq!(committed.positions.as_slice(), [1, 2]);
    assert_eq!(store.get(&LOG, &(2_u64, 2_u64)).await.unwrap(), Some(2));
    let mut blocker = Batch::new();
    blocker.put(&ROWS, &(2_u64, ""), &5);
    store.commit(blocker).await.unwrap();
    match store.commit(batch).await {
        Err(CommitError::Conflict { assert: failed, .. }) => {
            assert_eq!(failed, shift.assert(assert));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_stores_on_one_engine_share_positions_and_numbers() {
    let engine = Arc::new(MemoryEngine::new());
    let (first, second) = (open(&engine).await, open(&engine).await);
    assert_eq!(first.epoch(), second.epoch());
    let kind = NumberKind(3);
    let number = first
        .numbers(kind)
        .number("@alice:example.org")
        .await
        .unwrap();
    let other = second.numbers(kind);
    assert_eq!(other.number("@alice:example.org").await.unwrap(), number);
    assert_eq!(
        other.name(number).await.unwrap().as_deref(),
        Some("@alice:example.org")
    );
    assert_ne!(other.number("@bob:example.org").await.unwrap(), number);
    assert_eq!(other.lookup("@carol:example.org").await.unwrap(), None);
    let mut woken = second.subscribe();
    let mut batch = Batch::new();
    batch.append(&Entry::new(EntryKind::trimmed(1), &[]), &[]);
    let at = first.commit(batch).await.unwrap().positions[0];
    assert_eq!(*woken.wait_for(|durable| *durable >= at).await.unwrap(), at);
}

#[tokio::test]
async fn many_names_are_given_their_numbers_at_once() {
    let engine = Arc::new(MemoryEngine::new());
    let (first, second) = (open(&engine).await, open(&engine).await);
    let (one, other) = (first.numbers(NumberKind(3)), second.numbers(NumberKind(3)));
    let known = one.number("name 7").await.unwrap();
    let names: Vec<_> = (0..700).map(|name| format!("name {name}")).collect();
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    names.push("name 3");
    let numbers = other.numbers(&names).await.unwrap();
    assert_eq!(numbers.len(), 701);
    assert_eq!((numbers[7], numbers[700]), (known, numbers[3]));
    let different: std::collections::BTreeSet<_> = numbers[..700].iter().collect();
    assert_eq!(different.len(), 700);
    for (name, number) in names.iter().zip(&numbers) {
        assert_eq!(one.number(name).await.unwrap(), *number);
        assert_eq!(one.name(*number).await.unwrap().as_deref(), Some(*name));
    }
    assert_eq!(other.numbers(&[]).await.unwrap(), [] as [u64; 0]);
}

#[tokio::test]
async fn a_table_cannot_change_its_meaning() {
    let engine = Arc::new(MemoryEngine::new());
    drop(open(&engine).await);
    let renamed: Table<u64, u64> = Table::new(0x20, "something else");
    let opened = Store::open(engine as _, &[&[renamed.spec()]], &Runtime::system()).await;
    assert!(matches!(
        opened,
        Err(OpenError::OtherTable { id: 0x20, .. })
    ));
}

#[tokio::test]
async fn a_closed_store_refuses_commits_and_reads_on() {
    let store = memory().await;
    let mut batch = Batch::new();
    batch.put(&ROWS, &(1_u64, ""), &1);
    let ticket = store
        .submit(batch.clone(), Durability::Durable)
        .await
        .unwrap();
    store.close().await.unwrap();
    ticket.await.unwrap();
    assert!(matches!(
        store.commit(batch).await,
        Err(CommitError::Closed)
    ));
    assert_eq!(store.get(&ROWS, &(1_u64, "")).await.unwrap(), Some(1));
    store.close().await.unwrap();
    assert!(!store.is_writable());
}

#[tokio::test]
async fn a_cursor_stands_where_it_was_left() {
    let store = memory().await;
    let cursor = store.cursor("push");
    assert_eq!(cursor.position().await.unwrap(), 0);
    cursor.advance(12).await.unwrap();
    // Whatever is submitted later is committed later.
    store.commit(Batch::new()).await.unwrap();
    assert_eq!(store.cursor("push").position().await.unwrap(), 12);
}

#[tokio::test]
async fn what_no_key_can_hold_is_not_there() {
    let store = memory().await;
    let fits = "a".repeat(400);
    let mut batch = Batch::new();
    batch.put(&ROWS, &(1_u64, fits.as_str()), &1);
    store.commit(batch).await.unwrap();
    for length in [MAX_KEY, 70_000] {
        let long = "a".repeat(length);
        let found = store.get(&ROWS, &(1_u64, long.as_str())).await;
        assert_eq!(found.unwrap(), None);
        let keys = [long.as_str(), fits.as_str(), long.as_str()].map(|name| (1_u64, name));
        let found = store.multi_get(&ROWS, &keys).await;
        assert_eq!(found.unwrap(), [None, Some(1), None]);
        let scan = async |range| {
            let rows = store.scan(&ROWS, range, Direction::Forward, 10).await;
            rows.unwrap().len()
        };
        assert_eq!(scan(ScanRange::prefix(&(1_u64, long.as_str()))).await, 0);
        let upto = ScanRange::between(&(1_u64, ""), &(1_u64, long.as_str()));
        assert_eq!(scan(upto).await, 1);
        let from = ScanRange::between(&(1_u64, long.as_str()), &(2_u64, ""));
        assert_eq!(scan(from).await, 0);
    }
}
