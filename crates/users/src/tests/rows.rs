//! What is on disk, byte for byte. A change here is a change of the format: it needs a new row
//! version and a migration.

use homeserver_storage::{Bytes, Key, Positioned, Row, Table, ToKey};
use std::collections::BTreeMap;

use super::{World, device_id, raw, user_id};
use crate::{
    AccountKind, Admin, NewAccount, Receipt, ReceiptKind, Scope, Seen,
    cross_signing::CrossSigningKeyRow,
    device_list::DeviceChangeRow,
    keys::{CountsRow, DeviceKeysRow, FallbackKeyRow, OneTimeKeyRow},
    signature::SignatureRow,
    tables,
};

fn hex(bytes: &[u8]) -> String {
    let printable = |byte: &u8| byte.is_ascii_graphic() && *byte != b'\\';
    let shown = bytes.iter().map(|byte| match byte {
        byte if printable(byte) => char::from(*byte).to_string(),
        byte => format!("\\{byte:02x}"),
    });
    shown.collect()
}

fn line<K: Key, V: Row>(table: &Table<K, V>, key: &impl ToKey<Key = K>, row: &V) -> String {
    // What is written must be read back the same, and what is shown is what is written.
    let bytes = row.encode();
    assert_eq!(V::decode(&bytes).unwrap().encode(), bytes);
    format!(
        "{} {} = {}",
        table.spec().name,
        hex(&table.key_bytes(key)),
        hex(&bytes)
    )
}

#[test]
fn rows_of_keys_and_devices() {
    let text = |text: &str| text.to_owned();
    let lines = [
        line(&tables::FIRST_ACCOUNT, &(), &7),
        line(
            &tables::DEVICE_SEEN,
            &5_u64,
            &Seen {
                at: 300,
                ip: Some(text("::1")),
                user_agent: None,
            },
        ),
        line(&tables::DEVICE_REMAINS, &5_u64, &()),
        line(&tables::READ_MARKERS, &(3_u64, 7_u64), &99),
        line(
            &tables::FILTERS,
            &(7_u64, 1_u128),
            &Bytes::from_static(b"{}"),
        ),
        line(&tables::DEVICE_KEYS, &5_u64, &DeviceKeysRow(text("{}"))),
        line(
            &tables::ONE_TIME_KEYS,
            &(5_u64, "alg", 6_u64, 1_u64),
            &OneTimeKeyRow {
                id: text("i"),
                json: text("{}"),
            },
        ),
        line(
            &tables::ONE_TIME_KEY_IDS,
            &(5_u64, "alg", "i"),
            &Positioned::new(6, 1),
        ),
        line(
            &tables::ONE_TIME_KEY_COUNTS,
            &5_u64,
            &CountsRow(BTreeMap::from([(text("a"), 2)])),
        ),
        line(
            &tables::FALLBACK_KEYS,
            &(5_u64, "alg"),
            &FallbackKeyRow {
                id: text("i"),
                json: text("{}"),
                used: true,
            },
        ),
        line(
            &tables::CROSS_SIGNING_KEYS,
            &(7_u64, 0_u8),
            &CrossSigningKeyRow {
                public_key: text("p"),
                json: text("{}"),
            },
        ),
        line(
            &tables::SIGNATURES,
            &(7_u64, 8_u64, "D", "ed25519:p"),
            &SignatureRow(text("s")),
        ),
        line(&tables::DEVICE_LIST_CHANGES, &(7_u64, 9_u64), &()),
        line(
            &tables::TO_DEVICE_TRANSACTIONS_BY_TIME,
            &(1_u64, 5_u64, 2_u128),
            &(),
        ),
    ];
    insta::assert_snapshot!(lines.join("\n"));
}

