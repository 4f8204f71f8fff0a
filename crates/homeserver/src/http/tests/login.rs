use homeserver_storage::Batch;
use serde_json::{Value, json};

use super::{by_password, fresh, fresh_with, own_password};
use crate::app::{
    authentication::AuthenticationError,
    tokens::{self, ACCESS, ACCESS_TOKENS, AccessRow, DEVICE_TOKENS},
};

const LOGIN: &str = "/_matrix/client/v3/login";
const GET_TOKEN: &str = "/_matrix/client/v1/login/get_token";

#[tokio::test]
async fn flows_are_listed() {
    let fresh = fresh().await;
    let body = fresh.get(LOGIN, None).await.ok();
    let flows = json!([
        { "type": "m.login.password" },
        { "type": "m.login.token", "get_login_token": true },
    ]);
    assert_eq!(body["flows"], flows);
}

#[tokio::test]
async fn a_password_logs_in_however_the_user_is_named() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let password = "password of alice";
    let user = |user: &str| json!({ "type": "m.id.user", "user": user });
    let bodies = [
        json!({ "identifier": user("alice"), "password": password }),
        json!({ "identifier": user("@alice:localhost"), "password": password }),
        json!({ "identifier": user("Alice"), "password": password }),
        json!({ "user": "alice", "password": password }),
    ];
    for mut body in bodies {
        body["type"] = "m.login.password".into();
        for path in [LOGIN, "/_matrix/client/r0/login"] {
            let answer = fresh.post(path, None, body.clone()).await.ok();
            assert_eq!(answer["user_id"], "@alice:localhost");
            assert!(
                fresh
                    .is_good(answer["access_token"].as_str().unwrap())
                    .await
            );
        }
    }
}

#[tokio::test]
async fn strangers_and_wrong_passwords_get_the_same_answer() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let mut answers = Vec::new();
    for (user, password) in [
        ("alice", "wrong"),
        ("alice", ""),
        ("nobody", "password of alice"),
        ("@alice:elsewhere", "password of alice"),
        ("not a user", "x"),
    ] {
        let identifier = json!({ "type": "m.id.user", "user": user });
        let body = json!({
            "type": "m.login.password", "identifier": identifier, "password": password,
        });
        let answer = fresh.post(LOGIN, None, body).await;
        answer.refused(403, "M_FORBIDDEN");
        answers.push(answer.body);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    // Accounts have no addresses.
    let identifier = json!({ "type": "m.id.thirdparty", "medium": "email", "address": "a@b.c" });
    let body = json!({ "type": "m.login.password", "identifier": identifier, "password": "x" });
    fresh
        .post(LOGIN, None, body)
        .await
        .refused(403, "M_FORBIDDEN");
    let body = json!({ "type": "m.login.unheard_of" });
    fresh
        .post(LOGIN, None, body)
        .await
        .refused(400, "M_UNKNOWN");
}

#[tokio::test]
async fn guesses_at_one_account_are_limited_wherever_they_come_from() {
    let fresh = fresh_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login.burst = 3;
        config.rate_limits.login.per_second = 0.001;
        config.http.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    fresh.register("alice").await;
    let mut wrong = by_password("alice");
    wrong["password"] = "wrong".into();
    let from = |address: String, body: Value| {
        let mut request = http::Request::post(LOGIN)
            .header("x-forwarded-for", address)
            .body(axum::body::Body::from(body.to_string()))
            .unwrap();
        let peer = crate::http::PeerAddress([127, 0, 0, 1].into());
        request.extensions_mut().insert(peer);
        let router = fresh.router.clone();
        async move {
            tower::ServiceExt::oneshot(router, request)
                .await
                .unwrap()
                .status()
                .as_u16()
        }
    };
    for n in 0..3 {
        assert_eq!(from(format!("192.0.2.{n}"), wrong.clone()).await, 403);
    }
    assert_eq!(from("192.0.2.9".to_owned(), wrong.clone()).await, 429);
    // Somebody else may still log in.
    fresh.register("bob").await;
    assert_eq!(from("192.0.2.10".to_owned(), by_password("bob")).await, 200);
}

#[tokio::test]
async fn guesses_in_flight_together_are_counted_and_right_ones_are_not() {
    let fresh = fresh_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login.burst = 3;
        config.rate_limits.login.per_second = 0.001;
    })
    .await;
    fresh.register("alice").await;
    let authenticator = &fresh.homeserver.components().authenticator;
    for _ in 0..10 {
        let right = authenticator.by_password("alice", "password of alice");
        right.await.unwrap();
    }
    let guesses = (0..10).map(|n| async move {
        let guess = n.to_string();
        let guess = authenticator.by_password("@alice:localhost", &guess);
        guess.await.unwrap_err()
    });
    let outcomes = futures_util::future::join_all(guesses).await;
    let limited = |error: &&AuthenticationError| matches!(error, AuthenticationError::Limit(_));
    assert_eq!(outcomes.iter().filter(limited).count(), 7);
}

