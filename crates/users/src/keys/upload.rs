//! `/keys/upload`: all of a request or nothing, in one batch.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_storage::{At, Batch, Positioned};
use ruma::{DeviceId, UserId};
use serde_json::{Value, value::RawValue};

use super::{
    CountsRow, DeviceKeysRow, FallbackKeyRow, InvalidKey, Keys, MAX_ALGORITHMS,
    MAX_DEVICE_KEYS_OF_USER, MAX_KEYS_IN_UPLOAD, MAX_ONE_TIME_KEYS, OneTimeKeyRow, check,
};
use crate::{
    DeviceNumber, Failure, UserNumber,
    device::{MAX_DEVICES, number},
    device_list::{Told, list_changed},
    ground::{Attempt, MAX_ATTEMPTS},
    journal,
    tables::{
        DEVICE_KEYS, DEVICES, FALLBACK_KEYS, ONE_TIME_KEY_COUNTS, ONE_TIME_KEY_IDS, ONE_TIME_KEYS,
    },
};

/// What a device uploads; any part may be missing.
#[derive(Clone, Debug, Default)]
pub struct KeyUpload {
    /// Its identity keys.
    pub device_keys: Option<Box<RawValue>>,
    /// One-time keys by `algorithm:id`.
    pub one_time_keys: BTreeMap<String, Box<RawValue>>,
    /// Fallback keys by `algorithm:id`, at most one per algorithm.
    pub fallback_keys: BTreeMap<String, Box<RawValue>>,
}

