//! The journal does not grow for ever: entries that all consumers have read go after [`AGE`].
//!
//! Which kinds of entries stay is said where they are declared. A token that is older than what
//! was trimmed is as good as none; see the tokens of sync.

use std::time::Duration;

use homeserver_runtime::Runtime;
use homeserver_storage::{CommitError, StorageError, Store};
use homeserver_users::{DeviceLists, Failure};

/// How long entries are kept: a device that has not synced for so long starts anew.
pub(crate) const AGE: Duration = Duration::from_hours(30 * 24);

/// Time between two runs. What a run declares to be old, the next one removes: no request may take
/// longer than this.
const INTERVAL: Duration = Duration::from_hours(1);

/// The journal could not be trimmed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrimError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Users(#[from] Failure),
}

/// Trims the journal of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Trimming {
    pub(crate) store: Store,
    pub(crate) device_lists: DeviceLists,
    pub(crate) runtime: Runtime,
}

impl Trimming {
    /// Runs hourly until shutdown.
    pub(crate) async fn hourly(self) {
        loop {
            tokio::select! {
                biased;
                () = self.runtime.tasks.stopping() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if let Err(error) = self.run().await {
                tracing::warn!(%error, "trimming of the journal interrupted; the next run goes on");
            }
        }
    }

    /// Removes what the last run declared to be old, in steps between which it may be stopped, and
    /// declares what is old now.
    pub(crate) async fn run(&self) -> Result<(), TrimError> {
        let journal = self.store.journal();
        while let Some(expired) = journal.expired().await? {
            self.device_lists.forget_before(&expired.entries).await?;
            journal.remove_expired(expired).await?;
            if self.runtime.tasks.is_stopping() {
                return Ok(());
            }
        }
        let now = self.runtime.clock.unix_millis();
        journal.note_time(now).await?;
        let age = u64::try_from(AGE.as_millis()).unwrap_or(u64::MAX);
        journal.move_trim_point(now.saturating_sub(age)).await?;
        Ok(())
    }
}
