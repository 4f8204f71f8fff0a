//! What a resolution may load, how long it may work, and what it says when it may not go on.

use serde_json::json;

use super::{
    Answer, Conflict, Limit, Limits, Resolution, Step, cases,
    fork::{ForkedRoom, USERS},
    key, split,
};
use crate::{RoomVersion, resolve::MAX_STATES};

/// Alice bans Bob, Bob promotes Carol, Carol sets a topic.
fn quarrel(version: RoomVersion) -> ForkedRoom {
    let mut forked = ForkedRoom::new(version, 0);
    let ban = json!({ "membership": "ban" });
    assert!(forked.send(0, USERS[0], "m.room.member", USERS[1], &ban, 100));
    let mut users = json!({ USERS[1]: 50, USERS[2]: 50 });
    if version != RoomVersion::V12 {
        users[USERS[0]] = 100.into();
    }
    let levels = json!({ "users": users });
    assert!(forked.send(1, USERS[1], "m.room.power_levels", "", &levels, 90));
    let topic = json!({ "topic": "mine" });
    assert!(forked.send(1, USERS[2], "m.room.topic", "", &topic, 91));
    forked
}

#[test]
fn every_limit_stops_it_and_names_itself() {
    for version in [RoomVersion::V1, RoomVersion::V2, RoomVersion::V12] {
        let forked = quarrel(version);
        let over = |limits: Limits| match forked.room.resolve_within(&forked.states, limits).0 {
            Ok(_) => None,
            Err(Step::OverLimit(limit)) => Some(limit),
            Err(other) => panic!("{other:?}"),
        };
        let whole = Limits::default();
        assert_eq!(over(whole), None);
        assert_eq!(
            over(Limits { events: 3, ..whole }),
            Some(Limit::Events),
            "{version:?}"
        );
        assert_eq!(
            over(Limits { links: 3, ..whole }),
            Some(Limit::Links),
            "{version:?}"
        );
        let bytes = Limits {
            event_bytes: 500,
            ..whole
        };
        assert_eq!(over(bytes), Some(Limit::EventBytes), "{version:?}");

        // Whatever the number of steps: the whole answer or none.
        let expected = forked.room.resolve(&forked.states);
        let mut enough = None;
        for steps in 0..1_000 {
            let limits = Limits { steps, ..whole };
            match forked.room.resolve_within(&forked.states, limits).0 {
                Ok(state) => {
                    assert_eq!(state, expected);
                    enough.get_or_insert(steps);
                }
                Err(Step::OverLimit(limit)) => {
                    assert_eq!((limit, enough), (Limit::Steps, None), "{steps} steps");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(
            enough.is_some_and(|steps| steps > 0),
            "{version:?}: {enough:?}"
        );
    }
}

#[test]
fn too_many_states() {
    let forked = quarrel(RoomVersion::V11);
    let mut states = vec![forked.states[0].clone(); MAX_STATES];
    states[0] = forked.states[1].clone();
    let one_more = [states.clone(), vec![forked.states[2].clone()]].concat();
    let (resolved, _) = forked.room.resolve_within(&states, Limits::default());
    assert_eq!(resolved.unwrap(), forked.room.resolve(&forked.states[..2]));
    let (resolved, _) = forked.room.resolve_within(&one_more, Limits::default());
    assert!(
        matches!(resolved, Err(Step::OverLimit(Limit::States))),
        "{resolved:?}"
    );
}

#[test]
fn what_is_not_supplied_is_named() {
    let forked = quarrel(RoomVersion::V11);
    let (conflict, common) = split(&forked.states);
    let rules = forked.room.rules;
    let mut resolution = Resolution::new(rules, 1, conflict, Limits::default());
    let Step::Need(need) = resolution.step(Answer::default()) else {
        panic!("no need")
    };
    let mut answer = forked.room.answer(&need, &common);
    let lost = answer.events.pop().map(|event| event.links.number);
    match resolution.step(answer) {
        Step::Missing(missing) => assert_eq!(missing.events.first().copied(), lost),
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_on_which_states_agree_are_no_conflict() {
    let mut conflict = Conflict::new(2);
    conflict.insert(key("m.room.topic", ""), vec![Some(7), Some(7)]);
    conflict.insert(key("m.room.name", ""), vec![]);
    assert!(conflict.is_empty());
    conflict.insert(key("m.room.topic", ""), vec![Some(7)]);
    assert_eq!(conflict.values()[&key("m.room.topic", "")], [Some(7), None]);
}

/// However long the room's history and however many its members, a fork near the end stays cheap.
/// Only the subgraph of v2.1 follows the links down to the oldest conflicted event, here Bob's
/// join, and so along all power levels since; never to the members.
#[test]
fn old_history_and_many_members_are_not_walked() {
    let scale = if cases(10_000) < 10_000 { 60 } else { 400 };
    for version in [RoomVersion::V11, RoomVersion::V12] {
        let mut forked = ForkedRoom::new(version, 0);
        forked.states.truncate(1);
        let mut levels = json!({ "users": { USERS[1]: 50 } });
        if version != RoomVersion::V12 {
            levels["users"][USERS[0]] = 100.into();
        }
        for n in 0..scale {
            levels["events_default"] = (n % 2).into();
            assert!(forked.send(0, USERS[0], "m.room.power_levels", "", &levels, n));
            let member = format!("@m{n}:m.org");
            let join = json!({ "membership": "join" });
            assert!(forked.send(0, &member, "m.room.member", &member, &join, n));
        }
        forked.states = vec![forked.states[0].clone(); 2];
        let ban = json!({ "membership": "ban" });
        assert!(forked.send(0, USERS[0], "m.room.member", USERS[1], &ban, 1_000));
        assert!(forked.send(
            1,
            USERS[1],
            "m.room.topic",
            "",
            &json!({ "topic": "t" }),
            1_000
        ));
        levels["events_default"] = 7.into();
        assert!(forked.send(1, USERS[0], "m.room.power_levels", "", &levels, 1_001));
        let (resolved, usage) = forked
            .room
            .resolve_within(&forked.states, Limits::default());
        assert_eq!(resolved.unwrap(), forked.check(&forked.states));
        assert!(
            usage.events < 20,
            "{version:?}: {usage:?} of {scale} members"
        );
        let walked = if version == RoomVersion::V12 {
            scale as usize
        } else {
            0
        };
        assert!(
            usage.links < walked + 20,
            "{version:?}: {usage:?} of {scale} members"
        );
        assert!(usage.rounds < walked + 20, "{version:?}: {usage:?}");
    }
}

/// A partition on both sides of which many joined: few rounds, and each event loaded once.
#[test]
fn a_long_partition_takes_few_rounds() {
    const MEMBERS: usize = 60;
    for version in [RoomVersion::V1, RoomVersion::V11, RoomVersion::V12] {
        let mut forked = ForkedRoom::new(version, 0);
        for n in 0..MEMBERS {
            for fork in 0..2 {
                let member = format!("@m{n}:{fork}.org");
                for name in ["one", "two"] {
                    let join = json!({ "membership": "join", "displayname": name });
                    assert!(forked.send(fork, &member, "m.room.member", &member, &join, 100));
                }
            }
        }
        let states = &forked.states[..2];
        let (resolved, usage) = forked.room.resolve_within(states, Limits::default());
        assert_eq!(resolved.unwrap(), forked.check(states));
        assert!(usage.rounds < 20, "{version:?}: {usage:?}");
        assert!(
            usage.links.max(usage.events) <= 4 * MEMBERS + 20,
            "{version:?}: {usage:?}"
        );
    }
}
