use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha1::Sha1;

use super::{Fresh, fresh, fresh_with};

const PATH: &str = "/_synapse/admin/v1/register";
const SECRET: &str = "a shared secret of some length";

async fn with_secret() -> Fresh {
    fresh_with(|config| {
        config.registration.mode = crate::config::RegistrationMode::Closed;
        config.registration.shared_secret = Some(SECRET.to_owned());
    })
    .await
}

async fn request(fresh: &Fresh, username: &str, admin: bool) -> Value {
    let nonce = fresh.get(PATH, None).await.ok()["nonce"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut mac = Hmac::<Sha1>::new_from_slice(SECRET.as_bytes()).unwrap();
    let kind = if admin { "admin" } else { "notadmin" };
    mac.update(format!("{nonce}\0{username}\0password\0{kind}").as_bytes());
    let mac = mac.finalize().into_bytes();
    let code = mac
        .iter()
        .fold(String::new(), |code, byte| code + &format!("{byte:02x}"));
    json!({
        "nonce": nonce, "username": username, "password": "password", "admin": admin, "mac": code,
    })
}

#[tokio::test]
async fn the_secret_makes_accounts_although_registration_is_closed() {
    let fresh = with_secret().await;
    for (name, admin) in [("root", true), ("user", false)] {
        let body = request(&fresh, name, admin).await;
        let made = fresh.post(PATH, None, body).await.ok();
        assert_eq!(made["user_id"], format!("@{name}:localhost"));
        assert_eq!(made["home_server"], "localhost");
        assert!(fresh.is_good(made["access_token"].as_str().unwrap()).await);
        let user = <&ruma::UserId>::try_from(made["user_id"].as_str().unwrap()).unwrap();
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
    let body = request(&fresh, "root", true).await;
    fresh
        .post(PATH, None, body)
        .await
        .refused(400, "M_USER_IN_USE");
}

#[tokio::test]
async fn codes_cover_everything_and_nonces_serve_once() {
    let fresh = with_secret().await;
    for (key, value) in [
        ("admin", json!(true)),
        ("username", json!("other")),
        ("password", json!("other")),
        ("mac", json!("00")),
    ] {
        let mut body = request(&fresh, "user", false).await;
        body[key] = value;
        fresh
            .post(PATH, None, body)
            .await
            .refused(403, "M_FORBIDDEN");
    }
    let body = request(&fresh, "user", false).await;
    fresh.post(PATH, None, body.clone()).await.ok();
    fresh.post(PATH, None, body).await.refused(400, "M_UNKNOWN");
    // A separator in a name would let one code stand for another request.
    let body = request(&fresh, "a\0b", false).await;
    fresh
        .post(PATH, None, body)
        .await
        .refused(400, "M_INVALID_PARAM");
    fresh
        .post(PATH, None, json!({}))
        .await
        .refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn without_a_secret_there_is_no_such_way() {
    let fresh = fresh().await;
    fresh.get(PATH, None).await.refused(400, "M_UNKNOWN");
    let body = json!({ "nonce": "", "username": "a", "password": "b", "mac": "" });
    fresh.post(PATH, None, body).await.refused(400, "M_UNKNOWN");
    fresh
        .get("/_synapse/admin/v2/register", None)
        .await
        .refused(404, "M_UNRECOGNIZED");
    fresh
        .get("/_matrix/client/api/v1/register", None)
        .await
        .refused(404, "M_UNRECOGNIZED");
}
