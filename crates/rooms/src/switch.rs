//! Switching a prepared change of state in.
//!
//! The *switch* is one small batch: the head names the new root, the state log has it, the journal
//! says that the state changed. What the switch leaves to do (ids of the new events, member
//! indexes) is a *debt*, a row of the same batch, paid before the switch answers, or when the rooms
//! are opened again. See `import` for what comes before and `debts` for what comes after.

use std::{collections::HashMap, sync::Arc};

use homeserver_storage::{AppendRef, At, Batch, CommitError, Durability, Entry, Position};
use ruma::UserId;
use smallvec::SmallVec;

use crate::{
    Rooms,
    delta::journal,
    directory::write_listed,
    edit::member::count,
    error::RoomError,
    execute::not_stored,
    import::{ATTEMPTS, ImportId},
    live::Wants,
    numbers::{EventNumber, KeyNumber, RoomNumber},
    plant::ImportedMembers,
    room::Room,
    rows::{Head, ImportRow, IndexDebtRow, Membership, StateLogRow, TreeSweepRow},
    states::{PendingNodes, write_nodes},
    tables,
    tree::{Change, Difference, StateRoot},
    visible::membership_of,
};

/// Members whose events are loaded in one go.
const MEMBERS_AT_ONCE: usize = 200;

/// The memberships before and after an import, of members that it changes.
type PreparedMembers = HashMap<KeyNumber, (Option<Membership>, Option<Membership>)>;

/// A member in which two states differ.
pub(crate) struct ChangedMember {
    pub(crate) key: KeyNumber,
    pub(crate) user: ruma::OwnedUserId,
    pub(crate) before: Option<Membership>,
    pub(crate) after: Option<Membership>,
    pub(crate) event: Option<EventNumber>,
}

impl Rooms {
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

    pub(crate) async fn try_switch(
        &self,
        import: ImportId,
    ) -> Result<Option<(Arc<Room>, Position)>, RoomError> {
        let row = self.import_row(import).await?;
        let room = self.room_by_number(RoomNumber(row.room)).await?;
        let prepared = self.prepared_members(&room, import, &row).await?;
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (seen, _) = tip.parts();
        let mut batch = Batch::new();
        let meanwhile = self.changed_keys(&room, (row.base, seen.root)).await?;
        let root = self.rebased(&room, &row, &seen, &meanwhile, &mut batch);
        let root = root.await?;
        let mut head = seen.clone();
        head.sequence += 1;
        head.root = root;
        recount(&mut head, prepared, &meanwhile);
        // The next event follows the present extremities, and its state is the resolved one. The
        // states of their own rows are still those of before.
        for extremity in &mut head.extremities {
            extremity.after = root;
        }
        head.apart = Some(root);
        batch.assert_value(&tables::IMPORTS, &import.0, &row);
        batch.delete(&tables::IMPORTS, &import.0);
        batch.assert_value(&tables::HEADS, &room.number.0, &seen);
        batch.put(&tables::HEADS, &room.number.0, &head);
        write_listed(&mut batch, room.number, Some(&seen), &head);
        let _at = write_switch(&mut batch, &room, import, (&seen, &head));
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
        now: &Head,
        meanwhile: &[Difference],
        batch: &mut Batch,
    ) -> Result<StateRoot, RoomError> {
        if meanwhile.is_empty() {
            return Ok(row.root);
        }
        let mut changes = Vec::with_capacity(meanwhile.len());
        for difference in meanwhile {
            let key = self.numbering.key_name(difference.key).await?;
            changes.push(Change {
                hash: self.states.place(key.event_type(), key.state_key()),
                key: difference.key,
                value: difference.after,
            });
        }
        let pending = PendingNodes::new();
        let edit = self.states.edit(room.number, &pending, row.root, &changes);
        let edited = edit.await?;
        write_nodes(batch, (room.number, now.generation), &edited.written);
        Ok(edited.root)
    }

