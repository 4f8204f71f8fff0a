//! Whole requests against a homeserver in memory: no 5xx, and every refusal is a standard error.
//!
//! An input is text: method and path, header lines, an empty line, the body. Capital words stand
//! for what differs from run to run: a token, a room, an event, a user, a device. What an answer is
//! may depend on the requests before; the seed repeats those, too.

use std::cell::RefCell;

use axum::body::Body;
use homeserver_fuzz::Target;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json, value::RawValue};
use tower::ServiceExt as _;

use crate::http::tests::{Fresh, LoggedIn, fresh_with, own_password};

const ENDPOINTS: &str = include_str!("../../../../tests/data/endpoints.tsv");

/// Requests by one user before another takes over, so that rooms and lists stay small.
const REQUESTS_OF_ONE: usize = 400;

/// Bodies that some endpoints accept, by a part of their path.
fn bodies() -> Vec<(&'static str, Value)> {
    vec![
        (
            "/createRoom",
            json!({"preset": "public_chat", "name": "n", "initial_state": [
            {"type": "m.room.topic", "state_key": "", "content": {"topic": "t"}}]}),
        ),
        (
            "/send/",
            json!({"body": "b", "msgtype": "m.text",
            "m.relates_to": {"rel_type": "m.thread", "event_id": "EVENT"}}),
        ),
        ("/state/", json!({"name": "n"})),
        ("/redact/", json!({"reason": "r"})),
        ("/invite", json!({"user_id": "@bob:localhost"})),
        ("/kick", json!({"user_id": "@bob:localhost", "reason": "r"})),
        (
            "/read_markers",
            json!({"m.fully_read": "EVENT", "m.read": "EVENT"}),
        ),
        ("/receipt/", json!({"thread_id": "main"})),
        ("/typing/", json!({"typing": true, "timeout": 3000})),
        (
            "/sendToDevice/",
            json!({"messages": {"USER": {"DEVICE": {"a": 1}}}}),
        ),
        ("/keys/query", json!({"device_keys": {"USER": []}})),
        (
            "/keys/claim",
            json!({"one_time_keys": {"USER": {"DEVICE": "signed_curve25519"}}}),
        ),
        (
            "/keys/upload",
            json!({"one_time_keys": {"signed_curve25519:A": {"key": "a"}}}),
        ),
        (
            "/filter",
            json!({"room": {"timeline": {"limit": 3, "types": ["m.*"]}}}),
        ),
        (
            "/presence/",
            json!({"presence": "online", "status_msg": "s"}),
        ),
        ("/displayname", json!({"displayname": "A"})),
        ("/avatar_url", json!({"avatar_url": "mxc://localhost/a"})),
        ("/account_data/", json!({"a": {"b": []}})),
        (
            "/publicRooms",
            json!({"limit": 2, "filter": {"generic_search_term": "n"}}),
        ),
        (
            "/search",
            json!({"search_categories": {"room_events": {"search_term": "b"}}}),
        ),
        (
            "/delete_devices",
            json!({"devices": ["DEVICE"], "auth": own_password("alice")}),
        ),
        ("/login", json!({"type": "m.login.token", "token": "x"})),
        ("/refresh", json!({"refresh_token": "x"})),
        (
            "/pushers/set",
            json!({"app_id": "a", "pushkey": "k", "kind": "http", "lang": "en",
            "app_display_name": "A", "device_display_name": "D", "data": {"url": "https://a.b/_matrix/push/v1/notify"}}),
        ),
        (
            "/pushrules/",
            json!({"actions": ["notify"], "pattern": "w", "conditions": [
            {"kind": "event_match", "key": "content.body", "pattern": "*x?"}]}),
        ),
        ("/upgrade", json!({"new_version": "12"})),
        ("/tags/", json!({"order": 0.5})),
        ("/directory/room/", json!({"room_id": "ROOM"})),
        ("/directory/list/", json!({"visibility": "public"})),
        ("/report", json!({"reason": "r", "score": -100})),
    ]
}

