//! Transaction ids: at most one effect for each, also across restarts (client-server API,
//! "Transaction identifiers").
//!
//! The answer is a row in the batch of the effect. A duplicate that comes while the first is being
//! worked on waits for it; if the first fails, the duplicate is worked on itself.

use std::{collections::HashMap, sync::Arc};

use homeserver_storage::{Batch, Direction, ScanRange};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::{
    Rooms,
    command::{RoomAnswer, RoomCommand},
    error::RoomError,
    rows::{Effect, TransactionRow},
    tables::TRANSACTIONS,
};

/// How long an answer is kept, in milliseconds: a day.
pub const TRANSACTION_LIFETIME: u64 = 24 * 60 * 60 * 1000;

/// Rows looked at, and at most deleted, in one step of the sweep.
const SWEEP_STEP: usize = 500;

/// The key of a transaction: digests of (user, device) and of (endpoint, id).
pub(crate) type TransactionDigest = ([u8; 16], [u8; 16]);

fn digest(parts: [&str; 2]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize()[..16]);
    short
}

/// The key of a command's transaction.
pub(crate) fn transaction_digest(command: &RoomCommand) -> Option<TransactionDigest> {
    let transaction = command.transaction.as_ref()?;
    Some((
        digest([command.sender.as_str(), &transaction.device.to_string()]),
        digest([&transaction.endpoint, &transaction.id]),
    ))
}

/// Transactions being worked on in this process.
#[derive(Default)]
pub(crate) struct Underway {
    waiters: Mutex<HashMap<TransactionDigest, watch::Receiver<()>>>,
}

/// The right to work on a transaction; dropping it lets a waiting duplicate look again.
pub(crate) struct Turn {
    underway: Arc<Underway>,
    key: TransactionDigest,
    _done: watch::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.underway.waiters.lock().remove(&self.key);
    }
}

impl Underway {
    /// Waits until no other request works on this transaction.
    pub(crate) async fn turn(self: &Arc<Self>, key: TransactionDigest) -> Turn {
        loop {
            let mut first = {
                let mut waiters = self.waiters.lock();
                if let Some(first) = waiters.get(&key) {
                    first.clone()
                } else {
                    let (done, waits) = watch::channel(());
                    waiters.insert(key, waits);
                    return Turn {
                        underway: Arc::clone(self),
                        key,
                        _done: done,
                    };
                }
            };
            // Nothing is ever sent: this resolves, with an error, when the turn is dropped.
            let _ = first.changed().await;
        }
    }
}

impl Rooms {
    /// What the transaction did, if it was done before.
    pub(crate) async fn past_answer(
        &self,
        key: TransactionDigest,
    ) -> Result<Option<RoomAnswer>, RoomError> {
        let Some(row) = self.store.get(&TRANSACTIONS, &key).await? else {
            return Ok(None);
        };
        let position = row.known();
        Ok(Some(row.value.effect.answer(position)))
    }

    /// Removes answers older than a day. Gives how many went.
    pub async fn sweep_transactions(&self) -> Result<usize, RoomError> {
        let now = self.clock.unix_millis();
        let outdated = |row: &TransactionRow| row.time + TRANSACTION_LIFETIME < now;
        let mut after = None;
        let mut deleted = 0;
        loop {
            let range = match &after {
                Some(after) => ScanRange::all().after(after),
                None => ScanRange::all(),
            };
            let rows = self
                .store
                .scan(&TRANSACTIONS, range, Direction::Forward, SWEEP_STEP)
                .await?;
            let Some((last, _)) = rows.last() else {
                return Ok(deleted);
            };
            after = Some(*last);
            let mut batch = Batch::new();
            for (key, _) in rows.iter().filter(|(_, row)| outdated(&row.value)) {
                batch.delete(&TRANSACTIONS, key);
                deleted += 1;
            }
            if !batch.is_empty() {
                self.store
                    .commit(batch)
                    .await
                    .map_err(RoomError::NotStored)?;
            }
        }
    }
}

impl Effect {
    /// The answer that this effect is told by.
    pub(crate) fn answer(self, position: homeserver_storage::Position) -> RoomAnswer {
        match self {
            Self::Created(room) => RoomAnswer::Created { room, position },
            Self::Sent(event) => RoomAnswer::Sent { event, position },
            Self::Upgraded(replacement) => RoomAnswer::Upgraded {
                replacement,
                position,
            },
            Self::Stood(event, position) => RoomAnswer::Sent { event, position },
            Self::Done => RoomAnswer::Done,
        }
    }
}