/// Rows whose parts are private: written by the public interface, read as stored.
#[tokio::test]
async fn rows_written_by_use() {
    let world = World::new().await;
    let users = &world.users;
    let account = NewAccount {
        user_id: user_id("alice"),
        kind: AccountKind::Person,
        admin: Admin::Yes,
        password_hash: Some("h".to_owned()),
    };
    let alice = users.accounts.create(account).await.unwrap().number;
    let device = users
        .devices
        .ensure(alice, &device_id("D"), Some("n"))
        .await
        .unwrap()
        .device;
    let content = raw(&serde_json::json!({}));
    users
        .profiles
        .set(alice, "displayname", &raw(&serde_json::json!("A")))
        .await
        .unwrap();
    users
        .account_data
        .set(alice, Scope::Room(3), "t", &content)
        .await
        .unwrap();
    let receipt = Receipt {
        user: alice,
        kind: ReceiptKind::Private,
        thread: ruma::events::receipt::ReceiptThread::Main,
        event_id: "$e".try_into().unwrap(),
        arrival: 4,
        at: 5,
    };
    users.receipts.set(3, &receipt).await.unwrap();
    let to_all = BTreeMap::from([(crate::Recipient::AllDevices, content)]);
    let request = crate::ToDeviceRequest {
        sender: user_id("bob"),
        event_type: "m.t".to_owned(),
        messages: BTreeMap::from([(alice, to_all)]),
        remote: BTreeMap::new(),
        transaction: Some(crate::Transaction::Client(device.number, "x".to_owned())),
    };
    users.inbox.send(&request).await.unwrap();
    let mut lines = Vec::new();
    macro_rules! dump {
        ($($table:ident),*) => {$(
            let rows = homeserver_storage::ScanRange::all();
            let forward = homeserver_storage::Direction::Forward;
            for (key, row) in world.store.scan(&tables::$table, rows, forward, 10).await.unwrap() {
                lines.push(line(&tables::$table, &key, &row));
            }
        )*};
    }
    dump!(
        ACCOUNTS,
        DEVICES,
        PROFILES,
        ACCOUNT_DATA,
        ACCOUNT_DATA_CHANGES,
        RECEIPTS,
        RECEIPT_CHANGES,
        INBOX,
        TO_DEVICE_TRANSACTIONS
    );
    insta::assert_snapshot!(lines.join("\n"));
}

#[tokio::test]
async fn rows_about_other_servers_written_by_use() {
    let world = World::new().await;
    let users = &world.users;
    let bob: ruma::OwnedUserId = "@bob:b".try_into().unwrap();
    let number = users.number(&bob).await.unwrap();
    let version = users.remote_lists.follow(number).await.unwrap();
    let keys = raw(&serde_json::json!({
        "user_id": bob, "device_id": "D", "algorithms": [], "keys": { "ed25519:D": "k" },
        "signatures": { "@bob:b": { "ed25519:D": "s" } },
    }));
    let list = crate::RemoteDeviceList {
        stream_id: Some(5),
        devices: crate::checked_devices(&bob, [(device_id("D"), keys, Some("n".to_owned()))]),
        ..crate::RemoteDeviceList::default()
    };
    let witness = crate::Witness {
        room: 3,
        event: 4,
        at: 2,
    };
    let stored = users
        .remote_lists
        .store((number, &bob), &list, (version, Some(witness)));
    assert!(stored.await.unwrap());
    users.remote_lists.mark_stale(number).await.unwrap();
    let content = raw(&serde_json::json!({}));
    let request = crate::ToDeviceRequest {
        sender: user_id("alice"),
        event_type: "m.t".to_owned(),
        messages: BTreeMap::new(),
        remote: BTreeMap::from([(
            bob,
            BTreeMap::from([(crate::Recipient::AllDevices, content)]),
        )]),
        transaction: None,
    };
    users.inbox.send(&request).await.unwrap();
    let mut lines = vec![line(
        &tables::DEVICE_CHANGES,
        &(7_u64, 9_u64),
        &DeviceChangeRow(Some("D".to_owned())),
    )];
    macro_rules! dump {
        ($($table:ident),*) => {$(
            let rows = homeserver_storage::ScanRange::all();
            let forward = homeserver_storage::Direction::Forward;
            for (key, row) in world.store.scan(&tables::$table, rows, forward, 10).await.unwrap() {
                lines.push(line(&tables::$table, &key, &row));
            }
        )*};
    }
    dump!(
        REMOTE_LISTS,
        REMOTE_DEVICES,
        STALE_LISTS,
        OUTGOING,
        OUTGOING_BY_POSITION
    );
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn tables_have_their_numbers() {
    let lines: Vec<_> = tables::TABLES
        .iter()
        .map(|spec| format!("{:#04x} {}", spec.id, spec.name))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
    assert!(
        tables::TABLES
            .iter()
            .all(|spec| (0x40..0x70).contains(&spec.id))
    );
}
