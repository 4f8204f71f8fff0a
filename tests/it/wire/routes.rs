//! Every row of the endpoints table: a path that is built asks for a token, refuses another method
//! and rubbish, and carries CORS headers; a path that is not built says so.

use homeserver_tests::{Answer, Client, Server};
use reqwest::Method;
use serde_json::json;

const TABLE: &str = include_str!("../../data/endpoints.tsv");

/// Parts of paths whose capability is not built: they answer 404 `M_UNRECOGNIZED`. A line goes when
/// its capability comes.
const NOT_BUILT: &[&str] = &[
    // History of notifications; pages for user-interactive authentication in a browser.
    "/notifications",
    "/static/client/login",
    "/fallback/web",
    // Third-party identifiers, identity servers, e-mail.
    "/account/3pid/",
    "/requestToken",
    // OAuth 2.0 and single sign-on.
    "/auth_metadata",
    "/login/sso/",
    "/rendezvous",
    // Spaces, search, threads, discovery.
    "/hierarchy",
    "/search",
    "/mutual_rooms",
    "/threads",
    "msc4306",
    "msc4308",
    // Key backup and dehydrated devices.
    "/room_keys/",
    "msc3814",
    "msc3983",
    // Peeking and the old sync.
    "/initialSync",
    "/v3/events",
    "/r0/events",
    // Application services and third-party networks.
    "/appservice/",
    "/thirdparty/location",
    "/thirdparty/user",
    "/thirdparty/protocol/",
    // Administration and moderation by clients.
    "/admin/",
    // Previews of URLs.
    "/preview_url",
    // Sliding sync, delayed events, calls and other proposals.
    "simplified_msc3575",
    "/v4/sync",
    "delayed_event",
    "rtc/",
    "msc4560",
    "msc1763",
    "msc4536",
    "/policy_server",
];

struct Row {
    method: Method,
    path: String,
    needs_token: bool,
    built: bool,
}

/// The rows of the Client-Server API that a server answers, parameters filled in.
fn rows() -> Vec<Row> {
    let lines = TABLE
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect::<Vec<_>>());
    let rows = lines.filter(|fields| fields[0] == "client-server" && fields[2] != "OPTIONS");
    let rows: Vec<Row> = rows
        // The deprecated way to add a third-party identifier; the path itself can be read.
        .filter(|fields| fields[2..4] != ["POST", "/_matrix/client/v3/account/3pid"])
        .map(|fields| Row {
            method: fields[2].parse().unwrap(),
            path: fill(fields[3]),
            needs_token: fields[4] == "user token",
            built: !NOT_BUILT.iter().any(|part| fields[3].contains(part)),
        })
        .collect();
    assert!(rows.len() > 300, "the table was not read");
    rows
}

/// A path with plausible values for its parameters.
fn fill(template: &str) -> String {
    let segments = template.split('/').map(|segment| match segment {
        "{roomId}" | "{room_id}" => "!room:localhost",
        "{roomIdOrAlias}" | "{room_id_or_alias}" | "{roomAlias}" | "{room_alias}" => {
            "%23alias:localhost"
        }
        "{userId}" | "{user_id}" => "@user:localhost",
        "{eventId}" | "{event_id}" => "$event",
        "{serverName}" | "{server_name}" => "localhost",
        "{kind}" => "override",
        "{receiptType}" | "{receipt_type}" => "m.read",
        "{stateKey}" | "{state_key}" => "key",
        other if other.starts_with('{') => "value",
        other => other,
    });
    segments.collect::<Vec<_>>().join("/")
}

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
    let (method, path) = (&row.method, &row.path);
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
    for row in rows() {
        if !row.built {
            let answer = ask(&somebody, row.method.clone(), &row.path, "{}").await;
            faults.extend(fault("not built", &row, &answer, 404, "M_UNRECOGNIZED"));
            continue;
        }
        let patch = ask(&somebody, Method::PATCH, &row.path, "").await;
        faults.extend(fault("other method", &row, &patch, 405, "M_UNRECOGNIZED"));
        if row.needs_token {
            let answer = ask(&nobody, row.method.clone(), &row.path, "{}").await;
            faults.extend(fault("no token", &row, &answer, 401, "M_MISSING_TOKEN"));
            let answer = ask(&stranger, row.method.clone(), &row.path, "{}").await;
            faults.extend(fault(
                "unknown token",
                &row,
                &answer,
                401,
                "M_UNKNOWN_TOKEN",
            ));
            if answer
                .headers
                .get("access-control-allow-origin")
                .is_none_or(|value| value != "*")
            {
                faults.push(format!("no CORS: {} {}", row.method, row.path));
            }
        }
        let options = ask(&nobody, Method::OPTIONS, &row.path, "").await;
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
