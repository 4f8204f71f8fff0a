//! Invites of another server, honest and not: what is signed, and what is shown.

use bytes::Bytes;
use homeserver_events::{Draft, Pdu, RoomVersion};
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::value::to_raw_value;

use super::{
    peer::{Peer, START, Servers},
    *,
};

const BLOCKING: &str = "m.invite_permission_config";

struct World {
    here: Fresh,
    peer: Arc<Peer>,
    alice: LoggedIn,
}

/// An invite to be made, and the request around it.
struct Made {
    version: &'static str,
    room: String,
    sender: &'static str,
    target: &'static str,
    kind: &'static str,
    content: Value,
    state: Value,
}

impl Default for Made {
    fn default() -> Self {
        let create = json!({
            "type": "m.room.create", "state_key": "", "sender": "@zed:peer.example",
            "content": { "room_version": "11" },
        });
        Self {
            version: "11",
            room: "!r:peer.example".to_owned(),
            sender: "@zed:peer.example",
            target: "@alice:here.example",
            kind: "m.room.member",
            content: json!({ "membership": "invite" }),
            state: json!([create]),
        }
    }
}

impl World {
    async fn new() -> Self {
        let servers = Arc::new(Servers::default());
        let peer = servers.add("peer.example", 1);
        let mut config = Config {
            server_name: ruma::owned_server_name!("here.example"),
            ..Config::default()
        };
        config.registration.mode = RegistrationMode::Open;
        config.rate_limits.enabled = false;
        let clock = Arc::new(ManualClock::new(START));
        let homeserver = Homeserver::configured(config)
            .engine(Arc::new(MemoryEngine::new()))
            .transport(servers as _)
            .runtime(Runtime::simulated(Arc::clone(&clock), 5))
            .open()
            .await
            .unwrap();
        let here = Fresh {
            router: homeserver.router(),
            homeserver,
            clock,
        };
        let alice = here.register("alice").await;
        Self { here, peer, alice }
    }

    /// An event signed by the peer, whoever it is of.
    fn seal(&self, made: &Made) -> Pdu {
        let draft = Draft {
            room_id: Some(OwnedRoomId::try_from(&*made.room).unwrap()),
            sender: OwnedUserId::try_from(made.sender).unwrap(),
            event_type: made.kind.to_owned(),
            state_key: Some(made.target.to_owned()),
            content: to_raw_value(&made.content).unwrap(),
            origin_server_ts: START,
            depth: 5,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            redacts: None,
        };
        let server = draft.sender.server_name().to_owned();
        let rules = RoomVersion::parse(made.version).unwrap().rules();
        draft.seal(rules, &server, &self.peer.key).unwrap()
    }

    async fn put(&self, path: &str, body: &Value) -> Answer {
        let body = Bytes::from(body.to_string());
        self.peer.ask(&self.here, Method::PUT, path, body).await
    }

    /// Sends an invite of the second version, changed at the last moment.
    async fn invite(&self, made: &Made, change: impl FnOnce(&mut String, &mut Value)) -> Answer {
        let pdu = self.seal(made);
        let event: Value = serde_json::from_slice(pdu.json()).unwrap();
        let mut path = format!(
            "/_matrix/federation/v2/invite/{}/{}",
            made.room,
            pdu.event_id().as_str().replace('/', "%2F")
        );
        let mut body = json!({
            "room_version": made.version, "event": event, "invite_room_state": made.state,
        });
        change(&mut path, &mut body);
        self.put(&path, &body).await
    }

    async fn invites(&self) -> Value {
        let path = "/_matrix/client/v3/sync?timeout=0";
        let synced = self.here.get(path, Some(&self.alice.token)).await.ok();
        synced["rooms"]["invite"].clone()
    }
}

#[tokio::test]
async fn an_invite_comes_back_with_both_signatures_and_is_shown_once() {
    let world = World::new().await;
    for _ in 0..2 {
        let event = world.invite(&Made::default(), |_, _| {}).await.ok()["event"].take();
        let signatures = event["signatures"].as_object().unwrap();
        let by: Vec<_> = signatures.keys().collect();
        assert_eq!(by, ["here.example", "peer.example"]);
        let told = world.invites().await;
        let told = &told["!r:peer.example"]["invite_state"]["events"];
        assert_eq!(told.as_array().unwrap().len(), 2);
    }
    // The first version, for rooms of the first two.
    let made = Made {
        version: "1",
        room: "!old:peer.example".to_owned(),
        ..Made::default()
    };
    let pdu = world.seal(&made);
    let mut event: Value = serde_json::from_slice(pdu.json()).unwrap();
    event["unsigned"] = json!({ "invite_room_state": [] });
    let id = pdu.event_id();
    let path = format!("/_matrix/federation/v1/invite/!old:peer.example/{id}");
    let answer = world.put(&path, &event).await.ok();
    assert_eq!(answer[0], 200);
    assert!(answer[1]["event"]["signatures"]["here.example"].is_object());
    assert!(world.invites().await["!old:peer.example"].is_object());
}

