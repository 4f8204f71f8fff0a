//! Events older than those that are here, as another server gave them, put where the history has a
//! gap.
//!
//! What is backfilled never arrived: it has no position, is in no timeline, and changes nothing of
//! the room as it is now. It has a place in the history, below the event over whose gap it was
//! fetched, and a state before it, by which it is judged and shown to whom it may be shown. A gap
//! that is filled keeps its row, with nothing missing: whoever pages back from an older token has to
//! begin above it.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use homeserver_events::{EventStatus, Pdu, RejectReason, StatusKind};
use homeserver_storage::{At, Batch, Durability};
use ruma::{EventId, OwnedEventId, OwnedUserId};

use crate::{
    ImportId, Rooms, ToldState,
    delta::{Appended, Was},
    edit::RoomEdit,
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    judge,
    live::Wants,
    numbers::EventNumber,
    receive::lookup::{Ids, Known},
    resolving::Prepared,
    room::Room,
    rows::{GapRow, RelationRow},
    tables,
    token::{HistoryKey, HistoryToken, Place},
    tree::StateRoot,
};

/// Events that are taken in one go: as many as surely fit into a batch with their states.
pub const MAX_BACKFILL: usize = 50;

/// Events without a place in the history that are looked through, in one go, for what is missing
/// below them. Those that are left count as missing until they are looked through.
const MAX_HIDDEN: usize = 200;

/// Bytes of ids in the row of a gap at which no further event is looked through: a row has 128 KiB.
const MAX_MISSING: usize = 64 * 1024;

/// Operations of a batch that are left for the next event, and at which a batch is full.
const FULL: usize = 700;

/// Previous events that are missing below one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The event above the gap.
    pub event: OwnedEventId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// What it follows and is not here.
    pub missing: Vec<OwnedEventId>,
    key: HistoryKey,
}

/// What became of a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backfilled {
    /// Events that are part of the history now.
    pub taken: usize,
    /// Events that nobody gave a state for, or whose auth events are not here: with all that is
    /// above them they were left out.
    pub left_out: Vec<OwnedEventId>,
    /// Whether all that was missing below the gap's event is here.
    pub closed: bool,
}

/// What was told about the states before events.
struct Told {
    /// And whether all of it is here.
    roots: HashMap<OwnedEventId, (StateRoot, bool)>,
    /// Events whose state is that after some of their previous events only, or builds on such a
    /// one: it says who may see them, and rejects nothing.
    approximate: HashSet<EventNumber>,
}

/// An event with its place.
struct Placed {
    pdu: Pdu,
    height: u64,
    tie: u64,
}

impl Rooms {
    /// The gap right below the place of a token: where a page that is `at_gap` ended.
    pub async fn gap_at(
        &self,
        room: &Room,
        token: &HistoryToken,
    ) -> Result<Option<Gap>, RoomError> {
        let Place::Before(key) = token.place else {
            return Ok(None);
        };
        let row = (room.number.0, key.height, u8::from(key.live), key.tie);
        let Some(gap) = self.store.get(&tables::GAPS, &row).await? else {
            return Ok(None);
        };
        let Some(above) = self.store.get(&tables::HISTORY, &row).await? else {
            return Err(RoomError::damaged("a gap is below no event"));
        };
        let above = self.events.load(room, EventNumber(above)).await?;
        Ok(Some(Gap {
            event: above.pdu.event_id().to_owned(),
            sender: above.pdu.sender().to_owned(),
            missing: gap.missing,
            key,
        })
        .filter(|gap| !gap.missing.is_empty()))
    }

    /// Fills a gap with events that lead down from it, at most [`MAX_BACKFILL`], in any order. Their
    /// format, hashes and signatures were checked, and their auth events are here. `states` are the
    /// states before some of them; those are needed of which no previous event is here or among them.
    ///
    /// Events that do not lead down from the gap are passed over. Without any, what came in the
    /// meantime closes the gap. Dropping the future takes nothing back.
    pub async fn backfill(
        self: &Arc<Self>,
        room: &Arc<Room>,
        gap: &Gap,
        events: Vec<Pdu>,
        states: Vec<(OwnedEventId, ToldState)>,
    ) -> Result<Backfilled, RoomError> {
        let top = gap.missing.clone();
        self.backfill_from(room, gap, top, (events, states)).await
    }

