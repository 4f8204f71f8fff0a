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
const QUEUE: usize = 1024;

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
    tip: Mutex<Tip>,
    /// Commits on their way.
    in_flight: watch::Sender<usize>,
    /// The last generation of tips of which a commit failed.
    failed: AtomicU64,
}

/// The tip of a room, and what is on its way to disk below it.
pub(crate) struct Tip {
    head: Option<Head>,
    pub(crate) pending: Pending,
    /// Counts the times the tip was read from the store.
    generation: u64,
}

impl Tip {
    /// The head and the pending rows, apart.
    pub(crate) fn parts(&mut self) -> (Head, &mut Pending) {
        (self.head.clone().unwrap_or_default(), &mut self.pending)
    }
}

/// A commit on its way. Must be settled when its outcome is known.
pub(crate) struct InFlight {
    generation: u64,
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
            tip: Mutex::new(Tip {
                head: None,
                pending: Pending::default(),
                generation: 1,
            }),
            in_flight: watch::Sender::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// A place in the queue of this room.
    pub(crate) fn queue(&self) -> Result<SemaphorePermit<'_>, RoomError> {
        self.queue.try_acquire().map_err(|_| RoomError::Busy)
    }

    /// The tip, for one decision at a time. In the order of asking.
    pub(crate) async fn tip(
        &self,
        store: &Store,
        wants: Wants,
    ) -> Result<MutexGuard<'_, Tip>, RoomError> {
        let mut tip = self.tip.lock().await;
        loop {
            // In this order: a commit that fails says so before it is no longer on its way.
            let idle = *self.in_flight.borrow() == 0;
            let failed = self.failed.load(Ordering::SeqCst);
            if tip.generation <= failed {
                tip.generation = failed + 1;
                tip.head = None;
            }
            if idle {
                tip.pending.clear();
            } else if wants == Wants::Settled || tip.head.is_none() || tip.pending.len() > PENDING {
                self.settled().await;
                continue;
            }
            if tip.head.is_none() {
                tip.head = store.get(&HEADS, &self.number.0).await?;
            }
            return match tip.head {
                Some(_) => Ok(tip),
                None => Err(RoomError::damaged(format!(
                    "room {} has no head",
                    self.number.0
                ))),
            };
        }
    }

    /// Resolves when no commit is on its way.
    async fn settled(&self) {
        // The sender is a field of this very handle, so waiting cannot fail.
        let _ = self
            .in_flight
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }

    /// Notes a submitted commit and the head it makes. The tip is held by the caller.
    pub(crate) fn submitted(&self, tip: &mut Tip, head: Head) -> InFlight {
        tip.head = Some(head);
        self.in_flight.send_modify(|count| *count += 1);
        InFlight {
            generation: tip.generation,
        }
    }

    /// Notes the outcome of a commit.
    pub(crate) fn settle(&self, commit: &InFlight, done: bool) {
        if !done {
            self.failed.fetch_max(commit.generation, Ordering::SeqCst);
        }
        self.in_flight.send_modify(|count| *count -= 1);
    }

    /// Whether a decision on a tip of this generation stands: false if some commit it may have
    /// built on failed. Waits until that is known.
    pub(crate) async fn stands(&self, generation: u64) -> bool {
        self.settled().await;
        self.failed.load(Ordering::SeqCst) < generation
    }
}

impl Tip {
    /// The generation of the tip, for [`LiveRoom::stands`].
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}
