//! Bodies that are not JSON, and JSON that is no object, wherever an endpoint reads one.

use homeserver_tests::{Server, coverage};
use reqwest::Method;

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_is_refused_everywhere() {
    let server = Server::start().await;
    // Whose name the example paths have.
    let somebody = server.client().register("user").await;
    let mut faults = Vec::new();
    for (code, bodies) in [
        ("M_NOT_JSON", ["{", "nonsense"]),
        ("M_BAD_JSON", ["[]", "\"text\""]),
    ] {
        // What a GET is judged for is in its query.
        let rows = coverage::rows_with(400, code).into_iter();
        for row in rows.filter(|row| row.method != Method::GET) {
            let path = row.example();
            for body in bodies {
                let sent = somebody.send(
                    row.method.clone(),
                    &path,
                    Some("application/json"),
                    body.as_bytes().to_vec(),
                );
                let answer = sent.await.unwrap();
                if (answer.status, answer.body["errcode"].as_str()) != (400, Some(code)) {
                    faults.push(format!(
                        "{} {} with {body}: {} {}",
                        row.method, row.path, answer.status, answer.body
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
