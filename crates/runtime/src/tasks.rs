//! Background tasks that shutdown waits for.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::runtime::Handle;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// Spawns background tasks and ends them in order. Cheap to clone; clones share the tasks.
///
/// A task watches [`Tasks::stopping`] and returns by itself when it resolves; nothing is aborted
/// in the middle of its work.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Starts `task` in the background.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(task);
    }

    /// A future that does `task` in the place of its caller, and in the background from where its
    /// caller drops it. What was not begun is dropped with it.
    ///
    /// Shutdown waits for what was begun, wherever it is done. A caller who holds it without
    /// polling it holds what `task` holds.
    pub fn see_through<F>(&self, task: F) -> SeenThrough<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        SeenThrough {
            task: Some(Box::pin(task)),
            begun: None,
            counted: None,
            tasks: self.clone(),
        }
    }

    /// Resolves when shutdown has begun; at once if it already has.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.stop.cancelled()
    }

    /// Whether shutdown has begun.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Tells all tasks to stop without waiting for them.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Tells all tasks to stop and waits for them, at most `patience`. Gives the number of tasks
    /// that were still running then; zero is a clean end.
    pub async fn shutdown(&self, patience: Duration) -> usize {
        self.stop.cancel();
        self.tracker.close();
        match tokio::time::timeout(patience, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        }
    }
}

/// See [`Tasks::see_through`].
#[must_use = "futures do nothing unless polled"]
pub struct SeenThrough<T: Send + 'static> {
    task: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    /// The runtime that it was begun on.
    begun: Option<Handle>,
    /// Counts it among the tasks that shutdown waits for, from its first poll until it is done.
    counted: Option<TaskTrackerToken>,
    tasks: Tasks,
}

impl<T: Send + 'static> Future for SeenThrough<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if self.begun.is_none() {
            self.begun = Handle::try_current().ok();
        }
        // Not there while it runs: one that panics is not continued.
        let Some(mut task) = self.task.take() else {
            return Poll::Pending;
        };
        let counted = self.counted.take();
        let counted = counted.unwrap_or_else(|| self.tasks.tracker.token());
        let polled = task.as_mut().poll(context);
        if polled.is_pending() {
            self.task = Some(task);
            self.counted = Some(counted);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for SeenThrough<T> {
    fn drop(&mut self) {
        if let (Some(task), Some(runtime)) = (self.task.take(), &self.begun) {
            let rest = async move { drop(task.await) };
            // Before `counted` is dropped: it is counted without a gap.
            self.tasks.tracker.spawn_on(rest, runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_is_seen_through_answers_its_caller() {
        let (tell, hear) = oneshot::channel();
        let tasks = Tasks::default();
        let mut seen = tasks.see_through(async move { hear.await.unwrap() });
        assert!((&mut seen).now_or_never().is_none());
        tell.send(7).unwrap();
        assert_eq!(seen.await, 7);
        assert_eq!(tasks.tracker.len(), 0);
    }

    #[tokio::test]
    async fn what_was_begun_goes_on_without_its_caller() {
        let (tell, hear) = oneshot::channel();
        let tasks = Tasks::default();
        let done = Arc::new(AtomicBool::new(false));
        let inside = Arc::clone(&done);
        let mut seen = tasks.see_through(async move {
            hear.await.unwrap();
            inside.store(true, Ordering::SeqCst);
        });
        assert!((&mut seen).now_or_never().is_none());
        // From a thread that belongs to no runtime.
        std::thread::scope(|scope| drop(scope.spawn(move || drop(seen))));
        tell.send(()).unwrap();
        assert_eq!(tasks.shutdown(Duration::from_secs(10)).await, 0);
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn shutdown_waits_for_what_its_caller_still_does() {
        let (tell, hear) = oneshot::channel();
        let tasks = Tasks::default();
        let mut seen = tasks.see_through(async move { hear.await.unwrap() });
        assert!((&mut seen).now_or_never().is_none());
        let mut shutdown = std::pin::pin!(tasks.shutdown(Duration::from_secs(10)));
        assert!(shutdown.as_mut().now_or_never().is_none());
        tell.send(7).unwrap();
        assert_eq!((&mut seen).await, 7);
        // Done, though its caller still has it.
        assert_eq!(shutdown.await, 0);
        drop(seen);
    }

    #[tokio::test]
    async fn shutdown_does_not_wait_forever_for_a_caller_who_does_nothing() {
        let tasks = Tasks::default();
        let mut seen = tasks.see_through(std::future::pending::<()>());
        assert!((&mut seen).now_or_never().is_none());
        assert_eq!(tasks.shutdown(Duration::ZERO).await, 1);
    }

    #[tokio::test]
    async fn shutdown_does_not_wait_for_what_panicked() {
        let tasks = Tasks::default();
        let mut seen = tasks.see_through(async { std::panic::resume_unwind(Box::new(())) });
        let caught = std::panic::AssertUnwindSafe(&mut seen).catch_unwind().await;
        let _: Box<dyn std::any::Any + Send> = caught.map(|(): ()| ()).unwrap_err();
        assert_eq!(tasks.shutdown(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test]
    async fn what_was_never_begun_is_not_done() {
        let tasks = Tasks::default();
        drop(tasks.see_through(async { unreachable!() }));
        assert_eq!(tasks.shutdown(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test]
    async fn shutdown_waits_for_tasks() {
        let tasks = Tasks::default();
        let (told, hear) = tokio::sync::oneshot::channel();
        let inside = tasks.clone();
        tasks.spawn(async move {
            inside.stopping().await;
            told.send("stopped").unwrap();
        });
        assert_eq!(tasks.shutdown(Duration::from_secs(10)).await, 0);
        assert_eq!(hear.await.unwrap(), "stopped");
    }
}
