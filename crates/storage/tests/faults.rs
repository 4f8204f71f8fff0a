//! Every kind of fault at every call of the engine, one at a time, and then random ones together:
//! what was acknowledged is there after a crash; what failed for sure is not; what is unknown is
//! there whole or not at all.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;

use homeserver_runtime::Runtime;
use homeserver_storage::{
    At, Batch, CommitError, Direction, Durability, Entry, EntryKind, NumberKind, OpenEngine,
    Position, ScanRange, Store, Table, TableSpec, Topic,
    engines::{
        faulty::{Fault, FaultPlan, FaultyDisk, FaultyEngine},
        fjall::{FjallEngine, FjallOptions},
        memory::MemoryEngine,
        sled::SledEngine,
    },
};

/// `(writer, number, row)` → position of the batch.
const ROWS: Table<(u64, u64, u64), At> = Table::new(0x20, "rows");
const TABLES: &[TableSpec] = &[ROWS.spec()];
const WRITERS: u64 = 3;
const BATCHES: u64 = 6;
const ROWS_PER_BATCH: u64 = 5;

/// What writers were told, by writer and number.
type Answers = Vec<((u64, u64), Answer)>;

/// How a batch was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Acknowledged(Position),
    Refused,
    Unknown,
}

fn batch_of(writer: u64, number: u64) -> Batch {
    let mut batch = Batch::new();
    batch.assert_absent(&ROWS, &(writer, number, 0_u64));
    let append = batch.append(
        &Entry::new(EntryKind::trimmed(1), &[writer, number]),
        &[Topic::new(1, writer)],
    );
    for row in 0..ROWS_PER_BATCH {
        batch.put(&ROWS, &(writer, number, row), &At::from(append));
    }
    batch
}

/// Writers with several batches on their way, some numbers, some cursors.
async fn work(store: &Store) -> Answers {
    let mut submitted = Vec::new();
    let interner = store.numbers(NumberKind(1));
    for number in 0..BATCHES {
        for writer in 0..WRITERS {
            let ticket = store
                .submit(batch_of(writer, number), Durability::Durable)
                .await;
            submitted.push(((writer, number), ticket));
        }
        // Their own failures are theirs; a number that was given must stay given.
        let name = format!("name {number}");
        if let Ok(given) = interner.number(&name).await {
            let looked_up = interner.lookup(&name).await;
            assert!(looked_up.is_err() || looked_up.unwrap() == Some(given));
        }
        let _ = store.cursor("reader").advance(number).await;
    }
    let mut answers = Vec::new();
    for (batch, ticket) in submitted {
        let answer = match ticket {
            Ok(ticket) => ticket.await,
            Err(error) => Err(error),
        };
        let answer = match answer {
            Ok(committed) => Answer::Acknowledged(committed.positions[0]),
            Err(CommitError::Unknown(_)) => Answer::Unknown,
            Err(CommitError::NotApplied(_) | CommitError::Closed) => Answer::Refused,
            Err(error) => panic!("{error:?}"),
        };
        answers.push((batch, answer));
    }
    answers
}

/// Compares the store with what its writers and readers were told.
async fn compare(plan: &FaultPlan, store: &Store, durable: Position, answers: &Answers) {
    assert!(
        store.durable() >= durable,
        "{plan:?}: readers saw what is gone"
    );
    for ((writer, number), answer) in answers {
        let range = ScanRange::prefix(&(*writer, *number));
        let rows = store
            .scan(&ROWS, range, Direction::Forward, 100)
            .await
            .unwrap();
        let whole = rows.len() as u64 == ROWS_PER_BATCH;
        assert!(
            whole || rows.is_empty(),
            "{plan:?}: batch {writer}/{number} is torn"
        );
        let holds = match answer {
            Answer::Acknowledged(at) => whole && rows.iter().all(|(_, row)| *row == At::Known(*at)),
            Answer::Refused => rows.is_empty(),
            Answer::Unknown => true,
        };
        assert!(
            holds,
            "{plan:?}: batch {writer}/{number} was answered {answer:?}: {rows:?}"
        );
    }
    let journal = store
        .journal()
        .read_all(0, Position::MAX, 1_000)
        .await
        .unwrap();
    assert!(
        journal
            .iter()
            .map(|(position, _)| *position)
            .eq(1..=store.durable())
    );
}