/// Nothing of the upload was stored.
#[derive(Debug, thiserror::Error)]
pub enum KeyUploadError {
    /// The device was deleted.
    #[error("no such device")]
    NoDevice,
    /// The identity keys are not acceptable.
    #[error("the device keys are invalid")]
    DeviceKeys(#[source] InvalidKey),
    /// This one-time or fallback key is not acceptable.
    #[error("the key {0} is invalid")]
    Key(String, #[source] InvalidKey),
    /// Another key is waiting under this name already.
    #[error("another one-time key {0} exists already")]
    Exists(String),
    /// More than one fallback key for one algorithm.
    #[error("more than one fallback key for the algorithm {0}")]
    TwoFallbackKeys(String),
    /// More keys than [`MAX_KEYS_IN_UPLOAD`] at once, more algorithms than [`MAX_ALGORITHMS`],
    /// or more than [`MAX_ONE_TIME_KEYS`] waiting.
    #[error("too many keys")]
    TooMany,
    /// The identity keys of all the user's devices would be more than [`MAX_DEVICE_KEYS_OF_USER`].
    #[error("the user's devices have too many keys")]
    TooManyOfUser,
    /// The store could not do it.
    #[error(transparent)]
    Failure(#[from] Failure),
}

/// An upload that has the right form, not yet compared with what is stored.
struct Checked {
    device_keys: Option<DeviceKeysRow>,
    /// (algorithm, id, JSON), in the order of their names.
    one_time: Vec<(String, String, String)>,
    fallback: BTreeMap<String, FallbackKeyRow>,
}

impl Keys {
    /// Stores keys of a device. The same keys again change nothing; another key under the name of
    /// one that is waiting refuses the whole upload. Gives the counts of waiting one-time keys.
    pub async fn upload(
        &self,
        user: (UserNumber, &UserId),
        device: &DeviceId,
        upload: &KeyUpload,
    ) -> Result<BTreeMap<String, u64>, KeyUploadError> {
        let checked = check_upload(user.1, device, upload)?;
        let key = (user.0.0, device.to_string());
        let _turn = match checked.device_keys {
            Some(_) => Some(self.identity_turn(user.0).lock().await),
            None => None,
        };
        for _ in 0..MAX_ATTEMPTS {
            let row = self
                .ground
                .store
                .get(&DEVICES, &key)
                .await
                .map_err(Failure::from)?;
            let row = row.ok_or(KeyUploadError::NoDevice)?;
            let device = number(&row);
            let _turn = self.turn(device).lock().await;
            let mut batch = Batch::new();
            batch.assert_value(&DEVICES, &key, &row);
            self.add_identity_keys(&mut batch, user.0, (device, &key.1), &checked)
                .await?;
            let counts = self
                .add_one_time_keys(&mut batch, user.0, device, &checked)
                .await?;
            if batch.appends() == 0 {
                return Ok(counts);
            }
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return Ok(counts);
            }
        }
        Err(Failure::Busy.into())
    }

    async fn add_identity_keys(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        (device, device_id): (DeviceNumber, &str),
        checked: &Checked,
    ) -> Result<(), KeyUploadError> {
        let Some(new) = &checked.device_keys else {
            return Ok(());
        };
        let old = self.ground.store.get(&DEVICE_KEYS, &device.0).await;
        let old = old.map_err(Failure::from)?;
        if old.as_ref() == Some(new) {
            return Ok(());
        }
        self.check_bound_of_user(user, device, new).await?;
        match &old {
            Some(old) => batch.assert_value(&DEVICE_KEYS, &device.0, old),
            None => batch.assert_absent(&DEVICE_KEYS, &device.0),
        };
        batch.put(&DEVICE_KEYS, &device.0, new);
        list_changed(batch, user, Told::Device(device_id));
        Ok(())
    }

    async fn add_one_time_keys(
        &self,
        batch: &mut Batch,
        user: UserNumber,
        device: DeviceNumber,
        checked: &Checked,
    ) -> Result<BTreeMap<String, u64>, KeyUploadError> {
        let counts = self.ground.store.get(&ONE_TIME_KEY_COUNTS, &device.0).await;
        let counts = counts.map_err(Failure::from)?;
        let new = self.unknown_keys(device, checked).await?;
        let fallback = self.changed_fallback_keys(device, checked).await?;
        let mut after = counts.clone().unwrap_or_default();
        if new.is_empty() && fallback.is_empty() {
            return Ok(after.0);
        }
        self.check_fallback_bound(device, &fallback).await?;
        let position = At::Append(batch.append(
            &journal::entry(journal::ONE_TIME_KEYS_CHANGED, &[user.0, device.0]),
            &[journal::device(device)],
        ));
        // Every upload and claim asserts and writes the counts: that is what makes them exclude
        // each other.
        match &counts {
            Some(counts) => batch.assert_value(&ONE_TIME_KEY_COUNTS, &device.0, counts),
            None => batch.assert_absent(&ONE_TIME_KEY_COUNTS, &device.0),
        };
        for (place, (algorithm, id, json)) in (0_u64..).zip(new) {
            *after.0.entry(algorithm.clone()).or_default() += 1;
            let of_id = (device.0, algorithm.clone(), id.clone());
            batch.put(&ONE_TIME_KEY_IDS, &of_id, &Positioned::new(position, place));
            let row = OneTimeKeyRow {
                id: id.clone(),
                json: json.clone(),
            };
            batch.put(
                &ONE_TIME_KEYS,
                &(device.0, algorithm.clone(), position, place),
                &row,
            );
        }
        for (algorithm, row) in fallback {
            batch.put(&FALLBACK_KEYS, &(device.0, algorithm.clone()), row);
        }
        check_bounds(&after)?;
        batch.put(&ONE_TIME_KEY_COUNTS, &device.0, &after);
        Ok(after.0)
    }

    /// The keys of the upload that are not waiting already.
    async fn unknown_keys<'a>(
        &self,
        device: DeviceNumber,
        checked: &'a Checked,
    ) -> Result<Vec<&'a (String, String, String)>, KeyUploadError> {
        let ids = checked.one_time.iter();
        let ids: Vec<_> = ids
            .map(|(algorithm, id, _)| (device.0, algorithm.clone(), id.clone()))
            .collect();
        let store = &self.ground.store;
        let places = store
            .multi_get(&ONE_TIME_KEY_IDS, &ids)
            .await
            .map_err(Failure::from)?;
        let mut unknown = Vec::new();
        for (key, place) in checked.one_time.iter().zip(places) {
            let Some(place) = place else {
                unknown.push(key);
                continue;
            };
            let (algorithm, id, json) = key;
            let of_key = (device.0, algorithm.clone(), place.known(), place.value);
            let waiting = store
                .get(&ONE_TIME_KEYS, &of_key)
                .await
                .map_err(Failure::from)?;
            match waiting {
                Some(waiting) if same_json(&waiting.json, json) => {}
                Some(_) => return Err(KeyUploadError::Exists(format!("{algorithm}:{id}"))),
                // Claimed since the ids were read; the assert on the counts decides anew.
                None => unknown.push(key),
            }
        }
        Ok(unknown)
    }

    /// The fallback keys that differ from the stored ones; a used one uploaded again stays used.
    async fn changed_fallback_keys<'a>(
        &self,
        device: DeviceNumber,
        checked: &'a Checked,
    ) -> Result<Vec<(&'a String, &'a FallbackKeyRow)>, Failure> {
        let keys = checked.fallback.keys();
        let keys: Vec<_> = keys
            .map(|algorithm| (device.0, algorithm.clone()))
            .collect();
        let stored = self.ground.store.multi_get(&FALLBACK_KEYS, &keys).await?;
        let pairs = checked.fallback.iter().zip(stored);
        let changed = pairs.filter(|((_, new), old)| {
            let same = |old: &FallbackKeyRow| old.id == new.id && same_json(&old.json, &new.json);
            !old.as_ref().is_some_and(same)
        });
        Ok(changed.map(|(new, _)| new).collect())
    }
}

