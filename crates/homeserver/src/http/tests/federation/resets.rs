//! Events in old places, memberships that change quickly, and redactions: the state stays what the
//! rules make of it.

use axum::{Json, extract::Path as PathOf, routing};
use homeserver_events::{CanonicalObject, CanonicalValue, hash};

use super::{
    peer::{Peer, object, rules},
    resident::{World, client_path, encode},
    *,
};

/// A room with its world, and how many events were made.
struct Stage {
    world: World,
    room: String,
    version: &'static str,
    made: std::cell::Cell<u64>,
}

/// What an event of a user of the peer is made of.
struct New<'a> {
    by: &'a str,
    kind: &'a str,
    key: Option<&'a str>,
    content: Value,
    prev: &'a str,
    auth: Vec<String>,
}

impl Stage {
    async fn new(version: &'static str) -> Self {
        let world = World::new().await;
        Self {
            room: world.public_room(version).await,
            world,
            version,
            made: std::cell::Cell::default(),
        }
    }

    /// Joins a user of the peer. Gives the id of the event.
    async fn join(&self, name: &str) -> String {
        let user = self.world.peer.user(name);
        let (id, event) = self.world.made("join", &self.room, &user).await;
        self.world.send("join", &self.room, &id, &event).await.ok();
        id
    }

    /// The id of a state event.
    async fn state_id(&self, kind: &str, key: &str) -> String {
        let path = format!("{}/state", client_path(&self.room));
        let token = Some(&*self.world.alice.token);
        let state = self.world.here.get(&path, token).await.ok();
        let mut events = state.as_array().unwrap().iter();
        let event = events.find(|event| event["type"] == kind && event["state_key"] == key);
        event.unwrap()["event_id"].as_str().unwrap().to_owned()
    }

    /// The create event, where it is named, and these.
    async fn auth(&self, others: &[&str]) -> Vec<String> {
        let mut auth = Vec::new();
        if self.version != "12" {
            auth.push(self.state_id("m.room.create", "").await);
        }
        auth.extend(others.iter().map(|id| (*id).to_owned()));
        auth
    }

    fn event(&self, new: &New<'_>) -> Value {
        self.made.set(self.made.get() + 1);
        let references = |ids: &[String]| -> Value {
            if matches!(self.version, "1" | "2") {
                ids.iter().map(|id| json!([id, {}])).collect()
            } else {
                json!(ids)
            }
        };
        let mut event = json!({
            "room_id": self.room, "sender": self.world.peer.user(new.by), "type": new.kind,
            "content": new.content, "prev_events": references(&[new.prev.to_owned()]),
            "auth_events": references(&new.auth), "depth": 50 + self.made.get(),
            "origin_server_ts": START + 60_000 * self.made.get(),
        });
        if let Some(key) = new.key {
            event["state_key"] = json!(key);
        }
        event
    }

    /// Sends an event, and gives its id.
    async fn send(&self, new: &New<'_>) -> String {
        let (id, event) = self.world.peer.seal(&self.event(new), self.version);
        self.transact(&[&event]).await;
        id
    }

    async fn transact(&self, events: &[&Value]) -> Value {
        self.made.set(self.made.get() + 1);
        let path = format!("/_matrix/federation/v1/send/{}", self.made.get());
        let body = json!({ "pdus": events });
        self.world
            .peer
            .put(&self.world.here, &path, &body)
            .await
            .ok()["pdus"]
            .take()
    }

    /// An event as Alice sees it.
    async fn shown(&self, id: &str) -> Option<Value> {
        let path = format!("{}/event/{}", client_path(&self.room), encode(id));
        let token = Some(&*self.world.alice.token);
        let answer = self.world.here.get(&path, token).await;
        (answer.status == 200).then_some(answer.body)
    }

