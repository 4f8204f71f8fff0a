//! The room endpoints over the whole router, on the memory engine. One file per area; errors are
//! tables of requests and answers.

mod create;
mod directory;
mod history;
mod membership;
mod send;
mod state;

use std::sync::Arc;

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::http::tests::{Answer, Fresh, LoggedIn, fresh_with};

/// What is left as it is in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A homeserver of its own, `example.org`.
struct World {
    fresh: Arc<Fresh>,
}

/// A logged-in user, or nobody.
struct User {
    fresh: Arc<Fresh>,
    id: String,
    token: Option<String>,
}

impl World {
    async fn new() -> Self {
        let name = "example.org".try_into().unwrap();
        Self {
            fresh: Arc::new(fresh_with(|config| config.server_name = name).await),
        }
    }

    /// Registers a user.
    async fn user(&self, name: &str) -> User {
        self.known(self.fresh.register(name).await)
    }

    /// Another device of a user.
    async fn login(&self, name: &str) -> User {
        self.known(self.fresh.login(name).await)
    }

    fn known(&self, user: LoggedIn) -> User {
        User {
            fresh: Arc::clone(&self.fresh),
            id: user.user,
            token: Some(user.token),
        }
    }

    /// Requests without a token.
    fn nobody(&self) -> User {
        User {
            fresh: Arc::clone(&self.fresh),
            id: String::new(),
            token: None,
        }
    }
}

impl User {
    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, body).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, Value::Null).await
    }

    /// `null` is an empty body.
    async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        let token = self.token.as_deref();
        self.fresh.send(method, path, token, body).await
    }

    async fn create(&self, wish: Value) -> String {
        let made = self.post("/_matrix/client/v3/createRoom", wish).await.ok();
        made["room_id"].as_str().unwrap().to_owned()
    }

    async fn join(&self, room: &str) {
        self.post(&in_room(room, "join"), json!({})).await.ok();
    }

    async fn say(&self, room: &str, transaction: &str) -> String {
        let path = in_room(room, &format!("send/m.room.message/{transaction}"));
        let content = json!({ "msgtype": "m.text", "body": transaction });
        event_id(&self.put(&path, content).await.ok())
    }

    async fn relate(&self, room: &str, transaction: &str, relation: Value) -> Answer {
        let path = in_room(room, &format!("send/m.room.message/{transaction}"));
        let content = json!({
            "msgtype": "m.text", "body": transaction, "m.relates_to": relation,
        });
        self.put(&path, content).await
    }

    async fn set_state(&self, room: &str, kind: &str, key: &str, content: Value) -> Answer {
        let path = in_room(room, &format!("state/{}/{}", encode(kind), encode(key)));
        self.put(&path, content).await
    }

    async fn state(&self, room: &str, kind: &str) -> Value {
        self.get(&in_room(room, &format!("state/{kind}")))
            .await
            .ok()
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

fn in_room(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", encode(room))
}

fn event_id(answer: &Value) -> String {
    answer["event_id"].as_str().unwrap().to_owned()
}

fn ids(events: &Value) -> Vec<&str> {
    let events = events.as_array().unwrap().iter();
    events
        .map(|event| event["event_id"].as_str().unwrap())
        .collect()
}
