//! Fetching keys: from the server, then from notaries.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use homeserver_events::{CanonicalObject, CanonicalValue, Strictness, canonical::parse_object};
use homeserver_storage::Batch;
use http::{Method, header};
use ruma::ServerName;
use tokio::sync::Mutex;

use super::{Failure, Inner, KeyProblem, MAX_WAITING_FOR_ONE};
use crate::{
    Limits, Outgoing,
    keys::{KeyDocument, known::ServerKeys},
    tables::SERVER_KEYS,
};

/// A server that was asked a moment ago is not asked again for a key that it did not name.
const SHORTEST_WAIT: Duration = Duration::from_mins(1);
/// The longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_hours(1);
/// Answer of a server about itself.
const DIRECT: Limits = Limits {
    body: 64 * 1024,
    deadline: Duration::from_secs(10),
    stall: Duration::from_secs(10),
};
/// Answer of a notary.
const NOTARY: Limits = Limits {
    body: 1024 * 1024,
    deadline: Duration::from_secs(10),
    stall: Duration::from_secs(10),
};
/// Documents of one notary's answer that are looked at.
const MAX_DOCUMENTS: usize = 100;

/// A place among those who want to fetch from one server.
struct Turn<'a> {
    inner: &'a Inner,
    server: &'a ServerName,
    lock: Arc<Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn of(inner: &'a Inner, server: &'a ServerName) -> Self {
        let lock = Arc::clone(inner.turns.lock().entry(server.to_owned()).or_default());
        Self {
            inner,
            server,
            lock,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.inner.turns.lock();
        // Ours and the map's: nobody else waits, and nobody comes while the map is locked.
        if Arc::strong_count(&self.lock) == 2 {
            turns.remove(self.server);
        }
    }
}

impl Inner {
    /// Fetches the keys of a server, unless somebody did so a moment ago, and stores them. Gives
    /// what is known then.
    pub(super) async fn fetch(&self, server: &ServerName) -> Result<Arc<ServerKeys>, KeyProblem> {
        if !self.admission.admits(server) {
            return Err(KeyProblem::NotAdmitted(server.to_owned()));
        }
        let _place = self.waiting.try_acquire().map_err(|_| KeyProblem::Busy)?;
        let turn = Turn::of(self, server);
        // Ours and the map's do not wait for anybody.
        if Arc::strong_count(&turn.lock) > MAX_WAITING_FOR_ONE + 1 {
            return Err(KeyProblem::Busy);
        }
        let _held = turn.lock.lock().await;
        self.fetch_in_turn(server).await
    }

    async fn fetch_in_turn(&self, server: &ServerName) -> Result<Arc<ServerKeys>, KeyProblem> {
        let known = self.known(server).await?;
        let now = self.now();
        if let Some(known) = &known
            && now.saturating_sub(known.fetched()) < SHORTEST_WAIT.as_millis() as u64
        {
            return Ok(Arc::clone(known));
        }
        let failure = self.failures.get(server);
        if failure.is_some_and(|failure| self.runtime.clock.monotonic() < failure.until) {
            return known.ok_or_else(|| KeyProblem::Unreachable(server.to_owned()));
        }
        let _place = self
            .fetching
            .acquire()
            .await
            .map_err(|_| KeyProblem::Busy)?;
        let document = match self.ask_itself(server).await {
            Some(document) => Some(document),
            None => self.ask_notaries(server).await,
        };
        let Some(document) = document else {
            self.note_failure(server, failure);
            return known.ok_or_else(|| KeyProblem::Unreachable(server.to_owned()));
        };
        self.failures.remove(server);
        let keys = ServerKeys::after(known.as_deref(), &document, self.now());
        let mut batch = Batch::new();
        batch.put(&SERVER_KEYS, &server.as_str(), &keys);
        if let Err(error) = self.store.commit(batch).await {
            // They are fetched again after a restart.
            tracing::warn!(%error, %server, "keys were not stored");
        }
        let keys = Arc::new(keys);
        self.known.insert(server.to_owned(), Arc::clone(&keys));
        Ok(keys)
    }

