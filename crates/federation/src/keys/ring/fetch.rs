//! Fetching keys: from the server, then from notaries.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use homeserver_events::{CanonicalObject, CanonicalValue, Strictness, canonical::parse_object};
use http::{Method, header};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Mutex;

use super::{Failure, Fetched, For, Inner, KeyProblem, MAX_WAITING_FOR_ONE};
use crate::{
    Limits, Outgoing,
    keys::{
        KeyDocument,
        document::MAX_DOCUMENT,
        known::{ServerKeys, Source},
    },
    names::is_same_server,
};

/// A server that was asked a moment ago is not asked again for a key that it did not name.
const SHORTEST_WAIT: Duration = Duration::from_mins(1);
/// The wait after the first failure, which may be one lost answer: until the next time, nothing that
/// the server sends can be checked. It doubles with each further one.
const WAIT_AFTER_FAILURE: Duration = Duration::from_secs(6);
/// The longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_hours(1);
/// A server that failed so often in a row counts as gone: by the pauses between, for three minutes.
const GONE_AFTER: u32 = 6;
/// Answer of a server about itself.
const DIRECT: Limits = Limits {
    body: MAX_DOCUMENT,
    deadline: Duration::from_secs(5),
    stall: Duration::from_secs(5),
};
/// Answer of a notary. Together they are shorter than anybody's patience.
const NOTARY: Limits = Limits {
    body: 1024 * 1024,
    deadline: Duration::from_secs(4),
    stall: Duration::from_secs(4),
};
/// Documents of one notary's answer that are looked at.
const MAX_DOCUMENTS: usize = 100;

/// A place among those who want to fetch from one server.
struct Turn {
    inner: Arc<Inner>,
    server: OwnedServerName,
    /// Taken when the place is given back.
    lock: Option<Arc<Mutex<()>>>,
}

