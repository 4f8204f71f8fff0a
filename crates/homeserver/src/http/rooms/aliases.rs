//! Aliases and which rooms are listed in the directory.
//!
//! Specification: client-server API, "Room aliases" and "Published room directory".

use axum::{
    extract::{Path, State},
    routing::put,
};
use homeserver_rooms::RoomAction;
use ruma::{
    RoomId,
    api::client::{
        alias::{create_alias, delete_alias, get_alias},
        directory::{get_room_visibility, set_room_visibility},
        room::{Visibility, aliases},
    },
};
use serde::Deserialize;

use crate::{
    app::{
        rooms::{RoomChanges, RoomReads},
        session::Session,
    },
    http::{ApiError, Counted, Routes, Ruma, Unparsed},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(create)
        .ruma(look_up)
        .ruma(delete)
        .ruma(of_room)
        .ruma(visibility)
        .raw(
            "/_matrix/client/r0/directory/list/room/{room}",
            Counted::Within,
            put(set_visibility),
        )
        .raw(
            "/_matrix/client/v3/directory/list/room/{room}",
            Counted::Within,
            put(set_visibility),
        )
}

async fn create(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<create_alias::v3::Request>,
) -> Result<Ruma<create_alias::v3::Response>, ApiError> {
    let action = RoomAction::SetAlias {
        alias: request.room_alias,
        room: request.room_id,
    };
    changes
        .act(&session, action)
        .await
        .map_err(ApiError::in_directory)?;
    Ok(Ruma(create_alias::v3::Response::new()))
}

async fn look_up(
    State(changes): State<RoomChanges>,
    Ruma(request): Ruma<get_alias::v3::Request>,
) -> Result<Ruma<get_alias::v3::Response>, ApiError> {
    let found = changes.look_up_alias(&request.room_alias).await?;
    Ok(Ruma(get_alias::v3::Response::new(found.0, found.1)))
}

async fn delete(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<delete_alias::v3::Request>,
) -> Result<Ruma<delete_alias::v3::Response>, ApiError> {
    let action = RoomAction::DeleteAlias {
        alias: request.room_alias,
        as_admin: session.admin,
    };
    changes.act(&session, action).await?;
    Ok(Ruma(delete_alias::v3::Response::new()))
}

async fn of_room(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<aliases::v3::Request>,
) -> Result<Ruma<aliases::v3::Response>, ApiError> {
    let aliases = reads.aliases(&session, &request.room_id).await?;
    Ok(Ruma(aliases::v3::Response::new(aliases)))
}

async fn visibility(
    State(reads): State<RoomReads>,
    Ruma(request): Ruma<get_room_visibility::v3::Request>,
) -> Result<Ruma<get_room_visibility::v3::Response>, ApiError> {
    let visibility = if reads.is_published(&request.room_id).await? {
        Visibility::Public
    } else {
        Visibility::Private
    };
    Ok(Ruma(get_room_visibility::v3::Response::new(visibility)))
}

/// The body of a change of visibility. Not ruma's: that one does not know that `public` is the
/// default.
#[derive(Debug, Deserialize)]
struct NewVisibility {
    visibility: Option<Visibility>,
}

async fn set_visibility(
    State(changes): State<RoomChanges>,
    session: Session,
    Path(room): Path<String>,
    request: Unparsed<set_room_visibility::v3::Request>,
) -> Result<Ruma<set_room_visibility::v3::Response>, ApiError> {
    let room = RoomId::parse(&room).map_err(|error| ApiError::invalid_param(error.to_string()))?;
    let wanted: NewVisibility = request.json()?;
    let visible = match wanted.visibility {
        None | Some(Visibility::Public) => true,
        Some(Visibility::Private) => false,
        Some(_) => return Err(ApiError::bad_json("visibility must be public or private")),
    };
    let action = RoomAction::SetDirectoryVisibility {
        room,
        visible,
        as_admin: session.admin,
    };
    let done = changes.act(&session, action).await;
    done.map_err(ApiError::naming_the_room)?;
    Ok(Ruma(set_room_visibility::v3::Response::new()))
}
