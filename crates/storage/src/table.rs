//! Typed tables over the one ordered keyspace, and the registry that keeps them apart.

use std::{collections::BTreeMap, fmt, marker::PhantomData, ops::Bound};

use crate::{
    Key, Row, ToKey,
    engine::KeyRange,
    key::{DecodeError, key_bytes, read_key, write_key},
};

/// A table: the first byte of its keys, a name for people, and the types of key and row.
///
/// Declared once, as a `const` or `static` with its key layout in a comment, by the crate that
/// owns it.
pub struct Table<K, V> {
    spec: TableSpec,
    types: PhantomData<fn() -> (K, V)>,
}

/// What the registry knows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSpec {
    /// The first byte of every key; never 0 or 255.
    pub id: u8,
    /// Plain name, for people and error messages.
    pub name: &'static str,
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(formatter)
    }
}

impl<K, V> Table<K, V> {
    /// A table whose keys begin with `id`.
    ///
    /// # Panics
    /// When `id` is 0 or 255; in a `const`, as tables are, while compiling.
    pub const fn new(id: u8, name: &'static str) -> Self {
        assert!(
            id != 0 && id != u8::MAX,
            "0 and 255 are never table numbers"
        );
        Self {
            spec: TableSpec { id, name },
            types: PhantomData,
        }
    }

    /// What the registry is told.
    pub const fn spec(&self) -> TableSpec {
        self.spec
    }

    /// The bytes of a key of this table.
    pub fn key_bytes(&self, key: &impl ToKey<Key = K>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.push(self.spec.id);
        write_key(key, &mut bytes);
        bytes
    }
}

impl<K: Key, V: Row> Table<K, V> {
    /// Reads a key of this table, its number included.
    pub(crate) fn read_key(&self, bytes: &[u8]) -> Result<K, DecodeError> {
        match bytes.split_first() {
            Some((id, rest)) if *id == self.spec.id => read_key(rest),
            _ => Err(DecodeError::new(
                self.spec.name,
                "the key is of another table",
            )),
        }
    }
}

/// Which keys of a table a scan looks at. Each bound is a key or a leading part of one, and stands
/// for all keys that begin with it.
#[derive(Debug)]
pub struct ScanRange<K> {
    prefix: Vec<u8>,
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    types: PhantomData<fn() -> K>,
}

impl<K> ScanRange<K> {
    /// Every key.
    pub fn all() -> Self {
        Self::prefix(&())
    }

    /// Keys that begin with `part`.
    pub fn prefix(part: &impl ToKey) -> Self {
        Self {
            prefix: key_bytes(part),
            lower: Bound::Unbounded,
            upper: Bound::Unbounded,
            types: PhantomData,
        }
    }

    /// Keys from `from`, included, to `to`, excluded.
    pub fn between(from: &impl ToKey, to: &impl ToKey) -> Self {
        Self::all().from(from).before(to)
    }

    /// Only keys equal to or greater than `part`.
    #[must_use]
    pub fn from(mut self, part: &impl ToKey) -> Self {
        self.lower = Bound::Included(key_bytes(part));
        self
    }

    /// Only keys greater than `part` and than all that begin with it.
    #[must_use]
    pub fn after(mut self, part: &impl ToKey) -> Self {
        self.lower = Bound::Excluded(key_bytes(part));
        self
    }

    /// Only keys smaller than `part`.
    #[must_use]
    pub fn before(mut self, part: &impl ToKey) -> Self {
        self.upper = Bound::Excluded(key_bytes(part));
        self
    }

    /// Only keys smaller than `part`, or that begin with it.
    #[must_use]
    pub fn upto(mut self, part: &impl ToKey) -> Self {
        self.upper = Bound::Included(key_bytes(part));
        self
    }

