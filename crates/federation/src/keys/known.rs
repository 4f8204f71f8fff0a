//! What is known of one server's keys: all that it ever published, and its last document.

use std::collections::BTreeMap;

use homeserver_events::{KeyLifetime, PublishedKey, VerifyKey};
use serde::{Deserialize, Serialize};

use super::KeyDocument;

/// Keys remembered of one server. A server that publishes more loses the oldest.
const MAX_REMEMBERED: usize = 256;

/// The keys of one server, as they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerKeys {
    keys: BTreeMap<String, StoredKey>,
    /// Until when the last document may be used, in milliseconds since 1970.
    valid_until: u64,
    /// When it was fetched.
    fetched: u64,
    /// The last document as it was signed.
    document: String,
}
homeserver_storage::row!(ServerKeys, 1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredKey {
    public: [u8; 32],
    lifetime: Lifetime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Lifetime {
    Until(u64),
    Expired(u64),
}

impl StoredKey {
    fn new(key: &PublishedKey) -> Self {
        Self {
            public: *key.key.as_bytes(),
            lifetime: match key.lifetime {
                KeyLifetime::ValidUntil(until) => Lifetime::Until(until),
                KeyLifetime::ExpiredAt(expired) => Lifetime::Expired(expired),
            },
        }
    }

    /// `None` if this version refuses a key that an older one took.
    fn published(self) -> Option<PublishedKey> {
        Some(PublishedKey {
            key: VerifyKey::from_bytes(&self.public).ok()?,
            lifetime: match self.lifetime {
                Lifetime::Until(until) => KeyLifetime::ValidUntil(until),
                Lifetime::Expired(expired) => KeyLifetime::ExpiredAt(expired),
            },
        })
    }

    fn end(self) -> u64 {
        match self.lifetime {
            Lifetime::Until(end) | Lifetime::Expired(end) => end,
        }
    }
}

impl ServerKeys {
    /// What is known after a document was read at `now`. Keys that it does not name keep the
    /// validity that they had: events that they signed stay signed.
    pub(crate) fn after(before: Option<&Self>, document: &KeyDocument, now: u64) -> Self {
        let mut keys = before.map(|before| before.keys.clone()).unwrap_or_default();
        for (id, key) in document.keys() {
            keys.insert(id.clone(), StoredKey::new(key));
        }
        while keys.len() > MAX_REMEMBERED {
            let oldest = keys.iter().min_by_key(|(_, key)| key.end());
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else {
                break;
            };
            keys.remove(&oldest);
        }
        let ends = document.keys().values().map(|key| match key.lifetime {
            KeyLifetime::ValidUntil(until) => until,
            KeyLifetime::ExpiredAt(_) => 0,
        });
        Self {
            valid_until: ends.max().unwrap_or_default(),
            keys,
            fetched: now,
            document: document.to_json(),
        }
    }

    /// A key, whether it may still be used or not.
    pub(crate) fn key(&self, id: &str) -> Option<PublishedKey> {
        self.keys.get(id)?.published()
    }

    /// A key that the server signs requests with at `now`.
    pub(crate) fn current(&self, id: &str, now: u64) -> Option<VerifyKey> {
        let key = self.key(id)?;
        matches!(key.lifetime, KeyLifetime::ValidUntil(until) if until >= now).then_some(key.key)
    }

    /// Whether a key may vouch for what was made at `time`; the end of a current key counts only
    /// where it is enforced.
    pub(crate) fn covers(&self, id: &str, time: u64, enforced: bool) -> bool {
        self.key(id).is_some_and(|key| match key.lifetime {
            KeyLifetime::ValidUntil(until) => !enforced || until >= time,
            KeyLifetime::ExpiredAt(expired) => expired >= time,
        })
    }

    /// Whether the document is in the first half of its life.
    pub(crate) fn is_fresh(&self, now: u64) -> bool {
        now < self.fetched + self.valid_until.saturating_sub(self.fetched) / 2
    }

    /// Until when the last document may be used, in milliseconds since 1970.
    pub(crate) fn valid_until(&self) -> u64 {
        self.valid_until
    }

    /// When the last document was fetched, in milliseconds since 1970.
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched
    }

    /// The last document as it was signed.
    pub(crate) fn document(&self) -> &str {
        &self.document
    }
}
