//! Inboxes.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_storage::{Direction, ScanRange};
use serde_json::{Value, json};

use super::{World, device_id, raw, user_id, value};
use crate::{
    DeviceNumber, INBOX_PAGE, MAX_DELIVERED_BYTES, MAX_INBOX, MAX_INBOX_BYTES,
    MAX_TO_DEVICE_CONTENT, Recipient, ToDeviceError, ToDeviceRequest, UserNumber,
    tables::TO_DEVICE_TRANSACTIONS,
};

const END: u64 = u64::MAX - 1;

fn to(messages: &[(UserNumber, Recipient, Value)]) -> ToDeviceRequest {
    let mut by_user: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for (user, recipient, content) in messages {
        by_user
            .entry(*user)
            .or_default()
            .insert(recipient.clone(), raw(content));
    }
    ToDeviceRequest {
        sender: user_id("sender"),
        event_type: "m.dummy".to_owned(),
        messages: by_user,
        remote: BTreeMap::new(),
        transaction: None,
    }
}

async fn contents(world: &World, device: DeviceNumber) -> Vec<Value> {
    let page = world.users.inbox.page(device, 0, END).await.unwrap();
    page.messages
        .iter()
        .map(|message| value(&message.content))
        .collect()
}

#[tokio::test]
async fn a_wildcard_reaches_all_devices_and_a_named_device_has_its_own() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let (a1, a2) = (
        world.device(alice, "A1").await,
        world.device(alice, "A2").await,
    );
    let b1 = world.device(bob, "B1").await;
    let request = to(&[
        (alice, Recipient::AllDevices, json!({ "for": "all" })),
        (
            alice,
            Recipient::Device(device_id("A2")),
            json!({ "for": "A2" }),
        ),
        (
            bob,
            Recipient::Device(device_id("B1")),
            json!({ "for": "B1" }),
        ),
        (
            bob,
            Recipient::Device(device_id("UNKNOWN")),
            json!({ "for": "nobody" }),
        ),
        (
            UserNumber(99_999),
            Recipient::AllDevices,
            json!({ "for": "nobody" }),
        ),
    ]);
    world.users.inbox.send(&request).await.unwrap();
    assert_eq!(contents(&world, a1).await, [json!({ "for": "all" })]);
    assert_eq!(contents(&world, a2).await, [json!({ "for": "A2" })]);
    assert_eq!(contents(&world, b1).await, [json!({ "for": "B1" })]);
    let page = world.users.inbox.page(a1, 0, END).await.unwrap();
    assert_eq!(page.messages[0].sender, user_id("sender"));
    assert_eq!(page.messages[0].event_type, "m.dummy");
    let rows = world.store.scan(
        &crate::tables::INBOX,
        ScanRange::all(),
        Direction::Forward,
        9,
    );
    assert_eq!(
        rows.await.unwrap().len(),
        3,
        "nothing is stored for strangers"
    );
}

#[tokio::test]
async fn messages_come_in_pages_until_they_are_acknowledged() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "A").await;
    let inbox = &world.users.inbox;
    for number in 0..INBOX_PAGE + 20 {
        let request = to(&[(alice, Recipient::AllDevices, json!({ "n": number }))]);
        inbox.send(&request).await.unwrap();
    }
    let upto = world.store.durable();
    let first = inbox.page(device, 0, upto).await.unwrap();
    assert!(first.more && first.messages.len() == INBOX_PAGE && first.upto < upto);
    // Unacknowledged they come again.
    let again = inbox.page(device, 0, upto).await.unwrap();
    assert_eq!(again.upto, first.upto);
    inbox.acknowledge(device, first.upto).await.unwrap();
    let rest = inbox.page(device, 0, upto).await.unwrap();
    assert!(!rest.more && rest.upto == upto);
    let numbers = rest
        .messages
        .iter()
        .map(|message| value(&message.content)["n"].clone());
    let expected = (INBOX_PAGE..INBOX_PAGE + 20).map(|number| json!(number));
    assert!(numbers.eq(expected));
    inbox.acknowledge(device, upto).await.unwrap();
    assert!(contents(&world, device).await.is_empty());
}

