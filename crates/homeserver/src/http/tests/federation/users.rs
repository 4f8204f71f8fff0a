//! Device lists, keys and messages to devices between servers that share a room, and what of it a
//! hostile server cannot do.

use homeserver_federation::inbound::{EduFailure, EduSink, RemoteReceipt};
use homeserver_storage::Position;
use homeserver_users::{UserNumber, Users};
use ruma::{
    OwnedEventId, OwnedUserId, UserId,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, PresenceUpdate, SigningKeyUpdateContent,
    },
    events::receipt::ReceiptThread,
};

use super::{
    history::{Shared, ask, create_room, refused},
    *,
};

const V3: &str = "/_matrix/client/v3";

impl Shared {
    /// A room of `@alice:a.example` with a user of `bb.example` who has a device with keys.
    async fn with_bob() -> (Self, LoggedIn) {
        let shared = Self::new("11").await;
        let bob = shared.there.register("bob").await;
        upload(&shared.there, &bob, 3).await;
        shared.let_in("@bob:bb.example").await;
        (shared, bob)
    }

    fn users(&self) -> &Users {
        &self.here.homeserver.components().users
    }

    fn sink(&self) -> &impl EduSink {
        &self.here.homeserver.components().remote_users
    }

    async fn query(&self, user: &str) -> Value {
        query(&self.here, &self.alice, user).await
    }

    /// What alice's client is told since a token, and the next token.
    async fn sync(&self, since: Option<&str>) -> (Value, String) {
        let since = since.map_or(String::new(), |since| format!("&since={since}"));
        let path = format!("{V3}/sync?timeout=0{since}");
        let told = self.here.get(&path, Some(&self.alice.token)).await.ok();
        let next = told["next_batch"].as_str().unwrap().to_owned();
        (told, next)
    }

