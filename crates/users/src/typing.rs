//! Who is typing where: a memory stream that a restart forgets.
//!
//! Each user's typing ends by itself. A reader compares its [`StreamToken`] with the stream; a
//! token of another start of the process gets the whole set.
//!
//! Beside the lists there is who began and who stopped, one by one: what other servers are told. They
//! forget who types after a while, so that it is said again as long as it is so.
//!
//! Spec: Client-Server API, "Typing Notifications"; Server-Server API, "Typing Notifications".

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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

/// After so long it is said again that somebody types. Servers forget it after half a minute at the
/// earliest.
const RENEWED_AFTER: Duration = Duration::from_secs(25);

/// Notices that are remembered; tokens from before them get the whole set.
const MAX_NOTICES: usize = 10_000;

/// Rooms whose last change is remembered. When there are more, the one that has been quiet
/// longest is forgotten, and tokens from before that get the whole set.
pub const MAX_TYPING_ROOMS: usize = 10_000;

/// Somebody began to type, types on, or stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypingNotice {
    /// The room's number.
    pub room: u64,
    /// Who.
    pub user: OwnedUserId,
    /// Whether they type.
    pub typing: bool,
}

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
    /// Room → user → how long they type.
    rooms: HashMap<u64, BTreeMap<OwnedUserId, Typist>>,
    /// Notices with the counter after them, the oldest first.
    notices: VecDeque<(u64, TypingNotice)>,
    /// Tokens with a lower counter know nothing of the notices.
    notices_from: u64,
    /// No typing ends before this; `None` if nobody types.
    soonest_end: Option<Duration>,
}

/// Times on the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Typist {
    /// When their typing ends.
    until: Duration,
    /// When it was last said that they type.
    said: Duration,
}

impl Typing {
    /// An empty stream; a task that ends typing in time runs until shutdown.
    pub(crate) fn start(runtime: &Runtime) -> Self {
        let typing = Self {
            state: Arc::new(Mutex::new(State {
                log: ChangeLog::new(runtime.entropy.number()),
                rooms: HashMap::new(),
                notices: VecDeque::new(),
                notices_from: 0,
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
        let now = self.clock.monotonic();
        let until = now + how_long.min(MAX_TYPING);
        let mut state = self.state.lock();
        let users = state.rooms.entry(room).or_default();
        if users.len() >= MAX_TYPING_IN_ROOM && !users.contains_key(&user) {
            return;
        }
        let before = users.get(&user).copied();
        let is_due = before.is_none_or(|typist| now.saturating_sub(typist.said) >= RENEWED_AFTER);
        let said = before.filter(|_| !is_due).map_or(now, |typist| typist.said);
        users.insert(user.clone(), Typist { until, said });
        state.soonest_end = Some(state.soonest_end.map_or(until, |end| end.min(until)));
        match before {
            None => state.touch(room),
            Some(_) if is_due => state.log.bump(),
            Some(_) => {}
        }
        if is_due {
            let typing = true;
            state.note(TypingNotice { room, user, typing });
        }
        self.announce(&state);
    }

    /// A user no longer types in a room: they said so, or sent a message.
    pub fn stop_typing(&self, room: u64, user: &OwnedUserId) {
        let mut state = self.state.lock();
        let known = state.rooms.get_mut(&room);
        if known.is_some_and(|users| users.remove(user).is_some()) {
            state.touch(room);
            state.note(TypingNotice {
                room,
                user: user.clone(),
                typing: false,
            });
            self.announce(&state);
        }
    }

    /// Who began to type, types on or stopped since the token, each in a room once; who types now, if
    /// the token says nothing here.
    pub fn notices(&self, since: StreamToken) -> Vec<TypingNotice> {
        let mut state = self.state.lock();
        state.expire(self.clock.monotonic());
        if since.boot != state.log.token().boot || since.counter < state.notices_from {
            let now = state.rooms.iter().flat_map(|(room, users)| {
                users.keys().map(|user| TypingNotice {
                    room: *room,
                    user: user.clone(),
                    typing: true,
                })
            });
            let mut now: Vec<_> = now.collect();
            // Rooms come out of a hash map; their order must not decide anything.
            now.sort_by(|one, other| (one.room, &one.user).cmp(&(other.room, &other.user)));
            return now;
        }
        let new = state
            .notices
            .partition_point(|(counter, _)| *counter <= since.counter);
        let mut last = BTreeMap::new();
        for (_, notice) in state.notices.range(new..) {
            last.insert((notice.room, &notice.user), notice);
        }
        last.into_values().cloned().collect()
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

    /// Remembers a notice, for after the change that it tells of was counted.
    fn note(&mut self, notice: TypingNotice) {
        self.notices.push_back((self.log.counter(), notice));
        if self.notices.len() > MAX_NOTICES
            && let Some((counter, _)) = self.notices.pop_front()
        {
            self.notices_from = counter;
        }
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
            users.retain(|user, typist| {
                let is_over = typist.until <= now;
                if is_over {
                    ended.push((*number, user.clone()));
                }
                !is_over
            });
        }
        // Rooms come out of a hash map; their order must not decide anything.
        ended.sort_unstable();
        for (room, user) in ended {
            self.touch(room);
            let typing = false;
            self.note(TypingNotice { room, user, typing });
        }
        let typists = self.rooms.values().flat_map(BTreeMap::values);
        self.soonest_end = typists.map(|typist| typist.until).min();
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
    async fn other_servers_are_told_who_began_types_on_and_stopped() {
        let (typing, clock, _runtime) = typing();
        let notice = |user_name: &str, typing| TypingNotice {
            room: 7,
            user: user(user_name),
            typing,
        };
        let start = typing.token();
        typing.start_typing(7, user("alice"), Duration::from_mins(1));
        typing.start_typing(7, user("bob"), Duration::from_mins(1));
        typing.stop_typing(7, &user("bob"));
        let told = typing.notices(start);
        assert_eq!(told, [notice("alice", true), notice("bob", false)]);
        let now = typing.token();
        clock.advance(Duration::from_secs(20));
        typing.start_typing(7, user("alice"), Duration::from_mins(1));
        assert_eq!(typing.notices(now), []);
        clock.advance(Duration::from_secs(20));
        typing.start_typing(7, user("alice"), Duration::from_mins(1));
        assert_eq!(typing.notices(now), [notice("alice", true)]);
        // Readers of the list are not told the same list again.
        assert_eq!(typing.changes(&[7], now), Changes::Since(vec![]));
        let later = typing.token();
        clock.advance(Duration::from_mins(1));
        assert_eq!(typing.notices(later), [notice("alice", false)]);
        typing.start_typing(7, user("carol"), Duration::from_mins(1));
        let foreign = StreamToken {
            boot: 1,
            counter: 99,
        };
        assert_eq!(typing.notices(foreign), [notice("carol", true)]);
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
