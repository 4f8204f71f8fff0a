//! Writing what was taken, and finding it again after a start.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_rooms::RoomNumber;
use homeserver_storage::{
    Batch, CommitError, Direction, Durability, ScanRange, StorageError, Ticket,
};
use ruma::{OwnedServerName, ServerName};

use super::{
    Inner, ReadRow, TransactionError,
    admit::Taken,
    answers::NewAnswer,
    queue::Place,
    rows::{WaitingEdu, WaitingPdu},
    transaction::ReceivedEdu,
};
use crate::tables::{INBOUND_EDUS, INBOUND_PDUS};

/// Bytes of one batch: what is written for a row beside its value fits into the rest.
const MAX_BYTES: usize = 4_000_000;
/// Rows of one batch: with an assert each they are fewer than a batch may have.
const MAX_ROWS: usize = 400;
/// Bytes of an answer: fifty events with an error each.
const MAX_ANSWER: usize = 64 * 1024;
/// Rows that are read at once after a start.
const READ_AT_ONCE: usize = 500;

/// Batches that are filled one after the other.
struct Batches {
    full: Vec<Batch>,
    open: Batch,
}

impl Batches {
    fn next(&mut self, bytes: usize) -> &mut Batch {
        let open = &self.open;
        if !open.is_empty() && (open.bytes() + bytes > MAX_BYTES || open.len() >= 2 * MAX_ROWS) {
            self.full.push(std::mem::take(&mut self.open));
        }
        &mut self.open
    }
}

/// Rows that are on their way to the disk.
#[derive(Default)]
struct Written {
    pdus: BTreeMap<RoomNumber, Vec<u64>>,
    edus: Vec<u64>,
    /// The events of the rows, for their workers.
    read: Vec<((RoomNumber, u64), ReadRow)>,
}

impl Inner {
    /// Writes rows for what was taken, and the answer. Comes back when all is on disk.
    pub(super) async fn keep(
        self: &Arc<Self>,
        origin: &ServerName,
        taken: Vec<Taken>,
        edus: Vec<ReceivedEdu>,
        answer: NewAnswer,
    ) -> Result<(), TransactionError> {
        if taken.is_empty() && edus.is_empty() {
            // Nothing is done twice if it comes again.
            return Ok(());
        }
        let mut written = Written::default();
        let mut places = Vec::with_capacity(taken.len());
        let tickets = {
            // Until the batches are queued.
            let _numbering = self.numbering.lock().await;
            self.look_for_numbers(origin, &taken, &edus).await?;
            let mut batches = Batches {
                full: Vec::new(),
                open: Batch::new(),
            };
            for taken in taken {
                places.push(self.write_pdu(origin, taken, &mut batches, &mut written));
            }
            for edu in edus {
                self.write_edu(origin, edu, &mut batches, &mut written);
            }
            let now = self.parts.runtime.clock.unix_millis();
            // It comes last: it says that all the others are there.
            answer.write(now, batches.next(MAX_ANSWER));
            self.submit(batches).await
        };
        let outcome = finish(tickets).await;
        match outcome {
            Ok(()) => {
                places.into_iter().for_each(Place::keep);
                for (key, row) in written.read.drain(..) {
                    self.read.insert(key, row);
                }
            }
            Err(_) => self.after_failure(origin, &mut written, places).await,
        }
        self.wake(origin, written);
        Ok(outcome?)
    }

    /// Sees to it that the numbers of the next rows are known.
    async fn look_for_numbers(
        &self,
        origin: &ServerName,
        taken: &[Taken],
        edus: &[ReceivedEdu],
    ) -> Result<(), StorageError> {
        let store = &self.parts.store;
        for taken in taken {
            let room = taken.room.number;
            if self.queues.next(room).is_none() {
                let range = ScanRange::prefix(&room.0);
                let last = store.scan(&INBOUND_PDUS, range, Direction::Backward, 1);
                let last = last.await?;
                let next = last.first().map_or(0, |((_, number), _)| number + 1);
                self.queues.set_next(room, Some(next));
            }
        }
        if !edus.is_empty() && !self.edu_queues.knows_next(origin) {
            let range = ScanRange::prefix(&origin.as_str());
            let last = store.scan(&INBOUND_EDUS, range, Direction::Backward, 1);
            let last = last.await?;
            let next = last.first().map_or(0, |((_, number), _)| number + 1);
            self.edu_queues.set_next(origin, next);
        }
        Ok(())
    }

    fn write_pdu(
        &self,
        origin: &ServerName,
        taken: Taken,
        batches: &mut Batches,
        written: &mut Written,
    ) -> Place {
        let Taken {
            room,
            pdu,
            verified,
            place,
        } = taken;
        let number = self.queues.next(room.number).unwrap_or_default();
        self.queues.set_next(room.number, Some(number + 1));
        let row = WaitingPdu {
            origin: origin.to_owned(),
            event_id: pdu.event_id().to_owned(),
            verified,
            attempts: 0,
            json: pdu.json_str().to_owned(),
        };
        let key = (room.number.0, number);
        let batch = batches.next(row.json.len());
        // Another process may have written the same number.
        batch.assert_absent(&INBOUND_PDUS, &key);
        batch.put(&INBOUND_PDUS, &key, &row);
        let read = ReadRow {
            origin: origin.to_owned(),
            verified,
            attempts: 0,
            pdu,
        };
        // Not before it is on disk: the number may turn out to be another's.
        written.read.push(((room.number, number), read));
        written.pdus.entry(room.number).or_default().push(number);
        place
    }

