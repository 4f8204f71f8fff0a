//! Devices: a user's clients, as `/devices` shows them.
//!
//! A device has an id that its owner may reuse and a [`DeviceNumber`] that nobody can: the
//! position of the commit that created it. Everything that belongs to a device (keys, waiting
//! messages, transaction ids) is stored under the number. Deleting a device is therefore one
//! small batch, however much it had stored: what is left behind is unreachable and is swept away
//! in bounded steps.
//!
//! Spec: Client-Server API, "Device Management". Access tokens belong to the homeserver.

use std::sync::Arc;

use homeserver_storage::{Batch, Durability, Positioned};
use quick_cache::sync::Cache;
use ruma::{DeviceId, OwnedDeviceId};
use serde::{Deserialize, Serialize};

use crate::{
    DeviceNumber, Failure, UserNumber,
    device_list::{Told, list_changed},
    ground::{Attempt, Ground, MAX_ATTEMPTS},
    identifier::check_identifier,
    journal,
    tables::{
        DEVICE_KEYS, DEVICE_REMAINS, DEVICE_SEEN, DEVICES, FALLBACK_KEYS, ONE_TIME_KEY_COUNTS,
    },
};

/// Devices one user may have. Whatever is asked about all of a user's devices, keys above all, is
/// that many times as large.
pub const MAX_DEVICES: usize = 500;

/// Bytes of a device's display name.
pub const MAX_DISPLAY_NAME: usize = 1_024;

/// A device's "last seen" is written at most once in this many milliseconds.
const SEEN_INTERVAL: u64 = 60_000;

/// Devices whose last write of "last seen" is remembered.
const SEEN_REMEMBERED: usize = 10_000;

/// Devices deleted by one batch; each takes up to 41 of its operations.
pub const DELETED_AT_ONCE: usize = 20;

/// A device as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The id, unique among its owner's devices.
    pub id: OwnedDeviceId,
    /// The number of this life of the device.
    pub number: DeviceNumber,
    /// The name its owner gave it.
    pub display_name: Option<String>,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_at: u64,
    /// When and from where it was last used, if it was.
    pub last_seen: Option<Seen>,
}

/// When and from where a device was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    /// The client's address.
    pub ip: Option<String>,
    /// The client's `User-Agent`.
    pub user_agent: Option<String>,
}
homeserver_storage::row!(Seen, 1);

/// Row of [`DEVICES`]; its position is the device number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRow {
    display_name: Option<String>,
    created_at: u64,
}
homeserver_storage::row!(DeviceRow, 1);

/// A device was not created or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The user has no such device.
    #[error("no such device")]
    NotFound,
    /// The id is empty, longer than 255 bytes, or holds control characters.
    #[error("the device id is not a valid identifier")]
    BadId,
    /// The name is longer than [`MAX_DISPLAY_NAME`] bytes.
    #[error("the display name is too long")]
    NameTooLong,
    /// The user has [`MAX_DEVICES`] devices.
    #[error("the user has too many devices")]
    TooMany,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// A device, and whether it was there before.
#[derive(Clone, Debug)]
pub struct Ensured {
    /// The device.
    pub device: Device,
    /// `true` if this call created it.
    pub created: bool,
}

/// The devices of this server's users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Devices {
    ground: Ground,
    seen: Arc<Cache<DeviceNumber, (u64, Option<String>)>>,
}

impl Devices {
    pub(crate) fn new(ground: Ground) -> Self {
        Self {
            ground,
            seen: Arc::new(Cache::new(SEEN_REMEMBERED)),
        }
    }

    /// The device with this id, created if there is none. A device that exists keeps its name and
    /// its keys; whoever logs in on it again replaces its tokens, not the device.
    pub async fn ensure(
        &self,
        user: UserNumber,
        id: &DeviceId,
        display_name: Option<&str>,
    ) -> Result<Ensured, DeviceError> {
        self.ensure_with(user, id, display_name, &Batch::new())
            .await
    }

