//! Judging one received event, and what it does to the tip.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use homeserver_events::{EventStatus, Pdu, RejectReason, SoftFailReason, StatusKind, auth};
use ruma::OwnedEventId;
use smallvec::SmallVec;

use super::{
    Incoming, Received,
    lookup::{Foundations, Ids, Known},
};
use crate::{
    decide::AuthState,
    delta::{Appended, Was},
    edit::{RoomEdit, member::count},
    error::RoomError,
    event::StoredEvent,
    judge,
    numbering::StateKey,
    numbers::EventNumber,
    resolving::{Prepared, Roots},
    rows::{Extremity, Origin, StateLogRow},
    tree::{Difference, StateRoot},
    visible::membership_of,
};

/// Forward extremities of a room at most: each costs room in the head, and its state a part of
/// every resolution.
pub(crate) const MAX_EXTREMITIES: usize = 20;

/// Memberships that the batch of an event changes at most. Where two branches differ in more of
/// them, their indexes are written afterwards: see `debts`.
pub(crate) const MAX_MEMBERS: usize = 30;

/// Members whose events are loaded in one go.
const MEMBERS_AT_ONCE: usize = 200;

/// What judging an event is given.
pub(crate) struct Hands<'a> {
    /// Numbers that were looked up.
    pub(crate) ids: &'a Ids,
    /// The number that the event gets if it has none.
    pub(crate) number: &'a mut Option<EventNumber>,
    pub(crate) prepared: &'a Prepared,
    /// Events that others which are here follow, over a gap.
    pub(crate) followed: &'a HashSet<OwnedEventId>,
    /// The edit is empty, and all before it is on disk.
    pub(crate) settled: bool,
    /// The state before the event as another server told it: where previous ones are missing.
    pub(crate) gap: Option<Told>,
    /// The request that made it, of an event of this server.
    pub(crate) origin: Option<Origin>,
}

/// A state that another server told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) root: StateRoot,
    /// All of it is here.
    pub(crate) whole: bool,
    /// It may be a lie: it does not get an event rejected for good.
    pub(crate) doubted: bool,
}

/// How an attempt to judge an event ended.
pub(crate) enum Taken {
    /// It is part of the edit: as what, and how many positions it gets.
    Judged(StatusKind, usize),
    /// Nothing is to be written.
    Answered(Received),
    /// It looks at what has to be on disk.
    NeedsSettled,
    /// States have to be resolved first.
    Unresolved(Roots),
}

/// The tip with another event.
struct NewTip {
    extremities: SmallVec<[Extremity; 1]>,
    root: StateRoot,
    apart: Option<StateRoot>,
}

