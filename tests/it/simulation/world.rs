//! The servers, what happens to them, and the course of a seed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt, future::join, stream::FuturesUnordered};
use homeserver::{
    Homeserver, OpenError,
    config::{Config, RegistrationMode},
    runtime::{Clock, ManualClock, Runtime},
};
use parking_lot::Mutex;
use ruma::OwnedServerName;
use tokio::time::{Instant, sleep, timeout};

use super::{
    actors::{Actor, Room},
    dice::Dice,
    disk::Disk,
    lies::Liars,
    network::{Line, Network},
    verdict,
};

/// When every simulation begins, in milliseconds since 1970.
pub(super) const START: u64 = 1_700_000_000_000;
/// Requests between servers for each action of a user and each server that hears of it. Far more than
/// needed, and far less than what a loop makes.
const REQUESTS_PER_ACTION: usize = 40;

/// How often a server on a faulty disk is started until it is up.
const STARTS: usize = 20;
/// How long the play of a seed may take, on its clock: many times what one needs.
const LONGEST: Duration = Duration::from_hours(6);

/// Who and what goes wrong beside the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cast {
    /// Servers are stopped and started.
    Plain,
    /// One server lies.
    Liar,
    /// Disks fail, and servers are killed.
    Disk,
}

/// What a seed came to.
pub(super) struct Told {
    pub(super) trace: Vec<String>,
    pub(super) faults: Vec<String>,
}

/// All there is.
pub(super) struct World {
    pub(super) network: Arc<Network>,
    pub(super) rooms: Mutex<Vec<Room>>,
    pub(super) faults: Mutex<Vec<String>>,
    pub(super) cast: Cast,
    pub(super) hosts: Vec<Host>,
}

pub(super) struct Host {
    pub(super) name: OwnedServerName,
    disk: Disk,
    seed: u64,
    running: Mutex<Option<Running>>,
}

struct Running {
    homeserver: Homeserver,
    /// Set when it is killed.
    cut: Arc<AtomicBool>,
}

/// The clock of tokio, which stands still while anything is to be done.
#[derive(Debug)]
struct Time(Instant);

impl Clock for Time {
    fn unix_millis(&self) -> u64 {
        START + self.0.elapsed().as_millis() as u64
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Host {
    pub(super) fn new(number: u64, disk: Disk, seed: u64) -> Self {
        Self {
            name: OwnedServerName::try_from(format!("s{number}.example")).unwrap(),
            disk,
            seed,
            running: Mutex::default(),
        }
    }

    pub(super) async fn start(&self, network: &Arc<Network>, incarnation: u64) {
        for _ in 0..STARTS {
            match self.try_start(network, incarnation).await {
                Ok(()) => return,
                Err(error) if matches!(self.disk, Disk::Faulty(_)) => {
                    network.note(&format!("{} does not start: {error}", self.name));
                    sleep(Duration::from_secs(1)).await;
                }
                Err(error) => panic!("{} does not start: {error}", self.name),
            }
        }
        panic!("{} does not start", self.name);
    }

    async fn try_start(&self, network: &Arc<Network>, incarnation: u64) -> Result<(), OpenError> {
        let mut config = Config {
            server_name: self.name.clone(),
            ..Config::default()
        };
        config.registration.mode = RegistrationMode::Open;
        config.rate_limits.enabled = false;
        config.federation.retry_max = Duration::from_mins(1);
        let seed = self.seed.wrapping_add(incarnation << 32);
        let runtime = Runtime {
            clock: Arc::new(Time(Instant::now() - network.age())),
            ..Runtime::simulated(Arc::new(ManualClock::new(START)), seed)
        };
        let line = Line::of(network, &self.name);
        let cut = Arc::clone(&line.cut);
        let builder = Homeserver::configured(config);
        let builder = self.disk.under(builder, &cut);
        let builder = builder.transport(Arc::new(line)).runtime(runtime);
        let homeserver = builder.open().await?;
        network.connect(&self.name, homeserver.router());
        *self.running.lock() = Some(Running { homeserver, cut });
        Ok(())
    }

    pub(super) async fn stop(&self, network: &Network) {
        network.disconnect(&self.name);
        let running = self.running.lock().take();
        if let Some(running) = running {
            let well = running.homeserver.shutdown().await;
            let faulty = matches!(self.disk, Disk::Faulty(_));
            assert!(well || faulty, "{} stops well", self.name);
        }
    }

    /// Ends it in the middle of what it does: nothing more of it is sent, or written.
    #[expect(
        clippy::disallowed_methods,
        reason = "what is killed is waited for by nobody"
    )]
    pub(super) async fn kill(&self, network: &Network) {
        network.disconnect(&self.name);
        let running = self.running.lock().take();
        if let Some(Running { homeserver, cut }) = running {
            cut.store(true, Ordering::SeqCst);
            self.disk.lose_power().await;
            // Its tasks would go on in this process.
            tokio::spawn(async move { homeserver.shutdown().await });
        }
    }
}

