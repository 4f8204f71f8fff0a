//! `/keys/claim`: one key of a device, handed out once.

use homeserver_storage::Batch;
use ruma::DeviceId;
use serde_json::value::RawValue;

use super::{FallbackKeyRow, Keys};
use crate::{
    DeviceNumber, Failure, UserNumber,
    device::number,
    ground::{Attempt, MAX_ATTEMPTS},
    journal,
    tables::{DEVICES, FALLBACK_KEYS, ONE_TIME_KEY_COUNTS, ONE_TIME_KEY_IDS, ONE_TIME_KEYS},
};

/// A key that was handed out.
#[derive(Clone, Debug)]
pub struct ClaimedKey {
    /// Its name, `algorithm:id`.
    pub name: String,
    /// The key as uploaded.
    pub key: Box<RawValue>,
}

impl Keys {
    /// Hands out a key of a device: the one-time key that has waited longest, else the fallback
    /// key, else `None`. No one-time key is ever given to two callers.
    pub async fn claim(
        &self,
        user: UserNumber,
        device: &DeviceId,
        algorithm: &str,
    ) -> Result<Option<ClaimedKey>, Failure> {
        let key = (user.0, device.to_string());
        let Some(row) = self.ground.store.get(&DEVICES, &key).await? else {
            return Ok(None);
        };
        let device = number(&row);
        let _turn = self.turn(device).lock().await;
        for _ in 0..MAX_ATTEMPTS {
            let prefix = (device.0, algorithm.to_owned());
            let oldest = self.ground.scan_prefix(&ONE_TIME_KEYS, &prefix, 1).await?;
            let Some((place, waiting)) = oldest.into_iter().next() else {
                return self.claim_fallback(user, device, algorithm).await;
            };
            let mut batch = Batch::new();
            batch.assert_value(&ONE_TIME_KEYS, &place, &waiting);
            batch.delete(&ONE_TIME_KEYS, &place);
            batch.delete(
                &ONE_TIME_KEY_IDS,
                &(device.0, place.1.clone(), waiting.id.clone()),
            );
            let counts = self
                .ground
                .store
                .get(&ONE_TIME_KEY_COUNTS, &device.0)
                .await?;
            // The counts go with the device: without them the device was deleted just now.
            let Some(counts) = counts else {
                return Ok(None);
            };
            let mut after = counts.clone();
            if let Some(count) = after.0.get_mut(algorithm) {
                *count = count.saturating_sub(1);
            }
            batch.assert_value(&ONE_TIME_KEY_COUNTS, &device.0, &counts);
            batch.put(&ONE_TIME_KEY_COUNTS, &device.0, &after);
            tell_device(&mut batch, user, device);
            if let Attempt::Done(_) = self.ground.attempt(batch).await? {
                return claimed(algorithm, &waiting.id, waiting.json).map(Some);
            }
        }
        Err(Failure::Busy)
    }

    async fn claim_fallback(
        &self,
        user: UserNumber,
        device: DeviceNumber,
        algorithm: &str,
    ) -> Result<Option<ClaimedKey>, Failure> {
        let key = (device.0, algorithm.to_owned());
        for _ in 0..MAX_ATTEMPTS {
            let Some(row) = self.ground.store.get(&FALLBACK_KEYS, &key).await? else {
                return Ok(None);
            };
            if !row.used {
                let mut batch = Batch::new();
                batch.assert_value(&FALLBACK_KEYS, &key, &row);
                batch.put(
                    &FALLBACK_KEYS,
                    &key,
                    &FallbackKeyRow {
                        used: true,
                        ..row.clone()
                    },
                );
                tell_device(&mut batch, user, device);
                if let Attempt::Conflict = self.ground.attempt(batch).await? {
                    continue;
                }
            }
            return claimed(algorithm, &row.id, row.json).map(Some);
        }
        Err(Failure::Busy)
    }
}

/// Wakes the device's sync, which tells it how many keys are left.
fn tell_device(batch: &mut Batch, user: UserNumber, device: DeviceNumber) {
    let entry = journal::entry(journal::ONE_TIME_KEYS_CHANGED, &[user.0, device.0]);
    batch.append(&entry, &[journal::device(device)]);
}

fn claimed(algorithm: &str, id: &str, json: String) -> Result<ClaimedKey, Failure> {
    Ok(ClaimedKey {
        name: format!("{algorithm}:{id}"),
        key: RawValue::from_string(json).map_err(|_| Failure::Damaged("one-time key"))?,
    })
}
