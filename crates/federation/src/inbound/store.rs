//! Writing what was taken, and finding it again after a start.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use homeserver_rooms::RoomNumber;
use homeserver_storage::{
    Batch, CommitError, Direction, Durability, ScanRange, StorageError, Ticket,
};
use ruma::{OwnedEventId, OwnedServerName, ServerName};

use super::{
    Inner, ReadRow, TransactionError,
    admit::Taken,
    answers::NewAnswer,
    queue::Place,
    rows::{NotedRow, WaitingEdu, WaitingPdu},
    transaction::ReceivedEdu,
};
use crate::tables::{INBOUND_EDUS, INBOUND_NOTED, INBOUND_PDUS};

/// Bytes of one batch: what is written for a row beside its value fits into the rest.
const MAX_BYTES: usize = 4_000_000;
/// Rows of one batch: with an assert each they are fewer than a batch may have.
const MAX_ROWS: usize = 400;
/// Bytes of an answer: fifty events with an error each.
const MAX_ANSWER: usize = 64 * 1024;
/// Rows that are read at once after a start.
const READ_AT_ONCE: usize = 500;
/// How long events wait for the EDUs of their transaction, which are handed on in milliseconds unless
/// something fails here.
const EDUS_FIRST: Duration = Duration::from_millis(500);

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

/// What has to be on disk before a server gets its answer.
#[derive(Default)]
pub(super) struct ToKeep {
    pub(super) taken: Vec<Taken>,
    pub(super) edus: Vec<ReceivedEdu>,
    /// Events that are refused for want of room, and are fetched later.
    pub(super) noted: Vec<(RoomNumber, OwnedEventId)>,
    /// None where nobody waits for one.
    pub(super) answer: Option<NewAnswer>,
}

/// Rows that are on their way to the disk.
#[derive(Default)]
struct Written {
    places: Vec<(Place, u64)>,
    pdus: BTreeMap<RoomNumber, Vec<u64>>,
    edus: Vec<u64>,
    /// The events of the rows, for their workers.
    read: Vec<((RoomNumber, u64), ReadRow)>,
    /// Rooms in which events were refused.
    noted: Vec<RoomNumber>,
    /// Events that had been refused before and are taken now.
    no_longer_noted: Vec<(RoomNumber, OwnedEventId)>,
}

impl Inner {
    /// Writes rows for what was taken, and the answer. Comes back when all is on disk.
    pub(super) async fn keep(
        self: &Arc<Self>,
        origin: &ServerName,
        keep: ToKeep,
    ) -> Result<(), TransactionError> {
        if keep.taken.is_empty() && keep.edus.is_empty() && keep.noted.is_empty() {
            // Nothing is done twice if it comes again.
            return Ok(());
        }
        let mut written = Written::default();
        let tickets = {
            // Until the batches are queued.
            let mut numbers = self.numbering.lock().await;
            numbers.tidy(&self.queues, &self.edu_queues);
            let store = &self.parts.store;
            let mut batches = Batches {
                full: Vec::new(),
                open: Batch::new(),
            };
            for taken in keep.taken {
                let number = numbers.of_room(store, taken.room.number).await?;
                self.write_pdu(origin, (taken, *number), &mut batches, &mut written);
                *number += 1;
            }
            if !keep.edus.is_empty() {
                let number = numbers.of_origin(store, origin).await?;
                for edu in keep.edus {
                    if self.write_edu(origin, (edu, *number), &mut batches) {
                        written.edus.push(*number);
                        *number += 1;
                    }
                }
            }
            for (room, id) in keep.noted {
                let row = NotedRow {
                    origin: origin.to_owned(),
                };
                let batch = batches.next(id.as_str().len());
                batch.put(&INBOUND_NOTED, &(room.0, id.as_str()), &row);
                written.noted.push(room);
            }
            if let Some(answer) = keep.answer {
                let now = self.parts.runtime.clock.unix_millis();
                // It comes last: it says that all the others are there.
                answer.write(now, batches.next(MAX_ANSWER));
            }
            self.submit(batches).await
        };
        let outcome = finish(tickets).await;
        match outcome {
            Ok(()) => {
                for (place, number) in written.places.drain(..) {
                    place.keep(number);
                }
                for (key, row) in written.read.drain(..) {
                    self.read.insert(key, row);
                }
                for (room, id) in written.no_longer_noted.drain(..) {
                    self.queues.forget_noted(room, &[id]);
                }
            }
            Err(_) => self.after_failure(origin, &mut written).await,
        }
        self.wake(origin, written).await;
        Ok(outcome?)
    }

