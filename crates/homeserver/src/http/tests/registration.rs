use serde_json::{Value, json};

use super::{fresh, fresh_with};
use crate::config::RegistrationMode;

const REGISTER: &str = "/_matrix/client/v3/register";
const VALIDITY: &str = "/_matrix/client/v1/register/m.login.registration_token/validity";

fn dummy(username: &str) -> Value {
    json!({ "username": username, "password": "p", "auth": { "type": "m.login.dummy" } })
}

#[tokio::test]
async fn registering_takes_a_round_or_none() {
    let fresh = fresh().await;
    let body = json!({ "username": "alice", "password": "p" });
    let asked = fresh.post(REGISTER, None, body.clone()).await;
    assert_eq!(asked.status, 401);
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.dummy"] }])
    );
    assert_eq!(asked.body["errcode"], Value::Null);
    let session = &asked.body["session"];
    let mut with_auth = body;
    with_auth["auth"] = json!({ "type": "m.login.dummy", "session": session });
    let alice = fresh.post(REGISTER, None, with_auth).await.ok();
    assert_eq!(alice["user_id"], "@alice:localhost");
    assert!(fresh.is_good(alice["access_token"].as_str().unwrap()).await);
    assert_eq!(alice["refresh_token"], Value::Null);
    assert_eq!(alice["expires_in_ms"], Value::Null);
    // Some clients send their proof at once.
    let bob = fresh
        .post("/_matrix/client/r0/register?kind=user", None, dummy("bob"))
        .await;
    assert_eq!(bob.ok()["user_id"], "@bob:localhost");
}

#[tokio::test]
async fn the_device_is_the_clients_choice_and_login_can_be_left_out() {
    let fresh = fresh().await;
    let mut body = dummy("alice");
    body["device_id"] = "MYDEVICE".into();
    body["initial_device_display_name"] = "My device".into();
    let alice = fresh.post(REGISTER, None, body).await.ok();
    assert_eq!(alice["device_id"], "MYDEVICE");
    let token = alice["access_token"].as_str();
    let device = fresh
        .get("/_matrix/client/v3/devices/MYDEVICE", token)
        .await
        .ok();
    assert_eq!(device["display_name"], "My device");
    let mut body = dummy("bob");
    body["inhibit_login"] = true.into();
    let bob = fresh.post(REGISTER, None, body).await.ok();
    assert_eq!(bob["user_id"], "@bob:localhost");
    assert_eq!(bob, json!({ "user_id": "@bob:localhost" }));
    // A device that cannot be costs nobody a name.
    let mut body = dummy("carol");
    body["device_id"] = "x".repeat(300).into();
    let refused = fresh.post(REGISTER, None, body).await;
    refused.refused(400, "M_INVALID_PARAM");
    fresh.post(REGISTER, None, dummy("carol")).await.ok();
}

#[tokio::test]
async fn names_are_generated_checked_and_given_once() {
    let fresh = fresh().await;
    let nameless = json!({ "password": "p", "auth": { "type": "m.login.dummy" } });
    let answer = fresh.post(REGISTER, None, nameless).await.ok();
    assert!(answer["user_id"].as_str().unwrap().ends_with(":localhost"));
    fresh.post(REGISTER, None, dummy("alice")).await.ok();
    // Before authentication already, as the specification wants.
    for with_auth in [true, false] {
        for (name, code) in [
            ("alice", "M_USER_IN_USE"),
            ("Alice", "M_INVALID_USERNAME"),
            ("", "M_INVALID_USERNAME"),
            ("@x:other", "M_INVALID_USERNAME"),
            ("a:b", "M_INVALID_USERNAME"),
        ] {
            let mut body = dummy(name);
            if !with_auth {
                body.as_object_mut().unwrap().remove("auth");
            }
            fresh.post(REGISTER, None, body).await.refused(400, code);
        }
    }
    // The password of the first is what it was.
    let login = json!({ "type": "m.login.password", "user": "alice", "password": "p" });
    fresh
        .post("/_matrix/client/v3/login", None, login)
        .await
        .ok();
}

#[tokio::test]
async fn of_many_at_once_one_gets_the_name() {
    let fresh = fresh().await;
    let attempts = (0..20).map(|_| fresh.post(REGISTER, None, dummy("alice")));
    let answers = futures_util::future::join_all(attempts).await;
    let given = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(given, 1);
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        answer.refused(400, "M_USER_IN_USE");
    }
}

