//! Policy servers: who recommends the events of a room, by a signature.
//!
//! What a recommendation is worth is decided elsewhere: an event without one is soft-failed where
//! it was received, and not sent where it was about to be.
//!
//! Specification: server-server API, "Policy Servers".

use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;

use crate::canonical;
use crate::hash::decode_any_base64;
use crate::keys::VerifyKey;
use crate::limits::MAX_PDU_BYTES;
use crate::pdu::Pdu;
use crate::redaction::redact_object;
use crate::signatures::{insert_signature, verify_json};

/// The type of the state event that names a room's policy server.
pub const POLICY: &str = "m.room.policy";

/// The id of the key that policy servers sign with.
pub const POLICY_KEY: &str = "ed25519:policy_server";

/// The policy server that a room names. Whether the room uses it depends on one of its users being
/// joined as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyServer {
    via: OwnedServerName,
    key: VerifyKey,
}

impl PolicyServer {
    /// Reads the content of `m.room.policy`. `None` if it is not valid: then the room has none.
    pub fn from_content(content: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: String,
            public_keys: Keys,
        }
        #[derive(Deserialize)]
        struct Keys {
            ed25519: String,
        }
        let content: Content = serde_json::from_str(content).ok()?;
        let key = decode_any_base64(&content.public_keys.ed25519)?;
        Some(Self {
            via: ServerName::parse(content.via).ok()?,
            key: VerifyKey::from_bytes(&key.try_into().ok()?).ok()?,
        })
    }

    /// Its name.
    pub fn via(&self) -> &ServerName {
        &self.via
    }

    /// Whether it is asked about an event: about each but the one that names it.
    pub fn judges(event: &Pdu) -> bool {
        !event.is_state(POLICY, "")
    }

    /// Whether it recommends an event.
    pub fn has_signed(&self, event: &Pdu) -> bool {
        let Ok(object) = event.to_object() else {
            return false;
        };
        let redacted = redact_object(&object, event.rules());
        let key = |id: &str| (id == POLICY_KEY).then_some(self.key);
        verify_json(&redacted, self.via.as_str(), &key).is_ok()
    }

    /// The event with its signature beside those that are there. `None` if the signature is not
    /// valid, or makes the event too large.
    #[must_use]
    pub fn with_signature(&self, event: &Pdu, signature: &str) -> Option<Pdu> {
        let mut object = event.to_object().ok()?;
        let signature = signature.to_owned();
        insert_signature(&mut object, self.via.as_str(), POLICY_KEY, signature);
        let json = canonical::to_string(&object);
        if json.len() > MAX_PDU_BYTES {
            return None;
        }
        let id = event.event_id().to_owned();
        let signed = Pdu::from_stored(json.as_bytes(), id, event.rules()).ok()?;
        self.has_signed(&signed).then_some(signed)
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_room_id, owned_user_id, server_name};
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;
    use crate::{Draft, RoomVersion, SigningKey, sign_json};

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed("policy_server", &[seed; 32]).unwrap()
    }

    fn policy(seed: u8) -> PolicyServer {
        let public = key(seed).verify_key().to_base64();
        let content = json!({ "via": "policy.example", "public_keys": { "ed25519": public } });
        PolicyServer::from_content(&content.to_string()).unwrap()
    }

    fn event(kind: &str, state_key: Option<&str>) -> Pdu {
        let draft = Draft {
            room_id: Some(owned_room_id!("!r:a.example")),
            sender: owned_user_id!("@a:a.example"),
            event_type: kind.to_owned(),
            state_key: state_key.map(str::to_owned),
            content: to_raw_value(&json!({ "body": "x" })).unwrap(),
            origin_server_ts: 1,
            depth: 1,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            redacts: None,
        };
        let own = SigningKey::from_seed("a", &[1; 32]).unwrap();
        let rules = RoomVersion::V11.rules();
        draft.seal(rules, server_name!("a.example"), &own).unwrap()
    }

    /// What the policy server answers for an event.
    fn signature(event: &Pdu, seed: u8) -> String {
        let mut object = redact_object(&event.to_object().unwrap(), event.rules());
        sign_json(&mut object, "policy.example", &key(seed));
        let object: Value = serde_json::from_str(&canonical::to_string(&object)).unwrap();
        let signature = &object["signatures"]["policy.example"][POLICY_KEY];
        signature.as_str().unwrap().to_owned()
    }

    #[test]
    fn only_valid_content_names_one() {
        let public = key(1).verify_key().to_base64();
        for content in [
            json!({}),
            json!([]),
            json!({ "via": 7, "public_keys": { "ed25519": public } }),
            json!({ "via": "no name", "public_keys": { "ed25519": public } }),
            json!({ "via": "a.example", "public_keys": {} }),
            json!({ "via": "a.example", "public_keys": { "ed25519": "AAAA" } }),
            json!({ "via": "a.example", "public_keys": { "ed25519": "A".repeat(43) } }),
            json!({ "via": "a.example", "public_key": public }),
        ] {
            assert_eq!(PolicyServer::from_content(&content.to_string()), None);
        }
        assert_eq!(policy(1).via(), "policy.example");
    }

    #[test]
    fn a_recommendation_is_its_signature_beside_the_others() {
        let event = event("m.room.message", None);
        let policy = policy(1);
        assert!(!policy.has_signed(&event));
        assert_eq!(policy.with_signature(&event, &signature(&event, 2)), None);
        assert_eq!(policy.with_signature(&event, "AAAA"), None);
        let signed = policy
            .with_signature(&event, &signature(&event, 1))
            .unwrap();
        assert!(policy.has_signed(&signed));
        assert_eq!(signed.event_id(), event.event_id());
        let signatures = signed.to_object().unwrap()["signatures"].clone();
        assert_eq!(signatures.as_object().unwrap().len(), 2);
        // The room names another key now.
        assert!(!super::tests::policy(2).has_signed(&signed));
    }

    #[test]
    fn it_is_not_asked_about_the_event_that_names_it() {
        assert!(!PolicyServer::judges(&event(POLICY, Some(""))));
        for (kind, state_key) in [
            (POLICY, Some("x")),
            (POLICY, None),
            ("m.room.message", None),
            ("m.room.topic", Some("")),
        ] {
            assert!(PolicyServer::judges(&event(kind, state_key)));
        }
    }
}
