//! What comes from other servers and goes to them.

use std::collections::BTreeMap;

use ruma::{OwnedUserId, ServerName, UserId, server_name};
use serde_json::{Value, json, value::RawValue};

use super::{World, device_id, raw, signing::Client, user_id, value};
use crate::{
    CrossSigningKeys, DeviceListUpdate, MAX_DEVICES, OutgoingMessage, Recipient, RemoteDeviceList,
    ToDeviceError, ToDeviceRequest, Transaction, Updated, UserNumber, Users, Witness,
    checked_devices, checked_one_time_key,
};

const END: u64 = u64::MAX - 1;

fn bob() -> OwnedUserId {
    "@bob:there.example".try_into().unwrap()
}

fn keys_of(user: &UserId, device: &str, key: &str) -> Box<RawValue> {
    raw(&json!({
        "user_id": user, "device_id": device, "algorithms": ["a"],
        "keys": { format!("ed25519:{device}"): key },
        "signatures": { user.as_str(): { format!("ed25519:{device}"): "sig" } },
        "unsigned": { "device_display_name": "not signed" },
    }))
}

fn update(device: &str, stream_id: u64, prev_ids: &[u64]) -> DeviceListUpdate {
    DeviceListUpdate {
        device_id: device_id(device),
        stream_id,
        prev_ids: prev_ids.to_vec(),
        keys: Some(keys_of(&bob(), device, "k")),
        name: Some("phone".to_owned()),
        deleted: false,
    }
}

/// A list with these devices, as of an update.
fn list(stream_id: u64, devices: &[&str]) -> RemoteDeviceList {
    let told = devices
        .iter()
        .map(|id| (device_id(id), keys_of(&bob(), id, "k"), None));
    RemoteDeviceList {
        stream_id: Some(stream_id),
        devices: checked_devices(&bob(), told),
        ..RemoteDeviceList::default()
    }
}

async fn devices(users: &Users, user: UserNumber) -> Vec<String> {
    let devices = users.remote_lists.devices(user, &[]).await.unwrap();
    devices.into_keys().map(|id| id.to_string()).collect()
}

