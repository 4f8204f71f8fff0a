//! Every row of the endpoints table: a path that is built asks for a token, refuses another method
//! and rubbish, and carries CORS headers; a path that is not built says so.

use homeserver_tests::{
    Answer, Client, Server,
    table::{self, Row},
};
use reqwest::Method;
use serde_json::json;

async fn ask(client: &Client, method: Method, path: &str, body: &str) -> Answer {
    let sent = client
        .send(
            method,
            path,
            Some("application/json"),
            body.as_bytes().to_vec(),
        )
        .await;
    sent.unwrap()
}

/// What is wrong with the answer to one question, if anything.
fn fault(what: &str, row: &Row, answer: &Answer, status: u16, code: &str) -> Option<String> {
    let said = answer.body["errcode"].as_str();
    if answer.status == status && said == Some(code) {
        return None;
    }
    let (method, path) = (&row.method, row.path);
    Some(format!(
        "{what}: {method} {path}: {} {said:?}",
        answer.status
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table() {
    let server = Server::start().await;
    let nobody = server.client();
    let somebody = nobody.register("somebody").await;
    let stranger = nobody.with_session(&json!({ "access_token": "no such token" }));
    let mut faults = Vec::new();
    for row in table::rows() {
        let path = row.example();
        if !row.built {
            let answer = ask(&somebody, row.method.clone(), &path, "{}").await;
            faults.extend(fault("not built", row, &answer, 404, "M_UNRECOGNIZED"));
            continue;
        }
        let patch = ask(&somebody, Method::PATCH, &path, "").await;
        faults.extend(fault("other method", row, &patch, 405, "M_UNRECOGNIZED"));
        if row.needs_token {
            let answer = ask(&nobody, row.method.clone(), &path, "{}").await;
            faults.extend(fault("no token", row, &answer, 401, "M_MISSING_TOKEN"));
        }
        if row.reads_token {
            let answer = ask(&stranger, row.method.clone(), &path, "{}").await;
            faults.extend(fault("unknown token", row, &answer, 401, "M_UNKNOWN_TOKEN"));
            let allowed = answer.headers.get("access-control-allow-origin");
            if allowed.is_none_or(|value| value != "*") {
                faults.push(format!("no CORS: {} {}", row.method, row.path));
            }
        }
        let options = ask(&nobody, Method::OPTIONS, &path, "").await;
        let allowed = options.headers.get("access-control-allow-headers");
        if options.status >= 300 || allowed.is_none() {
            faults.push(format!("OPTIONS: {}: {}", row.path, options.status));
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_are_unrecognized() {
    let server = Server::start().await;
    let somebody = server.client().register("somebody").await;
    for path in [
        "/_matrix/client/v3/nothing",
        "/_matrix/client/v9/sync",
        "/_matrix/nothing",
    ] {
        somebody.get(path).await.expect_error(404, "M_UNRECOGNIZED");
    }
}
