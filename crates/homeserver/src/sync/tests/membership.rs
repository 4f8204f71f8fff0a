//! Invites, knocks, joins, leaves, summaries, lazy members.

use super::*;

#[tokio::test]
async fn an_invite_shows_stripped_state_and_can_be_refused() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let token = next(&bob.sync("").await);
    let room = alice.create_room(json!({ "name": "Secret" })).await;
    alice.invite(&room, &bob).await;
    for sync in [bob.since(&token, "").await, bob.sync("").await] {
        let state = events(&sync["rooms"]["invite"][&room]["invite_state"]);
        for event_type in [
            "m.room.create",
            "m.room.name",
            "m.room.join_rules",
            "m.room.member",
        ] {
            assert!(
                !of_type(&state, event_type).is_empty(),
                "{event_type} in {state:?}"
            );
        }
        for event in &state {
            let mut keys: Vec<_> = event.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            assert_eq!(keys, ["content", "sender", "state_key", "type"]);
        }
        assert!(joined(&sync, &room).is_null());
    }
    let token = next(&bob.sync("").await);
    bob.leave(&room).await;
    let sync = bob.since(&token, "").await;
    let left = &sync["rooms"]["leave"][&room];
    assert_eq!(
        timeline(left).last().unwrap()["content"]["membership"],
        "leave"
    );
    assert!(of_type(&timeline(left), "m.room.name").is_empty());
    assert!(events(&left["state"]).is_empty());
    let after = bob.since(&next(&sync), "").await;
    assert!(after.get("rooms").is_none());
}

#[tokio::test]
async fn invites_of_ignored_users_are_not_shown() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let path = format!(
        "user/{}/account_data/m.ignored_user_list",
        encoded(bob.id())
    );
    bob.put(&path, json!({ "ignored_users": { alice.id(): {} } }))
        .await
        .ok();
    let room = alice.create_room(json!({})).await;
    alice.invite(&room, &bob).await;
    assert!(bob.sync("").await.get("rooms").is_none());
}

#[tokio::test]
async fn a_knock_is_shown() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let rules = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let room = alice
        .create_room(json!({ "initial_state": rules, "name": "Door" }))
        .await;
    let token = next(&bob.sync("").await);
    bob.post(&format!("knock/{}", encoded(&room)), json!({}))
        .await
        .ok();
    let sync = bob.since(&token, "").await;
    let state = events(&sync["rooms"]["knock"][&room]["knock_state"]);
    assert!(!of_type(&state, "m.room.create").is_empty());
    assert!(!of_type(&state, "m.room.name").is_empty());
}

#[tokio::test]
async fn joining_shows_the_whole_room_and_leaving_what_came_before() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Open" }))
        .await;
    alice.say(&room, "before").await;
    let token = next(&bob.sync("").await);
    bob.join(&room).await;
    let sync = bob.since(&token, "").await;
    let shown = joined(&sync, &room);
    assert_eq!(bodies(&timeline(shown)), ["before"]);
    let known: Vec<_> = events(&shown["state"])
        .into_iter()
        .chain(timeline(shown))
        .collect();
    assert_eq!(of_type(&known, "m.room.name").len(), 1);
    assert_eq!(of_type(&known, "m.room.create").len(), 1);
    assert_eq!(shown["summary"]["m.joined_member_count"], 2);

    let token = next(&sync);
    alice.say(&room, "seen").await;
    bob.leave(&room).await;
    alice.say(&room, "unseen").await;
    let sync = bob.since(&token, "").await;
    let left = &sync["rooms"]["leave"][&room];
    assert_eq!(bodies(&timeline(left)), ["seen"]);
    assert_eq!(timeline(left).last().unwrap()["type"], "m.room.member");
    assert!(joined(&sync, &room).is_null());
    // Left rooms come up in a first sync only where asked for.
    assert!(bob.sync("").await.get("rooms").is_none());
    let include = filter(&json!({ "room": { "include_leave": true } }));
    let first = bob.sync(&include).await;
    let left = &first["rooms"]["leave"][&room];
    assert_eq!(bodies(&timeline(left)), ["before", "seen"]);
    bob.post(&format!("rooms/{}/forget", encoded(&room)), json!({}))
        .await
        .ok();
    assert!(bob.sync(&include).await.get("rooms").is_none());
}

#[tokio::test]
async fn a_ban_is_a_leaving() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let token = next(&bob.sync("").await);
    let path = format!("rooms/{}/ban", encoded(&room));
    alice
        .post(&path, json!({ "user_id": bob.id(), "reason": "x" }))
        .await
        .ok();
    let sync = bob.since(&token, "").await;
    let last = timeline(&sync["rooms"]["leave"][&room]).pop().unwrap();
    assert_eq!(last["content"]["membership"], "ban");
}

#[tokio::test]
async fn the_summary_names_the_others_unless_the_room_has_a_name() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let sync = alice.sync("").await;
    let summary = &joined(&sync, &room)["summary"];
    assert_eq!(summary["m.heroes"], json!([bob.id()]));
    assert_eq!(summary["m.joined_member_count"], 2);
    assert_eq!(summary["m.invited_member_count"], 0);
    // Nothing changed, nothing is said.
    alice.say(&room, "hello").await;
    let later = alice.since(&next(&sync), "").await;
    assert!(joined(&later, &room).get("summary").is_none());
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "Named" }))
        .await;
    let named = alice.sync("").await;
    assert!(joined(&named, &room)["summary"].get("m.heroes").is_none());
}

