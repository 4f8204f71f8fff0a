//! Events of other servers: judged by their own auth events, by the state before them and by the
//! state of the room, then appended by the same batch as events of our own.
//!
//! Who calls this has checked format, hashes and signatures, and has fetched what the event refers
//! to; what is still missing is answered by name. (Server-server API, "Checks performed on receipt
//! of a PDU".)

use std::{collections::BTreeSet, sync::Arc};

use homeserver_events::{EventStatus, Pdu, RejectReason, SoftFailReason, StatusKind, auth};
use homeserver_storage::{Batch, Durability, Position};
use ruma::OwnedEventId;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::{
    Rooms,
    decide::AuthState,
    delta::Appended,
    edit::{Pending, RoomEdit},
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    judge,
    live::Wants,
    numbers::EventNumber,
    resolving::{Prepared, Roots},
    room::Room,
    rows::{Extremity, StateLogRow},
    tree::StateRoot,
};

/// Times an event is judged before its room counts as contended.
const MAX_JUDGEMENTS: usize = 16;

/// After so many judgements, states are resolved while the tip is held.
const MAX_PREPARED: usize = 8;

/// Forward extremities of a room at most: each costs room in the head, and its state a part of
/// every resolution.
pub(crate) const MAX_EXTREMITIES: usize = 20;

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

/// What an event of another server builds on, as far as it is here.
struct Foundations {
    prev: Vec<Arc<StoredEvent>>,
    auth: Vec<Arc<StoredEvent>>,
}

/// How one attempt ended.
enum Attempt {
    Answered(Received),
    /// The room moved on in the meantime.
    Again,
    /// States have to be resolved first.
    Unresolved {
        roots: Roots,
        /// What of them is not on disk.
        pending: Pending,
    },
}

/// What is here of an event that is received.
enum Known {
    /// Others named it.
    Mentioned(EventNumber),
    /// It was received before, or an import brought it.
    Here(Box<StoredEvent>),
}

impl Rooms {
    /// Judges a received event of a room and stores it. The answer comes when it is on disk;
    /// dropping the future does not take the event back.
    pub async fn receive(
        self: &Arc<Self>,
        room: &Arc<Room>,
        pdu: Pdu,
    ) -> Result<Received, RoomError> {
        if pdu.room_id() != room.id {
            return Err(RoomError::UnknownRoom);
        }
        let (tell, hear) = oneshot::channel();
        let (rooms, room) = (Arc::clone(self), Arc::clone(room));
        self.runtime.tasks.spawn(async move {
            // Whoever asked may be gone.
            let _ = tell.send(rooms.receive_here(&room, pdu).await);
        });
        hear.await.map_err(|_| RoomError::Stopping)?
    }

    async fn receive_here(&self, room: &Arc<Room>, pdu: Pdu) -> Result<Received, RoomError> {
        let live = self.live.room(room.number);
        let mut prepared = Prepared::default();
        for attempt in 0..MAX_JUDGEMENTS {
            prepared.in_place = attempt >= MAX_PREPARED;
            let place = live.queue()?;
            let tried = self.try_receive(room, &pdu, &mut prepared).await?;
            drop(place);
            match tried {
                Attempt::Answered(received) => return Ok(received),
                Attempt::Again => {}
                Attempt::Unresolved { roots, pending } => {
                    let _resolver = live.resolver()?;
                    let resolving = self.prepare_resolution(room, &live, &roots, pending);
                    let resolved = resolving.await?;
                    prepared.add(roots, resolved);
                }
            }
        }
        Err(RoomError::Contended)
    }

    async fn known(&self, room: &Room, pdu: &Pdu) -> Result<Option<Known>, RoomError> {
        let Some(number) = self.events.number(room.number, pdu.event_id()).await? else {
            return Ok(None);
        };
        // Whether it is placed decides whether it is judged again: no matter for a cache.
        let here = self.events.on_disk(room, number).await?;
        let here = here.map(Box::new);
        Ok(Some(here.map_or(Known::Mentioned(number), Known::Here)))
    }

    async fn try_receive(
        &self,
        room: &Arc<Room>,
        pdu: &Pdu,
        prepared: &mut Prepared,
    ) -> Result<Attempt, RoomError> {
        let live = self.live.room(room.number);
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let mut edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        let known = self.known(room, pdu).await?;
        if let Some(Known::Here(event)) = &known
            && event.is_placed()
        {
            return Ok(Attempt::Answered(judged(event, event.position)));
        }
        let foundations = match edit.foundations(pdu).await? {
            Ok(foundations) => foundations,
            Err(missing) => return Ok(Attempt::Answered(missing)),
        };
        let judged_event = edit.judge(pdu, known, foundations, prepared).await?;
        let delta = edit.delta;
        let event = match judged_event {
            Ok(event) => event,
            Err(roots) => {
                let pending = std::mem::take(&mut tip.pending);
                return Ok(Attempt::Unresolved { roots, pending });
            }
        };
        let mut batch = Batch::new();
        delta.write(&mut batch);
        let ticket = self
            .store
            .submit(batch, Durability::Durable)
            .await
            .map_err(not_stored)?;
        let commit = live.submitted(&mut tip, delta.head.clone());
        drop(tip);
        let outcome = ticket.await;
        let deltas = [delta];
        self.remember(&outcome, &deltas);
        commit.settle(outcome.is_ok());
        match outcome {
            Ok(committed) => {
                let shown = event.status.is_shown();
                let position = committed.positions.first().copied().filter(|_| shown);
                Ok(Attempt::Answered(judged(&event, position)))
            }
            Err(homeserver_storage::CommitError::Conflict { .. }) => Ok(Attempt::Again),
            Err(error) => Err(not_stored(error)),
        }
    }
}

