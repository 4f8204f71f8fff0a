//! The state told beside a timeline.
//!
//! The difference of the room's state log between two positions, so that its cost follows what
//! changed. With `state`, the second position is right before the first timeline event, and every
//! key whose value at the end the timeline itself does not deliver is added. With `state_after`, it
//! is the end of the timeline.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_rooms::{EventNumber, ReadableState, Room, StateChange, StateRoot, VisibleEvent};
use homeserver_storage::Position;

use super::{
    StateAt, SyncError,
    changes::StateSection,
    filter::LazyMembers,
    pass::{Pass, lazy_place},
    room::{Slice, shape},
};

const MEMBER: &str = "m.room.member";

/// Between which positions state is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateSpan {
    /// What the device knows; `None` if it is told everything.
    pub(super) since: Option<Position>,
    /// The end of the timeline.
    pub(super) upto: Position,
    /// Whether the device forgets what it was told of the room before.
    pub(super) anew: bool,
}

/// The state to be told.
#[derive(Debug)]
pub(super) struct ToldState {
    pub(super) section: StateSection,
    /// Users whose member events changed in the whole span.
    pub(super) changed_members: Vec<String>,
}

/// Keys of a state and the events to be told for them.
type Wanted = BTreeMap<(String, String), EventNumber>;

