//! Counts for rules that look at more than class and room: the events are evaluated.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, atomic::Ordering},
};

use homeserver_events::push::{Context, PushEvent};
use homeserver_rooms::{EventNumber, Room, VisibleEvent};
use homeserver_storage::Position;

use super::{
    ByThread, Counting, EVENTS_COUNTED, ReadMarks, STEPS_A_TURN, memo::Memo,
    surroundings::Surroundings,
};
use crate::sync::{SyncError, pass::Pass};

/// Arrivals looked at for the threads of the events that are evaluated: as many as a slice of a
/// timeline looks at.
const ARRIVALS_LOOKED_AT: usize = 1_000;

impl Pass<'_> {
    /// Counts a room, from a memo where one fits.
    pub(super) async fn count_by_event(
        &self,
        room: &Arc<Room>,
        marks: &ReadMarks,
    ) -> Result<ByThread, SyncError> {
        let counting = self.counting().await?;
        let basis = self.basis(counting, marks);
        let (key, memos) = ((self.session.user_number, room.number), &self.engine.counts);
        let memo = memos.find(key).await?;
        let memo = memo.filter(|memo| memo.basis == basis && memo.upto <= self.upto());
        let (mut memo, known) = match memo {
            Some(memo) => (Memo::clone(&memo), true),
            None => (
                Memo {
                    basis,
                    upto: marks.room,
                    counts: ByThread::new(),
                    unstored: 0,
                },
                false,
            ),
        };
        let budget = counting.budget.load(Ordering::Relaxed);
        if memo.upto >= self.upto() || budget == 0 {
            return Ok(memo.counts);
        }
        let limit = budget.min(EVENTS_COUNTED);
        let mut events = self.uncounted_events(room, memo.upto, limit).await?;
        if known && events.iter().any(redacts) {
            // What is redacted may be in the memo.
            memo = Memo {
                upto: marks.room,
                counts: ByThread::new(),
                ..memo
            };
            events = self.uncounted_events(room, memo.upto, limit).await?;
        }
        let after = memo.upto;
        let steps = self
            .evaluate(room, (after, &events), marks, &mut memo.counts)
            .await?;
        counting.spend(events.len(), steps);
        memo.upto = self.upto();
        memo.unstored += events.len();
        let counts = memo.counts.clone();
        memos.remember(key, memo).await;
        Ok(counts)
    }

    /// A hash of all that counts rest on beside the events.
    fn basis(&self, counting: &Counting, marks: &ReadMarks) -> u64 {
        let ignored = self.ignored.sorted();
        let mut hasher = DefaultHasher::new();
        (marks, counting.rules_at, ignored).hash(&mut hasher);
        hasher.finish()
    }

    /// The newest events after `after` that may count or count as reading.
    async fn uncounted_events(
        &self,
        room: &Room,
        after: Position,
        limit: usize,
    ) -> Result<Vec<VisibleEvent>, SyncError> {
        let me = &self.session.user;
        let wanted =
            |event: &VisibleEvent| event.redacted_by().is_none() || *event.pdu().sender() == **me;
        let rooms = &self.engine.rooms;
        let slice = rooms
            .timeline(&self.reader, room, after, limit, &wanted)
            .await?;
        Ok(slice.events)
    }

    /// Adds events that arrived after a position, oldest first. Gives the steps that it took.
    async fn evaluate(
        &self,
        room: &Arc<Room>,
        (after, events): (Position, &[VisibleEvent]),
        marks: &ReadMarks,
        counts: &mut ByThread,
    ) -> Result<u64, SyncError> {
        if events.is_empty() {
            return Ok(0);
        }
        let span = (after, self.upto());
        let rooms = &self.engine.rooms;
        let arrivals = rooms
            .counted_arrivals(room.number, span, ARRIVALS_LOOKED_AT)
            .await?;
        let threads: HashMap<EventNumber, EventNumber> = arrivals
            .into_iter()
            .filter_map(|arrival| Some((arrival.event, arrival.thread?)))
            .collect();
        let rules = &self.counting().await?.rules;
        let mut surroundings = Surroundings::default();
        let (mut steps, mut turn) = (0, 0);
        for event in events {
            let pdu = event.pdu();
            let thread = threads.get(&event.number()).copied();
            if *pdu.sender() == *self.session.user {
                counts.remove(&thread);
                continue;
            }
            let at = event.position().unwrap_or(0);
            if marks.covers(thread, at) || !self.hears(pdu.sender()) {
                continue;
            }
            let around = surroundings.of(self, room, event).await?;
            let permission = around.permission(room, pdu.sender());
            let context = Context {
                member_count: around.members,
                display_name: around.display_name.as_deref(),
                permission: &permission,
            };
            let event = PushEvent::new(pdu);
            let (outcome, cost) = rules.evaluate_counted(&event, &context);
            steps += cost;
            turn += cost;
            if let Some(outcome) = outcome.filter(|outcome| outcome.notify) {
                let counts = counts.entry(thread).or_default();
                counts.notifications += 1;
                counts.highlights += u64::from(outcome.highlight);
            }
            if turn >= STEPS_A_TURN {
                turn = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(steps)
    }
}

fn redacts(event: &VisibleEvent) -> bool {
    event.pdu().event_type() == "m.room.redaction"
}
