//! What other servers ask about users and rooms of this one by name.
//!
//! Specification: server-server API, "Querying for information".

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use homeserver_rooms::Rooms;
use http::header;
use ruma::{
    OwnedServerName,
    api::federation::query::{get_profile_information, get_room_information},
};
use serde_json::{json, value::RawValue};

use super::Signed;
use crate::{
    app::profiles::ProfileChanges,
    http::{ApiError, Routes, json_answer},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(profile).ruma(alias)
}

/// Where an alias of this server points, and which servers are in that room.
async fn alias(
    State(rooms): State<Arc<Rooms>>,
    State(own_name): State<OwnedServerName>,
    Signed { request, .. }: Signed<get_room_information::v1::Request>,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::not_found("This server has no such alias");
    if request.room_alias.server_name() != own_name {
        return Err(unknown());
    }
    let target = rooms.alias(&request.room_alias).await?;
    let target = target.ok_or_else(unknown)?;
    let answer = json!({ "room_id": target.room.id, "servers": target.servers });
    Ok(json_answer(&answer))
}

/// The profile of a user of this server, or one field of it.
async fn profile(
    State(profiles): State<ProfileChanges>,
    State(own_name): State<OwnedServerName>,
    Signed { request, .. }: Signed<get_profile_information::v1::Request>,
) -> Result<Response, ApiError> {
    if request.user_id.server_name() != own_name {
        return Err(ApiError::not_found("This server has no such user"));
    }
    let profile = profiles.of(&request.user_id).await?;
    let mut profile = profile.ok_or_else(|| ApiError::not_found("No such profile"))?;
    if let Some(field) = &request.field {
        let value = profile.remove(field.as_str());
        let value = value.ok_or_else(|| ApiError::not_found("No such profile field"))?;
        profile = BTreeMap::from([(field.to_string(), value)]);
    }
    json(&profile)
}

fn json(profile: &BTreeMap<String, Box<RawValue>>) -> Result<Response, ApiError> {
    let body = serde_json::to_string(profile).map_err(|error| ApiError::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
