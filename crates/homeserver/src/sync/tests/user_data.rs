//! Account data, tags, push rules, profiles, presence, pushers.

use super::*;

#[tokio::test]
async fn account_data_is_told_to_all_devices() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let phone = world.device("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({})).await;
    let start = next(&phone.sync("").await);
    let user = encoded(alice.id());
    let global = format!("user/{user}/account_data/org.example.one");
    let local = format!(
        "user/{user}/rooms/{}/account_data/org.example.two",
        encoded(&room)
    );
    alice.get(&global).await.refused(404, "M_NOT_FOUND");
    alice.put(&global, json!({ "a": 1 })).await.ok();
    alice.put(&local, json!({ "b": 2 })).await.ok();
    assert_eq!(alice.get(&global).await.ok(), json!({ "a": 1 }));
    assert_eq!(alice.get(&local).await.ok(), json!({ "b": 2 }));
    for sync in [phone.since(&start, "").await, phone.sync("").await] {
        let data = events(&sync["account_data"]);
        assert_eq!(
            of_type(&data, "org.example.one")[0]["content"],
            json!({ "a": 1 })
        );
        let data = events(&joined(&sync, &room)["account_data"]);
        assert_eq!(
            data,
            [json!({ "type": "org.example.two", "content": { "b": 2 } })]
        );
    }
    let cases = [
        (&bob, &global, json!({}), 403, "M_FORBIDDEN"),
        (&alice, &global, json!([]), 400, "M_BAD_JSON"),
        (
            &alice,
            &format!("user/{user}/account_data/m.push_rules"),
            json!({}),
            405,
            "M_BAD_JSON",
        ),
        (
            &alice,
            &format!("user/{user}/account_data/m.fully_read"),
            json!({}),
            405,
            "M_BAD_JSON",
        ),
    ];
    for (user, path, body, status, code) in cases {
        user.put(path, body).await.refused(status, code);
    }
    bob.get(&global).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn tags_are_set_listed_removed_and_told() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({})).await;
    let token = next(&alice.sync("").await);
    let tags = format!("user/{}/rooms/{}/tags", encoded(alice.id()), encoded(&room));
    alice
        .put(&format!("{tags}/m.favourite"), json!({ "order": 0.5 }))
        .await
        .ok();
    let expected = json!({ "tags": { "m.favourite": { "order": 0.5 } } });
    assert_eq!(alice.get(&tags).await.ok(), expected);
    let sync = alice.since(&token, "").await;
    let data = events(&joined(&sync, &room)["account_data"]);
    assert_eq!(data, [json!({ "type": "m.tag", "content": expected })]);
    alice.delete(&format!("{tags}/m.favourite")).await.ok();
    assert_eq!(alice.get(&tags).await.ok(), json!({ "tags": {} }));
}

