//! The network between the servers: it delays, loses, repeats, overtakes and splits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use homeserver::federation::{
    Body as ReplyBody, Limits, Outgoing, Reply, Transport, TransportError,
};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower::ServiceExt;

use super::{dice::Dice, liar::Streamed};

/// Of a thousand requests, how many are lost on their way there or back, are repeated, or are late.
const LOST: u64 = 20;
const REPEATED: u64 = 20;
const LATE: u64 = 40;
/// How long a request takes, and how long a late one, in milliseconds.
const USUAL: (u64, u64) = (1, 120);
const DELAYED: (u64, u64) = (500, 8_000);

/// All servers and what lies between them.
#[derive(Debug)]
pub(super) struct Network {
    started: Instant,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    dice: Dice,
    routers: BTreeMap<OwnedServerName, Router>,
    /// Which side of a split a server is on; no entry is side 0.
    sides: BTreeMap<OwnedServerName, u64>,
    faulty: bool,
    requests: usize,
    trace: Vec<String>,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
struct Fate {
    there: Duration,
    back: Duration,
    lost: bool,
    answer_lost: bool,
    repeated: bool,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        let inside = Inside {
            dice: Dice::new(seed),
            routers: BTreeMap::new(),
            sides: BTreeMap::new(),
            faulty: true,
            requests: 0,
            trace: Vec::new(),
        };
        Self {
            started: Instant::now(),
            inside: Mutex::new(inside),
        }
    }

    /// How long ago it all began.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn connect(&self, name: &OwnedServerName, router: Router) {
        self.inside.lock().routers.insert(name.clone(), router);
    }

    pub(super) fn disconnect(&self, name: &OwnedServerName) {
        self.inside.lock().routers.remove(name);
    }

    pub(super) fn router(&self, name: &OwnedServerName) -> Option<Router> {
        self.inside.lock().routers.get(name).cloned()
    }

    /// Splits the servers: those on different sides do not reach each other.
    pub(super) fn split(&self, sides: BTreeMap<OwnedServerName, u64>) {
        self.inside.lock().sides = sides;
    }

    /// No faults from now on.
    pub(super) fn heal(&self) {
        let mut inside = self.inside.lock();
        inside.sides.clear();
        inside.faulty = false;
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, line: &str) {
        let at = self.started.elapsed().as_millis();
        self.inside.lock().trace.push(format!("{at:>9} {line}"));
    }

    /// How many lines of the trace have all of this in them.
    pub(super) fn noted(&self, parts: &[&str]) -> usize {
        let inside = self.inside.lock();
        let has = |line: &&String| parts.iter().all(|part| line.contains(part));
        inside.trace.iter().filter(has).count()
    }

    /// The trace, and the number of requests between servers.
    pub(super) fn end(&self) -> (Vec<String>, usize) {
        let mut inside = self.inside.lock();
        inside.routers.clear();
        (std::mem::take(&mut inside.trace), inside.requests)
    }

    fn fate(&self) -> Fate {
        let mut inside = self.inside.lock();
        inside.requests += 1;
        let faulty = inside.faulty;
        let dice = &mut inside.dice;
        let mut delay = || {
            let late = faulty && dice.chance(LATE);
            let (from, to) = if late { DELAYED } else { USUAL };
            Duration::from_millis(dice.between(from, to))
        };
        let (there, back) = (delay(), delay());
        Fate {
            there,
            back,
            lost: faulty && dice.chance(LOST),
            answer_lost: faulty && dice.chance(LOST),
            repeated: faulty && dice.chance(REPEATED),
        }
    }

    /// The other server, if the way there is open.
    fn reach(&self, from: &OwnedServerName, to: &OwnedServerName) -> Option<Router> {
        let inside = self.inside.lock();
        let side = |name| inside.sides.get(name).copied().unwrap_or_default();
        let router = inside.routers.get(to)?;
        (side(from) == side(to)).then(|| router.clone())
    }

    async fn carry(
        &self,
        from: &OwnedServerName,
        outgoing: Outgoing,
    ) -> Result<Reply, TransportError> {
        let (limits, until) = (outgoing.limits, Instant::now() + outgoing.limits.deadline);
        let carried = timeout_at(until, self.exchange(from, outgoing)).await;
        let answer = carried.map_err(|_| TransportError::Deadline)??;
        let (head, body) = answer.into_parts();
        let body = if head.extensions.get::<Streamed>().is_some() {
            as_it_comes(body, limits, until)
        } else {
            let body = body.collect().await.expect("the whole answer").to_bytes();
            ReplyBody::new(stream::iter([Ok(body)]), limits.body)
        };
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    async fn exchange(
        &self,
        from: &OwnedServerName,
        outgoing: Outgoing,
    ) -> Result<http::Response<Body>, TransportError> {
        let lost = |why: &str| TransportError::Unreachable(why.to_owned());
        let fate = self.fate();
        sleep(fate.there).await;
        let router = self.reach(from, &outgoing.destination);
        let router = router.filter(|_| !fate.lost).ok_or_else(|| lost("lost"))?;
        let request = outgoing.request;
        let answer = begin(router.clone(), request.clone()).await;
        if fate.repeated {
            drop(begin(router, request).await);
        }
        sleep(fate.back).await;
        if fate.answer_lost || self.reach(from, &outgoing.destination).is_none() {
            return Err(lost("answer lost"));
        }
        answer.map_err(|error| TransportError::Broken(error.to_string()))
    }
}

