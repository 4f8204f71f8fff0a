//! Two users of two servers who share a room: all that they tell each other beside events, over the
//! wire and by the clients' API alone.

use std::time::Duration;

use super::{
    users::{claim, device_keys, devices_of, query, upload},
    *,
};

const V3: &str = "/_matrix/client/v3";

/// A user on a server, and what their client was told.
struct Client<'a> {
    server: &'a Fresh,
    who: LoggedIn,
    since: String,
    /// Everything that `/sync` told, the newest last.
    told: Vec<Value>,
}

impl<'a> Client<'a> {
    async fn new(server: &'a Fresh, name: &str) -> Self {
        let who = server.register(name).await;
        upload(server, &who, 5).await;
        let mut client = Self {
            server,
            who,
            since: String::new(),
            told: Vec::new(),
        };
        client.sync().await;
        client
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let path = format!("{V3}/{path}");
        self.server
            .post(&path, Some(&self.who.token), body)
            .await
            .ok()
    }

    async fn put(&self, path: &str, body: Value) -> Value {
        let path = format!("{V3}/{path}");
        self.server
            .put(&path, Some(&self.who.token), body)
            .await
            .ok()
    }

    async fn sync(&mut self) {
        let since = &self.since;
        let path = format!("{V3}/sync?timeout=50&since={since}");
        let told = self.server.get(&path, Some(&self.who.token)).await.ok();
        told["next_batch"]
            .as_str()
            .unwrap()
            .clone_into(&mut self.since);
        self.told.push(told);
    }

    /// Syncs until something is told that `find` finds.
    async fn until<T>(&mut self, what: &str, find: impl Fn(&Value) -> Option<T>) -> T {
        for _ in 0..1_000 {
            if let Some(found) = self.told.iter().rev().find_map(&find) {
                return found;
            }
            self.sync().await;
        }
        panic!("{} was never told of {what}", self.who.user);
    }

    /// Forgets what was told.
    fn forget(&mut self) {
        self.told.clear();
    }

    async fn until_changed(&mut self, user: &str) {
        let changed = |told: &Value| {
            let changed = told["device_lists"]["changed"].as_array()?;
            changed.iter().any(|one| one == user).then_some(())
        };
        self.until("changed devices", changed).await;
    }

    async fn until_message(&mut self) -> Value {
        let message = |told: &Value| told["to_device"]["events"].as_array()?.first().cloned();
        self.until("a message", message).await
    }

    async fn until_ephemeral(&mut self, room: &str, kind: &str) -> Value {
        let find = |told: &Value| {
            let events = told["rooms"]["join"][room]["ephemeral"]["events"].as_array()?;
            let mut events = events.iter();
            Some(events.find(|event| event["type"] == kind)?["content"].clone())
        };
        self.until(kind, find).await
    }

    async fn tell(&self, to: &LoggedIn, id: &str, n: u64) {
        let path = format!("sendToDevice/m.dummy/{id}");
        let body = json!({ "messages": { &to.user: { &to.device: { "n": n } } } });
        self.put(&path, body).await;
    }
}

/// A room of Alice's that Bob, of another server, joins.
async fn meet(alice: &mut Client<'_>, bob: &mut Client<'_>) -> String {
    let made = alice
        .post("createRoom", json!({ "preset": "public_chat" }))
        .await;
    let room = made["room_id"].as_str().unwrap().to_owned();
    bob.post(&format!("join/{room}?server_name=a.example"), json!({}))
        .await;
    alice.until_changed(&bob.who.user).await;
    bob.until_changed(&alice.who.user).await;
    room
}

#[tokio::test(start_paused = true)]
async fn two_users_of_two_servers_exchange_keys_and_messages() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let there = join(&network, "bb.example").await;
    let mut alice = Client::new(&here, "alice").await;
    let mut bob = Client::new(&there, "bob").await;
    meet(&mut alice, &mut bob).await;
    for (one, other) in [(&alice, &bob), (&bob, &alice)] {
        let answer = query(one.server, &one.who, &other.who.user).await;
        let keys = &answer["device_keys"][&other.who.user][&other.who.device];
        assert_eq!(*keys, device_keys(&other.who, "e"));
        let claimed = claim(one.server, &one.who, &other.who).await;
        let keys = claimed["one_time_keys"][&other.who.user][&other.who.device].as_object();
        assert_eq!(keys.unwrap().len(), 1);
        one.tell(&other.who, "1", 1).await;
    }
    let from = |user: &str| json!({ "sender": user, "type": "m.dummy", "content": { "n": 1 } });
    assert_eq!(alice.until_message().await, from("@bob:bb.example"));
    assert_eq!(bob.until_message().await, from("@alice:a.example"));
}

#[tokio::test(start_paused = true)]
async fn two_users_of_two_servers_see_each_other_type_read_and_be_there() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let there = join(&network, "bb.example").await;
    let mut alice = Client::new(&here, "alice").await;
    let mut bob = Client::new(&there, "bob").await;
    let room = meet(&mut alice, &mut bob).await;
    let said = alice
        .put(
            &format!("rooms/{room}/send/m.room.message/1"),
            json!({ "body": "hello" }),
        )
        .await;
    let event = said["event_id"].as_str().unwrap().to_owned();
    let arrived = |told: &Value| {
        let events = told["rooms"]["join"][&room]["timeline"]["events"].as_array()?;
        events
            .iter()
            .any(|one| one["event_id"] == *event)
            .then_some(())
    };
    bob.until("the message", arrived).await;
    let path = format!("rooms/{room}/typing/{}", bob.who.user);
    bob.put(&path, json!({ "typing": true, "timeout": 20_000 }))
        .await;
    bob.post(&format!("rooms/{room}/receipt/m.read/{event}"), json!({}))
        .await;
    let path = format!("presence/{}/status", bob.who.user);
    let status = json!({ "presence": "online", "status_msg": "here" });
    bob.put(&path, status).await;
    let typing = alice.until_ephemeral(&room, "m.typing").await;
    assert_eq!(typing["user_ids"], json!([bob.who.user]));
    let read = alice.until_ephemeral(&room, "m.receipt").await;
    assert!(read[&event]["m.read"][&bob.who.user].is_object(), "{read}");
    let present = |told: &Value| {
        let events = told["presence"]["events"].as_array()?;
        let mut events = events.iter();
        events
            .find(|event| event["sender"] == *bob.who.user)
            .filter(|event| event["content"]["status_msg"] == "here")
            .map(drop)
    };
    alice.until("presence", present).await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_added_while_the_link_is_down_is_found_afterwards() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let there = join(&network, "bb.example").await;
    let mut alice = Client::new(&here, "alice").await;
    let mut bob = Client::new(&there, "bob").await;
    meet(&mut alice, &mut bob).await;
    query(&here, &alice.who, &bob.who.user).await;
    let cut = std::mem::take(&mut *network.routers.lock());
    let second = there.login("bob").await;
    upload(&there, &second, 1).await;
    alice.tell(&bob.who, "down", 2).await;
    alice.forget();
    bob.forget();
    // Long enough for the servers to have given up.
    for server in [&here, &there] {
        server.clock.advance(Duration::from_secs(30));
    }
    *network.routers.lock() = cut;
    for server in [&here, &there] {
        server.clock.advance(Duration::from_hours(2));
    }
    alice.until_changed(&bob.who.user).await;
    let both = async || {
        let answer = query(&here, &alice.who, &bob.who.user).await;
        devices_of(&answer, &bob.who.user).len() == 2
    };
    while !both().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bob.until_message().await["content"], json!({ "n": 2 }));
}
