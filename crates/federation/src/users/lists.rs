//! Device lists that are followed: when one holds, how it is fetched, and the task that fetches those
//! which do not.
//!
//! A list holds as long as its user is in a room with this server without interruption, and all
//! updates followed each other. Several who want it wait for one fetch.
//!
//! The task has a job for each server with stale lists: one that is slow keeps only its own waiting,
//! and is left alone when it fails once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::FuturesUnordered,
};
use homeserver_users::{RemoteListState, UserNumber, Witness};
use http::StatusCode;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use tokio::{sync::OwnedMutexGuard, time::Instant};

use super::{RemoteUsers, UsersError, ask, met::SeenStates};
use crate::CallError;

/// Times that a fetch is begun anew because something was told in the meantime.
const ATTEMPTS: usize = 3;

/// Servers whose lists the task fetches at once.
const SERVERS_AT_ONCE: usize = 32;

/// Lists of one server that it fetches at once.
const OF_SERVER_AT_ONCE: usize = 4;

/// Lists of one server that it fetches before it looks for others.
const OF_SERVER: usize = 500;

/// Stale lists that the task reads at once.
const PAGE: usize = 500;

/// The task looks for stale lists so often, also if nobody says that there are any.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// After the first failure a server is left alone for so long, then twice as long, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// How long the fetch of one list may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Turns beyond which those are looked for that nobody holds.
const TURNS_KEPT: usize = 1_000;

/// Servers that told something which are remembered until the task looks.
const ALIVE_REMEMBERED: usize = 1_000;

/// How long a user is left alone whose server answers, but not with a device list.
const PAUSE_OF_USER: Duration = Duration::from_mins(30);

/// Such users that are remembered; if there are more, all are asked for again.
const MAX_PAUSED_USERS: usize = 10_000;

/// Whom the task leaves alone.
#[derive(Default)]
struct Pauses {
    /// Servers that fail: until when, and after how many failures.
    servers: BTreeMap<OwnedServerName, (Instant, u32)>,
    /// Users of whom their servers tell nothing: until when.
    users: BTreeMap<UserNumber, Instant>,
}

/// What came of the fetches of some lists of a server.
struct Job {
    server: OwnedServerName,
    fetched: Vec<(UserNumber, Fetched)>,
}

/// What the task does.
#[derive(Default)]
struct Fetching {
    pauses: Pauses,
    jobs: FuturesUnordered<BoxFuture<'static, Job>>,
    /// The servers of the jobs.
    busy: BTreeSet<OwnedServerName>,
}

/// What came of the fetch of one list.
enum Fetched {
    Done,
    /// The server fails, and is to be left alone for so long at least.
    ServerFails(Duration),
    /// The server answers, but has no list of this user, or none that can be understood.
    NoList,
}

impl From<Result<(), UsersError>> for Fetched {
    fn from(fetched: Result<(), UsersError>) -> Self {
        match fetched {
            Ok(()) => Self::Done,
            Err(UsersError::Call(error)) => match error {
                CallError::BackingOff(pause) => Self::ServerFails(pause),
                CallError::BadAnswer(_) => Self::NoList,
                CallError::Refused { status, .. }
                    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS =>
                {
                    Self::NoList
                }
                _ => Self::ServerFails(FIRST_PAUSE),
            },
            Err(_) => Self::ServerFails(FIRST_PAUSE),
        }
    }
}

impl Pauses {
    fn hold(&self, server: &ServerName, user: UserNumber, now: Instant) -> bool {
        let server = self.servers.get(server).map(|(until, _)| *until);
        let user = self.users.get(&user).copied();
        server.max(user).is_some_and(|until| until > now)
    }

    /// When the next of them ends.
    fn next(&self) -> Option<Instant> {
        let servers = self.servers.values().map(|(until, _)| *until);
        servers.chain(self.users.values().copied()).min()
    }

    /// What is over is forgotten; of servers only after a while, so that pauses grow.
    fn forget(&mut self, now: Instant) {
        self.servers
            .retain(|_, (until, _)| *until + LONGEST_PAUSE > now);
        self.users.retain(|_, until| *until > now);
        if self.users.len() > MAX_PAUSED_USERS {
            self.users.clear();
        }
    }

    fn server_failed(&mut self, server: OwnedServerName, at_least: Duration) {
        let failures = self
            .servers
            .get(&server)
            .map_or(0, |(_, failures)| *failures);
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures));
        let pause = doubled.max(at_least).min(LONGEST_PAUSE);
        self.servers
            .insert(server, (Instant::now() + pause, failures + 1));
    }
}

impl Fetching {
    fn end(&mut self, job: Job) {
        self.busy.remove(&job.server);
        let mut failed = None;
        for (number, fetched) in job.fetched {
            match fetched {
                Fetched::Done => drop(self.pauses.servers.remove(&job.server)),
                Fetched::NoList => {
                    let until = Instant::now() + PAUSE_OF_USER;
                    self.pauses.users.insert(number, until);
                }
                Fetched::ServerFails(pause) => failed = failed.max(Some(pause)),
            }
        }
        if let Some(at_least) = failed {
            self.pauses.server_failed(job.server, at_least);
        }
    }
}

impl RemoteUsers {
    /// Whether a stored list can be used as it is.
    pub(super) async fn holds(
        &self,
        user: &UserId,
        state: &RemoteListState,
        seen: (u64, &mut SeenStates),
    ) -> Result<bool, UsersError> {
        match state.witness {
            Some(witness) if state.fetched && !state.stale => {
                self.still_holds(witness, user, seen).await
            }
            _ => Ok(false),
        }
    }

