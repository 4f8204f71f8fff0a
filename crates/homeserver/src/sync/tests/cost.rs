//! What syncing costs: reads of the engine, and who is woken.

use std::path::Path;

use async_trait::async_trait;
use axum::extract::FromRef;
use homeserver_storage::{
    Bytes, Direction, Engine, EngineError, Position,
    engine::{BatchResult, CommitFailure, Group, KeyRange},
    engines::memory::MemoryEngine,
};
use tokio::sync::watch;

use super::*;
use crate::{
    http::tests::fresh_on,
    sync::{SyncEngine, wake::Bell},
};

/// The memory engine, with its reads counted.
#[derive(Debug)]
struct Counting {
    inner: MemoryEngine,
    reads: AtomicU64,
}

impl Counting {
    fn count(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

#[async_trait]
impl Engine for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn blocks(&self) -> bool {
        self.inner.blocks()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.count();
        self.inner.get(key).await
    }

    async fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, EngineError> {
        self.count();
        self.inner.multi_get(keys).await
    }

    async fn scan(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.count();
        self.inner.scan(range, direction, limit).await
    }

    async fn commit(&self, group: &mut Group) -> Result<Vec<BatchResult>, CommitFailure> {
        self.inner.commit(group).await
    }

    async fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        self.inner.drop_range(range).await
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.inner.watch()
    }

    async fn checkpoint(&self, into: &Path) -> Result<(), EngineError> {
        self.inner.checkpoint(into).await
    }

    async fn idle(&self) -> Result<(), EngineError> {
        self.inner.idle().await
    }

    async fn close(&self) -> Result<(), EngineError> {
        self.inner.close().await
    }
}

async fn counting_world() -> (World, Arc<Counting>) {
    let engine = Arc::new(Counting {
        inner: MemoryEngine::new(),
        reads: AtomicU64::new(0),
    });
    let fresh = fresh_on(Arc::clone(&engine) as Arc<dyn Engine>).await;
    let world = World {
        fresh: Arc::new(fresh),
        transactions: Arc::default(),
    };
    (world, engine)
}

/// How often each sync is measured.
const TIMES: usize = 3;

/// Reads of a quiet sync, and of one with news in one room, for somebody in so many rooms.
async fn reads_with(rooms: usize) -> (u64, u64) {
    let (world, engine) = counting_world().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let mut last = String::new();
    for _ in 0..rooms {
        last = alice.create_room(json!({ "preset": "public_chat" })).await;
        bob.join(&last).await;
    }
    let mut settled = next(&bob.sync("").await);
    bob.since(&settled, "").await;
    let (mut quiet_reads, mut news_reads) = (u64::MAX, u64::MAX);
    // What goes on in the background reads, too: the least of a few tells what a sync costs.
    for round in 0..TIMES {
        engine.take();
        let quiet = bob.since(&settled, "").await;
        assert!(quiet.get("rooms").is_none());
        quiet_reads = quiet_reads.min(engine.take());
        let body = format!("news {round}");
        alice.say(&last, &body).await;
        engine.take();
        let news = bob.since(&settled, "").await;
        assert_eq!(bodies(&timeline(joined(&news, &last))), [body]);
        news_reads = news_reads.min(engine.take());
        settled = next(&news);
    }
    (quiet_reads, news_reads)
}

#[tokio::test]
async fn a_sync_costs_what_changed_and_not_the_number_of_rooms() {
    let (few, many) = (reads_with(3).await, reads_with(120).await);
    assert_eq!(few, many);
    assert!(many.0 <= 20, "{many:?}");
}

/// Reads of the first sync after so many messages, and how many of them it counts.
async fn first_reads_after(messages: u64) -> (u64, Value) {
    let (world, engine) = counting_world().await;
    let alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    for number in 0..messages {
        alice.say(&room, &number.to_string()).await;
    }
    engine.take();
    let sync = bob.sync("").await;
    let counts = joined(&sync, &room)["unread_notifications"].clone();
    (engine.take(), counts["notification_count"].clone())
}

#[tokio::test]
async fn counting_costs_the_same_whatever_was_missed() {
    let (few, many) = (first_reads_after(50).await, first_reads_after(600).await);
    assert_eq!((few.1, many.1), (json!(50), json!(600)));
    assert_eq!(few.0, many.0);
}

#[tokio::test]
async fn presence_wakes_only_who_shares_a_room() {
    let world = World::new().await;
    let alice = world.user("alice").await;
    let (bob, stranger) = (world.user("bob").await, world.user("stranger").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.join(&room).await;
    let engine = SyncEngine::from_ref(world.fresh.homeserver.components());
    let quiet = "set_presence=offline";
    let mut tokens = Vec::new();
    for user in [&bob, &stranger] {
        tokens.push(next(&user.sync(quiet).await));
    }
    let waits = format!("{quiet}&timeout=200000");
    let change = async {
        while engine.wakeups.waiting_at(Bell::DeviceLists) < 2 {
            tokio::task::yield_now().await;
        }
        let user = ruma::UserId::parse(alice.id()).unwrap();
        let number = engine.rooms.user_number(&user).await.unwrap();
        assert_eq!(engine.wake_acquaintances(number).await, 1);
        let path = format!("presence/{}/status", encoded(alice.id()));
        alice.put(&path, json!({ "presence": "online" })).await.ok();
    };
    let told = async { tokio::join!(bob.since(&tokens[0], &waits), change).0 };
    let told = tokio::select! {
        told = told => told,
        _ = stranger.since(&tokens[1], &waits) => panic!("a stranger was told"),
    };
    assert_eq!(events(&told["presence"])[0]["sender"], *alice.id());
}
