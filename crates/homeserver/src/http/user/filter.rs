//! `POST` and `GET /user/{userId}/filter`.
//!
//! Specification: client-server API, "Filtering".

use axum::extract::State;
use homeserver_users::Users;
use ruma::api::client::filter::{create_filter, get_filter};
use serde_json::value::to_raw_value;

use super::caller;
use crate::{
    app::session::Session,
    http::{ApiError, Routes, Ruma},
    sync::filter::Filter,
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(create).ruma(read)
}

async fn create(
    State(users): State<Users>,
    session: Session,
    Ruma(request): Ruma<create_filter::v3::Request>,
) -> Result<Ruma<create_filter::v3::Response>, ApiError> {
    let caller = caller(&session, &request.user_id)?;
    Filter::compile(request.filter.clone())?;
    let filter = to_raw_value(&request.filter).map_err(|error| ApiError::internal(&error))?;
    let id = users.filters.store(caller, &filter).await?;
    Ok(Ruma(create_filter::v3::Response::new(id)))
}

async fn read(
    State(users): State<Users>,
    session: Session,
    Ruma(request): Ruma<get_filter::v3::Request>,
) -> Result<Ruma<get_filter::v3::Response>, ApiError> {
    let caller = caller(&session, &request.user_id)?;
    let filter = users.filters.one(caller, &request.filter_id).await?;
    let filter = filter.ok_or_else(|| ApiError::not_found("No such filter"))?;
    let filter = serde_json::from_str(filter.get()).map_err(|error| ApiError::internal(&error))?;
    Ok(Ruma(get_filter::v3::Response::new(filter)))
}
