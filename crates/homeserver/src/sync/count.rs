//! Unread notifications.
//!
//! `counts(user, room, P)` is a pure function of the user's rules, the receipts, and the events up
//! to P, computed for those who look. There are two ways to the same answer, and a property test
//! holds one against the other:
//!
//! - [`by_class`]: for rules that look at nothing but an event's class and room. The events were
//!   counted when they came; the answer is the difference of two rows, less what was redacted,
//!   with the rows of those events that mention the user. It costs the same for ten events as for a
//!   million.
//! - [`by_event`]: for rules with words or senders, and for who ignores somebody. The newest events
//!   are evaluated, [`EVENTS_COUNTED`] a room and [`EVENTS_PER_RESPONSE`] a response at most; what
//!   is older is not counted. What was found is remembered, also over a restart.
//!
//! Counting begins where the user last joined. The user's own events count as read up to
//! themselves, in their thread.
//!
//! Specification: client-server API, "Receiving notifications", "Threaded read receipts".

mod by_class;
mod by_event;
mod memo;
mod surroundings;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use homeserver_events::push::{ClassRules, Rules, Verdicts};
use homeserver_rooms::{EventNumber, Room, UserMembership};
use homeserver_storage::{Position, TableSpec};
use homeserver_users::{Scope, StoredReceipt};
use parking_lot::Mutex;
use ruma::events::receipt::ReceiptThread;

pub(super) use self::memo::CountMemos;
use super::{
    SyncError,
    changes::{Counts, Unread},
    pass::Pass,
};
use crate::app::push_rules::PUSH_RULES;

/// The tables of this module.
pub(crate) const TABLES: &[TableSpec] = memo::TABLES;

/// Events of one room that are evaluated at once, the newest.
const EVENTS_COUNTED: usize = 500;

/// Events that are evaluated for one response, of all rooms together.
const EVENTS_PER_RESPONSE: usize = 20_000;

/// Steps of patterns ([`homeserver_events::push::MAX_STEPS`]) that count as an event evaluated.
const STEPS_AN_EVENT: u64 = 20_000;

/// Steps of patterns after which others get their turn on the thread.
const STEPS_A_TURN: u64 = 200_000;

/// Counts of one room by thread root; `None` is the main timeline.
type ByThread = BTreeMap<Option<EventNumber>, Counts>;

/// The rules that one response is counted by.
#[derive(Debug)]
pub(super) struct Counting {
    /// Where the rules stand in the journal; 0 for rules that were never changed.
    rules_at: Position,
    rules: Rules,
    /// The same, if classes are enough for them.
    by_class: Option<Mutex<ClassRules>>,
    /// How many events may still be evaluated.
    budget: AtomicUsize,
}

impl Counting {
    /// Takes events off the budget, and what their patterns cost.
    fn spend(&self, events: usize, steps: u64) {
        let extra = usize::try_from(steps / STEPS_AN_EVENT).unwrap_or(usize::MAX);
        let spent = events.saturating_add(extra);
        let rest = |budget: usize| Some(budget.saturating_sub(spent));
        let _ = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    }
}

/// Up to where a user has read, as arrival positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct ReadMarks {
    /// Everything.
    room: Position,
    /// A thread, or what is in none.
    threads: BTreeMap<Option<EventNumber>, Position>,
}

impl ReadMarks {
    fn advance(&mut self, thread: Option<EventNumber>, to: Position) {
        let mark = self.threads.entry(thread).or_default();
        *mark = to.max(*mark);
    }

    /// Up to where a thread is read.
    fn of(&self, thread: Option<EventNumber>) -> Position {
        let mark = self.threads.get(&thread).copied();
        mark.unwrap_or_default().max(self.room)
    }

    fn covers(&self, thread: Option<EventNumber>, at: Position) -> bool {
        at <= self.of(thread)
    }
}

