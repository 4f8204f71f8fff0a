//! Contents of what other servers are told beside events.

use std::collections::BTreeMap;

use homeserver_users::{CrossSigningKeys, Presence, StoredReceipt};
use ruma::{DeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Serialize;
use serde_json::{Map, Value, json, value::RawValue};

/// The type of updates of device lists.
pub const DEVICE_LIST_UPDATE: &str = "m.device_list_update";
/// The type of updates of cross-signing keys.
pub const SIGNING_KEY_UPDATE: &str = "m.signing_key_update";
/// The type of messages to devices.
pub const DIRECT_TO_DEVICE: &str = "m.direct_to_device";
/// The type of typing notices.
pub const TYPING: &str = "m.typing";
/// The type of presence.
pub const PRESENCE: &str = "m.presence";
/// The type of receipts.
pub const RECEIPT: &str = "m.receipt";

/// Whether a user types in a room.
pub fn typing(room: &RoomId, user: &UserId, typing: bool) -> Box<RawValue> {
    raw(&json!({ "room_id": room, "user_id": user, "typing": typing }))
}

/// The presence of users.
pub fn presence(users: &[(OwnedUserId, Presence)]) -> Box<RawValue> {
    let push = users.iter().map(|(user, presence)| {
        // Who never did anything did so long ago; the property must be there.
        let ago = presence.last_active_ago.unwrap_or_default();
        let mut told = json!({
            "user_id": user,
            "presence": presence.state.as_str(),
            "last_active_ago": u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
            "currently_active": presence.currently_active,
        });
        if let Some(status) = &presence.status {
            told["status_msg"] = status.as_str().into();
        }
        told
    });
    raw(&json!({ "push": push.collect::<Vec<_>>() }))
}

/// Public receipts by room. One content has one receipt of each user in a room: the last given.
pub fn receipts(rooms: &BTreeMap<OwnedRoomId, Vec<(OwnedUserId, StoredReceipt)>>) -> Box<RawValue> {
    let mut content = Map::new();
    for (room, receipts) in rooms {
        let mut read = Map::new();
        for (user, StoredReceipt { receipt, .. }) in receipts {
            let mut data = json!({ "ts": receipt.at });
            if let Some(thread) = receipt.thread.as_str() {
                data["thread_id"] = thread.into();
            }
            let told = json!({ "event_ids": [receipt.event_id], "data": data });
            read.insert(user.to_string(), told);
        }
        content.insert(room.to_string(), json!({ "m.read": read }));
    }
    raw(&Value::Object(content))
}

/// An update of a device: with its keys, or that it is gone. Its name is nobody's business there.
pub(super) fn device_list_update(
    (user, device): (&UserId, &DeviceId),
    (previous, position): (u64, u64),
    keys: Option<&RawValue>,
) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Content<'a> {
        user_id: &'a UserId,
        device_id: &'a DeviceId,
        stream_id: u64,
        prev_id: Vec<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        deleted: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        keys: Option<&'a RawValue>,
    }
    raw(&Content {
        user_id: user,
        device_id: device,
        stream_id: position,
        prev_id: (previous > 0).then_some(previous).into_iter().collect(),
        deleted: keys.is_none().then_some(true),
        keys,
    })
}

/// The cross-signing keys of a user.
pub(super) fn signing_key_update(user: &UserId, keys: &CrossSigningKeys) -> Box<RawValue> {
    #[derive(Serialize)]
    struct Content<'a> {
        user_id: &'a UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        master_key: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        self_signing_key: Option<&'a RawValue>,
    }
    raw(&Content {
        user_id: user,
        master_key: keys.master.as_deref(),
        self_signing_key: keys.self_signing.as_deref(),
    })
}

/// Our own values always are JSON; `null` stands in for what is not.
fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
