//! Preparing a change of state that is larger than a batch.
//!
//! An *import* writes events and tree nodes part by part; each part is one batch that also counts
//! it, so a caller that was killed goes on where the import says. Nothing refers to what it wrote
//! until [`Rooms::switch`]. An import that is not touched for a day is swept.

use homeserver_events::{EventStatus, Pdu};
use homeserver_storage::{At, Batch, CommitError, Positioned};
use ruma::OwnedEventId;

use crate::{
    Rooms,
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    live::Wants,
    numbers::{EventNumber, RoomNumber},
    room::Room,
    rows::{ImportPartRow, ImportRow},
    states::{PendingNodes, write_nodes},
    tables,
    tree::{Change, StateRoot},
};

/// State events of one part of an import: as many as surely fit into a batch with their nodes.
pub const IMPORT_PART: usize = 100;

/// Times a step is tried while others change the same room.
pub(crate) const ATTEMPTS: usize = 16;

/// After this time without a new part an import counts as abandoned, in milliseconds: a day.
pub const IMPORT_LIFETIME: u64 = 24 * 60 * 60 * 1000;

/// A change of a room's state being prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImportId(pub u64);

impl Rooms {
    /// Begins to prepare a change of the room's state as it is now.
    pub async fn begin_import(&self, room: &Room) -> Result<ImportId, RoomError> {
        // Numbers of events are never given twice, so one of them names the import.
        let import = ImportId(self.numbering.new_event().await?.0);
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, _) = tip.parts();
        let row = ImportRow {
            room: room.number.0,
            touched: self.clock.unix_millis(),
            parts: 0,
            base: head.root,
            root: head.root,
            generation: head.generation,
            abandoned: false,
        };
        let mut batch = Batch::new();
        // A sweep of nodes that begins now must know of the import.
        batch.assert_value(&tables::HEADS, &room.number.0, &head);
        batch.assert_absent(&tables::IMPORTS, &import.0);
        batch.put(&tables::IMPORTS, &import.0, &row);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(import)
    }

    /// How many parts of an import are on disk; `None` if it was switched in or abandoned.
    pub async fn import_progress(&self, import: ImportId) -> Result<Option<u64>, RoomError> {
        let row = self.store.get(&tables::IMPORTS, &import.0).await?;
        let open = row.filter(|row: &ImportRow| !row.abandoned);
        Ok(open.map(|row| row.parts))
    }

    /// Adds state events, at most [`IMPORT_PART`], as part number `ordinal`. A part that is on disk
    /// already is passed over. The events have been judged by the caller.
    pub async fn import_part(
        &self,
        import: ImportId,
        ordinal: u64,
        pdus: &[Pdu],
    ) -> Result<(), RoomError> {
        if pdus.len() > IMPORT_PART {
            let why = "too many events in one part".to_owned();
            return Err(RoomError::TooLarge(why));
        }
        for _ in 0..ATTEMPTS {
            let row = self.import_row(import).await?;
            if ordinal < row.parts {
                return Ok(());
            }
            if ordinal > row.parts {
                return Err(RoomError::damaged("a part of an import is missing"));
            }
            match self.try_import_part(import, &row, pdus).await {
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
        pdus: &[Pdu],
    ) -> Result<(), RoomError> {
        let room = self.room_by_number(RoomNumber(row.room)).await?;
        let mut batch = Batch::new();
        let mut part = ImportPartRow::default();
        let mut changes = Vec::with_capacity(pdus.len());
        for pdu in pdus {
            let number = self.import_event(&room, pdu, &mut part, &mut batch).await?;
            let Some((event_type, state_key)) = pdu.state_pair() else {
                continue;
            };
            changes.push(Change {
                hash: self.states.place(event_type, state_key),
                key: self.numbering.key(event_type, state_key).await?,
                value: Some((number, self.auth_height(&room, pdu).await?)),
            });
        }
        let pending = PendingNodes::new();
        let edit = self.states.edit(room.number, &pending, row.root, &changes);
        let edited = edit.await?;
        write_nodes(&mut batch, (room.number, row.generation), &edited.written);
        let next = ImportRow {
            touched: self.clock.unix_millis(),
            parts: row.parts + 1,
            root: edited.root,
            ..row.clone()
        };
        batch.assert_value(&tables::IMPORTS, &import.0, row);
        batch.put(&tables::IMPORTS, &import.0, &next);
        batch.put(&tables::IMPORT_PARTS, &(import.0, row.parts), &part);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }

    /// An import that is open.
    pub(crate) async fn import_row(&self, import: ImportId) -> Result<ImportRow, RoomError> {
        let row = self.store.get(&tables::IMPORTS, &import.0).await?;
        row.filter(|row: &ImportRow| !row.abandoned)
            .ok_or_else(|| RoomError::damaged("there is no such import"))
    }

    /// Prepares one event, unless it is here already.
    async fn import_event(
        &self,
        room: &Room,
        pdu: &Pdu,
        part: &mut ImportPartRow,
        batch: &mut Batch,
    ) -> Result<EventNumber, RoomError> {
        if let Some(number) = self.events.number(room.number, pdu.event_id()).await?
            && self.events.find(room, number).await?.is_some()
        {
            return Ok(number);
        }
        let number = self.numbering.new_event().await?;
        part.events.push((number, pdu.event_id().to_owned()));
        let event = StoredEvent {
            number,
            room: room.number,
            pdu: pdu.clone(),
            status: EventStatus::Outlier,
            after: StateRoot::EMPTY,
            position: None,
            height: 0,
            backfill_tie: None,
            auth_height: self.auth_height(room, pdu).await?,
            auth: self.known_numbers(room, pdu.auth_events()).await?.into(),
            prev: self.known_numbers(room, pdu.prev_events()).await?.into(),
            over_gap: false,
            replaces: None,
            redacted_by: None,
            origin: None,
        };
        let row = Positioned::new(At::Known(0), event.row());
        batch.put(&tables::EVENTS, &(room.number.0, number.0), &row);
        Ok(number)
    }

    async fn known_numbers(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<EventNumber>, RoomError> {
        let mut numbers = Vec::with_capacity(ids.len());
        for id in ids {
            numbers.extend(self.events.number(room.number, id).await?);
        }
        Ok(numbers)
    }

    /// One more than the greatest of the auth events that are here.
    async fn auth_height(&self, room: &Room, pdu: &Pdu) -> Result<u64, RoomError> {
        let numbers = self.known_numbers(room, pdu.auth_events()).await?;
        let events = self.events.find_all(room, &numbers).await?;
        let heights = events.iter().flatten().map(|event| event.auth_height + 1);
        Ok(heights.max().unwrap_or(0))
    }
}
