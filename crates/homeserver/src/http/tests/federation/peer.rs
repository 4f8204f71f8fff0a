//! A server that does what a test tells it, with a key of its own: it signs requests and events,
//! right or wrong.

use std::sync::Arc;

use axum::{Json, extract::Path, routing};
use homeserver_events::{
    CanonicalObject, CanonicalValue, Pdu, RoomVersion, Rules, SigningKey, Strictness, canonical,
    hash, redact_object, sign_json,
};
use homeserver_federation::{KeyDocument, OwnKeys, SignedRequest};
use http::header;
use ruma::{OwnedServerName, ServerName};

use super::*;

/// The server.
pub(super) struct Peer {
    pub(super) name: OwnedServerName,
    pub(super) key: Arc<SigningKey>,
}

impl Peer {
    /// A server of this name in the network, that serves its keys and `router`.
    pub(super) fn join(network: &Arc<Network>, name: &str, router: Router) -> Self {
        let name = ServerName::parse(name).unwrap();
        let key =
            Arc::new(SigningKey::from_seed("peer", &[name.as_str().len() as u8; 32]).unwrap());
        let own = OwnKeys::new(name.clone(), Arc::clone(&key), Vec::new());
        let document = own.document(START);
        KeyDocument::read(document.as_bytes(), &name, START).unwrap();
        let keys = routing::get(async move || document.clone());
        let router = router.route("/_matrix/key/v2/server", keys);
        network.routers.lock().insert(name.clone(), router);
        Self { name, key }
    }

    /// A user of this server.
    pub(super) fn user(&self, name: &str) -> String {
        format!("@{name}:{}", self.name)
    }

    /// Sends a signed request; `null` is an empty body.
    pub(super) async fn ask(&self, to: &Fresh, method: Method, path: &str, body: &Value) -> Answer {
        let answer = self.begin(to, method, path, body).await;
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    /// Sends a signed request. The body of the answer is not read.
    pub(super) async fn begin(
        &self,
        to: &Fresh,
        method: Method,
        path: &str,
        body: &Value,
    ) -> http::Response<Body> {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let destination = &to.homeserver.components().server_name;
        let signed = SignedRequest {
            method: method.as_str(),
            target: path,
            origin: &self.name,
            destination,
            body: text.as_bytes(),
        };
        let signature = signed.sign(&self.key).unwrap().to_string();
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::AUTHORIZATION, signature);
        let request = request.body(Body::from(text)).unwrap();
        to.router.clone().oneshot(request).await.unwrap()
    }

    pub(super) async fn get(&self, to: &Fresh, path: &str) -> Answer {
        self.ask(to, Method::GET, path, &Value::Null).await
    }

    pub(super) async fn put(&self, to: &Fresh, path: &str, body: &Value) -> Answer {
        self.ask(to, Method::PUT, path, body).await
    }

    /// Hashes and signs an event. Gives its id.
    pub(super) fn seal(&self, event: &Value, version: &str) -> (String, Value) {
        let rules = rules(version);
        let mut object = object(event);
        object.remove("hashes");
        object.remove("signatures");
        if rules.event_id_server_signs {
            let opaque = hash::encode_base64_url(hash::content_hash(&object));
            let id = format!("${opaque}:{}", self.name);
            object.insert("event_id".to_owned(), id.as_str().into());
        }
        let content_hash = hash::encode_base64(hash::content_hash(&object));
        let hashes = CanonicalObject::from([("sha256".to_owned(), content_hash.into())]);
        object.insert("hashes".to_owned(), CanonicalValue::Object(hashes));
        self.sign(object, rules)
    }

    /// Signs an event as it is. Gives its id.
    pub(super) fn sign(
        &self,
        mut object: CanonicalObject,
        rules: &'static Rules,
    ) -> (String, Value) {
        let mut redacted = redact_object(&object, rules);
        if let Some(signatures) = object.get("signatures") {
            redacted.insert("signatures".to_owned(), signatures.clone());
        }
        sign_json(&mut redacted, self.name.as_str(), &self.key);
        let signatures = redacted.remove("signatures").unwrap();
        object.insert("signatures".to_owned(), signatures);
        let id = Pdu::of_object(&object, rules).unwrap();
        let json = serde_json::from_str(&canonical::to_string(&object)).unwrap();
        (id.event_id().to_string(), json)
    }

    /// The event with this server's signature beside those that are there.
    pub(super) fn co_sign(&self, event: &Value, version: &str) -> Value {
        self.sign(object(event), rules(version)).1
    }
}

pub(super) fn object(event: &Value) -> CanonicalObject {
    canonical::parse_object(event.to_string().as_bytes(), Strictness::Lenient).unwrap()
}

pub(super) fn rules(version: &str) -> &'static Rules {
    RoomVersion::parse(version).unwrap().rules()
}

/// A router that answers invites with what `answer` makes of the body.
pub(super) fn taking_invites(
    version: &'static str,
    answer: impl Fn(Value) -> (u16, Value) + Clone + Send + Sync + 'static,
) -> Router {
    let path = format!("/_matrix/federation/{version}/invite/{{room}}/{{event}}");
    let handler = async move |Path((_, _)): Path<(String, String)>, Json(body): Json<Value>| {
        let (status, body) = answer(body);
        (http::StatusCode::from_u16(status).unwrap(), Json(body))
    };
    Router::new().route(&path, routing::put(handler))
}
