//! Calls over a transport that does as it is told.

use std::future::Future;

use async_trait::async_trait;
use futures_util::{FutureExt as _, future, stream};
use homeserver_events::SigningKey;
use homeserver_runtime::ManualClock;
use homeserver_storage::{Store, engines::memory::MemoryEngine};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use ruma::server_name;
use serde::Deserialize;

use super::*;
use crate::{Claim, Retry, TransportError, XMatrix};

type Say = dyn Fn() -> Result<Reply, TransportError> + Send + Sync;

/// Answers by a script, and keeps what it was given.
struct Script {
    say: Box<Say>,
    sent: Mutex<Vec<Outgoing>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Script")
    }
}

#[async_trait]
impl Transport for Script {
    async fn send(&self, outgoing: Outgoing) -> Result<Reply, TransportError> {
        self.sent.lock().push(outgoing);
        (self.say)()
    }
}

struct World {
    script: Arc<Script>,
    clock: Arc<ManualClock>,
    peers: Peers,
}

fn there() -> &'static ServerName {
    server_name!("there.example")
}

fn key() -> SigningKey {
    SigningKey::from_seed("a", &[7; 32]).unwrap()
}

const OPTIONS: PeersOptions = PeersOptions {
    enabled: true,
    at_once: 2,
    deadline: Duration::from_secs(30),
};

impl World {
    async fn new(say: impl Fn() -> Result<Reply, TransportError> + Send + Sync + 'static) -> Self {
        Self::with(OPTIONS, say).await
    }

    async fn with(
        options: PeersOptions,
        say: impl Fn() -> Result<Reply, TransportError> + Send + Sync + 'static,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 1);
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, &[crate::TABLES], &runtime).await;
        let retry = Retry {
            shortest: Duration::from_secs(1),
            longest: Duration::from_hours(1),
        };
        let health = Health::open(retry, store.unwrap(), runtime.clone()).await;
        let script = Arc::new(Script {
            say: Box::new(say),
            sent: Mutex::default(),
        });
        let own = server_name!("here.example").to_owned();
        let peers = Peers::new(
            options,
            OwnKeys::new(own, Arc::new(key()), Vec::new()),
            Admission::new(&[], &["evil.example".to_owned()]),
            Arc::clone(&script) as _,
            health.unwrap(),
            runtime,
        );
        Self {
            script,
            clock,
            peers,
        }
    }

    async fn ask(&self) -> Result<Answer, CallError> {
        self.peers
            .ask(there(), Call::get(Path::v1("version")))
            .await
    }

    fn sent(&self) -> usize {
        self.script.sent.lock().len()
    }

    fn failing(&self) -> Option<Duration> {
        let failing = self.peers.health().failing(there());
        failing.map(|failing| failing.pause)
    }
}

