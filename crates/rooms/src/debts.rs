//! What a switch leaves to do: ids of the new events, indexes of their members.
//!
//! Paid in batches that each count how far they came, so a process that is killed in between pays
//! the rest when the rooms are opened again. The tip of the room is held for each batch, and the
//! batch asserts the head: nobody else names events or changes members of the room meanwhile.

mod redactions;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use homeserver_storage::{
    At, Batch, CommitError, Direction, Position, ScanRange, batch::MAX_TOPICS,
};

use ruma::{EventId, OwnedUserId};

use crate::{
    ImportId, Rooms, UserMembership,
    delta::{append_members_changed, put_member},
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    import::ATTEMPTS,
    live::Wants,
    members::MEMBER,
    numbers::{EventNumber, RoomNumber, UserNumber},
    plant::ImportedMembers,
    room::Room,
    rows::{Head, ImportPartRow, IndexDebtRow, Membership, MembershipRow},
    switch::ChangedMember,
    tables,
    tree::Difference,
    whereabouts::put_whereabouts,
};

/// Parts of an import whose ids are written by one batch: two operations an event.
const PARTS_AT_ONCE: usize = 1;

/// Changed keys that are looked at in one go.
const KEYS_AT_ONCE: usize = 100;

/// Changed keys that are indexed by one batch at most: the room waits for it.
const KEYS_A_BATCH: usize = 1000;

/// Operations of a batch at which it takes no more members. A local member takes five at most, a
/// server two.
const FULL: usize = 450;

/// An event of an import.
struct Named<'a> {
    number: EventNumber,
    id: &'a EventId,
    /// The number that it was given when it was received or mentioned.
    known: Option<EventNumber>,
    /// The event under that number.
    here: Option<Arc<StoredEvent>>,
}

/// The members of one batch.
#[derive(Default)]
struct Indexing {
    /// By how many the joined users of each server change.
    servers: BTreeMap<String, i64>,
    /// Local users with their new membership.
    local: Vec<(OwnedUserId, UserNumber, MembershipRow)>,
}

impl Indexing {
    fn operations(&self) -> usize {
        self.servers.len() * 2 + self.local.len() * 5
    }
}

impl Rooms {
    /// Goes on with what a killed process left: debts of switches, abandoned imports.
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

    /// Does what switches of this room left to do.
    pub(crate) async fn pay_debts_of(&self, room: &Arc<Room>) -> Result<(), RoomError> {
        let range = ScanRange::prefix(&room.number.0);
        let debts = self
            .store
            .scan(&tables::INDEX_DEBTS, range, Direction::Forward, ATTEMPTS)
            .await?;
        for ((_, position), debt) in debts {
            let (mut conflicts, mut paid_parts) = (0, None);
            let import = debt.import;
            while let Some(paid) = self.pay_some_ids(room, import, &mut paid_parts).await? {
                count_conflict(paid, &mut conflicts)?;
            }
            self.pay_members(room, position, debt).await?;
        }
        Ok(())
    }

    /// Makes some events of a switched import findable by id, of the parts after `paid`, to which it
    /// adds. Gives whether that was stored; `None` when there are none.
    async fn pay_some_ids(
        &self,
        room: &Room,
        import: u64,
        paid: &mut Option<(u64, u64)>,
    ) -> Result<Option<bool>, RoomError> {
        let live = self.live.room(room.number);
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (head, _) = tip.parts();
        let (table, mut range) = (&tables::IMPORT_PARTS, ScanRange::prefix(&import));
        if let Some(paid) = &*paid {
            // No scan over what was deleted.
            range = range.after(paid);
        }
        let scan = self
            .store
            .scan(table, range, Direction::Forward, PARTS_AT_ONCE);
        let parts = scan.await?;
        let Some(last) = parts.last().map(|(key, _)| *key) else {
            return Ok(None);
        };
        let named = self.named(room, &parts).await?;
        if let Some(redacted) = self.redact_some(room, &head, &named).await? {
            return Ok(Some(redacted));
        }
        // In a batch of its own, before the ids: a part is as large as one batch has operations for.
        let mut whereabouts = Batch::new();
        let mut batch = Batch::new();
        batch.assert_value(&tables::HEADS, &room.number.0, &head);
        for event in &named {
            // An event that was received in the meantime has another number, under which it was
            // judged and has arrived. One that was only mentioned has none to keep.
            if event.here.is_none() {
                let key = (room.number.0, event.id.as_str());
                batch.put(&tables::EVENT_IDS, &key, &event.number.0);
                put_whereabouts(&mut whereabouts, room.number.0, event.id);
            }
            batch.delete(&tables::IMPORT_IDS, &(import, event.id.as_str()));
        }
        for (key, _) in &parts {
            batch.delete(&tables::IMPORT_PARTS, key);
        }
        if !whereabouts.is_empty() {
            self.write_prepared(whereabouts).await?;
        }
        // Paid for good with the last members.
        let stored = stored(self.write_prepared(batch).await)?;
        if stored {
            *paid = Some(last);
        }
        Ok(Some(stored))
    }