    /// Puts events below a gap that lead down from one of them, `top`, which may be far below it: what
    /// lies between stays missing. The rest is as with [`Rooms::backfill`].
    pub async fn backfill_apart(
        self: &Arc<Self>,
        room: &Arc<Room>,
        gap: &Gap,
        top: &EventId,
        given: (Vec<Pdu>, Vec<(OwnedEventId, ToldState)>),
    ) -> Result<Backfilled, RoomError> {
        let top = vec![top.to_owned()];
        self.backfill_from(room, gap, top, given).await
    }

    async fn backfill_from(
        self: &Arc<Self>,
        room: &Arc<Room>,
        gap: &Gap,
        top: Vec<OwnedEventId>,
        (events, states): (Vec<Pdu>, Vec<(OwnedEventId, ToldState)>),
    ) -> Result<Backfilled, RoomError> {
        if self.is_partial(room.number) {
            return Err(RoomError::PartialState);
        }
        if events.len() > MAX_BACKFILL {
            let why = "too many events for one backfill".to_owned();
            return Err(RoomError::TooLarge(why));
        }
        let (rooms, room, gap) = (Arc::clone(self), Arc::clone(room), gap.clone());
        let filling = async move {
            let mut imports = Vec::new();
            let collected = rooms.collect_all(&room, states, &mut imports).await;
            let filled = match collected {
                Ok(roots) => {
                    let mut told = Told {
                        roots,
                        approximate: HashSet::new(),
                    };
                    let events = leading_down(&top, events);
                    rooms.fill(&room, &gap, events, &mut told).await
                }
                Err(error) => Err(error),
            };
            for import in imports {
                if let Err(error) = rooms.abandon_arrival(import).await {
                    // It is swept like any that nobody goes on with.
                    tracing::warn!(%error, room = %room.id, "a state that was told is left behind");
                }
            }
            filled
        };
        self.runtime.tasks.see_through(filling).await
    }

    /// The states before some events, put together from events that are here. `imports` keep them.
    async fn collect_all(
        &self,
        room: &Room,
        states: Vec<(OwnedEventId, ToldState)>,
        imports: &mut Vec<ImportId>,
    ) -> Result<HashMap<OwnedEventId, (StateRoot, bool)>, RoomError> {
        let mut roots = HashMap::new();
        for (event, state) in states {
            let import = self.collect_state(room, &state.events).await?;
            imports.push(import);
            let root = self.import_row(import).await?.root;
            roots.insert(event, (root, state.whole));
        }
        Ok(roots)
    }

    async fn fill(
        self: &Arc<Self>,
        room: &Arc<Room>,
        gap: &Gap,
        events: Vec<Pdu>,
        told: &mut Told,
    ) -> Result<Backfilled, RoomError> {
        let mut filled = Backfilled {
            taken: 0,
            left_out: Vec::new(),
            closed: false,
        };
        let mut rest = self.places(gap, events).await?;
        rest.reverse();
        loop {
            let batch = self.fill_some(room, gap, &mut rest, told, &mut filled);
            if batch.await? {
                return Ok(filled);
            }
        }
    }

    /// Gives events, the oldest first, their places below the gap: no event is above one that
    /// follows it, nor where it does not claim to be.
    async fn places(&self, gap: &Gap, events: Vec<Pdu>) -> Result<Vec<Placed>, RoomError> {
        let mut below: HashMap<OwnedEventId, u64> = HashMap::new();
        let ceiling = gap.key.height.saturating_sub(1).max(1);
        let mut placed = Vec::with_capacity(events.len());
        for pdu in events.into_iter().rev() {
            let followed = below.get(pdu.event_id()).copied().unwrap_or(ceiling);
            let height = pdu.depth().min(followed).min(ceiling).max(1);
            for prev in pdu.prev_events() {
                let bound = height.saturating_sub(1).max(1);
                let before = below.entry(prev.clone()).or_insert(bound);
                *before = bound.min(*before);
            }
            // What is fetched later is older: of equal heights the lower.
            let tie = u64::MAX - self.numbering.new_event().await?.0;
            placed.push(Placed { pdu, height, tie });
        }
        placed.reverse();
        Ok(placed)
    }