/// An answer of one piece.
fn reply(status: u16, headers: &[(&'static str, &str)], body: &'static str) -> Reply {
    let headers = headers.iter().map(|(name, value)| {
        let value = HeaderValue::from_str(value).unwrap();
        (http::HeaderName::from_static(name), value)
    });
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: headers.collect::<HeaderMap>(),
        body: Body::new(stream::iter([Ok(Bytes::from(body))]), usize::MAX),
    }
}

fn good() -> Reply {
    reply(200, &[], r#"{"a":1}"#)
}

#[tokio::test]
async fn what_is_sent_is_what_was_signed() {
    let world = World::new(|| Ok(good())).await;
    let path = || Path::v1("send").segment("a/b").query("c", "d&e");
    let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(SIGNED_HERE));
    for (call, method, body) in [
        (Call::get(path()), "GET", ""),
        (Call::put(path(), r#"{"x":1}"#), "PUT", r#"{"x":1}"#),
        (Call::post(path(), long.clone()), "POST", &long),
    ] {
        let answer = world.peers.ask(there(), call).await.unwrap();
        assert_eq!(answer.body, r#"{"a":1}"#);
        let outgoing = world.script.sent.lock().pop().unwrap();
        assert_eq!(outgoing.destination, there());
        let request = outgoing.request;
        assert_eq!(request.method(), method);
        let target = "/_matrix/federation/v1/send/a%2Fb?c=d%26e";
        assert_eq!(request.uri().to_string(), target);
        assert_eq!(request.body(), body);
        let json = request.headers().get(header::CONTENT_TYPE);
        assert_eq!(
            json.is_some_and(|json| json == "application/json"),
            !body.is_empty()
        );
        let header = request.headers()[header::AUTHORIZATION].as_bytes();
        let claim = Claim::new(vec![XMatrix::parse(header).unwrap()], there()).unwrap();
        assert_eq!(claim.origin(), "here.example");
        let known = |id: &str| (id == "ed25519:a").then(|| key().verify_key());
        let checked = claim.check(method, target, there(), body.as_bytes(), &known);
        assert_eq!(checked, Ok(()));
    }
}

#[tokio::test]
async fn some_are_not_asked_at_all() {
    let world = World::new(|| Ok(good())).await;
    let call = || Call::get(Path::v1("version")).urgent();
    for own in ["here.example", "Here.Example", "here.example."] {
        let own = ServerName::parse(own).unwrap();
        let own = world.peers.ask(&own, call()).await;
        assert!(matches!(own, Err(CallError::OwnServer)));
    }
    for denied in ["evil.example:80", "evil.example."] {
        let denied = ServerName::parse(denied).unwrap();
        let refused = world.peers.ask(&denied, call()).await;
        assert!(matches!(refused, Err(CallError::NotAdmitted(name)) if name == denied));
    }
    let no_json = world
        .peers
        .ask(there(), Call::put(Path::v1("x"), "[]"))
        .await;
    assert!(matches!(no_json, Err(CallError::OwnRequest(_))));
    assert_eq!(world.sent(), 0);
    let options = PeersOptions {
        enabled: false,
        ..OPTIONS
    };
    let disabled = World::with(options, || Ok(good())).await;
    assert!(matches!(disabled.ask().await, Err(CallError::Disabled)));
    assert_eq!(disabled.sent(), 0);
}

#[tokio::test]
async fn a_server_that_fails_is_left_alone_unless_it_is_urgent() {
    let dead = || Err(TransportError::Unreachable(String::new()));
    let world = World::new(dead).await;
    assert!(matches!(world.ask().await, Err(CallError::Transport(_))));
    let Err(CallError::BackingOff(pause)) = world.ask().await else {
        panic!("asked");
    };
    assert_eq!(world.failing(), Some(pause));
    assert_eq!(world.sent(), 1);
    let urgent = Call::get(Path::v1("version")).urgent();
    let urgent = world.peers.ask(there(), urgent).await;
    assert!(matches!(urgent, Err(CallError::Transport(_))));
    assert_eq!(world.sent(), 2);
    world.clock.advance(pause);
    assert!(matches!(world.ask().await, Err(CallError::Transport(_))));
    assert_eq!(world.sent(), 3);
}

#[tokio::test]
async fn what_an_answer_says_of_its_server() {
    const MEDIA: &str = r#"{"errcode":"M_NOT_YET_UPLOADED"}"#;
    const LIMITED: &str = r#"{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":90000}"#;
    let after = [("retry-after", "70")];
    let check = async |status, headers: &'static [_], body, wanted: Option<u64>| {
        let world = World::new(move || Ok(reply(status, headers, body))).await;
        // It had failed before.
        world.peers.health().failed(there(), Duration::ZERO);
        world.clock.advance(Duration::from_secs(2));
        let refused = world.ask().await;
        assert!(
            matches!(refused, Err(CallError::Refused { .. })),
            "{refused:?}"
        );
        match (world.failing(), wanted) {
            (None, None) => {}
            (Some(pause), Some(0)) => assert!(pause < Duration::from_secs(3)),
            (Some(pause), Some(seconds)) => assert_eq!(pause.as_secs(), seconds),
            other => panic!("{status} {body}: {other:?}"),
        }
    };
    for status in [301, 400, 401, 403, 404, 413] {
        check(status, &[], "{}", None).await;
    }
    for status in [500, 502, 503, 504] {
        check(status, &[], "<html>", Some(0)).await;
    }
    check(504, &[], MEDIA, None).await;
    check(429, &[], "{}", Some(0)).await;
    check(429, &[], LIMITED, Some(90)).await;
    check(429, Box::leak(Box::new(after)), LIMITED, Some(70)).await;
    check(503, Box::leak(Box::new(after)), "", Some(70)).await;
    check(404, Box::leak(Box::new(after)), "", None).await;
}

#[tokio::test]
async fn an_error_is_handed_over() {
    let said = r#"{"errcode":"M_FORBIDDEN","error":"no","more":1}"#;
    let check = async |body: &'static str, errcode: &str, message: &str, kept: &str| {
        let world = World::new(move || Ok(reply(403, &[], body))).await;
        match world.ask().await {
            Err(CallError::Refused {
                status,
                errcode: told,
                message: words,
                body,
            }) => {
                assert_eq!(status, StatusCode::FORBIDDEN);
                assert_eq!((&*told, &*words), (errcode, message));
                assert_eq!(body, kept);
            }
            other => panic!("{other:?}"),
        }
    };
    check(said, "M_FORBIDDEN", "no", said).await;
    check("<html>", "", "", "<html>").await;
    check(r#"{"errcode":5}"#, "", "", r#"{"errcode":5}"#).await;
    let long = Box::leak("x".repeat(64 * 1024 + 1).into_boxed_str());
    check(long, "", "", "").await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure_but_a_long_one_is_not() {
    let broken = |error: fn() -> TransportError| {
        move || {
            let chunks = stream::iter([Ok(Bytes::from("{")), Err(error())]);
            let body = Body::new(chunks, usize::MAX);
            Ok(Reply { body, ..good() })
        }
    };
    let world = World::new(broken(|| TransportError::Stalled)).await;
    let cut = world.ask().await;
    assert!(matches!(
        cut,
        Err(CallError::Transport(TransportError::Stalled))
    ));
    assert!(world.failing().is_some());
    let world = World::new(broken(|| TransportError::TooLarge(1))).await;
    let cut = world.ask().await;
    assert!(matches!(
        cut,
        Err(CallError::Transport(TransportError::TooLarge(1)))
    ));
    assert_eq!(world.failing(), None);
}

#[test]
fn an_answer_is_an_object() {
    #[derive(Debug, Deserialize)]
    struct Said {
        a: u8,
    }
    let read = |body: &'static str| {
        let body = Bytes::from(body);
        Answer { body }.read::<Said>()
    };
    assert_eq!(read(" \n{\"a\":1,\"b\":2}").unwrap().a, 1);
    for nonsense in ["", "[1]", "1", "{}", "{\"a\":1", "<html>", "{\"a\":1}x"] {
        let refused = read(nonsense);
        assert!(
            matches!(refused, Err(CallError::BadAnswer(_))),
            "{nonsense}"
        );
    }
}

/// Polls once.
fn is_waiting<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    future.now_or_never().is_none()
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_at_once_and_the_others_in_turn() {
    let world = World::new(|| Ok(good())).await;
    let call = || Call::get(Path::v1("version"));
    let stream = || Box::pin(world.peers.stream(there(), call()));
    // Two are on their way: their answers have begun.
    let first = stream().await.unwrap();
    let second = stream().await.unwrap();
    let mut third = stream();
    assert!(is_waiting(&mut third));
    assert_eq!(world.sent(), 2);
    // Other servers, and what goes apart, do not wait.
    let elsewhere = server_name!("elsewhere.example");
    assert!(world.peers.ask(elsewhere, call()).await.is_ok());
    assert!(world.peers.ask(there(), call().apart()).await.is_ok());
    assert_eq!(world.sent(), 4);
    drop(first);
    let third = third.await.unwrap();
    assert_eq!(world.sent(), 5);
    // Who waits for too long was never sent.
    let late = stream().await;
    assert!(matches!(late, Err(CallError::Busy)), "{late:?}");
    assert_eq!(world.failing(), None);
    // So many wait and no more.
    let mut waiting: Vec<_> = (0..64).map(|_| stream()).collect();
    assert!(waiting.iter_mut().all(is_waiting));
    let one_more = stream().now_or_never();
    assert!(matches!(one_more, Some(Err(CallError::Busy))));
    assert_eq!(world.sent(), 5);
    drop((second, third));
    let all = future::join_all(waiting.into_iter().map(|waiting| async {
        let reply = waiting.await?;
        reply.body.whole().await.map_err(CallError::from)
    }));
    assert!(all.await.iter().all(Result::is_ok));
    assert_eq!(world.sent(), 69);
    assert!(world.peers.inner.lanes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_waited_has_its_whole_deadline_on_the_way() {
    let world = World::new(|| Ok(good())).await;
    let stream = || Box::pin(world.peers.stream(there(), Call::get(Path::v1("version"))));
    let held = (stream().await.unwrap(), stream().await.unwrap());
    let mut third = stream();
    assert!(is_waiting(&mut third));
    tokio::time::advance(Duration::from_millis(29_900)).await;
    drop(held);
    assert!(third.await.is_ok());
    let sent = world.script.sent.lock().pop().unwrap();
    assert_eq!(sent.limits.deadline, OPTIONS.deadline);
}

#[tokio::test]
async fn who_waited_for_a_call_that_failed_is_not_sent() {
    let world = World::new(|| Ok(good())).await;
    let stream = || Box::pin(world.peers.stream(there(), Call::get(Path::v1("version"))));
    let held = (stream().await.unwrap(), stream().await.unwrap());
    let mut third = stream();
    assert!(is_waiting(&mut third));
    world.peers.health().failed(there(), Duration::ZERO);
    drop(held);
    assert!(matches!(third.await, Err(CallError::BackingOff(_))));
    assert_eq!(world.sent(), 2);
}
