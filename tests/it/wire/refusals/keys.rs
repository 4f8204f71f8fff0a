//! Cross-signing keys and signatures.

use homeserver_tests::Server;
use serde_json::json;

use super::{super::signing::KeyPair, Refusals};

const UPLOAD: &str = "POST /_matrix/client/v3/keys/device_signing/upload";

#[tokio::test(flavor = "multi_thread")]
async fn cross_signing_keys_are_judged() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let (master, own) = (KeyPair::new(&alice.user, 1), KeyPair::new(&alice.user, 2));
    let mut refusals = Refusals::default();

    let mut by_itself = own.cross_signing_key("self_signing");
    own.sign(&mut by_itself);
    let alone = json!({ "self_signing_key": by_itself });
    refusals
        .check(&alice, UPLOAD, alone, "400 M_MISSING_PARAM")
        .await;

    let mut forged = own.cross_signing_key("self_signing");
    master.sign(&mut forged);
    forged["usage"] = json!(["self_signing", "more"]);
    let forged = json!({
        "master_key": master.cross_signing_key("master"), "self_signing_key": forged,
    });
    refusals
        .check(&alice, UPLOAD, forged, "400 M_INVALID_SIGNATURE")
        .await;

    let strangers = KeyPair::new("@bob:localhost", 3).cross_signing_key("master");
    let strangers = json!({ "master_key": strangers });
    refusals
        .check(&alice, UPLOAD, strangers, "400 M_INVALID_PARAM")
        .await;

    // A device whose id is the key.
    let login = json!({
        "type": "m.login.password", "device_id": master.public(),
        "identifier": { "type": "m.id.user", "user": "alice" }, "password": "alice's password",
    });
    alice
        .post("/_matrix/client/v3/login", login.clone())
        .await
        .ok();
    let same = json!({ "master_key": master.cross_signing_key("master") });
    refusals
        .check(&alice, UPLOAD, same, "403 M_FORBIDDEN")
        .await;

    // And the other way round.
    let other = KeyPair::new(&alice.user, 4);
    let wish = json!({ "master_key": other.cross_signing_key("master") });
    alice
        .post("/_matrix/client/v3/keys/device_signing/upload", wish)
        .await
        .ok();
    let mut login = login;
    login["device_id"] = json!(other.public());
    let request = "POST /_matrix/client/v3/login";
    refusals
        .check(&alice, request, login, "403 M_FORBIDDEN")
        .await;

    // Replacing keys takes the password.
    let replaced =
        json!({ "master_key": KeyPair::new(&alice.user, 5).cross_signing_key("master") });
    refusals
        .check(&alice, UPLOAD, replaced.clone(), "401 -")
        .await;
    let mut wrong = replaced;
    wrong["auth"] = json!({
        "type": "m.login.password", "password": "wrong",
        "identifier": { "type": "m.id.user", "user": "alice" },
    });
    refusals
        .check(&alice, UPLOAD, wrong, "401 M_FORBIDDEN")
        .await;
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_is_wrong_is_named() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let mut keys = super::super::signing::device_keys(&alice, 3);
    let upload = json!({ "device_keys": keys });
    alice
        .post("/_matrix/client/v3/keys/upload", upload)
        .await
        .ok();
    let forger = KeyPair::new(&alice.user, 9);
    forger.sign(&mut keys);
    let signed = json!({ (&alice.user): { (&alice.device): keys } });
    let path = "/_matrix/client/v3/keys/signatures/upload";
    let answer = alice.post(path, signed).await.ok();
    let failure = &answer["failures"][&alice.user][&alice.device];
    assert_eq!(failure["errcode"], "M_INVALID_SIGNATURE", "{answer}");
    // Nor is it kept.
    let query = json!({ "device_keys": { (&alice.user): [] } });
    let told = alice
        .post("/_matrix/client/v3/keys/query", query)
        .await
        .ok();
    let kept = &told["device_keys"][&alice.user][&alice.device]["signatures"][&alice.user];
    let kept: Vec<_> = kept.as_object().unwrap().keys().cloned().collect();
    assert_eq!(kept, [format!("ed25519:{}", alice.device)], "{told}");
}
