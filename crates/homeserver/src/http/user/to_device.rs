//! `PUT /sendToDevice/{eventType}/{txnId}`.
//!
//! Messages for users of other servers are queued for those; without federation they are dropped.
//!
//! Specification: client-server API, "Send-to-Device messaging".

use std::collections::BTreeMap;

use axum::extract::State;
use homeserver_federation::Federation;
use homeserver_users::{Recipient, ToDeviceRequest, Transaction, Users};
use ruma::{api::client::to_device::send_event_to_device, to_device::DeviceIdOrAllDevices};

use crate::{
    app::session::Session,
    http::{ApiError, Routes, Ruma},
};

pub(super) fn routes() -> Routes {
    Routes::new().ruma(send)
}

/// Users and devices that do not exist get nothing, and the sender is not told: that would say who
/// does.
async fn send(
    State(users): State<Users>,
    State(federation): State<Federation>,
    session: Session,
    Ruma(request): Ruma<send_event_to_device::v3::Request>,
) -> Result<Ruma<send_event_to_device::v3::Response>, ApiError> {
    let mut contents = request.messages.values().flat_map(BTreeMap::values);
    if !contents.all(|content| content.json().get().starts_with('{')) {
        return Err(ApiError::bad_json("The content of a message is an object"));
    }
    let (mut messages, mut remote) = (BTreeMap::new(), BTreeMap::new());
    for (user, of_user) in request.messages {
        let of_user = of_user.into_iter().map(|(device, content)| {
            let recipient = match device {
                DeviceIdOrAllDevices::AllDevices => Recipient::AllDevices,
                DeviceIdOrAllDevices::DeviceId(device) => Recipient::Device(device),
            };
            (recipient, content.into_json())
        });
        if user.server_name() != session.user.server_name() {
            remote.insert(user, of_user.collect());
        } else if let Some(number) = users.known_number(&user).await? {
            messages.insert(number, of_user.collect());
        }
    }
    if !federation.enabled {
        remote.clear();
    }
    users
        .inbox
        .send(&ToDeviceRequest {
            sender: session.user,
            event_type: request.event_type.to_string(),
            messages,
            remote,
            transaction: Some(Transaction::Client(
                session.device_number,
                request.txn_id.to_string(),
            )),
        })
        .await?;
    Ok(Ruma(send_event_to_device::v3::Response::new()))
}
