//! What another server says of its users' keys, and what of it is believed.
//!
//! Keys are the server's word for its own users only, of the form that this server wants of its own
//! users too; what does not have it is left out. Their signatures are checked by the clients that
//! use them.

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, UserId};
use serde_json::{Value, value::RawValue};

use crate::{
    InvalidKey, MAX_DEVICES, MAX_DISPLAY_NAME,
    identifier::check_identifier,
    keys::{checked_device_keys, checked_one_time_key as checked_key},
};

/// A device of a user of another server.
#[derive(Clone, Debug)]
pub struct RemoteDevice {
    /// Its identity keys, without `unsigned`.
    pub keys: Box<RawValue>,
    /// Its name, if the other server tells it.
    pub name: Option<String>,
}

/// A whole list as it was fetched.
#[derive(Clone, Debug, Default)]
pub struct RemoteDeviceList {
    /// The number of the update that it corresponds to, if that was told.
    pub stream_id: Option<u64>,
    /// The devices.
    pub devices: BTreeMap<OwnedDeviceId, RemoteDevice>,
    /// The master key.
    pub master: Option<Box<RawValue>>,
    /// The self-signing key.
    pub self_signing: Option<Box<RawValue>>,
}

/// An update of one device of a list.
#[derive(Clone, Debug)]
pub struct DeviceListUpdate {
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The number of the update.
    pub stream_id: u64,
    /// Those that it follows.
    pub prev_ids: Vec<u64>,
    /// The new identity keys; `None` if the device has none.
    pub keys: Option<Box<RawValue>>,
    /// The new name.
    pub name: Option<String>,
    /// Whether the device is gone.
    pub deleted: bool,
}

/// The devices among what a server says of one of its users; those that are not what they should
/// be, and those beyond what a user may have, are left out.
pub fn checked_devices(
    user: &UserId,
    told: impl IntoIterator<Item = (OwnedDeviceId, Box<RawValue>, Option<String>)>,
) -> BTreeMap<OwnedDeviceId, RemoteDevice> {
    let devices = told.into_iter().filter_map(|(id, keys, name)| {
        let device = checked_device(user, &id, &keys, name)?;
        Some((id, device))
    });
    devices.take(MAX_DEVICES).collect()
}

/// The device; `None` if it is not what it should be.
fn checked_device(
    user: &UserId,
    id: &DeviceId,
    keys: &RawValue,
    name: Option<String>,
) -> Option<RemoteDevice> {
    check_identifier(id.as_str()).ok()?;
    let keys = checked_device_keys(keys.get(), user, id).ok()?;
    let json = RawValue::from_string(Value::Object(keys).to_string()).ok()?;
    Some(RemoteDevice {
        keys: json,
        name: name.filter(|name| name.len() <= MAX_DISPLAY_NAME),
    })
}

/// What an update makes of its device; nothing if it is gone.
pub(super) fn updated_device(
    user: &UserId,
    update: &DeviceListUpdate,
) -> Result<Option<RemoteDevice>, InvalidKey> {
    check_identifier(update.device_id.as_str()).map_err(|_| InvalidKey::NotOwn)?;
    match &update.keys {
        Some(keys) if !update.deleted => {
            let name = update.name.clone();
            let device = checked_device(user, &update.device_id, keys, name);
            device.map(Some).ok_or(InvalidKey::Form)
        }
        // A device without keys is nothing to those who ask for keys.
        _ => Ok(None),
    }
}

/// Whether a claimed key has the form of one, and is of the algorithm that was asked for.
pub fn checked_one_time_key(name: &str, algorithm: &str, json: &RawValue) -> bool {
    checked_key(name, json.get()).is_ok_and(|(found, _)| found == algorithm)
}
