//! Looking keys up, and walking all keys of a type or of a state.

use super::{
    Missing, Nodes, StateRoot,
    hash::{KeyHash, TYPE_NIBBLES},
    need,
    node::{Child, Item},
};
use crate::numbers::KeyNumber;

/// The event of one key.
pub(crate) fn find(
    nodes: &impl Nodes,
    root: StateRoot,
    hash: KeyHash,
    key: KeyNumber,
) -> Result<Option<Item>, Missing> {
    let Some(id) = root.node() else {
        return Ok(None);
    };
    let mut node = need(nodes, id)?;
    let mut depth = 0;
    loop {
        let Some(child) = node.child(hash.nibble(depth)) else {
            return Ok(None);
        };
        depth += 1;
        match child {
            Child::Leaf { hash: own, items } => {
                let item = items.iter().find(|item| item.key == key);
                return Ok(item.filter(|_| *own == hash).copied());
            }
            Child::Branch { skip, node: id, .. } => {
                let on_path = (depth..).zip(skip).all(|(at, own)| hash.nibble(at) == *own);
                if !on_path {
                    return Ok(None);
                }
                depth += skip.len();
                node = need(nodes, *id)?;
            }
        }
    }
}

/// All keys whose type has the same hash as that of `of_type`: the keys of that type, and those of
/// any other that happens to collide with it. At most `limit`, in the order of their hashes.
pub(crate) fn scan_type(
    nodes: &impl Nodes,
    root: StateRoot,
    of_type: KeyHash,
    limit: usize,
) -> Result<Vec<Item>, Missing> {
    Scan::run(nodes, root, Some(of_type), limit)
}

/// All keys of a state, in the order of their hashes.
pub(crate) fn scan_all(nodes: &impl Nodes, root: StateRoot) -> Result<Vec<Item>, Missing> {
    Scan::run(nodes, root, None, usize::MAX)
}

struct Scan<'a, N> {
    nodes: &'a N,
    of_type: Option<KeyHash>,
    limit: usize,
    found: Vec<Item>,
    missing: Vec<super::NodeId>,
}

impl<'a, N: Nodes> Scan<'a, N> {
    fn run(
        nodes: &'a N,
        root: StateRoot,
        of_type: Option<KeyHash>,
        limit: usize,
    ) -> Result<Vec<Item>, Missing> {
        let mut scan = Self {
            nodes,
            of_type,
            limit,
            found: Vec::new(),
            missing: Vec::new(),
        };
        if let Some(id) = root.node() {
            scan.node(id, 0);
        }
        if scan.missing.is_empty() {
            Ok(scan.found)
        } else {
            Err(Missing(scan.missing))
        }
    }

    /// Whether keys with this nibble at this depth are asked for.
    fn wants(&self, depth: usize, nibble: u8) -> bool {
        depth >= TYPE_NIBBLES
            || self
                .of_type
                .is_none_or(|wanted| wanted.nibble(depth) == nibble)
    }

    fn node(&mut self, id: super::NodeId, depth: usize) {
        let Some(node) = self.nodes.node(id) else {
            self.missing.push(id);
            return;
        };
        for (nibble, child) in &node.slots {
            // Nodes on the way are counted too, so that a limited scan loads a limited number.
            if self.found.len() + self.missing.len() >= self.limit {
                return;
            }
            if self.wants(depth, *nibble) {
                self.child(child, depth + 1);
            }
        }
    }

    fn child(&mut self, child: &Child, depth: usize) {
        match child {
            Child::Leaf { hash, items } => {
                if (depth..TYPE_NIBBLES).all(|at| self.wants(at, hash.nibble(at))) {
                    self.found.extend(items);
                }
            }
            Child::Branch { skip, node, .. } => {
                if (depth..)
                    .zip(skip)
                    .all(|(at, nibble)| self.wants(at, *nibble))
                {
                    self.node(*node, depth + skip.len());
                }
            }
        }
    }
}
