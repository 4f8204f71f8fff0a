//! Who asks: every endpoint that other servers sign, asked by servers that are denied, without a
//! signature, and with one that says something else than the request.
//!
//! Specification: server-server API, "Request Authentication".

use http::header;

use homeserver_events::SigningKey;
use homeserver_federation::{OwnKeys, SignedRequest, keys::OldKey};

use super::{
    peer::Peer,
    resident::{client_path, encode},
    *,
};

/// Every endpoint of the specification and of proposals.
const ENDPOINTS: &str = include_str!("../../../../../../tests/data/endpoints.tsv");

/// Endpoints of the table that this server does not have, by a part of their paths.
const NOT_BUILT: [&str; 7] = [
    "/policy/v1/sign",
    "/query/{queryType}",
    "msc4195",
    "msc4560",
    "msc4495",
    "msc3843",
    "msc3723",
];

const HERE: &str = "here.example";

/// A request of another server, as it is sent.
#[derive(Clone)]
struct Sent {
    method: Method,
    target: String,
    body: &'static str,
    headers: Vec<String>,
}

impl Sent {
    async fn to(self, here: &Fresh) -> Answer {
        let mut request = Request::builder().method(self.method).uri(self.target);
        for value in self.headers {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Body::from(self.body)).unwrap();
        let answer = here.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }
}

/// What a server asks of this one.
fn question(peer: &Peer, method: &Method, target: &str) -> Sent {
    let body = if *method == Method::GET { "" } else { "{}" };
    let mut sent = Sent {
        method: method.clone(),
        target: target.to_owned(),
        body,
        headers: Vec::new(),
    };
    sent.headers.push(signature(peer, &sent, HERE));
    sent
}

/// The header of a request to a server of this name.
fn signature(peer: &Peer, sent: &Sent, destination: &str) -> String {
    let signed = SignedRequest {
        method: sent.method.as_str(),
        target: &sent.target,
        origin: &peer.name,
        destination: &ServerName::parse(destination).unwrap(),
        body: sent.body.as_bytes(),
    };
    signed.sign(&peer.key).unwrap().to_string()
}

/// The endpoints that are signed, with something in place of their parameters.
fn signed_endpoints() -> Vec<(Method, String)> {
    let fill = |path: &str| {
        let segments = path.split('/').map(|segment| match segment {
            "{roomId}" => encode("!room:here.example"),
            "{eventId}" => encode("$event"),
            "{userId}" => encode("@bob:evil.example"),
            segment if segment.starts_with('{') => "x".to_owned(),
            segment => segment.to_owned(),
        });
        segments.collect::<Vec<_>>().join("/")
    };
    let rows = ENDPOINTS.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split('\t').collect();
        let is_signed = fields[0] == "server-server" && fields[4] == "server signature";
        let built = !NOT_BUILT.iter().any(|part| fields[3].contains(part));
        (is_signed && built).then(|| (fields[2].parse().unwrap(), fill(fields[3])))
    });
    rows.collect()
}

async fn here(network: &Arc<Network>) -> Fresh {
    join_with(network, HERE, |config| {
        config.federation.denied_servers =
            vec!["evil.example".to_owned(), "*.bad.example".to_owned()];
    })
    .await
}

