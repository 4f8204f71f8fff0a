//! Pauses, signs of life, and what is known after a restart.

use futures_util::FutureExt as _;
use homeserver_runtime::ManualClock;
use homeserver_storage::{Row as _, engines::memory::MemoryEngine};
use ruma::server_name;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const START: u64 = 1_700_000_000_000;

const RETRY: Retry = Retry {
    shortest: SECOND,
    longest: Duration::from_hours(1),
};

struct World {
    clock: Arc<ManualClock>,
    store: Store,
    health: Health,
}

fn there() -> &'static ServerName {
    server_name!("there.example")
}

impl World {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let runtime = Runtime::simulated(Arc::clone(&clock), 1);
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, &[crate::TABLES], &runtime).await;
        let store = store.unwrap();
        let health = Health::open(RETRY, store.clone(), runtime).await.unwrap();
        Self {
            clock,
            store,
            health,
        }
    }

    /// After a restart at this time.
    async fn restarted(&self, unix_millis: u64) -> Health {
        let clock = Arc::new(ManualClock::new(unix_millis));
        let runtime = Runtime::simulated(clock, 2);
        let health = Health::open(RETRY, self.store.clone(), runtime).await;
        health.unwrap()
    }

    fn fail(&self) -> Failing {
        self.health.failed(there(), Duration::ZERO);
        self.health.failing(there()).unwrap()
    }

    fn pause(&self) -> Duration {
        self.health.failing(there()).unwrap().pause
    }
}

fn is_near(pause: Duration, base: Duration) -> bool {
    pause >= base.mul_f64(0.8) && pause <= base.mul_f64(1.2)
}

#[test]
fn pauses_double_up_to_a_limit_and_are_spread() {
    let pause = |failures, jitter| RETRY.pause(failures, jitter).as_millis();
    assert_eq!(pause(1, 0), 800);
    assert_eq!(pause(1, 200), 1_000);
    assert_eq!(pause(1, 400), 1_200);
    assert_eq!(pause(1, 401), 800);
    assert_eq!(pause(2, 200), 2_000);
    assert_eq!(pause(12, 200), 2_048_000);
    for many in [13, 40, u32::MAX] {
        assert_eq!(pause(many, 200), 3_600_000);
        assert_eq!(
            pause(many, u64::MAX - 15),
            RETRY.pause(13, u64::MAX - 15).as_millis()
        );
    }
}

#[tokio::test]
async fn failures_of_one_time_count_once() {
    let world = World::new().await;
    assert_eq!(world.health.failing(there()), None);
    let first = world.fail();
    assert_eq!((first.since, first.attempts), (START, 1));
    assert!(is_near(first.pause, SECOND));
    assert_eq!(world.fail(), first);
    world.clock.advance(first.pause);
    assert_eq!(world.pause(), Duration::ZERO);
    let second = world.fail();
    assert_eq!((second.since, second.attempts), (START, 2));
    assert!(is_near(second.pause, 2 * SECOND));
    world.health.succeeded(there());
    assert_eq!(world.health.failing(there()), None);
    assert_eq!(world.fail().attempts, 1);
}

#[tokio::test]
async fn a_server_may_ask_for_a_longer_pause_but_not_for_any() {
    let world = World::new().await;
    world.fail();
    world.health.failed(there(), 60 * SECOND);
    assert_eq!(world.pause(), 60 * SECOND);
    world.health.failed(there(), SECOND);
    assert_eq!(world.pause(), 60 * SECOND);
    world.health.failed(there(), Duration::MAX);
    assert_eq!(world.pause(), RETRY.longest);
    assert_eq!(world.health.failing(there()).unwrap().attempts, 1);
}

