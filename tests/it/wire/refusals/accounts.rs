//! Registration, discovery, user-interactive authentication, presence.

use homeserver_tests::{Server, ServerOptions};
use serde_json::{Value, json};

use super::Refusals;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_closed() {
    let server = Server::start_with(ServerOptions {
        registration: "mode = \"closed\"\n",
        ..ServerOptions::default()
    })
    .await;
    let nobody = server.client();
    let mut refusals = Refusals::default();
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity";
    let wish = json!({ "username": "alice", "password": "pass phrase" });
    for (request, body, expected) in [
        ("POST /_matrix/client/v3/register", wish, "403 M_FORBIDDEN"),
        (
            &format!("GET {validity}?token=any"),
            Value::Null,
            "403 M_FORBIDDEN",
        ),
        (
            "GET /.well-known/matrix/client",
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            "GET /.well-known/matrix/support",
            Value::Null,
            "404 M_NOT_FOUND",
        ),
    ] {
        refusals.check(&nobody, request, body, expected).await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_in_user_interactive_authentication() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let mut refusals = Refusals::default();
    let device = format!("DELETE /_matrix/client/v3/devices/{}", alice.device);
    for (request, wish) in [
        (device.as_str(), json!({})),
        (
            "POST /_matrix/client/v3/delete_devices",
            json!({ "devices": [alice.device] }),
        ),
        ("POST /_matrix/client/v3/account/deactivate", json!({})),
        (
            "POST /_matrix/client/v3/account/password",
            json!({ "new_password": "another" }),
        ),
        ("POST /_matrix/client/v1/login/get_token", json!({})),
    ] {
        refusals.check(&alice, request, wish.clone(), "401 -").await;
        let mut wrong = wish;
        wrong["auth"] = json!({
            "type": "m.login.password", "password": "wrong",
            "identifier": { "type": "m.id.user", "user": "alice" },
        });
        refusals
            .check(&alice, request, wrong, "401 M_FORBIDDEN")
            .await;
    }
    refusals.must_be_as_expected();
    alice.get("/_matrix/client/v3/account/whoami").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_for_those_who_share_a_room() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let mut refusals = Refusals::default();
    let status = |user: &str| format!("/_matrix/client/v3/presence/{user}/status");
    for (request, body, expected) in [
        (
            format!("GET {}", status(&bob.user)),
            Value::Null,
            "403 M_FORBIDDEN",
        ),
        (
            format!("GET {}", status("@none:localhost")),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {}", status(&bob.user)),
            json!({ "presence": "online" }),
            "403 M_FORBIDDEN",
        ),
        (
            format!("PUT {}", status(&alice.user)),
            json!({ "presence": "unheard_of" }),
            "400 M_INVALID_PARAM",
        ),
    ] {
        refusals.check(&alice, &request, body, expected).await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_peoples_accounts() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let mut refusals = Refusals::default();
    let openid = format!(
        "POST /_matrix/client/v3/user/{}/openid/request_token",
        bob.user
    );
    refusals
        .check(&alice, &openid, json!({}), "403 M_FORBIDDEN")
        .await;
    refusals.must_be_as_expected();
}
