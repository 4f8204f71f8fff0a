//! The keys of devices: identity keys, one-time keys, fallback keys.
//!
//! The server stores and hands out; it reads of a key only what it must check: whose it is, and
//! that it has the form the specification gives it. Signatures inside are checked by those who
//! use the keys.
//!
//! - Identity keys: one JSON object per device ([`DeviceKeys`] in the specification's terms).
//! - One-time keys: handed out in the order of their uploads, each exactly once. A claim is one
//!   batch that asserts that the key is still there; of two claims for the last key one gets it.
//! - Fallback keys: one per algorithm, handed out when there is no one-time key, and then marked
//!   used.
//!
//! Spec: Client-Server API, "Key Distribution".
//!
//! [`DeviceKeys`]: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysupload

mod check;
mod claim;
mod query;
mod upload;

pub use check::InvalidKey;
pub use claim::ClaimedKey;
pub use upload::{KeyUpload, KeyUploadError};

pub(crate) use check::{
    check_canonical, check_signatures, checked_device_keys, checked_one_time_key,
};
pub(crate) use query::{with_name, with_signatures};

use std::{collections::BTreeMap, sync::Arc};

use homeserver_storage::Position;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    DeviceNumber, Failure, UserNumber,
    ground::Ground,
    tables::{FALLBACK_KEYS, ONE_TIME_KEY_COUNTS},
};

/// Bytes of a device's identity keys, which take less than two thousand.
pub const MAX_DEVICE_KEYS: usize = 8 * 1024;

/// Bytes of the identity keys of all devices of one user: what everybody who shares a room with them
/// asks for. Enough for as many devices as a user may have, with keys of the usual size.
pub const MAX_DEVICE_KEYS_OF_USER: usize = 512 * 1024;

/// Bytes of one one-time or fallback key.
pub const MAX_ONE_TIME_KEY: usize = 4 * 1024;

/// One-time and fallback keys of one upload.
pub const MAX_KEYS_IN_UPLOAD: usize = 250;

/// One-time keys that one device may have waiting, of all algorithms together.
pub const MAX_ONE_TIME_KEYS: u64 = 2_000;

/// Algorithms for which one device may have one-time or fallback keys.
pub const MAX_ALGORITHMS: usize = 16;

/// Locks that keep claims and uploads for one device from racing each other within this process.
const STRIPES: usize = 64;

/// Row of `DEVICE_KEYS`: the JSON object as uploaded, without `unsigned`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceKeysRow(pub(crate) String);
homeserver_storage::row!(DeviceKeysRow, 1);

/// Row of `ONE_TIME_KEYS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OneTimeKeyRow {
    /// The key's id, without the algorithm.
    pub(crate) id: String,
    /// The key as JSON: a string, or an object with signatures.
    pub(crate) json: String,
}
homeserver_storage::row!(OneTimeKeyRow, 1);

/// Row of `FALLBACK_KEYS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FallbackKeyRow {
    pub(crate) id: String,
    pub(crate) json: String,
    /// Whether it was handed out.
    pub(crate) used: bool,
}
homeserver_storage::row!(FallbackKeyRow, 1);

/// Row of `ONE_TIME_KEY_COUNTS`: algorithm → keys waiting. Every upload and claim asserts it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CountsRow(pub(crate) BTreeMap<String, u64>);
homeserver_storage::row!(CountsRow, 1);

/// Key of `ONE_TIME_KEYS`: the position of the upload, then the place within it.
pub(crate) type OneTimeKeyKey = (u64, String, Position, u64);

/// The keys of this server's devices. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keys {
    ground: Ground,
    /// The asserts are the truth; these locks only spare us the failed attempts.
    turns: Arc<[Mutex<()>; STRIPES]>,
    /// Uploads of identity keys by user, who may have only so many. Taken before a device's turn.
    /// Another process makes the bound a little softer.
    identity_turns: Arc<[Mutex<()>; STRIPES]>,
}

impl Keys {
    pub(crate) fn new(ground: Ground) -> Self {
        let turns = || Arc::new(std::array::from_fn(|_| Mutex::new(())));
        Self {
            ground,
            turns: turns(),
            identity_turns: turns(),
        }
    }

    /// Waiting one-time keys by algorithm; one that is missing has none.
    pub async fn counts(&self, device: DeviceNumber) -> Result<BTreeMap<String, u64>, Failure> {
        let row = self
            .ground
            .store
            .get(&ONE_TIME_KEY_COUNTS, &device.0)
            .await?;
        Ok(row.unwrap_or_default().0)
    }

    /// Algorithms for which the device has a fallback key that nobody was given yet.
    pub async fn unused_fallback_types(
        &self,
        device: DeviceNumber,
    ) -> Result<Vec<String>, Failure> {
        let rows = self
            .ground
            .scan_prefix(&FALLBACK_KEYS, &device.0, MAX_ALGORITHMS)
            .await?;
        let unused = rows.into_iter().filter(|(_, row)| !row.used);
        Ok(unused.map(|((_, algorithm), _)| algorithm).collect())
    }

    fn turn(&self, device: DeviceNumber) -> &Mutex<()> {
        &self.turns[(device.0 % STRIPES as u64) as usize]
    }

    fn identity_turn(&self, user: UserNumber) -> &Mutex<()> {
        &self.identity_turns[(user.0 % STRIPES as u64) as usize]
    }
}
