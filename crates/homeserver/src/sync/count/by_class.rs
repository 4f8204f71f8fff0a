//! Counts for rules that look at nothing but class and room.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_events::push::{Verdict, Verdicts};
use homeserver_rooms::{COUNTED_CLASSES, ClassCounts, EventNumber, Room};

use super::{ByThread, ReadMarks};
use crate::sync::{SyncError, changes::Counts, pass::Pass};

/// Arrivals looked at for the threads that have news, the newest. Threads that only have older
/// news are counted with the main timeline.
const ARRIVALS_LOOKED_AT: usize = 2_000;

/// Redacted events and mentions of one user that are looked at in one room, the newest.
const EXCEPTIONS_LOOKED_AT: usize = 1_000;

/// Sums that may be negative on the way.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    notifications: i64,
    highlights: i64,
}

impl Sum {
    fn add(&mut self, verdict: Verdict, times: i64) {
        self.notifications += i64::from(verdict.notify) * times;
        self.highlights += i64::from(verdict.highlight) * times;
    }

    fn add_all(&mut self, counts: ClassCounts, verdicts: &Verdicts) {
        for (class, count) in counts.iter() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.add(verdicts.of_class(class), count);
        }
    }

    fn counts(self) -> Counts {
        Counts {
            notifications: self.notifications.try_into().unwrap_or(0),
            highlights: self.highlights.try_into().unwrap_or(0),
        }
    }
}

impl Pass<'_> {
    /// Counts a room; `marks` are those of receipts.
    pub(super) async fn count_by_class(
        &self,
        room: &Room,
        mut marks: ReadMarks,
        verdicts: &Verdicts,
    ) -> Result<ByThread, SyncError> {
        let rooms = &self.engine.rooms;
        let (number, upto) = (room.number, self.upto());
        for (thread, at) in rooms.own_reads(self.user(), number).await? {
            marks.advance(thread, at);
        }
        let start = marks.room.min(upto);
        if start == upto {
            return Ok(ByThread::new());
        }
        let now = rooms.tally_at(number, upto).await?;
        let then = rooms.tally_at(number, start).await?;
        let read = marks.of(None).clamp(start, upto);
        let read = if read == start {
            then
        } else {
            rooms.tally_at(number, read).await?
        };
        let mut sums: BTreeMap<Option<EventNumber>, Sum> = BTreeMap::new();
        let main = sums.entry(None).or_default();
        main.add_all(now.main().since(read.main()), verdicts);
        // Threads that are told apart, and the rest of them together.
        let mut rest = now.threaded.since(then.threaded);
        for root in self.apart(room, &marks, rest).await? {
            let now = rooms.thread_tally_at(number, root, upto).await?;
            let then = rooms.thread_tally_at(number, root, start).await?;
            rest = rest.since(now.since(then));
            let read = marks.of(Some(root)).clamp(start, upto);
            let read = rooms.thread_tally_at(number, root, read).await?;
            let thread = sums.entry(Some(root)).or_default();
            thread.add_all(now.since(read), verdicts);
        }
        sums.entry(None).or_default().add_all(rest, verdicts);
        self.add_exceptions(room, &marks, verdicts, &mut sums)
            .await?;
        let counts = sums.into_iter().map(|(thread, sum)| (thread, sum.counts()));
        Ok(counts.collect())
    }

    /// The threads to be counted by themselves: those that were read further than the room, and,
    /// for a reader who asks, those with news.
    async fn apart(
        &self,
        room: &Room,
        marks: &ReadMarks,
        news: ClassCounts,
    ) -> Result<BTreeSet<EventNumber>, SyncError> {
        let mut apart = BTreeSet::new();
        if news == ClassCounts::default() {
            return Ok(apart);
        }
        let further = marks.threads.iter().filter(|(_, mark)| **mark > marks.room);
        apart.extend(further.filter_map(|(root, _)| *root));
        if self.request.filter.thread_counts {
            let span = (marks.room, self.upto());
            let rooms = &self.engine.rooms;
            let arrivals = rooms.counted_arrivals(room.number, span, ARRIVALS_LOOKED_AT);
            let counted = |arrival: &homeserver_rooms::CountedArrival| {
                COUNTED_CLASSES.contains(&arrival.class)
            };
            let arrivals = arrivals.await?.into_iter().filter(counted);
            apart.extend(arrivals.filter_map(|arrival| arrival.thread));
        }
        Ok(apart)
    }

    /// Takes off what was redacted, and moves what mentions the user to what a mention is.
    async fn add_exceptions(
        &self,
        room: &Room,
        marks: &ReadMarks,
        verdicts: &Verdicts,
        sums: &mut BTreeMap<Option<EventNumber>, Sum>,
    ) -> Result<(), SyncError> {
        let rooms = &self.engine.rooms;
        let (span, limit) = ((marks.room, self.upto()), EXCEPTIONS_LOOKED_AT);
        let mut redacted = BTreeSet::new();
        for event in rooms.uncounted(room.number, span, limit).await? {
            redacted.insert(event.position);
            if !marks.covers(event.thread, event.position) {
                let place = event.thread.filter(|root| sums.contains_key(&Some(*root)));
                let sum = sums.entry(place).or_default();
                sum.add(verdicts.of_class(event.class), -1);
            }
        }
        let me = (self.user(), &*self.session.user);
        for event in rooms.mentions(room, me, span, limit).await? {
            if redacted.contains(&event.position) || marks.covers(event.thread, event.position) {
                continue;
            }
            // One of a counted class was counted where its thread was.
            let counted = COUNTED_CLASSES.contains(&event.class);
            let known = |root: &EventNumber| !counted || sums.contains_key(&Some(*root));
            let place = event.thread.filter(known);
            let sum = sums.entry(place).or_default();
            sum.add(verdicts.of_mention(event.class), 1);
            sum.add(verdicts.of_class(event.class), -1);
        }
        Ok(())
    }
}
