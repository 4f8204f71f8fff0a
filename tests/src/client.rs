//! A plain client: it sends what it is told and judges nothing.

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

use crate::{
    record, replies,
    table::{self, Dialect},
};

/// No request of a test takes longer than this.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the server said.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// The response's headers.
    pub headers: HeaderMap,
    /// The raw body.
    pub bytes: Vec<u8>,
    /// The body as JSON, `null` where it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The body, which must have come with a 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// A text field of the body of a 200.
    #[track_caller]
    pub fn text(self, field: &str) -> String {
        let body = self.ok();
        let value = body[field]
            .as_str()
            .unwrap_or_else(|| panic!("no {field} in {body}"));
        value.to_owned()
    }

    /// Fails where ruma has a type for the answer, and this does not parse as it.
    fn must_parse(&self, method: &Method, path: &str) {
        let row = table::find(method.as_str(), path).filter(|row| row.built);
        let (Some(row), 200..300) = (row, self.status) else {
            return;
        };
        let mut response = http::Response::new(self.bytes.as_slice());
        *response.headers_mut() = self.headers.clone();
        if let Some(fault) = replies::fault(row, response) {
            panic!(
                "{method} {path}: not what ruma expects: {fault}\n{}",
                self.body
            );
        }
    }

    /// Fails unless this is an error with this status and error code.
    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str) {
        let said = (self.status, self.body["errcode"].as_str());
        assert_eq!(said, (status, Some(code)), "{}", self.body);
        assert!(
            self.body["error"].is_string(),
            "an error says what is wrong: {}",
            self.body
        );
    }
}

/// Somebody who talks to the server, perhaps logged in.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    dialect: Dialect,
    /// Whether answers must parse and are recorded: those of the server under test.
    judged: bool,
    /// The access token, where logged in.
    pub token: Option<String>,
    /// The user id, where logged in.
    pub user: String,
    /// The device id, where logged in.
    pub device: String,
    transactions: Arc<AtomicU64>,
}

impl Client {
    /// Somebody who is not logged in. `base` has no slash at its end.
    pub fn anonymous(base: &str) -> Self {
        Self {
            http: http(),
            base: base.to_owned(),
            dialect: Dialect::Current,
            judged: true,
            token: None,
            user: String::new(),
            device: String::new(),
            transactions: Arc::default(),
        }
    }

    /// The same client of a server that is not ours, whose answers are neither judged nor recorded.
    #[must_use]
    pub fn unjudged(self) -> Self {
        Self {
            judged: false,
            ..self
        }
    }

    /// The same client under the session that a login or registration answered with.
    #[must_use]
    pub fn with_session(&self, session: &Value) -> Self {
        let text = |field: &str| session[field].as_str().unwrap_or_default().to_owned();
        Self {
            token: Some(text("access_token")),
            user: text("user_id"),
            device: text("device_id"),
            ..self.clone()
        }
    }

    /// The same connection for a server that has moved.
    #[must_use]
    pub fn at(&self, base: &str) -> Self {
        Self {
            base: base.to_owned(),
            ..self.clone()
        }
    }

    /// The same client, asking under the names of a dialect wherever it has one.
    #[must_use]
    pub fn in_dialect(&self, dialect: Dialect) -> Self {
        Self {
            dialect,
            ..self.clone()
        }
    }

