//! The tree against a plain map: same contents, one form, honest differences, bounded writes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use proptest::prelude::*;

use super::{
    Change, Edited, KeyHash, Missing, Node, NodeId, Nodes, StateRoot, TreeSecret, difference, edit,
    find, scan_all, scan_type,
};
use crate::numbers::{EventNumber, KeyNumber};

#[derive(Default)]
struct Memory(HashMap<NodeId, Arc<Node>>);

impl Nodes for Memory {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.0.get(&id).cloned()
    }
}

impl Memory {
    fn apply(&mut self, root: StateRoot, changes: &[Change]) -> Edited {
        let edited = edit(self, &secret(), root, changes).unwrap();
        for sealed in &edited.written {
            // Only the stored form is kept, so every test also reads what was written.
            let node = Node::decode(&sealed.encoded).unwrap();
            assert_eq!(&node, sealed.node.as_ref());
            self.0.insert(sealed.id, Arc::new(node));
        }
        edited
    }
}

fn secret() -> TreeSecret {
    TreeSecret::new([7; 32])
}

type Model = BTreeMap<(KeyHash, KeyNumber), (EventNumber, u64)>;

/// Hashes that share long prefixes, two keys for each.
fn crowded_change() -> impl Strategy<Value = Change> {
    let place = (0..3_u8, 0..4_u8, 0..3_u8, 0..2_u64);
    let value = prop::option::weighted(0.7, (0..4_u64, 0..9_u64));
    (place, value).prop_map(|((kind, middle, end, twin), value)| {
        let mut bytes = [0x11; 12];
        (bytes[3], bytes[6], bytes[11]) = (kind, middle << 4, end);
        Change {
            hash: KeyHash::from_bytes(bytes),
            key: KeyNumber(u64::from(kind * 16 + middle * 4 + end) * 2 + twin),
            value: value.map(|(event, height)| (EventNumber(event), height)),
        }
    })
}

fn put(model: &mut Model, change: &Change) {
    match change.value {
        Some(value) => model.insert((change.hash, change.key), value),
        None => model.remove(&(change.hash, change.key)),
    };
}

fn as_changes(model: &Model) -> Vec<Change> {
    let set = |(&(hash, key), &value): (&(KeyHash, KeyNumber), &_)| Change {
        hash,
        key,
        value: Some(value),
    };
    model.iter().map(set).collect()
}

proptest! {
    #[test]
    fn the_form_follows_from_the_contents(
        batches in prop::collection::vec(prop::collection::vec(crowded_change(), 0..6), 0..12),
    ) {
        let (mut memory, mut model, mut root) = (Memory::default(), Model::new(), StateRoot::EMPTY);
        for batch in &batches {
            for change in batch {
                put(&mut model, change);
            }
            root = memory.apply(root, batch).root;
        }
        let at_once = memory.apply(StateRoot::EMPTY, &as_changes(&model)).root;
        prop_assert_eq!(root, at_once);
        let mut one_by_one = StateRoot::EMPTY;
        for change in as_changes(&model).iter().rev() {
            one_by_one = memory.apply(one_by_one, &[*change]).root;
        }
        prop_assert_eq!(root, one_by_one);

        let all = scan_all(&memory, root).unwrap();
        let found: Vec<_> = all.iter().map(|i| (i.key, (i.event, i.height))).collect();
        let expected: Vec<_> = model.iter().map(|((_, key), value)| (*key, *value)).collect();
        prop_assert_eq!(found, expected);
        for ((hash, key), (event, height)) in &model {
            let item = find(&memory, root, *hash, *key).unwrap().unwrap();
            prop_assert_eq!((item.event, item.height), (*event, *height));
        }
    }

    #[test]
    fn lookups_find_only_what_is_there(
        batch in prop::collection::vec(crowded_change(), 0..20),
        asked in crowded_change(),
    ) {
        let (mut memory, mut model) = (Memory::default(), Model::new());
        for change in &batch {
            put(&mut model, change);
        }
        let root = memory.apply(StateRoot::EMPTY, &batch).root;
        let found = find(&memory, root, asked.hash, asked.key).unwrap();
        let found = found.map(|item| (item.event, item.height));
        prop_assert_eq!(found, model.get(&(asked.hash, asked.key)).copied());

        let of_type = scan_type(&memory, root, asked.hash, usize::MAX).unwrap();
        let same_type = |hash: &KeyHash| hash.common(asked.hash, 0) >= super::hash::TYPE_NIBBLES;
        let expected = model.keys().filter(|(hash, _)| same_type(hash)).count();
        prop_assert_eq!(of_type.len(), expected);
    }

    #[test]
    fn a_difference_is_what_the_maps_disagree_about(
        base in prop::collection::vec(crowded_change(), 0..20),
        left in prop::collection::vec(crowded_change(), 0..6),
        right in prop::collection::vec(crowded_change(), 0..6),
    ) {
        let mut memory = Memory::default();
        let base_root = memory.apply(StateRoot::EMPTY, &base).root;
        let mut side = |changes: &[Change]| {
            let mut model = Model::new();
            base.iter().chain(changes).for_each(|change| put(&mut model, change));
            (model, memory.apply(base_root, changes).root)
        };
        let (left, left_root) = side(&left);
        let (right, right_root) = side(&right);
        let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
        let mut expected: Vec<_> = keys
            .into_iter()
            .map(|key| (key.1, left.get(key).copied(), right.get(key).copied()))
            .filter(|(_, before, after)| before != after)
            .collect();
        expected.sort();
        let mut found: Vec<_> = difference(&memory, left_root, right_root)
            .unwrap()
            .iter()
            .map(|d| (d.key, d.before, d.after))
            .collect();
        found.sort();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(left_root == right_root, left == right);
    }
}