#[tokio::test]
async fn no_endpoint_answers_a_server_that_is_denied() {
    let network = Arc::new(Network::default());
    let here = here(&network).await;
    let good = Peer::join(&network, "good.example", Router::new());
    let denied = [
        "evil.example",
        "EVIL.example",
        "evil.example:8448",
        "x.bad.example",
    ];
    let denied = denied.map(|name| Peer::join(&network, name, Router::new()));
    let endpoints = signed_endpoints();
    assert!(endpoints.len() >= 29, "{}", endpoints.len());
    for (method, target) in endpoints {
        for peer in &denied {
            let answer = question(peer, &method, &target).to(&here).await;
            assert_eq!(answer.status, 403, "{method} {target}: {}", answer.body);
            answer.refused(403, "M_FORBIDDEN");
        }
        // Others are heard: what they are refused, they are refused by the endpoint.
        let answer = question(&good, &method, &target).to(&here).await;
        let code = answer.body["errcode"].as_str().unwrap_or_default();
        let heard = answer.status != 401 && code != "M_UNRECOGNIZED";
        let heard = heard && !answer.body["error"].to_string().contains("does not speak");
        assert!(heard, "{method} {target}: {}", answer.body);
    }
    // Nor does it tell their keys to others.
    for peer in &denied {
        let path = format!("/_matrix/key/v2/query/{}", encode(peer.name.as_str()));
        let told = get(&here, &path).await.ok();
        assert_eq!(told["server_keys"], json!([]));
    }
}

