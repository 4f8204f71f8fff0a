//! Removing what abandoned imports prepared.

use homeserver_storage::{Batch, CommitError, Direction, ScanRange};

use crate::{
    Rooms,
    error::RoomError,
    execute::not_stored,
    import::IMPORT_LIFETIME,
    numbers::RoomNumber,
    rows::{ImportRow, TreeSweepRow},
    tables,
};

impl Rooms {
    /// Removes what imports prepared that were not touched for a day. Gives how many went.
    pub async fn sweep_imports(&self) -> Result<usize, RoomError> {
        let now = self.clock.unix_millis();
        let all = ScanRange::all();
        let imports = self
            .store
            .scan(&tables::IMPORTS, all, Direction::Forward, usize::MAX)
            .await?;
        let mut swept = 0;
        for (import, row) in imports {
            let is_old = row.touched + IMPORT_LIFETIME < now;
            if row.abandoned || (is_old && self.abandon(import, &row).await?) {
                self.remove_import(import, RoomNumber(row.room)).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Says that an import is abandoned, from when on nothing can be added to it. Gives false if it
    /// has moved in the meantime.
    pub(crate) async fn abandon(&self, import: u64, row: &ImportRow) -> Result<bool, RoomError> {
        let abandoned = ImportRow {
            abandoned: true,
            ..row.clone()
        };
        let mut batch = Batch::new();
        batch.assert_value(&tables::IMPORTS, &import, row);
        batch.put(&tables::IMPORTS, &import, &abandoned);
        match self.store.commit(batch).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. }) => Ok(false),
            Err(error) => Err(not_stored(error)),
        }
    }

    /// The events go part by part, then the import. Its tree nodes may be
    /// part of other states too, since equal nodes are one: a sweep of the room's nodes is due.
    pub(crate) async fn remove_import(
        &self,
        import: u64,
        room: RoomNumber,
    ) -> Result<(), RoomError> {
        loop {
            let range = ScanRange::prefix(&import);
            let table = &tables::IMPORT_PARTS;
            let parts = self.store.scan(table, range, Direction::Forward, 1).await?;
            let Some((key, part)) = parts.into_iter().next() else {
                break;
            };
            let keys: Vec<_> = part.events.iter().map(|(n, _)| (room.0, n.0)).collect();
            let rows = self.store.multi_get(&tables::EVENTS, &keys).await?;
            let mut batch = Batch::new();
            for ((number, id), row) in part.events.iter().zip(rows) {
                // What was received meanwhile under the same number is of the room.
                if let Some(row) = row.filter(|row| row.value.height == 0) {
                    let key = (room.0, number.0);
                    batch.assert_value(&tables::EVENTS, &key, &row);
                    batch.delete(&tables::EVENTS, &key);
                }
                batch.delete(&tables::IMPORT_IDS, &(import, id.as_str()));
            }
            batch.delete(table, &key);
            self.store.commit(batch).await.map_err(not_stored)?;
            let numbers: Vec<_> = part.events.iter().map(|(number, _)| *number).collect();
            self.events.rewritten(room, &numbers);
        }
        let states = ScanRange::prefix(&import);
        self.store
            .drop_range(&tables::IMPORT_STATES, states)
            .await?;
        let mut batch = Batch::new();
        batch.delete(&tables::IMPORTS, &import);
        batch.put(&tables::TREE_SWEEPS, &room.0, &TreeSweepRow::ASKED);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }
}