/// Runs the work under `plan`, crashes, and compares. Gives how many calls the engine had, and how
/// many batches were acknowledged.
async fn round(plan: FaultPlan) -> (u64, usize) {
    let faulty = Arc::new(FaultyEngine::new(
        Arc::new(MemoryEngine::new()),
        plan.clone(),
    ));
    let runtime = Runtime::system();
    let opened = Store::open(Arc::clone(&faulty) as _, &[TABLES], &runtime).await;
    let answers = match &opened {
        Ok(store) => work(store).await,
        Err(_) => Vec::new(),
    };
    let durable = opened.map_or(0, |store| store.durable());
    let calls = faulty.calls();
    let survivor = Arc::new(faulty.crash().await.unwrap());
    let store = Store::open(survivor, &[TABLES], &runtime).await.unwrap();
    compare(&plan, &store, durable, &answers).await;
    let acknowledged = |answer: &Answer| matches!(answer, Answer::Acknowledged(_));
    (
        calls,
        answers
            .iter()
            .filter(|(_, answer)| acknowledged(answer))
            .count(),
    )
}

#[tokio::test]
async fn one_fault_at_every_call() {
    let (calls, acknowledged) = round(FaultPlan::none(0)).await;
    assert_eq!(acknowledged as u64, WRITERS * BATCHES);
    assert!(calls > 15, "only {calls} calls");
    let mut partly = 0;
    for call in 0..calls {
        for fault in Fault::ALL {
            for seed in 0..3 {
                let (_, acknowledged) = round(FaultPlan::once(seed, call, fault)).await;
                partly += u64::from(acknowledged > 0 && (acknowledged as u64) < WRITERS * BATCHES);
            }
        }
    }
    assert!(partly > 0, "no fault hit in the middle");
}

#[tokio::test]
async fn many_faults_and_delays() {
    for seed in 0..200 {
        let plan = FaultPlan {
            per_thousand: 20,
            delay: std::time::Duration::from_micros(50),
            ..FaultPlan::none(seed)
        };
        round(plan).await;
    }
}

#[tokio::test]
async fn a_store_whose_outcome_is_unknown_is_closed() {
    let faulty = Arc::new(FaultyEngine::new(
        Arc::new(MemoryEngine::new()),
        FaultPlan::none(1),
    ));
    let runtime = Runtime::system();
    drop(
        Store::open(Arc::clone(&faulty) as _, &[TABLES], &runtime)
            .await
            .unwrap(),
    );
    let survivor = Arc::new(faulty.crash().await.unwrap());
    let calls_of_opening = 4;
    let plan = FaultPlan::once(1, calls_of_opening, Fault::FailedSync);
    let store = Store::open(
        Arc::new(FaultyEngine::new(survivor, plan)),
        &[TABLES],
        &runtime,
    );
    let store = store.await.unwrap();
    let mut durable = store.subscribe();
    let mut outcomes = Vec::new();
    for number in 0..3 {
        outcomes.push(store.commit(batch_of(0, number)).await);
    }
    let unknown = outcomes
        .iter()
        .position(|o| matches!(o, Err(CommitError::Unknown(_))));
    let unknown = unknown.expect("the fault hits one of the commits");
    let later = &outcomes[unknown + 1..];
    assert!(
        later
            .iter()
            .all(|outcome| matches!(outcome, Err(CommitError::Closed)))
    );
    assert!(!store.is_writable());
    assert_eq!(*durable.borrow_and_update(), unknown as u64);
}

/// A writer that is nobody of the work.
const LATER: u64 = WRITERS;

