//! Users of this server are invited to rooms that are elsewhere.
//!
//! Specification: server-server API, "Inviting to a room".

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::put,
};
use homeserver_events::Pdu;
use homeserver_federation::membership::ReceivedInvite;
use http::header;
use ruma::{EventId, RoomId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::SignedBody;
use crate::{
    app::rooms::RoomChanges,
    http::{ApiError, Counted, Routes},
};

pub(super) fn routes() -> Routes {
    let path =
        |version: &str| format!("/_matrix/federation/{version}/invite/{{roomId}}/{{eventId}}");
    Routes::new()
        .raw(&path("v1"), Counted::Within, put(invite_v1))
        .raw(&path("v2"), Counted::Within, put(invite_v2))
}

#[derive(Deserialize)]
struct Body {
    room_version: String,
    event: Box<RawValue>,
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

/// What of an event in the first version's body is looked at.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    unsigned: Unsigned,
}

#[derive(Default, Deserialize)]
struct Unsigned {
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

/// Bytes of an invite with its stripped state at most: each entry costs more where it is read.
const MAX_BYTES: usize = 1024 * 1024;

fn check_size(signed: &SignedBody) -> Result<(), ApiError> {
    if signed.body.bytes.len() > MAX_BYTES {
        let message = format!("An invite has at most {MAX_BYTES} bytes");
        return Err(ApiError::too_large(message));
    }
    Ok(())
}

/// Room and event as the path names them.
type Named = Path<(String, String)>;

async fn invite_v2(
    State(changes): State<RoomChanges>,
    named: Named,
    signed: SignedBody,
) -> Result<Response, ApiError> {
    check_size(&signed)?;
    let body: Body = serde_json::from_slice(&signed.body.bytes)?;
    let event = receive(&changes, named, signed, body).await?;
    Ok(answer(format!("{{\"event\":{}}}", json(&event))))
}

/// The first version says no room version, and is for rooms of versions 1 and 2 only, whose events
/// have one form.
async fn invite_v1(
    State(changes): State<RoomChanges>,
    named: Named,
    signed: SignedBody,
) -> Result<Response, ApiError> {
    check_size(&signed)?;
    let read: Event = serde_json::from_slice(&signed.body.bytes)?;
    let body = Body {
        room_version: "1".to_owned(),
        event: serde_json::from_slice(&signed.body.bytes)?,
        invite_room_state: read.unsigned.invite_room_state,
    };
    let event = receive(&changes, named, signed, body).await?;
    Ok(answer(format!("[200,{{\"event\":{}}}]", json(&event))))
}

async fn receive(
    changes: &RoomChanges,
    Path((room, event_id)): Named,
    signed: SignedBody,
    body: Body,
) -> Result<Pdu, ApiError> {
    let room = RoomId::parse(room);
    let event_id = EventId::parse(event_id);
    let invite = ReceivedInvite {
        origin: signed.origin.clone(),
        room: room.map_err(|_| ApiError::invalid_param("The path does not name a room"))?,
        event_id: event_id
            .map_err(|_| ApiError::invalid_param("The path does not name an event"))?,
        version: body.room_version,
        event: body.event,
        room_state: body.invite_room_state,
    };
    Ok(changes.receive_invite(invite).await?)
}

fn json(event: &Pdu) -> String {
    String::from_utf8_lossy(event.json()).into_owned()
}

fn answer(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}
