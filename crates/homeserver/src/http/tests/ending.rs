//! Ending all logins at once: with the password, whatever breaks after it.

use homeserver_storage::{Batch, CommitError};
use homeserver_users::Failure;
use serde_json::{Value, json};

use super::{Fresh, LoggedIn, by_password, fresh, own_password};
use crate::app::{
    pushers::{NewPusher, Others, PusherError, Pushers},
    session::{Keep, Login, SessionError},
    tokens::ENDINGS,
};

const PASSWORD: &str = "/_matrix/client/v3/account/password";
const LOGIN: &str = "/_matrix/client/v3/login";
const PUSHERS: &str = "/_matrix/client/v3/pushers";

async fn set_pusher(fresh: &Fresh, owner: &LoggedIn, key: &str, append: bool) {
    let pusher = json!({
        "app_id": "org.example", "pushkey": key, "kind": "http", "lang": "en", "append": append,
        "app_display_name": "App", "device_display_name": "Phone",
        "data": { "url": "https://push.example.org/_matrix/push/v1/notify" },
    });
    let path = format!("{PUSHERS}/set");
    fresh.post(&path, Some(&owner.token), pusher).await.ok();
}

async fn pushers(fresh: &Fresh, owner: &LoggedIn) -> Vec<Value> {
    let body = fresh.get(PUSHERS, Some(&owner.token)).await.ok();
    let keys = body["pushers"].as_array().unwrap().iter();
    keys.map(|pusher| pusher["pushkey"].clone()).collect()
}

async fn devices(fresh: &Fresh, owner: &LoggedIn) -> usize {
    let path = "/_matrix/client/v3/devices";
    let body = fresh.get(path, Some(&owner.token)).await.ok();
    body["devices"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_pusher_ends_with_the_device_that_set_it() {
    let fresh = fresh().await;
    let [one, two] = [fresh.register("alice").await, fresh.login("alice").await];
    set_pusher(&fresh, &one, "of one", false).await;
    set_pusher(&fresh, &two, "of two", false).await;
    // Set again by another device, it is that device's.
    set_pusher(&fresh, &one, "moved", false).await;
    set_pusher(&fresh, &two, "moved", false).await;
    let path = "/_matrix/client/v3/logout";
    fresh.post(path, Some(&two.token), json!({})).await.ok();
    assert_eq!(pushers(&fresh, &one).await, ["of one"]);

    let three = fresh.login("alice").await;
    set_pusher(&fresh, &three, "of three", false).await;
    let body = json!({ "new_password": "new", "auth": own_password("alice") });
    fresh.post(PASSWORD, Some(&one.token), body).await.ok();
    assert_eq!(pushers(&fresh, &one).await, ["of one"]);
}

#[tokio::test]
async fn a_pushkey_changes_hands_unless_it_is_to_be_shared() {
    let fresh = fresh().await;
    let [alice, bob] = [fresh.register("alice").await, fresh.register("bob").await];
    set_pusher(&fresh, &alice, "phone", false).await;
    set_pusher(&fresh, &bob, "phone", true).await;
    assert_eq!(pushers(&fresh, &alice).await, ["phone"]);
    set_pusher(&fresh, &bob, "phone", false).await;
    assert!(pushers(&fresh, &alice).await.is_empty());
    assert_eq!(pushers(&fresh, &bob).await, ["phone"]);
}

#[tokio::test]
async fn the_own_login_lives_on_with_its_refresh_token() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let mut body = by_password("alice");
    body["refresh_token"] = true.into();
    let own = fresh.post(LOGIN, None, body.clone()).await.ok();
    let other = fresh.post(LOGIN, None, body).await.ok();
    let text = |body: &Value, key: &str| body[key].as_str().unwrap().to_owned();
    let change = json!({ "new_password": "new", "auth": own_password("alice") });
    let token = text(&own, "access_token");
    fresh.post(PASSWORD, Some(&token), change).await.ok();
    let refresh = |body: &Value| json!({ "refresh_token": text(body, "refresh_token") });
    let path = "/_matrix/client/v3/refresh";
    fresh
        .post(path, None, refresh(&other))
        .await
        .refused(401, "M_UNKNOWN_TOKEN");
    let renewed = fresh.post(path, None, refresh(&own)).await.ok();
    assert!(fresh.is_good(&text(&renewed, "access_token")).await);
}

/// As after a crash between the commit that ends the logins and the deletion of their devices.
#[tokio::test]
async fn nobody_gets_in_while_devices_wait_to_be_swept() {
    let fresh = fresh().await;
    let [one, two] = [fresh.register("alice").await, fresh.login("alice").await];
    let components = fresh.homeserver.components();
    let account = fresh.homeserver.administration().account("alice").await;
    let account = account.unwrap();
    let mut batch = Batch::new();
    batch.put(&ENDINGS, &account.number.0, &());
    let hash = components.passwords.hash("new").await.unwrap();
    let ended = components
        .accounts
        .end_logins(&account, Some(&hash), &batch);
    ended.await.unwrap();
    assert!(!fresh.is_good(&one.token).await && !fresh.is_good(&two.token).await);
    // Whoever logs in before the sweep keeps that device.
    let mut body = by_password("alice");
    body["password"] = "new".into();
    let body = fresh.post(LOGIN, None, body).await.ok();
    let new = super::logged_in(&body);
    assert_eq!(devices(&fresh, &new).await, 3);
    let sessions = &components.sessions;
    sessions.sweep_ended(account.number).await.unwrap();
    assert_eq!(devices(&fresh, &new).await, 1);
    assert!(fresh.is_good(&new.token).await);
    let left = components.store.get(&ENDINGS, &account.number.0).await;
    assert_eq!(left.unwrap(), None);
}

/// A password that was right when it was checked and wrong before the login was on disk.
#[tokio::test]
async fn a_login_in_flight_does_not_outlive_the_password() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let components = fresh.homeserver.components();
    let checked = fresh.homeserver.administration().account("alice").await;
    let checked = checked.unwrap();
    let token = fresh.login("alice").await.token;
    let path = "/_matrix/client/v1/login/get_token";
    let body = json!({ "auth": own_password("alice") });
    let brief = fresh.post(path, Some(&token), body).await.ok();

    let administration = fresh.homeserver.administration();
    administration.reset_password("alice", "new").await.unwrap();
    let issued = components.sessions.issue(&checked, Login::default()).await;
    assert!(!fresh.is_good(&issued.unwrap().access_token).await);
    let body = json!({ "type": "m.login.token", "token": brief["login_token"] });
    let late = fresh.post(LOGIN, None, body).await;
    late.refused(403, "M_FORBIDDEN");
}

