//! Walking a state without the keys of one type.

use super::{
    Missing, NodeId, Nodes, StateRoot,
    hash::{KeyHash, TYPE_NIBBLES},
    node::{Child, Item},
};

/// All keys whose type has another hash than `left_out`, in the order of their hashes. The nodes
/// below that type are not looked at. (A type whose 32-bit keyed hash is the same is left out too;
/// one in four thousand million types is.)
pub(crate) fn scan_except(
    nodes: &impl Nodes,
    root: StateRoot,
    left_out: KeyHash,
) -> Result<Vec<Item>, Missing> {
    let mut walk = Walk {
        nodes,
        left_out,
        found: Vec::new(),
        missing: Vec::new(),
    };
    if let Some(id) = root.node() {
        walk.node(id, 0, true);
    }
    if walk.missing.is_empty() {
        Ok(walk.found)
    } else {
        Err(Missing(walk.missing))
    }
}

struct Walk<'a, N> {
    nodes: &'a N,
    left_out: KeyHash,
    found: Vec<Item>,
    missing: Vec<NodeId>,
}

impl<N: Nodes> Walk<'_, N> {
    /// Whether a key stays on the way to the type after another nibble.
    fn stays(&self, depth: usize, nibble: u8) -> bool {
        depth >= TYPE_NIBBLES || self.left_out.nibble(depth) == nibble
    }

    fn node(&mut self, id: NodeId, depth: usize, on_way: bool) {
        let Some(node) = self.nodes.node(id) else {
            self.missing.push(id);
            return;
        };
        for (nibble, child) in &node.slots {
            let on_way = on_way && self.stays(depth, *nibble);
            self.child(child, depth + 1, on_way);
        }
    }

    fn child(&mut self, child: &Child, depth: usize, on_way: bool) {
        match child {
            Child::Leaf { hash, items } => {
                let of_type = (0..TYPE_NIBBLES).all(|at| self.stays(at, hash.nibble(at)));
                if !of_type {
                    self.found.extend(items);
                }
            }
            Child::Branch { skip, node, .. } => {
                let mut skipped = (depth..).zip(skip);
                let on_way = on_way && skipped.all(|(at, nibble)| self.stays(at, *nibble));
                let depth = depth + skip.len();
                if !(on_way && depth >= TYPE_NIBBLES) {
                    self.node(*node, depth, on_way);
                }
            }
        }
    }
}
