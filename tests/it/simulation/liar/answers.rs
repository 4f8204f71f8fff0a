//! What the lying server answers: the truth as far as it knows it, but for what it withholds, and
//! where it was told to lie.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use homeserver::{
    events::Pdu,
    federation::{OwnKeys, XMatrix},
};
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, ServerName};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Inside, Known, Liar};

/// Bytes of a piece of an endless answer.
const PIECE: usize = 256 * 1024;
/// Events in an answer at most.
const MAX_ANSWERED: usize = 100;

/// What it answers instead of the truth.
#[derive(Clone, Debug)]
pub(in super::super) enum Lie {
    /// This, with a status.
    Json(u16, Value),
    /// A text that is no JSON, or not what was asked for.
    Text(String),
    /// This text, and then another one again and again.
    Endless(&'static str, String),
    /// The truth, but after so long.
    Late(Duration),
    /// The head of an answer, and never the rest.
    Halt,
}

/// Marks an answer whose body is to be passed on as it comes.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Streamed;

fn json_answer(status: u16, body: &Value) -> http::Response<Body> {
    let answer = http::Response::builder().status(status);
    answer.body(Body::from(body.to_string())).unwrap()
}

fn streamed(body: Body) -> http::Response<Body> {
    let answer = http::Response::builder().extension(Streamed);
    answer.body(body).unwrap()
}

impl Liar {
    pub(super) async fn answer(
        self: Arc<Self>,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("the whole request").to_bytes();
        let path = head.uri.path();
        if path == "/_matrix/key/v2/server" {
            let own = OwnKeys::new(self.name.clone(), Arc::clone(&self.key), Vec::new());
            return http::Response::new(Body::from(own.document(self.now())));
        }
        let header = head.headers.get("authorization");
        let header = header.and_then(|header| XMatrix::parse(header.as_bytes()).ok());
        // Whoever asks for keys need not say who they are.
        let from = match header {
            Some(header) => header.origin,
            None if path.starts_with("/_matrix/key/") => self.name.clone(),
            None => return json_answer(401, &json!({ "errcode": "M_UNAUTHORIZED" })),
        };
        if path.starts_with("/_matrix/federation/v1/send/") {
            self.hear(&body);
            return json_answer(200, &json!({ "pdus": {} }));
        }
        let uri = head.uri.to_string();
        let lie = {
            let mut inside = self.inside.lock();
            inside.asked.push((from.clone(), uri.clone()));
            let mut lies = inside.lies.iter();
            let lie = lies.find(|(path, _)| uri.contains(&**path));
            lie.map(|(_, lie)| lie.clone())
        };
        match lie {
            Some(Lie::Json(status, body)) => return json_answer(status, &body),
            Some(Lie::Text(text)) => return http::Response::new(Body::from(text)),
            Some(Lie::Endless(first, again)) => return self.endless(first, &again),
            Some(Lie::Halt) => {
                return streamed(Body::from_stream(stream::pending::<
                    Result<Bytes, std::io::Error>,
                >()));
            }
            Some(Lie::Late(time)) => sleep(time).await,
            None => {}
        }
        let inside = self.inside.lock();
        match inside.found(&from, &head.uri, &body) {
            Some(body) => json_answer(200, &body),
            None => json_answer(404, &json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
        }
    }

    /// An answer without an end.
    fn endless(self: Arc<Self>, first: &'static str, again: &str) -> http::Response<Body> {
        let piece = Bytes::from(again.repeat(PIECE / again.len()));
        let pieces = stream::unfold(Bytes::from(first), move |next| {
            self.inside.lock().poured += next.len();
            let piece = piece.clone();
            async move { Some((Ok::<_, std::io::Error>(next), piece)) }
        });
        streamed(Body::from_stream(pieces))
    }

    /// Takes a transaction of another server in.
    fn hear(&self, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut inside = self.inside.lock();
        for pdu in body["pdus"].as_array().into_iter().flatten() {
            let room = pdu["room_id"].as_str().unwrap_or_default();
            let known = OwnedRoomId::try_from(room).ok();
            let known = known.and_then(|room| inside.rooms.get_mut(&room));
            let Some(known) = known else { continue };
            if let Ok(event) = Pdu::parse(pdu.to_string().as_bytes(), known.rules) {
                known.learn(&event);
            }
        }
    }
}

impl Inside {
    fn found(&self, from: &ServerName, uri: &http::Uri, body: &[u8]) -> Option<Value> {
        let segment = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let path: Vec<String> = uri.path().split('/').skip(4).map(segment).collect();
        let query = uri.query().unwrap_or_default().split('&');
        let query: Vec<_> = query.filter_map(|pair| pair.split_once('=')).collect();
        let ids = |name: &str| -> Vec<OwnedEventId> {
            let named = query.iter().filter(|(key, _)| *key == name);
            let ids = named.map(|(_, id)| segment(id));
            ids.filter_map(|id| OwnedEventId::try_from(id).ok())
                .collect()
        };
        let kind = path.first()?.as_str();
        if kind == "event" {
            let id = OwnedEventId::try_from(path.get(1)?.as_str()).ok()?;
            let event = self
                .rooms
                .values()
                .find_map(|known| self.given(known, from, &id))?;
            return Some(json!({ "origin": "x", "origin_server_ts": 1, "pdus": [event] }));
        }
        let room = OwnedRoomId::try_from(path.get(1)?.as_str()).ok()?;
        let known = self.rooms.get(&room)?;
        let events = |ids: &[OwnedEventId]| -> Vec<Value> {
            ids.iter()
                .filter_map(|id| self.given(known, from, id))
                .collect()
        };
        match kind {
            "state_ids" | "state" => {
                let state = known.state_before(ids("event_id").first()?)?;
                let chain = known.chain(&state);
                Some(if kind == "state" {
                    json!({ "pdus": events(&state), "auth_chain": events(&chain) })
                } else {
                    json!({ "pdu_ids": state, "auth_chain_ids": chain })
                })
            }
            "event_auth" => {
                let id = OwnedEventId::try_from(path.get(2)?.as_str()).ok()?;
                Some(json!({ "auth_chain": events(&known.chain(&[id])) }))
            }
            "get_missing_events" => {
                let asked: Value = serde_json::from_slice(body).ok()?;
                let ids = |key: &str| serde_json::from_value(asked[key].clone()).ok();
                let limit = asked["limit"].as_u64()? as usize;
                let (latest, earliest): (Vec<OwnedEventId>, _) =
                    (ids("latest_events")?, ids("earliest_events")?);
                let mut below = known.below(latest, earliest, limit);
                below.reverse();
                Some(json!({ "events": events(&below) }))
            }
            "backfill" => {
                let from = ids("v");
                let mut below = from.clone();
                below.extend(known.below(from, Vec::new(), MAX_ANSWERED));
                Some(json!({ "origin": "x", "origin_server_ts": 1, "pdus": events(&below) }))
            }
            _ => None,
        }
    }