    fn note_failure(&self, server: &ServerName, before: Option<Failure>) {
        let attempts = before.map_or(0, |before| before.attempts.saturating_add(1));
        let wait = SHORTEST_WAIT
            .saturating_mul(1 << attempts.min(16))
            .min(LONGEST_WAIT);
        let until = self.runtime.clock.monotonic() + wait;
        self.failures
            .insert(server.to_owned(), Failure { attempts, until });
    }

    /// The document that a server gives of itself.
    async fn ask_itself(&self, server: &ServerName) -> Option<KeyDocument> {
        let request = http::Request::builder()
            .uri("/_matrix/key/v2/server")
            .body(Bytes::new());
        let json = self.exchange(server, request, DIRECT).await?;
        let read = KeyDocument::read(&json, server, self.now());
        read.inspect_err(|error| tracing::debug!(%error, %server, "its keys are not believed"))
            .ok()
    }

    /// The document with the longest validity that the notaries give.
    async fn ask_notaries(&self, server: &ServerName) -> Option<KeyDocument> {
        let wanted = CanonicalObject::from([(
            server.to_string(),
            CanonicalValue::Object(CanonicalObject::new()),
        )]);
        let body =
            CanonicalObject::from([("server_keys".to_owned(), CanonicalValue::Object(wanted))]);
        let body = Bytes::from(homeserver_events::canonical::to_string(&body));
        for notary in self
            .notaries
            .iter()
            .filter(|notary| **notary != *server && **notary != *self.own.server())
        {
            let request = http::Request::builder()
                .method(Method::POST)
                .uri("/_matrix/key/v2/query")
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.clone());
            let Some(answer) = self.exchange(notary, request, NOTARY).await else {
                continue;
            };
            let Some(vouching) = self.keys_of_notary(notary).await else {
                continue;
            };
            let now = self.now();
            let vouched = documents(&answer).filter_map(|object| {
                let document = KeyDocument::from_object(object, server, now).ok()?;
                let key = |id: &str| vouching.current(id, now);
                document.is_vouched_for(notary, &key).then_some(document)
            });
            if let Some(best) = vouched.max_by_key(KeyDocument::valid_until) {
                return Some(best);
            }
        }
        None
    }

    /// A notary's own keys: known, or from itself.
    async fn keys_of_notary(&self, notary: &ServerName) -> Option<Arc<ServerKeys>> {
        let now = self.now();
        if let Some(known) = self
            .known(notary)
            .await
            .ok()?
            .filter(|keys| keys.is_fresh(now))
        {
            return Some(known);
        }
        let document = self.ask_itself(notary).await?;
        let known = self.known(notary).await.ok()?;
        let keys = Arc::new(ServerKeys::after(known.as_deref(), &document, now));
        self.known.insert(notary.to_owned(), Arc::clone(&keys));
        Some(keys)
    }

    /// The body of a 200 answer.
    async fn exchange(
        &self,
        server: &ServerName,
        request: Result<http::Request<Bytes>, http::Error>,
        limits: Limits,
    ) -> Option<Bytes> {
        let outgoing = Outgoing {
            destination: server.to_owned(),
            request: request.ok()?,
            limits,
        };
        let exchange = async {
            let reply = self.transport.send(outgoing).await?;
            let status = reply.status;
            Ok::<_, crate::TransportError>((status, reply.body.whole().await?))
        };
        match exchange.await {
            Ok((http::StatusCode::OK, body)) => Some(body),
            Ok((status, _)) => {
                tracing::debug!(%server, %status, "no keys");
                None
            }
            Err(error) => {
                tracing::debug!(%server, %error, "no keys");
                None
            }
        }
    }
}

/// The documents in a notary's answer.
fn documents(answer: &[u8]) -> impl Iterator<Item = CanonicalObject> {
    let answer = parse_object(answer, Strictness::Lenient).unwrap_or_default();
    let documents = match answer.into_iter().find(|(name, _)| name == "server_keys") {
        Some((_, CanonicalValue::Array(documents))) => documents,
        _ => Vec::new(),
    };
    let documents = documents.into_iter().take(MAX_DOCUMENTS);
    documents.filter_map(|document| match document {
        CanonicalValue::Object(object) => Some(object),
        _ => None,
    })
}