impl Keys {
    /// That the identity keys of all devices of a user, with these of one, are not too much.
    async fn check_bound_of_user(
        &self,
        user: UserNumber,
        device: DeviceNumber,
        new: &DeviceKeysRow,
    ) -> Result<(), KeyUploadError> {
        let devices = self.ground.scan_prefix(&DEVICES, &user.0, MAX_DEVICES);
        let devices = devices.await?.into_iter();
        let others = devices
            .map(|(_, row)| number(&row))
            .filter(|other| *other != device);
        let others: Vec<u64> = others.map(|other| other.0).collect();
        let keys = self.ground.store.multi_get(&DEVICE_KEYS, &others).await;
        let keys = keys.map_err(Failure::from)?.into_iter().flatten();
        let bytes: usize = keys.map(|DeviceKeysRow(json)| json.len()).sum();
        if bytes + new.0.len() > MAX_DEVICE_KEYS_OF_USER {
            return Err(KeyUploadError::TooManyOfUser);
        }
        Ok(())
    }

    /// Fallback keys of earlier uploads stay until their algorithm gets another: they count too.
    async fn check_fallback_bound(
        &self,
        device: DeviceNumber,
        new: &[(&String, &FallbackKeyRow)],
    ) -> Result<(), KeyUploadError> {
        if new.is_empty() {
            return Ok(());
        }
        let stored = self
            .ground
            .scan_prefix(&FALLBACK_KEYS, &device.0, MAX_ALGORITHMS)
            .await?;
        let mut algorithms: BTreeSet<&String> = new.iter().map(|(name, _)| *name).collect();
        algorithms.extend(stored.iter().map(|((_, algorithm), _)| algorithm));
        if algorithms.len() > MAX_ALGORITHMS {
            return Err(KeyUploadError::TooMany);
        }
        Ok(())
    }
}

fn check_upload(
    user: &UserId,
    device: &DeviceId,
    upload: &KeyUpload,
) -> Result<Checked, KeyUploadError> {
    if upload.one_time_keys.len() + upload.fallback_keys.len() > MAX_KEYS_IN_UPLOAD {
        return Err(KeyUploadError::TooMany);
    }
    let device_keys = upload.device_keys.as_ref().map(|json| {
        let object = check::checked_device_keys(json.get(), user, device);
        let object = object.map_err(KeyUploadError::DeviceKeys)?;
        Ok::<_, KeyUploadError>(DeviceKeysRow(Value::Object(object).to_string()))
    });
    let mut one_time = Vec::with_capacity(upload.one_time_keys.len());
    for (name, json) in &upload.one_time_keys {
        let (algorithm, id) = check::checked_one_time_key(name, json.get())
            .map_err(|error| KeyUploadError::Key(name.clone(), error))?;
        one_time.push((algorithm.to_owned(), id.to_owned(), json.get().to_owned()));
    }
    let mut fallback = BTreeMap::new();
    for (name, json) in &upload.fallback_keys {
        let (algorithm, id) = check::checked_one_time_key(name, json.get())
            .map_err(|error| KeyUploadError::Key(name.clone(), error))?;
        let row = FallbackKeyRow {
            id: id.to_owned(),
            json: json.get().to_owned(),
            used: false,
        };
        if fallback.insert(algorithm.to_owned(), row).is_some() {
            return Err(KeyUploadError::TwoFallbackKeys(algorithm.to_owned()));
        }
    }
    if fallback.len() > MAX_ALGORITHMS {
        return Err(KeyUploadError::TooMany);
    }
    Ok(Checked {
        device_keys: device_keys.transpose()?,
        one_time,
        fallback,
    })
}

fn check_bounds(counts: &CountsRow) -> Result<(), KeyUploadError> {
    let waiting: u64 = counts.0.values().sum();
    if counts.0.len() > MAX_ALGORITHMS || waiting > MAX_ONE_TIME_KEYS {
        return Err(KeyUploadError::TooMany);
    }
    Ok(())
}

/// Whether two texts are the same JSON value, however written.
fn same_json(left: &str, right: &str) -> bool {
    let parse = |text| serde_json::from_str::<Value>(text).ok();
    left == right || parse(left).is_some_and(|left| Some(left) == parse(right))
}
