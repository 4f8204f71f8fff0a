//! Pages, surroundings, single events, times, relations.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use super::{User, World, encode, event_id, ids, in_room};

/// All pages from a token on.
async fn pages(user: &User, room: &str, query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = String::new();
    for _ in 0..1000 {
        let path = in_room(room, &format!("messages?{query}&from={}", encode(&from)));
        let page = user.get(&path).await.ok();
        found.extend(ids(&page["chunk"]).into_iter().map(str::to_owned));
        match page["end"].as_str() {
            Some(end) => end.clone_into(&mut from),
            None => return found,
        }
    }
    panic!("the pages do not end");
}

#[tokio::test]
async fn both_directions_and_all_page_sizes_give_every_event_once() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let mut sent = Vec::new();
    for number in 0..23 {
        sent.push(alice.say(&room, &number.to_string()).await);
    }
    for limit in [1, 2, 7, 22, 23, 100, 100_000] {
        let forward = pages(&alice, &room, &format!("dir=f&limit={limit}")).await;
        let mut backward = pages(&alice, &room, &format!("dir=b&limit={limit}")).await;
        backward.reverse();
        assert_eq!(forward, backward, "limit {limit}");
        assert!(forward.ends_with(&sent), "limit {limit}");
        let unique: BTreeSet<_> = forward.iter().collect();
        assert_eq!(unique.len(), forward.len(), "limit {limit}");
    }
    let page = alice.get(&in_room(&room, "messages?dir=b")).await.ok();
    assert_eq!(
        page["chunk"].as_array().unwrap().len(),
        10,
        "the default limit"
    );
}

#[tokio::test]
async fn a_page_stops_at_its_end_token() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let mut sent = Vec::new();
    for number in 0..10 {
        sent.push(alice.say(&room, &number.to_string()).await);
    }
    let middle = alice
        .get(&in_room(&room, "messages?dir=b&limit=4"))
        .await
        .ok();
    let middle = encode(middle["end"].as_str().unwrap());
    let newer = alice
        .get(&in_room(
            &room,
            &format!("messages?dir=b&limit=50&to={middle}"),
        ))
        .await;
    let newer = newer.ok();
    let expected: Vec<_> = sent[6..].iter().rev().collect();
    assert_eq!(ids(&newer["chunk"]), expected);
    assert_eq!(newer.get("end"), None);
    let older = alice
        .get(&in_room(
            &room,
            &format!("messages?dir=f&limit=50&to={middle}"),
        ))
        .await;
    let older = older.ok();
    assert_eq!(ids(&older["chunk"]).last(), Some(&sent[5].as_str()));
}

#[tokio::test]
async fn refusals() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({})).await;
    let event = encode(&alice.say(&room, "secret").await);
    let own = bob.create(json!({})).await;
    let cases = [
        (
            &alice,
            &room,
            "messages?dir=b&from=rubbish".to_owned(),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &alice,
            &room,
            "messages?dir=b&to=rubbish".to_owned(),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &alice,
            &room,
            "messages?dir=sideways".to_owned(),
            400,
            "M_INVALID_PARAM",
        ),
        (&alice, &room, "messages".to_owned(), 400, "M_MISSING_PARAM"),
        (
            &alice,
            &room,
            "messages?dir=b&filter=rubbish".to_owned(),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &alice,
            &room,
            "messages?dir=b&limit=-1".to_owned(),
            400,
            "M_INVALID_PARAM",
        ),
        (
            &alice,
            &room,
            "context/$nothing".to_owned(),
            404,
            "M_NOT_FOUND",
        ),
        (
            &alice,
            &room,
            "event/$nothing".to_owned(),
            404,
            "M_NOT_FOUND",
        ),
        (&bob, &room, "messages?dir=b".to_owned(), 403, "M_FORBIDDEN"),
        (&bob, &room, format!("context/{event}"), 403, "M_FORBIDDEN"),
        (&bob, &room, format!("event/{event}"), 404, "M_NOT_FOUND"),
        (&bob, &own, format!("context/{event}"), 404, "M_NOT_FOUND"),
        (&bob, &own, format!("event/{event}"), 404, "M_NOT_FOUND"),
    ];
    for (user, room, rest, status, code) in cases {
        let answer = user.get(&in_room(room, &rest)).await;
        let found = (answer.status, answer.body["errcode"].as_str().unwrap());
        assert_eq!(found, (status, code), "{rest}: {}", answer.body);
        let nobody = world.nobody().get(&in_room(room, &rest)).await;
        nobody.refused(401, "M_MISSING_TOKEN");
    }
    let unstable = "/_matrix/client/unstable/org.matrix.msc3030/rooms";
    for base in ["/_matrix/client/v1/rooms", unstable] {
        let path = format!("{base}/{}/timestamp_to_event?ts=0&dir=f", encode(&room));
        bob.get(&path).await.refused(403, "M_FORBIDDEN");
        alice.get(&path).await.ok();
    }
    for (room, base) in [
        (&room, "/_matrix/client/v1"),
        (&own, "/_matrix/client/unstable"),
    ] {
        let path = format!("{base}/rooms/{}/relations/{event}", encode(room));
        for rest in ["", "/m.thread", "/m.thread/m.room.message"] {
            let answer = bob.get(&format!("{path}{rest}")).await;
            answer.refused(404, "M_NOT_FOUND");
        }
    }
}

