//! What all servers are owed, and what is stored of it.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_storage::{Batch, Position, batch::MAX_OPS};
use ruma::{OwnedServerName, ServerName};

use super::{
    owed::{Owed, Queued},
    rows::BehindRow,
};
use crate::tables::{BEHIND, BEHIND_ROOMS};

/// Operations of one batch of rows.
const ROWS_AT_ONCE: usize = MAX_OPS / 2;

/// A server that is owed something.
#[derive(Debug, Default)]
pub(super) struct Destination {
    pub(super) owed: Owed,
    /// Somebody sends it what it is owed.
    pub(super) has_worker: bool,
    /// What its rows say.
    stored: Lacking,
}

/// What the rows of a server say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lacking {
    pub(super) rest: Option<BehindRow>,
    pub(super) rooms: BTreeMap<u64, Position>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    destinations: BTreeMap<OwnedServerName, Destination>,
    /// Those of which something changed since rows were written.
    changed: BTreeSet<OwnedServerName>,
    /// Tasks that send.
    pub(super) workers: usize,
    /// Of the store, when rows were last written.
    generation: u64,
}

/// Rows that are to be written.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) batches: Vec<Batch>,
    lacking: Vec<(OwnedServerName, Lacking)>,
}

impl State {
    /// Takes back what the rows of a server say. What is in the journal up to `upto` was read.
    pub(super) fn take_back(&mut self, server: OwnedServerName, stored: Lacking, upto: Position) {
        let destination = Destination {
            owed: Owed::stored(&stored, upto),
            has_worker: false,
            stored,
        };
        self.changed.insert(server.clone());
        self.destinations.insert(server, destination);
    }

    /// Notes that a server is owed an event. Gives whether it needs a worker.
    pub(super) fn push(&mut self, server: &ServerName, queued: Queued) -> bool {
        self.change(server, |owed| owed.push(queued));
        self.needs_worker(server)
    }

    /// The servers that need a worker.
    pub(super) fn without_worker(&mut self) -> Vec<OwnedServerName> {
        let servers: Vec<_> = self.destinations.keys().cloned().collect();
        let mut idle = servers;
        idle.retain(|server| self.needs_worker(server));
        idle
    }

    /// Whether a server needs a worker, who is then counted.
    pub(super) fn needs_worker(&mut self, server: &ServerName) -> bool {
        let Some(destination) = self.destinations.get_mut(server) else {
            return false;
        };
        if destination.has_worker || destination.owed.is_empty() {
            return false;
        }
        destination.has_worker = true;
        self.workers += 1;
        true
    }

    /// What a server is owed.
    pub(super) fn owed(&self, server: &ServerName) -> Option<&Owed> {
        self.destinations
            .get(server)
            .map(|destination| &destination.owed)
    }

    /// Changes what a server is owed.
    pub(super) fn change<T>(
        &mut self,
        server: &ServerName,
        change: impl FnOnce(&mut Owed) -> T,
    ) -> T {
        if !self.changed.contains(server) {
            self.changed.insert(server.to_owned());
        }
        if let Some(destination) = self.destinations.get_mut(server) {
            return change(&mut destination.owed);
        }
        let mut destination = Destination::default();
        let changed = change(&mut destination.owed);
        self.destinations.insert(server.to_owned(), destination);
        changed
    }

    /// Its worker stops, unless there is something left to do. Gives whether it does.
    pub(super) fn rest(&mut self, server: &ServerName) -> bool {
        let Some(destination) = self.destinations.get_mut(server) else {
            return true;
        };
        if !destination.owed.is_empty() {
            return false;
        }
        self.end(server);
        true
    }

    /// Its worker stops.
    pub(super) fn end(&mut self, server: &ServerName) {
        if let Some(destination) = self.destinations.get_mut(server)
            && std::mem::take(&mut destination.has_worker)
        {
            self.workers -= 1;
        }
    }

    /// Where the engine was opened anew, rows that were written lazily may be gone: all are written
    /// again.
    pub(super) fn note_generation(&mut self, generation: u64) {
        if std::mem::replace(&mut self.generation, generation) == generation {
            return;
        }
        for (server, destination) in &mut self.destinations {
            destination.stored = Lacking::default();
            self.changed.insert(server.clone());
        }
    }

    /// Whether anything changed since rows were written.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The rows of what changed, as it is now.
    pub(super) fn rows(&mut self) -> Rows {
        let mut rows = Rows {
            batches: Vec::new(),
            lacking: Vec::new(),
        };
        let mut batch = Batch::new();
        for server in std::mem::take(&mut self.changed) {
            let Some(destination) = self.destinations.get(&server) else {
                continue;
            };
            let now = destination.owed.lacking();
            if now != destination.stored {
                write(
                    &server,
                    (&destination.stored, &now),
                    &mut batch,
                    &mut rows.batches,
                );
            }
            rows.lacking.push((server, now));
        }
        if !batch.is_empty() {
            rows.batches.push(batch);
        }
        rows
    }

    /// The rows are written, or were not.
    pub(super) fn written(&mut self, rows: Rows, is_written: bool) {
        for (server, lacking) in rows.lacking {
            if !is_written {
                self.changed.insert(server);
                continue;
            }
            let Some(destination) = self.destinations.get_mut(&server) else {
                continue;
            };
            destination.stored = lacking;
            let is_idle = !destination.has_worker && destination.owed.is_empty();
            if is_idle && destination.stored == Lacking::default() {
                self.destinations.remove(&server);
                self.changed.remove(&server);
            }
        }
    }
}

/// Adds the rows in which two states of a server differ. What is too much for one batch goes on in
/// the next.
fn write(
    server: &ServerName,
    (before, now): (&Lacking, &Lacking),
    batch: &mut Batch,
    full: &mut Vec<Batch>,
) {
    let name = server.as_str();
    match &now.rest {
        Some(row) => batch.put(&BEHIND, &name, row),
        None => batch.delete(&BEHIND, &name),
    }
    let gone = before
        .rooms
        .keys()
        .filter(|room| !now.rooms.contains_key(room));
    let gone = gone.map(|room| (*room, None));
    let changed = now.rooms.iter();
    let changed = changed.filter(|(room, from)| before.rooms.get(room) != Some(from));
    let changed = changed.map(|(room, from)| (*room, Some(*from)));
    for (room, from) in gone.chain(changed) {
        if batch.len() >= ROWS_AT_ONCE {
            full.push(std::mem::take(batch));
        }
        match from {
            Some(from) => batch.put(&BEHIND_ROOMS, &(name, room), &from),
            None => batch.delete(&BEHIND_ROOMS, &(name, room)),
        }
    }
    if batch.len() >= ROWS_AT_ONCE {
        full.push(std::mem::take(batch));
    }
}