#[tokio::test]
async fn push_rules_have_defaults_and_can_be_changed() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let first = alice.sync("").await;
    let data = events(&first["account_data"]);
    assert!(of_type(&data, "m.push_rules")[0]["content"]["global"]["override"].is_array());
    for path in ["pushrules/", "pushrules"] {
        let all = alice.get(path).await.ok();
        assert_eq!(all["global"]["override"][0]["rule_id"], ".m.rule.master");
    }
    let rule = "pushrules/global/content/tea";
    alice
        .put(rule, json!({ "pattern": "tea", "actions": ["notify"] }))
        .await
        .ok();
    alice
        .put(
            "pushrules/global/content/milk?after=tea",
            json!({ "pattern": "milk", "actions": ["notify"] }),
        )
        .await
        .ok();
    let scope = alice.get("pushrules/global/").await.ok();
    let ids: Vec<_> = scope["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["rule_id"].clone())
        .collect();
    assert_eq!(&ids[..2], [json!("tea"), json!("milk")]);
    // Each of these once stopped the whole connection.
    for (path, status) in [
        ("pushrules/global/content/milk?after=milk", 404),
        ("pushrules/global/content/new?after=new", 404),
        ("pushrules/global/content/milk?after=tea", 200),
        ("pushrules/global/override/o?after=o", 404),
    ] {
        let body = json!({ "pattern": "milk", "actions": ["notify"], "conditions": [] });
        assert_eq!(alice.put(path, body).await.status, status, "{path}");
    }
    assert_eq!(alice.get(rule).await.ok()["pattern"], "tea");
    assert_eq!(
        alice.get(&format!("{rule}/enabled")).await.ok(),
        json!({ "enabled": true })
    );
    alice
        .put(&format!("{rule}/enabled"), json!({ "enabled": false }))
        .await
        .ok();
    assert_eq!(
        alice.get(&format!("{rule}/enabled")).await.ok(),
        json!({ "enabled": false })
    );
    let actions = json!({ "actions": ["notify", { "set_tweak": "highlight" }] });
    alice
        .put(&format!("{rule}/actions"), actions.clone())
        .await
        .ok();
    assert_eq!(alice.get(&format!("{rule}/actions")).await.ok(), actions);
    let sync = alice.since(&next(&first), "").await;
    assert_eq!(
        of_type(&events(&sync["account_data"]), "m.push_rules").len(),
        1
    );
    alice.delete(rule).await.ok();

    alice.get(rule).await.refused(404, "M_NOT_FOUND");
    alice.delete(rule).await.refused(404, "M_NOT_FOUND");
    alice
        .get("pushrules/global/nokind/x")
        .await
        .refused(400, "M_INVALID_PARAM");
    alice
        .delete("pushrules/global/override/.m.rule.master")
        .await
        .refused(400, "M_INVALID_PARAM");
    let body = json!({ "actions": [], "pattern": "x" });
    for (path, status, code) in [
        ("pushrules/global/content/.mine", 400, "M_INVALID_PARAM"),
        ("pushrules/global/content/a%5Cb", 400, "M_INVALID_PARAM"),
        (
            "pushrules/global/content/x?before=nothing",
            404,
            "M_NOT_FOUND",
        ),
    ] {
        alice.put(path, body.clone()).await.refused(status, code);
    }
    alice
        .put("pushrules/global/content/x", json!({ "pattern": "x" }))
        .await
        .refused(400, "M_MISSING_PARAM");
    alice
        .put(
            "pushrules/global/content/x/enabled",
            json!({ "enabled": true }),
        )
        .await
        .refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_new_display_name_reaches_the_rooms() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let token = next(&alice.sync("").await);
    let profile = format!("profile/{}", encoded(alice.id()));
    alice
        .put(
            &format!("{profile}/displayname"),
            json!({ "displayname": "Alice" }),
        )
        .await
        .ok();
    let sync = alice.since(&token, "").await;
    let member = timeline(joined(&sync, &room)).pop().unwrap();
    assert_eq!(
        member["content"],
        json!({ "membership": "join", "displayname": "Alice" })
    );
    assert_eq!(alice.get(&profile).await.ok()["displayname"], "Alice");
    // The same once more changes nothing.
    alice
        .put(
            &format!("{profile}/displayname"),
            json!({ "displayname": "Alice" }),
        )
        .await
        .ok();
    let later = alice.since(&next(&sync), "").await;
    assert!(later.get("rooms").is_none());
}

/// The names that rooms show of a user.
async fn names_in(rooms: &[String], user: &User) -> Vec<Value> {
    let mut names = Vec::new();
    for room in rooms {
        let path = format!(
            "rooms/{}/state/m.room.member/{}",
            encoded(room),
            encoded(user.id())
        );
        let member = user.get(&path).await.ok();
        names.push(member["displayname"].clone());
    }
    names
}

#[tokio::test]
async fn a_member_event_without_place_for_a_name_holds_nobody_up() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let rooms = [
        alice.create_room(json!({})).await,
        alice.create_room(json!({})).await,
    ];
    let member = format!(
        "rooms/{}/state/m.room.member/{}",
        encoded(&rooms[0]),
        encoded(alice.id())
    );
    let large = json!({ "membership": "join", "org.example.large": "x".repeat(64_700) });
    alice.put(&member, large).await.ok();
    let of_bob = [bob.create_room(json!({})).await];
    // It may be a name, but does not fit into that event.
    let name = Value::from("n".repeat(255));
    for user in [&alice, &bob] {
        let path = format!("profile/{}/displayname", encoded(user.id()));
        user.put(&path, json!({ "displayname": name })).await.ok();
    }
    let shown = names_in(&rooms, &alice).await;
    assert_eq!(shown, [Value::Null, name.clone()]);
    assert_eq!(names_in(&of_bob, &bob).await, [name]);
}

