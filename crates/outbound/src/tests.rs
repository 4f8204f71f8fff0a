//! The client against servers on loopback: what it refuses, what it cuts short, whom it trusts.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{Exchange, Limits, Outbound, OutboundError, OutboundOptions, SetupError, Url};
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect},
    routing::get,
};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use self::tls_server::{Authority, Say, ok};

mod endpoints;
#[path = "../tests/support/tls_server.rs"]
mod tls_server;
#[path = "../tests/support/zone.rs"]
mod zone;

const LIMITS: Limits = Limits {
    body: 1_000,
    deadline: Duration::from_secs(20),
    redirects: 0,
    https_only: false,
};

/// A server on a free port of 127.0.0.1, which counts its requests and ends with the test.
struct Server {
    address: SocketAddr,
    hits: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let hits = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let counted = Arc::clone(&hits);
        let count = axum::middleware::map_request(move |request: axum::extract::Request| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::ready(request)
        });
        let app = routes(address.port()).layer(count);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            hits,
            _tasks: tasks,
        }
    }

    fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

/// An answer after which the connection is closed, so that the next request resolves anew.
async fn close() -> impl IntoResponse {
    ([(header::CONNECTION, "close")], "closed")
}

async fn endless() -> Body {
    let chunks = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(100)));
    Body::from_stream(chunks)
}

async fn echo_credentials(headers: HeaderMap) -> String {
    let shown = |name| {
        headers
            .get(name)
            .map_or("none", |value| value.to_str().unwrap())
    };
    format!("{} {}", shown(header::AUTHORIZATION), shown(header::COOKIE))
}

fn routes(port: u16) -> Router {
    let elsewhere = format!("http://localhost:{port}/credentials");
    Router::new()
        .route("/ok", get(async || "hello"))
        .route("/close", get(close))
        .route("/long", get(async || "x".repeat(1_001)))
        .route("/endless", get(endless))
        .route("/never", get(async || std::future::pending::<&str>().await))
        .route("/drip", get(drip))
        .route("/credentials", get(echo_credentials))
        .route("/redirect", get(async || Redirect::temporary("/ok")))
        .route(
            "/redirect/here",
            get(async || Redirect::temporary("/credentials")),
        )
        .route(
            "/redirect/elsewhere",
            get(async move || Redirect::temporary(&elsewhere)),
        )
        .route(
            "/redirect/loop",
            get(async || Redirect::temporary("/redirect/loop")),
        )
        .route(
            "/redirect/inside",
            get(async || Redirect::permanent("http://127.0.0.2:1/")),
        )
        .route(
            "/redirect/mapped",
            get(async || Redirect::to("http://[::ffff:10.0.0.1]/")),
        )
        .route(
            "/redirect/file",
            get(async || Redirect::to("file:///etc/passwd")),
        )
        .route("/redirect/nowhere", get(async || StatusCode::FOUND))
        .route("/error", get(async || (StatusCode::BAD_GATEWAY, "broken")))
}

/// Begins an answer and never ends it.
async fn drip() -> Body {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>("x")]);
    Body::from_stream(futures_util::StreamExt::chain(
        first,
        futures_util::stream::pending(),
    ))
}

/// A client that may reach 127.0.0.1 and `::1`, and nothing else of this machine.
fn client() -> Outbound {
    let allowed = ["127.0.0.1/32", "::1/128"].map(|range| range.parse().unwrap());
    let options = OutboundOptions {
        allowed_private_ranges: allowed.to_vec(),
        ..OutboundOptions::default()
    };
    Outbound::new(&options).unwrap()
}

fn closed_client() -> Outbound {
    Outbound::new(&OutboundOptions::default()).unwrap()
}

#[tokio::test]
async fn an_answer_is_handed_over_whatever_its_status() {
    let server = Server::start().await;
    let answer = client()
        .exchange(Exchange::fetch(server.url("/ok"), LIMITS))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, &*answer.body),
        (StatusCode::OK, &b"hello"[..])
    );
    assert_eq!(answer.url, server.url("/ok"));
    let answer = client()
        .exchange(Exchange::fetch(server.url("/error"), LIMITS))
        .await
        .unwrap();
    assert_eq!(
        (answer.status, &*answer.body),
        (StatusCode::BAD_GATEWAY, &b"broken"[..])
    );
}

