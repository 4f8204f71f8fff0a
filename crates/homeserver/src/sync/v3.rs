//! Writes [`Changes`] as the response of `GET /_matrix/client/v3/sync`.
//!
//! Events were made before and are copied as they are; nothing is parsed here.
//!
//! Specification: client-server API, "Syncing", `data/api/client-server/sync.yaml`.

use std::collections::BTreeMap;

use ruma::OwnedUserId;
use serde_json::value::RawValue;

use super::changes::{
    AccountDatum, Changes, Counts, JoinedRoom, LeftRoom, StateSection, StrippedRoom, Summary,
    Timeline, Unread,
};
use crate::client_event::{ReadEvent, string};

/// The response's body.
pub(crate) fn write(changes: &Changes) -> Vec<u8> {
    let mut out = Json::default();
    out.object(|out| {
        out.name("next_batch").string(&changes.next.to_string());
        if !changes.account_data.is_empty() {
            out.name("account_data");
            events(out, |out| account_data(out, &changes.account_data));
        }
        if !changes.presence.is_empty() {
            out.name("presence");
            events(out, |out| raw_events(out, &changes.presence));
        }
        if !changes.to_device.is_empty() {
            out.name("to_device");
            events(out, |out| raw_events(out, &changes.to_device));
        }
        device_lists(out, changes);
        rooms(out, changes);
    });
    out.bytes
}

fn device_lists(out: &mut Json, changes: &Changes) {
    let lists = &changes.device_lists;
    if !(lists.changed.is_empty() && lists.left.is_empty()) {
        out.name("device_lists").object(|out| {
            users(out.name("changed"), &lists.changed);
            users(out.name("left"), &lists.left);
        });
    }
    // Absent counts would mean "as before" to some clients and "none" to others: always there.
    out.name("device_one_time_keys_count").object(|out| {
        for (algorithm, count) in &changes.one_time_keys {
            out.name(algorithm).number(*count);
        }
    });
    out.name("device_unused_fallback_key_types").array(|out| {
        for algorithm in &changes.unused_fallback_types {
            out.item().string(algorithm);
        }
    });
}

fn rooms(out: &mut Json, changes: &Changes) {
    let Changes {
        joined,
        invited,
        knocked,
        left,
        ..
    } = changes;
    if joined.is_empty() && invited.is_empty() && knocked.is_empty() && left.is_empty() {
        return;
    }
    out.name("rooms").object(|out| {
        section(out, "join", joined, |out, room| {
            joined_room(out.name(room.room.as_str()), room);
        });
        section(out, "invite", invited, |out, room| {
            stripped_room(out.name(room.room.as_str()), "invite_state", room);
        });
        section(out, "knock", knocked, |out, room| {
            stripped_room(out.name(room.room.as_str()), "knock_state", room);
        });
        section(out, "leave", left, |out, room| {
            left_room(out.name(room.room.as_str()), room);
        });
    });
}

fn section<T>(out: &mut Json, name: &str, rooms: &[T], write: impl Fn(&mut Json, &T)) {
    if !rooms.is_empty() {
        out.name(name)
            .object(|out| rooms.iter().for_each(|room| write(out, room)));
    }
}

fn joined_room(out: &mut Json, room: &JoinedRoom) {
    out.object(|out| {
        if let Some(found) = &room.summary {
            out.name("summary").object(|out| summary(out, found));
        }
        state(out, &room.state);
        timeline(out, &room.timeline);
        if !room.ephemeral.is_empty() {
            out.name("ephemeral");
            events(out, |out| raw_events(out, &room.ephemeral));
        }
        if !room.account_data.is_empty() {
            out.name("account_data");
            events(out, |out| account_data(out, &room.account_data));
        }
        if let Some(found) = &room.unread {
            unread(out, found);
        }
    });
}

fn left_room(out: &mut Json, room: &LeftRoom) {
    out.object(|out| {
        state(out, &room.state);
        timeline(out, &room.timeline);
        if !room.account_data.is_empty() {
            out.name("account_data");
            events(out, |out| account_data(out, &room.account_data));
        }
    });
}

fn stripped_room(out: &mut Json, name: &str, room: &StrippedRoom) {
    out.object(|out| {
        out.name(name);
        events(out, |out| raw_events(out, &room.events));
    });
}

