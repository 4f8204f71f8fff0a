//! Cursors: how far a consumer of the journal has come.

use crate::{Batch, CommitError, Durability, Position, StorageError, Store, system::CURSORS};

/// A named place in the journal that survives restarts. After a crash it may stand where it stood
/// some time ago: consumers must bear to see entries again.
#[derive(Debug, Clone)]
pub struct Cursor {
    store: Store,
    name: String,
}

impl Cursor {
    pub(crate) fn new(store: Store, name: &str) -> Self {
        Self {
            store,
            name: name.to_owned(),
        }
    }

    /// The position up to which the consumer is done; 0 for a new one.
    pub async fn position(&self) -> Result<Position, StorageError> {
        let stored = self.store.get(&CURSORS, &self.name).await?;
        Ok(stored.unwrap_or(0))
    }

    /// Done up to `position`. Lazy: returns once queued.
    pub async fn advance(&self, position: Position) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        batch.put(&CURSORS, &self.name, &position);
        drop(self.store.submit(batch, Durability::Lazy).await?);
        Ok(())
    }
}