    /// One batch of events, of which the oldest stand last in `rest`. Gives whether it was the last
    /// batch, which also says what is still missing below the gap.
    async fn fill_some(
        self: &Arc<Self>,
        room: &Arc<Room>,
        gap: &Gap,
        rest: &mut Vec<Placed>,
        told: &mut Told,
        filled: &mut Backfilled,
    ) -> Result<bool, RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, pending) = tip.parts();
        let mut edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        let mut filling = Filling::default();
        while let Some(next) = rest.last() {
            let redacts = next.pdu.event_type() == "m.room.redaction";
            if edit.delta.size().0 > FULL || (redacts && !edit.delta.appended.is_empty()) {
                break;
            }
            let Some(next) = rest.pop() else { break };
            let id = next.pdu.event_id().to_owned();
            match edit.take_backfilled(next, told, &mut filling).await {
                Ok(true) => filled.taken += 1,
                Ok(false) => filled.left_out.push(id),
                Err(error) => {
                    tip.spoil();
                    return Err(error);
                }
            }
        }
        let last = rest.is_empty();
        let mut missing = Vec::new();
        if last {
            missing = edit.missing_among(&gap.missing, &filling).await?;
            filled.closed = missing.is_empty();
        }
        edit.delta.head.sequence += 1;
        let delta = edit.delta;
        let mut batch = Batch::new();
        delta.write(&mut batch);
        filling.write(room, &mut batch);
        if last {
            let key = gap_row(room, gap.key);
            let seen = GapRow {
                missing: gap.missing.clone(),
            };
            batch.assert_value(&tables::GAPS, &key, &seen);
            batch.put(&tables::GAPS, &key, &GapRow { missing });
        }
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let commit = live.submitted(&mut tip, delta.head.clone());
        drop(tip);
        let outcome = ticket.await;
        self.remember(&outcome, std::slice::from_ref(&delta));
        commit.settle(outcome.is_ok());
        outcome.map_err(not_stored)?;
        Ok(last)
    }
}

/// An event that is shown, with the number of what it relates to.
struct Shown {
    key: HistoryKey,
    number: EventNumber,
    relation: Option<(u64, RelationRow)>,
}

/// Rows of backfilled events beside those that all events have.
#[derive(Default)]
struct Filling {
    shown: Vec<Shown>,
    gaps: Vec<(HistoryKey, Vec<OwnedEventId>)>,
    /// Events of the batch.
    taken: HashMap<OwnedEventId, Arc<StoredEvent>>,
}

impl Filling {
    fn write(&self, room: &Room, batch: &mut Batch) {
        let number = room.number.0;
        for shown in &self.shown {
            let key = shown.key;
            batch.put(&tables::HISTORY, &gap_row(room, key), &shown.number.0);
            if let Some((target, row)) = &shown.relation {
                for rel_type in ["", row.rel_type.as_str()] {
                    let at = At::Known(key.tie);
                    let key = (number, *target, rel_type, key.height, 0_u8, at);
                    batch.put(&tables::RELATIONS, &key, row);
                }
            }
        }
        for (key, missing) in &self.gaps {
            let missing = missing.clone();
            batch.put(&tables::GAPS, &gap_row(room, *key), &GapRow { missing });
        }
    }
}

fn gap_row(room: &Room, key: HistoryKey) -> (u64, u64, u8, u64) {
    (room.number.0, key.height, u8::from(key.live), key.tie)
}

/// The events to which those on top lead, each after its previous events.
fn leading_down(top: &[OwnedEventId], events: Vec<Pdu>) -> Vec<Pdu> {
    let mut given: HashMap<OwnedEventId, Pdu> = events
        .into_iter()
        .map(|event| (event.event_id().to_owned(), event))
        .collect();
    // In depth first order, an event is put behind all that it follows.
    let mut ordered = Vec::with_capacity(given.len());
    let mut seen = HashSet::new();
    let mut ahead: Vec<(OwnedEventId, bool)> = top.iter().map(|id| (id.clone(), false)).collect();
    while let Some((id, is_behind)) = ahead.pop() {
        if is_behind {
            ordered.extend(given.remove(&id));
            continue;
        }
        let Some(event) = given.get(&id) else {
            continue;
        };
        if !seen.insert(id.clone()) {
            continue;
        }
        let prev = event.prev_events().iter().map(|id| (id.clone(), false));
        let prev: Vec<_> = prev.collect();
        ahead.push((id, true));
        ahead.extend(prev);
    }
    ordered
}

