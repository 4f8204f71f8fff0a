//! Writes a small database, as an example of the formats of this version: `fixture ENGINE FOLDER`.
//!
//! `cargo xtask fixture` runs it for each engine and keeps the result in `tests/data/released/`; the
//! test `released` opens what is kept there, so that a version that cannot read what an earlier one
//! wrote is noticed. Whatever is written here is looked for there.

use std::{error::Error, path::Path};

use axum::{Router, body::Body};
use homeserver::{
    Homeserver,
    config::{Config, EngineKind},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

pub(crate) const PASSWORD: &str = "a pass phrase of the fixture";
pub(crate) const UPLOAD: &[u8] = b"an upload of the fixture";
pub(crate) const MESSAGES: usize = 40;

pub(crate) type Failure = Box<dyn Error>;

#[cfg(not(test))]
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, folder] = arguments.as_slice() else {
        return Err("usage: fixture ENGINE FOLDER".into());
    };
    write(kind(engine)?, Path::new(folder)).await
}

/// The engine called so.
pub(crate) fn kind(engine: &str) -> Result<EngineKind, Failure> {
    match engine {
        "fjall" => Ok(EngineKind::Fjall),
        "sled" => Ok(EngineKind::Sled),
        other => Err(format!("there is no engine {other}").into()),
    }
}

/// The fixture's homeserver on the data in `folder`.
pub(crate) async fn open(engine: EngineKind, folder: &Path) -> Result<Homeserver, Failure> {
    let mut config = Config {
        server_name: "fixture.example".try_into()?,
        ..Config::default()
    };
    config.storage.engine = engine;
    config.storage.path = folder.to_owned();
    config.rate_limits.enabled = false;
    Ok(Homeserver::configured(config).open().await?)
}

/// A request that must be answered by 200; gives the body.
pub(crate) async fn call(
    router: &Router,
    (method, path): (&str, &str),
    token: Option<&str>,
    body: Body,
) -> Result<Vec<u8>, Failure> {
    let mut request = http::Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = router.clone().oneshot(request.body(body)?).await?;
    let status = answer.status();
    let bytes = answer.into_body().collect().await?.to_bytes().to_vec();
    if status != 200 {
        let text = String::from_utf8_lossy(&bytes);
        return Err(format!("{method} {path}: {status} {text}").into());
    }
    Ok(bytes)
}

/// Somebody who is logged in to the fixture's homeserver.
#[derive(Debug)]
pub(crate) struct User {
    router: Router,
    token: String,
}

impl User {
    pub(crate) async fn log_in(homeserver: &Homeserver, name: &str) -> Result<Self, Failure> {
        let router = homeserver.router();
        let body = json!({
            "type": "m.login.password", "password": PASSWORD,
            "identifier": { "type": "m.id.user", "user": name },
        });
        let request = ("POST", "/_matrix/client/v3/login");
        let answer = call(&router, request, None, Body::from(body.to_string())).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let token = answer["access_token"].as_str().unwrap_or_default();
        Ok(Self {
            router,
            token: token.to_owned(),
        })
    }

    /// A request under `/_matrix/client/v3/`; a body of `null` is none.
    pub(crate) async fn json(
        &self,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<Value, Failure> {
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        let path = format!("/_matrix/client/v3/{path}");
        Ok(serde_json::from_slice(
            &self.bytes((method, &path), body).await?,
        )?)
    }

    pub(crate) async fn bytes(
        &self,
        request: (&str, &str),
        body: Body,
    ) -> Result<Vec<u8>, Failure> {
        call(&self.router, request, Some(&self.token), body).await
    }
}

/// Fills a new database in `folder` and closes it.
pub(crate) async fn write(engine: EngineKind, folder: &Path) -> Result<(), Failure> {
    let homeserver = open(engine, folder).await?;
    let administration = homeserver.administration();
    for name in ["alice", "bob"] {
        administration
            .create_user(name, Some(PASSWORD), name == "alice")
            .await?;
    }
    let alice = User::log_in(&homeserver, "alice").await?;
    let bob = User::log_in(&homeserver, "bob").await?;
    let create = json!({
        "preset": "public_chat", "name": "The room of the fixture", "room_alias_name": "fixture",
    });
    let room = alice.json("POST", "createRoom", create).await?;
    let room = room["room_id"].as_str().unwrap_or_default();
    bob.json("POST", &format!("join/{room}"), json!({})).await?;
    let mut last = String::new();
    for number in 0..MESSAGES {
        let who = if number % 2 == 0 { &alice } else { &bob };
        let path = format!("rooms/{room}/send/m.room.message/t{number}");
        let message = json!({ "msgtype": "m.text", "body": format!("message {number}") });
        let sent = who.json("PUT", &path, message).await?;
        sent["event_id"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut last);
    }
    let path = format!("rooms/{room}/receipt/m.read/{last}");
    bob.json("POST", &path, json!({})).await?;
    let path = "profile/@alice:fixture.example/displayname";
    alice
        .json(
            "PUT",
            path,
            json!({ "displayname": "Alice of the fixture" }),
        )
        .await?;
    let path = "user/@alice:fixture.example/account_data/org.example.fixture";
    alice.json("PUT", path, json!({ "kept": true })).await?;
    let to_device = json!({ "messages": { "@bob:fixture.example": { "*": { "waits": true } } } });
    let path = "sendToDevice/org.example.fixture/t1";
    alice.json("PUT", path, to_device).await?;
    let request = ("POST", "/_matrix/media/v3/upload?filename=fixture.txt");
    let upload = alice.bytes(request, Body::from(UPLOAD)).await?;
    let upload: Value = serde_json::from_slice(&upload)?;
    let path = "user/@alice:fixture.example/account_data/org.example.upload";
    alice.json("PUT", path, upload).await?;
    if homeserver.shutdown().await {
        Ok(())
    } else {
        Err("the database was not closed cleanly".into())
    }
}
