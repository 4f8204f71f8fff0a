//! Errors, as data: who asks what, and what the answer is. `tests/data/errors.tsv` lists the errors
//! that must have been produced; what other tests of this folder produce is not repeated here.

mod accounts;
mod keys;
mod media;
mod rooms;
mod user_data;

use homeserver_tests::Client;
use serde_json::Value;

/// Collects what was answered otherwise than expected.
#[derive(Default)]
struct Refusals {
    faults: Vec<String>,
}

impl Refusals {
    /// Asks: `GET /path`, with `null` for no body. Expects: `404 M_NOT_FOUND`, or `401 -` for an
    /// answer without an error code.
    async fn check(&mut self, client: &Client, request: &str, body: Value, expected: &str) {
        let (method, path) = request.split_once(' ').unwrap();
        let body = Some(body).filter(|body| !body.is_null());
        let answer = client.call(method.parse().unwrap(), path, body).await;
        let code = answer.body["errcode"].as_str().unwrap_or("-");
        let said = format!("{} {code}", answer.status);
        if said != expected {
            let fault = format!(
                "{request}: expected {expected}, got {said}: {}",
                answer.body
            );
            self.faults.push(fault);
        }
    }

    fn must_be_as_expected(self) {
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
    }
}
