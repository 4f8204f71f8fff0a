//! What transactions were answered, for an hour at least: a server that did not get the answer
//! sends the same again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use homeserver_storage::{Batch, ScanRange, StorageError};
use ruma::ServerName;
use sha2::{Digest as _, Sha256};

use super::{Inner, rows::AnswerRow};
use crate::tables::INBOUND_ANSWERS;

/// Answers are kept by the half hour in which they were given.
const SPAN: u64 = 30 * 60 * 1000;
/// Half hours that are looked at: an hour, and the begun one.
const SPANS: u64 = 3;

/// A transaction by its name, and what it holds.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    key: [u8; 16],
    body: [u8; 32],
}

impl Asked {
    pub(super) fn new(origin: &ServerName, txn_id: &str, body: &Bytes) -> Self {
        let mut digest = Sha256::new();
        digest.update(origin.as_str());
        // No server name has a zero byte.
        digest.update([0]);
        digest.update(txn_id);
        let digest: [u8; 32] = digest.finalize().into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self {
            key,
            body: Sha256::digest(body).into(),
        }
    }

    pub(super) fn row(self, answer: String) -> NewAnswer {
        NewAnswer {
            key: self.key,
            row: AnswerRow {
                body: self.body,
                answer,
            },
        }
    }
}

/// An answer that is about to be given.
#[derive(Debug)]
pub(super) struct NewAnswer {
    key: [u8; 16],
    row: AnswerRow,
}

impl NewAnswer {
    pub(super) fn write(&self, now: u64, batch: &mut Batch) {
        batch.put(&INBOUND_ANSWERS, &(now / SPAN, self.key), &self.row);
    }
}

impl Inner {
    /// What the very same transaction was answered before.
    pub(super) async fn answered(&self, asked: &Asked) -> Result<Option<String>, StorageError> {
        let span = self.parts.runtime.clock.unix_millis() / SPAN;
        let keys: Vec<_> = (0..SPANS)
            .map(|back| (span.saturating_sub(back), asked.key))
            .collect();
        let rows = self.parts.store.multi_get(&INBOUND_ANSWERS, &keys).await?;
        // The newest that was given under this name.
        let same = rows.into_iter().flatten().next();
        Ok(same
            .filter(|row| row.body == asked.body)
            .map(|row| row.answer))
    }

    /// Removes old answers from time to time.
    pub(super) fn start_forgetting(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        let runtime = self.parts.runtime.clone();
        let tasks = runtime.tasks.clone();
        tasks.spawn(async move {
            loop {
                if let Err(error) = inner.forget_answers().await {
                    tracing::warn!(%error, "old answers to transactions stay");
                }
                tokio::select! {
                    biased;
                    () = runtime.tasks.stopping() => return,
                    () = tokio::time::sleep(Duration::from_millis(SPAN)) => {}
                }
            }
        });
    }

    /// Removes answers that are no longer looked at.
    async fn forget_answers(&self) -> Result<(), StorageError> {
        let span = self.parts.runtime.clock.unix_millis() / SPAN;
        let oldest = (span.saturating_sub(SPANS - 1), [0; 16]);
        let range = ScanRange::all().before(&oldest);
        self.parts.store.drop_range(&INBOUND_ANSWERS, range).await
    }
}
