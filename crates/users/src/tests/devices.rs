//! Devices and device lists.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_storage::{Batch, Direction, ScanRange, Table};
use serde_json::json;

use super::{World, device_id, keys::device_keys, raw, user_id};
use crate::{
    DeviceChange, DeviceError, Failure, KeyUpload, Recipient, ToDeviceRequest,
    tables::{DEVICE_REMAINS, INBOX, ONE_TIME_KEY_IDS, ONE_TIME_KEYS},
};

#[tokio::test]
async fn a_device_is_created_once_and_renamed() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let devices = &world.users.devices;
    let first = devices
        .ensure(alice, &device_id("D"), Some("Phone"))
        .await
        .unwrap();
    let again = devices
        .ensure(alice, &device_id("D"), Some("Other"))
        .await
        .unwrap();
    assert!(first.created && !again.created);
    assert_eq!(first.device, again.device);
    devices
        .rename(alice, &device_id("D"), Some("Tablet"))
        .await
        .unwrap();
    let device = devices.one(alice, &device_id("D")).await.unwrap().unwrap();
    assert_eq!(device.display_name.as_deref(), Some("Tablet"));
    assert_eq!(device.number, first.device.number);
    let unknown = devices.rename(alice, &device_id("X"), None).await;
    assert!(matches!(unknown, Err(DeviceError::NotFound)));
    for bad in ["", "a\nb", &"d".repeat(256)] {
        let bad = devices.ensure(alice, &device_id(bad), None).await;
        assert!(matches!(bad, Err(DeviceError::BadId)));
    }
    let long = devices
        .rename(alice, &device_id("D"), Some(&"n".repeat(2_000)))
        .await;
    assert!(matches!(long, Err(DeviceError::NameTooLong)));
}

#[tokio::test]
async fn racing_logins_on_one_device_make_one() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let id = device_id("D");
    let logins = (0..10).map(|_| world.users.devices.ensure(alice, &id, None));
    let devices = futures_util::future::join_all(logins).await;
    let devices: Vec<_> = devices.into_iter().map(Result::unwrap).collect();
    assert_eq!(devices.iter().filter(|ensured| ensured.created).count(), 1);
    let numbers: BTreeSet<_> = devices
        .iter()
        .map(|ensured| ensured.device.number)
        .collect();
    assert_eq!(numbers.len(), 1);
}

/// A table of somebody else, as the homeserver's tokens are.
const TOKENS: Table<String, u64> = Table::new(0x80, "tokens");

#[tokio::test]
async fn what_comes_with_a_device_is_committed_with_it_or_not_at_all() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let token = |value: u64| {
        let mut batch = Batch::new();
        batch.assert_absent(&TOKENS, &"t");
        batch.put(&TOKENS, &"t", &value);
        batch
    };
    let devices = &world.users.devices;
    devices
        .ensure_with(alice, &device_id("A"), None, &token(1))
        .await
        .unwrap();
    assert_eq!(world.store.get(&TOKENS, &"t").await.unwrap(), Some(1));
    for id in ["A", "B"] {
        let refused = devices
            .ensure_with(alice, &device_id(id), None, &token(2))
            .await;
        assert!(
            matches!(refused, Err(DeviceError::Failure(Failure::Refused))),
            "{id}"
        );
    }
    assert!(devices.one(alice, &device_id("B")).await.unwrap().is_none());
    let mut revoke = Batch::new();
    revoke.delete(&TOKENS, &"t");
    devices
        .delete(alice, &[device_id("A")], revoke.clone())
        .await
        .unwrap();
    assert_eq!(world.store.get(&TOKENS, &"t").await.unwrap(), None);
    // Also when there is no device to delete.
    world.store.commit(token(3)).await.unwrap();
    devices
        .delete(alice, &[device_id("A")], revoke)
        .await
        .unwrap();
    assert_eq!(world.store.get(&TOKENS, &"t").await.unwrap(), None);
}

#[tokio::test]
async fn the_longest_unseen_device_has_no_keys() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let devices = &world.users.devices;
    let mut numbers = Vec::new();
    // In another order than that of their ids.
    for id in ["C", "B", "A"] {
        numbers.push(world.device(alice, id).await);
        world.clock.advance(std::time::Duration::from_hours(1));
    }
    let longest = async || {
        let longest = devices.longest_unseen_without_keys(alice).await;
        longest.unwrap().map(|id| id.to_string())
    };
    assert_eq!(longest().await.as_deref(), Some("C"));
    devices.seen(numbers[0], None, None).await.unwrap();
    // Which was not waited for; what comes after it is.
    world.user("bob").await;
    assert_eq!(longest().await.as_deref(), Some("B"));
    for (id, left) in [("B", Some("A")), ("A", Some("C")), ("C", None)] {
        let upload = KeyUpload {
            device_keys: Some(device_keys("alice", id, "key")),
            ..KeyUpload::default()
        };
        let owner = (alice, &*user_id("alice"));
        let keys = &world.users.keys;
        keys.upload(owner, &device_id(id), &upload).await.unwrap();
        assert_eq!(longest().await.as_deref(), left);
    }
}

