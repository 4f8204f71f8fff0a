//! Responses as clients parse them.

use super::*;
use crate::{
    client_event::{EventBody, EventParts, Unsigned},
    sync::{changes::DeviceListChanges, token::SyncToken},
};
use ruma::{
    api::{IncomingResponseExt, client::sync::sync_events},
    event_id, owned_event_id, owned_room_id, owned_user_id, user_id,
};
use serde_json::{Value, json};

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

fn event(unsigned: &Unsigned<'_>) -> ReadEvent {
    let content = raw(&json!({"body": "hello", "msgtype": "m.text"}));
    let body = EventBody::new(EventParts {
        event_id: event_id!("$event"),
        event_type: "m.room.message",
        state_key: None,
        sender: user_id!("@alice:example.org"),
        origin_server_ts: 5,
        content: &content,
        redacts: None,
    });
    ReadEvent::new(body, unsigned)
}

fn datum() -> AccountDatum {
    AccountDatum {
        event_type: "m.tag".into(),
        content: raw(&json!({"tags": {}})),
    }
}

fn full() -> Changes {
    let timeline = Timeline {
        events: vec![
            event(&Unsigned::default()),
            event(&Unsigned {
                age: Some(1),
                ..Unsigned::default()
            }),
        ],
        limited: true,
        prev_batch: Some("t1".into()),
    };
    Changes {
        next: SyncToken {
            position: 5,
            ..SyncToken::default()
        },
        joined: vec![JoinedRoom {
            room: owned_room_id!("!joined:example.org"),
            summary: Some(Summary {
                heroes: Some(vec![owned_user_id!("@bob:example.org")]),
                joined: 2,
                invited: 1,
            }),
            state: StateSection::Before(vec![event(&Unsigned::default())]),
            timeline: timeline.clone(),
            ephemeral: vec![raw(
                &json!({"type": "m.typing", "content": {"user_ids": []}}),
            )],
            account_data: vec![datum()],
            unread: Some(Unread {
                room: Counts {
                    notifications: 3,
                    highlights: 1,
                },
                threads: Some([(owned_event_id!("$root"), Counts::default())].into()),
            }),
        }],
        invited: vec![StrippedRoom {
            room: owned_room_id!("!invited:example.org"),
            events: vec![raw(
                &json!({"type": "m.room.name", "state_key": "", "sender": "@a:b", "content": {"name": "x"}}),
            )],
        }],
        knocked: vec![StrippedRoom {
            room: owned_room_id!("!knocked:example.org"),
            events: Vec::new(),
        }],
        left: vec![LeftRoom {
            room: owned_room_id!("!left:example.org"),
            state: StateSection::After(Vec::new()),
            timeline,
            account_data: vec![datum()],
        }],
        presence: vec![raw(
            &json!({"type": "m.presence", "sender": "@a:b", "content": {"presence": "online"}}),
        )],
        account_data: vec![datum(), datum()],
        to_device: vec![raw(
            &json!({"type": "m.dummy", "sender": "@a:b", "content": {}}),
        )],
        device_lists: DeviceListChanges {
            changed: vec![owned_user_id!("@bob:example.org")],
            left: Vec::new(),
        },
        one_time_keys: [("signed_curve25519".to_owned(), 50)].into(),
        unused_fallback_types: vec!["signed_curve25519".into()],
        keys_changed: true,
    }
}

#[test]
fn a_full_response_is_what_the_specification_says() {
    let written: Value = serde_json::from_slice(&write(&full())).unwrap();
    let joined = &written["rooms"]["join"]["!joined:example.org"];
    assert_eq!(
        joined["summary"],
        json!({
            "m.heroes": ["@bob:example.org"], "m.joined_member_count": 2, "m.invited_member_count": 1,
        })
    );
    assert_eq!(joined["timeline"]["events"].as_array().unwrap().len(), 2);
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(joined["timeline"]["prev_batch"], "t1");
    assert_eq!(joined["state"]["events"].as_array().unwrap().len(), 1);
    assert_eq!(
        joined["unread_notifications"],
        json!({"notification_count": 3, "highlight_count": 1})
    );
    assert!(joined["unread_thread_notifications"]["$root"].is_object());
    assert_eq!(
        written["rooms"]["leave"]["!left:example.org"]["state_after"],
        json!({"events": []})
    );
    assert!(
        written["rooms"]["leave"]["!left:example.org"]
            .get("state")
            .is_none()
    );
    assert_eq!(
        written["rooms"]["knock"]["!knocked:example.org"]["knock_state"],
        json!({"events": []})
    );
    assert_eq!(
        written["account_data"]["events"].as_array().unwrap().len(),
        2
    );
    assert_eq!(
        written["device_one_time_keys_count"],
        json!({"signed_curve25519": 50})
    );
    assert_eq!(
        written["device_lists"],
        json!({"changed": ["@bob:example.org"], "left": []})
    );
}

#[test]
fn an_empty_response_has_its_token_and_key_counts_only() {
    let written: Value = serde_json::from_slice(&write(&Changes::default())).unwrap();
    assert_eq!(
        written,
        json!({
            "next_batch": "s0_0_0_0_0_0_0_0",
            "device_one_time_keys_count": {}, "device_unused_fallback_key_types": [],
        })
    );
}

#[test]
fn the_response_parses_as_ruma_does() {
    let body = write(&full());
    let response = http::Response::new(&body[..]);
    let parsed = sync_events::v3::Response::try_from_http_response(response).unwrap();
    assert_eq!(parsed.rooms.join.len(), 1);
    assert_eq!(parsed.to_device.events.len(), 1);
}