/// A body that is passed on while it comes, within the limits of its request.
fn as_it_comes(body: Body, limits: Limits, until: Instant) -> ReplyBody {
    let pieces = stream::try_unfold(body.into_data_stream(), move |mut pieces| async move {
        let piece = timeout_at(until, timeout(limits.stall, pieces.next()));
        let piece = piece.await.map_err(|_| TransportError::Deadline)?;
        let piece = piece.map_err(|_| TransportError::Stalled)?.transpose();
        let piece = piece.map_err(|error| TransportError::Broken(error.to_string()))?;
        Ok(piece.map(|piece| (piece, pieces)))
    });
    ReplyBody::new(pieces, limits.body)
}

/// Asks a server. An answer that is not to be passed on as it comes is there whole, unless what it is
/// read from fails in the middle of it.
async fn begin(
    router: Router,
    request: http::Request<Bytes>,
) -> Result<http::Response<Body>, axum::Error> {
    let answered = router.oneshot(request.map(Body::from)).await;
    let answer = answered.expect("a router answers");
    if answer.extensions().get::<Streamed>().is_some() {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(http::Response::from_parts(head, Body::from(body)))
}

/// Asks a server, and gives its whole answer.
pub(super) async fn ask(router: Router, request: http::Request<Bytes>) -> http::Response<Bytes> {
    let answer = begin(router, request).await.expect("the whole answer");
    let (head, body) = answer.into_parts();
    let body = body.collect().await.expect("the whole answer").to_bytes();
    http::Response::from_parts(head, body)
}

/// The network as one server has it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) network: Arc<Network>,
    pub(super) from: OwnedServerName,
    /// Whether its server was killed: what it was about to send is not sent.
    pub(super) cut: Arc<AtomicBool>,
}

impl Line {
    pub(super) fn of(network: &Arc<Network>, from: &ServerName) -> Self {
        Self {
            network: Arc::clone(network),
            from: from.to_owned(),
            cut: Arc::default(),
        }
    }
}

#[async_trait]
impl Transport for Line {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(TransportError::Unreachable("killed".to_owned()));
        }
        let what = format!(
            "{} > {} {} {}",
            self.from,
            outgoing.destination,
            outgoing.request.method(),
            outgoing.request.uri()
        );
        let carried = self.network.carry(&self.from, outgoing).await;
        let came = match &carried {
            Ok(reply) => reply.status.to_string(),
            Err(TransportError::Unreachable(why)) => why.clone(),
            Err(error) => error.to_string(),
        };
        self.network.note(&format!("{what}: {came}"));
        carried
    }
}
