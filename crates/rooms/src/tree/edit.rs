//! Changing keys: the new root and the nodes that have to be written for it.

use smallvec::SmallVec;

use super::{
    Missing, Nodes, StateRoot,
    hash::{KEY_NIBBLES, KeyHash, TreeSecret},
    need,
    node::{Child, Item, Node, SealedNode},
};
use crate::numbers::{EventNumber, KeyNumber};

/// One key to set or remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change {
    pub(crate) hash: KeyHash,
    pub(crate) key: KeyNumber,
    /// The event with its `auth_height`; `None` removes the key.
    pub(crate) value: Option<(EventNumber, u64)>,
}

/// The outcome of an edit.
#[derive(Debug)]
pub(crate) struct Edited {
    pub(crate) root: StateRoot,
    /// Every node of every changed path, whether it existed before or not.
    pub(crate) written: Vec<SealedNode>,
}

/// Applies `changes` to the state `root`. For a key that is named twice the last change counts.
pub(crate) fn edit(
    nodes: &impl Nodes,
    secret: &TreeSecret,
    root: StateRoot,
    changes: &[Change],
) -> Result<Edited, Missing> {
    let mut changes: Vec<Change> = changes.to_vec();
    changes.sort_by_key(|change| (change.hash, change.key));
    changes.reverse();
    changes.dedup_by_key(|change| (change.hash, change.key));
    changes.reverse();
    let mut editor = Editor {
        nodes,
        secret,
        written: Vec::new(),
        missing: Vec::new(),
    };
    let old = match root.node() {
        Some(id) => need(nodes, id)?,
        None => std::sync::Arc::default(),
    };
    let slots = editor.slots(0, &changes, |nibble| old.child(nibble).cloned());
    if !editor.missing.is_empty() {
        return Err(Missing(editor.missing));
    }
    let root = if slots.is_empty() {
        StateRoot::EMPTY
    } else {
        StateRoot(editor.write(slots).0)
    };
    Ok(Edited {
        root,
        written: editor.written,
    })
}

type Slots = SmallVec<[(u8, Child); 2]>;

struct Editor<'a, N> {
    nodes: &'a N,
    secret: &'a TreeSecret,
    written: Vec<SealedNode>,
    missing: Vec<super::NodeId>,
}

