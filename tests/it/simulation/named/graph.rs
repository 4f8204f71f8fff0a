//! Forks, gaps, old places, and everything said again.

use ruma::OwnedEventId;

use super::*;
use crate::simulation::liar::{Lie, New};

/// What servers ask of the liar for one event that they cannot get to the ground of: a few looks at
/// each endpoint, at each of the attempts that fit into a scenario, from each server.
const MAX_QUESTIONS: usize = 120;

#[test]
fn a_fork_comes_together() {
    for version in ["10", "12"] {
        staged(version, async |stage| {
            let new = stage.liar.message(&stage.room, "one");
            let one = stage.liar.seal(&stage.room, new.clone());
            let other = stage
                .liar
                .seal(&stage.room, new.with(json!({ "body": "other" })));
            assert_eq!(one.prev_events(), other.prev_events());
            stage.send(&[0, 2], &one).await;
            stage.send(&[1], &other).await;
            stage.agree().await;
            assert_eq!(stage.shown_by(&one).await, [0, 1, 2]);
            assert_eq!(stage.shown_by(&other).await, [0, 1, 2]);
        });
    }
}

#[test]
fn two_profiles_in_one_place_become_one() {
    staged("11", async |stage| {
        let one = stage.liar.profile(&stage.room, "one");
        let other = New {
            time: one.time + 1,
            ..stage.liar.profile(&stage.room, "other")
        };
        let one = stage.liar.seal(&stage.room, one);
        let other = stage.liar.seal(&stage.room, other);
        stage.send(&[0], &one).await;
        stage.send(&[1, 2], &other).await;
        stage.agree().await;
        for number in 0..3 {
            let profile = stage.state(number, "m.room.member", stage.liar.user.as_str());
            assert_eq!(profile.await["displayname"], "other");
        }
    });
}

#[test]
fn many_forks_leave_a_room_that_is_usable() {
    staged("11", async |stage| {
        let new = stage.liar.message(&stage.room, "");
        for fork in 0..60_usize {
            let new = new.clone().with(json!({ "body": fork }));
            let event = stage.liar.aside(&stage.room, new);
            stage.send(&[fork % 3], &event).await;
        }
        stage.agree().await;
    });
}

#[test]
fn what_one_server_was_given_others_get_from_it() {
    staged("11", async |stage| {
        let event = stage
            .liar
            .seal(&stage.room, stage.liar.message(&stage.room, "for one"));
        stage.liar.withhold(event.event_id(), &[]);
        stage.send(&[0], &event).await;
        stage.until(0, event.event_id().as_str()).await;
        stage.agree().await;
        assert_eq!(stage.shown_by(&event).await, [0, 1, 2]);
    });
}

/// An event, and one after it.
fn two(stage: &Stage) -> (Pdu, Pdu) {
    let hidden = stage
        .liar
        .seal(&stage.room, stage.liar.message(&stage.room, "hidden"));
    let event = stage
        .liar
        .message(&stage.room, "after it")
        .after(&[&hidden]);
    (hidden, stage.liar.seal(&stage.room, event))
}

/// All events of the state, as an honest server has it.
async fn whole_state(stage: &Stage) -> Vec<OwnedEventId> {
    let state = stage.in_room(0, Method::GET, "state", Value::Null).await;
    let id = |event: &Value| OwnedEventId::try_from(event["event_id"].as_str().unwrap()).unwrap();
    state.as_array().unwrap().iter().map(id).collect()
}

#[test]
fn what_follows_a_withheld_event_is_judged_by_the_state_that_is_told() {
    for version in ["11", "12"] {
        staged(version, async |stage| {
            let (hidden, event) = two(stage);
            stage.liar.withhold(hidden.event_id(), &[]);
            stage
                .liar
                .tells(&stage.room, event.event_id(), whole_state(stage).await);
            stage.send(&[0, 1, 2], &event).await;
            stage.until_all(event.event_id().as_str()).await;
            stage.agree().await;
            assert!(stage.shown_by(&hidden).await.is_empty());
            assert!(stage.liar.asked().len() < MAX_QUESTIONS);
        });
    }
}

#[test]
fn what_follows_a_withheld_event_and_has_no_state_keeps_only_itself_waiting() {
    staged("11", async |stage| {
        let (hidden, event) = two(stage);
        stage.liar.withhold(hidden.event_id(), &[]);
        stage.liar.lie(
            "/state_ids/",
            Lie::Json(404, json!({ "errcode": "M_NOT_FOUND" })),
        );
        stage.send(&[0, 1, 2], &event).await;
        stage.agree().await;
        assert!(stage.shown_by(&event).await.is_empty());
        let asked = stage.liar.asked().len();
        assert!(asked < MAX_QUESTIONS, "{asked}");
    });
}

