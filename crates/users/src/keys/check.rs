//! The form that uploaded keys must have.

use homeserver_events::{Strictness, canonical::parse_object};
use ruma::{DeviceId, UserId};
use serde_json::{Map, Value};

use super::{MAX_DEVICE_KEYS, MAX_ONE_TIME_KEY};
use crate::identifier::check_identifier;

/// What is wrong with an uploaded key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Not JSON of the expected kind.
    #[error("not a JSON object, or not of the form of a key")]
    Form,
    /// It is longer than any real key.
    #[error("the key is too large")]
    TooLarge,
    /// It names another user or device than the one uploading it.
    #[error("the key belongs to another user or device")]
    NotOwn,
    /// A property that the specification requires is missing or of another type.
    #[error("the property {0} is missing or malformed")]
    Property(&'static str),
    /// The key's name is not `algorithm:id`.
    #[error("the key's name is not of the form algorithm:id")]
    Name,
}

/// Checks identity keys and gives them without `unsigned`, which is the server's to add.
pub(crate) fn checked_device_keys(
    json: &str,
    user: &UserId,
    device: &DeviceId,
) -> Result<Map<String, Value>, InvalidKey> {
    if json.len() > MAX_DEVICE_KEYS {
        return Err(InvalidKey::TooLarge);
    }
    check_canonical(json)?;
    let mut object: Map<String, Value> =
        serde_json::from_str(json).map_err(|_| InvalidKey::Form)?;
    object.remove("unsigned");
    let names = |property, expected: &str| match object.get(property) {
        Some(Value::String(text)) if text == expected => Ok(()),
        Some(Value::String(_)) => Err(InvalidKey::NotOwn),
        _ => Err(InvalidKey::Property(property)),
    };
    names("user_id", user.as_str())?;
    names("device_id", device.as_str())?;
    match object.get("algorithms") {
        Some(Value::Array(algorithms)) if algorithms.iter().all(Value::is_string) => {}
        _ => return Err(InvalidKey::Property("algorithms")),
    }
    check_named_keys(object.get("keys"), device)?;
    let own = check_signatures(object.get("signatures"))?.get(user.as_str());
    let signed_by_itself = own
        .and_then(Value::as_object)
        .is_some_and(|own| own.contains_key(&format!("ed25519:{device}")));
    if !signed_by_itself {
        return Err(InvalidKey::Property("signatures"));
    }
    Ok(object)
}

/// What is signed has a canonical form: no fractions, no key twice. Anything else could not be
/// passed on to other servers, whose requests are signed whole.
pub(crate) fn check_canonical(json: &str) -> Result<(), InvalidKey> {
    match parse_object(json.as_bytes(), Strictness::Strict) {
        Ok(_) => Ok(()),
        Err(_) => Err(InvalidKey::Form),
    }
}

/// `keys`: strings under `algorithm:device id`, the signing key among them.
fn check_named_keys(keys: Option<&Value>, device: &DeviceId) -> Result<(), InvalidKey> {
    let Some(Value::Object(keys)) = keys else {
        return Err(InvalidKey::Property("keys"));
    };
    let well_formed = keys.iter().all(|(name, key)| {
        let id = name.split_once(':').map(|(_, id)| id);
        id == Some(device.as_str()) && key.is_string()
    });
    if well_formed && keys.contains_key(&format!("ed25519:{device}")) {
        Ok(())
    } else {
        Err(InvalidKey::Property("keys"))
    }
}

/// `signatures`: user → key id → string, all the way down.
pub(crate) fn check_signatures(
    signatures: Option<&Value>,
) -> Result<&Map<String, Value>, InvalidKey> {
    let malformed = InvalidKey::Property("signatures");
    let signatures = signatures.and_then(Value::as_object).ok_or(malformed)?;
    let well_formed = signatures.values().all(|of_user| {
        let of_user = of_user.as_object();
        of_user.is_some_and(|of_user| of_user.values().all(Value::is_string))
    });
    if well_formed {
        Ok(signatures)
    } else {
        Err(malformed)
    }
}

/// Checks a one-time or fallback key and gives its algorithm and id.
pub(crate) fn checked_one_time_key<'a>(
    name: &'a str,
    json: &str,
) -> Result<(&'a str, &'a str), InvalidKey> {
    let (algorithm, id) = name.split_once(':').ok_or(InvalidKey::Name)?;
    check_identifier(algorithm).map_err(|_| InvalidKey::Name)?;
    check_identifier(id).map_err(|_| InvalidKey::Name)?;
    if algorithm.len() > MAX_ALGORITHM_NAME || id.len() > MAX_KEY_ID {
        return Err(InvalidKey::Name);
    }
    if json.len() > MAX_ONE_TIME_KEY {
        return Err(InvalidKey::TooLarge);
    }
    match serde_json::from_str(json).map_err(|_| InvalidKey::Form)? {
        Value::String(_) => Ok((algorithm, id)),
        Value::Object(key) => {
            check_canonical(json)?;
            let has_key = key.get("key").is_some_and(Value::is_string);
            has_key.then_some(()).ok_or(InvalidKey::Property("key"))?;
            check_signatures(key.get("signatures"))?;
            Ok((algorithm, id))
        }
        _ => Err(InvalidKey::Form),
    }
}

/// Bytes of an algorithm's name; the longest known has 24.
const MAX_ALGORITHM_NAME: usize = 64;

/// Bytes of a one-time key's id.
const MAX_KEY_ID: usize = 128;
