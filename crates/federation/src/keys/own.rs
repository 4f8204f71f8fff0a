//! The keys of this server, as it publishes them.
//!
//! Specification: server-server API, "Publishing Keys".

use std::{sync::Arc, time::Duration};

use homeserver_events::{
    CanonicalObject, CanonicalValue, KeyLifetime, PublishedKey, SigningKey, VerifyKey,
};
use ruma::{OwnedServerName, ServerName};

use super::KeyDocument;

/// For how long from now this server's keys are published.
pub const VALIDITY: Duration = Duration::from_hours(24);

/// A key that this server does not sign with any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldKey {
    /// Its id, `ed25519:VERSION`.
    pub id: String,
    /// Its public half.
    pub key: VerifyKey,
    /// When it was last used, in milliseconds since 1970.
    pub expired: u64,
}

/// This server's name, the key that it signs with, and those that it used before. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OwnKeys {
    server: OwnedServerName,
    key: Arc<SigningKey>,
    old: Arc<[OldKey]>,
}

impl OwnKeys {
    /// The keys of `server`.
    pub fn new(server: OwnedServerName, key: Arc<SigningKey>, old: Vec<OldKey>) -> Self {
        let old = old.into();
        Self { server, key, old }
    }

    /// This server.
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// The key that it signs with.
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// One of its keys, for checking what it signed itself: nobody has to be asked for it.
    pub fn published(&self, id: &str) -> Option<PublishedKey> {
        if id == self.key.id().as_str() {
            return Some(PublishedKey {
                key: self.key.verify_key(),
                lifetime: KeyLifetime::ValidUntil(u64::MAX),
            });
        }
        let old = self.old.iter().find(|old| old.id == id)?;
        Some(PublishedKey {
            key: old.key,
            lifetime: KeyLifetime::ExpiredAt(old.expired),
        })
    }

    /// The keys that it signed with before, by their ids.
    pub fn retired(&self) -> impl Iterator<Item = (String, VerifyKey)> {
        self.old.iter().map(|old| (old.id.clone(), old.key))
    }

    /// The document for others, signed, as of `now` (milliseconds since 1970).
    pub fn document(&self, now: u64) -> String {
        let valid_until = now.saturating_add(VALIDITY.as_millis() as u64);
        let current = entry(&self.key.verify_key(), []);
        let old = self.old.iter().map(|old| {
            let expired = ("expired_ts".to_owned(), integer(old.expired));
            (old.id.clone(), entry(&old.key, [expired]))
        });
        let object = CanonicalObject::from([
            ("server_name".to_owned(), text(self.server.as_str())),
            ("valid_until_ts".to_owned(), integer(valid_until)),
            (
                "verify_keys".to_owned(),
                CanonicalValue::Object([(self.key.id().to_string(), current)].into()),
            ),
            (
                "old_verify_keys".to_owned(),
                CanonicalValue::Object(old.collect()),
            ),
        ]);
        KeyDocument::sign_own(object, &self.server, &self.key)
    }
}

fn entry<const N: usize>(key: &VerifyKey, more: [(String, CanonicalValue); N]) -> CanonicalValue {
    let key = ("key".to_owned(), text(&key.to_base64()));
    CanonicalValue::Object([key].into_iter().chain(more).collect())
}

fn text(text: &str) -> CanonicalValue {
    CanonicalValue::String(text.to_owned())
}

fn integer(number: u64) -> CanonicalValue {
    CanonicalValue::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    #[test]
    fn what_is_published_is_read_by_others() {
        let key = |seed: u8, version| SigningKey::from_seed(version, &[seed; 32]).unwrap();
        let old = OldKey {
            id: "ed25519:before".to_owned(),
            key: key(2, "before").verify_key(),
            expired: 500,
        };
        let here = server_name!("here.example");
        let own = OwnKeys::new(here.to_owned(), Arc::new(key(1, "now")), vec![old]);
        let now = 1_700_000_000_000;
        let document = own.document(now);
        let read = KeyDocument::read(document.as_bytes(), here, now).unwrap();
        assert_eq!(read.valid_until(), now + 24 * 60 * 60 * 1000);
        assert_eq!(read.keys().len(), 2);
        assert_eq!(
            read.keys()["ed25519:before"],
            own.published("ed25519:before").unwrap()
        );
        let current = read.keys()["ed25519:now"];
        assert_eq!(current.key, own.published("ed25519:now").unwrap().key);
        assert_eq!(own.published("ed25519:other"), None);
    }
}