/// A request for each current client endpoint, and some with queries.
fn requests() -> Vec<String> {
    let bodies = bodies();
    let write = |method: &str, path: &str| {
        let body = bodies.iter().find(|(part, _)| path.contains(part));
        let body = match method {
            "POST" | "PUT" => body.map_or_else(|| "{}".to_owned(), |(_, body)| body.to_string()),
            "DELETE" => json!({"auth": own_password("alice")}).to_string(),
            _ => String::new(),
        };
        format!("{method} {path}\nauthorization: Bearer TOKEN\n\n{body}")
    };
    let rows = ENDPOINTS
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>());
    let current = rows.filter(|row| row[0] == "client-server" && row.get(11) == Some(&"current"));
    let mut requests: Vec<String> = current
        .filter(|row| row[2] != "OPTIONS" && row[3].starts_with('/'))
        .map(|row| write(row[2], &with_arguments(row[3])))
        .collect();
    let queries = [
        "/_matrix/client/v3/sync?timeout=1000&filter={\"room\":{\"timeline\":{\"limit\":2}}}",
        "/_matrix/client/v3/sync?full_state=true&set_presence=offline&use_state_after=true",
        "/_matrix/client/v3/sync?since=s1_1_1_1_1_1_1_1",
        "/_matrix/client/v3/rooms/ROOM/messages?dir=b&limit=3&from=h1_2_n",
        "/_matrix/client/v3/rooms/ROOM/messages?dir=f&filter={\"types\":[\"m.*\"]}",
        "/_matrix/client/v3/rooms/ROOM/context/EVENT?limit=4",
        "/_matrix/client/v3/rooms/ROOM/members?at=s1_1_1_1_1_1_1_1&membership=join",
        "/_matrix/client/v1/rooms/ROOM/relations/EVENT/m.thread?recurse=true&limit=2&dir=f",
        "/_matrix/client/v1/rooms/ROOM/timestamp_to_event?ts=1&dir=f",
        "/_matrix/client/v3/publicRooms?limit=1&since=a_1_1",
        "/_matrix/client/v3/keys/changes?from=s1_1_1_1_1_1_1_1&to=s1_1_1_1_1_1_1_1",
        "/_matrix/client/v1/media/thumbnail/localhost/x?width=32&height=32&method=crop&animated=true",
    ];
    requests.extend(queries.map(|path| write("GET", &path.replace(['{', '}', '"'], "_"))));
    let encode = |path: &str| {
        path.replace('{', "%7B")
            .replace('}', "%7D")
            .replace('"', "%22")
    };
    requests.extend(queries.map(|path| write("GET", &encode(path))));
    requests
}

