//! Judging: which batches of a group hold, which positions they are given, and what is written.
//!
//! The one function all engines share. An engine reads [`asserted_keys`], calls [`judge`] with
//! what it found, and writes the [`WriteSet`] atomically. Pure: no I/O here.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::{
    AssertRef, Position,
    batch::{Batch, Expected, Span},
    engine::{BatchResult, Committed, Conflict, Group},
    system::POSITION_KEY,
};

/// Each key that some batch of the group asserts something about, once.
pub fn asserted_keys(group: &Group) -> Vec<Vec<u8>> {
    let mut seen = HashSet::new();
    let asserts = group
        .batches
        .iter()
        .flat_map(|batch| batch.asserts().iter().map(|assert| batch.span(assert.key)));
    asserts
        .filter(|key| seen.insert(*key))
        .map(<[u8]>::to_vec)
        .collect()
}

/// What was decided about a group.
#[derive(Debug)]
pub struct Judged {
    /// One for each batch, in order.
    pub results: Vec<BatchResult>,
    /// The last position given, by this group or before it.
    pub last: Position,
    /// `last` as stored, if this group moved it.
    counter: Option<[u8; 8]>,
}

/// What is under an asserted key at some moment of the judging.
enum Current {
    Stored(Option<Bytes>),
    Written { batch: usize, value: Option<Span> },
}

impl Current {
    fn bytes<'a>(&'a self, batches: &'a [Batch]) -> Option<&'a [u8]> {
        match self {
            Self::Stored(value) => value.as_deref(),
            Self::Written { batch, value } => value.map(|span| batches[*batch].span(span)),
        }
    }
}

/// Judges the batches in order, each against the store plus the earlier batches of the group, and
/// fills in the positions of those that hold. `found` is what the store has under
/// [`asserted_keys`], `last` the last position given so far.
pub fn judge(
    group: &mut Group,
    keys: Vec<Vec<u8>>,
    found: Vec<Option<Bytes>>,
    last: Position,
) -> Judged {
    let stored = found.into_iter().map(Current::Stored);
    let mut current: HashMap<Vec<u8>, Current> = keys.into_iter().zip(stored).collect();
    let mut results = Vec::with_capacity(group.batches.len());
    let mut next = last + 1;
    for index in 0..group.batches.len() {
        if let Some(conflict) = first_conflict(&group.batches, index, &current) {
            results.push(Err(conflict));
            continue;
        }
        let batch = &mut group.batches[index];
        let first = next;
        next += batch.appends() as Position;
        batch.give_positions(first);
        results.push(Ok(Committed {
            positions: (first..next).collect(),
        }));
        if !current.is_empty() {
            remember_writes(batch, index, &mut current);
        }
    }
    let moved = next - 1 > last;
    Judged {
        results,
        last: next - 1,
        counter: moved.then(|| (next - 1).to_be_bytes()),
    }
}

fn first_conflict(
    batches: &[Batch],
    index: usize,
    current: &HashMap<Vec<u8>, Current>,
) -> Option<Conflict> {
    let batch = &batches[index];
    for (number, assert) in batch.asserts().iter().enumerate() {
        let found = current
            .get(batch.span(assert.key))
            .and_then(|current| current.bytes(batches));
        let holds = match assert.expected {
            Expected::Absent => found.is_none(),
            Expected::Present => found.is_some(),
            Expected::Value(span) => found == Some(batch.span(span)),
        };
        if !holds {
            return Some(Conflict {
                assert: AssertRef(number as u16),
                found: found.map(Bytes::copy_from_slice),
            });
        }
    }
    None
}

fn remember_writes(batch: &Batch, index: usize, current: &mut HashMap<Vec<u8>, Current>) {
    for op in batch.ops() {
        if let Some(current) = current.get_mut(batch.span(op.key)) {
            *current = Current::Written {
                batch: index,
                value: op.value,
            };
        }
    }
}

/// What an engine writes for a judged group: each key once, a put or (no value) a delete.
#[derive(Debug)]
pub struct WriteSet<'a> {
    /// In no particular order.
    pub writes: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

impl<'a> WriteSet<'a> {
    /// The last write of each key by the batches that hold, and the position counter.
    pub fn new(group: &'a Group, judged: &'a Judged) -> Self {
        let held = || {
            let judged = group.batches.iter().zip(&judged.results);
            judged.filter_map(|(batch, result)| result.is_ok().then_some(batch))
        };
        let most = held().map(|batch| batch.ops().len()).sum::<usize>() + 1;
        let mut writes = Vec::with_capacity(most);
        let mut seen = HashSet::with_capacity(most);
        for batch in held().rev() {
            for op in batch.ops().iter().rev() {
                let key = batch.span(op.key);
                if seen.insert(key) {
                    writes.push((key, op.value.map(|value| batch.span(value))));
                }
            }
        }
        if let Some(counter) = &judged.counter {
            writes.push((POSITION_KEY, Some(counter)));
        }
        Self { writes }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}
