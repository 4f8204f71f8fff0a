//! The committer: one queue per store, drained by one worker that merges waiting batches into one
//! engine write and one fsync. While that runs, the next group gathers.
//!
//! The worker exists only while there is work (and, on an engine that blocks, a moment longer, so
//! that a steady load needs no thread hand-over): nothing keeps a dropped store alive.

mod reopen;

use std::{
    collections::VecDeque,
    future::Future,
    panic::AssertUnwindSafe,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use homeserver_runtime::Runtime;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot, watch};

use self::reopen::Recovery;
pub use crate::engine::{Committed, Durability};
use crate::{
    AssertRef, Batch, Engine, EngineError, OpenEngine, Position, TooLarge,
    batch::Refused,
    engine::{BatchResult, CommitFailure, Conflict, Group},
    handle::Handle,
};

/// Batches that may wait in the queue; more submitters wait before it.
pub(crate) const MAX_QUEUED: usize = 4_096;
/// Operations of one group, beyond its first batch.
pub(crate) const MAX_GROUP_OPS: usize = 8_192;
/// Bytes of one group, beyond its first batch.
pub(crate) const MAX_GROUP_BYTES: usize = 8 * 1024 * 1024;
/// How long a blocking worker waits for more before it gives its thread back.
const LINGER: Duration = Duration::from_millis(20);

/// A batch is not in the store, or not certainly.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// An assert does not hold. Nothing was written; read again and decide again.
    #[error("a row is not what the batch asserts")]
    Conflict {
        /// The first assert that does not hold.
        assert: AssertRef,
        /// The bytes of the row that is there.
        found: Option<Bytes>,
    },
    /// Over a limit; a caller must prepare large changes in many batches.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A mistake of the program that made the batch.
    #[error("malformed batch: {0}")]
    Malformed(&'static str),
    /// Nothing was written, nor will be.
    #[error("nothing was written")]
    NotApplied(#[source] Arc<EngineError>),
    /// Only reopening the store tells whether it is there. Until then it is closed for writing.
    #[error("it is not known whether it was written")]
    Unknown(#[source] Arc<EngineError>),
    /// The store is closed for writing. Nothing was written.
    #[error("the store is closed for writing")]
    Closed,
}

impl CommitError {
    /// Whether the same request may succeed when it is made again.
    pub fn is_passing(&self) -> bool {
        !matches!(self, Self::TooLarge(_) | Self::Malformed(_))
    }
}

impl From<Conflict> for CommitError {
    fn from(conflict: Conflict) -> Self {
        Self::Conflict {
            assert: conflict.assert,
            found: conflict.found,
        }
    }
}

impl From<CommitFailure> for CommitError {
    fn from(failure: CommitFailure) -> Self {
        match failure {
            CommitFailure::NotApplied(error) => Self::NotApplied(error),
            CommitFailure::Unknown(error) => Self::Unknown(error),
        }
    }
}

impl From<Refused> for CommitError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooLarge(error) => Self::TooLarge(error),
            Refused::Malformed(why) => Self::Malformed(why),
        }
    }
}

/// The outcome of a submitted batch, to be awaited. Dropping it does not take the batch back.
#[derive(Debug)]
#[must_use = "a batch is acknowledged only when its ticket resolves"]
pub struct Ticket(oneshot::Receiver<Result<Committed, CommitError>>);

impl Future for Ticket {
    type Output = Result<Committed, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A worker that went away in the middle of a commit leaves its outcome open.
        let lost = |_| Err(CommitError::Unknown(Arc::new(EngineError::Closed)));
        self.0
            .poll_unpin(context)
            .map(|answer| answer.unwrap_or_else(lost))
    }
}

/// The queue and what drains it. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handle: Arc<Handle>,
    recovery: Option<Arc<Recovery>>,
    runtime: Runtime,
    queue: Mutex<Queue>,
    arrived: Condvar,
    space: Semaphore,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    working: bool,
    /// For good.
    closed: bool,
    /// Until the engine is open again.
    refusing: bool,
    /// Groups committed since the last time the engine was told that it is idle.
    busy: bool,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are batches")]
enum Waiting {
    Batch {
        batch: Batch,
        durability: Durability,
        answer: oneshot::Sender<Result<Committed, CommitError>>,
    },
    Work {
        what: Work,
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
}

/// What happens between commits, in its turn.
#[derive(Debug)]
pub(crate) enum Work {
    Checkpoint(PathBuf),
    Idle,
    Close,
}

/// Whether the worker goes on after a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Next,
    /// The engine takes no more commits.
    Failed,
}

/// What the worker does next.
enum Next {
    Group(Group, Vec<oneshot::Sender<Result<Committed, CommitError>>>),
    Work(Work, oneshot::Sender<Result<(), EngineError>>),
}

