//! What is known of one server's keys: all that it ever published, and its last document.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use homeserver_events::{KeyLifetime, PublishedKey, VerifyKey};
use serde::{Deserialize, Serialize};

use super::KeyDocument;

/// Keys remembered of one server. A server that publishes more loses the oldest.
const MAX_REMEMBERED: usize = 128;

/// Who gave a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The server: what it does not name, it does not sign with any more.
    Itself,
    /// A notary, which may have an old one.
    Notary,
}

/// The keys of one server, as they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerKeys {
    keys: BTreeMap<String, StoredKey>,
    /// Until when the last document may be used, in milliseconds since 1970.
    valid_until: u64,
    /// Until when it says itself that it is valid.
    signed_until: u64,
    /// When it was fetched.
    fetched: u64,
    /// The last document as it was signed.
    document: String,
    #[serde(skip)]
    decoded: Decoded,
}
homeserver_storage::row!(ServerKeys, 1);

/// The keys as they are used, decoded when one is first asked for: decoding one takes half as long
/// as checking a signature. They follow from the stored ones, which do not change once they are
/// here.
#[derive(Clone, Debug, Default)]
struct Decoded(OnceLock<BTreeMap<String, PublishedKey>>);

impl PartialEq for Decoded {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Decoded {}

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

    /// What is believed after a notary said `new` of a key that is known as `self`: it neither
    /// makes its life shorter nor brings back what the server gave up.
    fn after_notary(self, new: Self) -> Self {
        match (self.lifetime, new.lifetime) {
            (Lifetime::Until(known), Lifetime::Until(new_end)) if self.public == new.public => {
                Self {
                    lifetime: Lifetime::Until(known.max(new_end)),
                    ..self
                }
            }
            (Lifetime::Expired(_), _) => self,
            _ => new,
        }
    }
}

impl ServerKeys {
    /// What is known after a document was read at `now`. Keys that are not named any more keep the
    /// events that they signed, but end now at the latest.
    pub(crate) fn after(
        before: Option<&Self>,
        document: &KeyDocument,
        source: Source,
        now: u64,
    ) -> Self {
        let mut keys = before.map(|before| before.keys.clone()).unwrap_or_default();
        if source == Source::Itself {
            for key in keys.values_mut() {
                if let Lifetime::Until(until) = key.lifetime {
                    key.lifetime = Lifetime::Until(until.min(now));
                }
            }
        }
        for (id, key) in document.keys() {
            let new = StoredKey::new(key);
            let known = keys.get(id).filter(|_| source == Source::Notary);
            let stored = known.map_or(new, |known| known.after_notary(new));
            keys.insert(id.clone(), stored);
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
            signed_until: document.valid_until(),
            keys,
            fetched: now,
            document: document.to_json(),
            decoded: Decoded::default(),
        }
    }

    /// A key, whether it may still be used or not.
    pub(crate) fn key(&self, id: &str) -> Option<PublishedKey> {
        let decode = || {
            let keys = self.keys.iter();
            let decoded = keys.filter_map(|(id, key)| Some((id.clone(), key.published()?)));
            decoded.collect()
        };
        self.decoded.0.get_or_init(decode).get(id).copied()
    }

    /// A key that the server signs requests with at `now`. If the clock was put back since it was
    /// fetched, that is not known.
    pub(crate) fn current(&self, id: &str, now: u64) -> Option<VerifyKey> {
        let key = self.key(id).filter(|_| self.fetched <= now)?;
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
        let half = self.valid_until.saturating_sub(self.fetched) / 2;
        (self.fetched..self.fetched.saturating_add(half)).contains(&now)
    }

    /// Whether the document was fetched less than `span` ago.
    pub(crate) fn is_recent(&self, now: u64, span: Duration) -> bool {
        let until = self.fetched.saturating_add(span.as_millis() as u64);
        (self.fetched..until).contains(&now)
    }

    /// Bytes that it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let ids: usize = self.keys.keys().map(String::len).sum();
        self.document.len() + ids + self.keys.len() * size_of::<(String, StoredKey)>() + 128
    }

    /// Until when the last document may be used, in milliseconds since 1970.
    pub(crate) fn valid_until(&self) -> u64 {
        self.valid_until
    }

    /// Until when the last document says itself that it is valid.
    pub(crate) fn signed_until(&self) -> u64 {
        self.signed_until
    }

    /// When the last document was fetched, in milliseconds since 1970.
    #[cfg(test)]
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched
    }

    /// The last document as it was signed.
    pub(crate) fn document(&self) -> &str {
        &self.document
    }
}
