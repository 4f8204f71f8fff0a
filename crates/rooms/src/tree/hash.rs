//! The keyed hashes that place a key in the tree and name its nodes.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::node::NodeId;

/// Nibbles of the hash of the event type: the length of the prefix that all keys of a type share.
pub(super) const TYPE_NIBBLES: usize = 8;

/// Nibbles of a whole key hash.
pub(super) const KEY_NIBBLES: usize = 24;

/// The secret of a database that keys the hashes.
#[derive(Clone)]
pub(crate) struct TreeSecret([u8; 32]);

/// Where a key lies: hash32(type) followed by hash64(state key).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct KeyHash([u8; KEY_NIBBLES / 2]);

impl TreeSecret {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The place of a key.
    pub(crate) fn key(&self, event_type: &str, state_key: &str) -> KeyHash {
        let mut hash = [0; KEY_NIBBLES / 2];
        hash[..4].copy_from_slice(&self.digest(b't', event_type.as_bytes())[..4]);
        hash[4..].copy_from_slice(&self.digest(b'k', state_key.as_bytes())[..8]);
        KeyHash(hash)
    }

    /// The name of a node with this encoding.
    pub(super) fn node(&self, encoded: &[u8]) -> NodeId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.digest(b'n', encoded)[..16]);
        NodeId(id)
    }

    fn digest(&self, domain: u8, bytes: &[u8]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        hasher.update([domain]);
        hasher.update(bytes);
        hasher.finalize().into()
    }
}

impl KeyHash {
    /// The nibble at `depth`, from the most significant one.
    pub(super) fn nibble(self, depth: usize) -> u8 {
        let byte = self.0[depth / 2];
        if depth.is_multiple_of(2) {
            byte >> 4
        } else {
            byte & 0x0f
        }
    }

    /// How many nibbles from `depth` on both share.
    pub(super) fn common(self, other: Self, depth: usize) -> usize {
        (depth..KEY_NIBBLES)
            .take_while(|at| self.nibble(*at) == other.nibble(*at))
            .count()
    }

    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: [u8; KEY_NIBBLES / 2]) -> Self {
        Self(bytes)
    }
}
