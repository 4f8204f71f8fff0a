//! Account data, tags, filters, receipts, read markers.

use ruma::{OwnedEventId, events::receipt::ReceiptThread};
use serde_json::json;

use super::{World, raw, value};
use crate::{
    AccountDataError, FilterError, MAX_ACCOUNT_DATA, MAX_FILTERS, MAX_TAGS, Receipt, ReceiptKind,
    Scope, TagError, UserNumber,
};

fn event(name: &str) -> OwnedEventId {
    format!("${name}").try_into().unwrap()
}

fn receipt(user: UserNumber, kind: ReceiptKind, arrival: u64) -> Receipt {
    Receipt {
        user,
        kind,
        thread: ReceiptThread::Unthreaded,
        event_id: event(&format!("e{arrival}")),
        arrival,
        at: 1_000 + arrival,
    }
}

#[tokio::test]
async fn only_the_last_value_is_told_and_in_order() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let data = &world.users.account_data;
    let start = world.store.durable();
    let content = raw(&json!({ "a": 1 }));
    let first = data
        .set(alice, Scope::Global, "m.direct", &content)
        .await
        .unwrap();
    data.set(alice, Scope::Room(5), "m.marked_unread", &content)
        .await
        .unwrap();
    let last = data
        .set(alice, Scope::Global, "m.direct", &content)
        .await
        .unwrap();
    let told = |changes: Vec<crate::AccountDatum>| {
        let told = changes
            .into_iter()
            .map(|datum| (datum.scope, datum.event_type));
        told.collect::<Vec<_>>()
    };
    let changes = data.changes(alice, start, last).await.unwrap();
    let expected = [
        (Scope::Room(5), "m.marked_unread".to_owned()),
        (Scope::Global, "m.direct".to_owned()),
    ];
    assert_eq!(told(changes), expected);
    // What is newer than the reader's position is told next time.
    let changes = data.changes(alice, start, first).await.unwrap();
    assert_eq!(told(changes), []);
    assert!(
        data.changes(alice, last, last + 10)
            .await
            .unwrap()
            .is_empty()
    );
    // Replaced entries are gone from the journal.
    let topic = crate::journal::user(alice);
    let entries = world
        .store
        .journal()
        .read(topic, start, last, 10)
        .await
        .unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(data.of_scope(alice, Scope::Global).await.unwrap().len(), 1);
    let bob = world.user("bob").await;
    assert!(
        data.one(bob, Scope::Global, "m.direct")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn everything_of_a_user_can_be_deleted() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let data = &world.users.account_data;
    let content = raw(&json!({}));
    for room in 1..=150 {
        data.set(alice, Scope::Room(room), "t", &content)
            .await
            .unwrap();
    }
    data.set(alice, Scope::Global, "t", &content).await.unwrap();
    data.set(bob, Scope::Global, "t", &content).await.unwrap();
    data.delete_all(alice).await.unwrap();
    let end = world.store.durable();
    assert!(data.changes(alice, 0, end).await.unwrap().is_empty());
    assert!(
        data.one(alice, Scope::Room(7), "t")
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(data.changes(bob, 0, end).await.unwrap().len(), 1);
}

#[tokio::test]
async fn account_data_has_limits_and_a_managed_type() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let data = &world.users.account_data;
    let content = raw(&json!({}));
    let managed = data
        .set(alice, Scope::Room(5), "m.fully_read", &content)
        .await;
    assert!(matches!(managed, Err(AccountDataError::Managed)));
    let bad = data.set(alice, Scope::Global, "", &content).await;
    assert!(matches!(bad, Err(AccountDataError::BadType(_))));
    let bad = data
        .set(alice, Scope::Global, &"t".repeat(256), &content)
        .await;
    assert!(matches!(bad, Err(AccountDataError::BadType(_))));
    let large = raw(&json!("x".repeat(MAX_ACCOUNT_DATA)));
    let large = data.set(alice, Scope::Global, "large", &large).await;
    assert!(matches!(large, Err(AccountDataError::TooLarge)));
}

#[tokio::test]
async fn concurrent_updates_are_all_kept() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let data = &world.users.account_data;
    let info = serde_json::Map::new();
    let tags: Vec<String> = (0..12).map(|number| format!("u.{number}")).collect();
    let sets = tags.iter().map(|tag| data.set_tag(alice, 5, tag, &info));
    for set in futures_util::future::join_all(sets).await {
        assert!(set.unwrap().is_some());
    }
    assert_eq!(data.tags(alice, 5).await.unwrap().len(), 12);
    assert!(data.remove_tag(alice, 5, "u.3").await.unwrap().is_some());
    assert!(data.remove_tag(alice, 5, "u.3").await.unwrap().is_none());
    assert_eq!(data.tags(alice, 5).await.unwrap().len(), 11);
    assert_eq!(data.tags(alice, 6).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_room_has_a_bounded_number_of_tags() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let data = &world.users.account_data;
    let info = serde_json::Map::new();
    for number in 0..MAX_TAGS {
        data.set_tag(alice, 5, &format!("u.{number}"), &info)
            .await
            .unwrap();
    }
    let full = data.set_tag(alice, 5, "u.more", &info).await;
    assert!(matches!(full, Err(TagError::TooMany)));
    // One that is there may still change.
    let order = json!({ "order": 0.5 });
    data.set_tag(alice, 5, "u.7", order.as_object().unwrap())
        .await
        .unwrap();
    assert_eq!(data.tags(alice, 5).await.unwrap()["u.7"], order);
}