impl RoomEdit<'_> {
    /// What is missing below events that are here and not in the history.
    pub(crate) async fn missing_below(
        &self,
        hidden: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        self.missing_among(hidden, &Filling::default()).await
    }

    /// Those of some events that are not here, and those that are missing below the ones that are
    /// here and not in the history: rejected and soft-failed ones. If those are very many, the last
    /// of them that were looked at stand for what may be missing below them.
    async fn missing_among(
        &self,
        ids: &[OwnedEventId],
        filling: &Filling,
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        let size = |ids: &[OwnedEventId]| ids.iter().map(|id| id.as_str().len()).sum::<usize>();
        let (mut missing, mut ahead) = (Vec::new(), ids.to_vec());
        let (mut bytes, mut looked_through) = (size(ids), 0);
        let mut seen = HashSet::new();
        while let Some(id) = ahead.pop() {
            bytes -= id.as_str().len();
            if !seen.insert(id.clone()) {
                continue;
            }
            let here = match filling.taken.get(&id) {
                Some(event) => Some(Arc::clone(event)),
                None => self.placed_here(&id).await?,
            };
            if here.as_ref().is_some_and(|event| event.status.is_shown()) {
                continue;
            }
            let below = here.as_ref().map(|event| event.pdu.prev_events());
            let below = below
                .filter(|below| looked_through < MAX_HIDDEN && bytes + size(below) <= MAX_MISSING);
            if let Some(below) = below {
                looked_through += 1;
                bytes += size(below);
                ahead.extend_from_slice(below);
            } else {
                bytes += id.as_str().len();
                missing.push(id);
            }
        }
        Ok(missing)
    }

    /// The state before an event, and whether that is only about so; `None` if nothing is known.
    async fn state_in_history(
        &mut self,
        pdu: &Pdu,
        prev: &[Arc<StoredEvent>],
        told: &Told,
    ) -> Result<Option<(StateRoot, bool)>, RoomError> {
        if pdu.prev_events().is_empty() {
            return Ok(Some((StateRoot::EMPTY, false)));
        }
        let given = told.roots.get(pdu.event_id()).copied();
        let whole = prev.len() == pdu.prev_events().len();
        let given = given.filter(|_| !whole);
        let part = given.is_none_or(|(_, whole)| !whole);
        let given = given.map(|(root, _)| root);
        let Some(higher) = prev.iter().max_by_key(|event| event.height) else {
            return Ok(given.map(|root| (root, part)));
        };
        let vague = |event: &Arc<StoredEvent>| told.approximate.contains(&event.number);
        let approximate = (!whole && part) || prev.iter().any(vague);
        let states = prev.iter().map(|event| event.after).chain(given);
        match self.resolved(states, &Prepared::in_place()).await {
            Ok(Ok(root)) => Ok(Some((root, approximate))),
            // Of a fork in the past that is too large one branch stands for all: nothing is built
            // on it.
            Ok(Err(_)) | Err(RoomError::Unresolved(_)) => Ok(Some((higher.after, true))),
            Err(error) => Err(error),
        }
    }

    /// An event that has a place in the graph, also one that is on its way to disk.
    async fn placed_here(&self, id: &EventId) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let number = self.pending.mentioned.get(id);
        let underway = number.and_then(|number| self.pending.events.get(number));
        if let Some(event) = underway.filter(|event| event.is_placed()) {
            return Ok(Some(Arc::clone(event)));
        }
        let mut ids = Ids::new();
        let names = std::iter::once(id);
        self.rooms
            .event_numbers(self.room(), names, &mut ids)
            .await?;
        match self.known(id, &ids).await? {
            Known::Placed(event) => Ok(Some(event)),
            _ => Ok(None),
        }
    }

    /// Judges an event and makes it part of the edit; `false` if it has no state before it, or not
    /// all of its auth events are here.
    async fn take_backfilled(
        &mut self,
        placed: Placed,
        told: &mut Told,
        filling: &mut Filling,
    ) -> Result<bool, RoomError> {
        let Placed { pdu, height, tie } = placed;
        let (room, id) = (Arc::clone(self.room()), pdu.event_id().to_owned());
        if pdu.room_id() != room.id {
            return Ok(false);
        }
        let mut ids = Ids::new();
        let names = pdu.auth_events().iter().map(|id| &**id);
        let names = names.chain([&*id]).chain(pdu.redacts());
        self.rooms.event_numbers(&room, names, &mut ids).await?;
        let known = self.known(&id, &ids).await?;
        if matches!(known, Known::Placed(_) | Known::Underway) {
            return Ok(true);
        }
        let (on, _) = self.foundations(&pdu, &ids).await?;
        if on.auth.len() < pdu.auth_events().len() {
            return Ok(false);
        }
        let (mut prev, mut missing) = (Vec::new(), Vec::new());
        for id in pdu.prev_events() {
            let here = match filling.taken.get(id) {
                Some(event) => Some(Arc::clone(event)),
                None => self.placed_here(id).await?,
            };
            match here {
                Some(event) => prev.push(event),
                None => missing.push(id.clone()),
            }
        }
        let state = self.state_in_history(&pdu, &prev, told).await?;
        let Some((before, approximate)) = state else {
            return Ok(false);
        };
        let hidden = prev.iter().filter(|event| !event.status.is_shown());
        let hidden = hidden.map(|event| event.pdu.event_id().to_owned());
        let hidden: Vec<_> = hidden.collect();
        missing.extend(self.missing_among(&hidden, filling).await?);
        let (number, pdu, redacted_by) = match &known {
            Known::Outlier(known) => (known.number, known.body_of(&pdu), known.redacted_by),
            Known::Mentioned(number) => (*number, pdu, None),
            _ => (self.rooms.numbering.new_event().await?, pdu, None),
        };
        let status = match &known {
            Known::Outlier(known) if known.status.kind() == StatusKind::Rejected => {
                known.status.clone()
            }
            _ => {
                let state = (before, approximate);
                self.status_in_history(&pdu, &on.auth, state).await?
            }
        };
        if approximate {
            told.approximate.insert(number);
        }
        let auth_heights = on.auth.iter().map(|event| event.auth_height + 1);
        let event = StoredEvent {
            number,
            room: room.number,
            pdu,
            status,
            after: before,
            position: None,
            height,
            backfill_tie: Some(tie),
            auth_height: auth_heights.max().unwrap_or(0),
            auth: on.auth.iter().map(|event| event.number).collect(),
            prev: prev.iter().map(|event| event.number).collect(),
            over_gap: !missing.is_empty(),
            replaces: None,
            redacted_by,
            origin: None,
        };
        let was = match known {
            Known::Outlier(_) => Was::Outlier,
            Known::Mentioned(_) => Was::Mentioned,
            _ => Was::Unknown,
        };
        self.insert_judged(event, was, missing, filling).await?;
        Ok(true)
    }

    /// Makes a judged event part of the edit and, if it is accepted, of the history.
    async fn insert_judged(
        &mut self,
        mut event: StoredEvent,
        was: Was,
        missing: Vec<OwnedEventId>,
        filling: &mut Filling,
    ) -> Result<(), RoomError> {
        let (number, before) = (event.number, event.after);
        let id = event.pdu.event_id().to_owned();
        let accepted = event.status.kind() == StatusKind::Accepted;
        if let (Some((event_type, state_key)), true) = (event.pdu.state_pair(), accepted) {
            let replaced = self.state_in(before, event_type, state_key).await?;
            event.replaces = replaced.map(|event| event.number);
            event.after = self.edit_state(before, &[&event]).await?;
        }
        let mut appended = Appended::plain(event);
        appended.shown = false;
        appended.was = was;
        if accepted {
            self.note_relation(&mut appended).await?;
            self.note_redaction(&appended).await?;
        }
        self.apply_waiting(&mut appended).await?;
        let key = appended.event.history_key();
        let relation = appended.relation.take().map(|relation| {
            let row = RelationRow {
                event: appended.event.number,
                rel_type: relation.rel_type,
                event_type: appended.event.pdu.event_type().to_owned(),
                key: relation.key,
                sender: appended.event.pdu.sender().to_owned(),
            };
            (relation.target.0, row)
        });
        if accepted {
            filling.shown.push(Shown {
                key,
                number,
                relation,
            });
        }
        // What is missing below one that is not in the history is found from above.
        if accepted && !missing.is_empty() {
            filling.gaps.push((key, missing));
        }
        let event = self.push(appended);
        self.pending.mentioned.insert(id.clone(), number);
        self.pending.events.insert(number, Arc::clone(&event));
        filling.taken.insert(id, event);
        Ok(())
    }

    /// Judged by its auth events and by the state before it.
    async fn status_in_history(
        &self,
        pdu: &Pdu,
        auth: &[Arc<StoredEvent>],
        (before, approximate): (StateRoot, bool),
    ) -> Result<EventStatus<StateRoot>, RoomError> {
        let rules = self.room().rules;
        let rejected = |why| EventStatus::Rejected {
            why,
            partial: false,
        };
        let create = self.event(self.room().create).await?;
        if let Err(why) = judge::by_auth_events(rules, &create, pdu, auth) {
            return Ok(rejected(why));
        }
        let is_create = pdu.event_id() == create.pdu.event_id();
        let state = self.auth_state_in(before, pdu).await?;
        if !is_create && !approximate && state.check(rules, pdu).is_err() {
            return Ok(rejected(RejectReason::StateBefore));
        }
        Ok(EventStatus::Accepted {
            before,
            partial: false,
        })
    }
}
