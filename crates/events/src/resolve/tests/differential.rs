//! Random rooms resolved by this crate and by `ruma-state-res`, and by this crate twice.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::{
    State, cases,
    fork::{ForkedRoom, USERS, actions},
    key, peer, split,
};
use crate::RoomVersion;

/// Cases by default. Each builds a room of up to forty events and resolves it several times.
const CASES: u32 = 2_000;

fn config(default: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases(default))
    }
}

fn versions() -> impl Strategy<Value = RoomVersion> {
    prop_oneof![
        1 => Just(RoomVersion::V2),
        1 => Just(RoomVersion::V6),
        2 => Just(RoomVersion::V11),
        4 => Just(RoomVersion::V12),
    ]
}

proptest! {
    #![proptest_config(config(CASES))]

    #[test]
    fn resolves_like_the_peer(version in versions(), actions in actions(30)) {
        let forked = ForkedRoom::build(version, 0, &actions);
        forked.check(&forked.states);
        forked.check(&forked.states[..2]);
    }
}

proptest! {
    #![proptest_config(config(CASES / 4))]

    /// The order of the states and the numbers of the events mean nothing.
    #[test]
    fn order_and_numbers_mean_nothing(
        version in prop_oneof![1 => Just(RoomVersion::V1), 3 => versions()],
        actions in actions(20),
        mask in any::<u64>(),
    ) {
        let forked = ForkedRoom::build(version, 0, &actions);
        let resolved = forked.room.named(&forked.room.resolve(&forked.states));
        let mut states = forked.states.clone();
        for turn in 0..3 {
            states.rotate_left(1);
            if turn == 1 {
                states.swap(0, 1);
            }
            prop_assert_eq!(forked.room.named(&forked.room.resolve(&states)), resolved.clone());
        }
        // A state twice is as good as once.
        states.push(states[0].clone());
        prop_assert_eq!(forked.room.named(&forked.room.resolve(&states)), resolved.clone());
        let renumbered = ForkedRoom::build(version, mask, &actions);
        let again = renumbered.room.resolve(&renumbered.states);
        prop_assert_eq!(renumbered.room.named(&again), resolved);
    }
}

/// A room whose two forks differ in about so many settings, made under changing power levels.
fn settings(version: RoomVersion, conflicting: usize) -> ForkedRoom {
    const POWER_CHANGES: usize = 20;
    let mut room = ForkedRoom::new(version, 0);
    room.states.truncate(2);
    for fork in 0..2 {
        for number in 0..conflicting / 2 {
            let time = 1000 + number as u64;
            if number % (conflicting / 2 / POWER_CHANGES).max(1) == 0 {
                let mut levels = json!({ "users": { USERS[1]: 50, USERS[3]: number % 50 } });
                if !room.room.rules.create_is_implied() {
                    levels["users"][USERS[0]] = 100.into();
                }
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

#[test]
fn a_large_conflict_is_resolved_as_by_the_peer() {
    for version in [RoomVersion::V11, RoomVersion::V12] {
        let room = settings(version, 200);
        let resolved = room.check(&room.states);
        assert!(resolved.len() > 100, "{version:?}");
    }
}

/// Power levels change in turn on both forks for long, with a setting under each of them: the
/// mainline and the way to it from the other fork are long, and take few rounds.
#[test]
fn long_chains_of_power_levels_take_few_rounds() {
    const CHANGES: usize = 200;
    for version in [RoomVersion::V2, RoomVersion::V11, RoomVersion::V12] {
        let mut room = ForkedRoom::new(version, 0);
        room.states.truncate(2);
        for number in 0..CHANGES {
            for fork in 0..2 {
                let mut levels = json!({ "users": { USERS[1]: 50, USERS[3]: number % 50 } });
                if !room.room.rules.create_is_implied() {
                    levels["users"][USERS[0]] = 100.into();
                }
                let time = 1000 + number as u64;
                assert!(room.send(fork, USERS[0], "m.room.power_levels", "", &levels, time));
                let key = format!("key {number}");
                let content = json!({ "fork": fork });
                assert!(room.send(fork, USERS[1], "org.example.setting", &key, &content, time));
            }
        }
        let limits = super::Limits::default();
        let (resolved, usage) = room.room.resolve_within(&room.states, limits);
        assert_eq!(resolved.unwrap(), room.check(&room.states), "{version:?}");
        assert!(usage.rounds < 40, "{version:?}: {usage:?}");
    }
}

/// The generator does make forks that matter: a check of the check.
#[test]
fn the_generator_reaches_conflicts_about_power() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let strategy = actions(30);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let actions = strategy.new_tree(&mut runner).unwrap().current();
        let forked = ForkedRoom::build(RoomVersion::V12, 0, &actions);
        assert!(forked.has_power_event(&forked.states[0]));
        let (conflict, _) = split(&forked.states);
        seen.extend(
            conflict
                .values()
                .keys()
                .map(|(event_type, _)| event_type.clone()),
        );
        let subgraph_is_more = {
            let conflicted: BTreeSet<_> = conflict
                .values()
                .values()
                .flatten()
                .copied()
                .flatten()
                .collect();
            peer::subgraph(&forked.room, &conflicted) != conflicted
        };
        if subgraph_is_more {
            seen.insert("subgraph".into());
        }
        let resolved = forked.room.resolve(&forked.states);
        let lost = conflict
            .values()
            .keys()
            .any(|key| !resolved.contains_key(key));
        if lost {
            seen.insert("lost".into());
        }
    }
    let expected = [
        "m.room.join_rules",
        "m.room.member",
        "m.room.power_levels",
        "m.room.topic",
        "subgraph",
    ];
    for wanted in expected {
        assert!(seen.contains(wanted), "{wanted} never came up: {seen:?}");
    }
}

/// Alice bans Bob on one fork while Bob, still a moderator on the other, sets the topic.
#[test]
fn a_ban_undoes_what_the_banned_did_elsewhere() {
    for version in [RoomVersion::V2, RoomVersion::V11, RoomVersion::V12] {
        let mut forked = ForkedRoom::new(version, 0);
        let ban = serde_json::json!({ "membership": "ban" });
        assert!(forked.send(0, USERS[0], "m.room.member", USERS[1], &ban, 100));
        let topic = serde_json::json!({ "topic": "mine" });
        assert!(forked.send(1, USERS[1], "m.room.topic", "", &topic, 90));
        let resolved = forked.check(&forked.states);
        assert!(
            !resolved.contains_key(&key("m.room.topic", "")),
            "{version:?}"
        );
        let member = forked.id_of(&resolved, "m.room.member", USERS[1]);
        assert_eq!(
            member,
            forked.id_of(&forked.states[0], "m.room.member", USERS[1])
        );
    }
}

/// Nothing is loaded for states that agree.
#[test]
fn states_that_agree_need_nothing() {
    let forked = ForkedRoom::new(RoomVersion::V12, 0);
    assert_eq!(forked.check(&forked.states), forked.states[0]);
    assert_eq!(forked.check(&forked.states[..1]), forked.states[0]);
    assert_eq!(forked.room.resolve(&[]), State::new());
    let (_, usage) = forked
        .room
        .resolve_within(&forked.states, super::Limits::default());
    assert_eq!(usage.rounds, 0);
}
