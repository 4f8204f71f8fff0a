//! What another server tells of its users, over the wire, and how far it is believed.

use homeserver_users::UserNumber;
use ruma::OwnedUserId;

use super::{inbound::World, peer::START, *};

const V3: &str = "/_matrix/client/v3";
const MALLORY: &str = "@mallory:peer.example";

fn keys(user: &str, device: &str) -> Value {
    json!({
        "user_id": user, "device_id": device, "algorithms": [],
        "keys": { format!("ed25519:{device}"): "k" },
        "signatures": { user: { format!("ed25519:{device}"): "s" } },
    })
}

impl World {
    /// Hands EDUs over in a transaction.
    async fn tell(&self, id: &str, edus: &[(&str, Value)]) {
        let edus = edus
            .iter()
            .map(|(kind, content)| json!({ "edu_type": kind, "content": content }));
        let body = json!({
            "origin": self.peer.name, "origin_server_ts": START, "pdus": [],
            "edus": edus.collect::<Vec<_>>(),
        });
        let body = body.to_string();
        let answer = self.peer.transaction(&self.here, id, &body).await;
        assert_eq!(answer.ok(), json!({ "pdus": {} }));
    }

    async fn query(&self, user: &str) -> Value {
        let body = json!({ "device_keys": { user: [] } });
        let path = format!("{V3}/keys/query");
        let token = Some(&*self.alice.token);
        self.here.post(&path, token, body).await.ok()
    }

    /// The peer's answer to `user/devices/…`.
    fn has_devices(&self, stream_id: u64, devices: &[(&str, Value)]) {
        let devices = devices
            .iter()
            .map(|(id, keys)| json!({ "device_id": id, "keys": keys }));
        let devices: Vec<_> = devices.collect();
        let body = json!({ "user_id": MALLORY, "stream_id": stream_id, "devices": devices });
        let path = "/_matrix/federation/v1/user/devices/";
        self.peer.instead(path, 200, body);
    }

    /// How often the peer was asked for a list since the last time.
    fn asked_for_devices(&self) -> usize {
        let asked = self.peer.asked();
        asked
            .iter()
            .filter(|path| path.contains("user/devices"))
            .count()
    }

