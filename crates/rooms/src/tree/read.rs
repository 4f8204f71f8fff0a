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
    let scan = Scan {
        of_type: Some(of_type),
        limit,
        ..Scan::new(nodes)
    };
    scan.run(root)
}

/// All keys of a state, in the order of their hashes.
pub(crate) fn scan_all(nodes: &impl Nodes, root: StateRoot) -> Result<Vec<Item>, Missing> {
    Scan::new(nodes).run(root)
}

/// All keys whose events have an `auth_height` above this, by way of the heights in the branches.
pub(crate) fn scan_above(
    nodes: &impl Nodes,
    root: StateRoot,
    height: u64,
) -> Result<Vec<Item>, Missing> {
    let scan = Scan {
        above: Some(height),
        ..Scan::new(nodes)
    };
    scan.run(root)
}

struct Scan<'a, N> {
    nodes: &'a N,
    of_type: Option<KeyHash>,
    limit: usize,
    above: Option<u64>,
    found: Vec<Item>,
    missing: Vec<super::NodeId>,
}

impl<'a, N: Nodes> Scan<'a, N> {
    fn new(nodes: &'a N) -> Self {
        Self {
            nodes,
            of_type: None,
            limit: usize::MAX,
            above: None,
            found: Vec::new(),
            missing: Vec::new(),
        }
    }

    fn run(mut self, root: StateRoot) -> Result<Vec<Item>, Missing> {
        if let Some(id) = root.node() {
            self.node(id, 0);
        }
        if self.missing.is_empty() {
            Ok(self.found)
        } else {
            Err(Missing(self.missing))
        }
    }

    fn high_enough(&self, height: u64) -> bool {
        self.above.is_none_or(|above| height > above)
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
            if self.wants(depth, *nibble) && self.high_enough(child.height()) {
                self.child(child, depth + 1);
            }
        }
    }

    fn child(&mut self, child: &Child, depth: usize) {
        match child {
            Child::Leaf { hash, items } => {
                if (depth..TYPE_NIBBLES).all(|at| self.wants(at, hash.nibble(at))) {
                    let above = self.above;
                    let high = |item: &&Item| above.is_none_or(|above| item.height > above);
                    self.found.extend(items.iter().filter(high));
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
