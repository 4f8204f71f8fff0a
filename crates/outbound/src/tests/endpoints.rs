//! Endpoints: what is dialled, what is proven, what is said, and what becomes of connections.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use tokio::net::TcpListener;

use super::{
    tls_server::{Authority, Say, Seen, TlsServer, ok},
    zone::Zone,
};
use crate::{
    Body, Dial, Endpoint, Outbound, OutboundOptions, Reply, SrvTarget, StreamLimits,
    TransportError, pool::IDLE,
};

const LIMITS: StreamLimits = StreamLimits {
    body: 1_000,
    deadline: Duration::from_secs(20),
    stall: Duration::from_secs(20),
};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A client that asks the given DNS server, may reach 127.0.0.1, and trusts the authority.
fn client(dns: SocketAddr, authority: &Authority) -> Outbound {
    let options = OutboundOptions {
        allowed_private_ranges: vec!["127.0.0.1/32".parse().unwrap()],
        dns_servers: vec![dns],
        extra_ca_certificates: vec![authority.certificate()],
        user_agent: "tests".to_owned(),
    };
    Outbound::new(&options).unwrap()
}

/// A client that knows no names.
async fn nameless(authority: &Authority) -> Outbound {
    client(Zone::default().serve().await.address, authority)
}

async fn listener() -> TcpListener {
    TcpListener::bind((HERE, 0)).await.unwrap()
}

/// A server of `server.test`.
async fn server(
    authority: &Authority,
    answer: impl Fn(&Seen) -> Say + Send + Sync + 'static,
) -> TlsServer {
    authority.serve(listener().await, "server.test", answer)
}

fn endpoint(dial: Dial, tls_name: &str, host: &str) -> Endpoint {
    Endpoint::new(dial, tls_name, host).unwrap()
}

/// The way to a server of `server.test`.
fn at(address: SocketAddr) -> Endpoint {
    endpoint(Dial::Address(address), "server.test", "server.test")
}

async fn fetch(
    client: &Outbound,
    endpoint: &Endpoint,
    limits: StreamLimits,
) -> Result<Reply, TransportError> {
    let request = Request::get("/").body(Bytes::new()).unwrap();
    client.send(endpoint, request, limits).await
}

async fn text(body: Body) -> Result<String, TransportError> {
    let whole = body.whole().await?;
    Ok(String::from_utf8(whole.to_vec()).unwrap())
}

async fn fetch_text(client: &Outbound, endpoint: &Endpoint) -> Result<String, TransportError> {
    text(fetch(client, endpoint, LIMITS).await?.body).await
}