impl<N: Nodes> Editor<'_, N> {
    /// Seals a node and gives its name and greatest height.
    fn write(&mut self, slots: Slots) -> (super::NodeId, u64) {
        let height = slots.iter().map(|slot| slot.1.height()).max().unwrap_or(0);
        let sealed = Node { slots }.seal(self.secret);
        let id = sealed.id;
        self.written.push(sealed);
        (id, height)
    }

    /// The slots of a branching point at `depth` after `changes`, given what stood in them.
    fn slots(
        &mut self,
        depth: usize,
        changes: &[Change],
        old: impl Fn(u8) -> Option<Child>,
    ) -> Slots {
        let mut rest = changes;
        let mut slots = Slots::new();
        for nibble in 0..16 {
            let mine = rest
                .iter()
                .take_while(|change| change.hash.nibble(depth) == nibble)
                .count();
            let (here, later) = rest.split_at(mine);
            rest = later;
            if let Some(child) = self.child(depth + 1, old(nibble), here) {
                slots.push((nibble, child));
            }
        }
        slots
    }

    /// What stands in a slot whose keys share all nibbles before `depth`, after `changes`.
    fn child(&mut self, depth: usize, old: Option<Child>, changes: &[Change]) -> Option<Child> {
        if changes.is_empty() {
            return old;
        }
        match old {
            None => self.leaves(depth, &values(changes)),
            Some(Child::Leaf { hash, items }) => self.leaves(depth, &merge(hash, &items, changes)),
            Some(Child::Branch { skip, node, height }) => {
                let shared = shared_with_skip(&skip, depth, changes);
                if shared < skip.len() {
                    return self.split(depth, (skip, node, height), shared, changes);
                }
                let Some(old) = self.nodes.node(node) else {
                    self.missing.push(node);
                    return None;
                };
                let at = depth + skip.len();
                let slots = self.slots(at, changes, |nibble| old.child(nibble).cloned());
                self.join(&skip, slots)
            }
        }
    }

    /// Some change leaves the compressed path of a branch after `shared` nibbles.
    fn split(
        &mut self,
        depth: usize,
        (skip, node, height): (SmallVec<[u8; 8]>, super::NodeId, u64),
        shared: usize,
        changes: &[Change],
    ) -> Option<Child> {
        let below = Child::Branch {
            skip: skip[shared + 1..].into(),
            node,
            height,
        };
        let slots = self.slots(depth + shared, changes, |nibble| {
            (nibble == skip[shared]).then(|| below.clone())
        });
        self.join(&skip[..shared], slots)
    }

    /// A subtree of only these leaves, ordered by hash.
    fn leaves(&mut self, depth: usize, items: &[(KeyHash, Item)]) -> Option<Child> {
        let (first, last) = (items.first()?.0, items.last()?.0);
        if first == last {
            return Some(Child::Leaf {
                hash: first,
                items: items.iter().map(|item| item.1).collect(),
            });
        }
        let shared = first.common(last, depth);
        let at = depth + shared;
        let slots = items
            .chunk_by(|a, b| a.0.nibble(at) == b.0.nibble(at))
            .filter_map(|chunk| Some((chunk[0].0.nibble(at), self.leaves(at + 1, chunk)?)))
            .collect();
        let skip: SmallVec<[u8; 8]> = (depth..at).map(|at| first.nibble(at)).collect();
        self.join(&skip, slots)
    }

    /// The canonical form of a branching point below the compressed path `skip`.
    fn join(&mut self, skip: &[u8], mut slots: Slots) -> Option<Child> {
        match slots.len() {
            0 => None,
            1 => {
                let (nibble, child) = slots.remove(0);
                Some(match child {
                    leaf @ Child::Leaf { .. } => leaf,
                    Child::Branch {
                        skip: below,
                        node,
                        height,
                    } => Child::Branch {
                        skip: skip.iter().copied().chain([nibble]).chain(below).collect(),
                        node,
                        height,
                    },
                })
            }
            _ => {
                let (node, height) = self.write(slots);
                Some(Child::Branch {
                    skip: skip.into(),
                    node,
                    height,
                })
            }
        }
    }
}

/// The keys that are set.
fn values(changes: &[Change]) -> Vec<(KeyHash, Item)> {
    changes
        .iter()
        .filter_map(|change| {
            let (event, height) = change.value?;
            let key = change.key;
            Some((change.hash, Item { key, event, height }))
        })
        .collect()
}

/// The items of a leaf and the changes, ordered; a change counts more than an item of its key.
fn merge(hash: KeyHash, items: &[Item], changes: &[Change]) -> Vec<(KeyHash, Item)> {
    let untouched = items
        .iter()
        .filter(|item| !changes.iter().any(|c| c.hash == hash && c.key == item.key))
        .map(|item| (hash, *item));
    let mut merged: Vec<_> = untouched.chain(values(changes)).collect();
    merged.sort_by_key(|(hash, item)| (*hash, item.key));
    merged
}

/// How many nibbles of `skip` all changes share. They are ordered, so the first and last decide.
fn shared_with_skip(skip: &[u8], depth: usize, changes: &[Change]) -> usize {
    let shared = |change: &Change| {
        skip.iter()
            .zip(depth..KEY_NIBBLES)
            .take_while(|(nibble, at)| change.hash.nibble(*at) == **nibble)
            .count()
    };
    let ends = [changes.first(), changes.last()];
    ends.into_iter().flatten().map(shared).min().unwrap_or(0)
}
