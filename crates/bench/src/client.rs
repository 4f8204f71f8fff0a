//! A client with no more than the load needs.

use std::{sync::Arc, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};

use crate::Error;

/// No request takes longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// An HTTP client for servers without TLS.
pub(crate) fn without_certificates(
    builder: reqwest::ClientBuilder,
) -> Result<reqwest::Client, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Server(error.to_string()))?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let http = builder
        .tls_backend_preconfigured(tls)
        .timeout(PATIENCE)
        .tcp_nodelay(true)
        .no_proxy();
    Ok(http.build()?)
}

/// Somebody who talks to the server, perhaps logged in. Clones share connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    /// A client with a connection pool of its own.
    pub(crate) fn new(base: &str) -> Result<Self, Error> {
        let http = without_certificates(reqwest::Client::builder())?;
        Ok(Self {
            http,
            base: base.to_owned(),
            token: String::new(),
        })
    }

    async fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<Value, Error> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.base));
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await?;
        if status != 200 {
            let body = String::from_utf8_lossy(&bytes).into_owned();
            return Err(Error::Answer {
                request: format!("{method} {path}"),
                status,
                body,
            });
        }
        serde_json::from_slice(&bytes).map_err(|error| Error::Server(error.to_string()))
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, None).await
    }

    /// POST.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.call(Method::POST, path, Some(body.to_string())).await
    }

    /// Registers an account and gives its client.
    pub(crate) async fn register(&self, username: &str) -> Result<Self, Error> {
        let body = json!({
            "username": username,
            "password": "a pass phrase for the load",
            "auth": { "type": "m.login.dummy" },
        });
        let session = self.post("/_matrix/client/v3/register", &body).await?;
        Ok(self.with_session(&session))
    }

    /// Logs in and gives the client of the new device.
    pub(crate) async fn login(&self, username: &str) -> Result<Self, Error> {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": username },
            "password": "a pass phrase for the load",
        });
        let session = self.post("/_matrix/client/v3/login", &body).await?;
        Ok(self.with_session(&session))
    }

    fn with_session(&self, session: &Value) -> Self {
        Self {
            token: session["access_token"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            ..self.clone()
        }
    }

    /// Creates a room and gives its id.
    pub(crate) async fn create_room(&self, body: &Value) -> Result<String, Error> {
        let created = self.post("/_matrix/client/v3/createRoom", body).await?;
        Ok(created["room_id"].as_str().unwrap_or_default().to_owned())
    }

    /// Sends a short text message and gives its event id.
    pub(crate) async fn say(&self, room: &str, transaction: &str) -> Result<String, Error> {
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{transaction}");
        let body = json!({ "msgtype": "m.text", "body": format!("message {transaction}") });
        let sent = self
            .call(Method::PUT, &path, Some(body.to_string()))
            .await?;
        Ok(sent["event_id"].as_str().unwrap_or_default().to_owned())
    }

    /// One /sync.
    pub(crate) async fn sync(&self, query: &str) -> Result<Value, Error> {
        self.get(&format!("/_matrix/client/v3/sync?{query}")).await
    }
}
