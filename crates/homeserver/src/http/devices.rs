//! A user's own devices.
//!
//! Specification: client-server API, "Device Management".

use axum::{extract::State, response::Response};
use homeserver_users::{Device, Devices, MAX_DEVICES};
use ruma::{
    OwnedDeviceId,
    api::client::device::{delete_device, delete_devices, get_device, get_devices, update_device},
};
use serde::Serialize;
use serde_json::json;

use super::{ApiError, Interactive, Routes, Ruma, json_answer, login::OWN_PASSWORD};
use crate::app::{
    authentication::Authenticator,
    session::{Session, Sessions},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .ruma(devices)
        .ruma(device)
        .ruma(update)
        .ruma(delete)
        .ruma(delete_several)
}

/// A device on the wire. ruma's own type writes what is not known as `null`, which clients do not
/// expect.
#[derive(Serialize)]
struct Shown {
    device_id: OwnedDeviceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_ts: Option<u64>,
}

impl From<Device> for Shown {
    fn from(device: Device) -> Self {
        let (last_seen_ip, last_seen_ts) = match device.last_seen {
            Some(seen) => (seen.ip, Some(seen.at)),
            None => (None, None),
        };
        Self {
            device_id: device.id,
            display_name: device.display_name,
            last_seen_ip,
            last_seen_ts,
        }
    }
}

async fn devices(
    State(devices): State<Devices>,
    session: Session,
    Ruma(_): Ruma<get_devices::v3::Request>,
) -> Result<Response, ApiError> {
    let devices = devices.all(session.user_number).await?;
    let devices: Vec<Shown> = devices.into_iter().map(Shown::from).collect();
    Ok(json_answer(&json!({ "devices": devices })))
}

async fn device(
    State(devices): State<Devices>,
    session: Session,
    Ruma(request): Ruma<get_device::v3::Request>,
) -> Result<Response, ApiError> {
    let device = devices.one(session.user_number, &request.device_id).await?;
    let device = device.ok_or_else(|| ApiError::not_found("No such device"))?;
    Ok(json_answer(&json!(Shown::from(device))))
}

async fn update(
    State(devices): State<Devices>,
    session: Session,
    Ruma(request): Ruma<update_device::v3::Request>,
) -> Result<Ruma<update_device::v3::Response>, ApiError> {
    if let Some(name) = request.display_name.as_deref() {
        devices
            .rename(session.user_number, &request.device_id, Some(name))
            .await?;
    } else {
        // Nothing is to change, but the device must be there.
        let device = devices.one(session.user_number, &request.device_id).await?;
        device.ok_or_else(|| ApiError::not_found("No such device"))?;
    }
    Ok(Ruma(update_device::v3::Response::new()))
}

async fn delete(
    State(authenticator): State<Authenticator>,
    State(sessions): State<Sessions>,
    session: Session,
    interactive: Interactive<delete_device::v3::Request>,
) -> Result<Ruma<delete_device::v3::Response>, ApiError> {
    let operation = interactive.operation(Some(&session));
    authenticator
        .require(&operation, OWN_PASSWORD, interactive.proof.as_ref())
        .await?;
    sessions
        .end_devices(session.user_number, &[interactive.request.device_id])
        .await?;
    Ok(Ruma(delete_device::v3::Response::new()))
}

async fn delete_several(
    State(authenticator): State<Authenticator>,
    State(sessions): State<Sessions>,
    session: Session,
    interactive: Interactive<delete_devices::v3::Request>,
) -> Result<Ruma<delete_devices::v3::Response>, ApiError> {
    if interactive.request.devices.len() > MAX_DEVICES {
        let message = format!("At most {MAX_DEVICES} devices at once");
        return Err(ApiError::invalid_param(message));
    }
    let operation = interactive.operation(Some(&session));
    authenticator
        .require(&operation, OWN_PASSWORD, interactive.proof.as_ref())
        .await?;
    sessions
        .end_devices(session.user_number, &interactive.request.devices)
        .await?;
    Ok(Ruma(delete_devices::v3::Response::new()))
}