#[tokio::test]
async fn a_repeated_transaction_does_nothing_for_a_day() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let (sender, device) = (
        world.device(alice, "S").await,
        world.device(alice, "A").await,
    );
    let inbox = &world.users.inbox;
    let mut request = to(&[(alice, Recipient::Device(device_id("A")), json!({}))]);
    request.transaction = Some(crate::Transaction::Client(sender, "t1".to_owned()));
    for _ in 0..3 {
        inbox.send(&request).await.unwrap();
    }
    assert_eq!(contents(&world, device).await.len(), 1);
    // Another type, another device, another id: another transaction.
    let others = [
        ToDeviceRequest {
            event_type: "m.other".to_owned(),
            ..request.clone()
        },
        ToDeviceRequest {
            transaction: Some(crate::Transaction::Client(device, "t1".to_owned())),
            ..request.clone()
        },
        ToDeviceRequest {
            transaction: Some(crate::Transaction::Client(sender, "t2".to_owned())),
            ..request.clone()
        },
    ];
    for other in &others {
        inbox.send(other).await.unwrap();
    }
    assert_eq!(contents(&world, device).await.len(), 4);
    world.clock.advance(std::time::Duration::from_hours(23));
    world.users.sweep().await.unwrap();
    inbox.send(&request).await.unwrap();
    assert_eq!(contents(&world, device).await.len(), 4);
    world.clock.advance(std::time::Duration::from_hours(2));
    world.users.sweep().await.unwrap();
    let rows = world.store.scan(
        &TO_DEVICE_TRANSACTIONS,
        ScanRange::all(),
        Direction::Forward,
        9,
    );
    assert!(rows.await.unwrap().is_empty());
    inbox.send(&request).await.unwrap();
    assert_eq!(contents(&world, device).await.len(), 5);
}

#[tokio::test]
async fn of_racing_repetitions_one_delivers() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "A").await;
    let mut request = to(&[(alice, Recipient::AllDevices, json!({}))]);
    request.transaction = Some(crate::Transaction::Client(device, "t".to_owned()));
    let sends = (0..10).map(|_| world.users.inbox.send(&request));
    for sent in futures_util::future::join_all(sends).await {
        sent.unwrap();
    }
    assert_eq!(contents(&world, device).await.len(), 1);
}

#[tokio::test]
async fn a_request_larger_than_a_batch_reaches_everybody_once() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let mut devices = BTreeSet::new();
    for number in 0..450 {
        devices.insert(world.device(alice, &format!("D{number:03}")).await);
    }
    let mut request = to(&[(alice, Recipient::AllDevices, json!({}))]);
    let sender = *devices.first().unwrap();
    request.transaction = Some(crate::Transaction::Client(sender, "t".to_owned()));
    let sends = (0..4).map(|_| world.users.inbox.send(&request));
    for sent in futures_util::future::join_all(sends).await {
        sent.unwrap();
    }
    for device in devices {
        assert_eq!(contents(&world, device).await.len(), 1, "{device}");
    }
}

#[tokio::test]
async fn what_is_too_large_or_malformed_is_refused() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "A").await;
    let inbox = &world.users.inbox;
    let large = json!("x".repeat(MAX_TO_DEVICE_CONTENT));
    let large = inbox
        .send(&to(&[(alice, Recipient::AllDevices, large)]))
        .await;
    assert!(matches!(large, Err(ToDeviceError::TooLarge)));
    let good = to(&[(alice, Recipient::AllDevices, json!({}))]);
    let bad = ToDeviceRequest {
        event_type: "t".repeat(256),
        ..good.clone()
    };
    assert!(matches!(
        inbox.send(&bad).await,
        Err(ToDeviceError::BadIdentifier(_))
    ));
    let bad = ToDeviceRequest {
        transaction: Some(crate::Transaction::Client(device, String::new())),
        ..good
    };
    assert!(matches!(
        inbox.send(&bad).await,
        Err(ToDeviceError::BadIdentifier(_))
    ));
    assert!(contents(&world, device).await.is_empty());
}

