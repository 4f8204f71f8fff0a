//! Nodes of the tree and their stored form.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::hash::{KeyHash, TreeSecret};
use crate::numbers::{EventNumber, KeyNumber};

/// The name of a node: a hash of its contents.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub(crate) struct NodeId(pub(crate) [u8; 16]);

impl NodeId {
    /// Names no node.
    pub(crate) const NONE: Self = Self([0; 16]);
}

/// One key and its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) key: KeyNumber,
    pub(crate) event: EventNumber,
    /// The `auth_height` of the event.
    pub(crate) height: u64,
}

/// What stands in a slot of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Child {
    /// All keys with this hash, ordered by key number: one, unless hashes collide.
    Leaf {
        hash: KeyHash,
        items: SmallVec<[Item; 1]>,
    },
    /// Two or more hashes that share the nibbles `skip` after the slot's own.
    Branch {
        skip: SmallVec<[u8; 8]>,
        node: NodeId,
        /// The greatest `auth_height` below.
        height: u64,
    },
}

impl Child {
    /// The greatest `auth_height` below.
    pub(super) fn height(&self) -> u64 {
        match self {
            Self::Leaf { items, .. } => items.iter().map(|item| item.height).max().unwrap_or(0),
            Self::Branch { height, .. } => *height,
        }
    }
}

/// A branching point: up to sixteen slots. Only the root, which always branches at the first
/// nibble, may have a single one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// (nibble, child), ordered by nibble.
    pub(super) slots: SmallVec<[(u8, Child); 2]>,
}

impl Node {
    pub(super) fn child(&self, nibble: u8) -> Option<&Child> {
        let at = self.slots.binary_search_by_key(&nibble, |slot| slot.0);
        at.ok().map(|at| &self.slots[at].1)
    }

    /// The name and stored form of this node.
    pub(super) fn seal(self, secret: &TreeSecret) -> SealedNode {
        let encoded = self.encode();
        SealedNode {
            id: secret.node(&encoded),
            encoded,
            node: Arc::new(self),
        }
    }

    fn encode(&self) -> Vec<u8> {
        // Serialising to a growing vector cannot fail for these types.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads a stored node; `None` if it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// The nodes directly below.
    pub(crate) fn below(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.slots.iter().filter_map(|(_, child)| match child {
            Child::Branch { node, .. } => Some(*node),
            Child::Leaf { .. } => None,
        })
    }
}

/// A node with its name and stored form.
#[derive(Clone, Debug)]
pub(crate) struct SealedNode {
    pub(crate) id: NodeId,
    pub(crate) encoded: Vec<u8>,
    pub(crate) node: Arc<Node>,
}
