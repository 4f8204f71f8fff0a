//! Events of other servers: judged by their own auth events, by the state before them and by the
//! state of the room, then appended by the same batch as events of our own.
//!
//! Who calls this has checked format, hashes and signatures, and has fetched what the event refers
//! to; what is still missing is answered by name. (Server-server API, "Checks performed on receipt
//! of a PDU".)
//!
//! A batch holds as many events as fit, and batches follow each other without waiting for the disk:
//! each event is built on a tip that is on its way there. An event is answered only when it is on
//! disk. What needs states to be resolved, or rows of the index to be on disk, begins a batch.

pub(crate) mod judging;
mod lacking;
pub(crate) mod lookup;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use homeserver_events::{Pdu, SoftFailReason, StatusKind};
use homeserver_storage::{Batch, CommitError, Committed, Durability, Position, batch::MAX_OPS};
use ruma::OwnedEventId;
use tokio::sync::oneshot;

use self::{
    judging::{Hands, Taken, Told},
    lookup::Ids,
};
use crate::{
    Rooms,
    delta::RoomDelta,
    edit::RoomEdit,
    error::RoomError,
    execute::not_stored,
    live::{LiveRoom, Tip, Wants},
    numbers::EventNumber,
    resolving::{Prepared, Roots},
    room::Room,
    rows::{Effect, Origin, TransactionRow},
    transactions::TransactionDigest,
};

/// Times an event is judged before its room counts as contended.
pub(crate) const MAX_JUDGEMENTS: usize = 16;

/// After so many judgements, states are resolved while the tip is held.
pub(crate) const MAX_PREPARED: usize = 8;

/// Operations left for the rest of a batch when it takes another event, with all whom it mentions.
const ROOM_FOR_ONE: usize = 260;

/// Bytes at which a batch takes no more events.
const FULL: usize = 2_000_000;

/// Batches on their way at once.
const ON_THEIR_WAY: usize = 8;

/// Events whose references are looked up in one go: as many as a batch may hold.
const AHEAD: usize = 120;

/// An event of another server, with what was found out about it outside of its room.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The event.
    pub pdu: Pdu,
    /// Why it is soft-failed although the rules allow it: a policy server or a hook refused it.
    pub refused: Option<SoftFailReason>,
}

impl From<Pdu> for Incoming {
    fn from(pdu: Pdu) -> Self {
        Self { pdu, refused: None }
    }
}

/// What an event of this server that is received like one of another was made by.
#[derive(Debug, Default)]
pub(crate) struct MadeBy {
    /// The device and transaction id, as the event remembers them.
    pub(crate) origin: Option<Origin>,
    /// The transaction.
    pub(crate) transaction: Option<TransactionDigest>,
}

/// What is done about previous events that are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lacking {
    /// They are named, and nothing is judged without them.
    Named,
    /// In a room of partial state they are left out.
    LeftOut,
}

/// What became of a received event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was judged, now or before.
    Judged {
        /// What it was found to be.
        status: StatusKind,
        /// Where it arrived, if it is shown.
        position: Option<Position>,
    },
    /// It refers to events that are not here. Nothing was stored.
    Missing {
        /// Previous events.
        prev: Vec<OwnedEventId>,
        /// Auth events.
        auth: Vec<OwnedEventId>,
    },
}

/// The outcome of a batch, told when it is known.
pub(crate) type Outcome = oneshot::Receiver<Result<Committed, CommitError>>;

impl Rooms {
    /// Judges a received event of a room and stores it. The answer comes when it is on disk;
    /// dropping the future does not take the event back.
    pub async fn receive(
        self: &Arc<Self>,
        room: &Arc<Room>,
        pdu: Pdu,
    ) -> Result<Received, RoomError> {
        self.receive_made(room, pdu, MadeBy::default()).await
    }

    /// Judges an event of a room that was made by a request to this server, like one that was
    /// received. If it is accepted, what it was made by is stored with it.
    pub(crate) async fn receive_made(
        self: &Arc<Self>,
        room: &Arc<Room>,
        pdu: Pdu,
        made: MadeBy,
    ) -> Result<Received, RoomError> {
        let how = (made, Lacking::Named);
        let mut answers = self.receive_some(room, vec![pdu.into()], how).await;
        answers.pop().unwrap_or(Err(RoomError::Stopping))
    }

    /// Judges received events of a room in their order, each after those of them that it refers to,
    /// and stores them in as few batches as they fit into. The answers, one for each, come when all
    /// are on disk; dropping the future does not take the events back.
    pub async fn receive_all(
        self: &Arc<Self>,
        room: &Arc<Room>,
        events: Vec<Incoming>,
    ) -> Vec<Result<Received, RoomError>> {
        let how = (MadeBy::default(), Lacking::Named);
        self.receive_some(room, events, how).await
    }

