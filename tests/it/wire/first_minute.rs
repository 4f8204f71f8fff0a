//! What shipped clients ask in their first minute, in their order: each question has the answer with
//! which the client goes on. What this server does not have is a 404 that the client expects.

use homeserver_tests::{Client, Server};
use serde_json::{Value, json};

/// A question: method and path, body, and the status with which the client goes on. `{user}`,
/// `{device}`, `{room}` and `{event}` stand for the client's own.
type Question<'a> = (&'a str, Value, u16);

/// Before there is an account on the screen.
fn before_login() -> Vec<Question<'static>> {
    let probe = json!({});
    vec![
        ("GET /.well-known/matrix/client", Value::Null, 404),
        ("GET /_matrix/client/versions", Value::Null, 200),
        ("GET /_matrix/client/v1/auth_metadata", Value::Null, 404),
        (
            "GET /_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
            Value::Null,
            404,
        ),
        (
            "GET /_matrix/client/unstable/org.matrix.msc2965/auth_issuer",
            Value::Null,
            404,
        ),
        ("GET /_matrix/client/v3/login", Value::Null, 200),
        ("GET /_matrix/client/r0/login", Value::Null, 200),
        // Learns the flows.
        ("POST /_matrix/client/v3/register", probe, 401),
    ]
}

/// Element Web 1.11.
fn element() -> Vec<Question<'static>> {
    vec![
        ("GET /_matrix/client/v3/pushrules/", Value::Null, 200),
        ("GET /_matrix/client/v3/capabilities", Value::Null, 200),
        (
            "GET /_matrix/client/v3/thirdparty/protocols",
            Value::Null,
            200,
        ),
        ("GET /_matrix/client/v3/voip/turnServer", Value::Null, 200),
        ("GET /_matrix/client/v3/devices", Value::Null, 200),
        ("GET /_matrix/client/v3/devices/{device}", Value::Null, 200),
        ("GET /_matrix/client/v3/room_keys/version", Value::Null, 404),
        (
            "GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device",
            Value::Null,
            404,
        ),
        // A probe for the flows; there are none, and nothing was uploaded.
        (
            "POST /_matrix/client/unstable/keys/device_signing/upload",
            json!({}),
            200,
        ),
        (
            "POST /_matrix/client/v3/keys/query",
            json!({ "device_keys": { "{user}": [] }, "timeout": 10_000 }),
            200,
        ),
        (
            "GET /_matrix/client/v3/sync?filter=%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A20%7D%2C%22state%22%3A%7B%22lazy_load_members%22%3Atrue%7D%7D%7D&timeout=0&_cacheBuster=1",
            Value::Null,
            200,
        ),
        (
            "POST /_matrix/client/v3/user/{user}/filter",
            json!({ "room": {
                "timeline": { "limit": 20, "unread_thread_notifications": true },
                "state": { "lazy_load_members": true },
            } }),
            200,
        ),
        (
            "PUT /_matrix/client/v3/user/{user}/account_data/im.vector.setting.breadcrumbs",
            json!({ "recent_rooms": [] }),
            200,
        ),
        (
            "PUT /_matrix/client/v3/user/{user}/account_data/org.matrix.msc3890.local_notification_settings.{device}",
            json!({ "is_silenced": false }),
            200,
        ),
        (
            "POST /_matrix/client/v3/publicRooms",
            json!({ "limit": 20, "filter": { "generic_search_term": "" } }),
            200,
        ),
        (
            "GET /_matrix/client/v3/rooms/{room}/members?not_membership=leave",
            Value::Null,
            200,
        ),
        (
            "GET /_matrix/client/v3/rooms/{room}/messages?dir=b&limit=20&filter=%7B%22lazy_load_members%22%3Atrue%7D",
            Value::Null,
            200,
        ),
        (
            "POST /_matrix/client/v3/rooms/{room}/receipt/m.read.private/{event}",
            json!({ "thread_id": "main" }),
            200,
        ),
        (
            "POST /_matrix/client/v3/rooms/{room}/read_markers",
            json!({ "m.fully_read": "{event}", "m.read": "{event}", "m.read.private": "{event}" }),
            200,
        ),
        (
            "GET /_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
            Value::Null,
            404,
        ),
    ]
}

/// Cinny 4.
fn cinny() -> Vec<Question<'static>> {
    vec![
        ("GET /_matrix/media/v3/config", Value::Null, 200),
        ("GET /_matrix/client/v3/pushrules/", Value::Null, 200),
        ("GET /_matrix/client/v3/voip/turnServer", Value::Null, 200),
        ("GET /_matrix/client/v3/capabilities", Value::Null, 200),
        (
            "POST /_matrix/client/v3/user/{user}/filter",
            json!({ "room": { "state": { "lazy_load_members": true } } }),
            200,
        ),
        (
            "GET /_matrix/client/v3/user/{user}/filter/{filter}",
            Value::Null,
            200,
        ),
        ("GET /_matrix/client/v3/profile/{user}", Value::Null, 200),
        (
            "GET /_matrix/client/unstable/im.nheko.summary/summary/{room}",
            Value::Null,
            200,
        ),
        (
            "GET /_matrix/client/v3/rooms/{room}/members",
            Value::Null,
            200,
        ),
    ]
}

