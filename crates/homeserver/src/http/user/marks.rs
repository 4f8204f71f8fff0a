//! Receipts, read markers, typing.
//!
//! Specification: client-server API, "Receipts", "Fully read markers", "Typing Notifications".

use std::time::Duration;

use axum::extract::{Path, State};
use homeserver_users::ReceiptKind;
use ruma::{
    OwnedRoomId, OwnedUserId,
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType},
        typing::create_typing_event,
    },
    events::receipt::ReceiptThread,
};
use serde::Deserialize;

use super::caller;
use crate::{
    app::{
        receipts::{RoomMarks, TypingNotice},
        session::Session,
    },
    http::{ApiError, Routes, Ruma, Unparsed},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(receipt).ruma(read_markers).ruma(typing)
}

async fn receipt(
    State(marks): State<RoomMarks>,
    session: Session,
    Ruma(request): Ruma<create_receipt::v3::Request>,
) -> Result<Ruma<create_receipt::v3::Response>, ApiError> {
    let (room, event, thread) = (&request.room_id, &request.event_id, request.thread);
    let kind = match request.receipt_type {
        ReceiptType::Read => ReceiptKind::Public,
        ReceiptType::ReadPrivate => ReceiptKind::Private,
        ReceiptType::FullyRead if thread != ReceiptThread::Unthreaded => {
            let message = "`m.fully_read` has no `thread_id`";
            return Err(ApiError::invalid_param(message));
        }
        ReceiptType::FullyRead => {
            marks.fully_read(&session, room, event).await?;
            return Ok(Ruma(create_receipt::v3::Response::new()));
        }
        other => {
            let message = format!("There is no receipt type {}", other.as_str());
            return Err(ApiError::invalid_param(message));
        }
    };
    marks.receipt(&session, room, event, kind, thread).await?;
    Ok(Ruma(create_receipt::v3::Response::new()))
}

async fn read_markers(
    State(marks): State<RoomMarks>,
    session: Session,
    Ruma(request): Ruma<set_read_marker::v3::Request>,
) -> Result<Ruma<set_read_marker::v3::Response>, ApiError> {
    let room = &request.room_id;
    let thread = ReceiptThread::Unthreaded;
    if let Some(event) = &request.fully_read {
        marks.fully_read(&session, room, event).await?;
    }
    if let Some(event) = &request.read_receipt {
        let kind = ReceiptKind::Public;
        marks
            .receipt(&session, room, event, kind, thread.clone())
            .await?;
    }
    if let Some(event) = &request.private_read_receipt {
        let kind = ReceiptKind::Private;
        marks.receipt(&session, room, event, kind, thread).await?;
    }
    Ok(Ruma(set_read_marker::v3::Response::new()))
}

/// The body; `timeout` may be left out.
#[derive(Debug, Deserialize)]
struct TypingBody {
    typing: bool,
    timeout: Option<u64>,
}

async fn typing(
    State(marks): State<RoomMarks>,
    Path((room, user)): Path<(OwnedRoomId, OwnedUserId)>,
    session: Session,
    request: Unparsed<create_typing_event::v3::Request>,
) -> Result<Ruma<create_typing_event::v3::Response>, ApiError> {
    caller(&session, &user)?;
    let body: TypingBody = request.json()?;
    let notice = if body.typing {
        TypingNotice::Begins(body.timeout.map(Duration::from_millis))
    } else {
        TypingNotice::Ends
    };
    marks.typing(&session, &room, notice).await?;
    Ok(Ruma(create_typing_event::v3::Response::new()))
}