#[tokio::test]
async fn logging_in_on_a_device_again_ends_its_older_tokens() {
    let fresh = fresh().await;
    let first = fresh.register("alice").await;
    let other = fresh.login("alice").await;
    let mut body = by_password("alice");
    body["device_id"] = first.device.clone().into();
    body["initial_device_display_name"] = "ignored, the device is known".into();
    let second = fresh.post(LOGIN, None, body).await.ok();
    assert_eq!(second["device_id"], first.device);
    assert!(!fresh.is_good(&first.token).await);
    assert!(fresh.is_good(&other.token).await);
    assert!(
        fresh
            .is_good(second["access_token"].as_str().unwrap())
            .await
    );
}

#[tokio::test]
async fn logout_ends_one_device_and_logout_all_every_one() {
    let fresh = fresh().await;
    let [one, two, three] = [
        fresh.register("alice").await,
        fresh.login("alice").await,
        fresh.login("alice").await,
    ];
    let bob = fresh.register("bob").await;
    fresh
        .post("/_matrix/client/v3/logout", Some(&one.token), json!({}))
        .await
        .ok();
    assert!(!fresh.is_good(&one.token).await);
    let devices = fresh
        .get("/_matrix/client/v3/devices", Some(&two.token))
        .await
        .ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 2);
    let again = fresh
        .post("/_matrix/client/v3/logout", Some(&one.token), json!({}))
        .await;
    again.refused(401, "M_UNKNOWN_TOKEN");
    fresh
        .post(
            "/_matrix/client/v3/logout/all",
            Some(&two.token),
            Value::Null,
        )
        .await
        .ok();
    assert!(!fresh.is_good(&two.token).await && !fresh.is_good(&three.token).await);
    assert!(fresh.is_good(&bob.token).await);
}

#[tokio::test]
async fn a_login_token_serves_once_and_not_for_long() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    fresh
        .post(GET_TOKEN, None, json!({}))
        .await
        .refused(401, "M_MISSING_TOKEN");
    let asked = fresh.post(GET_TOKEN, Some(&alice.token), json!({})).await;
    assert_eq!(asked.status, 401);
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.password"] }])
    );
    let make = || async {
        let body = json!({ "auth": own_password("alice") });
        let body = fresh.post(GET_TOKEN, Some(&alice.token), body).await.ok();
        assert_eq!(body["expires_in_ms"], 120_000);
        body["login_token"].as_str().unwrap().to_owned()
    };
    let login = |token: String| {
        fresh.post(
            LOGIN,
            None,
            json!({ "type": "m.login.token", "token": token }),
        )
    };
    let token = make().await;
    let answer = login(token.clone()).await.ok();
    assert_eq!(answer["user_id"], "@alice:localhost");
    assert_ne!(answer["device_id"], alice.device);
    login(token).await.refused(403, "M_FORBIDDEN");
    let token = make().await;
    fresh.clock.advance(std::time::Duration::from_mins(2));
    login(token).await.refused(403, "M_FORBIDDEN");
    login("x".to_owned()).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn logout_ends_every_token_however_many_the_device_has() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let components = fresh.homeserver.components();
    let account = fresh.homeserver.administration().account("alice").await;
    let account = account.unwrap();
    // As logins and renewals at the same moment leave them.
    let tokens: Vec<String> = (0..150).map(|number| format!("token {number}")).collect();
    for tokens in tokens.chunks(50) {
        let mut batch = Batch::new();
        for token in tokens {
            let hash = tokens::hash(token);
            let row = AccessRow {
                user: account.number.0,
                device: alice.device.clone(),
                generation: account.generation,
                expires_at: None,
                replaces: None,
            };
            batch.put(&ACCESS_TOKENS, &hash, &row);
            let of_device = (account.number.0, alice.device.as_str(), ACCESS, hash);
            batch.put(&DEVICE_TOKENS, &of_device, &());
        }
        components.store.commit(batch).await.unwrap();
    }
    // Used, so that the device is remembered with them.
    for token in &tokens {
        assert!(fresh.is_good(token).await);
    }
    fresh
        .post("/_matrix/client/v3/logout", Some(&alice.token), json!({}))
        .await
        .ok();
    for token in &tokens {
        assert!(!fresh.is_good(token).await);
    }
}
