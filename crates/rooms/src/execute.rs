//! Carrying out commands: decide on the tip, submit one batch, answer when it is on disk.

use std::sync::Arc;

use homeserver_storage::{At, Batch, CommitError, Committed, Durability, Positioned, Ticket};
use tokio::sync::MutexGuard;

use crate::{
    Rooms,
    command::{NewEvent, RoomAction, RoomAnswer, RoomCommand},
    delta::RoomDelta,
    edit::{Pending, RoomEdit, declared_in},
    error::RoomError,
    live::{Basis, LiveRoom, Tip, Wants},
    room::Room,
    rowchange::RowChange,
    rows::{Effect, TransactionRow},
    tables::TRANSACTIONS,
    transactions::{TransactionDigest, transaction_digest},
};

/// Times a command is decided before its room counts as contended.
const MAX_DECISIONS: usize = 16;

/// What was decided about a command, beside the delta of its room.
pub(crate) struct Decision {
    pub(crate) effect: Effect,
    /// Changes of other rooms, in the same batch: new rooms only.
    pub(crate) beside: Vec<RoomDelta>,
    /// Rows that are no events.
    pub(crate) rows: Vec<RowChange>,
}

impl From<Effect> for Decision {
    fn from(effect: Effect) -> Self {
        Self {
            effect,
            beside: Vec::new(),
            rows: Vec::new(),
        }
    }
}

/// A batch with what has to be known once it is committed.
struct Prepared {
    batch: Batch,
    /// All deltas in the batch, in the order of their appends.
    deltas: Vec<RoomDelta>,
    effect: Effect,
}

/// How one attempt ended.
enum Attempt {
    Answered(RoomAnswer),
    /// The room moved on in the meantime.
    Again,
}

impl Rooms {
    /// Carries out a command. The answer comes when the effect is on disk; dropping the future
    /// does not take the command back. While it is kept without being polled, the room may wait for
    /// it.
    pub async fn execute(self: &Arc<Self>, command: RoomCommand) -> Result<RoomAnswer, RoomError> {
        let rooms = Arc::clone(self);
        let carried_out = async move { rooms.once(command).await };
        self.runtime.tasks.see_through(carried_out).await
    }

    /// Carries out a command at most once for its transaction.
    async fn once(&self, command: RoomCommand) -> Result<RoomAnswer, RoomError> {
        let Some(key) = transaction_digest(&command) else {
            return self.perform(&command, None).await;
        };
        let _turn = self.underway.turn(key).await;
        match self.past_answer(key).await? {
            Some(answer) => Ok(answer),
            None => self.perform(&command, Some(key)).await,
        }
    }

    async fn perform(
        &self,
        command: &RoomCommand,
        transaction: Option<TransactionDigest>,
    ) -> Result<RoomAnswer, RoomError> {
        let room = self.room_of(&command.action).await?;
        for attempt in 0..MAX_DECISIONS {
            if let (true, Some(key)) = (attempt > 0, transaction)
                && let Some(answer) = self.past_answer(key).await?
            {
                return Ok(answer);
            }
            let tried = match &room {
                Some(room) => self.attempt(room, command, transaction).await?,
                None => self.attempt_create(command, transaction).await?,
            };
            if let Attempt::Answered(answer) = tried {
                return Ok(answer);
            }
        }
        Err(RoomError::Contended)
    }

    /// The room in whose order a command is decided; `None` for a room to be made.
    async fn room_of(&self, action: &RoomAction) -> Result<Option<Arc<Room>>, RoomError> {
        let id = match action {
            RoomAction::Create(_) => return Ok(None),
            RoomAction::DeleteAlias { alias, .. } => {
                let target = self.alias(alias).await?.ok_or(RoomError::UnknownAlias)?;
                return Ok(Some(target.room));
            }
            RoomAction::Send { room, .. }
            | RoomAction::Redact { room, .. }
            | RoomAction::Membership { room, .. }
            | RoomAction::Forget { room }
            | RoomAction::SetAlias { room, .. }
            | RoomAction::SetDirectoryVisibility { room, .. } => room,
            RoomAction::Upgrade(upgrade) => &upgrade.room,
        };
        let room = self.room(id).await?;
        room.map(Some).ok_or(RoomError::UnknownRoom)
    }