impl Pass<'_> {
    /// The unread notifications of a room that the user is in.
    pub(super) async fn unread(
        &self,
        room: &Arc<Room>,
        membership: &UserMembership,
    ) -> Result<Unread, SyncError> {
        let marks = self.read_marks(room, membership).await?;
        let counts = match self.verdicts(room).await? {
            Some(verdicts) => self.count_by_class(room, marks, &verdicts).await?,
            None => self.count_by_event(room, &marks).await?,
        };
        self.told_counts(room, counts).await
    }

    /// Where receipts stand. What came before the user joined counts as read.
    async fn read_marks(
        &self,
        room: &Room,
        membership: &UserMembership,
    ) -> Result<ReadMarks, SyncError> {
        let (users, rooms) = (&self.engine.users, &self.engine.rooms);
        let me = self.session.user_number;
        let mut marks = ReadMarks::default();
        let receipts = users.receipts.of_user(room.number.0, me).await?;
        for StoredReceipt { receipt, .. } in receipts {
            // Public or private: whichever is further.
            match &receipt.thread {
                ReceiptThread::Main => marks.advance(None, receipt.arrival),
                ReceiptThread::Thread(root) => {
                    if let Some(root) = rooms.event_number(room.number, root).await? {
                        marks.advance(Some(root), receipt.arrival);
                    }
                }
                _ => marks.room = receipt.arrival.max(marks.room),
            }
        }
        if marks.room < membership.since {
            let joined = rooms.joined_since(self.user(), room.number, self.upto());
            marks.room = joined.await?.max(marks.room);
        }
        Ok(marks)
    }

    /// What the user's rules say of each class in this room, if they say so by class.
    async fn verdicts(&self, room: &Room) -> Result<Option<Verdicts>, SyncError> {
        if !self.ignored.is_empty() {
            return Ok(None);
        }
        let rules = &self.counting().await?.by_class;
        Ok(rules
            .as_ref()
            .and_then(|rules| rules.lock().verdicts(&room.id)))
    }

    async fn counting(&self) -> Result<&Counting, SyncError> {
        let load = async || {
            let (me, user) = (self.session.user_number, &self.session.user);
            let data = &self.engine.users.account_data;
            // In this order: rules that are newer than their position are counted with once more.
            let stored = data.one(me, Scope::Global, PUSH_RULES).await?;
            let ruleset = self.engine.rules.of(me, user).await?;
            Ok::<_, SyncError>(Counting {
                rules_at: stored.map_or(0, |datum| datum.position),
                rules: Rules::compile(user, &ruleset),
                by_class: ClassRules::new(user, &ruleset).map(Mutex::new),
                budget: AtomicUsize::new(EVENTS_PER_RESPONSE),
            })
        };
        self.counting.get_or_try_init(load).await
    }

    /// The counts as they are told: threads by themselves only to who asks for them.
    async fn told_counts(&self, room: &Room, counts: ByThread) -> Result<Unread, SyncError> {
        let mut unread = Unread::default();
        for (thread, found) in counts {
            if found == Counts::default() {
                continue;
            }
            let root = match thread.filter(|_| self.request.filter.thread_counts) {
                Some(root) => self.engine.rooms.event_id(room, root).await?,
                None => None,
            };
            let counts = match root {
                Some(root) => unread
                    .threads
                    .get_or_insert_default()
                    .entry(root)
                    .or_default(),
                None => &mut unread.room,
            };
            counts.notifications += found.notifications;
            counts.highlights += found.highlights;
        }
        Ok(unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_cover_what_they_name() {
        let (root, other) = (Some(EventNumber(7)), Some(EventNumber(8)));
        let mut marks = ReadMarks {
            room: 5,
            ..ReadMarks::default()
        };
        marks.advance(None, 8);
        marks.advance(root, 7);
        marks.advance(root, 6);
        // (thread, position, covered)
        let cases = [
            (None, 5, true),
            (None, 8, true),
            (None, 9, false),
            (root, 7, true),
            (root, 8, false),
            (other, 5, true),
            (other, 6, false),
        ];
        for (thread, at, covered) in cases {
            assert_eq!(marks.covers(thread, at), covered, "{thread:?} {at}");
        }
    }
}
