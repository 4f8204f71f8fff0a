//! Device lists of users of other servers: what their server said last, and whether that is still so.
//!
//! A list is *followed* from the first time that somebody here asks for it who shares a room with the
//! user. From then on their server tells changes, each with its number and those it follows. What
//! follows what is known is applied; anything else leaves a gap, and the list is *stale* until it
//! was fetched as a whole. Whoever fetches names the version of the row that they began with: what
//! was told in the meantime is not overwritten.
//!
//! Cross-signing keys lie beside those of this server's users, so that these can sign them.
//!
//! Fetching, and whether a room is shared, is not done here.
//!
//! Spec: Server-Server API, "Device Management".

mod check;

pub use check::{
    DeviceListUpdate, RemoteDevice, RemoteDeviceList, checked_devices, checked_one_time_key,
};

use std::collections::BTreeMap;

use homeserver_storage::Batch;
use ruma::{DeviceId, OwnedDeviceId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    CrossSigningKeys, Failure, KeyUsage, UserNumber,
    cross_signing::{CrossSigningKeyRow, checked_public},
    device::MAX_DEVICES,
    device_list::{Told, list_changed},
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    keys::with_name,
    tables::{CROSS_SIGNING_KEYS, REMOTE_DEVICES, REMOTE_LISTS, STALE_LISTS},
};

/// Numbers of updates that are remembered beside the last one: a server that tells several at once
/// may name any of them.
const RECENT: usize = 20;

/// Devices written or deleted by one batch.
const DEVICES_AT_ONCE: usize = 300;

/// Row of [`REMOTE_LISTS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteListRow {
    /// Changes with every change of the list, or of what is known about it.
    version: u64,
    /// The number of the last update; `None` if it is not known, though the list is.
    stream_id: Option<u64>,
    /// Numbers of updates before it.
    recent: Vec<u64>,
    /// Whether the list has to be fetched.
    stale: bool,
    /// Whether it ever was.
    fetched: bool,
    /// What proves that a room is shared without interruption: the room, and the user's member event.
    witness: Option<(u64, u64)>,
    /// When the list was fetched last: no change since was missed as long as the witness holds.
    witnessed_at: u64,
}
homeserver_storage::row!(RemoteListRow, 1);

/// Row of [`REMOTE_DEVICES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteDeviceRow {
    /// The identity keys, without `unsigned`.
    json: String,
    name: Option<String>,
}
homeserver_storage::row!(RemoteDeviceRow, 1);

/// What shows that a room is shared: see [`RemoteListState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The room's number.
    pub room: u64,
    /// The number of the user's member event there.
    pub event: u64,
    /// The position at which that was so.
    pub at: u64,
}

/// What is known about a followed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteListState {
    /// Whoever stores a fetched list names the version that they began with.
    pub version: u64,
    /// Whether it has to be fetched.
    pub stale: bool,
    /// Whether there is a list at all, perhaps an old one.
    pub fetched: bool,
    /// As long as the user's member event is still the same, and this server was in the room all the
    /// time, all changes were told.
    pub witness: Option<Witness>,
}

impl From<&RemoteListRow> for RemoteListState {
    fn from(row: &RemoteListRow) -> Self {
        let at = row.witnessed_at;
        let witness = row.witness.map(|(room, event)| Witness { room, event, at });
        Self {
            version: row.version,
            stale: row.stale,
            fetched: row.fetched,
            witness,
        }
    }
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updated {
    /// Nobody here follows the list.
    NotFollowed,
    /// It was applied, or was known already.
    Applied,
    /// Updates before it are missing, or it cannot be understood: the list is stale.
    Stale,
}

/// What of the cross-signing keys that a server tells of its user is believed: the keys, if they are
/// this user's, and the self-signing key is signed by the master key.
pub fn checked_cross_signing(user: &UserId, keys: &CrossSigningKeys) -> Option<CrossSigningKeys> {
    let master = keys.master.as_deref();
    checked_public(user, master, keys.self_signing.as_deref())?;
    Some(CrossSigningKeys {
        self_signing: keys.self_signing.clone().filter(|_| master.is_some()),
        user_signing: None,
        master: keys.master.clone(),
    })
}

/// Followed device lists. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteLists {
    ground: Ground,
}