#[tokio::test]
async fn filters_choose_events() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let hers = alice.say(&room, "hers").await;
    let his = bob.say(&room, "his").await;
    let other = in_room(&room, "send/org.example.other/1");
    let other = event_id(&bob.put(&other, json!({ "url": "mxc://a/b" })).await.ok());
    let cases = [
        (json!({ "types": ["m.room.message"] }), vec![&his, &hers]),
        (
            json!({ "types": ["m.room.*"], "senders": [bob.id], "not_types": ["m.room.member"] }),
            vec![&his],
        ),
        (
            json!({ "not_senders": [alice.id], "not_types": ["m.room.member"] }),
            vec![&other, &his],
        ),
        (json!({ "contains_url": true }), vec![&other]),
        (json!({ "types": [] }), vec![]),
    ];
    for (filter, expected) in cases {
        let query = format!(
            "messages?dir=b&limit=50&filter={}",
            encode(&filter.to_string())
        );
        let page = alice.get(&in_room(&room, &query)).await.ok();
        assert_eq!(ids(&page["chunk"]), expected, "{filter}");
    }
    let filter = encode(&json!({ "lazy_load_members": true, "types": ["org.*"] }).to_string());
    let page = alice
        .get(&in_room(&room, &format!("messages?dir=b&filter={filter}")))
        .await
        .ok();
    let senders = page["state"].as_array().unwrap().iter();
    let senders: Vec<_> = senders
        .map(|event| event["state_key"].as_str().unwrap())
        .collect();
    assert_eq!(senders, [bob.id.as_str()]);
}

#[tokio::test]
async fn surroundings() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let mut sent = Vec::new();
    for number in 0..12 {
        sent.push(alice.say(&room, &number.to_string()).await);
    }
    let path = |rest: &str| in_room(&room, &format!("context/{}{rest}", encode(&sent[6])));
    let context = alice.get(&path("?limit=4")).await.ok();
    assert_eq!(context["event"]["event_id"], json!(sent[6]));
    assert_eq!(ids(&context["events_before"]), [&sent[5], &sent[4]]);
    assert_eq!(ids(&context["events_after"]), [&sent[7], &sent[8]]);
    let state = context["state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    for (token, direction, first) in [("start", "b", &sent[3]), ("end", "f", &sent[9])] {
        let from = encode(context[token].as_str().unwrap());
        let query = format!("messages?dir={direction}&limit=1&from={from}");
        let page = alice.get(&in_room(&room, &query)).await.ok();
        assert_eq!(ids(&page["chunk"]), [first], "{token}");
    }
    let alone = alice.get(&path("?limit=0")).await.ok();
    assert_eq!(alone["event"]["event_id"], json!(sent[6]));
    assert_eq!(
        (&alone["events_before"], &alone["events_after"]),
        (&json!([]), &json!([]))
    );
    let all = alice.get(&path("")).await.ok();
    assert_eq!(
        ids(&all["events_before"]).len() + ids(&all["events_after"]).len(),
        10
    );
}

#[tokio::test]
async fn history_visibility_holds_on_every_path() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    for (visibility, sees_uninvited, sees_invited) in [
        ("world_readable", true, true),
        ("shared", true, true),
        ("invited", false, true),
        ("joined", false, false),
    ] {
        let content = json!({ "history_visibility": visibility });
        let state = json!([{ "type": "m.room.history_visibility", "content": content }]);
        let room = alice.create(json!({ "initial_state": state })).await;
        let root = alice.say(&room, "uninvited").await;
        alice
            .post(&in_room(&room, "invite"), json!({ "user_id": bob.id }))
            .await
            .ok();
        let relation = json!({ "rel_type": "m.reference", "event_id": root });
        let invited = event_id(&alice.relate(&room, "invited", relation).await.ok());
        bob.join(&room).await;
        let joined = alice.say(&room, "joined").await;
        for (event, sees) in [
            (&root, sees_uninvited),
            (&invited, sees_invited),
            (&joined, true),
        ] {
            let status = if sees { 200 } else { 404 };
            for path in ["event", "context"] {
                let answer = bob
                    .get(&in_room(&room, &format!("{path}/{}", encode(event))))
                    .await;
                assert_eq!(
                    answer.status, status,
                    "{visibility} {path}: {}",
                    answer.body
                );
            }
            let page = pages(&bob, &room, "dir=b&limit=5").await;
            assert_eq!(page.contains(event), sees, "{visibility}");
        }
        let path = format!(
            "/_matrix/client/v1/rooms/{}/relations/{}",
            encode(&room),
            encode(&root)
        );
        let relations = bob.get(&path).await;
        assert_eq!(
            relations.status,
            if sees_uninvited { 200 } else { 404 },
            "{visibility}"
        );
    }
}

