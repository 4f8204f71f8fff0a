//! Who is online: a memory stream that a restart forgets.
//!
//! A user's presence is made of what they said (a state and a message) and of what the server
//! sees: whether a client is syncing, and when the user last did something. Time alone turns
//! "online" into "unavailable" and then into "offline". Whom a reader may hear about (users who
//! share a room) is not decided here.
//!
//! The presence of users of other servers is what these say, for a while. With it comes in which rooms
//! the user was met: whom it may concern.
//!
//! Spec: Client-Server API, "Presence".

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use homeserver_runtime::{Clock, Runtime};
use parking_lot::Mutex;
use ruma::presence::PresenceState;
use tokio::sync::watch;

use crate::{
    UserNumber,
    stream::{ChangeLog, Changes, StreamToken, let_time_pass},
};

/// Without activity for this long, an online user is shown as unavailable.
pub const IDLE_AFTER: Duration = Duration::from_mins(5);

/// A user is "currently active" for this long after doing something.
pub const ACTIVE_FOR: Duration = Duration::from_mins(1);

/// After the end of a sync request, the next one is awaited for this long.
pub const ONLINE_AFTER_SYNC: Duration = Duration::from_secs(30);

/// Users whose presence is remembered. When there are more, the one that has been quiet longest
/// is forgotten, and tokens from before that get the whole set.
pub const MAX_PRESENCES: usize = 50_000;

/// Users of other servers whose presence is remembered; that of more is not taken, so that they do not
/// push out this server's own.
pub const MAX_REMOTE_PRESENCES: usize = 30_000;

/// How long another server's word holds that does not say it again.
pub const REMOTE_PRESENCE_HOLDS: Duration = Duration::from_mins(30);

/// Bytes of a status message; longer ones are cut.
pub const MAX_STATUS: usize = 1_024;

/// What others see of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Online, unavailable or offline.
    pub state: PresenceState,
    /// What the user says about it.
    pub status: Option<String>,
    /// How long ago the user last did something, if they ever did since the start.
    pub last_active_ago: Option<Duration>,
    /// Whether that is so recent that it is not worth counting.
    pub currently_active: bool,
}

/// What another server says of one of its users.
#[derive(Clone, Debug)]
pub struct RemotePresence {
    /// Online, unavailable or offline.
    pub state: PresenceState,
    /// What the user says about it.
    pub status: Option<String>,
    /// How long ago the user last did something.
    pub last_active_ago: Duration,
    /// Whether that is so recent that it is not worth counting.
    pub currently_active: bool,
    /// Numbers of rooms that the user is in.
    pub rooms: Vec<u64>,
}

/// Who is online. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Presences {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    log: ChangeLog<UserNumber>,
    users: HashMap<UserNumber, User>,
    /// Of `users` those of other servers.
    remote: usize,
    /// When time alone may change somebody's presence.
    alarms: BTreeSet<(Duration, UserNumber)>,
}

#[derive(Debug)]
struct User {
    /// What the user last said they are.
    chosen: PresenceState,
    status: Option<String>,
    last_active: Option<Duration>,
    /// A client is syncing, or is expected back, until then.
    syncing_until: Option<Duration>,
    /// What the user's own server says, if that is another one.
    remote: Option<Remote>,
    /// What others were last told.
    shown: (PresenceState, bool),
    alarm: Option<Duration>,
}

/// Another server's word.
#[derive(Debug)]
struct Remote {
    currently_active: bool,
    rooms: Vec<u64>,
    /// How long it holds.
    until: Duration,
}

impl Default for User {
    fn default() -> Self {
        Self {
            chosen: PresenceState::Online,
            status: None,
            last_active: None,
            syncing_until: None,
            remote: None,
            shown: (PresenceState::Offline, false),
            alarm: None,
        }
    }
}

