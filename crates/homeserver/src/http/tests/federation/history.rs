//! What other servers are told of rooms, over the wire: to whom, and what of it.

use homeserver_events::{Draft, Pdu, Rules};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId};
use serde_json::value::to_raw_value;

use super::*;

/// A room of `a.example` with somebody of `bb.example` in it, and a third server outside.
pub(super) struct Shared {
    network: Arc<Network>,
    pub(super) here: Fresh,
    pub(super) there: Fresh,
    pub(super) outside: Fresh,
    pub(super) alice: LoggedIn,
    pub(super) room: OwnedRoomId,
    version: RoomVersionId,
}

/// Asks `a.example` as another server.
pub(super) async fn ask(from: &Fresh, call: Call) -> Result<Value, CallError> {
    let peers = &from.homeserver.components().federation.peers;
    let answer = peers.ask(server_name!("a.example"), call).await?;
    Ok(serde_json::from_slice(&answer.body).unwrap())
}

#[track_caller]
pub(super) fn refused(answer: &Result<Value, CallError>, status: u16, code: &str) {
    match answer {
        Err(CallError::Refused {
            status: found,
            errcode,
            ..
        }) => assert_eq!((found.as_u16(), &**errcode), (status, code)),
        other => panic!("{other:?}"),
    }
}

impl Shared {
    pub(super) async fn new(version: &str) -> Self {
        let network = Arc::new(Network::default());
        let here = join(&network, "a.example").await;
        let there = join(&network, "bb.example").await;
        let outside = join(&network, "ccc.example").await;
        let alice = here.register("alice").await;
        let create = json!({ "preset": "public_chat", "room_version": version, "name": "first" });
        let room = create_room(&here, &alice, create).await;
        let shared = Self {
            network,
            here,
            there,
            outside,
            alice,
            room,
            version: RoomVersionId::try_from(version).unwrap(),
        };
        shared.say("before").await;
        shared
    }

    /// Cuts a server off; gives what is needed to mend that.
    pub(super) fn cut(&self, server: &str) -> (OwnedServerName, Router) {
        let server = ServerName::parse(server).unwrap();
        let router = self.network.routers.lock().remove(&server).unwrap();
        (server, router)
    }

    pub(super) fn mend(&self, (server, router): (OwnedServerName, Router)) {
        self.network.routers.lock().insert(server, router);
    }

    pub(super) fn alice_id(&self) -> OwnedUserId {
        self.alice.user.as_str().try_into().unwrap()
    }

    pub(super) async fn say(&self, body: &str) -> OwnedEventId {
        say(&self.here, &self.alice, &self.room, body).await
    }

    async fn state(&self, kind: &str, content: Value) -> OwnedEventId {
        let path = format!("/_matrix/client/v3/rooms/{}/state/{kind}", self.room);
        let sent = self.here.put(&path, Some(&self.alice.token), content);
        id_of(&sent.await.ok())
    }

    /// Joins somebody of `bb.example` by the handshake of servers.
    pub(super) async fn let_in(&self, user: &str) -> OwnedEventId {
        self.let_into(&self.room, user).await
    }

    /// The same into a room of this version.
    pub(super) async fn let_into(&self, room: &OwnedRoomId, user: &str) -> OwnedEventId {
        let (user, ver) = (OwnedUserId::try_from(user).unwrap(), self.version.as_str());
        let path = Path::v1("make_join").segment(room).segment(&user);
        let made = ask(&self.there, Call::get(path.query("ver", ver))).await;
        let template = made.unwrap()["event"].clone();
        let references = |field: &str| {
            let ids = template[field].as_array().unwrap().iter();
            ids.map(|id| OwnedEventId::try_from(id.as_str().unwrap()).unwrap().into())
                .collect()
        };
        let draft = Draft {
            room_id: Some(room.clone()),
            state_key: Some(user.to_string()),
            event_type: "m.room.member".to_owned(),
            content: to_raw_value(&template["content"]).unwrap(),
            origin_server_ts: START,
            prev_events: references("prev_events"),
            auth_events: references("auth_events"),
            depth: template["depth"].as_u64().unwrap(),
            redacts: None,
            sender: user,
        };
        let keys = &self.there.homeserver.components().federation.own_keys;
        let rules = Rules::for_version(&self.version).unwrap();
        let join = draft
            .seal(rules, keys.server(), keys.signing_key())
            .unwrap();
        let path = Path::v2("send_join").segment(room).segment(join.event_id());
        let sent = ask(&self.there, Call::put(path, join.json().to_vec())).await;
        sent.unwrap();
        join.event_id().to_owned()
    }

    fn read(&self, event: &Value) -> Pdu {
        let rules = Rules::for_version(&self.version).unwrap();
        Pdu::parse(event.to_string().as_bytes(), rules).unwrap()
    }

