//! Removing nodes of state trees that no state of their room reaches any more.
//!
//! Such nodes are what an import leaves: the trees between its parts, and all of them when it is
//! abandoned. So a sweep is asked for by a row that comes in the batch of a switch, or with the end
//! of an abandoned import; rooms without such a row cost nothing.
//!
//! A sweep begins a new *generation* of its room, in a batch that replaces the head and the rows of
//! the room's open imports: whatever asserts one of those writes its nodes in the new generation.
//! Then it marks all that is reachable from open imports, the tip, the state log and the events,
//! and in the end removes what is neither marked nor of the new generation.
//!
//! Why no writer loses a node: a writer changes a state that is reachable, writes every node on the
//! changed paths (in the new generation, also those that were there before), and shares the rest
//! with the state it began from, which was reachable when the sweep began, and is marked, or was
//! itself made later in that way. Imports come first, since one that is switched in while the sweep
//! runs moves to the state log, but nothing moves the other way unseen. A removal asserts the row
//! that it looked at, so a node that is written again at that moment stays.
//!
//! A mark says that a node and all below it are reachable: nodes are marked after those below them.
//! So a sweep that is interrupted anywhere goes on without looking at the same nodes again.

use std::collections::HashSet;

use homeserver_storage::{Batch, CommitError, Direction, Durability, ScanRange};

use crate::{
    Rooms,
    error::RoomError,
    execute::not_stored,
    live::Wants,
    numbers::RoomNumber,
    rows::{ImportRow, TreeSweepRow, TreeSweepStep},
    tables::{EVENTS, HEADS, IMPORTS, STATE_LOG, STATE_NODES, TREE_MARKS, TREE_SWEEPS},
    tree::{Node, NodeId, StateRoot},
};

/// Rooms that one run works on.
const ROOMS_A_RUN: usize = 100;

/// Rows that one run looks at, all rooms together. The next run goes on.
const ROWS_A_RUN: usize = 200_000;

/// Rows of events, of the state log and of nodes read in one go.
const ROWS_AT_ONCE: usize = 400;

/// Marks written by one batch at most.
const MARKS_AT_ONCE: usize = 800;

/// Open imports of one room with which a sweep begins; with more of them it waits.
const OPEN_IMPORTS: usize = 400;

/// What became of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    /// There is nothing more to do for this room.
    Done,
    /// There is more to do.
    More,
}

