//! Stored rows as inputs: a length byte, that many bytes of key with its table number, the row.
//!
//! Seeds come from the snapshots that fix the layouts: a line `name key = row` each, where `\xx` is
//! a byte.

/// Takes an input apart into key and row.
#[must_use]
pub fn key_and_row(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = input.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// An input of a key and a row.
#[must_use]
pub fn stored(key: &[u8], row: &[u8]) -> Vec<u8> {
    let length = u8::try_from(key.len()).unwrap_or(u8::MAX);
    [&[length], key, row].concat()
}

/// The inputs that the lines of a snapshot describe.
#[must_use]
pub fn of_snapshot(snapshot: &str) -> Vec<Vec<u8>> {
    let line = |line: &str| {
        let (_, pair) = line.split_once(' ')?;
        let (key, row) = pair.split_once(" =")?;
        Some(stored(&bytes(key), &bytes(row.trim_start())))
    };
    snapshot.lines().filter_map(line).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'\\');
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes
}

/// Reads an input as a row of one of the tables given, by the number that its key begins with, and
/// checks that what was read is written in a way that reads the same. Gives whether it was read.
#[macro_export]
macro_rules! read_row {
    ($input:expr, [$($table:expr),+ $(,)?]) => {{
        fn read<K: ::homeserver_storage::Key, V: ::homeserver_storage::Row>(
            _: &::homeserver_storage::Table<K, V>,
            key: &[u8],
            row: &[u8],
        ) -> bool {
            if let Ok(read) = ::homeserver_storage::key::read_key::<K>(key) {
                // Keys have one form only: a key that is read is found again.
                assert_eq!(::homeserver_storage::key::key_bytes(&read), key);
            }
            let Ok(read) = V::decode(row) else {
                return false;
            };
            let written = read.encode();
            let again = V::decode(&written).map(|again| again.encode());
            assert_eq!(again, Ok(written));
            true
        }
        match $crate::rows::key_and_row($input) {
            Some((&[table, ref key @ ..], row)) => match table {
                $(number if number == $table.spec().id => read(&$table, key, row),)+
                _ => false,
            },
            _ => false,
        }
    }};
}
