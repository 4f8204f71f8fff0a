//! Aliases, the directory, summaries, reports.

use serde_json::{Value, json};

use super::{World, encode, in_room};

const PUBLIC: &str = "/_matrix/client/v3/publicRooms";

fn alias_path(alias: &str) -> String {
    format!("/_matrix/client/v3/directory/room/{}", encode(alias))
}

#[tokio::test]
async fn aliases() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    let path = alias_path("#garden:example.org");
    let here = json!({ "room_id": room });
    world
        .nobody()
        .put(&path, here.clone())
        .await
        .refused(401, "M_MISSING_TOKEN");
    world.nobody().get(&path).await.refused(404, "M_NOT_FOUND");
    alice.delete(&path).await.refused(404, "M_NOT_FOUND");
    alice
        .put(&path, json!({}))
        .await
        .refused(400, "M_MISSING_PARAM");
    alice
        .put(&alias_path("garden"), here.clone())
        .await
        .refused(400, "M_INVALID_PARAM");
    alice
        .get(&alias_path("garden"))
        .await
        .refused(400, "M_INVALID_PARAM");
    // Its server is asked, and this one is never reached.
    let elsewhere = alias_path("#garden:127.0.0.1");
    alice
        .put(&elsewhere, here.clone())
        .await
        .refused(400, "M_INVALID_PARAM");
    alice.get(&elsewhere).await.refused(502, "M_UNKNOWN");
    let nowhere = json!({ "room_id": "!nowhere:example.org" });
    alice.put(&path, nowhere).await.refused(404, "M_NOT_FOUND");
    // Who knows the id of a room is not in it.
    bob.put(&path, here.clone())
        .await
        .refused(403, "M_FORBIDDEN");
    alice.put(&path, here.clone()).await.ok();
    alice
        .put(&path, here.clone())
        .await
        .refused(409, "M_UNKNOWN");
    let found = world.nobody().get(&path.replace("/v3/", "/r0/")).await.ok();
    assert_eq!(
        found,
        json!({ "room_id": room, "servers": ["example.org"] })
    );
    bob.delete(&path).await.refused(403, "M_FORBIDDEN");
    for base in [
        "/_matrix/client/v3",
        "/_matrix/client/unstable/org.matrix.msc2432",
    ] {
        let listed = alice
            .get(&format!("{base}/rooms/{}/aliases", encode(&room)))
            .await
            .ok();
        assert_eq!(listed["aliases"], json!(["#garden:example.org"]), "{base}");
    }
    alice.delete(&path).await.ok();
    world.nobody().get(&path).await.refused(404, "M_NOT_FOUND");
    let listed = alice.get(&in_room(&room, "aliases")).await.ok();
    assert_eq!(listed["aliases"], json!([]));
}

#[tokio::test]
async fn visibility_in_the_directory() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let list = |room: &str| format!("/_matrix/client/v3/directory/list/room/{}", encode(room));
    let shown = async || world.nobody().get(&list(&room)).await.ok()["visibility"].clone();
    assert_eq!(shown().await, "private");
    let public = json!({ "visibility": "public" });
    bob.put(&list(&room), public.clone())
        .await
        .refused(403, "M_FORBIDDEN");
    world
        .nobody()
        .put(&list(&room), public.clone())
        .await
        .refused(401, "M_MISSING_TOKEN");
    let nowhere = list("!nowhere:example.org");
    alice.get(&nowhere).await.refused(404, "M_NOT_FOUND");
    alice
        .put(&nowhere, public.clone())
        .await
        .refused(404, "M_NOT_FOUND");
    let odd = alice
        .put(&list(&room), json!({ "visibility": "odd" }))
        .await;
    odd.refused(400, "M_BAD_JSON");
    alice.put(&list(&room), public).await.ok();
    assert_eq!(shown().await, "public");
    alice
        .put(&list(&room), json!({ "visibility": "private" }))
        .await
        .ok();
    assert_eq!(shown().await, "private");
    // Public is what is meant by saying nothing.
    alice
        .put(&list(&room).replace("/v3/", "/r0/"), json!({}))
        .await
        .ok();
    assert_eq!(shown().await, "public");
}

