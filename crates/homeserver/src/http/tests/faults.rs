//! A disk that fails under a script of requests: what was answered 200 is there after a reopening,
//! what was answered 5xx is there wholly or not at all and can be asked for again, and the server
//! goes on by itself.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use axum::body::Body;
use homeserver_runtime::{ManualClock, Runtime};
use homeserver_storage::{
    BlobStore, Engine, MemoryBlobs, OpenEngine,
    engines::{
        faulty::{Fault, FaultPlan, FaultyDisk},
        fjall::{FjallEngine, FjallOptions},
        memory::MemoryEngine,
        sled::SledEngine,
    },
};
use http::Method;
use serde_json::{Value, json};

use super::{Answer, Fresh, LoggedIn};
use crate::{
    Homeserver,
    config::{Config, RegistrationMode},
};

const CLIENT: &str = "/_matrix/client/v3";
const ALIAS: &str = "%23faulty:localhost";
/// What the script does, in this order.
const STEPS: [&str; 15] = [
    "create",
    "join",
    "one",
    "two",
    "topic",
    "receipt",
    "account data",
    "room account data",
    "to-device",
    "keys",
    "upload",
    "profile",
    "redaction",
    "filter",
    "leave",
];
/// A read fault at every so many calls.
const READS: usize = 9;

/// Who plays, and what they were told.
#[derive(Clone)]
struct Play {
    alice: LoggedIn,
    bob: LoggedIn,
    room: String,
    two: String,
    media: String,
    filter: String,
    done: BTreeSet<&'static str>,
}

/// A homeserver on this disk.
async fn serve(disk: &Arc<FaultyDisk>, blobs: &Arc<dyn BlobStore>) -> Option<Fresh> {
    let opener = Arc::clone(disk) as Arc<dyn OpenEngine>;
    serve_with(
        |builder| builder.engine_opened_by(opener),
        Arc::clone(blobs),
    )
    .await
}

async fn serve_with(
    engine: impl FnOnce(crate::HomeserverBuilder) -> crate::HomeserverBuilder,
    blobs: Arc<dyn BlobStore>,
) -> Option<Fresh> {
    let mut config = Config::default();
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let runtime = Runtime::simulated(Arc::clone(&clock), 7);
    let builder = Homeserver::configured(config).blobs(blobs).runtime(runtime);
    let homeserver = engine(builder).open().await.ok()?;
    Some(Fresh {
        router: homeserver.router(),
        homeserver,
        clock,
    })
}

/// Two accounts, so that no round hashes a password.
async fn accounts(engine: Arc<dyn Engine>, blobs: &Arc<dyn BlobStore>) -> Play {
    let fresh = serve_with(|builder| builder.engine(engine), Arc::clone(blobs)).await;
    let fresh = fresh.unwrap();
    let play = Play {
        alice: fresh.register("alice").await,
        bob: fresh.register("bob").await,
        room: String::new(),
        two: String::new(),
        media: String::new(),
        filter: String::new(),
        done: BTreeSet::new(),
    };
    assert!(fresh.homeserver.shutdown().await);
    play
}

impl Play {
    fn in_room(&self, path: &str) -> String {
        format!("{CLIENT}/rooms/{}/{path}", self.room)
    }

    fn of_user(&self, path: &str) -> String {
        format!("{CLIENT}/user/{}/{path}", self.alice.user)
    }

    /// Asks for a step once, and remembers what a 200 told.
    async fn ask(&mut self, fresh: &Fresh, step: &'static str) -> Answer {
        let answer = self.request(fresh, step).await;
        if answer.status == 200 {
            let text = |key: &str| answer.body[key].as_str().unwrap_or_default().to_owned();
            match step {
                "create" => self.room = text("room_id"),
                "two" => self.two = text("event_id"),
                "upload" => self.media = text("content_uri").replace("mxc://", ""),
                "filter" => self.filter = text("filter_id"),
                _ => {}
            }
            self.done.insert(step);
        }
        answer
    }

