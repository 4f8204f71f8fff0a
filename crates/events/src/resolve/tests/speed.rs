//! How long large conflicts take beside `ruma-state-res`, on the same generated graphs.
//!
//! A measurement, not part of the usual tests: `cargo test --release -p homeserver-events --lib
//! speed -- --ignored --nocapture`. The answers are compared in any case.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{
    fork::{ForkedRoom, USERS},
    peer,
};
use crate::RoomVersion;

/// Changes of power on each fork: what all other events are ordered by.
const POWER_CHANGES: usize = 20;

/// Times that this crate resolves the same; the fastest counts.
const TURNS: usize = 3;

/// A room whose two forks differ in about so many events.
fn forked(version: RoomVersion, conflicting: usize) -> ForkedRoom {
    let mut room = ForkedRoom::new(version, 0);
    room.states.truncate(2);
    for fork in 0..2 {
        for number in 0..conflicting / 2 {
            if number % (conflicting / 2 / POWER_CHANGES).max(1) == 0 {
                let mut users = serde_json::Map::new();
                if !room.room.rules.create_is_implied() {
                    users.insert(USERS[0].into(), 100.into());
                }
                users.insert(USERS[1].into(), 50.into());
                users.insert(USERS[3].into(), (number % 50).into());
                let levels = json!({ "users": users });
                let time = 1000 + number as u64;
                assert!(room.send(fork, USERS[0], "m.room.power_levels", "", &levels, time));
            }
            let (sender, key) = (USERS[number % 2], format!("key {number}"));
            let content = json!({ "fork": fork });
            let time = 1000 + (number * 7919 % conflicting) as u64;
            assert!(room.send(fork, sender, "org.example.setting", &key, &content, time));
        }
    }
    room
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is measured is the time that passes"
)]
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let done = run();
    (done, begin.elapsed())
}

fn measure(version: RoomVersion, conflicting: usize) {
    let forked = forked(version, conflicting);
    let turns = (0..TURNS).map(|_| timed(|| forked.room.resolve(&forked.states)));
    let (ours, own_time) = turns.min_by_key(|(_, time)| *time).unwrap();
    let (theirs, peer_time) = timed(|| peer::resolve(&forked.room, &forked.states));
    assert_eq!(forked.room.named(&ours), forked.room.named(&theirs));
    println!(
        "{version:?}, {conflicting} conflicting events: {own_time:?}, ruma-state-res {peer_time:?}, \
         ratio {:.2}",
        own_time.as_secs_f64() / peer_time.as_secs_f64(),
    );
}

#[test]
fn a_large_conflict_is_resolved_as_by_the_peer() {
    measure(RoomVersion::V11, 200);
    measure(RoomVersion::V12, 200);
}

#[test]
#[ignore = "a measurement"]
fn how_long_conflicts_take() {
    for version in [RoomVersion::V11, RoomVersion::V12] {
        for conflicting in [1000, 10_000] {
            measure(version, conflicting);
        }
    }
}