impl Rooms {
    /// Goes on with the sweeps of nodes that are due, for a bounded number of rows.
    pub async fn sweep_nodes(&self) -> Result<(), RoomError> {
        let all = ScanRange::all();
        let scan = self
            .store
            .scan(&TREE_SWEEPS, all, Direction::Forward, ROOMS_A_RUN);
        let mut rows = ROWS_A_RUN;
        for (room, _) in scan.await? {
            if let Err(error) = self.sweep_nodes_of(RoomNumber(room), &mut rows).await {
                // One room costs only itself.
                tracing::warn!(room, %error, "the sweep of a room's state was interrupted");
            }
            if rows == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn sweep_nodes_of(&self, room: RoomNumber, rows: &mut usize) -> Result<(), RoomError> {
        while *rows > 0 && self.sweep_nodes_step(room, rows).await? == Swept::More {}
        Ok(())
    }

    /// One step of the sweep of one room. Counts `rows` down, and stops early at zero.
    pub(crate) async fn sweep_nodes_step(
        &self,
        room: RoomNumber,
        rows: &mut usize,
    ) -> Result<Swept, RoomError> {
        let Some(sweep) = self.store.get(&TREE_SWEEPS, &room.0).await? else {
            return Ok(Swept::Done);
        };
        let outcome = match sweep.step {
            TreeSweepStep::Asked => self.begin_generation(room, &sweep, rows).await,
            TreeSweepStep::Remove(after) => self.remove_unmarked(room, &sweep, after, rows).await,
            TreeSweepStep::Unmark => self.end_sweep(room, &sweep).await,
            _ => self.mark_some(room, &sweep, rows).await,
        };
        match outcome {
            // A sweep was asked for anew, the room moved, or a node was written again.
            Err(RoomError::NotStored(CommitError::Conflict { .. })) => {
                *rows = rows.saturating_sub(1);
                Ok(Swept::More)
            }
            outcome => outcome,
        }
    }

    /// Begins a generation. From here on every writer of the room writes in it.
    async fn begin_generation(
        &self,
        room: RoomNumber,
        sweep: &TreeSweepRow,
        rows: &mut usize,
    ) -> Result<Swept, RoomError> {
        let live = self.live.room(room);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (seen, _) = tip.parts();
        let mut head = seen.clone();
        head.sequence += 1;
        head.generation += 1;
        let imports = self.imports_of(room).await?;
        *rows = rows.saturating_sub(imports.len() + 1);
        if imports.len() > OPEN_IMPORTS {
            // The next run asks again.
            return Ok(Swept::Done);
        }
        let old_marks = ScanRange::prefix(&room.0).before(&(room.0, head.generation));
        let mut batch = Batch::new();
        batch.assert_value(&HEADS, &room.0, &seen);
        batch.put(&HEADS, &room.0, &head);
        for (import, row) in imports {
            let moved = ImportRow {
                generation: head.generation,
                ..row.clone()
            };
            batch.assert_value(&IMPORTS, &import, &row);
            batch.put(&IMPORTS, &import, &moved);
        }
        let next = TreeSweepRow {
            generation: head.generation,
            step: TreeSweepStep::Open,
        };
        batch.assert_value(&TREE_SWEEPS, &room.0, sweep);
        batch.put(&TREE_SWEEPS, &room.0, &next);
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let commit = live.submitted(&mut tip, head);
        drop(tip);
        let outcome = ticket.await;
        commit.settle(outcome.is_ok());
        outcome.map_err(not_stored)?;
        // Only now are they nobody's: another sweep may have been at work with them until then.
        self.store.drop_range(&TREE_MARKS, old_marks).await?;
        Ok(Swept::More)
    }

    async fn imports_of(&self, room: RoomNumber) -> Result<Vec<(u64, ImportRow)>, RoomError> {
        let all = ScanRange::all();
        let imports = self
            .store
            .scan(&IMPORTS, all, Direction::Forward, usize::MAX);
        let mut imports = imports.await?;
        imports.retain(|(_, row)| row.room == room.0);
        Ok(imports)
    }

    /// Marks what some rows reach, and goes on to the rows after them.
    async fn mark_some(
        &self,
        room: RoomNumber,
        sweep: &TreeSweepRow,
        rows: &mut usize,
    ) -> Result<Swept, RoomError> {
        let (roots, step) = self.roots_of(room, sweep.step).await?;
        *rows = rows.saturating_sub(roots.len());
        let distinct: HashSet<_> = roots.into_iter().filter_map(StateRoot::node).collect();
        let mut marking = Marking {
            rooms: self,
            room,
            sweep,
            rows,
            fresh: HashSet::new(),
        };
        for root in distinct {
            if marking.mark(root).await? == Swept::More {
                marking.write(None).await?;
                return Ok(Swept::More);
            }
        }
        let next = TreeSweepRow {
            step,
            ..sweep.clone()
        };
        marking.write(Some(&next)).await?;
        Ok(Swept::More)
    }

    /// The states that some rows name, and the step after those.
    async fn roots_of(
        &self,
        room: RoomNumber,
        step: TreeSweepStep,
    ) -> Result<(Vec<StateRoot>, TreeSweepStep), RoomError> {
        let within = ScanRange::prefix(&room.0);
        let forward = Direction::Forward;
        let mut roots = Vec::new();
        let next = match step {
            TreeSweepStep::Log(after) => {
                let range = within.after(&(room.0, after));
                let log = self
                    .store
                    .scan(&STATE_LOG, range, forward, ROWS_AT_ONCE)
                    .await?;
                roots.extend(log.iter().map(|(_, row)| row.root));
                let last = log.last().filter(|_| log.len() == ROWS_AT_ONCE);
                last.map_or(TreeSweepStep::Events(0), |((_, at), _)| {
                    TreeSweepStep::Log(*at)
                })
            }
            TreeSweepStep::Events(after) => {
                let range = within.after(&(room.0, after));
                let events = self
                    .store
                    .scan(&EVENTS, range, forward, ROWS_AT_ONCE)
                    .await?;
                for (_, row) in &events {
                    roots.push(row.value.after);
                    roots.extend(row.value.status.before().copied());
                }
                let last = events.last().filter(|_| events.len() == ROWS_AT_ONCE);
                let first = TreeSweepStep::Remove(NodeId::NONE.0);
                last.map_or(first, |((_, number), _)| TreeSweepStep::Events(*number))
            }
            _ => {
                for (_, import) in self.imports_of(room).await? {
                    roots.extend([import.root, import.base]);
                }
                if let Some(head) = self.store.get(&HEADS, &room.0).await? {
                    roots.push(head.root);
                    roots.extend(head.extremities.iter().map(|extremity| extremity.after));
                    roots.extend(head.apart);
                }
                TreeSweepStep::Log(0)
            }
        };
        Ok((roots, next))
    }

    /// Removes those of some nodes that are old and not marked.
    async fn remove_unmarked(
        &self,
        room: RoomNumber,
        sweep: &TreeSweepRow,
        after: [u8; 16],
        rows: &mut usize,
    ) -> Result<Swept, RoomError> {
        let range = ScanRange::prefix(&room.0).after(&(room.0, after));
        let scan = self
            .store
            .scan(&STATE_NODES, range, Direction::Forward, ROWS_AT_ONCE);
        let nodes = scan.await?;
        *rows = rows.saturating_sub(nodes.len());
        let key = |id: &[u8; 16]| (room.0, sweep.generation, *id);
        let keys: Vec<_> = nodes.iter().map(|((_, id), _)| key(id)).collect();
        let marks = self.store.multi_get(&TREE_MARKS, &keys).await?;
        let mut batch = Batch::new();
        batch.assert_value(&TREE_SWEEPS, &room.0, sweep);
        for ((node, row), mark) in nodes.iter().zip(marks) {
            if mark.is_none() && row.generation < sweep.generation {
                batch.assert_value(&STATE_NODES, node, row);
                batch.delete(&STATE_NODES, node);
            }
        }
        let last = nodes.last().filter(|_| nodes.len() == ROWS_AT_ONCE);
        let step = last.map_or(TreeSweepStep::Unmark, |((_, last), _)| {
            TreeSweepStep::Remove(*last)
        });
        let next = TreeSweepRow {
            step,
            ..sweep.clone()
        };
        batch.put(&TREE_SWEEPS, &room.0, &next);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(Swept::More)
    }

    async fn end_sweep(&self, room: RoomNumber, sweep: &TreeSweepRow) -> Result<Swept, RoomError> {
        let marks = ScanRange::prefix(&(room.0, sweep.generation));
        self.store.drop_range(&TREE_MARKS, marks).await?;
        let mut batch = Batch::new();
        batch.assert_value(&TREE_SWEEPS, &room.0, sweep);
        batch.delete(&TREE_SWEEPS, &room.0);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(Swept::Done)
    }
}

/// Marking of trees in one step of a sweep.
struct Marking<'a> {
    rooms: &'a Rooms,
    room: RoomNumber,
    sweep: &'a TreeSweepRow,
    /// Rows that may still be looked at.
    rows: &'a mut usize,
    /// Marked, but not written yet.
    fresh: HashSet<NodeId>,
}

/// A node whose descendants are being marked.
struct Above {
    id: NodeId,
    /// Nodes directly below that are not marked yet.
    below: Vec<(NodeId, Node)>,
}

impl Marking<'_> {
    /// Marks a node and all below it, those below first. Gives [`Swept::More`] if it stopped before
    /// the end; what is marked then need not be looked at again.
    async fn mark(&mut self, root: NodeId) -> Result<Swept, RoomError> {
        let mut path = Vec::new();
        for (id, node) in self.unmarked(&[root]).await? {
            path.push(self.enter(id, &node).await?);
        }
        // As deep as a tree at most.
        while let Some(above) = path.last_mut() {
            if let Some((id, node)) = above.below.pop() {
                let below = self.enter(id, &node).await?;
                path.push(below);
                continue;
            }
            self.fresh.insert(above.id);
            path.pop();
            if self.fresh.len() >= MARKS_AT_ONCE {
                self.write(None).await?;
            }
            if *self.rows == 0 && !path.is_empty() {
                return Ok(Swept::More);
            }
        }
        Ok(Swept::Done)
    }

