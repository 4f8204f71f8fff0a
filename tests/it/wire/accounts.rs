//! Registration, login, sessions, devices, passwords, deactivation.

use hmac::{Hmac, KeyInit, Mac};
use homeserver_tests::{Client, Server, ServerOptions};
use serde_json::{Value, json};
use sha1::Sha1;

fn password_login(user: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_goes_through_user_interactive_authentication() {
    let server = Server::start().await;
    let nobody = server.client();
    let path = "/_matrix/client/v3/register";
    let wish = json!({ "username": "alice", "password": "a long pass phrase" });
    let asked = nobody.post(path, wish.clone()).await;
    assert_eq!(asked.status, 401);
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.dummy"] }])
    );
    let session = asked.body["session"].as_str().unwrap().to_owned();

    let mut again = wish.clone();
    again["auth"] = json!({ "type": "m.login.dummy", "session": session });
    let registered = nobody.post(path, again).await.ok();
    assert_eq!(registered["user_id"], "@alice:localhost");
    assert!(registered["access_token"].is_string() && registered["device_id"].is_string());

    let mut taken = wish;
    taken["auth"] = json!({ "type": "m.login.dummy" });
    nobody
        .post(path, taken)
        .await
        .expect_error(400, "M_USER_IN_USE");
    let bad = json!({ "username": "Ünknown name", "auth": { "type": "m.login.dummy" } });
    nobody
        .post(path, bad)
        .await
        .expect_error(400, "M_INVALID_USERNAME");
    let guest = nobody.post(&format!("{path}?kind=guest"), json!({})).await;
    guest.expect_error(403, "M_GUEST_ACCESS_FORBIDDEN");
    let quiet = json!({
        "username": "quiet", "password": "pw", "inhibit_login": true,
        "auth": { "type": "m.login.dummy" },
    });
    let registered = nobody.post(path, quiet).await.ok();
    assert_eq!(registered["user_id"], "@quiet:localhost");
    assert!(registered.get("access_token").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_can_be_asked_for() {
    let server = Server::start().await;
    let nobody = server.client();
    nobody.register("alice").await;
    let path = "/_matrix/client/v3/register/available?username=";
    assert_eq!(
        nobody.get(&format!("{path}bob")).await.ok()["available"],
        true
    );
    nobody
        .get(&format!("{path}alice"))
        .await
        .expect_error(400, "M_USER_IN_USE");
    nobody
        .get(&format!("{path}no%20spaces"))
        .await
        .expect_error(400, "M_INVALID_USERNAME");
    nobody
        .get("/_matrix/client/v3/register/available")
        .await
        .expect_error(400, "M_MISSING_PARAM");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_token_opens_the_door() {
    // The tests' configuration opens registration; this one wants a token.
    let options = ServerOptions {
        registration: "mode = \"token\"\ntoken = \"open sesame\"\n",
        ..ServerOptions::default()
    };
    let server = Server::start_with(options).await;
    let nobody = server.client();
    let path = "/_matrix/client/v3/register";
    let wish = json!({ "username": "alice", "password": "a long pass phrase" });
    let asked = nobody.post(path, wish.clone()).await;
    assert_eq!(asked.status, 401);
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.registration_token"] }])
    );
    let session = &asked.body["session"];

    let with = |token: &str| {
        let mut body = wish.clone();
        body["auth"] =
            json!({ "type": "m.login.registration_token", "token": token, "session": session });
        body
    };
    let refused = nobody.post(path, with("open barley")).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.body["completed"].as_array().map_or(0, Vec::len), 0);
    assert_eq!(
        nobody.post(path, with("open sesame")).await.ok()["user_id"],
        "@alice:localhost"
    );

    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    assert_eq!(
        nobody.get(&format!("{validity}open%20sesame")).await.ok()["valid"],
        true
    );
    assert_eq!(
        nobody.get(&format!("{validity}nonsense")).await.ok()["valid"],
        false
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shared_secret_registers() {
    let server = Server::start().await;
    let nobody = server.client();
    let path = "/_synapse/admin/v1/register";
    let nonce = nobody.get(path).await.text("nonce");
    let signed = |nonce: &str, secret: &str| {
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(
            [nonce, "operator", "pass phrase", "admin"]
                .join("\0")
                .as_bytes(),
        );
        let code = mac.finalize().into_bytes();
        let hex: Vec<_> = code.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({
            "nonce": nonce, "username": "operator", "password": "pass phrase", "admin": true,
            "mac": hex.concat(),
        })
    };
    let wrong = nobody.post(path, signed(&nonce, "another secret")).await;
    wrong.expect_error(403, "M_FORBIDDEN");
    let nonce = nobody.get(path).await.text("nonce");
    let registered = nobody
        .post(path, signed(&nonce, "shared secret of the tests"))
        .await
        .ok();
    assert_eq!(registered["user_id"], "@operator:localhost");
    let again = nobody
        .post(path, signed(&nonce, "shared secret of the tests"))
        .await;
    assert_eq!(again.status, 400, "a nonce counts once: {}", again.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn login_by_password() {
    let server = Server::start().await;
    let nobody = server.client();
    let alice = nobody.register("alice").await;
    let flows = nobody.get("/_matrix/client/v3/login").await.ok();
    let kinds: Vec<_> = flows["flows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| &f["type"])
        .collect();
    assert!(kinds.contains(&&json!("m.login.password")));

    let path = "/_matrix/client/v3/login";
    for user in ["alice", "@alice:localhost"] {
        let session = nobody
            .post(path, password_login(user, "alice's password"))
            .await
            .ok();
        assert_eq!(session["user_id"], "@alice:localhost");
        assert_ne!(session["device_id"], json!(alice.device));
    }
    for (user, password) in [
        ("alice", "wrong"),
        ("nobody", "wrong"),
        ("@alice:else", "wrong"),
    ] {
        let refused = nobody.post(path, password_login(user, password)).await;
        refused.expect_error(403, "M_FORBIDDEN");
    }
    nobody
        .post(path, json!({ "type": "m.login.unheard_of" }))
        .await
        .expect_error(400, "M_UNKNOWN");
    nobody
        .post(path, json!({ "no": "type" }))
        .await
        .expect_error(400, "M_MISSING_PARAM");
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_in_on_a_device_again_ends_its_old_session() {
    let server = Server::start().await;
    let nobody = server.client();
    let alice = nobody.register("alice").await;
    let mut login = password_login("alice", "alice's password");
    login["device_id"] = json!(alice.device);
    let session = nobody.post("/_matrix/client/v3/login", login).await.ok();
    let whoami = "/_matrix/client/v3/account/whoami";
    alice.get(whoami).await.expect_error(401, "M_UNKNOWN_TOKEN");
    let again = nobody.with_session(&session).get(whoami).await.ok();
    assert_eq!(again["device_id"], json!(alice.device));
    assert_eq!(again["user_id"], "@alice:localhost");
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_ends_sessions() {
    let server = Server::start().await;
    let nobody = server.client();
    let whoami = "/_matrix/client/v3/account/whoami";
    let phone = nobody.register("alice").await;
    let (laptop, desk) = (nobody.login("alice").await, nobody.login("alice").await);
    phone
        .post("/_matrix/client/v3/logout", json!({}))
        .await
        .ok();
    phone.get(whoami).await.expect_error(401, "M_UNKNOWN_TOKEN");
    laptop.get(whoami).await.ok();
    laptop
        .post("/_matrix/client/v3/logout/all", json!({}))
        .await
        .ok();
    for client in [&laptop, &desk] {
        client
            .get(whoami)
            .await
            .expect_error(401, "M_UNKNOWN_TOKEN");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_tokens_rotate() {
    let server = Server::start().await;
    let nobody = server.client();
    nobody.register("alice").await;
    let mut login = password_login("alice", "alice's password");
    login["refresh_token"] = json!(true);
    let first = nobody.post("/_matrix/client/v3/login", login).await.ok();
    assert!(first["expires_in_ms"].is_u64(), "{first}");
    let path = "/_matrix/client/v3/refresh";
    let refresh = |session: &Value| json!({ "refresh_token": session["refresh_token"] });
    let second = nobody.post(path, refresh(&first)).await.ok();
    // The answer may have been lost: until the new token is used, the old one counts.
    let third = nobody.post(path, refresh(&first)).await.ok();
    let client = nobody.with_session(&third);
    client.get("/_matrix/client/v3/account/whoami").await.ok();
    nobody
        .post(path, refresh(&first))
        .await
        .expect_error(401, "M_UNKNOWN_TOKEN");
    assert_ne!(second["access_token"], third["access_token"]);
    let unknown = nobody
        .post(path, json!({ "refresh_token": "never given" }))
        .await;
    unknown.expect_error(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_listed_named_and_deleted() {
    let server = Server::start().await;
    let nobody = server.client();
    let alice = nobody.register("alice").await;
    let other = nobody.login("alice").await;
    let devices = "/_matrix/client/v3/devices";
    let listed = alice.get(devices).await.ok();
    assert_eq!(listed["devices"].as_array().unwrap().len(), 2);
    let path = format!("{devices}/{}", other.device);
    alice
        .put(&path, json!({ "display_name": "kitchen" }))
        .await
        .ok();
    assert_eq!(alice.get(&path).await.ok()["display_name"], "kitchen");
    let missing = format!("{devices}/NOSUCH");
    alice.get(&missing).await.expect_error(404, "M_NOT_FOUND");
    alice
        .put(&missing, json!({ "display_name": "x" }))
        .await
        .expect_error(404, "M_NOT_FOUND");

    let asked = alice.delete(&path).await;
    assert_eq!(asked.status, 401);
    let auth = json!({
        "type": "m.login.password", "session": asked.body["session"],
        "identifier": { "type": "m.id.user", "user": "alice" }, "password": "alice's password",
    });
    let wrong = json!({ "auth": { "type": "m.login.password", "session": asked.body["session"],
        "identifier": { "type": "m.id.user", "user": "alice" }, "password": "wrong" } });
    let refused = alice
        .call(reqwest::Method::DELETE, &path, Some(wrong))
        .await;
    assert_eq!(
        (refused.status, refused.body["errcode"].as_str()),
        (401, Some("M_FORBIDDEN"))
    );
    alice
        .call(
            reqwest::Method::DELETE,
            &path,
            Some(json!({ "auth": auth })),
        )
        .await
        .ok();
    other
        .get(devices)
        .await
        .expect_error(401, "M_UNKNOWN_TOKEN");
    alice.get(&path).await.expect_error(404, "M_NOT_FOUND");
}

async fn confirmed(client: &Client, path: &str, mut body: Value, password: &str) -> Value {
    let asked = client.post(path, body.clone()).await;
    assert_eq!(asked.status, 401, "{}", asked.body);
    body["auth"] = json!({
        "type": "m.login.password", "session": asked.body["session"],
        "identifier": { "type": "m.id.user", "user": client.user }, "password": password,
    });
    client.post(path, body).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_ends_other_sessions() {
    let server = Server::start().await;
    let nobody = server.client();
    let alice = nobody.register("alice").await;
    let other = nobody.login("alice").await;
    let path = "/_matrix/client/v3/account/password";
    let wish = json!({ "new_password": "another pass phrase" });
    confirmed(&alice, path, wish, "alice's password").await;
    let whoami = "/_matrix/client/v3/account/whoami";
    alice.get(whoami).await.ok();
    other.get(whoami).await.expect_error(401, "M_UNKNOWN_TOKEN");
    let login = "/_matrix/client/v3/login";
    let old = nobody
        .post(login, password_login("alice", "alice's password"))
        .await;
    old.expect_error(403, "M_FORBIDDEN");
    nobody
        .post(login, password_login("alice", "another pass phrase"))
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn deactivation_is_for_good() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let path = "/_matrix/client/v3/account/deactivate";
    let answer = confirmed(&bob, path, json!({}), "bob's password").await;
    // There were no third-party identifiers to unbind.
    assert_eq!(answer["id_server_unbind_result"], "success");
    bob.get("/_matrix/client/v3/account/whoami")
        .await
        .expect_error(401, "M_UNKNOWN_TOKEN");
    let login = nobody.post(
        "/_matrix/client/v3/login",
        password_login("bob", "bob's password"),
    );
    let login = login.await;
    assert_eq!(login.status, 403, "{}", login.body);
    let again = json!({ "username": "bob", "password": "x", "auth": { "type": "m.login.dummy" } });
    let again = nobody.post("/_matrix/client/v3/register", again).await;
    again.expect_error(400, "M_USER_IN_USE");
    let members = alice
        .get(&format!("/_matrix/client/v3/rooms/{room}/joined_members"))
        .await
        .ok();
    assert!(
        members["joined"].get("@bob:localhost").is_none(),
        "{members}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_can_do() {
    let server = Server::start().await;
    let nobody = server.client();
    let versions = nobody.get("/_matrix/client/versions").await.ok();
    for version in ["v1.1", "v1.11", "v1.15"] {
        assert!(
            versions["versions"]
                .as_array()
                .unwrap()
                .contains(&json!(version)),
            "{version}"
        );
    }
    let alice = nobody.register("alice").await;
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await.ok();
    let rooms = &capabilities["capabilities"]["m.room_versions"];
    assert_eq!(rooms["default"], "12");
    for version in 1..=12 {
        assert_eq!(
            rooms["available"][version.to_string()],
            "stable",
            "room version {version}"
        );
    }
    assert!(
        alice
            .get("/_matrix/client/v3/voip/turnServer")
            .await
            .ok()
            .is_object()
    );
    assert_eq!(
        alice
            .get("/_matrix/client/v3/thirdparty/protocols")
            .await
            .ok(),
        json!({})
    );
    let welcome = nobody.get("/").await;
    assert_eq!(welcome.status, 200);
    assert!(String::from_utf8(welcome.bytes).unwrap().contains("<html"));
}
