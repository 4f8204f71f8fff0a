//! Two servers and what is waited for between them.

use std::{
    panic::AssertUnwindSafe,
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::LocalBoxFuture, stream};
use homeserver_tests::{Client, Federation, Server, encode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

/// What was done on one server shows on the other within this time, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often a server is asked again.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Which program a server runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Ours,
    Synapse,
}

impl Kind {
    pub(super) async fn start(self, federation: &Federation) -> Server {
        let control = std::env::var_os("HOMESERVER_FEDERATION_CONTROL").is_some();
        match self {
            Self::Ours if !control => federation.ours().await,
            _ => federation.synapse().await,
        }
    }
}

/// A scenario and its name.
pub(super) type Scenario = (&'static str, fn(Stage) -> LocalBoxFuture<'static, ()>);

macro_rules! scenarios {
    ($($scenario:path),* $(,)?) => {
        &[$((stringify!($scenario), |stage| Box::pin($scenario(stage)))),*]
    };
}
pub(super) use scenarios;

/// Two servers; rooms are made on the near one, in one version.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) near: Arc<Server>,
    pub(super) far: Arc<Server>,
    pub(super) version: &'static str,
    _federation: Arc<Federation>,
}

impl Stage {
    pub(super) async fn of(near: Kind, far: Kind) -> Self {
        let federation = Federation::new();
        let (near, far) = tokio::join!(near.start(&federation), far.start(&federation));
        Self {
            near: Arc::new(near),
            far: Arc::new(far),
            version: "12",
            _federation: Arc::new(federation),
        }
    }

    /// The same servers, the other way round.
    pub(super) fn turned(&self) -> Self {
        Self {
            near: Arc::clone(&self.far),
            far: Arc::clone(&self.near),
            ..self.clone()
        }
    }

    pub(super) fn in_version(&self, version: &'static str) -> Self {
        Self {
            version,
            ..self.clone()
        }
    }

    /// Plays scenarios, some at a time, and gives whether all went well.
    pub(super) async fn play(&self, scenarios: &[Scenario], at_once: usize) -> bool {
        let wanted = std::env::var("HOMESERVER_SCENARIO").unwrap_or_default();
        let played = scenarios
            .iter()
            .filter(|(name, _)| name.contains(&wanted))
            .map(|(name, scenario)| async move {
                let name = format!(
                    "{name} in version {} from {} to {}",
                    self.version,
                    self.near.name(),
                    self.far.name()
                );
                let begun = Instant::now();
                let played = AssertUnwindSafe(scenario(self.clone())).catch_unwind();
                let well = played.await.is_ok();
                let word = if well { "ok" } else { "FAILED" };
                println!("{name}: {word} after {:.1?}", begun.elapsed());
                well
            });
        let played = stream::iter(played).buffer_unordered(at_once);
        // Every one is played, whatever came of the others.
        played.fold(true, async |all, well| all && well).await
    }

    /// Fresh users: one of the near server, one of the far one.
    pub(super) async fn users(&self) -> (Client, Client) {
        tokio::join!(user(&self.near, "alice"), user(&self.far, "bob"))
    }

    /// A room of `alice`; `more` is added to what is asked of the server.
    pub(super) async fn room(&self, alice: &Client, more: Value) -> String {
        let mut body = json!({ "room_version": self.version });
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        alice.create_room(body).await
    }

    /// A public room of the near server that both are in.
    pub(super) async fn shared_room(&self, alice: &Client, bob: &Client) -> String {
        let room = self.room(alice, json!({ "preset": "public_chat" })).await;
        bob.join_via(&room, self.near.name()).await.ok();
        is_member(alice, &room, bob, "join").await;
        room
    }
}

/// Fails unless it went well; what the servers logged is kept then.
pub(super) fn judge(servers: &[&Server], well: bool) {
    let keep = |server: &&Server| {
        let name = server.name().replace(':', "-");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.log"));
        std::fs::write(&path, server.log()).expect("the log must be kept");
        path.display().to_string()
    };
    if !well {
        let logs: Vec<_> = servers.iter().map(keep).collect();
        panic!(
            "see above, and what the servers logged:\n{}",
            logs.join("\n")
        );
    }
}

/// A name nobody has yet.
pub(super) fn unique(stem: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{stem}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A fresh user.
pub(super) async fn user(server: &Server, stem: &str) -> Client {
    server.client().register(&unique(stem)).await
}

/// Asks until there is an answer.
pub(super) async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, ask).await
}

/// Asks until there is an answer, for another time than usual.
pub(super) async fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            sleep(ASK_EVERY).await;
        }
    };
    let asked = timeout(patience, asking).await;
    asked.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Waits until a user sees another one's membership so.
