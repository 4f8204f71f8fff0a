//! Routing, CORS, bodies, tokens: what all endpoints share.

use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

use super::fresh;
use crate::http::{MAX_BODY, MAX_STRANGERS_BODY};

const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

#[tokio::test]
async fn unknown_paths_and_methods_are_unrecognized() {
    let fresh = fresh().await;
    let cases = [
        (Method::GET, "/_matrix/client/v3/no_such_thing", 404),
        (Method::GET, "/_matrix/client/v9/login", 404),
        (Method::DELETE, "/_matrix/client/versions", 405),
        (Method::PUT, LOGIN, 405),
        (Method::POST, "/", 405),
    ];
    for (method, path, expected) in cases {
        let answer = fresh.send(method, path, None, Value::Null).await;
        answer.refused(expected, "M_UNRECOGNIZED");
        assert_eq!(answer.headers["access-control-allow-origin"], "*", "{path}");
    }
}

#[tokio::test]
async fn options_is_answered_everywhere_and_does_nothing() {
    let fresh = fresh().await;
    for path in ["/_matrix/client/versions", LOGIN, WHOAMI, "/nowhere"] {
        let answer = fresh.send(Method::OPTIONS, path, None, Value::Null).await;
        assert_eq!((answer.status, answer.body), (204, Value::Null), "{path}");
        let headers = answer.headers;
        assert_eq!(headers["access-control-allow-origin"], "*");
        assert_eq!(
            headers["access-control-allow-methods"],
            "GET, POST, PUT, DELETE, OPTIONS"
        );
        assert_eq!(
            headers["access-control-allow-headers"],
            "X-Requested-With, Content-Type, Authorization"
        );
        assert!(!headers.contains_key("access-control-allow-credentials"));
        let answer = fresh.get(path, None).await;
        assert_eq!(answer.headers["access-control-allow-origin"], "*");
        let credentials = "access-control-allow-credentials";
        assert!(!answer.headers.contains_key(credentials), "{path}");
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let fresh = fresh().await;
    let answer = fresh
        .send(Method::HEAD, "/_matrix/client/versions", None, Value::Null)
        .await;
    assert_eq!((answer.status, answer.body), (200, Value::Null));
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn bodies_that_cannot_be_read_say_why() {
    let fresh = fresh().await;
    let cases = [
        ("{", "M_NOT_JSON"),
        ("not json", "M_NOT_JSON"),
        ("", "M_NOT_JSON"),
        ("[]", "M_BAD_JSON"),
        ("7", "M_BAD_JSON"),
        ("{\"type\": 7}", "M_BAD_JSON"),
        ("{}", "M_MISSING_PARAM"),
        ("{\"type\": \"m.login.password\"}", "M_MISSING_PARAM"),
    ];
    for (body, code) in cases {
        let answer = fresh
            .send_bytes(Method::POST, LOGIN, None, Body::from(body))
            .await;
        answer.refused(400, code);
    }
    let refresh = "/_matrix/client/v3/refresh";
    fresh
        .post(refresh, None, json!({}))
        .await
        .refused(400, "M_MISSING_PARAM");
    let body = Body::from(&b"{\"refresh_token\": \"\xff\"}"[..]);
    let answer = fresh.send_bytes(Method::POST, refresh, None, body).await;
    answer.refused(400, "M_NOT_JSON");
}

#[tokio::test]
async fn bodies_that_are_too_large_are_refused() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let filter = format!("/_matrix/client/v3/user/{}/filter", alice.user);
    let cases = [
        (LOGIN.to_owned(), None, MAX_STRANGERS_BODY),
        (filter, Some(&*alice.token), MAX_BODY),
    ];
    for (path, token, limit) in cases {
        let body = Body::from(vec![b' '; limit + 1]);
        let answer = fresh.send_bytes(Method::POST, &path, token, body).await;
        answer.refused(413, "M_TOO_LARGE");
        let body = Body::from(vec![b' '; limit]);
        let answer = fresh.send_bytes(Method::POST, &path, token, body).await;
        answer.refused(400, "M_NOT_JSON");
    }
}

#[tokio::test]
async fn the_body_of_a_get_is_not_read() {
    let fresh = fresh().await;
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>();
    let body = Body::from_stream(never);
    let path = "/_matrix/client/versions";
    fresh.send_bytes(Method::GET, path, None, body).await.ok();
}

#[tokio::test]
async fn strangers_are_limited_everywhere() {
    let fresh = super::fresh_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.other.per_second = 0.001;
        config.rate_limits.other.burst = 2;
    })
    .await;
    let alice = fresh.register("alice").await;
    for path in ["/_matrix/client/versions", "/_matrix/client/v3/login"] {
        fresh.get(path, None).await.ok();
    }
    let versions = fresh.get("/_matrix/client/versions", None).await;
    versions.refused(429, "M_LIMIT_EXCEEDED");
    let profile = format!("/_matrix/client/v3/profile/{}", alice.user);
    let strangers = fresh.get(&profile, None).await;
    strangers.refused(429, "M_LIMIT_EXCEEDED");
    // Who is logged in is not counted with the strangers at the same address.
    for path in [
        &profile,
        "/_matrix/client/v3/publicRooms",
        "/_matrix/client/versions",
    ] {
        fresh.get(path, None).await.refused(429, "M_LIMIT_EXCEEDED");
        for _ in 0..4 {
            fresh.get(path, Some(&alice.token)).await.ok();
        }
    }
}