/// A path of the table with arguments that exist.
fn with_arguments(path: &str) -> String {
    let parts = path.split('/').map(|part| match part {
        "{roomId}" | "{roomIdOrAlias}" => "ROOM",
        "{eventId}" => "EVENT",
        "{userId}" => "USER",
        "{deviceId}" => "DEVICE",
        "{eventType}" => "m.room.name",
        "{receiptType}" => "m.read",
        "{txnId}" => "t1",
        "{stateKey}" => "",
        "{roomAlias}" => "%23alias:localhost",
        "{keyName}" => "displayname",
        "{kind}" => "override",
        "{scope}" => "global",
        "{serverName}" => "localhost",
        part if part.starts_with('{') => "x",
        part => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Who asks, and for what.
struct Asking {
    who: LoggedIn,
    room: String,
    event: String,
    requests: usize,
}

impl Asking {
    async fn begin(server: &Fresh, number: usize) -> Self {
        let who = server.register(&format!("user{number}")).await;
        let token = Some(who.token.as_str());
        let room = json!({"preset": "public_chat"});
        let made = server
            .post("/_matrix/client/v3/createRoom", token, room)
            .await;
        let room = made.ok()["room_id"].as_str().unwrap().to_owned();
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/t");
        let sent = server.put(&path, token, json!({"body": "first"})).await;
        let event = sent.ok()["event_id"].as_str().unwrap().to_owned();
        Self {
            who,
            room,
            event,
            requests: 0,
        }
    }

    fn fill(&self, text: &str) -> String {
        text.replace("TOKEN", &self.who.token)
            .replace("ROOM", &self.room)
            .replace("EVENT", &self.event)
            .replace("USER", &self.who.user)
            .replace("DEVICE", &self.who.device)
    }

    /// The request that an input is, if it can be sent.
    fn request(&self, input: &[u8]) -> Option<Request<Body>> {
        let blank = input.windows(2).position(|bytes| bytes == b"\n\n")?;
        let head = self.fill(std::str::from_utf8(&input[..blank]).ok()?);
        let body = &input[blank + 2..];
        let body = match std::str::from_utf8(body) {
            Ok(text) => self.fill(text).into_bytes(),
            Err(_) => body.to_vec(),
        };
        let mut lines = head.lines();
        let (method, path) = lines.next()?.split_once(' ')?;
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).ok()?)
            .uri(path);
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            request = request.header(name, value);
        }
        request.body(Body::from(body)).ok()
    }
}

/// Sends it and judges the answer; gives whether it was a yes.
async fn ask(server: &Fresh, request: Request<Body>) -> bool {
    let is_head = request.method() == Method::HEAD;
    let answer = server.router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let is_json = answer.headers().get(header::CONTENT_TYPE);
    let is_json = is_json.is_some_and(|kind| kind == "application/json");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let shown = String::from_utf8_lossy(&body);
    // Other servers, whom nobody reaches here, are no fault of this one.
    let is_fault = status.is_server_error() && status != StatusCode::BAD_GATEWAY;
    assert!(!is_fault, "{status}: {shown}");
    if is_json && !is_head {
        // A value of any depth: events may be nested as deeply as serde_json reads, and answers hold
        // them some levels further down.
        serde_json::from_slice::<&RawValue>(&body).expect("is JSON");
        if status.is_client_error() {
            let body: Value = serde_json::from_slice(&body).expect("is flat");
            let standard = body["errcode"].is_string() || body["flows"].is_array();
            assert!(standard, "{status}: {body}");
        }
    }
    status.is_success()
}

#[test]
fn requests_of_clients() {
    // Waiting takes no time: the clock jumps to the next timer.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let server = runtime.block_on(fresh_with(|config| config.federation.enabled = false));
    let asking = RefCell::new(runtime.block_on(Asking::begin(&server, 0)));
    let number = RefCell::new(0);
    let words = [
        "?limit=",
        "&from=",
        "since=",
        "%00",
        "%2F",
        "..",
        "!x:y",
        "@a:b",
        "$e",
        "#a:b",
        "\"auth\":{}",
        "\"type\":\"m.login.password\"",
        "\"session\":\"x\"",
        "content-type: ",
        "PUT ",
        "POST ",
        "GET ",
        "ROOM",
        "EVENT",
        "USER",
        "DEVICE",
        "\"m.relates_to\":",
        "m.room.power_levels",
        "m.room.member",
    ];
    Target::new("requests_of_clients")
        .seeds(requests())
        .words(&words)
        .run(|input| {
            let Some(request) = asking.borrow().request(input) else {
                return false;
            };
            let yes = runtime.block_on(ask(&server, request));
            let mut asking = asking.borrow_mut();
            asking.requests += 1;
            let ended = || !runtime.block_on(server.is_good(&asking.who.token));
            if asking.requests > REQUESTS_OF_ONE || yes && ended() {
                *number.borrow_mut() += 1;
                *asking = runtime.block_on(Asking::begin(&server, *number.borrow()));
            }
            yes
        });
}