    /// What Alice's client is told once `done` is content with it, and where that is up to.
    async fn until_told(&self, since: &mut String, done: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..100 {
            let path = format!("{V3}/sync?timeout=100&since={since}");
            let token = Some(&*self.alice.token);
            let told = self.here.get(&path, token).await.ok();
            told["next_batch"].as_str().unwrap().clone_into(since);
            if done(&told) {
                return told;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("it was never told");
    }

    async fn token(&self) -> String {
        let path = format!("{V3}/sync?timeout=0");
        let told = self.here.get(&path, Some(&self.alice.token)).await.ok();
        told["next_batch"].as_str().unwrap().to_owned()
    }
}

fn device_ids(answer: &Value) -> Vec<String> {
    let devices = answer["device_keys"][MALLORY].as_object();
    devices.map_or(Vec::new(), |devices| devices.keys().cloned().collect())
}

fn update(device: &str, stream_id: u64, prev_id: &[u64]) -> (&'static str, Value) {
    let content = json!({
        "user_id": MALLORY, "device_id": device, "stream_id": stream_id, "prev_id": prev_id,
        "keys": keys(MALLORY, device),
    });
    ("m.device_list_update", content)
}

#[tokio::test(start_paused = true)]
async fn of_what_a_server_answers_only_what_was_asked_for_is_believed() {
    let world = World::new().await;
    world.has_devices(
        5,
        &[
            ("GOOD", keys(MALLORY, "GOOD")),
            ("OTHER", keys(MALLORY, "ANOTHER")),
            ("ALICE", keys("@alice:here.example", "ALICE")),
            ("", keys(MALLORY, "")),
            ("NONE", Value::Null),
        ],
    );
    let answer = world.query(MALLORY).await;
    assert_eq!(device_ids(&answer), ["GOOD"]);
    assert_eq!(answer["device_keys"].as_object().unwrap().len(), 1);

    // Somebody with whom no room is shared; what is said of others is passed over.
    let body = json!({
        "device_keys": {
            "@eve:peer.example": { "E": keys("@eve:peer.example", "E"), "X": keys(MALLORY, "X") },
            "@alice:here.example": { "A": keys("@alice:here.example", "A") },
            "not an id": {},
        },
        "master_keys": {
            "@eve:peer.example": { "user_id": "@alice:here.example", "usage": ["master"] },
            "@alice:here.example": { "user_id": "@alice:here.example", "usage": ["master"] },
        },
        "user_signing_keys": { "@eve:peer.example": {} },
    });
    let path = "/_matrix/federation/v1/user/keys/query";
    world.peer.instead(path, 200, body);
    let answer = world.query("@eve:peer.example").await;
    let known = answer["device_keys"].as_object().unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(
        known["@eve:peer.example"],
        json!({ "E": keys("@eve:peer.example", "E") })
    );
    assert_eq!(answer["master_keys"], Value::Null);
    assert_eq!(answer["user_signing_keys"], Value::Null);

    let key = json!({ "key": "k", "signatures": {} });
    let body = json!({ "one_time_keys": {
        MALLORY: { "A": { "bad:1": key, "alg:2": key }, "B": { "bad:1": key }, "C": { "alg:1": key } },
        "@alice:here.example": { "A": { "alg:1": key } },
    } });
    let path = "/_matrix/federation/v1/user/keys/claim";
    world.peer.instead(path, 200, body);
    let body = json!({ "one_time_keys": { MALLORY: { "A": "alg", "B": "alg" } } });
    let path = format!("{V3}/keys/claim");
    let token = Some(&*world.alice.token);
    let answer = world.here.post(&path, token, body).await.ok();
    let expected = json!({ MALLORY: { "A": { "alg:2": key } } });
    assert_eq!(answer["one_time_keys"], expected);

    let wrong = json!({ "user_id": "@eve:peer.example", "stream_id": 9, "devices": [] });
    let path = "/_matrix/federation/v1/user/devices/";
    world.peer.instead(path, 200, wrong);
    world.tell("gap", &[update("X", 99, &[98])]).await;
    let mut since = world.token().await;
    let refused = async || world.query(MALLORY).await["failures"].is_object();
    while !refused().await {
        world.until_told(&mut since, |_| true).await;
    }
    assert_eq!(device_ids(&world.query(MALLORY).await), ["GOOD"]);
}

#[tokio::test(start_paused = true)]
async fn updates_out_of_sequence_lead_to_one_fetch() {
    let world = World::new().await;
    world.has_devices(5, &[("A", keys(MALLORY, "A"))]);
    assert_eq!(device_ids(&world.query(MALLORY).await), ["A"]);
    assert_eq!(device_ids(&world.query(MALLORY).await), ["A"]);
    assert_eq!(world.asked_for_devices(), 1);
    let mut since = world.token().await;
    let changed = |told: &Value| told["device_lists"]["changed"] == json!([MALLORY]);
    world.tell("1", &[update("B", 6, &[5])]).await;
    world.until_told(&mut since, changed).await;
    assert_eq!(device_ids(&world.query(MALLORY).await), ["A", "B"]);
    assert_eq!(world.asked_for_devices(), 0);
    // A repetition in another transaction, then a gap.
    world.has_devices(9, &[("A", keys(MALLORY, "A")), ("D", keys(MALLORY, "D"))]);
    world.tell("2", &[update("B", 6, &[5])]).await;
    world
        .tell("3", &[update("C", 8, &[7]), update("D", 9, &[8])])
        .await;
    world.until_told(&mut since, changed).await;
    let fetched = async || device_ids(&world.query(MALLORY).await) == ["A", "D"];
    while !fetched().await {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let asked = world.asked_for_devices();
    assert!((1..=3).contains(&asked), "{asked}");
    // What is of a list that nobody follows is not kept.
    let of_eve = json!({
        "user_id": "@eve:peer.example", "device_id": "E", "stream_id": 1, "prev_id": [],
        "keys": keys("@eve:peer.example", "E"),
    });
    world.tell("4", &[("m.device_list_update", of_eve)]).await;
    world.tell("5", &[update("E", 10, &[9])]).await;
    world.until_told(&mut since, changed).await;
    let users = &world.here.homeserver.components().users;
    let eve: OwnedUserId = "@eve:peer.example".try_into().unwrap();
    assert_eq!(users.known_number(&eve).await.unwrap(), None);
    let stale = users.remote_lists.stale(UserNumber(0), 9).await.unwrap();
    assert!(stale.is_empty());
}

#[tokio::test(start_paused = true)]
async fn messages_to_devices_are_there_when_their_transaction_is_answered() {
    let world = World::new().await;
    let since = world.token().await;
    for number in 0..20 {
        let content = json!({
            "sender": MALLORY, "type": "m.dummy", "message_id": number.to_string(),
            "messages": { "@alice:here.example": { "*": { "n": number } } },
        });
        world
            .tell(&format!("{number}"), &[("m.direct_to_device", content)])
            .await;
        let path = format!("{V3}/sync?timeout=0&since={since}");
        let told = world.here.get(&path, Some(&world.alice.token)).await.ok();
        let messages = told["to_device"]["events"].as_array().map(Vec::len);
        assert_eq!(messages, Some(number + 1), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_receipts_and_typing_arrive_over_the_wire_and_floods_leave_nothing() {
    let world = World::new().await;
    let mut since = world.token().await;
    let said = world.last().await;
    let message = |id: &str, to: Value| {
        let content = json!({
            "sender": MALLORY, "type": "m.dummy", "message_id": id, "messages": to,
        });
        ("m.direct_to_device", content)
    };
    let to_alice = json!({ "@alice:here.example": { "*": { "n": 1 } } });
    let to_nobody: serde_json::Map<_, _> = (0..900)
        .map(|n| (format!("@u{n}:here.example"), json!({ "*": {} })))
        .collect();
    let receipt = json!({ world.room.as_str(): { "m.read": {
        MALLORY: { "event_ids": [said], "data": { "ts": 7 } },
        "@alice:here.example": { "event_ids": [said], "data": { "ts": 8 } },
        "@eve:peer.example": { "event_ids": [said], "data": { "ts": 9 } },
    } } });
    let typing = json!({ "room_id": world.room, "user_id": MALLORY, "typing": true });
    let edus = [
        message("1", to_alice.clone()),
        message("1", to_alice.clone()),
        message("2", to_nobody.into()),
        ("m.receipt", receipt),
        ("m.typing", typing),
    ];
    world.tell("1", &edus).await;
    world.tell("2", &[message("1", to_alice)]).await;
    let has_message = |told: &Value| told["to_device"]["events"].is_array();
    let room = world.room.clone();
    let ephemeral = |told: &Value| told["rooms"]["join"][room.as_str()]["ephemeral"].clone();
    let (mut messages, mut seen) = (Vec::new(), Vec::new());
    while messages.is_empty() || seen.len() < 2 {
        let told = world
            .until_told(&mut since, |told| {
                has_message(told) || ephemeral(told).is_object()
            })
            .await;
        messages.extend(
            told["to_device"]["events"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
        let events = ephemeral(&told);
        seen.extend(events["events"].as_array().cloned().unwrap_or_default());
    }
    let expected = json!({ "sender": MALLORY, "type": "m.dummy", "content": { "n": 1 } });
    assert_eq!(messages, [expected]);
    let read = seen.iter().find(|event| event["type"] == "m.receipt");
    let expected = json!({ said.as_str(): { "m.read": { MALLORY: { "ts": 7 } } } });
    assert_eq!(read.unwrap()["content"], expected);
    let typing = seen.iter().find(|event| event["type"] == "m.typing");
    assert_eq!(typing.unwrap()["content"]["user_ids"], json!([MALLORY]));

    // A flood of invented users leaves none behind.
    let invented = |n: usize| format!("@invented{n}:peer.example");
    let presence: Vec<_> = (0..500)
        .map(|n| json!({ "user_id": invented(n), "presence": "online", "last_active_ago": 1 }))
        .collect();
    let mut edus = vec![("m.presence", json!({ "push": presence }))];
    for n in 0..50 {
        let typing = json!({ "room_id": world.room, "user_id": invented(n), "typing": true });
        edus.push(("m.typing", typing));
    }
    world.tell("3", &edus).await;
    let told = json!({ "@alice:here.example": { "*": { "n": 2 } } });
    world.tell("4", &[message("3", told)]).await;
    world.until_told(&mut since, has_message).await;
    let users = &world.here.homeserver.components().users;
    for n in [0, 1, 49, 499] {
        let invented = OwnedUserId::try_from(invented(n)).unwrap();
        assert_eq!(users.known_number(&invented).await.unwrap(), None);
    }
    let room = world.here.homeserver.components().rooms.room(&world.room);
    let room = room.await.unwrap().unwrap();
    assert_eq!(users.typing.in_room(room.number.0), [MALLORY]);
}