    /// The memberships that an import changes. There may be very many, so this is found out before
    /// the tip is taken.
    async fn prepared_members(
        &self,
        room: &Room,
        import: ImportId,
        row: &ImportRow,
    ) -> Result<PreparedMembers, RoomError> {
        let found = self.changed_keys(room, (row.base, row.root)).await?;
        let known = self.imported_members(import).await?;
        let mut members = PreparedMembers::new();
        for some in found.chunks(MEMBERS_AT_ONCE) {
            for change in self.members_among(room, some, &known).await? {
                members.insert(change.key, (change.before, change.after));
            }
        }
        Ok(members)
    }

    /// The keys in which two states differ, in a fixed order.
    pub(crate) async fn changed_keys(
        &self,
        room: &Room,
        roots: (StateRoot, StateRoot),
    ) -> Result<Vec<Difference>, RoomError> {
        let pending = PendingNodes::new();
        let found = self.states.difference(room.number, &pending, roots);
        let mut found = found.await?;
        found.sort_unstable();
        Ok(found)
    }

    /// The members among changed keys. The memberships of some events are known; the others' events
    /// are read.
    pub(crate) async fn members_among(
        &self,
        room: &Room,
        found: &[Difference],
        known: &ImportedMembers,
    ) -> Result<Vec<ChangedMember>, RoomError> {
        let mut users = Vec::with_capacity(found.len());
        for difference in found {
            let key = self.numbering.key_name(difference.key).await?;
            let user = UserId::parse(key.state_key());
            if let ("m.room.member", Ok(user)) = (key.event_type(), user) {
                users.push((user, difference));
            }
        }
        let values = users.iter().flat_map(|(_, d)| [d.before, d.after]);
        let numbers = values.flatten().map(|(event, _)| event);
        let numbers: Vec<_> = numbers
            .filter(|number| !known.contains_key(number))
            .collect();
        let events = self.events.load_all(room, &numbers).await?;
        let read: HashMap<_, _> = events
            .iter()
            .map(|event| (event.number, membership_of(event)))
            .collect();
        let membership = |value: Option<(EventNumber, u64)>| {
            let event = value?.0;
            known
                .get(&event)
                .or_else(|| read.get(&event))
                .copied()
                .flatten()
        };
        let change = |(user, difference): (_, &Difference)| {
            let value = difference.after.or(difference.before);
            ChangedMember {
                key: difference.key,
                user,
                before: membership(difference.before),
                after: membership(difference.after),
                event: value.map(|(event, _)| event),
            }
        };
        Ok(users.into_iter().map(change).collect())
    }
}

/// Counts the members of the new state. What changed in the room in the meantime stays as it is.
fn recount(head: &mut Head, mut prepared: PreparedMembers, meanwhile: &[Difference]) {
    for difference in meanwhile {
        prepared.remove(&difference.key);
    }
    for (before, after) in prepared.into_values() {
        count(head, before, -1);
        count(head, after, 1);
    }
}

/// What the switch from one head to another tells, and leaves to do. Gives where it is told.
pub(crate) fn write_switch(
    batch: &mut Batch,
    room: &Room,
    import: ImportId,
    (seen, head): (&Head, &Head),
) -> AppendRef {
    let entry = Entry {
        kind: journal::STATE_CHANGED,
        version: journal::VERSION,
        numbers: SmallVec::from_slice(&[room.number.0]),
    };
    let append = batch.append(&entry, &[journal::room_topic(room.number)]);
    let at = At::Append(append);
    let log = StateLogRow {
        root: head.root,
        joined: head.joined,
        invited: head.invited,
    };
    batch.put(&tables::STATE_LOG, &(room.number.0, at), &log);
    let debt = IndexDebtRow {
        import: import.0,
        from: seen.root,
        to: head.root,
        done: 0,
    };
    batch.put(&tables::INDEX_DEBTS, &(room.number.0, at), &debt);
    // Nothing names the trees between its parts any more.
    batch.put(&tables::TREE_SWEEPS, &room.number.0, &TreeSweepRow::ASKED);
    append
}