impl User {
    /// The state that follows from everything known, and whether the user is currently active.
    fn visible(&self, now: Duration) -> (PresenceState, bool) {
        if let Some(remote) = &self.remote {
            if remote.until <= now {
                return (PresenceState::Offline, false);
            }
            let active = remote.currently_active && self.chosen == PresenceState::Online;
            return (self.chosen.clone(), active);
        }
        let here = self.syncing_until.is_some_and(|until| until > now);
        if !here || self.chosen == PresenceState::Offline {
            return (PresenceState::Offline, false);
        }
        let quiet = self.last_active.map(|at| now.saturating_sub(at));
        let idle = quiet.is_none_or(|quiet| quiet >= IDLE_AFTER);
        if self.chosen == PresenceState::Unavailable || idle {
            return (PresenceState::Unavailable, false);
        }
        let active = quiet.is_some_and(|quiet| quiet < ACTIVE_FOR);
        (self.chosen.clone(), active)
    }

    /// The next moment at which time alone may change what is visible.
    fn next_alarm(&self, now: Duration) -> Option<Duration> {
        let after_activity = |span| self.last_active.map(|at| at + span);
        if let Some(remote) = &self.remote {
            return Some(remote.until).filter(|until| *until > now);
        }
        let moments = [
            self.syncing_until,
            after_activity(ACTIVE_FOR),
            after_activity(IDLE_AFTER),
        ];
        moments
            .into_iter()
            .flatten()
            .filter(|moment| *moment > now)
            .min()
    }
}

impl Presences {
    /// An empty stream; a task that lets time pass in it runs until shutdown.
    pub(crate) fn start(runtime: &Runtime) -> Self {
        let presences = Self {
            state: Arc::new(Mutex::new(State {
                log: ChangeLog::new(runtime.entropy.number()),
                users: HashMap::new(),
                remote: 0,
                alarms: BTreeSet::new(),
            })),
            clock: Arc::clone(&runtime.clock),
            changed: watch::Sender::new(0),
        };
        let (changed, timed) = (presences.changed.clone(), presences.clone());
        let tasks = runtime.tasks.clone();
        runtime
            .tasks
            .spawn(let_time_pass(changed, tasks, move || timed.ring_in_time()));
        presences
    }

    /// What a user says of themselves. Saying "online" is activity.
    pub fn set(&self, user: UserNumber, state: PresenceState, status: Option<String>) {
        let now = self.clock.monotonic();
        self.change(user, |entry| {
            if state == PresenceState::Online {
                entry.last_active = Some(now);
            }
            let expected = now + ONLINE_AFTER_SYNC;
            entry.syncing_until = entry.syncing_until.max(Some(expected));
            entry.chosen = state;
            entry.status = status.map(cut);
            true
        });
    }

    /// What another server says of one of its users. Whether it is taken: only so many are.
    pub fn remote(&self, user: UserNumber, told: RemotePresence) -> bool {
        let now = self.clock.monotonic();
        {
            let mut state = self.state.lock();
            let is_known = state.users.contains_key(&user);
            if !is_known && state.remote >= MAX_REMOTE_PRESENCES {
                return false;
            }
            state.remote += usize::from(!is_known);
        }
        self.change(user, |entry| {
            entry.last_active = Some(now.saturating_sub(told.last_active_ago));
            entry.chosen = told.state;
            let status = told.status.map(cut);
            let is_news = entry.status != status;
            entry.status = status;
            entry.remote = Some(Remote {
                currently_active: told.currently_active,
                rooms: told.rooms,
                until: now + REMOTE_PRESENCE_HOLDS,
            });
            is_news
        });
        true
    }

    /// Users of this server of whom anything is known since the start, at most `limit`.
    pub fn own(&self, limit: usize) -> Vec<UserNumber> {
        let state = self.state.lock();
        let own = state.users.iter().filter(|(_, user)| user.remote.is_none());
        let mut own: Vec<_> = own.map(|(number, _)| *number).collect();
        // Users come out of a hash map; their order must not decide anything.
        own.sort_unstable();
        own.truncate(limit);
        own
    }

    /// How many users of this server that are.
    pub fn own_count(&self) -> usize {
        let state = self.state.lock();
        state.users.len().saturating_sub(state.remote)
    }

    /// The rooms in which a user of another server was met; `None` for all others.
    pub fn met_in(&self, user: UserNumber) -> Option<Vec<u64>> {
        let state = self.state.lock();
        let remote = state.users.get(&user)?.remote.as_ref()?;
        Some(remote.rooms.clone())
    }

