//! Pages of a room's history: `/messages`, `/context`, `/event`, `/timestamp_to_event`.
//!
//! Specification: client-server API, "Getting events for a room".

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use homeserver_rooms::Towards;
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::{
        Direction,
        client::{
            context::get_context,
            filter::RoomEventFilter,
            message::get_message_events,
            room::{get_event_by_timestamp, get_room_event},
        },
    },
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    app::{
        rooms::{PageRequest, ReadError, RoomReads, Selection},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
    sync::filter::{EventFilter, LazyMembers},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(messages)
        .ruma(context)
        .ruma(event)
        .ruma(by_timestamp)
}

async fn messages(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_message_events::v3::Request>,
) -> Result<Ruma<get_message_events::v3::Response>, ApiError> {
    let wanted = PageRequest {
        from: token(request.from),
        to: token(request.to),
        towards: towards(request.dir),
        limit: count(request.limit),
        selection: selection(request.filter)?,
    };
    let page = reads.messages(&session, &request.room_id, wanted).await?;
    let mut response = get_message_events::v3::Response::new();
    response.start = page.start;
    response.end = page.end;
    response.chunk = page.events.into_iter().map(Raw::from_json).collect();
    response.state = page.state.into_iter().map(Raw::from_json).collect();
    Ok(Ruma(response))
}

/// The answer of `/context`. Not ruma's: that one leaves empty lists out, and clients in use fail
/// on it.
#[derive(Debug, Serialize)]
struct ContextAnswer {
    start: String,
    end: String,
    events_before: Vec<Box<RawValue>>,
    event: Box<RawValue>,
    events_after: Vec<Box<RawValue>>,
    state: Vec<Box<RawValue>>,
}

async fn context(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_context::v3::Request>,
) -> Result<Response, ApiError> {
    let limit = count(request.limit);
    let selection = selection(request.filter)?;
    let around = reads
        .context(
            &session,
            &request.room_id,
            &request.event_id,
            limit,
            &selection,
        )
        .await?;
    let answer = ContextAnswer {
        start: around.start,
        end: around.end,
        events_before: around.before,
        event: around.event,
        events_after: around.after,
        state: around.state,
    };
    json(&answer)
}

async fn event(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_room_event::v3::Request>,
) -> Result<Ruma<get_room_event::v3::Response>, ApiError> {
    let event = reads
        .event(&session, &request.room_id, &request.event_id)
        .await
        .map_err(hiding)?;
    Ok(Ruma(get_room_event::v3::Response::new(Raw::from_json(
        event,
    ))))
}

async fn by_timestamp(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_event_by_timestamp::v1::Request>,
) -> Result<Ruma<get_event_by_timestamp::v1::Response>, ApiError> {
    let (event, time) = reads
        .nearest(
            &session,
            &request.room_id,
            u64::from(request.ts.get()),
            towards(request.dir),
        )
        .await?;
    let time = MilliSecondsSinceUnixEpoch(UInt::try_from(time).unwrap_or(UInt::MAX));
    Ok(Ruma(get_event_by_timestamp::v1::Response::new(event, time)))
}

/// An event that one may not see is answered like one that does not exist.
pub(super) fn hiding(error: ReadError) -> ApiError {
    if error.is_refusal() {
        return ApiError::not_found("Event not found");
    }
    error.into()
}

/// An empty token is none: some clients send `from=`.
pub(in crate::http) fn token(token: Option<String>) -> Option<String> {
    token.filter(|token| !token.is_empty())
}

pub(super) fn towards(direction: Direction) -> Towards {
    match direction {
        Direction::Forward => Towards::Newer,
        Direction::Backward => Towards::Older,
    }
}

fn selection(filter: RoomEventFilter) -> Result<Selection, ApiError> {
    let lazy = LazyMembers::from(filter.lazy_load_options);
    Ok(Selection {
        with_senders: lazy != LazyMembers::All,
        filter: EventFilter::room(filter)?,
    })
}

pub(in crate::http) fn count(number: UInt) -> usize {
    usize::try_from(u64::from(number)).unwrap_or(usize::MAX)
}

/// A 200 whose body is not one of ruma's types. Events in it are copied as they are.
pub(in crate::http) fn json(answer: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(answer).map_err(|error| ApiError::internal(&error))?;
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}
