//! Changes of state larger than a batch: prepared in many batches that nothing refers to, switched
//! in by one, indexed afterwards.
//!
//! An *import* writes events and tree nodes part by part; each part is one batch that also counts
//! it, so a caller that was killed goes on where the import says. The *switch* is one small batch:
//! the head names the new root, the state log has it, the journal says that the state changed. What
//! the switch leaves to do (ids of the new events, member indexes) is a *debt*, a row of the same
//! batch, paid in batches of its own; it is paid before the switch answers, or when the rooms are
//! opened again. An import that is not touched for a day is swept.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use homeserver_events::{EventStatus, Pdu};
use homeserver_storage::{
    At, Batch, CommitError, Direction, Durability, Entry, Position, Positioned, ScanRange,
};
use ruma::{OwnedEventId, UserId};
use smallvec::SmallVec;

use crate::{
    Rooms,
    delta::{journal, put_member},
    edit::{Pending, member::count},
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    live::Wants,
    numbers::{EventNumber, RoomNumber},
    room::Room,
    rows::{Head, ImportPartRow, ImportRow, IndexDebtRow, Membership, MembershipRow, StateLogRow},
    states::write_nodes,
    tables,
    tree::{Change, Difference, Node, NodeId, StateRoot},
    visible::membership_of,
};

/// State events of one part of an import: as many as surely fit into a batch with their nodes.
pub const IMPORT_PART: usize = 100;

/// Times a step is tried while others change the same room.
const ATTEMPTS: usize = 16;

/// After this time without a new part an import counts as abandoned, in milliseconds: a day.
pub const IMPORT_LIFETIME: u64 = 24 * 60 * 60 * 1000;

/// Changes of members indexed by one batch.
const INDEXED_AT_ONCE: usize = 100;

/// Rows swept by one batch.
const SWEPT_AT_ONCE: usize = 400;

/// A change of a room's state being prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImportId(pub u64);

impl Rooms {
    /// Begins to prepare a change of the room's state as it is now.
    pub async fn begin_import(&self, room: &Room) -> Result<ImportId, RoomError> {
        let head = self.store.get(&tables::HEADS, &room.number.0).await?;
        let head: Head = head.ok_or(RoomError::UnknownRoom)?;
        // Numbers of events are never given twice, so one of them names the import.
        let import = ImportId(self.numbering.new_event().await?.0);
        let row = ImportRow {
            room: room.number.0,
            touched: self.clock.unix_millis(),
            parts: 0,
            base: head.root,
            root: head.root,
        };
        let mut batch = Batch::new();
        batch.assert_absent(&tables::IMPORTS, &import.0);
        batch.put(&tables::IMPORTS, &import.0, &row);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(import)
    }

