//! Pages for browsers.

use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

use super::{Answer, Fresh, fresh, fresh_with};
use crate::config::RegistrationMode;

const PASSWORD: &str = "/_matrix/client/v3/account/password";
const REGISTER: &str = "/_matrix/client/v3/register";
const LOGIN_PAGE: &str = "/_matrix/static/client/login/?device_id=%22%3E%3Cscript%3E";

fn stage(name: &str, session: &Value) -> String {
    let session = session.as_str().unwrap();
    format!("/_matrix/client/v3/auth/{name}/fallback/web?session={session}")
}

async fn submit(fresh: &Fresh, path: &str, form: &'static str) -> Answer {
    let body = Body::from(form);
    fresh.send_bytes(Method::POST, path, None, body).await
}

/// The script of a page, if its policy lets it run.
fn script(page: &Answer) -> Option<String> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use sha2::{Digest, Sha256};
    let html = page.body.as_str().unwrap();
    let (_, rest) = html.split_once("<script>")?;
    let (script, _) = rest.split_once("</script>")?;
    let hash = STANDARD.encode(Sha256::digest(script));
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains(&format!("script-src 'sha256-{hash}'")));
    Some(script.to_owned())
}

#[tokio::test]
async fn a_stage_is_completed_on_its_page() {
    let fresh = fresh().await;
    let [alice, other] = [fresh.register("alice").await, fresh.login("alice").await];
    let body = json!({ "new_password": "new" });
    let asked = fresh.post(PASSWORD, Some(&alice.token), body.clone()).await;
    let session = &asked.body["session"];
    let page = stage("m.login.password", session);
    let shown = fresh.get(&page, None).await;
    assert_eq!(shown.status, 200);
    assert!(shown.body.as_str().unwrap().contains("type=\"password\""));

    // What the client does while nothing is completed.
    let mut again = body.clone();
    again["auth"] = json!({ "session": session });
    let waiting = fresh
        .post(PASSWORD, Some(&alice.token), again.clone())
        .await;
    assert_eq!((waiting.status, &waiting.body["session"]), (401, session));
    let wrong = submit(&fresh, &page, "entered=wrong").await;
    assert_eq!(wrong.status, 401);
    assert_eq!(script(&wrong), None);
    let waiting = fresh
        .post(PASSWORD, Some(&alice.token), again.clone())
        .await;
    assert_eq!(waiting.status, 401);

    let done = submit(&fresh, &page, "entered=password+of%20alice").await;
    assert_eq!(done.status, 200);
    let script = script(&done).unwrap();
    assert!(script.contains("window.onAuthDone()") && script.contains("\"authDone\""));
    // It is for the request that was asked for, by whom it was asked, and for that once.
    let mut swapped = again.clone();
    swapped["new_password"] = "of an attacker".into();
    let swapped = fresh.post(PASSWORD, Some(&alice.token), swapped).await;
    assert_eq!(swapped.status, 401);
    fresh
        .post(PASSWORD, Some(&alice.token), again.clone())
        .await
        .ok();
    assert!(!fresh.is_good(&other.token).await);
    let twice = fresh.post(PASSWORD, Some(&alice.token), again).await;
    assert_eq!(twice.status, 401);
    assert_eq!(fresh.get(&page, None).await.status, 404);
}

#[tokio::test]
async fn registering_by_a_token_that_is_entered_on_a_page() {
    let fresh = fresh_with(|config| {
        config.registration.mode = RegistrationMode::Token;
        config.registration.token = Some("s3cret & more".to_owned());
    })
    .await;
    let body = json!({ "username": "alice", "password": "p" });
    let asked = fresh.post(REGISTER, None, body.clone()).await;
    let session = &asked.body["session"];
    let page = stage("m.login.registration_token", session);
    assert_eq!(submit(&fresh, &page, "entered=guess").await.status, 401);
    let done = submit(&fresh, &page, "entered=s3cret+%26+more").await;
    assert_eq!(done.status, 200);
    let mut again = body;
    again["auth"] = json!({ "session": session });
    let made = fresh.post(REGISTER, None, again).await.ok();
    assert_eq!(made["user_id"], "@alice:localhost");
}

#[tokio::test]
async fn a_stage_without_a_secret_and_stages_that_are_not_offered() {
    let fresh = fresh().await;
    let body = json!({ "username": "alice", "password": "p" });
    let asked = fresh.post(REGISTER, None, body.clone()).await;
    let session = &asked.body["session"];
    for path in [
        stage("m.login.password", session),
        stage("m.login.recaptcha", session),
        stage("m.login.dummy", &"nosuchsession".into()),
    ] {
        assert_eq!(fresh.get(&path, None).await.status, 404);
        assert_eq!(submit(&fresh, &path, "").await.status, 404);
    }
    let without = "/_matrix/client/v3/auth/m.login.dummy/fallback/web";
    fresh
        .get(without, None)
        .await
        .refused(400, "M_INVALID_PARAM");
    let page = stage("m.login.dummy", session);
    assert_eq!(submit(&fresh, &page, "").await.status, 200);
    let mut again = body;
    again["auth"] = json!({ "session": session });
    fresh.post(REGISTER, None, again).await.ok();
}

/// CVE-2020-26891 and its like.
#[tokio::test]
async fn nothing_of_a_request_is_written_into_a_page() {
    let fresh = fresh().await;
    let asked = fresh.post(REGISTER, None, json!({})).await;
    let known = asked.body["session"].as_str().unwrap();
    let evil = "%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E";
    let pages = [
        "/".to_owned(),
        LOGIN_PAGE.to_owned(),
        format!("/_matrix/client/v3/auth/m.login.dummy/fallback/web?session={evil}"),
        format!("/_matrix/client/v3/auth/{evil}/fallback/web?session={known}"),
        format!("/_matrix/client/v3/auth/m.login.dummy/fallback/web?session={known}&x={evil}"),
    ];
    for path in pages {
        let page = fresh.get(&path, None).await;
        let html = page.body.as_str().unwrap();
        assert!(
            !html.contains("alert(1)") && !html.contains(known),
            "{path}"
        );
        let scripts = html.matches("<script").count();
        assert_eq!(scripts, usize::from(path == LOGIN_PAGE), "{path}");
        let header = |name: &str| page.headers[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(header("x-frame-options"), "DENY");
        assert_eq!(header("x-content-type-options"), "nosniff");
    }
}

#[tokio::test]
async fn the_login_page_runs_its_script() {
    let fresh = fresh().await;
    let page = fresh.get(LOGIN_PAGE, None).await;
    assert_eq!(page.status, 200);
    let script = script(&page).unwrap();
    assert!(script.contains("window.matrixLogin.onLogin(response)"));
}
