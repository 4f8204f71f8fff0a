//! A user's own account: who am I, password, `OpenID` token, addresses (of which there are none).

use axum::extract::State;
use ruma::{
    OwnedServerName,
    api::client::account::{
        ThirdPartyIdRemovalStatus, change_password, deactivate, get_3pids, request_openid_token,
        whoami,
    },
    authentication::TokenType,
};

use super::{ApiError, Interactive, Routes, Ruma, login::OWN_PASSWORD};
use crate::app::{
    authentication::Authenticator,
    closing::Closing,
    login::{BriefTokens, OPENID_TOKEN_LIFETIME},
    passwords::Passwords,
    session::{Keep, Session, Sessions},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(whoami)
        .ruma(change_password)
        .ruma(deactivate)
        .ruma(addresses)
        .ruma(openid_token)
}

async fn whoami(
    session: Session,
    Ruma(_): Ruma<whoami::v3::Request>,
) -> Result<Ruma<whoami::v3::Response>, ApiError> {
    let mut response = whoami::v3::Response::new(session.user, false);
    response.device_id = Some(session.device);
    Ok(Ruma(response))
}

async fn change_password(
    State(authenticator): State<Authenticator>,
    State(passwords): State<Passwords>,
    State(sessions): State<Sessions>,
    session: Session,
    interactive: Interactive<change_password::v3::Request>,
) -> Result<Ruma<change_password::v3::Response>, ApiError> {
    let operation = interactive.operation(Some(&session));
    let request = &interactive.request;
    Passwords::check(&request.new_password)?;
    authenticator
        .require(&operation, OWN_PASSWORD, interactive.proof.as_ref())
        .await?;
    let hash = passwords.hash(&request.new_password).await?;
    if request.logout_devices {
        let (user, keep) = (session.user_number, Keep::Own(&session));
        sessions.end_all(user, Some(&hash), keep).await?;
    } else {
        sessions.set_password_hash(&session, hash).await?;
    }
    Ok(Ruma(change_password::v3::Response::new()))
}

async fn deactivate(
    State(authenticator): State<Authenticator>,
    State(closing): State<Closing>,
    State(sessions): State<Sessions>,
    session: Session,
    interactive: Interactive<deactivate::v3::Request>,
) -> Result<Ruma<deactivate::v3::Response>, ApiError> {
    let operation = interactive.operation(Some(&session));
    authenticator
        .require(&operation, OWN_PASSWORD, interactive.proof.as_ref())
        .await?;
    // A password takes long to check: all logins may have ended meanwhile, by a new one.
    sessions.check_alive(&session).await?;
    closing
        .close(session.user_number, interactive.request.erase)
        .await?;
    // No address was ever bound on an identity server.
    let unbound = ThirdPartyIdRemovalStatus::Success;
    Ok(Ruma(deactivate::v3::Response::new(unbound)))
}

async fn addresses(
    _session: Session,
    Ruma(_): Ruma<get_3pids::v3::Request>,
) -> Result<Ruma<get_3pids::v3::Response>, ApiError> {
    Ok(Ruma(get_3pids::v3::Response::new(Vec::new())))
}

async fn openid_token(
    State(server_name): State<OwnedServerName>,
    State(tokens): State<BriefTokens>,
    session: Session,
    Ruma(request): Ruma<request_openid_token::v3::Request>,
) -> Result<Ruma<request_openid_token::v3::Response>, ApiError> {
    if request.user_id != session.user {
        return Err(ApiError::forbidden("Not your own user id"));
    }
    let token = tokens.for_openid(&session).await?;
    Ok(Ruma(request_openid_token::v3::Response::new(
        token,
        TokenType::Bearer,
        server_name,
        OPENID_TOKEN_LIFETIME,
    )))
}
