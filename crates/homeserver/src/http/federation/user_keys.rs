//! What other servers ask about the devices and keys of our users. Any server may: who is invited or
//! written to for the first time shares no room yet.
//!
//! They are shown what everybody is: keys with their owners' signatures, no names of devices, no
//! user-signing keys. Users of other servers are not spoken of.
//!
//! Specification: server-server API, "Device Management", "End-to-End Encryption".

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use homeserver_federation::is_same_server;
use homeserver_storage::Store;
use homeserver_users::{Account, CrossSigningKeys, UserNumber, Users};
use http::header;
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId, UserId,
    api::federation::{
        device::get_devices,
        keys::{claim_keys, get_keys},
    },
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Signed;
use crate::http::{ApiError, Routes};

/// Users in one query or claim.
const MAX_USERS: usize = 1_000;

/// Keys in one claim. Each is a commit.
const MAX_CLAIMED: usize = 5_000;

/// Bytes of keys in the answer to a query: what is beyond it is left out. Servers read ten million.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

pub(super) fn routes() -> Routes {
    Routes::new().ruma(devices).ruma(query).ruma(claim)
}

/// The device list of one user.
#[derive(Serialize)]
struct List {
    user_id: OwnedUserId,
    stream_id: u64,
    devices: Vec<Device>,
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_signing_key: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Device {
    device_id: OwnedDeviceId,
    keys: Box<RawValue>,
}

async fn devices(
    State(users): State<Users>,
    State(own_name): State<OwnedServerName>,
    State(store): State<Store>,
    Signed { request, .. }: Signed<get_devices::v1::Request>,
) -> Result<Response, ApiError> {
    let user = request.user_id;
    if !is_same_server(user.server_name(), &own_name) {
        let message = "This is not a user of this server";
        return Err(ApiError::invalid_param(message));
    }
    let account = users.accounts.by_id(&user).await?;
    let account = account.ok_or_else(|| ApiError::not_found("This server has no such user"))?;
    // The number first: what changes in between is told once more rather than never.
    let stream_id = users
        .device_lists
        .version(account.number, store.durable())
        .await?;
    let keys = users.keys.public(account.number, &[]).await?;
    let devices = keys
        .into_iter()
        .map(|(device_id, keys)| Device { device_id, keys });
    let shown = users
        .cross_signing
        .public_keys((account.number, &user))
        .await?;
    json(&List {
        stream_id,
        devices: devices.collect(),
        master_key: shown.master,
        self_signing_key: shown.self_signing,
        user_id: user,
    })
}

/// Keys of many users.
#[derive(Default, Serialize)]
struct Lists {
    #[serde(rename = "device_keys")]
    devices: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Box<RawValue>>>,
    #[serde(rename = "master_keys")]
    masters: BTreeMap<OwnedUserId, Box<RawValue>>,
    #[serde(rename = "self_signing_keys")]
    self_signing: BTreeMap<OwnedUserId, Box<RawValue>>,
}

async fn query(
    State(users): State<Users>,
    State(own_name): State<OwnedServerName>,
    Signed { request, .. }: Signed<get_keys::v1::Request>,
) -> Result<Response, ApiError> {
    check_count(request.device_keys.len())?;
    let mut answer = Lists::default();
    let mut bytes = 0;
    for (user, only) in request.device_keys {
        let Some(number) = own_user(&users, &own_name, &user).await? else {
            continue;
        };
        let keys = users.keys.public(number, &only).await?;
        bytes += keys.values().map(|key| key.get().len()).sum::<usize>();
        if bytes > MAX_ANSWER {
            break;
        }
        answer.devices.insert(user.clone(), keys);
        let CrossSigningKeys {
            master,
            self_signing,
            ..
        } = users.cross_signing.public_keys((number, &user)).await?;
        answer.masters.extend(master.map(|key| (user.clone(), key)));
        answer
            .self_signing
            .extend(self_signing.map(|key| (user, key)));
    }
    json(&answer)
}

/// Keys by user, device and name.
#[derive(Serialize)]
struct Claimed {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<String, Box<RawValue>>>>,
}

async fn claim(
    State(users): State<Users>,
    State(own_name): State<OwnedServerName>,
    Signed { request, .. }: Signed<claim_keys::v1::Request>,
) -> Result<Response, ApiError> {
    check_count(request.one_time_keys.len())?;
    let wanted = request.one_time_keys.values().map(BTreeMap::len);
    if wanted.sum::<usize>() > MAX_CLAIMED {
        return Err(ApiError::invalid_param(format!(
            "At most {MAX_CLAIMED} keys at once"
        )));
    }
    let mut claimed = BTreeMap::new();
    for (user, devices) in request.one_time_keys {
        let Some(number) = own_user(&users, &own_name, &user).await? else {
            continue;
        };
        let mut of_user: BTreeMap<OwnedDeviceId, BTreeMap<String, Box<RawValue>>> = BTreeMap::new();
        for (device, algorithm) in devices {
            let key = users.keys.claim(number, &device, algorithm.as_str());
            if let Some(key) = key.await? {
                of_user.insert(device, BTreeMap::from([(key.name, key.key)]));
            }
        }
        if !of_user.is_empty() {
            claimed.insert(user, of_user);
        }
    }
    json(&Claimed {
        one_time_keys: claimed,
    })
}

/// An answer that is not made of values: keys are passed on as they are.
fn json(answer: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(answer).map_err(|error| ApiError::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// The number of a user of this server, if there is one.
async fn own_user(
    users: &Users,
    own_name: &OwnedServerName,
    user: &UserId,
) -> Result<Option<UserNumber>, ApiError> {
    if !is_same_server(user.server_name(), own_name) {
        return Ok(None);
    }
    let account = users.accounts.by_id(user).await?;
    let account = account.filter(Account::is_active);
    Ok(account.map(|account| account.number))
}

fn check_count(users: usize) -> Result<(), ApiError> {
    if users > MAX_USERS {
        return Err(ApiError::invalid_param(format!(
            "At most {MAX_USERS} users at once"
        )));
    }
    Ok(())
}
