//! Signed calls to other servers: the one way by which this server asks another for anything but
//! keys.
//!
//! A call is refused here, without a word to the other server, if that is ourselves, is not
//! admitted, or failed a moment ago. So many calls as the configuration says are on their way to
//! one server at once; others wait for their turn, for no longer than their deadline, which begins
//! anew when they are sent: who waited here must not make a server look slow. Nothing is repeated
//! here: only the caller knows what may be asked twice.
//!
//! Specification: server-server API, "Authentication".

mod answer;
mod lanes;
mod path;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use homeserver_runtime::Runtime;
use http::{HeaderValue, Method, header};
use ruma::{OwnedServerName, ServerName};
use tokio::time::timeout;

pub use self::{answer::Answer, path::Path};
use self::{
    answer::Refusal,
    lanes::{Lanes, Turn},
};
use crate::{
    Admission, Body, CallError, Health, Limits, Outgoing, OwnKeys, Reply, SignedRequest, Transport,
    TransportError, is_same_server,
};

/// Bodies up to this many bytes are signed where the call is made, longer ones on the pool.
const SIGNED_HERE: usize = 16 * 1024;

/// How calls are made, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct PeersOptions {
    /// `federation.enabled`.
    pub enabled: bool,
    /// Calls to one server at once (`federation.requests_per_destination`).
    pub at_once: usize,
    /// The deadline of calls that do not name one (`federation.request_timeout`).
    pub deadline: Duration,
}

/// The longest answer to calls that do not say, in bytes.
const USUAL_BODY: usize = 10 * 1024 * 1024;

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: Path,
    body: Bytes,
    limits: Option<Limits>,
    urgent: bool,
    apart: bool,
}

impl Call {
    fn new(method: Method, path: Path, body: Bytes) -> Self {
        Self {
            method,
            path,
            body,
            limits: None,
            urgent: false,
            apart: false,
        }
    }

    /// A call without a body.
    #[must_use]
    pub fn get(path: Path) -> Self {
        Self::new(Method::GET, path, Bytes::new())
    }

    /// A call with a JSON object.
    #[must_use]
    pub fn put(path: Path, body: impl Into<Bytes>) -> Self {
        Self::new(Method::PUT, path, body.into())
    }

    /// A call with a JSON object.
    #[must_use]
    pub fn post(path: Path, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, path, body.into())
    }

    /// What the answer may cost, instead of the usual, counted from when the call has its turn.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Made even if the server failed a moment ago: somebody waits for it who has nobody else to
    /// ask.
    #[must_use]
    pub fn urgent(mut self) -> Self {
        self.urgent = true;
        self
    }

    /// Neither counts among the calls to its server nor waits for them: for transactions, of which
    /// there is one at a time.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.apart = true;
        self
    }
}

/// Makes signed calls. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: PeersOptions,
    own: OwnKeys,
    admission: Admission,
    transport: Arc<dyn Transport>,
    health: Health,
    runtime: Runtime,
    lanes: Arc<Lanes>,
}

impl Peers {
    /// Calls in the name of `own`, over `transport`.
    pub fn new(
        options: PeersOptions,
        own: OwnKeys,
        admission: Admission,
        transport: Arc<dyn Transport>,
        health: Health,
        runtime: Runtime,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                own,
                admission,
                transport,
                health,
                runtime,
                lanes: Arc::new(Lanes::new(options.at_once)),
            }),
        }
    }

    /// Whether anybody is called at all.
    pub fn is_enabled(&self) -> bool {
        self.inner.options.enabled
    }

    /// The health of the servers that are called.
    pub fn health(&self) -> &Health {
        &self.inner.health
    }

    /// Whether a server may be called at all: not ourselves, and admitted.
    pub fn may_call(&self, server: &ServerName) -> bool {
        let inner = &*self.inner;
        inner.options.enabled
            && !is_same_server(server, inner.own.server())
            && inner.admission.admits(server)
    }

    /// Makes a call and reads the whole answer.
    ///
    /// # Errors
    /// When there is none, and when it is an error.
    pub async fn ask(&self, server: &ServerName, call: Call) -> Result<Answer, CallError> {
        let body = self.begin(server, call).await?.body.whole().await;
        let body = body.inspect_err(|error| self.inner.note(server, error))?;
        self.inner.health.succeeded(server);
        Ok(Answer { body })
    }

    /// Makes a call, and gives the head of an answer that is no error. Its body counts among the
    /// calls until it is dropped.
    ///
    /// # Errors
    /// When there is none, and when it is an error.
    pub async fn stream(&self, server: &ServerName, call: Call) -> Result<Reply, CallError> {
        let reply = self.begin(server, call).await?;
        self.inner.health.succeeded(server);
        Ok(reply)
    }

    /// What lies at a URL that a server named, if that is a 200.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn elsewhere(&self, url: &str, limits: Limits) -> Result<Reply, CallError> {
        if !self.inner.options.enabled {
            return Err(CallError::Disabled);
        }
        let reply = self.inner.transport.fetch(url, limits).await?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        let what = format!("a medium is not where it should lie: {}", reply.status);
        Err(CallError::BadAnswer(what))
    }

    async fn begin(&self, server: &ServerName, call: Call) -> Result<Reply, CallError> {
        let inner = &*self.inner;
        inner.check(server, call.urgent)?;
        let usual = Limits {
            body: USUAL_BODY,
            deadline: inner.options.deadline,
            stall: inner.options.deadline,
        };
        let limits = call.limits.unwrap_or(usual);
        let mut turn = None;
        if !call.apart {
            let waited = timeout(limits.deadline, inner.lanes.turn(server)).await;
            turn = Some(waited.map_err(|_| CallError::Busy)??);
            // Those before it may have failed.
            inner.check(server, call.urgent)?;
        }
        let request = inner.signed(server, call).await?;
        let outgoing = Outgoing {
            destination: server.to_owned(),
            request,
            limits,
        };
        let reply = inner.transport.send(outgoing).await;
        let reply = reply.inspect_err(|error| inner.note(server, error))?;
        if reply.status.is_success() {
            return Ok(with_turn(reply, turn, limits.body));
        }
        let refusal = Refusal::of(reply).await;
        match refusal.pause() {
            Some(at_least) => inner.health.failed(server, at_least),
            None => inner.health.succeeded(server),
        }
        Err(refusal.into())
    }
}

