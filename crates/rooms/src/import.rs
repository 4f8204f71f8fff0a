//! Preparing a change of state that is larger than a batch.
//!
//! An *import* writes events part by part; each part is one batch that also counts it, so a caller
//! that was killed goes on where the import says. Its state events are put into a tree all at once,
//! when somebody asks for the tree (see `plant`). No part waits for the disk: whatever makes use of
//! an import is a durable commit, and what was committed before that is on disk with it. Nothing
//! refers to what an import wrote until [`Rooms::switch`]. One that is not touched for a day is
//! swept.
//!
//! Each event is judged by its auth events, which are in the room or came before it in the import;
//! so its links are whole, as the resolution of states needs them. What they do not allow is stored
//! as rejected and is part of no state.

use std::{collections::HashMap, sync::Arc};

use homeserver_events::{EventStatus, Pdu, StatusKind};
use homeserver_storage::{At, Batch, CommitError, Durability, Positioned};
use ruma::{EventId, OwnedEventId};

use crate::{
    Rooms,
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    judge,
    live::Wants,
    members::MEMBER,
    numbers::{EventNumber, RoomNumber},
    receive::lookup::Ids,
    room::Room,
    rows::{ImportPartRow, ImportRow, ImportStateRow, ImportedState},
    tables,
    tree::StateRoot,
    visible::membership_of,
};

/// Events of one part of an import: as many as surely fit into a batch, with three operations each.
pub const IMPORT_PART: usize = 300;

/// Bytes of the events of one part, so that they fit into a batch with all that is around them.
pub const IMPORT_PART_BYTES: usize = 4_000_000;

/// Times a step is tried while others change the same room.
pub(crate) const ATTEMPTS: usize = 16;

/// After this time without a new part an import counts as abandoned, in milliseconds: a day.
pub const IMPORT_LIFETIME: u64 = 24 * 60 * 60 * 1000;

/// A change of a room's state being prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImportId(pub u64);

/// An event that an import brings. Its format, hash and signatures were checked.
#[derive(Clone, Debug)]
pub enum Imported {
    /// Part of the new state, if its auth events allow it.
    State(Pdu),
    /// Named by the auth events of others only.
    Auth(Pdu),
}

impl Imported {
    pub(crate) fn pdu(&self) -> &Pdu {
        match self {
            Self::State(pdu) | Self::Auth(pdu) => pdu,
        }
    }

    /// Cuts events into parts for [`Rooms::import_part`]; the same events are always cut in the same
    /// way.
    pub fn parts(events: &[Self]) -> impl Iterator<Item = &[Self]> {
        let mut rest = events;
        std::iter::from_fn(move || {
            let mut bytes = 0;
            let fits = |event: &&Self| {
                bytes += event.pdu().json().len();
                bytes <= IMPORT_PART_BYTES
            };
            let taken = rest.iter().take(IMPORT_PART).take_while(fits).count();
            // One event is never larger than a part.
            let (part, later) = rest.split_at(taken.max(1).min(rest.len()));
            rest = later;
            Some(part).filter(|part| !part.is_empty())
        })
    }
}

/// What became of a part of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum PartTaken {
    /// It is stored, and on disk before anything that makes use of it.
    Stored,
    /// It names auth events that are neither in the room nor earlier in the import. Nothing was
    /// stored.
    Missing(Vec<OwnedEventId>),
}

/// A part while it is prepared.
struct Part<'a> {
    import: ImportId,
    room: &'a Room,
    create: Arc<StoredEvent>,
    /// Numbers of events that are mentioned in the room; those that are not here keep them.
    numbers: Ids,
    /// Events of it, and those that were looked up.
    at_hand: HashMap<OwnedEventId, Arc<StoredEvent>>,
    new: Vec<Arc<StoredEvent>>,
    state: Vec<ImportedState>,
    missing: Vec<OwnedEventId>,
}

impl Rooms {
    /// Begins to prepare a change of the room's state as it is now.
    pub async fn begin_import(&self, room: &Room) -> Result<ImportId, RoomError> {
        self.begin_from(room, None).await
    }

    /// Begins to prepare a state of events of the room, from nothing. It is not to be switched in.
    pub(crate) async fn begin_state(&self, room: &Room) -> Result<ImportId, RoomError> {
        self.begin_from(room, Some(StateRoot::EMPTY)).await
    }

