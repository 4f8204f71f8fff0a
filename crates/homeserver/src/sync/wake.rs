//! Waking those who wait for news.
//!
//! One task reads the journal as it grows and knocks on the doors of the requests that wait for
//! what happened; typing and presence come by themselves (`streams`). A parked request costs its place in the maps here and nothing else; a knock too
//! many costs one look, a knock too few cannot be: a request parks first and looks then.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use homeserver_runtime::Runtime;
use homeserver_storage::{Entry, Position, Store};
use homeserver_users::journal as users_journal;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Journal entries read at once.
const ENTRIES_AT_ONCE: usize = 500;

/// What somebody may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bell {
    /// Something happened in this room: an event, a public receipt.
    Room(u64),
    /// Something happened to this user.
    User(u64),
    /// Something happened to this device.
    Device(u64),
    /// Some user's device list changed.
    DeviceLists,
}

/// What a request wants to hear of beside what is in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hears {
    /// Who types in the user's rooms.
    pub(crate) typing: bool,
    /// Who is online in them.
    pub(crate) presence: bool,
}

/// What a bell is rung for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Something in the journal: everybody hears of it.
    Journal,
    /// Somebody began or ceased to type.
    Typing,
    /// Somebody's presence changed.
    Presence,
}

/// Who waits for what. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakeups {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    doors: HashMap<Bell, BTreeMap<u64, Waiter>>,
}

#[derive(Clone, Debug)]
struct Waiter {
    knock: Arc<Notify>,
    hears: Hears,
}

impl Waiter {
    fn hears(&self, news: News) -> bool {
        match news {
            News::Journal => true,
            News::Typing => self.hears.typing,
            News::Presence => self.hears.presence,
        }
    }
}

/// A place in the waiting room; leaving it is dropping it.
#[derive(Debug)]
pub(crate) struct Parked {
    wakeups: Wakeups,
    id: u64,
    bells: Vec<Bell>,
    knock: Arc<Notify>,
}

impl Wakeups {
    /// Nobody waits; a task that reads the journal runs until shutdown.
    pub(crate) fn start(store: &Store, runtime: &Runtime) -> Self {
        let wakeups = Self::default();
        let task = wakeups.clone().follow(store.clone(), runtime.clone());
        runtime.tasks.spawn(task);
        wakeups
    }

    /// Takes a place. What happens from now on is not missed.
    pub(crate) fn park(&self, bells: Vec<Bell>, hears: Hears) -> Parked {
        let knock = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        waiting.last_id += 1;
        let id = waiting.last_id;
        for bell in &bells {
            let door = waiting.doors.entry(*bell).or_default();
            let knock = Arc::clone(&knock);
            door.insert(id, Waiter { knock, hears });
        }
        Parked {
            wakeups: self.clone(),
            id,
            bells,
            knock,
        }
    }

    /// Wakes who waits at a bell and hears of such news. Gives how many.
    pub(crate) fn ring(&self, bell: Bell, news: News) -> usize {
        let waiting = self.waiting.lock();
        let door = waiting.doors.get(&bell).into_iter();
        let hearing = door
            .flat_map(BTreeMap::values)
            .filter(|waiter| waiter.hears(news));
        // One permit is kept for those who have not begun to wait.
        hearing.map(|waiter| waiter.knock.notify_one()).count()
    }

    fn tell(&self, bell: Bell) {
        self.ring(bell, News::Journal);
    }

    async fn follow(self, store: Store, runtime: Runtime) {
        let mut grown = store.subscribe();
        let mut told: Position = *grown.borrow_and_update();
        loop {
            tokio::select! {
                biased;
                () = runtime.tasks.stopping() => return,
                changed = grown.changed() => if changed.is_err() { return },
            }
            let upto = *grown.borrow_and_update();
            while told < upto {
                match store.journal().read_all(told, upto, ENTRIES_AT_ONCE).await {
                    Ok(entries) => {
                        for (_, entry) in &entries {
                            self.announce(entry);
                        }
                        told = match entries.last() {
                            Some((last, _)) if entries.len() == ENTRIES_AT_ONCE => *last,
                            _ => upto,
                        };
                    }
                    Err(error) => {
                        // Nobody is left asleep: everybody looks for themselves.
                        tracing::error!(%error, "the journal could not be read for wake-ups");
                        self.ring_all();
                        told = upto;
                    }
                }
            }
        }
    }

