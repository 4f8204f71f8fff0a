//! Endpoints over the assembled router, without sockets, on the memory engine.

mod accounts;
mod closing;
mod devices;
mod discovery;
mod ending;
mod faults;
mod federation;
mod fetched;
mod framework;
mod gaps;
mod hostile;
mod inbound;
mod interactive;
mod invited;
mod lasting;
mod login;
mod media;
mod operator;
mod pages;
mod peer;
mod policy;
mod refresh;
mod registration;
mod rejected;
mod told_by_others;
mod too_large;

use std::sync::Arc;

use axum::{Router, body::Body};
use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{Engine, Store, Table, engines::memory::MemoryEngine};
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    Homeserver,
    config::{Config, RegistrationMode},
};

/// A homeserver of its own, `localhost`, with a clock that is moved by hand.
pub(crate) struct Fresh {
    pub(crate) homeserver: Homeserver,
    pub(crate) router: Router,
    pub(crate) clock: Arc<ManualClock>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// `null` if the body was empty.
    pub(crate) body: Value,
}

impl Answer {
    /// The body of a 200.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Compares status and error code.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        let found = (
            self.status,
            self.body["errcode"].as_str().unwrap_or_default(),
        );
        assert_eq!(found, (status, code), "{}", self.body);
    }
}

/// A homeserver where everybody may register and nothing is limited.
pub(crate) async fn fresh() -> Fresh {
    fresh_with(|_| {}).await
}

/// Like [`fresh`], configured further.
pub(crate) async fn fresh_with(change: impl FnOnce(&mut Config)) -> Fresh {
    fresh_on_with(Arc::new(MemoryEngine::new()), change).await
}

/// Like [`fresh`], on an engine of one's own.
pub(crate) async fn fresh_on(engine: Arc<dyn Engine>) -> Fresh {
    fresh_on_with(engine, |_| {}).await
}

async fn fresh_on_with(engine: Arc<dyn Engine>, change: impl FnOnce(&mut Config)) -> Fresh {
    let mut config = Config::default();
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    change(&mut config);
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let runtime = Runtime::simulated(Arc::clone(&clock), 7);
    let homeserver = Homeserver::configured(config)
        .engine(engine)
        .runtime(runtime)
        .open()
        .await
        .unwrap();
    Fresh {
        router: homeserver.router(),
        homeserver,
        clock,
    }
}

/// Somebody who is logged in.
#[derive(Clone, Debug)]
pub(crate) struct LoggedIn {
    pub(crate) user: String,
    pub(crate) device: String,
    pub(crate) token: String,
}

impl Fresh {
    /// Sends a request; `body` of `null` is an empty one.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Value,
    ) -> Answer {
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string()),
        };
        self.send_bytes(method, path, token, body).await
    }

    /// Sends a request with any body.
    pub(crate) async fn send_bytes(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Body,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(body).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = match &bytes[..] {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned())),
        };
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    pub(crate) async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        self.send(Method::GET, path, token, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, token: Option<&str>, body: Value) -> Answer {
        self.send(Method::POST, path, token, body).await
    }

    pub(crate) async fn put(&self, path: &str, token: Option<&str>, body: Value) -> Answer {
        self.send(Method::PUT, path, token, body).await
    }

    pub(crate) async fn delete(&self, path: &str, token: Option<&str>, body: Value) -> Answer {
        self.send(Method::DELETE, path, token, body).await
    }

    /// Registers `name` with the password `password of NAME`.
    pub(crate) async fn register(&self, name: &str) -> LoggedIn {
        let body = json!({
            "username": name,
            "password": format!("password of {name}"),
            "auth": { "type": "m.login.dummy" },
        });
        let body = self
            .post("/_matrix/client/v3/register", None, body)
            .await
            .ok();
        logged_in(&body)
    }

    /// Logs `name` in once more.
    pub(crate) async fn login(&self, name: &str) -> LoggedIn {
        let body = self
            .post("/_matrix/client/v3/login", None, by_password(name))
            .await
            .ok();
        logged_in(&body)
    }

    /// Whether the token is good, by `whoami`.
    pub(crate) async fn is_good(&self, token: &str) -> bool {
        let answer = self
            .get("/_matrix/client/v3/account/whoami", Some(token))
            .await;
        answer.status == 200
    }
}

/// Waits until a row is there, or is gone.
pub(crate) async fn until_row(store: &Store, table: &Table<u64, ()>, key: u64, there: bool) {
    let look = async {
        while store.get(table, &key).await.unwrap().is_some() != there {
            tokio::task::yield_now().await;
        }
    };
    let patience = std::time::Duration::from_mins(1);
    tokio::time::timeout(patience, look).await.unwrap();
}

/// The body of a login of somebody whom [`Fresh::register`] registered.
pub(crate) fn by_password(name: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": format!("password of {name}"),
    })
}

/// The `auth` of a request by somebody whom [`Fresh::register`] registered.
pub(crate) fn own_password(name: &str) -> Value {
    by_password(name)
}

fn logged_in(body: &Value) -> LoggedIn {
    let text = |key: &str| body[key].as_str().unwrap().to_owned();
    LoggedIn {
        user: text("user_id"),
        device: text("device_id"),
        token: text("access_token"),
    }
}
