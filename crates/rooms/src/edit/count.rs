//! Counting an event as it is appended; see [`crate::tally`].

use homeserver_events::{
    PowerLevel,
    push::{Class, MAX_THREAD_HOPS, SenderPermission, classify},
};

use super::{RoomEdit, declared_relation};
use crate::{
    delta::{Appended, Relation},
    error::RoomError,
    event::StoredEvent,
    numbers::{EventNumber, UserNumber},
    rows::ArrivalRow,
    tables::ARRIVALS,
    tally::{ClassCounts, EVERYBODY, Tally},
};

/// How an event was counted.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    pub(crate) class: Class,
    /// The root of its thread.
    pub(crate) thread: Option<EventNumber>,
    /// What the room has counted, this event included.
    pub(crate) tally: Tally,
    /// What its thread has counted, if the event is in one and counts.
    pub(crate) in_thread: Option<ClassCounts>,
    /// Local users it mentions; [`EVERYBODY`] if those have to be looked for in the event.
    pub(crate) mentions: Vec<UserNumber>,
    /// Its sender, if local: who writes has read.
    pub(crate) writer: Option<UserNumber>,
}

impl Count {
    /// An event that counts for nobody.
    pub(crate) fn none() -> Self {
        Self {
            class: Class::Unmatched,
            thread: None,
            tally: Tally::default(),
            in_thread: None,
            mentions: Vec::new(),
            writer: None,
        }
    }

    /// The row of the arrival.
    pub(crate) fn row(&self, event: EventNumber, highest: u64) -> ArrivalRow {
        ArrivalRow {
            event,
            class: self.class.number(),
            thread: self.thread.map_or(0, |root| root.0),
            tally: self.tally,
            highest,
        }
    }
}

impl RoomEdit<'_> {
    /// Counts an event that is about to be shown. Its relation is noted before.
    pub(crate) async fn note_count(&mut self, appended: &mut Appended) -> Result<(), RoomError> {
        let event = &appended.event;
        let sender = event.pdu.sender();
        let mut count = Count::none();
        if self.rooms.is_local(sender) {
            count.writer = Some(self.rooms.numbering.user(sender).await?);
        }
        count.thread = self.thread_root(appended.relation.as_ref()).await?;
        // An event that was redacted before it came counts for nobody.
        if event.redacted_by.is_none() {
            let permission = self.notification_permission(event).await?;
            let found = classify(&event.pdu, &permission);
            count.class = found.class;
            // State that mentions somebody is rare, and a room may begin with much of it: one row.
            let is_state = event.pdu.state_key().is_some();
            if found.mentions.overflow || (is_state && !found.mentions.users.is_empty()) {
                count.mentions.push(EVERYBODY);
            } else {
                for user in &found.mentions.users {
                    if self.rooms.is_local(user) {
                        count
                            .mentions
                            .extend(self.rooms.numbering.known_user(user).await?);
                    }
                }
            }
        }
        let tally = &mut self.delta.head.tally;
        if tally.all.add(count.class)
            && let Some(root) = count.thread
        {
            tally.threaded.add(count.class);
            let mut counts = self.thread_counts(root).await?;
            counts.add(count.class);
            count.in_thread = Some(counts);
        }
        count.tally = self.delta.head.tally;
        appended.count = count;
        Ok(())
    }

    /// What the sender of an event may notify about; nothing, unless the event asks for it.
    async fn notification_permission(
        &self,
        event: &StoredEvent,
    ) -> Result<SenderPermission, RoomError> {
        // Canonical JSON has no blanks.
        if event.pdu.content_str().contains("\"room\":true") {
            let before = event.before();
            let create = self.state_in(before, "m.room.create", "").await?;
            let levels = self.state_in(before, "m.room.power_levels", "").await?;
            if let Some(create) = create {
                let levels = levels.map(|levels| levels.pdu.clone());
                let (rules, sender) = (self.room().rules, event.pdu.sender());
                return Ok(SenderPermission::new(rules, &create.pdu, levels, sender));
            }
        }
        Ok(SenderPermission {
            sender: PowerLevel::Finite(i64::MIN),
            power_levels: None,
        })
    }

    /// The root of the thread that an event with this relation is in, found over a bounded number
    /// of relations.
    async fn thread_root(
        &self,
        relation: Option<&Relation>,
    ) -> Result<Option<EventNumber>, RoomError> {
        let Some(relation) = relation else {
            return Ok(None);
        };
        if relation.rel_type == "m.thread" {
            return Ok(Some(relation.target));
        }
        let mut target = relation.target;
        for _ in 0..MAX_THREAD_HOPS {
            let event = self.find(target).await?;
            let Some(next) = event.as_deref().and_then(declared_relation) else {
                return Ok(None);
            };
            let Some(number) = self.number_of(&next.target).await? else {
                return Ok(None);
            };
            if next.rel_type == "m.thread" {
                return Ok(Some(number));
            }
            target = number;
        }
        Ok(None)
    }

    /// What a thread has counted, also by commits on their way.
    async fn thread_counts(&self, root: EventNumber) -> Result<ClassCounts, RoomError> {
        if let Some(counts) = self.pending.threads.get(&root) {
            return Ok(*counts);
        }
        let room = self.room().number;
        self.rooms.thread_tally_at(room, root, u64::MAX).await
    }

    /// Notes that an event which arrived at a position is redacted and counts no more.
    pub(super) async fn note_uncounted(&mut self, target: &StoredEvent) -> Result<(), RoomError> {
        let Some(position) = target.position else {
            return Ok(());
        };
        let key = (self.room().number.0, position);
        if let Some(row) = self.rooms.store.get(&ARRIVALS, &key).await? {
            self.delta.uncounted.push((position, row));
        }
        Ok(())
    }
}