    /// Like [`Devices::ensure`], committing `more` in the same batch (the access token, say).
    /// `more` is committed also when the device exists already.
    pub async fn ensure_with(
        &self,
        user: UserNumber,
        id: &DeviceId,
        display_name: Option<&str>,
        more: &Batch,
    ) -> Result<Ensured, DeviceError> {
        Self::check(Some(id), display_name)?;
        let key = (user.0, id.to_string());
        for _ in 0..MAX_ATTEMPTS {
            if let Some(device) = self.one(user, id).await? {
                if more.is_empty() {
                    let created = false;
                    return Ok(Ensured { device, created });
                }
                let mut batch = Batch::new();
                let value = DeviceRow {
                    display_name: device.display_name.clone(),
                    created_at: device.created_at,
                };
                let still = Positioned::new(device.number.0, value);
                let ours = [batch.assert_value(&DEVICES, &key, &still)];
                batch.extend(more);
                match self.ground.attempt_asserting(batch, &ours).await? {
                    Attempt::Done(_) => {
                        return Ok(Ensured {
                            device,
                            created: false,
                        });
                    }
                    Attempt::Conflict => continue,
                }
            }
            self.check_room_for_another(user).await?;
            let row = DeviceRow {
                display_name: display_name.map(str::to_owned),
                created_at: self.ground.now(),
            };
            let mut batch = Batch::new();
            let ours = [batch.assert_absent(&DEVICES, &key)];
            let created = batch.append(
                &journal::entry(journal::DEVICE_CHANGED, &[user.0, 0]),
                &[journal::user(user)],
            );
            let row = Positioned::new(created, row);
            batch.put(&DEVICES, &key, &row);
            batch.extend(more);
            if let Attempt::Done(positions) = self.ground.attempt_asserting(batch, &ours).await? {
                let device = Device {
                    id: id.to_owned(),
                    number: DeviceNumber(positions.first()),
                    display_name: row.value.display_name,
                    created_at: row.value.created_at,
                    last_seen: None,
                };
                return Ok(Ensured {
                    device,
                    created: true,
                });
            }
        }
        Err(Failure::Busy.into())
    }

    /// Whether a device may have this id and this name, for callers that must know before they
    /// make an account for it.
    pub fn check(id: Option<&DeviceId>, display_name: Option<&str>) -> Result<(), DeviceError> {
        if let Some(id) = id {
            check_identifier(id.as_str()).map_err(|_| DeviceError::BadId)?;
        }
        check_name(display_name)
    }

    async fn check_room_for_another(&self, user: UserNumber) -> Result<(), DeviceError> {
        let rows = self
            .ground
            .scan_prefix(&DEVICES, &user.0, MAX_DEVICES)
            .await?;
        if rows.len() < MAX_DEVICES {
            Ok(())
        } else {
            Err(DeviceError::TooMany)
        }
    }

    /// Of the devices that have no identity keys the one that was not used for longest; one that was
    /// never used counts from its creation.
    pub async fn longest_unseen_without_keys(
        &self,
        user: UserNumber,
    ) -> Result<Option<OwnedDeviceId>, Failure> {
        let devices = self.all(user).await?;
        let numbers: Vec<u64> = devices.iter().map(|device| device.number.0).collect();
        let keys = self.ground.store.multi_get(&DEVICE_KEYS, &numbers).await?;
        let without = devices.into_iter().zip(keys);
        let without = without.filter(|(_, keys)| keys.is_none());
        let used = |device: &Device| {
            let seen = device.last_seen.as_ref().map(|seen| seen.at);
            (seen.unwrap_or(device.created_at), device.number)
        };
        let longest = without.min_by_key(|(device, _)| used(device));
        Ok(longest.map(|(device, _)| device.id))
    }

    /// One device of a user.
    pub async fn one(&self, user: UserNumber, id: &DeviceId) -> Result<Option<Device>, Failure> {
        let key = (user.0, id.to_string());
        let Some(row) = self.ground.store.get(&DEVICES, &key).await? else {
            return Ok(None);
        };
        let seen = self.ground.store.get(&DEVICE_SEEN, &row.known()).await?;
        Ok(Some(device(&key.1, row, seen)))
    }

