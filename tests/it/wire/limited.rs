//! Rate limits: every endpoint that the specification marks as limited answers 429 in the end, and
//! says how long to wait.

use homeserver_tests::{Client, Server, ServerOptions, table, table::Row};
use reqwest::Method;

/// One request in a thousand seconds.
const CONFIGURATION: &str = "\
    login = { per_second = 0.001, burst = 1 }\n\
    registration = { per_second = 0.001, burst = 2 }\n\
    refresh = { per_second = 0.001, burst = 1 }\n\
    message = { per_second = 0.001, burst = 1 }\n\
    join = { per_second = 0.001, burst = 1 }\n\
    invite = { per_second = 0.001, burst = 1 }\n\
    media = { per_second = 0.001, burst = 1 }\n\
    other = { per_second = 0.001, burst = 1 }\n";

/// What is limited although the specification does not say so, except when it is read: it makes
/// others store or load much.
const ALSO: [&str; 8] = [
    "/_matrix/client/v3/sendToDevice/{eventType}/{txnId}",
    "/_matrix/client/v3/keys/upload",
    "/_matrix/client/v3/keys/query",
    "/_matrix/client/v3/keys/claim",
    "/_matrix/client/v3/keys/signatures/upload",
    "/_matrix/client/v3/keys/device_signing/upload",
    "/_matrix/client/v3/user/{userId}/filter",
    "/_matrix/client/v3/user/{userId}/account_data/{type}",
];

/// More than any bucket holds.
const ENOUGH: usize = 4;

/// What is wrong with the limit of one endpoint, if anything.
async fn fault(client: &Client, row: &Row) -> Option<String> {
    let (method, path) = (&row.method, row.example());
    let mut last = None;
    for _ in 0..ENOUGH {
        let body = Some("application/json");
        let sent = client.send(method.clone(), &path, body, b"{}".to_vec());
        let answer = sent.await.unwrap();
        let code = answer.body["errcode"].as_str();
        if (answer.status, code) != (429, Some("M_LIMIT_EXCEEDED")) {
            last = Some(format!("{} {}", answer.status, answer.body));
            continue;
        }
        let in_body = answer.body["retry_after_ms"].as_u64();
        let in_header = answer.headers.get("retry-after").and_then(|value| {
            let seconds = value.to_str().ok()?;
            seconds.parse::<u64>().ok()
        });
        return match (in_body, in_header) {
            (Some(millis), Some(seconds)) if millis > 0 && seconds * 1000 >= millis => None,
            waits => Some(format!("{method} {path}: the wait is {waits:?}")),
        };
    }
    Some(format!("{method} {path}: never limited: {last:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_marked_as_limited_is_limited() {
    let options = ServerOptions {
        rate_limits: true,
        configuration: CONFIGURATION.to_owned(),
        ..ServerOptions::default()
    };
    let server = Server::start_with(options).await;
    let somebody = server.client().register("somebody").await;
    let is_also = |row: &&Row| row.method != Method::GET && ALSO.contains(&row.path);
    let is_limited = |row: &&Row| {
        let limited = row.rate_limited || is_also(row);
        row.built && limited && row.path == row.current
    };
    let also = table::rows().iter().filter(is_also);
    assert_eq!(also.count(), ALSO.len(), "rows of the table");
    let mut faults = Vec::new();
    for row in table::rows().iter().filter(is_limited) {
        faults.extend(fault(&somebody, row).await);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
