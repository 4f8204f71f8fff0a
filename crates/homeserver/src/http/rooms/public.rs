//! `GET` and `POST /publicRooms`: the rooms that this server lists. `GET /room_summary`: what one
//! room looks like from outside.
//!
//! The list of another server is asked of that server.
//!
//! Specification: client-server API, "Published room directory", "Room summary".

use axum::{extract::State, response::Response};
use homeserver_federation::is_same_server;
use ruma::{
    OwnedServerName, RoomId,
    api::client::{
        directory::{get_public_rooms, get_public_rooms_filtered},
        room::get_summary,
    },
    directory::RoomNetwork,
};
use serde::Serialize;

use super::history::{count, json, token};
use crate::{
    app::{
        rooms::{
            Listed, PublicRooms, PublicRoomsRequest, ReadError, RoomReads, RoomSummary, Spaces,
        },
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(all)
        .ruma(filtered)
        .ruma(summary)
        // The path that shipped clients ask.
        .ruma_also(
            &["/_matrix/client/unstable/im.nheko.summary/summary/{room}"],
            summary,
        )
}

/// The answer of both forms of `/publicRooms`.
#[derive(Debug, Serialize)]
pub(in crate::http) struct PublicRoomsAnswer {
    chunk: Vec<RoomSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_room_count_estimate: Option<usize>,
}

impl From<Listed> for PublicRoomsAnswer {
    fn from(listed: Listed) -> Self {
        Self {
            chunk: listed.rooms,
            next_batch: listed.next,
            prev_batch: listed.previous,
            total_room_count_estimate: listed.total,
        }
    }
}

async fn all(
    State(directory): State<PublicRooms>,
    // Whose requests are counted: without a session, all behind one address are one.
    _session: Option<Session>,
    Ruma(request): Ruma<get_public_rooms::v3::Request>,
) -> Result<Response, ApiError> {
    let wanted = PublicRoomsRequest {
        limit: request.limit.map(count),
        since: token(request.since),
        ..PublicRoomsRequest::default()
    };
    if let Some(server) = elsewhere(&directory, request.server) {
        return json(&directory.list_of(&server, &wanted).await?);
    }
    let listed = directory.list(&wanted).await?;
    json(&PublicRoomsAnswer::from(listed))
}

async fn filtered(
    State(directory): State<PublicRooms>,
    _session: Session,
    Ruma(request): Ruma<get_public_rooms_filtered::v3::Request>,
) -> Result<Response, ApiError> {
    if let RoomNetwork::ThirdParty(_) = request.room_network {
        // No third-party network is bridged here, so none lists a room.
        return json(&PublicRoomsAnswer::from(Listed::default()));
    }
    let types = request.filter.room_types.iter();
    let wanted = PublicRoomsRequest {
        limit: request.limit.map(count),
        since: token(request.since),
        term: token(request.filter.generic_search_term),
        types: types.map(|kind| kind.as_str().map(str::to_owned)).collect(),
    };
    if let Some(server) = elsewhere(&directory, request.server) {
        return json(&directory.list_of(&server, &wanted).await?);
    }
    let listed = directory.list(&wanted).await?;
    json(&PublicRoomsAnswer::from(listed))
}

/// The server whose list is wanted, if it is not this one.
fn elsewhere(directory: &PublicRooms, server: Option<OwnedServerName>) -> Option<OwnedServerName> {
    server.filter(|server| !is_same_server(server, directory.server_name()))
}

/// A room's summary and what the reader is to the room.
#[derive(Debug, Serialize)]
struct SummaryAnswer {
    #[serde(flatten)]
    summary: RoomSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
}

async fn summary(
    State(reads): State<RoomReads>,
    State(spaces): State<Spaces>,
    session: Option<Session>,
    Ruma(request): Ruma<get_summary::v1::Request>,
) -> Result<Response, ApiError> {
    let (name, session) = (&request.room_id_or_alias, session.as_ref());
    let (summary, membership) = match reads.summary(session, name).await {
        Err(ReadError::NoSuchRoom) => {
            let id = <&RoomId>::try_from(&**name);
            let id = id.map_err(|_| ApiError::from(ReadError::NoSuchRoom))?;
            let found = spaces.summary_elsewhere(session, id, &request.via).await?;
            let membership = session.map(|_| "leave");
            (found.ok_or(ReadError::NoSuchRoom)?, membership)
        }
        found => found?,
    };
    json(&SummaryAnswer {
        summary,
        membership,
    })
}
