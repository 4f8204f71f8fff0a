//! Stored rows, mutated: damaged ones are refused, and what is read has one form.

use homeserver_fuzz::{Target, read_row, rows::of_snapshot};

use crate::tables::{
    ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, ACCOUNTS, CROSS_SIGNING_KEYS, DEVICE_CHANGES, DEVICE_KEYS,
    DEVICE_LIST_CHANGES, DEVICE_REMAINS, DEVICE_SEEN, DEVICES, FALLBACK_KEYS, FILTERS,
    FIRST_ACCOUNT, INBOX, ONE_TIME_KEY_COUNTS, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, OUTGOING,
    OUTGOING_BY_POSITION, PROFILES, READ_MARKERS, RECEIPT_CHANGES, RECEIPTS, REMOTE_DEVICES,
    REMOTE_LISTS, SIGNATURES, STALE_LISTS, TO_DEVICE_TRANSACTIONS, TO_DEVICE_TRANSACTIONS_BY_TIME,
};

#[test]
fn users_rows() {
    let snapshots = [
        include_str!("snapshots/homeserver_users__tests__rows__rows_of_keys_and_devices.snap"),
        include_str!("snapshots/homeserver_users__tests__rows__rows_written_by_use.snap"),
        include_str!(
            "snapshots/homeserver_users__tests__rows__rows_about_other_servers_written_by_use.snap"
        ),
    ];
    let seeds = snapshots.into_iter().flat_map(of_snapshot);
    Target::new("users_rows").seeds(seeds).run(|input| {
        read_row!(
            input,
            [
                ACCOUNTS,
                FIRST_ACCOUNT,
                DEVICES,
                DEVICE_SEEN,
                DEVICE_REMAINS,
                PROFILES,
                ACCOUNT_DATA,
                ACCOUNT_DATA_CHANGES,
                READ_MARKERS,
                FILTERS,
                RECEIPTS,
                RECEIPT_CHANGES,
                DEVICE_KEYS,
                ONE_TIME_KEYS,
                ONE_TIME_KEY_IDS,
                ONE_TIME_KEY_COUNTS,
                FALLBACK_KEYS,
                CROSS_SIGNING_KEYS,
                SIGNATURES,
                DEVICE_LIST_CHANGES,
                INBOX,
                TO_DEVICE_TRANSACTIONS,
                TO_DEVICE_TRANSACTIONS_BY_TIME,
                DEVICE_CHANGES,
                REMOTE_LISTS,
                REMOTE_DEVICES,
                STALE_LISTS,
                OUTGOING,
                OUTGOING_BY_POSITION
            ]
        )
    });
}
