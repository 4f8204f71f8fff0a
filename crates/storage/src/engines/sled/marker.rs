//! Markers: what the last groups wrote, as rows of their own, to see at open whether one of them is
//! torn or missing.
//!
//! A marker is `(checksum, group number, oldest group kept, [(key, hash of the value or none, value
//! before)])`, written in the batch of its group under `group number mod KEPT_GROUPS`. At open the
//! group numbers must be without a hole, and each key must have the value that the newest group
//! which wrote it gave it. The values before let [`undo`] take back a torn group and all after it.
//! Damage older than the markers is left to sled's own checksums, and to `homeserver storage check`.
//!
//! Start-up reads every marker and every key that they name, so both are bounded: each group removes
//! the oldest markers that exceed [`KEPT_CHANGES`] or [`KEPT_BYTES`] together with its own.

use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::SledEngine;
use crate::{engines::replaced::Before, judge::WriteSet};

/// How many groups are remembered at most.
const KEPT_GROUPS: usize = 256;
/// How many writes the remembered groups have together at most, unless the newest alone has more.
const KEPT_CHANGES: usize = 32_768;
/// Bytes of keys and old values that they have together at most, unless the newest alone has more.
const KEPT_BYTES: usize = 8 * 1024 * 1024;
/// The table of markers; the last number kept for storage's own tables. Never shown by scans.
const TABLE: u8 = 0x0f;

/// Whether a key is of the markers' table.
pub(super) fn is_marker(key: &[u8]) -> bool {
    key.first() == Some(&TABLE)
}

/// Counts groups, and knows which of them are remembered.
#[derive(Debug, Default)]
pub(super) struct Markers {
    last: u64,
    /// Of the groups up to `last`, oldest first.
    kept: VecDeque<Size>,
}

/// What a marker costs at start-up.
#[derive(Debug, Default, Clone, Copy)]
struct Size {
    changes: usize,
    bytes: usize,
}

