//! `POST /createRoom` and `POST /rooms/{roomId}/upgrade`.
//!
//! Specification: client-server API, "Creation" and "Room upgrades".

use axum::extract::State;
use homeserver_rooms::{CreateRoom, InitialState, Preset, RoomAction, RoomAnswer, UpgradeRoom};
use ruma::{
    api::client::room::{
        Visibility,
        create_room::{self, v3::RoomPreset},
        upgrade_room,
    },
    events::AnyInitialStateEvent,
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::membership::addressee;
use crate::{
    app::{rooms::RoomChanges, session::Session},
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(create).ruma(upgrade)
}

async fn create(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<create_room::v3::Request>,
) -> Result<Ruma<create_room::v3::Response>, ApiError> {
    let addressees = request.invite_3pid.iter().cloned().map(addressee);
    let addressees: Vec<_> = addressees.collect();
    changes.check_addressees(&addressees)?;
    let is_direct = request.is_direct;
    let mut wanted = wanted_room(request)?;
    changes.introduce(&session.user, &mut wanted).await?;
    let action = RoomAction::Create(Box::new(wanted));
    match changes.act(&session, action).await? {
        RoomAnswer::Created { room, .. } => {
            changes
                .invite_by_addresses(&session, &room, (&addressees, is_direct))
                .await;
            Ok(Ruma(create_room::v3::Response::new(room)))
        }
        _ => Err(ApiError::unexpected_answer()),
    }
}

fn wanted_room(request: create_room::v3::Request) -> Result<CreateRoom, ApiError> {
    let published = match request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => return Err(ApiError::bad_json("visibility must be public or private")),
    };
    let initial_state = request.initial_state.iter().map(initial_state);
    Ok(CreateRoom {
        version: request.room_version,
        preset: request.preset.map(preset).transpose()?,
        published,
        alias_localpart: request.room_alias_name,
        name: request.name,
        topic: request.topic,
        invite: request.invite,
        is_direct: request.is_direct,
        initial_state: initial_state.collect::<Result<_, _>>()?,
        creation_content: request.creation_content.map(object).transpose()?,
        power_level_content_override: request
            .power_level_content_override
            .map(object)
            .transpose()?,
        ..CreateRoom::default()
    })
}

fn preset(preset: RoomPreset) -> Result<Preset, ApiError> {
    match preset {
        RoomPreset::PrivateChat => Ok(Preset::PrivateChat),
        RoomPreset::TrustedPrivateChat => Ok(Preset::TrustedPrivateChat),
        RoomPreset::PublicChat => Ok(Preset::PublicChat),
        other => Err(ApiError::bad_json(format!("There is no preset {other}"))),
    }
}

fn initial_state(event: &Raw<AnyInitialStateEvent>) -> Result<InitialState, ApiError> {
    #[derive(Deserialize)]
    struct Fields {
        #[serde(rename = "type")]
        event_type: String,
        #[serde(default)]
        state_key: String,
        content: Box<RawValue>,
    }
    // Missing fields of an inner object are malformed JSON, not missing parameters.
    let malformed = |error: serde_json::Error| ApiError::bad_json(error.to_string());
    let fields: Fields = serde_json::from_str(event.json().get()).map_err(malformed)?;
    check_object(&fields.content).map_err(malformed)?;
    Ok(InitialState {
        event_type: fields.event_type,
        state_key: fields.state_key,
        content: fields.content,
    })
}

/// The JSON of a value that must be an object.
fn object<T>(raw: Raw<T>) -> Result<Box<RawValue>, ApiError> {
    let json = raw.into_json();
    check_object(&json)?;
    Ok(json)
}

/// Fails unless the JSON is an object.
fn check_object(json: &RawValue) -> Result<(), serde_json::Error> {
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json.get())?;
    Ok(())
}

async fn upgrade(
    State(changes): State<RoomChanges>,
    session: Session,
    Ruma(request): Ruma<upgrade_room::v3::Request>,
) -> Result<Ruma<upgrade_room::v3::Response>, ApiError> {
    let action = RoomAction::Upgrade(UpgradeRoom {
        room: request.room_id,
        new_version: request.new_version,
        additional_creators: request.additional_creators,
        profile: changes.profile_of(&session.user).await?,
    });
    match changes.act(&session, action).await? {
        RoomAnswer::Upgraded { replacement, .. } => {
            Ok(Ruma(upgrade_room::v3::Response::new(replacement)))
        }
        _ => Err(ApiError::unexpected_answer()),
    }
}