    fn ids(&self, events: &Value) -> Vec<String> {
        let events = events.as_array().unwrap().iter();
        events
            .map(|event| self.read(event).event_id().to_string())
            .collect()
    }
}

pub(super) async fn create_room(server: &Fresh, user: &LoggedIn, body: Value) -> OwnedRoomId {
    let path = "/_matrix/client/v3/createRoom";
    let made = server.post(path, Some(&user.token), body).await.ok();
    OwnedRoomId::try_from(made["room_id"].as_str().unwrap()).unwrap()
}

fn id_of(sent: &Value) -> OwnedEventId {
    OwnedEventId::try_from(sent["event_id"].as_str().unwrap()).unwrap()
}

pub(super) async fn say(
    server: &Fresh,
    user: &LoggedIn,
    room: &OwnedRoomId,
    body: &str,
) -> OwnedEventId {
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{body}");
    let content = json!({ "msgtype": "m.text", "body": body });
    id_of(&server.put(&path, Some(&user.token), content).await.ok())
}

/// Every question about an event of a room.
fn questions(room: &str, event: &str) -> Vec<(&'static str, Call)> {
    let of_room = |endpoint: &str| Path::v1(endpoint).segment(room);
    let missing = json!({ "earliest_events": [], "latest_events": [event] }).to_string();
    vec![
        ("event", Call::get(Path::v1("event").segment(event))),
        (
            "state",
            Call::get(of_room("state").query("event_id", event)),
        ),
        (
            "state_ids",
            Call::get(of_room("state_ids").query("event_id", event)),
        ),
        (
            "event_auth",
            Call::get(of_room("event_auth").segment(event)),
        ),
        (
            "backfill",
            Call::get(of_room("backfill").query("v", event).query("limit", "10")),
        ),
        (
            "get_missing_events",
            Call::post(of_room("get_missing_events"), missing),
        ),
        (
            "timestamp_to_event",
            Call::get(
                of_room("timestamp_to_event")
                    .query("ts", "5")
                    .query("dir", "f"),
            ),
        ),
    ]
}

#[tokio::test]
async fn a_server_in_the_room_reads_its_history_and_state() {
    for version in ["6", "11", "12"] {
        let shared = Shared::new(version).await;
        let join = shared.let_in("@zed:bb.example").await;
        let name = shared
            .state("m.room.name", json!({ "name": "second" }))
            .await;
        let said = shared.say("after").await;
        let mut answers = HashMap::new();
        for (endpoint, call) in questions(shared.room.as_str(), said.as_str()) {
            let answer = ask(&shared.there, call).await;
            answers.insert(
                endpoint,
                answer.unwrap_or_else(|error| panic!("{endpoint}: {error}")),
            );
        }
        let event = &answers["event"];
        assert_eq!(
            (&event["origin"], &event["origin_server_ts"]),
            (&json!("a.example"), &json!(START))
        );
        assert_eq!(shared.ids(&event["pdus"]), [said.as_str()]);
        assert_eq!(event["pdus"][0]["content"]["body"], "after");
        assert_eq!(event["pdus"][0].get("unsigned"), None);

        let history = shared.ids(&answers["backfill"]["pdus"]);
        assert_eq!(history.len(), 10, "{version}");
        assert_eq!(
            history[..3],
            [said.to_string(), name.to_string(), join.to_string()]
        );
        let mut missing = shared.ids(&answers["get_missing_events"]["events"]);
        missing.reverse();
        assert_eq!(
            missing[..2],
            history[1..3],
            "without the latest, oldest first"
        );

        let state = &answers["state"];
        let mut ids = shared.ids(&state["pdus"]);
        let names = state["pdus"].as_array().unwrap();
        let names = names.iter().filter(|event| event["type"] == "m.room.name");
        assert_eq!(
            names
                .map(|event| &event["content"]["name"])
                .collect::<Vec<_>>(),
            ["second"]
        );
        let mut chain = shared.ids(&state["auth_chain"]);
        let texts = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap() };
        let (mut pdu_ids, mut chain_ids) = (
            texts(&answers["state_ids"]["pdu_ids"]),
            texts(&answers["state_ids"]["auth_chain_ids"]),
        );
        for list in [&mut ids, &mut chain, &mut pdu_ids, &mut chain_ids] {
            list.sort();
        }
        assert_eq!((ids, chain), (pdu_ids, chain_ids));
        let chain = answers["event_auth"]["auth_chain"].as_array().unwrap();
        assert!(
            chain
                .iter()
                .any(|event| event["type"] == "m.room.power_levels")
        );
        let nearest = &answers["timestamp_to_event"];
        assert_eq!(nearest["origin_server_ts"], START);
        assert_eq!(history.len(), 10);
    }
}