    async fn enter(&mut self, id: NodeId, node: &Node) -> Result<Above, RoomError> {
        let below: Vec<_> = node.below().collect();
        let below = self.unmarked(&below).await?;
        Ok(Above { id, below })
    }

    /// Those of `nodes` that are not marked, loaded.
    async fn unmarked(&mut self, nodes: &[NodeId]) -> Result<Vec<(NodeId, Node)>, RoomError> {
        let (room, generation) = (self.room.0, self.sweep.generation);
        let unknown = nodes.iter().filter(|id| !self.fresh.contains(id));
        let unknown: Vec<NodeId> = unknown.copied().collect();
        let keys: Vec<_> = unknown.iter().map(|id| (room, generation, id.0)).collect();
        let marks = self.rooms.store.multi_get(&TREE_MARKS, &keys).await?;
        let unmarked = unknown.iter().zip(marks).filter(|(_, mark)| mark.is_none());
        let unmarked: Vec<NodeId> = unmarked.map(|(id, _)| *id).collect();
        *self.rows = self.rows.saturating_sub(unmarked.len());
        let keys: Vec<_> = unmarked.iter().map(|id| (room, id.0)).collect();
        let rows = self.rooms.store.multi_get(&STATE_NODES, &keys).await?;
        let load = |(id, row): (NodeId, Option<crate::rows::NodeRow>)| {
            let node = row.and_then(|row| Node::decode(&row.encoded));
            let gone = || RoomError::damaged(format!("a state node of room {room} is not there"));
            node.map(|node| (id, node)).ok_or_else(gone)
        };
        unmarked.into_iter().zip(rows).map(load).collect()
    }

    /// Writes the marks made so far, and where the sweep goes on if that moves.
    async fn write(&mut self, next: Option<&TreeSweepRow>) -> Result<(), RoomError> {
        if self.fresh.is_empty() && next.is_none() {
            return Ok(());
        }
        let (room, generation) = (self.room.0, self.sweep.generation);
        let mut batch = Batch::new();
        batch.assert_value(&TREE_SWEEPS, &room, self.sweep);
        for id in self.fresh.drain() {
            batch.put(&TREE_MARKS, &(room, generation, id.0), &());
        }
        if let Some(next) = next {
            batch.put(&TREE_SWEEPS, &room, next);
        }
        self.rooms.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }
}
