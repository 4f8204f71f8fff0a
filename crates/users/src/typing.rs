//! Who is typing where: a memory stream that a restart forgets.
//!
//! Each user's typing ends by itself. A reader compares its [`StreamToken`] with the stream; a
//! token of another start of the process gets the whole set.
//!
//! Spec: Client-Server API, "Typing Notifications".

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use homeserver_runtime::{Clock, Runtime};
use parking_lot::Mutex;
use ruma::OwnedUserId;
use tokio::sync::watch;

use crate::stream::{ChangeLog, Changes, StreamToken, let_time_pass};

/// The longest that one notice keeps somebody typing.
pub const MAX_TYPING: Duration = Duration::from_mins(2);

/// Users shown as typing in one room; more are not recorded.
pub const MAX_TYPING_IN_ROOM: usize = 100;

/// Rooms whose last change is remembered. When there are more, the one that has been quiet
/// longest is forgotten, and tokens from before that get the whole set.
pub const MAX_TYPING_ROOMS: usize = 10_000;

/// Who is typing in which room. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Typing {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    log: ChangeLog<u64>,
    /// Room → user → when their typing ends, on the monotonic clock.
    rooms: HashMap<u64, BTreeMap<OwnedUserId, Duration>>,
    /// No typing ends before this; `None` if nobody types.
    soonest_end: Option<Duration>,
}

impl Typing {
    /// An empty stream; a task that ends typing in time runs until shutdown.
    pub(crate) fn start(runtime: &Runtime) -> Self {
        let typing = Self {
            state: Arc::new(Mutex::new(State {
                log: ChangeLog::new(runtime.entropy.number()),
                rooms: HashMap::new(),
                soonest_end: None,
            })),
            clock: Arc::clone(&runtime.clock),
            changed: watch::Sender::new(0),
        };
        let (changed, timed) = (typing.changed.clone(), typing.clone());
        let tasks = runtime.tasks.clone();
        runtime
            .tasks
            .spawn(let_time_pass(changed, tasks, move || timed.end_in_time()));
        typing
    }

    /// A user types in a room, for `how_long` at most.
    pub fn start_typing(&self, room: u64, user: OwnedUserId, how_long: Duration) {
        let until = self.clock.monotonic() + how_long.min(MAX_TYPING);
        let mut state = self.state.lock();
        let users = state.rooms.entry(room).or_default();
        if users.len() >= MAX_TYPING_IN_ROOM && !users.contains_key(&user) {
            return;
        }
        let is_news = users.insert(user, until).is_none();
        state.soonest_end = Some(state.soonest_end.map_or(until, |end| end.min(until)));
        if is_news {
            state.touch(room);
        }
        self.announce(&state);
    }

    /// A user no longer types in a room: they said so, or sent a message.
    pub fn stop_typing(&self, room: u64, user: &OwnedUserId) {
        let mut state = self.state.lock();
        let known = state.rooms.get_mut(&room);
        if known.is_some_and(|users| users.remove(user).is_some()) {
            state.touch(room);
            self.announce(&state);
        }
    }

    /// Who is typing in a room now.
    pub fn in_room(&self, room: u64) -> Vec<OwnedUserId> {
        let mut state = self.state.lock();
        state.expire(self.clock.monotonic());
        state.typing_in(room)
    }

    /// Of these rooms, which are sorted, those whose list changed since the token, each with its
    /// whole list.
    pub fn changes(
        &self,
        rooms: &[u64],
        since: StreamToken,
    ) -> Changes<Vec<(u64, Vec<OwnedUserId>)>> {
        let mut state = self.state.lock();
        state.expire(self.clock.monotonic());
        let listed = |room| (room, state.typing_in(room));
        let among = |room: &u64| rooms.binary_search(room).is_ok();
        match state.log.since(since) {
            Changes::Since(changed) => Changes::Since(changed.filter(among).map(listed).collect()),
            Changes::Whole(known) => {
                let lists = known.filter(among).map(listed);
                Changes::Whole(lists.filter(|(_, list)| !list.is_empty()).collect())
            }
        }
    }

    /// The rooms whose lists changed since the token.
    pub fn changed_rooms(&self, since: StreamToken) -> Vec<u64> {
        let mut state = self.state.lock();
        state.expire(self.clock.monotonic());
        match state.log.since(since) {
            Changes::Since(rooms) | Changes::Whole(rooms) => rooms.collect(),
        }
    }

    /// Where the stream stands now.
    pub fn token(&self) -> StreamToken {
        let mut state = self.state.lock();
        state.expire(self.clock.monotonic());
        state.log.token()
    }

    /// Wakes whenever a list changed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells the subscribers. Also where only an end moved: the timer has to look again.
    fn announce(&self, state: &State) {
        self.changed.send_replace(state.log.counter());
    }