#[tokio::test]
async fn updates_that_follow_what_is_known_are_applied_and_others_leave_a_gap() {
    let world = World::new().await;
    let lists = &world.users.remote_lists;
    let number = world.users.number(&bob()).await.unwrap();
    let user = (number, &*bob());
    let nobody = lists.update(user, &update("A", 1, &[])).await.unwrap();
    assert_eq!(nobody, Updated::NotFollowed);
    assert!(!lists.mark_stale(number).await.unwrap());
    let version = lists.follow(number).await.unwrap();
    let witness = Witness {
        room: 1,
        event: 2,
        at: 3,
    };
    let fetched = list(5, &["A", "B"]);
    let stored = lists.store(user, &fetched, (version, Some(witness)));
    assert!(stored.await.unwrap());
    let state = lists.state(number).await.unwrap().unwrap();
    assert!(!state.stale && state.fetched && state.witness == Some(witness));
    assert_eq!(devices(&world.users, number).await, ["A", "B"]);

    let before = world.store.durable();
    let changed = async |after| {
        let lists = &world.users.device_lists;
        lists.changed(after, world.store.durable()).await.unwrap()
    };
    let apply = async |update: &DeviceListUpdate| lists.update(user, update).await.unwrap();
    assert_eq!(apply(&update("C", 6, &[5])).await, Updated::Applied);
    assert_eq!(changed(before).await, [number].into());
    let shown = lists.devices(number, &[device_id("C")]).await.unwrap();
    let unsigned = &value(&shown[&device_id("C")])["unsigned"];
    assert_eq!(*unsigned, json!({ "device_display_name": "phone" }));
    // Several at once name the same predecessor, or each other.
    assert_eq!(apply(&update("D", 7, &[5])).await, Updated::Applied);
    let mut gone = update("A", 8, &[6, 7]);
    gone.deleted = true;
    assert_eq!(apply(&gone).await, Updated::Applied);
    assert_eq!(devices(&world.users, number).await, ["B", "C", "D"]);
    // A repetition, and what changes nothing, are no news.
    let before = world.store.durable();
    assert_eq!(apply(&update("D", 7, &[5])).await, Updated::Applied);
    assert_eq!(apply(&update("D", 9, &[8])).await, Updated::Applied);
    assert!(changed(before).await.is_empty());

    for wrong in [
        update("E", 12, &[11]),
        update("E", 12, &[9, 11]),
        update("E", 12, &[]),
        DeviceListUpdate {
            keys: Some(keys_of(&user_id("carol"), "E", "k")),
            ..update("E", 12, &[9])
        },
    ] {
        let before = world.store.durable();
        assert_eq!(apply(&wrong).await, Updated::Stale);
        assert_eq!(changed(before).await, [number].into());
        assert_eq!(lists.stale(UserNumber(0), 9).await.unwrap(), [number]);
        // Nothing is applied before the list was fetched, and it is told once.
        let before = world.store.durable();
        assert_eq!(apply(&update("F", 10, &[9])).await, Updated::Stale);
        assert!(changed(before).await.is_empty());
        let version = lists.state(number).await.unwrap().unwrap().version;
        let fetched = list(9, &["B", "C", "D"]);
        assert!(lists.store(user, &fetched, (version, None)).await.unwrap());
        assert!(lists.stale(UserNumber(0), 9).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_is_told_during_a_fetch_is_not_overwritten() {
    let world = World::new().await;
    let lists = &world.users.remote_lists;
    let number = world.users.number(&bob()).await.unwrap();
    let user = (number, &*bob());
    let version = lists.follow(number).await.unwrap();
    // The answer is from before this.
    lists.update(user, &update("A", 6, &[5])).await.unwrap();
    let old = list(5, &[]);
    assert!(!lists.store(user, &old, (version, None)).await.unwrap());
    assert!(lists.state(number).await.unwrap().unwrap().stale);
    let version = lists.follow(number).await.unwrap();
    assert!(
        lists
            .store(user, &list(6, &["A"]), (version, None))
            .await
            .unwrap()
    );
    assert_eq!(devices(&world.users, number).await, ["A"]);
}

#[tokio::test]
async fn a_list_is_bounded_and_replaced_whole() {
    let world = World::new().await;
    let lists = &world.users.remote_lists;
    let number = world.users.number(&bob()).await.unwrap();
    let user = (number, &*bob());
    let many: Vec<String> = (0..MAX_DEVICES + 9).map(|n| format!("D{n:04}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let version = lists.follow(number).await.unwrap();
    assert!(
        lists
            .store(user, &list(5, &many), (version, None))
            .await
            .unwrap()
    );
    assert_eq!(devices(&world.users, number).await.len(), MAX_DEVICES);
    let one_more = update("E", 6, &[5]);
    assert_eq!(lists.update(user, &one_more).await.unwrap(), Updated::Stale);
    let other: Vec<String> = (0..MAX_DEVICES).map(|n| format!("F{n:04}")).collect();
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    let version = lists.follow(number).await.unwrap();
    assert!(
        lists
            .store(user, &list(6, &other), (version, None))
            .await
            .unwrap()
    );
    assert_eq!(devices(&world.users, number).await, other);
}

fn cross_signing_key(user: &UserId, usage: &str, key: &Client, by: &Client) -> Value {
    let public = key.public();
    let mut object = json!({
        "user_id": user, "usage": [usage],
        "keys": { format!("ed25519:{public}"): public },
    });
    if usage != "master" {
        by.sign(&mut object, user.localpart(), &by.public());
        let signatures = object["signatures"].as_object_mut().unwrap();
        let signature = signatures.values().next().unwrap().clone();
        object["signatures"] = json!({ user.as_str(): signature });
    }
    object
}

#[tokio::test]
async fn cross_signing_keys_of_others_are_checked_and_signed_here() {
    let world = World::new().await;
    let lists = &world.users.remote_lists;
    let number = world.users.number(&bob()).await.unwrap();
    let user = (number, &*bob());
    let (master, other) = (Client::new(1), Client::new(2));
    let bobs = |usage, key, by| raw(&cross_signing_key(&bob(), usage, key, by));
    let keys = |master: &RawValue, self_signing: &RawValue| CrossSigningKeys {
        master: Some(master.to_owned()),
        self_signing: Some(self_signing.to_owned()),
        user_signing: None,
    };
    let (good_master, good_self) = (
        bobs("master", &master, &master),
        bobs("self_signing", &other, &master),
    );
    let good = keys(&good_master, &good_self);
    let nobody = lists.update_cross_signing(user, &good).await.unwrap();
    assert_eq!(nobody, Updated::NotFollowed);
    let version = lists.follow(number).await.unwrap();
    assert!(
        lists
            .store(user, &list(5, &[]), (version, None))
            .await
            .unwrap()
    );
    let told = lists.update_cross_signing(user, &good).await.unwrap();
    assert_eq!(told, Updated::Applied);
    let alice = world.user("alice").await;
    let reader = (alice, &*user_id("alice"));
    let shown = async || world.users.cross_signing.keys(user, reader).await.unwrap();
    assert_eq!(value(&shown().await.master.unwrap()), value(&good_master));
    assert_eq!(
        value(&shown().await.self_signing.unwrap()),
        value(&good_self)
    );
    assert!(shown().await.user_signing.is_none());

    // Alice signs Bob's master key, which she alone sees.
    let alice_key = |usage: &str, key: &Client, by: &Client| {
        let key = cross_signing_key(&user_id("alice"), usage, key, by);
        Some(raw(&key))
    };
    let (own_master, signer) = (Client::new(5), Client::new(6));
    let upload = crate::CrossSigningUpload {
        master: alice_key("master", &own_master, &own_master),
        self_signing: None,
        user_signing: alice_key("user_signing", &signer, &own_master),
    };
    let own = &world.users.cross_signing;
    own.upload(reader, &upload, crate::Proved::Yes)
        .await
        .unwrap();
    let mut signed = value(&good_master);
    signer.sign(&mut signed, "alice", &signer.public());
    let objects = BTreeMap::from([(bob(), BTreeMap::from([(master.public(), raw(&signed))]))]);
    let failures = own.add_signatures(reader, &objects).await.unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    let by_alice = |keys: &RawValue| value(keys)["signatures"]["@alice:localhost"].clone();
    assert!(by_alice(&shown().await.master.unwrap()).is_object());
    let public = own.public_keys(user).await.unwrap();
    assert_eq!(by_alice(&public.master.unwrap()), Value::Null);

    // Not this user's; not signed by the master key.
    let carols = raw(&cross_signing_key(
        &user_id("carol"),
        "master",
        &other,
        &other,
    ));
    let unsigned = bobs("self_signing", &master, &other);
    for wrong in [keys(&carols, &good_self), keys(&good_master, &unsigned)] {
        let told = lists.update_cross_signing(user, &wrong).await.unwrap();
        assert_eq!(told, Updated::Stale);
        let version = lists.follow(number).await.unwrap();
        let mut fetched = list(5, &[]);
        (fetched.master, fetched.self_signing) =
            (Some(good_master.clone()), Some(good_self.clone()));
        assert!(lists.store(user, &fetched, (version, None)).await.unwrap());
        let public = own.public_keys(user).await.unwrap();
        assert_eq!(value(&public.master.unwrap()), value(&good_master));
    }
}

#[test]
fn claimed_keys_are_of_the_algorithm_asked_for() {
    let key = raw(&json!({ "key": "k", "signatures": {} }));
    assert!(checked_one_time_key("a:1", "a", &key));
    assert!(!checked_one_time_key("b:1", "a", &key));
    assert!(!checked_one_time_key("a", "a", &key));
    assert!(!checked_one_time_key("a:1", "a", &raw(&json!(["k"]))));
}

fn to_remote(messages: &[(&UserId, Recipient, Value)]) -> ToDeviceRequest {
    let mut remote: BTreeMap<OwnedUserId, BTreeMap<_, _>> = BTreeMap::new();
    for (user, recipient, content) in messages {
        let of_user = remote.entry((*user).to_owned()).or_default();
        of_user.insert(recipient.clone(), raw(content));
    }
    ToDeviceRequest {
        sender: user_id("alice"),
        event_type: "m.dummy".to_owned(),
        messages: BTreeMap::new(),
        remote,
        transaction: None,
    }
}

async fn waiting(world: &World, server: &ServerName) -> Vec<OutgoingMessage> {
    world
        .users
        .outgoing
        .page(server, 0, END, 1_000)
        .await
        .unwrap()
}

#[tokio::test]
async fn messages_wait_for_other_servers_until_these_have_them() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "A").await;
    let carol: OwnedUserId = "@carol:third.example".try_into().unwrap();
    let mut request = to_remote(&[
        (&bob(), Recipient::AllDevices, json!({ "n": 1 })),
        (&bob(), Recipient::Device(device_id("B")), json!({ "n": 2 })),
        (&carol, Recipient::Device(device_id("C")), json!({})),
    ]);
    let to_alice = BTreeMap::from([(Recipient::AllDevices, raw(&json!({})))]);
    request.messages.insert(alice, to_alice);
    request.transaction = Some(Transaction::Client(device, "t".to_owned()));
    for _ in 0..2 {
        world.users.inbox.send(&request).await.unwrap();
    }
    let there = server_name!("there.example");
    let messages = waiting(&world, there).await;
    assert_eq!(messages.len(), 1);
    let content = value(&messages[0].content);
    let id = content["message_id"].as_str().unwrap().to_owned();
    assert_eq!(id.chars().count(), 32);
    let expected = json!({
        "sender": "@alice:localhost", "type": "m.dummy", "message_id": id,
        "messages": { bob().as_str(): { "*": { "n": 1 }, "B": { "n": 2 } } },
    });
    assert_eq!(content, expected);
    assert_eq!(value(&waiting(&world, there).await[0].content), expected);
    let page = world.users.inbox.page(device, 0, END).await.unwrap();
    assert_eq!(page.messages.len(), 1);
    let outgoing = &world.users.outgoing;
    let destinations = outgoing.destinations(0, END, 9).await.unwrap();
    let destinations: Vec<_> = destinations.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(destinations, ["there.example", "third.example"]);

    let first = messages[0].position;
    request.transaction = None;
    world.users.inbox.send(&request).await.unwrap();
    outgoing.delivered(there, first).await.unwrap();
    let messages = waiting(&world, there).await;
    assert_eq!(messages.len(), 1);
    assert_ne!(value(&messages[0].content)["message_id"], id);
    assert_eq!(outgoing.destinations(0, END, 9).await.unwrap().len(), 3);
    world
        .clock
        .advance(std::time::Duration::from_hours(24 * 31));
    world.users.sweep().await.unwrap();
    assert!(waiting(&world, there).await.is_empty());
    assert!(outgoing.destinations(0, END, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn large_requests_are_several_messages_and_what_cannot_be_signed_is_refused() {
    let world = World::new().await;
    let there = server_name!("there.example");
    let content = json!({ "text": "x".repeat(20_000) });
    let devices = (0..50).map(|n| Recipient::Device(device_id(&format!("D{n}"))));
    let messages: Vec<_> = devices.map(|to| (to, content.clone())).collect();
    let user = bob();
    let messages: Vec<_> = messages
        .into_iter()
        .map(|(to, content)| (&*user, to, content))
        .collect();
    world.users.inbox.send(&to_remote(&messages)).await.unwrap();
    let queued = waiting(&world, there).await;
    assert_eq!(queued.len(), 50);
    let mut ids: Vec<_> = queued
        .iter()
        .map(|one| value(&one.content)["message_id"].to_string())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    let fraction = to_remote(&[(&bob(), Recipient::AllDevices, json!({ "n": 1.5 }))]);
    let refused = world.users.inbox.send(&fraction).await;
    assert!(matches!(refused, Err(ToDeviceError::NotCanonical)));
}

#[tokio::test]
async fn a_message_of_another_server_is_delivered_once() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let device = world.device(alice, "A").await;
    let request = |server: &str, id: &str| ToDeviceRequest {
        sender: bob(),
        event_type: "m.dummy".to_owned(),
        messages: BTreeMap::from([(
            alice,
            BTreeMap::from([(Recipient::AllDevices, raw(&json!({})))]),
        )]),
        remote: BTreeMap::new(),
        transaction: Some(Transaction::Server(
            ServerName::parse(server).unwrap(),
            id.to_owned(),
        )),
    };
    for (server, id) in [
        ("there.example", "1"),
        ("there.example", "1"),
        ("there.example", "2"),
        ("third.example", "1"),
    ] {
        world.users.inbox.send(&request(server, id)).await.unwrap();
    }
    let page = world.users.inbox.page(device, 0, END).await.unwrap();
    assert_eq!(page.messages.len(), 3);
    world.clock.advance(std::time::Duration::from_hours(25));
    world.users.sweep().await.unwrap();
    world
        .users
        .inbox
        .send(&request("there.example", "1"))
        .await
        .unwrap();
    let page = world.users.inbox.page(device, 0, END).await.unwrap();
    assert_eq!(page.messages.len(), 4);
    // To nobody: nothing is remembered.
    let mut to_nobody = request("there.example", "9");
    to_nobody.messages.clear();
    world.users.inbox.send(&to_nobody).await.unwrap();
    let rows = world.store.scan(
        &crate::tables::TO_DEVICE_TRANSACTIONS,
        homeserver_storage::ScanRange::all(),
        homeserver_storage::Direction::Forward,
        9,
    );
    assert_eq!(rows.await.unwrap().len(), 1);
}
