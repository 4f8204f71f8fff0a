//! Each branch of the six steps on loopback: address, port, name in the TLS greeting, name of the
//! certificate, `Host`; and what happens when somebody lies.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use homeserver_outbound::{Outbound, OutboundOptions};
use homeserver_runtime::{ManualClock, Runtime};
use ruma::ServerName;
use tokio::{net::TcpListener, sync::Notify};

use self::{
    tls_server::{Authority, Say, Seen, TlsServer, ok},
    zone::{Dns, Zone},
};
use super::{Ports, Ways};
use crate::{Limits, Outgoing, Transport, TransportError};

#[path = "../../../outbound/tests/support/tls_server.rs"]
mod tls_server;
#[path = "../../../outbound/tests/support/zone.rs"]
mod zone;

/// Where `a.test` has its web server.
const WEB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);

/// Where `b.test` is.
const B: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Where `c.test` is, which SRV records lead to.
const C: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);

/// Allowed in no test.
const INSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

const LIMITS: Limits = Limits {
    body: 1_000,
    deadline: Duration::from_secs(20),
    stall: Duration::from_secs(20),
};

async fn listener(address: Ipv4Addr) -> TcpListener {
    TcpListener::bind((address, 0)).await.unwrap()
}

/// The names of all tests.
fn zone() -> Zone {
    let zone = Zone::default().a("a.test", WEB).a("b.test", B);
    // Not as RFC 2782 has it, but as some zones do: a SRV target that is an alias.
    let zone = zone.cname("alias.test", "c.test").a("c.test", C);
    zone.a("inside.test", INSIDE)
}

fn ways(dns: &Dns, authority: &Authority, ports: Ports, clock: Arc<ManualClock>) -> Ways {
    let options = OutboundOptions {
        allowed_private_ranges: vec!["127.0.0.0/24".parse().unwrap()],
        dns_servers: vec![dns.address],
        extra_ca_certificates: vec![authority.certificate()],
        user_agent: String::new(),
    };
    let outbound = Outbound::new(&options).unwrap();
    Ways::new(outbound, ports, &Runtime::simulated(clock, 1))
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(1_704_067_200_000))
}

fn outgoing(to: &str) -> Outgoing {
    let request = http::Request::put("/_matrix/federation/v1/send/%2F?a=b");
    Outgoing {
        destination: ServerName::parse(to).unwrap(),
        request: request.body(Bytes::from_static(b"{}")).unwrap(),
        limits: LIMITS,
    }
}

async fn send(ways: &Ways, to: &str) -> Result<Bytes, TransportError> {
    ways.send(outgoing(to)).await?.body.whole().await
}

/// The web server of `a.test`, and whatever it says.
async fn web(
    authority: &Authority,
    answer: impl Fn(&Seen) -> Say + Send + Sync + 'static,
) -> TlsServer {
    authority.serve(listener(WEB).await, "a.test", answer)
}

