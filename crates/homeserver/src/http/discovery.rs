//! What a client asks before and right after it logs in: versions, capabilities, `.well-known`,
//! and what this server has none of. Also the page that a browser gets.

use std::{collections::BTreeMap, sync::Arc};

use axum::{extract::State, response::IntoResponse, routing::get};
use ruma::{
    RoomVersionId,
    api::client::{
        discovery::{
            discover_homeserver::{self, HomeserverInfo},
            get_capabilities::{
                self,
                v3::{
                    Capabilities, ChangePasswordCapability, GetLoginTokenCapability,
                    ProfileFieldsCapability, RoomVersionStability, RoomVersionsCapability,
                    ThirdPartyIdChangesCapability,
                },
            },
            get_supported_versions,
        },
        thirdparty::get_protocols,
        voip::get_turn_server_info,
    },
};
use serde_json::json;

use super::{ApiError, Counted, Routes, Ruma, json_answer};
use crate::{
    app::{limits::LimitClass, session::Session},
    config::{RoomsConfig, WellKnownConfig},
};

/// The versions whose changes this server knows. Shipped clients still ask for the old ones.
const VERSIONS: [&str; 19] = [
    "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8",
    "v1.9", "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16",
];

/// What shipped clients look for under the name it had before it was in a version.
const FEATURES: [&str; 5] = [
    "org.matrix.e2e_cross_signing",
    "org.matrix.msc2285.stable",
    "org.matrix.msc3916.stable",
    "org.matrix.msc4222",
    "uk.tcpip.msc4133.stable",
];

pub(super) fn routes() -> Routes {
    let counted = Counted::As(LimitClass::Other);
    Routes::new()
        .ruma(versions)
        .ruma(capabilities)
        .ruma(well_known_client)
        .ruma(turn_server)
        .ruma(third_party_protocols)
        .raw(
            "/.well-known/matrix/server",
            counted,
            get(well_known_server),
        )
        .raw(
            "/.well-known/matrix/support",
            counted,
            get(well_known_support),
        )
}

async fn versions(
    _session: Option<Session>,
    Ruma(_): Ruma<get_supported_versions::Request>,
) -> Result<Ruma<get_supported_versions::Response>, ApiError> {
    let versions = VERSIONS.map(str::to_owned).to_vec();
    let mut response = get_supported_versions::Response::new(versions);
    response.unstable_features = FEATURES.map(|feature| (feature.to_owned(), true)).into();
    Ok(Ruma(response))
}

async fn capabilities(
    State(rooms): State<Arc<RoomsConfig>>,
    _session: Session,
    Ruma(_): Ruma<get_capabilities::v3::Request>,
) -> Result<Ruma<get_capabilities::v3::Response>, ApiError> {
    let versions = [
        RoomVersionId::V1,
        RoomVersionId::V2,
        RoomVersionId::V3,
        RoomVersionId::V4,
        RoomVersionId::V5,
        RoomVersionId::V6,
        RoomVersionId::V7,
        RoomVersionId::V8,
        RoomVersionId::V9,
        RoomVersionId::V10,
        RoomVersionId::V11,
        RoomVersionId::V12,
    ];
    let available: BTreeMap<_, _> = versions
        .map(|version| (version, RoomVersionStability::Stable))
        .into();
    let mut capabilities = Capabilities::new();
    capabilities.change_password = ChangePasswordCapability::new(true);
    capabilities.room_versions =
        RoomVersionsCapability::new(rooms.default_version.clone(), available);
    capabilities.thirdparty_id_changes = ThirdPartyIdChangesCapability::new(false);
    capabilities.get_login_token = GetLoginTokenCapability::new(true);
    capabilities.profile_fields = Some(ProfileFieldsCapability::new(true));
    Ok(Ruma(get_capabilities::v3::Response::new(capabilities)))
}

async fn well_known_client(
    State(well_known): State<Arc<WellKnownConfig>>,
    Ruma(_): Ruma<discover_homeserver::Request>,
) -> Result<Ruma<discover_homeserver::Response>, ApiError> {
    let base_url = well_known.client_base_url.clone();
    let base_url = base_url.ok_or_else(|| ApiError::not_found("Not configured"))?;
    let homeserver = HomeserverInfo::new(base_url);
    Ok(Ruma(discover_homeserver::Response::new(homeserver)))
}

async fn well_known_server(
    State(well_known): State<Arc<WellKnownConfig>>,
) -> Result<impl IntoResponse, ApiError> {
    let server = well_known.server.as_ref();
    let server = server.ok_or_else(|| ApiError::not_found("Not configured"))?;
    Ok(json_answer(&json!({ "m.server": server })))
}

async fn well_known_support(
    State(well_known): State<Arc<WellKnownConfig>>,
) -> Result<impl IntoResponse, ApiError> {
    let contact = well_known.support_contact.as_ref();
    let contact = contact.ok_or_else(|| ApiError::not_found("Not configured"))?;
    let kind = if contact.starts_with('@') {
        "matrix_id"
    } else {
        "email_address"
    };
    let contacts = json!([{ "role": "m.role.admin", kind: contact }]);
    Ok(json_answer(&json!({ "contacts": contacts })))
}

/// Without a TURN server there is nothing to say; clients take an empty object for that.
async fn turn_server(
    _session: Session,
    Ruma(_): Ruma<get_turn_server_info::v3::Request>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(json_answer(&json!({})))
}

/// No bridges are connected.
async fn third_party_protocols(
    _session: Session,
    Ruma(_): Ruma<get_protocols::v3::Request>,
) -> Result<Ruma<get_protocols::v3::Response>, ApiError> {
    Ok(Ruma(get_protocols::v3::Response::new(BTreeMap::new())))
}
