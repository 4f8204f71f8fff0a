//! EDUs as they are told apart before anything is done: of which type, and whether they speak of
//! users of the server that sent them. What is not is dropped.

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, OwnedUserId, ServerName, UserId,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, PresenceUpdate, ReceiptData,
        SigningKeyUpdateContent, TypingContent,
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{edus::RemoteReceipt, transaction::ReceivedEdu};
use crate::is_same_server;

pub(super) const TO_DEVICE: &str = "m.direct_to_device";
pub(super) const DEVICE_LIST: &str = "m.device_list_update";
pub(super) const SIGNING_KEYS: &str = "m.signing_key_update";

/// Receipts and presences of one EDU at most; the rest of it is passed over.
const MAX_ENTRIES: usize = 500;
/// Events of one receipt at most.
const MAX_RECEIPT_EVENTS: usize = 20;

/// An EDU that must not be lost.
#[derive(Clone, Debug)]
pub(super) enum KeptEdu {
    ToDevice(DirectDeviceContent),
    DeviceList(DeviceListUpdateContent),
    SigningKeys(SigningKeyUpdateContent),
}

/// An EDU that is outdated soon.
#[derive(Clone, Debug)]
pub(super) enum PassingEdu {
    Typing(TypingContent),
    Receipt(OwnedRoomId, RemoteReceipt),
    Presence(PresenceUpdate),
}

/// The EDUs of a transaction.
#[derive(Debug, Default)]
pub(super) struct SortedEdus {
    pub(super) kept: Vec<ReceivedEdu>,
    pub(super) passing: Vec<PassingEdu>,
}

impl KeptEdu {
    /// Reads one that speaks of a user of `origin`.
    pub(super) fn read(origin: &ServerName, edu_type: &str, content: &[u8]) -> Option<Self> {
        let (edu, user) = match edu_type {
            TO_DEVICE => {
                let content: DirectDeviceContent = serde_json::from_slice(content).ok()?;
                let user = content.sender.clone();
                (Self::ToDevice(content), user)
            }
            DEVICE_LIST => {
                let content: DeviceListUpdateContent = serde_json::from_slice(content).ok()?;
                let user = content.user_id.clone();
                (Self::DeviceList(content), user)
            }
            SIGNING_KEYS => {
                let content: SigningKeyUpdateContent = serde_json::from_slice(content).ok()?;
                let user = content.user_id.clone();
                (Self::SigningKeys(content), user)
            }
            _ => return None,
        };
        is_of(&user, origin).then_some(edu)
    }
}

/// Sorts the EDUs of a transaction. Those of unknown types, malformed ones and those that speak of
/// users of other servers are left out.
pub(super) fn sort(origin: &ServerName, edus: Vec<ReceivedEdu>) -> SortedEdus {
    let mut sorted = SortedEdus::default();
    for edu in edus {
        let content = &edu.content;
        match edu.edu_type.as_str() {
            "m.typing" => {
                let typing = serde_json::from_slice(content).ok();
                let own = |typing: &TypingContent| is_of(&typing.user_id, origin);
                let typing = typing.filter(own);
                sorted.passing.extend(typing.map(PassingEdu::Typing));
            }
            "m.receipt" => receipts(origin, content, &mut sorted.passing),
            "m.presence" => presences(origin, content, &mut sorted.passing),
            kind => {
                if KeptEdu::read(origin, kind, content).is_some() {
                    sorted.kept.push(edu);
                }
            }
        }
    }
    sorted
}

fn is_of(user: &UserId, origin: &ServerName) -> bool {
    is_same_server(user.server_name(), origin)
}

/// The public receipts, each by itself.
fn receipts(origin: &ServerName, content: &[u8], passing: &mut Vec<PassingEdu>) {
    type Rooms<'a> = BTreeMap<OwnedRoomId, BTreeMap<String, BTreeMap<String, &'a RawValue>>>;
    let Ok(rooms) = serde_json::from_slice::<Rooms<'_>>(content) else {
        return;
    };
    let mut left = MAX_ENTRIES;
    for (room, mut kinds) in rooms {
        for (user, receipt) in kinds.remove("m.read").unwrap_or_default() {
            let Some(fewer) = left.checked_sub(1) else {
                return;
            };
            left = fewer;
            let user = OwnedUserId::try_from(user).ok();
            let Some(user) = user.filter(|user| is_of(user, origin)) else {
                continue;
            };
            let Ok(read) = serde_json::from_str::<ReceiptData>(receipt.get()) else {
                continue;
            };
            if read.event_ids.is_empty() || read.event_ids.len() > MAX_RECEIPT_EVENTS {
                continue;
            }
            let receipt = RemoteReceipt {
                user,
                event_ids: read.event_ids,
                thread: read.data.thread,
                ts: read.data.ts.map_or(0, |ts| u64::from(ts.get())),
            };
            passing.push(PassingEdu::Receipt(room.clone(), receipt));
        }
    }
}

