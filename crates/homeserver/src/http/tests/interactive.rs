//! User-interactive authentication, as far as it is the same on all endpoints.

use serde_json::{Value, json};

use super::{fresh, own_password};

const GET_TOKEN: &str = "/_matrix/client/v1/login/get_token";
const PASSWORD: &str = "/_matrix/client/v3/account/password";

#[tokio::test]
async fn a_session_is_for_one_user_endpoint_and_body() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let bob = fresh.register("bob").await;
    let body = json!({ "new_password": "new" });
    let asked = fresh.post(PASSWORD, Some(&alice.token), body.clone()).await;
    let session = asked.body["session"].clone();
    assert_eq!(asked.status, 401);
    // Another endpoint or user is asked anew.
    for (path, token) in [(GET_TOKEN, &alice.token), (PASSWORD, &bob.token)] {
        let mut body = body.clone();
        body["auth"] = json!({ "session": session });
        let answer = fresh.post(path, Some(token), body).await;
        assert_eq!(answer.status, 401);
        assert_ne!(answer.body["session"], session, "{path}");
    }
    // On another path of the endpoint it goes on.
    let mut body = body;
    body["auth"] = json!({ "session": session });
    let old = "/_matrix/client/r0/account/password";
    let answer = fresh.post(old, Some(&alice.token), body).await;
    assert_eq!(answer.body["session"], session);
}

#[tokio::test]
async fn wrong_proofs_may_be_tried_again() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let asked = fresh.post(GET_TOKEN, Some(&alice.token), Value::Null).await;
    let session = asked.body["session"].clone();
    let password = |password: &str| {
        let mut auth = own_password("alice");
        auth["password"] = password.into();
        auth["session"] = session.clone();
        json!({ "auth": auth })
    };
    for (body, code) in [
        (password("wrong"), "M_FORBIDDEN"),
        (password(""), "M_FORBIDDEN"),
        (
            json!({ "auth": { "type": "m.login.dummy", "session": session } }),
            "M_UNRECOGNIZED",
        ),
        (
            json!({ "auth": { "type": "m.login.password", "session": session } }),
            "M_FORBIDDEN",
        ),
    ] {
        let answer = fresh.post(GET_TOKEN, Some(&alice.token), body).await;
        answer.refused(401, code);
        assert_eq!(answer.body["session"], session);
        assert!(answer.body["flows"].is_array());
    }
    fresh
        .post(GET_TOKEN, Some(&alice.token), password("password of alice"))
        .await
        .ok();
    for (body, code) in [
        (json!({ "auth": [] }), "M_BAD_JSON"),
        (json!({ "auth": { "type": 7 } }), "M_BAD_JSON"),
        (json!([]), "M_BAD_JSON"),
    ] {
        fresh
            .post(GET_TOKEN, Some(&alice.token), body)
            .await
            .refused(400, code);
    }
}
