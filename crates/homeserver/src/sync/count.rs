//! Unread notifications.
//!
//! `counts(user, room, P)` is a pure function of the user's rules, the receipts, and the events up
//! to P with the state at each. It is computed for those who look: from a memo in memory where one
//! fits, otherwise from the read position, over a bounded number of events. What is older than
//! that is not counted.
//!
//! The user's own events count as read up to themselves, in their thread. An event is counted if
//! the user was in the room when it came.
//!
//! Specification: client-server API, "Receiving notifications", "Threaded read receipts".

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use homeserver_events::{
    Pdu, PowerLevel,
    push::{Context, MAX_THREAD_HOPS, PushEvent, Relation, Rules, SenderPermission},
};
use homeserver_rooms::{Membership, Room, RoomNumber, StateRoot, VisibleEvent};
use homeserver_storage::Position;
use homeserver_users::{Scope, StoredReceipt, UserNumber};
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, UserId, events::receipt::ReceiptThread};
use serde::Deserialize;

use super::{
    SyncError,
    changes::{Counts, Unread},
    pass::Pass,
};
use crate::app::push_rules::PUSH_RULES;

/// Events of one room that are evaluated at once, the newest.
const EVENTS_COUNTED: usize = 500;

/// Pairs of user and room whose counts are remembered.
const MEMOS: usize = 50_000;

/// Counts of one room by thread root; `None` is the main timeline.
type ByThread = BTreeMap<Option<OwnedEventId>, Counts>;

#[derive(Debug)]
struct Memo {
    /// Hash of the rules and receipts that the counts rest on.
    basis: u64,
    upto: Position,
    counts: ByThread,
}

/// Remembered counts. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct CountMemos {
    memos: Arc<Cache<(UserNumber, RoomNumber), Arc<Memo>>>,
}

impl Default for CountMemos {
    fn default() -> Self {
        Self {
            memos: Arc::new(Cache::new(MEMOS)),
        }
    }
}

/// Up to where a user has read, as arrival positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ReadMarks {
    room: Position,
    threads: BTreeMap<Option<OwnedEventId>, Position>,
}

impl ReadMarks {
    /// The furthest of public and private receipts, by what they cover.
    fn new(receipts: &[StoredReceipt]) -> Self {
        let mut marks = Self::default();
        for StoredReceipt { receipt, .. } in receipts {
            let mark = match &receipt.thread {
                ReceiptThread::Main => marks.threads.entry(None).or_default(),
                ReceiptThread::Thread(root) => marks.threads.entry(Some(root.clone())).or_default(),
                _ => &mut marks.room,
            };
            *mark = receipt.arrival.max(*mark);
        }
        marks
    }

    fn covers(&self, thread: Option<&OwnedEventId>, at: Position) -> bool {
        at <= self.room
            || self
                .threads
                .get(&thread.cloned())
                .is_some_and(|mark| at <= *mark)
    }
}

