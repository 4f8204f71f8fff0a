//! The difference of two states, at a cost proportional to it.

use std::sync::Arc;

use super::{
    Missing, Nodes, StateRoot,
    node::{Child, Item, Node, NodeId},
};
use crate::numbers::{EventNumber, KeyNumber};

/// A key that two states disagree about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Difference {
    pub(crate) key: KeyNumber,
    pub(crate) before: Option<(EventNumber, u64)>,
    pub(crate) after: Option<(EventNumber, u64)>,
}

/// All keys in which `after` differs from `before`, in no particular order.
pub(crate) fn difference(
    nodes: &impl Nodes,
    before: StateRoot,
    after: StateRoot,
) -> Result<Vec<Difference>, Missing> {
    let mut walk = Walk {
        nodes,
        found: Vec::new(),
        missing: Vec::new(),
    };
    if before != after {
        let (before, after) = (whole(before), whole(after));
        walk.pair(before.as_ref(), after.as_ref(), 0);
    }
    if walk.missing.is_empty() {
        Ok(walk.found)
    } else {
        Err(Missing(walk.missing))
    }
}

/// A root, seen as if it stood in a slot.
fn whole(root: StateRoot) -> Option<Child> {
    root.node().map(|node| Child::Branch {
        skip: smallvec::SmallVec::new(),
        node,
        height: 0,
    })
}

struct Walk<'a, N> {
    nodes: &'a N,
    found: Vec<Difference>,
    missing: Vec<NodeId>,
}

/// A child opened at a depth: what stands in each of the sixteen slots there.
enum Open<'a> {
    Nothing,
    One(u8, Child),
    Node(&'a Node),
}

impl Open<'_> {
    fn slot(&self, nibble: u8) -> Option<&Child> {
        match self {
            Self::Nothing => None,
            Self::One(own, child) => (*own == nibble).then_some(child),
            Self::Node(node) => node.child(nibble),
        }
    }
}

/// A node was noted as missing.
struct NotHere;

impl<N: Nodes> Walk<'_, N> {
    /// Compares two children whose keys share all nibbles before `depth`.
    fn pair(&mut self, before: Option<&Child>, after: Option<&Child>, depth: usize) {
        if same(before, after) {
            return;
        }
        if let (Some(old), Some(new)) = (leaf(before), leaf(after)) {
            self.leaves(old, new);
            return;
        }
        let (old_node, new_node) = (self.load(before), self.load(after));
        let (Ok(old_node), Ok(new_node)) = (old_node, new_node) else {
            return;
        };
        let old = open(before, old_node.as_deref(), depth);
        let new = open(after, new_node.as_deref(), depth);
        for nibble in 0..16 {
            self.pair(old.slot(nibble), new.slot(nibble), depth + 1);
        }
    }

    /// The node of a branch that branches right here. One that is missing is noted.
    fn load(&mut self, child: Option<&Child>) -> Result<Option<Arc<Node>>, NotHere> {
        match child {
            Some(Child::Branch { skip, node, .. }) if skip.is_empty() => {
                let loaded = self.nodes.node(*node);
                if loaded.is_none() {
                    self.missing.push(*node);
                }
                loaded.map(Some).ok_or(NotHere)
            }
            _ => Ok(None),
        }
    }

    /// A key lies in one place only, so comparing the items compares the leaves.
    fn leaves(&mut self, old: &[Item], new: &[Item]) {
        let value = |items: &[Item], key| {
            let item = items.iter().find(|item| item.key == key)?;
            Some((item.event, item.height))
        };
        let added = new.iter().filter(|item| value(old, item.key).is_none());
        for key in old.iter().chain(added).map(|item| item.key) {
            let (before, after) = (value(old, key), value(new, key));
            if before != after {
                self.found.push(Difference { key, before, after });
            }
        }
    }
}

/// The items of a leaf or of an empty slot; `None` for a branch.
fn leaf(child: Option<&Child>) -> Option<&[Item]> {
    match child {
        None => Some(&[]),
        Some(Child::Leaf { items, .. }) => Some(items),
        Some(Child::Branch { .. }) => None,
    }
}

fn same(before: Option<&Child>, after: Option<&Child>) -> bool {
    match (before, after) {
        (
            Some(Child::Branch { skip, node, .. }),
            Some(Child::Branch {
                skip: other_skip,
                node: other,
                ..
            }),
        ) => skip == other_skip && node == other,
        _ => before == after,
    }
}

fn open<'a>(child: Option<&Child>, node: Option<&'a Node>, depth: usize) -> Open<'a> {
    match (child, node) {
        (_, Some(node)) => Open::Node(node),
        (None, None) => Open::Nothing,
        (Some(leaf @ Child::Leaf { hash, .. }), None) => {
            Open::One(hash.nibble(depth), leaf.clone())
        }
        (Some(Child::Branch { skip, node, height }), None) => match skip.split_first() {
            Some((nibble, rest)) => Open::One(
                *nibble,
                Child::Branch {
                    skip: rest.into(),
                    node: *node,
                    height: *height,
                },
            ),
            // A branch without a path is always loaded before it is opened.
            None => Open::Nothing,
        },
    }
}