/// A login that ended while its request was under way sets no password.
#[tokio::test]
async fn of_two_changes_of_the_password_the_later_is_refused() {
    let fresh = fresh().await;
    let [one, two] = [fresh.register("alice").await, fresh.login("alice").await];
    let sessions = &fresh.homeserver.components().sessions;
    let kept = sessions.authenticate(&one.token).await.unwrap();
    let ended = sessions.authenticate(&two.token).await.unwrap();
    let user = kept.user_number;
    let first = sessions.end_all(user, Some("first"), Keep::Own(&kept));
    first.await.unwrap();
    let second = sessions.end_all(user, Some("second"), Keep::Own(&ended));
    assert!(matches!(second.await, Err(SessionError::Unknown)));
    let second = sessions.set_password_hash(&ended, "second".to_owned());
    assert!(matches!(second.await, Err(SessionError::Unknown)));
    let closing = sessions.check_alive(&ended).await;
    assert!(matches!(closing, Err(SessionError::Unknown)));
    // The login that was kept is as good as before; it only has to ask again.
    let again = sessions.end_all(user, Some("second"), Keep::Own(&kept));
    assert!(matches!(
        again.await,
        Err(SessionError::Failure(Failure::Busy))
    ));
    let account = fresh.homeserver.administration().account("alice").await;
    let account = account.unwrap();
    assert_eq!(account.password_hash.as_deref(), Some("first"));
    let kept = sessions.authenticate(&one.token).await.unwrap();
    let set = sessions.set_password_hash(&kept, "third".to_owned());
    set.await.unwrap();
}

#[tokio::test]
async fn no_pusher_outlives_its_device() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let components = fresh.homeserver.components();
    let pushers = Pushers::new(components.store.clone());
    let new = NewPusher {
        app_id: "org.example",
        pushkey: "phone",
        json: b"{}",
        others: Others::Keep,
    };
    let session = components.sessions.authenticate(&alice.token).await;
    let session = session.unwrap();
    let (user, devices) = (session.user_number, &components.devices);
    // Set after the end was decided: the end is decided anew.
    let mut batch = Batch::new();
    let device = std::slice::from_ref(&session.device);
    pushers.end(&mut batch, user, device).await.unwrap();
    pushers.set(devices, &session, new).await.unwrap();
    let late = components.store.commit(batch).await;
    assert!(matches!(late, Err(CommitError::Conflict { .. })));
    components.sessions.end(&session).await.unwrap();
    assert!(pushers.of(user).await.unwrap().is_empty());
    // Set after the end: refused, also if there is a new device of that id.
    let mut login = by_password("alice");
    login["device_id"] = session.device.as_str().into();
    fresh.post(LOGIN, None, login).await.ok();
    let refused = pushers.set(devices, &session, new).await;
    assert!(matches!(refused, Err(PusherError::DeviceGone)));
    assert!(pushers.of(user).await.unwrap().is_empty());
}

/// A renewal of the login that is kept must not be lost, nor its old form come back.
#[tokio::test]
async fn ending_the_others_and_renewing_the_own_at_once() {
    let fresh = fresh().await;
    fresh.register("alice").await;
    let components = fresh.homeserver.components();
    let mut body = by_password("alice");
    body["refresh_token"] = true.into();
    for _ in 0..20 {
        let own = fresh.post(LOGIN, None, body.clone()).await.ok();
        let token = own["access_token"].as_str().unwrap();
        let session = components.sessions.authenticate(token).await.unwrap();
        let refresh = json!({ "refresh_token": own["refresh_token"] });
        let end = components
            .sessions
            .end_all(session.user_number, None, Keep::Own(&session));
        let renew = fresh.post("/_matrix/client/v3/refresh", None, refresh);
        let (ended, renewed) = tokio::join!(end, renew);
        ended.unwrap();
        let renewed = renewed.ok();
        let renewed = renewed["access_token"].as_str().unwrap();
        assert!(fresh.is_good(renewed).await);
    }
}
