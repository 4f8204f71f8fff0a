//! Keys of servers that cannot be asked themselves, and that no notary of ours knows: when a room is
//! joined, the servers through which that is done are asked for them.
//!
//! A witness may lie about a server that is away. So its word counts only for what it is believed
//! anyway, the state of a room that is joined through it; it makes events count that match it and
//! refuses none; it proves no request, and is neither stored nor handed on. Several witnesses are
//! asked, and where they contradict each other, most of them are believed: one alone can neither make
//! a key up nor have one not be believed.
//!
//! Specification: server-server API, "Querying Keys Through Another Server".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use homeserver_events::{CanonicalObject, CanonicalValue, KeyLifetime, PublishedKey};
use ruma::{OwnedServerName, ServerName};
use tokio::time::{Instant, timeout_at};

use super::{Asking, Inner, Keys, MAX_ASKED, Wanted};
use crate::{
    Limits,
    keys::{KeyDocument, known::ServerKeys},
    names::is_same_server,
};

/// Witnesses that are asked: enough that one of them is honest and knows the keys, mostly.
const MAX_WITNESSES: usize = 4;
/// Questions to each of them, of [`MAX_ASKED`] servers.
const MAX_QUESTIONS: usize = 20;
/// Documents of one server that a witness may have kept: one for each of its keys.
const MAX_DOCUMENTS: usize = 4;
/// A witness that answered is not asked again about a server for so long.
const SHORTEST_WAIT: Duration = Duration::from_mins(1);
/// How long one answer is waited for: a witness looks for keys itself, up to eight seconds.
const ANSWER: Limits = Limits {
    body: 2 * 1024 * 1024,
    deadline: Duration::from_secs(10),
    stall: Duration::from_secs(10),
};

/// The latest time that JSON between servers can name.
const MAX_TIME: u64 = (1 << 53) - 1;

/// What is lacked of servers: keys by id, each with the time of the latest event.
type Lacking = BTreeMap<OwnedServerName, BTreeMap<String, u64>>;

/// What a witness said of a server.
#[derive(Clone, Debug)]
pub(super) struct Word {
    documents: Arc<[KeyDocument]>,
    /// When it is asked again, on the monotonic clock.
    until: Duration,
}

/// What one witness says, of some servers.
type Words = BTreeMap<OwnedServerName, Arc<[KeyDocument]>>;

/// What is said of one server: by id, the keys that were named, and by how many witnesses.
#[derive(Default)]
struct Said(BTreeMap<String, Vec<(PublishedKey, usize)>>);

impl Said {
    /// Hears one witness, who names one key under each id.
    fn hear(&mut self, documents: &[KeyDocument]) {
        let mut own: BTreeMap<&String, &PublishedKey> = BTreeMap::new();
        for (id, key) in documents.iter().flat_map(KeyDocument::keys) {
            let known = own.entry(id).or_insert(key);
            if end(key) > end(known) {
                *known = key;
            }
        }
        for (id, key) in own {
            let named = self.0.entry(id.clone()).or_default();
            match named.iter_mut().find(|(known, _)| known.key == key.key) {
                Some((known, witnesses)) => {
                    *witnesses += 1;
                    // The longer life counts.
                    if end(key) > end(known) {
                        *known = *key;
                    }
                }
                None => named.push((*key, 1)),
            }
        }
    }

    /// The keys that most name.
    fn believed(self, server: &ServerName) -> BTreeMap<String, PublishedKey> {
        let believed = self.0.into_iter().filter_map(|(id, mut named)| {
            named.sort_by_key(|(_, witnesses)| std::cmp::Reverse(*witnesses));
            if named.len() > 1 {
                tracing::warn!(%server, id, "servers contradict each other about its key");
            }
            match &*named {
                [(_, most), (_, as_many), ..] if most == as_many => None,
                [(key, _), ..] => Some((id, *key)),
                [] => None,
            }
        });
        believed.collect()
    }
}

