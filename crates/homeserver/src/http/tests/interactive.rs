//! User-interactive authentication, as far as it is the same on all endpoints.

use serde_json::{Value, json};

use super::{fresh, fresh_with, own_password};
use crate::{
    app::{
        authentication::{AuthenticationError, Proof},
        interactive::Operation,
    },
    http::login::OWN_PASSWORD,
};

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

#[tokio::test]
async fn strangers_keep_nobody_from_proving_their_own_password() {
    let fresh = fresh_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login.burst = 3;
        config.rate_limits.login.per_second = 0.001;
    })
    .await;
    let alice = fresh.register("alice").await;
    fresh.register("bob").await;
    let authenticator = &fresh.homeserver.components().authenticator;
    for _ in 0..4 {
        let guess = authenticator.by_password("alice", "wrong").await;
        guess.unwrap_err();
    }
    let locked = authenticator.by_password("alice", "password of alice");
    assert!(matches!(locked.await, Err(AuthenticationError::Limit(_))));
    let proof = |user: &str, password: &str| Proof {
        stage: Some("m.login.password".to_owned()),
        user: Some(user.to_owned()),
        password: Some(password.to_owned()),
        ..Proof::default()
    };
    let operation = Operation {
        endpoint: "test",
        user: Some(alice.user.parse().unwrap()),
        body: [0; 32],
    };
    let prove = async |user: &str, password: &str| {
        let proof = proof(user, password);
        let proven = authenticator.require(&operation, OWN_PASSWORD, Some(&proof));
        proven.await
    };
    for _ in 0..5 {
        prove("alice", "password of alice").await.unwrap();
    }
    // Nobody else's password is proof, nor can it be guessed here.
    for _ in 0..5 {
        let of_bob = prove("bob", "password of bob").await;
        assert!(matches!(of_bob, Err(AuthenticationError::Challenge(_))));
    }
    for _ in 0..3 {
        let wrong = prove("alice", "wrong").await;
        assert!(matches!(wrong, Err(AuthenticationError::Challenge(_))));
    }
    let limited = prove("alice", "password of alice").await;
    assert!(matches!(limited, Err(AuthenticationError::Limit(_))));
}

/// Whoever has no password cannot prove one.
#[tokio::test]
async fn an_account_without_a_password_has_none_to_be_guessed() {
    let fresh = fresh().await;
    let made = fresh.homeserver.administration();
    let account = made.create_user("bot", None, false).await.unwrap();
    let sessions = &fresh.homeserver.components().sessions;
    let issued = sessions.issue(&account, crate::app::session::Login::default());
    let token = issued.await.unwrap().access_token;
    for password in [json!(""), json!("*"), json!("!"), Value::Null] {
        let mut auth = own_password("bot");
        auth["password"] = password;
        let body = json!({ "auth": auth });
        let answer = fresh.post(GET_TOKEN, Some(&token), body).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert!(answer.body["login_token"].is_null());
    }
}
