//! What happens at one homeserver arrives at another, by itself.

use std::time::Duration;

use super::{
    history::{Shared, ask},
    *,
};

const V3: &str = "/_matrix/client/v3";

/// How long something that happens by itself is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let look = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap();
}

async fn send_to_device(from: &Fresh, sender: &LoggedIn, to: &str, text: &str) {
    let path = format!("{V3}/sendToDevice/m.test/{text}");
    let body = json!({ "messages": { to: { "*": { "text": text } } } });
    from.put(&path, Some(&sender.token), body).await.ok();
}

/// The messages that wait for a device.
async fn texts(server: &Fresh, user: &LoggedIn) -> Vec<String> {
    let path = format!("{V3}/sync?timeout=0");
    let told = server.get(&path, Some(&user.token)).await.ok();
    let events = told["to_device"]["events"].as_array().cloned();
    let events = events.unwrap_or_default().into_iter();
    let text = |event: Value| event["content"]["text"].as_str().unwrap().to_owned();
    events.map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn messages_to_devices_arrive_once_and_in_order_also_after_an_outage() {
    let shared = Shared::new("11").await;
    let bob = shared.there.register("bob").await;
    let (here, there) = (&shared.here, &shared.there);
    send_to_device(here, &shared.alice, &bob.user, "one").await;
    until(async || texts(there, &bob).await == ["one"]).await;

    let cut = shared.cut("bb.example");
    for text in ["two", "three"] {
        send_to_device(here, &shared.alice, &bob.user, text).await;
    }
    let name = server_name!("bb.example");
    until(async || here.homeserver.pending_for(name).failing.is_some()).await;
    shared.mend(cut);
    // It is asked again as soon as it shows that it is there.
    here.clock.advance(Duration::from_secs(5));
    let path = Path::v1("make_join").segment(&shared.room);
    let call = Call::get(path.segment("@bob:bb.example").query("ver", "11"));
    ask(there, call).await.unwrap();
    let all = ["one", "two", "three"];
    until(async || texts(there, &bob).await == all).await;
    until(async || here.homeserver.pending_for(name).is_nothing()).await;
    assert_eq!(texts(there, &bob).await, all);
}

/// Three homeservers in one room.
struct Three {
    network: Arc<Network>,
    servers: [Fresh; 3],
    users: [LoggedIn; 3],
    room: String,
}

impl Three {
    async fn new() -> Self {
        let network = Arc::new(Network::default());
        let names = ["a.example", "bb.example", "ccc.example"];
        let mut servers = Vec::new();
        let mut users = Vec::new();
        for (name, user) in names.iter().zip(["alice", "bob", "carol"]) {
            let server = join(&network, name).await;
            users.push(server.register(user).await);
            servers.push(server);
        }
        let create = json!({ "preset": "public_chat" });
        let path = format!("{V3}/createRoom");
        let created = servers[0].post(&path, Some(&users[0].token), create).await;
        let room = created.ok()["room_id"].as_str().unwrap().to_owned();
        for at in [1, 2] {
            let path = format!("{V3}/join/{room}?via=a.example");
            let joined = servers[at].post(&path, Some(&users[at].token), json!({}));
            joined.await.ok();
        }
        Self {
            network,
            servers: servers.try_into().map_err(|_| ()).unwrap(),
            users: users.try_into().unwrap(),
            room,
        }
    }

    async fn put(&self, at: usize, path: &str, body: Value) -> Value {
        let path = format!("{V3}/rooms/{}/{path}", self.room);
        let done = self.servers[at].put(&path, Some(&self.users[at].token), body);
        done.await.ok()
    }

    async fn say(&self, at: usize, words: &str) -> Value {
        let body = json!({ "msgtype": "m.text", "body": words });
        self.put(at, &format!("send/m.room.message/{words}"), body)
            .await
    }

    /// What was said, as somebody sees it, oldest first.
    async fn heard(&self, at: usize) -> Vec<String> {
        let path = format!("{V3}/rooms/{}/messages?dir=b&limit=500", self.room);
        let page = self.servers[at].get(&path, Some(&self.users[at].token));
        let page = page.await.ok();
        let events = page["chunk"].as_array().unwrap().iter().rev();
        let said = events.filter(|event| event["type"] == "m.room.message");
        let words = said.map(|event| event["content"]["body"].as_str().unwrap().to_owned());
        words.collect()
    }

    async fn sync(&self, at: usize) -> Value {
        let path = format!("{V3}/sync?timeout=0");
        let told = self.servers[at].get(&path, Some(&self.users[at].token));
        told.await.ok()
    }

    /// What somebody is told of the room that is no event.
    async fn ephemeral(&self, at: usize, kind: &str) -> Value {
        let told = self.sync(at).await;
        let events = &told["rooms"]["join"][&self.room]["ephemeral"]["events"];
        let events = events.as_array().cloned().unwrap_or_default();
        let found = events.into_iter().find(|event| event["type"] == kind);
        found.map_or(Value::Null, |event| event["content"].clone())
    }

    fn cut(&self, name: &str) -> (OwnedServerName, Router) {
        let name = ServerName::parse(name).unwrap();
        let router = self.network.routers.lock().remove(&name).unwrap();
        (name, router)
    }
}

/// The words of one speaker, in the order in which somebody heard them.
fn of(heard: &[String], speaker: char) -> Vec<String> {
    let words = heard.iter().filter(|word| word.starts_with(speaker));
    words.cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn a_conversation_of_three_homeservers_is_whole_after_one_was_away() {
    let three = Three::new().await;
    let mut said = [Vec::new(), Vec::new()];
    let mut away = None;
    for number in 0..60 {
        match number {
            20 => away = Some(three.cut("bb.example")),
            40 => {
                let (name, router) = away.take().unwrap();
                three.network.routers.lock().insert(name, router);
            }
            _ => {}
        }
        three.say(0, &format!("a{number}")).await;
        three.say(2, &format!("c{number}")).await;
        said[0].push(format!("a{number}"));
        said[1].push(format!("c{number}"));
    }
    // It shows that it is there.
    for server in &three.servers {
        server.clock.advance(Duration::from_secs(5));
    }
    three.say(1, "b-back").await;
    let whole = |heard: &[String]| {
        let all = of(heard, 'a') == said[0] && of(heard, 'c') == said[1];
        all && heard.contains(&"b-back".to_owned())
    };
    for at in [0, 1, 2] {
        until(async || whole(&three.heard(at).await)).await;
        assert_eq!(three.heard(at).await.len(), 121, "each once");
    }
    for server in &three.servers {
        for name in ["a.example", "bb.example", "ccc.example"] {
            let name = ServerName::parse(name).unwrap();
            until(async || server.homeserver.pending_for(&name).is_nothing()).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_types_and_what_was_read_is_told_to_other_homeservers() {
    let three = Three::new().await;
    let alice = three.users[0].user.clone();
    let said = three.say(1, "b-hello").await["event_id"].clone();
    until(async || three.heard(0).await == ["b-hello"]).await;
    let typing = json!({ "typing": true, "timeout": 30_000 });
    three.put(0, &format!("typing/{alice}"), typing).await;
    let types = json!({ "user_ids": [alice] });
    for at in [1, 2] {
        until(async || three.ephemeral(at, "m.typing").await == types).await;
    }
    let event = said.as_str().unwrap();
    let path = format!("{V3}/rooms/{}/receipt/m.read/{event}", three.room);
    let read = three.servers[0].post(&path, Some(&three.users[0].token), json!({}));
    read.await.ok();
    for at in [1, 2] {
        until(async || {
            let receipts = three.ephemeral(at, "m.receipt").await;
            receipts[event]["m.read"][&alice].is_object()
        })
        .await;
    }
    let typing = json!({ "typing": false });
    three.put(0, &format!("typing/{alice}"), typing).await;
    until(async || {
        three.ephemeral(1, "m.typing").await["user_ids"]
            .get(0)
            .is_none()
    })
    .await;
}
