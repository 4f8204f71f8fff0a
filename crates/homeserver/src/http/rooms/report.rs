//! Reports of rooms, events and users, to be read by the administrators.
//!
//! Specification: client-server API, "Reporting content".

use axum::extract::State;
use ruma::api::client::{
    reporting::report_user,
    room::{report_content, report_room},
};

use crate::{
    app::{
        reports::{Reported, Reports},
        rooms::RoomReads,
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(room).ruma(event).ruma(user)
}

async fn room(
    State(reads): State<RoomReads>,
    State(reports): State<Reports>,
    session: Session,
    Ruma(request): Ruma<report_room::v3::Request>,
) -> Result<Ruma<report_room::v3::Response>, ApiError> {
    if !reads.exists(&request.room_id).await? {
        return Err(ApiError::not_found("The room was not found"));
    }
    let what = Reported::Room(request.room_id);
    reports.file(&session.user, what, request.reason).await?;
    Ok(Ruma(report_room::v3::Response::new()))
}

async fn event(
    State(reads): State<RoomReads>,
    State(reports): State<Reports>,
    session: Session,
    Ruma(request): Ruma<report_content::v3::Request>,
) -> Result<Ruma<report_content::v3::Response>, ApiError> {
    if !reads
        .may_report(&session, &request.room_id, &request.event_id)
        .await?
    {
        let message = "The event was not found or you are not joined to the room";
        return Err(ApiError::not_found(message));
    }
    let what = Reported::Event(request.room_id, request.event_id);
    let reason = request.reason.unwrap_or_default();
    reports.file(&session.user, what, reason).await?;
    Ok(Ruma(report_content::v3::Response::new()))
}

async fn user(
    State(reports): State<Reports>,
    session: Session,
    Ruma(request): Ruma<report_user::v3::Request>,
) -> Result<Ruma<report_user::v3::Response>, ApiError> {
    let what = Reported::User(request.user_id);
    reports.file(&session.user, what, request.reason).await?;
    Ok(Ruma(report_user::v3::Response::new()))
}
