//! Events that the rules refuse, and events of which only the id is known: whatever names them later,
//! they change nothing.

use homeserver_events::Pdu;
use ruma::OwnedEventId;

use super::{
    inbound::World,
    peer::{NewEvent, Peer},
    *,
};

const NORA: &str = "@nora:peer.example";
const MALLORY: &str = "@mallory:peer.example";
const MISSING: &str = "/_matrix/federation/v1/get_missing_events";

impl World {
    fn after(&self, prev: &Pdu, text: &str) -> Pdu {
        self.peer.event(&NewEvent {
            content: json!({ "msgtype": "m.text", "body": text }),
            ..self.message(&[prev.event_id().to_owned()])
        })
    }

    /// A state event after others.
    fn set(&self, prev: &Pdu, (kind, key): (&str, &str), content: Value) -> Pdu {
        self.peer.event(&NewEvent {
            kind,
            state_key: Some(key),
            content,
            ..self.message(&[prev.event_id().to_owned()])
        })
    }

    /// The ids of the room's state, as Alice has it.
    async fn whole_state(&self) -> Vec<OwnedEventId> {
        let path = format!("/_matrix/client/v3/rooms/{}/state", self.room);
        let state = self.here.get(&path, Some(&self.alice.token)).await.ok();
        let events = state.as_array().unwrap().iter();
        let id = |event: &Value| serde_json::from_value(event["event_id"].clone()).unwrap();
        let mut ids: Vec<_> = events.map(id).collect();
        ids.sort();
        ids
    }

    /// Alice says something, whatever was before. Gives its id.
    async fn alice_says(&self, text: &str) -> String {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/send/m.room.message/{text}",
            self.room
        );
        let body = json!({ "msgtype": "m.text", "body": text });
        let sent = self.here.put(&path, Some(&self.alice.token), body).await;
        sent.ok()["event_id"].as_str().unwrap().to_owned()
    }

    /// Another user of the peer, who is in the room.
    async fn nora_joins(&self) -> Pdu {
        let rules = self.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
        let join = self.peer.event(&NewEvent {
            sender: "nora",
            kind: "m.room.member",
            state_key: Some(NORA),
            content: json!({ "membership": "join" }),
            auth: rules.await,
            ..self.message(&[self.last().await])
        });
        self.send("nora", &[&join]).await;
        self.until(&join).await;
        join
    }
}

/// CVE-2022-39374: neither in a state that is told, nor as an auth event, nor as a previous one.
#[tokio::test(start_paused = true)]
async fn a_rejected_event_stays_rejected_wherever_it_is_named() {
    let world = World::new().await;
    let levels = json!({ "users": { MALLORY: 100 } });
    let evil = world.set(&world.join, ("m.room.power_levels", ""), levels);
    world.send("1", &[&evil]).await;
    let first = world.after(&world.join, "first");
    world.send("2", &[&first]).await;
    world.until(&first).await;
    assert!(!world.is_seen(&evil).await);
    let before = world.whole_state().await;

    // As a previous event: what follows has the state before it.
    let follows = world.after(&evil, "follows");
    let topic = json!({ "topic": "mine" });
    let mut by = NewEvent {
        kind: "m.room.topic",
        state_key: Some(""),
        content: topic.clone(),
        ..world.message(&[evil.event_id().to_owned()])
    };
    let plainly = world.peer.event(&by);
    // As an auth event, after itself and after what was there before it.
    by.auth[1] = evil.event_id().to_owned();
    let by_it = world.peer.event(&by);
    by.prev = vec![first.event_id().to_owned()];
    let by_it_elsewhere = world.peer.event(&by);
    for event in [&evil, &follows, &plainly, &by_it, &by_it_elsewhere] {
        world.peer.has(event);
    }
    world
        .send("3", &[&follows, &plainly, &by_it, &by_it_elsewhere])
        .await;
    world.until(&follows).await;

    // In the state before an event over a gap, with its chain, and told as ids or whole.
    let hidden = world.after(&world.join, "hidden");
    let over = world.after(&hidden, "over a gap");
    world.peer.instead(MISSING, 200, json!({ "events": [] }));
    world.peer.has(&over);
    let mut told = before.clone();
    told.retain(|id| *id != world.auth[1]);
    told.push(evil.event_id().to_owned());
    world.peer.has_state(over.event_id(), told.clone());
    world.send("4", &[&over]).await;
    world.until(&over).await;
    let mut by = NewEvent {
        kind: "m.room.topic",
        state_key: Some(""),
        content: topic,
        ..world.message(&[over.event_id().to_owned()])
    };
    by.auth[1] = evil.event_id().to_owned();
    let last = world.peer.event(&by);
    world.peer.has_state(last.event_id(), told);
    world.send("5", &[&last]).await;
    // Alice goes on, and so does Mallory.
    world.alice_says("on").await;
    let on = world.after(&over, "on");
    world.send("6", &[&on]).await;
    world.until(&on).await;
    for event in [&evil, &plainly, &by_it, &by_it_elsewhere, &last] {
        assert!(!world.is_seen(event).await, "{}", event.json_str());
    }
    assert_eq!(world.whole_state().await, before);
}

