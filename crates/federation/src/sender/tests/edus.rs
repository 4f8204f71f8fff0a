//! What servers are told beside events.

use std::{collections::BTreeMap, time::Duration};

use homeserver_users::{
    AccountKind, Admin, KeyUpload, NewAccount, Receipt, ReceiptKind, Recipient, ToDeviceRequest,
    UserNumber,
};
use ruma::{OwnedRoomId, events::receipt::ReceiptThread, presence::PresenceState};
use serde_json::{Value, json, value::to_raw_value};

use super::support::{Answers, HERE, Here, alice, user};

const ZED: &str = "@zed:there.example";
const THERE: &str = "there.example";

/// Time after which rows were written, if any are to be.
const WRITTEN: Duration = Duration::from_secs(3);

async fn shared() -> (Here, OwnedRoomId) {
    let here = Here::start().await;
    let room = here.create().await;
    here.remote_member(&room, &user(ZED), "join").await;
    (here, room)
}

impl Here {
    async fn number(&self, id: &str) -> UserNumber {
        self.users.number(&user(id)).await.unwrap()
    }

    async fn send_message(&self, to: &str, text: &str) {
        let content = to_raw_value(&json!({ "text": text })).unwrap();
        let of_user = BTreeMap::from([(Recipient::AllDevices, content)]);
        let request = ToDeviceRequest {
            sender: alice(),
            event_type: "m.test".to_owned(),
            messages: BTreeMap::new(),
            remote: BTreeMap::from([(user(to), of_user)]),
            transaction: None,
        };
        self.users.inbox.send(&request).await.unwrap();
    }

    async fn upload_keys(&self, device: &str) {
        let user = self.number(alice().as_str()).await;
        let id: ruma::OwnedDeviceId = device.into();
        self.users.devices.ensure(user, &id, None).await.unwrap();
        let keys = json!({
            "user_id": alice(), "device_id": device, "algorithms": ["a"],
            "keys": { format!("ed25519:{device}"): "k" },
            "signatures": { alice().as_str(): { format!("ed25519:{device}"): "s" } },
        });
        let upload = KeyUpload {
            device_keys: Some(to_raw_value(&keys).unwrap()),
            ..KeyUpload::default()
        };
        let keys = &self.users.keys;
        keys.upload((user, &alice()), &id, &upload).await.unwrap();
    }

    async fn read(&self, room: &OwnedRoomId, thread: ReceiptThread, kind: ReceiptKind) {
        let number = self.room(room).await.number;
        let event = self.say(room, "read").await;
        let receipt = Receipt {
            user: self.number(alice().as_str()).await,
            kind,
            thread,
            event_id: event,
            arrival: self.store.durable(),
            at: 77,
        };
        let receipts = &self.users.receipts;
        receipts.set(number.0, &receipt).await.unwrap();
    }

    /// Contents of what a server was told, in order.
    fn told(&self, server: &str, edu_type: &str) -> Vec<Value> {
        let transactions = self.wire.transactions(server).into_iter();
        let edus = transactions.flat_map(|one| one["edus"].as_array().unwrap().clone());
        let of_type = edus.filter(|edu| edu["edu_type"] == edu_type);
        of_type.map(|edu| edu["content"].clone()).collect()
    }

