//! `/keys/query`: the identity keys of a user's devices as a reader may see them.

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId};
use serde_json::{Map, Value, value::RawValue};

use super::{DeviceKeysRow, Keys};
use crate::{
    Failure, UserNumber,
    device::{MAX_DEVICES, display_name, number},
    signature::{OnOneKey, visible},
    tables::{DEVICE_KEYS, DEVICES},
};

impl Keys {
    /// The keys of `owner`'s devices (of all if `only` is empty) as `reader` may see them: as
    /// uploaded, with the signatures the reader may see, and the device's name in `unsigned`.
    /// Devices without keys are missing.
    pub async fn of_user(
        &self,
        owner: UserNumber,
        only: &[OwnedDeviceId],
        reader: UserNumber,
    ) -> Result<BTreeMap<OwnedDeviceId, Box<RawValue>>, Failure> {
        self.shown(owner, only, Some(reader)).await
    }

    /// The keys of `owner`'s devices (of all if `only` is empty) as other servers may see them: with
    /// the owner's signatures, and without names.
    pub async fn public(
        &self,
        owner: UserNumber,
        only: &[OwnedDeviceId],
    ) -> Result<BTreeMap<OwnedDeviceId, Box<RawValue>>, Failure> {
        self.shown(owner, only, None).await
    }

    /// For a reader of this server, or for other servers.
    async fn shown(
        &self,
        owner: UserNumber,
        only: &[OwnedDeviceId],
        reader: Option<UserNumber>,
    ) -> Result<BTreeMap<OwnedDeviceId, Box<RawValue>>, Failure> {
        let mut devices = self
            .ground
            .scan_prefix(&DEVICES, &owner.0, MAX_DEVICES)
            .await?;
        if !only.is_empty() {
            devices.retain(|((_, id), _)| only.iter().any(|wanted| wanted.as_str() == id));
        }
        let numbers: Vec<u64> = devices.iter().map(|(_, row)| number(row).0).collect();
        let keys = self.ground.store.multi_get(&DEVICE_KEYS, &numbers).await?;
        if keys.iter().all(Option::is_none) {
            return Ok(BTreeMap::new());
        }
        let signatures = visible(&self.ground, owner, reader.unwrap_or(owner)).await?;
        let mut shown = BTreeMap::new();
        for (((_, id), row), keys) in devices.iter().zip(keys) {
            let Some(DeviceKeysRow(json)) = keys else {
                continue;
            };
            let name = display_name(row).filter(|_| reader.is_some());
            let json = with_name(&json, name)?;
            let json = with_signatures(&json, signatures.on(id))?;
            shown.insert(<&DeviceId>::from(id.as_str()).to_owned(), json);
        }
        Ok(shown)
    }
}

pub(crate) fn with_name(json: &str, name: Option<&str>) -> Result<String, Failure> {
    let Some(name) = name else {
        return Ok(json.to_owned());
    };
    let mut object = object(json)?;
    let mut unsigned = Map::new();
    unsigned.insert("device_display_name".to_owned(), name.into());
    object.insert("unsigned".to_owned(), unsigned.into());
    Ok(Value::Object(object).to_string())
}

/// A stored key with signatures added to its own.
pub(crate) fn with_signatures(
    json: &str,
    added: Option<&OnOneKey>,
) -> Result<Box<RawValue>, Failure> {
    let damaged = |_| Failure::Damaged("key");
    let Some(added) = added else {
        return RawValue::from_string(json.to_owned()).map_err(damaged);
    };
    let mut object = object(json)?;
    let empty = || Value::Object(Map::new());
    let all = object.entry("signatures").or_insert_with(empty);
    for (signer, signatures) in added {
        let Some(all) = all.as_object_mut() else {
            return Err(Failure::Damaged("key"));
        };
        let of_signer = all.entry(signer.clone()).or_insert_with(empty);
        if let Some(of_signer) = of_signer.as_object_mut() {
            let signatures = signatures.iter();
            of_signer.extend(signatures.map(|(id, text)| (id.clone(), Value::from(text.clone()))));
        }
    }
    RawValue::from_string(Value::Object(object).to_string()).map_err(damaged)
}

fn object(json: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(json).map_err(|_| Failure::Damaged("key"))
}
