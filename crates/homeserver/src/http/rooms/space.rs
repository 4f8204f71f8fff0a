//! `GET /hierarchy`: the rooms below a space.
//!
//! Specification: client-server API, "Spaces".

use axum::{extract::State, response::Response};
use ruma::api::client::space::get_hierarchy;

use super::history::{count, json, token};
use crate::{
    app::{
        rooms::{Spaces, TreeRequest},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(tree)
}

async fn tree(
    State(spaces): State<Spaces>,
    session: Session,
    Ruma(request): Ruma<get_hierarchy::v1::Request>,
) -> Result<Response, ApiError> {
    let limit = request.limit.map(count);
    if limit == Some(0) {
        return Err(ApiError::invalid_param("limit must be greater than zero"));
    }
    let wanted = TreeRequest {
        limit,
        max_depth: request.max_depth.map(count),
        suggested_only: request.suggested_only,
        from: token(request.from),
    };
    let page = spaces.tree(&session, &request.room_id, &wanted).await?;
    json(&page)
}