    fn write_pdu(
        &self,
        origin: &ServerName,
        (taken, number): (Taken, u64),
        batches: &mut Batches,
        written: &mut Written,
    ) {
        let Taken {
            room,
            pdu,
            verified,
            place,
        } = taken;
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
        if self.queues.is_noted(room.number, &row.event_id) {
            batch.delete(&INBOUND_NOTED, &(room.number.0, row.event_id.as_str()));
            written.no_longer_noted.push((room.number, row.event_id));
        }
        let read = ReadRow {
            origin: origin.to_owned(),
            verified,
            attempts: 0,
            pdu,
        };
        written.places.push((place, number));
        // Not before it is on disk: the number may turn out to be another's.
        written.read.push(((room.number, number), read));
        written.pdus.entry(room.number).or_default().push(number);
    }

    /// Gives whether there is room for it.
    fn write_edu(
        &self,
        origin: &ServerName,
        (edu, number): (ReceivedEdu, u64),
        batches: &mut Batches,
    ) -> bool {
        if !self.edu_queues.take_place(origin) {
            tracing::warn!(%origin, edu_type = edu.edu_type, "too many EDUs wait: one is dropped");
            return false;
        }
        let content = String::from_utf8_lossy(&edu.content).into_owned();
        let batch = batches.next(content.len());
        let row = WaitingEdu {
            edu_type: edu.edu_type,
            content,
            attempts: 0,
        };
        batch.put(&INBOUND_EDUS, &(origin.as_str(), number), &row);
        true
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

    /// After a commit of which some may be on disk: looks which rows are there. Numbers are not
    /// given again: they may have holes.
    async fn after_failure(&self, origin: &ServerName, written: &mut Written) {
        written.read.clear();
        for (room, numbers) in &mut written.pdus {
            let keys: Vec<_> = numbers.iter().map(|number| (room.0, *number)).collect();
            let rows = self.parts.store.multi_get(&INBOUND_PDUS, &keys).await;
            // Where that is not known either, the worker finds out.
            if let Ok(rows) = rows {
                let there = numbers.iter().copied().zip(rows);
                // A row of another process may be there under the same number.
                let there =
                    there.filter(|(_, row)| row.as_ref().is_some_and(|row| row.origin == *origin));
                *numbers = there.map(|(number, _)| number).collect();
            }
            for number in numbers.iter() {
                self.queues.found(*room, origin, *number);
            }
        }
        written.places.clear();
        let there = self.edus_on_disk(origin, &written.edus).await;
        for number in &written.edus {
            if !there.contains(number) {
                self.edu_queues.give_back(origin);
            }
        }
        written.edus = there;
    }

    async fn edus_on_disk(&self, origin: &ServerName, numbers: &[u64]) -> Vec<u64> {
        let keys: Vec<_> = numbers
            .iter()
            .map(|number| (origin.as_str(), *number))
            .collect();
        let Ok(rows) = self.parts.store.multi_get(&INBOUND_EDUS, &keys).await else {
            // The worker finds out.
            return numbers.to_vec();
        };
        let there = numbers.iter().copied().zip(rows);
        there
            .filter_map(|(number, row)| row.map(|_| number))
            .collect()
    }

    /// Tells the workers of rows that are on disk, first those of EDUs: clients that see an encrypted
    /// event before its key came may not look again.
    async fn wake(self: &Arc<Self>, origin: &ServerName, written: Written) {
        if !written.edus.is_empty() {
            if self.edu_queues.arrived(origin, &written.edus) {
                self.start_edu_worker(origin.to_owned());
            }
            self.edu_queues.until_handed_on(origin, EDUS_FIRST).await;
        }
        for (room, numbers) in written.pdus {
            if !numbers.is_empty() && self.queues.arrived(room, &numbers) {
                self.start_worker(room);
            }
        }
        for room in written.noted {
            if self.queues.arrived(room, &[]) {
                self.start_worker(room);
            }
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
            let rows = store.scan(&INBOUND_NOTED, range, Direction::Forward, READ_AT_ONCE);
            let rows = rows.await?;
            let Some((last, _)) = rows.last() else { break };
            range = ScanRange::all().after(last);
            for ((room, id), row) in rows {
                if let Ok(id) = OwnedEventId::try_from(id) {
                    self.queues.found_noted(RoomNumber(room), id, row.origin);
                }
            }
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