/// `server` as an answer of `.well-known`.
fn delegation(server: &str) -> String {
    ok(&format!(r#"{{"m.server":"{server}"}}"#))
}

fn not_found() -> String {
    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()
}

/// One branch. `PORT` in a text stands for the port of the server that is to be reached.
struct Branch {
    name: &'static str,
    /// What `.well-known` of `a.test` says; `None` if it must not be asked.
    well_known: Option<&'static str>,
    /// A SRV record: service and name.
    srv: &'static [&'static str],
    /// Where the server is, whose port is the default one unless the branch names it.
    at: Ipv4Addr,
    default_port: bool,
    /// The name that it has to prove.
    proves: &'static str,
    host: &'static str,
}

const NOBODY: Option<&str> = Some("");

const BRANCHES: [Branch; 13] = [
    Branch {
        name: "127.0.0.11:PORT", // 1
        well_known: None,
        srv: &[],
        at: B,
        default_port: false,
        proves: "127.0.0.11",
        host: "127.0.0.11:PORT",
    },
    Branch {
        name: "127.0.0.11", // 1, without port
        well_known: None,
        srv: &[],
        at: B,
        default_port: true,
        proves: "127.0.0.11",
        host: "127.0.0.11",
    },
    Branch {
        name: "b.test:PORT", // 2
        well_known: None,
        srv: &["_matrix-fed._tcp.b.test", "_matrix._tcp.b.test"],
        at: B,
        default_port: false,
        proves: "b.test",
        host: "b.test:PORT",
    },
    Branch {
        name: "a.test", // 3.1
        well_known: Some("127.0.0.11:PORT"),
        srv: &["_matrix-fed._tcp.a.test"],
        at: B,
        default_port: false,
        proves: "127.0.0.11",
        host: "127.0.0.11:PORT",
    },
    Branch {
        name: "a.test", // 3.1, without port
        well_known: Some("127.0.0.11"),
        srv: &["_matrix-fed._tcp.a.test"],
        at: B,
        default_port: true,
        proves: "127.0.0.11",
        host: "127.0.0.11",
    },
    Branch {
        name: "a.test", // 3.2
        well_known: Some("b.test:PORT"),
        srv: &["_matrix-fed._tcp.b.test", "_matrix-fed._tcp.a.test"],
        at: B,
        default_port: false,
        proves: "b.test",
        host: "b.test:PORT",
    },
    Branch {
        name: "a.test", // 3.3
        well_known: Some("b.test"),
        srv: &["_matrix-fed._tcp.b.test"],
        at: C,
        default_port: false,
        proves: "b.test",
        host: "b.test",
    },
    Branch {
        name: "a.test", // 3.4
        well_known: Some("b.test"),
        srv: &["_matrix._tcp.b.test"],
        at: C,
        default_port: false,
        proves: "b.test",
        host: "b.test",
    },
    Branch {
        name: "a.test", // 3.5
        well_known: Some("b.test"),
        srv: &["_matrix-fed._tcp.a.test", "_matrix._tcp.a.test"],
        at: B,
        default_port: true,
        proves: "b.test",
        host: "b.test",
    },
    Branch {
        name: "a.test", // 4
        well_known: NOBODY,
        srv: &["_matrix-fed._tcp.a.test"],
        at: C,
        default_port: false,
        proves: "a.test",
        host: "a.test",
    },
    Branch {
        name: "a.test", // 5
        well_known: NOBODY,
        srv: &["_matrix._tcp.a.test"],
        at: C,
        default_port: false,
        proves: "a.test",
        host: "a.test",
    },
    Branch {
        name: "a.test", // 6
        well_known: NOBODY,
        srv: &[],
        at: WEB,
        default_port: true,
        proves: "a.test",
        host: "a.test",
    },
    Branch {
        name: "A.Test", // 6, as people write it
        well_known: NOBODY,
        srv: &[],
        at: WEB,
        default_port: true,
        proves: "a.test",
        host: "A.Test",
    },
];

/// Sends by a branch to a server that proves `proves`.
async fn try_branch(
    branch: &Branch,
    authority: &Authority,
    proves: &str,
) -> (Result<Bytes, TransportError>, TlsServer) {
    let server = authority.serve(listener(branch.at).await, proves, |_| Say::Keep(ok("{}")));
    let port = server.address.port();
    let with_port = |text: &str| text.replace("PORT", &port.to_string());
    let said = match branch.well_known {
        Some("") | None => not_found(),
        Some(server) => delegation(&with_port(server)),
    };
    let web = web(authority, move |_| Say::Keep(said.clone())).await;
    let mut zone = zone();
    for name in branch.srv {
        // A record that must not count leads nowhere.
        let counts = branch.at == C;
        zone = zone.srv(name, (0, 0, if counts { port } else { 1 }), "alias.test");
    }
    let dns = zone.serve().await;
    let ports = Ports {
        well_known: web.address.port(),
        federation: if branch.default_port { port } else { 1 },
    };
    let ways = ways(&dns, authority, ports, clock());
    let answer = send(&ways, &with_port(branch.name)).await;
    let asked: Vec<_> = web.seen().iter().map(|seen| seen.head.clone()).collect();
    assert_eq!(asked.len(), usize::from(branch.well_known.is_some()));
    for head in asked {
        assert!(head.starts_with("GET /.well-known/matrix/server HTTP/1.1\r\n"));
    }
    (answer, server)
}

#[tokio::test]
async fn every_branch_reaches_the_right_server_under_the_right_names() {
    let authority = Authority::new();
    for (number, branch) in BRANCHES.iter().enumerate() {
        let (answer, server) = try_branch(branch, &authority, branch.proves).await;
        assert_eq!(answer.unwrap(), "{}", "{number}");
        let seen = server.seen();
        assert_eq!(seen.len(), 1, "{number}");
        assert_eq!(seen[0].to, server.address, "{number}");
        let is_address = branch.proves.parse::<Ipv4Addr>().is_ok();
        let sni = (!is_address).then_some(branch.proves);
        assert_eq!(seen[0].sni.as_deref(), sni, "{number}");
        let port = server.address.port().to_string();
        let host = branch.host.replace("PORT", &port);
        assert_eq!(seen[0].header("host"), Some(&*host), "{number}");
        let target = "/_matrix/federation/v1/send/%2F?a=b";
        assert_eq!((seen[0].target(), &*seen[0].body), (target, "{}"));
    }
}

#[tokio::test]
async fn no_branch_believes_another_certificate() {
    let authority = Authority::new();
    for (number, branch) in BRANCHES.iter().enumerate() {
        let others = ["a.test", "b.test", "alias.test", "127.0.0.12"];
        for other in others.iter().filter(|other| **other != branch.proves) {
            let (answer, server) = try_branch(branch, &authority, other).await;
            let refused = matches!(answer, Err(TransportError::Tls(_)));
            assert!(refused, "{number} {other}: {answer:?}");
            assert_eq!((server.accepted(), server.seen().len()), (1, 0), "{number}");
        }
    }
}

/// Sends to `a.test`, whose web server answers so, while its step 6 leads to a server of its own.
async fn with_web(answer: impl Fn(&Seen) -> Say + Send + Sync + 'static) -> (TlsServer, TlsServer) {
    let authority = Authority::new();
    let own = authority.serve(listener(WEB).await, "a.test", |_| Say::Keep(ok("own")));
    let web = web(&authority, answer).await;
    let dns = zone().serve().await;
    let ports = Ports {
        well_known: web.address.port(),
        federation: own.address.port(),
    };
    let ways = ways(&dns, &authority, ports, clock());
    let answer = send(&ways, "a.test").await;
    assert!(
        matches!(answer, Err(TransportError::Denied)) || answer.as_deref().unwrap() == b"own",
        "{:?}",
        web.seen()
    );
    (web, own)
}

#[tokio::test]
async fn a_delegation_that_is_none_leaves_the_name_as_it_is() {
    let huge = format!(r#"{{"m.server":"b.test","x":"{}"}}"#, "x".repeat(51_200));
    for said in [
        not_found(),
        ok("no JSON"),
        ok(r#"{"server":"b.test"}"#),
        ok(r#"{"m.server":"b.test:0:0"}"#),
        ok(&huge),
        "HTTP/1.1 302 Found\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 302 Found\r\nlocation: http://a.test/\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "not HTTP\r\n\r\n".to_owned(),
    ] {
        let begins = said.chars().take(60).collect::<String>();
        let again = said.contains("/again");
        let (web, own) = with_web(move |_| Say::Keep(said.clone())).await;
        assert_eq!(own.seen().len(), 1, "{begins}");
        // Five redirects are followed.
        assert_eq!(web.seen().len(), if again { 6 } else { 1 }, "{begins}");
    }
    let (_, own) = with_web(|_| Say::Flood("HTTP/1.1 200 OK\r\n\r\n".to_owned())).await;
    assert_eq!(own.seen().len(), 1);
    // One that drips is waited for five seconds in all.
    let dripping = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{";
    let (_, own) = with_web(|_| Say::Hang(dripping.to_owned())).await;
    assert_eq!(own.seen().len(), 1);
}

#[tokio::test]
async fn redirects_lead_to_other_servers_but_not_inside() {
    let authority = Authority::new();
    let own = authority.serve(listener(B).await, "b.test", |_| Say::Keep(ok("own")));
    let told = format!("b.test:{}", own.address.port());
    let elsewhere = authority.serve(listener(C).await, "c.test", move |_| {
        Say::Keep(delegation(&told))
    });
    let target = format!("https://c.test:{}/x", elsewhere.address.port());
    let redirect = move |target: &str| {
        let head = format!("HTTP/1.1 301 Moved\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n");
        Say::Keep(head)
    };
    let web_server = web(&authority, move |_| redirect(&target)).await;
    let dns = zone().serve().await;
    let ports = Ports {
        well_known: web_server.address.port(),
        federation: 1,
    };
    let ways = ways(&dns, &authority, ports, clock());
    assert_eq!(send(&ways, "a.test").await.unwrap(), "own");
    assert_eq!(elsewhere.seen().len(), 1);

    let inside = authority.serve(listener(INSIDE).await, "inside.test", |_| {
        Say::Keep(delegation("b.test"))
    });
    for host in ["inside.test", "127.0.1.1", "[::ffff:127.0.1.1]"] {
        let target = format!("https://{host}:{}/x", inside.address.port());
        let (_, own) = with_web(move |_| redirect(&target)).await;
        assert_eq!(own.seen().len(), 1, "{host}");
    }
    assert_eq!(inside.accepted(), 0);
}

#[tokio::test]
async fn nobody_is_sent_inside() {
    let authority = Authority::new();
    let inside = authority.serve(listener(INSIDE).await, "inside.test", |_| {
        Say::Keep(ok("secret"))
    });
    let port = inside.address.port();
    for told in [
        format!("127.0.1.1:{port}"),
        format!("[::ffff:127.0.1.1]:{port}"),
        format!("inside.test:{port}"),
    ] {
        let (_, own) = with_web(move |_| Say::Keep(delegation(&told))).await;
        assert_eq!(own.seen().len(), 0);
    }
    let zone = zone().srv("_matrix._tcp.a.test", (0, 0, port), "inside.test");
    let dns = zone.serve().await;
    let web = web(&authority, |_| Say::Keep(not_found())).await;
    let ports = Ports {
        well_known: web.address.port(),
        federation: port,
    };
    let ways = ways(&dns, &authority, ports, clock());
    for name in [
        "a.test".to_owned(),
        "127.0.1.1".to_owned(),
        format!("127.0.1.1:{port}"),
        format!("[::ffff:7f00:101]:{port}"),
        format!("inside.test:{port}"),
        "inside.test".to_owned(),
    ] {
        let refused = send(&ways, &name).await;
        assert!(
            matches!(refused, Err(TransportError::Denied)),
            "{name}: {refused:?}"
        );
    }
    assert_eq!(inside.accepted(), 0);
}

/// Every kind of address that is nobody's outside, as a name, behind one, and delegated to.
#[tokio::test]
async fn no_address_inside_is_connected_to() {
    let authority = Authority::new();
    let addresses: [(Ipv4Addr, &str); 8] = [
        ([10, 1, 2, 3].into(), "ten.test"),
        ([172, 16, 0, 1].into(), "sixteen.test"),
        ([192, 168, 0, 1].into(), "lan.test"),
        ([169, 254, 169, 254].into(), "metadata.test"),
        ([100, 64, 0, 1].into(), "carrier.test"),
        ([0, 0, 0, 0].into(), "nothing.test"),
        ([127, 0, 1, 1].into(), "loop.test"),
        ([255, 255, 255, 255].into(), "all.test"),
    ];
    let mut zone = zone();
    for (address, name) in addresses {
        let service = format!("_matrix-fed._tcp.srv.{name}");
        zone = zone.a(name, address).srv(&service, (0, 0, 8448), name);
    }
    let dns = zone.serve().await;
    let literals = [
        "[::1]",
        "[::]",
        "[fc00::1]",
        "[fd12::1]",
        "[fe80::1]",
        "[::ffff:10.0.0.1]",
    ];
    let mut names: Vec<String> = literals.map(str::to_owned).to_vec();
    names.extend(["[64:ff9b::a00:1]", "[2002:a00:1::]", "[2002:7f00:101::]"].map(str::to_owned));
    names.extend(addresses.iter().map(|(address, _)| address.to_string()));
    names.extend(addresses.iter().map(|(_, name)| (*name).to_owned()));
    for name in &names {
        let told = format!("{name}:8448");
        let web = web(&authority, move |_| Say::Keep(delegation(&told))).await;
        let ports = Ports {
            well_known: web.address.port(),
            federation: 8448,
        };
        let ways = ways(&dns, &authority, ports, clock());
        let with_port = format!("{name}:8448");
        for name in ["a.test", name.as_str(), &with_port] {
            let refused = send(&ways, name).await;
            assert!(
                matches!(refused, Err(TransportError::Denied)),
                "{name}: {refused:?}"
            );
        }
        assert_eq!(web.seen().len(), 1);
    }
    let ports = Ports {
        well_known: 1,
        federation: 8448,
    };
    let ways = ways(&dns, &authority, ports, clock());
    for (_, name) in addresses {
        let refused = send(&ways, &format!("srv.{name}")).await;
        assert!(
            matches!(refused, Err(TransportError::Denied)),
            "{name}: {refused:?}"
        );
    }
}

/// CVE-2024-52602: a medium that is said to lie elsewhere lies outside, behind TLS, and not behind
/// any number of redirects.
#[tokio::test]
async fn media_that_lie_elsewhere_do_not_lie_inside() {
    let authority = Authority::new();
    let inside = authority.serve(listener(INSIDE).await, "inside.test", |_| {
        Say::Keep(ok("secret"))
    });
    let port = inside.address.port();
    let redirect = |target: &str| {
        format!("HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n")
    };
    let there = authority.serve(listener(C).await, "c.test", move |seen| {
        Say::Keep(match seen.target() {
            "/inside" => redirect(&format!("https://inside.test:{port}/")),
            "/address" => redirect(&format!("https://127.0.1.1:{port}/")),
            "/mapped" => redirect(&format!("https://[::ffff:127.0.1.1]:{port}/")),
            "/plain" => redirect("http://c.test/ok"),
            "/file" => redirect("file:///etc/passwd"),
            "/again" => redirect("/again"),
            "/once" => redirect("/ok"),
            _ => ok("medium"),
        })
    });
    let dns = zone().serve().await;
    let ports = Ports {
        well_known: 1,
        federation: 1,
    };
    let ways = ways(&dns, &authority, ports, clock());
    let base = format!("https://c.test:{}", there.address.port());
    for path in ["/ok", "/once"] {
        let fetched = ways.fetch(&format!("{base}{path}"), LIMITS).await.unwrap();
        assert_eq!(fetched.body.whole().await.unwrap(), "medium", "{path}");
    }
    let before = there.seen().len();
    assert!(ways.fetch(&format!("{base}/again"), LIMITS).await.is_err());
    assert_eq!(
        there.seen().len() - before,
        4,
        "three redirects are followed"
    );
    for path in ["/inside", "/address", "/mapped", "/plain", "/file"] {
        let refused = ways.fetch(&format!("{base}{path}"), LIMITS).await;
        assert!(refused.is_err(), "{path}");
    }
    for url in [
        format!("https://127.0.1.1:{port}/"),
        format!("https://2130706689:{port}/"),
        format!("https://0x7f000101:{port}/"),
        format!("https://[::ffff:7f00:101]:{port}/"),
        format!("https://inside.test:{port}/"),
        format!("http://c.test:{}/ok", there.address.port()),
        "file:///etc/passwd".to_owned(),
        "no url".to_owned(),
    ] {
        let refused = ways.fetch(&url, LIMITS).await;
        assert!(refused.is_err(), "{url}");
    }
    assert_eq!(inside.accepted(), 0);
}

#[tokio::test]
async fn srv_targets_are_tried_in_their_order() {
    let authority = Authority::new();
    let web = web(&authority, |_| Say::Keep(not_found())).await;
    let server = |listener, authority: &Authority| {
        authority.serve(listener, "a.test", |_| Say::Keep(ok("srv")))
    };
    let first = server(listener(B).await, &authority);
    let second = server(listener(C).await, &authority);
    let own = server(listener(WEB).await, &authority);
    let ports = Ports {
        well_known: web.address.port(),
        federation: own.address.port(),
    };
    let reached = async |zone: Zone| {
        let before = [&first, &second, &own].map(TlsServer::accepted);
        let dns = zone.serve().await;
        let ways = ways(&dns, &authority, ports, clock());
        let answer = send(&ways, "a.test").await;
        let after = [&first, &second, &own].map(TlsServer::accepted);
        let accepted = [0, 1, 2].map(|index| after[index] - before[index]);
        answer.map(|_| accepted)
    };
    let (b, c) = (first.address.port(), second.address.port());
    let fed = "_matrix-fed._tcp.a.test";
    let two = zone()
        .srv(fed, (2, 0, c), "c.test")
        .srv(fed, (1, 0, b), "b.test");
    assert_eq!(reached(two).await.unwrap(), [1, 0, 0]);
    // The first is dead, the second unknown to the DNS.
    let dead = zone().srv(fed, (1, 0, 1), "b.test");
    let dead = dead
        .srv(fed, (2, 0, 1), "nowhere.test")
        .srv(fed, (3, 0, c), "c.test");
    assert_eq!(reached(dead).await.unwrap(), [0, 1, 0]);
    // The older service counts only where the newer one is missing.
    let both = zone().srv("_matrix._tcp.a.test", (0, 0, b), "b.test");
    assert_eq!(reached(both.clone()).await.unwrap(), [1, 0, 0]);
    assert_eq!(
        reached(both.srv(fed, (9, 0, c), "c.test")).await.unwrap(),
        [0, 1, 0]
    );
    // Where the DNS fails, the name is tried as it is.
    assert_eq!(reached(zone().broken(fed)).await.unwrap(), [0, 0, 1]);
    // Said not to be there.
    let refused = reached(zone().srv(fed, (0, 0, 0), ".")).await;
    assert!(
        matches!(refused, Err(TransportError::Unresolved(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_delegation_is_asked_for_once_and_again_when_it_is_old() {
    const MINUTE: Duration = Duration::from_mins(1);
    let authority = Authority::new();
    let server = authority.serve(listener(B).await, "b.test", |_| Say::Keep(ok("{}")));
    let told = delegation(&format!("b.test:{}", server.address.port()));
    let told = told.replace("200 OK\r\n", "200 OK\r\ncache-control: max-age=3600\r\n");
    // The third answer is an outage, the fourth the end.
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let web = web(&authority, move |_| {
        match counted.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Say::Keep(told.clone()),
            2 => Say::Close("HTTP/1.1 502 Bad Gateway\r\n\r\n".to_owned()),
            _ => Say::Keep(not_found()),
        }
    });
    let web = web.await;
    let dns = zone().serve().await;
    let ports = Ports {
        well_known: web.address.port(),
        federation: 1,
    };
    let clock = clock();
    let ways = ways(&dns, &authority, ports, Arc::clone(&clock));
    let many = (0..10).map(|_| send(&ways, "a.test"));
    let answers = futures_util::future::join_all(many).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let steps = [
        (59 * MINUTE, 1),
        (MINUTE, 2),
        // An outage: the old answer is used, and nobody is asked for a minute.
        (60 * MINUTE, 3),
        (Duration::from_secs(59), 3),
    ];
    for (step, (pause, wanted)) in steps.into_iter().enumerate() {
        clock.advance(pause);
        assert!(send(&ways, "A.TEST").await.is_ok(), "{step}");
        assert_eq!(asked.load(Ordering::SeqCst), wanted, "{step}");
    }
    clock.advance(MINUTE);
    let gone = send(&ways, "a.test").await;
    assert!(
        matches!(gone, Err(TransportError::Unreachable(_))),
        "{gone:?}"
    );
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn finding_the_server_counts_against_the_deadline_and_is_not_in_vain() {
    let authority = Authority::new();
    let server = authority.serve(listener(B).await, "b.test", |_| Say::Keep(ok("{}")));
    let told = delegation(&format!("b.test:{}", server.address.port()));
    let go = Arc::new(Notify::new());
    let gone = Arc::clone(&go);
    let web = web(&authority, move |_| {
        Say::When(Arc::clone(&gone), told.clone())
    })
    .await;
    let dns = zone().serve().await;
    let ports = Ports {
        well_known: web.address.port(),
        federation: 1,
    };
    let ways = ways(&dns, &authority, ports, clock());
    let mut outgoing = outgoing("a.test");
    outgoing.limits.deadline = Duration::from_millis(300);
    let late = ways.send(outgoing).await;
    assert!(matches!(late, Err(TransportError::Deadline)), "{late:?}");
    go.notify_one();
    assert_eq!(send(&ways, "a.test").await.unwrap(), "{}");
    assert_eq!(web.seen().len(), 1);
}

#[tokio::test]
async fn servers_behind_one_name_share_a_connection() {
    let authority = Authority::new();
    let server = authority.serve(listener(B).await, "b.test", |_| Say::Keep(ok("{}")));
    let told = format!("b.test:{}", server.address.port());
    let delegated = told.clone();
    let web = web(&authority, move |_| Say::Keep(delegation(&delegated))).await;
    let dns = zone().serve().await;
    let ports = Ports {
        well_known: web.address.port(),
        federation: 1,
    };
    let ways = ways(&dns, &authority, ports, clock());
    for name in ["a.test", &told, "a.test"] {
        send(&ways, name).await.unwrap();
    }
    let connections: Vec<_> = server.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [1, 1, 1]);
    let to: SocketAddr = server.address;
    assert_eq!(server.seen()[0].to, to);
}