/// Synapse 1.15.2: of an event that is known only because others name it as their auth event the
/// state before is not known; one that follows it has the state that is told, and loses nothing.
#[tokio::test(start_paused = true)]
async fn an_outlier_as_a_previous_event_takes_nothing_from_the_state() {
    let world = World::new().await;
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let nowhere = OwnedEventId::try_from(format!("${}", "n".repeat(43))).unwrap();
    let outlier = world.peer.event(&NewEvent {
        sender: "nora",
        kind: "m.room.member",
        state_key: Some(NORA),
        content: json!({ "membership": "join" }),
        auth: rules.await,
        ..world.message(&[nowhere])
    });
    // It becomes known as an auth event of what Nora says where she is not in the room.
    let mut auth = world.state(&["m.room.create", "m.room.power_levels"]).await;
    auth.push(outlier.event_id().to_owned());
    let early = world.peer.event(&NewEvent {
        sender: "nora",
        auth: auth.clone(),
        ..world.message(&[world.join.event_id().to_owned()])
    });
    world.peer.has(&outlier);
    world.peer.has(&early);
    world.send("1", &[&early]).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(!world.is_seen(&early).await && !world.is_seen(&outlier).await);
    let before = world.whole_state().await;

    // It follows the outlier. Nobody tells the state before it, and it waits.
    let event = world.peer.event(&NewEvent {
        sender: "nora",
        auth,
        ..world.message(&[outlier.event_id().to_owned()])
    });
    world.peer.instead(MISSING, 200, json!({ "events": [] }));
    world.peer.has(&event);
    world.peer.asked();
    world.send("2", &[&event]).await;
    tokio::time::sleep(std::time::Duration::from_mins(1)).await;
    let asked = world.peer.asked();
    assert!(
        asked.iter().any(|path| path.contains("/state_ids/")),
        "{asked:?}"
    );
    assert!(!world.is_seen(&event).await);
    assert_eq!(world.whole_state().await, before);
    world.alice_says("meanwhile").await;

    // A state is told that has next to nothing: what is known here stays.
    let mut told = world.state(&["m.room.create"]).await;
    told.push(outlier.event_id().to_owned());
    world.peer.has_state(event.event_id(), told);
    tokio::time::sleep(std::time::Duration::from_mins(15)).await;
    let after = world.whole_state().await;
    let lost: Vec<_> = before.iter().filter(|id| !after.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    world.alice_says("on").await;
    let on = world.after(&world.join, "on");
    world.send("3", &[&on]).await;
    world.until(&on).await;
}

/// Of an event that is asked for all the while it becomes known, and then part of the room, a server is
/// told no more than it may see in the end.
#[tokio::test(start_paused = true)]
async fn an_event_on_its_way_into_the_room_is_shown_to_nobody_who_may_not_see_it() {
    let world = World::new().await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.history_visibility/",
        world.room
    );
    let hide = json!({ "history_visibility": "joined" });
    let token = Some(&*world.alice.token);
    world.here.put(&path, token, hide).await.ok();
    let before = world.last().await;
    // A third server joins, and a fourth is not in the room.
    let rules = world.state(&["m.room.create", "m.room.join_rules", "m.room.power_levels"]);
    let rules = rules.await;
    let (third, fourth) = (
        world.servers.add("third.example", 3),
        world.servers.add("4.example", 4),
    );
    let join = third.event(&NewEvent {
        sender: "tom",
        kind: "m.room.member",
        state_key: Some("@tom:third.example"),
        content: json!({ "membership": "join" }),
        auth: rules.clone(),
        ..world.message(std::slice::from_ref(&before))
    });
    third.send(&world.here, "1", &[&join]).await;
    world.until(&join).await;
    // What was said beside its join, and before, is not for it.
    let nora = world.peer.event(&NewEvent {
        sender: "nora",
        kind: "m.room.member",
        state_key: Some(NORA),
        content: json!({ "membership": "join" }),
        auth: rules,
        ..world.message(std::slice::from_ref(&before))
    });
    let mut auth = world.state(&["m.room.create", "m.room.power_levels"]).await;
    auth.push(nora.event_id().to_owned());
    let hidden: Vec<_> = (0..20)
        .map(|number| {
            world.peer.event(&NewEvent {
                sender: "nora",
                content: json!({ "body": number }),
                auth: auth.clone(),
                ..world.message(&[nora.event_id().to_owned()])
            })
        })
        .collect();
    for event in hidden.iter().chain([&nora]) {
        world.peer.has(event);
    }
    let shown = async |to: &Peer, event: &Pdu| {
        let path = format!("/_matrix/federation/v1/event/{}", event.event_id());
        let answer = to
            .ask(&world.here, Method::GET, &path, bytes::Bytes::new())
            .await;
        match answer.status {
            200 => Some(answer.body["pdus"][0]["content"].clone()),
            403 | 404 => None,
            _ => panic!("{}", answer.body),
        }
    };
    let asking = async {
        for _ in 0..200 {
            for event in &hidden {
                let shown = shown(&third, event).await;
                assert!(shown.is_none_or(|content| content == json!({})));
            }
            assert_eq!(shown(&fourth, &nora).await, None);
            assert_eq!(shown(&fourth, &hidden[0]).await, None);
            tokio::task::yield_now().await;
        }
    };
    let telling = async {
        for (number, event) in hidden.iter().enumerate() {
            world.send(&format!("hidden{number}"), &[event]).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(asking, telling);
    for event in &hidden {
        world.until(event).await;
        assert_eq!(shown(&third, event).await, Some(json!({})));
    }
    let after = world.after(&join, "after");
    world.send("after", &[&after]).await;
    world.until(&after).await;
    assert!(shown(&third, &after).await.unwrap()["body"].is_string());
}

/// Continuwuity SEC20: a member event that is not allowed allows nothing, and brings nobody in, by
/// whatever way it comes.
#[tokio::test(start_paused = true)]
async fn an_auth_chain_is_judged_before_it_allows_anything() {
    let world = World::new().await;
    // Without the join rules among its auth events, nobody may join.
    let unfounded = world.state(&["m.room.create", "m.room.power_levels"]).await;
    let join = world.peer.event(&NewEvent {
        sender: "nora",
        kind: "m.room.member",
        state_key: Some(NORA),
        content: json!({ "membership": "join" }),
        auth: unfounded.clone(),
        ..world.message(&[world.join.event_id().to_owned()])
    });
    let speaks = |prev: &Pdu, auth: Vec<OwnedEventId>| {
        world.peer.event(&NewEvent {
            sender: "nora",
            auth,
            ..world.message(&[prev.event_id().to_owned()])
        })
    };
    let mut auth = unfounded;
    auth.push(join.event_id().to_owned());
    let after_it = speaks(&join, auth.clone());
    let beside_it = speaks(&world.join, auth.clone());
    for event in [&join, &after_it, &beside_it] {
        world.peer.has(event);
    }
    world.send("1", &[&beside_it]).await;
    world.send("2", &[&after_it]).await;
    tokio::time::sleep(std::time::Duration::from_mins(20)).await;
    assert!(
        world
            .peer
            .asked()
            .iter()
            .any(|path| path.contains("/event_auth/"))
    );
    // The same of Mallory, with what allows it twice.
    let mut twice = world.message(&[world.join.event_id().to_owned()]);
    twice
        .auth
        .push(world.state(&["m.room.join_rules"]).await.remove(0));
    let too_many = world.peer.event(&twice);
    let mut twice = world.message(&[world.join.event_id().to_owned()]);
    let other = world.set(
        &world.join,
        ("m.room.member", MALLORY),
        json!({ "membership": "join" }),
    );
    world.peer.has(&other);
    twice.auth.push(other.event_id().to_owned());
    let same_key = world.peer.event(&twice);
    world.send("3", &[&too_many, &same_key]).await;
    let next = world.after(&world.join, "next");
    world.send("4", &[&next]).await;
    world.until(&next).await;
    for event in [&join, &after_it, &beside_it, &too_many, &same_key] {
        assert!(!world.is_seen(event).await, "{}", event.json_str());
    }
    let path = format!("/_matrix/client/v3/rooms/{}/joined_members", world.room);
    let members = world.here.get(&path, Some(&world.alice.token)).await.ok();
    assert!(members["joined"].get(NORA).is_none());
}

/// Tuwunel 1.9.0: auth events that are no state, that are not there, that are too many.
#[tokio::test(start_paused = true)]
async fn auth_events_of_any_kind_cost_only_their_event() {
    let world = World::new().await;
    let message = world.after(&world.join, "a message");
    world.send("1", &[&message]).await;
    world.until(&message).await;
    let unknown = |number: usize| format!("${number:0>43}");
    let lists = [
        json!([message.event_id()]),
        json!([
            world.auth[0],
            world.auth[1],
            world.auth[2],
            message.event_id()
        ]),
        json!([world.auth[0], world.auth[0], world.auth[1], world.auth[2]]),
        json!([world.auth[0], world.auth[1], world.auth[2], unknown(1)]),
        json!([unknown(2)]),
        json!([]),
        json!((0..1_000).map(unknown).collect::<Vec<_>>()),
        json!((0..11).map(unknown).collect::<Vec<_>>()),
        json!([7, null, {}]),
        json!(["$x", "no id", ""]),
        json!("x"),
    ];
    let mut texts = Vec::new();
    let mut events = Vec::new();
    for (number, list) in lists.into_iter().enumerate() {
        let event = world.after(&world.join, &format!("by list {number}"));
        let mut event: Value = serde_json::from_slice(event.json()).unwrap();
        event["auth_events"] = list;
        let text = world.peer.seal_text(&event.to_string());
        let rules = homeserver_events::RoomVersion::V11.rules();
        if let Ok(event) = Pdu::parse(text.as_bytes(), rules) {
            world.peer.has(&event);
            events.push(event);
        }
        texts.push(text);
    }
    // Ten thousand are more than an event holds.
    let long = format!(
        r#"{{"room_id":"{}","auth_events":{}}}"#,
        world.room,
        json!(vec![unknown(3); 10_000])
    );
    texts.push(long);
    let good = world.after(&world.join, "good");
    texts.push(good.json_str().to_owned());
    let body = format!(r#"{{"pdus":[{}]}}"#, texts.join(","));
    let answer = world.peer.transaction(&world.here, "2", &body).await.ok();
    assert_eq!(answer["pdus"][good.event_id().as_str()], json!({}));
    world.until(&good).await;
    world.alice_says("on").await;
    tokio::time::sleep(std::time::Duration::from_mins(20)).await;
    assert!(events.len() >= 5, "{}", events.len());
    for event in &events {
        assert!(!world.is_seen(event).await, "{}", event.json_str());
    }
}

/// CVE-2026-45076: pages of what nobody is shown do not end a history, in either direction.
#[tokio::test(start_paused = true)]
async fn rejected_events_end_no_history() {
    let world = World::new().await;
    let mut visible = vec![world.join.event_id().to_string()];
    let mut last = world.join.clone();
    for round in 0..3 {
        for number in 0..3 {
            let topic = json!({ "topic": format!("{round}.{number}") });
            last = world.set(&last, ("m.room.topic", ""), topic);
            world.send(&format!("r{round}.{number}"), &[&last]).await;
        }
        last = world.after(&last, &format!("visible {round}"));
        world.send(&format!("v{round}"), &[&last]).await;
        world.until(&last).await;
        visible.push(last.event_id().to_string());
    }
    let base = format!("/_matrix/client/v3/rooms/{}/messages", world.room);
    for (direction, limit) in [("b", 1), ("b", 2), ("f", 1), ("f", 2), ("f", 3)] {
        let mut found = Vec::new();
        let mut from = String::new();
        for _ in 0..60 {
            let path = format!("{base}?dir={direction}&limit={limit}{from}");
            let page = world.here.get(&path, Some(&world.alice.token)).await.ok();
            let events = page["chunk"].as_array().unwrap().iter();
            found.extend(events.map(|event| event["event_id"].as_str().unwrap().to_owned()));
            let Some(end) = page["end"].as_str() else {
                break;
            };
            from = format!("&from={end}");
        }
        if direction == "b" {
            found.reverse();
        }
        let found: Vec<_> = found
            .into_iter()
            .filter(|id| visible.contains(id))
            .collect();
        assert_eq!(found, visible, "{direction} {limit}");
    }
}

/// The type and the state key of an event.
type Act = (&'static str, Option<&'static str>);

/// Levels in which one field asks for 30 where all have 29, and what asks for that level.
fn acts_by_level(alice: &str) -> [(Value, Act, Value); 7] {
    let with = |field: &str, value: Value| {
        let mut levels = json!({
            "users": { alice: 100, NORA: -1 }, "users_default": 29,
            "events_default": 0, "state_default": 0, "ban": 0, "kick": 0, "invite": 0,
        });
        levels[field] = value;
        levels
    };
    let member = |membership: &str| json!({ "membership": membership });
    let text = json!({ "body": "x" });
    let carol = "@carol:peer.example";
    [
        (
            with("events_default", json!(30)),
            ("m.room.message", None),
            text.clone(),
        ),
        (
            with("state_default", json!(30)),
            ("m.room.topic", Some("")),
            json!({ "topic": "x" }),
        ),
        (
            with("events", json!({ "m.some": 30 })),
            ("m.some", None),
            text.clone(),
        ),
        (
            with("events", json!({ "m.some": 30 })),
            ("m.some", Some("")),
            text,
        ),
        (
            with("invite", json!(30)),
            ("m.room.member", Some(carol)),
            member("invite"),
        ),
        (
            with("kick", json!(30)),
            ("m.room.member", Some(NORA)),
            member("leave"),
        ),
        (
            with("ban", json!(30)),
            ("m.room.member", Some(NORA)),
            member("ban"),
        ),
    ]
}

/// CVE-2022-36009: each field of the power levels counts, one level below and at it.
#[tokio::test(start_paused = true)]
async fn each_power_level_is_asked_for_what_another_server_sends() {
    let world = World::new().await;
    let nora = world.nora_joins().await;
    let acts = acts_by_level(&world.alice.user);
    let path = format!(
        "/_matrix/client/v3/rooms/{}/state/m.room.power_levels/",
        world.room
    );
    let rules = world.state(&["m.room.create", "m.room.join_rules"]).await;
    for (number, (levels, (kind, key), content)) in acts.into_iter().enumerate() {
        for may in [false, true] {
            let mut levels = levels.clone();
            if may {
                // By the default of all, and by an own level.
                if number % 2 == 0 {
                    levels["users_default"] = json!(30);
                } else {
                    levels["users"][MALLORY] = json!(30);
                }
            }
            world.here.clock.advance(std::time::Duration::from_secs(1));
            let set = world
                .here
                .put(&path, Some(&world.alice.token), levels.clone());
            let set: OwnedEventId =
                serde_json::from_value(set.await.ok()["event_id"].take()).unwrap();
            let mut auth = vec![
                rules[0].clone(),
                set.clone(),
                world.join.event_id().to_owned(),
            ];
            if key == Some(NORA) {
                auth.push(nora.event_id().to_owned());
            } else if kind == "m.room.member" {
                auth.push(rules[1].clone());
            }
            let mut content = content.clone();
            content["number"] = json!(number);
            let act = world.peer.event(&NewEvent {
                kind,
                state_key: key,
                content,
                auth,
                ..world.message(std::slice::from_ref(&set))
            });
            world.send(&format!("{number}{may}"), &[&act]).await;
            if may {
                world.until(&act).await;
            } else {
                tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                assert!(!world.is_seen(&act).await, "{levels} {}", act.json_str());
            }
            if may && kind == "m.room.member" && key == Some(NORA) && number == 5 {
                // She comes back, for the next one.
                let join = world.peer.event(&NewEvent {
                    sender: "nora",
                    kind,
                    state_key: key,
                    content: json!({ "membership": "join" }),
                    auth: vec![
                        rules[0].clone(),
                        set,
                        rules[1].clone(),
                        act.event_id().to_owned(),
                    ],
                    ..world.message(&[act.event_id().to_owned()])
                });
                world.send("back", &[&join]).await;
                world.until(&join).await;
            }
        }
    }
}

/// Numbers that JSON does not have, of servers and of clients.
#[tokio::test(start_paused = true)]
async fn numbers_that_are_none_are_refused_wherever_they_come() {
    let world = World::new().await;
    let event = world.after(&world.join, "x");
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.room.message/",
        world.room
    );
    let evil = [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "01",
        "0x1",
        "+1",
    ];
    for (number, evil) in evil.into_iter().enumerate() {
        let text = event
            .json_str()
            .replacen(r#""body":"x""#, &format!(r#""body":{evil}"#), 1);
        let body = format!(r#"{{"pdus":[{text}]}}"#);
        // What cannot be read cannot be signed: the signature is that of the same without it.
        let target = format!("/_matrix/federation/v1/send/{number}");
        let signed = homeserver_federation::SignedRequest {
            method: "PUT",
            target: &target,
            origin: &world.peer.name,
            destination: &world.here.homeserver.components().server_name,
            body: b"{}",
        };
        let request = Request::builder()
            .method(Method::PUT)
            .uri(&target)
            .header(
                "authorization",
                signed.sign(&world.peer.key).unwrap().to_string(),
            )
            .body(Body::from(body))
            .unwrap();
        let answer = world.here.router.clone().oneshot(request).await.unwrap();
        assert!(
            answer.status().is_client_error(),
            "{evil}: {}",
            answer.status()
        );
        let body = Body::from(format!(r#"{{"msgtype":"m.text","body":{evil}}}"#));
        let path = format!("{path}{number}");
        let token = Some(&*world.alice.token);
        let answer = world.here.send_bytes(Method::PUT, &path, token, body).await;
        assert_eq!(answer.status, 400, "{evil}: {}", answer.body);
    }
    for number in ["1.5", "1e2", "9007199254740992", "-9007199254740992", "-0"] {
        let body = Body::from(format!(r#"{{"msgtype":"m.text","body":{number}}}"#));
        let path = format!("{path}{number}");
        let token = Some(&*world.alice.token);
        let answer = world.here.send_bytes(Method::PUT, &path, token, body).await;
        answer.refused(400, "M_BAD_JSON");
    }
    world.send("good", &[&event]).await;
    world.until(&event).await;
}