#[tokio::test]
async fn the_fully_read_marker_only_moves_forward() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let data = &world.users.account_data;
    assert!(
        data.set_fully_read(alice, 5, &event("b"), 20)
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        data.set_fully_read(alice, 5, &event("a"), 10)
            .await
            .unwrap()
            .is_none()
    );
    let marker = data
        .one(alice, Scope::Room(5), "m.fully_read")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(value(&marker.content), json!({ "event_id": "$b" }));
    assert!(
        data.set_fully_read(alice, 5, &event("c"), 30)
            .await
            .unwrap()
            .is_some()
    );
    let changes = data.changes(alice, 0, u64::MAX - 1).await.unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(value(&changes[0].content), json!({ "event_id": "$c" }));
}

#[tokio::test]
async fn a_filter_keeps_its_id() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let filters = &world.users.filters;
    let filter = raw(&json!({ "room": { "timeline": { "limit": 5 } } }));
    let id = filters.store(alice, &filter).await.unwrap();
    let before = world.store.durable();
    assert_eq!(filters.store(alice, &filter).await.unwrap(), id);
    assert_eq!(world.store.durable(), before);
    assert_eq!(
        filters.one(alice, &id).await.unwrap().unwrap().get(),
        filter.get()
    );
    assert!(filters.one(bob, &id).await.unwrap().is_none());
    for unknown in [
        "",
        "0",
        "{}",
        "+0000000000000000000000000000001",
        &"0".repeat(32),
    ] {
        assert!(
            filters.one(alice, unknown).await.unwrap().is_none(),
            "{unknown}"
        );
    }
    for number in 1..MAX_FILTERS {
        filters
            .store(alice, &raw(&json!({ "n": number })))
            .await
            .unwrap();
    }
    let full = filters.store(alice, &raw(&json!({ "one": "more" }))).await;
    assert!(matches!(full, Err(FilterError::TooMany)));
    assert_eq!(filters.store(alice, &filter).await.unwrap(), id);
}

#[tokio::test]
async fn a_receipt_never_moves_back() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let receipts = &world.users.receipts;
    let new = receipt(alice, ReceiptKind::Public, 20);
    assert!(receipts.set(5, &new).await.unwrap().is_some());
    let old = receipt(alice, ReceiptKind::Public, 10);
    assert_eq!(receipts.set(5, &old).await.unwrap(), None);
    assert_eq!(receipts.set(5, &new).await.unwrap(), None);
    let stored = receipts.of_user(5, alice).await.unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].receipt, new);
    // Another thread, another type, another room: each has its own.
    let threaded = Receipt {
        thread: ReceiptThread::Main,
        ..old.clone()
    };
    assert!(receipts.set(5, &threaded).await.unwrap().is_some());
    let in_thread = Receipt {
        thread: ReceiptThread::Thread(event("root")),
        ..old.clone()
    };
    assert!(receipts.set(5, &in_thread).await.unwrap().is_some());
    assert!(
        receipts
            .set(5, &receipt(alice, ReceiptKind::Private, 10))
            .await
            .unwrap()
            .is_some()
    );
    assert!(receipts.set(6, &old).await.unwrap().is_some());
    assert_eq!(receipts.of_user(5, alice).await.unwrap().len(), 4);
}

#[tokio::test]
async fn private_receipts_are_their_owners() {
    let world = World::new().await;
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let receipts = &world.users.receipts;
    let start = world.store.durable();
    receipts
        .set(5, &receipt(alice, ReceiptKind::Private, 10))
        .await
        .unwrap();
    let after_private = world.store.durable();
    assert_eq!(
        receipts.changed_rooms(&[5], start).await.unwrap(),
        Vec::<u64>::new()
    );
    receipts
        .set(5, &receipt(alice, ReceiptKind::Public, 9))
        .await
        .unwrap();
    let end = world.store.durable();
    assert_eq!(receipts.changed_rooms(&[4, 5], start).await.unwrap(), [5]);
    let seen_by = async |reader| receipts.changes(5, reader, start, end).await.unwrap();
    assert_eq!(seen_by(alice).await.len(), 2);
    let of_bob = seen_by(bob).await;
    assert_eq!(of_bob.len(), 1);
    assert_eq!(of_bob[0].receipt.kind, ReceiptKind::Public);
    assert_eq!(
        receipts
            .in_room(5, alice, after_private)
            .await
            .unwrap()
            .len(),
        1
    );
    assert!(
        receipts
            .changes(5, alice, end, end + 5)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn of_racing_receipts_the_furthest_wins() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let receipts = &world.users.receipts;
    let racing: Vec<_> = [3_u64, 9, 1, 7, 5, 8, 2]
        .into_iter()
        .map(|arrival| receipt(alice, ReceiptKind::Public, arrival))
        .collect();
    let sets = racing.iter().map(|receipt| receipts.set(5, receipt));
    for set in futures_util::future::join_all(sets).await {
        set.unwrap();
    }
    let stored = receipts
        .in_room(5, alice, world.store.durable())
        .await
        .unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].receipt.arrival, 9);
}