/// CVE-2022-39335: nothing of a room for servers that are not in it, on any endpoint.
#[tokio::test]
async fn servers_outside_the_room_are_told_nothing() {
    let shared = Shared::new("11").await;
    shared.let_in("@zed:bb.example").await;
    let said = shared.say("after").await;
    for (endpoint, call) in questions(shared.room.as_str(), said.as_str()) {
        let answer = ask(&shared.outside, call).await;
        assert!(answer.is_err(), "{endpoint}");
        refused(&answer, 403, "M_FORBIDDEN");
    }
    for (endpoint, call) in questions("!unknown:a.example", said.as_str()) {
        let answer = ask(&shared.outside, call).await;
        match endpoint {
            "event" => refused(&answer, 403, "M_FORBIDDEN"),
            _ => refused(&answer, 404, "M_NOT_FOUND"),
        }
    }
    let unknown = Call::get(Path::v1("event").segment("$unknown"));
    refused(&ask(&shared.there, unknown).await, 404, "M_NOT_FOUND");
    // Nor without a signature.
    let path = format!("/_matrix/federation/v1/event/{said}");
    get(&shared.here, &path)
        .await
        .refused(401, "M_UNAUTHORIZED");
}

/// Continuwuity SEC26: the event has to be of the room that the server was let into.
#[tokio::test]
async fn events_of_another_room_are_not_read_through_this_one() {
    let shared = Shared::new("12").await;
    shared.let_in("@zed:bb.example").await;
    let private = create_room(&shared.here, &shared.alice, json!({})).await;
    let secret = say(&shared.here, &shared.alice, &private, "secret").await;
    for (endpoint, call) in questions(shared.room.as_str(), secret.as_str()) {
        let answer = ask(&shared.there, call).await;
        match endpoint {
            "event" => refused(&answer, 403, "M_FORBIDDEN"),
            "get_missing_events" => assert_eq!(answer.unwrap(), json!({ "events": [] })),
            "timestamp_to_event" => {
                assert_ne!(answer.unwrap()["event_id"], secret.as_str());
            }
            _ => refused(&answer, 404, "M_NOT_FOUND"),
        }
    }
}

#[tokio::test]
async fn the_acl_of_a_room_shuts_a_server_out_of_all_of_it() {
    let shared = Shared::new("11").await;
    shared.let_in("@zed:bb.example").await;
    let acl = json!({ "allow": ["*"], "deny": ["BB.example"] });
    shared.state("m.room.server_acl", acl).await;
    let said = shared.say("after").await;
    for (endpoint, call) in questions(shared.room.as_str(), said.as_str()) {
        let answer = ask(&shared.there, call).await;
        assert!(answer.is_err(), "{endpoint}");
        refused(&answer, 403, "M_FORBIDDEN");
    }
    shared
        .state("m.room.server_acl", json!({ "allow": ["*"] }))
        .await;
    for (endpoint, call) in questions(shared.room.as_str(), said.as_str()) {
        let answer = ask(&shared.there, call).await;
        assert!(answer.is_ok(), "{endpoint}: {answer:?}");
    }
}

/// CVE-2018-12291: what was said before a server joined is hidden from it where the room says so.
#[tokio::test]
async fn history_from_before_a_server_joined_is_redacted() {
    for (visibility, seen) in [("shared", true), ("invited", false), ("joined", false)] {
        let shared = Shared::new("11").await;
        let content = json!({ "history_visibility": visibility });
        shared.state("m.room.history_visibility", content).await;
        let hidden = shared.say("hidden").await;
        shared.let_in("@zed:bb.example").await;
        let said = shared.say("after").await;
        let expected = if seen {
            json!({ "msgtype": "m.text", "body": "hidden" })
        } else {
            json!({})
        };
        for (endpoint, call) in questions(shared.room.as_str(), said.as_str()) {
            let events = match endpoint {
                "backfill" => "pdus",
                "get_missing_events" => "events",
                _ => continue,
            };
            let answer = ask(&shared.there, call).await.unwrap();
            let events = answer[events].as_array().unwrap();
            let event = events
                .iter()
                .find(|event| shared.read(event).event_id() == &*hidden);
            assert_eq!(
                event.unwrap()["content"],
                expected,
                "{visibility} {endpoint}"
            );
        }
        let one = Call::get(Path::v1("event").segment(&hidden));
        let one = ask(&shared.there, one).await.unwrap();
        assert_eq!(one["pdus"][0]["content"], expected, "{visibility}");
        // Its links are whole, so that what follows can be placed.
        assert_eq!(shared.ids(&one["pdus"]), [hidden.as_str()]);
    }
}

