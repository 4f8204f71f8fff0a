//! A server's keys as it publishes them, signed by itself and perhaps by notaries.
//!
//! The document is kept as it was signed: a notary adds its signature to it and hands it on.
//!
//! Specification: server-server API, "Retrieving server keys".

use std::{collections::BTreeMap, time::Duration};

use homeserver_events::{
    CanonicalError, CanonicalObject, CanonicalValue, KeyLifetime, PublishedKey, SigningKey,
    Strictness, VerifyError, VerifyKey,
    canonical::{parse_object, to_string},
    sign_json, verify_json,
};
use ruma::ServerName;

/// Keys of one document, current and old together.
pub const MAX_KEYS: usize = 64;
/// Bytes of one document.
pub const MAX_DOCUMENT: usize = 16 * 1024;
/// The longest key id, in bytes.
const MAX_KEY_ID: usize = 255;
/// A document is believed no longer than this, whatever it says.
pub const LONGEST_TRUST: Duration = Duration::from_hours(7 * 24);

/// Why a document is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not a JSON object.
    #[error("not a JSON object")]
    Json(#[from] CanonicalError),
    /// Over [`MAX_DOCUMENT`] bytes.
    #[error("the document is larger than {MAX_DOCUMENT} bytes")]
    TooLarge,
    /// It is another server's, or does not say whose it is.
    #[error("the document is not of the server that was asked for")]
    OtherServer,
    /// `valid_until_ts` is missing or no time.
    #[error("the document does not say until when it is valid")]
    NoTime,
    /// Over [`MAX_KEYS`] keys, or none.
    #[error("the document has no keys, or too many")]
    Keys,
    /// It is not signed by one of its own current keys, or wrongly by one.
    #[error("the document is not signed by its server")]
    NotSigned(#[source] VerifyError),
}

/// The keys that a server published at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDocument {
    object: CanonicalObject,
    valid_until: u64,
    keys: BTreeMap<String, PublishedKey>,
}

impl KeyDocument {
    /// Reads the document of `server` that was fetched at `now` (milliseconds since 1970). Keys
    /// that are malformed, weak or of another algorithm are left out, the others stand.
    pub fn read(json: &[u8], server: &ServerName, now: u64) -> Result<Self, DocumentError> {
        Self::from_object(parse_object(json, Strictness::Lenient)?, server, now)
    }

    /// Like [`Self::read`], of a document that was part of a larger answer.
    pub fn from_object(
        object: CanonicalObject,
        server: &ServerName,
        now: u64,
    ) -> Result<Self, DocumentError> {
        if to_string(&object).len() > MAX_DOCUMENT {
            return Err(DocumentError::TooLarge);
        }
        let named = object.get("server_name").and_then(CanonicalValue::as_str);
        if named != Some(server.as_str()) {
            return Err(DocumentError::OtherServer);
        }
        let valid_until = time(&object, "valid_until_ts").ok_or(DocumentError::NoTime)?;
        let trusted = now.saturating_add(LONGEST_TRUST.as_millis() as u64);
        let lifetime = KeyLifetime::ValidUntil(valid_until.min(trusted));
        let (current, old) = (map(&object, "verify_keys"), map(&object, "old_verify_keys"));
        let count = |keys: Option<&CanonicalObject>| keys.map_or(0, CanonicalObject::len);
        if count(current) == 0 || count(current) + count(old) > MAX_KEYS {
            return Err(DocumentError::Keys);
        }
        let mut keys = BTreeMap::new();
        for (id, entry) in old.into_iter().flatten() {
            let expired = entry
                .as_object()
                .and_then(|entry| time(entry, "expired_ts"));
            if let (Some(key), Some(expired)) = (usable_key(id, entry), expired) {
                let lifetime = KeyLifetime::ExpiredAt(expired);
                keys.insert(id.clone(), PublishedKey { key, lifetime });
            }
        }
        let mut signing = BTreeMap::new();
        for (id, entry) in current.into_iter().flatten() {
            if let Some(key) = usable_key(id, entry) {
                signing.insert(id.as_str(), key);
                keys.insert(id.clone(), PublishedKey { key, lifetime });
            }
        }
        verify_json(&object, server.as_str(), &|id| signing.get(id).copied())
            .map_err(DocumentError::NotSigned)?;
        Ok(Self {
            object,
            valid_until,
            keys,
        })
    }

    /// Makes and signs a document of this server's own.
    pub(crate) fn sign_own(
        mut object: CanonicalObject,
        server: &ServerName,
        key: &SigningKey,
    ) -> String {
        sign_json(&mut object, server.as_str(), key);
        to_string(&object)
    }