impl Committer {
    /// With an opener, the engine is opened anew when the outcome of a commit is unknown.
    pub(crate) fn new(
        handle: Arc<Handle>,
        opener: Option<(Arc<dyn OpenEngine>, Position)>,
        runtime: Runtime,
    ) -> Self {
        let recovery = opener.map(|(opener, durable)| Arc::new(Recovery::new(opener, durable)));
        Self {
            shared: Arc::new(Shared {
                handle,
                recovery,
                runtime,
                queue: Mutex::default(),
                arrived: Condvar::new(),
                space: Semaphore::new(MAX_QUEUED),
            }),
        }
    }

    pub(crate) async fn submit(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> Result<Ticket, CommitError> {
        batch.check()?;
        if durability == Durability::Lazy && batch.appends() > 0 {
            return Err(CommitError::Malformed(
                "a lazy batch cannot append to the journal",
            ));
        }
        let (answer, ticket) = oneshot::channel();
        self.enqueue(Waiting::Batch {
            batch,
            durability,
            answer,
        })
        .await?;
        Ok(Ticket(ticket))
    }

    /// Does `what` after everything that was submitted before it.
    pub(crate) async fn work(&self, what: Work) -> Result<(), EngineError> {
        let (answer, done) = oneshot::channel();
        self.enqueue(Waiting::Work { what, answer })
            .await
            .map_err(|_| EngineError::Closed)?;
        done.await.unwrap_or(Err(EngineError::Closed))
    }

    pub(crate) fn is_open(&self) -> bool {
        let queue = self.shared.queue.lock();
        !queue.closed && !queue.refusing
    }

    /// The durable position, where it is not the engine that tells it.
    pub(crate) fn watch(&self) -> Option<watch::Receiver<Position>> {
        self.shared
            .recovery
            .as_ref()
            .map(|recovery| recovery.watch())
    }

    /// A database of another epoch is not taken for the same one.
    pub(crate) fn know_epoch(&self, epoch: u64) {
        if let Some(recovery) = &self.shared.recovery {
            recovery.know_epoch(epoch);
        }
    }

    /// Whether anything was committed since this was last asked.
    pub(crate) fn was_busy(&self) -> bool {
        std::mem::take(&mut self.shared.queue.lock().busy)
    }

    async fn enqueue(&self, waiting: Waiting) -> Result<(), CommitError> {
        match self.shared.space.acquire().await {
            Ok(space) => space.forget(),
            Err(_) => return Err(CommitError::Closed),
        }
        let mut queue = self.shared.queue.lock();
        if queue.closed || queue.refusing {
            self.shared.space.add_permits(1);
            return Err(CommitError::Closed);
        }
        queue.waiting.push_back(waiting);
        let start = !std::mem::replace(&mut queue.working, true);
        drop(queue);
        if start {
            Shared::start(&self.shared);
        } else {
            self.shared.arrived.notify_one();
        }
        Ok(())
    }
}

/// Closes the queue if a worker ends in any other way than by finding nothing to do.
struct Working {
    shared: Arc<Shared>,
    finished: bool,
}

impl Working {
    /// There is nothing to do.
    fn end(mut self) {
        self.finished = true;
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.close();
        }
    }
}

impl Shared {
    fn start(shared: &Arc<Self>) {
        Self::run(Working {
            shared: Arc::clone(shared),
            finished: false,
        });
    }

    /// Works on the queue until it is empty.
    fn run(working: Working) {
        let runtime = working.shared.runtime.clone();
        if working.shared.handle.blocks && !runtime.blocking.is_inline() {
            runtime.tasks.clone().spawn(async move {
                let drain = move || Self::end(working.shared.drain_blocking(), working);
                // An error means that the job never ran: `Working` closes the queue.
                if let Ok(Some((working, recovery))) = runtime.blocking.run(drain).await {
                    Self::reopen(working, recovery).await;
                }
            });
        } else {
            runtime.tasks.spawn(async move {
                let after = working.shared.drain().await;
                if let Some((working, recovery)) = Self::end(after, working) {
                    Self::reopen(working, recovery).await;
                }
            });
        }
    }

    /// Ends the worker, unless the engine has failed and can be opened again.
    fn end(after: After, working: Working) -> Option<(Working, Arc<Recovery>)> {
        let recovery = working.shared.recovery.clone();
        let recovery = recovery.filter(|_| after == After::Failed);
        if let Some(recovery) = recovery {
            return Some((working, recovery));
        }
        working.end();
        None
    }

    async fn drain(&self) -> After {
        while let Some(next) = self.next(None) {
            match next {
                Next::Group(mut group, answers) => {
                    let outcome = match self.handle.now() {
                        Some(engine) => commit(&**engine, &mut group).await,
                        None => Err(no_engine()),
                    };
                    if self.answer(group, answers, outcome) == After::Failed {
                        return After::Failed;
                    }
                }
                Next::Work(what, answer) => {
                    let outcome = self.perform(what).await;
                    let _ = answer.send(outcome);
                }
            }
        }
        After::Next
    }

