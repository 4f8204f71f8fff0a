//! Registration: `/register`, name availability, token validity.

use axum::{extract::State, response::Response};
use homeserver_users::Devices;
use ruma::api::client::account::{
    check_registration_token_validity, get_username_availability,
    register::{self, LoginType, RegistrationKind},
};
use serde_json::json;

use super::{ApiError, Interactive, Routes, Ruma, json_answer};
use crate::app::{
    authentication::Authenticator,
    invitation::Invitations,
    registration::{Registration, Way},
    session::{Login, Sessions},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(register)
        .ruma(available)
        .ruma(token_validity)
}

async fn register(
    State(registration): State<Registration>,
    State(authenticator): State<Authenticator>,
    State(sessions): State<Sessions>,
    interactive: Interactive<register::v3::Request>,
) -> Result<Response, ApiError> {
    let operation = interactive.operation(None);
    let request = interactive.request;
    if request.kind == RegistrationKind::Guest {
        return Err(ApiError::guests_forbidden());
    }
    if request.login_type == Some(LoginType::ApplicationService) {
        let message = "No application service has this token";
        return Err(ApiError::unknown_token(message, false));
    }
    let flows = registration.flows()?;
    // Before the account is made: a name once given is taken for ever.
    let device_name = request.initial_device_display_name.as_deref();
    Devices::check(request.device_id.as_deref(), device_name)?;
    if let Some(username) = &request.username {
        registration.available(username).await?;
    }
    let proof = interactive.proof.as_ref();
    let attempts = proof.is_some_and(|proof| proof.stage.is_some());
    if attempts && request.password.is_none() {
        return Err(ApiError::missing_param("`password` is missing"));
    }
    let proven = authenticator.require(&operation, flows, proof).await?;
    if request.password.is_none() {
        return Err(ApiError::missing_param("`password` is missing"));
    }
    let account = registration
        .register(
            request.username.as_deref(),
            request.password.as_deref(),
            Way::Public {
                token: proven.token.as_deref(),
            },
        )
        .await?;
    // ruma's own type writes a device that there is not as `null`.
    let mut answer = json!({ "user_id": account.user_id });
    if !request.inhibit_login {
        let login = Login {
            device: request.device_id,
            display_name: request.initial_device_display_name,
            refreshable: request.refresh_token,
        };
        let issued = sessions.issue(&account, login).await?;
        answer["access_token"] = issued.access_token.reveal().into();
        answer["device_id"] = issued.device.as_str().into();
        if let Some(token) = issued.refresh_token {
            answer["refresh_token"] = token.reveal().into();
        }
        if let Some(lifetime) = issued.expires_in {
            let millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
            answer["expires_in_ms"] = millis.into();
        }
    }
    Ok(json_answer(&answer))
}

async fn available(
    State(registration): State<Registration>,
    Ruma(request): Ruma<get_username_availability::v3::Request>,
) -> Result<Ruma<get_username_availability::v3::Response>, ApiError> {
    registration.available(&request.username).await?;
    Ok(Ruma(get_username_availability::v3::Response::new(true)))
}

async fn token_validity(
    State(invitations): State<Invitations>,
    State(registration): State<Registration>,
    Ruma(request): Ruma<check_registration_token_validity::v1::Request>,
) -> Result<Ruma<check_registration_token_validity::v1::Response>, ApiError> {
    registration.flows()?;
    let valid = invitations.is_valid(&request.token).await?;
    Ok(Ruma(check_registration_token_validity::v1::Response::new(
        valid,
    )))
}