impl Inner {
    /// An error on the way says that the server fails, but for an answer of which too much came.
    fn note(&self, server: &ServerName, error: &TransportError) {
        match error {
            TransportError::TooLarge(_) => self.health.succeeded(server),
            _ => self.health.failed(server, Duration::ZERO),
        }
    }

    /// Whether a server may be called now.
    fn check(&self, server: &ServerName, urgent: bool) -> Result<(), CallError> {
        if !self.options.enabled {
            return Err(CallError::Disabled);
        }
        if is_same_server(server, self.own.server()) {
            return Err(CallError::OwnServer);
        }
        if !self.admission.admits(server) {
            return Err(CallError::NotAdmitted(server.to_owned()));
        }
        match self.health.failing(server) {
            Some(failing) if !urgent && !failing.pause.is_zero() => {
                Err(CallError::BackingOff(failing.pause))
            }
            _ => Ok(()),
        }
    }

    /// The request of a call, signed.
    async fn signed(
        &self,
        server: &ServerName,
        call: Call,
    ) -> Result<http::Request<Bytes>, CallError> {
        let Call {
            method, path, body, ..
        } = call;
        let own = self.own.clone();
        let destination = server.to_owned();
        let signing = Signing {
            own,
            destination,
            method,
            path,
            body,
        };
        if signing.body.len() <= SIGNED_HERE {
            return signing.request();
        }
        let signed = self.runtime.cpu.run(move || signing.request()).await;
        signed.map_err(|error| CallError::OwnRequest(error.to_string()))?
    }
}

/// A request that is about to be signed.
struct Signing {
    own: OwnKeys,
    destination: OwnedServerName,
    method: Method,
    path: Path,
    body: Bytes,
}

impl Signing {
    fn request(self) -> Result<http::Request<Bytes>, CallError> {
        let signed = SignedRequest {
            method: self.method.as_str(),
            target: self.path.as_str(),
            origin: self.own.server(),
            destination: &self.destination,
            body: &self.body,
        };
        let own = |error: &dyn std::error::Error| CallError::OwnRequest(error.to_string());
        let signature = signed.sign(self.own.signing_key());
        let signature = signature.map_err(|error| own(&error))?;
        let mut request = http::Request::builder()
            .method(self.method)
            .uri(self.path.as_str())
            .header(header::AUTHORIZATION, signature.to_string());
        if !self.body.is_empty() {
            let json = HeaderValue::from_static("application/json");
            request = request.header(header::CONTENT_TYPE, json);
        }
        request.body(self.body).map_err(|error| own(&error))
    }
}

/// The answer, whose turn ends with its body.
fn with_turn(reply: Reply, turn: Option<Turn>, limit: usize) -> Reply {
    let chunks = stream::try_unfold((reply.body, turn), async |(mut body, turn)| {
        let chunk = body.chunk().await?;
        Ok(chunk.map(|chunk| (chunk, (body, turn))))
    });
    Reply {
        body: Body::new(chunks, limit),
        ..reply
    }
}
