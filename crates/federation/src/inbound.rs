//! Receiving the transactions of other servers.
//!
//! A transaction is answered when what it brought is on disk, whatever its rooms are doing: here
//! only its form, signatures by keys that are at hand, and the right to send at all are looked at.
//! A worker for each room then fetches what is missing and has the events judged; one
//! for each server hands its EDUs on.
//!
//! Specification: server-server API, "Transactions", "Checks performed on receipt of a PDU",
//! "Server Access Control Lists (ACLs)".

mod admit;
mod answers;
mod backfill;
mod desk;
mod edu_queue;
mod edu_worker;
mod edus;
mod gap;
mod nearest;
mod noted;
mod numbers;
mod queue;
mod read_edu;
mod read_rows;
pub(crate) mod rows;
mod store;
#[cfg(test)]
mod tests;
mod transaction;
mod worker;

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use bytes::Bytes;
use homeserver_events::Pdu;
use homeserver_rooms::{RoomError, RoomNumber, Rooms};
use homeserver_runtime::{PoolClosed, Runtime};
use homeserver_storage::{CommitError, StorageError, Store};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedEventId, OwnedServerName, RoomId, ServerName};
use tokio::sync::{Semaphore, mpsc};

use self::{edu_queue::EduQueues, queue::Queues};
pub use self::{
    edus::{EduFailure, EduSink, NoEdus, RemoteReceipt},
    nearest::Jump,
    queue::{MAX_IN_ALL, MAX_IN_ROOM, MAX_OF_ORIGIN, MAX_OF_ORIGIN_IN_ROOM},
    transaction::{BodyError, MAX_EDU, MAX_EDUS, MAX_PDUS, MAX_TRANSACTION},
};
use crate::{CheckError, Fetcher, Policies, Verifier, membership::HeldEvents};

/// Bytes of events that are kept read between the answer and their worker.
const READ_BYTES: u64 = 32 * 1024 * 1024;
/// Events that are kept read, as the cache expects.
const READ_EVENTS: usize = 10_000;
/// Rooms whose events are judged at once: more would only wait for the processors.
const JUDGING: usize = 4;
/// Gaps that are filled at once, in all rooms: others wait, and with them only their events.
const FILLING: usize = 64;
/// Servers whose EDUs are worked off at once.
const HANDING_ON: usize = 16;
/// Bytes of a transaction that are read where it arrives; longer ones on the pool.
const READ_HERE: usize = 16 * 1024;

/// Why a transaction was not taken. Nothing of it has had an effect, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// It is none.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Stored keys or rows cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It cannot be stored.
    #[error("the transaction could not be stored")]
    NotStored(#[from] CommitError),
    /// Its rooms cannot be looked at.
    #[error(transparent)]
    Rooms(#[from] RoomError),
    /// The server is stopping.
    #[error(transparent)]
    Pool(#[from] PoolClosed),
}

impl From<CheckError> for TransactionError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Storage(error) => Self::Storage(error),
            CheckError::Pool(error) => Self::Pool(error),
        }
    }
}

impl TransactionError {
    /// Whether the same transaction may be taken when it comes again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Body(_) => false,
            Self::Storage(error) => error.is_passing(),
            Self::NotStored(error) => error.is_passing(),
            Self::Rooms(error) => error.is_passing(),
            Self::Pool(_) => true,
        }
    }
}

/// Takes events of rooms in which this server has nobody: those by which an invitation is taken
/// back, or a knock refused.
#[async_trait]
pub trait Outside: Debug + Send + Sync {
    /// An event of such a room. `None` if it is not for anybody here.
    async fn outside(
        &self,
        origin: &ServerName,
        room: &RoomId,
        json: Bytes,
    ) -> Option<Result<(), String>>;

    /// Where events come out that were held back while their room was joined; asked for once.
    fn held(&self) -> Option<mpsc::Receiver<HeldEvents>> {
        None
    }
}