impl RoomEdit<'_> {
    /// Judges an event whose references were looked up, and makes it part of the edit. Whatever
    /// else the answer is, the edit is as before, but for tree nodes that nothing names.
    pub(crate) async fn take_received(
        &mut self,
        incoming: &Incoming,
        hands: Hands<'_>,
    ) -> Result<Taken, RoomError> {
        let pdu = &incoming.pdu;
        let known = self.known(pdu.event_id(), hands.ids).await?;
        match &known {
            Known::Placed(event) => {
                let status = event.status.kind();
                let position = event.position;
                return Ok(Taken::Answered(Received::Judged { status, position }));
            }
            Known::Underway => return Ok(Taken::NeedsSettled),
            _ => {}
        }
        let (on, missing) = self.foundations(pdu, hands.ids).await?;
        let at_join = match &missing {
            Received::Missing { prev, .. } if !prev.is_empty() => self.state_at_join(prev).await?,
            _ => None,
        };
        let mut hands = hands;
        // As whole as the room is.
        hands.gap = hands.gap.or(at_join.map(|root| Told {
            root,
            whole: true,
            doubted: false,
        }));
        let unseen = match missing {
            Received::Missing { prev, auth }
                if auth.is_empty() && (prev.is_empty() || hands.gap.is_some()) =>
            {
                prev
            }
            // What the join follows needs not be fetched.
            Received::Missing { auth, .. } if at_join.is_some() => {
                let prev = Vec::new();
                return Ok(Taken::Answered(Received::Missing { prev, auth }));
            }
            missing => return Ok(Taken::Answered(missing)),
        };
        // A redaction reads and rewrites its target.
        if !hands.settled && pdu.event_type() == "m.room.redaction" {
            return Ok(Taken::NeedsSettled);
        }
        self.judge(incoming, known, (on, unseen), hands).await
    }

    /// Judges an event of which all is here but `unseen`, previous events.
    async fn judge(
        &mut self,
        incoming: &Incoming,
        known: Known,
        (on, unseen): (Foundations, Vec<OwnedEventId>),
        hands: Hands<'_>,
    ) -> Result<Taken, RoomError> {
        let prepared = hands.prepared;
        let told = hands.gap.filter(|_| !unseen.is_empty());
        // For what could not be had of a state, what the room has stands: it must not get lost.
        let part = told.filter(|told| !told.whole);
        let own = part.map(|_| self.delta.head.root);
        let roots = on.prev.iter().map(|event| event.after);
        let roots = roots.chain(told.map(|told| told.root)).chain(own);
        let before = match self.resolved(roots, prepared).await? {
            Ok(before) => self.with_known_members(before, &on.auth).await?,
            Err(roots) => return Ok(Taken::Unresolved(roots)),
        };
        let number = match (&known, *hands.number) {
            (Known::Mentioned(number), _) => *number,
            (Known::Outlier(event), _) => event.number,
            (_, Some(number)) => number,
            (_, None) => self.rooms.numbering.new_event().await?,
        };
        *hands.number = Some(number);
        // Of a room of partial state, all that is since the join is here.
        let over_gap = told.is_some() && !self.is_partial();
        let now = match self.state_now(over_gap, before, prepared).await? {
            Ok(now) => self.with_known_members(now, &on.auth).await?,
            Err(roots) => return Ok(Taken::Unresolved(roots)),
        };
        let at = (number, before, now);
        let hidden = on.prev.iter().filter(|event| !event.status.is_shown());
        let hidden: Vec<_> = hidden
            .map(|event| event.pdu.event_id().to_owned())
            .collect();
        let mut event = self.assess(incoming, &known, on, at).await?;
        event.origin = hands.origin;
        if !unseen.is_empty() {
            event.over_gap = true;
            event.height = self.height_over_gap(&event.pdu);
        }
        let refused = matches!(
            event.status,
            EventStatus::Rejected {
                why: RejectReason::StateBefore,
                ..
            }
        );
        if refused && told.is_some_and(|told| told.doubted) {
            return Err(RoomError::NotAllowedByTold);
        }
        let mut missing = unseen;
        if event.status.is_shown() && !hidden.is_empty() {
            // What is not in the history has no place in it for a gap of its own.
            for below in self.missing_below(&hidden).await? {
                if !missing.contains(&below) {
                    missing.push(below);
                }
            }
            event.over_gap = !missing.is_empty();
        }
        let mut appended = Appended::plain(event);
        appended.gap = missing;
        appended.shown = appended.event.status.is_shown();
        appended.was = match known {
            Known::Outlier(_) => Was::Outlier,
            Known::Mentioned(_) => Was::Mentioned,
            _ => Was::Unknown,
        };
        // Its state may be among those that are resolved.
        let event = Arc::new(appended.event.clone());
        self.pending.events.insert(number, event);
        let tip = if appended.shown {
            let followed = hands.followed.contains(appended.event.pdu.event_id());
            let tip = self.followed_by(&appended.event, followed, prepared);
            match tip.await? {
                Ok(tip) => Some(tip),
                Err(roots) => return Ok(Taken::Unresolved(roots)),
            }
        } else {
            None
        };
        self.take_judged(appended, tip).await
    }

    /// Makes a judged event part of the edit, and the tip what it is with it.
    async fn take_judged(
        &mut self,
        mut appended: Appended,
        tip: Option<NewTip>,
    ) -> Result<Taken, RoomError> {
        let id = appended.event.pdu.event_id().to_owned();
        self.pending.mentioned.insert(id, appended.event.number);
        if let Some(tip) = tip {
            self.move_to(&mut appended, tip).await?;
            self.note_relation(&mut appended).await?;
            self.note_redaction(&appended).await?;
        }
        self.apply_waiting(&mut appended).await?;
        if appended.shown {
            self.note_count(&mut appended).await?;
        }
        self.delta.head.sequence += 1;
        let (status, positions) = (appended.event.status.kind(), appended.positions());
        let pdu = &appended.event.pdu;
        tracing::debug!(
            here = %self.rooms.options.server_name, room = %self.room().id, id = %pdu.event_id(), kind = pdu.event_type(),
            key = pdu.state_key(), over_gap = appended.event.over_gap, ?status, "judged",
        );
        let event = self.push(appended);
        self.pending.events.insert(event.number, event);
        Ok(Taken::Judged(status, positions))
    }

    /// The state that an event must be allowed by now, or states that have to be resolved first.
    ///
    /// Of an event over a gap, the state of the room lacks what was missed, as who joined
    /// meanwhile: the state before the event counts as that of another extremity.
    async fn state_now(
        &mut self,
        over_gap: bool,
        before: StateRoot,
        prepared: &Prepared,
    ) -> Result<Result<StateRoot, Roots>, RoomError> {
        let head = &self.delta.head;
        if !over_gap {
            return Ok(Ok(head.root));
        }
        let extremities = head.extremities.iter().map(|extremity| extremity.after);
        let roots: Vec<_> = extremities.chain(head.apart).chain([before]).collect();
        self.resolved(roots.into_iter(), prepared).await
    }

    /// The event with what is decided about it, and the state after it.
    async fn assess(
        &mut self,
        incoming: &Incoming,
        known: &Known,
        on: Foundations,
        (number, before, now): (EventNumber, StateRoot, StateRoot),
    ) -> Result<StoredEvent, RoomError> {
        let (pdu, redacted_by) = match known {
            Known::Outlier(known) => (known.body_of(&incoming.pdu), known.redacted_by),
            _ => (incoming.pdu.clone(), None),
        };
        let status = match known {
            // What its auth events do not allow stays so.
            Known::Outlier(known) if known.status.kind() == StatusKind::Rejected => {
                known.status.clone()
            }
            _ => {
                let states = (before, now);
                let status = self.status(&pdu, incoming.refused, &on, states).await?;
                status.judged_on(self.is_partial())
            }
        };
        let auth_heights = on.auth.iter().map(|event| event.auth_height + 1);
        let mut event = StoredEvent {
            number,
            room: self.room().number,
            pdu,
            status,
            after: before,
            position: None,
            height: on.prev.iter().map(|event| event.height).max().unwrap_or(0) + 1,
            backfill_tie: None,
            auth_height: auth_heights.max().unwrap_or(0),
            auth: on.auth.iter().map(|event| event.number).collect(),
            prev: on.prev.iter().map(|event| event.number).collect(),
            over_gap: false,
            replaces: None,
            redacted_by,
            origin: None,
        };
        let rejected = event.status.is_rejected();
        if let (Some((event_type, state_key)), false) = (event.pdu.state_pair(), rejected) {
            let replaced = self.state_in(before, event_type, state_key).await?;
            event.replaces = replaced.map(|event| event.number);
            event.after = self.edit_state(before, &[&event]).await?;
        }
        Ok(event)
    }

    /// The three judgements, in their order.
    pub(crate) async fn status(
        &self,
        pdu: &Pdu,
        refused: Option<SoftFailReason>,
        on: &Foundations,
        (before, now): (StateRoot, StateRoot),
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
        let state_before = self.auth_state_in(before, pdu).await?;
        // Mostly these are its auth events, which allow it.
        let named = on.auth.iter().chain([&create]);
        if !state_before.is_made_of(named) && state_before.check(rules, pdu).is_err() {
            return Ok(rejected(RejectReason::StateBefore));
        }
        let soft_failed = |why| EventStatus::SoftFailed {
            before,
            why,
            partial: false,
        };
        if now != before {
            let state_now = self.auth_state_in(now, pdu).await?;
            let same = state_now.is_made_of(state_before.events());
            if !same && state_now.check(rules, pdu).is_err() {
                return Ok(soft_failed(SoftFailReason::CurrentState));
            }
        }
        if let Some(why) = refused {
            return Ok(soft_failed(why));
        }
        Ok(EventStatus::Accepted {
            before,
            partial: false,
        })
    }

    /// The tip with an accepted event, whose state is that of all extremities; or states that have
    /// to be resolved first.
    async fn followed_by(
        &mut self,
        event: &StoredEvent,
        followed: bool,
        prepared: &Prepared,
    ) -> Result<Result<NewTip, Roots>, RoomError> {
        let mut extremities = self.delta.head.extremities.clone();
        extremities.retain(|extremity| !event.prev.contains(&extremity.number));
        // What was received over a gap before follows this one already; unless the state that was
        // told there knows nothing of it.
        if followed && !extremities.is_empty() {
            match self.tip_of(extremities.clone(), prepared).await? {
                Ok(tip) if !self.lacks(tip.root, event).await? => return Ok(Ok(tip)),
                Ok(_) => {}
                Err(roots) => return Ok(Err(roots)),
            }
        }
        let reference = event.pdu.reference();
        let reference = reference.map_err(|error| RoomError::damaged(error.to_string()))?;
        extremities.push(Extremity {
            number: event.number,
            id: event.pdu.event_id().to_owned(),
            reference_hash: reference.reference_hash,
            height: event.height,
            depth: event.pdu.depth(),
            after: event.after,
        });
        self.tip_of(extremities, prepared).await
    }

    /// The tip with these extremities, or states that have to be resolved first.
    async fn tip_of(
        &mut self,
        mut extremities: SmallVec<[Extremity; 1]>,
        prepared: &Prepared,
    ) -> Result<Result<NewTip, Roots>, RoomError> {
        let mut apart = self.delta.head.apart;
        let roots: Vec<_> = extremities
            .iter()
            .map(|extremity| extremity.after)
            .chain(apart)
            .collect();
        let root = match self.resolved(roots.into_iter(), prepared).await? {
            Ok(root) => root,
            Err(roots) => return Ok(Err(roots)),
        };
        // A peer may follow all that are left, with a state of its own: what was forgotten is not
        // undone by that.
        if bound_extremities(&mut extremities) || apart.is_some() {
            apart = Some(root);
        }
        Ok(Ok(NewTip {
            extremities,
            root,
            apart,
        }))
    }

    /// Makes the tip what it is with an event.
    async fn move_to(&mut self, appended: &mut Appended, tip: NewTip) -> Result<(), RoomError> {
        let (old, new) = (self.delta.head.root, tip.root);
        let head = &mut self.delta.head;
        (head.extremities, head.apart) = (tip.extremities, tip.apart);
        if new != old {
            self.note_members_between(appended, old, new).await?;
            self.delta.head.root = new;
            appended.log = Some(StateLogRow {
                root: new,
                joined: self.delta.head.joined,
                invited: self.delta.head.invited,
            });
        }
        Ok(())
    }

    /// Notes every membership in which two states of the room differ.
    async fn note_members_between(
        &mut self,
        appended: &mut Appended,
        old: StateRoot,
        new: StateRoot,
    ) -> Result<(), RoomError> {
        let members = self.members_between(old, new).await?;
        if members.len() > MAX_MEMBERS {
            appended.debt = Some((old, new));
            return self.count_members(&members).await;
        }
        for (key, change) in members {
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

    /// The members in which two states differ.
    async fn members_between(
        &self,
        old: StateRoot,
        new: StateRoot,
    ) -> Result<Vec<(StateKey, Difference)>, RoomError> {
        let (room, roots) = (self.room().number, (old, new));
        let changes = self
            .rooms
            .states
            .difference(room, &self.pending.nodes, roots)
            .await?;
        let mut members = Vec::new();
        for change in changes {
            let key = self.rooms.numbering.key_name(change.key).await?;
            if key.event_type() == "m.room.member" {
                members.push((key, change));
            }
        }
        Ok(members)
    }

    /// Counts what another state of the room changes. Its indexes are left to do.
    pub(crate) async fn count_members_between(
        &mut self,
        old: StateRoot,
        new: StateRoot,
    ) -> Result<(), RoomError> {
        let members = self.members_between(old, new).await?;
        self.count_members(&members).await
    }

    /// Counts members in which two states differ. What is written for each of them is left to do.
    pub(crate) async fn count_members(
        &mut self,
        members: &[(StateKey, Difference)],
    ) -> Result<(), RoomError> {
        for some in members.chunks(MEMBERS_AT_ONCE) {
            let values = some
                .iter()
                .flat_map(|(_, change)| [change.before, change.after]);
            let numbers: Vec<_> = values.flatten().map(|(number, _)| number).collect();
            // Into the cache, in one go.
            self.rooms.events.find_all(self.room(), &numbers).await?;
            for (_, change) in some {
                for (value, by) in [(change.before, -1), (change.after, 1)] {
                    if let Some((number, _)) = value {
                        let membership = membership_of(&*self.event(number).await?);
                        count(&mut self.delta.head, membership, by);
                    }
                }
            }
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

/// Forgets the oldest extremities where there are too many. Gives whether there were.
///
/// Their events stay in the room; only, events of this server no longer name them as previous ones.
/// Peers do so, and what they send then joins the branches.
pub(crate) fn bound_extremities(extremities: &mut SmallVec<[Extremity; 1]>) -> bool {
    if extremities.len() <= MAX_EXTREMITIES {
        return false;
    }
    extremities.sort_by_key(|extremity| (extremity.height, extremity.number));
    extremities.drain(..extremities.len() - MAX_EXTREMITIES);
    true
}
