//! Media between servers: ours for them, theirs for our clients.

use axum::{extract::Path as PathOf, response::IntoResponse, routing};
use http::{StatusCode, header};

use super::{peer::Peer, resident::World, *};

/// Uploads a text.
async fn upload(server: &Fresh, token: &str, text: &str) -> String {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/_matrix/media/v3/upload?filename=a.txt")
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "text/plain")
        .body(Body::from(text.to_owned()))
        .unwrap();
    let answer = server.router.clone().oneshot(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    body["content_uri"].as_str().unwrap()["mxc://".len()..].to_owned()
}

/// Status, type and content of a download.
async fn download(server: &Fresh, token: Option<&str>, path: &str) -> (u16, String, String) {
    let mut request = Request::builder().uri(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Body::empty()).unwrap();
    let answer = server.router.clone().oneshot(request).await.unwrap();
    let (parts, body) = answer.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let kind = kind.map(|kind| kind.to_str().unwrap().to_owned());
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    (parts.status.as_u16(), kind.unwrap_or_default(), body)
}

const CLIENT: &str = "/_matrix/client/v1/media/download";

#[tokio::test]
async fn a_medium_of_another_server_is_fetched_once_and_kept() {
    let world = World::new().await;
    let there = join(&world.network, "there.example").await;
    let zoe = there.register("zoe").await;
    let medium = upload(&there, &zoe.token, "some text").await;
    let path = format!("{CLIENT}/{medium}");
    let token = Some(&*world.alice.token);
    let found = download(&world.here, token, &path).await;
    assert_eq!(
        found,
        (200, "text/plain".to_owned(), "some text".to_owned())
    );
    // Neither for strangers nor over the frozen endpoints.
    assert_eq!(download(&world.here, None, &path).await.0, 401);
    let other = upload(&there, &zoe.token, "other text").await;
    for old in [&medium, &other] {
        let old = format!("/_matrix/media/v3/download/{old}");
        assert_eq!(download(&world.here, None, &old).await.0, 404);
    }
    // The other server may be gone.
    let name = ServerName::parse("there.example").unwrap();
    world.network.routers.lock().remove(&name);
    assert_eq!(download(&world.here, token, &path).await.2, "some text");
    let path = format!("{CLIENT}/{other}");
    assert_eq!(download(&world.here, token, &path).await.0, 404);
}

#[tokio::test]
async fn media_are_served_to_servers_in_two_parts() {
    let world = World::new().await;
    let medium = upload(&world.here, &world.alice.token, "some text").await;
    let id = medium.split_once('/').unwrap().1;
    let path = format!("/_matrix/federation/v1/media/download/{id}");
    let unsigned = download(&world.here, Some(&world.alice.token), &path).await;
    assert_eq!(unsigned.0, 401);
    let answer = world.peer.get(&world.here, &path).await;
    assert_eq!(answer.status, 200);
    let kind = answer.headers[header::CONTENT_TYPE].to_str().unwrap();
    assert!(kind.starts_with("multipart/mixed; boundary="), "{kind}");
    for unknown in ["unknown", "..", "a%2Fb"] {
        let path = format!("/_matrix/federation/v1/media/download/{unknown}");
        let answer = world.peer.get(&world.here, &path).await;
        answer.refused(404, "M_NOT_FOUND");
    }
    let path = format!("/_matrix/federation/v1/media/thumbnail/{id}?width=10&height=10");
    let answer = world.peer.get(&world.here, &path).await;
    answer.refused(400, "M_UNKNOWN");
}

#[tokio::test]
async fn servers_that_know_the_old_endpoint_only_are_asked_there() {
    let old = async |PathOf((server, id)): PathOf<(String, String)>, query: String| {
        assert_eq!((&*server, &*id), ("peer.example", "abc"));
        let _ = query;
        ([(header::CONTENT_TYPE, "text/html")], "<b>text</b>").into_response()
    };
    let old = routing::get(
        async move |path: PathOf<(String, String)>, request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            assert!(query.contains("allow_remote=false"), "{query}");
            old(path, query).await
        },
    );
    let unrecognized = || {
        let body = axum::Json(json!({ "errcode": "M_UNRECOGNIZED" }));
        (StatusCode::NOT_FOUND, body).into_response()
    };
    let router = Router::new()
        .route("/_matrix/media/v3/download/{server}/{id}", old)
        .fallback(async move || unrecognized());
    let world = World::with(router).await;
    let path = format!("{CLIENT}/peer.example/abc");
    let found = download(&world.here, Some(&world.alice.token), &path).await;
    assert_eq!((found.0, &*found.2), (200, "<b>text</b>"));
}

#[tokio::test]
async fn what_is_no_answer_is_no_medium() {
    let parts = "multipart/mixed; boundary=b";
    let elsewhere = "--b\r\n\r\n{}\r\n--b\r\nLocation: https://10.0.0.1/x\r\n\r\n\r\n--b--";
    let answers = [
        ("whole", "text/plain", "text"),
        ("broken", parts, "--b\r\n\r\n{}\r\n--b\r\n\r\ncontent"),
        ("headless", parts, "--b\r\n\r\n{}\r\n--b--"),
        ("elsewhere", parts, elsewhere),
    ];
    let served = routing::get(async move |PathOf(id): PathOf<String>| {
        let found = answers.iter().find(|(name, ..)| *name == id).unwrap();
        ([(header::CONTENT_TYPE, found.1)], found.2).into_response()
    });
    let router = Router::new().route("/_matrix/federation/v1/media/download/{id}", served);
    let world = World::with(router).await;
    for (id, status) in [
        ("whole", 404),
        ("broken", 502),
        ("headless", 404),
        ("elsewhere", 404),
    ] {
        let path = format!("{CLIENT}/peer.example/{id}");
        for _ in 0..2 {
            let found = download(&world.here, Some(&world.alice.token), &path).await;
            assert_eq!(found.0, status, "{id}: {}", found.2);
        }
    }
    let nobody = Peer::join(&world.network, "nobody.example", Router::new());
    let path = format!("{CLIENT}/{}/abc", nobody.name);
    let found = download(&world.here, Some(&world.alice.token), &path).await;
    assert_eq!(found.0, 404);
}

