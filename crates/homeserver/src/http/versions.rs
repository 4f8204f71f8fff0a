//! `GET /_matrix/client/versions`: which versions of the client-server API are spoken.

use ruma::api::client::discovery::get_supported_versions;

use super::{ApiError, Routes, Ruma};

/// The versions whose endpoints this server has. Shipped clients still ask for the old ones.
const VERSIONS: [&str; 20] = [
    "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8",
    "v1.9", "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16", "v1.17",
];

pub(super) fn routes() -> Routes {
    Routes::new().ruma(versions)
}

async fn versions(
    Ruma(_): Ruma<get_supported_versions::Request>,
) -> Result<Ruma<get_supported_versions::Response>, ApiError> {
    let versions = VERSIONS.map(str::to_owned).to_vec();
    Ok(Ruma(get_supported_versions::Response::new(versions)))
}