/// A room of `members` members and the usual other state, in one edit.
fn big_room(memory: &mut Memory, members: u64) -> StateRoot {
    let secret = secret();
    let types = [
        "create",
        "power_levels",
        "join_rules",
        "name",
        "topic",
        "history_visibility",
    ];
    let others = (0_u64..).zip(types).map(|(number, name)| Change {
        hash: secret.key(&format!("m.room.{name}"), ""),
        key: KeyNumber(number),
        value: Some((EventNumber(number), number)),
    });
    let members = (0..members).map(|number| member(number, number + 500));
    let changes: Vec<_> = others.chain(members).collect();
    memory.apply(StateRoot::EMPTY, &changes).root
}

fn member(number: u64, event: u64) -> Change {
    Change {
        hash: secret().key("m.room.member", &format!("@user{number}:example.org")),
        key: KeyNumber(number + 100),
        value: Some((EventNumber(event + 1_000_000), 40 + number % 50)),
    }
}

#[test]
fn a_change_among_100_000_writes_at_most_2_kib() {
    // Each row's key on disk: table, room number, node id.
    const ROW_KEY: usize = 1 + 8 + 16;
    let mut memory = Memory::default();
    let root = big_room(&mut memory, 100_000);
    let mut worst = 0;
    let mut total = 0;
    for number in 0..500 {
        // Changes of present members and joins of new ones.
        let change = member(99_750 + number, 3_000_000 + number);
        let edited = edit(&memory, &secret(), root, &[change]).unwrap();
        let bytes: usize = edited
            .written
            .iter()
            .map(|node| node.encoded.len() + ROW_KEY)
            .sum();
        worst = worst.max(bytes);
        total += bytes;
    }
    println!(
        "written per state change: mean {} bytes, worst {worst}",
        total / 500
    );
    assert!(worst <= 2048, "a change wrote {worst} bytes");
}

#[test]
fn reading_touches_a_path_and_differences_touch_the_difference() {
    struct Counting<'a>(&'a Memory, std::cell::Cell<usize>);
    impl Nodes for Counting<'_> {
        fn node(&self, id: NodeId) -> Option<Arc<Node>> {
            self.1.set(self.1.get() + 1);
            self.0.node(id)
        }
    }
    let mut memory = Memory::default();
    let root = big_room(&mut memory, 20_000);
    let change = member(77, 9_999_999);
    let other = memory.apply(root, &[change]).root;
    let counting = Counting(&memory, std::cell::Cell::new(0));
    assert!(
        find(&counting, root, change.hash, change.key)
            .unwrap()
            .is_some()
    );
    assert!(
        counting.1.get() <= 7,
        "a lookup touched {} nodes",
        counting.1.get()
    );
    counting.1.set(0);
    assert_eq!(difference(&counting, root, other).unwrap().len(), 1);
    assert!(
        counting.1.get() <= 14,
        "a difference touched {} nodes",
        counting.1.get()
    );
    counting.1.set(0);
    let few = scan_type(&counting, root, change.hash, 10).unwrap();
    assert!(few.len() >= 10 && counting.1.get() <= 30);
}

#[test]
fn missing_nodes_are_asked_for_level_by_level() {
    let mut memory = Memory::default();
    let root = big_room(&mut memory, 3_000);
    let mut known = Memory::default();
    let mut calls = 0;
    let all = loop {
        calls += 1;
        match scan_all(&known, root) {
            Ok(all) => break all,
            Err(Missing(ids)) => {
                for id in ids {
                    known.0.insert(id, memory.node(id).unwrap());
                }
            }
        }
    };
    assert_eq!(all.len(), 3_006);
    assert!(calls <= 8, "{calls} calls");
}