    /// Users of other servers who were met in one of these rooms, which are sorted; at most `limit`.
    pub fn met_in_one_of(&self, rooms: &[u64], limit: usize) -> Vec<(UserNumber, Presence)> {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        state.ring(now);
        let met = |user: &User| {
            let remote = user.remote.as_ref();
            let mut met_in = remote.into_iter().flat_map(|remote| &remote.rooms);
            met_in.any(|room| rooms.binary_search(room).is_ok())
        };
        let met = state.users.iter().filter(|(_, user)| met(user));
        let mut met: Vec<_> = met
            .map(|(number, user)| (*number, presence(user, now)))
            .collect();
        // Users come out of a hash map; their order must not decide anything.
        met.sort_unstable_by_key(|(number, _)| *number);
        met.truncate(limit);
        met
    }

    /// A client of the user begins a sync request that may last for `timeout`, and declares a
    /// state with it. `Offline` leaves everything as it is: that client does not count.
    pub fn syncing(&self, user: UserNumber, declared: &PresenceState, timeout: Duration) {
        if *declared == PresenceState::Offline {
            return;
        }
        let now = self.clock.monotonic();
        self.change(user, |entry| {
            let until = now + timeout.min(MAX_SYNC) + ONLINE_AFTER_SYNC;
            entry.syncing_until = entry.syncing_until.max(Some(until));
            if *declared == PresenceState::Online && entry.last_active.is_none() {
                entry.last_active = Some(now);
            }
            entry.chosen = declared.clone();
            false
        });
    }

    /// The user did something: sent a message, a receipt, typed.
    pub fn active(&self, user: UserNumber) {
        let now = self.clock.monotonic();
        self.change(user, |entry| {
            entry.last_active = Some(now);
            if entry.chosen == PresenceState::Unavailable {
                entry.chosen = PresenceState::Online;
            }
            false
        });
    }

    /// A user's presence now; `None` if nothing is known of them since the start.
    pub fn of(&self, user: UserNumber) -> Option<Presence> {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        state.ring(now);
        state.users.get(&user).map(|entry| presence(entry, now))
    }

    /// The users whose presence changed since the token, in the order of the changes; all who are
    /// known if the token says nothing here. `None` if they are more than `limit`: then ask for
    /// those who matter by [`Presences::of`].
    pub fn changes(&self, since: StreamToken, limit: usize) -> Option<Vec<(UserNumber, Presence)>> {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        state.ring(now);
        let changed: Vec<_> = match state.log.since(since) {
            Changes::Since(users) | Changes::Whole(users) => {
                users.take(limit.saturating_add(1)).collect()
            }
        };
        let told = |user| Some((user, presence(state.users.get(&user)?, now)));
        (changed.len() <= limit).then(|| changed.into_iter().filter_map(told).collect())
    }

    /// The same of users of this server alone; of more than `limit` those who changed first.
    pub fn own_changes(&self, since: StreamToken, limit: usize) -> Vec<(UserNumber, Presence)> {
        let state = &mut *self.state.lock();
        let now = self.clock.monotonic();
        state.ring(now);
        let changed = state.log.since(since).into_inner();
        let own = changed.filter_map(|number| {
            let user = state.users.get(&number)?;
            let is_own = user.remote.is_none();
            is_own.then(|| (number, presence(user, now)))
        });
        own.take(limit).collect()
    }

    /// Where the stream stands now.
    pub fn token(&self) -> StreamToken {
        let mut state = self.state.lock();
        state.ring(self.clock.monotonic());
        state.log.token()
    }

    /// Wakes whenever somebody's presence changed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Applies a change; `apply` says whether it is news even if the state stays the same.
    fn change(&self, user: UserNumber, apply: impl FnOnce(&mut User) -> bool) {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        let first_alarm = state.alarms.first().copied();
        let before = state.log.counter();
        let is_news = apply(state.users.entry(user).or_default());
        state.settle(user, now, is_news);
        let counter = state.log.counter();
        if counter > before || state.alarms.first().copied() < first_alarm {
            self.changed.send_replace(counter);
        }
    }

