//! Markers: what the last [`KEPT`] groups wrote, as rows of their own, to see at open whether one
//! of them is torn or missing.
//!
//! A marker is `(group number, checksum, [(key, hash of the value or none, value before)])`, written
//! in the batch of its group under `group number mod KEPT`. At open the group numbers must be
//! without a hole, and each key must have the value that the newest group which wrote it gave it.
//! The values before let [`undo`] take back a torn group and all after it. Damage older than the
//! markers is left to sled's own checksums, and to `homeserver storage check`.

use std::collections::HashSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::SledEngine;
use crate::{engine::EngineError, judge::WriteSet};

/// How many groups are remembered.
pub(super) const KEPT: u64 = 256;
/// The table of markers; the last number kept for storage's own tables. Never shown by scans.
const TABLE: u8 = 0x0f;

/// Whether a key is of the markers' table.
pub(super) fn is_marker(key: &[u8]) -> bool {
    key.first() == Some(&TABLE)
}

/// Counts groups.
#[derive(Debug, Default)]
pub(super) struct Markers {
    last: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Marker {
    group: u64,
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
    /// Key and value of the marker of the next group.
    pub(super) fn next(
        &mut self,
        writes: &WriteSet<'_>,
        read: impl Fn(&[u8]) -> Result<Option<Bytes>, EngineError>,
    ) -> Result<(Vec<u8>, Vec<u8>), EngineError> {
        let change = |(key, value): &(&[u8], Option<&[u8]>)| {
            Ok(Change {
                key: key.to_vec(),
                hash: value.map(xxh3_64),
                before: read(key)?.map(Vec::from),
            })
        };
        let changes: Result<_, EngineError> = writes.writes.iter().map(change).collect();
        let marker = Marker {
            group: self.last + 1,
            writes: changes?,
        };
        self.last += 1;
        Ok((marker_key(self.last), marker.encode()))
    }

    /// Compares the markers with the rows. The error says what is wrong.
    pub(super) fn check(engine: &SledEngine) -> Result<Self, String> {
        match first_damaged(engine, &newest_first(engine)?)? {
            Verdict::Whole { last } => Ok(Self { last }),
            Verdict::Torn { group } => Err(format!("batch {group} is torn")),
        }
    }
}

fn marker_key(group: u64) -> Vec<u8> {
    let slot = (group % KEPT) as u16;
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
    let last = markers.first().map_or(0, |newest| newest.group);
    let dense = markers
        .iter()
        .zip((1..=last).rev())
        .all(|(marker, group)| marker.group == group);
    if !dense || markers.len() as u64 != last.min(KEPT) {
        return Err(format!("a batch before number {last} is missing"));
    }
    Ok(markers)
}

enum Verdict {
    Whole { last: u64 },
    Torn { group: u64 },
}

/// The oldest group of which a row is not as it left it, where no newer group changed it.
fn first_damaged(engine: &SledEngine, markers: &[Marker]) -> Result<Verdict, String> {
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
    Ok(match torn {
        Some(group) => Verdict::Torn { group },
        None => Verdict::Whole {
            last: markers.first().map_or(0, |newest| newest.group),
        },
    })
}

/// Takes back the oldest torn group and all after it; gives how many that were. The error says why
/// that cannot be done.
pub(super) fn undo(engine: &SledEngine) -> Result<u64, String> {
    let mut undone = 0;
    loop {
        let markers = newest_first(engine)?;
        let (last, torn) = match first_damaged(engine, &markers)? {
            Verdict::Whole { .. } => return Ok(undone),
            Verdict::Torn { group } => (markers[0].group, group),
        };
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
        // The markers that the undone groups had replaced are gone, so the rest cannot be judged.
        if last > KEPT {
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
