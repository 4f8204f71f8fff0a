//! What the outside world is to a component: time, randomness, background tasks, pools for work
//! that would block, and a memory budget.
//!
//! Components receive a [`Runtime`] (or only the parts they use) in their constructor and never
//! reach for the world themselves: no clock, no thread, no random number comes from anywhere else.
//! That is what lets several homeservers share a process, and a simulation replay a seed.
//!
//! This crate knows nothing of Matrix and nothing of storage.

mod clock;
mod entropy;
mod memory;
mod pool;
mod tasks;

pub use clock::{Clock, ManualClock, SystemClock};
pub use entropy::{Entropy, SeededEntropy, SystemEntropy};
pub use memory::MemoryBudget;
pub use pool::{PoolClosed, WorkPool};
pub use tasks::Tasks;

use std::sync::Arc;

/// Everything a component may want of the outside world. Cheap to clone; clones share all parts.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Wall clock and monotonic clock.
    pub clock: Arc<dyn Clock>,
    /// Source of random bytes, fit for keys and tokens in production.
    pub entropy: Arc<dyn Entropy>,
    /// Where background tasks are spawned; shutdown waits for them.
    pub tasks: Tasks,
    /// Work that keeps a core busy: signatures, password hashes, state resolution, images.
    pub cpu: WorkPool,
    /// Work that waits for a disk: scans, file reads and writes.
    pub blocking: WorkPool,
    /// Bytes that caches may hold, divided among them by weight.
    pub memory: MemoryBudget,
}

/// Jobs of [`Runtime::blocking`] that may wait for the disk at the same time.
pub const BLOCKING_JOBS: usize = 32;

/// Bytes that all caches of one homeserver hold together unless configured otherwise.
pub const DEFAULT_CACHE_BYTES: u64 = 64 * 1024 * 1024;

impl Runtime {
    /// The real world: system clock, operating-system randomness, one CPU job per core at a time.
    ///
    /// Must be called within a tokio runtime; the pools run on its blocking threads.
    #[must_use]
    pub fn system() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            clock: Arc::new(SystemClock::default()),
            entropy: Arc::new(SystemEntropy),
            tasks: Tasks::default(),
            // At least two, so that one long job does not keep all others waiting.
            cpu: WorkPool::threads("cpu", cores.max(2)),
            blocking: WorkPool::threads("blocking", BLOCKING_JOBS),
            memory: MemoryBudget::new(DEFAULT_CACHE_BYTES),
        }
    }

    /// A world for tests and simulations: a clock that moves only when told, random numbers from a
    /// seed, and pools that run their work at once, where it is asked for.
    #[must_use]
    pub fn simulated(clock: Arc<ManualClock>, seed: u64) -> Self {
        Self {
            clock,
            entropy: Arc::new(SeededEntropy::new(seed)),
            tasks: Tasks::default(),
            cpu: WorkPool::inline(),
            blocking: WorkPool::inline(),
            memory: MemoryBudget::new(DEFAULT_CACHE_BYTES),
        }
    }
}
