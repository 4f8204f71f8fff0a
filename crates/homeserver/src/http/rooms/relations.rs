//! Events that relate to an event: replies, edits, reactions, threads.
//!
//! Specification: client-server API, "Relationships API".

use axum::{extract::State, response::Response};
use ruma::{
    OwnedEventId, RoomId, UInt,
    api::{
        Direction,
        client::relations::{
            get_relating_events, get_relating_events_with_rel_type,
            get_relating_events_with_rel_type_and_event_type,
        },
    },
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::history::{count, hiding, json, token, towards};
use crate::{
    app::{
        rooms::{RelationRequest, RoomReads},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(all)
        .ruma(of_relation_type)
        .ruma(of_event_type)
}

/// The answer of all three forms.
#[derive(Debug, Serialize)]
struct RelationsAnswer {
    chunk: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recursion_depth: Option<u64>,
}

/// What the three forms ask for in their queries.
struct Query {
    from: Option<String>,
    to: Option<String>,
    dir: Direction,
    limit: Option<UInt>,
    recurse: bool,
}

/// The query parameters of a request, which ruma declares three times.
macro_rules! query {
    ($request:ident) => {
        Query {
            from: $request.from,
            to: $request.to,
            dir: $request.dir,
            limit: $request.limit,
            recurse: $request.recurse,
        }
    };
}

async fn all(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_relating_events::v1::Request>,
) -> Result<Response, ApiError> {
    let relation_type = None;
    let event_type = None;
    let wanted = wanted(request.event_id, relation_type, event_type, query!(request));
    answer(&reads, &session, &request.room_id, wanted).await
}

async fn of_relation_type(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_relating_events_with_rel_type::v1::Request>,
) -> Result<Response, ApiError> {
    let relation_type = Some(request.rel_type.to_string());
    let event_type = None;
    let wanted = wanted(request.event_id, relation_type, event_type, query!(request));
    answer(&reads, &session, &request.room_id, wanted).await
}

async fn of_event_type(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_relating_events_with_rel_type_and_event_type::v1::Request>,
) -> Result<Response, ApiError> {
    let relation_type = Some(request.rel_type.to_string());
    let event_type = Some(request.event_type.to_string());
    let wanted = wanted(request.event_id, relation_type, event_type, query!(request));
    answer(&reads, &session, &request.room_id, wanted).await
}

fn wanted(
    target: OwnedEventId,
    relation_type: Option<String>,
    event_type: Option<String>,
    query: Query,
) -> RelationRequest {
    RelationRequest {
        target,
        relation_type,
        event_type,
        from: token(query.from),
        to: token(query.to),
        towards: towards(query.dir),
        limit: query.limit.map(count),
        recurse: query.recurse,
    }
}

async fn answer(
    reads: &RoomReads,
    session: &Session,
    room: &RoomId,
    wanted: RelationRequest,
) -> Result<Response, ApiError> {
    let found = reads
        .relations(session, room, wanted)
        .await
        .map_err(hiding)?;
    json(&RelationsAnswer {
        chunk: found.events,
        next_batch: found.next,
        prev_batch: found.previous,
        recursion_depth: found.recursion_depth,
    })
}