#[tokio::test]
async fn lazy_loading_gives_members_when_they_speak_and_not_again() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice
        .create_room(json!({ "preset": "public_chat", "name": "Many" }))
        .await;
    let mut others = Vec::new();
    for name in ["bob", "carol", "dave"] {
        let user = world.user(name).await;
        user.join(&room).await;
        others.push(user);
    }
    for number in 0..12 {
        others[0].say(&room, &number.to_string()).await;
    }
    let lazy = |redundant: bool| {
        let state = json!({ "lazy_load_members": true, "include_redundant_members": redundant });
        filter(&json!({ "room": { "state": state, "timeline": { "limit": 5 } } }))
    };
    let members = |sync: &Value| {
        let state = events(&joined(sync, &room)["state"]);
        let members = of_type(&state, "m.room.member");
        let mut members: Vec<_> = members
            .iter()
            .map(|event| event["state_key"].clone())
            .collect();
        members.sort_by_key(Value::to_string);
        members
    };
    let first = alice.sync(&lazy(false)).await;
    let found = members(&first);
    assert_eq!(found, [json!(alice.id()), json!(others[0].id())]);
    // The room has a name: nobody is needed to make one.
    let heroes = joined(&first, &room)["summary"].get("m.heroes");
    assert!(heroes.is_none());
    others[1].say(&room, "hi").await;
    let second = alice.since(&next(&first), &lazy(false)).await;
    let third = alice.since(&next(&second), &lazy(false)).await;
    assert!(third.get("rooms").is_none());
    others[1].say(&room, "again").await;
    let again = alice.since(&next(&third), &lazy(false)).await;
    assert_eq!(members(&again), Vec::<Value>::new());
    let redundant = alice.since(&next(&third), &lazy(true)).await;
    assert_eq!(members(&redundant), [json!(others[1].id())]);
}

#[tokio::test]
async fn without_lazy_loading_everybody_is_part_of_the_state() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let sync = alice
        .sync(&filter(&json!({ "room": { "timeline": { "limit": 0 } } })))
        .await;
    let shown = joined(&sync, &room);
    assert!(timeline(shown).is_empty());
    assert_eq!(shown["timeline"]["limited"], true);
    assert_eq!(of_type(&events(&shown["state"]), "m.room.member").len(), 2);
}

#[tokio::test]
async fn who_is_out_is_told_no_state_from_after_leaving() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let token = next(&bob.sync("").await);
    bob.leave(&room).await;
    let topic = json!({ "topic": "secret" });
    alice.set_state(&room, "m.room.topic", "", topic).await;
    let path = format!("rooms/{}/ban", encoded(&room));
    alice.post(&path, json!({ "user_id": bob.id() })).await.ok();
    let include = filter(&json!({ "room": { "include_leave": true } }));
    let syncs = [
        bob.since(&token, "").await,
        bob.since(&token, "use_state_after=true").await,
        bob.sync(&include).await,
    ];
    for sync in syncs {
        let left = &sync["rooms"]["leave"][&room];
        assert!(left.is_object(), "{sync}");
        assert!(!left.to_string().contains("secret"), "{left}");
    }
}

#[tokio::test]
async fn a_refused_second_invite_tells_no_state_from_after_leaving() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    bob.leave(&room).await;
    let token = next(&bob.sync("").await);
    let content = json!({ "secret": true });
    alice
        .set_state(&room, "org.example.hidden", "", content)
        .await;
    alice.invite(&room, &bob).await;
    bob.leave(&room).await;
    let sync = bob.since(&token, "").await;
    let left = &sync["rooms"]["leave"][&room];
    assert!(!left.to_string().contains("org.example.hidden"), "{left}");
}

/// Who is removed while they wait is told so, and nothing that came after it.
#[tokio::test]
async fn a_waiting_sync_ends_with_a_kick_or_a_ban() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    for action in ["kick", "ban"] {
        let room = alice
            .create_room(json!({ "preset": "public_chat", "name": "here" }))
            .await;
        bob.join(&room).await;
        let token = next(&bob.sync("").await);
        let waiting = bob.since(&token, "timeout=60000&set_presence=offline");
        let removing = async {
            tokio::task::yield_now().await;
            let path = format!("rooms/{}/{action}", encoded(&room));
            alice.post(&path, json!({ "user_id": bob.id() })).await.ok();
            alice.say(&room, "without him").await;
            let name = json!({ "name": "elsewhere" });
            alice.set_state(&room, "m.room.name", "", name).await;
        };
        let (first, ()) = tokio::join!(waiting, removing);
        let left = &first["rooms"]["leave"][&room];
        let last = timeline(left).last().cloned().unwrap_or_default();
        assert_eq!(last["state_key"], bob.id(), "{first}");
        let later = bob.since(&next(&first), "").await;
        let again = bob.since(&token, "").await;
        for sync in [&first, &later, &again] {
            let text = sync.to_string();
            assert!(
                !text.contains("without him") && !text.contains("elsewhere"),
                "{sync}"
            );
            assert!(joined(sync, &room).is_null());
        }
    }
}
