//! The framework's own behaviour, over the assembled router.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use homeserver_runtime::Runtime;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::{Components, router};
use crate::app::session::Sessions;

/// A router of a fresh homeserver.
pub(crate) fn fresh() -> Router {
    let runtime = Runtime::system();
    let config = crate::config::Config::default();
    router(Components {
        proxies: super::TrustedProxies::new(&[]),
        limits: crate::app::limits::RateLimits::new(
            config.rate_limits,
            std::sync::Arc::clone(&runtime.clock),
        ),
        runtime,
        sessions: Sessions::default(),
    })
}

/// Sends one request, gives status, headers and JSON body (`null` when empty).
pub(crate) async fn send(
    router: &Router,
    method: Method,
    path: &str,
    body: impl Into<Body>,
) -> (StatusCode, http::HeaderMap, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(body.into())
        .unwrap();
    let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let json = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes).unwrap()
    };
    (parts.status, parts.headers, json)
}

#[tokio::test]
async fn versions_are_listed_and_carry_cors_headers() {
    let router = fresh();
    let (status, headers, body) = send(&router, Method::GET, "/_matrix/client/versions", "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        body["versions"]
            .as_array()
            .unwrap()
            .contains(&"v1.11".into())
    );
    assert_eq!(headers["access-control-allow-origin"], "*");
    let (status, headers, body) = send(&router, Method::HEAD, "/_matrix/client/versions", "").await;
    assert_eq!((status, body), (StatusCode::OK, Value::Null));
    assert_eq!(headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_unrecognized() {
    let router = fresh();
    let cases = [
        (Method::GET, "/_matrix/client/v3/no_such_thing", 404),
        (Method::DELETE, "/_matrix/client/versions", 405),
        (Method::PUT, "/", 404),
    ];
    for (method, path, expected) in cases {
        let (status, headers, body) = send(&router, method, path, "").await;
        assert_eq!(status.as_u16(), expected, "{path}");
        assert_eq!(body["errcode"], "M_UNRECOGNIZED", "{path}");
        assert_eq!(headers["access-control-allow-origin"], "*", "{path}");
    }
}

#[tokio::test]
async fn options_is_answered_everywhere() {
    let router = fresh();
    for path in [
        "/_matrix/client/versions",
        "/_matrix/client/v3/login",
        "/nowhere",
    ] {
        let (status, headers, _) = send(&router, Method::OPTIONS, path, "").await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{path}");
        assert_eq!(
            headers["access-control-allow-headers"],
            "X-Requested-With, Content-Type, Authorization"
        );
    }
}