/// Nobody waits for events of other rooms.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

#[async_trait]
impl Outside for Nobody {
    async fn outside(&self, _: &ServerName, _: &RoomId, _: Bytes) -> Option<Result<(), String>> {
        None
    }
}

/// What receiving is made of.
#[derive(Clone, Debug)]
pub struct InboundParts {
    /// The name of this server.
    pub own: OwnedServerName,
    /// The rooms that events are received in.
    pub rooms: Arc<Rooms>,
    /// The store that the rooms are in.
    pub store: Store,
    /// Clock, tasks, pools.
    pub runtime: Runtime,
    /// Fetches what is missing.
    pub fetcher: Fetcher,
    /// Checks signatures.
    pub verifier: Verifier,
    /// Asks policy servers.
    pub policies: Policies,
    /// Takes EDUs.
    pub edus: Arc<dyn EduSink>,
    /// Takes events of rooms that are not here.
    pub outside: Arc<dyn Outside>,
}

/// Receives transactions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbound {
    inner: Arc<Inner>,
}

/// A row whose event was read.
#[derive(Clone, Debug)]
struct ReadRow {
    origin: OwnedServerName,
    verified: bool,
    attempts: u8,
    pdu: Pdu,
}

/// Weighs events by their bytes.
#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<(RoomNumber, u64), ReadRow> for ByBytes {
    fn weight(&self, _: &(RoomNumber, u64), row: &ReadRow) -> u64 {
        // What is beside the JSON: the header, the entry.
        row.pdu.json().len() as u64 + 1_024
    }
}

#[derive(Debug)]
struct Inner {
    parts: InboundParts,
    begun: tokio::time::Instant,
    turns: Mutex<HashMap<OwnedServerName, Weak<tokio::sync::Mutex<()>>>>,
    /// One batch at a time is given its numbers and queued for the commit, so that rows are in the
    /// order of their numbers.
    numbering: tokio::sync::Mutex<numbers::Numbers>,
    queues: Arc<Queues>,
    edu_queues: EduQueues,
    /// Events that were read when they came, for their worker.
    read: Cache<(RoomNumber, u64), ReadRow, ByBytes>,
    judging: Semaphore,
    filling: Semaphore,
    handing_on: Semaphore,
    fillers: backfill::Fillers,
    /// Events of states that were not to be had for so long that nobody waits for them any more.
    given_up: Cache<(RoomNumber, OwnedEventId), ()>,
}

impl Inbound {
    /// Receives into these rooms. Nothing is worked off before [`Inbound::resume`].
    pub fn new(parts: InboundParts) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts,
                begun: tokio::time::Instant::now(),
                turns: Mutex::default(),
                numbering: tokio::sync::Mutex::default(),
                queues: Arc::default(),
                edu_queues: EduQueues::default(),
                read: Cache::with_weighter(READ_EVENTS, READ_BYTES, ByBytes),
                judging: Semaphore::new(JUDGING),
                filling: Semaphore::new(FILLING),
                handing_on: Semaphore::new(HANDING_ON),
                fillers: backfill::Fillers::default(),
                given_up: Cache::new(gap::MAX_GIVEN_UP),
            }),
        }
    }

    /// Goes on with what was answered before this start.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub async fn resume(&self) -> Result<(), StorageError> {
        self.inner.start_forgetting();
        self.start_taking_held();
        self.inner.resume().await
    }

    /// Takes a transaction of an authenticated server. The answer, a JSON object, comes when all
    /// that must not be lost of it is on disk; dropping the future does not take it back.
    ///
    /// # Errors
    /// When it is no transaction, and when it cannot be stored.
    pub async fn receive(
        &self,
        origin: &ServerName,
        txn_id: &str,
        body: Bytes,
    ) -> Result<String, TransactionError> {
        let inner = Arc::clone(&self.inner);
        let (origin, txn_id) = (origin.to_owned(), txn_id.to_owned());
        let tasks = self.inner.parts.runtime.tasks.clone();
        let receive = async move { inner.receive(&origin, &txn_id, body).await };
        tasks.see_through(receive).await
    }
}

