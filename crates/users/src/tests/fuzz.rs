//! Stored rows, mutated: damaged ones are refused, and what is read has one form.

use homeserver_fuzz::{Target, read_row, rows::of_snapshot};
use serde_json::value::RawValue;

use crate::tables::{
    ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, ACCOUNTS, CROSS_SIGNING_KEYS, DEVICE_CHANGES, DEVICE_KEYS,
    DEVICE_LIST_CHANGES, DEVICE_REMAINS, DEVICE_SEEN, DEVICES, FALLBACK_KEYS, FILTERS,
    FIRST_ACCOUNT, INBOX, ONE_TIME_KEY_COUNTS, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, OUTGOING,
    OUTGOING_BY_POSITION, PROFILES, READ_MARKERS, RECEIPT_CHANGES, RECEIPTS, REMOTE_DEVICES,
    REMOTE_LISTS, SIGNATURES, STALE_LISTS, TO_DEVICE_TRANSACTIONS, TO_DEVICE_TRANSACTIONS_BY_TIME,
};

/// Keys that another server tells: what is believed of them is believed again as it is stored.
#[test]
fn remote_keys() {
    let user: ruma::OwnedUserId = "@bob:b".try_into().unwrap();
    let device = || <&ruma::DeviceId>::from("D").to_owned();
    let seeds = [
        r#"{"user_id":"@bob:b","device_id":"D","algorithms":["a"],"keys":{"ed25519:D":"k"},"signatures":{"@bob:b":{"ed25519:D":"s"}},"unsigned":{"device_display_name":"n"}}"#,
        r#"{"signatures":{"@bob:b":{"ed25519:D":"s"}},"keys":{"ed25519:D":"k","curve25519:D":"c"},"algorithms":[],"device_id":"D","user_id":"@bob:b","more":[1,null]}"#,
    ];
    let words = ["@bob:b", "ed25519:D", "signatures", "unsigned", "{}", "1.5"];
    Target::new("remote_keys")
        .seeds(seeds.map(|seed| seed.as_bytes().to_vec()))
        .words(&words)
        .run(|input| {
            let Ok(keys) = serde_json::from_slice::<Box<RawValue>>(input) else {
                return false;
            };
            let told = [(device(), keys, None)];
            let devices = crate::checked_devices(&user, told);
            let Some(first) = devices.get(&device()) else {
                return false;
            };
            let again = [(device(), first.keys.clone(), None)];
            let again = crate::checked_devices(&user, again);
            assert_eq!(again[&device()].keys.get(), first.keys.get());
            assert!(
                !first
                    .keys
                    .get()
                    .contains("\"unsigned\":{\"device_display_name\"")
            );
            true
        });
}

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