#[tokio::test]
async fn a_sign_of_life_ends_the_pause_but_not_the_count() {
    let world = World::new().await;
    for _ in 0..10 {
        let pause = world.fail().pause;
        world.clock.advance(pause);
    }
    let long = world.fail();
    assert_eq!(long.attempts, 11);
    world.health.alive(there());
    assert_eq!(world.pause(), SIGN_PAUSE);
    world.clock.advance(SIGN_PAUSE);
    let longer = world.fail();
    assert_eq!(longer.attempts, 12);
    assert!(longer.pause > 1_000 * SECOND);
    world.clock.advance(60 * SECOND);
    world.health.alive(there());
    assert_eq!(world.pause(), Duration::ZERO);
    // Of a server that is well it says nothing.
    world.health.alive(server_name!("well.example"));
    assert_eq!(world.health.failing(server_name!("well.example")), None);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told() {
    let world = World::new().await;
    assert_eq!(world.health.due(there()).now_or_never(), Some(()));
    world.health.failed(there(), 600 * SECOND);
    let waits = async {
        tokio::join!(world.health.due(there()), world.health.due(there()));
    };
    let changes = async {
        tokio::task::yield_now().await;
        world.clock.advance(60 * SECOND);
        world.health.alive(there());
    };
    let begun = tokio::time::Instant::now();
    tokio::join!(waits, changes);
    assert_eq!(begun.elapsed(), Duration::ZERO);

    world.health.failed(there(), 600 * SECOND);
    let changes = async {
        tokio::task::yield_now().await;
        world.health.succeeded(there());
    };
    tokio::join!(world.health.due(there()), changes);
    assert_eq!(begun.elapsed(), Duration::ZERO);

    world.health.failed(there(), 600 * SECOND);
    let passes = async {
        tokio::time::sleep(599 * SECOND).await;
        world.clock.advance(600 * SECOND);
    };
    tokio::join!(world.health.due(there()), passes);
    assert_eq!(begun.elapsed(), 600 * SECOND);
}

#[tokio::test]
async fn a_restart_remembers_who_failed() {
    let world = World::new().await;
    let well = server_name!("well.example");
    world.health.failed(well, Duration::ZERO);
    world.health.failed(there(), 600 * SECOND);
    world.health.save().await.unwrap();
    world.health.succeeded(well);
    world.health.save().await.unwrap();

    let later = world.restarted(START + 100_000).await;
    let failing = later.failing(there()).unwrap();
    let wanted = Failing {
        since: START,
        attempts: 1,
        pause: 500 * SECOND,
    };
    assert_eq!(failing, wanted);
    assert_eq!(later.failing(well), None);
    // The clock was set back by a year.
    let before = world.restarted(START - 365 * 24 * 60 * 60 * 1_000).await;
    assert_eq!(before.failing(there()).unwrap().pause, RETRY.longest);
    let after = world.restarted(START + 3_600_000).await;
    assert_eq!(after.failing(there()).unwrap().pause, Duration::ZERO);
}

#[tokio::test]
async fn so_many_servers_are_remembered_and_no_more() {
    let world = World::new().await;
    let name = |number: usize| ServerName::parse(format!("{number}.example")).unwrap();
    world.health.failed(&name(0), Duration::ZERO);
    for number in 1..=MAX_FAILING {
        world.health.failed(&name(number), 60 * SECOND);
    }
    assert_eq!(world.health.failing(&name(0)), None);
    assert!(world.health.failing(&name(1)).is_some());
    world.health.save().await.unwrap();
    let again = world.restarted(START).await;
    assert_eq!(again.failing(&name(0)), None);
    for number in 1..=MAX_FAILING {
        assert!(again.failing(&name(number)).is_some(), "{number}");
    }
}

#[test]
fn rows_keep_their_form() {
    let row = HealthRow {
        failing_since: START,
        attempts: 3,
        next_at: START + 1,
    };
    let encoded = row.encode().escape_ascii().to_string();
    insta::assert_snapshot!(encoded);
    assert_eq!(HealthRow::decode(&row.encode()).unwrap(), row);
}

#[tokio::test]
async fn all_names_of_a_server_fail_together() {
    let world = World::new().await;
    let names = ["there.example", "THERE.example", "there.example."];
    let names = names.map(|name| ServerName::parse(name).unwrap());
    for (at, name) in names.iter().enumerate() {
        world.health.failed(name, Duration::ZERO);
        for other in &names {
            let failing = world.health.failing(other).unwrap();
            // The others failed while it was left alone.
            assert_eq!(failing.attempts, 1, "{at}");
        }
    }
    world.health.alive(&names[1]);
    assert!(world.pause() <= SIGN_PAUSE);
    world.health.succeeded(&names[2]);
    assert!(world.health.failing(there()).is_none());
    // A row of another name, as earlier versions wrote them, becomes one of the server.
    let row = HealthRow {
        failing_since: START,
        attempts: 3,
        next_at: START + 60_000,
    };
    let mut batch = Batch::new();
    batch.put(&HEALTH, &names[1].as_str(), &row);
    world.store.commit(batch).await.unwrap();
    let again = world.restarted(START).await;
    assert_eq!(again.failing(there()).unwrap().attempts, 3);
    again.save().await.unwrap();
    let rows = world
        .store
        .scan(&HEALTH, ScanRange::all(), Direction::Forward, 9);
    let stored: Vec<_> = rows.await.unwrap().into_iter().map(|row| row.0).collect();
    assert_eq!(stored, ["there.example"]);
}