/// Commits one batch after the other until one succeeds, as clients would; gives their answers.
async fn until_it_goes_on(store: &Store) -> Answers {
    let mut answers = Vec::new();
    for number in 0..100 {
        let answer = match store.commit(batch_of(LATER, number)).await {
            Ok(committed) => Answer::Acknowledged(committed.positions[0]),
            Err(CommitError::Unknown(_)) => Answer::Unknown,
            Err(_) => Answer::Refused,
        };
        answers.push(((LATER, number), answer));
        if matches!(answer, Answer::Acknowledged(_)) {
            return answers;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the store did not recover: {answers:?}");
}

/// The numbers of all names are there and differ, whatever was forgotten on the way.
async fn compare_numbers(store: &Store) {
    let interner = store.numbers(NumberKind(1));
    let mut given = std::collections::BTreeSet::new();
    for number in 0..BATCHES {
        let name = format!("name {number}");
        let number = interner.number(&name).await.unwrap();
        assert!(given.insert(number), "{name} has the number of another");
        let back = interner.name(number).await.unwrap();
        assert_eq!(back.as_deref(), Some(name.as_str()));
    }
}

/// Runs the work on a store that opens its engine again, and compares: in place, and with what is
/// on disk at the end. Gives the calls and how often it was opened again.
async fn round_in_place(plan: FaultPlan, disk: FaultyDisk) -> (u64, u64) {
    let disk = Arc::new(disk);
    let runtime = Runtime::system();
    let Ok(engine) = disk.open().await else {
        return (0, 0);
    };
    let opener = Arc::clone(&disk) as Arc<dyn OpenEngine>;
    let Ok(store) = Store::open_lasting(engine, opener, &[TABLES], &runtime).await else {
        return (0, 0);
    };
    let mut answers = work(&store).await;
    let calls = disk.calls();
    answers.extend(until_it_goes_on(&store).await);
    compare(&plan, &store, store.durable(), &answers).await;
    compare_numbers(&store).await;
    let (durable, generation) = (store.durable(), store.generation());
    store.close().await.unwrap();
    drop(store);
    let left = disk.left().await.unwrap();
    let store = Store::open(left, &[TABLES], &runtime).await.unwrap();
    compare(&plan, &store, durable, &answers).await;
    compare_numbers(&store).await;
    (calls, generation)
}

#[tokio::test]
async fn the_engine_is_opened_again_in_place() {
    let none = FaultPlan::none(0);
    let (calls, generation) = round_in_place(none.clone(), FaultyDisk::memory(none)).await;
    assert_eq!(generation, 0, "nothing was wrong");
    let mut reopened = 0;
    for call in 0..calls {
        for fault in Fault::ALL {
            for seed in 0..3 {
                let plan = FaultPlan::once(seed, call, fault);
                let disk = FaultyDisk::memory(plan.clone());
                reopened += round_in_place(plan, disk).await.1;
            }
        }
    }
    assert!(reopened > calls, "only {reopened} of {calls} calls");
}

#[tokio::test]
async fn a_disk_that_stays_full_is_tried_again() {
    let none = FaultPlan::none(0);
    let (calls, _) = round_in_place(none.clone(), FaultyDisk::memory(none)).await;
    let mut reopened = 0;
    // The last one for longer than batches wait in the queue.
    let long = (5..calls).map(|call| (call, 2)).chain([(calls - 2, 7)]);
    for (call, attempts) in long {
        let full = (1..=attempts).map(|later| (call + later, Fault::Full));
        let at = std::iter::once((call, Fault::FailedSync)).chain(full);
        let plan = FaultPlan {
            at: at.collect(),
            ..FaultPlan::none(call)
        };
        let disk = FaultyDisk::memory(plan.clone());
        reopened += round_in_place(plan, disk).await.1;
    }
    assert!(reopened > 0, "the faults hit no commit");
}

/// Blocking engines on files, on the wall clock.
#[tokio::test]
async fn engines_on_files_are_opened_again_in_place() {
    type Open = fn(&std::path::Path) -> Arc<dyn homeserver_storage::Engine>;
    let engines: [Open; 2] = [
        |path| Arc::new(FjallEngine::open(path, FjallOptions::default()).unwrap()),
        |path| Arc::new(SledEngine::open(path).unwrap()),
    ];
    for open in engines {
        let mut reopened = 0;
        // Which calls are commits depends on how the batches happen to be merged.
        for call in 8..40 {
            if reopened == 3 {
                break;
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("database");
            let fault = [Fault::FailedSync, Fault::Panic][reopened as usize % 2];
            let plan = FaultPlan::once(call, call, fault);
            let disk = FaultyDisk::folder(plan.clone(), move || Ok(open(&path)));
            reopened += round_in_place(plan, disk).await.1;
        }
        assert_eq!(reopened, 3, "the faults hit too few commits");
    }
}
