//! Uploads, downloads, thumbnails.

use homeserver_tests::{Server, ServerOptions};
use reqwest::Method;
use serde_json::json;

pub(crate) const PNG: &[u8] = &[
    0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, b'I', b'H', b'D', b'R', 0, 0, 0,
    1, 0, 0, 0, 1, 8, 6, 0, 0, 0, 0x1f, 0x15, 0xc4, 0x89, 0, 0, 0, 0x0d, b'I', b'D', b'A', b'T',
    0x78, 0xda, 0x63, 0x64, 0xf8, 0xcf, 0x50, 0x0f, 0, 0x03, 0x86, 0x01, 0x80, 0x5a, 0x34, 0x7d,
    0x6b, 0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_goes_up_and_down() {
    let server = Server::start().await;
    let nobody = server.client();
    let alice = nobody.register("alice").await;
    let upload = "/_matrix/media/v3/upload?filename=dot.png";
    let sent = alice
        .send(Method::POST, upload, Some("image/png"), PNG.to_vec())
        .await
        .unwrap();
    let uri = sent.text("content_uri");
    let id = uri.strip_prefix("mxc://localhost/").unwrap();
    let path = format!("/_matrix/client/v1/media/download/localhost/{id}");
    let got = alice.get(&path).await;
    assert_eq!((got.status, got.bytes.as_slice()), (200, PNG));
    assert_eq!(got.headers["content-type"], "image/png");
    assert!(
        got.headers["content-disposition"]
            .to_str()
            .unwrap()
            .contains("dot.png")
    );
    assert!(got.headers.contains_key("content-security-policy"));
    assert_eq!(got.headers["cross-origin-resource-policy"], "cross-origin");
    let named = alice.get(&format!("{path}/other.png")).await;
    assert!(
        named.headers["content-disposition"]
            .to_str()
            .unwrap()
            .contains("other.png")
    );
    nobody.get(&path).await.expect_error(401, "M_MISSING_TOKEN");
    let missing = alice
        .get("/_matrix/client/v1/media/download/localhost/nothing")
        .await;
    missing.expect_error(404, "M_NOT_FOUND");
    let thumbnail = path.replace("download", "thumbnail");
    let small = alice
        .get(&format!("{thumbnail}?width=32&height=32&method=crop"))
        .await;
    assert_eq!(small.status, 200, "{}", small.body);
    assert!(
        small.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("image/")
    );
    let zero = alice.get(&format!("{thumbnail}?width=0&height=0")).await;
    assert_eq!(zero.status, 400, "{}", zero.body);
    nobody
        .get(&format!("/_matrix/media/v3/download/localhost/{id}"))
        .await
        .expect_error(404, "M_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_run_in_a_browser_is_not_shown_inline() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let upload = "/_matrix/media/v3/upload?filename=page.html";
    let page = b"<script>alert(1)</script>".to_vec();
    let sent = alice
        .send(Method::POST, upload, Some("text/html"), page)
        .await
        .unwrap();
    let uri = sent.text("content_uri");
    let path = uri.replace("mxc://", "/_matrix/client/v1/media/download/");
    let got = alice.get(&path).await;
    let disposition = got.headers["content-disposition"].to_str().unwrap();
    assert!(disposition.starts_with("attachment"), "{disposition}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_uploads_are_refused() {
    let configuration = "[media]\nmax_upload_size = 1000\n".to_owned();
    let options = ServerOptions {
        configuration,
        ..ServerOptions::default()
    };
    let server = Server::start_with(options).await;
    let alice = server.client().register("alice").await;
    let config = alice.get("/_matrix/client/v1/media/config").await.ok();
    assert_eq!(config, json!({ "m.upload.size": 1000 }));
    let upload = "/_matrix/media/v3/upload";
    let sent = alice
        .send(Method::POST, upload, Some("image/png"), vec![0; 1001])
        .await
        .unwrap();
    sent.expect_error(413, "M_TOO_LARGE");
    alice
        .send(Method::POST, upload, Some("image/png"), vec![0; 1000])
        .await
        .unwrap()
        .ok();
}
