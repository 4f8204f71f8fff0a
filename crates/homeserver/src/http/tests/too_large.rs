//! What no batch can hold is an error of the request, not of the server.

use axum::{http::StatusCode, response::IntoResponse as _};
use homeserver_rooms::RoomError;
use homeserver_storage::{CommitError, StorageError, TooLarge};
use serde_json::{Value, json};

use super::fresh;
use crate::http::error::ApiError;

const CLIENT: &str = "/_matrix/client/v3";

#[tokio::test]
async fn a_room_larger_than_a_batch_is_refused() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let token = Some(&*alice.token);
    let state = (0..90).map(|number| {
        json!({
            "type": "org.example.large",
            "state_key": number.to_string(),
            "content": { "text": "x".repeat(60_000) },
        })
    });
    let body = json!({
        "room_alias_name": "large",
        "initial_state": state.collect::<Vec<Value>>(),
    });
    let path = format!("{CLIENT}/createRoom");
    fresh
        .post(&path, token, body)
        .await
        .refused(413, "M_TOO_LARGE");
    let alias = format!("{CLIENT}/directory/room/%23large:localhost");
    fresh.get(&alias, None).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn push_rules_larger_than_a_row_are_refused() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let token = Some(&*alice.token);
    let rule = |name: &str| format!("{CLIENT}/pushrules/global/content/{name}");
    let body = json!({ "actions": ["notify"], "pattern": "x".repeat(150_000) });
    fresh
        .put(&rule("large"), token, body)
        .await
        .refused(413, "M_TOO_LARGE");
    fresh
        .get(&rule("large"), token)
        .await
        .refused(404, "M_NOT_FOUND");
}

#[test]
fn errors_of_all_crates_say_so() {
    let too_large = || {
        CommitError::from(TooLarge {
            what: "bytes of a value",
            size: 2,
            limit: 1,
        })
    };
    let errors: [ApiError; 5] = [
        too_large().into(),
        StorageError::from(too_large()).into(),
        RoomError::NotStored(too_large()).into(),
        homeserver_users::Failure::from(too_large()).into(),
        homeserver_media::Failure::from(too_large()).into(),
    ];
    for error in errors {
        let status = error.into_response().status();
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    let passing: [ApiError; 3] = [
        CommitError::Closed.into(),
        StorageError::from(CommitError::Closed).into(),
        StorageError::from(homeserver_storage::EngineError::Closed).into(),
    ];
    for error in passing {
        let status = error.into_response().status();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