#[tokio::test]
async fn profiles_have_any_fields_within_limits() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let profile = format!("profile/{}", encoded(alice.id()));
    alice
        .put(
            &format!("{profile}/org.example.pet"),
            json!({ "org.example.pet": { "cat": 2 } }),
        )
        .await
        .ok();
    alice
        .put(
            &format!("{profile}/m.tz"),
            json!({ "m.tz": "Europe/Berlin" }),
        )
        .await
        .ok();
    let shown = bob.get(&profile).await.ok();
    assert_eq!(shown["org.example.pet"], json!({ "cat": 2 }));
    let field = bob.get(&format!("{profile}/m.tz")).await.ok();
    assert_eq!(field, json!({ "m.tz": "Europe/Berlin" }));
    alice.delete(&format!("{profile}/m.tz")).await.ok();
    bob.get(&format!("{profile}/m.tz"))
        .await
        .refused(404, "M_NOT_FOUND");
    bob.get("profile/%40nobody%3Alocalhost")
        .await
        .refused(404, "M_NOT_FOUND");
    bob.put(&format!("{profile}/m.tz"), json!({ "m.tz": "UTC" }))
        .await
        .refused(403, "M_FORBIDDEN");
    let long = "k".repeat(256);
    alice
        .put(&format!("{profile}/{long}"), json!({ long.clone(): 1 }))
        .await
        .refused(400, "M_KEY_TOO_LARGE");
    let big = json!({ "org.example.big": "x".repeat(65_536) });
    alice
        .put(&format!("{profile}/org.example.big"), big)
        .await
        .refused(400, "M_PROFILE_TOO_LARGE");
    alice
        .put(
            &format!("{profile}/displayname"),
            json!({ "displayname": 7 }),
        )
        .await
        .refused(400, "M_BAD_JSON");
    alice
        .put(&format!("{profile}/displayname"), json!({}))
        .await
        .refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn presence_is_shown_to_those_who_share_a_room() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let stranger = world.user("stranger").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let token = next(&bob.sync("set_presence=offline").await);
    let other = next(&stranger.sync("set_presence=offline").await);
    let path = format!("presence/{}/status", encoded(alice.id()));
    alice
        .put(&path, json!({ "presence": "online", "status_msg": "here" }))
        .await
        .ok();
    let sync = bob.since(&token, "set_presence=offline").await;
    let found = events(&sync["presence"]);
    assert_eq!(found[0]["sender"], *alice.id());
    assert_eq!(found[0]["content"]["presence"], "online");
    assert_eq!(found[0]["content"]["status_msg"], "here");
    let sync = stranger.since(&other, "set_presence=offline").await;
    assert!(sync.get("presence").is_none());
    assert_eq!(bob.get(&path).await.ok()["presence"], "online");
    stranger.get(&path).await.refused(403, "M_FORBIDDEN");
    bob.put(&path, json!({ "presence": "online" }))
        .await
        .refused(403, "M_FORBIDDEN");
    alice
        .put(&path, json!({ "presence": "asleep" }))
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn pushers_are_kept_replaced_and_removed() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let pusher = |url: &str| {
        json!({
            "kind": "http", "app_id": "org.example", "pushkey": "key", "app_display_name": "App",
            "device_display_name": "Phone", "lang": "en", "data": { "url": url },
        })
    };
    let good = pusher("https://push.example.org/_matrix/push/v1/notify");
    alice.post("pushers/set", good.clone()).await.ok();
    alice.post("pushers/set", good.clone()).await.ok();
    let stored = alice.get("pushers").await.ok();
    assert_eq!(stored["pushers"].as_array().unwrap().len(), 1);
    assert_eq!(stored["pushers"][0]["data"]["url"], good["data"]["url"]);
    alice
        .post("pushers/set", pusher("https://push.example.org/"))
        .await
        .refused(400, "M_INVALID_PARAM");
    alice
        .post("pushers/set", json!({ "kind": "http" }))
        .await
        .refused(400, "M_MISSING_PARAM");
    // The phone changed hands.
    bob.post("pushers/set", good).await.ok();
    assert_eq!(alice.get("pushers").await.ok(), json!({ "pushers": [] }));
    let delete = json!({ "kind": null, "app_id": "org.example", "pushkey": "key" });
    bob.post("pushers/set", delete).await.ok();
    assert_eq!(bob.get("pushers").await.ok(), json!({ "pushers": [] }));
}