pub(super) async fn is_member(reader: &Client, room: &str, user: &Client, membership: &str) {
    let mut last = Value::Null;
    let what = format!("{} sees that {} is {membership}", reader.user, user.user);
    eventually(&what, async || {
        let answer = reader.state(room, "m.room.member", &user.user).await;
        last = answer.body;
        (last["membership"] == membership).then_some(())
    })
    .await;
}

/// Waits until a user can read an event, and gives it.
pub(super) async fn sees(reader: &Client, room: &str, event: &str) -> Value {
    let path = format!(
        "/_matrix/client/v3/rooms/{}/event/{}",
        encode(room),
        encode(event)
    );
    let what = format!("{} sees {event}", reader.user);
    eventually(&what, async || {
        let answer = reader.get(&path).await;
        (answer.status == 200).then_some(answer.body)
    })
    .await
}

/// Each says something that the other one sees.
pub(super) async fn talk(alice: &Client, bob: &Client, room: &str) {
    for (speaker, listener) in [(alice, bob), (bob, alice)] {
        let event = speaker.say(room, "a word").await;
        assert_eq!(
            sees(listener, room, &event).await["content"]["body"],
            "a word"
        );
    }
}

/// What a client hears from /sync.
pub(super) struct Feed {
    client: Client,
    since: String,
    heard: Vec<Value>,
}

impl Feed {
    /// From now on.
    pub(super) async fn of(client: &Client) -> Self {
        let first = client.sync("timeout=0").await;
        Self {
            client: client.clone(),
            since: next(&first),
            heard: vec![first],
        }
    }

    /// Forgets what was heard.
    pub(super) fn forget(&mut self) {
        self.heard.clear();
    }

    /// Waits for an answer in which something is found.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        mut find: impl FnMut(&Value) -> Option<T>,
    ) -> T {
        if let Some(found) = self.heard.iter().find_map(&mut find) {
            return found;
        }
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let query = format!("timeout=2000&since={}", encode(&self.since));
            let heard = self.client.sync(&query).await;
            self.since = next(&heard);
            let found = find(&heard);
            self.heard.push(heard);
            if let Some(found) = found {
                return found;
            }
        }
        panic!("{} never heard: {what}", self.client.user);
    }

    /// Waits until a room is in a section: `invite`, `join`, `knock`, `leave`.
    pub(super) async fn room(&mut self, section: &str, room: &str) -> Value {
        let what = format!("{room} under {section}");
        self.until(&what, |sync| sync["rooms"][section].get(room).cloned())
            .await
    }

    /// Waits for an ephemeral event of a room.
    pub(super) async fn ephemeral(&mut self, room: &str, is: impl Fn(&Value) -> bool) {
        self.until("an ephemeral event", |sync| {
            let events = &sync["rooms"]["join"][room]["ephemeral"]["events"];
            events.as_array()?.iter().any(&is).then_some(())
        })
        .await;
    }
}

fn next(sync: &Value) -> String {
    sync["next_batch"].as_str().expect("a token").to_owned()
}

/// All events of a room that a user can page to, oldest first.
pub(super) async fn history(reader: &Client, room: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut from = String::new();
    loop {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100{from}",
            encode(room)
        );
        let page = reader.get(&path).await.ok();
        events.extend(page["chunk"].as_array().expect("a chunk").iter().cloned());
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", encode(end)),
            None => break,
        }
    }
    events.reverse();
    events
}

/// The bodies of one sender's messages in a history.
pub(super) fn bodies_of(history: &[Value], sender: &Client) -> Vec<String> {
    let said = history
        .iter()
        .filter(|event| event["type"] == "m.room.message" && event["sender"] == sender.user);
    said.filter_map(|event| event["content"]["body"].as_str())
        .map(str::to_owned)
        .collect()
}

/// The state of a room as a user's server has it: what is the event of each key.
pub(super) async fn state_of(reader: &Client, room: &str) -> Vec<(String, String, String)> {
    let path = format!("/_matrix/client/v3/rooms/{}/state", encode(room));
    let state = reader.get(&path).await.ok();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = state.as_array().expect("a list of events").iter();
    let mut keys: Vec<_> = events
        .map(|event| {
            (
                text(&event["type"]),
                text(&event["state_key"]),
                text(&event["event_id"]),
            )
        })
        .collect();
    keys.sort();
    keys
}

/// Waits until the servers of all readers have the same state of a room.
pub(super) async fn agree(readers: &[&Client], room: &str) {
    let mut states = Vec::new();
    let agreeing = async {
        loop {
            states.clear();
            for reader in readers {
                states.push(state_of(reader, room).await);
            }
            if states.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            sleep(ASK_EVERY).await;
        }
    };
    let agreed = timeout(PATIENCE, agreeing).await;
    assert!(agreed.is_ok(), "they do not agree: {states:#?}");
}