    /// An event, if this server is given it.
    fn given(&self, known: &Known, to: &ServerName, id: &OwnedEventId) -> Option<Value> {
        let withheld = self.withheld.get(id);
        if withheld
            .is_some_and(|given: &std::collections::BTreeSet<OwnedServerName>| !given.contains(to))
        {
            return None;
        }
        let event = known.events.get(id)?;
        serde_json::from_slice(event.json()).ok()
    }
}

impl Known {
    fn state_before(&self, event: &OwnedEventId) -> Option<Vec<OwnedEventId>> {
        self.events.get(event)?;
        let at_join = || self.joined_at.values().cloned().collect();
        Some(self.told.get(event).cloned().unwrap_or_else(at_join))
    }

    /// The auth events of events, and theirs.
    fn chain(&self, of: &[OwnedEventId]) -> Vec<OwnedEventId> {
        let mut open: Vec<OwnedEventId> = of.to_vec();
        let (mut chain, mut seen) = (Vec::new(), HashSet::new());
        while let Some(event) = open.pop().and_then(|id| self.events.get(&id)) {
            for auth in event.auth_events() {
                if seen.insert(auth.clone()) {
                    chain.push(auth.clone());
                    open.push(auth.clone());
                }
            }
        }
        chain
    }

    /// Events before some, the nearest first.
    fn below(
        &self,
        of: Vec<OwnedEventId>,
        but: Vec<OwnedEventId>,
        limit: usize,
    ) -> Vec<OwnedEventId> {
        let mut seen: HashSet<_> = but.into_iter().chain(of.iter().cloned()).collect();
        let mut open: VecDeque<_> = of.into();
        let mut below = Vec::new();
        while let Some(id) = open.pop_front() {
            let prev = self.events.get(&id).map(Pdu::prev_events);
            for prev in prev.into_iter().flatten() {
                if below.len() < limit
                    && self.events.contains_key(prev)
                    && seen.insert(prev.clone())
                {
                    below.push(prev.clone());
                    open.push_back(prev.clone());
                }
            }
        }
        below
    }
}