    /// The events of these parts, with what the room knows under their ids.
    async fn named<'a>(
        &self,
        room: &Room,
        parts: &'a [((u64, u64), ImportPartRow)],
    ) -> Result<Vec<Named<'a>>, RoomError> {
        let events: Vec<_> = parts.iter().flat_map(|(_, part)| &part.events).collect();
        let ids = events.iter().map(|(_, id)| (room.number.0, id.as_str()));
        let ids: Vec<_> = ids.collect();
        let known = self.store.multi_get(&tables::EVENT_IDS, &ids).await?;
        let mut named = Vec::with_capacity(events.len());
        let numbers: Vec<_> = known.iter().flatten().copied().map(EventNumber).collect();
        let mut found = self.events.find_all(room, &numbers).await?.into_iter();
        for ((number, id), known) in events.into_iter().zip(known) {
            let known = known.map(EventNumber);
            let here = known.and_then(|_| found.next().flatten());
            let number = *number;
            named.push(Named {
                number,
                id,
                known,
                here,
            });
        }
        Ok(named)
    }

    /// Writes the member indexes of a switch.
    async fn pay_members(
        &self,
        room: &Arc<Room>,
        position: Position,
        debt: IndexDebtRow,
    ) -> Result<(), RoomError> {
        let changes = self.changed_keys(room, (debt.from, debt.to)).await?;
        let import = ImportId(debt.import);
        let known = self.imported_members(import).await?;
        let live = self.live.room(room.number);
        let key = (room.number.0, position);
        let mut debt = debt;
        let mut conflicts = 0;
        loop {
            let mut tip = live.tip(&self.store, Wants::Settled).await?;
            let (head, _) = tip.parts();
            let from = usize::try_from(debt.done).unwrap_or(usize::MAX);
            let rest = changes.get(from..).unwrap_or_default();
            let mut batch = Batch::new();
            batch.assert_value(&tables::INDEX_DEBTS, &key, &debt);
            let taken = self
                .index_members(room, (position, &head), (rest, &known), &mut batch)
                .await?;
            let further = IndexDebtRow {
                done: debt.done + taken as u64,
                ..debt.clone()
            };
            let is_last = taken == rest.len();
            if is_last {
                // Without them members are read from their events.
                let states = ScanRange::prefix(&import.0);
                self.store
                    .drop_range(&tables::IMPORT_STATES, states)
                    .await?;
                batch.delete(&tables::INDEX_DEBTS, &key);
            } else {
                batch.put(&tables::INDEX_DEBTS, &key, &further);
            }
            let paid = if is_last || batch.appends() > 0 {
                stored(self.store.commit(batch).await.map_err(not_stored))?
            } else {
                stored(self.write_prepared(batch).await)?
            };
            if paid && is_last {
                return Ok(());
            }
            count_conflict(paid, &mut conflicts)?;
            drop(tip);
            // Somebody else may be paying the same debt.
            match self.store.get(&tables::INDEX_DEBTS, &key).await? {
                Some(left) => debt = left,
                None => return Ok(()),
            }
        }
    }

    /// Indexes as many changed members as fit into one batch. Gives how many keys those are of.
    async fn index_members(
        &self,
        room: &Room,
        (position, head): (Position, &Head),
        (changes, known): (&[Difference], &ImportedMembers),
        batch: &mut Batch,
    ) -> Result<usize, RoomError> {
        batch.assert_value(&tables::HEADS, &room.number.0, head);
        let mut indexing = Indexing::default();
        let mut taken = 0;
        for some in changes.chunks(KEYS_AT_ONCE) {
            if indexing.operations() > FULL || taken >= KEYS_A_BATCH {
                break;
            }
            for change in self.members_among(room, some, known).await? {
                self.index_member(change, &mut indexing).await?;
            }
            taken += some.len();
        }
        self.write_servers(room, position, &indexing.servers, batch)
            .await?;
        self.write_local(room, (position, head), &indexing.local, batch)
            .await?;
        Ok(taken)
    }

    async fn index_member(
        &self,
        change: ChangedMember,
        indexing: &mut Indexing,
    ) -> Result<(), RoomError> {
        let joined = |m: Option<Membership>| i64::from(m == Some(Membership::Join));
        let server = change.user.server_name();
        let by = joined(change.after) - joined(change.before);
        *indexing.servers.entry(server.to_string()).or_default() += by;
        if let Some(event) = change.event
            && server == self.options.server_name
        {
            let row = MembershipRow {
                membership: change.after.unwrap_or(Membership::Leave),
                event,
                forgotten: false,
            };
            let user = self.numbering.user(&change.user).await?;
            indexing.local.push((change.user, user, row));
        }
        Ok(())
    }

    async fn write_servers(
        &self,
        room: &Room,
        position: Position,
        servers: &BTreeMap<String, i64>,
        batch: &mut Batch,
    ) -> Result<(), RoomError> {
        for (server, by) in servers.iter().filter(|(_, by)| **by != 0) {
            let key = (room.number.0, server.as_str());
            let counted = self.store.get(&tables::SERVER_COUNTS, &key).await?;
            let counted = counted.unwrap_or_default();
            let count = counted.changed(*by);
            count.put(batch, &key);
            if counted.present() != count.present() {
                let key = (room.number.0, server.as_str(), At::Known(position));
                batch.put(&tables::SERVER_LOG, &key, &u64::from(count.present()));
            }
        }
        Ok(())
    }

    /// Writes memberships where they are told: not at the position of the switch, which readers
    /// may have passed, but at that of an entry under the users' topics.
    async fn write_local(
        &self,
        room: &Room,
        (position, head): (Position, &Head),
        local: &[(OwnedUserId, UserNumber, MembershipRow)],
        batch: &mut Batch,
    ) -> Result<(), RoomError> {
        let mut told = Vec::with_capacity(local.len());
        for (name, user, row) in local {
            let indexed = self.membership(*user, room.number, Position::MAX).await?;
            let in_state = self.state_value(room, head.root, MEMBER, name.as_str());
            let in_state = in_state.await?;
            let is_newer =
                |now: UserMembership| now.since > position && Some(now.event) == in_state;
            if indexed.is_some_and(is_newer) {
                // It has changed since, and the user was told so: this is history already.
                let key = (user.0, room.number.0, At::Known(position));
                batch.put(&tables::MEMBERSHIPS, &key, row);
            } else {
                told.push((*user, row));
            }
        }
        for some in told.chunks(MAX_TOPICS) {
            let users: Vec<_> = some.iter().map(|(user, _)| *user).collect();
            let append = append_members_changed(batch, room.number, &users);
            for (user, row) in some {
                let key = (user.0, room.number.0);
                put_member(batch, key, row, At::Append(append));
            }
        }
        Ok(())
    }
}

/// Counts commits in a row that met another writer, and ends with the last that is tried.
fn count_conflict(paid: bool, conflicts: &mut usize) -> Result<(), RoomError> {
    *conflicts = if paid { 0 } else { *conflicts + 1 };
    if *conflicts < ATTEMPTS {
        Ok(())
    } else {
        Err(RoomError::Contended)
    }
}

/// Whether a batch is on disk; not if another process changed the room.
fn stored<T>(outcome: Result<T, RoomError>) -> Result<bool, RoomError> {
    match outcome {
        Ok(_) => Ok(true),
        Err(RoomError::NotStored(CommitError::Conflict { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}
