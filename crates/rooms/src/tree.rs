//! The state tree: an immutable, shared search tree from (event type, state key) to an event.
//!
//! It is a path-compressed 16-way trie over a keyed hash of the type (32 bits) and of the state key
//! (64 bits). Its form follows from its contents alone: equal states have equal roots, however
//! they were reached. A state change writes the nodes on one path; a message writes none. All keys
//! of a type lie below one prefix. The hash is keyed with a secret of the database, so that nobody
//! outside can aim at collisions; keys whose hashes collide all the same share a leaf.
//!
//! Everything here is pure. A function that meets a node it does not have answers [`Missing`] with
//! all nodes it could name; the caller loads them and calls again. That costs at most one call per
//! level of the tree, and the last one outweighs the others.

mod diff;
mod edit;
mod except;
mod hash;
mod node;
mod read;

pub(crate) use diff::{Difference, difference};
pub(crate) use edit::{Change, Edited, edit};
pub(crate) use except::scan_except;
pub(crate) use hash::{KeyHash, TreeSecret};
pub(crate) use node::{Item, Node, NodeId, SealedNode};
pub(crate) use read::{find, scan_above, scan_all, scan_type};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The root of a state tree, and so the name of a whole room state. Equal states of a room have
/// equal roots.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct StateRoot(NodeId);

impl StateRoot {
    /// The state before the first event of a room.
    pub const EMPTY: Self = Self(NodeId::NONE);

    /// The node that the root names; `None` for the empty state.
    pub(crate) fn node(self) -> Option<NodeId> {
        (self != Self::EMPTY).then_some(self.0)
    }
}

/// Nodes at hand.
pub(crate) trait Nodes {
    /// The node, if it is at hand.
    fn node(&self, id: NodeId) -> Option<Arc<Node>>;
}

/// These nodes are needed and not at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing(pub(crate) Vec<NodeId>);

/// Loads a node or says that it is missing.
fn need(nodes: &impl Nodes, id: NodeId) -> Result<Arc<Node>, Missing> {
    nodes.node(id).ok_or_else(|| Missing(vec![id]))
}

#[cfg(test)]
mod tests;
