//! Other servers as the tests of federation want them: each with its key and the events that it
//! has, of which it tells as the specification says, or lies as it is told to.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use homeserver_events::{
    CanonicalObject, CanonicalValue, Draft, Pdu, RoomVersion, SigningKey, Strictness,
    canonical::{parse_object, to_string},
    hash, redact_object, sign_json,
};
use homeserver_federation::{
    Body as ReplyBody, Outgoing, OwnKeys, Reply, SignedRequest, Transport, TransportError,
};
use http::StatusCode;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, ServerName};
use serde_json::value::to_raw_value;

use super::*;

pub(crate) const START: u64 = 1_700_000_000_000;

/// The servers that can be reached.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    peers: Mutex<HashMap<OwnedServerName, Arc<Peer>>>,
}

/// Another server.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: OwnedServerName,
    pub(crate) key: Arc<SigningKey>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    events: BTreeMap<OwnedEventId, Value>,
    states: HashMap<OwnedEventId, Vec<OwnedEventId>>,
    /// Answers that it gives instead, by the beginning of the path.
    instead: Vec<(String, u16, String)>,
    asked: Vec<String>,
    silent: bool,
    /// As a policy server it recommends all events by this key.
    policy: Option<SigningKey>,
}

#[async_trait]
impl Transport for Servers {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        // Others get their turns.
        tokio::task::yield_now().await;
        let peer = self.peers.lock().get(&outgoing.destination).cloned();
        let nobody = || TransportError::Unreachable("nobody is there".to_owned());
        let (status, body) = peer
            .and_then(|peer| peer.answer(&outgoing.request))
            .ok_or_else(nobody)?;
        let chunk = Ok(Bytes::from(body));
        Ok(Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: ReplyBody::new(stream::iter([chunk]), outgoing.limits.body),
        })
    }
}

impl Servers {
    /// Another server that can be reached; its key is made of `seed`.
    pub(crate) fn add(&self, name: &str, seed: u8) -> Arc<Peer> {
        let peer = Arc::new(Peer::new(name, seed));
        self.put(Arc::clone(&peer));
        peer
    }

    /// Has a server be reached.
    pub(crate) fn put(&self, peer: Arc<Peer>) {
        self.peers.lock().insert(peer.name.clone(), peer);
    }
}

impl Peer {
    /// A server that cannot be reached.
    pub(crate) fn new(name: &str, seed: u8) -> Self {
        Self {
            name: ServerName::parse(name).unwrap(),
            key: Arc::new(SigningKey::from_seed("a", &[seed; 32]).unwrap()),
            known: Mutex::default(),
        }
    }

    /// Has it say nothing, or speak again.
    pub(crate) fn silent(&self, silent: bool) {
        self.known.lock().silent = silent;
    }