impl Pass<'_> {
    /// The state beside `slice`. The slice comes back shorter where an old state event in it would
    /// hide a newer one that is no part of it.
    pub(super) async fn state(
        &self,
        room: &Arc<Room>,
        slice: Slice,
        span: StateSpan,
        moved: bool,
    ) -> Result<(Slice, ToldState), SyncError> {
        if !moved {
            let section = self.section(Vec::new());
            return Ok((
                slice,
                ToldState {
                    section,
                    changed_members: Vec::new(),
                },
            ));
        }
        let rooms = &self.engine.rooms;
        // For who has left, the state of that moment, whatever was done to them since.
        let mut reader = self.reader.clone();
        reader.position = span.upto;
        let Some(readable) = rooms.state_root_for(&reader, room).await? else {
            let section = self.section(Vec::new());
            return Ok((
                slice,
                ToldState {
                    section,
                    changed_members: Vec::new(),
                },
            ));
        };
        let end = readable.root;
        let known = match span.since {
            Some(since) => rooms.state_at(room.number, since).await?.root,
            None => StateRoot::EMPTY,
        };
        let (slice, mut wanted) = match self.request.state_at {
            StateAt::Start => self.before(room, slice, known, &readable).await?,
            StateAt::End | StateAt::UnstableEnd => {
                let wanted = self.difference(room, known, end, span).await?;
                (slice, wanted)
            }
        };
        let changed_members = if span.since.is_none() {
            // Everything is told: everybody is news, and nobody needs to be named.
            vec![self.session.user.to_string()]
        } else {
            let changes = rooms.state_difference(room, known, end).await?;
            let of_members = |change: &&StateChange| change.key.event_type() == MEMBER;
            let members = changes.iter().filter(of_members);
            members
                .map(|change| change.key.state_key().to_owned())
                .collect()
        };
        if self.request.filter.lazy != LazyMembers::All {
            self.add_senders(room, &slice, &readable, span, &mut wanted)
                .await?;
        }
        let events = self.readable(room, &readable, wanted).await?;
        let section = self.section(self.presenter().of_state().all(room, &events).await?);
        Ok((
            slice,
            ToldState {
                section,
                changed_members,
            },
        ))
    }

    fn section(&self, events: Vec<crate::client_event::ReadEvent>) -> StateSection {
        match self.request.state_at {
            StateAt::Start => StateSection::Before(events),
            StateAt::End => StateSection::After(events),
            StateAt::UnstableEnd => StateSection::UnstableAfter(events),
        }
    }

    /// The state before the timeline, as `state` tells it.
    async fn before(
        &self,
        room: &Room,
        mut slice: Slice,
        known: StateRoot,
        readable: &ReadableState,
    ) -> Result<(Slice, Wanted), SyncError> {
        let rooms = &self.engine.rooms;
        let end = readable.root;
        loop {
            let first = slice.events.first().and_then(VisibleEvent::position);
            let mut lazily = false;
            let start = match first {
                Some(first) => {
                    let before = first.saturating_sub(1).min(readable.position);
                    let span = (before, self.upto());
                    lazily = self.request.filter.lazy != LazyMembers::All
                        && rooms.made_whole_in(room.number, span).is_some();
                    rooms.state_at(room.number, before).await?.root
                }
                None => end,
            };
            let later = rooms.state_difference(room, start, end).await?;
            if let Some(cut) = hiding(&slice.events, &later) {
                let last = slice.events.drain(..=cut).next_back();
                slice.start = last
                    .and_then(|event| event.position())
                    .unwrap_or(slice.start);
                slice.limited = true;
                continue;
            }
            let whole = known == StateRoot::EMPTY;
            let span = StateSpan {
                since: (!whole).then_some(0),
                upto: 0,
                anew: whole,
            };
            let mut wanted = self.difference(room, known, start, span).await?;
            let delivered: Vec<_> = slice.events.iter().map(VisibleEvent::number).collect();
            for change in later {
                if lazily && change.key.event_type() == MEMBER {
                    continue;
                }
                if let Some(event) = change.after.filter(|event| !delivered.contains(event)) {
                    insert(&mut wanted, &change, event);
                }
            }
            return Ok((slice, wanted));
        }
    }

    /// The keys in which `to` differs from `from`, without members where those are loaded lazily
    /// and everything is told.
    async fn difference(
        &self,
        room: &Room,
        from: StateRoot,
        to: StateRoot,
        span: StateSpan,
    ) -> Result<Wanted, SyncError> {
        let rooms = &self.engine.rooms;
        let mut wanted = Wanted::new();
        if span.since.is_none() {
            let all = match self.request.filter.lazy {
                LazyMembers::All => rooms.state_all(room, to).await?,
                _ => rooms.state_except(room, to, MEMBER).await?,
            };
            for (key, event) in all {
                let key = (key.event_type().to_owned(), key.state_key().to_owned());
                wanted.insert(key, event);
            }
            return Ok(wanted);
        }
        // Members that became known all at once are loaded as lazily as those that are known from
        // the start.
        let lazily = self.request.filter.lazy != LazyMembers::All && self.got_members(room.number);
        for change in rooms.state_difference(room, from, to).await? {
            if lazily && change.key.event_type() == MEMBER {
                continue;
            }
            if let Some(event) = change.after {
                insert(&mut wanted, &change, event);
            }
        }
        Ok(wanted)
    }

    /// Adds the member events of those who speak in the slice, and the reader's own where the
    /// device starts anew, unless the device has them.
    async fn add_senders(
        &self,
        room: &Room,
        slice: &Slice,
        readable: &ReadableState,
        span: StateSpan,
        wanted: &mut Wanted,
    ) -> Result<(), SyncError> {
        let engine = self.engine;
        let place = lazy_place(self.session, room.number);
        if span.anew {
            engine.sent_members.forget(place);
        }
        let mut users: Vec<String> = slice
            .events
            .iter()
            .map(|event| event.pdu().sender().to_string())
            .collect();
        if span.since.is_none() {
            users.push(self.session.user.to_string());
            if !self.is_named(readable).await? {
                let heroes = engine.rooms.summary(&self.reader, room).await?.heroes;
                users.extend(heroes.iter().map(ToString::to_string));
            }
        }
        users.sort_unstable();
        users.dedup();
        let always = self.request.filter.lazy == LazyMembers::SendersAlways || span.since.is_none();
        for user in users {
            let key = (MEMBER.to_owned(), user);
            let member = match wanted.get(&key) {
                Some(event) => Some(*event),
                None => self.member(room, slice, readable.root, &key.1).await?,
            };
            let Some(event) = member else { continue };
            let has = engine.sent_members.has(place, &key.1, event, self.after());
            if always || !has || wanted.contains_key(&key) {
                engine.sent_members.note(place, &key.1, event, self.upto());
                wanted.insert(key, event);
            }
        }
        Ok(())
    }

    /// The member event of a user at the end of the timeline that is told, `None` if the timeline
    /// delivers it itself.
    async fn member(
        &self,
        room: &Room,
        slice: &Slice,
        end: StateRoot,
        user: &str,
    ) -> Result<Option<EventNumber>, SyncError> {
        let rooms = &self.engine.rooms;
        let root = match (self.request.state_at, slice.events.first()) {
            (StateAt::Start, Some(first)) => first.state_before(),
            _ => end,
        };
        Ok(rooms.state_value(room, root, MEMBER, user).await?)
    }

    /// The events, as far as the reader may see the state and the filter lets them through.
    async fn readable(
        &self,
        room: &Room,
        state: &ReadableState,
        wanted: Wanted,
    ) -> Result<Vec<VisibleEvent>, SyncError> {
        let filter = &self.request.filter.state;
        if wanted.is_empty() || !filter.allows_room(&room.id) || filter.allows_nothing() {
            return Ok(Vec::new());
        }
        let rooms = &self.engine.rooms;
        let mut numbers: Vec<EventNumber> = wanted
            .into_iter()
            .filter(|((event_type, _), _)| filter.allows_type(event_type))
            .map(|(_, event)| event)
            .collect();
        numbers.sort_unstable();
        let mut events = rooms.state_events(state, &numbers).await?;
        events.retain(|event| filter.allows(shape(event)));
        Ok(events)
    }
}

fn insert(wanted: &mut Wanted, change: &StateChange, event: EventNumber) {
    let key = (
        change.key.event_type().to_owned(),
        change.key.state_key().to_owned(),
    );
    wanted.insert(key, event);
}

/// The last timeline event that a client would take for the value of a key although the state at
/// the end has another, which is no later timeline event.
fn hiding(events: &[VisibleEvent], later: &[StateChange]) -> Option<usize> {
    let value = |event: &VisibleEvent| {
        let key = (event.pdu().event_type(), event.pdu().state_key()?);
        let change = later
            .iter()
            .find(|change| (change.key.event_type(), change.key.state_key()) == key);
        Some(change?.after)
    };
    let mut last_of_key: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (index, event) in events.iter().enumerate() {
        if let Some(state_key) = event.pdu().state_key() {
            last_of_key.insert((event.pdu().event_type(), state_key), index);
        }
    }
    let wrong = last_of_key.into_values().filter(|index| {
        let event = &events[*index];
        value(event).is_some_and(|after| after != Some(event.number()))
    });
    wrong.max()
}