#[tokio::test]
async fn dialled_name_proven_name_and_host_are_three() {
    let authority = Authority::new();
    let server = server(&authority, |_| Say::Keep(ok("hello"))).await;
    let zone = Zone::default().cname("dialled.test", "other.test");
    let dns = zone.a("other.test", HERE).serve().await;
    let client = client(dns.address, &authority);
    let dial = || Dial::Names(vec![("dialled.test".to_owned(), server.address.port())]);
    let way = endpoint(dial(), "server.test", "said.test:1234");
    let request = Request::put("/a%2Fb/c+d?e=%21&f")
        .header("x-more", "1")
        .body(Bytes::from_static(b"{}"))
        .unwrap();
    let reply = client.send(&way, request, LIMITS).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(text(reply.body).await.unwrap(), "hello");

    let seen = server.seen().remove(0);
    assert_eq!(seen.to, server.address);
    assert_eq!(seen.sni.as_deref(), Some("server.test"));
    assert!(seen.head.starts_with("PUT /a%2Fb/c+d?e=%21&f HTTP/1.1\r\n"));
    assert_eq!(seen.target(), "/a%2Fb/c+d?e=%21&f");
    assert_eq!(seen.header("host"), Some("said.test:1234"));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(seen.header("user-agent"), Some("tests"));
    assert_eq!(seen.header("x-more"), Some("1"));
    assert_eq!(seen.body, "{}");

    // A certificate for anything but the name that is asked for is worth nothing.
    for wrong in ["dialled.test", "said.test", "127.0.0.1"] {
        let refused = fetch(&client, &endpoint(dial(), wrong, "server.test"), LIMITS).await;
        assert!(
            matches!(refused, Err(TransportError::Tls(_))),
            "{wrong}: {refused:?}"
        );
    }
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn an_address_is_proven_like_a_name() {
    let authority = Authority::new();
    let server = authority.serve(listener().await, "127.0.0.1", |_| Say::Keep(ok("hello")));
    let client = nameless(&authority).await;
    let way = endpoint(Dial::Address(server.address), "127.0.0.1", "127.0.0.1");
    assert_eq!(fetch_text(&client, &way).await.unwrap(), "hello");
    assert_eq!(server.seen().remove(0).sni, None);
    let unknown = nameless(&Authority::new()).await;
    let refused = fetch(&unknown, &way, LIMITS).await;
    assert!(
        matches!(refused, Err(TransportError::Tls(_))),
        "{refused:?}"
    );
    for no_name in ["", "a b", "[::1]", "a..b"] {
        let way = Endpoint::new(Dial::Address(server.address), no_name, "x");
        assert_eq!(way, None, "{no_name}");
    }
}

#[tokio::test]
async fn denied_addresses_are_not_connected_to_however_they_are_named() {
    let authority = Authority::new();
    let server = server(&authority, |_| Say::Keep(ok("hello"))).await;
    let zone = Zone::default().a("inside.test", HERE);
    let dns = zone.cname("alias.test", "inside.test").serve().await;
    let options = OutboundOptions {
        dns_servers: vec![dns.address],
        extra_ca_certificates: vec![authority.certificate()],
        ..OutboundOptions::default()
    };
    let closed = Outbound::new(&options).unwrap();
    let port = server.address.port();
    let name = |name: &str| Dial::Names(vec![(name.to_owned(), port)]);
    for dial in [
        Dial::Address(server.address),
        Dial::Address(SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), port)),
        name("127.0.0.1"),
        name("inside.test"),
        name("alias.test"),
    ] {
        let refused = fetch(&closed, &endpoint(dial, "server.test", "x"), LIMITS).await;
        assert!(
            matches!(refused, Err(TransportError::Denied)),
            "{refused:?}"
        );
    }
    assert_eq!(server.accepted(), 0);
}

#[tokio::test]
async fn the_next_name_is_tried() {
    let authority = Authority::new();
    let good = server(&authority, |_| Say::Keep(ok("good"))).await;
    let other = authority.serve(listener().await, "other.test", |_| Say::Keep(ok("other")));
    let dead = listener().await.local_addr().unwrap();
    let dns = Zone::default().a("here.test", HERE).serve().await;
    let client = client(dns.address, &authority);
    let names = |ports: &[(&str, u16)]| {
        let names = ports.iter().map(|(name, port)| ((*name).to_owned(), *port));
        endpoint(Dial::Names(names.collect()), "server.test", "server.test")
    };
    let way = names(&[
        ("nowhere.test", 1),
        ("here.test", dead.port()),
        ("here.test", other.address.port()),
        ("here.test", good.address.port()),
    ]);
    assert_eq!(fetch_text(&client, &way).await.unwrap(), "good");
    assert_eq!(other.seen().len(), 0);

    // The connection above is idle, and proves the same name.
    let way = names(&[("nowhere.test", 1)]);
    assert_eq!(fetch_text(&client, &way).await.unwrap(), "good");
    let elsewhere = endpoint(way.dial, "server.test", "other");
    let nowhere = fetch(&client, &elsewhere, LIMITS).await;
    assert!(
        matches!(nowhere, Err(TransportError::Unresolved(_))),
        "{nowhere:?}"
    );
    let unreachable = endpoint(Dial::Address(dead), "server.test", "third");
    let unreachable = fetch(&client, &unreachable, LIMITS).await;
    assert!(
        matches!(unreachable, Err(TransportError::Unreachable(_))),
        "{unreachable:?}"
    );
}

/// With eight names to try, the first of them with a dead address.
#[tokio::test]
async fn a_dead_address_gets_its_time_and_leaves_some_to_the_next() {
    const DEAD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    let authority = Authority::new();
    let server = server(&authority, |_| Say::Keep(ok("good"))).await;
    let port = server.address.port();
    // Its connections are opened by the system, and nobody ever says a word.
    let dead = std::net::TcpListener::bind((DEAD, port)).unwrap();
    let zone = Zone::default().a("two.test", DEAD).a("two.test", HERE);
    let dns = zone.serve().await;
    let options = OutboundOptions {
        allowed_private_ranges: vec!["127.0.0.0/8".parse().unwrap()],
        dns_servers: vec![dns.address],
        extra_ca_certificates: vec![authority.certificate()],
        ..OutboundOptions::default()
    };
    let client = Outbound::new(&options).unwrap();
    let names = ["two", "b", "c", "d", "e", "f", "g", "h"];
    let names = names.map(|name| (format!("{name}.test"), port)).to_vec();
    let way = endpoint(Dial::Names(names), "server.test", "server.test");
    let began = tokio::time::Instant::now();
    assert_eq!(fetch_text(&client, &way).await.unwrap(), "good");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    drop(dead);
}

