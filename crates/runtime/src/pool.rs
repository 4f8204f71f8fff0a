//! Bounded pools for work that must not run on the async workers.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Runs closures off the async workers, a bounded number at a time. Cheap to clone.
///
/// Work that was started is finished even if whoever waits for it goes away; work that waits for
/// its turn is dropped with its waiter.
#[derive(Clone, Debug)]
pub struct WorkPool {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Threads {
        name: &'static str,
        at_once: usize,
        turns: Arc<Semaphore>,
    },
    Inline,
}

/// The job did not finish: it panicked, or the async runtime is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("a job of the {pool} pool did not finish")]
pub struct PoolClosed {
    pool: &'static str,
}

impl WorkPool {
    /// A pool that runs at most `at_once` jobs at the same time on tokio's blocking threads.
    #[must_use]
    pub fn threads(name: &'static str, at_once: usize) -> Self {
        let at_once = at_once.max(1);
        Self {
            kind: Kind::Threads {
                name,
                at_once,
                turns: Arc::new(Semaphore::new(at_once)),
            },
        }
    }

    /// A pool that runs each job at once on the caller's thread, for simulations.
    #[must_use]
    pub fn inline() -> Self {
        Self { kind: Kind::Inline }
    }

    /// Whether jobs run on the caller's thread, where they must not wait for anything.
    #[must_use]
    pub fn is_inline(&self) -> bool {
        matches!(self.kind, Kind::Inline)
    }

    /// How many jobs run at the same time, at most.
    #[must_use]
    pub fn turns(&self) -> usize {
        match self.kind {
            Kind::Inline => 1,
            Kind::Threads { at_once, .. } => at_once,
        }
    }

    /// Waits for a turn, then runs `job` and gives its result.
    ///
    /// # Errors
    /// [`PoolClosed`] when the job panicked or the async runtime shuts down.
    #[expect(clippy::disallowed_methods, reason = "this is the pool")]
    pub async fn run<T, F>(&self, job: F) -> Result<T, PoolClosed>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (name, turns) = match &self.kind {
            Kind::Inline => return Ok(job()),
            Kind::Threads { name, turns, .. } => (*name, Arc::clone(turns)),
        };
        let turn = turns
            .acquire_owned()
            .await
            .map_err(|_| PoolClosed { pool: name })?;
        let work = move || {
            let result = job();
            drop(turn);
            result
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| PoolClosed { pool: name })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_jobs_than_turns_run_at_once() {
        let pool = WorkPool::threads("test", 2);
        let tasks = crate::Tasks::default();
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let (pool, running, most) = (pool.clone(), Arc::clone(&running), Arc::clone(&most));
            tasks.spawn(async move {
                let job = move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                pool.run(job).await.unwrap();
            });
        }
        assert_eq!(tasks.shutdown(std::time::Duration::from_mins(1)).await, 0);
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn a_panicking_job_is_an_error() {
        let pool = WorkPool::threads("test", 1);
        assert!(pool.run(|| panic!("on purpose")).await.is_err());
        assert_eq!(pool.run(|| 7).await.unwrap(), 7, "the turn was given back");
    }
}
