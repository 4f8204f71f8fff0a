//! Writes [`Changes`] as the response of `GET /_matrix/client/v3/sync`.
//!
//! Events were made before and are copied as they are; nothing is parsed here.
//!
//! Specification: client-server API, "Syncing", `data/api/client-server/sync.yaml`.

mod json;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ruma::OwnedUserId;
use serde_json::value::RawValue;

use self::json::Json;
use super::changes::{
    AccountDatum, Changes, Counts, JoinedRoom, LeftRoom, StateSection, StrippedRoom, Summary,
    Timeline, Unread,
};
use crate::client_event::ReadEvent;

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