    /// Does what time alone does, and tells how long it will do nothing.
    fn ring_in_time(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        let before = state.log.counter();
        state.ring(now);
        let counter = state.log.counter();
        if counter > before {
            self.changed.send_replace(counter);
        }
        let first = state.alarms.first();
        first.map(|(moment, _)| moment.saturating_sub(now))
    }
}

/// The longest sync request that is believed to be waiting.
const MAX_SYNC: Duration = Duration::from_mins(5);

impl State {
    /// Everything whose time has come.
    fn ring(&mut self, now: Duration) {
        while let Some((_, user)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.settle(user, now, false);
        }
    }

    /// Compares what is visible with what was told, and sets the next alarm.
    fn settle(&mut self, number: UserNumber, now: Duration, is_news: bool) {
        let Some(user) = self.users.get_mut(&number) else {
            self.alarms.retain(|(_, other)| *other != number);
            return;
        };
        if let Some(alarm) = user.alarm.take() {
            self.alarms.remove(&(alarm, number));
        }
        user.alarm = user.next_alarm(now);
        if let Some(alarm) = user.alarm {
            self.alarms.insert((alarm, number));
        }
        let visible = user.visible(now);
        if visible != user.shown || is_news {
            user.shown = visible;
            self.log.touch(number);
        }
        while self.users.len() > MAX_PRESENCES {
            let Some(quiet) = self.log.forget_oldest() else {
                return;
            };
            let Some(user) = self.users.remove(&quiet) else {
                continue;
            };
            let was_remote = usize::from(user.remote.is_some());
            self.remote = self.remote.saturating_sub(was_remote);
            if let Some(alarm) = user.alarm {
                self.alarms.remove(&(alarm, quiet));
            }
        }
    }
}

fn presence(user: &User, now: Duration) -> Presence {
    let (state, currently_active) = user.visible(now);
    Presence {
        state,
        status: user.status.clone(),
        last_active_ago: user.last_active.map(|at| now.saturating_sub(at)),
        currently_active,
    }
}

fn cut(mut status: String) -> String {
    let end = (0..=MAX_STATUS.min(status.len()))
        .rev()
        .find(|end| status.is_char_boundary(*end));
    status.truncate(end.unwrap_or(0));
    status
}

#[cfg(test)]
mod tests {
    use homeserver_runtime::ManualClock;

    use super::*;

    const ALICE: UserNumber = UserNumber(1);