#[tokio::test]
async fn questions_are_checked_and_answers_bounded() {
    let shared = Shared::new("11").await;
    shared.let_in("@zed:bb.example").await;
    let mut last = shared.say("0").await;
    for number in 1..130 {
        last = shared.say(&number.to_string()).await;
    }
    let of_room = |endpoint: &str| Path::v1(endpoint).segment(&shared.room);
    let backfill = |limit: &str| {
        Call::get(
            of_room("backfill")
                .query("v", last.as_str())
                .query("limit", limit),
        )
    };
    let many = ask(&shared.there, backfill("100000")).await.unwrap();
    assert_eq!(many["pdus"].as_array().unwrap().len(), 100);
    let none = ask(&shared.there, backfill("0")).await.unwrap();
    assert_eq!(none["pdus"], json!([]));
    let missing = |body: Value| Call::post(of_room("get_missing_events"), body.to_string());
    let usual = json!({ "earliest_events": [], "latest_events": [last] });
    let usual = ask(&shared.there, missing(usual)).await.unwrap();
    assert_eq!(usual["events"].as_array().unwrap().len(), 10, "the default");
    let many = json!({ "earliest_events": [], "latest_events": [last], "limit": 100_000 });
    let many = ask(&shared.there, missing(many)).await.unwrap();
    assert_eq!(many["events"].as_array().unwrap().len(), 50);

    let no_limit = Call::get(of_room("backfill").query("v", last.as_str()));
    refused(&ask(&shared.there, no_limit).await, 400, "M_MISSING_PARAM");
    let wrong = backfill("-3");
    refused(&ask(&shared.there, wrong).await, 400, "M_INVALID_PARAM");
    let no_event = Call::get(of_room("state"));
    refused(&ask(&shared.there, no_event).await, 400, "M_MISSING_PARAM");
    let wrong = missing(json!({ "latest_events": "all", "earliest_events": [] }));
    refused(&ask(&shared.there, wrong).await, 400, "M_BAD_JSON");
    let wrong = Call::get(
        of_room("timestamp_to_event")
            .query("ts", "5")
            .query("dir", "up"),
    );
    refused(&ask(&shared.there, wrong).await, 400, "M_INVALID_PARAM");
    let beyond = Path::v1("timestamp_to_event").segment(&shared.room);
    let beyond = Call::get(beyond.query("ts", "99999999999999").query("dir", "f"));
    refused(&ask(&shared.there, beyond).await, 404, "M_NOT_FOUND");
}

/// Tuwunel 35655a85, 1.9.0: questions about very many events, and about those that are not here or
/// not in the room, are answered shortly.
#[tokio::test]
async fn questions_about_events_that_are_not_in_the_room_lead_nowhere() {
    let shared = Shared::new("11").await;
    shared.let_in("@zed:bb.example").await;
    let said = shared.say("after").await;
    let of_room = |endpoint: &str| Path::v1(endpoint).segment(&shared.room);
    let missing = |body: Value| Call::post(of_room("get_missing_events"), body.to_string());
    let unknown = |number: usize| format!("${number:0>43}");
    let many: Vec<_> = (0..10_000).map(unknown).collect();
    let mut named = vec![said.to_string()];
    named.extend(many.clone());
    // What is named first is looked for, and no more than a hundred.
    for (latest, earliest, found) in [
        (json!(many), json!([]), false),
        (json!(named), json!(many), true),
        (
            json!(
                many.iter()
                    .cloned()
                    .chain([said.to_string()])
                    .collect::<Vec<_>>()
            ),
            json!([]),
            false,
        ),
        (
            json!(vec![said.to_string(); 5_000]),
            json!(vec![said.to_string(); 5_000]),
            false,
        ),
    ] {
        let body = json!({
            "latest_events": latest, "earliest_events": earliest, "limit": 1_000_000_000,
            "min_depth": 0,
        });
        let answer = ask(&shared.there, missing(body)).await.unwrap();
        let events = answer["events"].as_array().unwrap();
        assert_eq!(!events.is_empty(), found, "{answer}");
        assert!(events.len() <= 50);
    }
    for (field, value) in [
        ("min_depth", json!(-1)),
        ("min_depth", json!(-9_007_199_254_740_992_i64)),
        ("limit", json!(-1)),
        ("limit", json!("all")),
        ("latest_events", json!([7])),
    ] {
        let mut body = json!({ "latest_events": [said], "earliest_events": [] });
        body[field] = value;
        let wrong = ask(&shared.there, missing(body)).await;
        refused(&wrong, 400, "M_BAD_JSON");
    }
    for event in [
        "$unknown".to_owned(),
        unknown(7),
        "$".to_owned() + &"x".repeat(200),
    ] {
        for (endpoint, call) in questions(shared.room.as_str(), &event) {
            let answer = ask(&shared.there, call).await;
            match endpoint {
                "get_missing_events" => assert_eq!(answer.unwrap(), json!({ "events": [] })),
                "timestamp_to_event" => assert!(answer.is_ok()),
                _ => refused(&answer, 404, "M_NOT_FOUND"),
            }
        }
    }
}