#[test]
fn a_state_that_one_server_alone_was_told_keeps_nobody_from_its_messages() {
    staged("11", async |stage| {
        let (hidden, event) = two(stage);
        stage.liar.withhold(hidden.event_id(), &[]);
        stage
            .liar
            .tells(&stage.room, event.event_id(), whole_state(stage).await);
        stage.send(&[0], &event).await;
        stage.until(0, event.event_id().as_str()).await;
        // Now nobody else is told.
        stage
            .liar
            .lie("/", Lie::Json(403, json!({ "errcode": "M_FORBIDDEN" })));
        stage.agree().await;
    });
}

#[test]
fn what_waits_at_one_server_keeps_nobody_from_what_follows_it_at_another() {
    staged("11", async |stage| {
        let (hidden, event) = two(stage);
        stage.liar.withhold(hidden.event_id(), &[]);
        let all = "/federation/";
        stage
            .liar
            .lie(all, Lie::Json(403, json!({ "errcode": "M_FORBIDDEN" })));
        stage.send(&[0], &event).await;
        sleep(Duration::from_secs(5)).await;
        assert!(stage.shown_by(&event).await.is_empty());
        stage.liar.repent();
        stage
            .liar
            .tells(&stage.room, event.event_id(), whole_state(stage).await);
        stage.send(&[1], &event).await;
        stage.until(1, event.event_id().as_str()).await;
        stage
            .liar
            .lie(all, Lie::Json(403, json!({ "errcode": "M_FORBIDDEN" })));
        let said = stage.say(1, "after it").await;
        stage.until_all(&said).await;
        stage.agree().await;
    });
}

#[test]
fn each_server_is_told_another_state_and_all_have_the_same() {
    for version in ["11", "12"] {
        staged(version, async |stage| {
            let topic = async |text: &str| {
                let body = json!({ "topic": text });
                stage
                    .in_room(0, Method::PUT, "state/m.room.topic/", body)
                    .await;
                whole_state(stage).await
            };
            let old = topic("old").await;
            // Of two in the same millisecond either may count where states differ.
            sleep(Duration::from_secs(1)).await;
            let new = topic("new").await;
            stage.agree().await;
            let (hidden, event) = two(stage);
            stage.liar.withhold(hidden.event_id(), &[]);
            let id = event.event_id();
            // Without most of the members, with an old topic, with what is true.
            let members: Vec<_> = old.iter().rev().take(old.len() * 2 / 3).cloned().collect();
            for (number, state) in [members, old.clone(), new].into_iter().enumerate() {
                stage.liar.tells(&stage.room, id, state);
                stage.send(&[number], &event).await;
                sleep(Duration::from_secs(20)).await;
            }
            stage.agree().await;
            for number in 0..3 {
                assert_eq!(
                    stage.state(number, "m.room.topic", "").await["topic"],
                    "new"
                );
                let members = stage.in_room(number, Method::GET, "joined_members", Value::Null);
                assert_eq!(members.await["joined"].as_object().unwrap().len(), 4);
            }
        });
    }
}

#[test]
fn an_event_whose_auth_events_are_withheld_is_not_taken() {
    staged("11", async |stage| {
        let profile = stage.liar.profile(&stage.room, "hidden");
        let profile = stage.liar.aside(&stage.room, profile);
        stage.liar.withhold(profile.event_id(), &[]);
        let mut new = stage.liar.message(&stage.room, "by it");
        *new.auth.last_mut().unwrap() = profile.event_id().to_owned();
        let event = stage.liar.aside(&stage.room, new);
        stage.send(&[0, 1, 2], &event).await;
        stage.agree().await;
        assert!(stage.shown_by(&event).await.is_empty());
        let asked = stage.liar.asked().len();
        assert!(asked < MAX_QUESTIONS, "{asked}");
        // It is no longer withheld.
        stage.send(&[0, 1, 2], &profile).await;
        stage.until_all(event.event_id().as_str()).await;
    });
}

#[test]
fn old_places_depths_and_times_change_nothing_of_the_rest() {
    staged("11", async |stage| {
        let join = stage
            .liar
            .knows(&stage.room, |known| known.events[&known.join].clone());
        let join = join.unwrap();
        let most = (1 << 53) - 1;
        let soon = stage.liar.now() + 3_600_000;
        for (depth, time) in [(0, 0), (1, soon), (most, 1), (most, soon)] {
            let new = stage.liar.message(&stage.room, "old").after(&[&join]);
            let event = stage.liar.aside(&stage.room, New { depth, time, ..new });
            stage.send(&[0, 1, 2], &event).await;
            stage.until_all(event.event_id().as_str()).await;
        }
        // Its keys are not good for that time.
        let new = stage.liar.message(&stage.room, "far");
        let far = stage.liar.aside(&stage.room, New { time: most, ..new });
        for server in stage.names() {
            stage.liar.send(&server, &[&far]).await;
        }
        let last = stage.say(1, "last").await;
        stage.until_all(&last).await;
        for number in 0..3 {
            let page = stage.in_room(number, Method::GET, "messages?dir=b&limit=1", Value::Null);
            assert_eq!(page.await["chunk"][0]["event_id"], last);
        }
        stage.agree().await;
        assert!(stage.shown_by(&far).await.is_empty());
    });
}