    async fn request(&self, fresh: &Fresh, step: &str) -> Answer {
        let (alice, bob) = (Some(&*self.alice.token), Some(&*self.bob.token));
        let message = |text: &str| json!({ "msgtype": "m.text", "body": text });
        match step {
            "create" => {
                let body = json!({
                    "room_alias_name": "faulty",
                    "preset": "public_chat",
                    "name": "Faults",
                    "topic": "first",
                });
                fresh
                    .post(&format!("{CLIENT}/createRoom"), alice, body)
                    .await
            }
            "join" => fresh.post(&self.in_room("join"), bob, json!({})).await,
            "one" | "two" => {
                let path = self.in_room(&format!("send/m.room.message/{step}"));
                fresh.put(&path, alice, message(step)).await
            }
            "topic" => {
                let path = self.in_room("state/m.room.topic");
                fresh.put(&path, alice, json!({ "topic": "second" })).await
            }
            "receipt" => {
                let path = self.in_room(&format!("receipt/m.read/{}", self.two));
                fresh.post(&path, alice, json!({})).await
            }
            "account data" | "room account data" => {
                fresh
                    .put(&self.account_data(step), alice, json!({ "a": 1 }))
                    .await
            }
            "to-device" => {
                let body = json!({ "messages": { &self.bob.user: { "*": { "hello": "bob" } } } });
                let path = format!("{CLIENT}/sendToDevice/org.example.test/once");
                fresh.put(&path, alice, body).await
            }
            "keys" => {
                let path = format!("{CLIENT}/keys/upload");
                fresh.post(&path, alice, self.device_keys()).await
            }
            "upload" => {
                let path = "/_matrix/media/v3/upload?filename=note.txt";
                let body = Body::from("content");
                fresh.send_bytes(Method::POST, path, alice, body).await
            }
            "profile" => {
                let path = format!("{CLIENT}/profile/{}/displayname", self.alice.user);
                fresh
                    .put(&path, alice, json!({ "displayname": "Alice" }))
                    .await
            }
            "redaction" => {
                let path = self.in_room(&format!("redact/{}/gone", self.two));
                fresh.put(&path, alice, json!({})).await
            }
            "filter" => {
                let path = self.of_user("filter");
                let body = json!({ "room": { "timeline": { "limit": 5 } } });
                fresh.post(&path, alice, body).await
            }
            "leave" => fresh.post(&self.in_room("leave"), bob, json!({})).await,
            other => panic!("no step {other}"),
        }
    }

    fn account_data(&self, step: &str) -> String {
        match step {
            "account data" => self.of_user("account_data/org.example.test"),
            _ => self.of_user(&format!(
                "rooms/{}/account_data/org.example.test",
                self.room
            )),
        }
    }

    fn device_keys(&self) -> Value {
        let (user, device) = (&self.alice.user, &self.alice.device);
        json!({ "device_keys": {
            "user_id": user,
            "device_id": device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": { format!("curve25519:{device}"): "AAAA", format!("ed25519:{device}"): "BBBB" },
            "signatures": { user: { format!("ed25519:{device}"): "CCCC" } },
        } })
    }

    /// Whether a refusal says that the step was done by an earlier request, which was answered 5xx.
    async fn was_done(&mut self, fresh: &Fresh, step: &str, answer: &Answer) -> bool {
        match step {
            "create" if answer.body["errcode"] == "M_ROOM_IN_USE" => {
                let room = look(fresh, &format!("{CLIENT}/directory/room/{ALIAS}"), None).await;
                self.room = room.body["room_id"].as_str().unwrap().to_owned();
                true
            }
            "leave" => answer.status == 403,
            _ => false,
        }
    }

