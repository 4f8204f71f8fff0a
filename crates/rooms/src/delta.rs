//! Everything that a change of a room writes, as one value, and its rows.
//!
//! A [`RoomDelta`] is decided first and written as one batch: the events, the tree nodes of their
//! states, both orders, memberships, relations, redactions and the head. The batch asserts the head
//! that the decision saw; several deltas (an upgraded room and its replacement) may share a batch.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_storage::batch::MAX_TOPICS;
use homeserver_storage::{AppendRef, At, Batch, Entry, Position, Positioned, Topic};
use ruma::{OwnedEventId, OwnedServerName};
use smallvec::SmallVec;

use crate::{
    directory::write_listed,
    edit::count::Count,
    event::StoredEvent,
    numbers::{EventNumber, RoomNumber, UserNumber},
    room::Room,
    rows::{
        ArrivalRow, GapRow, Head, IndexDebtRow, JoinedUsers, Membership, MembershipRow,
        RelationKey, RelationRow, StateLogRow, StrippedRow, TransactionRow,
    },
    states::write_nodes,
    tables,
    transactions::TransactionDigest,
    tree::{SealedNode, StateRoot},
    whereabouts::put_whereabouts,
};

/// Journal entries of the rooms, by kind.
pub mod journal {
    use homeserver_storage::{EntryKind, Topic};

    use crate::numbers::{RoomNumber, UserNumber};

    /// An event arrived in a room; stays as long as the event. Numbers: room, event, the local users
    /// whose memberships change with it. Topics: the room, and those users.
    pub const ROOM_EVENT: EntryKind = EntryKind::kept(0x0100);
    /// The resolved state of a room changed without an event that is shown: a switch. Numbers:
    /// room. The roots are in the state log, at and before the position of the entry.
    pub const STATE_CHANGED: EntryKind = EntryKind::trimmed(0x0101);
    /// A user forgot a room. Numbers: room, user. Topic: the user.
    pub const FORGOTTEN: EntryKind = EntryKind::trimmed(0x0102);
    /// Memberships of local users changed without an entry of an event that says so: by a switch,
    /// or by an event that changed more of them than its own entry names. Numbers: room, the users.
    /// Topics: the users.
    pub const MEMBERS_CHANGED: EntryKind = EntryKind::trimmed(0x0103);
    /// The form of all these entries.
    pub const VERSION: u8 = 1;

    /// The kind of topic that names a room.
    pub const ROOM_TOPIC: u8 = 1;
    /// The kind of topic that names a user.
    pub const USER_TOPIC: u8 = 2;

    /// What happens in a room.
    pub fn room_topic(room: RoomNumber) -> Topic {
        Topic::new(ROOM_TOPIC, room.0)
    }

    /// What concerns a local user.
    pub fn user_topic(user: UserNumber) -> Topic {
        Topic::new(USER_TOPIC, user.0)
    }
}

/// Number of an import that never was: of a debt without events to be named.
const NO_IMPORT: u64 = 0;

/// What one event does to its room.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) event: StoredEvent,
    /// The resolved state from this event on, if it changes.
    pub(crate) log: Option<StateLogRow>,
    /// Memberships of local users that change with the event: its own, or what resolution found.
    pub(crate) members: Vec<MemberChange>,
    /// Servers that come into the room with this event (`true`) or go.
    pub(crate) servers: Vec<(OwnedServerName, bool)>,
    pub(crate) relation: Option<Relation>,
    /// How it counts for those who have not read it.
    pub(crate) count: Count,
    /// The greatest height in the room, this event included.
    pub(crate) highest: u64,
    /// Previous events that are not here.
    pub(crate) gap: Vec<OwnedEventId>,
    /// Whether readers may be told of it: not of a rejected, soft-failed or outlying event.
    pub(crate) shown: bool,
    /// What the store had of it before.
    pub(crate) was: Was,
    /// States between which so many memberships change that their indexes are written later.
    pub(crate) debt: Option<(StateRoot, StateRoot)>,
    /// Its place in the order of judging, if it was judged on incomplete state.
    pub(crate) judged: Option<u64>,
}