#[tokio::test]
async fn tokens_come_in_header_or_query() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    fresh
        .get(WHOAMI, None)
        .await
        .refused(401, "M_MISSING_TOKEN");
    fresh
        .get(WHOAMI, Some(""))
        .await
        .refused(401, "M_MISSING_TOKEN");
    fresh
        .get(&format!("{WHOAMI}?access_token="), None)
        .await
        .refused(401, "M_MISSING_TOKEN");
    let answer = fresh.get(WHOAMI, Some("wrong")).await;
    answer.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let swapped = alice.token.chars().map(|letter| match letter {
        'a'..='z' => letter.to_ascii_uppercase(),
        _ => letter.to_ascii_lowercase(),
    });
    let swapped: String = swapped.collect();
    let shorter = &alice.token[..alice.token.len() - 1];
    for almost in [&alice.token[1..], shorter, &swapped] {
        fresh
            .get(WHOAMI, Some(almost))
            .await
            .refused(401, "M_UNKNOWN_TOKEN");
    }
    let cases = [
        (WHOAMI.to_owned(), Some(&*alice.token)),
        (format!("{WHOAMI}?access_token={}", alice.token), None),
        (
            "/_matrix/client/r0/account/whoami".to_owned(),
            Some(&*alice.token),
        ),
    ];
    for (path, token) in cases {
        let body = fresh.get(&path, token).await.ok();
        assert_eq!(
            body,
            json!({ "user_id": alice.user, "device_id": alice.device })
        );
    }
}

#[tokio::test]
async fn other_tokens_are_no_access_tokens() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let mut login = super::by_password("alice");
    login["refresh_token"] = true.into();
    let refreshable = fresh.post(LOGIN, None, login).await.ok();
    let get_token = "/_matrix/client/v1/login/get_token";
    let proof = json!({ "auth": super::own_password("alice") });
    let brief = fresh.post(get_token, Some(&alice.token), proof).await.ok();
    for token in [&refreshable["refresh_token"], &brief["login_token"]] {
        let token = token.as_str().unwrap();
        fresh
            .get(WHOAMI, Some(token))
            .await
            .refused(401, "M_UNKNOWN_TOKEN");
    }
}

/// Nothing is unpacked: a thousand bytes stay a thousand.
#[tokio::test]
async fn a_packed_body_is_not_unpacked() {
    let fresh = fresh().await;
    let packed = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x93, 0xe7, 0x60];
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(LOGIN)
        .header("content-encoding", "gzip")
        .body(Body::from(packed.to_vec()));
    let answer = tower::ServiceExt::oneshot(fresh.router.clone(), request.unwrap());
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 400);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await;
    let body: Value = serde_json::from_slice(&body.unwrap().to_bytes()).unwrap();
    assert_eq!(body["errcode"], "M_NOT_JSON");
}

#[tokio::test]
async fn tokens_in_the_query_can_be_forbidden() {
    let fresh = super::fresh_with(|config| config.sessions.allow_token_in_query = false).await;
    let alice = fresh.register("alice").await;
    let path = format!("{WHOAMI}?access_token={}", alice.token);
    fresh.get(&path, None).await.refused(401, "M_MISSING_TOKEN");
    fresh.get(WHOAMI, Some(&alice.token)).await.ok();
}

#[tokio::test]
async fn path_parameters_are_decoded_after_the_split() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    // A device id with a slash is one segment.
    let mut login = super::by_password("alice");
    login["device_id"] = "A/B%C".into();
    fresh.post(LOGIN, None, login).await.ok();
    let path = "/_matrix/client/v3/devices/A%2FB%25C";
    let body = fresh.get(path, Some(&alice.token)).await.ok();
    assert_eq!(body["device_id"], "A/B%C");
    let broken = "/_matrix/client/v3/devices/%FF";
    fresh
        .get(broken, Some(&alice.token))
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn too_many_requests_are_refused_for_a_while() {
    let fresh = super::fresh_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login.per_second = 1.0;
        config.rate_limits.login.burst = 2;
    })
    .await;
    let wrong = json!({ "type": "m.login.token", "token": "x" });
    for _ in 0..2 {
        fresh
            .post(LOGIN, None, wrong.clone())
            .await
            .refused(403, "M_FORBIDDEN");
    }
    let answer = fresh.post(LOGIN, None, wrong.clone()).await;
    answer.refused(429, "M_LIMIT_EXCEEDED");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.body["retry_after_ms"], 1000);
    fresh.clock.advance(std::time::Duration::from_secs(1));
    fresh
        .post(LOGIN, None, wrong)
        .await
        .refused(403, "M_FORBIDDEN");
}