    /// Has it answer something else where a path begins like this.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write a value in its place"
    )]
    pub(crate) fn instead(&self, path: &str, status: u16, body: Value) {
        self.instead_text(path, status, body.to_string());
    }

    /// The same with a text, JSON or not.
    pub(crate) fn instead_text(&self, path: &str, status: u16, body: String) {
        self.known
            .lock()
            .instead
            .insert(0, (path.to_owned(), status, body));
    }

    /// Has it answer as it does by itself.
    pub(crate) fn recommends(&self) {
        self.known.lock().instead.clear();
    }

    /// Makes it a policy server.
    pub(crate) fn recommends_by(&self, key: SigningKey) {
        self.known.lock().policy = Some(key);
    }

    /// Gives it an event.
    pub(crate) fn has(&self, event: &Pdu) {
        let json = serde_json::from_slice(event.json()).unwrap();
        let id = event.event_id().to_owned();
        self.known.lock().events.insert(id, json);
    }

    /// Gives it the state before an event.
    pub(crate) fn has_state(&self, event: &EventId, state: Vec<OwnedEventId>) {
        self.known.lock().states.insert(event.to_owned(), state);
    }

    /// The paths that it was asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.known.lock().asked)
    }

    fn answer(&self, request: &http::Request<Bytes>) -> Option<(u16, String)> {
        let text = |(status, body): (u16, Value)| (status, body.to_string());
        let mut known = self.known.lock();
        if known.silent {
            return None;
        }
        let uri = request.uri();
        if uri.path() == "/_matrix/key/v2/server" {
            let own = OwnKeys::new(self.name.clone(), Arc::clone(&self.key), Vec::new());
            return Some((200, own.document(START)));
        }
        if uri.path().starts_with("/_matrix/federation/v1/send/") {
            return Some(text((200, json!({ "pdus": {} }))));
        }
        known.asked.push(uri.to_string());
        let instead = |(path, _, _): &&(String, u16, String)| uri.path().starts_with(&**path);
        if let Some((_, status, body)) = known.instead.iter().find(instead) {
            return Some((*status, body.clone()));
        }
        if let (Some(key), "/_matrix/policy/v1/sign") = (&known.policy, uri.path()) {
            let signed = recommendation(request.body(), self.name.as_str(), key);
            return Some(text((200, signed)));
        }
        let segment = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
        let path: Vec<String> = uri.path().split('/').skip(4).map(segment).collect();
        let query = uri.query().unwrap_or_default();
        let named = query.strip_prefix("event_id=").map(segment);
        let found = match (&*path[0], named) {
            ("event", _) => known.event(&path[1]),
            ("state_ids", Some(id)) => known.state_ids(&id),
            ("state", Some(id)) => known.state(&id),
            ("event_auth", _) => known.auth(&path[2]),
            ("get_missing_events", _) => known.missing(request.body()),
            _ => None,
        };
        let unknown = || {
            (
                404,
                json!({ "errcode": "M_NOT_FOUND", "error": "not here" }),
            )
        };
        Some(text(found.map_or_else(unknown, |body| (200, body))))
    }

    /// An event of a user of this server, signed by it.
    pub(crate) fn event(&self, new: &NewEvent<'_>) -> Pdu {
        let draft = Draft {
            room_id: Some(new.room.clone()),
            sender: OwnedUserId::try_from(format!("@{}:{}", new.sender, self.name)).unwrap(),
            event_type: new.kind.to_owned(),
            state_key: new.state_key.map(str::to_owned),
            content: to_raw_value(&new.content).unwrap(),
            origin_server_ts: START,
            depth: new.depth,
            prev_events: new.prev.iter().cloned().map(Into::into).collect(),
            auth_events: new.auth.iter().cloned().map(Into::into).collect(),
            redacts: None,
        };
        let rules = RoomVersion::V11.rules();
        draft.seal(rules, &self.name, &self.key).unwrap()
    }

    /// The text of an event as this server hashes and signs it, whatever is in it.
    pub(crate) fn seal_text(&self, event: &str) -> String {
        let rules = RoomVersion::V11.rules();
        let mut event = parse_object(event.as_bytes(), Strictness::Lenient).unwrap();
        event.remove("hashes");
        event.remove("signatures");
        let content_hash = hash::encode_base64(hash::content_hash(&event));
        let hashes = CanonicalObject::from([("sha256".to_owned(), content_hash.into())]);
        event.insert("hashes".to_owned(), CanonicalValue::Object(hashes));
        let mut redacted = redact_object(&event, rules);
        sign_json(&mut redacted, self.name.as_str(), &self.key);
        let signatures = redacted.remove("signatures").unwrap();
        event.insert("signatures".to_owned(), signatures);
        to_string(&event)
    }

    /// Makes a signed request to a homeserver.
    pub(crate) async fn ask(
        &self,
        server: &Fresh,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Answer {
        let destination = server.homeserver.components().server_name.clone();
        let signed = SignedRequest {
            method: method.as_str(),
            target,
            origin: &self.name,
            destination: &destination,
            body: &body,
        };
        let header = signed.sign(&self.key).unwrap().to_string();
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("authorization", header)
            .body(Body::from(body))
            .unwrap();
        let answer = server.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
        }
    }

    /// Sends a transaction of this text.
    pub(crate) async fn transaction(&self, server: &Fresh, id: &str, body: &str) -> Answer {
        let target = format!("/_matrix/federation/v1/send/{id}");
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.ask(server, Method::PUT, &target, body).await
    }

    /// Sends events, and gives what was answered for each.
    pub(crate) async fn send(&self, server: &Fresh, id: &str, pdus: &[&Pdu]) -> Value {
        let pdus: Vec<_> = pdus.iter().map(|pdu| pdu.json_str()).collect();
        let body = format!(
            r#"{{"origin":"{}","origin_server_ts":{START},"pdus":[{}]}}"#,
            self.name,
            pdus.join(",")
        );
        self.transaction(server, id, &body).await.ok()["pdus"].take()
    }
}