/// What the store has of an event before it is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Was {
    /// Nothing: it is made here.
    Nothing,
    /// Nothing, unless it comes on two ways at once: that is asserted.
    Unknown,
    /// A number, which others mention, but no row: that is asserted.
    Mentioned,
    /// A row without a place in the graph.
    Outlier,
}

/// A changed membership of a local user.
#[derive(Debug)]
pub(crate) struct MemberChange {
    pub(crate) user: UserNumber,
    pub(crate) membership: Membership,
    /// The membership event.
    pub(crate) event: EventNumber,
    /// The stripped state that the user is told.
    pub(crate) stripped: Option<Vec<String>>,
}

/// The relation that an event declares.
#[derive(Debug)]
pub(crate) struct Relation {
    pub(crate) target: EventNumber,
    pub(crate) rel_type: String,
    pub(crate) key: Option<String>,
}

/// A change of one room.
#[derive(Debug)]
pub(crate) struct RoomDelta {
    pub(crate) room: Arc<Room>,
    /// The head that the decision saw; `None` for a new room.
    pub(crate) seen: Option<Head>,
    pub(crate) head: Head,
    pub(crate) appended: Vec<Appended>,
    pub(crate) nodes: Vec<SealedNode>,
    /// Events whose rows are written anew.
    pub(crate) rewritten: Vec<StoredEvent>,
    /// Events that are mentioned for the first time.
    pub(crate) mentioned: Vec<(OwnedEventId, EventNumber)>,
    /// Joined users per server, where that changes.
    pub(crate) server_counts: BTreeMap<OwnedServerName, JoinedUsers>,
    /// Index rows of relations that redacted events declared.
    pub(crate) unrelated: Vec<RelationKey>,
    /// Where redacted events arrived, and how they were counted.
    pub(crate) uncounted: Vec<(Position, ArrivalRow)>,
    /// Redactions that wait for their target, which comes first; `None` where one waits no longer.
    /// See [`tables::WAITING_REDACTIONS`].
    pub(crate) waiting: Vec<(EventNumber, String, Option<EventNumber>)>,
    /// The transaction that this is the effect of, at the last position.
    pub(crate) transaction: Option<(TransactionDigest, TransactionRow)>,
}

impl RoomDelta {
    pub(crate) fn new(room: Arc<Room>, seen: Option<Head>) -> Self {
        let head = seen.clone().unwrap_or_default();
        Self {
            room,
            seen,
            head,
            appended: Vec::new(),
            nodes: Vec::new(),
            rewritten: Vec::new(),
            mentioned: Vec::new(),
            server_counts: BTreeMap::new(),
            unrelated: Vec::new(),
            uncounted: Vec::new(),
            waiting: Vec::new(),
            transaction: None,
        }
    }

