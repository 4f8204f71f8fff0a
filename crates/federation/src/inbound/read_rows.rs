//! Reading the rows of a room for its worker, from memory or from disk. A row that cannot be read
//! costs only itself.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use homeserver_events::{Pdu, PduError};
use homeserver_rooms::Room;
use homeserver_storage::StorageError;

use super::{Inner, ReadRow, rows::WaitingPdu};
use crate::tables::INBOUND_PDUS;

/// A row with its number in the room.
pub(super) type Numbered = (u64, ReadRow);

/// What came of reading rows.
#[derive(Debug, Default)]
pub(super) struct RowsRead {
    pub(super) rows: Vec<Numbered>,
    /// Rows that are not there, or that nothing can be made of any more.
    pub(super) gone: Vec<u64>,
    /// Rows that cannot be read now.
    pub(super) unread: Vec<u64>,
}

impl ReadRow {
    pub(super) fn waiting(&self) -> WaitingPdu {
        WaitingPdu {
            origin: self.origin.clone(),
            event_id: self.pdu.event_id().to_owned(),
            verified: self.verified,
            attempts: self.attempts,
            json: self.pdu.json_str().to_owned(),
        }
    }

    fn read(row: WaitingPdu, room: &Room) -> Result<Self, PduError> {
        let pdu = Pdu::from_stored(row.json.as_bytes(), row.event_id, room.rules)?;
        Ok(Self {
            origin: row.origin,
            verified: row.verified,
            attempts: row.attempts,
            pdu,
        })
    }
}

impl Inner {
    /// Rows of a room by their numbers.
    pub(super) async fn rows(&self, room: &Arc<Room>, numbers: &[u64]) -> RowsRead {
        let mut read = RowsRead::default();
        let mut on_disk = Vec::new();
        for number in numbers {
            match self.read.get(&(room.number, *number)) {
                Some(row) => read.rows.push((*number, row)),
                None => on_disk.push(*number),
            }
        }
        if !on_disk.is_empty() {
            let found = self.on_disk(room, on_disk, &mut read).await;
            self.understood(room, found, &mut read).await;
            read.rows.sort_by_key(|(number, _)| *number);
        }
        read
    }

    async fn on_disk(
        &self,
        room: &Room,
        numbers: Vec<u64>,
        read: &mut RowsRead,
    ) -> Vec<(u64, WaitingPdu)> {
        let key = |number: &u64| (room.number.0, *number);
        let keys: Vec<_> = numbers.iter().map(key).collect();
        let all = self.parts.store.multi_get(&INBOUND_PDUS, &keys).await;
        let all = all.map(|rows| rows.into_iter().map(Ok).collect());
        let mut rows: Vec<Result<Option<WaitingPdu>, StorageError>> = all.unwrap_or_default();
        if rows.is_empty() {
            // One of them is to blame, or the disk.
            for key in &keys {
                rows.push(self.parts.store.get(&INBOUND_PDUS, key).await);
            }
        }
        let mut found = Vec::with_capacity(rows.len());
        for (number, row) in numbers.into_iter().zip(rows) {
            match row {
                Ok(Some(row)) => found.push((number, row)),
                Ok(None) => read.gone.push(number),
                Err(error @ StorageError::Decode { .. }) => {
                    tracing::error!(%error, room = %room.id, number, "a waiting event is damaged");
                    read.gone.push(number);
                }
                Err(error) => {
                    tracing::warn!(%error, room = %room.id, number, "a waiting event cannot be read");
                    read.unread.push(number);
                }
            }
        }
        found
    }

    async fn understood(
        &self,
        room: &Arc<Room>,
        found: Vec<(u64, WaitingPdu)>,
        read: &mut RowsRead,
    ) {
        let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
        let of = Arc::clone(room);
        let understand = move || {
            let one = |(number, row)| {
                let read = catch_unwind(AssertUnwindSafe(|| ReadRow::read(row, &of)));
                let read = read.map(|read| read.map_err(|error| error.to_string()));
                (
                    number,
                    read.unwrap_or(Err("reading it panicked".to_owned())),
                )
            };
            found.into_iter().map(one).collect::<Vec<_>>()
        };
        let Ok(rows) = self.parts.runtime.cpu.run(understand).await else {
            read.unread.extend(numbers);
            return;
        };
        for (number, row) in rows {
            match row {
                Ok(row) => read.rows.push((number, row)),
                // It was read before it was written.
                Err(error) => {
                    tracing::error!(error, room = %room.id, number, "a waiting event is damaged");
                    read.gone.push(number);
                }
            }
        }
    }
}
