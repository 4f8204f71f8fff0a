//! Spaces, for other servers.
//!
//! Specification: server-server API, "Spaces".

use axum::{extract::State, response::Response};
use ruma::api::federation::space::get_hierarchy;

use super::Signed;
use crate::{
    app::rooms::Spaces,
    http::{ApiError, Routes, rooms::json},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(tree)
}

async fn tree(
    State(spaces): State<Spaces>,
    Signed { origin, request }: Signed<get_hierarchy::v1::Request>,
) -> Result<Response, ApiError> {
    let found = spaces.for_server(&origin, &request.room_id, request.suggested_only);
    let found = found.await?;
    json(&found.ok_or_else(|| ApiError::not_found("There is no such room for your server"))?)
}
