//! Registration: `/register`, name availability, token validity.

use axum::extract::State;
use ruma::api::client::account::{
    check_registration_token_validity, get_username_availability,
    register::{self, LoginType, RegistrationKind},
};

use super::{ApiError, Interactive, Routes, Ruma};
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
) -> Result<Ruma<register::v3::Response>, ApiError> {
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
    if let Some(username) = &request.username {
        registration.available(username).await?;
    }
    let proof = interactive.proof.as_ref();
    let attempts = proof.is_some_and(|proof| proof.stage.is_some());
    if attempts && request.password.is_none() {
        return Err(ApiError::missing_param("`password` is missing"));
    }
    authenticator.require(&operation, flows, proof).await?;
    let account = registration
        .register(
            request.username.as_deref(),
            request.password.as_deref(),
            Way::Public,
        )
        .await?;
    let mut response = register::v3::Response::new(account.user_id.clone());
    if !request.inhibit_login {
        let login = Login {
            device: request.device_id,
            display_name: request.initial_device_display_name,
            refreshable: request.refresh_token,
        };
        let issued = sessions.issue(&account, login).await?;
        response.access_token = Some(issued.access_token);
        response.device_id = Some(issued.device);
        response.refresh_token = issued.refresh_token;
        response.expires_in = issued.expires_in;
    }
    Ok(Ruma(response))
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