#[tokio::test]
async fn no_endpoint_answers_what_is_not_signed_as_it_is() {
    let network = Arc::new(Network::default());
    let here = here(&network).await;
    let peer = Peer::join(&network, "peer.example", Router::new());
    let other = Peer::join(&network, "other.example", Router::new());
    let nameless = Peer {
        name: peer.name.clone(),
        key: Arc::clone(&other.key),
    };
    for (method, target) in signed_endpoints() {
        let right = question(&peer, &method, &target);
        let with = |headers: Vec<String>| Sent {
            headers,
            ..right.clone()
        };
        let another_method = if method == Method::GET {
            Method::PUT
        } else {
            Method::GET
        };
        let signed_as = |method: &Method, target: &str, body: &'static str| {
            let mut sent = question(&peer, method, target);
            sent.body = body;
            vec![signature(&peer, &sent, HERE)]
        };
        let wrong = [
            ("unsigned", with(Vec::new())),
            ("a client", with(vec!["Bearer abc".to_owned()])),
            ("another's key", question(&nameless, &method, &target)),
            (
                "another server",
                with(vec![signature(&peer, &right, "other.example")]),
            ),
            (
                "another name for it",
                with(vec![
                    signature(&peer, &right, "other.example")
                        .replace("other.example\",key", "here.example\",key"),
                ]),
            ),
            (
                "another method",
                with(signed_as(&another_method, &target, right.body)),
            ),
            (
                "another target",
                with(signed_as(&method, &format!("{target}?a=b"), right.body)),
            ),
            (
                "another body",
                with(signed_as(&method, &target, r#"{"a":1}"#)),
            ),
            (
                "two servers",
                with(vec![
                    right.headers[0].clone(),
                    signature(&other, &right, HERE),
                ]),
            ),
        ];
        for (what, sent) in wrong {
            let answer = sent.to(&here).await;
            assert_eq!(
                answer.status, 401,
                "{what}: {method} {target}: {}",
                answer.body
            );
            answer.refused(401, "M_UNAUTHORIZED");
        }
        let answer = right.to(&here).await;
        assert_ne!(answer.status, 401, "{method} {target}: {}", answer.body);
    }
}

/// A header as it is usually written, where `%k` is a key, `%s` its signature.
const QUOTED: &str =
    r#"X-Matrix origin="peer.example",destination="here.example",key="%k",sig="%s""#;

/// Headers, and the status of their answer. `%e` is the signature of a request to another server.
const HEADERS: [(&[&str], u16); 18] = [
    (&[QUOTED], 200),
    (
        &["x-matrix origin=peer.example,destination=here.example,key=%k,sig=%s"],
        200,
    ),
    (
        &[r#"X-MATRIX SIG="%s" , KEY="%k",	new=x,destination="here\.example",origin=peer.example"#],
        200,
    ),
    (&[QUOTED, QUOTED], 200),
    (
        &[
            QUOTED,
            "X-Matrix origin=peer.example,destination=here.example,key=ed25519:new,sig=AAAA",
        ],
        200,
    ),
    (&["Basic abc", QUOTED], 200),
    // Another destination, by whichever signature.
    (
        &[r#"X-Matrix origin="peer.example",destination="elsewhere.example",key="%k",sig="%s""#],
        401,
    ),
    (
        &[r#"X-Matrix origin="peer.example",destination="elsewhere.example",key="%k",sig="%e""#],
        401,
    ),
    (
        &[r#"X-Matrix origin="peer.example",destination="here.example",key="%k",sig="%e""#],
        401,
    ),
    (
        &[r#"X-Matrix origin="peer.example",key="%k",sig="%e""#],
        401,
    ),
    (
        &[
            QUOTED,
            r#"X-Matrix origin="peer.example",destination="elsewhere.example",key="%k",sig="%e""#,
        ],
        401,
    ),
    (
        &[r#"X-Matrix origin="peer.example",destination="",key="%k",sig="%s""#],
        401,
    ),
    // What stands twice.
    (
        &[
            r#"X-Matrix origin="peer.example",destination="here.example",destination="elsewhere.example",key="%k",sig="%s""#,
        ],
        401,
    ),
    (
        &[
            r#"X-Matrix origin="peer.example",origin="peer.example",destination="here.example",key="%k",sig="%s""#,
        ],
        401,
    ),
    (
        &[
            QUOTED,
            r#"X-Matrix origin="peer.example",destination="here.example",key="%k",sig="%e""#,
        ],
        401,
    ),
    // Other algorithms, and keys that nobody published.
    (
        &[r#"X-Matrix origin="peer.example",destination="here.example",key="hmac:peer",sig="%s""#],
        401,
    ),
    (
        &[
            r#"X-Matrix origin="peer.example",destination="here.example",key="ed25519:new",sig="%s""#,
        ],
        401,
    ),
    (
        &[r#"X-Matrix origin="peer.example",destination="here.example",key="%k",sig="""#],
        401,
    ),
];

/// Conduit 63ba157e: the destination counts, however the header is written.
#[tokio::test]
async fn headers_are_read_as_they_may_be_written_and_mean_this_server() {
    let network = Arc::new(Network::default());
    let here = here(&network).await;
    let peer = Peer::join(&network, "peer.example", Router::new());
    let target = "/_matrix/federation/v1/publicRooms";
    let right = question(&peer, &Method::GET, target);
    let value = |header: &str, name: &str| {
        let (_, rest) = header.split_once(&format!("{name}=\"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let (key, sig) = (
        value(&right.headers[0], "key"),
        value(&right.headers[0], "sig"),
    );
    let elsewhere = signature(&peer, &right, "elsewhere.example");
    let elsewhere = value(&elsewhere, "sig");
    let form = |text: &str| {
        text.replace("%k", &key)
            .replace("%s", &sig)
            .replace("%e", &elsewhere)
    };
    for (headers, status) in HEADERS {
        let sent = Sent {
            headers: headers.iter().map(|header| form(header)).collect(),
            ..right.clone()
        };
        let answer = sent.to(&here).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
    }
}

/// A key of small order has signatures that hold for anything.
#[tokio::test]
async fn keys_that_prove_nothing_prove_no_server() {
    let network = Arc::new(Network::default());
    let here = here(&network).await;
    let peer = Peer::join(&network, "weak.example", Router::new());
    // The identity: everything is signed by it and nothing, with nothing.
    let weak = format!("AQ{}", "A".repeat(41));
    let by_weak = format!("AQ{}", "A".repeat(84));
    let own = OwnKeys::new(peer.name.clone(), Arc::clone(&peer.key), Vec::new());
    let mut document: Value = serde_json::from_str(&own.document(START)).unwrap();
    document["verify_keys"]["ed25519:weak"] = json!({ "key": weak });
    let mut document = super::peer::object(&document);
    document.remove("signatures");
    homeserver_events::sign_json(&mut document, peer.name.as_str(), &peer.key);
    let document = homeserver_events::canonical::to_string(&document);
    let mut document: Value = serde_json::from_str(&document).unwrap();
    document["signatures"]["weak.example"]["ed25519:weak"] = json!(by_weak);
    let keys = axum::routing::get(async move || document.to_string());
    let router = Router::new().route("/_matrix/key/v2/server", keys);
    network.routers.lock().insert(peer.name.clone(), router);
    let target = "/_matrix/federation/v1/publicRooms";
    for number in 0..20 {
        let target = format!("{target}?limit={number}");
        let mut sent = question(&peer, &Method::GET, &target);
        sent.headers = vec![format!(
            r#"X-Matrix origin="weak.example",destination="here.example",key="ed25519:weak",sig="{by_weak}""#
        )];
        let answer = sent.to(&here).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
    }
}

/// CVE-2024-6299: a key counts for requests as long as its server says, and for events until its end.
#[tokio::test(start_paused = true)]
async fn keys_that_have_ended_prove_what_was_before() {
    let network = Arc::new(Network::default());
    let here = here(&network).await;
    let alice = here.register("alice").await;
    let peer = Peer::join(&network, "peer.example", Router::new());
    let old = Peer {
        name: peer.name.clone(),
        key: Arc::new(SigningKey::from_seed("old", &[77; 32]).unwrap()),
    };
    let end = START - 1_000;
    let ended = OldKey {
        id: old.key.id().to_string(),
        key: old.key.verify_key(),
        expired: end,
    };
    let serve = |document: String| {
        let keys = axum::routing::get(async move || document.clone());
        let router = Router::new().route("/_matrix/key/v2/server", keys);
        network.routers.lock().insert(peer.name.clone(), router);
    };
    let own = OwnKeys::new(peer.name.clone(), Arc::clone(&peer.key), vec![ended]);
    // A document that holds no longer proves nothing.
    serve(own.document(START - 30 * 24 * 3_600_000));
    let target = "/_matrix/federation/v1/publicRooms";
    let late = question(&peer, &Method::GET, target).to(&here).await;
    late.refused(401, "M_UNAUTHORIZED");
    serve(own.document(START));
    here.clock.advance(std::time::Duration::from_hours(1));
    question(&peer, &Method::GET, target).to(&here).await.ok();
    let answer = question(&old, &Method::GET, target).to(&here).await;
    answer.refused(401, "M_UNAUTHORIZED");

    let path = "/_matrix/client/v3/createRoom";
    let wish = json!({ "preset": "public_chat", "room_version": "11" });
    let made = here.post(path, Some(&alice.token), wish).await.ok();
    let room = made["room_id"].as_str().unwrap();
    let path = |step: &str, what: &str| {
        format!(
            "/_matrix/federation/{step}/{}/{}",
            encode(room),
            encode(what)
        )
    };
    let bob = peer.user("bob");
    let made = peer
        .get(&here, &format!("{}?ver=11", path("v1/make_join", &bob)))
        .await;
    let (id, join) = peer.seal(&made.ok()["event"], "11");
    peer.put(&here, &path("v2/send_join", &id), &join)
        .await
        .ok();
    let made = peer.get(&here, &path("v1/make_leave", &bob)).await.ok();
    let said = |by: &Peer, time: u64, text: &str| {
        let mut event = made["event"].clone();
        event["type"] = json!("m.room.message");
        event["content"] = json!({ "body": text });
        event["origin_server_ts"] = json!(time);
        event.as_object_mut().unwrap().remove("state_key");
        by.seal(&event, "11")
    };
    let events = [
        said(&old, end, "in time"),
        said(&old, end + 1, "late"),
        said(&old, START, "later"),
        said(&peer, START, "anew"),
    ];
    let pdus: Vec<_> = events.iter().map(|(_, event)| event).collect();
    let body = json!({ "pdus": pdus });
    let sent = peer.put(&here, "/_matrix/federation/v1/send/1", &body);
    sent.await.ok();
    tokio::time::sleep(std::time::Duration::from_mins(1)).await;
    let mut seen = Vec::new();
    for (id, _) in &events {
        let path = format!("{}/event/{}", client_path(room), encode(id));
        seen.push(here.get(&path, Some(&alice.token)).await.status == 200);
    }
    assert_eq!(seen, [true, false, false, true]);
}

/// Palpo #190: over the real network, a server on loopback that nobody may have asked.
#[tokio::test]
async fn nobody_has_a_server_inside_asked() {
    let inside = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = inside.local_addr().unwrap().port();
    let mut config = Config {
        server_name: ServerName::parse(HERE).unwrap(),
        ..Config::default()
    };
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    let clock = Arc::new(ManualClock::new(START));
    let homeserver = Homeserver::configured(config)
        .engine(Arc::new(MemoryEngine::new()))
        .runtime(Runtime::simulated(Arc::clone(&clock), 3))
        .open()
        .await
        .unwrap();
    let here = Fresh {
        router: homeserver.router(),
        homeserver,
        clock,
    };
    let alice = here.register("alice").await;
    let token = Some(&*alice.token);
    let v3 = "/_matrix/client/v3";
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"] {
        let name = format!("{host}:{port}");
        let at = |sigil: char| encode(&format!("{sigil}x:{name}"));
        let notary = get(&here, &format!("/_matrix/key/v2/query/{}", encode(&name))).await;
        assert_eq!(notary.ok()["server_keys"], json!([]), "{name}");
        let asked = json!({ "server_keys": { name.as_str(): {} } });
        let notary = here.post("/_matrix/key/v2/query", None, asked).await;
        assert_eq!(notary.ok()["server_keys"], json!([]), "{name}");
        let peer = Peer {
            name: ServerName::parse(&name).unwrap(),
            key: Arc::new(SigningKey::from_seed("a", &[3; 32]).unwrap()),
        };
        let target = "/_matrix/federation/v1/publicRooms";
        let signed = question(&peer, &Method::GET, target).to(&here).await;
        signed.refused(401, "M_UNAUTHORIZED");
        let join = format!("{v3}/join/{}?via={}", at('!'), encode(&name));
        let joined = here.post(&join, token, json!({})).await;
        assert!(joined.status >= 400, "{name}");
        for path in [
            format!("{v3}/directory/room/{}", at('#')),
            format!("{v3}/profile/{}", at('@')),
            format!("{v3}/publicRooms?server={}", encode(&name)),
            format!("/_matrix/client/v1/media/download/{}/abc", encode(&name)),
            format!(
                "/_matrix/client/v1/media/thumbnail/{}/abc?width=9&height=9",
                encode(&name)
            ),
        ] {
            let answer = here.get(&path, token).await;
            assert!(answer.status >= 400, "{path}: {}", answer.body);
        }
        let invite = json!({
            "id_server": name, "id_access_token": "x", "medium": "email", "address": "a@b.example",
        });
        let made = here
            .post(&format!("{v3}/createRoom"), token, json!({}))
            .await
            .ok();
        let room = made["room_id"].as_str().unwrap();
        let path = format!("{}/invite", client_path(room));
        let answer = here.post(&path, token, invite).await;
        assert!(answer.status >= 400, "{name}");
        let invite = json!({ "user_id": format!("@x:{name}") });
        let answer = here.post(&path, token, invite).await;
        assert!(answer.status >= 400, "{name}");
        let keys = json!({ "device_keys": { format!("@x:{name}"): [] }, "timeout": 1_000 });
        let answer = here
            .post(&format!("{v3}/keys/query"), token, keys)
            .await
            .ok();
        assert!(answer["failures"][&name].is_object(), "{answer}");
    }
    let nobody = std::time::Duration::from_millis(200);
    assert!(tokio::time::timeout(nobody, inside.accept()).await.is_err());
}