/// Has an honest user do something to the liar, which all servers know then.
async fn remove(stage: &Stage, how: &str) {
    let body = json!({ "user_id": stage.liar.user });
    stage.in_room(0, Method::POST, how, body).await;
    stage.world.rooms.lock()[0]
        .unsteady
        .insert(stage.liar.user.to_string());
    stage.agree().await;
}

async fn membership(stage: &Stage, number: usize) -> Value {
    let user = stage.liar.user.as_str();
    stage.state(number, "m.room.member", user).await["membership"].take()
}

#[test]
fn a_ban_is_not_evaded_from_a_place_before_it() {
    for version in ["10", "12"] {
        staged(version, async |stage| {
            let message = stage.liar.message(&stage.room, "before the ban");
            let profile = stage.liar.profile(&stage.room, "still here");
            remove(stage, "ban").await;
            let message = stage.liar.aside(&stage.room, message);
            let profile = stage.liar.aside(&stage.room, profile);
            stage.send(&[0, 1, 2], &message).await;
            stage.send(&[0, 1, 2], &profile).await;
            stage.agree().await;
            assert!(stage.shown_by(&message).await.is_empty());
            assert!(stage.shown_by(&profile).await.is_empty());
            for number in 0..3 {
                assert_eq!(membership(stage, number).await, "ban");
            }
        });
    }
}

#[test]
fn power_that_was_taken_back_is_not_used_from_an_old_place() {
    staged("11", async |stage| {
        let grant = async |level: u64| {
            let mut levels = stage.state(0, "m.room.power_levels", "").await;
            levels["users"][stage.liar.user.as_str()] = level.into();
            let made = stage.in_room(0, Method::PUT, "state/m.room.power_levels/", levels);
            let id = made.await["event_id"].as_str().unwrap().to_owned();
            stage.agree().await;
            OwnedEventId::try_from(id).unwrap()
        };
        let levels = grant(50).await;
        let mut new = stage.liar.message(&stage.room, "");
        new.auth[1] = levels;
        let topic = |text: &str| json!({ "topic": text });
        let first = new.clone().state("m.room.topic", "", topic("first"));
        let first = stage.liar.seal(&stage.room, first);
        stage.send(&[0, 1, 2], &first).await;
        stage.agree().await;
        grant(0).await;
        let second = new.state("m.room.topic", "", topic("second"));
        let second = stage.liar.aside(&stage.room, second.after(&[&first]));
        stage.send(&[0, 1, 2], &second).await;
        stage.agree().await;
        for number in 0..3 {
            assert_eq!(
                stage.state(number, "m.room.topic", "").await["topic"],
                "first"
            );
        }
    });
}

#[test]
fn old_handshakes_transactions_and_memberships_bring_nobody_back() {
    staged("11", async |stage| {
        let (target, join) = stage.enter().await;
        let message = stage
            .liar
            .seal(&stage.room, stage.liar.message(&stage.room, "said"));
        let texts = [message.json_str().to_owned()];
        let name = stage.name(0);
        stage.liar.transact(&name, "again", &texts, &[]).await;
        stage.until(0, message.event_id().as_str()).await;
        remove(stage, "kick").await;
        for how in 0..3 {
            let ids = ["again", "new"];
            for id in ids {
                let texts = [message.json_str().to_owned(), join.clone()];
                let id = format!("{id}{how}");
                stage.liar.transact(&name, &id, &texts, &[]).await;
            }
            stage.liar.transact(&name, "again", &texts, &[]).await;
            for server in stage.names() {
                stage.liar.ask(&server, Method::PUT, &target, &join).await;
            }
        }
        stage.agree().await;
        for number in 0..3 {
            assert_eq!(membership(stage, number).await, "leave");
        }
        // The room is open: a new join is one.
        stage.enter().await;
        stage.agree().await;
        for number in 0..3 {
            assert_eq!(membership(stage, number).await, "join");
        }
    });
}

