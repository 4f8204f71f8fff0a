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
    At, Batch, CommitError, Direction, Durability, Entry, NumberKind, Position, ScanRange, Store,
    Table, TableSpec, Topic,
    engines::{
        faulty::{Fault, FaultPlan, FaultyEngine},
        memory::MemoryEngine,
    },
};

/// `(writer, number, row)` → position of the batch.
const ROWS: Table<(u64, u64, u64), At> = Table::new(0x20, "rows");
const TABLES: &[TableSpec] = &[ROWS.spec()];
const FAULTS: [Fault; 4] = [
    Fault::Error,
    Fault::Full,
    Fault::ShortWrite,
    Fault::FailedSync,
];
const WRITERS: u64 = 3;
const BATCHES: u64 = 6;
const ROWS_PER_BATCH: u64 = 5;

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
    let append = batch.append(&Entry::new(1, &[writer, number]), &[Topic::new(1, writer)]);
    for row in 0..ROWS_PER_BATCH {
        batch.put(&ROWS, &(writer, number, row), &At::from(append));
    }
    batch
}

/// Writers with several batches on their way, some numbers, some cursors.
async fn work(store: &Store) -> Vec<((u64, u64), Answer)> {
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
    assert!(
        store.durable() >= durable,
        "{plan:?}: readers saw what is gone"
    );
    for ((writer, number), answer) in &answers {
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
        for fault in FAULTS {
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