fn summary(out: &mut Json, summary: &Summary) {
    if let Some(heroes) = &summary.heroes {
        users(out.name("m.heroes"), heroes);
    }
    out.name("m.joined_member_count").number(summary.joined);
    out.name("m.invited_member_count").number(summary.invited);
}

fn state(out: &mut Json, state: &StateSection) {
    let (name, found) = match state {
        StateSection::Before(found) => ("state", found),
        StateSection::After(found) => ("state_after", found),
        StateSection::UnstableAfter(found) => ("org.matrix.msc4222.state_after", found),
    };
    // `state_after` must be there even if empty: its presence tells clients how to read the rest.
    out.name(name);
    events(out, |out| read_events(out, found));
}

fn timeline(out: &mut Json, timeline: &Timeline) {
    out.name("timeline").object(|out| {
        out.name("limited").boolean(timeline.limited);
        if let Some(token) = &timeline.prev_batch {
            out.name("prev_batch").string(token);
        }
        out.name("events")
            .array(|out| read_events(out, &timeline.events));
    });
}

fn unread(out: &mut Json, unread: &Unread) {
    counts(out.name("unread_notifications"), unread.room);
    if let Some(threads) = &unread.threads {
        thread_counts(out, threads);
    }
}

fn thread_counts(out: &mut Json, threads: &BTreeMap<ruma::OwnedEventId, Counts>) {
    if threads.is_empty() {
        return;
    }
    out.name("unread_thread_notifications").object(|out| {
        for (root, found) in threads {
            counts(out.name(root.as_str()), *found);
        }
    });
}

fn counts(out: &mut Json, counts: Counts) {
    out.object(|out| {
        out.name("highlight_count").number(counts.highlights);
        out.name("notification_count").number(counts.notifications);
    });
}

/// Writes `{"events":[…]}`.
fn events(out: &mut Json, write: impl FnOnce(&mut Json)) {
    out.object(|out| out.name("events").array(write));
}

fn read_events(out: &mut Json, events: &[ReadEvent]) {
    for event in events {
        event.write(&mut out.item().bytes, None);
    }
}

fn raw_events(out: &mut Json, events: &[Box<RawValue>]) {
    for event in events {
        out.item().raw(event);
    }
}

fn account_data(out: &mut Json, data: &[AccountDatum]) {
    for datum in data {
        out.item().object(|out| {
            out.name("content").raw(&datum.content);
            out.name("type").string(&datum.event_type);
        });
    }
}

fn users(out: &mut Json, users: &[OwnedUserId]) {
    out.array(|out| {
        for user in users {
            out.item().string(user.as_str());
        }
    });
}

/// JSON being written: puts the commas.
#[derive(Debug, Default)]
struct Json {
    bytes: Vec<u8>,
}

impl Json {
    fn comma(&mut self) {
        if !matches!(self.bytes.last(), None | Some(b'{' | b'[' | b':')) {
            self.bytes.push(b',');
        }
    }

    /// The next member of the object being written; its value must follow.
    fn name(&mut self, name: &str) -> &mut Self {
        self.comma();
        string(&mut self.bytes, name);
        self.bytes.push(b':');
        self
    }

    /// The next item of the array being written; its value must follow.
    fn item(&mut self) -> &mut Self {
        self.comma();
        self
    }

    fn object(&mut self, write: impl FnOnce(&mut Self)) {
        self.bytes.push(b'{');
        write(self);
        self.bytes.push(b'}');
    }

    fn array(&mut self, write: impl FnOnce(&mut Self)) {
        self.bytes.push(b'[');
        write(self);
        self.bytes.push(b']');
    }

    fn string(&mut self, value: &str) {
        string(&mut self.bytes, value);
    }

    fn number(&mut self, value: u64) {
        self.bytes.extend_from_slice(value.to_string().as_bytes());
    }

    fn boolean(&mut self, value: bool) {
        let text: &[u8] = if value { b"true" } else { b"false" };
        self.bytes.extend_from_slice(text);
    }

    fn raw(&mut self, value: &RawValue) {
        self.bytes.extend_from_slice(value.get().as_bytes());
    }
}

#[cfg(test)]
mod tests {
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
}