    /// The number of a device, if the user has it: [`Devices::one`] without "last seen".
    pub async fn number(
        &self,
        user: UserNumber,
        id: &DeviceId,
    ) -> Result<Option<DeviceNumber>, Failure> {
        let key = (user.0, id.to_string());
        let row = self.ground.store.get(&DEVICES, &key).await?;
        Ok(row.map(|row| number(&row)))
    }

    /// Adds to `batch` that a device is still there, in the life that has this number. Gives
    /// whether it is there now.
    pub async fn assert_still(
        &self,
        batch: &mut Batch,
        (user, id, life): (UserNumber, &DeviceId, DeviceNumber),
    ) -> Result<bool, Failure> {
        let key = (user.0, id.to_string());
        let row = self.ground.store.get(&DEVICES, &key).await?;
        let Some(row) = row.filter(|row| number(row) == life) else {
            return Ok(false);
        };
        batch.assert_value(&DEVICES, &key, &row);
        Ok(true)
    }

    /// All devices of a user, in the order of their ids.
    pub async fn all(&self, user: UserNumber) -> Result<Vec<Device>, Failure> {
        let rows = self
            .ground
            .scan_prefix(&DEVICES, &user.0, MAX_DEVICES)
            .await?;
        let numbers: Vec<u64> = rows.iter().map(|(_, row)| row.known()).collect();
        let seen = self.ground.store.multi_get(&DEVICE_SEEN, &numbers).await?;
        let devices = rows.into_iter().zip(seen);
        Ok(devices
            .map(|(((_, id), row), seen)| device(&id, row, seen))
            .collect())
    }

