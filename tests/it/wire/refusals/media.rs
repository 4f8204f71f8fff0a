//! Uploads that are refused, content that is not there, pictures that are none.

use homeserver_tests::{Client, Server, ServerOptions};
use reqwest::Method;
use serde_json::{Value, json};

use super::{super::media::PNG, Refusals};

/// Paths of a content, with and without a token.
const ROOTS: [&str; 2] = ["/_matrix/client/v1/media", "/_matrix/media/v3"];

async fn upload(client: &Client, bytes: Vec<u8>) -> String {
    let path = "/_matrix/media/v3/upload";
    let sent = client.send(Method::POST, path, Some("image/png"), bytes);
    sent.await.unwrap().text("content_uri")
}

async fn reserve(client: &Client) -> String {
    let created = client.post("/_matrix/media/v1/create", json!({})).await;
    created.text("content_uri")
}

/// A PNG that says it is 60,000 pixels wide and high.
fn enormous() -> Vec<u8> {
    let mut png = PNG.to_vec();
    png.splice(16..24, [0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let sum = crc32(&png[12..29]).to_be_bytes();
    png.splice(29..33, sum);
    png
}

/// The checksum of a PNG's chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

async fn start(limit: usize) -> Server {
    let configuration =
        format!("[media]\nallow_legacy_unauthenticated = true\nmax_upload_size = {limit}\n");
    Server::start_with(ServerOptions {
        configuration,
        ..ServerOptions::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served() {
    let server = start(1_000_000).await;
    let alice = server.client().register("alice").await;
    let mut refusals = Refusals::default();
    let text = upload(&alice, b"no picture at all".to_vec()).await;
    let huge = upload(&alice, enormous()).await;
    let awaited = reserve(&alice).await;
    for root in ROOTS {
        for (what, uri, expected) in [
            ("thumbnail", text.as_str(), "400 M_UNKNOWN"),
            ("thumbnail", &huge, "413 M_TOO_LARGE"),
            ("thumbnail", &awaited, "504 M_NOT_YET_UPLOADED"),
            ("thumbnail", "mxc://localhost/nothing", "404 M_NOT_FOUND"),
            ("download", &awaited, "504 M_NOT_YET_UPLOADED"),
            ("download", "mxc://localhost/nothing", "404 M_NOT_FOUND"),
            ("download", "mxc://elsewhere/nothing", "404 M_NOT_FOUND"),
        ] {
            let place = uri.trim_start_matches("mxc://");
            let request = format!("GET {root}/{what}/{place}?width=32&height=32&timeout_ms=0");
            refusals
                .check(&alice, &request, Value::Null, expected)
                .await;
        }
        for (uri, expected) in [
            (awaited.as_str(), "504 M_NOT_YET_UPLOADED"),
            ("mxc://localhost/nothing", "404 M_NOT_FOUND"),
        ] {
            let place = uri.trim_start_matches("mxc://");
            let request = format!("GET {root}/download/{place}/name.png?timeout_ms=0");
            refusals
                .check(&alice, &request, Value::Null, expected)
                .await;
        }
        let place = text.trim_start_matches("mxc://");
        let request = format!("GET {root}/thumbnail/{place}?width=0&height=-1");
        refusals
            .check(&alice, &request, Value::Null, "400 M_INVALID_PARAM")
            .await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_to_a_place() {
    let server = start(1_000).await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let mine = reserve(&alice).await;
    let put = async |client: &Client, uri: &str, bytes: usize| {
        let path = uri.replace("mxc://", "/_matrix/media/v3/upload/");
        let kind = Some("application/octet-stream");
        let sent = client.send(Method::PUT, &path, kind, vec![0; bytes]);
        sent.await.unwrap()
    };
    put(&bob, &mine, 10).await.expect_error(403, "M_FORBIDDEN");
    put(&alice, &mine, 1_001)
        .await
        .expect_error(413, "M_TOO_LARGE");
    put(&alice, &mine, 10).await.ok();
    put(&alice, &mine, 10)
        .await
        .expect_error(409, "M_CANNOT_OVERWRITE_MEDIA");
    for unknown in ["mxc://localhost/unknown", "mxc://elsewhere/unknown"] {
        put(&alice, unknown, 10)
            .await
            .expect_error(404, "M_NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_not_passed() {
    let options = ServerOptions {
        configuration: "[media]\nuser_quota = 100\n".to_owned(),
        ..ServerOptions::default()
    };
    let server = Server::start_with(options).await;
    let alice = server.client().register("alice").await;
    upload(&alice, vec![0; 60]).await;
    let path = "/_matrix/media/v3/upload";
    let kind = Some("application/octet-stream");
    let over = alice.send(Method::POST, path, kind, vec![0; 60]);
    over.await.unwrap().expect_error(403, "M_FORBIDDEN");
    upload(&alice, vec![0; 40]).await;
}
