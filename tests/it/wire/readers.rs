//! One event, four readers, five ways to read it: each sees its own `unsigned` and nobody else's.

use std::collections::BTreeMap;

use homeserver_tests::{Client, Server, encode};
use serde_json::{Value, json};

const TRANSACTION: &str = "my-transaction";

/// Ways to read an event.
const WAYS: [&str; 5] = ["sync", "messages", "context", "event", "relations"];

struct Target {
    room: String,
    /// What the event relates to.
    root: String,
    event: String,
}

impl Target {
    fn in_room(&self, version: &str, rest: &str) -> String {
        format!(
            "/_matrix/client/{version}/rooms/{}/{rest}",
            encode(&self.room)
        )
    }

    /// The event in one answer, if it is there.
    async fn read(&self, reader: &Client, way: &str) -> Option<Value> {
        let event = encode(&self.event);
        let path = match way {
            "sync" => "/_matrix/client/v3/sync?timeout=0".to_owned(),
            "messages" => self.in_room("v3", "messages?dir=b&limit=100"),
            "context" => self.in_room("v3", &format!("context/{event}")),
            "event" => self.in_room("v3", &format!("event/{event}")),
            _ => self.in_room("v1", &format!("relations/{}", encode(&self.root))),
        };
        let answer = reader.get(&path).await.ok();
        find(&answer, &self.event).cloned()
    }
}

/// The event anywhere in an answer.
fn find<'a>(value: &'a Value, id: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) if map.get("event_id").is_some_and(|it| it == id) => Some(value),
        Value::Object(map) => map.values().find_map(|value| find(value, id)),
        Value::Array(values) => values.iter().find_map(|value| find(value, id)),
        _ => None,
    }
}

/// What the reader is told beside the event, the age left out.
fn told(event: &Value) -> BTreeMap<&str, &Value> {
    let unsigned = event["unsigned"].as_object().into_iter().flatten();
    let told = unsigned.map(|(key, value)| (key.as_str(), value));
    told.filter(|(key, _)| *key != "age").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_has_an_unsigned_of_their_own() {
    let server = Server::start().await;
    let nobody = server.client();
    let sender = nobody.register("alice").await;
    let other_device = nobody.login("alice").await;
    let ignoring = nobody.register("ignoring").await;
    let room = sender.create_room(json!({ "preset": "public_chat" })).await;
    ignoring.join(&room).await;
    let data = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        ignoring.user
    );
    let ignored = json!({ "ignored_users": { (&sender.user): {} } });
    ignoring.put(&data, ignored).await.ok();
    let root = ignoring.say(&room, "root").await;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.room.message/{TRANSACTION}",
        encode(&room)
    );
    let content = json!({
        "msgtype": "m.text", "body": "hello",
        "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    let event = sender.put(&path, content).await.text("event_id");
    let joiner = nobody.register("joiner").await;
    joiner.join(&room).await;
    let target = Target { room, root, event };

    let (join, leave, transaction) = (json!("join"), json!("leave"), json!(TRANSACTION));
    let own = BTreeMap::from([("membership", &join), ("transaction_id", &transaction)]);
    let elsewhere = BTreeMap::from([("membership", &join)]);
    let later = BTreeMap::from([("membership", &leave)]);
    for way in WAYS {
        for (who, reader, expected) in [
            ("the sender", &sender, &own),
            ("the other device", &other_device, &elsewhere),
            ("a later joiner", &joiner, &later),
        ] {
            let event = target.read(reader, way).await;
            let event = event.unwrap_or_else(|| panic!("{who} does not see it in {way}"));
            assert_eq!(&told(&event), expected, "{who}, {way}");
        }
        // Who asks for the very event is given it; otherwise nothing of an ignored user is shown.
        let event = target.read(&ignoring, way).await;
        match way {
            "event" | "context" => {
                let event = event.unwrap_or_else(|| panic!("it is asked for by name in {way}"));
                assert_eq!(told(&event), elsewhere, "the ignoring user, {way}");
            }
            _ => assert_eq!(event, None, "the ignoring user, {way}"),
        }
    }
}
