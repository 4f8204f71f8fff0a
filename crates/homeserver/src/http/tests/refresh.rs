use std::time::Duration;

use serde_json::{Value, json};

use super::{Fresh, by_password, fresh};

const REFRESH: &str = "/_matrix/client/v3/refresh";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

async fn login(fresh: &Fresh) -> (String, String) {
    let mut body = by_password("alice");
    body["refresh_token"] = true.into();
    let body = fresh
        .post("/_matrix/client/v3/login", None, body)
        .await
        .ok();
    assert_eq!(body["expires_in_ms"], 3_600_000);
    pair(&body)
}

fn pair(body: &Value) -> (String, String) {
    let text = |key: &str| body[key].as_str().unwrap().to_owned();
    (text("access_token"), text("refresh_token"))
}

async fn refresh(fresh: &Fresh, token: &str) -> super::Answer {
    fresh
        .post(REFRESH, None, json!({ "refresh_token": token }))
        .await
}

#[tokio::test]
async fn an_expired_token_is_a_soft_logout_until_it_is_refreshed() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let (access, refresh_token) = login(&fresh).await;
    assert!(fresh.is_good(&access).await);
    fresh.clock.advance(Duration::from_hours(1));
    let expired = fresh.get(WHOAMI, Some(&access)).await;
    expired.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(expired.body["soft_logout"], true);
    let (access, _) = pair(&refresh(&fresh, &refresh_token).await.ok());
    assert!(fresh.is_good(&access).await);
    let unknown = fresh.get(WHOAMI, Some("x")).await;
    assert_ne!(unknown.body["soft_logout"], true);
}

#[tokio::test]
async fn the_old_pair_lives_until_the_new_one_is_used() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let (access1, refresh1) = login(&fresh).await;
    // The answer got lost: asked again, there is another pair, and the lost one is dead.
    let (access2, refresh2) = pair(&refresh(&fresh, &refresh1).await.ok());
    let (access3, refresh3) = pair(&refresh(&fresh, &refresh1).await.ok());
    assert!(fresh.is_good(&access1).await);
    assert!(!fresh.is_good(&access2).await);
    refresh(&fresh, &refresh2)
        .await
        .refused(401, "M_UNKNOWN_TOKEN");
    // First use of the new access token.
    assert!(fresh.is_good(&access3).await);
    assert!(!fresh.is_good(&access1).await);
    refresh(&fresh, &refresh1)
        .await
        .refused(401, "M_UNKNOWN_TOKEN");
    // First use of the new refresh token counts as well.
    let (access4, refresh4) = pair(&refresh(&fresh, &refresh3).await.ok());
    let (access5, _) = pair(&refresh(&fresh, &refresh4).await.ok());
    refresh(&fresh, &refresh3)
        .await
        .refused(401, "M_UNKNOWN_TOKEN");
    assert!(!fresh.is_good(&access3).await);
    assert!(fresh.is_good(&access4).await && fresh.is_good(&access5).await);
    assert!(!fresh.is_good(&access4).await, "the fifth was used");
}

#[tokio::test]
async fn refresh_tokens_end_with_the_device() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let (access, refresh_token) = login(&fresh).await;
    let (_, unused) = pair(&refresh(&fresh, &refresh_token).await.ok());
    fresh
        .post("/_matrix/client/v3/logout", Some(&access), json!({}))
        .await
        .ok();
    for token in [&refresh_token, &unused, "x"] {
        let answer = refresh(&fresh, token).await;
        answer.refused(401, "M_UNKNOWN_TOKEN");
        assert_ne!(answer.body["soft_logout"], true);
    }
}

#[tokio::test]
async fn of_two_refreshes_at_once_both_give_a_pair_and_one_is_alive() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let (_, token) = login(&fresh).await;
    let answers = futures_util::future::join(refresh(&fresh, &token), refresh(&fresh, &token));
    let (one, two) = answers.await;
    let (one, two) = (pair(&one.ok()).0, pair(&two.ok()).0);
    assert!(fresh.is_good(&one).await != fresh.is_good(&two).await);
}