/// Whatever servers they name: others get their media, too.
#[tokio::test(start_paused = true)]
async fn one_user_does_not_take_all_places() {
    let world = World::new().await;
    let bob = world.here.register("bob").await;
    let never = routing::get(async || std::future::pending::<()>().await);
    let path = "/_matrix/federation/v1/media/download/{id}";
    let router = Router::new().route(path, never);
    for number in 0..18 {
        let name = format!("s{number}.example");
        Peer::join(&world.network, &name, router.clone());
    }
    let ask = async |token: &str, number: usize| {
        let path = format!("{CLIENT}/s{number}.example/abc");
        let patience = std::time::Duration::from_secs(1);
        let asked = download(&world.here, Some(token), &path);
        tokio::time::timeout(patience, asked)
            .await
            .map(|found| found.0)
    };
    for number in 0..16 {
        // Nobody waits any more, and it is fetched all the same.
        assert!(ask(&world.alice.token, number).await.is_err());
    }
    assert_eq!(ask(&world.alice.token, 16).await, Ok(429));
    assert!(ask(&bob.token, 17).await.is_err(), "it is being fetched");
}

/// Each of those who wait tries again if a fetch fails, but not for somebody who is gone.
#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_tried_again() {
    let world = World::new().await;
    let asked = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&asked);
    let slow = routing::get(async move || {
        *seen.lock() += 1;
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        let unknown = axum::Json(json!({ "errcode": "M_NOT_FOUND" }));
        (StatusCode::NOT_FOUND, unknown)
    });
    let path = "/_matrix/federation/v1/media/download/{id}";
    Peer::join(
        &world.network,
        "slow.example",
        Router::new().route(path, slow),
    );
    let (path, token) = (format!("{CLIENT}/slow.example/abc"), &*world.alice.token);
    let ask = async |patience: u64| {
        let patience = std::time::Duration::from_secs(patience);
        let asked = download(&world.here, Some(token), &path);
        tokio::time::timeout(patience, asked).await.is_ok()
    };
    let (first, others) = tokio::join!(ask(60), async {
        let mut others = Vec::new();
        for _ in 0..5 {
            others.push(ask(1).await);
        }
        others
    });
    assert!(first && others == [false; 5]);
    // Time for those who would try again.
    tokio::time::sleep(std::time::Duration::from_mins(5)).await;
    assert_eq!(*asked.lock(), 1);
}

/// CVE-2024-37302, CVE-2024-37303, CVE-2024-36402: nobody is asked for media for those who are not
/// logged in, whatever the path; and names that lead elsewhere are none.
#[tokio::test]
async fn strangers_have_no_server_asked_and_paths_lead_nowhere() {
    let asked = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&asked);
    let router = Router::new().fallback(async move || {
        *counted.lock() += 1;
        StatusCode::NOT_FOUND
    });
    let world = World::with(router).await;
    let sizes = [
        "width=10&height=10",
        "width=10000&height=10000&method=scale",
        "width=0&height=0",
    ];
    for number in 0..100 {
        let place = format!("peer.example/medium{number}");
        for version in ["v3", "r0", "v1"] {
            let base = format!("/_matrix/media/{version}");
            let mut paths = vec![
                format!("{base}/download/{place}"),
                format!("{base}/download/{place}?allow_remote=true"),
                format!("{base}/download/{place}/name.png"),
            ];
            paths.extend(sizes.map(|size| format!("{base}/thumbnail/{place}?{size}")));
            for path in paths {
                let found = download(&world.here, None, &path).await;
                assert!(matches!(found.0, 400 | 404), "{path}: {found:?}");
            }
        }
        let mut paths = vec![
            format!("{CLIENT}/{place}"),
            format!("{CLIENT}/{place}/name.png"),
        ];
        let thumbnail = CLIENT.replace("download", "thumbnail");
        paths.extend(sizes.map(|size| format!("{thumbnail}/{place}?{size}")));
        for path in paths {
            assert_eq!(download(&world.here, None, &path).await.0, 401, "{path}");
        }
    }
    assert_eq!(*asked.lock(), 0);

    // CVE-2021-41281: who is logged in gets no further than the names of servers and media do.
    let token = Some(&*world.alice.token);
    for place in [
        "..%2F..%2Fetc/passwd",
        "peer.example%2F..%2F../passwd",
        "%2Fetc/passwd",
        "peer.example/..%2F..%2Fpasswd",
        "peer.example/%2e%2e%2fpasswd",
        "peer.example/a%5C..%5Cb",
        "peer.example/a%00b",
        "peer.example%0A/abc",
        "peer.example/abc%0A",
        "here.example/..%2F..%2Fpasswd",
        "here.example%00/abc",
    ] {
        for base in [CLIENT, "/_matrix/media/v3/download"] {
            let found = download(&world.here, token, &format!("{base}/{place}")).await;
            assert!(matches!(found.0, 400 | 404), "{base}/{place}: {found:?}");
        }
    }
    assert_eq!(*asked.lock(), 0);
    let found = download(&world.here, token, &format!("{CLIENT}/peer.example/abc")).await;
    assert_eq!(found.0, 404);
    assert!(*asked.lock() > 0, "it would have been asked");
}