    /// Like [`Rooms::receive_all`], where a room is of partial state: previous events that are not
    /// here are left out, and what follows them is judged by the state before the join, resolved with
    /// the states after those that are here. It is judged again when the room is whole. What this
    /// does not allow is not judged yet.
    pub async fn receive_beside_join(
        self: &Arc<Self>,
        room: &Arc<Room>,
        events: Vec<Incoming>,
    ) -> Vec<Result<Received, RoomError>> {
        let how = (MadeBy::default(), Lacking::LeftOut);
        self.receive_some(room, events, how).await
    }

    async fn receive_some(
        self: &Arc<Self>,
        room: &Arc<Room>,
        events: Vec<Incoming>,
        (made, lacking): (MadeBy, Lacking),
    ) -> Vec<Result<Received, RoomError>> {
        let count = events.len();
        let (tell, hear) = oneshot::channel();
        let (rooms, room) = (Arc::clone(self), Arc::clone(room));
        self.runtime.tasks.spawn(async move {
            let mut receiving = Receiving::new(&rooms, &room, events);
            (receiving.made, receiving.lacking) = (made, lacking);
            receiving.run().await;
            // Whoever asked may be gone.
            let _ = tell.send(receiving.answers());
        });
        let stopping = |_| (0..count).map(|_| Err(RoomError::Stopping)).collect();
        hear.await.unwrap_or_else(stopping)
    }

    /// Submits what an edit of the tip wrote. It is remembered and settled by a task of its own, so
    /// that a decision that waits for it never waits for whoever asked.
    pub(crate) async fn send_off(
        self: &Arc<Self>,
        live: &Arc<LiveRoom>,
        tip: &mut Tip,
        delta: RoomDelta,
    ) -> Result<Outcome, RoomError> {
        let mut batch = Batch::new();
        delta.write(&mut batch);
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let commit = live.submitted(tip, delta.head.clone());
        let (tell, hear) = oneshot::channel();
        let rooms = Arc::clone(self);
        self.runtime.tasks.spawn(async move {
            let outcome = ticket.await;
            rooms.remember(&outcome, std::slice::from_ref(&delta));
            commit.settle(outcome.is_ok());
            // Whoever asked may be gone.
            let _ = tell.send(outcome);
        });
        Ok(hear)
    }
}

/// Where one of the events stands.
enum Stand {
    /// To be judged, for the time after so many times.
    Waiting(usize),
    /// Its batch is on its way.
    Sent(usize),
    Answered(Result<Received, RoomError>),
}

/// An event of a batch.
struct Judged {
    index: usize,
    status: StatusKind,
    /// Positions that its batch gives it; the first is where it arrived.
    positions: usize,
}

/// A batch on its way.
struct Sent {
    /// It leaves indexes of members to be written.
    debts: bool,
    judged: Vec<Judged>,
    outcome: Outcome,
}

/// Why a batch takes no more events.
enum Stop {
    /// It is full, or there are no more.
    Full,
    /// The next event looks at what has to be on disk.
    NeedsSettled,
    /// States have to be resolved for the next event.
    Unresolved(Roots),
    /// An event could not be judged: the batch is of no use.
    Failed(usize, RoomError),
}

/// Receiving some events of one room.
struct Receiving<'a> {
    rooms: &'a Arc<Rooms>,
    room: &'a Arc<Room>,
    live: Arc<LiveRoom>,
    events: Vec<Incoming>,
    stands: Vec<Stand>,
    /// Numbers that events get if they have none: the same in each attempt, since they are part of
    /// the states that are resolved.
    numbers: Vec<Option<EventNumber>>,
    ids: Ids,
    sent: VecDeque<Sent>,
    /// Nothing before this waits.
    cursor: usize,
    /// The next batch is built on what is on disk.
    settled: bool,
    prepared: Prepared,
    /// Resolutions made for the event that is next.
    resolved: usize,
    /// What the first event was made by.
    made: MadeBy,
    lacking: Lacking,
}

impl<'a> Receiving<'a> {
    fn new(rooms: &'a Arc<Rooms>, room: &'a Arc<Room>, events: Vec<Incoming>) -> Self {
        let stand = |event: &Incoming| {
            if event.pdu.room_id() == room.id {
                Stand::Waiting(0)
            } else {
                Stand::Answered(Err(RoomError::UnknownRoom))
            }
        };
        Self {
            rooms,
            room,
            live: rooms.live.room(room.number),
            stands: events.iter().map(stand).collect(),
            numbers: vec![None; events.len()],
            events,
            ids: HashMap::new(),
            sent: VecDeque::new(),
            cursor: 0,
            settled: true,
            prepared: Prepared::default(),
            resolved: 0,
            made: MadeBy::default(),
            lacking: Lacking::Named,
        }
    }

