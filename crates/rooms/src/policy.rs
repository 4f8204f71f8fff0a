//! Which policy server a room uses now, and events of this server that wait for its signature.
//!
//! Specification: server-server API, "Determining if a Policy Server is enabled in a room".

use std::{convert::Infallible, sync::Arc};

use homeserver_events::{Pdu, PolicyServer, StatusKind, policy::POLICY};
use homeserver_storage::{Batch, Positioned};
use quick_cache::sync::Cache;

use crate::{
    Rooms,
    command::{RoomAction, RoomAnswer, RoomCommand},
    edit::RoomEdit,
    error::RoomError,
    live::Wants,
    numbers::{EventNumber, RoomNumber},
    receive::Received,
    room::Room,
    rows::{Effect, TransactionRow},
    tables::TRANSACTIONS,
    transactions::transaction_digest,
};

/// Policies that are kept at hand.
const POLICIES_AT_HAND: usize = 500;

/// The event that names one, with the redaction that emptied it.
type Stated = (RoomNumber, EventNumber, Option<EventNumber>);

/// Policies of late, read.
pub(crate) struct Policies {
    read: Cache<Stated, Option<Arc<PolicyServer>>>,
}

impl Policies {
    pub(crate) fn new() -> Self {
        Self {
            read: Cache::new(POLICIES_AT_HAND),
        }
    }
}

impl Rooms {
    /// The policy server that a room uses now: the one that its state names, if one of its users is
    /// joined.
    pub async fn policy_server(&self, room: &Room) -> Result<Option<Arc<PolicyServer>>, RoomError> {
        let now = self.durable();
        let root = self.state_at(room.number, now).await?.root;
        let Some(event) = self.state_event(room, root, POLICY, "").await? else {
            return Ok(None);
        };
        let stated = (room.number, event.number, event.redacted_by);
        let read = || Ok(PolicyServer::from_content(event.pdu.content_str()).map(Arc::new));
        let policy: Result<_, Infallible> = self.policies.read.get_or_insert_with(&stated, read);
        let policy = match policy {
            Ok(policy) => policy,
            Err(never) => match never {},
        };
        match policy {
            Some(policy) if self.server_joined(room, policy.via(), now).await? => Ok(Some(policy)),
            _ => Ok(None),
        }
    }
}

/// An event of this server that its room's policy server is asked about before it is sent.
#[derive(Clone, Debug)]
pub struct Unsealed {
    /// The room.
    pub room: Arc<Room>,
    /// The event, signed by this server, and in no room yet.
    pub event: Pdu,
}

impl Rooms {
    /// The event by which a command changes a room that uses a policy server. `None` of commands
    /// that are simply carried out: where there is no such server, where the command changes
    /// nothing, and where it was carried out before.
    ///
    /// # Errors
    /// When the room does not allow it.
    pub async fn unsealed(&self, command: &RoomCommand) -> Result<Option<Unsealed>, RoomError> {
        let (RoomAction::Send { room, .. }
        | RoomAction::Redact { room, .. }
        | RoomAction::Membership { room, .. }) = &command.action
        else {
            return Ok(None);
        };
        // Whoever carries it out finds out that there is no such room.
        let Some(room) = self.room(room).await? else {
            return Ok(None);
        };
        if self.policy_server(&room).await?.is_none() {
            return Ok(None);
        }
        if let Some(key) = transaction_digest(command)
            && self.past_answer(key).await?.is_some()
        {
            return Ok(None);
        }
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let mut edit = RoomEdit::new(self, Arc::clone(&room), Some(head), pending);
        self.decide(&mut edit, command).await?;
        let event = edit.delta.appended.first();
        let event = event.map(|appended| appended.event.pdu.clone());
        // What was decided is thrown away, and with it what was noted for later decisions.
        tip.pending.clear();
        drop(tip);
        let event = event.filter(PolicyServer::judges);
        Ok(event.map(|event| Unsealed { room, event }))
    }

    /// Carries out a command by the event that [`Rooms::unsealed`] gave for it, sealed since. The
    /// event stays as it is: if the room moved on meanwhile, it stands beside what came.
    ///
    /// # Errors
    /// When the room does not allow it any more.
    pub async fn append_sealed(
        self: &Arc<Self>,
        command: RoomCommand,
        sealed: Unsealed,
    ) -> Result<RoomAnswer, RoomError> {
        let rooms = Arc::clone(self);
        let appended = async move { rooms.append_once(&command, sealed).await };
        self.runtime.tasks.see_through(appended).await
    }

    async fn append_once(
        self: &Arc<Self>,
        command: &RoomCommand,
        Unsealed { room, event }: Unsealed,
    ) -> Result<RoomAnswer, RoomError> {
        let key = transaction_digest(command);
        let _turn = match key {
            Some(key) => Some(self.underway.turn(key).await),
            None => None,
        };
        if let Some(key) = key
            && let Some(answer) = self.past_answer(key).await?
        {
            return Ok(answer);
        }
        let id = event.event_id().to_owned();
        let position = match self.receive(&room, event).await? {
            Received::Judged {
                status: StatusKind::Accepted | StatusKind::PartialAccepted,
                position,
            } => position.unwrap_or_default(),
            _ => {
                return Err(RoomError::forbidden(
                    "the room does not allow this any more",
                ));
            }
        };
        if let Some(key) = key {
            let value = TransactionRow {
                time: self.clock.unix_millis(),
                effect: Effect::Sent(id.clone()),
            };
            let mut batch = Batch::new();
            batch.assert_absent(&TRANSACTIONS, &key);
            batch.put(&TRANSACTIONS, &key, &Positioned::new(position, value));
            // The event is there: that a repetition would not be known is no reason to say it is not.
            if let Err(error) = self.store.commit(batch).await {
                tracing::warn!(%error, "a transaction id is not kept");
            }
        }
        Ok(RoomAnswer::Sent {
            event: id,
            position,
        })
    }
}
