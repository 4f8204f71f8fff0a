//! Reading the state of a room: `/state`, `/members`, `/joined_members`.
//!
//! Specification: client-server API, "Getting events for a room".

use axum::extract::State;
use ruma::{
    api::client::{
        membership::{get_member_events, joined_members},
        state::{
            get_state_event_for_key::{self, v3::StateEventFormat},
            get_state_events,
        },
    },
    serde::Raw,
};

use super::history::token;
use crate::{
    app::{
        rooms::{MemberSelection, RoomReads},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(all)
        .ruma(one)
        // An empty state key, with the slash and without.
        .ruma_also(
            &[
                "/_matrix/client/r0/rooms/{room}/state/{type}",
                "/_matrix/client/r0/rooms/{room}/state/{type}/",
                "/_matrix/client/v3/rooms/{room}/state/{type}",
                "/_matrix/client/v3/rooms/{room}/state/{type}/",
            ],
            one,
        )
        .ruma(members)
        .ruma(joined)
}

async fn all(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_state_events::v3::Request>,
) -> Result<Ruma<get_state_events::v3::Response>, ApiError> {
    let state = reads.state(&session, &request.room_id).await?;
    let state = state.into_iter().map(Raw::from_json).collect();
    Ok(Ruma(get_state_events::v3::Response::new(state)))
}

async fn one(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_state_event_for_key::v3::Request>,
) -> Result<Ruma<get_state_event_for_key::v3::Response>, ApiError> {
    let event_type = request.event_type.to_string();
    let entry = reads
        .state_entry(&session, &request.room_id, &event_type, &request.state_key)
        .await?;
    let json = match request.format {
        StateEventFormat::Event => entry.event,
        _ => entry.content,
    };
    Ok(Ruma(get_state_event_for_key::v3::Response::new(json)))
}

async fn members(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<get_member_events::v3::Request>,
) -> Result<Ruma<get_member_events::v3::Response>, ApiError> {
    let selection = MemberSelection {
        at: token(request.at),
        only: request.membership.map(|membership| membership.to_string()),
        not: request
            .not_membership
            .map(|membership| membership.to_string()),
    };
    let members = reads.members(&session, &request.room_id, selection).await?;
    let members = members.into_iter().map(Raw::from_json).collect();
    Ok(Ruma(get_member_events::v3::Response::new(members)))
}

async fn joined(
    State(reads): State<RoomReads>,
    session: Session,
    Ruma(request): Ruma<joined_members::v3::Request>,
) -> Result<Ruma<joined_members::v3::Response>, ApiError> {
    let members = reads.joined_members(&session, &request.room_id).await?;
    let members = members.into_iter().map(|(user, profile)| {
        let mut member = joined_members::v3::RoomMember::new();
        member.display_name = profile.displayname;
        member.avatar_url = profile.avatar_url.map(Into::into);
        (user, member)
    });
    Ok(Ruma(joined_members::v3::Response::new(members.collect())))
}
