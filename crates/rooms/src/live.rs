//! Rooms in use: one handle each, with the tip in memory and the commits on their way.
//!
//! The next event may be built on a tip whose commit is still on its way to disk; each is answered
//! only after its own commit. When a commit fails, the tip is dropped: what was built on it fails
//! its assert and is decided again on the tip that the store has. The assert is the truth, not the
//! lock: a second handle of the same room, here or on another node, costs repeated decisions only.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use homeserver_storage::Store;
use quick_cache::sync::Cache;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit, watch};

use crate::{edit::Pending, error::RoomError, numbers::RoomNumber, rows::Head, tables::HEADS};

/// Commands that may wait for one room.
pub(crate) const QUEUE: usize = 1024;

/// Events of one room that may wait for states to be resolved. They have no place in the queue
/// meanwhile: a long resolution does not keep others out of the room.
pub(crate) const RESOLVERS: usize = 64;

/// Handles kept. One that is dropped costs a read of the head when its room is used again.
const HANDLES: usize = 4096;

/// Rows of commits on their way that decisions may need. Above that, the next decision waits until
/// they are on disk.
const PENDING: usize = 10_000;

/// The handles of rooms in use.
pub(crate) struct LiveRooms {
    rooms: Cache<RoomNumber, Arc<LiveRoom>>,
}

impl LiveRooms {
    pub(crate) fn new() -> Self {
        Self {
            rooms: Cache::new(HANDLES),
        }
    }

    pub(crate) fn room(&self, number: RoomNumber) -> Arc<LiveRoom> {
        let make = || Ok::<_, std::convert::Infallible>(Arc::new(LiveRoom::new(number)));
        match self.rooms.get_or_insert_with(&number, make) {
            Ok(room) => room,
            Err(never) => match never {},
        }
    }
}

/// The handle of a room in use.
pub(crate) struct LiveRoom {
    number: RoomNumber,
    queue: Semaphore,
    resolvers: Semaphore,
    tip: Mutex<Tip>,
    /// States of the room are resolved one at a time, and not while the tip is held.
    pub(crate) resolving: Mutex<()>,
    /// Commits that were submitted and how many of those ended.
    commits: watch::Sender<Commits>,
    /// The last generation of tips of which a commit failed.
    failed: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Commits {
    submitted: u64,
    ended: u64,
}

/// The tip of a room, and what is on its way to disk below it.
pub(crate) struct Tip {
    head: Option<Head>,
    pub(crate) pending: Pending,
    /// Counts the times the tip was read from the store.
    generation: u64,
    /// The store's generation before it was read. In a later one the head may be another: the row
    /// of a commit whose outcome was unknown.
    opened: u64,
    /// Something pending is of a decision that came to nothing. See [`Tip::spoil`].
    spoiled: bool,
}

impl Tip {
    /// The head, if the room has one.
    pub(crate) fn head(&self) -> Option<Head> {
        self.head.clone()
    }

    /// The head and the pending rows, apart.
    pub(crate) fn parts(&mut self) -> (Head, &mut Pending) {
        (self.head.clone().unwrap_or_default(), &mut self.pending)
    }

    /// Says that a decision which was given up has left rows among the pending ones: nothing is
    /// decided on them. They go when what is on its way to disk is there.
    pub(crate) fn spoil(&mut self) {
        self.spoiled = true;
    }
}

/// A commit on its way. To be settled when its outcome is known; dropped, it counts as failed.
pub(crate) struct InFlight {
    room: Arc<LiveRoom>,
    generation: u64,
    done: bool,
}

impl InFlight {
    /// Notes the outcome.
    pub(crate) fn settle(mut self, done: bool) {
        self.done = done;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // A commit that fails says so before it is no longer on its way.
        if !self.done {
            self.room
                .failed
                .fetch_max(self.generation, Ordering::SeqCst);
        }
        self.room.commits.send_modify(|commits| commits.ended += 1);
    }
}

/// What a decision was built on.
#[derive(Clone, Copy)]
pub(crate) struct Basis {
    generation: u64,
    opened: u64,
    submitted: u64,
}

/// Which tip a decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// The newest one, on disk or not.
    Newest,
    /// One that is on disk with all its rows: for decisions that read indexes.
    Settled,
}

impl LiveRoom {
    fn new(number: RoomNumber) -> Self {
        Self {
            number,
            queue: Semaphore::new(QUEUE),
            resolvers: Semaphore::new(RESOLVERS),
            tip: Mutex::new(Tip {
                head: None,
                pending: Pending::default(),
                generation: 1,
                opened: 0,
                spoiled: false,
            }),
            resolving: Mutex::new(()),
            commits: watch::Sender::default(),
            failed: AtomicU64::new(0),
        }
    }