impl Turn {
    /// # Errors
    /// When too many wait already.
    fn of(inner: Arc<Inner>, server: OwnedServerName) -> Result<Self, KeyProblem> {
        let lock = {
            let mut turns = inner.turns.lock();
            let lock = turns.entry(server.clone()).or_default();
            // The map's own does not wait.
            if Arc::strong_count(lock) > MAX_WAITING_FOR_ONE {
                return Err(KeyProblem::Busy);
            }
            Arc::clone(lock)
        };
        let lock = Some(lock);
        Ok(Self {
            inner,
            server,
            lock,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.inner.turns.lock();
        // While the map is locked, nobody comes and nobody goes.
        self.lock = None;
        let last = turns.get(&self.server).map(Arc::strong_count);
        if last == Some(1) {
            turns.remove(&self.server);
        }
    }
}

impl Inner {
    /// Fetches the keys of a server, unless somebody did so a moment ago. It is seen through: who
    /// hangs up neither wastes an answer nor hides a failure.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        server: &ServerName,
        what_for: For,
    ) -> Result<Fetched, KeyProblem> {
        if is_same_server(server, self.own.server()) || !self.admission.admits(server) {
            return Err(KeyProblem::NotAdmitted(server.to_owned()));
        }
        let waiting = Arc::clone(&self.lanes.of(what_for).waiting);
        let place = waiting.try_acquire_owned();
        let place = place.map_err(|_| KeyProblem::Busy)?;
        let (inner, server) = (Arc::clone(self), server.to_owned());
        let fetch = async move {
            let _place = place;
            let turn = Turn::of(Arc::clone(&inner), server.clone())?;
            let lock = turn.lock.as_deref().ok_or(KeyProblem::Busy)?;
            let _held = lock.lock().await;
            inner.fetch_in_turn(&server, what_for).await
        };
        self.runtime.tasks.see_through(fetch).await
    }

    /// Whether the keys of a server are not to be had for longer than an outage of the network lasts:
    /// it failed several times in a row, minutes apart, or is not to be asked at all.
    pub(super) fn is_gone(&self, server: &ServerName) -> bool {
        let failure = self.failures.get(server);
        let failed = failure.is_some_and(|failure| failure.attempts + 1 >= GONE_AFTER);
        failed || !self.admission.admits(server)
    }

    /// Whether a server failed a moment ago.
    pub(super) fn is_paused(&self, server: &ServerName) -> bool {
        let failure = self.failures.get(server);
        failure.is_some_and(|failure| self.runtime.clock.monotonic() < failure.until)
    }

    async fn fetch_in_turn(
        &self,
        server: &ServerName,
        what_for: For,
    ) -> Result<Fetched, KeyProblem> {
        let known = self.seen(server).await?;
        if let Some(keys) = &known
            && keys.is_recent(self.now(), SHORTEST_WAIT)
        {
            let keys = Arc::clone(keys);
            return Ok(Fetched { keys, is_new: true });
        }
        let once_known = |known: Option<Arc<ServerKeys>>| match known {
            Some(keys) => Ok(Fetched {
                keys,
                is_new: false,
            }),
            None => Err(KeyProblem::Unreachable(server.to_owned())),
        };
        if self.is_paused(server) {
            return once_known(known);
        }
        let fetching = &self.lanes.of(what_for).fetching;
        let _place = fetching.acquire().await.map_err(|_| KeyProblem::Busy)?;
        let found = if let Some(document) = self.ask_itself(server).await {
            Some((document, Source::Itself))
        } else {
            let document = self.ask_notaries(server, known.as_deref()).await;
            document.map(|document| (document, Source::Notary))
        };
        let Some((document, source)) = found else {
            self.note_failure(server);
            return once_known(known);
        };
        let now = self.now();
        if document.valid_until() > now {
            self.failures.remove(server);
        } else {
            self.note_failure(server);
        }
        let keys = Arc::new(ServerKeys::after(known.as_deref(), &document, source, now));
        if what_for == For::Known {
            self.strangers.remove(server);
            self.keep(server, &keys).await;
        } else if self.known.get(server).is_some() {
            self.keep(server, &keys).await;
        } else {
            self.strangers.insert(server.to_owned(), Arc::clone(&keys));
        }
        Ok(Fetched { keys, is_new: true })
    }

    fn note_failure(&self, server: &ServerName) {
        let before = self.failures.get(server);
        let attempts = before.map_or(0, |before| before.attempts.saturating_add(1));
        let wait = WAIT_AFTER_FAILURE.saturating_mul(1 << attempts.min(16));
        let until = self.runtime.clock.monotonic() + wait.min(LONGEST_WAIT);
        let failure = Failure { attempts, until };
        self.failures.insert(server.to_owned(), failure);
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

    /// The document with the longest validity that a notary gives, if it is newer than what is
    /// known.
    async fn ask_notaries(
        &self,
        server: &ServerName,
        known: Option<&ServerKeys>,
    ) -> Option<KeyDocument> {
        let wanted = CanonicalObject::from([(
            server.to_string(),
            CanonicalValue::Object(CanonicalObject::new()),
        )]);
        for notary in self
            .notaries
            .iter()
            .filter(|notary| **notary != *server && **notary != *self.own.server())
        {
            let vouched = self.vouched_by(notary, wanted.clone(), NOTARY).await;
            let vouched = vouched.into_iter().flatten().map(|(_, document)| document);
            let newer = vouched.filter(|document| {
                known.is_none_or(|known| document.valid_until() > known.signed_until())
            });
            if let Some(best) = newer.max_by_key(KeyDocument::valid_until) {
                return Some(best);
            }
        }
        None
    }

    /// The documents that a server gives of others, signed by each of these and by itself.
    /// `wanted` is the `server_keys` of a query. `None` if it does not answer.
    pub(super) async fn vouched_by(
        &self,
        witness: &ServerName,
        wanted: CanonicalObject,
        limits: Limits,
    ) -> Option<Vec<(OwnedServerName, KeyDocument)>> {
        let asked: Vec<_> = wanted.keys().map(ServerName::parse).collect();
        let wanted = CanonicalValue::Object(wanted);
        let body = CanonicalObject::from([("server_keys".to_owned(), wanted)]);
        let body = Bytes::from(homeserver_events::canonical::to_string(&body));
        let request = http::Request::builder()
            .method(Method::POST)
            .uri("/_matrix/key/v2/query")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let answer = self.exchange(witness, request, limits).await?;
        let vouching = self.keys_of_notary(witness).await?;
        let now = self.now();
        let key = |id: &str| vouching.current(id, now);
        let read = |object: CanonicalObject| {
            let named = object.get("server_name").and_then(CanonicalValue::as_str)?;
            let server = asked.iter().flatten().find(|server| *server == named)?;
            let document = KeyDocument::from_object(object, server, now).ok()?;
            let holds = document.is_vouched_for(witness, &key);
            holds.then(|| (server.clone(), document))
        };
        Some(documents(&answer).filter_map(read).collect())
    }

    /// A notary's own keys: known, or from itself.
    async fn keys_of_notary(&self, notary: &ServerName) -> Option<Arc<ServerKeys>> {
        let now = self.now();
        let known = self.known(notary).await.ok()?;
        if let Some(known) = known.as_ref().filter(|keys| keys.is_fresh(now)) {
            return Some(Arc::clone(known));
        }
        let document = self.ask_itself(notary).await?;
        let keys = ServerKeys::after(known.as_deref(), &document, Source::Itself, now);
        let keys = Arc::new(keys);
        self.keep(notary, &keys).await;
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