impl Pass<'_> {
    /// The unread notifications of a room that the user is in.
    pub(super) async fn unread(&self, room: &Arc<Room>) -> Result<Unread, SyncError> {
        let users = &self.engine.users;
        let me = self.session.user_number;
        let receipts = users.receipts.of_user(room.number.0, me).await?;
        let marks = ReadMarks::new(&receipts);
        let stored = users
            .account_data
            .one(me, Scope::Global, PUSH_RULES)
            .await?;
        let rules_at = stored.map_or(0, |datum| datum.position);
        let mut hasher = DefaultHasher::new();
        (&marks, rules_at).hash(&mut hasher);
        let basis = hasher.finish();

        let key = (me, room.number);
        let memos = &self.engine.counts.memos;
        let memo = memos.get(&key);
        let memo = memo.filter(|memo| memo.basis == basis && memo.upto <= self.upto());
        let (after, mut counts) = match &memo {
            Some(memo) => (memo.upto, memo.counts.clone()),
            None => (marks.room, ByThread::new()),
        };
        if after < self.upto() {
            self.count(room, after, &marks, &mut counts).await?;
            let memo = Memo {
                basis,
                upto: self.upto(),
                counts: counts.clone(),
            };
            memos.insert(key, Arc::new(memo));
        }
        Ok(summed(&counts, self.request.filter.thread_counts))
    }

    /// Adds the events after `after`.
    async fn count(
        &self,
        room: &Arc<Room>,
        after: Position,
        marks: &ReadMarks,
        counts: &mut ByThread,
    ) -> Result<(), SyncError> {
        let rooms = &self.engine.rooms;
        let wanted = |event: &VisibleEvent| {
            event.reader_membership() == Some(Membership::Join) && event.redacted_by().is_none()
        };
        let limit = EVENTS_COUNTED;
        let slice = rooms
            .timeline(&self.reader, room, after, limit, &wanted)
            .await?;
        if slice.events.is_empty() {
            return Ok(());
        }
        let ruleset = self
            .engine
            .rules
            .of(self.session.user_number, &self.session.user)
            .await?;
        let rules = Rules::compile(&self.session.user, &ruleset);
        let mut surroundings = Surroundings::default();
        for event in &slice.events {
            let pdu = event.pdu();
            let thread = self.thread_of(room, event).await?;
            if *pdu.sender() == *self.session.user {
                counts.remove(&thread);
                continue;
            }
            let at = event.position().unwrap_or(0);
            if marks.covers(thread.as_ref(), at) || !self.hears(pdu.sender()) {
                continue;
            }
            let around = surroundings.of(self, room, event).await?;
            let permission = around.permission(room, pdu.sender());
            let context = Context {
                member_count: around.members,
                display_name: around.display_name.as_deref(),
                permission: &permission,
            };
            let outcome = rules.evaluate(&PushEvent::new(pdu), &context);
            if let Some(outcome) = outcome.filter(|outcome| outcome.notify) {
                let counts = counts.entry(thread).or_default();
                counts.notifications += 1;
                counts.highlights += u64::from(outcome.highlight);
            }
        }
        Ok(())
    }

    /// The root of the thread that an event belongs to, found over a bounded number of relations.
    async fn thread_of(
        &self,
        room: &Room,
        event: &VisibleEvent,
    ) -> Result<Option<OwnedEventId>, SyncError> {
        let Some(mut relation) = relation_of(event) else {
            return Ok(None);
        };
        for _ in 0..MAX_THREAD_HOPS {
            if relation.rel_type == "m.thread" {
                return Ok(Some(relation.event_id));
            }
            let rooms = &self.engine.rooms;
            let target = rooms
                .visible_by_id(&self.reader, room, &relation.event_id)
                .await?;
            match target.as_ref().and_then(relation_of) {
                Some(next) => relation = next,
                None => return Ok(None),
            }
        }
        Ok((relation.rel_type == "m.thread").then_some(relation.event_id))
    }
}

fn relation_of(event: &VisibleEvent) -> Option<Relation> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: RelatesTo,
    }
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: String,
        event_id: OwnedEventId,
    }
    let content: Content = event.pdu().content_as().ok()?;
    Some(Relation {
        rel_type: content.relates_to.rel_type,
        event_id: content.relates_to.event_id,
        key: None,
    })
}

fn summed(counts: &ByThread, by_thread: bool) -> Unread {
    let mut unread = Unread::default();
    for (thread, found) in counts {
        match thread {
            Some(root) if by_thread => {
                let threads = unread.threads.get_or_insert_default();
                threads.insert(root.clone(), *found);
            }
            _ => {
                unread.room.notifications += found.notifications;
                unread.room.highlights += found.highlights;
            }
        }
    }
    unread
}

/// What conditions of rules look at beside the event, by the state before it.
#[derive(Debug, Default)]
struct Surroundings {
    known: HashMap<StateRoot, Arc<Around>>,
}

#[derive(Debug)]
struct Around {
    members: u64,
    display_name: Option<String>,
    create: Option<Pdu>,
    power_levels: Option<Pdu>,
}

