//! What the group on its way to disk replaced, for an engine whose writes can be read before they
//! are on disk: readers are given what was there before, until the write has succeeded. After one
//! that failed they are given it for good, since only a reopening tells what became of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::engine::{Direction, EngineError, KeyRange};

/// Rows as they were before a group; `None` where there was none.
pub(crate) type Before = BTreeMap<Vec<u8>, Option<Bytes>>;

/// The rows that the group on its way replaced; none when no group is on its way.
///
/// Readers ask here *after* they have read from the engine: what they read is then either not of
/// the group on its way, or is found here.
#[derive(Debug, Default)]
pub(crate) struct Replaced(RwLock<Before>);

impl Replaced {
    /// Hides what is about to be written over these rows.
    pub(crate) fn hide(&self, before: Before) {
        *self.0.write() = before;
    }

    /// What was hidden is on disk.
    pub(crate) fn show(&self) {
        self.0.write().clear();
    }

    /// The value of a key that was `found` in the engine a moment ago.
    pub(crate) fn value(&self, key: &[u8], found: Option<Bytes>) -> Option<Bytes> {
        match self.0.read().get(key) {
            Some(before) => before.clone(),
            None => found,
        }
    }

    /// The first `limit` rows of `range`; `scan` gives as many of the engine's as it is asked for.
    pub(crate) fn rows(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
        scan: impl Fn(usize) -> Result<Vec<(Bytes, Bytes)>, EngineError>,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut spare = 0;
        loop {
            let mut asked = limit.saturating_add(spare);
            let found = scan(asked)?;
            if found.len() < asked {
                asked = usize::MAX;
            }
            let replaced = self.0.read();
            let within = replaced.range::<[u8], _>((
                std::ops::Bound::Included(range.start.as_slice()),
                std::ops::Bound::Excluded(range.end.as_slice()),
            ));
            let hidden: Vec<_> = within.collect();
            if hidden.is_empty() {
                return Ok(cut(found, limit));
            }
            // Each hidden row takes at most one of those found away.
            if asked - limit < hidden.len() {
                spare = hidden.len();
                continue;
            }
            return Ok(cut(merged(found, &hidden, direction), limit));
        }
    }
}

fn cut(mut rows: Vec<(Bytes, Bytes)>, limit: usize) -> Vec<(Bytes, Bytes)> {
    rows.truncate(limit);
    rows
}

fn merged(
    found: Vec<(Bytes, Bytes)>,
    hidden: &[(&Vec<u8>, &Option<Bytes>)],
    direction: Direction,
) -> Vec<(Bytes, Bytes)> {
    let mut rows: BTreeMap<Bytes, Bytes> = found.into_iter().collect();
    for (key, before) in hidden {
        match before {
            Some(value) => {
                rows.insert(Bytes::copy_from_slice(key), value.clone());
            }
            None => drop(rows.remove(key.as_slice())),
        }
    }
    match direction {
        Direction::Forward => rows.into_iter().collect(),
        Direction::Backward => rows.into_iter().rev().collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn row(key: u8, value: u8) -> (Bytes, Bytes) {
        (
            Bytes::copy_from_slice(&[key]),
            Bytes::copy_from_slice(&[value]),
        )
    }

    proptest! {
        /// Whatever a group writes, readers see what was there before.
        #[test]
        fn a_scan_shows_what_was_there_before(
            before in proptest::collection::btree_map(0_u8..20, 0_u8..3, 0..15),
            writes in proptest::collection::btree_map(0_u8..20, proptest::option::of(3_u8..6), 0..15),
            start in 0_u8..20,
            length in 0_u8..20,
            limit in 1_usize..12,
            backward: bool,
        ) {
            let mut after = before.clone();
            for (key, value) in &writes {
                match value {
                    Some(value) => after.insert(*key, *value),
                    None => after.remove(key),
                };
            }
            let replaced = Replaced::default();
            let keys: BTreeSet<u8> = writes.keys().copied().collect();
            let old = |key: &u8| before.get(key).map(|value| Bytes::copy_from_slice(&[*value]));
            replaced.hide(keys.iter().map(|key| (vec![*key], old(key))).collect());
            let range = KeyRange { start: vec![start], end: vec![start + length] };
            let direction = if backward { Direction::Backward } else { Direction::Forward };
            let within = |rows: &BTreeMap<u8, u8>, most: usize| -> Vec<(Bytes, Bytes)> {
                let rows = rows.range(start..start + length).map(|(key, value)| row(*key, *value));
                match direction {
                    Direction::Forward => rows.take(most).collect(),
                    Direction::Backward => rows.rev().take(most).collect(),
                }
            };
            let shown = replaced.rows(&range, direction, limit, |most| Ok(within(&after, most)));
            prop_assert_eq!(shown.unwrap(), within(&before, limit));
            for key in 0..20 {
                let found = after.get(&key).map(|value| Bytes::copy_from_slice(&[*value]));
                prop_assert_eq!(replaced.value(&[key], found.clone()), old(&key));
                replaced.show();
                prop_assert_eq!(replaced.value(&[key], found.clone()), found);
                replaced.hide(keys.iter().map(|key| (vec![*key], old(key))).collect());
            }
        }
    }
}