#[tokio::test]
async fn ignored_users_say_nothing() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let said = bob.say(&room, "noise").await;
    let list = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        alice.id
    );
    alice
        .put(&list, json!({ "ignored_users": { (&bob.id): {} } }))
        .await
        .ok();
    let page = alice
        .get(&in_room(&room, "messages?dir=b&limit=50"))
        .await
        .ok();
    assert!(!ids(&page["chunk"]).contains(&said.as_str()));
    assert!(
        page.to_string().contains(&bob.id),
        "state of an ignored user is shown: {page}"
    );
}

#[tokio::test]
async fn the_event_nearest_to_a_time() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    for number in 0..30 {
        // At times the clock stands still.
        world
            .fresh
            .clock
            .advance(Duration::from_millis([0, 3, 10][number % 3]));
        alice.say(&room, &number.to_string()).await;
    }
    let page = alice
        .get(&in_room(&room, "messages?dir=f&limit=100"))
        .await
        .ok();
    let times: Vec<u64> = page["chunk"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["origin_server_ts"].as_u64().unwrap())
        .collect();
    let (first, last) = (times[0], *times.iter().max().unwrap());
    let ask = async |time: u64, direction: &str| {
        let query = format!("timestamp_to_event?ts={time}&dir={direction}");
        let path = format!("/_matrix/client/v1/rooms/{}/{query}", encode(&room));
        alice.get(&path).await
    };
    for time in times.iter().copied().chain([first - 5, last + 5]) {
        let newer = times.iter().copied().filter(|at| *at >= time).min();
        let older = times.iter().copied().filter(|at| *at <= time).max();
        for (direction, expected) in [("f", newer), ("b", older)] {
            let answer = ask(time, direction).await;
            match expected {
                Some(expected) => assert_eq!(answer.ok()["origin_server_ts"], json!(expected)),
                None => answer.refused(404, "M_NOT_FOUND"),
            }
        }
    }
    let path = format!(
        "/_matrix/client/v1/rooms/{}/timestamp_to_event",
        encode(&room)
    );
    alice
        .get(&format!("{path}?dir=f"))
        .await
        .refused(400, "M_MISSING_PARAM");
    alice
        .get(&format!("{path}?ts=1&dir=x"))
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn relations_by_type_in_pages_and_recursively() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let target = alice.say(&room, "target").await;
    let mut answers = Vec::new();
    for number in 0..5 {
        let relation = json!({ "rel_type": "m.thread", "event_id": target });
        let answer = alice
            .relate(&room, &format!("t{number}"), relation)
            .await
            .ok();
        answers.push(event_id(&answer));
    }
    let relation = json!({ "rel_type": "m.reference", "event_id": target });
    let reference = event_id(&alice.relate(&room, "ref", relation).await.ok());
    let reaction = json!({ "m.relates_to": {
        "rel_type": "m.annotation", "event_id": answers[0], "key": "x",
    } });
    let reaction = alice
        .put(&in_room(&room, "send/m.reaction/r"), reaction)
        .await
        .ok();
    let reaction = event_id(&reaction);
    let base = format!(
        "/_matrix/client/v1/rooms/{}/relations/{}",
        encode(&room),
        encode(&target)
    );
    let all: Vec<_> = answers.iter().chain([&reference]).collect();
    let get = async |rest: &str| -> Value { alice.get(&format!("{base}{rest}")).await.ok() };
    assert_eq!(ids(&get("?dir=f").await["chunk"]), all);
    let newest_first: Vec<_> = all.iter().rev().copied().collect();
    assert_eq!(ids(&get("").await["chunk"]), newest_first);
    assert_eq!(ids(&get("/m.reference").await["chunk"]), [&reference]);
    assert_eq!(get("/m.thread/m.other").await["chunk"], json!([]));
    let mut found = Vec::new();
    let mut rest = "/m.thread/m.room.message?limit=2".to_owned();
    loop {
        let page = get(&rest).await;
        found.extend(ids(&page["chunk"]).into_iter().map(str::to_owned));
        let Some(next) = page["next_batch"].as_str() else {
            break;
        };
        rest = format!("/m.thread/m.room.message?limit=2&from={}", encode(next));
    }
    found.reverse();
    assert_eq!(found, answers);
    let recursive = get("?recurse=true&limit=50").await;
    assert!(
        ids(&recursive["chunk"]).contains(&reaction.as_str()),
        "{recursive}"
    );
    assert_eq!(recursive["recursion_depth"], 3);
    assert!(!ids(&get("").await["chunk"]).contains(&reaction.as_str()));
    let bad = alice.get(&format!("{base}?from=rubbish")).await;
    bad.refused(400, "M_INVALID_PARAM");
}