fn names(listed: &Value) -> Vec<&str> {
    let rooms = listed["chunk"].as_array().unwrap().iter();
    rooms.map(|room| room["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_directory_in_pages() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    alice
        .create(json!({ "name": "Hidden", "preset": "public_chat" }))
        .await;
    for number in 0..5 {
        let wish = json!({
            "visibility": "public", "name": format!("Room {number}"), "topic": "Soup and bread",
        });
        let room = alice.create(wish).await;
        if number == 3 {
            bob.join(&room).await;
        }
    }
    let order = ["Room 3", "Room 0", "Room 1", "Room 2", "Room 4"];
    let all = world.nobody().get(PUBLIC).await.ok();
    assert_eq!(names(&all), order);
    assert_eq!(all["total_room_count_estimate"], 5);
    assert_eq!(all["chunk"][0]["num_joined_members"], 2);
    assert_eq!((all.get("next_batch"), all.get("prev_batch")), (None, None));
    let (mut forward, mut since) = (Vec::new(), String::new());
    let mut last = Value::Null;
    for _ in 0..3 {
        last = bob
            .get(&format!("{PUBLIC}?limit=2&since={}", encode(&since)))
            .await
            .ok();
        forward.extend(names(&last).into_iter().map(str::to_owned));
        since = last["next_batch"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!(forward, order);
    assert_eq!(last.get("next_batch"), None);
    let back = last["prev_batch"].as_str().unwrap();
    let back = bob
        .get(&format!("{PUBLIC}?limit=2&since={}", encode(back)))
        .await
        .ok();
    assert_eq!(names(&back), order[2..4]);
    let back = back["prev_batch"].as_str().unwrap();
    let back = bob
        .get(&format!("{PUBLIC}?limit=2&since={}", encode(back)))
        .await
        .ok();
    assert_eq!(
        (names(&back), back.get("prev_batch")),
        (order[..2].to_vec(), None)
    );
    bob.get(&format!("{PUBLIC}?since=rubbish"))
        .await
        .refused(400, "M_INVALID_PARAM");
    bob.get(&format!("{PUBLIC}?server=127.0.0.1"))
        .await
        .refused(502, "M_UNKNOWN");
    bob.get(&format!("{PUBLIC}?server=example.org")).await.ok();
}

#[tokio::test]
async fn searching_the_directory() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let wishes = [
        json!({ "visibility": "public", "name": "Garden" }),
        json!({ "visibility": "public", "name": "Kitchen", "topic": "Gardeners' soup" }),
        json!({ "visibility": "public", "name": "Hall", "room_alias_name": "garden-hall" }),
        json!({ "visibility": "public", "name": "Space", "creation_content": { "type": "m.space" } }),
    ];
    for wish in wishes {
        alice.create(wish).await;
    }
    let cases = [
        (
            json!({ "generic_search_term": "GARDEN" }),
            vec!["Garden", "Kitchen", "Hall"],
        ),
        (json!({ "generic_search_term": "soup" }), vec!["Kitchen"]),
        (json!({ "generic_search_term": "cellar" }), vec![]),
        (json!({ "room_types": ["m.space"] }), vec!["Space"]),
        (
            json!({ "room_types": [null] }),
            vec!["Garden", "Kitchen", "Hall"],
        ),
        (
            json!({ "room_types": [null, "m.space"] }),
            vec!["Garden", "Kitchen", "Hall", "Space"],
        ),
        (
            json!({ "room_types": ["m.space"], "generic_search_term": "garden" }),
            vec![],
        ),
        (json!({}), vec!["Garden", "Kitchen", "Hall", "Space"]),
    ];
    for (filter, expected) in cases {
        let listed = alice.post(PUBLIC, json!({ "filter": filter })).await.ok();
        assert_eq!(names(&listed), expected, "{filter}");
    }
    let paged = json!({ "limit": 1, "filter": { "generic_search_term": "garden" } });
    let paged = alice.post(PUBLIC, paged).await.ok();
    assert_eq!(names(&paged), ["Garden"]);
    assert!(paged["next_batch"].is_string());
    let bridged = json!({ "third_party_instance_id": "irc" });
    assert_eq!(alice.post(PUBLIC, bridged).await.ok()["chunk"], json!([]));
    world
        .nobody()
        .post(PUBLIC, json!({}))
        .await
        .refused(401, "M_MISSING_TOKEN");
    let elsewhere = format!("{PUBLIC}?server=127.0.0.1");
    alice
        .post(&elsewhere, json!({}))
        .await
        .refused(502, "M_UNKNOWN");
}

#[tokio::test]
async fn summaries() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let open = alice
        .create(json!({
            "preset": "public_chat", "name": "Open", "topic": "T", "room_alias_name": "open",
            "creation_content": { "type": "m.space" },
        }))
        .await;
    let closed = alice.create(json!({ "name": "Closed" })).await;
    let rule = json!([{ "type": "m.room.join_rules", "content": {
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": open }],
    } }]);
    let restricted = alice.create(json!({ "initial_state": rule })).await;
    let path = |name: &str| format!("/_matrix/client/v1/room_summary/{}", encode(name));
    let summary = world.nobody().get(&path("#open:example.org")).await.ok();
    let expected = json!({
        "room_id": open, "name": "Open", "topic": "T", "room_type": "m.space",
        "canonical_alias": "#open:example.org", "num_joined_members": 1, "join_rule": "public",
        "world_readable": false, "guest_can_join": false, "room_version": "12",
    });
    assert_eq!(summary, expected);
    let unstable = "/_matrix/client/unstable/im.nheko.summary";
    for path in [
        format!("{unstable}/summary/{}", encode(&open)),
        format!("{unstable}/rooms/{}/summary", encode(&open)),
        path(&open),
    ] {
        let summary = bob.get(&path).await.ok();
        assert_eq!(
            (&summary["membership"], &summary["name"]),
            (&json!("leave"), &json!("Open"))
        );
    }
    assert_eq!(alice.get(&path(&closed)).await.ok()["membership"], "join");
    for user in [&bob, &world.nobody()] {
        for room in [
            &closed,
            &restricted,
            "!nowhere:example.org",
            "#nowhere:example.org",
        ] {
            user.get(&path(room)).await.refused(404, "M_NOT_FOUND");
        }
    }
    bob.join(&open).await;
    let summary = bob.get(&path(&restricted)).await.ok();
    assert_eq!(summary["allowed_room_ids"], json!([open]));
    alice
        .post(&in_room(&closed, "invite"), json!({ "user_id": bob.id }))
        .await
        .ok();
    assert_eq!(bob.get(&path(&closed)).await.ok()["membership"], "invite");
    alice
        .post(&in_room(&closed, "ban"), json!({ "user_id": bob.id }))
        .await
        .ok();
    bob.get(&path(&closed)).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn reports() {
    let world = World::new().await;
    let [alice, bob] = [world.user("alice").await, world.user("bob").await];
    let room = alice.create(json!({})).await;
    let event = encode(&alice.say(&room, "rude").await);
    let reason = json!({ "reason": "rude" });
    let report_room = in_room(&room, "report");
    let report_event = in_room(&room, &format!("report/{event}"));
    let report_user = format!("/_matrix/client/v3/users/{}/report", alice.id);
    alice.post(&report_event, json!({})).await.ok();
    bob.post(&report_room, reason.clone()).await.ok();
    bob.post(&report_user, reason.clone()).await.ok();
    bob.post(&report_event, reason.clone())
        .await
        .refused(404, "M_NOT_FOUND");
    let nowhere = in_room("!nowhere:example.org", "report");
    bob.post(&nowhere, reason.clone())
        .await
        .refused(404, "M_NOT_FOUND");
    let nothing = in_room(&room, "report/$nothing");
    alice
        .post(&nothing, reason.clone())
        .await
        .refused(404, "M_NOT_FOUND");
    bob.post(&report_user, json!({}))
        .await
        .refused(400, "M_MISSING_PARAM");
    let long = json!({ "reason": "x".repeat(20_000) });
    bob.post(&report_room, long)
        .await
        .refused(413, "M_TOO_LARGE");
    for path in [report_room, report_event, report_user] {
        world
            .nobody()
            .post(&path, reason.clone())
            .await
            .refused(401, "M_MISSING_TOKEN");
    }
}