impl Surroundings {
    async fn of(
        &mut self,
        pass: &Pass<'_>,
        room: &Arc<Room>,
        event: &VisibleEvent,
    ) -> Result<Arc<Around>, SyncError> {
        let root = event.state_before();
        if let Some(known) = self.known.get(&root) {
            return Ok(Arc::clone(known));
        }
        let rooms = &pass.engine.rooms;
        let at = event.position().unwrap_or(1).saturating_sub(1);
        let members = rooms.state_at(room.number, at).await?.joined;
        let state = |event_type: &'static str, key: &'static str| async move {
            rooms.state_value(room, root, event_type, key).await
        };
        let create = state("m.room.create", "").await?;
        let power = state("m.room.power_levels", "").await?;
        let user = pass.session.user.as_str();
        let member = rooms.state_value(room, root, "m.room.member", user).await?;
        let wanted: Vec<_> = [create, power, member].into_iter().flatten().collect();
        // The reader was in the room: its state is the reader's to see, also where the history
        // before that is not.
        let events = match rooms.state_root_for(&pass.reader, room).await? {
            Some(state) => rooms.state_events(&state, &wanted).await?,
            None => Vec::new(),
        };
        let found: HashMap<_, _> = events
            .into_iter()
            .map(|event| (event.number(), event))
            .collect();
        let pdu = |number: Option<_>| Some(found.get(&number?)?.pdu());
        let around = Arc::new(Around {
            members,
            display_name: pdu(member).and_then(display_name),
            create: pdu(create).cloned(),
            power_levels: pdu(power).cloned(),
        });
        self.known.insert(root, Arc::clone(&around));
        Ok(around)
    }
}

fn display_name(member: &Pdu) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        displayname: Option<String>,
    }
    member.content_as::<Content>().ok()?.displayname
}

impl Around {
    fn permission(&self, room: &Room, sender: &UserId) -> SenderPermission {
        match &self.create {
            Some(create) => {
                SenderPermission::new(room.rules, create, self.power_levels.clone(), sender)
            }
            None => SenderPermission {
                sender: PowerLevel::Finite(0),
                power_levels: None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homeserver_users::{Receipt, ReceiptKind};
    use ruma::owned_event_id;

    fn receipt(kind: ReceiptKind, thread: ReceiptThread, arrival: Position) -> StoredReceipt {
        StoredReceipt {
            receipt: Receipt {
                user: UserNumber(1),
                kind,
                thread,
                event_id: owned_event_id!("$event"),
                arrival,
                at: 0,
            },
            position: arrival,
        }
    }

    #[test]
    fn receipts_cover_what_they_name() {
        let root = owned_event_id!("$root");
        let marks = ReadMarks::new(&[
            receipt(ReceiptKind::Public, ReceiptThread::Unthreaded, 5),
            receipt(ReceiptKind::Private, ReceiptThread::Unthreaded, 3),
            receipt(ReceiptKind::Public, ReceiptThread::Main, 8),
            receipt(ReceiptKind::Private, ReceiptThread::Thread(root.clone()), 7),
        ]);
        // (thread, position, covered)
        let cases = [
            (None, 5, true),
            (None, 8, true),
            (None, 9, false),
            (Some(root.clone()), 7, true),
            (Some(root), 8, false),
            (Some(owned_event_id!("$other")), 5, true),
            (Some(owned_event_id!("$other")), 6, false),
        ];
        for (thread, at, covered) in cases {
            assert_eq!(
                marks.covers(thread.as_ref(), at),
                covered,
                "{thread:?} {at}"
            );
        }
    }

    #[test]
    fn threads_are_told_apart_only_where_asked() {
        let root = owned_event_id!("$root");
        let counts = ByThread::from([
            (
                None,
                Counts {
                    notifications: 2,
                    highlights: 1,
                },
            ),
            (
                Some(root.clone()),
                Counts {
                    notifications: 3,
                    highlights: 0,
                },
            ),
        ]);
        let together = summed(&counts, false);
        assert_eq!(
            together.room,
            Counts {
                notifications: 5,
                highlights: 1
            }
        );
        assert_eq!(together.threads, None);
        let apart = summed(&counts, true);
        assert_eq!(
            apart.room,
            Counts {
                notifications: 2,
                highlights: 1
            }
        );
        assert_eq!(apart.threads.unwrap()[&root].notifications, 3);
    }
}