    fn answers(self) -> Vec<Result<Received, RoomError>> {
        let answer = |stand| match stand {
            Stand::Answered(answer) => answer,
            Stand::Waiting(_) | Stand::Sent(_) => Err(RoomError::Stopping),
        };
        self.stands.into_iter().map(answer).collect()
    }

    async fn run(&mut self) {
        match self.rooms.is_resident(self.room).await {
            Ok(true) => {}
            Ok(false) => return self.refuse_all(|| RoomError::NotInRoom),
            Err(_) => return self.refuse_all(|| RoomError::Busy),
        }
        loop {
            while let Some(at) = self.next_waiting() {
                if let Err(error) = self.step(at).await {
                    self.answer(at, Err(error));
                }
                if self.sent.len() >= ON_THEIR_WAY {
                    self.collect().await;
                }
            }
            if self.sent.is_empty() {
                return;
            }
            while !self.sent.is_empty() {
                self.collect().await;
            }
        }
    }

    fn refuse_all(&mut self, why: impl Fn() -> RoomError) {
        for stand in &mut self.stands {
            if matches!(stand, Stand::Waiting(_)) {
                *stand = Stand::Answered(Err(why()));
            }
        }
    }

    fn next_waiting(&mut self) -> Option<usize> {
        let rest = self.stands.get(self.cursor..)?;
        let is_waiting = |stand: &Stand| matches!(stand, Stand::Waiting(_));
        self.cursor += rest.iter().position(is_waiting)?;
        Some(self.cursor)
    }

    fn answer(&mut self, at: usize, answer: Result<Received, RoomError>) {
        if let Err(RoomError::Unresolved(limit)) = &answer {
            let event = self.events[at].pdu.event_id();
            let now = self.rooms.clock.unix_millis();
            let resolutions = &self.rooms.resolutions;
            resolutions.give_up(self.room.number, event, limit, now);
        }
        self.stands[at] = Stand::Answered(answer);
    }

    /// One batch, or a preparation for it.
    async fn step(&mut self, at: usize) -> Result<(), RoomError> {
        let live = Arc::clone(&self.live);
        let place = live.queue()?;
        let wants = if self.settled {
            Wants::Settled
        } else {
            Wants::Newest
        };
        let mut tip = live.tip(&self.rooms.store, wants).await?;
        let (head, pending) = tip.parts();
        let mut edit = RoomEdit::new(self.rooms, Arc::clone(self.room), Some(head), pending);
        let (judged, stop) = self.fill(&mut edit, at).await;
        let delta = edit.delta;
        if let Stop::Failed(index, error) = stop {
            tip.spoil();
            self.answer(index, Err(error));
            return Ok(());
        }
        if !judged.is_empty() {
            let debts = delta.appended.iter().any(|event| event.debt.is_some());
            let outcome = self.rooms.send_off(&live, &mut tip, delta).await;
            let outcome = outcome.inspect_err(|_| tip.spoil())?;
            for Judged { index, .. } in &judged {
                if let Stand::Waiting(times) = self.stands[*index] {
                    self.stands[*index] = Stand::Sent(times);
                }
            }
            self.sent.push_back(Sent {
                debts,
                judged,
                outcome,
            });
            self.settled = !matches!(stop, Stop::Full);
            if self.settled {
                tip.spoil();
            }
            self.resolved = 0;
            return Ok(());
        }
        tip.spoil();
        match stop {
            Stop::Unresolved(roots) if self.settled => {
                let pending = std::mem::take(&mut tip.pending);
                drop((tip, place));
                if self.resolved >= MAX_JUDGEMENTS {
                    return Err(RoomError::Contended);
                }
                self.resolved += 1;
                self.prepared.in_place = self.resolved >= MAX_PREPARED;
                let _resolver = live.resolver()?;
                let rooms = self.rooms;
                let resolved = rooms.prepare_resolution(self.room, &live, &roots, pending);
                let resolved = resolved.await?;
                self.prepared.add(roots, resolved);
            }
            Stop::Unresolved(_) | Stop::NeedsSettled => self.settled = true,
            Stop::Full | Stop::Failed(..) => {}
        }
        Ok(())
    }