    fn announce(&self, entry: &Entry) {
        use homeserver_rooms::journal as rooms_journal;

        let number = |index: usize| entry.numbers.get(index).copied().unwrap_or_default();
        match entry.kind {
            rooms_journal::ROOM_EVENT => {
                self.tell(Bell::Room(number(0)));
                // Whose membership changes: an invited user is not in the room.
                for user in entry.numbers.iter().skip(2) {
                    self.tell(Bell::User(*user));
                }
            }
            rooms_journal::MEMBERS_CHANGED => {
                for user in entry.numbers.iter().skip(1) {
                    self.tell(Bell::User(*user));
                }
            }
            rooms_journal::STATE_CHANGED | users_journal::RECEIPT_CHANGED => {
                self.tell(Bell::Room(number(0)));
            }
            rooms_journal::FORGOTTEN | users_journal::PRIVATE_RECEIPT_CHANGED => {
                self.tell(Bell::User(number(1)));
            }
            users_journal::ACCOUNT_DATA_CHANGED | users_journal::SIGNATURE_ADDED => {
                self.tell(Bell::User(number(0)));
            }
            users_journal::DEVICE_LIST_CHANGED => self.tell(Bell::DeviceLists),
            users_journal::ONE_TIME_KEYS_CHANGED | users_journal::DEVICE_DELETED => {
                self.tell(Bell::Device(number(1)));
            }
            users_journal::TO_DEVICE_SENT => {
                for device in &entry.numbers {
                    self.tell(Bell::Device(*device));
                }
            }
            _ => {}
        }
    }

    fn ring_all(&self) {
        let waiting = self.waiting.lock();
        let doors = waiting.doors.values();
        doors
            .flat_map(BTreeMap::values)
            .for_each(|waiter| waiter.knock.notify_one());
    }

    /// How many wait at a bell, for tests.
    #[cfg(test)]
    pub(crate) fn waiting_at(&self, bell: Bell) -> usize {
        self.waiting
            .lock()
            .doors
            .get(&bell)
            .map_or(0, BTreeMap::len)
    }

    /// Requests that wait, for tests.
    #[cfg(test)]
    fn doors(&self) -> usize {
        self.waiting.lock().doors.len()
    }
}

impl Parked {
    /// Waits for a knock; one that came since the place was taken counts.
    pub(crate) async fn knocked(&self) {
        self.knock.notified().await;
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let mut waiting = self.wakeups.waiting.lock();
        for bell in &self.bells {
            if let Some(door) = waiting.doors.get_mut(bell) {
                door.remove(&self.id);
                if door.is_empty() {
                    waiting.doors.remove(bell);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use homeserver_storage::EntryKind;

    const ALL: Hears = Hears {
        typing: true,
        presence: true,
    };

    #[tokio::test]
    async fn a_knock_before_waiting_is_not_lost_and_places_are_given_back() {
        let wakeups = Wakeups::default();
        let parked = wakeups.park(vec![Bell::Room(1), Bell::User(2)], ALL);
        wakeups.tell(Bell::User(2));
        parked.knocked().await;
        assert!(parked.knocked().now_or_never().is_none());
        wakeups.tell(Bell::Room(3));
        assert!(parked.knocked().now_or_never().is_none());
        drop(parked);
        assert_eq!(wakeups.doors(), 0);
    }

    #[test]
    fn only_who_wants_to_hear_of_typing_or_presence_is_woken_by_it() {
        let wakeups = Wakeups::default();
        let deaf = Hears {
            typing: false,
            presence: false,
        };
        let (hearing, not) = (
            wakeups.park(vec![Bell::Room(1)], ALL),
            wakeups.park(vec![Bell::Room(1)], deaf),
        );
        for (news, woken) in [(News::Typing, 1), (News::Presence, 1), (News::Journal, 2)] {
            assert_eq!(wakeups.ring(Bell::Room(1), news), woken);
            assert!(hearing.knocked().now_or_never().is_some());
            assert_eq!(not.knocked().now_or_never().is_some(), woken == 2);
        }
        assert_eq!(wakeups.ring(Bell::Room(2), News::Journal), 0);
    }

    #[test]
    fn entries_ring_the_bells_of_those_they_concern() {
        let wakeups = Wakeups::default();
        // (kind, numbers, bell)
        let cases: [(EntryKind, &[u64], Bell); 9] = [
            (
                homeserver_rooms::journal::ROOM_EVENT,
                &[7, 9, 6, 5],
                Bell::User(5),
            ),
            (
                homeserver_rooms::journal::MEMBERS_CHANGED,
                &[7, 6, 5],
                Bell::User(5),
            ),
            (
                homeserver_rooms::journal::ROOM_EVENT,
                &[7, 9, 5],
                Bell::User(5),
            ),
            (
                homeserver_rooms::journal::ROOM_EVENT,
                &[7, 9],
                Bell::Room(7),
            ),
            (users_journal::RECEIPT_CHANGED, &[7, 9], Bell::Room(7)),
            (
                users_journal::PRIVATE_RECEIPT_CHANGED,
                &[7, 9],
                Bell::User(9),
            ),
            (users_journal::ACCOUNT_DATA_CHANGED, &[9, 7], Bell::User(9)),
            (
                users_journal::ONE_TIME_KEYS_CHANGED,
                &[9, 4],
                Bell::Device(4),
            ),
            (users_journal::TO_DEVICE_SENT, &[3, 4], Bell::Device(4)),
        ];
        for (kind, numbers, bell) in cases {
            let parked = wakeups.park(vec![bell], ALL);
            let other = wakeups.park(vec![Bell::Room(1), Bell::User(1), Bell::Device(1)], ALL);
            wakeups.announce(&Entry::new(kind, numbers));
            assert!(parked.knocked().now_or_never().is_some(), "{kind:?}");
            assert!(other.knocked().now_or_never().is_none(), "{kind:?}");
        }
    }
}
