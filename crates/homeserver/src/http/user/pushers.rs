//! `GET /pushers`, `POST /pushers/set`.
//!
//! Specification: client-server API, "Push Notifications".

use axum::extract::State;
use homeserver_users::Devices;
use ruma::api::client::push::{PusherKind, get_pushers, set_pusher};

use crate::{
    app::{
        pushers::{NewPusher, Others, Pushers},
        session::Session,
    },
    http::{ApiError, Routes, Ruma},
};

/// What the address of a push gateway ends in.
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";

pub(super) fn routes() -> Routes {
    Routes::new().ruma(all).ruma(set)
}

async fn all(
    State(pushers): State<Pushers>,
    session: Session,
    Ruma(_): Ruma<get_pushers::v3::Request>,
) -> Result<Ruma<get_pushers::v3::Response>, ApiError> {
    let stored = pushers.of(session.user_number).await;
    let stored = stored.map_err(|error| ApiError::internal(&error))?;
    let stored = stored
        .iter()
        .filter_map(|json| serde_json::from_slice(json).ok());
    Ok(Ruma(get_pushers::v3::Response::new(stored.collect())))
}

async fn set(
    State(pushers): State<Pushers>,
    State(devices): State<Devices>,
    session: Session,
    Ruma(request): Ruma<set_pusher::v3::Request>,
) -> Result<Ruma<set_pusher::v3::Response>, ApiError> {
    match request.action {
        set_pusher::v3::PusherAction::Post(data) => {
            check(&data.pusher.kind)?;
            let json = serde_json::to_vec(&data.pusher);
            let json = json.map_err(|error| ApiError::internal(&error))?;
            let new = NewPusher {
                app_id: &data.pusher.ids.app_id,
                pushkey: &data.pusher.ids.pushkey,
                json: &json,
                others: if data.append {
                    Others::Keep
                } else {
                    Others::Remove
                },
            };
            pushers.set(&devices, &session, new).await?;
        }
        set_pusher::v3::PusherAction::Delete(ids) => {
            let user = session.user_number;
            pushers.remove(user, &ids.app_id, &ids.pushkey).await?;
        }
        _ => return Err(ApiError::invalid_param("Unknown action")),
    }
    Ok(Ruma(set_pusher::v3::Response::new()))
}

/// Only what this server could send to is taken.
fn check(kind: &PusherKind) -> Result<(), ApiError> {
    match kind {
        PusherKind::Http(http) => {
            let path = http.url.split(['?', '#']).next().unwrap_or_default();
            if !path.starts_with("https://") && !path.starts_with("http://") {
                return Err(ApiError::invalid_param("The `url` must be an HTTP address"));
            }
            if !path.ends_with(GATEWAY_PATH) {
                let message = format!("The `url` must end in {GATEWAY_PATH}");
                return Err(ApiError::invalid_param(message));
            }
            Ok(())
        }
        _ => Err(ApiError::invalid_param(
            "This server has no such kind of pusher",
        )),
    }
}