    /// Until when its server says that it is valid, in milliseconds since 1970.
    pub fn valid_until(&self) -> u64 {
        self.valid_until
    }

    /// Its keys by id, each with the time until which it may be used.
    pub fn keys(&self) -> &BTreeMap<String, PublishedKey> {
        &self.keys
    }

    /// Whether `notary` signed it by one of the keys that `key` knows, and wrongly by none.
    pub fn is_vouched_for(
        &self,
        notary: &ServerName,
        key: &dyn Fn(&str) -> Option<VerifyKey>,
    ) -> bool {
        verify_json(&self.object, notary.as_str(), key).is_ok()
    }

    /// The document as it was signed.
    pub fn to_json(&self) -> String {
        to_string(&self.object)
    }
}

fn map<'a>(object: &'a CanonicalObject, name: &str) -> Option<&'a CanonicalObject> {
    object.get(name).and_then(CanonicalValue::as_object)
}

/// A time in milliseconds since 1970.
fn time(object: &CanonicalObject, name: &str) -> Option<u64> {
    let time = object.get(name).and_then(CanonicalValue::as_integer)?;
    u64::try_from(time).ok()
}

/// Whether there can be a key of this id.
pub(crate) fn is_key_id(id: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = id.strip_prefix("ed25519:").unwrap_or_default();
    !name.is_empty() && id.len() <= MAX_KEY_ID && name.chars().all(is_name)
}