/// What an event is made of.
#[derive(Clone, Debug)]
pub(crate) struct NewEvent<'a> {
    pub(crate) room: &'a OwnedRoomId,
    pub(crate) sender: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) state_key: Option<&'a str>,
    pub(crate) content: Value,
    pub(crate) prev: Vec<OwnedEventId>,
    pub(crate) auth: Vec<OwnedEventId>,
    pub(crate) depth: u64,
}

impl Known {
    fn event(&self, id: &str) -> Option<Value> {
        let event = self.events.get(<&EventId>::try_from(id).ok()?)?;
        Some(json!({ "origin": "x", "origin_server_ts": 1, "pdus": [event] }))
    }

    fn state_of(&self, id: &str) -> Option<&Vec<OwnedEventId>> {
        self.states.get(<&EventId>::try_from(id).ok()?)
    }

    fn state_ids(&self, id: &str) -> Option<Value> {
        let state = self.state_of(id)?;
        Some(json!({ "pdu_ids": state, "auth_chain_ids": self.chain(state) }))
    }

    fn state(&self, id: &str) -> Option<Value> {
        let state = self.state_of(id)?;
        let json = |ids: &[OwnedEventId]| -> Vec<Value> {
            ids.iter()
                .filter_map(|id| self.events.get(id).cloned())
                .collect()
        };
        Some(json!({ "pdus": json(state), "auth_chain": json(&self.chain(state)) }))
    }

    fn auth(&self, id: &str) -> Option<Value> {
        let id = OwnedEventId::try_from(id).ok()?;
        self.events.get(&id)?;
        let chain = self.chain(&[id]);
        let chain: Vec<_> = chain.iter().filter_map(|id| self.events.get(id)).collect();
        Some(json!({ "auth_chain": chain }))
    }

    /// The auth events of events, and theirs, as far as they are here.
    fn chain(&self, of: &[OwnedEventId]) -> Vec<OwnedEventId> {
        let mut open: Vec<OwnedEventId> = of.to_vec();
        let mut chain = Vec::new();
        let mut seen = HashSet::new();
        while let Some(id) = open.pop() {
            for auth in named(self.events.get(&id), "auth_events") {
                if seen.insert(auth.clone()) {
                    chain.push(auth.clone());
                    open.push(auth);
                }
            }
        }
        chain
    }

    fn missing(&self, body: &[u8]) -> Option<Value> {
        let asked: Value = serde_json::from_slice(body).ok()?;
        let ids = |key: &str| -> Vec<OwnedEventId> {
            serde_json::from_value(asked[key].clone()).unwrap()
        };
        let limit = asked["limit"].as_u64().unwrap() as usize;
        let mut seen: HashSet<_> = ids("earliest_events").into_iter().collect();
        let mut open: VecDeque<_> = ids("latest_events").into();
        let mut events = Vec::new();
        while let Some(id) = open.pop_front() {
            for prev in named(self.events.get(&id), "prev_events") {
                if let Some(event) = self.events.get(&prev)
                    && seen.insert(prev.clone())
                    && events.len() < limit
                {
                    events.push(event.clone());
                    open.push_back(prev);
                }
            }
        }
        events.reverse();
        Some(json!({ "events": events }))
    }
}

/// The signature of a policy server.
fn recommendation(event: &[u8], name: &str, key: &SigningKey) -> Value {
    let rules = RoomVersion::V11.rules();
    let event = parse_object(event, rules.strictness).unwrap();
    let mut redacted = redact_object(&event, rules);
    sign_json(&mut redacted, name, key);
    let signed: Value = serde_json::from_str(&to_string(&redacted)).unwrap();
    let signature = &signed["signatures"][name]["ed25519:policy_server"];
    json!({ name: { "ed25519:policy_server": signature } })
}

fn named(event: Option<&Value>, key: &str) -> Vec<OwnedEventId> {
    let ids = event.map(|event| event[key].clone());
    ids.map_or_else(Vec::new, |ids| serde_json::from_value(ids).unwrap())
}
