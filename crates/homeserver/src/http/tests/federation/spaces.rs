//! Trees of rooms, of this server and of others.

use super::{
    resident::{FEDERATION, World, encode},
    *,
};

fn space() -> Value {
    json!({
        "preset": "public_chat", "creation_content": { "type": "m.space" }, "name": "Space",
    })
}

fn tree_path(room: &str, query: &str) -> String {
    format!(
        "/_matrix/client/v1/rooms/{}/hierarchy?{query}",
        encode(room)
    )
}

fn ids(tree: &Value) -> Vec<&str> {
    let rooms = tree["rooms"].as_array().unwrap().iter();
    rooms
        .map(|room| room["room_id"].as_str().unwrap())
        .collect()
}

impl World {
    async fn child(&self, space: &str, room: &str, content: Value) {
        let set = self.set_state(space, "m.space.child", room, content).await;
        set.ok();
    }

    async fn tree(&self, user: &LoggedIn, room: &str, query: &str) -> Answer {
        self.here
            .get(&tree_path(room, query), Some(&user.token))
            .await
    }
}

#[tokio::test]
async fn a_tree_is_walked_in_order_and_by_pages_and_ends_in_circles() {
    let world = World::new().await;
    let root = world.room(space()).await;
    let inner = world.room(space()).await;
    let open = world.room(json!({ "preset": "public_chat" })).await;
    let closed = world.room(json!({ "preset": "private_chat" })).await;
    let via =
        |order: &str| json!({ "via": ["here.example"], "order": order, "suggested": order == "a" });
    world.child(&root, &closed, via("c")).await;
    world.child(&root, &inner, via("a")).await;
    world.child(&root, &open, via("b")).await;
    world.child(&inner, &root, via("a")).await;
    world.child(&inner, &open, via("b")).await;
    world.child(&root, "!gone:here.example", json!({})).await;
    let alice = world.alice.clone();
    let all = world.tree(&alice, &root, "").await.ok();
    assert_eq!(ids(&all), [&root, &inner, &open, &closed]);
    assert_eq!(
        all["rooms"][0]["children_state"].as_array().unwrap().len(),
        3
    );
    assert_eq!(all["rooms"][0]["room_type"], "m.space");
    assert!(all["next_batch"].is_null());
    // Who is not in the closed room is not told of it.
    let bob = world.here.register("bob").await;
    assert_eq!(
        ids(&world.tree(&bob, &root, "").await.ok()),
        [&root, &inner, &open]
    );
    world
        .tree(&bob, &closed, "")
        .await
        .refused(403, "M_FORBIDDEN");
    world
        .tree(&bob, "!none:here.example", "")
        .await
        .refused(403, "M_FORBIDDEN");
    let suggested = world.tree(&alice, &root, "suggested_only=true").await.ok();
    assert_eq!(ids(&suggested), [&root, &inner]);
    let flat = world.tree(&alice, &root, "max_depth=0").await.ok();
    assert_eq!(ids(&flat), [&root]);
    // Page by page.
    let first = world.tree(&alice, &root, "limit=3").await.ok();
    assert_eq!(ids(&first), [&root, &inner, &open]);
    let next = first["next_batch"].as_str().unwrap();
    let query = format!("limit=3&from={next}");
    let second = world.tree(&alice, &root, &query).await.ok();
    assert_eq!(ids(&second), [&closed]);
    assert!(second["next_batch"].is_null());
    for wrong in [
        format!("from={next}&max_depth=1"),
        format!("from={next}&suggested_only=true"),
        "from=rubbish".to_owned(),
        "limit=0".to_owned(),
    ] {
        let refused = world.tree(&alice, &root, &wrong).await;
        assert_eq!(refused.status, 400, "{wrong}");
        refused.refused(400, "M_INVALID_PARAM");
    }
}

#[tokio::test]
async fn rooms_of_other_servers_are_described_by_them() {
    let world = World::new().await;
    let root = world.room(space()).await;
    let there = join(&world.network, "there.example").await;
    let zoe = there.register("zoe").await;
    let make = async |wish: Value| {
        let made = there
            .post("/_matrix/client/v3/createRoom", Some(&zoe.token), wish)
            .await;
        made.ok()["room_id"].as_str().unwrap().to_owned()
    };
    let remote = make(space()).await;
    let open = make(json!({ "preset": "public_chat", "name": "There" })).await;
    let closed = make(json!({ "preset": "private_chat" })).await;
    for child in [&open, &closed] {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/state/m.space.child/{}",
            encode(&remote),
            encode(child)
        );
        let content = json!({ "via": ["there.example"] });
        there.put(&path, Some(&zoe.token), content).await.ok();
    }
    let via = json!({ "via": ["gone.example", "there.example"] });
    world.child(&root, &remote, via).await;
    let alice = world.alice.clone();
    let tree = world.tree(&alice, &root, "").await.ok();
    assert_eq!(ids(&tree), [&root, &remote, &open]);
    assert_eq!(tree["rooms"][2]["name"], "There");
    // As servers are told it.
    let path = format!("{FEDERATION}/v1/hierarchy/{}", encode(&remote));
    let told = world.peer.get(&there, &path).await.ok();
    assert_eq!(told["room"]["room_id"], remote.as_str());
    assert_eq!(told["children"][0]["room_id"], open.as_str());
    assert_eq!(told["inaccessible_children"], json!([closed]));
    for unknown in [&*closed, "!none:there.example"] {
        let path = format!("{FEDERATION}/v1/hierarchy/{}", encode(unknown));
        let answer = world.peer.get(&there, &path).await;
        answer.refused(404, "M_NOT_FOUND");
    }
    // One room of another server.
    let summary = |room: &str| {
        format!(
            "/_matrix/client/v1/room_summary/{}?via=there.example",
            encode(room)
        )
    };
    let found = world
        .here
        .get(&summary(&open), Some(&alice.token))
        .await
        .ok();
    assert_eq!(
        (&found["name"], &found["membership"]),
        (&json!("There"), &json!("leave"))
    );
    for unknown in [&closed, "!none:there.example"] {
        let answer = world.here.get(&summary(unknown), Some(&alice.token)).await;
        answer.refused(404, "M_NOT_FOUND");
    }
}
