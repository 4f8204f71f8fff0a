//! Keys and rows as they are read back, mutated: what is read has one form. (What the engines keep
//! beside the rows is fuzzed where it is read.)

use bytes::Bytes;
use homeserver_fuzz::Target;

use crate::{
    Entry, EntryKind, Key, Reverse64, Row as _, Topic,
    journal::Filed,
    key::{key_bytes, read_key},
};

/// Reads a key of one type and compares; gives whether it was one.
fn check<K: Key>(bytes: &[u8]) -> bool {
    let Ok(key) = read_key::<K>(bytes) else {
        return false;
    };
    assert_eq!(key_bytes(&key), bytes, "two forms of one key");
    true
}

#[test]
fn stored_keys() {
    let mut seeds = vec![
        key_bytes(&(7_u64, "ab", true)),
        key_bytes(&(Reverse64(1), -1_i64)),
        key_bytes(&("a\0b", "", 3_u8)),
        key_bytes(&([1_u8; 4], u128::MAX)),
        key_bytes(&Bytes::from_static(b"\0\xff\0")),
    ];
    for (kind, seed) in seeds.iter_mut().enumerate() {
        seed.insert(0, kind as u8);
    }
    Target::new("stored_keys")
        .seeds(seeds)
        .run(|input| match input {
            [0, key @ ..] => check::<(u64, String, bool)>(key),
            [1, key @ ..] => check::<(Reverse64, i64)>(key),
            [2, key @ ..] => check::<(String, String, u8)>(key),
            [3, key @ ..] => check::<([u8; 4], u128)>(key),
            [4, key @ ..] => check::<Bytes>(key),
            _ => false,
        });
}

#[test]
fn journal_entries() {
    let topics = [Topic::new(1, 7), Topic::new(2, 300)];
    let entries = [
        Entry::new(EntryKind::trimmed(1), &[7, 300, u64::MAX]),
        Entry::new(EntryKind::kept(0x310), &[]),
        Entry::new(EntryKind::kept(2), &[1; 9]),
    ];
    let seeds = entries.map(|entry| Filed::new(&entry, &topics).encode());
    Target::new("journal_entries").seeds(seeds).run(|input| {
        let Ok(filed) = Filed::decode(input) else {
            return false;
        };
        assert_eq!(Filed::decode(&filed.encode()), Ok(filed));
        true
    });
}
