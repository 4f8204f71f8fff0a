//! Reports of rooms, events and users by users: stored for the administrators, and logged.
//!
//! Nobody but the administrators is told of a report, nor is anything done about it here.
//!
//! Specification: client-server API, "Reporting content".

use homeserver_runtime::Runtime;
use homeserver_storage::{At, Batch, CommitError, Entry, EntryKind, Store, Table, TableSpec, row};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Bytes of a reason.
pub(crate) const MAX_REASON: usize = 16 * 1024;

/// Journal entries of reports. No numbers, no topics: the report is under its position.
const REPORT_FILED: EntryKind = EntryKind::trimmed(0x0310);
const VERSION: u8 = 1;

/// (position) → a report.
const REPORTS: Table<u64, ReportRow> = Table::new(0x9e, "reports");

/// The tables of this module.
pub(crate) const TABLES: &[TableSpec] = &[REPORTS.spec()];

/// What is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reported {
    /// A room.
    Room(OwnedRoomId),
    /// An event of a room.
    Event(OwnedRoomId, OwnedEventId),
    /// A user.
    User(OwnedUserId),
}

/// Row of [`REPORTS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ReportRow {
    /// Milliseconds since the Unix epoch.
    received: u64,
    by: OwnedUserId,
    what: Reported,
    reason: String,
}
row!(ReportRow, 1);

/// Why a report was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    /// The reason is longer than [`MAX_REASON`].
    #[error("a reason may have at most {MAX_REASON} bytes")]
    TooLong,
    /// The store did not take it.
    #[error("the report could not be stored")]
    Commit(#[from] CommitError),
}

/// Takes reports. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reports {
    store: Store,
    runtime: Runtime,
}

impl Reports {
    /// Stores reports in `store`, which knows [`TABLES`].
    pub(crate) fn new(store: Store, runtime: Runtime) -> Self {
        Self { store, runtime }
    }

    /// Stores a report. It is on disk when this returns.
    pub(crate) async fn file(
        &self,
        by: &UserId,
        what: Reported,
        reason: String,
    ) -> Result<(), ReportError> {
        if reason.len() > MAX_REASON {
            return Err(ReportError::TooLong);
        }
        tracing::info!(%by, ?what, "a report was filed");
        let report = ReportRow {
            received: self.runtime.clock.unix_millis(),
            by: by.to_owned(),
            what,
            reason,
        };
        let mut batch = Batch::new();
        let entry = Entry {
            kind: REPORT_FILED,
            version: VERSION,
            numbers: SmallVec::new(),
        };
        let position = batch.append(&entry, &[]);
        batch.put(&REPORTS, &At::Append(position), &report);
        self.store.commit(batch).await?;
        Ok(())
    }
}
