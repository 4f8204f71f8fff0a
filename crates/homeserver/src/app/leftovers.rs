//! Work that follows a commit is seen through: although the client that asked is gone, and by a
//! later run where a failure or a crash interrupted it.

use std::{future::Future, time::Duration};

use homeserver_runtime::{Runtime, Tasks};
use homeserver_storage::StorageError;
use tokio::sync::oneshot;

use super::{closing::Closing, session::Sessions};

/// Time between two runs.
const INTERVAL: Duration = Duration::from_hours(1);

/// Does `work` in the background and waits for its end; dropping the future does not stop the work.
pub(crate) async fn see_through(tasks: &Tasks, work: impl Future<Output = ()> + Send + 'static) {
    let (tell, hear) = oneshot::channel();
    tasks.spawn(async move {
        work.await;
        // Whoever asked may be gone.
        let _ = tell.send(());
    });
    let _ = hear.await;
}

/// Finishes interrupted endings of logins and closings of accounts.
#[derive(Clone, Debug)]
pub(crate) struct Leftovers {
    pub(crate) sessions: Sessions,
    pub(crate) closing: Closing,
    pub(crate) runtime: Runtime,
}

impl Leftovers {
    /// Runs at once and then hourly until shutdown.
    pub(crate) async fn hourly(self) {
        loop {
            if let Err(error) = self.run().await {
                tracing::warn!(%error, "leftovers could not be read; the next run goes on");
            }
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Takes up all that is unfinished, once.
    pub(crate) async fn run(&self) -> Result<(), StorageError> {
        self.sessions.resume().await?;
        self.closing.resume().await
    }
}