    /// The steps whose effects can be seen. Nothing may be seen twice, or in part.
    async fn visible(&mut self, fresh: &Fresh) -> BTreeSet<&'static str> {
        let mut seen = BTreeSet::new();
        let alice = Some(&*self.alice.token);
        let found = look(fresh, &format!("{CLIENT}/directory/room/{ALIAS}"), None).await;
        if found.status == 200 {
            seen.insert("create");
            self.room = found.body["room_id"].as_str().unwrap().to_owned();
            self.in_the_room(fresh, &mut seen).await;
        }
        for step in ["account data", "room account data"] {
            let found = look(fresh, &self.account_data(step), alice).await;
            if found.status == 200 {
                assert_eq!(found.body, json!({ "a": 1 }));
                seen.insert(step);
            }
        }
        let bob = Some(&*self.bob.token);
        let sync = look(fresh, &format!("{CLIENT}/sync"), bob).await.ok();
        match sync["to_device"]["events"].as_array().map(Vec::len) {
            None | Some(0) => {}
            Some(1) => drop(seen.insert("to-device")),
            Some(more) => panic!("{more} messages instead of one"),
        }
        let sync = look(fresh, &format!("{CLIENT}/sync"), alice).await.ok();
        let receipts = sync["rooms"]["join"][&self.room]["ephemeral"].to_string();
        if receipts.contains("m.read") && receipts.contains(&self.alice.user) {
            seen.insert("receipt");
        }
        let keys = json!({ "device_keys": { &self.alice.user: [] } });
        let keys = fresh
            .post(&format!("{CLIENT}/keys/query"), alice, keys)
            .await
            .ok();
        if keys["device_keys"][&self.alice.user][&self.alice.device]["keys"].is_object() {
            seen.insert("keys");
        }
        let media = format!("/_matrix/client/v1/media/download/{}", self.media);
        if !self.media.is_empty() && look(fresh, &media, alice).await.body == "content" {
            seen.insert("upload");
        }
        let profile = format!("{CLIENT}/profile/{}/displayname", self.alice.user);
        if look(fresh, &profile, alice).await.body["displayname"] == "Alice" {
            seen.insert("profile");
        }
        let filter = self.of_user(&format!("filter/{}", self.filter));
        if !self.filter.is_empty() && look(fresh, &filter, alice).await.status == 200 {
            seen.insert("filter");
        }
        seen
    }

    async fn in_the_room(&self, fresh: &Fresh, seen: &mut BTreeSet<&'static str>) {
        let alice = Some(&*self.alice.token);
        let state = look(fresh, &self.in_room("state"), alice).await.ok();
        let content = |kind: &str, key: &str| {
            let mut events = state.as_array().unwrap().iter();
            let event = events.find(|event| event["type"] == kind && event["state_key"] == key);
            event.map(|event| event["content"].clone())
        };
        for whole in [
            "m.room.create",
            "m.room.power_levels",
            "m.room.name",
            "m.room.join_rules",
        ] {
            assert!(content(whole, "").is_some(), "{whole} of a room is missing");
        }
        if content("m.room.topic", "").unwrap()["topic"] == "second" {
            seen.insert("topic");
        }
        match content("m.room.member", &self.bob.user) {
            None => {}
            Some(member) if member["membership"] == "join" => drop(seen.insert("join")),
            Some(_) => seen.extend(["join", "leave"]),
        }
        let page = look(fresh, &self.in_room("messages?dir=b&limit=100"), alice)
            .await
            .ok();
        let mut redactions = 0;
        let mut ids = BTreeSet::new();
        for event in page["chunk"].as_array().unwrap() {
            assert!(ids.insert(event["event_id"].to_string()), "an event twice");
            match event["content"]["body"].as_str() {
                Some("one") => assert!(seen.insert("one"), "sent twice"),
                Some("two") => assert!(seen.insert("two"), "sent twice"),
                _ => {}
            }
            if event["event_id"] == *self.two && event["unsigned"]["redacted_because"].is_object() {
                assert_eq!(event["content"], json!({}));
                seen.extend(["two", "redaction"]);
            }
            redactions += usize::from(event["type"] == "m.room.redaction");
        }
        assert!(redactions <= 1, "redacted twice");
        assert_eq!(
            redactions == 1,
            seen.contains("redaction"),
            "half a redaction"
        );
    }
}