#[tokio::test]
async fn passwords_are_needed_and_not_empty() {
    let fresh = fresh().await;
    let without = json!({ "username": "alice", "auth": { "type": "m.login.dummy" } });
    fresh
        .post(REGISTER, None, without)
        .await
        .refused(400, "M_MISSING_PARAM");
    let mut empty = dummy("alice");
    empty["password"] = "".into();
    fresh
        .post(REGISTER, None, empty)
        .await
        .refused(400, "M_WEAK_PASSWORD");
    let mut long = dummy("alice");
    long["password"] = "p".repeat(513).into();
    fresh
        .post(REGISTER, None, long)
        .await
        .refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn guests_and_application_services_are_refused() {
    let fresh = fresh().await;
    let answer = fresh
        .post(&format!("{REGISTER}?kind=guest"), None, json!({}))
        .await;
    answer.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    let body = json!({ "type": "m.login.application_service", "username": "a" });
    fresh
        .post(REGISTER, Some("as_token"), body)
        .await
        .refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn available_says_so() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let path = |name: &str| format!("/_matrix/client/v3/register/available?username={name}");
    assert_eq!(
        fresh.get(&path("bob"), None).await.ok(),
        json!({ "available": true })
    );
    fresh
        .get(&path("alice"), None)
        .await
        .refused(400, "M_USER_IN_USE");
    fresh
        .get(&path("A"), None)
        .await
        .refused(400, "M_INVALID_USERNAME");
    let without = fresh
        .get("/_matrix/client/v3/register/available", None)
        .await;
    without.refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn closed_is_closed() {
    let fresh = fresh_with(|config| config.registration.mode = RegistrationMode::Closed).await;
    fresh
        .post(REGISTER, None, dummy("alice"))
        .await
        .refused(403, "M_FORBIDDEN");
    fresh
        .post(REGISTER, None, json!({}))
        .await
        .refused(403, "M_FORBIDDEN");
    fresh
        .get(&format!("{VALIDITY}?token=x"), None)
        .await
        .refused(403, "M_FORBIDDEN");
    assert_eq!(
        fresh.homeserver.first_registration_token().await.unwrap(),
        None
    );
}

fn with_token(username: &str, token: &str) -> Value {
    let auth = json!({ "type": "m.login.registration_token", "token": token });
    json!({ "username": username, "password": "p", "auth": auth })
}

#[tokio::test]
async fn the_generated_token_makes_one_account_the_administrator() {
    let fresh = fresh_with(|config| config.registration.mode = RegistrationMode::Token).await;
    let token = fresh
        .homeserver
        .first_registration_token()
        .await
        .unwrap()
        .unwrap();
    let again = fresh.homeserver.first_registration_token().await.unwrap();
    assert_eq!(again.as_ref(), Some(&token));
    let validity = |token: &str| format!("{VALIDITY}?token={token}");
    assert_eq!(
        fresh.get(&validity(&token), None).await.ok(),
        json!({ "valid": true })
    );
    assert_eq!(
        fresh.get(&validity("x"), None).await.ok(),
        json!({ "valid": false })
    );

    let asked = fresh.post(REGISTER, None, json!({})).await;
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.registration_token"] }])
    );
    for wrong in ["", "x"] {
        let answer = fresh.post(REGISTER, None, with_token("eve", wrong)).await;
        answer.refused(401, "M_UNAUTHORIZED");
    }
    fresh
        .post(REGISTER, None, dummy("eve"))
        .await
        .refused(401, "M_UNRECOGNIZED");

    let attempts = ["alice", "bob", "carol"].map(|name| with_token(name, &token));
    let attempts = attempts.map(|body| fresh.post(REGISTER, None, body));
    let answers = futures_util::future::join_all(attempts).await;
    let mut made: Vec<_> = answers
        .into_iter()
        .filter(|answer| answer.status == 200)
        .collect();
    let alice = made.pop().expect("one is made").ok();
    assert!(made.is_empty(), "the token serves once");
    let user = <&ruma::UserId>::try_from(alice["user_id"].as_str().unwrap()).unwrap();
    let account = fresh
        .homeserver
        .users()
        .accounts
        .by_id(user)
        .await
        .unwrap()
        .unwrap();
    assert!(account.admin);

    assert_eq!(
        fresh.homeserver.first_registration_token().await.unwrap(),
        None
    );
    fresh
        .post(REGISTER, None, with_token("eve", &token))
        .await
        .refused(401, "M_UNAUTHORIZED");
    assert_eq!(
        fresh.get(&validity(&token), None).await.ok(),
        json!({ "valid": false })
    );
}

#[tokio::test]
async fn a_configured_token_serves_many_and_the_first_administers() {
    let fresh = fresh_with(|config| {
        config.registration.mode = RegistrationMode::Token;
        config.registration.token = Some("let me in".to_owned());
    })
    .await;
    assert_eq!(
        fresh.homeserver.first_registration_token().await.unwrap(),
        None
    );
    for (name, admin) in [("alice", true), ("bob", false)] {
        let body = fresh
            .post(REGISTER, None, with_token(name, "let me in"))
            .await
            .ok();
        let user = <&ruma::UserId>::try_from(body["user_id"].as_str().unwrap()).unwrap();
        let account = fresh
            .homeserver
            .users()
            .accounts
            .by_id(user)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(account.admin, admin);
    }
}

#[tokio::test]
async fn a_token_that_was_made_is_good_as_often_and_as_long_as_was_said() {
    let fresh = fresh_with(|config| config.registration.mode = RegistrationMode::Token).await;
    let administration = fresh.homeserver.administration();
    administration
        .create_user("admin", None, true)
        .await
        .unwrap();
    let lifetime = std::time::Duration::from_hours(1);
    let twice = administration.create_registration_token(Some("twice"), Some(2), None);
    twice.await.unwrap();
    let brief = administration.create_registration_token(Some("brief"), None, Some(lifetime));
    brief.await.unwrap();
    let register = async |name: &str, token: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        let body = json!({ "username": name, "password": "p", "auth": auth });
        fresh.post("/_matrix/client/v3/register", None, body).await
    };
    // At once, and more than there are uses.
    let (one, two, three) = tokio::join!(
        register("one", "twice"),
        register("two", "twice"),
        register("three", "twice"),
    );
    let statuses = [one.status, two.status, three.status];
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 2);
    assert_eq!(register("four", "twice").await.status, 401);
    register("five", "brief").await.ok();
    fresh.clock.advance(lifetime);
    assert_eq!(register("six", "brief").await.status, 401);
    let tokens = administration.registration_tokens().await.unwrap();
    let tokens: Vec<_> = tokens
        .iter()
        .map(|token| (&*token.token, token.used, token.is_good))
        .collect();
    assert_eq!(tokens, [("brief", 1, false), ("twice", 2, false)]);
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    let answer = fresh.get(&format!("{validity}twice"), None).await.ok();
    assert_eq!(answer["valid"], false);
    administration
        .create_registration_token(Some("open"), None, None)
        .await
        .unwrap();
    let answer = fresh.get(&format!("{validity}open"), None).await.ok();
    assert_eq!(answer["valid"], true);
    administration
        .revoke_registration_token("open")
        .await
        .unwrap();
    assert_eq!(register("seven", "open").await.status, 401);
}

/// A stranger who is first is a stranger nevertheless.
#[tokio::test]
async fn where_all_may_register_nobody_becomes_an_administrator() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let account = fresh.homeserver.administration().account("alice").await;
    assert!(!account.unwrap().admin);
}

#[tokio::test]
async fn first_tokens_are_of_one_server() {
    let mut tokens = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let homeserver = crate::Homeserver::configured(crate::config::Config::default())
            .engine(std::sync::Arc::new(
                homeserver_storage::engines::memory::MemoryEngine::new(),
            ))
            .open()
            .await
            .unwrap();
        let token = homeserver.first_registration_token().await.unwrap();
        tokens.insert(token.expect("the first account needs one"));
    }
    assert_eq!(tokens.len(), 3);
}

#[tokio::test]
async fn there_is_one_way_to_register() {
    let fresh = fresh().await;
    for path in [
        "/_matrix/client/v1/register",
        "/_matrix/client/v2/register",
        "/_matrix/client/api/v1/register",
        "/_synapse/admin/v2/register",
        "/_matrix/client/v2_alpha/register",
    ] {
        let answer = fresh.post(path, None, dummy("alice")).await;
        answer.refused(404, "M_UNRECOGNIZED");
    }
}