#[tokio::test]
async fn idle_connections_are_closed_when_another_server_is_asked() {
    let authority = Authority::new();
    let server = server(&authority, |_| Say::Keep(ok("hello"))).await;
    let client = nameless(&authority).await;
    fetch_text(&client, &at(server.address)).await.unwrap();
    let dead = listener().await.local_addr().unwrap();
    let elsewhere = endpoint(Dial::Address(dead), "other.test", "other.test");
    let ask_elsewhere = async || {
        let unreachable = fetch(&client, &elsewhere, LIMITS).await;
        assert!(unreachable.is_err());
        client.lines.pool.idle()
    };
    assert_eq!(ask_elsewhere().await, 1);
    tokio::time::pause();
    tokio::time::advance(IDLE).await;
    tokio::time::resume();
    assert_eq!(ask_elsewhere().await, 0);
}

#[tokio::test]
async fn connections_are_used_again() {
    let authority = Authority::new();
    let server = server(&authority, |_| Say::Keep(ok("hello"))).await;
    let client = nameless(&authority).await;
    let way = at(server.address);
    for _ in 0..3 {
        assert_eq!(fetch_text(&client, &way).await.unwrap(), "hello");
    }
    assert_eq!(server.accepted(), 1);
    // Another `Host` is another server.
    let other = endpoint(way.dial.clone(), "server.test", "other.test");
    assert_eq!(fetch_text(&client, &other).await.unwrap(), "hello");
    assert_eq!(server.accepted(), 2);
    // A body that was not read leaves its connection unusable.
    drop(fetch(&client, &way, LIMITS).await.unwrap());
    assert_eq!(server.accepted(), 2);
    assert_eq!(fetch_text(&client, &way).await.unwrap(), "hello");
    assert_eq!(server.accepted(), 3);
    let connections: Vec<_> = server.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [1, 1, 1, 2, 1, 3]);
}

#[tokio::test]
async fn a_connection_that_ended_in_the_pool_costs_nothing() {
    let authority = Authority::new();
    let server = server(&authority, |_| Say::Close(ok("hello"))).await;
    let client = nameless(&authority).await;
    for _ in 0..3 {
        let answer = fetch_text(&client, &at(server.address)).await;
        assert_eq!(answer.unwrap(), "hello");
    }
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_request_that_may_have_arrived_is_not_sent_again() {
    let authority = Authority::new();
    let server = server(&authority, |seen| match seen.target() {
        "/" => Say::Keep(ok("hello")),
        _ => Say::Close(String::new()),
    });
    let server = server.await;
    let client = nameless(&authority).await;
    let way = at(server.address);
    assert_eq!(fetch_text(&client, &way).await.unwrap(), "hello");
    for _ in 0..2 {
        let request = Request::put("/once").body(Bytes::from_static(b"{}"));
        let lost = client.send(&way, request.unwrap(), LIMITS).await;
        assert!(
            matches!(lost, Err(TransportError::Unreachable(_))),
            "{lost:?}"
        );
    }
    // The first went out on the idle connection.
    let seen = server.seen();
    let connections: Vec<_> = seen.iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [1, 1, 2]);
}

