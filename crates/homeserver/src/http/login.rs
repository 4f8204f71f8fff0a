//! Logging in and out, renewing tokens: `/login`, `/login/get_token`, `/refresh`, `/logout`.

use axum::extract::State;
use homeserver_users::CrossSigning;
use ruma::{
    OwnedDeviceId,
    api::client::session::{
        get_login_token,
        get_login_types::{
            self,
            v3::{LoginType, PasswordLoginType, TokenLoginType},
        },
        login, logout, logout_all, refresh_token,
    },
};
use serde::Deserialize;

use super::{ApiError, Interactive, Routes, Ruma, Unparsed};
use crate::app::{
    authentication::Authenticator,
    interactive::{Flows, Stage},
    login::{BriefTokens, LOGIN_TOKEN_LIFETIME},
    secret::Secret,
    session::{Keep, Login, Session, Sessions},
};

/// What protects a user's own account on endpoints with user-interactive authentication.
pub(crate) const OWN_PASSWORD: Flows = &[&[Stage::Password]];

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(flows)
        .ruma(login)
        .ruma(login_token)
        .ruma(refresh)
        .ruma(logout)
        .ruma(logout_all)
}

async fn flows(
    Ruma(_): Ruma<get_login_types::v3::Request>,
) -> Result<Ruma<get_login_types::v3::Response>, ApiError> {
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    let flows = vec![
        LoginType::Password(PasswordLoginType::new()),
        LoginType::Token(token),
    ];
    Ok(Ruma(get_login_types::v3::Response::new(flows)))
}

/// The body of `/login`. ruma's own type cannot be used: it panics on a body without `type`.
#[derive(Deserialize)]
struct LoginBody {
    #[serde(rename = "type")]
    login_type: String,
    identifier: Option<Identifier>,
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    device_id: Option<OwnedDeviceId>,
    initial_device_display_name: Option<String>,
    #[serde(default)]
    refresh_token: bool,
}

/// Who logs in. Other kinds than `m.id.user` name addresses, which accounts here do not have.
#[derive(Deserialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: String,
    user: Option<String>,
}

async fn login(
    State(authenticator): State<Authenticator>,
    State(tokens): State<BriefTokens>,
    State(sessions): State<Sessions>,
    State(cross_signing): State<CrossSigning>,
    request: Unparsed<login::v3::Request>,
) -> Result<Ruma<login::v3::Response>, ApiError> {
    let body: LoginBody = request.json()?;
    let account = match body.login_type.as_str() {
        "m.login.password" => {
            let user = match body.identifier {
                Some(identifier) if identifier.kind == "m.id.user" => identifier.user,
                Some(_) => Some(String::new()),
                None => body.user,
            };
            let user = user.ok_or_else(|| ApiError::missing_param("`identifier` is missing"))?;
            let password = body.password;
            let password =
                password.ok_or_else(|| ApiError::missing_param("`password` is missing"))?;
            authenticator.by_password(&user, &password).await?
        }
        "m.login.token" => {
            let token = body.token;
            let token = token.ok_or_else(|| ApiError::missing_param("`token` is missing"))?;
            tokens.spend(&token).await?
        }
        other => {
            return Err(ApiError::unknown(format!("Unknown login type {other:?}")));
        }
    };
    if let Some(device) = &body.device_id
        && cross_signing
            .has_key(account.number, device.as_str())
            .await?
    {
        return Err(ApiError::forbidden("A cross-signing key has this id"));
    }
    let asked = Login {
        device: body.device_id,
        display_name: body.initial_device_display_name,
        refreshable: body.refresh_token,
    };
    let issued = sessions.issue(&account, asked).await?;
    let mut response =
        login::v3::Response::new(issued.user, issued.access_token.reveal(), issued.device);
    response.refresh_token = issued.refresh_token.map(Secret::reveal);
    response.expires_in = issued.expires_in;
    Ok(Ruma(response))
}

async fn login_token(
    State(authenticator): State<Authenticator>,
    State(tokens): State<BriefTokens>,
    session: Session,
    interactive: Interactive<get_login_token::v1::Request>,
) -> Result<Ruma<get_login_token::v1::Response>, ApiError> {
    let operation = interactive.operation(Some(&session));
    authenticator
        .require(&operation, OWN_PASSWORD, interactive.proof.as_ref())
        .await?;
    let token = tokens.for_login(&session).await?;
    Ok(Ruma(get_login_token::v1::Response::new(
        LOGIN_TOKEN_LIFETIME,
        token,
    )))
}

async fn refresh(
    State(sessions): State<Sessions>,
    Ruma(request): Ruma<refresh_token::v3::Request>,
) -> Result<Ruma<refresh_token::v3::Response>, ApiError> {
    let issued = sessions.refresh(&request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(issued.access_token.reveal());
    response.refresh_token = issued.refresh_token.map(Secret::reveal);
    response.expires_in_ms = issued.expires_in;
    Ok(Ruma(response))
}

async fn logout(
    State(sessions): State<Sessions>,
    session: Session,
    Ruma(_): Ruma<logout::v3::Request>,
) -> Result<Ruma<logout::v3::Response>, ApiError> {
    sessions.end(&session).await?;
    Ok(Ruma(logout::v3::Response::new()))
}

async fn logout_all(
    State(sessions): State<Sessions>,
    session: Session,
    Ruma(_): Ruma<logout_all::v3::Request>,
) -> Result<Ruma<logout_all::v3::Response>, ApiError> {
    sessions
        .end_all(session.user_number, None, Keep::Nothing)
        .await?;
    Ok(Ruma(logout_all::v3::Response::new()))
}
