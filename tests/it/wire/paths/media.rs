//! Uploads, downloads, thumbnails.

use reqwest::Method;
use serde_json::json;

use super::super::media::PNG;
use super::Teller;

pub(super) async fn content(teller: &Teller) {
    let owner = teller.register("painter").await;
    for config in [
        "/_matrix/client/v1/media/config",
        "/_matrix/media/v3/config",
    ] {
        let answer = owner.get(config).await.ok();
        assert!(answer["m.upload.size"].is_u64(), "{config}: {answer}");
    }
    let picture = || (Some("image/png"), PNG.to_vec());
    let (kind, bytes) = picture();
    let path = "/_matrix/media/v3/upload";
    let sent = owner.send(Method::POST, path, kind, bytes).await.unwrap();
    let first = sent.text("content_uri");

    let created = owner.post("/_matrix/media/v1/create", json!({})).await;
    let second = created.text("content_uri");
    let place = second.trim_start_matches("mxc://");
    let path = format!("/_matrix/media/v3/upload/{place}");
    let (kind, bytes) = picture();
    let sent = owner.send(Method::PUT, &path, kind, bytes).await.unwrap();
    sent.ok();

    for uri in [first, second] {
        let place = uri.trim_start_matches("mxc://");
        for root in ["/_matrix/client/v1/media", "/_matrix/media/v3"] {
            for path in [
                format!("{root}/download/{place}"),
                format!("{root}/download/{place}/dot.png"),
            ] {
                let got = owner.get(&path).await;
                assert_eq!((got.status, got.bytes.as_slice()), (200, PNG), "{path}");
            }
            let path = format!("{root}/thumbnail/{place}?width=32&height=32");
            let got = owner.get(&path).await;
            assert_eq!(got.status, 200, "{path}: {}", got.body);
        }
    }
}