    /// Whether it changes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        let seen = self.seen.as_ref();
        let same_listing = seen.is_none_or(|seen| seen.listed == self.head.listed);
        self.appended.is_empty() && self.rewritten.is_empty() && same_listing
    }

    /// Operations and bytes that it takes in a batch, at least and about.
    pub(crate) fn size(&self) -> (usize, usize) {
        let operations = self
            .appended
            .iter()
            .map(Appended::operations)
            .sum::<usize>()
            + self.nodes.len()
            + self.rewritten.len() * 3
            + self.mentioned.len() * 2
            + self.server_counts.len()
            + self.waiting.len();
        let nodes: usize = self.nodes.iter().map(|node| node.encoded.len() + 50).sum();
        let events: usize = self
            .appended
            .iter()
            .map(|a| a.event.pdu.json().len() + 600)
            .sum();
        (operations, nodes + events)
    }

    /// The events that had rows before.
    pub(crate) fn written_anew(&self) -> impl Iterator<Item = &StoredEvent> {
        let appended = self
            .appended
            .iter()
            .filter(|appended| appended.was == Was::Outlier);
        self.rewritten
            .iter()
            .chain(appended.map(|appended| &appended.event))
    }

    /// Whether it changes what resolutions of earlier states looked at: a state event is redacted,
    /// or one that an import brought turns out to be rejected.
    pub(crate) fn changes_resolutions(&self) -> bool {
        self.written_anew().any(|event| {
            let rejected = event.status.is_rejected();
            event.pdu.state_key().is_some() && (rejected || event.redacted_by.is_some())
        })
    }

    /// Adds everything to `batch` and gives the appends of the events shown, in order.
    pub(crate) fn write(&self, batch: &mut Batch) -> Vec<AppendRef> {
        let room = self.room.number.0;
        if let Some(seen) = &self.seen {
            batch.assert_value(&tables::HEADS, &room, seen);
        } else {
            let id = self.room.id.as_str();
            batch.assert_absent(&tables::ROOM_IDS, &id);
            batch.put(&tables::ROOM_IDS, &id, &room);
            batch.put(&tables::ROOMS, &room, &self.room.row());
        }
        batch.put(&tables::HEADS, &room, &self.head);
        write_listed(batch, self.room.number, self.seen.as_ref(), &self.head);
        write_nodes(batch, (self.room.number, self.head.generation), &self.nodes);
        for (id, number) in &self.mentioned {
            batch.assert_absent(&tables::EVENT_IDS, &(room, id.as_str()));
            batch.put(&tables::EVENT_IDS, &(room, id.as_str()), &number.0);
        }
        for (server, count) in &self.server_counts {
            count.put(batch, &(room, server.as_str()));
        }
        for (target, by, redaction) in &self.waiting {
            let key = (room, target.0, by.as_str());
            match redaction {
                Some(redaction) => batch.put(&tables::WAITING_REDACTIONS, &key, &redaction.0),
                None => batch.delete(&tables::WAITING_REDACTIONS, &key),
            }
        }
        for key in &self.unrelated {
            batch.delete(&tables::RELATIONS, key);
        }
        for event in &self.rewritten {
            put_event(batch, event, At::Known(event.position.unwrap_or(0)));
        }
        for (position, row) in &self.uncounted {
            batch.put(&tables::UNCOUNTED, &(room, *position), row);
        }
        let mut own_reads = BTreeMap::new();
        let mut appends = Vec::with_capacity(self.appended.len());
        for appended in &self.appended {
            let Some(append) = appended.write(batch) else {
                continue;
            };
            appends.push(append);
            if let Some(writer) = appended.count.writer {
                let thread = appended.count.thread.map_or(0, |root| root.0);
                own_reads.insert((writer.0, room, thread), append);
            }
        }
        for (key, append) in own_reads {
            batch.put(&tables::OWN_READS, &key, &At::Append(append));
        }
        if let Some((key, value)) = &self.transaction {
            let last = appends.last();
            let row = Positioned {
                position: last.map_or(At::Known(0), |append| At::Append(*append)),
                value: value.clone(),
            };
            batch.assert_absent(&tables::TRANSACTIONS, key);
            batch.put(&tables::TRANSACTIONS, key, &row);
        }
        appends
    }

    /// The events as they are once their batch is committed. Takes a position for each shown one.
    pub(crate) fn committed(
        &self,
        positions: &mut impl Iterator<Item = Position>,
    ) -> Vec<StoredEvent> {
        let with_position = |appended: &Appended| {
            let mut event = appended.event.clone();
            if appended.shown {
                event.position = positions.next();
                let further = appended.members_by_entry().1.len();
                positions.by_ref().take(further).for_each(drop);
            }
            event
        };
        self.appended.iter().map(with_position).collect()
    }
}

pub(crate) fn put_event(batch: &mut Batch, event: &StoredEvent, position: At) {
    let row = Positioned {
        position,
        value: event.row(),
    };
    batch.put(&tables::EVENTS, &(event.room.0, event.number.0), &row);
}

