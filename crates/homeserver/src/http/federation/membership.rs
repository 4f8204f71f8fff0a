//! Users of other servers come into rooms, knock, and leave.
//!
//! Specification: server-server API, "Joining Rooms", "Knocking upon a room", "Leaving Rooms".

use axum::{
    body::Body,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
    routing::put,
};
use homeserver_events::Step;
use homeserver_federation::{
    Resident,
    resident::{Form, Taken, knock_answer},
};
use http::header;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId,
    api::federation::membership::{prepare_join_event, prepare_knock_event, prepare_leave_event},
};
use serde::Deserialize;

use super::{Signed, SignedBody};
use crate::http::{ApiError, Counted, Routes};

pub(super) fn routes() -> Routes {
    let path = |version: &str, endpoint: &str| {
        format!("/_matrix/federation/{version}/{endpoint}/{{roomId}}/{{eventId}}")
    };
    let within = Counted::Within;
    Routes::new()
        .ruma(make_join)
        .ruma(make_leave)
        .ruma(make_knock)
        .raw(&path("v1", "send_join"), within, put(send_join_v1))
        .raw(&path("v2", "send_join"), within, put(send_join_v2))
        .raw(&path("v1", "send_leave"), within, put(send_leave_v1))
        .raw(&path("v2", "send_leave"), within, put(send_leave_v2))
        .raw(&path("v1", "send_knock"), within, put(send_knock))
}

async fn make_join(
    State(resident): State<Resident>,
    Signed { origin, request }: Signed<prepare_join_event::v1::Request>,
) -> Result<Response, ApiError> {
    let versions: Vec<_> = request.ver.iter().map(ToString::to_string).collect();
    let step = (Step::Join, &*request.room_id, &*request.user_id);
    let template = resident.template(&origin, step, Some(&versions)).await?;
    Ok(template_answer(template.version.as_str(), &template.event))
}

async fn make_knock(
    State(resident): State<Resident>,
    Signed { origin, request }: Signed<prepare_knock_event::v1::Request>,
) -> Result<Response, ApiError> {
    let versions: Vec<_> = request.ver.iter().map(ToString::to_string).collect();
    let step = (Step::Knock, &*request.room_id, &*request.user_id);
    let template = resident.template(&origin, step, Some(&versions)).await?;
    Ok(template_answer(template.version.as_str(), &template.event))
}

async fn make_leave(
    State(resident): State<Resident>,
    Signed { origin, request }: Signed<prepare_leave_event::v1::Request>,
) -> Result<Response, ApiError> {
    let step = (Step::Leave, &*request.room_id, &*request.user_id);
    let template = resident.template(&origin, step, None).await?;
    Ok(template_answer(template.version.as_str(), &template.event))
}

/// Room and event as the path names them.
type Named = Path<(String, String)>;

fn parsed(Path((room, event)): Named) -> Result<(OwnedRoomId, OwnedEventId), ApiError> {
    let room = RoomId::parse(room);
    let room = room.map_err(|_| ApiError::invalid_param("The path does not name a room"))?;
    let event = EventId::parse(event);
    let event = event.map_err(|_| ApiError::invalid_param("The path does not name an event"))?;
    Ok((room, event))
}

async fn take(
    resident: &Resident,
    step: Step,
    named: Named,
    SignedBody { origin, body }: SignedBody,
) -> Result<Taken, ApiError> {
    let (room, event) = parsed(named)?;
    let taken = resident.take(&origin, (step, &room, &event), &body.bytes);
    Ok(taken.await?)
}

#[derive(Deserialize)]
struct JoinOptions {
    #[serde(default)]
    omit_members: bool,
}

async fn send_join_v1(
    State(resident): State<Resident>,
    named: Named,
    body: SignedBody,
) -> Result<Response, ApiError> {
    join(&resident, named, &body, (false, Form::Pair)).await
}

async fn send_join_v2(
    State(resident): State<Resident>,
    named: Named,
    Query(options): Query<JoinOptions>,
    body: SignedBody,
) -> Result<Response, ApiError> {
    let form = (options.omit_members, Form::Object);
    join(&resident, named, &body, form).await
}

async fn join(
    resident: &Resident,
    named: Named,
    SignedBody { origin, body }: &SignedBody,
    form: (bool, Form),
) -> Result<Response, ApiError> {
    let (room, event) = parsed(named)?;
    let taken = resident.take_join(origin, (&room, &event), &body.bytes, form);
    let answer = Body::from_stream(taken.await?);
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

async fn send_leave_v1(
    State(resident): State<Resident>,
    named: Named,
    body: SignedBody,
) -> Result<Response, ApiError> {
    take(&resident, Step::Leave, named, body).await?;
    Ok(json("[200,{}]".to_owned()))
}

async fn send_leave_v2(
    State(resident): State<Resident>,
    named: Named,
    body: SignedBody,
) -> Result<Response, ApiError> {
    take(&resident, Step::Leave, named, body).await?;
    Ok(json("{}".to_owned()))
}

async fn send_knock(
    State(resident): State<Resident>,
    named: Named,
    body: SignedBody,
) -> Result<Response, ApiError> {
    let taken = take(&resident, Step::Knock, named, body).await?;
    let state = resident.rooms().knock_state(&taken.room).await?;
    Ok(json(knock_answer(&state)))
}

fn template_answer(version: &str, event: &str) -> Response {
    json(format!(
        "{{\"room_version\":\"{version}\",\"event\":{event}}}"
    ))
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
