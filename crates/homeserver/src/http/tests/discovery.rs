use serde_json::json;

use super::{fresh, fresh_with};
use crate::config::RegistrationMode;

#[tokio::test]
async fn versions_are_listed_for_everybody() {
    let fresh = fresh().await;
    let body = fresh.get("/_matrix/client/versions", None).await.ok();
    let versions = body["versions"].as_array().unwrap();
    // What matrix-js-sdk and Element look for.
    assert!(versions.contains(&"v1.1".into()) && versions.contains(&"v1.11".into()));
    let stale = fresh.get("/_matrix/client/versions", Some("stale")).await;
    stale.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn capabilities_name_the_room_versions() {
    let fresh = fresh_with(|config| config.rooms.default_version = "11".try_into().unwrap()).await;
    let path = "/_matrix/client/v3/capabilities";
    fresh.get(path, None).await.refused(401, "M_MISSING_TOKEN");
    let alice = fresh.register("alice").await;
    let body = fresh.get(path, Some(&alice.token)).await.ok();
    let rooms = &body["capabilities"]["m.room_versions"];
    assert_eq!(rooms["default"], "11");
    assert_eq!(rooms["available"].as_object().unwrap().len(), 12);
    assert_eq!(rooms["available"]["1"], "stable");
    assert_eq!(body["capabilities"]["m.3pid_changes"]["enabled"], false);
    assert_eq!(body["capabilities"]["m.get_login_token"]["enabled"], true);
}

#[tokio::test]
async fn well_known_files_exist_if_configured() {
    let paths = ["client", "server", "support"].map(|name| format!("/.well-known/matrix/{name}"));
    let bare = fresh().await;
    for path in &paths {
        bare.get(path, None).await.refused(404, "M_NOT_FOUND");
    }
    let fresh = fresh_with(|config| {
        config.well_known.client_base_url = Some("https://matrix.example.org".to_owned());
        config.well_known.server = Some("matrix.example.org:443".to_owned());
        config.well_known.support_contact = Some("@admin:example.org".to_owned());
    })
    .await;
    let expected = [
        json!({ "m.homeserver": { "base_url": "https://matrix.example.org" } }),
        json!({ "m.server": "matrix.example.org:443" }),
        json!({ "contacts": [{ "role": "m.role.admin", "matrix_id": "@admin:example.org" }] }),
    ];
    for (path, expected) in paths.iter().zip(expected) {
        let answer = fresh.get(path, None).await;
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["access-control-allow-origin"], "*");
        assert_eq!(answer.ok(), expected);
    }
}

#[tokio::test]
async fn what_this_server_has_none_of_is_empty() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let cases = [
        ("/_matrix/client/v3/voip/turnServer", json!({})),
        ("/_matrix/client/v3/thirdparty/protocols", json!({})),
        (
            "/_matrix/client/v3/account/3pid",
            json!({ "threepids": [] }),
        ),
    ];
    for (path, expected) in cases {
        fresh.get(path, None).await.refused(401, "M_MISSING_TOKEN");
        assert_eq!(
            fresh.get(path, Some(&alice.token)).await.ok(),
            expected,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_browser_is_welcomed() {
    let fresh = fresh().await;
    let answer = fresh.get("/", None).await;
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(answer.headers["x-frame-options"], "DENY");
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    let page = answer.ok();
    let page = page.as_str().unwrap();
    assert!(page.contains("@alice:localhost") && !page.contains("{server_name}"));
}

/// Only where there is a token is one asked for, and only there is the first account special.
#[tokio::test]
async fn a_browser_is_told_how_to_register() {
    for (mode, said) in [
        (RegistrationMode::Token, "first account becomes"),
        (RegistrationMode::Open, "homeserver admin promote"),
        (RegistrationMode::Closed, "homeserver admin create-user"),
    ] {
        let fresh = fresh_with(|config| config.registration.mode = mode).await;
        let page = fresh.get("/", None).await.ok();
        let page = page.as_str().unwrap();
        assert!(
            page.contains(said) && !page.contains("{registration}"),
            "{mode:?}: {page}"
        );
        let with_token = mode == RegistrationMode::Token;
        assert_eq!(page.contains("registration token"), with_token, "{mode:?}");
        assert_eq!(page.contains("first account"), with_token, "{mode:?}");
    }
}
