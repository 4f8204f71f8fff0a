//! Device lists that are followed: when one holds, how it is fetched, and the task that fetches those
//! which do not.
//!
//! A list holds as long as its user is in a room with this server without interruption, and all
//! updates followed each other. Several who want it wait for one fetch.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use homeserver_users::{RemoteListState, UserNumber, Witness};
use ruma::{OwnedServerName, UserId};
use tokio::{sync::MutexGuard, time::Instant};

use super::{RemoteUsers, STRIPES, UsersError, ask, met::SeenStates};
use crate::CallError;

/// Times that a fetch is begun anew because something was told in the meantime.
const ATTEMPTS: usize = 3;

/// Lists fetched at once by the task.
const FETCHED_AT_ONCE: usize = 8;

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

/// Servers that the task leaves alone, until when, and after how many failures.
type Pauses = BTreeMap<OwnedServerName, (Instant, u32)>;

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

    /// The turn to fetch the lists of some users, this one among them.
    pub(super) async fn turn(&self, user: UserNumber) -> MutexGuard<'_, ()> {
        let stripe = usize::try_from(user.0 % STRIPES as u64).unwrap_or_default();
        self.inner.fetching[stripe].lock().await
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

    /// Fetches stale lists until shutdown.
    pub(super) async fn fetch_stale_lists(self) {
        if !self.inner.peers.is_enabled() {
            return;
        }
        let mut pauses = Pauses::new();
        loop {
            if let Err(error) = self.fetch_page(&mut pauses).await {
                tracing::warn!(%error, "stale device lists were not fetched, trying again");
            }
            let now = Instant::now();
            let next = pauses.values().map(|(until, _)| *until).min();
            let look = next.map_or(now + LOOK_EVERY, |next| next.min(now + LOOK_EVERY));
            // Not busier than this, whatever is told.
            let rest = now + Duration::from_millis(50);
            tokio::select! {
                () = self.inner.runtime.tasks.stopping() => return,
                () = tokio::time::sleep_until(look.max(rest)) => {}
                () = self.inner.stale.notified() => {
                    tokio::time::sleep_until(rest).await;
                }
            }
        }
    }

    /// Fetches all stale lists of servers that are not left alone.
    async fn fetch_page(&self, pauses: &mut Pauses) -> Result<(), UsersError> {
        let now = Instant::now();
        let users = &self.inner.users;
        let mut after = UserNumber(0);
        let mut asked = BTreeMap::new();
        loop {
            let page = users.remote_lists.stale(after, PAGE).await?;
            let full = page.len() == PAGE;
            let mut due = Vec::new();
            for number in page {
                after = number;
                let Some(user) = users.user_id(number).await? else {
                    continue;
                };
                let server = user.server_name().to_owned();
                let paused = pauses.get(&server).is_some_and(|(until, _)| *until > now);
                if !paused && !self.inner.runtime.tasks.is_stopping() {
                    due.push((number, user));
                }
            }
            let fetched = stream::iter(due).map(|(number, user)| async move {
                let fetched = self.fetch_one(number, &user).await;
                (user.server_name().to_owned(), fetched)
            });
            let mut fetched = fetched.buffer_unordered(FETCHED_AT_ONCE);
            while let Some((server, outcome)) = fetched.next().await {
                let pause = match outcome {
                    Ok(()) => None,
                    Err(UsersError::Call(CallError::BackingOff(pause))) => Some(pause),
                    Err(error) => {
                        tracing::debug!(%error, %server, "a device list was not fetched");
                        Some(FIRST_PAUSE)
                    }
                };
                let known: &mut Option<Duration> = asked.entry(server).or_default();
                *known = (*known).max(pause);
            }
            if !full {
                break;
            }
        }
        for (server, pause) in asked {
            match pause {
                None => drop(pauses.remove(&server)),
                Some(at_least) => {
                    let failures = pauses.get(&server).map_or(0, |(_, failures)| *failures);
                    let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures));
                    let pause = doubled.max(at_least).min(LONGEST_PAUSE);
                    pauses.insert(server, (Instant::now() + pause, failures + 1));
                }
            }
        }
        // Those whose lists are no longer stale.
        pauses.retain(|_, (until, _)| *until + LOOK_EVERY > now);
        Ok(())
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