/// A key that signatures may be checked against.
fn usable_key(id: &str, entry: &CanonicalValue) -> Option<VerifyKey> {
    if !is_key_id(id) {
        return None;
    }
    let text = entry.as_object()?.get("key")?.as_str()?;
    VerifyKey::from_base64(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::server_name;

    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const DAY: u64 = 24 * 60 * 60 * 1000;

    fn key(seed: u8, version: &str) -> SigningKey {
        SigningKey::from_seed(version, &[seed; 32]).unwrap()
    }

    fn public(seed: u8) -> String {
        key(seed, "x").verify_key().to_base64()
    }

    fn document(text: &str) -> CanonicalObject {
        parse_object(text.as_bytes(), Strictness::Lenient).unwrap()
    }

    /// Current key 1 as `a`, old key 2 as `b`, valid until `until`.
    fn usual(until: u64) -> CanonicalObject {
        document(&format!(
            r#"{{"server_name":"there.example","valid_until_ts":{until},
            "verify_keys":{{"ed25519:a":{{"key":"{}"}}}},
            "old_verify_keys":{{"ed25519:b":{{"key":"{}","expired_ts":1000}}}}}}"#,
            public(1),
            public(2),
        ))
    }

    fn signed(
        mut object: CanonicalObject,
        keys: &[SigningKey],
    ) -> Result<KeyDocument, DocumentError> {
        for key in keys {
            sign_json(&mut object, "there.example", key);
        }
        let json = to_string(&object);
        KeyDocument::read(json.as_bytes(), server_name!("there.example"), NOW)
    }

    #[test]
    fn current_keys_end_with_the_document_and_old_ones_when_they_say() {
        let read = signed(usual(NOW + DAY), &[key(1, "a")]).unwrap();
        assert_eq!(read.valid_until(), NOW + DAY);
        let lifetimes: Vec<_> = read
            .keys()
            .iter()
            .map(|(id, key)| (id.as_str(), key.lifetime))
            .collect();
        assert_eq!(
            lifetimes,
            [
                ("ed25519:a", KeyLifetime::ValidUntil(NOW + DAY)),
                ("ed25519:b", KeyLifetime::ExpiredAt(1000)),
            ]
        );
        // Nobody is believed for longer than a week.
        let read = signed(usual(NOW + 400 * DAY), &[key(1, "a")]).unwrap();
        assert_eq!(read.valid_until(), NOW + 400 * DAY);
        assert_eq!(
            read.keys()["ed25519:a"].lifetime,
            KeyLifetime::ValidUntil(NOW + 7 * DAY)
        );
    }

    #[test]
    fn a_document_is_signed_by_one_of_its_current_keys_and_wrongly_by_none() {
        assert!(matches!(
            signed(usual(NOW), &[]),
            Err(DocumentError::NotSigned(_))
        ));
        // An old key does not speak for the server any more.
        let by_old = signed(usual(NOW), &[key(2, "b")]);
        assert!(matches!(by_old, Err(DocumentError::NotSigned(_))));
        assert!(signed(usual(NOW), &[key(1, "a"), key(2, "b"), key(3, "unknown")]).is_ok());
        let forged = signed(usual(NOW), &[key(3, "a")]);
        assert!(matches!(
            forged,
            Err(DocumentError::NotSigned(VerifyError::WrongSignature(_)))
        ));
    }

    #[test]
    fn whose_it_is_and_until_when_must_be_said() {
        for (field, value, error) in [
            (
                "server_name",
                Some(r#""here.example""#),
                DocumentError::OtherServer,
            ),
            ("server_name", None, DocumentError::OtherServer),
            ("valid_until_ts", None, DocumentError::NoTime),
            ("valid_until_ts", Some("-1"), DocumentError::NoTime),
            ("valid_until_ts", Some(r#""1""#), DocumentError::NoTime),
            ("verify_keys", Some("{}"), DocumentError::Keys),
            ("verify_keys", None, DocumentError::Keys),
        ] {
            let mut object = usual(NOW);
            object.remove(field);
            if let Some(value) = value {
                let text = format!(r#"{{"value":{value}}}"#);
                let value = document(&text).remove("value").unwrap();
                object.insert(field.to_owned(), value);
            }
            assert_eq!(
                signed(object, &[key(1, "a")]),
                Err(error),
                "{field} {value:?}"
            );
        }
        let mut many = usual(NOW);
        let entry = document(&format!(r#"{{"key":"{}"}}"#, public(1)));
        let keys = (0..MAX_KEYS).map(|number| {
            (
                format!("ed25519:k{number}"),
                CanonicalValue::Object(entry.clone()),
            )
        });
        many.insert(
            "verify_keys".to_owned(),
            CanonicalValue::Object(keys.collect()),
        );
        assert_eq!(signed(many, &[key(1, "a")]), Err(DocumentError::Keys));
    }

    #[test]
    fn one_bad_key_costs_only_itself() {
        let mut object = usual(NOW);
        let weak = homeserver_events_weak_key();
        let keys = document(&format!(
            r#"{{"ed25519:a":{{"key":"{good}"}},"ed25519:weak":{{"key":"{weak}"}},"ed25519:short":{{"key":"AAAA"}},
            "ed25519:no-name":{{"key":"{good}"}},"ed25519:":{{"key":"{good}"}},"curve25519:c":{{"key":"{good}"}},
            "ed25519:none":{{}},"ed25519:text":"x"}}"#,
            good = public(1),
        ));
        object.insert("verify_keys".to_owned(), CanonicalValue::Object(keys));
        let read = signed(object, &[key(1, "a")]).unwrap();
        let ids: Vec<_> = read.keys().keys().map(String::as_str).collect();
        assert_eq!(ids, ["ed25519:a", "ed25519:b"]);
    }

    /// The neutral element: a signature by it is easily made for any message.
    fn homeserver_events_weak_key() -> &'static str {
        "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    }

    #[test]
    fn a_key_that_is_both_counts_as_current() {
        let mut object = usual(NOW);
        let old = document(&format!(
            r#"{{"ed25519:a":{{"key":"{}","expired_ts":5}}}}"#,
            public(1)
        ));
        object.insert("old_verify_keys".to_owned(), CanonicalValue::Object(old));
        let read = signed(object, &[key(1, "a")]).unwrap();
        assert_eq!(
            read.keys()["ed25519:a"].lifetime,
            KeyLifetime::ValidUntil(NOW)
        );
    }

    #[test]
    fn a_notary_adds_its_signature_to_what_was_signed() {
        let mut object = usual(NOW);
        // What this version does not know stays, or the signature would not hold.
        object.insert(
            "new_field".to_owned(),
            CanonicalValue::String("kept".to_owned()),
        );
        let read = signed(object, &[key(1, "a")]).unwrap();
        let notary = server_name!("notary.example");
        let known = |id: &str| (id == "ed25519:n").then(|| key(9, "n").verify_key());
        assert!(!read.is_vouched_for(notary, &known));
        let mut handed_on = document(&read.to_json());
        sign_json(&mut handed_on, "notary.example", &key(9, "n"));
        let handed_on = to_string(&handed_on);
        let there = server_name!("there.example");
        let again = KeyDocument::read(handed_on.as_bytes(), there, NOW).unwrap();
        assert!(again.is_vouched_for(notary, &known));
        assert_eq!(again.keys(), read.keys());
        assert!(again.to_json().contains("new_field"));
    }

    proptest! {
        #[test]
        fn no_document_makes_it_panic(json in r#"\{("server_name":"there.example",)?("valid_until_ts":[0-9]{1,20},)?"(old_)?verify_keys":\{"ed25519:[a-z]{0,3}":[ -~]{0,20}\}\}"#) {
            let _ = KeyDocument::read(json.as_bytes(), server_name!("there.example"), u64::MAX);
        }
    }
}