    fn presences() -> (Presences, Arc<ManualClock>, Runtime) {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 1);
        (Presences::start(&runtime), clock, runtime)
    }

    fn told(presences: &Presences, since: StreamToken) -> Vec<(UserNumber, PresenceState, bool)> {
        let changes = presences.changes(since, usize::MAX).unwrap().into_iter();
        changes
            .map(|(user, now)| (user, now.state, now.currently_active))
            .collect()
    }

    #[tokio::test]
    async fn time_turns_online_into_unavailable_and_offline() {
        let (presences, clock, _runtime) = presences();
        let minutes = |count| Duration::from_mins(count);
        let mut token = presences.token();
        presences.syncing(ALICE, &PresenceState::Online, minutes(5));
        assert_eq!(
            told(&presences, token),
            [(ALICE, PresenceState::Online, true)]
        );
        token = presences.token();
        assert_eq!(told(&presences, token), []);
        clock.advance(ACTIVE_FOR);
        assert_eq!(
            told(&presences, token),
            [(ALICE, PresenceState::Online, false)]
        );
        clock.advance(IDLE_AFTER.saturating_sub(ACTIVE_FOR));
        assert_eq!(
            told(&presences, token),
            [(ALICE, PresenceState::Unavailable, false)]
        );
        presences.active(ALICE);
        assert_eq!(
            told(&presences, token),
            [(ALICE, PresenceState::Online, true)]
        );
        clock.advance(ONLINE_AFTER_SYNC);
        assert_eq!(
            told(&presences, token),
            [(ALICE, PresenceState::Offline, false)]
        );
    }

    #[tokio::test]
    async fn a_status_is_news_and_is_cut() {
        let (presences, _clock, _runtime) = presences();
        presences.set(ALICE, PresenceState::Online, Some("here".to_owned()));
        let token = presences.token();
        presences.set(ALICE, PresenceState::Online, Some("ä".repeat(MAX_STATUS)));
        assert_eq!(told(&presences, token).len(), 1);
        assert_eq!(
            presences.of(ALICE).unwrap().status.unwrap().len(),
            MAX_STATUS
        );
        assert_eq!(presences.changes(token, 0), None);
    }

    #[tokio::test]
    async fn syncing_as_offline_does_not_count() {
        let (presences, _clock, _runtime) = presences();
        presences.syncing(ALICE, &PresenceState::Offline, Duration::ZERO);
        assert_eq!(presences.of(ALICE), None);
    }

    #[tokio::test]
    async fn the_word_of_another_server_holds_for_a_while() {
        let (presences, clock, _runtime) = presences();
        let word = |state| RemotePresence {
            state,
            status: None,
            last_active_ago: Duration::from_secs(5),
            currently_active: true,
            rooms: vec![7],
        };
        assert!(presences.remote(ALICE, word(PresenceState::Online)));
        assert_eq!(presences.met_in(ALICE), Some(vec![7]));
        assert_eq!(presences.met_in_one_of(&[6, 7], 9).len(), 1);
        assert_eq!(presences.met_in_one_of(&[6, 8], 9), []);
        assert_eq!(presences.met_in(UserNumber(2)), None);
        presences.active(UserNumber(2));
        assert_eq!(presences.own(9), [UserNumber(2)]);
        let token = presences.token();
        presences.remote(ALICE, word(PresenceState::Online));
        assert_eq!(told(&presences, token), [], "the same is no news");
        presences.remote(ALICE, word(PresenceState::Unavailable));
        assert_eq!(
            told(&presences, token),
            [(ALICE, PresenceState::Unavailable, false)]
        );
        clock.advance(REMOTE_PRESENCE_HOLDS);
        assert_eq!(
            told(&presences, token),
            [(ALICE, PresenceState::Offline, false)]
        );
        for number in 3..=MAX_REMOTE_PRESENCES as u64 + 1 {
            assert!(presences.remote(UserNumber(number), word(PresenceState::Online)));
        }
        let one_more = UserNumber(MAX_REMOTE_PRESENCES as u64 + 2);
        assert!(!presences.remote(one_more, word(PresenceState::Online)));
    }

    #[tokio::test]
    async fn users_of_other_servers_do_not_hide_changes_of_own_ones() {
        let (presences, _clock, _runtime) = presences();
        let token = presences.token();
        for number in 10..20 {
            let told = RemotePresence {
                state: PresenceState::Online,
                status: None,
                last_active_ago: Duration::ZERO,
                currently_active: false,
                rooms: Vec::new(),
            };
            assert!(presences.remote(UserNumber(number), told));
        }
        let bob = UserNumber(2);
        for own in [ALICE, bob] {
            presences.set(own, PresenceState::Online, None);
        }
        assert_eq!(presences.changes(token, 5), None);
        let numbers = |limit| {
            let changes = presences.own_changes(token, limit).into_iter();
            changes.map(|(number, _)| number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(5), [ALICE, bob]);
        assert_eq!(numbers(1), [ALICE]);
        let changes = presences.own_changes(presences.token(), 5);
        assert_eq!(changes, []);
    }

    #[tokio::test]
    async fn quiet_users_are_forgotten_and_old_tokens_get_everything() {
        let (presences, _clock, _runtime) = presences();
        let token = presences.token();
        for number in 0..=MAX_PRESENCES as u64 {
            presences.syncing(UserNumber(number), &PresenceState::Online, Duration::ZERO);
        }
        assert_eq!(presences.of(UserNumber(0)), None);
        let state = presences.state.lock();
        assert_eq!(state.users.len(), MAX_PRESENCES);
        assert!(state.alarms.len() <= MAX_PRESENCES);
        drop(state);
        let all = presences.changes(token, MAX_PRESENCES).unwrap();
        assert_eq!(all.len(), MAX_PRESENCES);
        assert_eq!(presences.changes(token, 10), None);
    }
}
