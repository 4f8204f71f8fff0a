//! The calls about users of other servers, and what of the answers is believed: what a server says
//! of the users that it was asked for, and only if it has the form that it must have.

use std::collections::BTreeMap;

use homeserver_users::{RemoteDeviceList, checked_devices, checked_one_time_key};
use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Call, CallError, Path, Peers};

/// Users asked for in one call.
pub(super) const USERS_IN_CALL: usize = 250;

/// Which key is wanted of which device.
pub type Claims = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>;

/// Keys by user, device and name.
pub(super) type ClaimedByUser =
    BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, (String, Box<RawValue>)>>;

type ByDevice<T> = BTreeMap<OwnedDeviceId, T>;

/// What may stand in `unsigned`.
#[derive(Default, Deserialize)]
struct Unsigned {
    device_display_name: Option<String>,
}

#[derive(Deserialize)]
struct WithUnsigned {
    #[serde(default)]
    unsigned: Unsigned,
}

/// The name that keys come with.
fn name_of(keys: &RawValue) -> Option<String> {
    let read: WithUnsigned = serde_json::from_str(keys.get()).ok()?;
    read.unsigned.device_display_name
}

/// `GET /user/devices/{userId}`.
pub(super) async fn devices(peers: &Peers, user: &UserId) -> Result<RemoteDeviceList, CallError> {
    #[derive(Deserialize)]
    struct Answer {
        user_id: OwnedUserId,
        stream_id: u64,
        devices: Vec<Told>,
        master_key: Option<Box<RawValue>>,
        self_signing_key: Option<Box<RawValue>>,
    }
    #[derive(Deserialize)]
    struct Told {
        device_id: OwnedDeviceId,
        keys: Option<Box<RawValue>>,
        device_display_name: Option<String>,
    }
    let path = Path::v1("user/devices").segment(user.as_str());
    let answer: Answer = peers
        .ask(user.server_name(), Call::get(path))
        .await?
        .read()?;
    if answer.user_id != user {
        let message = "these are not the devices that were asked for";
        return Err(CallError::BadAnswer(message.to_owned()));
    }
    let told = answer.devices.into_iter().filter_map(|device| {
        let keys = device.keys?;
        Some((device.device_id, keys, device.device_display_name))
    });
    Ok(RemoteDeviceList {
        stream_id: Some(answer.stream_id),
        devices: checked_devices(user, told),
        master: answer.master_key,
        self_signing: answer.self_signing_key,
    })
}

/// `POST /user/keys/query`, for at most [`USERS_IN_CALL`] users of the server. A user of whom it says
/// nothing has nothing.
pub(super) async fn query(
    peers: &Peers,
    server: &ServerName,
    asked: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
) -> Result<BTreeMap<OwnedUserId, RemoteDeviceList>, CallError> {
    #[derive(Serialize)]
    struct Question<'a> {
        device_keys: &'a BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    }
    // Not by user ids: one that is none must not spoil the others.
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "device_keys")]
        devices: BTreeMap<String, BTreeMap<OwnedDeviceId, Box<RawValue>>>,
        #[serde(rename = "master_keys", default)]
        masters: BTreeMap<String, Box<RawValue>>,
        #[serde(rename = "self_signing_keys", default)]
        self_signing: BTreeMap<String, Box<RawValue>>,
    }
    let body = body(&Question { device_keys: asked })?;
    let call = Call::post(Path::v1("user/keys/query"), body);
    let mut answer: Answer = peers.ask(server, call).await?.read()?;
    let mut lists = BTreeMap::new();
    for (user, only) in asked {
        let told = answer.devices.remove(user.as_str()).unwrap_or_default();
        let told = told.into_iter().map(|(id, keys)| {
            let name = name_of(&keys);
            (id, keys, name)
        });
        let mut devices = checked_devices(user, told);
        devices.retain(|id, _| only.is_empty() || only.contains(id));
        let list = RemoteDeviceList {
            stream_id: None,
            devices,
            master: answer.masters.remove(user.as_str()),
            self_signing: answer.self_signing.remove(user.as_str()),
        };
        lists.insert(user.clone(), list);
    }
    Ok(lists)
}

/// `POST /user/keys/claim`.
pub(super) async fn claim(
    peers: &Peers,
    server: &ServerName,
    asked: &Claims,
) -> Result<ClaimedByUser, CallError> {
    #[derive(Serialize)]
    struct Question<'a> {
        one_time_keys: &'a Claims,
    }
    #[derive(Deserialize)]
    struct Answer {
        one_time_keys: BTreeMap<String, ByDevice<BTreeMap<String, Box<RawValue>>>>,
    }
    let body = body(&Question {
        one_time_keys: asked,
    })?;
    let call = Call::post(Path::v1("user/keys/claim"), body);
    let mut answer: Answer = peers.ask(server, call).await?.read()?;
    let mut claimed = ClaimedByUser::new();
    for (user, devices) in asked {
        let mut told = answer
            .one_time_keys
            .remove(user.as_str())
            .unwrap_or_default();
        for (device, algorithm) in devices {
            let keys = told.remove(device).unwrap_or_default();
            let fits =
                |(name, key): &(String, Box<RawValue>)| checked_one_time_key(name, algorithm, key);
            if let Some(key) = keys.into_iter().find(fits) {
                let of_user = claimed.entry(user.clone()).or_default();
                of_user.insert(device.clone(), key);
            }
        }
    }
    Ok(claimed)
}

fn body(question: &impl Serialize) -> Result<Vec<u8>, CallError> {
    serde_json::to_vec(question).map_err(|error| CallError::OwnRequest(error.to_string()))
}