#[tokio::test]
async fn answers_keep_to_their_limits() {
    let authority = Authority::new();
    let server = server(&authority, |seen| match seen.header("host").unwrap() {
        "announced" => Say::Hang("HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n".to_owned()),
        "unannounced" => Say::Close(format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1_001))),
        "floods" => Say::Flood("HTTP/1.1 200 OK\r\n\r\n".to_owned()),
        "stalls" => Say::Hang("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_owned()),
        "silent" => Say::When(Arc::default(), String::new()),
        "packed" => {
            let head = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx";
            Say::Keep(head.to_owned())
        }
        "nonsense" => Say::Close("SSH-2.0-x\r\n\r\n".to_owned()),
        "short" => Say::Close("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx".to_owned()),
        "head" => Say::Close(format!("HTTP/1.1 200 OK\r\na: {}\r\n", "x".repeat(100_000))),
        "fits" => Say::Keep(ok(&"x".repeat(1_000))),
        other => panic!("{other}"),
    });
    let server = server.await;
    let client = nameless(&authority).await;
    let judge = async |host: &str, limits: StreamLimits| {
        let way = endpoint(Dial::Address(server.address), "server.test", host);
        match fetch(&client, &way, limits).await {
            Ok(reply) => text(reply.body).await.map(|text| text.len()),
            Err(error) => Err(error),
        }
    };
    let brief = Duration::from_millis(200);
    let stall = StreamLimits {
        stall: brief,
        ..LIMITS
    };
    let deadline = StreamLimits {
        deadline: brief,
        ..LIMITS
    };
    assert_eq!(judge("fits", LIMITS).await.unwrap(), 1_000);
    let check = |judged: Result<usize, TransportError>, wanted: &str| {
        let told = match judged.unwrap_err() {
            TransportError::TooLarge(1_000) => "large",
            TransportError::Stalled => "stalled",
            TransportError::Deadline => "deadline",
            TransportError::Broken(_) => "broken",
            TransportError::Unreachable(_) => "unreachable",
            other => panic!("{other}"),
        };
        assert_eq!(told, wanted);
    };
    check(judge("announced", LIMITS).await, "large");
    check(judge("unannounced", LIMITS).await, "large");
    check(judge("floods", LIMITS).await, "large");
    check(judge("stalls", stall).await, "stalled");
    check(judge("stalls", deadline).await, "deadline");
    check(judge("silent", deadline).await, "deadline");
    check(judge("packed", LIMITS).await, "broken");
    check(judge("nonsense", LIMITS).await, "broken");
    check(judge("head", LIMITS).await, "broken");
    check(judge("short", LIMITS).await, "unreachable");
}

#[tokio::test]
async fn a_long_request_arrives_whole() {
    let authority = Authority::new();
    let server = server(&authority, |seen| {
        Say::Keep(ok(&seen.body.len().to_string()))
    });
    let server = server.await;
    let client = nameless(&authority).await;
    for length in [0, 2_000_000, 1] {
        let request = Request::put("/").body(Bytes::from("x".repeat(length)));
        let way = at(server.address);
        let reply = client.send(&way, request.unwrap(), LIMITS).await;
        let told = text(reply.unwrap().body).await.unwrap();
        assert_eq!(told, length.to_string());
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn every_connection_is_judged_anew() {
    const INSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    let authority = Authority::new();
    let server = server(&authority, |_| Say::Close(ok("hello"))).await;
    let (dns, _task) = super::dns(&[HERE, INSIDE]).await;
    let client = client(dns, &authority);
    let dial = Dial::Names(vec![("rebind.test".to_owned(), server.address.port())]);
    let way = endpoint(dial, "server.test", "server.test");
    assert_eq!(fetch_text(&client, &way).await.unwrap(), "hello");
    let moved = fetch(&client, &way, LIMITS).await;
    assert!(matches!(moved, Err(TransportError::Denied)), "{moved:?}");
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn srv_records_come_by_priority() {
    let mut zone = Zone::default()
        .srv("_x._tcp.test", (20, 0, 3), "late.test")
        .srv("_x._tcp.test", (10, 5, 4), "early.test")
        .srv("_none._tcp.test", (0, 0, 0), ".")
        .a("bare.test", HERE)
        .broken("_broken._tcp.test");
    for port in 0..20 {
        zone = zone.srv("_many._tcp.test", (20 - port, 0, port), "a.test");
    }
    let dns = zone.serve().await;
    let client = client(dns.address, &Authority::new());
    let target = |priority, weight, port, target: &str| SrvTarget {
        priority,
        weight,
        target: target.to_owned(),
        port,
    };
    let two = [
        target(10, 5, 4, "early.test."),
        target(20, 0, 3, "late.test."),
    ];
    assert_eq!(client.srv("_x._tcp.test").await.unwrap(), two);
    let not_offered = client.srv("_none._tcp.test").await.unwrap();
    assert_eq!(not_offered, [target(0, 0, 0, ".")]);
    let many = client.srv("_many._tcp.test").await.unwrap();
    let priorities: Vec<_> = many.iter().map(|target| target.priority).collect();
    assert_eq!(priorities, [1, 2, 3, 4, 5, 6, 7, 8]);
    for none in ["missing.test", "bare.test"] {
        assert_eq!(client.srv(none).await.unwrap(), [], "{none}");
    }
    assert!(client.srv("_broken._tcp.test").await.is_err());
}