    async fn until(&self, id: &str) -> Value {
        let look = async {
            loop {
                if let Some(event) = self.shown(id).await {
                    return event;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let patience = std::time::Duration::from_mins(1);
        let found = tokio::time::timeout(patience, look).await;
        found.unwrap_or_else(|_| panic!("{id} does not arrive in version {}", self.version))
    }

    async fn say(&self, text: &str) -> String {
        let path = format!("{}/send/m.room.message/{text}", client_path(&self.room));
        let body = json!({ "msgtype": "m.text", "body": text });
        let token = Some(&*self.world.alice.token);
        let said = self.world.here.put(&path, token, body).await.ok();
        said["event_id"].as_str().unwrap().to_owned()
    }

    /// Alice gives levels to users.
    async fn levels(&self, users: &[(&str, u64)]) -> String {
        self.world
            .here
            .clock
            .advance(std::time::Duration::from_secs(1));
        let mut levels = self
            .world
            .state(&self.room, "m.room.power_levels", "")
            .await;
        // Whoever has 50 sets all of the state.
        levels["events"] = json!({});
        for (name, level) in users {
            levels["users"][self.world.peer.user(name)] = json!(level);
        }
        let set = self
            .world
            .set_state(&self.room, "m.room.power_levels", "", levels);
        set.await.ok()["event_id"].as_str().unwrap().to_owned()
    }

    async fn level(&self, name: &str) -> Value {
        let levels = self
            .world
            .state(&self.room, "m.room.power_levels", "")
            .await;
        levels["users"][self.world.peer.user(name)].clone()
    }
}

/// CVE-2025-49090, MSC4297's problem B: an event in an old place that names new power levels. The
/// rules of version 11 fall back to the first ones, those of version 12 do not.
#[tokio::test]
async fn an_event_in_an_old_place_brings_no_old_power_levels_back() {
    for version in ["11", "12"] {
        let stage = Stage::new(version).await;
        let bob = stage.join("bob").await;
        let charlie = stage.join("charlie").await;
        let first = stage.levels(&[("bob", 50)]).await;
        let mut levels = stage
            .world
            .state(&stage.room, "m.room.power_levels", "")
            .await;
        levels["users"][stage.world.peer.user("charlie")] = json!(50);
        let second = New {
            by: "bob",
            kind: "m.room.power_levels",
            key: Some(""),
            content: levels,
            prev: &first,
            auth: stage.auth(&[&first, &bob]).await,
        };
        let second = stage.send(&second).await;
        stage.until(&second).await;
        assert_eq!(stage.level("charlie").await, 50);
        let eve = stage.join("eve").await;
        let rules = stage.state_id("m.room.join_rules", "").await;
        let old = New {
            by: "eve",
            kind: "m.room.member",
            key: Some("@eve:peer.example"),
            content: json!({ "membership": "join", "displayname": "eve++" }),
            prev: &charlie,
            auth: stage.auth(&[&second, &eve, &rules]).await,
        };
        let old = stage.send(&old).await;
        stage.until(&old).await;
        let kept = version == "12";
        assert_eq!(stage.level("charlie").await == 50, kept, "{version}");
        assert_eq!(stage.level("bob").await == 50, kept, "{version}");
        let on = stage.say("on").await;
        stage.until(&on).await;
    }
}

/// Power that was taken back, from a place where it was there, against a ban and a level.
#[tokio::test]
async fn a_ban_and_a_level_stand_against_power_of_the_past() {
    for version in ["11", "12"] {
        let stage = Stage::new(version).await;
        let bob = stage.join("bob").await;
        let eve = stage.join("eve").await;
        let first = stage.levels(&[("bob", 50)]).await;
        let stale = stage
            .world
            .state(&stage.room, "m.room.power_levels", "")
            .await;
        let ban = json!({ "user_id": stage.world.peer.user("eve") });
        stage.levels(&[("bob", 0)]).await;
        stage.world.do_in(&stage.room, "ban", ban).await.ok();
        let rules = stage.state_id("m.room.join_rules", "").await;
        let mut stale = stale.clone();
        stale["users_default"] = json!(40);
        let topic = json!({ "topic": "mine" });
        let acts = [
            ("bob", "m.room.power_levels", "", stale, vec![&*first, &bob]),
            ("bob", "m.room.topic", "", topic, vec![&*first, &bob]),
            (
                "bob",
                "m.room.member",
                "@eve:peer.example",
                json!({ "membership": "leave" }),
                vec![&*first, &bob, &eve],
            ),
            (
                "eve",
                "m.room.member",
                "@eve:peer.example",
                json!({ "membership": "join", "displayname": "here" }),
                vec![&*first, &eve, &rules],
            ),
        ];
        for (by, kind, key, content, auth) in acts {
            let act = New {
                by,
                kind,
                key: Some(key),
                content,
                prev: &first,
                auth: stage.auth(&auth).await,
            };
            stage.send(&act).await;
            let on = stage.say(&format!("on{}", stage.made.get())).await;
            stage.until(&on).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let (world, room) = (&stage.world, &stage.room);
        let member = world
            .state(room, "m.room.member", "@eve:peer.example")
            .await;
        assert_eq!(member["membership"], "ban", "{version}");
        assert_eq!(stage.level("bob").await, 0, "{version}");
        let levels = world.state(room, "m.room.power_levels", "").await;
        assert_ne!(levels["users_default"], 40);
        let topic = world.state(room, "m.room.topic", "").await;
        assert_eq!(topic["errcode"], "M_NOT_FOUND");
    }
}

/// Users of two servers come and go quickly: in the end all three have the same state.
#[tokio::test]
async fn those_who_rejoin_quickly_are_in_the_room_on_all_servers() {
    let network = Arc::new(Network::default());
    let here = join(&network, "a.example").await;
    let alice = here.register("alice").await;
    let path = "/_matrix/client/v3/createRoom";
    let wish = json!({ "preset": "public_chat", "room_version": "11" });
    let made = here.post(path, Some(&alice.token), wish).await.ok();
    let room = made["room_id"].as_str().unwrap().to_owned();
    let mut users = Vec::new();
    for name in ["bb.example", "ccc.example"] {
        let there = join(&network, name).await;
        let who = there.register("zed").await;
        let path = format!("/_matrix/client/v3/join/{}?via=a.example", encode(&room));
        there.post(&path, Some(&who.token), json!({})).await.ok();
        users.push((there, who));
    }
    let rejoin = async |(there, who): &(Fresh, LoggedIn)| {
        for _ in 0..10 {
            there.clock.advance(std::time::Duration::from_millis(10));
            let leave = format!("{}/leave", client_path(&room));
            there.post(&leave, Some(&who.token), json!({})).await.ok();
            let join = format!("/_matrix/client/v3/join/{}?via=a.example", encode(&room));
            let look = async {
                while there.post(&join, Some(&who.token), json!({})).await.status != 200 {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            let patience = std::time::Duration::from_mins(1);
            tokio::time::timeout(patience, look).await.unwrap();
        }
    };
    tokio::join!(rejoin(&users[0]), rejoin(&users[1]));
    users.push((here, alice));
    let states = async || {
        let mut states = Vec::new();
        for (server, who) in &users {
            let path = format!("{}/state", client_path(&room));
            let state = server.get(&path, Some(&who.token)).await.body;
            let events = state.as_array().cloned().unwrap_or_default();
            let ids = events.iter().map(|event| event["event_id"].to_string());
            let members = events.iter().filter(|event| {
                event["type"] == "m.room.member" && event["content"]["membership"] == "join"
            });
            states.push((members.count(), ids.collect::<BTreeSet<_>>()));
        }
        states
    };
    let look = async {
        loop {
            let states = states().await;
            if states
                .iter()
                .all(|state| state.0 == 3 && *state == states[0])
            {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let patience = std::time::Duration::from_mins(1);
    let same = tokio::time::timeout(patience, look).await;
    assert!(same.is_ok(), "{:#?}", states().await);
}

/// CVE-2025-54315: in rooms whose id is the hash of their create event it is named by nothing else, and
/// there is no other.
#[tokio::test]
async fn a_room_named_by_its_create_event_has_no_other() {
    let stage = Stage::new("12").await;
    let bob = stage.join("bob").await;
    let levels = stage.state_id("m.room.power_levels", "").await;
    let create = stage.state_id("m.room.create", "").await;
    let said = |auth: &[&str]| New {
        by: "bob",
        kind: "m.room.message",
        key: None,
        content: json!({ "body": "x" }),
        prev: &bob,
        auth: auth.iter().map(|id| (*id).to_owned()).collect(),
    };
    let naming = stage.send(&said(&[&create, &levels, &bob])).await;
    let mut other = stage.event(&said(&[]));
    other["type"] = json!("m.room.create");
    other["state_key"] = json!("");
    other["content"] = json!({ "room_version": "12" });
    other["prev_events"] = json!([]);
    other.as_object_mut().unwrap().remove("room_id");
    let (id, other) = stage.world.peer.seal(&other, "12");
    let told = stage.transact(&[&other]).await;
    assert!(told[&id]["error"].is_string(), "{told}");
    // The same with the id of the room is no event of that version.
    let mut within = other.clone();
    within["room_id"] = json!(stage.room);
    let told = stage.transact(&[&within]).await;
    let taken = told
        .as_object()
        .unwrap()
        .values()
        .any(|told| *told == json!({}));
    assert!(!taken, "{told}");
    let good = stage.send(&said(&[&levels, &bob])).await;
    stage.until(&good).await;
    assert_eq!(stage.shown(&naming).await, None);
    assert_eq!(stage.state_id("m.room.create", "").await, create);
}

/// What a server that has a room without power levels knows of it.
struct Bare {
    room: String,
    create: String,
    rules: String,
    latest: Mutex<String>,
    state: Vec<Value>,
}

impl Bare {
    /// A room of Zed's with what is needed to join it.
    fn new(peer: &Peer) -> Self {
        let (room, zed) = ("!bare:bare.example", peer.user("zed"));
        let event = |kind: &str, key: &str, content: Value, prev: &[&str], auth: &[&str]| {
            let event = json!({
                "room_id": room, "sender": zed, "type": kind, "state_key": key,
                "content": content, "prev_events": prev, "auth_events": auth,
                "depth": prev.len() + auth.len() + 1, "origin_server_ts": START,
            });
            peer.seal(&event, "11")
        };
        let (create, created) = event(
            "m.room.create",
            "",
            json!({ "room_version": "11" }),
            &[],
            &[],
        );
        let join = json!({ "membership": "join" });
        let (zeds, joined) = event("m.room.member", &zed, join, &[&create], &[&create]);
        let public = json!({ "join_rule": "public" });
        let (rules, ruled) = event("m.room.join_rules", "", public, &[&zeds], &[&create, &zeds]);
        Self {
            room: room.to_owned(),
            create,
            rules: rules.clone(),
            latest: Mutex::new(rules),
            state: vec![created, joined, ruled],
        }
    }

    /// A state event of a user after all others.
    fn event(&self, user: &str, (kind, key): (&str, &str), content: &Value, by: &[&str]) -> Value {
        let mut auth = vec![&*self.create];
        auth.extend(by);
        json!({
            "room_id": self.room, "sender": user, "type": kind, "state_key": key,
            "content": content, "prev_events": [*self.latest.lock()], "auth_events": auth,
            "depth": 20, "origin_server_ts": START,
        })
    }

    /// Whoever asks may join.
    fn router(self: &Arc<Self>) -> Router {
        let base = "/_matrix/federation";
        let (making, taking) = (Arc::clone(self), Arc::clone(self));
        let make = async move |PathOf((_, user)): PathOf<(String, String)>| {
            let join = json!({ "membership": "join" });
            let event = making.event(&user, ("m.room.member", &user), &join, &[&making.rules]);
            Json(json!({ "room_version": "11", "event": event }))
        };
        let take = async move |PathOf((_, id)): PathOf<(String, String)>,
                               Json(join): Json<Value>| {
            *taking.latest.lock() = id;
            Json(json!({
                "origin": "bare.example", "members_omitted": false, "event": join,
                "state": taking.state, "auth_chain": [],
            }))
        };
        Router::new()
            .route(
                &format!("{base}/v1/make_join/{{room}}/{{user}}"),
                routing::get(make),
            )
            .route(
                &format!("{base}/v2/send_join/{{room}}/{{event}}"),
                routing::put(take),
            )
    }
}

/// CVE-2018-12423: without an event that says who may, the creator may, and nobody else.
#[tokio::test]
async fn without_power_levels_only_the_creator_rules() {
    let world = World::new().await;
    let peer = Peer::join(&world.network, "bare.example", Router::new());
    let bare = Arc::new(Bare::new(&peer));
    let keys = world.network.routers.lock()[&peer.name].clone();
    let router = keys.merge(bare.router());
    world
        .network
        .routers
        .lock()
        .insert(peer.name.clone(), router);
    let token = Some(&*world.alice.token);
    let path = format!(
        "/_matrix/client/v3/join/{}?via=bare.example",
        encode(&bare.room)
    );
    world.here.post(&path, token, json!({})).await.ok();
    let topic = json!({ "topic": "mine" });
    let set = world
        .set_state(&bare.room, "m.room.topic", "", topic.clone())
        .await;
    set.refused(403, "M_FORBIDDEN");

    let send = async |event: &Value, number: u64| {
        let (id, event) = peer.seal(event, "11");
        let path = format!("/_matrix/federation/v1/send/{number}");
        let body = json!({ "pdus": [event] });
        peer.put(&world.here, &path, &body).await.ok();
        id
    };
    let until = async |kind: &str, key: &str, field: &str, value: &str| {
        let look = async {
            while world.state(&bare.room, kind, key).await[field] != value {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let patience = std::time::Duration::from_mins(1);
        let found = tokio::time::timeout(patience, look).await;
        found.unwrap_or_else(|_| panic!("{kind} is not {value}"));
    };
    let (bob, zed) = (peer.user("bob"), peer.user("zed"));
    let join = json!({ "membership": "join" });
    let join = bare.event(&bob, ("m.room.member", &bob), &join, &[&bare.rules]);
    let join = send(&join, 1).await;
    until("m.room.member", &bob, "membership", "join").await;
    *bare.latest.lock() = join.clone();
    let zeds = peer.sign(object(&bare.state[1]), rules("11")).0;
    let levels = json!({ "users": { &bob: 100 } });
    for (number, kind, content) in [
        (2, "m.room.topic", &topic),
        (3, "m.room.power_levels", &levels),
    ] {
        send(&bare.event(&bob, (kind, ""), content, &[&join]), number).await;
    }
    let own = json!({ "topic": "of the creator" });
    send(&bare.event(&zed, ("m.room.topic", ""), &own, &[&zeds]), 4).await;
    until("m.room.topic", "", "topic", "of the creator").await;
    let levels = world.state(&bare.room, "m.room.power_levels", "").await;
    assert_eq!(levels["errcode"], "M_NOT_FOUND");
}

fn redaction<'a>(stage: &Stage, of: &str, new: New<'a>) -> (New<'a>, Option<String>) {
    let in_content = matches!(stage.version, "11" | "12");
    let mut new = new;
    if in_content {
        new.content["redacts"] = json!(of);
    }
    (new, (!in_content).then(|| of.to_owned()))
}

impl Stage {
    /// Bob redacts something, and his server gives the redaction this id where events have one.
    async fn bob_redacts(
        &self,
        of: &str,
        (prev, auth): (&str, &[&str]),
        id: Option<&str>,
    ) -> String {
        let new = New {
            by: "bob",
            kind: "m.room.redaction",
            key: None,
            content: json!({}),
            prev,
            auth: self.auth(auth).await,
        };
        let (new, redacts) = redaction(self, of, new);
        let mut event = self.event(&new);
        if let Some(redacts) = redacts {
            event["redacts"] = json!(redacts);
        }
        let (id, event) = match id {
            Some(id) => seal_as(&self.world.peer, &event, (id, self.version)),
            None => self.world.peer.seal(&event, self.version),
        };
        self.transact(&[&event]).await;
        id
    }
}

/// Hashes and signs an event under an id of one's own choice, as the first versions have it.
fn seal_as(peer: &Peer, event: &Value, (id, version): (&str, &str)) -> (String, Value) {
    let mut event = object(event);
    event.insert("event_id".to_owned(), id.into());
    let content_hash = hash::encode_base64(hash::content_hash(&event));
    let hashes = CanonicalObject::from([("sha256".to_owned(), content_hash.into())]);
    event.insert("hashes".to_owned(), CanonicalValue::Object(hashes));
    peer.sign(event, rules(version))
}

/// Synapse 1.2.1: whose event may be redacted by another server.
#[tokio::test]
async fn a_server_redacts_its_own_events_only_unless_it_has_the_power() {
    for version in ["1", "2", "6", "11", "12"] {
        let stage = Stage::new(version).await;
        let bob = stage.join("bob").await;
        let levels = stage.state_id("m.room.power_levels", "").await;
        let said = stage.say("to_stay").await;
        let auth = [&*levels, &bob];
        stage.bob_redacts(&said, (&said, &auth), None).await;
        if matches!(version, "1" | "2") {
            // As if it were of the server that it is about.
            let id = format!("$forged{version}:here.example");
            stage.bob_redacts(&said, (&said, &auth), Some(&id)).await;
            // Of each other, and of itself.
            let (one, two) = ("$one:peer.example", "$two:peer.example");
            stage.bob_redacts(two, (&said, &auth), Some(one)).await;
            stage.bob_redacts(one, (one, &auth), Some(two)).await;
            let own = "$own:peer.example";
            stage.bob_redacts(own, (&said, &auth), Some(own)).await;
            stage.until(two).await;
        }
        let own = New {
            by: "bob",
            kind: "m.room.message",
            key: None,
            content: json!({ "body": "to go" }),
            prev: &said,
            auth: stage.auth(&auth).await,
        };
        let own = stage.send(&own).await;
        stage.until(&own).await;
        let redaction = stage.bob_redacts(&own, (&own, &auth), None).await;
        stage.until(&redaction).await;
        let shown = stage.until(&own).await;
        assert_eq!(shown["content"], json!({}), "{version}");
        let shown = stage.until(&said).await;
        assert_eq!(shown["content"]["body"], "to_stay", "{version}");
        assert!(
            shown["unsigned"].get("redacted_because").is_none(),
            "{version}"
        );
        stage.say("on").await;
        // Every way of reading comes to an end.
        let path = format!("{}/messages?dir=b&limit=50", client_path(&stage.room));
        stage
            .world
            .here
            .get(&path, Some(&stage.world.alice.token))
            .await
            .ok();
    }
}

/// Synapse 1.2.0: a create event that is redacted makes no other room of its room.
#[tokio::test]
async fn redacting_the_create_event_changes_no_version_and_no_rule() {
    for version in ["1", "3", "6", "9", "10", "11", "12"] {
        let stage = Stage::new(version).await;
        let bob = stage.join("bob").await;
        let create = stage.state_id("m.room.create", "").await;
        let before = stage.world.state(&stage.room, "m.room.create", "").await;
        let levels = stage.levels(&[("bob", 100)]).await;
        let auth = [&*levels, &bob];
        let redaction = stage.bob_redacts(&create, (&levels, &auth), None).await;
        let said = New {
            by: "bob",
            kind: "m.room.message",
            key: None,
            content: json!({ "body": "after it" }),
            prev: &redaction,
            auth: stage.auth(&auth).await,
        };
        let said = stage.send(&said).await;
        stage.until(&said).await;
        let after = stage.world.state(&stage.room, "m.room.create", "").await;
        assert_eq!(after["room_version"], before["room_version"], "{version}");
        assert_eq!(after["creator"], before["creator"], "{version}");
        let carol = stage.world.peer.user("carol");
        let made = stage.world.make("join", &stage.room, &carol).await.ok();
        assert_eq!(made["room_version"], version);
        // Nobody is let in or out by it.
        stage.join("carol").await;
        stage.say("on").await;
    }
}
