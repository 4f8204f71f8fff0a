//! Housekeeping: what outlived its time goes, hourly, in small steps.

mod imports;
mod nodes;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use homeserver_runtime::Tasks;

#[cfg(test)]
pub(crate) use nodes::Swept;

use crate::{RoomError, Rooms};

/// Time between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);

impl Rooms {
    /// Removes answers to transactions past their lifetime, imports that were abandoned, and nodes
    /// of state trees that nothing reaches, and does what a failed switch left to do. Runs hourly
    /// by itself; what an interrupted sweep leaves, the next one takes.
    pub async fn sweep(&self) -> Result<(), RoomError> {
        self.sweep_transactions().await?;
        self.resume().await?;
        self.sweep_nodes().await?;
        Ok(())
    }
}

/// Sweeps hourly until shutdown, or until nobody holds the rooms any more.
async fn sweep_hourly(rooms: Weak<Rooms>, tasks: Tasks) {
    loop {
        tokio::select! {
            biased;
            () = tasks.stopping() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        let Some(rooms) = Weak::upgrade(&rooms) else {
            return;
        };
        if let Err(error) = rooms.sweep().await {
            tracing::warn!(%error, "sweep interrupted; the next one goes on");
        }
    }
}

/// Starts the hourly sweep on the runtime's tasks.
pub(crate) fn start(rooms: &Arc<Rooms>) {
    let tasks = rooms.runtime.tasks.clone();
    let sweeping = sweep_hourly(Arc::downgrade(rooms), tasks.clone());
    tasks.spawn(sweeping);
}