#[test]
fn events_of_others_that_are_sent_again_change_nothing() {
    staged("11", async |stage| {
        for text in ["old", "new"] {
            let body = json!({ "topic": text });
            stage
                .in_room(0, Method::PUT, "state/m.room.topic/", body)
                .await;
        }
        stage.agree().await;
        let known = stage.liar.knows(&stage.room, |known| {
            known.events.values().cloned().collect::<Vec<_>>()
        });
        let known = known.unwrap();
        assert!(
            known
                .iter()
                .any(|event| event.event_type() == "m.room.topic")
        );
        for event in known.iter().rev() {
            for server in stage.names() {
                stage.liar.send(&server, &[event]).await;
            }
        }
        stage.agree().await;
        for number in 0..3 {
            assert_eq!(
                stage.state(number, "m.room.topic", "").await["topic"],
                "new"
            );
        }
    });
}

#[test]
fn who_was_refused_by_an_invented_state_at_one_server_is_removed_at_all() {
    for version in ["11", "12"] {
        staged(version, async |stage| {
            let mut levels = stage.state(0, "m.room.power_levels", "").await;
            levels["users"][stage.user(1)] = 100.into();
            if version == "12" {
                levels["users"][stage.user(1)] = 99.into();
            }
            let what = "state/m.room.power_levels/";
            stage.in_room(0, Method::PUT, what, levels).await;
            stage.agree().await;
            let hidden = stage.liar.message(&stage.room, "hidden");
            let hidden = stage.liar.aside(&stage.room, hidden);
            stage.liar.withhold(hidden.event_id(), &[]);
            let profile = stage.liar.profile(&stage.room, "other").after(&[&hidden]);
            let profile = stage.liar.aside(&stage.room, profile);
            let state = whole_state(stage).await;
            let join = stage.liar.knows(&stage.room, |known| known.join.clone());
            let without = state.iter().filter(|id| Some(*id) != join.as_ref());
            let without = without.cloned().collect();
            stage.liar.tells(&stage.room, profile.event_id(), without);
            stage.send(&[0], &profile).await;
            sleep(Duration::from_secs(20)).await;
            stage.liar.tells(&stage.room, profile.event_id(), state);
            stage.send(&[1, 2], &profile).await;
            stage.until(1, profile.event_id().as_str()).await;
            let body = json!({ "user_id": stage.liar.user });
            stage.in_room(1, Method::POST, "kick", body).await;
            stage.agree().await;
            for number in 0..3 {
                assert_eq!(membership(stage, number).await, "leave");
            }
        });
    }
}

#[test]
fn invented_auth_events_are_not_asked_for_all_over() {
    staged("11", async |stage| {
        let (liar, room) = (&stage.liar, &stage.room);
        let mut number = 0;
        let mut invented = || {
            number += 1;
            OwnedEventId::try_from(format!("${number:A>43}")).unwrap()
        };
        let made = |auth: Vec<OwnedEventId>, number: usize| {
            let mut new = liar.message(room, "");
            new = new.with(json!({ "number": number }));
            new.auth = auth;
            liar.aside(room, new)
        };
        let mut layer = Vec::new();
        for number in 0..100 {
            let auth = (0..10).map(|_| invented()).collect();
            layer.push(made(auth, number).event_id().to_owned());
        }
        let layer: Vec<_> = layer
            .chunks(10)
            .map(|auth| made(auth.to_vec(), 1_000).event_id().to_owned())
            .collect();
        let top = made(layer, 2_000);
        liar.lie("/event_auth/", Lie::Json(404, json!({})));
        liar.send(&stage.name(0), &[&top]).await;
        sleep(Duration::from_mins(1)).await;
        let others = stage.world.network.noted(&["s0.example > s", "/event/"]);
        assert!(others <= MAX_QUESTIONS, "{others}");
        let asked = liar.asked().len();
        assert!(asked <= 3 * MAX_QUESTIONS, "{asked}");
        stage.agree().await;
    });
}

#[test]
fn a_past_full_of_holes_keeps_nobody_from_what_honest_servers_say() {
    staged("11", async |stage| {
        let (liar, room) = (&stage.liar, &stage.room);
        let start = liar.message(room, "the first");
        let mut last = liar.aside(room, start.clone());
        for number in 0..60 {
            let hole = start.clone().with(json!({ "hole": number }));
            let hole = liar.aside(room, hole);
            liar.withhold(hole.event_id(), &[]);
            let next = start.clone().with(json!({ "number": number }));
            last = liar.aside(room, next.after(&[&last, &hole]));
        }
        let event = liar.aside(room, start.after(&[&last]));
        // One server hears nothing of the past, and takes the event.
        liar.lie("/get_missing_events/", Lie::Json(404, json!({})));
        stage.send(&[0], &event).await;
        stage.until(0, event.event_id().as_str()).await;
        // Others are told all of it.
        liar.repent();
        let said = stage.say(0, "after it").await;
        stage.until_all(&said).await;
        stage.agree().await;
    });
}