#[tokio::test]
async fn nothing_but_an_invite_of_the_senders_server_is_signed() {
    let world = World::new().await;
    let membership = |word: &str| json!({ "membership": word });
    let wrong = [
        Made {
            content: membership("leave"),
            ..Made::default()
        },
        Made {
            content: membership("ban"),
            ..Made::default()
        },
        Made {
            content: membership("join"),
            ..Made::default()
        },
        Made {
            content: json!({}),
            ..Made::default()
        },
        Made {
            kind: "m.room.power_levels",
            ..Made::default()
        },
        Made {
            sender: "@zed:other.example",
            ..Made::default()
        },
        Made {
            target: "@bob:peer.example",
            ..Made::default()
        },
        Made {
            target: "here.example",
            ..Made::default()
        },
    ];
    for made in &wrong {
        let answer = world.invite(made, |_, _| {}).await;
        answer.refused(400, "M_INVALID_PARAM");
    }
    let made = Made::default();
    let changed: [fn(&mut String, &mut Value); 8] = [
        |path, _| *path = path.replace("!r:", "!s:"),
        |path, _| *path = path.replace("/$", "/$x"),
        |_, body| body["event"]["signatures"] = json!({}),
        |_, body| body["event"]["content"]["reason"] = json!("added"),
        |_, body| body["event"]["sender"] = json!("@yan:peer.example"),
        |_, body| body["event"]["auth_events"] = json!(1),
        |_, body| body["room_version"] = json!("10"),
        |_, body| body["invite_room_state"] = json!(vec![json!({}); 200]),
    ];
    for (number, change) in changed.into_iter().enumerate() {
        let answer = world.invite(&made, change).await;
        assert_eq!(answer.status, 400, "{number}: {}", answer.body);
        answer.refused(400, "M_INVALID_PARAM");
    }
    let unknown = |_: &mut String, body: &mut Value| body["room_version"] = json!("org.example.x");
    let answer = world.invite(&made, unknown).await;
    answer.refused(400, "M_INCOMPATIBLE_ROOM_VERSION");
    let nobody = Made {
        target: "@nobody:here.example",
        ..Made::default()
    };
    world
        .invite(&nobody, |_, _| {})
        .await
        .refused(403, "M_FORBIDDEN");
    assert_eq!(world.invites().await, Value::Null);

    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/{BLOCKING}",
        world.alice.user
    );
    let block = json!({ "default_action": "block" });
    world
        .here
        .put(&path, Some(&world.alice.token), block)
        .await
        .ok();
    world
        .invite(&made, |_, _| {})
        .await
        .refused(403, "M_INVITE_BLOCKED");
    assert_eq!(world.invites().await, Value::Null);
}

#[tokio::test]
async fn the_state_with_an_invite_names_the_room_where_ids_are_hashes() {
    let world = World::new().await;
    let create = |topic: &str| {
        let draft = Draft {
            room_id: None,
            sender: OwnedUserId::try_from("@zed:peer.example").unwrap(),
            event_type: "m.room.create".to_owned(),
            state_key: Some(String::new()),
            content: to_raw_value(&json!({ "room_version": "12", "topic": topic })).unwrap(),
            origin_server_ts: START,
            depth: 1,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            redacts: None,
        };
        let rules = RoomVersion::V12.rules();
        draft
            .seal(rules, &world.peer.name, &world.peer.key)
            .unwrap()
    };
    let (own, other) = (create("own"), create("other"));
    let json = |pdu: &Pdu| serde_json::from_slice::<Value>(pdu.json()).unwrap();
    let stripped = json!({
        "type": "m.room.create", "state_key": "", "sender": "@zed:peer.example",
        "content": { "room_version": "12" },
    });
    let mut unsigned = json(&own);
    unsigned["signatures"] = json!({});
    let cases = [
        (json!([]), "M_MISSING_PARAM"),
        (json!([json(&other)]), "M_INVALID_PARAM"),
        (json!([stripped]), "M_INVALID_PARAM"),
        (json!([unsigned]), "M_INVALID_PARAM"),
        (
            json!([json(&own), { "type": "m.room.name" }]),
            "M_INVALID_PARAM",
        ),
    ];
    let made = |state: Value| Made {
        version: "12",
        room: own.room_id().to_string(),
        state,
        ..Made::default()
    };
    for (state, code) in cases {
        let answer = world.invite(&made(state), |_, _| {}).await;
        answer.refused(400, code);
    }
    assert_eq!(world.invites().await, Value::Null);
    world
        .invite(&made(json!([json(&own)])), |_, _| {})
        .await
        .ok();
    assert!(world.invites().await[own.room_id().as_str()].is_object());
}

#[tokio::test]
async fn state_that_is_none_does_no_harm() {
    let world = World::new().await;
    let large = "x".repeat(60_000);
    let large = json!({
        "type": "m.room.topic", "state_key": "", "sender": "@zed:peer.example",
        "content": { "topic": large },
    });
    let states = [
        json!(null),
        json!({}),
        json!([null]),
        json!([{}]),
        json!(["x", 1, []]),
        json!([{ "type": 1, "state_key": null, "sender": "", "content": "x" }]),
        json!([{ "type": "m.room.name", "state_key": "", "sender": "@z:y", "content": null }]),
        json!(vec![large; 90]),
    ];
    for (number, state) in states.into_iter().enumerate() {
        let made = Made {
            room: format!("!r{number}:peer.example"),
            state,
            ..Made::default()
        };
        let answer = world.invite(&made, |_, _| {}).await;
        assert!(
            matches!(answer.status, 200 | 400 | 413),
            "{number}: {}",
            answer.body
        );
        let told = world.invites().await;
        let told = &told[&*made.room]["invite_state"]["events"];
        let told = told.as_array().cloned().unwrap_or_default();
        assert_eq!(!told.is_empty(), answer.status == 200, "{number}");
        assert!(Value::from(told.clone()).to_string().len() < 150_000);
        for event in &told {
            assert!(event["content"].is_object(), "{event}");
        }
    }
}