    async fn begin_from(
        &self,
        room: &Room,
        root: Option<StateRoot>,
    ) -> Result<ImportId, RoomError> {
        // Numbers of events are never given twice, so one of them names the import.
        let import = ImportId(self.numbering.new_event().await?.0);
        for _ in 0..ATTEMPTS {
            match self.try_begin_import(room, import, root).await {
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome.map(|()| import),
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_begin_import(
        &self,
        room: &Room,
        import: ImportId,
        root: Option<StateRoot>,
    ) -> Result<(), RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (seen, _) = tip.parts();
        let row = ImportRow {
            room: room.number.0,
            touched: self.clock.unix_millis(),
            parts: 0,
            base: seen.root,
            root: root.unwrap_or(seen.root),
            generation: seen.generation,
            abandoned: false,
            planted: 0,
        };
        // The head moves: a sweep of nodes that looked for imports before this one, here or in
        // another process, must not begin its generation after it.
        let mut head = seen.clone();
        head.sequence += 1;
        let mut batch = Batch::new();
        batch.assert_value(&tables::HEADS, &room.number.0, &seen);
        batch.put(&tables::HEADS, &room.number.0, &head);
        batch.assert_absent(&tables::IMPORTS, &import.0);
        batch.put(&tables::IMPORTS, &import.0, &row);
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let commit = live.submitted(&mut tip, head);
        drop(tip);
        let outcome = ticket.await;
        commit.settle(outcome.is_ok());
        outcome.map_err(not_stored)?;
        Ok(())
    }

    /// How many parts of an import are stored; `None` if it was switched in or abandoned.
    pub async fn import_progress(&self, import: ImportId) -> Result<Option<u64>, RoomError> {
        let row = self.store.get(&tables::IMPORTS, &import.0).await?;
        let open = row.filter(|row: &ImportRow| !row.abandoned);
        Ok(open.map(|row| row.parts))
    }

    /// Adds events, at most [`IMPORT_PART`] and [`IMPORT_PART_BYTES`], as part number `ordinal`: each
    /// after its auth events, and of the state events with one key, the one that counts last. A part
    /// that is stored already is passed over.
    pub async fn import_part(
        &self,
        import: ImportId,
        ordinal: u64,
        events: &[Imported],
    ) -> Result<PartTaken, RoomError> {
        if events.len() > IMPORT_PART {
            let why = "too many events in one part".to_owned();
            return Err(RoomError::TooLarge(why));
        }
        for _ in 0..ATTEMPTS {
            let row = self.open_import(import).await?;
            if ordinal < row.parts {
                return Ok(PartTaken::Stored);
            }
            if ordinal > row.parts {
                return Err(RoomError::damaged("a part of an import is missing"));
            }
            match self.try_import_part(import, &row, events).await {
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_import_part(
        &self,
        import: ImportId,
        row: &ImportRow,
        events: &[Imported],
    ) -> Result<PartTaken, RoomError> {
        let room = self.room_by_number(RoomNumber(row.room)).await?;
        if events.iter().any(|event| event.pdu().room_id() != room.id) {
            return Err(RoomError::UnknownRoom);
        }
        let mut part = Part {
            import,
            room: &room,
            create: self.events.load(&room, room.create).await?,
            numbers: Ids::new(),
            at_hand: HashMap::new(),
            new: Vec::new(),
            state: Vec::with_capacity(events.len()),
            missing: Vec::new(),
        };
        self.look_up_part(events, &mut part).await?;
        for event in events {
            self.import_event(event, &mut part).await?;
        }
        if !part.missing.is_empty() {
            return Ok(PartTaken::Missing(part.missing));
        }
        let mut batch = Batch::new();
        let next = ImportRow {
            touched: self.clock.unix_millis(),
            parts: row.parts + 1,
            ..row.clone()
        };
        batch.assert_value(&tables::IMPORTS, &import.0, row);
        batch.put(&tables::IMPORTS, &import.0, &next);
        part.write(row.parts, &mut batch);
        self.write_prepared(batch).await?;
        Ok(PartTaken::Stored)
    }

    /// Commits what is on disk before whatever refers to it.
    pub(crate) async fn write_prepared(&self, batch: Batch) -> Result<(), RoomError> {
        let submitted = self.store.submit(batch, Durability::Lazy).await;
        submitted.map_err(not_stored)?.await.map_err(not_stored)?;
        Ok(())
    }

    /// Judges and prepares one event, unless it is here already.
    async fn import_event(&self, event: &Imported, part: &mut Part<'_>) -> Result<(), RoomError> {
        let pdu = event.pdu();
        let prepared = match part.at_hand.get(pdu.event_id()) {
            Some(known) => Arc::clone(known),
            None => match self.judge_imported(pdu, part).await? {
                Some(judged) => part.take(judged),
                None => return Ok(()),
            },
        };
        let rejected = matches!(
            prepared.status.kind(),
            StatusKind::Rejected | StatusKind::PartialRejected
        );
        if let (Imported::State(_), Some((event_type, state_key)), false) =
            (event, prepared.pdu.state_pair(), rejected)
        {
            let is_member = event_type == MEMBER;
            part.state.push(ImportedState {
                hash: self.states.place(event_type, state_key),
                key: self.numbering.key(event_type, state_key).await?,
                event: prepared.number,
                auth_height: prepared.auth_height,
                membership: is_member.then(|| membership_of(&prepared)).flatten(),
            });
        }
        Ok(())
    }

    /// Looks up what the import may build on: events of the room, and earlier ones of the import.
    async fn look_up_part(
        &self,
        events: &[Imported],
        part: &mut Part<'_>,
    ) -> Result<(), RoomError> {
        let pdus = events.iter().map(Imported::pdu);
        let names = pdus.flat_map(|pdu| {
            let auth = pdu.auth_events().iter().map(|id| &**id);
            auth.chain([pdu.event_id()])
        });
        let mut names: Vec<&EventId> = names.collect();
        names.sort_unstable();
        names.dedup();
        let named = names.iter().copied();
        self.event_numbers(part.room, named, &mut part.numbers)
            .await?;
        let here = names.iter().filter_map(|id| part.numbers.get(*id).copied());
        let here: Vec<_> = here.collect();
        let found = self.events.find_all(part.room, &here).await?;
        part.have(found);
        names.retain(|id| !part.at_hand.contains_key(*id));
        let keys: Vec<_> = names
            .iter()
            .map(|id| (part.import.0, id.as_str()))
            .collect();
        let earlier = self.store.multi_get(&tables::IMPORT_IDS, &keys).await?;
        let earlier: Vec<_> = earlier.into_iter().flatten().map(EventNumber).collect();
        let found = self.events.find_all(part.room, &earlier).await?;
        part.have(found);
        let keys = events
            .iter()
            .filter(|event| matches!(event, Imported::State(_)));
        let keys: Vec<_> = keys.filter_map(|event| event.pdu().state_pair()).collect();
        self.numbering.prepare_keys(&keys).await
    }

    /// An event as its auth events have it; `None` if some of those are missing.
    async fn judge_imported(
        &self,
        pdu: &Pdu,
        part: &mut Part<'_>,
    ) -> Result<Option<StoredEvent>, RoomError> {
        let mut auth = Vec::with_capacity(pdu.auth_events().len());
        for id in pdu.auth_events() {
            match part.at_hand.get(id) {
                Some(event) => auth.push(Arc::clone(event)),
                None => part.missing.push(id.clone()),
            }
        }
        if auth.len() < pdu.auth_events().len() {
            return Ok(None);
        }
        let status = match judge::by_auth_events(part.room.rules, &part.create, pdu, &auth) {
            Ok(()) => EventStatus::Outlier,
            Err(why) => EventStatus::Rejected {
                why,
                partial: false,
            },
        };
        let auth_heights = auth.iter().map(|event| event.auth_height + 1);
        Ok(Some(StoredEvent {
            // One that is mentioned already keeps its number: relations name it.
            number: match part.numbers.get(pdu.event_id()) {
                Some(number) => *number,
                None => self.numbering.new_event().await?,
            },
            room: part.room.number,
            pdu: pdu.clone(),
            status,
            after: StateRoot::EMPTY,
            position: None,
            height: 0,
            backfill_tie: None,
            auth_height: auth_heights.max().unwrap_or(0),
            auth: auth.iter().map(|event| event.number).collect(),
            // They are linked when the event is received with them.
            prev: smallvec::SmallVec::new(),
            over_gap: false,
            replaces: None,
            redacted_by: None,
            origin: None,
        }))
    }
}

impl Part<'_> {
    /// Has events at hand that were found.
    fn have(&mut self, found: Vec<Option<Arc<StoredEvent>>>) {
        for event in found.into_iter().flatten() {
            self.at_hand.insert(event.pdu.event_id().to_owned(), event);
        }
    }

    /// Makes an event part of it.
    fn take(&mut self, event: StoredEvent) -> Arc<StoredEvent> {
        let event = Arc::new(event);
        let id = event.pdu.event_id().to_owned();
        self.at_hand.insert(id, Arc::clone(&event));
        self.new.push(Arc::clone(&event));
        event
    }

    /// Adds the new events to a batch.
    fn write(&self, ordinal: u64, batch: &mut Batch) {
        let mut row = ImportPartRow::default();
        for event in &self.new {
            let (number, id) = (event.number, event.pdu.event_id());
            row.events.push((number, id.to_owned()));
            let key = (self.room.number.0, number.0);
            let stored = Positioned::new(At::Known(0), event.row());
            if self.numbers.contains_key(id) {
                // Somebody else may bring it at the same time.
                batch.assert_absent(&tables::EVENTS, &key);
            }
            batch.put(&tables::EVENTS, &key, &stored);
            let key = (self.import.0, id.as_str());
            batch.put(&tables::IMPORT_IDS, &key, &number.0);
        }
        let key = (self.import.0, ordinal);
        batch.put(&tables::IMPORT_PARTS, &key, &row);
        if !self.state.is_empty() {
            let events = self.state.clone();
            batch.put(&tables::IMPORT_STATES, &key, &ImportStateRow { events });
        }
    }
}