impl Appended {
    /// An event that changes nothing but the timeline.
    pub(crate) fn plain(event: StoredEvent) -> Self {
        Self {
            event,
            log: None,
            members: Vec::new(),
            servers: Vec::new(),
            relation: None,
            count: Count::none(),
            highest: 0,
            gap: Vec::new(),
            shown: true,
            was: Was::Nothing,
            debt: None,
            judged: None,
        }
    }

    /// Positions that its batch gives it.
    pub(crate) fn positions(&self) -> usize {
        if self.shown {
            1 + self.members_by_entry().1.len()
        } else {
            0
        }
    }

    /// Operations that it takes in a batch, at most.
    fn operations(&self) -> usize {
        // Its id and where that is, its row, both orders, an append under one topic; an assert.
        let always = 8;
        let members = self.members.len();
        always
            + usize::from(self.log.is_some())
            + members * 5
            + members.div_ceil(MAX_TOPICS)
            + self.servers.len()
            + self.relation.as_ref().map_or(0, |_| 3)
            + usize::from(self.count.in_thread.is_some())
            + usize::from(self.count.writer.is_some())
            + self.count.mentions.len()
            + usize::from(!self.gap.is_empty())
            + usize::from(self.debt.is_some())
            + usize::from(self.judged.is_some())
    }

    fn write(&self, batch: &mut Batch) -> Option<AppendRef> {
        let room = self.event.room.0;
        let number = self.event.number.0;
        let id = self.event.pdu.event_id().as_str();
        match self.was {
            Was::Nothing | Was::Outlier => {}
            Was::Unknown => {
                batch.assert_absent(&tables::EVENT_IDS, &(room, id));
            }
            Was::Mentioned => {
                batch.assert_absent(&tables::EVENTS, &(room, number));
            }
        }
        batch.put(&tables::EVENT_IDS, &(room, id), &number);
        if let Some(judged) = self.judged {
            batch.put(&tables::PARTIAL_EVENTS, &(room, judged), &number);
        }
        if self.was != Was::Outlier {
            put_whereabouts(batch, room, self.event.pdu.event_id());
        }
        if !self.shown {
            put_event(batch, &self.event, At::Known(0));
            return None;
        }
        let append = batch.append(&self.entry(), &self.topics());
        let at = || At::Append(append);
        put_event(batch, &self.event, at());
        batch.put(
            &tables::ARRIVALS,
            &(room, at()),
            &self.count.row(self.event.number, self.highest),
        );
        self.write_count(batch, append);
        batch.put(
            &tables::HISTORY,
            &(room, self.event.height, 1_u8, at()),
            &number,
        );
        if let Some(log) = &self.log {
            batch.put(&tables::STATE_LOG, &(room, at()), log);
        }
        if let Some((from, to)) = self.debt {
            let debt = IndexDebtRow {
                import: NO_IMPORT,
                from,
                to,
                done: 0,
            };
            batch.put(&tables::INDEX_DEBTS, &(room, at()), &debt);
        }
        let (first, further) = self.members_by_entry();
        for member in first {
            self.write_member(batch, member, append);
        }
        for members in further {
            let users: SmallVec<[_; MAX_TOPICS]> = members.iter().map(|m| m.user).collect();
            let told = append_members_changed(batch, self.event.room, &users);
            for member in members {
                self.write_member(batch, member, told);
            }
        }
        for (server, present) in &self.servers {
            let key = (room, server.as_str().to_owned(), at());
            batch.put(&tables::SERVER_LOG, &key, &u64::from(*present));
        }
        if let Some(relation) = &self.relation {
            self.write_relation(batch, relation, append);
        }
        if !self.gap.is_empty() {
            let missing = self.gap.clone();
            let key = (room, self.event.height, 1_u8, at());
            batch.put(&tables::GAPS, &key, &GapRow { missing });
        }
        Some(append)
    }

