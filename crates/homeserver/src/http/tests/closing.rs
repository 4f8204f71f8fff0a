use std::collections::BTreeSet;

use bytes::Bytes;
use homeserver_storage::{Batch, Direction, Key, ScanRange, Table};
use homeserver_users::{AccountState, Scope};
use serde_json::json;

use super::{Fresh, LoggedIn, by_password, fresh, own_password, until_row};
use crate::{
    app::{closing::CLOSINGS, leftovers::Leftovers},
    rooms::{CreateRoom, Membership, Preset},
};

const DEACTIVATE: &str = "/_matrix/client/v3/account/deactivate";

#[tokio::test]
async fn a_closed_account_is_out_of_its_rooms_and_nobody_gets_in() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let other = fresh.login("alice").await;
    fresh.register("bob").await;
    let bob = fresh.homeserver.user("@bob:localhost").await.unwrap();
    let room = CreateRoom {
        preset: Some(Preset::PublicChat),
        ..CreateRoom::default()
    };
    let room = bob.create_room(room).await.unwrap();
    let local = fresh.homeserver.user(&alice.user).await.unwrap();
    local.join(room.clone()).await.unwrap();

    let data = format!(
        "/_matrix/client/v3/user/{}/account_data/org.example",
        alice.user
    );
    fresh
        .put(&data, Some(&alice.token), json!({ "secret": 1 }))
        .await
        .ok();
    let pusher = json!({
        "app_id": "org.example", "pushkey": "k", "kind": "http", "lang": "en",
        "app_display_name": "App", "device_display_name": "Phone",
        "data": { "url": "https://push.example.org/_matrix/push/v1/notify" },
    });
    fresh
        .post("/_matrix/client/v3/pushers/set", Some(&alice.token), pusher)
        .await
        .ok();

    fresh
        .post(DEACTIVATE, None, json!({}))
        .await
        .refused(401, "M_MISSING_TOKEN");
    let asked = fresh.post(DEACTIVATE, Some(&alice.token), json!({})).await;
    assert_eq!(asked.status, 401);
    assert!(fresh.is_good(&alice.token).await);
    let body = json!({ "auth": own_password("alice"), "erase": true });
    let closed = fresh.post(DEACTIVATE, Some(&alice.token), body).await.ok();
    assert_eq!(closed["id_server_unbind_result"], "success");

    assert!(!fresh.is_good(&alice.token).await && !fresh.is_good(&other.token).await);
    let login = fresh
        .post("/_matrix/client/v3/login", None, by_password("alice"))
        .await;
    login.refused(403, "M_USER_DEACTIVATED");
    let again =
        json!({ "username": "alice", "password": "p", "auth": { "type": "m.login.dummy" } });
    fresh
        .post("/_matrix/client/v3/register", None, again)
        .await
        .refused(400, "M_USER_IN_USE");
    assert!(fresh.homeserver.user(&alice.user).await.is_err());

    let components = fresh.homeserver.components();
    let account = fresh.homeserver.administration().account("alice").await;
    let closed = account.unwrap().number;
    assert!(components.pushers.of(closed).await.unwrap().is_empty());
    let data = &components.account_data;
    let datum = data.one(closed, Scope::Global, "org.example").await;
    assert!(datum.unwrap().is_none());
    let rooms = &components.rooms;
    let number = rooms
        .user_number(&ruma::UserId::parse(&alice.user).unwrap())
        .await
        .unwrap();
    let memberships = rooms
        .memberships(number, components.store.durable())
        .await
        .unwrap();
    assert_eq!(memberships.len(), 1);
    assert_eq!(memberships[0].membership, Membership::Leave);

    // An operator's new password does not open it again.
    let reset = fresh
        .homeserver
        .administration()
        .reset_password("alice", "new")
        .await;
    assert!(reset.is_err());
    let login = fresh
        .post("/_matrix/client/v3/login", None, by_password("alice"))
        .await;
    login.refused(403, "M_USER_DEACTIVATED");
}

