//! Keys of servers that cannot be asked themselves, and that no notary of ours knows: when a room is
//! joined, the servers through which that is done are asked for them.
//!
//! A witness may lie about a server that is away. So its word counts only for what it is believed
//! anyway, the state of a room that is joined through it; it makes events count that match it and
//! refuses none; it proves no request, and is neither stored nor handed on. Several witnesses are
//! asked, and where they contradict each other none is believed.
//!
//! Specification: server-server API, "Querying Keys Through Another Server".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use homeserver_events::{CanonicalObject, CanonicalValue, KeyLifetime, PublishedKey};
use ruma::{OwnedServerName, ServerName};

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

/// What is said of one server.
#[derive(Default)]
struct Said {
    keys: BTreeMap<String, PublishedKey>,
    /// Ids of which different keys were named.
    contradicted: BTreeSet<String>,
}

impl Said {
    fn hear(&mut self, document: &KeyDocument) {
        for (id, key) in document.keys() {
            match self.keys.get(id) {
                Some(known) if known.key != key.key => {
                    self.contradicted.insert(id.clone());
                }
                // The longer life counts.
                Some(known) if end(known) >= end(key) => {}
                _ => {
                    self.keys.insert(id.clone(), *key);
                }
            }
        }
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
        let asked = join_all(witnesses.iter().map(|one| self.ask_witness(one, &lacking)));
        // All or nothing: who comes late might contradict.
        if tokio::time::timeout(asking.patience, asked).await.is_err() {
            return;
        }
        for server in lacking.keys() {
            let mut said = Said::default();
            for witness in &witnesses {
                let word = self.said.get(&((*witness).clone(), server.clone()));
                let documents = word.map(|word| word.documents);
                documents
                    .iter()
                    .flat_map(|all| all.iter())
                    .for_each(|one| said.hear(one));
            }
            for id in &said.contradicted {
                tracing::warn!(%server, id, "servers contradict each other about its key");
                said.keys.remove(id);
            }
            keys.vouched.insert(server.clone(), said.keys);
        }
    }

    /// Asks one witness for what it was not asked a moment ago.
    async fn ask_witness(&self, witness: &ServerName, lacking: &Lacking) {
        let now = self.runtime.clock.monotonic();
        let pair = |server: &OwnedServerName| (witness.to_owned(), server.clone());
        let others = lacking.iter().filter(|(server, _)| {
            // Nobody vouches for itself: it was asked already.
            let known = self.said.get(&pair(server));
            **server != *witness && known.is_none_or(|word| word.until <= now)
        });
        let others: Vec<_> = others.collect();
        for some in others.chunks(MAX_ASKED).take(MAX_QUESTIONS) {
            let wanted = some.iter().map(|(server, keys)| {
                let keys = keys.iter().map(|(id, time)| (id.clone(), until(*time)));
                let keys = CanonicalValue::Object(keys.collect());
                (server.to_string(), keys)
            });
            let answer = self.vouched_by(witness, wanted.collect(), ANSWER).await;
            let Some(answer) = answer else { return };
            let until = now + SHORTEST_WAIT;
            for (server, _) in some {
                let of_server = answer.iter().filter(|(named, _)| named == *server);
                let documents = of_server.map(|(_, document)| document.clone());
                let documents = documents.take(MAX_DOCUMENTS).collect();
                self.said.insert(pair(server), Word { documents, until });
            }
        }
    }
}

fn end(key: &PublishedKey) -> u64 {
    match key.lifetime {
        KeyLifetime::ValidUntil(end) | KeyLifetime::ExpiredAt(end) => end,
    }
}

/// The criterion of a query: a key that holds at this time.
fn until(time: u64) -> CanonicalValue {
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
