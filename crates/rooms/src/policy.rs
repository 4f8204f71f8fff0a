//! Which policy server a room uses now, and events of this server that wait for its signature.
//!
//! Specification: server-server API, "Determining if a Policy Server is enabled in a room".

use std::{convert::Infallible, sync::Arc};

use homeserver_events::{Pdu, PolicyServer, StatusKind, policy::POLICY};
use quick_cache::sync::Cache;

use crate::{
    Rooms,
    command::{RoomAction, RoomAnswer, RoomCommand},
    delta::RoomDelta,
    edit::{Pending, RoomEdit},
    error::RoomError,
    execute::Decision,
    live::Wants,
    numbers::{EventNumber, RoomNumber},
    receive::{MadeBy, Received},
    room::Room,
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
        let made = MadeBy {
            origin: command.origin(),
            transaction: key,
        };
        let position = match self.receive_made(&room, event, made).await? {
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
        Ok(RoomAnswer::Sent {
            event: id,
            position,
        })
    }
}

/// An upgrade of a room that uses a policy server, decided and not yet carried out.
pub struct UnsealedUpgrade {
    /// The room that is replaced.
    pub room: Arc<Room>,
    /// What changes in it, signed by this server. Each may be replaced by itself with a signature
    /// more.
    pub events: Vec<Pdu>,
    delta: RoomDelta,
    decision: Decision,
    pending: Pending,
}

impl std::fmt::Debug for UnsealedUpgrade {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("UnsealedUpgrade")
            .field("room", &self.room.id)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl Rooms {
    /// What a command does to a room that uses a policy server, if it replaces that room; `None` of
    /// all other commands, and where there is no such server.
    ///
    /// # Errors
    /// When the room does not allow it.
    pub async fn unsealed_upgrade(
        &self,
        command: &RoomCommand,
    ) -> Result<Option<UnsealedUpgrade>, RoomError> {
        let RoomAction::Upgrade(upgrade) = &command.action else {
            return Ok(None);
        };
        let Some(room) = self.room(&upgrade.room).await? else {
            return Ok(None);
        };
        if self.policy_server(&room).await?.is_none() {
            return Ok(None);
        }
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let mut edit = RoomEdit::new(self, Arc::clone(&room), Some(head), pending);
        let decision = self.decide(&mut edit, command).await;
        let delta = edit.delta;
        // It is of no use for other decisions before this one is carried out.
        let pending = std::mem::take(&mut tip.pending);
        drop(tip);
        let decision = decision?;
        let events = delta.appended.iter();
        let events = events.map(|appended| appended.event.pdu.clone()).collect();
        Ok(Some(UnsealedUpgrade {
            room,
            events,
            delta,
            decision,
            pending,
        }))
    }

    /// Carries out an upgrade whose events were sealed; `None` if the room moved on meanwhile, so
    /// that it has to be decided again.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub async fn append_upgrade(
        self: &Arc<Self>,
        upgrade: UnsealedUpgrade,
    ) -> Result<Option<RoomAnswer>, RoomError> {
        let UnsealedUpgrade {
            room,
            events,
            mut delta,
            decision,
            mut pending,
        } = upgrade;
        for (appended, sealed) in delta.appended.iter_mut().zip(events) {
            let event = &mut appended.event;
            if event.pdu.event_id() != sealed.event_id() {
                return Err(RoomError::NotTheEvent(
                    "another event was sealed".to_owned(),
                ));
            }
            event.pdu = sealed;
            if pending.events.contains_key(&event.number) {
                let event = Arc::new(event.clone());
                pending.events.insert(event.number, event);
            }
        }
        let rooms = Arc::clone(self);
        let carried_out = async move {
            let decided = (delta, decision);
            rooms.submit_later(&room, decided, pending, None).await
        };
        self.runtime.tasks.see_through(carried_out).await
    }
}