#[tokio::test]
async fn an_inbox_that_nobody_reads_stops_growing() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "A").await;
    let inbox = &world.users.inbox;
    let request = to(&[(alice, Recipient::AllDevices, json!({}))]);
    for _ in 0..MAX_INBOX + 5 {
        inbox.send(&request).await.unwrap();
    }
    let rows = world.store.scan(
        &crate::tables::INBOX,
        ScanRange::all(),
        Direction::Forward,
        20_000,
    );
    let rows = rows.await.unwrap();
    assert_eq!(rows.len() as u64, MAX_INBOX);
    // Room is made by reading.
    inbox.acknowledge(device, rows[9].0.1).await.unwrap();
    let before = world.store.durable();
    inbox.send(&request).await.unwrap();
    let page = inbox.page(device, before, END).await.unwrap();
    assert_eq!(page.messages.len(), 1);
}

#[tokio::test]
async fn an_inbox_is_bounded_in_bytes_too() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "D").await;
    let inbox = &world.users.inbox;
    let large = json!({ "ciphertext": "x".repeat(MAX_TO_DEVICE_CONTENT - 20) });
    let request = to(&[(alice, Recipient::AllDevices, large)]);
    let fit = MAX_INBOX_BYTES / MAX_TO_DEVICE_CONTENT as u64;
    for _ in 0..fit + 5 {
        inbox.send(&request).await.unwrap();
    }
    let rows = world.store.scan(
        &crate::tables::INBOX,
        ScanRange::all(),
        Direction::Forward,
        20_000,
    );
    let rows = rows.await.unwrap();
    assert_eq!(rows.len() as u64, fit);
    inbox.acknowledge(device, rows[9].0.1).await.unwrap();
    let before = world.store.durable();
    inbox.send(&request).await.unwrap();
    let page = inbox.page(device, before, END).await.unwrap();
    assert_eq!(page.messages.len(), 1);
}

#[tokio::test]
async fn the_journal_wakes_each_device() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let mut devices = Vec::new();
    for number in 0..20 {
        devices.push(world.device(alice, &format!("D{number:02}")).await);
    }
    let before = world.store.durable();
    let request = to(&[(alice, Recipient::AllDevices, json!({}))]);
    world.users.inbox.send(&request).await.unwrap();
    for device in devices {
        let topic = crate::journal::device(device);
        let last = world.store.journal().last(&[topic]).await.unwrap();
        assert!(last[0].is_some_and(|last| last > before));
    }
}

#[tokio::test]
async fn a_wildcard_multiplies_no_more_than_so_many_bytes() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let content = json!({ "ciphertext": "x".repeat(MAX_TO_DEVICE_CONTENT - 20) });
    let fit = MAX_DELIVERED_BYTES / raw(&content).get().len();
    for number in 0..fit {
        world.device(alice, &format!("D{number}")).await;
    }
    let request = to(&[(alice, Recipient::AllDevices, content)]);
    let mut repeated = request.clone();
    let sender = world.device(bob, "S").await;
    repeated.transaction = Some(crate::Transaction::Client(sender, "t".to_owned()));
    world.users.inbox.send(&repeated).await.unwrap();
    world.device(alice, "one more").await;
    let before = world.store.durable();
    // What was carried out is not judged anew.
    world.users.inbox.send(&repeated).await.unwrap();
    assert_eq!(world.store.durable(), before);
    let refused = world.users.inbox.send(&request).await;
    assert!(matches!(refused, Err(ToDeviceError::TooLarge)));
    assert_eq!(world.store.durable(), before, "nothing of it is stored");
}
