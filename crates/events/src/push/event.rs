//! An event as push conditions see it: the client format, addressed by property paths.
//!
//! Specification: appendices, "Dot-separated property paths".

use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::glob::Folded;
use crate::Pdu;

/// An event, parsed once, to be held against the rules of many users.
#[derive(Debug)]
pub struct PushEvent {
    json: Map<String, Value>,
    body: OnceLock<Option<Folded>>,
}

impl PushEvent {
    /// The event as a client would see it. `unsigned` and what only servers see (`auth_events`,
    /// `hashes`, …) are left out: no rule may depend on them.
    pub fn new(pdu: &Pdu) -> Self {
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| {
            json.insert(key.to_owned(), value);
        };
        put("event_id", pdu.event_id().as_str().into());
        put("room_id", pdu.room_id().as_str().into());
        put("sender", pdu.sender().as_str().into());
        put("type", pdu.event_type().into());
        put("origin_server_ts", pdu.origin_server_ts().into());
        // A content that is not JSON cannot come out of a `Pdu`.
        put("content", pdu.content_as().unwrap_or_default());
        if let Some(state_key) = pdu.state_key() {
            put("state_key", state_key.into());
        }
        if let Some(redacts) = pdu.redacts() {
            put("redacts", redacts.as_str().into());
        }
        Self::from_json(json)
    }

    /// An event that is already an object in the client format.
    pub fn from_json(json: Map<String, Value>) -> Self {
        Self {
            json,
            body: OnceLock::new(),
        }
    }

    /// The string at a top-level property.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.json.get(key).and_then(Value::as_str)
    }

    pub(super) fn at(&self, path: &Path) -> Option<&Value> {
        let (first, rest) = path.0.split_first()?;
        rest.iter().try_fold(self.json.get(first)?, |value, name| {
            value.as_object()?.get(name)
        })
    }

    /// `content.body`, folded for matching; made once however many rules ask.
    pub(super) fn body(&self) -> Option<&Folded> {
        let fold = || {
            self.json
                .get("content")?
                .get("body")?
                .as_str()
                .map(Folded::new)
        };
        self.body.get_or_init(fold).as_ref()
    }
}

/// The properties named by a dot-separated path, in which `\.` is a dot and `\\` a backslash; other
/// escapes stay as they are.
pub fn property_path(path: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = (c == '\\').then(|| chars.next_if(|next| matches!(next, '.' | '\\')));
        match (c, escaped.flatten()) {
            ('.', _) => names.push(String::new()),
            (_, escaped) => {
                if let Some(name) = names.last_mut() {
                    name.push(escaped.unwrap_or(c));
                }
            }
        }
    }
    names
}

/// A parsed dot-separated path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path(Vec<String>);

impl Path {
    pub(super) fn new(path: &str) -> Self {
        Self(property_path(path))
    }

    pub(super) fn is_body(&self) -> bool {
        matches!(self.0.as_slice(), [first, second] if first == "content" && second == "body")
    }
}
