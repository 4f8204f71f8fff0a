use serde_json::json;

use super::{by_password, fresh, fresh_with, own_password};

const PASSWORD: &str = "/_matrix/client/v3/account/password";
const LOGIN: &str = "/_matrix/client/v3/login";

#[tokio::test]
async fn a_new_password_logs_others_out_unless_asked_not_to() {
    for logout in [true, false] {
        let fresh = fresh().await;
        let [one, two] = [fresh.register("alice").await, fresh.login("alice").await];
        let mut body = json!({ "new_password": "new", "auth": own_password("alice") });
        if !logout {
            body["logout_devices"] = false.into();
        }
        fresh.post(PASSWORD, Some(&one.token), body).await.ok();
        assert!(fresh.is_good(&one.token).await);
        assert_eq!(fresh.is_good(&two.token).await, !logout);
        fresh
            .post(LOGIN, None, by_password("alice"))
            .await
            .refused(403, "M_FORBIDDEN");
        let mut login = by_password("alice");
        login["password"] = "new".into();
        fresh.post(LOGIN, None, login).await.ok();
    }
}

#[tokio::test]
async fn a_password_is_not_changed_without_proof() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let body = json!({ "new_password": "new" });
    fresh
        .post(PASSWORD, None, body.clone())
        .await
        .refused(401, "M_MISSING_TOKEN");
    assert_eq!(
        fresh.post(PASSWORD, Some(&alice.token), body).await.status,
        401
    );
    let empty = json!({ "new_password": "", "auth": own_password("alice") });
    fresh
        .post(PASSWORD, Some(&alice.token), empty)
        .await
        .refused(400, "M_WEAK_PASSWORD");
    let without = json!({ "auth": own_password("alice") });
    fresh
        .post(PASSWORD, Some(&alice.token), without)
        .await
        .refused(400, "M_MISSING_PARAM");
    fresh.login("alice").await;
}

#[tokio::test]
async fn an_openid_token_is_given_to_its_owner() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let bob = fresh.register("bob").await;
    let path = "/_matrix/client/v3/user/@alice:localhost/openid/request_token";
    let body = fresh.post(path, Some(&alice.token), json!({})).await.ok();
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["matrix_server_name"], "localhost");
    assert_eq!(body["expires_in"], 3600);
    // It is no access token.
    assert!(!fresh.is_good(body["access_token"].as_str().unwrap()).await);
    fresh
        .post(path, Some(&bob.token), json!({}))
        .await
        .refused(403, "M_FORBIDDEN");
    fresh
        .post(path, None, json!({}))
        .await
        .refused(401, "M_MISSING_TOKEN");
}

#[tokio::test]
async fn profiles_are_public_unless_the_operator_wants_a_login() {
    for require_login in [false, true] {
        let fresh = fresh_with(|config| config.profiles.require_login = require_login).await;
        let alice = fresh.register("alice").await;
        let whole = "/_matrix/client/v3/profile/@alice:localhost".to_owned();
        let name = format!("{whole}/displayname");
        let body = json!({ "displayname": "Alice" });
        fresh.put(&name, Some(&alice.token), body).await.ok();
        for path in [whole, name] {
            fresh.get(&path, Some(&alice.token)).await.ok();
            let stranger = fresh.get(&path, None).await;
            if require_login {
                stranger.refused(401, "M_MISSING_TOKEN");
            } else {
                assert_eq!(stranger.ok()["displayname"], "Alice");
            }
        }
    }
}
