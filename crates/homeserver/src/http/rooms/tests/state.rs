//! Setting and reading state, members.

use serde_json::json;

use super::{World, encode, event_id, in_room};

#[tokio::test]
async fn an_empty_state_key_on_all_paths() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    let room = encode(&room);
    for (number, path) in [
        format!("/_matrix/client/v3/rooms/{room}/state/m.room.topic"),
        format!("/_matrix/client/v3/rooms/{room}/state/m.room.topic/"),
        format!("/_matrix/client/r0/rooms/{room}/state/m.room.topic"),
        format!("/_matrix/client/r0/rooms/{room}/state/m.room.topic/"),
    ]
    .iter()
    .enumerate()
    {
        let topic = json!({ "topic": format!("topic {number}") });
        let event = event_id(&alice.put(path, topic.clone()).await.ok());
        assert_eq!(alice.get(path).await.ok(), topic, "{path}");
        let whole = alice.get(&format!("{path}?format=event")).await.ok();
        assert_eq!(whole["event_id"], json!(event), "{path}");
        assert_eq!(
            (&whole["state_key"], &whole["content"]),
            (&json!(""), &topic),
            "{path}"
        );
    }
}

#[tokio::test]
async fn state_keys_are_decoded_after_the_path_is_split() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({})).await;
    for key in ["a/b", "a%2Fb", "ä ö", "a?b#c", "/"] {
        let content = json!({ "key": key });
        alice
            .set_state(&room, "org.example.state", key, content.clone())
            .await
            .ok();
        let path = in_room(&room, &format!("state/org.example.state/{}", encode(key)));
        assert_eq!(alice.get(&path).await.ok(), content, "{key}");
    }
}

#[tokio::test]
async fn refusals() {
    let world = World::new().await;
    let [alice, bob, carol] = [
        world.user("alice").await,
        world.user("bob").await,
        world.user("carol").await,
    ];
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let topic = json!({ "topic": "t" });
    let refused = bob
        .set_state(&room, "m.room.topic", "", topic.clone())
        .await;
    refused.refused(403, "M_FORBIDDEN");
    let refused = carol
        .set_state(&room, "m.room.topic", "", topic.clone())
        .await;
    refused.refused(403, "M_FORBIDDEN");
    let second = alice.set_state(&room, "m.room.create", "", json!({})).await;
    second.refused(403, "M_FORBIDDEN");
    for path in [
        "state",
        "state/m.room.create",
        "members",
        "joined_members",
        "aliases",
    ] {
        carol
            .get(&in_room(&room, path))
            .await
            .refused(403, "M_FORBIDDEN");
        let nowhere = in_room("!nowhere:example.org", path);
        alice.get(&nowhere).await.refused(403, "M_FORBIDDEN");
        world
            .nobody()
            .get(&in_room(&room, path))
            .await
            .refused(401, "M_MISSING_TOKEN");
    }
    let missing = alice.get(&in_room(&room, "state/org.example.none/")).await;
    missing.refused(404, "M_NOT_FOUND");
    let missing = alice
        .get(&in_room(&room, "state/m.room.member/@no:example.org"))
        .await;
    missing.refused(404, "M_NOT_FOUND");
    let body = alice.set_state(&room, "m.room.topic", "", json!(3)).await;
    body.refused(400, "M_BAD_JSON");
}

#[tokio::test]
async fn canonical_aliases_must_point_here() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({ "room_alias_name": "here" })).await;
    alice.create(json!({ "room_alias_name": "there" })).await;
    let (here, there) = ("#here:example.org", "#there:example.org");
    let cases = [
        (json!({ "alias": there }), 400, "M_BAD_ALIAS"),
        (json!({ "alias": "#none:example.org" }), 400, "M_BAD_ALIAS"),
        (
            json!({ "alias": here, "alt_aliases": [there] }),
            400,
            "M_BAD_ALIAS",
        ),
        (json!({ "alias": "here" }), 400, "M_INVALID_PARAM"),
        (
            json!({ "alias": here, "alt_aliases": ["x"] }),
            400,
            "M_INVALID_PARAM",
        ),
    ];
    for (content, status, code) in cases {
        let answer = alice
            .set_state(&room, "m.room.canonical_alias", "", content)
            .await;
        answer.refused(status, code);
    }
    let content = json!({ "alias": here, "alt_aliases": [here] });
    alice
        .set_state(&room, "m.room.canonical_alias", "", content)
        .await
        .ok();
    // What is there already is not looked at again.
    alice
        .delete("/_matrix/client/v3/directory/room/%23here:example.org")
        .await
        .ok();
    let content = json!({ "alt_aliases": [here] });
    let answer = alice
        .set_state(&room, "m.room.canonical_alias", "", content)
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn who_has_left_sees_the_state_as_it_was() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice
        .create(json!({ "preset": "public_chat", "name": "Before" }))
        .await;
    bob.join(&room).await;
    bob.post(&in_room(&room, "leave"), json!({})).await.ok();
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "After" }))
        .await
        .ok();
    let late = alice.say(&room, "late").await;
    assert_eq!(bob.state(&room, "m.room.name").await["name"], "Before");
    let all = bob.get(&in_room(&room, "state")).await.ok();
    let names = all
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["type"] == "m.room.name");
    let names: Vec<_> = names
        .map(|event| event["content"]["name"].clone())
        .collect();
    assert_eq!(names, ["Before"]);
    let page = bob
        .get(&in_room(&room, "messages?dir=b&limit=100"))
        .await
        .ok();
    assert!(!page.to_string().contains(&late), "{page}");
    assert!(!page.to_string().contains("After"), "{page}");
    bob.get(&in_room(&room, &format!("event/{}", encode(&late))))
        .await
        .refused(404, "M_NOT_FOUND");
    let joined = bob.get(&in_room(&room, "joined_members")).await;
    joined.refused(403, "M_FORBIDDEN");
    bob.get(&in_room(&room, "aliases"))
        .await
        .refused(403, "M_FORBIDDEN");
    assert_eq!(alice.state(&room, "m.room.name").await["name"], "After");
}

