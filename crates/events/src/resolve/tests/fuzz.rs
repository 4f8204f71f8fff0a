//! Rooms out of mutated events: resolution ends, in an answer that does not depend on the order of
//! the states.

use std::{fs, path::PathBuf};

use homeserver_fuzz::Target;
use serde_json::Value;

use super::{State, TestRoom, key};
use crate::RoomVersion;

/// Events of a room at most.
const MAX_EVENTS: usize = 60;
/// States to resolve.
const STATES: usize = 3;

fn rooms() -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resolve");
    let events = |file: &str| -> Vec<Value> {
        serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap()
    };
    let forks: [&[&str]; 5] = [
        &[
            "ban-vs-power-levels-alice.json",
            "ban-vs-power-levels-bob.json",
        ],
        &[
            "join-rules-vs-join-common.json",
            "join-rules-vs-join-alice.json",
            "join-rules-vs-join-ella.json",
        ],
        &[
            "power-levels-admin-vs-mod-alice.json",
            "power-levels-admin-vs-mod-bob.json",
        ],
        &[
            "topic-vs-ban-common.json",
            "topic-vs-ban-alice.json",
            "topic-vs-ban-bob.json",
        ],
        &[
            "topic-vs-power-levels-alice.json",
            "topic-vs-power-levels-bob.json",
        ],
    ];
    let mut seeds = Vec::new();
    for (fork, files) in forks.iter().enumerate() {
        let mut room = events("bootstrap-public-chat.json");
        room.extend(files.iter().flat_map(|file| events(file)));
        for version in [0, 1 + fork, 11] {
            let json = serde_json::to_vec(&room).unwrap();
            seeds.push([&[version as u8], json.as_slice()].concat());
        }
    }
    seeds
}

#[test]
fn resolution() {
    let words = [
        "\"auth_events\":[]",
        "\"rejected\":true",
        "\"origin_server_ts\":1",
        "\"users\":{}",
        "m.room.power_levels",
        "m.room.member",
        "m.room.create",
        "\"membership\":\"ban\"",
        "\"state_key\":\"\"",
        "@alice:example.com",
    ];
    Target::new("resolution")
        .seeds(rooms())
        .words(&words)
        .run(|input| {
            let Some((version, json)) = input.split_first() else {
                return false;
            };
            let Ok(events) = serde_json::from_slice::<Vec<Value>>(json) else {
                return false;
            };
            let version = RoomVersion::ALL[usize::from(*version) % RoomVersion::ALL.len()];
            let mut room = TestRoom::new(version);
            let mut states = vec![State::new(); STATES];
            for (place, event) in events.into_iter().take(MAX_EVENTS).enumerate() {
                let Some(number) = room.try_add(event) else {
                    continue;
                };
                let event = &room.event(number).event;
                let Some((event_type, state_key)) = event.state_pair() else {
                    continue;
                };
                let pair = key(event_type, state_key);
                for (index, state) in states.iter_mut().enumerate() {
                    // Each state lacks others of the events.
                    if index == 0 || (place + index) % 3 != 0 {
                        state.insert(pair.clone(), number);
                    }
                }
            }
            if states[0].is_empty() {
                return false;
            }
            let resolved = room.resolve(&states);
            states.reverse();
            assert_eq!(room.resolve(&states), resolved, "depends on the order");
            let own = |(pair, number): (&_, &_)| {
                let event = &room.event(*number).event;
                event
                    .state_pair()
                    .is_some_and(|(kind, state_key)| key(kind, state_key) == *pair)
            };
            assert!(resolved.iter().all(own));
            assert_eq!(
                room.resolve(&[resolved.clone(), resolved.clone()]),
                resolved
            );
            true
        });
}
