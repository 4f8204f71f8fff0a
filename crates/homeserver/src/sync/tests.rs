//! Sync and what it tells, over the whole router, on the memory engine.

mod cost;
mod counting;
mod devices;
mod filters;
mod membership;
mod reading;
mod telling;
mod timeline;
mod trimming;
mod user_data;

use std::{
    collections::HashMap,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::http::tests::{Answer, Fresh, LoggedIn, fresh};

/// A homeserver and its users.
#[derive(Clone)]
struct World {
    fresh: Arc<Fresh>,
    transactions: Arc<AtomicU64>,
}

/// Somebody on one device.
#[derive(Clone)]
struct User {
    world: World,
    session: LoggedIn,
}

impl World {
    async fn new() -> Self {
        Self {
            fresh: Arc::new(fresh().await),
            transactions: Arc::default(),
        }
    }

    async fn user(&self, name: &str) -> User {
        User {
            world: self.clone(),
            session: self.fresh.register(name).await,
        }
    }

    /// Another device of a user.
    async fn device(&self, name: &str) -> User {
        User {
            world: self.clone(),
            session: self.fresh.login(name).await,
        }
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl User {
    fn id(&self) -> &str {
        &self.session.user
    }

    async fn get(&self, path: &str) -> Answer {
        let path = format!("/_matrix/client/v3/{path}");
        self.world.fresh.get(&path, Some(&self.session.token)).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        let path = format!("/_matrix/client/v3/{path}");
        let token = Some(&*self.session.token);
        self.world.fresh.put(&path, token, body).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        let path = format!("/_matrix/client/v3/{path}");
        let token = Some(&*self.session.token);
        self.world.fresh.post(&path, token, body).await
    }

    async fn delete(&self, path: &str) -> Answer {
        let path = format!("/_matrix/client/v3/{path}");
        let token = Some(&*self.session.token);
        self.world.fresh.delete(&path, token, Value::Null).await
    }

    async fn sync(&self, query: &str) -> Value {
        self.get(&format!("sync?{query}")).await.ok()
    }

    /// A sync from a token, with further parameters.
    async fn since(&self, token: &str, query: &str) -> Value {
        self.sync(&format!("since={token}&{query}")).await
    }

    async fn create_room(&self, body: Value) -> String {
        // Two rooms of one creator, made in the same millisecond, would have the same id.
        self.world
            .fresh
            .clock
            .advance(std::time::Duration::from_millis(1));
        let answer = self.post("createRoom", body).await.ok();
        answer["room_id"].as_str().unwrap().to_owned()
    }

    async fn join(&self, room: &str) {
        self.post(&format!("join/{}", encoded(room)), json!({}))
            .await
            .ok();
    }

    async fn invite(&self, room: &str, user: &User) {
        let path = format!("rooms/{}/invite", encoded(room));
        self.post(&path, json!({ "user_id": user.id() })).await.ok();
    }

    async fn leave(&self, room: &str) {
        let path = format!("rooms/{}/leave", encoded(room));
        self.post(&path, json!({})).await.ok();
    }

    /// Sends an event, gives its id.
    async fn send(&self, room: &str, event_type: &str, content: Value) -> String {
        let transaction = self.world.transactions.fetch_add(1, Ordering::Relaxed);
        let room = encoded(room);
        let path = format!("rooms/{room}/send/{event_type}/t{transaction}");
        let answer = self.put(&path, content).await.ok();
        answer["event_id"].as_str().unwrap().to_owned()
    }

    async fn say(&self, room: &str, body: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": body });
        self.send(room, "m.room.message", content).await
    }

    async fn set_state(&self, room: &str, event_type: &str, key: &str, content: Value) -> String {
        let path = format!(
            "rooms/{}/state/{event_type}/{}",
            encoded(room),
            encoded(key)
        );
        let answer = self.put(&path, content).await.ok();
        answer["event_id"].as_str().unwrap().to_owned()
    }

    async fn read(&self, room: &str, kind: &str, event: &str, body: Value) {
        let path = format!("rooms/{}/receipt/{kind}/{}", encoded(room), encoded(event));
        self.post(&path, body).await.ok();
    }
}

fn next(sync: &Value) -> String {
    sync["next_batch"].as_str().unwrap().to_owned()
}

fn joined<'a>(sync: &'a Value, room: &str) -> &'a Value {
    &sync["rooms"]["join"][room]
}

/// The timeline's events.
fn timeline(room: &Value) -> Vec<Value> {
    events(&room["timeline"])
}

fn events(section: &Value) -> Vec<Value> {
    section["events"].as_array().cloned().unwrap_or_default()
}

/// The bodies of the messages in a list of events.
fn bodies(events: &[Value]) -> Vec<String> {
    let bodies = events
        .iter()
        .filter_map(|event| event["content"]["body"].as_str());
    bodies.map(str::to_owned).collect()
}

/// The events of a type in a list.
fn of_type<'a>(events: &'a [Value], event_type: &str) -> Vec<&'a Value> {
    let found = events.iter().filter(|event| event["type"] == event_type);
    found.collect()
}

/// An inline filter as a query parameter.
fn filter(definition: &Value) -> String {
    format!("filter={}", encoded(&definition.to_string()))
}