#[tokio::test]
async fn a_world_readable_room_is_open_to_read() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let state = json!([{
        "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" },
    }]);
    let wish = json!({ "initial_state": state, "room_alias_name": "open" });
    let room = alice.create(wish).await;
    let event = alice.say(&room, "hello").await;
    let aliases = bob.get(&in_room(&room, "aliases")).await.ok();
    assert_eq!(aliases["aliases"], json!(["#open:example.org"]));
    let event_path = format!("event/{}", encode(&event));
    for path in ["state", "members", "messages?dir=b", &event_path] {
        bob.get(&in_room(&room, path)).await.ok();
    }
    bob.get(&in_room(&room, "joined_members"))
        .await
        .refused(403, "M_FORBIDDEN");
    let closed = json!({ "history_visibility": "shared" });
    alice
        .set_state(&room, "m.room.history_visibility", "", closed)
        .await
        .ok();
    bob.get(&in_room(&room, "state"))
        .await
        .refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn members_by_membership_and_time() {
    let world = World::new().await;
    let [alice, bob, carol] = [
        world.user("alice").await,
        world.user("bob").await,
        world.user("carol").await,
    ];
    let room = alice
        .create(json!({ "preset": "public_chat", "invite": [carol.id] }))
        .await;
    let page = alice
        .get(&in_room(&room, "messages?dir=b&limit=1"))
        .await
        .ok();
    let before = page["start"].as_str().unwrap().to_owned();
    bob.join(&room).await;
    bob.post(&in_room(&room, "leave"), json!({})).await.ok();
    let cases = [
        ("members", 3),
        ("members?membership=join", 1),
        ("members?not_membership=leave", 2),
        ("members?membership=leave", 1),
        ("members?membership=join&not_membership=invite", 2),
        (&format!("members?at={}", encode(&before)), 2),
    ];
    for (path, expected) in cases {
        let members = alice.get(&in_room(&room, path)).await.ok();
        assert_eq!(
            members["chunk"].as_array().unwrap().len(),
            expected,
            "{path}: {members}"
        );
    }
    alice
        .get(&in_room(&room, "members?at=rubbish"))
        .await
        .refused(400, "M_INVALID_PARAM");
    let joined = alice.get(&in_room(&room, "joined_members")).await.ok();
    let joined = joined["joined"].as_object().unwrap();
    assert_eq!(joined.keys().collect::<Vec<_>>(), [&alice.id]);
}

/// Members of a time are told to who may see events of that time.
#[tokio::test]
async fn members_of_the_past_are_for_those_who_see_it() {
    let world = World::new().await;
    let [alice, bob, carol, dan, eve] = [
        world.user("alice").await,
        world.user("bob").await,
        world.user("carol").await,
        world.user("dan").await,
        world.user("eve").await,
    ];
    let visibility = json!({ "history_visibility": "joined" });
    let state = json!([{ "type": "m.room.history_visibility", "content": visibility }]);
    let wish = json!({ "preset": "public_chat", "initial_state": state });
    let room = alice.create(wish).await;
    let now = async || {
        let page = in_room(&room, "messages?dir=b&limit=1");
        alice.get(&page).await.ok()["start"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let members = async |who: &super::User, at: &str| {
        let path = in_room(&room, &format!("members?membership=join&at={}", encode(at)));
        let answer = who.get(&path).await;
        (
            answer.status,
            answer.body["chunk"].as_array().map_or(0, Vec::len),
        )
    };
    dan.join(&room).await;
    eve.join(&room).await;
    alice.say(&room, "both").await;
    let with_both = now().await;
    dan.post(&in_room(&room, "leave"), json!({})).await.ok();
    let ban = json!({ "user_id": eve.id });
    alice.post(&in_room(&room, "ban"), ban).await.ok();
    alice.say(&room, "alone").await;
    let alone = now().await;
    bob.join(&room).await;
    carol.join(&room).await;
    let later = now().await;
    for who in [&dan, &eve] {
        assert_eq!(members(who, &with_both).await, (200, 3));
        // Of what came after, they are told the state as they left it.
        let (status, count) = members(who, &later).await;
        assert!(status == 200 && count < 3, "{}: {status} {count}", who.id);
    }
    assert_eq!(members(&bob, &later).await, (200, 3));
    for at in [&with_both, &alone] {
        assert_eq!(members(&bob, at).await, (403, 0), "from before bob joined");
        assert_eq!(members(&world.nobody(), at).await.0, 401);
    }
    assert_eq!(members(&alice, &alone).await, (200, 1));
}

#[tokio::test]
async fn replaced_state_is_named() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create(json!({ "name": "One" })).await;
    let first = alice
        .get(&in_room(&room, "state/m.room.name?format=event"))
        .await
        .ok();
    assert!(first["unsigned"].get("prev_content").is_none(), "{first}");
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "Two" }))
        .await
        .ok();
    let second = alice
        .get(&in_room(&room, "state/m.room.name?format=event"))
        .await
        .ok();
    let unsigned = &second["unsigned"];
    assert_eq!(unsigned["prev_content"], json!({ "name": "One" }));
    assert_eq!(unsigned["replaces_state"], first["event_id"]);
    assert_eq!(unsigned["prev_sender"], json!(alice.id));
}