/// The presences, each by itself.
fn presences(origin: &ServerName, content: &[u8], passing: &mut Vec<PassingEdu>) {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        push: Vec<&'a RawValue>,
    }
    let Ok(content) = serde_json::from_slice::<Content<'_>>(content) else {
        return;
    };
    for update in content.push.into_iter().take(MAX_ENTRIES) {
        let update = serde_json::from_str::<PresenceUpdate>(update.get()).ok();
        let own = |update: &PresenceUpdate| is_of(&update.user_id, origin);
        passing.extend(update.filter(own).map(PassingEdu::Presence));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ruma::server_name;
    use serde_json::{Value, json};

    use super::*;

    fn sorted(edu_type: &str, content: &Value) -> SortedEdus {
        let edu = ReceivedEdu {
            edu_type: edu_type.to_owned(),
            content: Bytes::from(content.to_string()),
        };
        sort(server_name!("a.example"), vec![edu])
    }

    fn counts(edu_type: &str, content: &Value) -> (usize, usize) {
        let sorted = sorted(edu_type, content);
        (sorted.kept.len(), sorted.passing.len())
    }

    fn receipt(user: &str) -> Value {
        json!({ user: { "data": { "ts": 5 }, "event_ids": ["$e"] } })
    }

    /// Each kind of EDU, about this user.
    fn about(user: &str) -> Vec<(&'static str, Value)> {
        vec![
            (
                "m.typing",
                json!({ "room_id": "!r", "user_id": user, "typing": true }),
            ),
            ("m.receipt", json!({ "!r": { "m.read": receipt(user) } })),
            (
                "m.presence",
                json!({ "push": [{ "user_id": user, "presence": "online", "last_active_ago": 1 }] }),
            ),
            (
                DEVICE_LIST,
                json!({ "user_id": user, "device_id": "D", "stream_id": 1, "prev_id": [] }),
            ),
            (SIGNING_KEYS, json!({ "user_id": user })),
            (
                TO_DEVICE,
                json!({ "sender": user, "type": "m.x", "message_id": "1", "messages": {} }),
            ),
        ]
    }

    #[test]
    fn each_speaks_of_users_of_its_server_only() {
        for (edu_type, content) in about("@u:a.example") {
            let (kept, passing) = counts(edu_type, &content);
            assert_eq!(kept + passing, 1, "{edu_type}");
            assert_eq!(
                kept == 1,
                edu_type.starts_with("m.d") || edu_type == SIGNING_KEYS
            );
        }
        for user in ["@u:b.example", "@u:a.example:8448", "u", "@u:sub.a.example"] {
            for (edu_type, content) in about(user) {
                assert_eq!(counts(edu_type, &content), (0, 0), "{edu_type} {user}");
            }
        }
    }

    #[test]
    fn what_is_malformed_or_unknown_costs_only_itself() {
        for edu_type in [
            "m.typing",
            "m.receipt",
            "m.presence",
            TO_DEVICE,
            "m.new",
            "",
        ] {
            for content in [
                json!({}),
                json!([]),
                json!(null),
                json!({ "push": 7, "!r": 7 }),
            ] {
                assert_eq!(counts(edu_type, &content), (0, 0), "{edu_type} {content}");
            }
        }
        let presences = json!({ "push": [
            7,
            { "user_id": "@u:a.example", "presence": "online", "last_active_ago": 1 },
            { "user_id": "@v:b.example", "presence": "online", "last_active_ago": 1 },
        ] });
        assert_eq!(counts("m.presence", &presences), (0, 1));
        let receipts = json!({
            "!r": {
                "m.read": {
                    "@u:a.example": { "data": { "ts": 5, "thread_id": "main" }, "event_ids": ["$e"] },
                    "@v:b.example": { "data": {}, "event_ids": ["$e"] },
                    "@w:a.example": { "data": {}, "event_ids": [] },
                    "@x:a.example": 7,
                },
                "m.read.private": receipt("@y:a.example"),
            },
            "!s": { "m.read": receipt("@z:a.example") },
        });
        assert_eq!(counts("m.receipt", &receipts), (0, 2));
    }

    #[test]
    fn the_entries_of_one_are_bounded() {
        let users = (0..2 * MAX_ENTRIES).map(|number| {
            let user = format!("@u{number}:a.example");
            (user, json!({ "data": {}, "event_ids": ["$e"] }))
        });
        let users: serde_json::Map<_, _> = users.collect();
        let content = json!({ "!r": { "m.read": users } });
        assert_eq!(counts("m.receipt", &content), (0, MAX_ENTRIES));
    }
}