    /// The turn to fetch the list of a user.
    async fn turn(&self, user: UserNumber) -> OwnedMutexGuard<()> {
        let turn = {
            let mut fetching = self.inner.fetching.lock();
            if fetching.len() > TURNS_KEPT {
                fetching.retain(|_, turn| turn.strong_count() > 0);
            }
            let waiting = fetching.get(&user).and_then(Weak::upgrade);
            waiting.unwrap_or_else(|| {
                let turn = Arc::default();
                fetching.insert(user, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// Fetches a list that is followed, unless somebody else just did.
    pub(super) async fn fetch(
        &self,
        (number, user): (UserNumber, &UserId),
        witness: Option<Witness>,
    ) -> Result<(), UsersError> {
        let _turn = self.turn(number).await;
        let lists = &self.inner.users.remote_lists;
        for _ in 0..ATTEMPTS {
            let state = lists.state(number).await?;
            let Some(state) = state.filter(|state| state.stale) else {
                return Ok(());
            };
            let fetched = ask::devices(&self.inner.peers, user).await?;
            let begun = (state.version, witness);
            if lists.store((number, user), &fetched, begun).await? {
                return Ok(());
            }
        }
        // It stays stale, and is fetched later.
        self.inner.stale.notify_one();
        Ok(())
    }

    /// Has the task fetch what is stale of a server that just told something.
    pub(super) fn fetch_soon(&self, server: &ServerName) {
        let mut alive = self.inner.alive.lock();
        if alive.len() < ALIVE_REMEMBERED {
            alive.insert(server.to_owned());
        }
        self.inner.stale.notify_one();
    }

    /// Fetches stale lists until shutdown.
    pub(super) async fn fetch_stale_lists(self) {
        if !self.inner.peers.is_enabled() {
            return;
        }
        let mut fetching = Fetching::default();
        loop {
            if let Err(error) = self.start_jobs(&mut fetching).await {
                tracing::warn!(%error, "stale device lists were not fetched, trying again");
            }
            let now = Instant::now();
            let next = fetching.pauses.next().filter(|next| *next > now);
            let look = next.map_or(now + LOOK_EVERY, |next| next.min(now + LOOK_EVERY));
            // Not busier than this, whatever is told.
            let rest = now + Duration::from_millis(50);
            tokio::select! {
                biased;
                () = self.inner.runtime.tasks.stopping() => return,
                () = tokio::time::sleep_until(look.max(rest)) => {}
                () = self.inner.stale.notified() => {
                    tokio::time::sleep_until(rest).await;
                }
                Some(job) = fetching.jobs.next(), if !fetching.jobs.is_empty() => {
                    fetching.end(job);
                    tokio::time::sleep_until(rest).await;
                    while let Some(Some(job)) = fetching.jobs.next().now_or_never() {
                        fetching.end(job);
                    }
                }
            }
        }
    }

    /// Starts to fetch stale lists of servers that are not left alone.
    async fn start_jobs(&self, fetching: &mut Fetching) -> Result<(), UsersError> {
        let now = Instant::now();
        let users = &self.inner.users;
        for server in std::mem::take(&mut *self.inner.alive.lock()) {
            fetching.pauses.servers.remove(&server);
        }
        let mut after = UserNumber(0);
        let mut due: BTreeMap<OwnedServerName, Vec<(UserNumber, OwnedUserId)>> = BTreeMap::new();
        loop {
            let page = users.remote_lists.stale(after, PAGE).await?;
            let full = page.len() == PAGE;
            for number in page {
                after = number;
                let Some(user) = users.user_id(number).await? else {
                    continue;
                };
                let server = user.server_name();
                if fetching.busy.contains(server) || fetching.pauses.hold(server, number, now) {
                    continue;
                }
                let known = due.contains_key(server);
                if known || fetching.jobs.len() + due.len() < SERVERS_AT_ONCE {
                    let lists = due.entry(server.to_owned()).or_default();
                    if lists.len() < OF_SERVER {
                        lists.push((number, user));
                    }
                }
            }
            if !full {
                break;
            }
        }
        for (server, lists) in due {
            fetching.busy.insert(server.clone());
            let job = self.clone().fetch_lists(server, lists);
            fetching.jobs.push(job.boxed());
        }
        fetching.pauses.forget(now);
        Ok(())
    }

    /// Fetches lists of one server, as long as it answers.
    async fn fetch_lists(
        self,
        server: OwnedServerName,
        lists: Vec<(UserNumber, OwnedUserId)>,
    ) -> Job {
        let fetched = stream::iter(&lists).map(async |(number, user)| {
            let fetched = self.fetch_one(*number, user).await;
            if let Err(error) = &fetched {
                tracing::debug!(%error, %user, "a device list was not fetched");
            }
            (*number, Fetched::from(fetched))
        });
        let mut answers = fetched.buffer_unordered(OF_SERVER_AT_ONCE).boxed();
        let mut fetched = Vec::with_capacity(lists.len());
        while let Some(answer) = answers.next().await {
            let failed = matches!(answer.1, Fetched::ServerFails(_));
            fetched.push(answer);
            if failed {
                break;
            }
        }
        drop(answers);
        Job { server, fetched }
    }

    /// Fetches one stale list. If the room of its witness is no longer shared, it is fetched once more
    /// for those who may meet the user elsewhere, and does not hold for others.
    async fn fetch_one(&self, number: UserNumber, user: &UserId) -> Result<(), UsersError> {
        let lists = &self.inner.users.remote_lists;
        let state = lists.state(number).await?;
        let witness = match state.and_then(|state| state.witness) {
            Some(witness) => self.renewed(witness, user).await?,
            None => None,
        };
        let fetch = tokio::time::timeout(PATIENCE, self.fetch((number, user), witness));
        fetch.await.unwrap_or(Err(CallError::Busy.into()))
    }
}