    /// What `bb.example` would tell `a.example` of its device lists since a position.
    async fn told(&self, after: Position) -> (Vec<(&'static str, Value)>, Position) {
        let there = self.there.homeserver.components();
        let upto = there.store.durable();
        // There knows no room, so that nobody would be told: looked at without asking who shares.
        let bob = there.users.number(&bob_id()).await.unwrap();
        let changes = there.users.device_lists.told(bob, (after, upto), 99).await;
        let mut edus = Vec::new();
        let mut before = there.users.device_lists.version(bob, after).await.unwrap();
        for change in changes.unwrap() {
            let Some(device) = change.device else {
                let id = bob_id();
                let keys = there.users.cross_signing.public_keys((bob, &id)).await;
                let keys = keys.unwrap();
                let content = json!({
                    "user_id": bob_id(), "master_key": keys.master,
                    "self_signing_key": keys.self_signing,
                });
                edus.push(("m.signing_key_update", content));
                continue;
            };
            let keys = there
                .users
                .keys
                .public(bob, std::slice::from_ref(&device))
                .await
                .unwrap();
            let mut content = json!({
                "user_id": bob_id(), "device_id": device, "stream_id": change.position,
                "prev_id": [before],
            });
            match keys.get(&device) {
                Some(keys) => content["keys"] = serde_json::from_str(keys.get()).unwrap(),
                None => content["deleted"] = true.into(),
            }
            before = change.position;
            edus.push(("m.device_list_update", content));
        }
        (edus, upto)
    }

    /// Hands EDUs of `bb.example` over.
    async fn hand_over(&self, edus: Vec<(&'static str, Value)>) {
        for (kind, content) in edus {
            let origin = server_name!("bb.example");
            let taken = if kind == "m.device_list_update" {
                let content = serde_json::from_value(content).unwrap();
                self.sink().device_list_update(origin, content).await
            } else {
                let content = serde_json::from_value(content).unwrap();
                self.sink().signing_key_update(origin, content).await
            };
            taken.unwrap();
        }
    }

    /// Waits until nothing waits for a server.
    async fn until_sent(&self, destination: &ServerName) {
        let waits = async || {
            let outgoing = &self.users().outgoing;
            let end = self.here.homeserver.components().store.durable();
            let page = outgoing.page(destination, 0, end, 1).await;
            !page.unwrap().is_empty()
        };
        let wait = async {
            while waits().await {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let patience = std::time::Duration::from_mins(1);
        tokio::time::timeout(patience, wait).await.unwrap();
    }

    /// Waits until no list is stale.
    async fn settled(&self) {
        let stale = async || {
            let lists = &self.users().remote_lists;
            !lists.stale(UserNumber(0), 9).await.unwrap().is_empty()
        };
        let patience = std::time::Duration::from_mins(1);
        let wait = async {
            while stale().await {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(patience, wait).await.unwrap();
    }
}

fn bob_id() -> OwnedUserId {
    "@bob:bb.example".try_into().unwrap()
}

pub(super) fn device_keys(who: &LoggedIn, key: &str) -> Value {
    let (user, device) = (&who.user, &who.device);
    json!({
        "user_id": user, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{device}"): key, format!("curve25519:{device}"): "c" },
        "signatures": { user: { format!("ed25519:{device}"): "signature" } },
    })
}

/// Uploads identity keys and so many one-time keys, and a fallback key.
pub(super) async fn upload(server: &Fresh, who: &LoggedIn, one_time_keys: usize) {
    let key = |n: usize| json!({ "key": format!("key {n}"), "signatures": {} });
    let keys = (0..one_time_keys).map(|n| (format!("signed_curve25519:{n}"), key(n)));
    let keys: serde_json::Map<_, _> = keys.collect();
    let body = json!({
        "device_keys": device_keys(who, "e"), "one_time_keys": keys,
        "fallback_keys": { "signed_curve25519:f": key(99) },
    });
    let path = format!("{V3}/keys/upload");
    server.post(&path, Some(&who.token), body).await.ok();
}

pub(super) async fn query(server: &Fresh, who: &LoggedIn, user: &str) -> Value {
    let body = json!({ "device_keys": { user: [] }, "timeout": 2_000 });
    let path = format!("{V3}/keys/query");
    server.post(&path, Some(&who.token), body).await.ok()
}

pub(super) async fn claim(server: &Fresh, who: &LoggedIn, from: &LoggedIn) -> Value {
    let body = json!({ "one_time_keys": { &from.user: { &from.device: "signed_curve25519" } } });
    let path = format!("{V3}/keys/claim");
    server.post(&path, Some(&who.token), body).await.ok()
}

pub(super) fn devices_of(answer: &Value, user: &str) -> Vec<String> {
    let devices = answer["device_keys"][user].as_object();
    devices.map_or(Vec::new(), |devices| devices.keys().cloned().collect())
}

#[tokio::test(start_paused = true)]
async fn other_servers_read_public_keys_of_our_users_and_of_nobody_else() {
    let (shared, _) = Shared::with_bob().await;
    upload(&shared.here, &shared.alice, 0).await;
    let path = format!("{V3}/devices/{}", shared.alice.device);
    let name = json!({ "display_name": "Alice's secret phone" });
    shared
        .here
        .put(&path, Some(&shared.alice.token), name)
        .await
        .ok();
    shared.query("@bob:bb.example").await;

    let devices = |user: &str| Call::get(Path::v1("user/devices").segment(user));
    let told = ask(&shared.there, devices("@alice:a.example"))
        .await
        .unwrap();
    assert_eq!(told["user_id"], "@alice:a.example");
    assert!(told["stream_id"].as_u64().unwrap() > 0);
    let device = &told["devices"][0];
    assert_eq!(device["device_id"], *shared.alice.device);
    assert_eq!(device["keys"], device_keys(&shared.alice, "e"));
    let seen = query(
        &shared.there,
        &shared.there.login("bob").await,
        "@alice:a.example",
    )
    .await;
    for text in [told.to_string(), seen.to_string()] {
        assert!(!text.contains("secret phone"), "{text}");
    }
    let own = shared.query("@alice:a.example").await;
    assert!(own.to_string().contains("secret phone"));

    // Not of users that are cached here.
    let asked = ask(&shared.outside, devices("@bob:bb.example")).await;
    refused(&asked, 400, "M_INVALID_PARAM");
    let asked = ask(&shared.outside, devices("@nobody:a.example")).await;
    refused(&asked, 404, "M_NOT_FOUND");
    let body = json!({ "device_keys": { "@bob:bb.example": [], "@alice:a.example": [] } });
    let asked = Call::post(Path::v1("user/keys/query"), body.to_string());
    let told = ask(&shared.outside, asked).await.unwrap();
    assert_eq!(
        devices_of(&told, "@alice:a.example"),
        [&*shared.alice.device]
    );
    assert_eq!(told["device_keys"].as_object().unwrap().len(), 1);
    let body = json!({ "one_time_keys": { "@bob:bb.example": { "X": "signed_curve25519" } } });
    let asked = Call::post(Path::v1("user/keys/claim"), body.to_string());
    let told = ask(&shared.outside, asked).await.unwrap();
    assert_eq!(told, json!({ "one_time_keys": {} }));
}

#[tokio::test(start_paused = true)]
async fn each_key_is_claimed_once_whoever_claims_it() {
    let (shared, bob) = Shared::with_bob().await;
    let carol = shared.there.register("carol").await;
    let claims = (0..4).map(async |n| {
        if n % 2 == 0 {
            claim(&shared.here, &shared.alice, &bob).await
        } else {
            claim(&shared.there, &carol, &bob).await
        }
    });
    let claimed = futures_util::future::join_all(claims).await;
    let keys = claimed.iter().map(|answer| {
        assert_eq!(
            answer["failures"]
                .as_object()
                .map_or(0, serde_json::Map::len),
            0
        );
        let keys = answer["one_time_keys"][&bob.user][&bob.device].as_object();
        keys.unwrap().keys().next().unwrap().clone()
    });
    let keys: BTreeSet<String> = keys.collect();
    let expected = ["0", "1", "2", "f"].map(|id| format!("signed_curve25519:{id}"));
    assert_eq!(keys, expected.into());
    let again = claim(&shared.here, &shared.alice, &bob).await;
    let key = &again["one_time_keys"][&bob.user][&bob.device]["signed_curve25519:f"];
    assert_eq!(key["key"], "key 99");
}

#[tokio::test(start_paused = true)]
async fn a_list_is_asked_for_once_and_then_follows_its_updates() {
    let (shared, bob) = Shared::with_bob().await;
    let (_, token) = shared.sync(None).await;
    let answer = shared.query(&bob.user).await;
    assert_eq!(devices_of(&answer, &bob.user), [&*bob.device]);
    assert_eq!(
        answer["device_keys"][&bob.user][&bob.device],
        device_keys(&bob, "e")
    );
    let number = shared.users().number(&bob_id()).await.unwrap();
    let state = async || {
        shared
            .users()
            .remote_lists
            .state(number)
            .await
            .unwrap()
            .unwrap()
    };
    assert!(!state().await.stale && state().await.fetched);
    let start = shared.there.homeserver.components().store.durable();
    // Told, since it is new here.
    let (told, token) = shared.sync(Some(&token)).await;
    assert_eq!(told["device_lists"]["changed"], json!([bob.user]));

    // Nobody is asked any more.
    let link = shared.cut("bb.example");
    let answer = shared.query(&bob.user).await;
    assert_eq!(answer["failures"], Value::Null);
    assert_eq!(devices_of(&answer, &bob.user), [&*bob.device]);
    let second = shared.there.login("bob").await;
    upload(&shared.there, &second, 0).await;
    let (edus, at) = shared.told(start).await;
    shared.hand_over(edus).await;
    let (told, token) = shared.sync(Some(&token)).await;
    assert_eq!(told["device_lists"]["changed"], json!([bob.user]));
    let answer = shared.query(&bob.user).await;
    let mut both = [bob.device.clone(), second.device.clone()];
    both.sort();
    assert_eq!(devices_of(&answer, &bob.user), both);

    // A device goes.
    let path = format!("{V3}/logout");
    shared
        .there
        .post(&path, Some(&second.token), json!({}))
        .await
        .ok();
    let (edus, _) = shared.told(at).await;
    shared.hand_over(edus).await;
    let (told, _) = shared.sync(Some(&token)).await;
    assert_eq!(told["device_lists"]["changed"], json!([bob.user]));
    let answer = shared.query(&bob.user).await;
    assert_eq!(devices_of(&answer, &bob.user), [&*bob.device]);
    shared.mend(link);
}

#[tokio::test(start_paused = true)]
async fn many_lists_are_asked_for_together() {
    let (shared, _) = Shared::with_bob().await;
    let mut users = Vec::new();
    for name in ["u1", "u2", "u3", "u4", "u5", "u6"] {
        let user = shared.there.register(name).await;
        upload(&shared.there, &user, 0).await;
        shared.let_in(&user.user).await;
        users.push(user);
    }
    let asked = users.iter().map(|user| (user.user.clone(), json!([])));
    let body = json!({ "device_keys": asked.collect::<serde_json::Map<_, _>>() });
    let path = format!("{V3}/keys/query");
    let query = async || {
        let token = Some(&*shared.alice.token);
        let answer = shared.here.post(&path, token, body.clone()).await.ok();
        for user in &users {
            assert_eq!(devices_of(&answer, &user.user), [&*user.device]);
        }
        answer
    };
    query().await;
    // They are followed from now on, though their numbers are not known: an update is a gap.
    let link = shared.cut("bb.example");
    assert_eq!(query().await["failures"], Value::Null);
    shared.mend(link);
    let start = shared.there.homeserver.components().store.durable();
    let second = shared.there.login("u1").await;
    upload(&shared.there, &second, 0).await;
    let update = json!({
        "user_id": second.user, "device_id": second.device, "stream_id": start + 9,
        "prev_id": [start], "keys": device_keys(&second, "e"),
    });
    let update: DeviceListUpdateContent = serde_json::from_value(update).unwrap();
    let origin = server_name!("bb.example");
    shared
        .sink()
        .device_list_update(origin, update)
        .await
        .unwrap();
    shared.settled().await;
    let answer = shared.query(&second.user).await;
    assert_eq!(devices_of(&answer, &second.user).len(), 2);
}

/// What proves that nothing was missed is the member event: with another one, it is asked again.
#[tokio::test(start_paused = true)]
async fn a_list_holds_as_long_as_its_user_stays() {
    let (shared, bob) = Shared::with_bob().await;
    shared.query(&bob.user).await;
    // Bob goes and comes back; in between nobody would have told of his devices.
    let path = format!("{V3}/rooms/{}/kick", shared.room);
    let body = json!({ "user_id": bob.user });
    let token = Some(&*shared.alice.token);
    shared.here.post(&path, token, body).await.ok();
    let second = shared.there.login("bob").await;
    upload(&shared.there, &second, 0).await;
    shared.let_in(&bob.user).await;
    let answer = shared.query(&bob.user).await;
    assert_eq!(devices_of(&answer, &bob.user).len(), 2);
    // And what is fetched holds.
    let link = shared.cut("bb.example");
    let answer = shared.query(&bob.user).await;
    assert_eq!(answer["failures"], Value::Null);
    assert_eq!(devices_of(&answer, &bob.user).len(), 2);
    shared.mend(link);
}

#[tokio::test(start_paused = true)]
async fn a_device_added_during_an_outage_is_found_afterwards() {
    let (shared, bob) = Shared::with_bob().await;
    shared.query(&bob.user).await;
    let start = shared.there.homeserver.components().store.durable();
    let link = shared.cut("bb.example");
    let second = shared.there.login("bob").await;
    upload(&shared.there, &second, 0).await;
    // This update is lost.
    let (_, at) = shared.told(start).await;
    let third = shared.there.login("bob").await;
    upload(&shared.there, &third, 0).await;
    let (_, token) = shared.sync(None).await;
    // This one shows the gap, but the link is down.
    let (edus, _) = shared.told(at).await;
    shared.hand_over(edus).await;
    let (told, token) = shared.sync(Some(&token)).await;
    assert_eq!(told["device_lists"]["changed"], json!([bob.user]));
    let answer = shared.query(&bob.user).await;
    assert_eq!(answer["failures"]["bb.example"]["errcode"], "M_UNKNOWN");
    assert_eq!(
        devices_of(&answer, &bob.user),
        [&*bob.device],
        "what is known"
    );
    shared.mend(link);
    shared
        .here
        .clock
        .advance(std::time::Duration::from_hours(2));
    shared.settled().await;
    let (told, _) = shared.sync(Some(&token)).await;
    assert_eq!(told["device_lists"]["changed"], json!([bob.user]));
    let answer = shared.query(&bob.user).await;
    let mut all = [&bob, &second, &third].map(|one| one.device.clone());
    all.sort();
    assert_eq!(devices_of(&answer, &bob.user), all);
}

#[tokio::test(start_paused = true)]
async fn a_list_of_nobody_in_our_rooms_is_not_kept() {
    let (shared, _) = Shared::with_bob().await;
    let carol = shared.there.register("carol").await;
    upload(&shared.there, &carol, 0).await;
    let answer = shared.query(&carol.user).await;
    assert_eq!(devices_of(&answer, &carol.user), [&*carol.device]);
    let carol_id = OwnedUserId::try_from(&*carol.user).unwrap();
    assert_eq!(shared.users().known_number(&carol_id).await.unwrap(), None);
    // Bob goes: what is known of his devices does not count any more.
    shared.query("@bob:bb.example").await;
    let path = format!("{V3}/rooms/{}/kick", shared.room);
    let body = json!({ "user_id": "@bob:bb.example" });
    let (_, token) = shared.sync(None).await;
    shared
        .here
        .post(&path, Some(&shared.alice.token), body)
        .await
        .ok();
    let (told, _) = shared.sync(Some(&token)).await;
    assert_eq!(told["device_lists"]["left"], json!(["@bob:bb.example"]));
    let link = shared.cut("bb.example");
    let answer = shared.query("@bob:bb.example").await;
    assert!(answer["failures"]["bb.example"].is_object());
    assert!(devices_of(&answer, "@bob:bb.example").is_empty());
    shared.mend(link);
}

#[tokio::test(start_paused = true)]
async fn nobody_speaks_of_the_users_of_others() {
    let (shared, bob) = Shared::with_bob().await;
    shared.query(&bob.user).await;
    let evil = server_name!("ccc.example");
    let update = json!({
        "user_id": bob.user, "device_id": "EVIL", "stream_id": 99, "prev_id": [],
        "keys": device_keys(&LoggedIn { device: "EVIL".into(), ..bob.clone() }, "evil"),
    });
    let update: DeviceListUpdateContent = serde_json::from_value(update).unwrap();
    let taken = shared.sink().device_list_update(evil, update).await;
    assert!(matches!(taken, Err(EduFailure::Refused(_))), "{taken:?}");
    let update = json!({ "user_id": shared.alice.user });
    let update: SigningKeyUpdateContent = serde_json::from_value(update).unwrap();
    let taken = shared.sink().signing_key_update(evil, update).await;
    assert!(matches!(taken, Err(EduFailure::Refused(_))), "{taken:?}");
    for sender in [&*bob.user, &*shared.alice.user] {
        let message = json!({
            "sender": sender, "type": "m.dummy", "message_id": "1",
            "messages": { &shared.alice.user: { "*": {} } },
        });
        let message: DirectDeviceContent = serde_json::from_value(message).unwrap();
        let taken = shared.sink().to_device(evil, message).await;
        assert!(matches!(taken, Err(EduFailure::Refused(_))), "{taken:?}");
    }
    let room = &shared.here.homeserver.components().rooms;
    let room = room.room(&shared.room).await.unwrap().unwrap();
    let strangers = [shared.alice.user.as_str(), "@invented:bb.example"];
    for user in strangers.map(|user| OwnedUserId::try_from(user).unwrap()) {
        let taken = shared.sink().typing(&room, &user, true).await;
        assert!(matches!(taken, Err(EduFailure::Refused(_))), "{taken:?}");
        let taken = shared.sink().presence(online(&user)).await;
        // It may be that the other one was let in a moment ago.
        assert_eq!(taken.is_err(), user == shared.alice_id(), "{taken:?}");
        let receipt = receipt(user, "$unknown");
        let taken = shared.sink().receipt(&room, receipt).await;
        assert!(matches!(taken, Err(EduFailure::Refused(_))), "{taken:?}");
    }
    let invented: OwnedUserId = "@invented:bb.example".try_into().unwrap();
    assert_eq!(shared.users().known_number(&invented).await.unwrap(), None);
    let (told, _) = shared.sync(None).await;
    assert_eq!(told["to_device"], Value::Null);
    assert_eq!(
        devices_of(&shared.query(&bob.user).await, &bob.user),
        [&*bob.device]
    );
}

fn online(user: &UserId) -> PresenceUpdate {
    let update = json!({ "user_id": user, "presence": "online", "last_active_ago": 1 });
    serde_json::from_value(update).unwrap()
}

#[tokio::test]
async fn presence_is_heard_of_users_who_are_met_a_moment_later() {
    let shared = Shared::new("11").await;
    shared.sync(None).await;
    let presence_of = async |user: &UserId| {
        let number = shared.users().known_number(user).await.unwrap()?;
        shared.users().presence.of(number)
    };
    let shown = async |user: &UserId| {
        let look = async {
            while presence_of(user).await.is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let patience = std::time::Duration::from_mins(1);
        tokio::time::timeout(patience, look).await.unwrap();
        let (told, _) = shared.sync(None).await;
        let events = told["presence"]["events"].as_array().unwrap();
        assert!(
            events.iter().any(|event| event["sender"] == user.as_str()),
            "{told}"
        );
    };
    // Told before the join is here; the server was in no room when it was last looked for.
    shared.sink().presence(online(&bob_id())).await.unwrap();
    assert_eq!(presence_of(&bob_id()).await, None);
    shared.let_in("@bob:bb.example").await;
    shared.here.clock.advance(std::time::Duration::from_secs(2));
    shown(&bob_id()).await;
    // In a room that is newer than the last look.
    let other = json!({ "preset": "public_chat", "room_version": "11" });
    let other = create_room(&shared.here, &shared.alice, other).await;
    shared.let_into(&other, "@carol:bb.example").await;
    shared.here.clock.advance(std::time::Duration::from_secs(2));
    let carol = OwnedUserId::try_from("@carol:bb.example").unwrap();
    shared.sink().presence(online(&carol)).await.unwrap();
    shown(&carol).await;

    // Strangers wait, so many of a server and not longer than a while.
    for number in 0..200 {
        let stranger = OwnedUserId::try_from(format!("@{number}:ccc.example")).unwrap();
        shared.sink().presence(online(&stranger)).await.unwrap();
    }
    let stranger = OwnedUserId::try_from("@more:ccc.example").unwrap();
    let taken = shared.sink().presence(online(&stranger)).await;
    assert!(matches!(taken, Err(EduFailure::Refused(_))), "{taken:?}");
    assert_eq!(shared.users().known_number(&stranger).await.unwrap(), None);
}

fn receipt(user: OwnedUserId, event: &str) -> RemoteReceipt {
    RemoteReceipt {
        user,
        event_ids: vec![OwnedEventId::try_from(event).unwrap()],
        thread: ReceiptThread::Unthreaded,
        ts: 5,
    }
}

#[tokio::test(start_paused = true)]
async fn messages_go_to_other_servers_and_come_from_them_once() {
    let (shared, bob) = Shared::with_bob().await;
    let link = shared.cut("bb.example");
    let body = json!({ "messages": { &bob.user: { "*": { "n": 1 } } } });
    let path = format!("{V3}/sendToDevice/m.dummy/1");
    for _ in 0..2 {
        shared
            .here
            .put(&path, Some(&shared.alice.token), body.clone())
            .await
            .ok();
    }
    let fraction = json!({ "messages": { &bob.user: { "*": { "n": 1.5 } } } });
    let path = format!("{V3}/sendToDevice/m.dummy/2");
    let answer = shared.here.put(&path, Some(&shared.alice.token), fraction);
    answer.await.refused(400, "M_BAD_JSON");
    let there = server_name!("bb.example");
    let end = shared.here.homeserver.components().store.durable();
    let outgoing = &shared.users().outgoing;
    let queued = outgoing.page(there, 0, end, 9).await.unwrap();
    assert_eq!(queued.len(), 1);
    // Handed over twice, as after an answer that was lost.
    for _ in 0..2 {
        let message = serde_json::from_str(queued[0].content.get()).unwrap();
        let theirs = &shared.there.homeserver.components().remote_users;
        let origin = server_name!("a.example");
        theirs.to_device(origin, message).await.unwrap();
    }
    // And once more, after the outage.
    shared.mend(link);
    shared
        .here
        .clock
        .advance(std::time::Duration::from_hours(2));
    let there = there.to_owned();
    shared.until_sent(&there).await;
    let path = format!("{V3}/sync?timeout=0");
    let told = shared.there.get(&path, Some(&bob.token)).await.ok();
    let expected = json!([
        { "sender": "@alice:a.example", "type": "m.dummy", "content": { "n": 1 } }
    ]);
    assert_eq!(told["to_device"]["events"], expected);
}

#[tokio::test(start_paused = true)]
async fn typing_receipts_and_presence_of_others_are_shown() {
    let (shared, bob) = Shared::with_bob().await;
    let rooms = &shared.here.homeserver.components().rooms;
    let room = rooms.room(&shared.room).await.unwrap().unwrap();
    let said = shared.say("hello").await;
    let (_, token) = shared.sync(None).await;
    let sink = shared.sink();
    sink.typing(&room, &bob_id(), true).await.unwrap();
    sink.receipt(&room, receipt(bob_id(), said.as_str()))
        .await
        .unwrap();
    let update = json!({
        "user_id": bob.user, "presence": "online", "last_active_ago": 1, "status_msg": "busy",
    });
    let update: PresenceUpdate = serde_json::from_value(update).unwrap();
    sink.presence(update).await.unwrap();
    let (told, token) = shared.sync(Some(&token)).await;
    let events = &told["rooms"]["join"][shared.room.as_str()]["ephemeral"]["events"];
    let of_type = |kind: &str| {
        let mut events = events.as_array().unwrap().iter();
        events.find(|event| event["type"] == kind).unwrap().clone()
    };
    assert_eq!(
        of_type("m.typing")["content"]["user_ids"],
        json!([bob.user])
    );
    let read = &of_type("m.receipt")["content"][said.as_str()]["m.read"];
    assert_eq!(read[&bob.user]["ts"], 5);
    let presence = &told["presence"]["events"][0];
    assert_eq!(presence["sender"], *bob.user);
    assert_eq!(presence["content"]["status_msg"], "busy");
    let path = format!("{V3}/presence/{}/status", bob.user);
    let status = shared.here.get(&path, Some(&shared.alice.token)).await.ok();
    assert_eq!(status["presence"], "online");

    // Typing ends by itself; an older receipt does not move it back.
    shared.here.clock.advance(std::time::Duration::from_mins(2));
    let (told, token) = shared.sync(Some(&token)).await;
    let events = &told["rooms"]["join"][shared.room.as_str()]["ephemeral"]["events"];
    assert_eq!(events[0]["content"]["user_ids"], json!([]));
    let later = shared.say("later").await;
    let newer = receipt(bob_id(), later.as_str());
    sink.receipt(&room, newer).await.unwrap();
    let older = receipt(bob_id(), said.as_str());
    sink.receipt(&room, older).await.unwrap();
    let (told, _) = shared.sync(Some(&token)).await;
    let events = &told["rooms"]["join"][shared.room.as_str()]["ephemeral"]["events"];
    let content = events[0]["content"].as_object().unwrap();
    assert_eq!(content.keys().collect::<Vec<_>>(), [later.as_str()]);
}

#[tokio::test(start_paused = true)]
async fn what_our_users_change_is_told_to_servers_that_share_a_room() {
    let (shared, _) = Shared::with_bob().await;
    let components = shared.here.homeserver.components();
    let start = components.store.durable();
    upload(&shared.here, &shared.alice, 0).await;
    let second = shared.here.login("alice").await;
    upload(&shared.here, &second, 0).await;
    let path = format!("{V3}/logout");
    shared
        .here
        .post(&path, Some(&second.token), json!({}))
        .await
        .ok();
    let stranger = shared.here.register("stranger").await;
    upload(&shared.here, &stranger, 0).await;
    let told = async |server: &str, after, limit| {
        let server = ServerName::parse(server).unwrap();
        let span = (after, components.store.durable());
        let remote = &components.remote_users;
        remote.device_list_edus(&server, span, limit).await.unwrap()
    };
    let all = told("bb.example", start, 99).await;
    let contents: Vec<Value> = all
        .edus
        .iter()
        .map(|(kind, content)| {
            assert_eq!(*kind, "m.device_list_update");
            serde_json::from_str(content.get()).unwrap()
        })
        .collect();
    assert_eq!(contents.len(), 2, "{contents:?}");
    assert_eq!(contents[0]["device_id"], *shared.alice.device);
    assert_eq!(contents[0]["keys"], device_keys(&shared.alice, "e"));
    assert_eq!(contents[0]["prev_id"], json!([]));
    assert_eq!(contents[1]["device_id"], *second.device);
    assert_eq!(contents[1]["deleted"], true);
    assert_eq!(contents[1]["prev_id"], json!([contents[0]["stream_id"]]));
    // In parts, each tied to the one before.
    let first = told("bb.example", start, 1).await;
    let rest = told("bb.example", first.upto, 1).await;
    let parts = first.edus.iter().chain(&rest.edus);
    let parts: Vec<Value> = parts
        .map(|(_, content)| serde_json::from_str(content.get()).unwrap())
        .collect();
    assert_eq!(parts, contents);
    assert!(told("ccc.example", start, 99).await.edus.is_empty());
    let number = components.users.number(&shared.alice_id()).await.unwrap();
    let servers = components.remote_users.servers_of(number).await.unwrap();
    assert_eq!(servers, [server_name!("bb.example").to_owned()].into());
}

#[tokio::test(start_paused = true)]
async fn profiles_of_others_are_asked_for_and_remembered_shortly() {
    let (shared, bob) = Shared::with_bob().await;
    let set = async |name: &str| {
        let path = format!("{V3}/profile/{}/displayname", bob.user);
        let body = json!({ "displayname": name });
        shared.there.put(&path, Some(&bob.token), body).await.ok();
    };
    set("Bob").await;
    let path = format!("{V3}/profile/{}", bob.user);
    let look = async || shared.here.get(&path, Some(&shared.alice.token)).await;
    assert_eq!(look().await.ok(), json!({ "displayname": "Bob" }));
    set("Bobby").await;
    assert_eq!(look().await.ok(), json!({ "displayname": "Bob" }));
    let field = format!("{path}/displayname");
    shared.here.clock.advance(std::time::Duration::from_mins(2));
    let told = shared.here.get(&field, Some(&shared.alice.token)).await;
    assert_eq!(told.ok(), json!({ "displayname": "Bobby" }));
    shared
        .here
        .get(&path, None)
        .await
        .refused(401, "M_MISSING_TOKEN");
    // What an invite shows.
    let changes = &shared.here.homeserver.components().room_changes;
    let shown = changes.profile_of(&bob_id()).await.unwrap();
    assert_eq!(shown.displayname.as_deref(), Some("Bobby"));
    let nobody = OwnedUserId::try_from("@x:gone.example").unwrap();
    assert_eq!(changes.profile_of(&nobody).await.unwrap().displayname, None);
    let unknown = format!("{V3}/profile/@nobody:bb.example");
    let told = shared.here.get(&unknown, Some(&shared.alice.token)).await;
    told.refused(404, "M_NOT_FOUND");
    let gone = format!("{V3}/profile/@x:gone.example");
    let told = shared.here.get(&gone, Some(&shared.alice.token)).await;
    told.refused(502, "M_UNKNOWN");
}