impl Size {
    fn of(changes: &[Change]) -> Self {
        let before = |change: &Change| change.before.as_ref().map_or(0, Vec::len);
        let bytes = changes
            .iter()
            .map(|change| change.key.len() + before(change));
        Self {
            changes: changes.len(),
            bytes: bytes.sum(),
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Marker {
    group: u64,
    /// The oldest group whose marker is there once this one is.
    oldest: u64,
    writes: Vec<Change>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Change {
    key: Vec<u8>,
    /// Hash of the value it was given; none where it was removed.
    hash: Option<u64>,
    /// The value it had.
    before: Option<Vec<u8>>,
}

impl Marker {
    fn encode(&self) -> Vec<u8> {
        // Vectors, numbers and options always have a postcard form.
        let body = postcard::to_allocvec(self).unwrap_or_default();
        let mut bytes = xxh3_64(&body).to_be_bytes().to_vec();
        bytes.extend_from_slice(&body);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (checksum, body) = bytes.split_first_chunk::<8>()?;
        let whole = u64::from_be_bytes(*checksum) == xxh3_64(body);
        postcard::from_bytes(body).ok().filter(|_| whole)
    }
}

impl Markers {
    /// Adds to the batch of the next group its marker, and the removal of those that are too old.
    /// The group writes over the rows `before`.
    pub(super) fn next(&mut self, writes: &WriteSet<'_>, before: &Before, batch: &mut sled::Batch) {
        let change = |(key, value): &(&[u8], Option<&[u8]>)| Change {
            key: key.to_vec(),
            hash: value.map(xxh3_64),
            before: before.get(*key).cloned().flatten().map(Vec::from),
        };
        let changes: Vec<_> = writes.writes.iter().map(change).collect();
        self.last += 1;
        self.kept.push_back(Size::of(&changes));
        for old in self.forget_oldest() {
            batch.remove(marker_key(old));
        }
        let marker = Marker {
            group: self.last,
            oldest: self.oldest(),
            writes: changes,
        };
        // After the removals: the place may be that of a removed one.
        batch.insert(marker_key(self.last), marker.encode());
    }

    /// The oldest group that is remembered.
    fn oldest(&self) -> u64 {
        self.last + 1 - self.kept.len() as u64
    }

    /// Forgets groups until the rest is within the bounds; gives their numbers.
    fn forget_oldest(&mut self) -> Range<u64> {
        let first = self.oldest();
        let (mut changes, mut bytes) = (0, 0);
        for size in &self.kept {
            changes += size.changes;
            bytes += size.bytes;
        }
        while self.kept.len() > 1
            && (self.kept.len() > KEPT_GROUPS || changes > KEPT_CHANGES || bytes > KEPT_BYTES)
        {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            changes -= oldest.changes;
            bytes -= oldest.bytes;
        }
        first..self.oldest()
    }

    /// Compares the markers with the rows. The error says what is wrong.
    pub(super) fn check(engine: &SledEngine) -> Result<Self, String> {
        let markers = newest_first(engine)?;
        match first_damaged(engine, &markers)? {
            Some(group) => Err(format!("batch {group} is torn")),
            None => Ok(Self {
                last: markers.first().map_or(0, |newest| newest.group),
                kept: markers
                    .iter()
                    .rev()
                    .map(|marker| Size::of(&marker.writes))
                    .collect(),
            }),
        }
    }
}

fn marker_key(group: u64) -> Vec<u8> {
    let slot = (group % KEPT_GROUPS as u64) as u16;
    let mut key = vec![TABLE];
    key.extend_from_slice(&slot.to_be_bytes());
    key
}

/// All markers. The error says what is wrong with them.
fn newest_first(engine: &SledEngine) -> Result<Vec<Marker>, String> {
    let mut markers = Vec::new();
    for row in engine.database.scan_prefix([TABLE]) {
        let (_, value) = row.map_err(|error| error.to_string())?;
        markers.push(Marker::decode(&value).ok_or("the marker of a batch is damaged")?);
    }
    markers.sort_by_key(|marker| std::cmp::Reverse(marker.group));
    let Some(newest) = markers.first() else {
        return Ok(markers);
    };
    let expected = (newest.oldest..=newest.group).rev();
    if !markers.iter().map(|marker| marker.group).eq(expected) {
        return Err(format!("a batch before number {} is missing", newest.group));
    }
    Ok(markers)
}

/// The oldest group of which a row is not as it left it, where no newer group changed it.
fn first_damaged(engine: &SledEngine, markers: &[Marker]) -> Result<Option<u64>, String> {
    let mut seen = HashSet::new();
    let mut torn = None;
    for marker in markers {
        for change in &marker.writes {
            if !seen.insert(&change.key) {
                continue;
            }
            let found = engine
                .lookup(&change.key)
                .map_err(|error| error.to_string())?;
            if found.map(|value| xxh3_64(&value)) != change.hash {
                torn = Some(marker.group);
            }
        }
    }
    Ok(torn)
}

/// Takes back the oldest torn group and all after it; gives how many that were. The error says why
/// that cannot be done.
pub(super) fn undo(engine: &SledEngine) -> Result<u64, String> {
    let mut undone = 0;
    loop {
        let markers = newest_first(engine)?;
        let Some(torn) = first_damaged(engine, &markers)? else {
            return Ok(undone);
        };
        let (last, oldest) = (markers[0].group, markers[0].oldest);
        let mut batch = sled::Batch::default();
        // Newest first, so that the oldest value before is what remains.
        for marker in markers.iter().filter(|marker| marker.group >= torn) {
            batch.remove(marker_key(marker.group));
            for change in &marker.writes {
                match &change.before {
                    Some(value) => batch.insert(change.key.as_slice(), value.as_slice()),
                    None => batch.remove(change.key.as_slice()),
                }
            }
        }
        let applied = engine.database.apply_batch(batch);
        applied.map_err(|error| error.to_string())?;
        undone += last - torn + 1;
        // The markers that the undone groups had removed are gone, so the rest cannot be judged.
        if oldest > 1 {
            return Ok(undone);
        }
    }
}

/// Forgets all markers: the next group is the first. After a repair.
pub(super) fn forget(engine: &SledEngine) -> Result<(), sled::Error> {
    let mut batch = sled::Batch::default();
    for key in engine.database.scan_prefix([TABLE]).keys() {
        batch.remove(key?);
    }
    engine.database.apply_batch(batch)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        Batch, Engine as _, Table,
        engine::{Durability, Group},
    };

    const ROWS: Table<(u64, u64), Bytes> = Table::new(0x20, "rows");

    async fn write(engine: &SledEngine, group: u64, rows: u64, size: usize) {
        let mut batches = Vec::new();
        for first in (0..rows).step_by(500) {
            let mut batch = Batch::new();
            for row in first..rows.min(first + 500) {
                let value = Bytes::from(vec![group as u8; size]);
                batch.put(&ROWS, &(group, row), &value);
            }
            batches.push(batch);
        }
        let durability = Durability::Lazy;
        let mut group = Group {
            batches,
            durability,
        };
        engine.commit(&mut group).await.unwrap();
    }

    /// Numbers of the groups that are remembered, oldest first.
    fn remembered(engine: &SledEngine) -> Vec<u64> {
        let markers = newest_first(engine).unwrap();
        markers.iter().rev().map(|marker| marker.group).collect()
    }

    #[tokio::test]
    async fn what_start_up_reads_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(folder.path()).unwrap();
        for group in 1..=300 {
            write(&engine, group, 1, 10).await;
        }
        assert_eq!(remembered(&engine), (45..=300).collect::<Vec<_>>());
        for group in 301..=304 {
            write(&engine, group, KEPT_CHANGES as u64 / 3, 10).await;
        }
        assert_eq!(remembered(&engine), [302, 303, 304]);
        // More than the bound by itself, as a group may be, and then little.
        write(&engine, 305, KEPT_CHANGES as u64 + 1, 10).await;
        assert_eq!(remembered(&engine), [305]);
        write(&engine, 306, 1, 10).await;
        assert_eq!(remembered(&engine), [306]);
        // Old values count as soon as they are replaced.
        write(&engine, 307, 30, 120_000).await;
        for _ in 0..4 {
            write(&engine, 307, 30, 120_000).await;
        }
        assert_eq!(remembered(&engine), [310, 311]);
        drop(engine);
        let engine = SledEngine::open(folder.path()).unwrap();
        write(&engine, 312, 1, 10).await;
        assert_eq!(remembered(&engine), [310, 311, 312]);
    }

    #[tokio::test]
    async fn a_torn_group_is_seen_and_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(folder.path()).unwrap();
        for group in 1..=300 {
            write(&engine, group, 3, 10).await;
        }
        let torn = ROWS.key_bytes(&(290_u64, 1_u64));
        engine.database.remove(torn).unwrap();
        assert_eq!(
            Markers::check(&engine).unwrap_err(),
            "batch 290 is torn".to_owned()
        );
        drop(engine);
        SledEngine::repair(folder.path()).unwrap();
        let engine = SledEngine::open(folder.path()).unwrap();
        for (group, there) in [(289_u64, true), (290, false), (300, false)] {
            let row = engine.lookup(&ROWS.key_bytes(&(group, 0_u64))).unwrap();
            assert_eq!(row.is_some(), there, "group {group}");
        }
    }

    #[tokio::test]
    async fn a_group_that_is_missing_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(folder.path()).unwrap();
        for group in 1..=3 {
            write(&engine, group, 1, 10).await;
        }
        engine.database.remove(marker_key(2)).unwrap();
        assert_eq!(
            Markers::check(&engine).unwrap_err(),
            "a batch before number 3 is missing".to_owned()
        );
    }

    mod fuzz {
        use super::*;

        /// A marker that was changed in any way is none, even where its checksum was made anew.
        #[test]
        fn sled_marker() {
            let change = |hash, before: Option<&[u8]>| Change {
                key: vec![0x20, 1],
                hash,
                before: before.map(<[u8]>::to_vec),
            };
            let marker = Marker {
                group: 300,
                oldest: 45,
                writes: vec![change(Some(7), None), change(None, Some(b"before"))],
            };
            let body = marker.encode().split_off(8);
            let target = homeserver_fuzz::Target::new("sled_marker");
            target.seeds([body]).run(|body| {
                let sealed = [&xxh3_64(body).to_be_bytes(), body].concat();
                assert_eq!(Marker::decode(body), None, "without a checksum");
                Marker::decode(&sealed).is_some_and(|read| {
                    assert_eq!(Marker::decode(&read.encode()), Some(read));
                    true
                })
            });
        }
    }
}
