//! Profiles: whole, and by field.
//!
//! Specification: client-server API, "Profiles".

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use homeserver_federation::{CallError, RemoteUsers};
use homeserver_users::Profile;
use ruma::{
    OwnedServerName, ServerName, UserId,
    api::{
        client::profile::{
            delete_profile_field, get_profile, get_profile_field, set_profile_field,
        },
        error::ErrorKind,
    },
};
use serde_json::{Map, Value, value::RawValue};

use super::caller;
use crate::{
    app::{profiles::ProfileChanges, session::Session},
    config::ProfilesConfig,
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(whole)
        .ruma(field)
        .ruma(set)
        .ruma(remove)
        .ruma_also(&["/_matrix/client/r0/profile/{user}/{field}"], remove)
}

/// Who may look: anybody, also without a token, unless the operator wants a login.
fn may_look(config: &ProfilesConfig, session: Option<&Session>) -> Result<(), ApiError> {
    if config.require_login && session.is_none() {
        return Err(ApiError::missing_token());
    }
    Ok(())
}

/// The profile of a user of this server or, for those who are logged in, of another.
async fn of(
    (profiles, remote_users): (&ProfileChanges, &RemoteUsers),
    session: Option<&Session>,
    (own_name, user): (&ServerName, &UserId),
) -> Result<Profile, ApiError> {
    let profile = if user.server_name() == own_name {
        profiles.of(user).await?
    } else if session.is_none() {
        return Err(ApiError::missing_token());
    } else {
        match remote_users.profile(user).await {
            Ok(profile) => profile,
            Err(CallError::Refused {
                status: StatusCode::FORBIDDEN,
                ..
            }) => return Err(ApiError::forbidden("The user's server does not tell it")),
            Err(error) => return Err(ApiError::elsewhere(&error)),
        }
    };
    profile.ok_or_else(|| ApiError::not_found("No such profile"))
}

async fn whole(
    State(config): State<Arc<ProfilesConfig>>,
    State(profiles): State<ProfileChanges>,
    State(remote_users): State<RemoteUsers>,
    State(own_name): State<OwnedServerName>,
    session: Option<Session>,
    Ruma(request): Ruma<get_profile::v3::Request>,
) -> Result<Response, ApiError> {
    may_look(&config, session.as_ref())?;
    let sources = (&profiles, &remote_users);
    let profile = of(sources, session.as_ref(), (&own_name, &request.user_id)).await?;
    json(&profile)
}

async fn field(
    State(config): State<Arc<ProfilesConfig>>,
    State(profiles): State<ProfileChanges>,
    State(remote_users): State<RemoteUsers>,
    State(own_name): State<OwnedServerName>,
    session: Option<Session>,
    Ruma(request): Ruma<get_profile_field::v3::Request>,
) -> Result<Response, ApiError> {
    may_look(&config, session.as_ref())?;
    let name = request.field.as_str();
    let sources = (&profiles, &remote_users);
    let mut profile = of(sources, session.as_ref(), (&own_name, &request.user_id)).await?;
    let value = profile.remove(name);
    let value = value.ok_or_else(|| ApiError::not_found("No such profile field"))?;
    let mut answer: Map<String, Value> = Map::new();
    let value: Value =
        serde_json::from_str(value.get()).map_err(|error| ApiError::internal(&error))?;
    answer.insert(name.to_owned(), value);
    json(&answer)
}

async fn set(
    State(profiles): State<ProfileChanges>,
    session: Session,
    Ruma(request): Ruma<set_profile_field::v3::Request>,
) -> Result<Ruma<set_profile_field::v3::Response>, ApiError> {
    caller(&session, &request.user_id)?;
    let name = request.value.field_name();
    let value = request.value.value().into_owned();
    check(name.as_str(), &value)?;
    // An empty name or picture is how old clients take it away.
    let taken_away = matches!(&value, Value::Null)
        || (is_shown_in_rooms(name.as_str()) && value.as_str() == Some(""));
    if taken_away {
        profiles.remove(&session, name.as_str()).await?;
    } else {
        let value: Box<RawValue> =
            serde_json::value::to_raw_value(&value).map_err(|error| ApiError::internal(&error))?;
        profiles.set(&session, name.as_str(), &value).await?;
    }
    Ok(Ruma(set_profile_field::v3::Response::new()))
}

async fn remove(
    State(profiles): State<ProfileChanges>,
    session: Session,
    Ruma(request): Ruma<delete_profile_field::v3::Request>,
) -> Result<Ruma<delete_profile_field::v3::Response>, ApiError> {
    caller(&session, &request.user_id)?;
    profiles.remove(&session, request.field.as_str()).await?;
    Ok(Ruma(delete_profile_field::v3::Response::new()))
}

fn is_shown_in_rooms(name: &str) -> bool {
    matches!(name, "displayname" | "avatar_url")
}

/// The fields that the specification gives a form must have it.
fn check(name: &str, value: &Value) -> Result<(), ApiError> {
    let refuse = |message: &str| {
        let kind = ErrorKind::InvalidParam;
        Err(ApiError::new(StatusCode::BAD_REQUEST, kind, message))
    };
    match (name, value) {
        ("displayname" | "avatar_url", Value::Null | Value::String(_)) => {
            let text = value.as_str().unwrap_or_default();
            let limit = if name == "displayname" { 256 } else { 1_000 };
            if text.len() > limit {
                return refuse("The value is too long");
            }
            Ok(())
        }
        ("displayname" | "avatar_url", _) => refuse("The value must be a string"),
        ("m.tz", value) if !value.is_string() => refuse("The time zone must be a string"),
        _ => Ok(()),
    }
}

fn json(value: &impl serde::Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(value).map_err(|error| ApiError::internal(&error))?;
    let headers = [
        (http::header::CONTENT_TYPE, "application/json"),
        (http::header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}
