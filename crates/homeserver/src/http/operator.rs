//! `/_synapse/admin/v1/register`: accounts made with the shared secret. On neither path nor method
//! is there another way in.

use axum::{extract::State, response::IntoResponse, routing::get};
use http::StatusCode;
use ruma::api::error::ErrorKind;
use serde::Deserialize;
use serde_json::json;

use super::{ApiError, BodyBudget, Counted, Routes, json_answer};
use crate::app::{
    invitation::Invitations,
    limits::{LimitClass, LimitKey},
    operator::{Covered, OperatorRegistration, is_right},
    registration::{Registration, Way},
    session::{Login, Sessions},
};

/// Bytes of the largest body.
const MAX_BODY: usize = 16 * 1024;

pub(super) fn routes() -> Routes {
    Routes::new().raw(
        "/_synapse/admin/v1/register",
        Counted::As(LimitClass::Registration),
        get(nonce).post(register),
    )
}

fn disabled() -> ApiError {
    let message = "Shared secret registration is not enabled";
    ApiError::new(StatusCode::BAD_REQUEST, ErrorKind::Unknown, message)
}

async fn nonce(
    State(invitations): State<Invitations>,
    State(operator): State<OperatorRegistration>,
) -> Result<impl IntoResponse, ApiError> {
    invitations.shared_secret().ok_or_else(disabled)?;
    Ok(json_answer(&json!({ "nonce": operator.nonce() })))
}

#[derive(Deserialize)]
struct Body {
    nonce: String,
    username: String,
    password: String,
    mac: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    #[serde(default)]
    inhibit_login: bool,
}

async fn register(
    State(invitations): State<Invitations>,
    State(operator): State<OperatorRegistration>,
    State(registration): State<Registration>,
    State(sessions): State<Sessions>,
    State(bodies): State<BodyBudget>,
    client: LimitKey,
    request: axum::extract::Request,
) -> Result<impl IntoResponse, ApiError> {
    let secret = invitations.shared_secret().ok_or_else(disabled)?;
    let body = bodies
        .read_at_most(request.into_body(), client, MAX_BODY)
        .await?;
    let body: Body = serde_json::from_slice(&body.bytes)?;
    let texts = [&body.username, &body.password, &body.nonce];
    if texts.iter().any(|text| text.contains('\0')) {
        return Err(ApiError::invalid_param("NUL is not allowed"));
    }
    if !operator.spend(&body.nonce) {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::Unknown,
            "unrecognised nonce",
        ));
    }
    let covered = Covered {
        nonce: &body.nonce,
        username: &body.username,
        password: &body.password,
        admin: body.admin,
        user_type: body.user_type.as_deref(),
    };
    if !is_right(secret, covered, &body.mac) {
        return Err(ApiError::forbidden("HMAC incorrect"));
    }
    let way = Way::Operator { admin: body.admin };
    // Synapse's scripts may send capital letters and mean small ones.
    let username = body.username.to_ascii_lowercase();
    let account = registration
        .register(Some(&username), Some(&body.password), way)
        .await?;
    let server = account.user_id.server_name().to_owned();
    if body.inhibit_login {
        let answer = json!({ "user_id": account.user_id, "home_server": server });
        return Ok(json_answer(&answer));
    }
    let issued = sessions.issue(&account, Login::default()).await?;
    Ok(json_answer(&json!({
        "user_id": issued.user,
        "home_server": server,
        "access_token": issued.access_token.reveal(),
        "device_id": issued.device,
    })))
}