/// Forgets the oldest extremities where there are too many. Gives whether there were.
///
/// Their events stay in the room; only, events of this server no longer name them as previous ones.
/// Peers do so, and what they send then joins the branches.
fn bound_extremities(extremities: &mut SmallVec<[Extremity; 1]>) -> bool {
    if extremities.len() <= MAX_EXTREMITIES {
        return false;
    }
    extremities.sort_by_key(|extremity| (extremity.height, extremity.number));
    extremities.drain(..extremities.len() - MAX_EXTREMITIES);
    true
}

fn judged(event: &StoredEvent, position: Option<Position>) -> Received {
    Received::Judged {
        status: event.status.kind(),
        position,
    }
}

impl RoomEdit<'_> {
    /// The events that `pdu` refers to, or the names of those that are not here.
    async fn foundations(&self, pdu: &Pdu) -> Result<Result<Foundations, Received>, RoomError> {
        let (prev, prev_missing) = self.referred(pdu.prev_events()).await?;
        let (auth, auth_missing) = self.referred(pdu.auth_events()).await?;
        // The state after a rejected event is the one before it; only of what has no place in the
        // graph it is not known.
        let unplaced = prev.iter().filter(|event| !event.is_placed());
        let mut missing = prev_missing;
        missing.extend(unplaced.map(|event| event.pdu.event_id().to_owned()));
        if missing.is_empty() && auth_missing.is_empty() {
            return Ok(Ok(Foundations { prev, auth }));
        }
        Ok(Err(Received::Missing {
            prev: missing,
            auth: auth_missing,
        }))
    }

    async fn referred(
        &self,
        ids: &[OwnedEventId],
    ) -> Result<(Vec<Arc<StoredEvent>>, Vec<OwnedEventId>), RoomError> {
        let (mut here, mut missing) = (Vec::new(), Vec::new());
        for id in ids {
            let number = self.rooms.events.number(self.room().number, id).await?;
            let event = match number {
                Some(number) => self.rooms.events.find(self.room(), number).await?,
                None => None,
            };
            match event {
                Some(event) => here.push(event),
                None => missing.push(id.clone()),
            }
        }
        Ok((here, missing))
    }

    /// Judges an event whose foundations are here, and makes it part of the edit; or names states
    /// that have to be resolved first, after which the edit is of no use.
    async fn judge(
        &mut self,
        pdu: &Pdu,
        known: Option<Known>,
        on: Foundations,
        prepared: &mut Prepared,
    ) -> Result<Result<StoredEvent, Roots>, RoomError> {
        let named = known.as_ref().map(|known| match known {
            Known::Mentioned(number) => *number,
            Known::Here(event) => event.number,
        });
        // The same in each attempt: it is part of the states that were resolved.
        let number = match named.or(prepared.number) {
            Some(number) => number,
            None => self.rooms.numbering.new_event().await?,
        };
        prepared.number = Some(number);
        let roots = on.prev.iter().map(|event| event.after);
        let before = match self.resolved(roots, prepared).await? {
            Ok(before) => before,
            Err(roots) => return Ok(Err(roots)),
        };
        let status = self.status(pdu, &on, before).await?;
        let mut event = StoredEvent {
            number,
            room: self.room().number,
            pdu: pdu.clone(),
            status,
            after: before,
            position: None,
            height: on.prev.iter().map(|event| event.height).max().unwrap_or(0) + 1,
            backfill_tie: None,
            auth_height: on
                .auth
                .iter()
                .map(|event| event.auth_height + 1)
                .max()
                .unwrap_or(0),
            auth: on.auth.iter().map(|event| event.number).collect(),
            prev: on.prev.iter().map(|event| event.number).collect(),
            over_gap: false,
            replaces: None,
            redacted_by: None,
            origin: None,
        };
        let rejected = event.status.kind() == StatusKind::Rejected;
        if let (Some((event_type, state_key)), false) = (event.pdu.state_pair(), rejected) {
            let replaced = self.state_in(before, event_type, state_key).await?;
            event.replaces = replaced.map(|event| event.number);
            event.after = self.edit_state(before, &[&event]).await?;
        }
        let mut was_here = false;
        if let Some(Known::Here(known)) = known {
            was_here = true;
            if let Some(redaction) = known.redacted_by {
                self.make_redacted(&mut event, redaction)?;
            }
        }
        let mut appended = Appended::plain(event.clone());
        appended.was_here = was_here;
        appended.shown = event.status.is_shown();
        if appended.shown {
            self.pending.events.insert(number, Arc::new(event.clone()));
            if let Some(roots) = self.follow(&mut appended, prepared).await? {
                return Ok(Err(roots));
            }
            self.note_relation(&mut appended).await?;
            self.note_redaction(&appended).await?;
        }
        self.apply_waiting(&mut appended).await?;
        if appended.shown {
            self.note_count(&mut appended).await?;
        }
        self.delta.head.sequence += 1;
        self.push(appended);
        Ok(Ok(event))
    }

    /// The three judgements, in their order.
    async fn status(
        &self,
        pdu: &Pdu,
        on: &Foundations,
        before: StateRoot,
    ) -> Result<EventStatus<StateRoot>, RoomError> {
        let rules = self.room().rules;
        let rejected = |why| EventStatus::Rejected {
            why,
            partial: false,
        };
        let create = self.event(self.room().create).await?;
        if let Err(why) = judge::by_auth_events(rules, &create, pdu, &on.auth) {
            return Ok(rejected(why));
        }
        if self
            .auth_state_in(before, pdu)
            .await?
            .check(rules, pdu)
            .is_err()
        {
            return Ok(rejected(RejectReason::StateBefore));
        }
        let now = self.delta.head.root;
        if now != before
            && self
                .auth_state_in(now, pdu)
                .await?
                .check(rules, pdu)
                .is_err()
        {
            return Ok(EventStatus::SoftFailed {
                before,
                why: SoftFailReason::CurrentState,
                partial: false,
            });
        }
        Ok(EventStatus::Accepted {
            before,
            partial: false,
        })
    }

    /// Makes an accepted event an extremity and the room's state that of all extremities, or gives
    /// states that have to be resolved first.
    async fn follow(
        &mut self,
        appended: &mut Appended,
        prepared: &Prepared,
    ) -> Result<Option<Roots>, RoomError> {
        let event = &appended.event;
        let reference = event.pdu.reference();
        let reference = reference.map_err(|error| RoomError::damaged(error.to_string()))?;
        let (old, apart) = (self.delta.head.root, self.delta.head.apart);
        let extremities = &mut self.delta.head.extremities;
        extremities.retain(|extremity| !event.prev.contains(&extremity.number));
        extremities.push(Extremity {
            number: event.number,
            id: event.pdu.event_id().to_owned(),
            reference_hash: reference.reference_hash,
            height: event.height,
            depth: event.pdu.depth(),
            after: event.after,
        });
        let roots: Vec<_> = extremities
            .iter()
            .map(|extremity| extremity.after)
            .chain(apart)
            .collect();
        let new = match self.resolved(roots.into_iter(), prepared).await? {
            Ok(new) => new,
            Err(roots) => return Ok(Some(roots)),
        };
        // A peer may follow all that are left, with a state of its own: what was forgotten is not
        // undone by that.
        if bound_extremities(&mut self.delta.head.extremities) || apart.is_some() {
            self.delta.head.apart = Some(new);
        }
        if new != old {
            self.note_members_between(appended, old, new).await?;
            self.delta.head.root = new;
            appended.log = Some(StateLogRow {
                root: new,
                joined: self.delta.head.joined,
                invited: self.delta.head.invited,
            });
        }
        Ok(None)
    }

    /// Notes every membership in which two states of the room differ.
    async fn note_members_between(
        &mut self,
        appended: &mut Appended,
        old: StateRoot,
        new: StateRoot,
    ) -> Result<(), RoomError> {
        let (room, roots) = (self.room().number, (old, new));
        let changes = self
            .rooms
            .states
            .difference(room, &self.pending.nodes, roots)
            .await?;
        for change in changes {
            let key = self.rooms.numbering.key_name(change.key).await?;
            if key.event_type() != "m.room.member" {
                continue;
            }
            let load = async |value: Option<(EventNumber, u64)>| match value {
                Some((number, _)) => self.event(number).await.map(Some),
                None => Ok(None),
            };
            let (before, after) = (load(change.before).await?, load(change.after).await?);
            let (before, after) = (before.as_deref(), after.as_deref());
            self.note_member_change(appended, key.state_key(), before, after)
                .await?;
        }
        Ok(())
    }

    /// The state events of `root` that the rules look at for this event.
    pub(crate) async fn auth_state_in(
        &self,
        root: StateRoot,
        pdu: &Pdu,
    ) -> Result<AuthState, RoomError> {
        let rules = self.room().rules;
        let kinds = auth::auth_types(
            rules,
            pdu.event_type(),
            pdu.sender(),
            pdu.state_key(),
            pdu.content(),
        );
        let wanted: BTreeSet<_> = kinds
            .iter()
            .map(|(event_type, key)| (*event_type, key.as_str()))
            .chain([("m.room.create", "")])
            .collect();
        let mut state = AuthState::default();
        for (event_type, state_key) in wanted {
            if let Some(event) = self.state_in(root, event_type, state_key).await? {
                state.push(event);
            }
        }
        Ok(state)
    }
}