impl Inbound {
    /// Takes events that were held back, as if their servers sent them now.
    fn start_taking_held(&self) {
        let Some(mut held) = self.inner.parts.outside.held() else {
            return;
        };
        let inbound = self.clone();
        let tasks = self.inner.parts.runtime.tasks.clone();
        tasks.clone().spawn(async move {
            loop {
                let events = tokio::select! {
                    biased;
                    () = tasks.stopping() => return,
                    events = held.recv() => events,
                };
                let Some(events) = events else { return };
                for (origin, events) in events {
                    inbound.take_held(&origin, &events).await;
                }
            }
        });
    }

    async fn take_held(&self, origin: &ServerName, events: &[Bytes]) {
        let runtime = &self.inner.parts.runtime;
        for some in events.chunks(MAX_PDUS) {
            let some: Vec<_> = some
                .iter()
                .map(|json| String::from_utf8_lossy(json))
                .collect();
            let body = format!("{{\"pdus\":[{}]}}", some.join(","));
            let mut id = [0; 16];
            runtime.entropy.fill(&mut id);
            let txn_id = format!("held-{:032x}", u128::from_be_bytes(id));
            if let Err(error) = self.receive(origin, &txn_id, body.into()).await {
                tracing::debug!(%error, %origin, "events that came during a join are dropped");
            }
        }
    }
}

impl Inner {
    async fn receive(
        self: Arc<Self>,
        origin: &ServerName,
        txn_id: &str,
        body: Bytes,
    ) -> Result<String, TransactionError> {
        let turn = self.turn(origin);
        let _turn = turn.lock().await;
        let asked = answers::Asked::new(origin, txn_id, &body);
        if let Some(answer) = self.answered(&asked).await? {
            return Ok(answer);
        }
        let transaction = self.read(body).await?;
        let admitted = self.admit(origin, transaction.pdus).await?;
        let edus = read_edu::sort(origin, transaction.edus);
        let answer = admitted.answer();
        let keep = store::ToKeep {
            taken: admitted.taken,
            edus: edus.kept,
            noted: admitted.noted,
            answer: Some(asked.row(answer.clone())),
        };
        self.keep(origin, keep).await?;
        self.pass_on(origin, edus.passing);
        Ok(answer)
    }

    /// Reads the body, and the rooms of its events.
    async fn read(&self, body: Bytes) -> Result<transaction::Transaction, TransactionError> {
        if body.len() <= READ_HERE {
            return Ok(transaction::Transaction::read(&body)?);
        }
        let read = move || transaction::Transaction::read(&body);
        Ok(self.parts.runtime.cpu.run(read).await??)
    }

    /// One transaction of a server at a time.
    fn turn(&self, origin: &ServerName) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock();
        if let Some(turn) = turns.get(origin).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(origin.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// Whether this is a transaction, for the fuzz target: all of it that is looked at is read.
#[cfg(test)]
pub(crate) fn reads_as_a_transaction(origin: &ServerName, body: &[u8]) -> bool {
    let body = Bytes::copy_from_slice(body);
    let Ok(transaction) = transaction::Transaction::read(&body) else {
        return false;
    };
    assert!(transaction.pdus.len() <= MAX_PDUS && transaction.edus.len() <= MAX_EDUS);
    for pdu in &transaction.pdus {
        let room = transaction::room_of(pdu);
        let _ = transaction::probable_id(pdu, room.as_deref());
    }
    let sorted = read_edu::sort(origin, transaction.edus);
    for edu in sorted.kept {
        assert!(edu.content.len() <= MAX_EDU);
        // It is read the same from its row.
        let again = read_edu::KeptEdu::read(origin, &edu.edu_type, &edu.content);
        assert!(again.is_some());
    }
    true
}
