//! A user's own devices.
//!
//! Specification: client-server API, "Device Management".

use axum::extract::State;
use homeserver_users::{Device, Devices};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::device::{
        self, delete_device, delete_devices, get_device, get_devices, update_device,
    },
};

use super::{ApiError, Interactive, Routes, Ruma, login::OWN_PASSWORD};
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

fn shown(device: Device) -> device::Device {
    let mut shown = device::Device::new(device.id);
    shown.display_name = device.display_name;
    if let Some(seen) = device.last_seen {
        shown.last_seen_ip = seen.ip;
        shown.last_seen_ts = UInt::new(seen.at).map(MilliSecondsSinceUnixEpoch);
    }
    shown
}

async fn devices(
    State(devices): State<Devices>,
    session: Session,
    Ruma(_): Ruma<get_devices::v3::Request>,
) -> Result<Ruma<get_devices::v3::Response>, ApiError> {
    let devices = devices.all(session.user_number).await?;
    let devices = devices.into_iter().map(shown).collect();
    Ok(Ruma(get_devices::v3::Response::new(devices)))
}

async fn device(
    State(devices): State<Devices>,
    session: Session,
    Ruma(request): Ruma<get_device::v3::Request>,
) -> Result<Ruma<get_device::v3::Response>, ApiError> {
    let device = devices.one(session.user_number, &request.device_id).await?;
    let device = device.ok_or_else(|| ApiError::not_found("No such device"))?;
    Ok(Ruma(get_device::v3::Response::new(shown(device))))
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
    let operation = interactive.operation(Some(&session));
    authenticator
        .require(&operation, OWN_PASSWORD, interactive.proof.as_ref())
        .await?;
    sessions
        .end_devices(session.user_number, &interactive.request.devices)
        .await?;
    Ok(Ruma(delete_devices::v3::Response::new()))
}