    fn texts(&self, server: &str) -> Vec<String> {
        let told = self.told(server, "m.direct_to_device");
        let text = |content: &Value| {
            let of_user = content["messages"].as_object().unwrap();
            let of_user = of_user.values().next().unwrap();
            of_user["*"]["text"].as_str().unwrap().to_owned()
        };
        told.iter().map(text).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn messages_to_devices_wait_until_their_server_has_them() {
    let (here, _) = shared().await;
    here.send_message(ZED, "one").await;
    here.send_message("@eve:evil.example", "denied").await;
    here.until_sent(THERE).await;
    let told = here.told(THERE, "m.direct_to_device");
    assert_eq!(told[0]["sender"], alice().as_str());
    assert_eq!(told[0]["type"], "m.test");
    assert!(told[0]["message_id"].as_str().unwrap().len() <= 32);
    assert_eq!(here.wire.requests("evil.example"), 0);

    here.wire.set(THERE, Answers::Unreachable);
    let mut texts = vec!["one".to_owned()];
    for number in 0..150 {
        let text = format!("m{number}");
        here.send_message(ZED, &text).await;
        texts.push(text);
    }
    tokio::time::sleep(WRITTEN).await;
    assert!(here.sender.pending(&super::support::name(THERE)).to_device);
    let here = here.restart().await;
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    assert_eq!(here.texts(THERE), texts);
    let mut ids: Vec<_> = here.told(THERE, "m.direct_to_device");
    ids.sort_by_key(|content| content["message_id"].to_string());
    ids.dedup_by_key(|content| content["message_id"].to_string());
    assert_eq!(ids.len(), texts.len());
    // They are gone, also for who starts anew.
    let rows = here
        .users
        .outgoing
        .page(THERE.try_into().unwrap(), 0, u64::MAX - 1, 9);
    assert!(rows.await.unwrap().is_empty());
    let here = here.restart().await;
    here.until_sent(THERE).await;
    assert_eq!(here.texts(THERE).len(), texts.len());
    assert!(here.behind().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_refused_does_not_hold_up_the_next() {
    let (here, room) = shared().await;
    here.wire.set(THERE, Answers::Unreachable);
    for number in 0..20 {
        let text = if number == 7 {
            "poison".to_owned()
        } else {
            format!("m{number}")
        };
        here.send_message(ZED, &text).await;
    }
    here.say(&room, "said").await;
    here.wire.set(THERE, Answers::Refuses(vec!["poison"]));
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    assert_eq!(here.texts(THERE).len(), 19);
    assert_eq!(here.wire.heard(THERE), ["said"]);
    assert!(here.wire.requests(THERE) < 25);
}

#[tokio::test(start_paused = true)]
async fn changed_device_lists_follow_each_other() {
    let (here, _) = shared().await;
    let account = NewAccount {
        user_id: alice(),
        kind: AccountKind::Person,
        admin: Admin::No,
        password_hash: None,
    };
    let number = here.users.accounts.create(account).await.unwrap().number;
    here.upload_keys("A").await;
    here.until_sent(THERE).await;
    here.wire.set(THERE, Answers::Unreachable);
    here.upload_keys("B").await;
    let b: ruma::OwnedDeviceId = "B".into();
    here.upload_keys("C").await;
    let none = homeserver_storage::Batch::new();
    here.users.devices.delete(number, &[b], none).await.unwrap();
    tokio::time::sleep(WRITTEN).await;
    let here = here.restart().await;
    assert_eq!(here.behind().await, [THERE]);
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    let told = here.told(THERE, "m.device_list_update");
    let devices: Vec<_> = told
        .iter()
        .map(|one| one["device_id"].as_str().unwrap())
        .collect();
    assert_eq!(devices, ["A", "C", "B"]);
    assert_eq!(told[2]["deleted"], true);
    assert_eq!(told[1]["keys"]["device_id"], "C");
    assert_eq!(told[1]["prev_id"], json!([told[0]["stream_id"]]));
    assert_eq!(told[2]["prev_id"], json!([told[1]["stream_id"]]));
    tokio::time::sleep(WRITTEN).await;
    assert!(here.behind().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn receipts_that_others_may_know_are_told_together() {
    let (here, room) = shared().await;
    here.read(&room, ReceiptThread::Unthreaded, ReceiptKind::Private)
        .await;
    here.until_sent(THERE).await;
    assert!(here.told(THERE, "m.receipt").is_empty());
    here.wire.set(THERE, Answers::Unreachable);
    here.read(&room, ReceiptThread::Unthreaded, ReceiptKind::Public)
        .await;
    here.read(&room, ReceiptThread::Unthreaded, ReceiptKind::Public)
        .await;
    here.read(&room, ReceiptThread::Main, ReceiptKind::Public)
        .await;
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    let told = here.told(THERE, "m.receipt");
    assert_eq!(told.len(), 2, "one for each thread");
    let read = &told[0][room.as_str()]["m.read"][alice().as_str()];
    assert_eq!(read["data"], json!({ "ts": 77 }));
    assert_eq!(read["event_ids"].as_array().unwrap().len(), 1);
    let read = &told[1][room.as_str()]["m.read"][alice().as_str()];
    assert_eq!(read["data"]["thread_id"], "main");
    // Receipts of others are told by their own servers.
    let number = here.room(&room).await.number;
    let receipt = Receipt {
        user: here.number(ZED).await,
        kind: ReceiptKind::Public,
        thread: ReceiptThread::Unthreaded,
        event_id: here.say(&room, "last").await,
        arrival: here.store.durable(),
        at: 78,
    };
    here.users.receipts.set(number.0, &receipt).await.unwrap();
    here.until_sent(THERE).await;
    assert_eq!(here.told(THERE, "m.receipt").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_types_is_told_to_the_servers_of_the_room() {
    let (here, room) = shared().await;
    let other = here.create().await;
    here.remote_member(&other, &user("@yan:yonder.example"), "join")
        .await;
    let number = here.room(&room).await.number.0;
    let typing = &here.users.typing;
    let span = Duration::from_secs(20);
    typing.start_typing(number, alice(), span);
    typing.start_typing(number, user(ZED), span);
    let told = |here: &Here| {
        let told = here.told(THERE, "m.typing");
        let told: Vec<_> = told
            .iter()
            .map(|one| one["typing"].as_bool().unwrap())
            .collect();
        told
    };
    here.until(|here| told(here) == [true]).await;
    let expected = json!({ "room_id": room, "user_id": alice(), "typing": true });
    assert_eq!(here.told(THERE, "m.typing")[0], expected);
    typing.stop_typing(number, &alice());
    here.until(|here| told(here) == [true, false]).await;
    // Of what is over when the server is back it is not told.
    here.wire.set(THERE, Answers::Unreachable);
    typing.start_typing(number, alice(), span);
    here.until(|here| here.wire.requests(THERE) == 3).await;
    here.wire.set(THERE, Answers::Well);
    here.clock.advance(Duration::from_hours(2));
    here.until_sent(THERE).await;
    assert_eq!(told(&here), [true, false]);
    assert_eq!(here.wire.requests("yonder.example"), 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_online_is_told_to_servers_that_share_a_room() {
    let begun = tokio::time::Instant::now();
    let (here, _) = shared().await;
    let number = here.number(alice().as_str()).await;
    let presence = &here.users.presence;
    let hello = || Some("hello".to_owned());
    presence.set(number, PresenceState::Online, hello());
    let zed = here.number(ZED).await;
    presence.set(zed, PresenceState::Online, None);
    here.until(|here| here.told(THERE, "m.presence").len() == 1)
        .await;
    let told = here.told(THERE, "m.presence").remove(0);
    let push = told["push"].as_array().unwrap();
    assert_eq!(push.len(), 1);
    assert_eq!(push[0]["user_id"], format!("@alice:{HERE}"));
    assert_eq!(push[0]["presence"], "online");
    assert_eq!(push[0]["status_msg"], "hello");
    // Others forget it unless it is said again.
    tokio::time::sleep(Duration::from_mins(21)).await;
    here.until(|here| here.told(THERE, "m.presence").len() == 2)
        .await;
    // Who goes while it is said again, a second after its time, is told to be gone.
    let again = Duration::from_mins(40) + Duration::from_millis(1_500);
    tokio::time::sleep_until(begun + again).await;
    presence.set(number, PresenceState::Offline, None);
    here.until(|here| {
        let last = here.told(THERE, "m.presence").pop().unwrap();
        last["push"][0]["presence"] == "offline"
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_comes_into_a_room_is_told_who_is_here() {
    let here = Here::start().await;
    let room = here.create().await;
    let number = here.number(alice().as_str()).await;
    let presence = &here.users.presence;
    presence.set(number, PresenceState::Online, None);
    // Changes are gathered for a second; nobody is there to be told.
    tokio::time::sleep(Duration::from_secs(5)).await;
    here.remote_member(&room, &user(ZED), "join").await;
    here.until(|here| here.told(THERE, "m.presence").len() == 1)
        .await;
    let told = here.told(THERE, "m.presence").remove(0);
    assert_eq!(told["push"][0]["user_id"], alice().as_str());
    // A second user of the same server changes nothing.
    here.remote_member(&room, &user("@zoe:there.example"), "join")
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    here.until_sent(THERE).await;
    assert_eq!(here.told(THERE, "m.presence").len(), 1);
}
