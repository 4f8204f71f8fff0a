//! A transaction: up to 50 events and 100 ephemeral messages in one request.
//!
//! Specification: server-server API, "Transactions".

use std::{collections::BTreeMap, fmt::Write as _};

use homeserver_events::Pdu;
use ruma::ServerName;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::Answer;

/// Events of one transaction (specification).
pub(super) const MAX_EVENTS: usize = 50;

/// Ephemeral messages of one transaction (specification).
pub(super) const MAX_EDUS: usize = 100;

/// Bytes of events, and bytes of ephemeral messages, after which no more are added: what one
/// transaction holds in memory, and what proxies before other servers let through.
pub(super) const ENOUGH_BYTES: usize = 512 * 1024;

/// Bytes of a hash in a transaction id.
const ID_BYTES: usize = 20;

/// Letters of what another server says of an event that are logged.
const SAID: usize = 200;

/// Errors about events in one answer that are logged.
const LOGGED: usize = 10;

/// An ephemeral message: its type, and its content as JSON.
pub(super) type Edu = (&'static str, Box<RawValue>);

/// The JSON of a transaction. Events are copied as they are stored.
pub(super) fn body(origin: &ServerName, time: u64, events: &[Pdu], edus: &[Edu]) -> String {
    let bytes: usize = events.iter().map(|event| event.json().len() + 1).sum();
    let more: usize = edus
        .iter()
        .map(|(_, content)| content.get().len() + 64)
        .sum();
    let mut body = String::with_capacity(bytes + more + 128);
    body.push_str(r#"{"edus":["#);
    for (at, (edu_type, content)) in edus.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        // Writing to a string cannot fail. Types are our own words.
        let _ = write!(
            body,
            r#"{comma}{{"content":{content},"edu_type":"{edu_type}"}}"#
        );
    }
    // Names of servers hold nothing that JSON would have to escape.
    let _ = write!(
        body,
        r#"],"origin":"{origin}","origin_server_ts":{time},"pdus":["#
    );
    for (at, event) in events.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        body.push_str(event.json_str());
    }
    body.push_str("]}");
    body
}

/// The id of a transaction with this body: other contents never travel under it.
pub(super) fn id(body: &str) -> String {
    let digest = Sha256::digest(body.as_bytes());
    let mut id = String::with_capacity(2 * ID_BYTES);
    for byte in digest.iter().take(ID_BYTES) {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// Logs what another server did not want of a transaction. It is not sent again: it would not be
/// wanted then either.
pub(super) fn log_refused_events(destination: &ServerName, answer: &Answer) {
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        pdus: BTreeMap<String, Verdict>,
    }
    #[derive(Deserialize)]
    struct Verdict {
        error: Option<String>,
    }
    // It answered, whatever it said.
    let Ok(said) = answer.read::<Said>() else {
        return;
    };
    let refused = said.pdus.into_iter();
    let refused = refused.filter_map(|(id, verdict)| Some((id, verdict.error?)));
    for (id, error) in refused.take(LOGGED) {
        let error: String = error.chars().take(SAID).collect();
        let id: String = id.chars().take(SAID).collect();
        tracing::info!(%destination, event = ?id, ?error, "another server refuses an event");
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_body_is_json_and_its_id_follows_from_it() {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let origin = server_name!("a.example:80");
        let edus = [("m.typing", raw(r#"{"a":1}"#)), ("m.presence", raw("{}"))];
        let made = body(origin, 5, &[], &edus);
        let value: Value = serde_json::from_str(&made).unwrap();
        let expected = json!({
            "origin": "a.example:80",
            "origin_server_ts": 5,
            "pdus": [],
            "edus": [
                { "edu_type": "m.typing", "content": { "a": 1 } },
                { "edu_type": "m.presence", "content": {} },
            ],
        });
        assert_eq!(value, expected);
        assert_eq!(id(&made), id(&body(origin, 5, &[], &edus)));
        assert_ne!(id(&made), id(&body(origin, 6, &[], &edus)));
        assert_ne!(id(&made), id(&body(origin, 5, &[], &edus[..1])));
        assert_eq!(id(&made).len(), 40);
    }
}
