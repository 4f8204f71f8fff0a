//! `PUT` and `GET /presence/{userId}/status`.
//!
//! Specification: client-server API, "Presence".

use std::sync::Arc;

use axum::extract::State;
use homeserver_rooms::Rooms;
use homeserver_users::Users;
use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};

use super::caller;
use crate::{
    app::{acquaintance::share_a_room, session::Session},
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(set).ruma(read)
}

async fn set(
    State(users): State<Users>,
    session: Session,
    Ruma(request): Ruma<set_presence::v3::Request>,
) -> Result<Ruma<set_presence::v3::Response>, ApiError> {
    let user = caller(&session, &request.user_id)?;
    let known = [
        PresenceState::Online,
        PresenceState::Offline,
        PresenceState::Unavailable,
    ];
    if !known.contains(&request.presence) {
        return Err(ApiError::invalid_param("No such state of presence"));
    }
    users
        .presence
        .set(user, request.presence, request.status_msg);
    Ok(Ruma(set_presence::v3::Response::new()))
}

async fn read(
    State(users): State<Users>,
    State(rooms): State<Arc<Rooms>>,
    session: Session,
    Ruma(request): Ruma<get_presence::v3::Request>,
) -> Result<Ruma<get_presence::v3::Response>, ApiError> {
    let unknown = || ApiError::not_found("Nothing is known of this user");
    let number = if rooms.is_local(&request.user_id) {
        let account = users.accounts.by_id(&request.user_id).await?;
        let account = account.filter(homeserver_users::Account::is_active);
        account.ok_or_else(unknown)?.number
    } else {
        let number = users.known_number(&request.user_id).await?;
        number.ok_or_else(unknown)?
    };
    if number != session.user_number
        && !share_a_room(&rooms, &session.user, &request.user_id).await?
    {
        return Err(ApiError::forbidden("You share no room with this user"));
    }
    let Some(presence) = users.presence.of(number) else {
        return Ok(Ruma(get_presence::v3::Response::new(
            PresenceState::Offline,
        )));
    };
    let mut response = get_presence::v3::Response::new(presence.state);
    response.status_msg = presence.status;
    response.currently_active = Some(presence.currently_active);
    response.last_active_ago = presence.last_active_ago;
    Ok(Ruma(response))
}
