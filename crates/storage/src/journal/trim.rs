//! Trimming: entries of [trimmed](super::EntryKind::trimmed) kinds go when they are old and every
//! durable consumer has read them.
//!
//! The *trim point* is a row. A reader that stands before it starts anew: what it has not read may
//! be gone. The point is moved first, and what is before it is removed by a later call, so that a
//! reader that began before the move is done by then. How old an entry is tell rows of
//! (time → last position), which are written from time to time.

use super::{Entry, Filed, Journal};
use crate::{
    Batch, Bytes, CommitError, Direction, Durability, Position, Row as _, ScanRange, StorageError,
    system::{CURSORS, JOURNAL, META, TIMES, TOPIC_ENTRIES},
};

/// Row of [`META`]: up to where entries may be gone.
const TRIMMED: &str = "trimmed";
/// Row of [`META`]: up to where they are.
const TRIMMED_AWAY: &str = "trimmed-away";
/// Entries looked at by one step. An entry has up to eight topics, a batch up to 1,000 operations.
const ENTRIES_AT_ONCE: usize = 100;
/// Consumers, and old times removed by one move of the trim point.
const ROWS_AT_ONCE: usize = 900;

/// Milliseconds without a row of [`TIMES`] beyond which what was before is not trusted: 60 days.
const LONGEST_GAP: u64 = 60 * 24 * 60 * 60 * 1_000;

/// Entries to be removed by [`Journal::remove_expired`].
#[derive(Debug)]
pub struct Expired {
    /// What goes, oldest first; may be nothing.
    pub entries: Vec<(Position, Entry)>,
    /// Up to here nothing is left that goes, once this is removed.
    pub upto: Position,
    batch: Batch,
}

impl Journal {
    /// Readers that stand before this position start anew; 0 if nothing was ever trimmed.
    pub async fn trim_point(&self) -> Result<Position, StorageError> {
        Ok(self.store.meta(TRIMMED).await?.unwrap_or(0))
    }

    /// Remembers the last position at `now`, in milliseconds since the Unix epoch.
    pub async fn note_time(&self, now: u64) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        batch.put(&TIMES, &now, &self.store.durable());
        self.submit(batch).await
    }

    /// Moves the trim point to the last position at `before`, in milliseconds since the Unix epoch,
    /// or to the slowest cursor if that is smaller. Gives where it is then.
    pub async fn move_trim_point(&self, before: u64) -> Result<Position, StorageError> {
        let now_at = self.trim_point().await?;
        let times = ScanRange::all().upto(&before);
        let newest = self
            .store
            .scan(&TIMES, times, Direction::Backward, ROWS_AT_ONCE)
            .await?;
        let times = ScanRange::all().after(&before);
        let later = self
            .store
            .scan(&TIMES, times, Direction::Forward, ROWS_AT_ONCE)
            .await?;
        let Some(old) = last_old(&newest, &later, before) else {
            return Ok(now_at);
        };
        let slowest = self.slowest_cursor().await?;
        let point = slowest.map_or(old, |slowest| slowest.min(old));
        let mut batch = Batch::new();
        for (time, _) in &newest[1..] {
            batch.delete(&TIMES, time);
        }
        if point > now_at {
            batch.put(&META, &TRIMMED, &Bytes::from(point.encode()));
        }
        if !batch.is_empty() {
            self.submit(batch).await?;
        }
        Ok(point.max(now_at))
    }

    /// What is to be removed next; `None` when everything before the trim point is.
    pub async fn expired(&self) -> Result<Option<Expired>, StorageError> {
        let point = self.trim_point().await?;
        let after = self.store.meta(TRIMMED_AWAY).await?.unwrap_or(0);
        if after >= point {
            return Ok(None);
        }
        let range = ScanRange::all().after(&after).upto(&point);
        let found = self
            .store
            .scan(&JOURNAL, range, Direction::Forward, ENTRIES_AT_ONCE)
            .await?;
        let upto = match found.last() {
            Some((last, _)) if found.len() == ENTRIES_AT_ONCE => *last,
            _ => point,
        };
        let mut batch = Batch::new();
        let mut entries = Vec::new();
        for (position, Filed { entry, topics }) in found {
            if entry.kind.stays() {
                continue;
            }
            batch.delete(&JOURNAL, &position);
            for topic in topics {
                batch.delete(&TOPIC_ENTRIES, &(topic.kind, topic.id, position));
            }
            entries.push((position, entry));
        }
        batch.put(&META, &TRIMMED_AWAY, &Bytes::from(upto.encode()));
        Ok(Some(Expired {
            entries,
            upto,
            batch,
        }))
    }

    /// Removes what [`Journal::expired`] gave.
    pub async fn remove_expired(&self, expired: Expired) -> Result<(), CommitError> {
        self.submit(expired.batch).await
    }

    async fn slowest_cursor(&self) -> Result<Option<Position>, StorageError> {
        let cursors = self
            .store
            .scan(&CURSORS, ScanRange::all(), Direction::Forward, ROWS_AT_ONCE)
            .await?;
        Ok(cursors.into_iter().map(|(_, position)| position).min())
    }

    /// A crash may take the batch back, with all that was written after it.
    async fn submit(&self, batch: Batch) -> Result<(), CommitError> {
        let ticket = self.store.submit(batch, Durability::Lazy).await?;
        ticket.await.map(drop)
    }
}

/// The last position that was there at `before`, by the rows up to then and those `later`; none
/// if none can be trusted.
///
/// A computer may start with a clock that is decades behind. What was written then was there no
/// later than what came after it; where the clock jumps forward, what is before the jump tells
/// nothing.
fn last_old(
    newest: &[(u64, Position)],
    later: &[(u64, Position)],
    before: u64,
) -> Option<Position> {
    let bound = later.iter().map(|(_, position)| *position).min();
    let mut rows: Vec<_> = newest.iter().chain(later).collect();
    rows.sort_unstable_by_key(|(time, position)| (*position, *time));
    let mut next = before;
    for (time, position) in rows.into_iter().rev() {
        if time.saturating_add(LONGEST_GAP) < next {
            return None;
        }
        if *time <= before {
            return Some(bound.map_or(*position, |bound| bound.min(*position)));
        }
        next = *time;
    }
    None
}

#[cfg(test)]
mod tests;
