//! What other servers ask of the history and the state of rooms.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events", "Retrieving
//! events", "Retrieving event authorisation information".

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use homeserver_federation::{History, history::Basis};
use homeserver_rooms::{MissingAsked, RoomError, Towards};
use http::header;
use ruma::{
    EventId, RoomId, ServerName, UInt,
    api::{
        Direction,
        federation::{
            authorization::get_event_authorization,
            backfill::get_backfill,
            event::{
                get_event, get_event_by_timestamp, get_missing_events, get_room_state,
                get_room_state_ids,
            },
        },
    },
};

use super::Signed;
use crate::http::{ApiError, Routes};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(event)
        .ruma(state)
        .ruma(state_ids)
        .ruma(auth_chain)
        .ruma(backfill)
        .ruma(missing_events)
        .ruma(nearest)
}

async fn event(
    State(history): State<History>,
    Signed { origin, request }: Signed<get_event::v1::Request>,
) -> Result<Response, ApiError> {
    let answer = history.event(&origin, &request.event_id).await;
    Ok(json(answer.map_err(refusal)?))
}

async fn state(
    State(history): State<History>,
    Signed { origin, request }: Signed<get_room_state::v1::Request>,
) -> Result<Response, ApiError> {
    let about = (&*request.room_id, &*request.event_id);
    told(&history, &origin, about, Basis::State).await
}

async fn state_ids(
    State(history): State<History>,
    Signed { origin, request }: Signed<get_room_state_ids::v1::Request>,
) -> Result<Response, ApiError> {
    let about = (&*request.room_id, &*request.event_id);
    told(&history, &origin, about, Basis::StateIds).await
}

async fn auth_chain(
    State(history): State<History>,
    Signed { origin, request }: Signed<get_event_authorization::v1::Request>,
) -> Result<Response, ApiError> {
    let about = (&*request.room_id, &*request.event_id);
    told(&history, &origin, about, Basis::AuthChain).await
}

async fn told(
    history: &History,
    origin: &ServerName,
    about: (&RoomId, &EventId),
    basis: Basis,
) -> Result<Response, ApiError> {
    let pieces = history.basis(origin, about, basis).await;
    Ok(json(Body::from_stream(pieces.map_err(refusal)?)))
}

async fn backfill(
    State(history): State<History>,
    Signed { origin, request }: Signed<get_backfill::v1::Request>,
) -> Result<Response, ApiError> {
    let from = (&*request.v, at_most(request.limit));
    let answer = history.backfill(&origin, &request.room_id, from).await;
    Ok(json(answer.map_err(refusal)?))
}

async fn missing_events(
    State(history): State<History>,
    Signed { origin, request }: Signed<get_missing_events::v1::Request>,
) -> Result<Response, ApiError> {
    let asked = MissingAsked {
        latest: &request.latest_events,
        earliest: &request.earliest_events,
        min_depth: request.min_depth.into(),
        limit: at_most(request.limit),
    };
    let answer = history.missing_events(&origin, &request.room_id, asked);
    Ok(json(answer.await.map_err(refusal)?))
}

async fn nearest(
    State(history): State<History>,
    Signed { origin, request }: Signed<get_event_by_timestamp::v1::Request>,
) -> Result<Response, ApiError> {
    let towards = match request.dir {
        Direction::Forward => Towards::Newer,
        Direction::Backward => Towards::Older,
    };
    let time = request.ts.get().into();
    let answer = history.nearest(&origin, &request.room_id, (time, towards));
    let answer = answer.await.map_err(refusal)?;
    let none = || ApiError::not_found("No event was found from this time in this direction");
    Ok(json(answer.ok_or_else(none)?))
}

/// Other servers are told which rooms are not here.
fn refusal(error: RoomError) -> ApiError {
    match error {
        RoomError::UnknownRoom | RoomError::PartialState => ApiError::not_found(error.to_string()),
        other => other.into(),
    }
}

fn at_most(limit: UInt) -> usize {
    usize::try_from(u64::from(limit)).unwrap_or(usize::MAX)
}

fn json(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}
