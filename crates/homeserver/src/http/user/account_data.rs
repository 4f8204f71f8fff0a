//! Account data and tags.
//!
//! Specification: client-server API, "Client Config" and "Room Tagging".

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};
use homeserver_rooms::Rooms;
use homeserver_users::{Scope, Users};
use ruma::{
    RoomId,
    api::{
        client::{
            config::{
                get_global_account_data, get_room_account_data, set_global_account_data,
                set_room_account_data,
            },
            tag::{create_tag, delete_tag, get_tags},
        },
        error::ErrorKind,
    },
    serde::Raw,
};
use serde_json::{Value, value::RawValue};

use super::caller;
use crate::{
    app::{
        push_rules::{PUSH_RULES, PushRules},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(set_global)
        .ruma(global)
        .ruma(set_of_room)
        .ruma(of_room)
        .ruma(tags)
        .ruma(set_tag)
        .ruma(remove_tag)
}

async fn set_global(
    State(users): State<Users>,
    session: Session,
    Ruma(request): Ruma<set_global_account_data::v3::Request>,
) -> Result<Ruma<set_global_account_data::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let event_type = request.event_type.to_string();
    let content = checked(&event_type, request.data.json())?;
    let data = &users.account_data;
    data.set(user, Scope::Global, &event_type, content).await?;
    Ok(Ruma(set_global_account_data::v3::Response::new()))
}

async fn global(
    State(users): State<Users>,
    State(rules): State<PushRules>,
    session: Session,
    Ruma(request): Ruma<get_global_account_data::v3::Request>,
) -> Result<Ruma<get_global_account_data::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let event_type = request.event_type.to_string();
    if event_type == PUSH_RULES {
        let content = rules.content(user, &session.user).await?;
        let content = Raw::from_json(content);
        return Ok(Ruma(get_global_account_data::v3::Response::new(content)));
    }
    let data = &users.account_data;
    let datum = data.one(user, Scope::Global, &event_type).await?;
    let content = Raw::from_json(datum.ok_or_else(not_set)?.content);
    Ok(Ruma(get_global_account_data::v3::Response::new(content)))
}

async fn set_of_room(
    State(users): State<Users>,
    State(rooms): State<Arc<Rooms>>,
    session: Session,
    Ruma(request): Ruma<set_room_account_data::v3::Request>,
) -> Result<Ruma<set_room_account_data::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let event_type = request.event_type.to_string();
    let content = checked(&event_type, request.data.json())?;
    let scope = scope(&rooms, &request.room_id).await?;
    let data = &users.account_data;
    data.set(user, scope, &event_type, content).await?;
    Ok(Ruma(set_room_account_data::v3::Response::new()))
}

async fn of_room(
    State(users): State<Users>,
    State(rooms): State<Arc<Rooms>>,
    session: Session,
    Ruma(request): Ruma<get_room_account_data::v3::Request>,
) -> Result<Ruma<get_room_account_data::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let scope = scope(&rooms, &request.room_id)
        .await
        .map_err(|_| not_set())?;
    let event_type = request.event_type.to_string();
    let datum = users.account_data.one(user, scope, &event_type).await?;
    let content = Raw::from_json(datum.ok_or_else(not_set)?.content);
    Ok(Ruma(get_room_account_data::v3::Response::new(content)))
}

async fn tags(
    State(users): State<Users>,
    State(rooms): State<Arc<Rooms>>,
    session: Session,
    Ruma(request): Ruma<get_tags::v3::Request>,
) -> Result<Ruma<get_tags::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let number = room_number(&rooms, &request.room_id).await?;
    let tags = users.account_data.tags(user, number).await?;
    // What some client once wrote as a tag may be anything; what is not a tag is left out.
    let tags = tags
        .into_iter()
        .filter_map(|(name, info)| Some((name.into(), serde_json::from_value(info).ok()?)));
    Ok(Ruma(get_tags::v3::Response::new(tags.collect())))
}

async fn set_tag(
    State(users): State<Users>,
    State(rooms): State<Arc<Rooms>>,
    session: Session,
    Ruma(request): Ruma<create_tag::v3::Request>,
) -> Result<Ruma<create_tag::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let number = room_number(&rooms, &request.room_id).await?;
    let info = serde_json::to_value(&request.tag_info);
    let Ok(Value::Object(info)) = info else {
        return Err(ApiError::bad_json("A tag is an object"));
    };
    let data = &users.account_data;
    data.set_tag(user, number, &request.tag, &info).await?;
    Ok(Ruma(create_tag::v3::Response::new()))
}

async fn remove_tag(
    State(users): State<Users>,
    State(rooms): State<Arc<Rooms>>,
    session: Session,
    Ruma(request): Ruma<delete_tag::v3::Request>,
) -> Result<Ruma<delete_tag::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let number = room_number(&rooms, &request.room_id).await?;
    let data = &users.account_data;
    data.remove_tag(user, number, &request.tag).await?;
    Ok(Ruma(delete_tag::v3::Response::new()))
}

/// The content, if it is an object and the type is one that clients may set.
fn checked<'a>(event_type: &str, content: &'a RawValue) -> Result<&'a RawValue, ApiError> {
    if event_type == PUSH_RULES || event_type == "m.fully_read" {
        return Err(ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::BadJson,
            format!("{event_type} is managed by the server and cannot be set here"),
        ));
    }
    if !content.get().trim_start().starts_with('{') {
        return Err(ApiError::bad_json("Account data must be an object"));
    }
    Ok(content)
}

fn not_set() -> ApiError {
    ApiError::not_found("No such account data")
}

async fn scope(rooms: &Rooms, room: &RoomId) -> Result<Scope, ApiError> {
    Ok(Scope::Room(room_number(rooms, room).await?))
}

async fn room_number(rooms: &Rooms, room: &RoomId) -> Result<u64, ApiError> {
    let room = rooms.room(room).await?;
    let room = room.ok_or_else(|| ApiError::not_found("Unknown room"))?;
    Ok(room.number.0)
}
