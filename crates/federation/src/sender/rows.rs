//! What is stored of servers that have not acknowledged everything.

use homeserver_storage::Position;
use serde::{Deserialize, Serialize};

/// What a server lacks beside events. There is a row for every server that lacks anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BehindRow {
    /// Messages to devices wait for it, which have rows of their own.
    pub(crate) to_device: bool,
    /// It was told of changed device lists up to here, and not of all after.
    pub(crate) device_lists: Option<Position>,
}
homeserver_storage::row!(BehindRow, 1);

#[cfg(test)]
mod tests {
    use homeserver_storage::Row as _;

    use super::*;

    #[test]
    fn the_layout_is_fixed() {
        for (row, bytes) in [
            (BehindRow::default(), vec![1, 0, 0]),
            (
                BehindRow {
                    to_device: true,
                    device_lists: Some(300),
                },
                vec![1, 1, 1, 0xac, 2],
            ),
        ] {
            assert_eq!(row.encode(), bytes);
            assert_eq!(BehindRow::decode(&bytes).unwrap(), row);
        }
        let key = crate::tables::BEHIND_ROOMS.key_bytes(&("a.b", 5_u64));
        assert_eq!(key, *b"\xb9a.b\x00\x01\0\0\0\0\0\0\0\x05");
        let key = crate::tables::BEHIND.key_bytes(&"a.b");
        assert_eq!(key, *b"\xb8a.b\x00\x01");
    }
}