/// A read that is asked again where the server says to.
async fn look(fresh: &Fresh, path: &str, token: Option<&str>) -> Answer {
    for _ in 0..50 {
        let answer = fresh.get(path, token).await;
        if answer.status < 500 {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{path} stays unavailable");
}

/// What happened in a round.
#[derive(Default)]
struct Round {
    /// Requests that were answered 5xx.
    failed: usize,
    /// The engine was opened again in place, or the server was started again.
    reopened: u64,
}

/// Plays the steps that are not done. Gives false where one is answered 5xx and `stops`.
async fn play_on(fresh: &Fresh, play: &mut Play, stops: bool, round: &mut Round) -> bool {
    for step in STEPS {
        if play.done.contains(step) {
            continue;
        }
        for attempt in 0.. {
            assert!(attempt < 100, "{step}: the server does not recover");
            let answer = play.ask(fresh, step).await;
            if answer.status == 200 {
                break;
            }
            if answer.status < 500 {
                let done = play.was_done(fresh, step, &answer).await;
                assert!(done, "{step}: {} {}", answer.status, answer.body);
                play.done.insert(step);
                break;
            }
            round.failed += 1;
            if stops {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    true
}

fn everything() -> BTreeSet<&'static str> {
    STEPS.into_iter().collect()
}

/// Plays the script on a failing disk. With `crash`, the first 5xx is followed by a power loss and
/// a new start; without, the same server goes on.
async fn round(disk: FaultyDisk, blobs: Arc<dyn BlobStore>, mut play: Play, crash: bool) -> Round {
    let disk = Arc::new(disk);
    let mut round = Round::default();
    let Some(mut fresh) = serve(&disk, &blobs).await else {
        return round;
    };
    if !play_on(&fresh, &mut play, crash, &mut round).await {
        fresh.homeserver.components().runtime.tasks.stop();
        let left = disk.left().await.unwrap();
        fresh = serve_with(|builder| builder.engine(left), Arc::clone(&blobs))
            .await
            .unwrap();
        round.reopened += 1;
        let seen = play.visible(&fresh).await;
        assert!(play.done.is_subset(&seen), "lost: {:?}", &play.done - &seen);
        assert!(play_on(&fresh, &mut play, false, &mut round).await);
        assert_eq!(play.visible(&fresh).await, everything());
        return round;
    }
    assert_eq!(play.visible(&fresh).await, everything());
    let store = &fresh.homeserver.components().store;
    round.reopened += store.generation();
    assert!(fresh.homeserver.shutdown().await);
    drop(fresh);
    let left = disk.left().await.unwrap();
    let fresh = serve_with(|builder| builder.engine(left), blobs)
        .await
        .unwrap();
    assert_eq!(
        play.visible(&fresh).await,
        everything(),
        "after a new start"
    );
    round
}

#[tokio::test]
async fn every_commit_and_many_reads_fail_once() {
    let runtime = Runtime::system();
    let blobs: Arc<dyn BlobStore> = Arc::new(MemoryBlobs::new(&runtime));
    let base = Arc::new(MemoryEngine::new());
    let play = accounts(Arc::clone(&base) as _, &blobs).await;
    let disk = |plan| FaultyDisk::memory_on(plan, base.duplicate());

    let counting = Arc::new(disk(FaultPlan::none(0)));
    let fresh = serve(&counting, &blobs).await.unwrap();
    let opened = counting.calls();
    let mut quiet = Round::default();
    assert!(play_on(&fresh, &mut play.clone(), false, &mut quiet).await);
    assert_eq!(quiet.failed, 0);
    let commits: Vec<u64> = counting.commits();
    let commits: Vec<u64> = commits.into_iter().filter(|call| *call >= opened).collect();
    let reads = (opened..counting.calls()).filter(|call| !commits.contains(call));
    let reads: Vec<u64> = reads.step_by(READS).collect();
    drop(fresh);

    let of_commits = commits
        .iter()
        .flat_map(|call| Fault::ALL.map(|fault| (*call, fault)));
    let of_reads = reads.iter().map(|call| (*call, Fault::Error));
    let (mut failed, mut reopened, mut rounds) = (0, 0, 0);
    for (call, fault) in of_commits.chain(of_reads) {
        let plan = FaultPlan::once(call, call, fault);
        let crash = rounds % 2 == 1;
        let one = round(disk(plan), Arc::clone(&blobs), play.clone(), crash).await;
        failed += one.failed;
        reopened += one.reopened;
        rounds += 1;
    }
    println!(
        "{} commits, {} reads: {rounds} rounds, {failed} requests failed, {reopened} reopenings",
        commits.len(),
        reads.len(),
    );
    assert!(commits.len() > STEPS.len(), "{} commits", commits.len());
    assert!(failed > commits.len() && reopened > commits.len() as u64);
}

#[tokio::test]
async fn engines_on_files_are_opened_again_in_place() {
    type Open = fn(&Path) -> Arc<dyn Engine>;
    let engines: [Open; 2] = [
        |path| Arc::new(FjallEngine::open(path, FjallOptions::default()).unwrap()),
        |path| Arc::new(SledEngine::open(path).unwrap()),
    ];
    let blobs: Arc<dyn BlobStore> = Arc::new(MemoryBlobs::new(&Runtime::system()));
    for open in engines {
        let mut reopened = 0;
        for (call, fault) in [(70, Fault::FailedSync), (130, Fault::ShortWrite)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("database");
            let play = accounts(open(&path), &blobs).await;
            // Reads bear both, so it is the first commit from that call on that fails.
            let at = (call..call + 12).map(|call| (call, fault)).collect();
            let plan = FaultPlan {
                at,
                ..FaultPlan::none(call)
            };
            let disk = FaultyDisk::folder(plan, move || Ok(open(&path)));
            let one = round(disk, Arc::clone(&blobs), play, false).await;
            reopened += one.reopened;
        }
        assert!(reopened > 0, "the faults hit no commit");
    }
}