    /// How many parts of an import are on disk; `None` if it was switched in or swept.
    pub async fn import_progress(&self, import: ImportId) -> Result<Option<u64>, RoomError> {
        let row = self.store.get(&tables::IMPORTS, &import.0).await?;
        Ok(row.map(|row: ImportRow| row.parts))
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
            return Err(RoomError::TooLarge(
                "too many events in one part".to_owned(),
            ));
        }
        let row: ImportRow = self.import_row(import).await?;
        if ordinal < row.parts {
            return Ok(());
        }
        if ordinal > row.parts {
            return Err(RoomError::Damaged(
                "a part of an import is missing".to_owned(),
            ));
        }
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
        let pending = Pending::default();
        let edited = self
            .states
            .edit(room.number, &pending.nodes, row.root, &changes)
            .await?;
        part.nodes = edited.written.iter().map(|node| node.id.0).collect();
        write_nodes(&mut batch, room.number, &edited.written);
        let next = ImportRow {
            touched: self.clock.unix_millis(),
            parts: ordinal + 1,
            root: edited.root,
            ..row.clone()
        };
        batch.assert_value(&tables::IMPORTS, &import.0, &row);
        batch.put(&tables::IMPORTS, &import.0, &next);
        batch.put(&tables::IMPORT_PARTS, &(import.0, ordinal), &part);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }

    async fn import_row(&self, import: ImportId) -> Result<ImportRow, RoomError> {
        let row = self.store.get(&tables::IMPORTS, &import.0).await?;
        row.ok_or_else(|| RoomError::Damaged("there is no such import".to_owned()))
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

    /// Switches a prepared state in, in one small batch, and writes its indexes. What changed in
    /// the room since the import began stays.
    pub async fn switch(&self, import: ImportId) -> Result<Position, RoomError> {
        for _ in 0..ATTEMPTS {
            if let Some((room, position)) = self.try_switch(import).await? {
                self.pay_debts_of(&room).await?;
                return Ok(position);
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_switch(
        &self,
        import: ImportId,
    ) -> Result<Option<(Arc<Room>, Position)>, RoomError> {
        let row = self.import_row(import).await?;
        let room = self.room_by_number(RoomNumber(row.room)).await?;
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (seen, _) = tip.parts();
        let mut batch = Batch::new();
        let root = self.rebased(&room, &row, seen.root, &mut batch).await?;
        let mut head = seen.clone();
        head.sequence += 1;
        head.root = root;
        self.recount(&room, &seen, &mut head).await?;
        // The next event follows the present extremities, and its state is the resolved one.
        for extremity in &mut head.extremities {
            extremity.after = root;
        }
        batch.assert_value(&tables::IMPORTS, &import.0, &row);
        batch.delete(&tables::IMPORTS, &import.0);
        batch.assert_value(&tables::HEADS, &room.number.0, &seen);
        batch.put(&tables::HEADS, &room.number.0, &head);
        let entry = Entry {
            kind: journal::STATE_CHANGED,
            version: journal::VERSION,
            numbers: SmallVec::from_slice(&[room.number.0]),
        };
        let append = batch.append(&entry, &[journal::room_topic(room.number)]);
        let at = At::Append(append);
        let log = StateLogRow {
            root,
            joined: head.joined,
            invited: head.invited,
        };
        batch.put(&tables::STATE_LOG, &(room.number.0, at), &log);
        let debt = IndexDebtRow {
            import: import.0,
            from: seen.root,
            to: root,
            done: 0,
        };
        batch.put(&tables::INDEX_DEBTS, &(room.number.0, at), &debt);
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let commit = live.submitted(&mut tip, head);
        drop(tip);
        let outcome = ticket.await;
        commit.settle(outcome.is_ok());
        match outcome {
            Ok(done) => Ok(Some((room, done.positions.last().copied().unwrap_or(0)))),
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(not_stored(error)),
        }
    }

    /// The prepared state with what changed in the room in the meantime.
    async fn rebased(
        &self,
        room: &Room,
        row: &ImportRow,
        now: StateRoot,
        batch: &mut Batch,
    ) -> Result<StateRoot, RoomError> {
        if now == row.base {
            return Ok(row.root);
        }
        let pending = Pending::default();
        let roots = (row.base, now);
        let found = self
            .states
            .difference(room.number, &pending.nodes, roots)
            .await?;
        let mut changes = Vec::with_capacity(found.len());
        for difference in found {
            let key = self.numbering.key_name(difference.key).await?;
            changes.push(Change {
                hash: self.states.place(key.event_type(), key.state_key()),
                key: difference.key,
                value: difference.after,
            });
        }
        let edited = self
            .states
            .edit(room.number, &pending.nodes, row.root, &changes)
            .await?;
        write_nodes(batch, room.number, &edited.written);
        Ok(edited.root)
    }

    /// Counts the members of the new state from the difference to the old one.
    async fn recount(&self, room: &Room, old: &Head, new: &mut Head) -> Result<(), RoomError> {
        for change in self.member_changes(room, old.root, new.root).await? {
            count(new, change.before, -1);
            count(new, change.after, 1);
        }
        Ok(())
    }

    /// The members in which two states differ, in a fixed order.
    async fn member_changes(
        &self,
        room: &Room,
        from: StateRoot,
        to: StateRoot,
    ) -> Result<Vec<ChangedMember>, RoomError> {
        let pending = Pending::default();
        let mut found = self
            .states
            .difference(room.number, &pending.nodes, (from, to))
            .await?;
        found.sort_unstable();
        let mut changes = Vec::with_capacity(found.len());
        for some in found.chunks(INDEXED_AT_ONCE) {
            changes.extend(self.members_of(room, some).await?);
        }
        Ok(changes)
    }

    async fn members_of(
        &self,
        room: &Room,
        found: &[Difference],
    ) -> Result<Vec<ChangedMember>, RoomError> {
        let numbers: Vec<_> = found
            .iter()
            .flat_map(|d| [d.before, d.after])
            .flatten()
            .map(|(event, _)| event)
            .collect();
        let events = self.events.load_all(room, &numbers).await?;
        let memberships: HashMap<_, _> = events
            .iter()
            .map(|event| (event.number, membership_of(event)))
            .collect();
        let membership =
            |value: Option<(EventNumber, u64)>| memberships.get(&value?.0).copied().flatten();
        let mut changes = Vec::new();
        for difference in found {
            let key = self.numbering.key_name(difference.key).await?;
            let user = UserId::parse(key.state_key());
            if let ("m.room.member", Ok(user)) = (key.event_type(), user) {
                changes.push(ChangedMember {
                    user,
                    before: membership(difference.before),
                    after: membership(difference.after),
                    event: difference
                        .after
                        .or(difference.before)
                        .map(|(event, _)| event),
                });
            }
        }
        Ok(changes)
    }

    /// Does what switches of this room left to do.
    async fn pay_debts_of(&self, room: &Arc<Room>) -> Result<(), RoomError> {
        let range = ScanRange::prefix(&room.number.0);
        let debts = self
            .store
            .scan(&tables::INDEX_DEBTS, range, Direction::Forward, ATTEMPTS)
            .await?;
        for ((_, position), debt) in debts {
            self.pay_ids(room, debt.import).await?;
            self.pay_members(room, position, debt).await?;
        }
        Ok(())
    }

    /// Makes the events of a switched import findable by id.
    async fn pay_ids(&self, room: &Room, import: u64) -> Result<(), RoomError> {
        loop {
            let range = ScanRange::prefix(&import);
            let parts = self
                .store
                .scan(&tables::IMPORT_PARTS, range, Direction::Forward, 4)
                .await?;
            if parts.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for (key, part) in parts {
                for (number, id) in part.events {
                    // Who mentioned the event in the meantime gave it another number; the state
                    // tree names this one, and both rows are the same event.
                    batch.put(&tables::EVENT_IDS, &(room.number.0, id.as_str()), &number.0);
                }
                batch.delete(&tables::IMPORT_PARTS, &key);
            }
            self.store.commit(batch).await.map_err(not_stored)?;
        }
    }

    /// Writes the member indexes of a switch, each batch counting how far it came.
    async fn pay_members(
        &self,
        room: &Arc<Room>,
        position: Position,
        debt: IndexDebtRow,
    ) -> Result<(), RoomError> {
        let changes = self.member_changes(room, debt.from, debt.to).await?;
        let live = self.live.room(room.number);
        let mut debt = debt;
        let key = (room.number.0, position);
        loop {
            // Nobody else changes the members of this room meanwhile.
            let _tip = live.tip(&self.store, Wants::Settled).await?;
            let from = usize::try_from(debt.done)
                .unwrap_or(usize::MAX)
                .min(changes.len());
            let some = &changes[from..changes.len().min(from + INDEXED_AT_ONCE)];
            let mut batch = Batch::new();
            batch.assert_value(&tables::INDEX_DEBTS, &key, &debt);
            if some.is_empty() {
                batch.delete(&tables::INDEX_DEBTS, &key);
                self.store.commit(batch).await.map_err(not_stored)?;
                return Ok(());
            }
            self.index_members(room, position, some, &mut batch).await?;
            let further = IndexDebtRow {
                done: debt.done + some.len() as u64,
                ..debt.clone()
            };
            batch.put(&tables::INDEX_DEBTS, &key, &further);
            self.store.commit(batch).await.map_err(not_stored)?;
            debt = further;
        }
    }

    async fn index_members(
        &self,
        room: &Room,
        position: Position,
        changes: &[ChangedMember],
        batch: &mut Batch,
    ) -> Result<(), RoomError> {
        let mut servers: BTreeMap<&str, i64> = BTreeMap::new();
        for change in changes {
            let joined = |m: Option<Membership>| i64::from(m == Some(Membership::Join));
            let by = joined(change.after) - joined(change.before);
            *servers
                .entry(change.user.server_name().as_str())
                .or_default() += by;
            if change.user.server_name() == self.options.server_name {
                self.index_local(room, position, change, batch).await?;
            }
        }
        for (server, by) in servers.into_iter().filter(|(_, by)| *by != 0) {
            let key = (room.number.0, server);
            let counted = self
                .store
                .get(&tables::SERVER_COUNTS, &key)
                .await?
                .unwrap_or(0);
            let count = counted.saturating_add_signed(by);
            if count == 0 {
                batch.delete(&tables::SERVER_COUNTS, &key);
            } else {
                batch.put(&tables::SERVER_COUNTS, &key, &count);
            }
            if (counted == 0) != (count == 0) {
                let key = (room.number.0, server, At::Known(position));
                batch.put(&tables::SERVER_LOG, &key, &u64::from(count > 0));
            }
        }
        Ok(())
    }

    async fn index_local(
        &self,
        room: &Room,
        position: Position,
        change: &ChangedMember,
        batch: &mut Batch,
    ) -> Result<(), RoomError> {
        let Some(event) = change.event else {
            return Ok(());
        };
        let user = self.numbering.user(&change.user).await?;
        let row = MembershipRow {
            membership: change.after.unwrap_or(Membership::Leave),
            event,
            forgotten: false,
        };
        let now = self.membership(user, room.number, Position::MAX).await?;
        if now.is_some_and(|now| now.since > position) {
            let key = (user.0, room.number.0, At::Known(position));
            batch.put(&tables::MEMBERSHIPS, &key, &row);
        } else {
            put_member(batch, (user.0, room.number.0), &row, At::Known(position));
        }
        Ok(())
    }

    /// Goes on with what a killed process left: indexes of switches, abandoned imports.
    pub(crate) async fn resume(&self) -> Result<(), RoomError> {
        let all = ScanRange::all();
        let debts = self
            .store
            .scan(&tables::INDEX_DEBTS, all, Direction::Forward, usize::MAX)
            .await?;
        let rooms: HashSet<_> = debts.iter().map(|((room, _), _)| *room).collect();
        for room in rooms {
            let room = self.room_by_number(RoomNumber(room)).await?;
            self.pay_debts_of(&room).await?;
        }
        self.sweep_imports().await?;
        Ok(())
    }

    /// Removes what imports prepared that were not touched for a day. Gives how many went.
    pub async fn sweep_imports(&self) -> Result<usize, RoomError> {
        let now = self.clock.unix_millis();
        let all = ScanRange::all();
        let imports = self
            .store
            .scan(&tables::IMPORTS, all, Direction::Forward, usize::MAX)
            .await?;
        let mut swept = 0;
        for (import, row) in imports {
            if row.touched + IMPORT_LIFETIME < now {
                self.sweep_import(import, &row).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// First what was prepared goes, then the parts that name it, then the import.
    async fn sweep_import(&self, import: u64, row: &ImportRow) -> Result<(), RoomError> {
        let room = RoomNumber(row.room);
        let range = ScanRange::prefix(&import);
        let parts = self
            .store
            .scan(&tables::IMPORT_PARTS, range, Direction::Forward, usize::MAX)
            .await?;
        let fresh: HashSet<_> = parts
            .iter()
            .flat_map(|(_, part)| &part.events)
            .map(|(number, _)| *number)
            .collect();
        let nodes: Vec<_> = parts
            .iter()
            .flat_map(|(_, part)| &part.nodes)
            .copied()
            .collect();
        let own = self.own_nodes(room, &nodes, &fresh).await?;
        let events: Vec<_> = fresh.into_iter().collect();
        for some in events.chunks(SWEPT_AT_ONCE) {
            let mut batch = Batch::new();
            for number in some {
                batch.delete(&tables::EVENTS, &(room.0, number.0));
            }
            self.store.commit(batch).await.map_err(not_stored)?;
            self.events.rewritten(room, some);
        }
        for some in own.chunks(SWEPT_AT_ONCE) {
            let mut batch = Batch::new();
            for node in some {
                batch.delete(&tables::STATE_NODES, &(room.0, node.0));
            }
            self.store.commit(batch).await.map_err(not_stored)?;
        }
        for some in parts.chunks(SWEPT_AT_ONCE) {
            let mut batch = Batch::new();
            for (key, _) in some {
                batch.delete(&tables::IMPORT_PARTS, key);
            }
            self.store.commit(batch).await.map_err(not_stored)?;
        }
        let mut batch = Batch::new();
        batch.delete(&tables::IMPORTS, &import);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }

    /// The nodes that only this import can have: those above an event that only it has. Others may
    /// be part of a state of the room, since equal nodes are one.
    async fn own_nodes(
        &self,
        room: RoomNumber,
        nodes: &[[u8; 16]],
        fresh: &HashSet<EventNumber>,
    ) -> Result<Vec<NodeId>, RoomError> {
        let mut own: HashSet<NodeId> = HashSet::new();
        // Each edit wrote the nodes below before those above, so one pass upwards finds them all.
        for some in nodes.chunks(SWEPT_AT_ONCE) {
            let keys: Vec<_> = some.iter().map(|node| (room.0, *node)).collect();
            let rows = self.store.multi_get(&tables::STATE_NODES, &keys).await?;
            for (id, row) in some.iter().zip(rows) {
                let Some(node) = row.and_then(|row| Node::decode(&row.encoded)) else {
                    continue;
                };
                let above_own = node.below().any(|below| own.contains(&below));
                if above_own || node.events().any(|event| fresh.contains(&event)) {
                    own.insert(NodeId(*id));
                }
            }
        }
        Ok(own.into_iter().collect())
    }
}

/// A member in which two states differ.
struct ChangedMember {
    user: ruma::OwnedUserId,
    before: Option<Membership>,
    after: Option<Membership>,
    event: Option<EventNumber>,
}
