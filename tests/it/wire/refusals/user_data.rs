//! Account data, profiles, filters, push rules, pushers, marks: what is another user's, or not
//! there, or malformed.

use homeserver_tests::{Server, ServerOptions, encode};
use serde_json::{Value, json};

use super::Refusals;

#[tokio::test(flavor = "multi_thread")]
async fn account_data() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let id = encode(&alice.create_room(json!({})).await);
    let own = format!("/_matrix/client/v3/user/{}", alice.user);
    let others = format!("/_matrix/client/v3/user/{}", bob.user);
    let mut refusals = Refusals::default();
    for (path, expected) in [
        (
            format!("{own}/rooms/{id}/account_data/org.none"),
            "404 M_NOT_FOUND",
        ),
        (
            format!("{own}/rooms/nonsense/account_data/org.none"),
            "400 M_INVALID_PARAM",
        ),
        (
            format!("{others}/rooms/{id}/account_data/org.none"),
            "403 M_FORBIDDEN",
        ),
        (format!("{others}/rooms/{id}/tags"), "403 M_FORBIDDEN"),
        (format!("{others}/filter/0"), "403 M_FORBIDDEN"),
        (format!("{own}/filter/nonsense"), "404 M_NOT_FOUND"),
    ] {
        let request = format!("GET {path}");
        refusals
            .check(&alice, &request, Value::Null, expected)
            .await;
    }
    let large = json!({ "text": "x".repeat(1_100_000) });
    for (path, body, expected) in [
        (
            format!("{own}/rooms/nonsense/account_data/org.a"),
            json!({}),
            "400 M_INVALID_PARAM",
        ),
        (
            format!("{others}/rooms/{id}/account_data/org.a"),
            json!({}),
            "403 M_FORBIDDEN",
        ),
        (
            format!("{own}/rooms/{id}/account_data/m.fully_read"),
            json!({}),
            "405 M_BAD_JSON",
        ),
        (
            format!("{own}/account_data/m.push_rules"),
            json!({}),
            "405 M_BAD_JSON",
        ),
        (
            format!("{own}/account_data/org.large"),
            large,
            "413 M_TOO_LARGE",
        ),
        (
            format!("{others}/rooms/{id}/tags/m.favourite"),
            json!({}),
            "403 M_FORBIDDEN",
        ),
    ] {
        let request = format!("PUT {path}");
        refusals.check(&alice, &request, body, expected).await;
    }
    let tag = format!("DELETE {others}/rooms/{id}/tags/m.favourite");
    refusals
        .check(&alice, &tag, Value::Null, "403 M_FORBIDDEN")
        .await;
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let profile = "/_matrix/client/v3/profile";
    let own = format!("{profile}/{}", alice.user);
    let others = format!("{profile}/{}", bob.user);
    let mut refusals = Refusals::default();
    for (request, body, expected) in [
        (
            format!("GET {profile}/nonsense"),
            Value::Null,
            "400 M_INVALID_PARAM",
        ),
        (
            format!("GET {own}/org.none"),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {own}/displayname"),
            json!({ "displayname": 7 }),
            "400 M_BAD_JSON",
        ),
        (
            format!("PUT {own}/displayname"),
            json!({ "displayname": "x".repeat(1_000) }),
            "400 M_INVALID_PARAM",
        ),
        (
            format!("PUT {own}/org.example.pet"),
            json!({}),
            "400 M_MISSING_PARAM",
        ),
        (
            format!("PUT {others}/org.example.pet"),
            json!({ "org.example.pet": "cat" }),
            "403 M_FORBIDDEN",
        ),
        (
            format!("DELETE {others}/org.example.pet"),
            Value::Null,
            "403 M_FORBIDDEN",
        ),
        (
            format!("DELETE {profile}/nonsense/org.example.pet"),
            Value::Null,
            "400 M_INVALID_PARAM",
        ),
    ] {
        refusals.check(&alice, &request, body, expected).await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_for_those_who_are_logged_in() {
    let server = Server::start_with(ServerOptions {
        configuration: "[profiles]\nrequire_login = true\n".to_owned(),
        ..ServerOptions::default()
    })
    .await;
    let nobody = server.client();
    let alice = nobody.register("alice").await;
    let stranger = nobody.with_session(&json!({ "access_token": "no such token" }));
    let profile = format!("/_matrix/client/v3/profile/{}", alice.user);
    let name = format!("{profile}/displayname");
    alice
        .put(&name, json!({ "displayname": "Alice" }))
        .await
        .ok();
    let mut refusals = Refusals::default();
    for path in [profile, name] {
        alice.get(&path).await.ok();
        let request = format!("GET {path}");
        for (who, expected) in [
            (&nobody, "401 M_MISSING_TOKEN"),
            (&stranger, "401 M_UNKNOWN_TOKEN"),
        ] {
            refusals.check(who, &request, Value::Null, expected).await;
        }
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn push() {
    let server = Server::start().await;
    let alice = server.client().register("alice").await;
    let rules = "/_matrix/client/v3/pushrules/global";
    let rule = json!({ "pattern": "soup", "actions": [] });
    let mut refusals = Refusals::default();
    for (request, body, expected) in [
        (
            format!("GET {rules}/content/none"),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            format!("GET {rules}/content/none/enabled"),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            format!("GET {rules}/content/none/actions"),
            Value::Null,
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {rules}/content/none/enabled"),
            json!({ "enabled": true }),
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {rules}/content/none/actions"),
            json!({ "actions": [] }),
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {rules}/content/soup?after=none"),
            rule.clone(),
            "404 M_NOT_FOUND",
        ),
        (
            format!("PUT {rules}/content/.soup"),
            rule,
            "400 M_INVALID_PARAM",
        ),
        (
            format!("DELETE {rules}/override/.m.rule.master"),
            Value::Null,
            "400 M_INVALID_PARAM",
        ),
        (
            "POST /_matrix/client/v3/pushers/set".to_owned(),
            json!({ "kind": "http", "app_id": "a" }),
            "400 M_MISSING_PARAM",
        ),
        (
            "POST /_matrix/client/v3/pushers/set".to_owned(),
            json!({
                "kind": "http", "app_id": "a", "pushkey": "k", "lang": "en",
                "app_display_name": "A", "device_display_name": "D",
                "data": { "url": "ftp://push.example.org/" },
            }),
            "400 M_INVALID_PARAM",
        ),
    ] {
        refusals.check(&alice, &request, body, expected).await;
    }
    refusals.must_be_as_expected();
}

#[tokio::test(flavor = "multi_thread")]
async fn marks() {
    let server = Server::start().await;
    let nobody = server.client();
    let (alice, bob) = (nobody.register("alice").await, nobody.register("bob").await);
    let id = alice.create_room(json!({})).await;
    let event = encode(&alice.say(&id, "read me").await);
    let room = format!("/_matrix/client/v3/rooms/{}", encode(&id));
    let mut refusals = Refusals::default();
    for (who, request, body, expected) in [
        (
            &alice,
            format!("POST {room}/receipt/m.read/{event}"),
            json!({ "thread_id": "" }),
            "400 M_INVALID_PARAM",
        ),
        (
            &alice,
            format!("POST {room}/receipt/m.unheard/{event}"),
            json!({}),
            "400 M_INVALID_PARAM",
        ),
        (
            &alice,
            format!("POST {room}/receipt/m.read/$none"),
            json!({}),
            "404 M_NOT_FOUND",
        ),
        (
            &bob,
            format!("POST {room}/receipt/m.read/{event}"),
            json!({}),
            "403 M_FORBIDDEN",
        ),
        (
            &bob,
            format!("POST {room}/read_markers"),
            json!({ "m.fully_read": "$none" }),
            "403 M_FORBIDDEN",
        ),
        (
            &bob,
            format!("PUT {room}/typing/{}", bob.user),
            json!({ "typing": true }),
            "403 M_FORBIDDEN",
        ),
    ] {
        refusals.check(who, &request, body, expected).await;
    }
    refusals.must_be_as_expected();
}