/// Plays one seed.
pub(super) async fn play(seed: u64, cast: Cast) -> Told {
    let mut dice = Dice::new(seed);
    // A few of the seeds have many servers, which then do less each.
    let count = if seed % 20 == 19 {
        dice.between(8, 21)
    } else {
        dice.between(3, 6)
    };
    let actions = 100 / count;
    let network = Arc::new(Network::new(dice.throw()));
    let host = |number| {
        let seed = dice.throw();
        let disk = match cast {
            Cast::Disk => Disk::faulty(seed),
            Cast::Plain | Cast::Liar => Disk::sound(),
        };
        Host::new(number, disk, seed)
    };
    let world = World {
        network,
        rooms: Mutex::default(),
        faults: Mutex::default(),
        cast,
        hosts: (0..count).map(host).collect(),
    };
    let mut actors = Vec::new();
    for host in &world.hosts {
        host.start(&world.network, 0).await;
        actors.push(Actor::register(&world, &host.name, dice.throw()).await);
    }
    for actor in actors.iter_mut().take(2) {
        actor.create(&world).await;
    }
    let liars = Liars::of(&world, &mut dice);
    let harm = Dice::new(dice.throw());
    let played = async {
        for host in &world.hosts {
            host.disk.fails(true);
        }
        {
            let mut acting: FuturesUnordered<_> = actors
                .iter_mut()
                .map(|actor| actor.act(&world, actions))
                .collect();
            let acting = async { while acting.next().await.is_some() {} };
            let acting = join(acting, liars.act(&world, actions)).map(drop);
            tokio::select! {
                biased;
                () = acting => {}
                () = world.harm(harm) => {}
            }
        }
        for host in &world.hosts {
            host.disk.fails(false);
        }
        world.settle(&actors, &liars).await;
        liars.judge(&world, &actors).await;
    };
    if timeout(LONGEST, played).await.is_err() {
        let never = "it does not come to an end".to_owned();
        world.faults.lock().push(never);
    }
    for host in &world.hosts {
        host.stop(&world.network).await;
    }
    let (trace, requests) = world.network.end();
    let mut faults = world.faults.into_inner();
    let bound = REQUESTS_PER_ACTION * (count * count * (actions + 2)) as usize;
    if requests > bound {
        faults.push(format!("{requests} requests, more than {bound}"));
    }
    Told { trace, faults }
}

impl World {
    /// Splits the network and restarts servers, for ever.
    async fn harm(&self, mut dice: Dice) {
        let mut incarnation = 0;
        loop {
            sleep(Duration::from_millis(dice.between(2_000, 30_000))).await;
            let lasts = Duration::from_millis(dice.between(500, 40_000));
            if dice.chance(600) {
                let sides: BTreeMap<_, _> = self
                    .hosts
                    .iter()
                    .map(|host| (host.name.clone(), dice.between(0, 2)))
                    .collect();
                self.network.note(&format!("split {sides:?}"));
                self.network.split(sides);
                sleep(lasts).await;
                self.network.split(BTreeMap::new());
            } else if let Some(host) = dice.pick(&self.hosts) {
                incarnation += 1;
                self.network.note(&format!("{} stops", host.name));
                if self.cast == Cast::Disk {
                    host.kill(&self.network).await;
                } else {
                    host.stop(&self.network).await;
                }
                sleep(lasts / 4).await;
                host.start(&self.network, incarnation).await;
                self.network.note(&format!("{} starts", host.name));
            }
        }
    }

    /// Mends everything and waits until all agree.
    async fn settle(&self, actors: &[Actor], liars: &Liars) {
        self.network.heal();
        self.network.note("healed");
        for (number, host) in self.hosts.iter().enumerate() {
            let down = host.running.lock().is_none();
            if down {
                host.start(&self.network, 1_000 + number as u64).await;
            }
        }
        liars.come_clean(self).await;
        let mut differ = Vec::new();
        for _ in 0..verdict::ROUNDS {
            // What servers say makes others fetch what they lack.
            for actor in actors {
                actor.greet(self).await;
            }
            sleep(verdict::PAUSE).await;
            differ = verdict::differences(self, actors).await;
            if differ.is_empty() {
                self.network.note("all agree");
                return;
            }
        }
        self.faults.lock().extend(differ);
    }
}
