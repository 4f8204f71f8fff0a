//! Sending events, with a state key and without, and redacting them.
//!
//! Specification: client-server API, "Sending events to a room", "Redactions".

use axum::extract::State;
use homeserver_rooms::{NewEvent, RoomAction, RoomAnswer};
use ruma::{
    OwnedEventId,
    api::client::{message::send_message_event, redact::redact_event, state::send_state_event},
};

use crate::{
    app::{
        rooms::{RoomChanges, Transaction},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(send_message)
        .ruma(send_state)
        // An empty state key, with the slash and without.
        .ruma_also(
            &[
                "/_matrix/client/r0/rooms/{room}/state/{type}",
                "/_matrix/client/r0/rooms/{room}/state/{type}/",
                "/_matrix/client/v3/rooms/{room}/state/{type}",
                "/_matrix/client/v3/rooms/{room}/state/{type}/",
            ],
            send_state,
        )
        .ruma(redact)
}

async fn send_message(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<send_message_event::v3::Request>,
) -> Result<Ruma<send_message_event::v3::Response>, ApiError> {
    let event_type = request.event_type.to_string();
    let transaction = Transaction {
        endpoint: format!("PUT send/{}/{event_type}", request.room_id),
        id: request.txn_id.to_string(),
    };
    let event = NewEvent {
        event_type,
        state_key: None,
        content: request.body.into_json(),
        // Only application services may say when an event was made.
        timestamp: None,
    };
    let answer = changes
        .send(&session, request.room_id, event, Some(transaction))
        .await?;
    let event = sent(answer)?;
    Ok(Ruma(send_message_event::v3::Response::new(event)))
}

async fn send_state(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<send_state_event::v3::Request>,
) -> Result<Ruma<send_state_event::v3::Response>, ApiError> {
    let event = NewEvent {
        event_type: request.event_type.to_string(),
        state_key: Some(request.state_key),
        content: request.body.into_json(),
        timestamp: None,
    };
    let answer = changes.send(&session, request.room_id, event, None).await?;
    Ok(Ruma(send_state_event::v3::Response::new(sent(answer)?)))
}

async fn redact(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<redact_event::v3::Request>,
) -> Result<Ruma<redact_event::v3::Response>, ApiError> {
    let transaction = Transaction {
        endpoint: format!("PUT redact/{}/{}", request.room_id, request.event_id),
        id: request.txn_id.to_string(),
    };
    let action = RoomAction::Redact {
        room: request.room_id,
        target: request.event_id,
        reason: request.reason,
    };
    let answer = changes.act_once(&session, transaction, action).await?;
    Ok(Ruma(redact_event::v3::Response::new(sent(answer)?)))
}

fn sent(answer: RoomAnswer) -> Result<OwnedEventId, ApiError> {
    match answer {
        RoomAnswer::Sent { event, .. } => Ok(event),
        _ => Err(ApiError::unexpected_answer()),
    }
}