    /// Judges events from one on while they fit into one batch.
    async fn fill(&mut self, edit: &mut RoomEdit<'_>, at: usize) -> (Vec<Judged>, Stop) {
        let mut judged = Vec::new();
        let followed = match self.rooms.followed_over_gaps(self.room).await {
            Ok(followed) => followed,
            Err(error) => return (judged, Stop::Failed(at, error)),
        };
        let gap = match self.left_out(edit).await {
            Ok(gap) => gap,
            Err(error) => return (judged, Stop::Failed(at, error)),
        };
        let mut looked_up = at;
        for index in at..self.events.len() {
            if !matches!(self.stands[index], Stand::Waiting(_)) {
                continue;
            }
            let (operations, bytes) = edit.delta.size();
            if operations + ROOM_FOR_ONE > MAX_OPS || bytes > FULL {
                return (judged, Stop::Full);
            }
            if index >= looked_up {
                looked_up = (index + AHEAD).min(self.events.len());
                let some = &self.events[index..looked_up];
                if let Err(error) = edit.look_up(some, &mut self.ids).await {
                    return (judged, Stop::Failed(index, error));
                }
            }
            if let Some(limit) = self.gave_up(index) {
                self.stands[index] = Stand::Answered(Err(RoomError::Unresolved(limit)));
                continue;
            }
            let hands = Hands {
                ids: &self.ids,
                number: &mut self.numbers[index],
                prepared: &self.prepared,
                followed: &followed,
                settled: self.settled && judged.is_empty(),
                gap,
                origin: self.made.origin.clone().filter(|_| index == 0),
            };
            match edit.take_received(&self.events[index], hands).await {
                Ok(Taken::Judged(status, positions)) => {
                    let shown =
                        matches!(status, StatusKind::Accepted | StatusKind::PartialAccepted);
                    if index == 0 && shown {
                        edit.delta.transaction = self.transaction();
                    }
                    judged.push(Judged {
                        index,
                        status,
                        positions,
                    });
                }
                Ok(Taken::Answered(received)) => self.answer(index, Ok(received)),
                Ok(Taken::NeedsSettled) => return (judged, Stop::NeedsSettled),
                Ok(Taken::Unresolved(roots)) => return (judged, Stop::Unresolved(roots)),
                Err(error) => return (judged, Stop::Failed(index, error)),
            }
        }
        (judged, Stop::Full)
    }

    /// The state by which events are judged whose previous ones are left out.
    async fn left_out(&self, edit: &RoomEdit<'_>) -> Result<Option<Told>, RoomError> {
        let root = match self.lacking {
            Lacking::Named => None,
            Lacking::LeftOut => edit.state_before_join().await?,
        };
        Ok(root.map(|root| Told {
            root,
            whole: true,
            doubted: true,
        }))
    }

    /// The transaction that made the first event, with its effect.
    fn transaction(&self) -> Option<(TransactionDigest, TransactionRow)> {
        let event = self.events.first()?.pdu.event_id().to_owned();
        let row = TransactionRow {
            time: self.rooms.clock.unix_millis(),
            effect: Effect::Sent(event),
        };
        Some((self.made.transaction?, row))
    }

    /// The limit for which this event could not be judged of late.
    fn gave_up(&self, at: usize) -> Option<String> {
        let event = self.events[at].pdu.event_id();
        let now = self.rooms.clock.unix_millis();
        let resolutions = &self.rooms.resolutions;
        resolutions.gave_up(self.room.number, event, now)
    }

    /// Waits for the batch that was sent first. If it met another writer, so did all after it.
    async fn collect(&mut self) {
        let Some(sent) = self.sent.pop_front() else {
            return;
        };
        let (judged, debts) = (sent.judged, sent.debts);
        match sent.outcome.await {
            Ok(Ok(committed)) => {
                if debts && let Err(error) = self.rooms.pay_debts_of(self.room).await {
                    // The next sweep does it.
                    tracing::warn!(%error, room = %self.room.id, "indexes of members are left");
                }
                let mut positions = committed.positions.iter().copied();
                for event in judged {
                    let mut own = positions.by_ref().take(event.positions);
                    let position = own.next();
                    own.for_each(drop);
                    let received = Received::Judged {
                        status: event.status,
                        position,
                    };
                    self.answer(event.index, Ok(received));
                }
            }
            Ok(Err(CommitError::Conflict { .. })) => {
                self.settled = true;
                for Judged { index, .. } in judged {
                    self.cursor = self.cursor.min(index);
                    self.stands[index] = match self.stands[index] {
                        Stand::Sent(times) if times < MAX_JUDGEMENTS => Stand::Waiting(times + 1),
                        _ => Stand::Answered(Err(RoomError::Contended)),
                    };
                }
            }
            Ok(Err(error)) => {
                for Judged { index, .. } in judged {
                    self.answer(index, Err(not_stored(error.clone())));
                }
            }
            Err(_) => {
                for Judged { index, .. } in judged {
                    self.answer(index, Err(RoomError::Stopping));
                }
            }
        }
    }
}
