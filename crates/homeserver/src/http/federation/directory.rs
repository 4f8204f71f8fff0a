//! The rooms that this server lists, for other servers.
//!
//! Specification: server-server API, "Published Room Directory".

use axum::{extract::State, response::Response};
use ruma::{
    api::federation::directory::{get_public_rooms, get_public_rooms_filtered},
    directory::RoomNetwork,
};

use super::Signed;
use crate::{
    app::rooms::{Listed, PublicRooms, PublicRoomsRequest},
    http::{
        ApiError, Routes,
        rooms::{PublicRoomsAnswer, count, json, token},
    },
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(all).ruma(filtered)
}

async fn all(
    State(directory): State<PublicRooms>,
    Signed { request, .. }: Signed<get_public_rooms::v1::Request>,
) -> Result<Response, ApiError> {
    let wanted = PublicRoomsRequest {
        limit: request.limit.map(count),
        since: token(request.since),
        ..PublicRoomsRequest::default()
    };
    let listed = directory.list(&wanted).await?;
    json(&PublicRoomsAnswer::from(listed))
}

async fn filtered(
    State(directory): State<PublicRooms>,
    Signed { request, .. }: Signed<get_public_rooms_filtered::v1::Request>,
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
    let listed = directory.list(&wanted).await?;
    json(&PublicRoomsAnswer::from(listed))
}
