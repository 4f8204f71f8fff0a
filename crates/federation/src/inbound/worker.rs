//! The worker of a room: has its rows judged in large batches, and comes back to those that cannot
//! be judged yet.
//!
//! A room has one worker, and only while it has rows. Judging takes turns with other rooms; waiting
//! for other servers takes no turn, and keeps nobody but the events that wait for it. What panics is
//! tried again by itself, and given up after a few times.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use homeserver_events::Pdu;
use homeserver_rooms::{Received, Room, RoomError, RoomNumber};
use homeserver_storage::{Batch, Durability};
use ruma::{OwnedEventId, OwnedServerName};
use tokio::sync::oneshot;

use super::{
    Inner, ReadRow,
    desk::{Desk, Stuck, Waits, in_order},
    gap::{Filled, GapError},
    noted::Left,
    read_rows::{Numbered, RowsRead},
};
use crate::{CheckError, Dropped, tables::INBOUND_PDUS};

/// Rows that are judged in one go.
const AT_ONCE: usize = 250;
/// Gaps of one room that are filled at once: one slow server must not keep the others waiting.
const FILLS_OF_ROOM: usize = 3;
/// How long keys are waited for.
const KEY_PATIENCE: Duration = Duration::from_secs(20);
/// Times that an event is looked after before it is given up: some hours, with these pauses.
const MAX_ATTEMPTS: u8 = 12;
/// The pause after the first time; it doubles with each.
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
/// The pause where not the event but this server is the reason.
const OWN_PAUSE: Duration = Duration::from_secs(2);
/// The pause of an event whose states could not be resolved within the limits.
const UNRESOLVED_PAUSE: Duration = Duration::from_mins(15);
/// The pause of an event that needs a state which is told once that of the room is whole.
const PARTIAL_PAUSE: Duration = Duration::from_secs(10);

/// What became of a row.
#[derive(Clone)]
enum Outcome {
    /// It is judged, now or before.
    Judged,
    /// It is of no use: why.
    Dropped(String),
    /// These events are missing.
    Missing(Vec<OwnedEventId>),
    /// These events are missing, and were not to be had: why.
    NotFilled(Vec<OwnedEventId>, String),
    /// It cannot be judged now: why. After some of these it is given up.
    Failed(String),
    /// It cannot be judged for so long, and is not to blame for it.
    Passing(Duration, String),
}

/// Something that a worker waited for without a turn.
enum Done {
    Filled(u64, ReadRow, Filled),
    Checked(Vec<Numbered>, Vec<Result<Pdu, Dropped>>),
    /// No keys could be looked for.
    Unchecked(Vec<Numbered>, CheckError),
    /// Events that had been refused were fetched.
    Noted(Left),
}

/// A worker.
struct Worker {
    inner: Arc<Inner>,
    room: Arc<Room>,
    desk: Desk,
    jobs: FuturesUnordered<BoxFuture<'static, Option<Done>>>,
    /// Servers whose gaps are being filled.
    busy_with: HashSet<OwnedServerName>,
    noted: Noted,
}

/// Where the fetching of events stands that were refused.
#[derive(Default)]
struct Noted {
    underway: bool,
    /// Times in a row that some were left.
    attempts: u8,
    due: Duration,
}

impl Inner {
    /// Starts the worker of a room that is said to have one.
    pub(super) fn start_worker(self: &Arc<Self>, room: RoomNumber) {
        let inner = Arc::clone(self);
        let tasks = self.parts.runtime.tasks.clone();
        tasks.spawn(async move {
            loop {
                let work = AssertUnwindSafe(Worker::work(Arc::clone(&inner), room));
                if work.catch_unwind().await.is_ok() {
                    return;
                }
                tracing::error!(room = room.0, "the worker of a room panicked");
                tokio::select! {
                    biased;
                    () = inner.parts.runtime.tasks.stopping() => return,
                    () = tokio::time::sleep(OWN_PAUSE) => {}
                }
                inner.queues.all_again(room);
            }
        });
    }