    async fn attempt(
        &self,
        room: &Arc<Room>,
        command: &RoomCommand,
        transaction: Option<TransactionDigest>,
    ) -> Result<Attempt, RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, wants(&command.action)).await?;
        let basis = live.basis(&tip);
        let (head, pending) = tip.parts();
        let mut edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        let decided = self.decide(&mut edit, command).await;
        let delta = edit.delta;
        let decision = match decided {
            Ok(decision) => decision,
            Err(error) => {
                drop(tip);
                // A refusal counts only if what it was built on is true.
                return if live.stands(&self.store, basis).await {
                    Err(error)
                } else {
                    Ok(Attempt::Again)
                };
            }
        };
        self.submit(&live, (tip, basis), (delta, decision), transaction)
            .await
    }

    /// Writes what was decided on a tip that is held since.
    async fn submit(
        &self,
        live: &Arc<LiveRoom>,
        (mut tip, basis): (MutexGuard<'_, Tip>, Basis),
        (delta, decision): (RoomDelta, Decision),
        transaction: Option<TransactionDigest>,
    ) -> Result<Attempt, RoomError> {
        let head = delta.head.clone();
        let prepared = self.prepare(Some(delta), decision, transaction);
        if prepared.batch.is_empty() {
            drop(tip);
            return Ok(if live.stands(&self.store, basis).await {
                Attempt::Answered(prepared.effect.answer(0))
            } else {
                Attempt::Again
            });
        }
        let Prepared {
            batch,
            deltas,
            effect,
        } = prepared;
        let ticket = match self.store.submit(batch, Durability::Durable).await {
            Ok(ticket) => ticket,
            Err(error) => return Err(not_stored(error)),
        };
        let commit = live.submitted(&mut tip, head);
        drop(tip);
        let outcome = ticket.await;
        self.remember(&outcome, &deltas);
        commit.settle(outcome.is_ok());
        Self::conclude(outcome, &deltas, effect)
    }

    /// Writes what was decided about a command a while ago, once for its transaction, unless the room
    /// moved on since: `None` then.
    pub(crate) async fn submit_later(
        &self,
        room: &Arc<Room>,
        (delta, decision): (RoomDelta, Decision),
        pending: Pending,
        transaction: Option<TransactionDigest>,
    ) -> Result<Option<RoomAnswer>, RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        if tip.head() != delta.seen {
            return Ok(None);
        }
        tip.pending = pending;
        let basis = live.basis(&tip);
        let held = (tip, basis);
        match self
            .submit(&live, held, (delta, decision), transaction)
            .await?
        {
            Attempt::Answered(answer) => Ok(Some(answer)),
            Attempt::Again => Ok(None),
        }
    }

    async fn attempt_create(
        &self,
        command: &RoomCommand,
        transaction: Option<TransactionDigest>,
    ) -> Result<Attempt, RoomError> {
        let RoomAction::Create(create) = &command.action else {
            return Err(RoomError::UnknownRoom);
        };
        let decision = self.decide_create(&command.sender, create).await?;
        let Prepared {
            batch,
            deltas,
            effect,
        } = self.prepare(None, decision, transaction);
        let ticket: Ticket = match self.store.submit(batch, Durability::Durable).await {
            Ok(ticket) => ticket,
            Err(error) => return Err(not_stored(error)),
        };
        let outcome = ticket.await;
        self.remember(&outcome, &deltas);
        Self::conclude(outcome, &deltas, effect)
    }

    /// Makes one batch of everything that was decided.
    fn prepare(
        &self,
        delta: Option<RoomDelta>,
        decision: Decision,
        transaction: Option<TransactionDigest>,
    ) -> Prepared {
        let mut batch = Batch::new();
        let changed = delta.filter(|delta| !delta.is_empty());
        let deltas: Vec<_> = decision.beside.into_iter().chain(changed).collect();
        let appends: Vec<_> = deltas
            .iter()
            .flat_map(|delta| delta.write(&mut batch))
            .collect();
        for row in &decision.rows {
            row.write(&mut batch);
        }
        if let Some(key) = transaction {
            let position = appends
                .last()
                .map_or(At::Known(0), |append| At::Append(*append));
            let value = TransactionRow {
                time: self.clock.unix_millis(),
                effect: decision.effect.clone(),
            };
            batch.assert_absent(&TRANSACTIONS, &key);
            batch.put(&TRANSACTIONS, &key, &Positioned { position, value });
        }
        Prepared {
            batch,
            deltas,
            effect: decision.effect,
        }
    }

    /// Caches what a commit made, and forgets what it made untrue.
    pub(crate) fn remember(&self, outcome: &Result<Committed, CommitError>, deltas: &[RoomDelta]) {
        self.remember_events(outcome, deltas);
        // After the events, and whatever the outcome: one that is unknown may be found done later.
        for delta in deltas.iter().filter(|delta| delta.changes_resolutions()) {
            self.resolutions.forget(delta.room.number);
        }
    }

    fn remember_events(&self, outcome: &Result<Committed, CommitError>, deltas: &[RoomDelta]) {
        let Ok(committed) = outcome else { return };
        let mut positions = committed.positions.iter().copied();
        for delta in deltas {
            for event in delta.committed(&mut positions) {
                self.events.committed(Arc::new(event));
            }
            let rewritten: Vec<_> = delta.written_anew().map(|event| event.number).collect();
            if !rewritten.is_empty() {
                self.events.rewritten(delta.room.number, &rewritten);
            }
        }
    }

    fn conclude(
        outcome: Result<Committed, CommitError>,
        deltas: &[RoomDelta],
        effect: Effect,
    ) -> Result<Attempt, RoomError> {
        match outcome {
            Ok(committed) => {
                let shown = deltas.iter().any(|delta| !delta.appended.is_empty());
                let position = committed.positions.last().copied().filter(|_| shown);
                Ok(Attempt::Answered(effect.answer(position.unwrap_or(0))))
            }
            Err(CommitError::Conflict { .. }) => Ok(Attempt::Again),
            Err(error) => Err(not_stored(error)),
        }
    }
}

/// Decisions that read indexes need them to be on disk.
fn wants(action: &RoomAction) -> Wants {
    match action {
        RoomAction::Send { event, .. } => wants_for(event),
        _ => Wants::Settled,
    }
}

/// Which tip an event is decided on.
pub(crate) fn wants_for(event: &NewEvent) -> Wants {
    let reads_indexes = matches!(
        event.event_type.as_str(),
        "m.room.member" | "m.room.redaction" | "m.reaction"
    );
    // The thread of an event that relates to another is found through that other event.
    let relation = declared_in(event.content.get());
    let relates = relation.is_some_and(|relation| relation.rel_type != "m.thread");
    if reads_indexes || relates || event.state_key.is_some() {
        Wants::Settled
    } else {
        Wants::Newest
    }
}

pub(crate) fn not_stored(error: CommitError) -> RoomError {
    match error {
        CommitError::TooLarge(error) => RoomError::TooLarge(error.to_string()),
        error => RoomError::NotStored(error),
    }
}