/// Programs on matrix-rust-sdk, as Element X, where there is no sliding sync.
fn rust_sdk() -> Vec<Question<'static>> {
    vec![
        (
            "POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
            json!({ "conn_id": "room-list", "lists": {} }),
            404,
        ),
        (
            "GET /_matrix/client/v3/sync?timeout=0&use_state_after=true&set_presence=offline",
            Value::Null,
            200,
        ),
        (
            "GET /_matrix/client/v3/user/{user}/account_data/m.secret_storage.default_key",
            Value::Null,
            404,
        ),
        ("POST /_matrix/client/v3/rooms/{room}/join", json!({}), 200),
        ("GET /_matrix/client/v1/media/config", Value::Null, 200),
    ]
}

/// matrix-nio, mautrix and other programs for bots and bridges; `NeoChat` with its old paths.
fn others() -> Vec<Question<'static>> {
    vec![
        ("GET /_matrix/client/v3/account/whoami", Value::Null, 200),
        ("GET /_matrix/client/r0/capabilities", Value::Null, 200),
        (
            "GET /_matrix/client/r0/sync?timeout=0&full_state=true",
            Value::Null,
            200,
        ),
        (
            "GET /_matrix/client/v3/sync?timeout=0&set_presence=online",
            Value::Null,
            200,
        ),
        ("GET /_matrix/client/v3/joined_rooms", Value::Null, 200),
        (
            "GET /_matrix/client/v3/rooms/{room}/joined_members",
            Value::Null,
            200,
        ),
        (
            "GET /_matrix/client/v3/rooms/{room}/state",
            Value::Null,
            200,
        ),
        (
            "GET /_matrix/client/v3/rooms/{room}/state/m.room.create/",
            Value::Null,
            200,
        ),
        (
            "GET /_matrix/client/v3/rooms/{room}/state/m.room.encryption/",
            Value::Null,
            404,
        ),
        (
            "PUT /_matrix/client/v3/profile/{user}/displayname",
            json!({ "displayname": "Bot" }),
            200,
        ),
        (
            "PUT /_matrix/client/v3/presence/{user}/status",
            json!({ "presence": "online" }),
            200,
        ),
        (
            "GET /_matrix/client/v3/user/{user}/account_data/m.direct",
            Value::Null,
            404,
        ),
        ("POST /_matrix/client/r0/join/{room}", json!({}), 200),
        ("GET /_matrix/client/v3/room_keys/version", Value::Null, 404),
    ]
}

/// What the placeholders stand for.
struct Own {
    values: Vec<(&'static str, String)>,
}

impl Own {
    fn fill(&self, text: &str) -> String {
        let filled = |text: String, (name, value): &(&str, String)| text.replace(name, value);
        self.values.iter().fold(text.to_owned(), filled)
    }

    async fn ask(&self, client: &Client, question: Question<'_>) -> Option<String> {
        let (request, body, expected) = question;
        let request = self.fill(request);
        let (method, path) = request.split_once(' ').unwrap();
        let body = (!body.is_null()).then(|| body.to_string());
        let body = body.map(|body| serde_json::from_str(&self.fill(&body)).unwrap());
        let answer = client.call(method.parse().unwrap(), path, body).await;
        let is_error = expected < 400 || expected == 401 || answer.body["errcode"].is_string();
        if answer.status == expected && is_error {
            return None;
        }
        Some(format!(
            "{request}: expected {expected}, got {}: {}",
            answer.status, answer.body
        ))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_the_answers_they_go_on_with() {
    let server = Server::start().await;
    let nobody = server.client();
    let somebody = nobody.register("somebody").await;
    let room = somebody
        .create_room(json!({ "preset": "public_chat" }))
        .await;
    let event = somebody.say(&room, "hello").await;
    let path = format!("/_matrix/client/v3/user/{}/filter", somebody.user);
    let filter = somebody.post(&path, json!({})).await.text("filter_id");
    let own = Own {
        values: vec![
            ("{user}", somebody.user.clone()),
            ("{device}", somebody.device.clone()),
            ("{room}", room),
            ("{event}", event),
            ("{filter}", filter),
        ],
    };
    let mut faults = Vec::new();
    for question in before_login() {
        faults.extend(own.ask(&nobody, question).await);
    }
    for (name, questions) in [
        ("Element", element()),
        ("Cinny", cinny()),
        ("rust-sdk", rust_sdk()),
        ("others", others()),
    ] {
        for question in questions {
            let fault = own.ask(&somebody, question).await;
            faults.extend(fault.map(|fault| format!("{name}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