    /// The range of bytes within the table numbered `id`.
    pub(crate) fn bytes(&self, id: u8) -> KeyRange {
        let within = |part: &[u8]| {
            let mut bytes = Vec::with_capacity(part.len() + 1);
            bytes.push(id);
            bytes.extend_from_slice(part);
            bytes
        };
        let mut range = KeyRange::prefix(within(&self.prefix));
        match &self.lower {
            Bound::Included(part) => range.raise_start(within(part)),
            Bound::Excluded(part) => range.raise_start(KeyRange::prefix(within(part)).end),
            Bound::Unbounded => {}
        }
        match &self.upper {
            Bound::Included(part) => range.lower_end(KeyRange::prefix(within(part)).end),
            Bound::Excluded(part) => range.lower_end(within(part)),
            Bound::Unbounded => {}
        }
        range
    }
}

/// Two tables cannot share a number, nor a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tables {first:?} and {second:?} collide (number {id})")]
pub struct Collision {
    /// The number of the second.
    pub id: u8,
    /// The one declared first.
    pub first: String,
    /// The one that collides with it.
    pub second: String,
}

/// All tables of a database, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    names: BTreeMap<u8, &'static str>,
}

impl Registry {
    /// Joins the lists of several crates.
    ///
    /// # Errors
    /// When two tables share a number or a name.
    pub fn join(lists: &[&[TableSpec]]) -> Result<Self, Collision> {
        let mut names: BTreeMap<u8, &'static str> = BTreeMap::new();
        for spec in lists.iter().copied().flatten() {
            let taken = names
                .iter()
                .find(|(id, name)| **id == spec.id || **name == spec.name);
            if let Some((_, first)) = taken {
                return Err(Collision {
                    id: spec.id,
                    first: (*first).to_owned(),
                    second: spec.name.to_owned(),
                });
            }
            names.insert(spec.id, spec.name);
        }
        Ok(Self { names })
    }

    /// Number and name of each table.
    pub fn tables(&self) -> impl Iterator<Item = (u8, &'static str)> {
        self.names.iter().map(|(id, name)| (*id, *name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Table<(u64, String), u64> = Table::new(0x20, "names");

    fn contains(range: &ScanRange<(u64, String)>, key: (u64, &str)) -> bool {
        let range = range.bytes(0x20);
        let bytes = NAMES.key_bytes(&key);
        range.start <= bytes && bytes < range.end
    }

    #[test]
    fn ranges_hold_what_they_say() {
        let all = ScanRange::all();
        assert!(contains(&all, (0, "")) && contains(&all, (u64::MAX, "\u{10ffff}")));
        let one = ScanRange::prefix(&7_u64);
        assert!(contains(&one, (7, "x")) && !contains(&one, (8, "")) && !contains(&one, (6, "z")));
        let inside = ScanRange::prefix(&7_u64)
            .after(&(7_u64, "b"))
            .upto(&(7_u64, "d"));
        let found: Vec<_> = ["a", "b", "c", "d", "e"]
            .into_iter()
            .filter(|name| contains(&inside, (7, name)))
            .collect();
        assert_eq!(found, ["c", "d"]);
        let half = ScanRange::between(&(7_u64, "b"), &(7_u64, "d"));
        assert!(contains(&half, (7, "b")) && !contains(&half, (7, "d")));
        let skip = ScanRange::all().after(&7_u64);
        assert!(!contains(&skip, (7, "zzz")) && contains(&skip, (8, "")));
        let last = ScanRange::prefix(&u64::MAX);
        assert!(contains(&last, (u64::MAX, "zzz")) && !contains(&last, (0, "")));
    }

    #[test]
    fn a_collision_is_an_error() {
        let mine = [NAMES.spec()];
        let other: Table<u64, u64> = Table::new(0x20, "others");
        let same_name: Table<u64, u64> = Table::new(0x21, "names");
        assert!(Registry::join(&[&mine]).is_ok());
        assert!(Registry::join(&[&mine, &[other.spec()]]).is_err());
        assert!(Registry::join(&[&mine, &[same_name.spec()]]).is_err());
    }
}
