//! Pushers: where a user's notifications are to be sent.
//!
//! They are kept here; sending is the business of a reader of the journal. A pusher belongs to the
//! device that set it last and ends with it: whoever is logged out is told nothing more.
//!
//! Specification: client-server API, "Push Notifications", `POST /pushers/set`.

use homeserver_storage::{
    Batch, Bytes, CommitError, Direction, ScanRange, StorageError, Store, Table, TableSpec, row,
};
use homeserver_users::{Devices, Failure, UserNumber};
use ruma::OwnedDeviceId;
use serde::{Deserialize, Serialize};

use super::session::Session;

/// Row of [`PUSHERS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PusherRow {
    /// Id of the device that set it.
    device: String,
    /// The pusher as JSON.
    json: Vec<u8>,
}
row!(PusherRow, 1);

/// (user number, app id, pushkey) → the pusher.
pub(crate) const PUSHERS: Table<(u64, String, String), PusherRow> = Table::new(0x9a, "pushers");
/// (app id, pushkey, user number) → nothing. Who else has a pusher with this key.
const PUSHER_OWNERS: Table<(String, String, u64), ()> = Table::new(0x9b, "pusher_owners");
/// (user number) → how often the user's pushers were set or ended. Changes at the same time see each
/// other by it.
const PUSHERS_SET: Table<u64, u64> = Table::new(0x9c, "pushers_set");

/// The tables of this module.
pub(crate) const TABLES: &[TableSpec] = &[PUSHERS.spec(), PUSHER_OWNERS.spec(), PUSHERS_SET.spec()];

/// Pushers of one user.
pub(crate) const MAX_PUSHERS: usize = 100;

/// Bytes of an app id or a pushkey that are stored; the key of a row has room for no more.
pub(crate) const MAX_APP_ID: usize = 64;
/// See [`MAX_APP_ID`]; the specification's own limit is 512 bytes, in practice tokens are shorter.
pub(crate) const MAX_PUSHKEY: usize = 400;

/// Bytes of a pusher.
const MAX_PUSHER: usize = 16 * 1024;

/// How often a change is decided anew after another of the same user was faster.
const MAX_ATTEMPTS: usize = 8;

/// A pusher was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PusherError {
    /// The app id, the pushkey or the whole is too long.
    #[error("the pusher is too large")]
    TooLarge,
    /// The user has [`MAX_PUSHERS`].
    #[error("too many pushers")]
    TooMany,
    /// The device that sets it was logged out.
    #[error("the device is gone")]
    DeviceGone,
    /// The user's other changes were faster, or the store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<StorageError> for PusherError {
    fn from(error: StorageError) -> Self {
        Self::Failure(error.into())
    }
}

/// Whether other users keep pushers with the same app id and pushkey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// They keep theirs.
    Keep,
    /// Theirs are removed: the phone changed hands.
    Remove,
}

/// A pusher to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPusher<'a> {
    /// The application.
    pub(crate) app_id: &'a str,
    /// Where its gateway finds the phone.
    pub(crate) pushkey: &'a str,
    /// All of it.
    pub(crate) json: &'a [u8],
    /// What becomes of other users' pushers with this key.
    pub(crate) others: Others,
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
        let rows = self.rows(user).await?.into_iter();
        Ok(rows.map(|(_, row)| row.json.into()).collect())
    }

    /// Stores a pusher of a session's device, in place of the user's own with the same app id and
    /// pushkey.
    pub(crate) async fn set(
        &self,
        devices: &Devices,
        session: &Session,
        new: NewPusher<'_>,
    ) -> Result<(), PusherError> {
        let user = session.user_number;
        if new.app_id.len() > MAX_APP_ID
            || new.pushkey.len() > MAX_PUSHKEY
            || new.json.len() > MAX_PUSHER
        {
            return Err(PusherError::TooLarge);
        }
        let key = (user.0, new.app_id.to_owned(), new.pushkey.to_owned());
        for _ in 0..MAX_ATTEMPTS {
            let mut batch = Batch::new();
            let device = (user, &*session.device, session.device_number);
            if !devices.assert_still(&mut batch, device).await? {
                return Err(PusherError::DeviceGone);
            }
            self.count(&mut batch, user).await?;
            let mine = self.rows(user).await?;
            let is_new = mine.iter().all(|(stored, _)| *stored != key);
            if is_new && mine.len() >= MAX_PUSHERS {
                return Err(PusherError::TooMany);
            }
            if new.others == Others::Remove {
                self.remove_owners(&mut batch, &key).await?;
            }
            let row = PusherRow {
                device: session.device.to_string(),
                json: new.json.to_vec(),
            };
            batch.put(&PUSHERS, &key, &row);
            batch.put(&PUSHER_OWNERS, &(&*key.1, &*key.2, key.0), &());
            match self.store.commit(batch).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(Failure::from(error).into()),
            }
        }
        Err(Failure::Busy.into())
    }

    /// Removes all of a user's pushers.
    pub(crate) async fn remove_all(&self, user: UserNumber) -> Result<(), Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let mut batch = Batch::new();
            self.count(&mut batch, user).await?;
            for (key, _) in self.rows(user).await? {
                delete(&mut batch, &key);
            }
            match self.store.commit(batch).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::Busy)
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
        let mut batch = Batch::new();
        delete(&mut batch, &(user.0, app_id.to_owned(), pushkey.to_owned()));
        self.store.commit(batch).await.map_err(Failure::from)?;
        Ok(())
    }

    /// Adds to `batch`, which deletes a user's devices, that their pushers end. It conflicts with a
    /// pusher that is set meanwhile.
    pub(crate) async fn end(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        devices: &[OwnedDeviceId],
    ) -> Result<(), StorageError> {
        self.count(batch, user).await?;
        for (key, row) in self.rows(user).await? {
            if devices.iter().any(|device| device.as_str() == row.device) {
                delete(batch, &key);
            }
        }
        Ok(())
    }

    /// Adds to `batch` a change of the user's pushers, as they are read after this.
    async fn count(&self, batch: &mut Batch, user: UserNumber) -> Result<(), StorageError> {
        let before = self.store.get(&PUSHERS_SET, &user.0).await?;
        match &before {
            Some(times) => batch.assert_value(&PUSHERS_SET, &user.0, times),
            None => batch.assert_absent(&PUSHERS_SET, &user.0),
        };
        batch.put(&PUSHERS_SET, &user.0, &(before.unwrap_or(0) + 1));
        Ok(())
    }

    async fn rows(&self, user: UserNumber) -> Result<Vec<(Key, PusherRow)>, StorageError> {
        let range = ScanRange::prefix(&user.0);
        self.store
            .scan(&PUSHERS, range, Direction::Forward, MAX_PUSHERS)
            .await
    }

    /// Adds to `batch` that nobody has a pusher of this key.
    async fn remove_owners(&self, batch: &mut Batch, key: &Key) -> Result<(), StorageError> {
        let range = ScanRange::prefix(&(&*key.1, &*key.2));
        let owners = self
            .store
            .scan(&PUSHER_OWNERS, range, Direction::Forward, MAX_PUSHERS)
            .await?;
        for ((app_id, pushkey, owner), ()) in owners {
            delete(batch, &(owner, app_id, pushkey));
        }
        Ok(())
    }
}

/// User number, app id, pushkey.
type Key = (u64, String, String);

fn delete(batch: &mut Batch, key: &Key) {
    batch.delete(&PUSHERS, key);
    batch.delete(&PUSHER_OWNERS, &(&*key.1, &*key.2, key.0));
}