#[tokio::test]
async fn no_token_and_no_key_survives_the_account() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let bob = fresh.register("bob").await;
    let mut login = by_password("alice");
    login["refresh_token"] = true.into();
    let refreshable = fresh.post("/_matrix/client/v3/login", None, login).await;
    let refresh_token = refreshable.ok()["refresh_token"].clone();
    let proof = json!({ "auth": own_password("alice") });
    let get_token = "/_matrix/client/v1/login/get_token";
    let brief = fresh.post(get_token, Some(&alice.token), proof).await.ok();
    let (user, device) = (&alice.user, &alice.device);
    let signatures = json!({ user: { format!("ed25519:{device}"): "c2lnbmF0dXJl" } });
    let keys = json!({
        "device_keys": {
            "user_id": user, "device_id": device, "algorithms": [],
            "keys": { format!("ed25519:{device}"): "a2V5" }, "signatures": signatures,
        },
        "fallback_keys": {
            "signed_curve25519:AAAA": { "key": "a2V5", "fallback": true, "signatures": signatures },
        },
    });
    let upload = "/_matrix/client/v3/keys/upload";
    fresh.post(upload, Some(&alice.token), keys).await.ok();
    let query = json!({ "device_keys": { user: [] } });
    let query = async || {
        let path = "/_matrix/client/v3/keys/query";
        let answer = fresh.post(path, Some(&bob.token), query.clone()).await;
        answer.ok()["device_keys"][user].clone()
    };
    assert!(query().await[device].is_object());

    let body = json!({ "auth": own_password("alice") });
    fresh.post(DEACTIVATE, Some(&alice.token), body).await.ok();

    let login = json!({ "type": "m.login.token", "token": brief["login_token"] });
    let login = fresh.post("/_matrix/client/v3/login", None, login).await;
    assert_eq!(login.status, 403, "{}", login.body);
    let refresh = json!({ "refresh_token": refresh_token });
    let refresh = fresh
        .post("/_matrix/client/v3/refresh", None, refresh)
        .await;
    refresh.refused(401, "M_UNKNOWN_TOKEN");
    assert!(query().await[device].is_null());
    let claim = json!({ "one_time_keys": { user: { device: "signed_curve25519" } } });
    let path = "/_matrix/client/v3/keys/claim";
    let claimed = fresh.post(path, Some(&bob.token), claim).await.ok();
    assert_eq!(claimed["one_time_keys"], json!({}));
    let account = fresh.homeserver.administration().account("alice").await;
    let devices = fresh
        .homeserver
        .users()
        .devices
        .all(account.unwrap().number);
    assert!(devices.await.unwrap().is_empty());
}

/// The devices that have rows in a table of `homeserver-users` whose keys begin with a device.
async fn devices_in<K: Key>(
    fresh: &Fresh,
    table: &str,
    device: impl Fn(&K) -> u64,
) -> BTreeSet<u64> {
    let mut specs = homeserver_users::TABLES.iter();
    let spec = specs.find(|spec| spec.name == table).unwrap();
    let table = Table::<K, Bytes>::new(spec.id, spec.name);
    let store = &fresh.homeserver.components().store;
    let rows = store.scan(&table, ScanRange::all(), Direction::Forward, 1_000);
    rows.await
        .unwrap()
        .iter()
        .map(|(key, _)| device(key))
        .collect()
}

/// Whose messages wait, and whose transaction ids are remembered.
async fn to_device(fresh: &Fresh) -> [BTreeSet<u64>; 2] {
    [
        devices_in(fresh, "inbox", |key: &(u64, u64)| key.0).await,
        devices_in(fresh, "to_device_transactions", |key: &(u64, u128)| key.0).await,
    ]
}

