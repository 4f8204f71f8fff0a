//! What every part of this crate stands on: the store, the clock, and numbers for user ids.

use std::sync::Arc;

use homeserver_runtime::{Clock, Runtime};
use homeserver_storage::{
    AssertRef, Batch, CommitError, Committed, Direction, Interner, Key, Row, ScanRange,
    StorageError, Store, Table, ToKey, USERS,
};
use ruma::{OwnedUserId, UserId};

use crate::UserNumber;

/// How often a change is decided anew after another writer was faster.
pub(crate) const MAX_ATTEMPTS: usize = 32;

/// The store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Reading failed.
    #[error("the store could not be read")]
    Read(#[from] StorageError),
    /// Writing failed, or nobody knows whether it did.
    #[error("the change could not be committed")]
    Commit(#[from] CommitError),
    /// Other writers were faster 32 times in a row. Nothing was changed.
    #[error("too many others are changing the same thing")]
    Busy,
    /// An assert of the caller's own batch failed. Nothing was changed.
    #[error("the caller's condition no longer holds")]
    Refused,
    /// A stored row does not hold what was once written.
    #[error("a stored {0} is damaged")]
    Damaged(&'static str),
}

impl Failure {
    /// Whether the same request may succeed when it is made again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Read(error) => error.is_passing(),
            Self::Commit(error) => error.is_passing(),
            Self::Busy => true,
            Self::Refused | Self::Damaged(_) => false,
        }
    }
}

/// How an attempt to commit ended.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// On disk.
    Done(Positions),
    /// Somebody else was faster; decide again.
    Conflict,
}

/// The positions that a commit was given.
#[derive(Debug)]
pub(crate) struct Positions(Option<Committed>);

impl Positions {
    /// Those of nothing at all.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Position of the batch's first append; 0 if it had none.
    pub(crate) fn first(&self) -> u64 {
        let committed = self.0.as_ref();
        committed
            .and_then(|committed| committed.positions.first().copied())
            .unwrap_or(0)
    }
}

/// The store, the clock, and numbers for user ids. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    users: Interner,
}

impl Ground {
    pub(crate) fn new(store: Store, runtime: &Runtime) -> Self {
        let users = store.numbers(USERS);
        Self {
            store,
            clock: Arc::clone(&runtime.clock),
            users,
        }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn now(&self) -> u64 {
        self.clock.unix_millis()
    }

    /// The number of a user id, given now if it has none.
    pub(crate) async fn user_number(&self, user_id: &UserId) -> Result<UserNumber, Failure> {
        Ok(UserNumber(self.users.number(user_id.as_str()).await?))
    }

    /// The number of a user id, if it has one.
    pub(crate) async fn known_user_number(
        &self,
        user_id: &UserId,
    ) -> Result<Option<UserNumber>, Failure> {
        Ok(self.users.lookup(user_id.as_str()).await?.map(UserNumber))
    }

    /// The user id of a number.
    pub(crate) async fn user_id(&self, number: UserNumber) -> Result<Option<OwnedUserId>, Failure> {
        match self.users.name(number.0).await? {
            Some(name) => user_id(&name).map(Some),
            None => Ok(None),
        }
    }

    /// The first rows whose keys begin with `prefix`.
    pub(crate) async fn scan_prefix<K: Key, V: Row, P: ToKey>(
        &self,
        table: &Table<K, V>,
        prefix: &P,
        limit: usize,
    ) -> Result<Vec<(K, V)>, Failure> {
        let range = ScanRange::prefix(prefix);
        Ok(self
            .store
            .scan(table, range, Direction::Forward, limit)
            .await?)
    }

    /// The first rows with keys from `from` up to but not including `to`.
    pub(crate) async fn scan_between<K: Key, V: Row>(
        &self,
        table: &Table<K, V>,
        from: impl ToKey,
        to: impl ToKey,
        limit: usize,
    ) -> Result<Vec<(K, V)>, Failure> {
        let range = ScanRange::between(&from, &to);
        Ok(self
            .store
            .scan(table, range, Direction::Forward, limit)
            .await?)
    }

    /// Like [`Ground::scan_between`], the last rows first.
    pub(crate) async fn scan_last<K: Key, V: Row>(
        &self,
        table: &Table<K, V>,
        from: impl ToKey,
        to: impl ToKey,
        limit: usize,
    ) -> Result<Vec<(K, V)>, Failure> {
        let range = ScanRange::between(&from, &to);
        Ok(self
            .store
            .scan(table, range, Direction::Backward, limit)
            .await?)
    }

    /// Commits a batch whose asserts are all about what this crate read a moment ago.
    pub(crate) async fn attempt(&self, batch: Batch) -> Result<Attempt, Failure> {
        match self.store.commit(batch).await {
            Ok(committed) => Ok(Attempt::Done(Positions(Some(committed)))),
            Err(CommitError::Conflict { .. }) => Ok(Attempt::Conflict),
            Err(error) => Err(error.into()),
        }
    }

    /// Commits a batch that also holds asserts of a caller: only a failure of `ours` is worth
    /// another attempt.
    pub(crate) async fn attempt_asserting(
        &self,
        batch: Batch,
        ours: &[AssertRef],
    ) -> Result<Attempt, Failure> {
        match self.store.commit(batch).await {
            Ok(committed) => Ok(Attempt::Done(Positions(Some(committed)))),
            Err(CommitError::Conflict { assert, .. }) if ours.contains(&assert) => {
                Ok(Attempt::Conflict)
            }
            Err(CommitError::Conflict { .. }) => Err(Failure::Refused),
            Err(error) => Err(error.into()),
        }
    }
}

/// A user id that was stored earlier.
pub(crate) fn user_id(text: &str) -> Result<OwnedUserId, Failure> {
    UserId::parse(text).map_err(|_| Failure::Damaged("user id"))
}