#[tokio::test]
async fn this_machine_is_not_reached_under_any_of_its_names() {
    let server = Server::start().await;
    let port = server.address.port();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "169.254.169.254",
        "localhost",
        "LOCALHOST",
    ];
    for host in hosts {
        let url: Url = format!("http://{host}:{port}/ok").parse().unwrap();
        let refused = closed_client().exchange(Exchange::fetch(url, LIMITS)).await;
        assert!(
            matches!(refused, Err(OutboundError::Denied(_))),
            "{host}: {refused:?}"
        );
    }
    assert_eq!(server.hits(), 0);
}

#[tokio::test]
async fn other_schemes_are_refused() {
    for url in [
        "file:///etc/passwd",
        "ftp://example.org/",
        "data:text/plain,x",
        "gopher://x/",
    ] {
        let refused = client()
            .exchange(Exchange::fetch(url.parse().unwrap(), LIMITS))
            .await;
        assert!(matches!(refused, Err(OutboundError::Url(_))), "{url}");
    }
    let server = Server::start().await;
    let https_only = Limits {
        https_only: true,
        ..LIMITS
    };
    let refused = client()
        .exchange(Exchange::fetch(server.url("/ok"), https_only))
        .await;
    assert!(matches!(refused, Err(OutboundError::Url(_))));
    assert_eq!(server.hits(), 0);
}

#[tokio::test]
async fn bodies_are_cut_off() {
    let server = Server::start().await;
    for path in ["/long", "/endless"] {
        let refused = client()
            .exchange(Exchange::fetch(server.url(path), LIMITS))
            .await;
        assert!(
            matches!(refused, Err(OutboundError::TooLarge(1_000))),
            "{path}"
        );
    }
    let limits = Limits {
        body: 1_001,
        ..LIMITS
    };
    let fits = client()
        .exchange(Exchange::fetch(server.url("/long"), limits))
        .await
        .unwrap();
    assert_eq!(fits.body.len(), 1_001);
}

#[tokio::test]
async fn the_deadline_covers_head_and_body() {
    let server = Server::start().await;
    let limits = Limits {
        deadline: Duration::from_millis(200),
        ..LIMITS
    };
    for path in ["/never", "/drip"] {
        let late = client()
            .exchange(Exchange::fetch(server.url(path), limits))
            .await;
        assert!(
            matches!(late, Err(OutboundError::Deadline(_))),
            "{path}: {late:?}"
        );
    }
    assert_eq!(server.hits(), 2);
}

#[tokio::test]
async fn redirects_are_off_or_counted() {
    let server = Server::start().await;
    let fetch = async |path, redirects| {
        let limits = Limits {
            redirects,
            ..LIMITS
        };
        client()
            .exchange(Exchange::fetch(server.url(path), limits))
            .await
    };
    let answer = fetch("/redirect", 0).await.unwrap();
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    let answer = fetch("/redirect", 1).await.unwrap();
    assert_eq!(
        (&*answer.body, answer.url),
        (&b"hello"[..], server.url("/ok"))
    );
    let before = server.hits();
    let endless = fetch("/redirect/loop", 5).await;
    assert!(matches!(endless, Err(OutboundError::Redirect)));
    assert_eq!(server.hits() - before, 6);
    let nowhere = fetch("/redirect/nowhere", 5).await;
    assert!(matches!(nowhere, Err(OutboundError::Redirect)));
}

#[tokio::test]
async fn a_redirect_is_judged_like_the_first_url() {
    let server = Server::start().await;
    let limits = Limits {
        redirects: 3,
        ..LIMITS
    };
    for path in ["/redirect/inside", "/redirect/mapped"] {
        let refused = client()
            .exchange(Exchange::fetch(server.url(path), limits))
            .await;
        assert!(
            matches!(refused, Err(OutboundError::Denied(_))),
            "{path}: {refused:?}"
        );
    }
    let refused = client()
        .exchange(Exchange::fetch(server.url("/redirect/file"), limits))
        .await;
    assert!(matches!(refused, Err(OutboundError::Url(_))));
}

