//! How many calls to one server are on their way at once, whatever it is called.

use std::{collections::HashMap, sync::Arc};

use homeserver_events::names::canonical_name;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::CallError;

/// Calls to one server that wait for their turn.
const MAX_WAITING: usize = 64;

#[derive(Debug)]
pub(super) struct Lanes {
    /// For each server.
    at_once: usize,
    lanes: Mutex<HashMap<OwnedServerName, Lane>>,
}

#[derive(Debug)]
struct Lane {
    turns: Arc<Semaphore>,
    /// Calls that are on their way or wait.
    calls: usize,
}

/// The right to be on one's way; dropping it lets the next go.
#[derive(Debug)]
pub(super) struct Turn {
    lanes: Arc<Lanes>,
    server: OwnedServerName,
    /// `None` while it waits.
    permit: Option<OwnedSemaphorePermit>,
}

impl Lanes {
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            at_once: at_once.max(1),
            lanes: Mutex::default(),
        }
    }

    /// Waits for a turn.
    pub(super) async fn turn(self: &Arc<Self>, server: &ServerName) -> Result<Turn, CallError> {
        let (mut turn, turns) = self.queue(server)?;
        let permit = turns.acquire_owned().await;
        turn.permit = Some(permit.map_err(|_| CallError::Busy)?);
        Ok(turn)
    }

    /// Whether nobody is on their way anywhere.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.lock().is_empty()
    }

    fn queue(self: &Arc<Self>, server: &ServerName) -> Result<(Turn, Arc<Semaphore>), CallError> {
        let mut lanes = self.lanes.lock();
        let server = canonical_name(server);
        let lane = lanes.entry(server.clone()).or_insert_with(|| Lane {
            turns: Arc::new(Semaphore::new(self.at_once)),
            calls: 0,
        });
        if lane.calls >= self.at_once + MAX_WAITING {
            return Err(CallError::Busy);
        }
        lane.calls += 1;
        let turn = Turn {
            lanes: Arc::clone(self),
            server,
            permit: None,
        };
        Ok((turn, Arc::clone(&lane.turns)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut lanes = self.lanes.lanes.lock();
        if let Some(lane) = lanes.get_mut(&self.server) {
            lane.calls -= 1;
            if lane.calls == 0 {
                lanes.remove(&self.server);
            }
        }
    }
}
