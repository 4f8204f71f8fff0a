//! Pushers: where a user's notifications are to be sent.
//!
//! They are kept here; sending is the business of a reader of the journal.
//!
//! Specification: client-server API, "Push Notifications", `POST /pushers/set`.

use homeserver_storage::{
    Batch, Bytes, CommitError, Direction, ScanRange, StorageError, Store, Table, TableSpec,
};
use homeserver_users::{Failure, UserNumber};

/// (user number, app id, pushkey) → the pusher as JSON.
const PUSHERS: Table<(u64, String, String), Bytes> = Table::new(0x9a, "pushers");
/// (app id, pushkey, user number) → nothing. Who else has a pusher with this key.
const PUSHER_OWNERS: Table<(String, String, u64), ()> = Table::new(0x9b, "pusher_owners");

/// The tables of this module.
pub(crate) const TABLES: &[TableSpec] = &[PUSHERS.spec(), PUSHER_OWNERS.spec()];

/// Pushers of one user.
pub(crate) const MAX_PUSHERS: usize = 100;

/// Bytes of an app id or a pushkey that are stored; the key of a row has room for no more.
pub(crate) const MAX_APP_ID: usize = 64;
/// See [`MAX_APP_ID`]; the specification's own limit is 512 bytes, in practice tokens are shorter.
pub(crate) const MAX_PUSHKEY: usize = 400;

/// Bytes of a pusher.
const MAX_PUSHER: usize = 16 * 1024;

/// A pusher was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PusherError {
    /// The app id, the pushkey or the whole is too long.
    #[error("the pusher is too large")]
    TooLarge,
    /// The user has [`MAX_PUSHERS`].
    #[error("too many pushers")]
    TooMany,
    /// It could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It could not be stored.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// Whether other users keep pushers with the same app id and pushkey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// They keep theirs.
    Keep,
    /// Theirs are removed: the phone changed hands.
    Remove,
}

/// The pushers of this server's users. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pushers {
    store: Store,
}

impl Pushers {
    /// Pushers in a store that knows [`TABLES`].
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// A user's pushers, as JSON.
    pub(crate) async fn of(&self, user: UserNumber) -> Result<Vec<Bytes>, StorageError> {
        let range = ScanRange::prefix(&user.0);
        let rows = self
            .store
            .scan(&PUSHERS, range, Direction::Forward, MAX_PUSHERS)
            .await?;
        Ok(rows.into_iter().map(|(_, json)| json).collect())
    }

    /// Stores a pusher, in place of the user's own with the same app id and pushkey.
    pub(crate) async fn set(
        &self,
        user: UserNumber,
        (app_id, pushkey): (&str, &str),
        json: Vec<u8>,
        others: Others,
    ) -> Result<(), PusherError> {
        if app_id.len() > MAX_APP_ID || pushkey.len() > MAX_PUSHKEY || json.len() > MAX_PUSHER {
            return Err(PusherError::TooLarge);
        }
        let key = (user.0, app_id.to_owned(), pushkey.to_owned());
        let is_new = self.store.get(&PUSHERS, &key).await?.is_none();
        if is_new && self.of(user).await?.len() >= MAX_PUSHERS {
            return Err(PusherError::TooMany);
        }
        let mut batch = Batch::new();
        if others == Others::Remove {
            let prefix = (app_id.to_owned(), pushkey.to_owned());
            let range = ScanRange::prefix(&prefix);
            let owners = self
                .store
                .scan(&PUSHER_OWNERS, range, Direction::Forward, MAX_PUSHERS)
                .await?;
            for ((app_id, pushkey, owner), ()) in owners {
                batch.delete(&PUSHERS, &(owner, app_id.clone(), pushkey.clone()));
                batch.delete(&PUSHER_OWNERS, &(app_id, pushkey, owner));
            }
        }
        batch.put(&PUSHERS, &key, &Bytes::from(json));
        batch.put(&PUSHER_OWNERS, &(key.1, key.2, key.0), &());
        self.store.commit(batch).await?;
        Ok(())
    }

    /// Removes all of a user's pushers.
    pub(crate) async fn remove_all(&self, user: UserNumber) -> Result<(), Failure> {
        let range = ScanRange::prefix(&user.0);
        let rows = self
            .store
            .scan(&PUSHERS, range, Direction::Forward, MAX_PUSHERS)
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for ((user, app_id, pushkey), _) in rows {
            batch.delete(&PUSHERS, &(user, app_id.clone(), pushkey.clone()));
            batch.delete(&PUSHER_OWNERS, &(app_id, pushkey, user));
        }
        self.store.commit(batch).await?;
        Ok(())
    }

    /// Removes a user's pusher, if there is one.
    pub(crate) async fn remove(
        &self,
        user: UserNumber,
        app_id: &str,
        pushkey: &str,
    ) -> Result<(), PusherError> {
        if app_id.len() > MAX_APP_ID || pushkey.len() > MAX_PUSHKEY {
            return Ok(());
        }
        let (app_id, pushkey) = (app_id.to_owned(), pushkey.to_owned());
        let mut batch = Batch::new();
        batch.delete(&PUSHERS, &(user.0, app_id.clone(), pushkey.clone()));
        batch.delete(&PUSHER_OWNERS, &(app_id, pushkey, user.0));
        self.store.commit(batch).await?;
        Ok(())
    }
}
