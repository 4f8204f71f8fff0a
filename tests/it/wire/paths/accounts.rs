//! Registration, login, sessions, devices, the own account.

use reqwest::Method;
use serde_json::json;

use super::{Teller, confirmed};

pub(super) async fn before_login(teller: &Teller) {
    let nobody = &teller.nobody;
    let versions = nobody.get("/_matrix/client/versions").await.ok();
    assert!(versions["versions"].is_array());
    let well_known = nobody.get("/.well-known/matrix/client").await.ok();
    assert_eq!(
        well_known["m.homeserver"]["base_url"],
        "https://chat.example.org"
    );
    let support = nobody.get("/.well-known/matrix/support").await.ok();
    assert_eq!(support["contacts"][0]["email_address"], "admin@example.org");
    let flows = nobody.get("/_matrix/client/v3/login").await.ok();
    assert!(flows["flows"].is_array());
    let name = teller.name("available");
    let page = nobody
        .get("/_matrix/static/client/login/?device_id=X")
        .await;
    assert!(page.status == 200 && page.bytes.starts_with(b"<!DOCTYPE html>"));
    let register = json!({ "username": name, "password": "p" });
    let asked = nobody.post("/_matrix/client/v3/register", register).await;
    let session = asked.body["session"].as_str().unwrap_or_default();
    let stage = asked.body["flows"][0]["stages"][0]
        .as_str()
        .unwrap_or_default();
    let page = format!("/_matrix/client/v3/auth/{stage}/fallback/web?session={session}");
    let page = nobody.get(&page).await;
    assert!(page.status == 200 && page.bytes.starts_with(b"<!DOCTYPE html>"));
    let available = format!("/_matrix/client/v3/register/available?username={name}");
    assert_eq!(nobody.get(&available).await.ok()["available"], true);
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=none";
    assert_eq!(nobody.get(validity).await.ok()["valid"], false);
}

pub(super) async fn sessions(teller: &Teller) {
    let name = teller.name("comer");
    let first = teller.register("comer").await;
    let again = first.login(&name).await;
    let whoami = "/_matrix/client/v3/account/whoami";
    assert_eq!(again.get(whoami).await.text("device_id"), again.device);
    let login = json!({
        "type": "m.login.password", "refresh_token": true,
        "identifier": { "type": "m.id.user", "user": name },
        "password": format!("{name}'s password"),
    });
    let session = teller
        .nobody
        .post("/_matrix/client/v3/login", login)
        .await
        .ok();
    let refresh = json!({ "refresh_token": session["refresh_token"] });
    let refreshed = teller
        .nobody
        .post("/_matrix/client/v3/refresh", refresh)
        .await;
    let refreshed = teller.nobody.with_session(&refreshed.ok());
    refreshed.get(whoami).await.ok();

    let path = "/_matrix/client/v1/login/get_token";
    let given = confirmed(&first, Method::POST, path, json!({})).await;
    let by_token = json!({ "type": "m.login.token", "token": given["login_token"] });
    let third = teller
        .nobody
        .post("/_matrix/client/v3/login", by_token)
        .await;
    let third = teller.nobody.with_session(&third.ok());
    assert_eq!(third.user, first.user);
    third
        .post("/_matrix/client/v3/logout", json!({}))
        .await
        .ok();
    again
        .post("/_matrix/client/v3/logout/all", json!({}))
        .await
        .ok();
    first.get(whoami).await.expect_error(401, "M_UNKNOWN_TOKEN");
}

pub(super) async fn devices(teller: &Teller) {
    let owner = teller.register("owner").await;
    let name = teller.name("owner");
    let (second, third) = (owner.login(&name).await, owner.login(&name).await);
    let all = "/_matrix/client/v3/devices";
    let one = format!("{all}/{}", second.device);
    owner
        .put(&one, json!({ "display_name": "kitchen" }))
        .await
        .ok();
    assert_eq!(owner.get(&one).await.text("display_name"), "kitchen");
    let listed = owner.get(all).await.ok();
    assert_eq!(listed["devices"].as_array().map(Vec::len), Some(3));
    confirmed(&owner, Method::DELETE, &one, json!({})).await;
    let wish = json!({ "devices": [third.device] });
    let path = "/_matrix/client/v3/delete_devices";
    confirmed(&owner, Method::POST, path, wish).await;
    let listed = owner.get(all).await.ok();
    assert_eq!(listed["devices"].as_array().map(Vec::len), Some(1));
}

pub(super) async fn the_own_account(teller: &Teller) {
    let owner = teller.register("leaver").await;
    let capabilities = owner.get("/_matrix/client/v3/capabilities").await.ok();
    assert!(capabilities["capabilities"].is_object());
    let addresses = owner.get("/_matrix/client/v3/account/3pid").await.ok();
    assert_eq!(addresses["threepids"], json!([]));
    assert_eq!(
        owner.get("/_matrix/client/v3/voip/turnServer").await.ok(),
        json!({})
    );
    let protocols = "/_matrix/client/v3/thirdparty/protocols";
    assert_eq!(owner.get(protocols).await.ok(), json!({}));
    let openid = format!(
        "/_matrix/client/v3/user/{}/openid/request_token",
        owner.user
    );
    let token = owner.post(&openid, json!({})).await.ok();
    assert_eq!(token["token_type"], "Bearer");
    let presence = format!("/_matrix/client/v3/presence/{}/status", owner.user);
    owner
        .put(&presence, json!({ "presence": "online" }))
        .await
        .ok();
    assert_eq!(owner.get(&presence).await.text("presence"), "online");

    let path = "/_matrix/client/v3/account/password";
    let password = format!("{}'s password", teller.name("leaver"));
    let wish = json!({ "new_password": password });
    confirmed(&owner, Method::POST, path, wish).await;
    let path = "/_matrix/client/v3/account/deactivate";
    confirmed(&owner, Method::POST, path, json!({})).await;
    owner
        .get("/_matrix/client/v3/account/whoami")
        .await
        .expect_error(401, "M_UNKNOWN_TOKEN");
}