    /// Renames a device, or takes its name away.
    pub async fn rename(
        &self,
        user: UserNumber,
        id: &DeviceId,
        display_name: Option<&str>,
    ) -> Result<(), DeviceError> {
        check_name(display_name)?;
        let key = (user.0, id.to_string());
        for _ in 0..MAX_ATTEMPTS {
            let before = self
                .ground
                .store
                .get(&DEVICES, &key)
                .await
                .map_err(Failure::from)?;
            let before = before.ok_or(DeviceError::NotFound)?;
            let number = number(&before);
            let value = DeviceRow {
                display_name: display_name.map(str::to_owned),
                created_at: before.value.created_at,
            };
            let after = Positioned::new(number.0, value);
            let keys = self.ground.store.get(&DEVICE_KEYS, &number.0).await;
            let mut batch = Batch::new();
            batch.assert_value(&DEVICES, &key, &before);
            batch.put(&DEVICES, &key, &after);
            batch.append(
                &journal::entry(journal::DEVICE_CHANGED, &[user.0, number.0]),
                &[journal::user(user)],
            );
            if keys.map_err(Failure::from)?.is_some() {
                // `/keys/query` shows the name beside the keys.
                list_changed(&mut batch, user, Told::Nothing);
            }
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return Ok(());
            }
        }
        Err(Failure::Busy.into())
    }

    /// Notes that a device was used just now. Written without waiting, and at most once a minute
    /// unless the address changes; the last minute before a crash may be lost.
    pub async fn seen(
        &self,
        device: DeviceNumber,
        ip: Option<&str>,
        user_agent: Option<&str>,
    ) -> Result<(), Failure> {
        let now = self.ground.now();
        if let Some((at, address)) = self.seen.get(&device)
            && now.saturating_sub(at) < SEEN_INTERVAL
            && address.as_deref() == ip
        {
            return Ok(());
        }
        self.seen.insert(device, (now, ip.map(str::to_owned)));
        let row = Seen {
            at: now,
            ip: ip.map(str::to_owned),
            user_agent: user_agent.map(|agent| agent.chars().take(256).collect()),
        };
        let mut batch = Batch::new();
        batch.put(&DEVICE_SEEN, &device.0, &row);
        // Nobody waits for it: it may be lost with the last minute.
        drop(self.ground.store.submit(batch, Durability::Lazy).await?);
        Ok(())
    }

    /// Deletes devices with their keys and waiting messages; ids that the user does not have are
    /// passed over. Gives the numbers of the deleted ones.
    ///
    /// `more` (the deletion of their tokens) is committed with the first of them, or alone if
    /// there are none, so that access ends first whatever happens next.
    pub async fn delete(
        &self,
        user: UserNumber,
        ids: &[OwnedDeviceId],
        more: Batch,
    ) -> Result<Vec<DeviceNumber>, Failure> {
        let mut more = Some(more);
        let mut deleted = Vec::new();
        for ids in ids.chunks(DELETED_AT_ONCE) {
            let gone = self.delete_some(user, ids, more.take()).await?;
            deleted.extend(gone);
        }
        if let Some(more) = more.filter(|more| !more.is_empty()) {
            self.ground.store.commit(more).await?;
        }
        for device in &deleted {
            self.seen.remove(device);
            crate::sweep::remains_of(&self.ground, *device).await?;
        }
        Ok(deleted)
    }

    async fn delete_some(
        &self,
        user: UserNumber,
        ids: &[OwnedDeviceId],
        more: Option<Batch>,
    ) -> Result<Vec<DeviceNumber>, Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let mut batch = Batch::new();
            let mut ours = Vec::new();
            let mut deleted = Vec::new();
            for id in ids {
                let key = (user.0, id.to_string());
                let Some(row) = self.ground.store.get(&DEVICES, &key).await? else {
                    continue;
                };
                let number = number(&row);
                let keys = self.ground.store.get(&DEVICE_KEYS, &number.0).await?;
                if keys.is_some() {
                    list_changed(&mut batch, user, Told::Device(&key.1));
                }
                ours.push(batch.assert_value(&DEVICES, &key, &row));
                batch.delete(&DEVICES, &key);
                crate::signature::delete_own(&self.ground, &mut batch, user, &key.1).await?;
                self.delete_belongings(&mut batch, user, number).await?;
                deleted.push(number);
            }
            if let Some(more) = &more {
                batch.extend(more);
            }
            if batch.is_empty() {
                return Ok(deleted);
            }
            if let Attempt::Done(_) = self.ground.attempt_asserting(batch, &ours).await? {
                return Ok(deleted);
            }
        }
        Err(Failure::Busy)
    }

    /// What makes the device reachable goes at once; its one-time keys and messages are left to
    /// the sweep, which [`DEVICE_REMAINS`] reminds of them.
    async fn delete_belongings(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        number: DeviceNumber,
    ) -> Result<(), Failure> {
        batch.delete(&DEVICE_SEEN, &number.0);
        batch.delete(&DEVICE_KEYS, &number.0);
        batch.delete(&ONE_TIME_KEY_COUNTS, &number.0);
        let fallback = self
            .ground
            .scan_prefix(&FALLBACK_KEYS, &number.0, crate::keys::MAX_ALGORITHMS)
            .await?;
        for (key, _) in fallback {
            batch.delete(&FALLBACK_KEYS, &key);
        }
        batch.put(&DEVICE_REMAINS, &number.0, &());
        batch.append(
            &journal::entry(journal::DEVICE_DELETED, &[user.0, number.0]),
            &[journal::user(user), journal::device(number)],
        );
        Ok(())
    }
}

fn check_name(display_name: Option<&str>) -> Result<(), DeviceError> {
    match display_name {
        Some(name) if name.len() > MAX_DISPLAY_NAME => Err(DeviceError::NameTooLong),
        _ => Ok(()),
    }
}

pub(crate) fn number(row: &Positioned<DeviceRow>) -> DeviceNumber {
    DeviceNumber(row.known())
}

/// The name that a device row holds.
pub(crate) fn display_name(row: &Positioned<DeviceRow>) -> Option<&str> {
    row.value.display_name.as_deref()
}

fn device(id: &str, row: Positioned<DeviceRow>, seen: Option<Seen>) -> Device {
    Device {
        id: id.into(),
        number: number(&row),
        display_name: row.value.display_name,
        created_at: row.value.created_at,
        last_seen: seen,
    }
}