    fn drain_blocking(&self) -> After {
        while let Some(next) = self.next(Some(LINGER)) {
            match next {
                Next::Group(mut group, answers) => {
                    let outcome = match self.handle.now() {
                        Some(engine) => commit(&**engine, &mut group).now_or_never(),
                        None => Some(Err(no_engine())),
                    };
                    let outcome = outcome.unwrap_or_else(|| Err(suspended()));
                    if self.answer(group, answers, outcome) == After::Failed {
                        return After::Failed;
                    }
                }
                Next::Work(what, answer) => {
                    let outcome = self.perform(what).now_or_never();
                    let _ = answer.send(outcome.unwrap_or(Err(EngineError::Closed)));
                }
            }
        }
        After::Next
    }

    async fn perform(&self, what: Work) -> Result<(), EngineError> {
        let engine = self.handle.engine().await?;
        let done = async {
            match what {
                Work::Checkpoint(into) => engine.checkpoint(&into).await,
                Work::Idle => engine.idle().await,
                Work::Close => {
                    self.close();
                    engine.close().await
                }
            }
        };
        caught(self.handle.name, done).await?
    }

    /// Takes the next group from the queue, as large as the limits allow. `None` ends the worker.
    fn next(&self, linger: Option<Duration>) -> Option<Next> {
        let mut queue = self.queue.lock();
        if let (true, false, Some(linger)) = (queue.waiting.is_empty(), queue.closed, linger) {
            self.arrived.wait_for(&mut queue, linger);
        }
        let Some(first) = queue.waiting.pop_front() else {
            queue.working = false;
            return None;
        };
        let (batch, durability, answer) = match first {
            Waiting::Batch {
                batch,
                durability,
                answer,
            } => (batch, durability, answer),
            Waiting::Work { what, answer } => {
                self.space.add_permits(1);
                return Some(Next::Work(what, answer));
            }
        };
        queue.busy = true;
        let (mut ops, mut bytes) = (batch.len(), batch.bytes());
        let mut group = Group {
            batches: vec![batch],
            durability,
        };
        let mut answers = vec![answer];
        while let Some(Waiting::Batch { batch, .. }) = queue.waiting.front() {
            ops += batch.len();
            bytes += batch.bytes();
            if ops > MAX_GROUP_OPS || bytes > MAX_GROUP_BYTES {
                break;
            }
            let Some(Waiting::Batch {
                batch,
                durability,
                answer,
            }) = queue.waiting.pop_front()
            else {
                break;
            };
            group.batches.push(batch);
            answers.push(answer);
            if durability == Durability::Durable {
                group.durability = Durability::Durable;
            }
        }
        if self
            .recovery
            .as_ref()
            .is_some_and(|recovery| recovery.is_full())
        {
            group.durability = Durability::Durable;
        }
        self.space.add_permits(answers.len());
        Some(Next::Group(group, answers))
    }

    /// Tells those who wait for a group.
    fn answer(
        &self,
        group: Group,
        answers: Vec<oneshot::Sender<Result<Committed, CommitError>>>,
        outcome: Result<Vec<BatchResult>, CommitFailure>,
    ) -> After {
        match outcome {
            Ok(results) => {
                let recovery = self.recovery.as_ref();
                let moved = recovery.filter(|recovery| recovery.committed(group, &results));
                // Those who asked are woken before those who follow.
                for (answer, result) in answers.into_iter().zip(results) {
                    let _ = answer.send(result.map_err(CommitError::from));
                }
                if let Some(recovery) = moved {
                    recovery.announce();
                }
                After::Next
            }
            Err(failure) => {
                let over = failure.ends_the_engine();
                if over {
                    let engine = self.handle.name;
                    tracing::error!(engine, error = %with_causes(&failure), "closed for writing");
                    if self.recovery.is_none() {
                        self.close();
                    }
                }
                for answer in answers {
                    let _ = answer.send(Err(failure.clone().into()));
                }
                if over { After::Failed } else { After::Next }
            }
        }
    }

    /// Refuses whatever waits and whatever comes.
    fn close(&self) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.waiting)
        };
        self.space.close();
        self.arrived.notify_all();
        for waiting in waiting {
            waiting.refuse();
        }
    }
}

/// Commits a group. A panic in the engine leaves the outcome unknown, as a failed fsync does.
async fn commit(engine: &dyn Engine, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
    let outcome = caught(engine.name(), async { engine.commit(group).await }).await;
    outcome.unwrap_or_else(|error| Err(CommitFailure::Unknown(Arc::new(error))))
}

/// What a call of an engine gives; a panic in it is an error.
async fn caught<T>(engine: &'static str, call: impl Future<Output = T>) -> Result<T, EngineError> {
    let outcome = AssertUnwindSafe(call).catch_unwind().await;
    outcome.map_err(|_| EngineError::Backend {
        engine,
        message: "it panicked".to_owned(),
    })
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let words: Vec<String> = causes.map(ToString::to_string).collect();
    words.join(": ")
}

fn no_engine() -> CommitFailure {
    CommitFailure::NotApplied(Arc::new(EngineError::Closed))
}

fn suspended() -> CommitFailure {
    CommitFailure::Unknown(Arc::new(EngineError::Backend {
        engine: "blocking",
        message: "an engine that blocks suspended instead".to_owned(),
    }))
}
