//! Rooms: memberships, directories, events, reading, marks.

use homeserver_tests::encode;
use serde_json::{Value, json};

use super::Teller;

fn in_room(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", encode(room))
}

fn holds(events: &Value, id: &str) -> bool {
    let events = events.as_array().unwrap();
    events.iter().any(|event| event["event_id"] == id)
}

pub(super) async fn memberships(teller: &Teller) {
    let (host, guest) = (
        teller.register("host").await,
        teller.register("guest").await,
    );
    let rule = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let room = host.create_room(json!({ "initial_state": rule })).await;
    let knock = format!("/_matrix/client/v3/knock/{}", encode(&room));
    assert_eq!(guest.post(&knock, json!({})).await.text("room_id"), room);
    let about_guest = json!({ "user_id": guest.user });
    let host_does = async |what: &str| {
        host.post(&in_room(&room, what), about_guest.clone())
            .await
            .ok();
    };
    host_does("invite").await;
    let join = guest.post(&in_room(&room, "join"), json!({})).await;
    assert_eq!(join.text("room_id"), room);
    host_does("kick").await;
    host_does("ban").await;
    host_does("unban").await;
    host_does("invite").await;
    guest.join(&room).await;
    let rooms = guest.get("/_matrix/client/v3/joined_rooms").await.ok();
    assert_eq!(rooms["joined_rooms"], json!([room]));
    guest.post(&in_room(&room, "leave"), json!({})).await.ok();
    guest.post(&in_room(&room, "forget"), json!({})).await.ok();
}

pub(super) async fn directories(teller: &Teller) {
    let host = teller.register("owner").await;
    let wish = json!({ "preset": "public_chat", "room_version": "10", "name": "Garden" });
    let room = host.create_room(wish).await;
    let alias = format!("#{}:localhost", teller.name("garden"));
    let place = format!("/_matrix/client/v3/directory/room/{}", encode(&alias));
    host.put(&place, json!({ "room_id": room })).await.ok();
    assert_eq!(teller.nobody.get(&place).await.text("room_id"), room);
    let aliases = host.get(&in_room(&room, "aliases")).await.ok();
    assert_eq!(aliases["aliases"], json!([alias]));
    let visibility = format!("/_matrix/client/v3/directory/list/room/{}", encode(&room));
    host.put(&visibility, json!({ "visibility": "public" }))
        .await
        .ok();
    let seen = teller.nobody.get(&visibility).await.text("visibility");
    assert_eq!(seen, "public");
    let path = "/_matrix/client/v3/publicRooms";
    let wish = json!({ "filter": { "generic_search_term": "garden" } });
    for found in [
        teller.nobody.get(path).await.ok(),
        host.post(path, wish).await.ok(),
    ] {
        let mut rooms = found["chunk"].as_array().unwrap().iter();
        assert!(rooms.any(|found| found["room_id"] == room), "{found}");
    }
    let path = format!("/_matrix/client/v1/room_summary/{}", encode(&alias));
    assert_eq!(host.get(&path).await.text("room_id"), room);
    let path = format!("/_matrix/client/v1/rooms/{}/hierarchy", encode(&room));
    let tree = host.get(&path).await.ok();
    assert_eq!(tree["rooms"][0]["room_id"], room);
    host.delete(&place).await.ok();
    let upgrade = json!({ "new_version": "12" });
    let upgraded = host.post(&in_room(&room, "upgrade"), upgrade).await;
    assert!(upgraded.text("replacement_room").starts_with('!'));
}

pub(super) async fn events(teller: &Teller) {
    let host = teller.register("writer").await;
    let room = host.create_room(json!({ "preset": "public_chat" })).await;
    let topic = host
        .set_state(&room, "m.room.topic", "", json!({ "topic": "Soup" }))
        .await;
    let topic = topic.text("event_id");
    let path = in_room(&room, "state/m.room.topic/");
    assert_eq!(host.get(&path).await.text("topic"), "Soup");
    let whole = host.get(&in_room(&room, "state")).await.ok();
    assert!(holds(&whole, &topic));
    let event = host.say(&room, "regret").await;
    for (what, target) in [("rooms", None), ("rooms", Some(&event))] {
        let target = target.map(|event| format!("/{}", encode(event)));
        let path = format!(
            "/_matrix/client/v3/{what}/{}/report{}",
            encode(&room),
            target.unwrap_or_default()
        );
        let report = json!({ "reason": "noise" });
        assert_eq!(host.post(&path, report).await.ok(), json!({}));
    }
    let path = format!("/_matrix/client/v3/users/{}/report", host.user);
    host.post(&path, json!({ "reason": "noise" })).await.ok();
    let redact = format!("redact/{}/{}", encode(&event), host.transaction());
    host.put(&in_room(&room, &redact), json!({})).await.ok();
    let path = in_room(&room, &format!("event/{}", encode(&event)));
    assert_eq!(host.get(&path).await.ok()["content"], json!({}));
}

pub(super) async fn reading(teller: &Teller) {
    let host = teller.register("reader").await;
    let room = host.create_room(json!({})).await;
    let target = host.say(&room, "target").await;
    let relates = json!({ "rel_type": "m.annotation", "event_id": target, "key": "+" });
    let reaction = host
        .send_event(&room, "m.reaction", json!({ "m.relates_to": relates }))
        .await;
    let reaction = reaction.text("event_id");
    let base = format!(
        "/_matrix/client/v1/rooms/{}/relations/{}",
        encode(&room),
        encode(&target)
    );
    for rest in ["", "/m.annotation", "/m.annotation/m.reaction"] {
        let found = host.get(&format!("{base}{rest}")).await.ok();
        assert!(holds(&found["chunk"], &reaction), "{rest}: {found}");
    }
    let page = host.get(&in_room(&room, "messages?dir=b")).await.ok();
    assert!(holds(&page["chunk"], &target));
    let context = format!("context/{}", encode(&target));
    let around = host.get(&in_room(&room, &context)).await.ok();
    assert!(holds(&around["events_after"], &reaction));
    let members = host.get(&in_room(&room, "members")).await.ok();
    assert_eq!(members["chunk"][0]["state_key"], json!(host.user));
    let members = host.get(&in_room(&room, "joined_members")).await.ok();
    assert!(members["joined"][&host.user].is_object());
    let path = format!(
        "/_matrix/client/v1/rooms/{}/timestamp_to_event?ts=0&dir=f",
        encode(&room)
    );
    assert!(host.get(&path).await.text("event_id").starts_with('$'));
    let synced = host.sync("timeout=0").await;
    let timeline = &synced["rooms"]["join"][&room]["timeline"]["events"];
    assert!(holds(timeline, &target));
}

pub(super) async fn marks(teller: &Teller) {
    let host = teller.register("marker").await;
    let room = host.create_room(json!({})).await;
    let event = host.say(&room, "read").await;
    let receipt = format!("receipt/m.read/{}", encode(&event));
    host.post(&in_room(&room, &receipt), json!({})).await.ok();
    let markers = json!({ "m.fully_read": event });
    host.post(&in_room(&room, "read_markers"), markers)
        .await
        .ok();
    let typing = format!("typing/{}", host.user);
    let wish = json!({ "typing": true, "timeout": 30_000 });
    host.put(&in_room(&room, &typing), wish).await.ok();
    let synced = host.sync("timeout=0").await;
    let ephemeral = synced["rooms"]["join"][&room]["ephemeral"].to_string();
    for kind in ["m.typing", "m.receipt"] {
        assert!(ephemeral.contains(kind), "{kind} in {ephemeral}");
    }
}