#[tokio::test]
async fn credentials_stay_with_the_host_they_were_meant_for() {
    let server = Server::start().await;
    let fetch = async |path| {
        let limits = Limits {
            redirects: 1,
            ..LIMITS
        };
        let mut exchange = Exchange::fetch(server.url(path), limits);
        exchange
            .headers
            .insert(header::AUTHORIZATION, HeaderValue::from_static("secret"));
        exchange
            .headers
            .insert(header::COOKIE, HeaderValue::from_static("cookie"));
        let answer = client().exchange(exchange).await.unwrap();
        String::from_utf8(answer.body.to_vec()).unwrap()
    };
    assert_eq!(fetch("/redirect/here").await, "secret cookie");
    assert_eq!(fetch("/redirect/elsewhere").await, "none none");
}

/// A DNS server that gives the addresses of `answers` in turn, the last for ever, valid for no
/// time. Other questions than for IPv4 addresses get an empty answer.
async fn dns(answers: &'static [Ipv4Addr]) -> (SocketAddr, JoinSet<()>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut asked = 0;
        let mut buffer = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let query = &buffer[..length];
            let name_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap();
            let question = &query[12..name_end + 5];
            let is_ipv4 = question[question.len() - 4..] == [0, 1, 0, 1];
            let mut reply = query[..2].to_vec();
            reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
            reply.extend(question);
            if is_ipv4 {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend(answers[asked.min(answers.len() - 1)].octets());
                asked += 1;
            }
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_name_that_moves_inside_is_refused_when_it_does() {
    const INSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    let server = Server::start().await;
    let (dns_server, _tasks) = dns(&[Ipv4Addr::LOCALHOST, INSIDE]).await;
    let options = OutboundOptions {
        allowed_private_ranges: vec!["127.0.0.1/32".parse().unwrap()],
        dns_servers: vec![dns_server],
        ..OutboundOptions::default()
    };
    let client = Outbound::new(&options).unwrap();
    let url: Url = format!("http://rebind.test:{}/close", server.address.port())
        .parse()
        .unwrap();
    let first = client
        .exchange(Exchange::fetch(url.clone(), LIMITS))
        .await
        .unwrap();
    assert_eq!(&*first.body, b"closed");
    match client.exchange(Exchange::fetch(url, LIMITS)).await {
        Err(OutboundError::Denied(denied)) => assert_eq!(denied.address, INSIDE),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn only_known_authorities_and_the_right_name_are_trusted() {
    let authority = Authority::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = authority.serve(listener, "server.test", |_| Say::Close(ok("secret")));
    let (dns_server, _dns_tasks) = dns(&[Ipv4Addr::LOCALHOST]).await;
    let authority = authority.certificate();
    let fetch = async |name: &str, extra: &[CertificateDer<'static>]| {
        let options = OutboundOptions {
            allowed_private_ranges: vec!["127.0.0.1/32".parse().unwrap()],
            dns_servers: vec![dns_server],
            extra_ca_certificates: extra.to_vec(),
            ..OutboundOptions::default()
        };
        let url: Url = format!("https://{name}:{}/", server.address.port())
            .parse()
            .unwrap();
        let limits = Limits {
            https_only: true,
            ..LIMITS
        };
        Outbound::new(&options)
            .unwrap()
            .exchange(Exchange::fetch(url, limits))
            .await
    };
    let trusted = std::slice::from_ref(&authority);
    assert_eq!(
        &*fetch("server.test", trusted).await.unwrap().body,
        b"secret"
    );
    let wrong_name = fetch("other.test", trusted).await;
    assert!(
        matches!(wrong_name, Err(OutboundError::Failed(_))),
        "{wrong_name:?}"
    );
    let unknown = fetch("server.test", &[]).await;
    assert!(
        matches!(unknown, Err(OutboundError::Failed(_))),
        "{unknown:?}"
    );
}

#[test]
fn unusable_options_are_errors() {
    let options = OutboundOptions {
        extra_ca_certificates: vec![CertificateDer::from(vec![1, 2, 3])],
        ..OutboundOptions::default()
    };
    assert!(matches!(
        Outbound::new(&options),
        Err(SetupError::Certificate(_))
    ));
    let options = OutboundOptions {
        user_agent: "a\nb".to_owned(),
        ..OutboundOptions::default()
    };
    assert!(matches!(
        Outbound::new(&options),
        Err(SetupError::UserAgent)
    ));
}