/// Nothing waits for who does not come back, nor for who never was.
#[tokio::test]
async fn no_message_waits_for_a_closed_account() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    let bob = fresh.register("bob").await;
    let other = fresh.login("alice").await;
    let number = async |of: &LoggedIn| {
        let id = ruma::UserId::parse(&of.user).unwrap();
        let components = fresh.homeserver.components();
        let user = components.users.known_number(&id).await.unwrap().unwrap();
        let device = of.device.as_str().into();
        let number = components.devices.number(user, device).await;
        number.unwrap().unwrap().0
    };
    let [first, second, bobs] = [
        number(&alice).await,
        number(&other).await,
        number(&bob).await,
    ];
    let send = async |from: &LoggedIn, transaction: &str, to: &[&str]| {
        let to = to
            .iter()
            .map(|user| ((*user).to_owned(), json!({ "*": { "a": 1 } })));
        let messages = json!({ "messages": to.collect::<serde_json::Map<_, _>>() });
        let path = format!("/_matrix/client/v3/sendToDevice/m.dummy/{transaction}");
        fresh.put(&path, Some(&from.token), messages).await.ok();
    };
    send(&alice, "1", &[&bob.user]).await;
    send(&bob, "1", &[&alice.user]).await;
    let before = [
        BTreeSet::from([first, second, bobs]),
        BTreeSet::from([first, bobs]),
    ];
    assert_eq!(to_device(&fresh).await, before);

    let body = json!({ "auth": own_password("alice") });
    fresh.post(DEACTIVATE, Some(&alice.token), body).await.ok();
    let after = [BTreeSet::from([bobs]), BTreeSet::from([bobs])];
    assert_eq!(to_device(&fresh).await, after);
    send(&bob, "2", &[&alice.user, "@nobody:localhost"]).await;
    assert_eq!(to_device(&fresh).await, after);
}

/// The profile goes with the account, and rooms are told of that while they are being left.
#[tokio::test]
async fn a_closed_account_with_a_name_leaves_all_its_public_rooms() {
    let fresh = fresh().await;
    let alice = fresh.register("alice").await;
    fresh.register("bob").await;
    let bob = fresh.homeserver.user("@bob:localhost").await.unwrap();
    let name = format!("/_matrix/client/v3/profile/{}/displayname", alice.user);
    let body = json!({ "displayname": "Alice" });
    fresh.put(&name, Some(&alice.token), body).await.ok();
    let local = fresh.homeserver.user(&alice.user).await.unwrap();
    for _ in 0..20 {
        fresh.clock.advance(std::time::Duration::from_millis(1));
        let room = CreateRoom {
            preset: Some(Preset::PublicChat),
            ..CreateRoom::default()
        };
        let room = bob.create_room(room).await.unwrap();
        local.join(room).await.unwrap();
    }
    let body = json!({ "auth": own_password("alice") });
    fresh.post(DEACTIVATE, Some(&alice.token), body).await.ok();
    let components = fresh.homeserver.components();
    let told = components.profile_changes.told_now();
    tokio::time::timeout(std::time::Duration::from_mins(1), told)
        .await
        .unwrap();
    assert_eq!(rooms_left(&fresh, &alice).await, (20, 20));
}

/// How many rooms somebody has been in, and how many of them are left.
async fn rooms_left(fresh: &Fresh, user: &LoggedIn) -> (usize, usize) {
    let components = fresh.homeserver.components();
    let rooms = &components.rooms;
    let id = ruma::UserId::parse(&user.user).unwrap();
    let number = rooms.user_number(&id).await.unwrap();
    let memberships = rooms.memberships(number, components.store.durable()).await;
    let memberships = memberships.unwrap();
    let left = memberships
        .iter()
        .filter(|membership| membership.membership == Membership::Leave);
    (memberships.len(), left.count())
}

async fn in_a_room(fresh: &Fresh, name: &str) -> LoggedIn {
    let user = fresh.register(name).await;
    let local = fresh.homeserver.user(&user.user).await.unwrap();
    local.create_room(CreateRoom::default()).await.unwrap();
    user
}

/// As after a failure between the commit that closes the account and the last room.
#[tokio::test]
async fn an_unfinished_closing_is_finished_without_a_start() {
    let fresh = fresh().await;
    let alice = in_a_room(&fresh, "alice").await;
    let account = fresh.homeserver.administration().account("alice").await;
    let user = account.unwrap().number;
    let components = fresh.homeserver.components();
    let mut batch = Batch::new();
    batch.put(&CLOSINGS, &user.0, &());
    let state = AccountState::Deactivated;
    let closed = components.accounts.deactivate(user, state, &batch).await;
    closed.unwrap();
    assert_eq!(rooms_left(&fresh, &alice).await, (1, 0));
    let leftovers = Leftovers {
        sessions: components.sessions.clone(),
        closing: components.closing.clone(),
        runtime: components.runtime.clone(),
    };
    leftovers.run().await.unwrap();
    assert_eq!(rooms_left(&fresh, &alice).await, (1, 1));
    until_row(&components.store, &CLOSINGS, user.0, false).await;
}
