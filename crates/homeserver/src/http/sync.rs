//! `GET /sync`.
//!
//! Specification: client-server API, "Syncing".

use std::time::Duration;

use axum::{
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse, Response},
};
use homeserver_users::Users;
use ruma::api::client::sync::sync_events::v3;

use super::{ApiError, Routes, Ruma};
use crate::{
    app::session::Session,
    sync::{StateAt, SyncEngine, SyncRequest, filter::Filter, v3 as face},
};

/// The name of `use_state_after` from before it was in the specification.
const UNSTABLE_STATE_AFTER: &str = "org.matrix.msc4222.use_state_after";

pub(super) fn routes() -> Routes {
    Routes::new().ruma(sync)
}

async fn sync(
    State(engine): State<SyncEngine>,
    State(users): State<Users>,
    RawQuery(query): RawQuery,
    session: Session,
    Ruma(request): Ruma<v3::Request>,
) -> Result<Response, ApiError> {
    let since = match request.since.filter(|since| !since.is_empty()) {
        Some(since) => {
            let token = since.parse();
            Some(token.map_err(|_| ApiError::invalid_param("`since` is not a token of /sync"))?)
        }
        None => None,
    };
    let request = SyncRequest {
        since,
        filter: filter(&users, &session, request.filter).await?,
        full_state: request.full_state,
        state_at: state_at(request.use_state_after, query.as_deref()),
        presence: request.set_presence,
        timeout: request.timeout.unwrap_or(Duration::ZERO),
    };
    let changes = engine.sync(&session, &request).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, face::write(&changes)).into_response())
}

/// The filter that is named or given.
async fn filter(
    users: &Users,
    session: &Session,
    filter: Option<v3::Filter>,
) -> Result<Filter, ApiError> {
    let definition = match filter {
        None => return Ok(Filter::default()),
        Some(v3::Filter::FilterDefinition(definition)) => definition,
        Some(v3::Filter::FilterId(id)) if id.is_empty() => return Ok(Filter::default()),
        Some(v3::Filter::FilterId(id)) if id.trim_start().starts_with('{') => {
            return Err(ApiError::bad_json("The filter is not a filter object"));
        }
        Some(v3::Filter::FilterId(id)) => {
            let stored = users.filters.one(session.user_number, &id).await?;
            let stored = stored.ok_or_else(|| ApiError::invalid_param("No such filter"))?;
            serde_json::from_str(stored.get()).map_err(|error| ApiError::internal(&error))?
        }
        Some(_) => return Err(ApiError::invalid_param("Not a filter")),
    };
    Ok(Filter::compile(definition)?)
}

fn state_at(stable: bool, query: Option<&str>) -> StateAt {
    let unstable = query
        .unwrap_or_default()
        .split('&')
        .any(|pair| pair.split_once('=') == Some((UNSTABLE_STATE_AFTER, "true")));
    match (stable, unstable) {
        (true, _) => StateAt::End,
        (false, true) => StateAt::UnstableEnd,
        (false, false) => StateAt::Start,
    }
}