    /// The time by which rows are due, which goes on with the timers.
    fn monotonic(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Worker {
    async fn work(inner: Arc<Inner>, number: RoomNumber) {
        let room = loop {
            match inner.parts.rooms.room_by_number(number).await {
                Ok(room) => break room,
                Err(error) => {
                    tracing::warn!(%error, room = number.0, "a room with waiting events cannot be read");
                    tokio::select! {
                        biased;
                        () = inner.parts.runtime.tasks.stopping() => return,
                        () = tokio::time::sleep(LONGEST_PAUSE / 60) => {}
                    }
                }
            }
        };
        let mut worker = Self {
            inner,
            room,
            desk: Desk::default(),
            jobs: FuturesUnordered::new(),
            busy_with: HashSet::new(),
            noted: Noted::default(),
        };
        let tasks = worker.inner.parts.runtime.tasks.clone();
        while !tasks.is_stopping() {
            if worker.judge_some().await {
                continue;
            }
            worker.start_fills().await;
            worker.start_noted();
            let is_idle = worker.jobs.is_empty() && worker.desk.is_empty();
            if is_idle && worker.inner.queues.may_end(number) {
                return;
            }
            tokio::select! {
                biased;
                () = tasks.stopping() => return,
                () = worker.wait() => {}
            }
        }
    }

    /// Waits until there is something to do, and does what comes of it.
    async fn wait(&mut self) {
        let changed = self.inner.queues.changed(self.room.number);
        let now = self.inner.monotonic();
        let waits = self.noted.attempts > 0 && !self.noted.underway;
        let noted = Some(self.noted.due).filter(|_| waits);
        let due = self.desk.next_due(now).into_iter().chain(noted).min();
        let pause = due.map_or(LONGEST_PAUSE, |due| due.saturating_sub(now));
        let done = tokio::select! {
            biased;
            done = self.jobs.next(), if !self.jobs.is_empty() => done.flatten(),
            () = changed.notified() => None,
            () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => None,
        };
        if let Some(done) = done {
            self.take(done).await;
        }
    }

    /// Judges some rows, if any are ready.
    async fn judge_some(&mut self) -> bool {
        let number = self.room.number;
        let mut rows = self.desk.again(self.inner.monotonic(), AT_ONCE);
        rows.extend(self.inner.queues.ready(number, AT_ONCE - rows.len()));
        if rows.is_empty() {
            return false;
        }
        let read = self.read(&rows).await;
        let (verified, unverified): (Vec<_>, Vec<_>) =
            read.into_iter().partition(|(_, row)| row.verified);
        if !unverified.is_empty() {
            self.check(unverified);
        }
        self.judge(verified).await;
        true
    }

    /// Reads rows. Those of which nothing can be made are removed, others put aside.
    async fn read(&mut self, rows: &[u64]) -> Vec<Numbered> {
        let RowsRead { rows, gone, unread } = self.inner.rows(&self.room, rows).await;
        let due = self.inner.monotonic() + OWN_PAUSE;
        for number in unread {
            self.desk.put_unread(number, due);
        }
        if !gone.is_empty() {
            let mut batch = Batch::new();
            for number in &gone {
                batch.delete(&INBOUND_PDUS, &(self.room.number.0, *number));
            }
            self.remove(batch, gone).await;
        }
        rows
    }

    /// Begins to fetch what was refused while the room had too many, unless that was tried just now.
    fn start_noted(&mut self) {
        let now = self.inner.monotonic();
        let due = self.noted.attempts == 0 || self.noted.due <= now;
        if !due || self.noted.underway || !self.inner.queues.may_fetch_noted(self.room.number) {
            return;
        }
        self.noted.underway = true;
        let (inner, room) = (Arc::clone(&self.inner), Arc::clone(&self.room));
        let attempts = self.noted.attempts;
        let give_up = attempts >= MAX_ATTEMPTS;
        let fetch = async move {
            if give_up {
                inner.give_noted_up(&room).await;
                return Some(Done::Noted(Left::Nothing));
            }
            let fetch = AssertUnwindSafe(inner.fetch_noted(&room, attempts));
            let left = fetch.catch_unwind().await;
            Some(Done::Noted(left.unwrap_or(Left::AsMany)))
        };
        self.begin(fetch);
    }

    /// Begins a job in a task of its own: what it holds, commits on their way among it, may be what
    /// judging waits for. It ends with the worker.
    fn begin(&self, job: impl Future<Output = Option<Done>> + Send + 'static) {
        let (mut tell, hear) = oneshot::channel();
        let tasks = self.inner.parts.runtime.tasks.clone();
        self.inner.parts.runtime.tasks.spawn(async move {
            let done = tokio::select! {
                biased;
                () = tasks.stopping() => return,
                () = tell.closed() => return,
                done = AssertUnwindSafe(job).catch_unwind() => done,
            };
            // The worker may be gone.
            let _ = tell.send(done);
        });
        let heard = hear.map(|told| match told {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => None,
        });
        self.jobs.push(heard.boxed());
    }

    /// Looks for the keys of rows, without a turn.
    fn check(&self, rows: Vec<Numbered>) {
        let inner = Arc::clone(&self.inner);
        let rules = self.room.rules;
        let check = async move {
            let json = rows
                .iter()
                .map(|(_, row)| Bytes::copy_from_slice(row.pdu.json()));
            let verifier = &inner.parts.verifier;
            let checked = verifier.verify(json.collect(), rules, KEY_PATIENCE).await;
            Some(match checked {
                Ok(checked) => Done::Checked(rows, checked),
                Err(error) => Done::Unchecked(rows, error),
            })
        };
        self.begin(check);
    }

    /// Judges rows whose signatures hold.
    async fn judge(&mut self, rows: Vec<Numbered>) {
        if rows.is_empty() {
            return;
        }
        let rows = in_order(rows, |(_, row)| &row.pdu);
        let mut outcomes = self.judged(rows.clone()).await.unwrap_or_default();
        if outcomes.is_empty() {
            // Each by itself: one of them is to blame for the panic.
            for row in &rows {
                let outcome = self.judged(vec![row.clone()]).await;
                let outcome = outcome.and_then(|mut only| only.pop());
                let panicked = || Outcome::Failed("judging it panicked".to_owned());
                outcomes.push(outcome.unwrap_or_else(panicked));
            }
        }
        self.settle(rows.into_iter().zip(outcomes).collect()).await;
    }

    /// What becomes of rows; `None` if that panicked.
    async fn judged(&mut self, rows: Vec<Numbered>) -> Option<Vec<Outcome>> {
        let pdus: Vec<Pdu> = rows.into_iter().map(|(_, row)| row.pdu).collect();
        let incoming = AssertUnwindSafe(self.inner.incoming(&self.room, pdus.clone()));
        let incoming = match incoming.catch_unwind().await.ok()? {
            Ok(incoming) => incoming,
            Err(error) => return Some(pdus.iter().map(|_| of_error(&error)).collect()),
        };
        let _turn = self.inner.judging.acquire().await.ok()?;
        let rooms = &self.inner.parts.rooms;
        let receive = AssertUnwindSafe(rooms.receive_all(&self.room, incoming));
        let results = receive.catch_unwind().await.ok()?;
        let outcomes = pdus.iter().zip(results).map(|(_, result)| match result {
            Ok(Received::Judged { .. }) => Outcome::Judged,
            Ok(Received::Missing { prev, auth }) => {
                Outcome::Missing(prev.into_iter().chain(auth).collect())
            }
            Err(error) => of_error(&error),
        });
        Some(outcomes.collect())
    }

    /// Removes rows that are done with, and puts the others aside.
    async fn settle(&mut self, judged: Vec<(Numbered, Outcome)>) {
        let now = self.inner.monotonic();
        let mut batch = Batch::new();
        let mut gone = Vec::new();
        let mut here = Vec::new();
        for ((number, mut row), outcome) in judged {
            let id = row.pdu.event_id().to_owned();
            let key = (self.room.number.0, number);
            let before = row.attempts;
            let Some((waits, pause)) = self.aside(&mut row, &outcome) else {
                if matches!(outcome, Outcome::Judged) {
                    here.push(id);
                }
                batch.delete(&INBOUND_PDUS, &key);
                gone.push(number);
                continue;
            };
            if row.attempts > before {
                batch.put(&INBOUND_PDUS, &key, &row.waiting());
            }
            let stuck = Stuck {
                id,
                origin: row.origin.clone(),
                waits,
                due: now + pause,
                busy: false,
                woken: false,
            };
            self.desk.put(number, stuck);
            self.inner.read.insert((self.room.number, number), row);
        }
        self.remove(batch, gone).await;
        for id in here {
            self.desk.here(&id);
        }
    }

    /// What a row waits for from now on, and how long it is left alone; `None` if it is done with.
    fn aside(&self, row: &mut ReadRow, outcome: &Outcome) -> Option<(Waits, Duration)> {
        let (room, id) = (&self.room.id, row.pdu.event_id());
        let (waits, why) = match outcome {
            Outcome::Judged => return None,
            Outcome::Dropped(why) => {
                tracing::debug!(why, %room, %id, origin = %row.origin, "an event is dropped");
                return None;
            }
            Outcome::Missing(ids) => return Some((Waits::For(ids.clone()), Duration::ZERO)),
            Outcome::Passing(pause, why) => {
                tracing::debug!(why, %room, %id, "an event is judged later");
                return Some((Waits::Until, *pause));
            }
            Outcome::Failed(why) => (Waits::Until, why),
            Outcome::NotFilled(ids, why) => (Waits::For(ids.clone()), why),
        };
        row.attempts += 1;
        if row.attempts >= MAX_ATTEMPTS {
            tracing::warn!(why, %room, %id, origin = %row.origin, "an event is given up");
            return None;
        }
        tracing::debug!(why, %room, %id, "an event is tried again");
        Some((waits, pause_after(row.attempts)))
    }

    /// Writes what changed of rows, and gives the places of those that are gone back.
    async fn remove(&mut self, batch: Batch, gone: Vec<u64>) {
        if !batch.is_empty() {
            let removed = match self
                .inner
                .parts
                .store
                .submit(batch, Durability::Durable)
                .await
            {
                Ok(ticket) => ticket.await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                // They are judged already: the next start finds that out.
                tracing::warn!(%error, room = %self.room.id, "rows of judged events stay on disk");
            }
        }
        for number in gone {
            self.inner.read.remove(&(self.room.number, number));
            self.inner.queues.remove(self.room.number, number);
        }
    }

    /// Begins to fill the gaps before rows, as many as may be filled at once.
    async fn start_fills(&mut self) {
        while self.busy_with.len() < FILLS_OF_ROOM {
            let now = self.inner.monotonic();
            let Some(number) = self.desk.look_after(now, &self.busy_with) else {
                return;
            };
            let Some((_, row)) = self.read(&[number]).await.pop() else {
                // It is put aside by itself, unless it is gone.
                if !self.desk.is_unread(number) {
                    self.desk.remove(number);
                }
                continue;
            };
            self.busy_with.insert(row.origin.clone());
            let (inner, room) = (Arc::clone(&self.inner), Arc::clone(&self.room));
            let fill = async move {
                let _turn = inner.filling.acquire().await.ok()?;
                let fill = inner.fill(&room, &row.origin, (row.pdu.clone(), row.attempts));
                let filled = AssertUnwindSafe(fill).catch_unwind().await;
                let filled = filled.unwrap_or_else(|_| Filled {
                    judged: Vec::new(),
                    outcome: Err(GapError::OverLimit("panics")),
                });
                Some(Done::Filled(number, row, filled))
            };
            self.begin(fill);
        }
    }

    /// Takes what was waited for.
    async fn take(&mut self, done: Done) {
        match done {
            Done::Unchecked(rows, error) => {
                let later = || Outcome::Passing(OWN_PAUSE, error.to_string());
                self.settle(rows.into_iter().map(|row| (row, later())).collect())
                    .await;
            }
            Done::Checked(rows, checked) => {
                let mut good = Vec::new();
                let mut settled = Vec::new();
                for ((number, row), checked) in rows.into_iter().zip(checked) {
                    match checked {
                        Ok(pdu) => {
                            let read = ReadRow {
                                verified: true,
                                pdu,
                                ..row
                            };
                            good.push((number, read));
                        }
                        Err(Dropped::KeysUnknown(server)) => {
                            let why = format!("the keys of {server} are not to be had");
                            settled.push(((number, row), Outcome::Failed(why)));
                        }
                        Err(error) => {
                            settled.push(((number, row), Outcome::Dropped(error.to_string())));
                        }
                    }
                }
                self.settle(settled).await;
                self.judge(good).await;
            }
            Done::Noted(left) => {
                self.noted.underway = false;
                let in_vain = left == Left::AsMany;
                self.noted.attempts = if in_vain { self.noted.attempts + 1 } else { 0 };
                self.noted.due = self.inner.monotonic() + pause_after(self.noted.attempts);
            }
            Done::Filled(number, row, filled) => {
                self.busy_with.remove(&row.origin);
                let stuck = self.desk.remove(number);
                let outcome = match (filled.outcome, stuck) {
                    (Ok(()), _) => Outcome::Judged,
                    (Err(GapError::Room(error)), _) => of_error(&error),
                    (Err(error @ GapError::Refused), _) => Outcome::Dropped(error.to_string()),
                    // What was missing came by itself.
                    (Err(_), Some(Stuck { woken: true, .. })) => {
                        self.inner.queues.put_back(self.room.number, &[number]);
                        return;
                    }
                    (
                        Err(error),
                        Some(Stuck {
                            waits: Waits::For(ids),
                            ..
                        }),
                    ) => Outcome::NotFilled(ids, error.to_string()),
                    (Err(error), _) => Outcome::Failed(error.to_string()),
                };
                self.settle(vec![((number, row), outcome)]).await;
                for id in filled.judged {
                    self.desk.here(&id);
                }
            }
        }
    }
}

/// What becomes of a row that a room refused.
fn of_error(error: &RoomError) -> Outcome {
    let why = error.to_string();
    match error {
        RoomError::Unresolved(_) => Outcome::Passing(UNRESOLVED_PAUSE, why),
        RoomError::PartialState => Outcome::Passing(PARTIAL_PAUSE, why),
        RoomError::NotInRoom | RoomError::UnknownRoom => Outcome::Dropped(why),
        error if error.is_passing() => Outcome::Passing(OWN_PAUSE, why),
        _ => Outcome::Failed(why),
    }
}

/// The pause after so many attempts.
fn pause_after(attempts: u8) -> Duration {
    let doubled = 2_u32.saturating_pow(u32::from(attempts.saturating_sub(1)));
    SHORTEST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}
