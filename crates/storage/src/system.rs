//! The tables of storage itself, numbers 0x01 to 0x0f.

use bytes::Bytes;

use crate::{Position, Table, TableSpec, journal::Filed};

/// `(name)` → bytes. `format` (u64), `epoch` (u64), `position` (u64, the last one given),
/// `trimmed` and `trimmed-away` (u64, see the journal).
pub(crate) const META: Table<String, Bytes> = Table::new(0x01, "meta");
/// `(table number)` → name: which tables this database was written with.
pub(crate) const REGISTERED: Table<u8, Bytes> = Table::new(0x02, "registered tables");
/// `(position)` → journal entry.
pub(crate) const JOURNAL: Table<Position, Filed> = Table::new(0x03, "journal");
/// `(topic kind, topic id, position)` → nothing: the journal by topic.
pub(crate) const TOPIC_ENTRIES: Table<(u8, u64, Position), ()> = Table::new(0x04, "journal topics");
/// `(name)` → position up to which that consumer of the journal is done.
pub(crate) const CURSORS: Table<String, Position> = Table::new(0x05, "cursors");
/// `(number kind, name)` → number.
pub(crate) const NUMBERS: Table<(u8, String), u64> = Table::new(0x06, "numbers");
/// `(number kind, number)` → name, UTF-8.
pub(crate) const NAMES: Table<(u8, u64), Bytes> = Table::new(0x07, "names");
/// `(number kind)` → the first number of the next block to be taken.
pub(crate) const NUMBER_BLOCKS: Table<u8, u64> = Table::new(0x08, "number blocks");
/// `(migration number)` → how far it is.
pub(crate) const MIGRATIONS: Table<u32, Bytes> = Table::new(0x09, "migrations");
/// `(milliseconds since the Unix epoch)` → the last position at that time.
pub(crate) const TIMES: Table<u64, Position> = Table::new(0x0a, "journal times");

/// The key of the row that holds the last position given, table number included.
pub(crate) const POSITION_KEY: &[u8] = b"\x01position\0\x01";

/// The row of [`META`] that marks a copy which is not complete.
pub(crate) const UNFINISHED: &str = "unfinished";

/// Every table of this crate.
pub const TABLES: &[TableSpec] = &[
    META.spec(),
    REGISTERED.spec(),
    JOURNAL.spec(),
    TOPIC_ENTRIES.spec(),
    CURSORS.spec(),
    NUMBERS.spec(),
    NAMES.spec(),
    NUMBER_BLOCKS.spec(),
    MIGRATIONS.spec(),
    TIMES.spec(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_fixed() {
        assert_eq!(META.key_bytes(&"position"), POSITION_KEY);
        assert_eq!(JOURNAL.key_bytes(&258_u64), [3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(
            TOPIC_ENTRIES.key_bytes(&(1_u8, 2_u64, 3_u64)),
            [4, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]
        );
        assert_eq!(NUMBERS.key_bytes(&(7_u8, "ab")), [6, 7, b'a', b'b', 0, 1]);
        assert_eq!(
            NAMES.key_bytes(&(7_u8, 9_u64)),
            [7, 7, 0, 0, 0, 0, 0, 0, 0, 9]
        );
        assert_eq!(CURSORS.key_bytes(&"push"), b"\x05push\0\x01");
    }
}