    /// Ends typing whose time is over, and tells how long none will be.
    fn end_in_time(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        if state.expire(now) {
            self.announce(&state);
        }
        state.soonest_end.map(|end| end.saturating_sub(now))
    }
}

impl State {
    fn typing_in(&self, room: u64) -> Vec<OwnedUserId> {
        let users = self.rooms.get(&room);
        users
            .map(|users| users.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Notes that a room's list changed just now.
    fn touch(&mut self, number: u64) {
        self.log.touch(number);
        while self.log.len() > MAX_TYPING_ROOMS {
            if let Some(room) = self.log.forget_oldest() {
                self.rooms.remove(&room);
            }
        }
    }

    /// Ends what is over; whether anything was.
    fn expire(&mut self, now: Duration) -> bool {
        if self.soonest_end.is_none_or(|end| end > now) {
            return false;
        }
        let mut ended = Vec::new();
        for (number, users) in &mut self.rooms {
            let before = users.len();
            users.retain(|_, until| *until > now);
            if users.len() < before {
                ended.push(*number);
            }
        }
        // Rooms come out of a hash map; their order must not decide anything.
        ended.sort_unstable();
        for room in ended {
            self.touch(room);
        }
        let ends = self.rooms.values().flat_map(BTreeMap::values);
        self.soonest_end = ends.min().copied();
        true
    }
}

#[cfg(test)]
mod tests {
    use homeserver_runtime::ManualClock;

    use super::*;

    fn user(name: &str) -> OwnedUserId {
        format!("@{name}:localhost").try_into().unwrap()
    }

    fn typing() -> (Typing, Arc<ManualClock>, Runtime) {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let runtime = Runtime::simulated(Arc::clone(&clock), 1);
        (Typing::start(&runtime), clock, runtime)
    }

    #[tokio::test]
    async fn a_change_is_told_once() {
        let (typing, _clock, _runtime) = typing();
        let start = typing.token();
        typing.start_typing(7, user("alice"), Duration::from_secs(20));
        let told = typing.changes(&[7, 8], start);
        assert_eq!(told, Changes::Since(vec![(7, vec![user("alice")])]));
        let now = typing.token();
        // Typing on is no news.
        typing.start_typing(7, user("alice"), Duration::from_secs(20));
        assert_eq!(typing.changes(&[7, 8], now), Changes::Since(vec![]));
        typing.stop_typing(7, &user("alice"));
        assert_eq!(
            typing.changes(&[7, 8], now),
            Changes::Since(vec![(7, vec![])])
        );
    }

    #[tokio::test]
    async fn typing_ends_by_itself_and_wakes_readers() {
        let (typing, clock, _runtime) = typing();
        typing.start_typing(7, user("alice"), Duration::from_hours(1));
        typing.start_typing(7, user("bob"), Duration::from_secs(1));
        let before = typing.token();
        clock.advance(Duration::from_secs(1));
        assert_eq!(
            typing.changes(&[7], before),
            Changes::Since(vec![(7, vec![user("alice")])])
        );
        clock.advance(MAX_TYPING);
        assert_eq!(typing.in_room(7), Vec::<OwnedUserId>::new());
    }

    #[tokio::test]
    async fn the_timer_wakes_subscribers() {
        // The real clock: this is about the timer task.
        let runtime = Runtime::system();
        let typing = Typing::start(&runtime);
        typing.start_typing(7, user("alice"), Duration::from_millis(20));
        let before = typing.token();
        let mut changed = typing.subscribe();
        while typing.state.lock().log.counter() == before.counter {
            changed.changed().await.unwrap();
        }
        assert_eq!(
            typing.changes(&[7], before),
            Changes::Since(vec![(7, vec![])])
        );
    }

    #[tokio::test]
    async fn another_start_or_an_old_token_gets_the_whole_set() {
        let (typing, _clock, _runtime) = typing();
        typing.start_typing(7, user("alice"), Duration::from_secs(20));
        let foreign = StreamToken {
            boot: 1,
            counter: 99,
        };
        let whole = Changes::Whole(vec![(7, vec![user("alice")])]);
        assert_eq!(typing.changes(&[7, 8], foreign), whole);
        let old = typing.token();
        for room in 100..=100 + MAX_TYPING_ROOMS as u64 {
            typing.start_typing(room, user("bob"), Duration::from_secs(20));
        }
        assert_eq!(typing.state.lock().rooms.len(), MAX_TYPING_ROOMS);
        assert_eq!(
            typing.changes(&[8], StreamToken { counter: 0, ..old }),
            Changes::Whole(vec![])
        );
    }

    #[tokio::test]
    async fn a_room_shows_a_bounded_number_of_users() {
        let (typing, _clock, _runtime) = typing();
        for number in 0..MAX_TYPING_IN_ROOM + 5 {
            typing.start_typing(7, user(&format!("u{number}")), Duration::from_secs(20));
        }
        assert_eq!(typing.in_room(7).len(), MAX_TYPING_IN_ROOM);
    }
}