    fn write_edu(
        &self,
        origin: &ServerName,
        edu: ReceivedEdu,
        batches: &mut Batches,
        written: &mut Written,
    ) {
        let Some(number) = self.edu_queues.take(origin) else {
            tracing::warn!(%origin, edu_type = edu.edu_type, "too many EDUs wait: one is dropped");
            return;
        };
        let content = String::from_utf8_lossy(&edu.content).into_owned();
        let batch = batches.next(content.len());
        let row = WaitingEdu {
            edu_type: edu.edu_type,
            content,
            attempts: 0,
        };
        batch.put(&INBOUND_EDUS, &(origin.as_str(), number), &row);
        written.edus.push(number);
    }

    async fn submit(&self, batches: Batches) -> Vec<Result<Ticket, CommitError>> {
        let Batches { mut full, open } = batches;
        full.push(open);
        let mut tickets = Vec::with_capacity(full.len());
        for batch in full {
            let ticket = self.parts.store.submit(batch, Durability::Durable).await;
            let failed = ticket.is_err();
            tickets.push(ticket);
            if failed {
                // What follows would say that this is there.
                break;
            }
        }
        tickets
    }

    /// After a commit of which some may be on disk: looks which rows are there.
    async fn after_failure(&self, origin: &ServerName, written: &mut Written, places: Vec<Place>) {
        // Numbers are not given again: they may have holes.
        written.read.clear();
        for (room, numbers) in &mut written.pdus {
            let keys: Vec<_> = numbers.iter().map(|number| (room.0, *number)).collect();
            let rows = self.parts.store.multi_get(&INBOUND_PDUS, &keys).await;
            let Ok(rows) = rows else {
                // They are found by the next start.
                numbers.clear();
                continue;
            };
            let there = numbers.iter().copied().zip(rows);
            // A row of another process may be there under the same number.
            let there =
                there.filter(|(_, row)| row.as_ref().is_some_and(|row| row.origin == *origin));
            *numbers = there.map(|(number, _)| number).collect();
            for number in numbers.iter() {
                self.queues.found(*room, origin, *number);
            }
        }
        drop(places);
        let there = self.edus_on_disk(origin, &written.edus).await;
        for number in &written.edus {
            if !there.contains(number) {
                self.edu_queues.give_back(origin);
            }
        }
        self.edu_queues.forget_next(origin);
        written.edus = there;
    }

    async fn edus_on_disk(&self, origin: &ServerName, numbers: &[u64]) -> Vec<u64> {
        let keys: Vec<_> = numbers
            .iter()
            .map(|number| (origin.as_str(), *number))
            .collect();
        let rows = self.parts.store.multi_get(&INBOUND_EDUS, &keys).await;
        let there = numbers.iter().copied().zip(rows.unwrap_or_default());
        there
            .filter_map(|(number, row)| row.map(|_| number))
            .collect()
    }

    /// Tells the workers of rows that are on disk.
    fn wake(self: &Arc<Self>, origin: &ServerName, written: Written) {
        for (room, numbers) in written.pdus {
            if !numbers.is_empty() && self.queues.arrived(room, &numbers) {
                self.start_worker(room);
            }
        }
        if !written.edus.is_empty() && self.edu_queues.arrived(origin, &written.edus) {
            self.start_edu_worker(origin.to_owned());
        }
    }

    /// Finds all rows again, and starts their workers. Before any transaction is received.
    pub(super) async fn resume(self: &Arc<Self>) -> Result<(), StorageError> {
        let mut range = ScanRange::all();
        loop {
            let store = &self.parts.store;
            let rows = store.scan(&INBOUND_PDUS, range, Direction::Forward, READ_AT_ONCE);
            let rows = rows.await?;
            for ((room, number), row) in &rows {
                self.queues.found(RoomNumber(*room), &row.origin, *number);
            }
            let Some((last, _)) = rows.last() else { break };
            range = ScanRange::all().after(last);
        }
        let mut range = ScanRange::all();
        loop {
            let store = &self.parts.store;
            let rows = store.scan(&INBOUND_EDUS, range, Direction::Forward, READ_AT_ONCE);
            let rows = rows.await?;
            for ((origin, number), _) in &rows {
                if let Ok(origin) = OwnedServerName::try_from(origin.as_str()) {
                    self.edu_queues.found(&origin, *number);
                }
            }
            let Some((last, _)) = rows.last() else { break };
            range = ScanRange::all().after(last);
        }
        for room in self.queues.without_workers() {
            self.start_worker(room);
        }
        for origin in self.edu_queues.without_workers() {
            self.start_edu_worker(origin);
        }
        Ok(())
    }
}

/// Waits for all batches. The first that fails is the outcome.
async fn finish(tickets: Vec<Result<Ticket, CommitError>>) -> Result<(), CommitError> {
    let mut outcome = Ok(());
    for ticket in tickets {
        let ended = match ticket {
            Ok(ticket) => ticket.await.map(drop),
            Err(error) => Err(error),
        };
        outcome = outcome.and(ended);
    }
    outcome
}
