//! Uploads, downloads, thumbnails.

use axum::body::Body;
use http::Method;
use serde_json::json;

use super::{Fresh, fresh, fresh_with};

async fn upload(fresh: &Fresh, token: &str, content: &'static str) -> String {
    let path = "/_matrix/media/v3/upload?filename=note.txt";
    let body = Body::from(content);
    let answer = fresh
        .send_bytes(Method::POST, path, Some(token), body)
        .await
        .ok();
    let uri = answer["content_uri"].as_str().unwrap();
    uri.strip_prefix("mxc://").unwrap().to_owned()
}

/// What keeps a browser from running it.
#[track_caller]
fn is_harmless(answer: &super::Answer) {
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("sandbox;"), "{policy}");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
}

/// A black PNG of 64 × 64.
const PICTURE: &[u8] = b"\
    \x89\x50\x4e\x47\x0d\x0a\x1a\x0a\x00\x00\x00\x0d\x49\x48\x44\x52\x00\x00\x00\
    \x40\x00\x00\x00\x40\x01\x00\x00\x00\x00\x82\x12\x4c\x73\x00\x00\x00\x0f\x49\
    \x44\x41\x54\x78\xda\x63\x60\x18\x05\xa3\x80\x7c\x00\x00\x02\x40\x00\x01\xe0\
    \x4d\x1d\x44\x00\x00\x00\x00\x49\x45\x4e\x44\xae\x42\x60\x82";

#[tokio::test]
async fn what_was_uploaded_is_downloaded() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let token = Some(&*alice.token);
    let place = upload(&fresh, &alice.token, "hello").await;
    for (path, name) in [
        (
            format!("/_matrix/client/v1/media/download/{place}"),
            "note.txt",
        ),
        (
            format!("/_matrix/client/v1/media/download/{place}/other.txt"),
            "other.txt",
        ),
    ] {
        let answer = fresh.get(&path, token).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, "hello");
        let disposition = answer.headers["content-disposition"].to_str().unwrap();
        assert!(disposition.contains(name), "{disposition}");
        assert_eq!(
            answer.headers["cross-origin-resource-policy"],
            "cross-origin"
        );
        is_harmless(&answer);
        fresh.get(&path, None).await.refused(401, "M_MISSING_TOKEN");
    }
    let missing = "/_matrix/client/v1/media/download/localhost/nothing";
    fresh.get(missing, token).await.refused(404, "M_NOT_FOUND");
    let thumbnail = format!("/_matrix/client/v1/media/thumbnail/{place}?width=0&height=9");
    fresh
        .get(&thumbnail, token)
        .await
        .refused(400, "M_INVALID_PARAM");
    let thumbnail = format!("/_matrix/client/v1/media/thumbnail/{place}?width=9&height=9");
    assert_eq!(fresh.get(&thumbnail, token).await.status, 400);
}

#[tokio::test]
async fn old_endpoints_serve_by_configuration() {
    for (allowed, status) in [(false, 404), (true, 200)] {
        let fresh = fresh_with(|config| config.media.allow_legacy_unauthenticated = allowed).await;
        let alice = fresh.register("alice").await;
        let picture = Body::from(PICTURE);
        let path = "/_matrix/media/v3/upload";
        let sent = fresh.send_bytes(Method::POST, path, Some(&alice.token), picture);
        let uri = sent.await.ok()["content_uri"].clone();
        let place = uri.as_str().unwrap().strip_prefix("mxc://").unwrap();
        let sizes = ["width=1&height=1", "width=800&height=800"];
        for version in ["v3", "r0"] {
            let download = format!("/_matrix/media/{version}/download/{place}");
            let thumbnail = format!("/_matrix/media/{version}/thumbnail/{place}");
            let mut paths = vec![download.clone(), format!("{download}/name.png")];
            paths.extend(sizes.map(|size| format!("{thumbnail}?{size}&method=crop")));
            for path in paths {
                let answer = fresh.get(&path, None).await;
                assert_eq!(answer.status, status, "{path} {allowed}");
                if allowed {
                    is_harmless(&answer);
                }
            }
        }
    }
}

#[tokio::test]
async fn limits_and_reserved_ids() {
    let fresh = fresh_with(|config| config.media.max_upload_size = 10).await;
    let alice = fresh.register("alice").await;
    let bob = fresh.register("bob").await;
    let token = Some(&*alice.token);
    for path in [
        "/_matrix/client/v1/media/config",
        "/_matrix/media/v3/config",
    ] {
        let config = fresh.get(path, token).await.ok();
        assert_eq!(config, json!({ "m.upload.size": 10 }));
    }
    let path = "/_matrix/media/v3/upload";
    let large = Body::from("more than ten");
    let answer = fresh.send_bytes(Method::POST, path, token, large).await;
    answer.refused(413, "M_TOO_LARGE");
    let refused = fresh
        .send_bytes(Method::POST, path, None, Body::empty())
        .await;
    refused.refused(401, "M_MISSING_TOKEN");

    let reserved = fresh
        .post("/_matrix/media/v1/create", token, json!({}))
        .await
        .ok();
    let place = reserved["content_uri"]
        .as_str()
        .unwrap()
        .strip_prefix("mxc://")
        .unwrap();
    assert!(reserved["unused_expires_at"].is_u64());
    let download = format!("/_matrix/client/v1/media/download/{place}?timeout_ms=1");
    fresh
        .get(&download, token)
        .await
        .refused(504, "M_NOT_YET_UPLOADED");
    let path = format!("/_matrix/media/v3/upload/{place}");
    let put = |token, content: &'static str| {
        fresh.send_bytes(Method::PUT, &path, token, Body::from(content))
    };
    put(Some(&*bob.token), "x")
        .await
        .refused(403, "M_FORBIDDEN");
    assert_eq!(put(token, "late").await.status, 200);
    put(token, "again")
        .await
        .refused(409, "M_CANNOT_OVERWRITE_MEDIA");
    assert_eq!(fresh.get(&download, token).await.body, "late");
}

#[tokio::test]
async fn addresses_that_cannot_be_read_are_refused_in_json() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let token = Some(&*alice.token);
    for (method, path) in [
        (Method::POST, "upload?filename=a&filename=b"),
        (Method::PUT, "upload/localhost/a?filename=a&filename=b"),
        (Method::PUT, "upload/localhost/%ff"),
    ] {
        let path = format!("/_matrix/media/v3/{path}");
        let send = async |token| {
            let method = method.clone();
            fresh
                .send_bytes(method, &path, token, Body::from("x"))
                .await
        };
        send(token).await.refused(400, "M_INVALID_PARAM");
        send(None).await.refused(401, "M_MISSING_TOKEN");
    }
}

#[tokio::test]
async fn a_user_may_fill_a_quota_and_no_more() {
    let fresh = fresh_with(|config| config.media.user_quota = Some(12)).await;
    let [alice, bob] = [fresh.register("alice").await, fresh.register("bob").await];
    upload(&fresh, &alice.token, "12345678").await;
    let path = "/_matrix/media/v3/upload";
    let second = fresh
        .send_bytes(Method::POST, path, Some(&alice.token), Body::from("12345"))
        .await;
    second.refused(403, "M_FORBIDDEN");
    upload(&fresh, &alice.token, "1234").await;
    upload(&fresh, &bob.token, "12345678").await;
}
