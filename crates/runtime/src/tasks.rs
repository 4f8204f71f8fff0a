//! Background tasks that shutdown waits for.

use std::{future::Future, time::Duration};

use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::TaskTracker,
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

#[cfg(test)]
mod tests {
    use super::*;

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