    fn write_count(&self, batch: &mut Batch, append: AppendRef) {
        let (room, at) = (self.event.room.0, || At::Append(append));
        if let (Some(root), Some(counts)) = (self.count.thread, &self.count.in_thread) {
            batch.put(&tables::THREAD_TALLIES, &(room, root.0, at()), counts);
        }
        for user in &self.count.mentions {
            let row = self.count.row(self.event.number, self.highest);
            batch.put(&tables::MENTIONS, &(user.0, room, at()), &row);
        }
    }

    /// The members whom the event's own entry names, and those that need further entries: an entry
    /// has few topics, and every user is told under a topic of their own.
    fn members_by_entry(&self) -> (&[MemberChange], std::slice::Chunks<'_, MemberChange>) {
        let (first, rest) = self
            .members
            .split_at(self.members.len().min(MAX_TOPICS - 1));
        (first, rest.chunks(MAX_TOPICS))
    }

    fn entry(&self) -> Entry {
        let users = self.members_by_entry().0.iter().map(|m| m.user.0);
        let about = [self.event.room.0, self.event.number.0];
        Entry {
            kind: journal::ROOM_EVENT,
            version: journal::VERSION,
            numbers: about.into_iter().chain(users).collect(),
        }
    }

    fn topics(&self) -> SmallVec<[Topic; 2]> {
        let users = self.members_by_entry().0.iter();
        let users = users.map(|member| journal::user_topic(member.user));
        [journal::room_topic(self.event.room)]
            .into_iter()
            .chain(users)
            .collect()
    }

    fn write_member(&self, batch: &mut Batch, member: &MemberChange, append: AppendRef) {
        let room = self.event.room.0;
        let row = MembershipRow {
            membership: member.membership,
            event: member.event,
            forgotten: false,
        };
        put_member(batch, (member.user.0, room), &row, At::Append(append));
        if let Some(events) = &member.stripped {
            let events = events.clone();
            let key = (member.user.0, room, At::Append(append));
            batch.put(&tables::STRIPPED_STATE, &key, &StrippedRow { events });
        }
    }

    fn write_relation(&self, batch: &mut Batch, relation: &Relation, append: AppendRef) {
        let room = self.event.room.0;
        let row = RelationRow {
            event: self.event.number,
            rel_type: relation.rel_type.clone(),
            event_type: self.event.pdu.event_type().to_owned(),
            key: relation.key.clone(),
            sender: self.event.pdu.sender().to_owned(),
        };
        for rel_type in ["", relation.rel_type.as_str()] {
            let at = At::Append(append);
            let (target, height) = (relation.target.0, self.event.height);
            let key = (room, target, rel_type, height, 1_u8, at);
            batch.put(&tables::RELATIONS, &key, &row);
        }
        if relation.rel_type == "m.thread" {
            let key = (room, At::Append(append));
            batch.put(&tables::THREAD_LOG, &key, &relation.target.0);
        }
    }
}

/// Appends the entry that tells these users, at most [`MAX_TOPICS`], of their memberships.
pub(crate) fn append_members_changed(
    batch: &mut Batch,
    room: RoomNumber,
    users: &[UserNumber],
) -> AppendRef {
    let numbers = users.iter().map(|user| user.0);
    let entry = Entry {
        kind: journal::MEMBERS_CHANGED,
        version: journal::VERSION,
        numbers: [room.0].into_iter().chain(numbers).collect(),
    };
    let topics: SmallVec<[Topic; MAX_TOPICS]> = users
        .iter()
        .map(|user| journal::user_topic(*user))
        .collect();
    batch.append(&entry, &topics)
}

/// Writes the history row of a membership and both current rows.
pub(crate) fn put_member(
    batch: &mut Batch,
    (user, room): (u64, u64),
    row: &MembershipRow,
    position: At,
) {
    batch.put(&tables::MEMBERSHIPS, &(user, room, position), row);
    let current = Positioned {
        position,
        value: row.clone(),
    };
    batch.put(&tables::CURRENT_MEMBERSHIPS, &(user, room), &current);
    batch.put(&tables::LOCAL_MEMBERS, &(room, user), &current);
}