impl RemoteLists {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// What is known of a user's list; `None` if it is not followed.
    pub async fn state(&self, user: UserNumber) -> Result<Option<RemoteListState>, Failure> {
        let row = self.ground.store.get(&REMOTE_LISTS, &user.0).await?;
        Ok(row.as_ref().map(RemoteListState::from))
    }

    /// Begins to follow a list, or, if it is followed, says that it has to be fetched. Gives the
    /// version to begin with.
    pub async fn follow(&self, user: UserNumber) -> Result<u64, Failure> {
        if let Some(state) = self.state(user).await?.filter(|state| state.stale) {
            // Who is fetching it already is not disturbed.
            return Ok(state.version);
        }
        let followed = self.change(user, true, |row, _| row.stale = true).await?;
        Ok(followed.map_or(0, |row| row.version))
    }

    /// Says that a list has to be fetched, if it is followed; those who use it are told once. Whether
    /// it is followed.
    pub async fn mark_stale(&self, user: UserNumber) -> Result<bool, Failure> {
        let marked = self.change(user, false, |row, batch| {
            if !row.stale {
                list_changed(batch, user, Told::Nothing);
            }
            row.stale = true;
        });
        Ok(marked.await?.is_some())
    }

    /// Changes the row of a list; `None` if there is none and none is to be made.
    async fn change(
        &self,
        user: UserNumber,
        make: bool,
        apply: impl Fn(&mut RemoteListRow, &mut Batch) + Send + Sync,
    ) -> Result<Option<RemoteListRow>, Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let before = self.ground.store.get(&REMOTE_LISTS, &user.0).await?;
            if before.is_none() && !make {
                return Ok(None);
            }
            let mut batch = Batch::new();
            let mut after = before.clone().unwrap_or_default();
            apply(&mut after, &mut batch);
            after.version += 1;
            put_row(&mut batch, user, before.as_ref(), &after);
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return Ok(Some(after));
            }
        }
        Err(Failure::Busy)
    }

    /// Applies an update of one device.
    pub async fn update(
        &self,
        user: (UserNumber, &UserId),
        update: &DeviceListUpdate,
    ) -> Result<Updated, Failure> {
        let (number, id) = user;
        let device = check::updated_device(id, update);
        for _ in 0..MAX_ATTEMPTS {
            let Some(before) = self.ground.store.get(&REMOTE_LISTS, &number.0).await? else {
                return Ok(Updated::NotFollowed);
            };
            let is_known = |stream_id: u64| {
                before.stream_id == Some(stream_id) || before.recent.contains(&stream_id)
            };
            if is_known(update.stream_id) {
                return Ok(Updated::Applied);
            }
            let follows =
                !update.prev_ids.is_empty() && update.prev_ids.iter().all(|id| is_known(*id));
            let Some(device) = device.as_ref().ok().filter(|_| follows && !before.stale) else {
                // What is being fetched may be from before this: the version says that.
                self.mark_stale(number).await?;
                return Ok(Updated::Stale);
            };
            let key = (number.0, update.device_id.to_string());
            let stored = self.ground.store.get(&REMOTE_DEVICES, &key).await?;
            if stored.is_none() && device.is_some() && self.is_full(number).await? {
                self.mark_stale(number).await?;
                return Ok(Updated::Stale);
            }
            let mut batch = Batch::new();
            match device {
                Some(device) => batch.put(&REMOTE_DEVICES, &key, &row(device)),
                None => batch.delete(&REMOTE_DEVICES, &key),
            }
            if stored != device.as_ref().map(row) {
                list_changed(&mut batch, number, Told::Nothing);
            }
            let mut after = before.clone();
            after.version += 1;
            after.recent.extend(before.stream_id);
            let surplus = after.recent.len().saturating_sub(RECENT);
            after.recent.drain(..surplus);
            after.stream_id = Some(update.stream_id);
            put_row(&mut batch, number, Some(&before), &after);
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return Ok(Updated::Applied);
            }
        }
        Err(Failure::Busy)
    }

    async fn is_full(&self, user: UserNumber) -> Result<bool, Failure> {
        let rows = self
            .ground
            .scan_prefix(&REMOTE_DEVICES, &user.0, MAX_DEVICES);
        Ok(rows.await?.len() >= MAX_DEVICES)
    }

    /// Stores cross-signing keys that a server told of its user, if the list is followed. Keys that
    /// are not what they should be leave the list stale.
    pub async fn update_cross_signing(
        &self,
        user: (UserNumber, &UserId),
        keys: &CrossSigningKeys,
    ) -> Result<Updated, Failure> {
        let (number, id) = user;
        for _ in 0..MAX_ATTEMPTS {
            let Some(before) = self.ground.store.get(&REMOTE_LISTS, &number.0).await? else {
                return Ok(Updated::NotFollowed);
            };
            let stored = self.cross_signing(number).await?;
            let master = keys.master.as_deref().or(stored.master.as_deref());
            let Some(new) = master
                .and_then(|master| checked_public(id, Some(master), keys.self_signing.as_deref()))
                .filter(|_| !before.stale)
            else {
                self.mark_stale(number).await?;
                return Ok(Updated::Stale);
            };
            let mut batch = Batch::new();
            // A key that was not told stays, unless another master key makes it void.
            if !self
                .put_cross_signing(&mut batch, number, &new, keys.master.is_some())
                .await?
            {
                return Ok(Updated::Applied);
            }
            list_changed(&mut batch, number, Told::Nothing);
            let mut after = before.clone();
            after.version += 1;
            put_row(&mut batch, number, Some(&before), &after);
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return Ok(Updated::Applied);
            }
        }
        Err(Failure::Busy)
    }

    /// Puts keys where they differ from the stored ones; whether they do.
    async fn put_cross_signing(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        new: &BTreeMap<KeyUsage, CrossSigningKeyRow>,
        replaces: bool,
    ) -> Result<bool, Failure> {
        let mut changed = false;
        for usage in [KeyUsage::Master, KeyUsage::SelfSigning] {
            let key = (user.0, usage.code());
            let stored = self.ground.store.get(&CROSS_SIGNING_KEYS, &key).await?;
            match (new.get(&usage), &stored) {
                (Some(new), stored) if stored.as_ref() != Some(new) => {
                    batch.put(&CROSS_SIGNING_KEYS, &key, new);
                    changed = true;
                }
                (None, Some(_)) if replaces => {
                    batch.delete(&CROSS_SIGNING_KEYS, &key);
                    changed = true;
                }
                _ => {}
            }
        }
        Ok(changed)
    }

    /// Stores a fetched list, unless something was told since the fetch began: then gives `false`,
    /// and the list stays stale.
    pub async fn store(
        &self,
        user: (UserNumber, &UserId),
        list: &RemoteDeviceList,
        (version, witness): (u64, Option<Witness>),
    ) -> Result<bool, Failure> {
        let (number, id) = user;
        let before = self.ground.store.get(&REMOTE_LISTS, &number.0).await?;
        let Some(mut before) = before.filter(|row| row.version == version) else {
            return Ok(false);
        };
        let stored = self
            .ground
            .scan_prefix(&REMOTE_DEVICES, &number.0, usize::MAX);
        let stored: BTreeMap<String, RemoteDeviceRow> = stored
            .await?
            .into_iter()
            .map(|((_, device), row)| (device, row))
            .collect();
        let new: BTreeMap<String, RemoteDeviceRow> = list
            .devices
            .iter()
            .map(|(id, device)| (id.to_string(), row(device)))
            .collect();
        let gone = stored.keys().filter(|id| !new.contains_key(*id));
        let gone = gone.map(|id| (id, None));
        let put = new.iter().filter(|(id, row)| stored.get(*id) != Some(*row));
        let put = put.map(|(id, row)| (id, Some(row)));
        let steps: Vec<(&String, Option<&RemoteDeviceRow>)> = gone.chain(put).collect();
        let mut chunks: Vec<_> = steps.chunks(DEVICES_AT_ONCE).collect();
        let last = chunks.pop().unwrap_or_default();
        for chunk in chunks {
            // The row keeps its version, and the list is stale until the last of them.
            let mut batch = Batch::new();
            let mut between = before.clone();
            between.stale = true;
            put_row(&mut batch, number, Some(&before), &between);
            put_devices(&mut batch, number, chunk);
            if let Attempt::Conflict = self.ground.attempt(batch).await? {
                return Ok(false);
            }
            before = between;
        }
        let mut batch = Batch::new();
        put_devices(&mut batch, number, last);
        let keys = checked_public(id, list.master.as_deref(), list.self_signing.as_deref());
        let keys = keys.unwrap_or_default();
        let crossed = self
            .put_cross_signing(&mut batch, number, &keys, true)
            .await?;
        if crossed || !steps.is_empty() {
            list_changed(&mut batch, number, Told::Nothing);
        }
        let mut after = before.clone();
        after.version += 1;
        after.stale = false;
        after.fetched = true;
        after.stream_id = list.stream_id;
        after.recent.clear();
        after.witness = witness.map(|witness| (witness.room, witness.event));
        after.witnessed_at = witness.map_or(0, |witness| witness.at);
        put_row(&mut batch, number, Some(&before), &after);
        Ok(matches!(
            self.ground.attempt(batch).await?,
            Attempt::Done(_)
        ))
    }

    /// The devices of a followed list (all if `only` is empty), as readers here may see them.
    pub async fn devices(
        &self,
        user: UserNumber,
        only: &[OwnedDeviceId],
    ) -> Result<BTreeMap<OwnedDeviceId, Box<RawValue>>, Failure> {
        let rows = self
            .ground
            .scan_prefix(&REMOTE_DEVICES, &user.0, MAX_DEVICES);
        let mut shown = BTreeMap::new();
        for ((_, id), row) in rows.await? {
            if !only.is_empty() && !only.iter().any(|wanted| wanted.as_str() == id) {
                continue;
            }
            let json = with_name(&row.json, row.name.as_deref())?;
            let json = RawValue::from_string(json).map_err(|_| Failure::Damaged("key"))?;
            shown.insert(<&DeviceId>::from(id.as_str()).to_owned(), json);
        }
        Ok(shown)
    }

    /// The cross-signing keys of a followed list, as their server told them.
    async fn cross_signing(&self, user: UserNumber) -> Result<CrossSigningKeys, Failure> {
        let keys = [KeyUsage::Master, KeyUsage::SelfSigning].map(|usage| (user.0, usage.code()));
        let rows = self
            .ground
            .store
            .multi_get(&CROSS_SIGNING_KEYS, &keys)
            .await?;
        let mut rows = rows.into_iter().map(|row| {
            let json = row.map(|row| RawValue::from_string(row.json));
            json.transpose()
                .map_err(|_| Failure::Damaged("cross-signing key"))
        });
        let mut next = || rows.next().unwrap_or(Ok(None));
        Ok(CrossSigningKeys {
            master: next()?,
            self_signing: next()?,
            user_signing: None,
        })
    }

    /// Users whose lists have to be fetched, behind `after`, at most `limit`.
    pub async fn stale(&self, after: UserNumber, limit: usize) -> Result<Vec<UserNumber>, Failure> {
        let from = after.0.saturating_add(1);
        let rows = self
            .ground
            .scan_between(&STALE_LISTS, from, u64::MAX, limit);
        let users = rows.await?.into_iter();
        Ok(users.map(|(user, ())| UserNumber(user)).collect())
    }
}

fn row(device: &RemoteDevice) -> RemoteDeviceRow {
    RemoteDeviceRow {
        json: device.keys.get().to_owned(),
        name: device.name.clone(),
    }
}

fn put_devices(batch: &mut Batch, user: UserNumber, steps: &[(&String, Option<&RemoteDeviceRow>)]) {
    for (device, row) in steps {
        let key = (user.0, (*device).clone());
        match row {
            Some(row) => batch.put(&REMOTE_DEVICES, &key, *row),
            None => batch.delete(&REMOTE_DEVICES, &key),
        }
    }
}

/// Replaces the row of a list, and keeps the list of stale ones in step.
fn put_row(
    batch: &mut Batch,
    user: UserNumber,
    before: Option<&RemoteListRow>,
    after: &RemoteListRow,
) {
    match before {
        Some(before) => batch.assert_value(&REMOTE_LISTS, &user.0, before),
        None => batch.assert_absent(&REMOTE_LISTS, &user.0),
    };
    batch.put(&REMOTE_LISTS, &user.0, after);
    if after.stale {
        batch.put(&STALE_LISTS, &user.0, &());
    } else {
        batch.delete(&STALE_LISTS, &user.0);
    }
}