impl Inner {
    /// Asks the witnesses for what is still lacking.
    pub(super) async fn ask_witnesses(
        &self,
        wanted: &BTreeMap<&ServerName, Vec<&Wanted>>,
        keys: &mut Keys,
        asking: Asking<'_>,
    ) {
        let lacking = lacking(wanted, keys);
        let own = self.own.server();
        let witnesses = asking
            .witnesses
            .iter()
            .filter(|witness| !is_same_server(witness, own) && self.admission.admits(witness));
        let witnesses: Vec<_> = witnesses.take(MAX_WITNESSES).collect();
        if lacking.is_empty() || witnesses.is_empty() {
            return;
        }
        let until = Instant::now() + asking.patience;
        let asked = witnesses.iter();
        let words = join_all(asked.map(|one| self.ask_witness(one, &lacking, until))).await;
        for server in lacking.into_keys() {
            let mut said = Said::default();
            for documents in words.iter().filter_map(|words| words.get(&server)) {
                said.hear(documents);
            }
            let believed = said.believed(&server);
            keys.vouched.insert(server, believed);
        }
    }

    /// What one witness says, as far as it does in time. What it was asked a moment ago, it is not
    /// asked again.
    async fn ask_witness(&self, witness: &ServerName, lacking: &Lacking, until: Instant) -> Words {
        let now = self.runtime.clock.monotonic();
        let pair = |server: &OwnedServerName| (witness.to_owned(), server.clone());
        let (mut words, mut others) = (Words::new(), Vec::new());
        // Nobody vouches for itself: it was asked already.
        for (server, keys) in lacking.iter().filter(|(server, _)| **server != *witness) {
            match self.said.get(&pair(server)).filter(|word| word.until > now) {
                Some(word) => drop(words.insert(server.clone(), word.documents)),
                None => others.push((server, keys)),
            }
        }
        for some in others.chunks(MAX_ASKED).take(MAX_QUESTIONS) {
            let wanted = some.iter().map(|(server, keys)| {
                let keys = keys.iter().map(|(id, time)| (id.clone(), holds_at(*time)));
                let keys = CanonicalValue::Object(keys.collect());
                (server.to_string(), keys)
            });
            let answer = self.vouched_by(witness, wanted.collect(), ANSWER);
            let Ok(Some(answer)) = timeout_at(until, answer).await else {
                break;
            };
            for (server, _) in some {
                let of_server = answer.iter().filter(|(named, _)| named == *server);
                let documents = of_server.map(|(_, document)| document.clone());
                let documents: Arc<[_]> = documents.take(MAX_DOCUMENTS).collect();
                let word = Word {
                    documents: Arc::clone(&documents),
                    until: now + SHORTEST_WAIT,
                };
                self.said.insert(pair(server), word);
                words.insert((*server).clone(), documents);
            }
        }
        words
    }
}

fn end(key: &PublishedKey) -> u64 {
    match key.lifetime {
        KeyLifetime::ValidUntil(end) | KeyLifetime::ExpiredAt(end) => end,
    }
}

/// The criterion of a query: a key that holds at this time.
fn holds_at(time: u64) -> CanonicalValue {
    let time = i64::try_from(time.min(MAX_TIME)).unwrap_or_default();
    let criterion = CanonicalValue::Integer(time);
    let criterion = ("minimum_valid_until_ts".to_owned(), criterion);
    CanonicalValue::Object(CanonicalObject::from([criterion]))
}

/// What the servers did not give.
fn lacking(wanted: &BTreeMap<&ServerName, Vec<&Wanted>>, keys: &Keys) -> Lacking {
    let mut lacking = Lacking::new();
    for server in &keys.unavailable {
        let known = keys.servers.get(server);
        for one in wanted.get(&**server).into_iter().flatten() {
            let covers =
                |known: &Arc<ServerKeys>| known.covers(&one.key_id, one.time, one.enforced);
            if !known.is_some_and(covers) {
                let ids = lacking.entry(server.clone()).or_default();
                let time = ids.entry(one.key_id.clone()).or_default();
                *time = one.time.max(*time);
            }
        }
    }
    lacking
}