    /// A transaction id that this client has not used.
    pub fn transaction(&self) -> String {
        format!("t{}", self.transactions.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends a request with any body.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> Result<Answer, reqwest::Error> {
        let translated = match self.dialect {
            Dialect::Current => None,
            other => table::in_dialect(other, method.as_str(), path),
        };
        let path = translated.as_deref().unwrap_or(path);
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = request.body(body).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await?.to_vec();
        let parsed = serde_json::from_slice::<Value>(&bytes).ok();
        if self.judged {
            record::keep(method.as_str(), path, status, parsed.as_ref());
        }
        let answer = Answer {
            status,
            headers,
            bytes,
            body: parsed.unwrap_or(Value::Null),
        };
        if self.judged {
            answer.must_parse(&method, path);
        }
        Ok(answer)
    }

    /// Sends a request that must be answered.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let bytes = body.map(|body| body.to_string().into_bytes());
        let content_type = bytes.as_ref().map(|_| "application/json");
        let sent = self
            .send(
                method.clone(),
                path,
                content_type,
                bytes.unwrap_or_default(),
            )
            .await;
        sent.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    /// PUT with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    /// DELETE without a body.
    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    /// Registers an account and gives its client.
    pub async fn register(&self, username: &str) -> Self {
        let body = json!({
            "username": username,
            "password": format!("{username}'s password"),
            "auth": { "type": "m.login.dummy" },
        });
        let session = self.post("/_matrix/client/v3/register", body).await.ok();
        self.with_session(&session)
    }

    /// Logs in with the password that [`Client::register`] chose.
    pub async fn login(&self, username: &str) -> Self {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": username },
            "password": format!("{username}'s password"),
        });
        let session = self.post("/_matrix/client/v3/login", body).await.ok();
        self.with_session(&session)
    }

    /// Creates a room and gives its id.
    pub async fn create_room(&self, body: Value) -> String {
        self.post("/_matrix/client/v3/createRoom", body)
            .await
            .text("room_id")
    }

    /// Joins a room by id or alias.
    pub async fn join(&self, room: &str) {
        let path = format!("/_matrix/client/v3/join/{}", encode(room));
        self.post(&path, json!({})).await.ok();
    }

    /// Joins a room that other servers know of, by id or alias.
    pub async fn join_via(&self, room: &str, server: &str) -> Answer {
        let (room, via) = (encode(room), encode(server));
        let path = format!("/_matrix/client/v3/join/{room}?via={via}&server_name={via}");
        self.post(&path, json!({})).await
    }

    /// `invite`, `leave`, `kick`, `ban`, `upgrade` and what else is done to a room.
    pub async fn act(&self, room: &str, action: &str, body: Value) -> Answer {
        let path = format!("/_matrix/client/v3/rooms/{}/{action}", encode(room));
        self.post(&path, body).await
    }

    /// The content of a state event.
    pub async fn state(&self, room: &str, kind: &str, key: &str) -> Answer {
        let (room, key) = (encode(room), encode(key));
        self.get(&format!(
            "/_matrix/client/v3/rooms/{room}/state/{kind}/{key}"
        ))
        .await
    }

    /// Sends a text message and gives its event id.
    pub async fn say(&self, room: &str, text: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.send_event(room, "m.room.message", content)
            .await
            .text("event_id")
    }

    /// Sends any event.
    pub async fn send_event(&self, room: &str, event_type: &str, content: Value) -> Answer {
        let (room, transaction) = (encode(room), self.transaction());
        let path = format!("/_matrix/client/v3/rooms/{room}/send/{event_type}/{transaction}");
        self.put(&path, content).await
    }

    /// Sends a state event.
    pub async fn set_state(&self, room: &str, kind: &str, key: &str, content: Value) -> Answer {
        let (room, key) = (encode(room), encode(key));
        self.put(
            &format!("/_matrix/client/v3/rooms/{room}/state/{kind}/{key}"),
            content,
        )
        .await
    }

    /// One /sync; `query` without the question mark.
    pub async fn sync(&self, query: &str) -> Value {
        self.get(&format!("/_matrix/client/v3/sync?{query}"))
            .await
            .ok()
    }
}

/// Percent-encodes one path segment.
pub fn encode(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', hex(byte >> 4), hex(byte & 15)]);
        }
    }
    encoded
}

fn hex(digit: u8) -> char {
    char::from(b"0123456789ABCDEF"[usize::from(digit)])
}

/// The TLS side is never used on loopback, but must not depend on process-wide state.
#[expect(
    clippy::disallowed_methods,
    reason = "the guarded client refuses loopback by design"
)]
fn http() -> reqwest::Client {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default protocol versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(PATIENCE)
        .no_proxy()
        .build()
        .expect("an HTTP client must be built")
}
