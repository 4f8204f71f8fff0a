//! Passwords and tokens are in no log, however much is logged, and in no file of the data folder.

use std::path::Path;

use homeserver_tests::{Client, Server, ServerOptions};
use serde_json::{Value, json};

const OLD: &str = "an old password 7f3a91";
const NEW: &str = "a new password c04be2";
/// What is no secret and must be found, or nothing was looked at.
const PLAIN: &str = "a name that is no secret";

/// Everything secret that a short life of an account brings about.
async fn live(server: &Server) -> Vec<String> {
    let mut secrets = vec![OLD.to_owned(), NEW.to_owned()];
    let anonymous = server.client();
    let body = json!({
        "username": "alice", "password": OLD, "refresh_token": true,
        "initial_device_display_name": PLAIN, "auth": { "type": "m.login.dummy" },
    });
    let registered = anonymous.post("/_matrix/client/v3/register", body).await;
    let registered = registered.ok();
    let login = json!({
        "type": "m.login.password", "password": OLD, "refresh_token": true,
        "identifier": { "type": "m.id.user", "user": "alice" },
    });
    let logged_in = anonymous.post("/_matrix/client/v3/login", login).await.ok();
    let refresh = json!({ "refresh_token": logged_in["refresh_token"] });
    let refreshed = anonymous.post("/_matrix/client/v3/refresh", refresh).await;
    let refreshed = refreshed.ok();
    for session in [&registered, &logged_in, &refreshed] {
        for kind in ["access_token", "refresh_token"] {
            secrets.push(session[kind].as_str().unwrap().to_owned());
        }
    }
    let token = registered["access_token"].as_str().unwrap();
    let path = format!("/_matrix/client/v3/account/whoami?access_token={token}");
    anonymous.get(&path).await.ok();
    let alice = anonymous.with_session(&registered);
    secrets.push(change_password(&alice).await);
    secrets
}

/// In two rounds, of which the first leaves the new password with the server. Gives a login token
/// that was made before.
async fn change_password(alice: &Client) -> String {
    let auth = json!({
        "type": "m.login.password", "password": OLD,
        "identifier": { "type": "m.id.user", "user": "alice" },
    });
    let body = json!({ "auth": auth });
    let brief = alice.post("/_matrix/client/v1/login/get_token", body).await;
    let path = "/_matrix/client/v3/account/password";
    let mut body = json!({ "new_password": NEW, "logout_devices": false });
    let asked = alice.post(path, body.clone()).await;
    assert_eq!(asked.status, 401, "{}", asked.body);
    let mut auth: Value = auth;
    auth["session"] = asked.body["session"].clone();
    body["auth"] = auth;
    alice.post(path, body).await.ok();
    brief.text("login_token")
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// The files below a folder that hold `text`.
fn files_with(folder: &Path, text: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_with(&path, text, found);
        } else if contains(&std::fs::read(&path).unwrap(), text) {
            found.push(path.display().to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log_or_in_a_file() {
    for engine in ["fjall", "sled"] {
        let options = ServerOptions {
            engine,
            log: Some("trace"),
            ..ServerOptions::default()
        };
        let mut server = Server::start_with(options).await;
        let secrets = live(&server).await;
        server.kill().await;
        let log = server.log();
        assert!(log.contains("listening"), "nothing was logged: {log}");
        let data = server.folder().join("data");
        for secret in &secrets {
            let mut found = Vec::new();
            files_with(&data, secret, &mut found);
            assert!(found.is_empty(), "{engine}: {secret} is in {found:?}");
            assert!(!log.contains(secret), "{engine}: {secret} is in the log");
        }
        let mut found = Vec::new();
        files_with(&data, PLAIN, &mut found);
        assert!(!found.is_empty(), "{engine}: nothing can be found at all");
    }
}
