//! The state events of an import: what its parts noted of them, and the tree that they make.
//!
//! Put into the tree as they come, in the order of the events, each would write a path of its own,
//! most of which the next parts write anew. So the parts only note them. When the tree is asked for
//! they are put in all at once, in the order of their places: then each node is written about once.
//! The import names all that is written after each batch, as sweeps of nodes require it.
//!
//! The notes stay until the members of the switch are indexed, which need not read the events then.

use std::collections::{BTreeMap, HashMap};

use homeserver_storage::{
    Batch, CommitError, Direction, ScanRange,
    batch::{MAX_BATCH, MAX_OPS},
};

use crate::{
    ImportId, Rooms, StateLogRow,
    edit::member::count,
    error::RoomError,
    import::ATTEMPTS,
    numbers::{EventNumber, KeyNumber, RoomNumber},
    rows::{Head, ImportRow, ImportedState, Membership},
    states::{PendingNodes, write_nodes},
    tables,
    tree::{Change, Edited},
};

/// Keys that are put into the tree by one batch, as a rule: fewer where that writes more nodes than
/// fit.
const KEYS_AT_ONCE: usize = 1_000;

/// Notes of parts that are read in one go.
const PARTS_AT_ONCE: usize = 50;

/// The memberships of members whom an import brought, by their events.
pub(crate) type ImportedMembers = HashMap<EventNumber, Option<Membership>>;

impl Rooms {
    /// An import that is open, whatever of its state events is in its tree.
    pub(crate) async fn open_import(&self, import: ImportId) -> Result<ImportRow, RoomError> {
        let row = self.store.get(&tables::IMPORTS, &import.0).await?;
        row.filter(|row: &ImportRow| !row.abandoned)
            .ok_or_else(|| RoomError::damaged("there is no such import"))
    }

    /// An import that is open, with all its state events in its tree.
    pub(crate) async fn import_row(&self, import: ImportId) -> Result<ImportRow, RoomError> {
        for _ in 0..ATTEMPTS {
            let row = self.open_import(import).await?;
            if row.planted == row.parts {
                return Ok(row);
            }
            match self.plant(import, row).await {
                // A sweep began a generation, or somebody else does the same.
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        Err(RoomError::Contended)
    }

    /// Puts the state events that are only noted into the tree.
    async fn plant(&self, import: ImportId, mut row: ImportRow) -> Result<ImportRow, RoomError> {
        let mut changes: BTreeMap<_, _> = BTreeMap::new();
        self.for_each_imported(import, row.planted, |state| {
            let value = Some((state.event, state.auth_height));
            changes.insert((state.hash, state.key), value);
        })
        .await?;
        let changes = changes
            .into_iter()
            .map(|((hash, key), value)| Change { hash, key, value });
        let changes: Vec<_> = changes.collect();
        let room = RoomNumber(row.room);
        let (mut rest, mut at_once) = (changes.as_slice(), KEYS_AT_ONCE);
        loop {
            let (some, later) = rest.split_at(at_once.min(rest.len()));
            let pending = PendingNodes::new();
            let edited = self.states.edit(room, &pending, row.root, some).await?;
            if !fits(&edited) && at_once > 1 {
                at_once /= 2;
                continue;
            }
            rest = later;
            if edited.root == row.root && !rest.is_empty() {
                // A process that was killed has put them there.
                continue;
            }
            let planted = if rest.is_empty() {
                row.parts
            } else {
                row.planted
            };
            let next = ImportRow {
                touched: self.clock.unix_millis(),
                root: edited.root,
                planted,
                ..row.clone()
            };
            let mut batch = Batch::new();
            write_nodes(&mut batch, (room, row.generation), &edited.written);
            batch.assert_value(&tables::IMPORTS, &import.0, &row);
            batch.put(&tables::IMPORTS, &import.0, &next);
            self.write_prepared(batch).await?;
            row = next;
            if rest.is_empty() {
                return Ok(row);
            }
        }
    }

    /// Gives all state events of an import from part number `from` on, in their order.
    async fn for_each_imported(
        &self,
        import: ImportId,
        from: u64,
        mut see: impl FnMut(ImportedState),
    ) -> Result<(), RoomError> {
        let within = || ScanRange::prefix(&import.0);
        let mut range = match from.checked_sub(1) {
            Some(before) => within().after(&(import.0, before)),
            None => within(),
        };
        loop {
            let table = &tables::IMPORT_STATES;
            let rows = self
                .store
                .scan(table, range, Direction::Forward, PARTS_AT_ONCE);
            let rows = rows.await?;
            let last = rows.last().map(|(key, _)| *key);
            let is_last = rows.len() < PARTS_AT_ONCE;
            for (_, row) in rows {
                row.events.into_iter().for_each(&mut see);
            }
            match last {
                Some(last) if !is_last => range = within().after(&last),
                _ => return Ok(()),
            }
        }
    }

    /// The memberships of members whom an import brought.
    pub(crate) async fn imported_members(
        &self,
        import: ImportId,
    ) -> Result<ImportedMembers, RoomError> {
        let mut members = ImportedMembers::new();
        self.for_each_imported(import, 0, |state| {
            members.insert(state.event, state.membership);
        })
        .await?;
        Ok(members)
    }

    /// How many users are joined, and how many invited, in the state of an import that began from
    /// nothing.
    pub(crate) async fn imported_counts(
        &self,
        import: ImportId,
        row: &ImportRow,
    ) -> Result<StateLogRow, RoomError> {
        let mut members: HashMap<KeyNumber, Membership> = HashMap::new();
        self.for_each_imported(import, 0, |state| {
            match state.membership {
                Some(membership) => members.insert(state.key, membership),
                None => members.remove(&state.key),
            };
        })
        .await?;
        let mut counted = Head::default();
        for membership in members.into_values() {
            count(&mut counted, Some(membership), 1);
        }
        Ok(StateLogRow {
            root: row.root,
            joined: counted.joined,
            invited: counted.invited,
        })
    }
}

/// Whether the nodes of an edit fit into a batch, with the row of the import.
fn fits(edited: &Edited) -> bool {
    let bytes: usize = edited
        .written
        .iter()
        .map(|node| node.encoded.len() + 64)
        .sum();
    edited.written.len() + 2 <= MAX_OPS && bytes + 1_000 <= MAX_BATCH
}
