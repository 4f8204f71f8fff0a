//! Databases that earlier versions wrote are opened, read and found sound.
//!
//! They are in `tests/data/released/VERSION/ENGINE.tar.gz`, made by `cargo xtask fixture`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../examples/fixture.rs"]
mod fixture;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use axum::body::Body;
use fixture::{MESSAGES, UPLOAD, User};
use homeserver::storage::maintenance;
use serde_json::{Value, json};

/// Looks for everything that the fixture holds.
async fn read(engine: &str, folder: &Path) {
    let kind: maintenance::EngineKind = engine.parse().unwrap();
    let report = maintenance::check(kind, &folder.join(engine), &mut |_| {}).await;
    let report = report.unwrap();
    assert!(report.is_sound() && report.rows > 100, "{report:?}");

    let homeserver = fixture::open(fixture::kind(engine).unwrap(), folder).await;
    let homeserver = homeserver.unwrap();
    let alice = User::log_in(&homeserver, "alice").await.unwrap();
    let get = async |path: &str| alice.json("GET", path, Value::Null).await.unwrap();
    let room = get("directory/room/%23fixture:fixture.example").await;
    let room = room["room_id"].as_str().unwrap();
    let page = get(&format!("rooms/{room}/messages?dir=f&limit=1000")).await;
    let chunk = page["chunk"].as_array().unwrap();
    let bodies = chunk
        .iter()
        .filter_map(|event| event["content"]["body"].as_str());
    let expected: Vec<String> = (0..MESSAGES)
        .map(|number| format!("message {number}"))
        .collect();
    assert_eq!(bodies.collect::<Vec<_>>(), expected);
    let members = get(&format!("rooms/{room}/joined_members")).await;
    let name = &members["joined"]["@alice:fixture.example"]["display_name"];
    assert_eq!(name, "Alice of the fixture");
    let sync = get("sync").await;
    let joined = &sync["rooms"]["join"][room];
    let ephemeral = joined["ephemeral"]["events"].to_string();
    assert!(ephemeral.contains("@bob:fixture.example"), "{ephemeral}");
    let data = get("user/@alice:fixture.example/account_data/org.example.fixture").await;
    assert_eq!(data, json!({ "kept": true }));

    let upload = get("user/@alice:fixture.example/account_data/org.example.upload").await;
    let upload = upload["content_uri"].as_str().unwrap();
    let upload = upload.trim_start_matches("mxc://");
    let path = format!("/_matrix/client/v1/media/download/{upload}");
    let bytes = alice.bytes(("GET", &path), Body::empty()).await.unwrap();
    assert_eq!(bytes, UPLOAD);

    // And it can be written to.
    let path = format!("rooms/{room}/send/m.room.message/again");
    let message = json!({ "msgtype": "m.text", "body": "written by a later version" });
    alice.json("PUT", &path, message).await.unwrap();
    assert!(homeserver.shutdown().await);
}

fn released() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/released");
    let versions = std::fs::read_dir(folder).unwrap();
    let mut found: Vec<PathBuf> = versions
        .flat_map(|version| std::fs::read_dir(version.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_earlier_versions_wrote_is_read() {
    let released = released();
    assert!(released.len() >= 2, "cargo xtask fixture makes them");
    for file in released {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&file).arg("-C").arg(folder.path());
        assert!(tar.status().unwrap().success(), "{}", file.display());
        let name = file.file_name().unwrap().to_str().unwrap();
        read(name.trim_end_matches(".tar.gz"), folder.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_version_writes_is_read() {
    for engine in ["fjall", "sled"] {
        let folder = tempfile::tempdir().unwrap();
        let kind = fixture::kind(engine).unwrap();
        fixture::write(kind, folder.path()).await.unwrap();
        read(engine, folder.path()).await;
    }
}