    /// A place in the queue of this room.
    pub(crate) fn queue(&self) -> Result<SemaphorePermit<'_>, RoomError> {
        self.queue.try_acquire().map_err(|_| RoomError::Busy)
    }

    /// A place among those who wait for states of this room to be resolved.
    pub(crate) fn resolver(&self) -> Result<SemaphorePermit<'_>, RoomError> {
        self.resolvers.try_acquire().map_err(|_| RoomError::Busy)
    }

    /// The tip, for one decision at a time. In the order of asking.
    pub(crate) async fn tip(
        &self,
        store: &Store,
        wants: Wants,
    ) -> Result<MutexGuard<'_, Tip>, RoomError> {
        let tip = self.tip_or_none(store, wants).await?;
        match tip.head {
            Some(_) => Ok(tip),
            None => Err(RoomError::damaged(format!(
                "room {} has no head",
                self.number.0
            ))),
        }
    }

    /// The tip of a room that may have no head yet.
    pub(crate) async fn tip_or_none(
        &self,
        store: &Store,
        wants: Wants,
    ) -> Result<MutexGuard<'_, Tip>, RoomError> {
        let mut tip = self.tip.lock().await;
        loop {
            // In this order: a commit that fails says so before it is no longer on its way.
            let commits = *self.commits.borrow();
            let idle = commits.submitted == commits.ended;
            let failed = self.failed.load(Ordering::SeqCst);
            if tip.generation <= failed {
                tip.generation = failed + 1;
                tip.head = None;
            }
            let opened = store.generation();
            if tip.opened != opened {
                tip.opened = opened;
                tip.head = None;
            }
            if idle {
                tip.pending.clear();
                tip.spoiled = false;
            } else if wants == Wants::Settled
                || tip.head.is_none()
                || tip.spoiled
                || tip.pending.len() > PENDING
            {
                // Nobody submits while the tip is held.
                self.ended(commits.submitted).await;
                continue;
            }
            if tip.head.is_none() {
                tip.head = store.get(&HEADS, &self.number.0).await?;
            }
            return Ok(tip);
        }
    }

    /// Resolves when so many commits have ended.
    async fn ended(&self, submitted: u64) {
        // The sender is a field of this very handle, so waiting cannot fail.
        let _ = self
            .commits
            .subscribe()
            .wait_for(|commits| commits.ended >= submitted)
            .await;
    }

    /// Notes a submitted commit and the head it makes. The tip is held by the caller.
    pub(crate) fn submitted(self: &Arc<Self>, tip: &mut Tip, head: Head) -> InFlight {
        tip.head = Some(head);
        self.commits.send_modify(|commits| commits.submitted += 1);
        InFlight {
            room: Arc::clone(self),
            generation: tip.generation,
            done: false,
        }
    }

    /// What a decision on this tip rests on.
    pub(crate) fn basis(&self, tip: &Tip) -> Basis {
        Basis {
            generation: tip.generation,
            opened: tip.opened,
            submitted: self.commits.borrow().submitted,
        }
    }

    /// Whether a decision stands: false if some commit it may have been built on failed, or the
    /// store was opened anew since the tip was read. Waits until that is known, not for commits
    /// that came later.
    ///
    /// Commits may end in another order than they were submitted in; one that ends well has all
    /// before it stored, since each asserts the head that the one before it made.
    pub(crate) async fn stands(&self, store: &Store, basis: Basis) -> bool {
        self.ended(basis.submitted).await;
        self.failed.load(Ordering::SeqCst) < basis.generation && store.generation() == basis.opened
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use homeserver_runtime::Runtime;
    use homeserver_storage::{
        Batch, OpenEngine as _,
        engines::faulty::{Fault, FaultPlan, FaultyDisk},
    };

    use super::*;
    use crate::tables::TABLES;

    /// A store with the head of room 1, and the calls of its engine so far.
    async fn store_with(plan: FaultPlan) -> (Store, u64) {
        let disk = Arc::new(FaultyDisk::memory(plan));
        let engine = disk.open().await.unwrap();
        let runtime = Runtime::system();
        let opener = Arc::clone(&disk) as _;
        let store = Store::open_lasting(engine, opener, &[TABLES], &runtime).await;
        let store = store.unwrap();
        store.commit(head_with(1)).await.unwrap();
        (store, disk.calls())
    }

    async fn store() -> Store {
        store_with(FaultPlan::none(0)).await.0
    }

    fn head_with(sequence: u64) -> Batch {
        let mut batch = Batch::new();
        let head = Head {
            sequence,
            ..Head::default()
        };
        batch.put(&HEADS, &1_u64, &head);
        batch
    }

    #[tokio::test]
    async fn a_tip_of_the_engine_before_is_read_again() {
        let (_, calls) = store_with(FaultPlan::none(0)).await;
        // The head is read once, then a commit fails.
        let plan = FaultPlan::once(0, calls + 1, Fault::ShortWrite);
        let (store, _) = store_with(plan).await;
        let room = Arc::new(LiveRoom::new(RoomNumber(1)));
        let mut tip = room.tip(&store, Wants::Newest).await.unwrap();
        let basis = room.basis(&tip);
        assert_eq!(tip.parts().0.sequence, 1);
        drop(tip);
        assert!(room.stands(&store, basis).await);

        assert!(store.commit(head_with(9)).await.is_err());
        // As if recovery had found it.
        store.commit(head_with(2)).await.unwrap();
        assert_eq!(store.generation(), 1);
        assert!(!room.stands(&store, basis).await);
        let mut tip = room.tip(&store, Wants::Newest).await.unwrap();
        assert_eq!(tip.parts().0.sequence, 2);
    }

    #[tokio::test]
    async fn a_decision_waits_for_the_commits_before_it_only() {
        let store = store().await;
        let room = Arc::new(LiveRoom::new(RoomNumber(1)));
        let mut tip = room.tip.lock().await;
        let first = room.submitted(&mut tip, Head::default());
        let basis = room.basis(&tip);
        let second = room.submitted(&mut tip, Head::default());
        drop(tip);
        assert!(room.stands(&store, basis).now_or_never().is_none());
        first.settle(true);
        assert_eq!(room.stands(&store, basis).now_or_never(), Some(true));
        second.settle(true);
    }

    #[tokio::test]
    async fn a_commit_that_nobody_waits_for_counts_as_failed() {
        let store = store().await;
        let room = Arc::new(LiveRoom::new(RoomNumber(1)));
        let mut tip = room.tip.lock().await;
        drop(room.submitted(&mut tip, Head::default()));
        let basis = room.basis(&tip);
        drop(tip);
        assert_eq!(room.stands(&store, basis).now_or_never(), Some(false));
        let commits = *room.commits.borrow();
        assert_eq!(commits.submitted, commits.ended);
    }
}
