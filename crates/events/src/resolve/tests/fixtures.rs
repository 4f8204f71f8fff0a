//! The fixtures of `ruma-state-res`, MSC4297's problems A and B among them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use ruma::{EventId, OwnedEventId, RoomVersionId};
use serde_json::Value;

use super::{EventNumber, State, TestRoom};
use crate::RoomVersion;

fn read<T: serde::de::DeserializeOwned>(path: &str) -> T {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resolve");
    let text = fs::read_to_string(folder.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The room of these files, and its events in their order.
fn load(files: &[&str]) -> (TestRoom, Vec<(EventNumber, Vec<OwnedEventId>)>) {
    let jsons: Vec<Value> = files
        .iter()
        .flat_map(|file| read::<Vec<Value>>(file))
        .collect();
    let version = jsons[0]["content"]["room_version"].as_str().unwrap();
    let version = RoomVersion::parse(version).unwrap();
    assert!(RoomVersionId::try_from(version.as_str()).is_ok());
    let mut room = TestRoom::new(version);
    let mut events = Vec::new();
    for json in jsons {
        let prev = serde_json::from_value(json["prev_events"].clone()).unwrap();
        events.push((room.add(json), prev));
    }
    (room, events)
}

fn state_key_of(room: &TestRoom, number: EventNumber) -> super::StateKey {
    let event = &room.event(number).event;
    super::key(event.event_type(), event.state_key().unwrap())
}

fn expect(room: &TestRoom, name: &str, resolved: &State) {
    let expected: Vec<OwnedEventId> = read(&format!("expected/{name}.json"));
    let expected: State = expected
        .iter()
        .map(|id| room.number(id))
        .map(|number| (state_key_of(room, number), number))
        .collect();
    assert_eq!(room.named(resolved), room.named(&expected), "{name}");
}

/// Follows `prev_events`: the state before an event resolves the states after those, and an event
/// that the state before it does not allow resolves away.
fn check_rooms(name: &str, files: &[&str]) {
    let (room, events) = load(files);
    let mut after: BTreeMap<OwnedEventId, State> = BTreeMap::new();
    let mut leaves: Vec<OwnedEventId> = Vec::new();
    for (number, prev) in events {
        let states: Vec<_> = prev.iter().map(|id| after[id].clone()).collect();
        let before = room.resolve(&states);
        let mut proposed = before.clone();
        proposed.insert(state_key_of(&room, number), number);
        leaves.retain(|leaf| !prev.contains(leaf));
        leaves.push(room.id(number).to_owned());
        after.insert(
            room.id(number).to_owned(),
            room.resolve(&[before, proposed]),
        );
    }
    let states: Vec<_> = leaves.iter().map(|leaf| after[leaf].clone()).collect();
    expect(&room, name, &room.resolve(&states));
}

fn check_states(name: &str, states: &[&str], events: &str) {
    let (room, _) = load(&[events]);
    let states: Vec<State> = states
        .iter()
        .map(|file| {
            let ids: Vec<String> = read(file);
            let numbers = ids
                .iter()
                .map(|id| room.number(&EventId::parse(id).unwrap()));
            numbers
                .map(|number| (state_key_of(&room, number), number))
                .collect()
        })
        .collect();
    expect(&room, name, &room.resolve(&states));
}

#[test]
fn rooms() {
    for (name, files) in [
        ("minimal_private_chat", &["bootstrap-private-chat.json"][..]),
        ("minimal_public_chat", &["bootstrap-public-chat.json"]),
        (
            "origin_server_ts_tiebreak",
            &[
                "bootstrap-private-chat.json",
                "origin-server-ts-tiebreak.json",
            ],
        ),
        (
            "ban_vs_power_levels",
            &[
                "bootstrap-public-chat.json",
                "ban-vs-power-levels-alice.json",
                "ban-vs-power-levels-bob.json",
            ],
        ),
        (
            "topic_vs_power_levels",
            &[
                "bootstrap-public-chat.json",
                "topic-vs-power-levels-alice.json",
                "topic-vs-power-levels-bob.json",
            ],
        ),
        (
            "power_levels_admin_vs_mod",
            &[
                "bootstrap-public-chat.json",
                "power-levels-admin-vs-mod-alice.json",
                "power-levels-admin-vs-mod-bob.json",
            ],
        ),
        (
            "topic_vs_ban",
            &[
                "bootstrap-public-chat.json",
                "topic-vs-ban-common.json",
                "topic-vs-ban-alice.json",
                "topic-vs-ban-bob.json",
            ],
        ),
        (
            "join_rules_vs_join",
            &[
                "bootstrap-public-chat.json",
                "join-rules-vs-join-common.json",
                "join-rules-vs-join-alice.json",
                "join-rules-vs-join-ella.json",
            ],
        ),
        (
            "concurrent_joins",
            &[
                "bootstrap-public-chat.json",
                "concurrent-joins-charlie.json",
                "concurrent-joins-ella.json",
            ],
        ),
    ] {
        check_rooms(name, files);
    }
}

/// MSC4297, problem A: v2.0 starts from the unconflicted state and loses the join rules; v2.1
/// starts from nothing and keeps them.
#[test]
fn msc4297_problem_a() {
    let states = [
        "MSC4297-problem-A/state-bob.json",
        "MSC4297-problem-A/state-charlie.json",
    ];
    check_states(
        "msc4297_problem_a_state_res_v2_0",
        &states,
        "MSC4297-problem-A/pdus-v11.json",
    );
    check_states(
        "msc4297_problem_a_state_res_v2_1",
        &states,
        "MSC4297-problem-A/pdus-v12.json",
    );
}

/// MSC4297, problem B: without the conflicted state subgraph the power levels fall back to the
/// first ones.
#[test]
fn msc4297_problem_b() {
    let states = [
        "MSC4297-problem-B/state-eve.json",
        "MSC4297-problem-B/state-zara.json",
    ];
    check_states(
        "msc4297_problem_b_state_res_v2_0",
        &states,
        "MSC4297-problem-B/pdus-v11.json",
    );
    check_states(
        "msc4297_problem_b_state_res_v2_1",
        &states,
        "MSC4297-problem-B/pdus-v12.json",
    );
}