#[tokio::test]
async fn last_seen_is_written_once_a_minute() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let number = world.device(alice, "D").await;
    let devices = &world.users.devices;
    let seen = async || {
        // A later durable commit carries the lazy one with it.
        world.user(&format!("u{}", world.store.durable())).await;
        devices
            .one(alice, &device_id("D"))
            .await
            .unwrap()
            .unwrap()
            .last_seen
            .unwrap()
    };
    devices
        .seen(number, Some("192.0.2.1"), Some("agent"))
        .await
        .unwrap();
    let first = seen().await;
    assert_eq!(first.ip.as_deref(), Some("192.0.2.1"));
    world.clock.advance(std::time::Duration::from_secs(59));
    devices
        .seen(number, Some("192.0.2.1"), Some("agent"))
        .await
        .unwrap();
    assert_eq!(seen().await, first);
    devices.seen(number, Some("192.0.2.2"), None).await.unwrap();
    assert_eq!(seen().await.at, first.at + 59_000);
    world.clock.advance(std::time::Duration::from_mins(1));
    devices.seen(number, Some("192.0.2.2"), None).await.unwrap();
    assert_eq!(seen().await.at, first.at + 119_000);
}

#[tokio::test]
async fn a_deleted_device_leaves_nothing() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let old = world.device(alice, "D").await;
    let one_time_keys = (0..200).map(|number| {
        (
            format!("signed_curve25519:K{number}"),
            raw(&json!({ "key": "k", "signatures": {} })),
        )
    });
    let upload = KeyUpload {
        device_keys: Some(device_keys("alice", "D", "key")),
        one_time_keys: one_time_keys.collect(),
        ..KeyUpload::default()
    };
    let keys = &world.users.keys;
    keys.upload((alice, &user_id("alice")), &device_id("D"), &upload)
        .await
        .unwrap();
    for number in 0..30 {
        let to_all = BTreeMap::from([(Recipient::AllDevices, raw(&json!({ "n": number })))]);
        let request = ToDeviceRequest {
            sender: user_id("bob"),
            event_type: "m.dummy".to_owned(),
            messages: BTreeMap::from([(alice, to_all)]),
            remote: BTreeMap::new(),
            transaction: None,
        };
        world.users.inbox.send(&request).await.unwrap();
    }
    let before = world.store.durable();
    let gone = world
        .users
        .devices
        .delete(alice, &[device_id("D")], Batch::new())
        .await
        .unwrap();
    assert_eq!(gone, [old]);
    let now = world.store.durable();
    assert_eq!(
        world.users.device_lists.changed(before, now).await.unwrap(),
        [alice].into()
    );
    // Created anew it is another device: no keys, no messages.
    let new = world.device(alice, "D").await;
    assert_ne!(new, old);
    assert!(keys.counts(new).await.unwrap().is_empty());
    assert!(keys.of_user(alice, &[], alice).await.unwrap().is_empty());
    let claimed = keys
        .claim(alice, &device_id("D"), "signed_curve25519")
        .await
        .unwrap();
    assert!(claimed.is_none());
    assert!(
        world
            .users
            .inbox
            .page(new, 0, u64::MAX - 1)
            .await
            .unwrap()
            .messages
            .is_empty()
    );
    // And nothing is left of the old one.
    world.users.sweep().await.unwrap();
    let left = async |count: usize| assert_eq!(count, 0);
    let scan = Direction::Forward;
    left(
        world
            .store
            .scan(&INBOX, ScanRange::all(), scan, 10)
            .await
            .unwrap()
            .len(),
    )
    .await;
    left(
        world
            .store
            .scan(&ONE_TIME_KEYS, ScanRange::all(), scan, 10)
            .await
            .unwrap()
            .len(),
    )
    .await;
    left(
        world
            .store
            .scan(&ONE_TIME_KEY_IDS, ScanRange::all(), scan, 10)
            .await
            .unwrap()
            .len(),
    )
    .await;
    left(
        world
            .store
            .scan(&DEVICE_REMAINS, ScanRange::all(), scan, 10)
            .await
            .unwrap()
            .len(),
    )
    .await;
}

#[tokio::test]
async fn a_rename_changes_the_list_only_where_there_are_keys() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    world.device(alice, "D").await;
    let lists = &world.users.device_lists;
    let start = world.store.durable();
    world
        .users
        .devices
        .rename(alice, &device_id("D"), Some("x"))
        .await
        .unwrap();
    let renamed = world.store.durable();
    assert!(lists.changed(start, renamed).await.unwrap().is_empty());
    assert!(!lists.has_changed(alice, start, renamed).await.unwrap());
    let keys = Some(device_keys("alice", "D", "key"));
    let upload = KeyUpload {
        device_keys: keys,
        ..KeyUpload::default()
    };
    let owner = (alice, user_id("alice"));
    world
        .users
        .keys
        .upload((owner.0, &owner.1), &device_id("D"), &upload)
        .await
        .unwrap();
    let uploaded = world.store.durable();
    world
        .users
        .devices
        .rename(alice, &device_id("D"), Some("y"))
        .await
        .unwrap();
    let end = world.store.durable();
    assert_eq!(lists.changed(uploaded, end).await.unwrap(), [alice].into());
    assert!(lists.has_changed(alice, uploaded, end).await.unwrap());
    assert!(!lists.has_changed(alice, end, end + 9).await.unwrap());
    // A name is nothing that other servers are told.
    let last = lists.version(alice, end).await.unwrap();
    assert!(last > renamed && last <= uploaded);
    assert_eq!(lists.version(alice, renamed).await.unwrap(), 0);
    let told = lists.told(alice, (0, end), 9).await.unwrap();
    let change = DeviceChange {
        position: last,
        device: Some(device_id("D")),
    };
    assert_eq!(told, [change]);

    // Journal entries go; the newest change of those that are gone stays known.
    let entries = world.store.journal().read_all(0, end, 1_000).await.unwrap();
    lists.forget_before(&entries).await.unwrap();
    assert_eq!(lists.version(alice, end).await.unwrap(), last);
    assert_eq!(lists.version(alice, last - 1).await.unwrap(), 0);
}
