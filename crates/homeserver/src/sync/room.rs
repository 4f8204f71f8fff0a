//! What happened in a room that the user is in.

use std::sync::Arc;

use homeserver_rooms::{Membership, ReadableState, Room, UserMembership, VisibleEvent};
use homeserver_storage::Position;
use homeserver_users::Scope;

use super::{
    SyncError,
    changes::{AccountDatum, JoinedRoom, Summary, Timeline},
    ephemeral,
    filter::{EventShape, LazyMembers},
    pass::{Beside, Pass, allows_datum},
    state::StateSpan,
    touched::Touched,
};

/// A slice of a timeline before it is written.
#[derive(Debug)]
pub(super) struct Slice {
    /// Oldest first.
    pub(super) events: Vec<VisibleEvent>,
    pub(super) limited: bool,
    /// The events arrived after this position.
    pub(super) start: Position,
}

impl Pass<'_> {
    /// What is to be told of a joined room; `None` if nothing is.
    pub(super) async fn joined_room(
        &self,
        room: &Arc<Room>,
        membership: &UserMembership,
        touched: Option<&Touched>,
        beside: &mut Beside,
    ) -> Result<Option<JoinedRoom>, SyncError> {
        let anew = self.is_told_anew(membership).await?;
        let number = room.number.0;
        let whole = anew || self.request.full_state;
        let moved = whole || touched.is_none_or(|touched| touched.rooms.contains(&number));
        let after = if anew { 0 } else { self.after() };
        let slice = if moved {
            self.slice(room, after, self.upto()).await?
        } else {
            Slice {
                events: Vec::new(),
                limited: false,
                start: self.upto(),
            }
        };
        let span = StateSpan {
            since: if whole { None } else { Some(self.after()) },
            upto: self.upto(),
            anew,
        };
        let (slice, state) = self.state(room, slice, span, moved).await?;
        let summary = match self.summary(room, whole, &state.changed_members).await? {
            Some(summary) if moved => Some(summary),
            _ => None,
        };
        let receipts_moved = touched.is_none_or(|touched| touched.receipts.contains(&number));
        let counted = whole || !slice.events.is_empty() || slice.limited || receipts_moved;
        let unread = if counted {
            Some(self.unread(room, membership).await?)
        } else {
            None
        };
        let start = slice.start;
        let told = JoinedRoom {
            room: room.id.clone(),
            summary,
            state: state.section,
            timeline: self.written(room, slice).await?,
            ephemeral: self
                .ephemeral(room, anew, start, receipts_moved, beside)
                .await?,
            account_data: self.room_account_data(room, anew, beside).await?,
            unread,
        };
        // Somebody else's receipt that a filter hides is no reason to wake a client.
        let nothing = JoinedRoom {
            unread: None,
            ..told.clone()
        }
        .is_empty();
        Ok((!nothing || whole || receipts_moved).then_some(told))
    }

    /// Whether the device knows nothing of the room: at its first sync, after joining, and once the
    /// members that it wants are known.
    async fn is_told_anew(&self, membership: &UserMembership) -> Result<bool, SyncError> {
        let Some(since) = self.since else {
            return Ok(true);
        };
        if self.request.filter.lazy == LazyMembers::All && self.got_members(membership.room) {
            return Ok(true);
        }
        if !self.is_new(membership) {
            return Ok(false);
        }
        let rooms = &self.engine.rooms;
        let before = rooms
            .membership(self.user(), membership.room, since.position)
            .await?;
        Ok(before.is_none_or(|before| before.membership != Membership::Join))
    }

    /// The newest events in (`after`, `upto`] that the reader may and wants to see.
    pub(super) async fn slice(
        &self,
        room: &Room,
        after: Position,
        upto: Position,
    ) -> Result<Slice, SyncError> {
        let filter = &self.request.filter.timeline;
        if !filter.allows_room(&room.id) || filter.allows_nothing() {
            return Ok(Slice {
                events: Vec::new(),
                limited: false,
                start: upto,
            });
        }
        let wanted = |event: &VisibleEvent| {
            let pdu = event.pdu();
            let heard = pdu.state_key().is_some() || self.hears(pdu.sender());
            heard && filter.allows(shape(event))
        };
        let mut reader = self.reader.clone();
        reader.position = upto;
        let rooms = &self.engine.rooms;
        let slice = rooms
            .timeline(&reader, room, after, filter.limit(), &wanted)
            .await?;
        Ok(Slice {
            events: slice.events,
            limited: slice.limited,
            start: slice.start,
        })
    }

    /// The slice as the client gets it.
    pub(super) async fn written(&self, room: &Room, slice: Slice) -> Result<Timeline, SyncError> {
        Ok(Timeline {
            events: self.presenter().all(room, &slice.events).await?,
            limited: slice.limited,
            prev_batch: Some(self.engine.rooms.token_at(slice.start).to_string()),
        })
    }

    /// Who is in the room, if that is news.
    async fn summary(
        &self,
        room: &Arc<Room>,
        whole: bool,
        changed_members: &[String],
    ) -> Result<Option<Summary>, SyncError> {
        if !whole && changed_members.is_empty() {
            return Ok(None);
        }
        let rooms = &self.engine.rooms;
        let found = rooms.summary(&self.reader, room).await?;
        let state = rooms.state_root_for(&self.reader, room).await?;
        let named = match &state {
            Some(state) => self.is_named(state).await?,
            None => false,
        };
        Ok(Some(Summary {
            heroes: (!named).then_some(found.heroes),
            joined: found.joined,
            invited: found.invited,
        }))
    }

    /// Whether the state holds a name that is not empty, or an alias.
    pub(super) async fn is_named(&self, state: &ReadableState) -> Result<bool, SyncError> {
        for (event_type, field) in [("m.room.name", "name"), ("m.room.canonical_alias", "alias")] {
            let rooms = &self.engine.rooms;
            let found = rooms.state_value(state.room(), state.root, event_type, "");
            let Some(number) = found.await? else {
                continue;
            };
            let events = rooms.state_events(state, &[number]).await?;
            let content = events.first().map(|event| event.pdu().content().get());
            let content =
                content.and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
            let text = content
                .as_ref()
                .and_then(|content| content.get(field)?.as_str());
            if text.is_some_and(|text| !text.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ephemeral(
        &self,
        room: &Room,
        anew: bool,
        start: Position,
        receipts_moved: bool,
        beside: &mut Beside,
    ) -> Result<Vec<Box<serde_json::value::RawValue>>, SyncError> {
        let filter = &self.request.filter.ephemeral;
        let mut events = Vec::new();
        if !filter.allows_room(&room.id) {
            return Ok(events);
        }
        if filter.allows_type("m.typing")
            && let Some(users) = beside.typing.remove(&room.number.0)
        {
            let heard = users.into_iter().filter(|user| self.hears(user));
            let users: Vec<_> = heard.collect();
            events.push(ephemeral::typing(&users));
        }
        if filter.allows_type("m.receipt") && (anew || receipts_moved) {
            // Receipts that moved before the timeline begins are on events that the client does
            // not have; it is told of them when it pages back and somebody reads on.
            let after = if anew { start } else { self.after() };
            events.extend(ephemeral::receipts(self, room, after, anew).await?);
        }
        Ok(events)
    }

    async fn room_account_data(
        &self,
        room: &Room,
        anew: bool,
        beside: &mut Beside,
    ) -> Result<Vec<AccountDatum>, SyncError> {
        let filter = &self.request.filter.room_account_data;
        if !filter.allows_room(&room.id) {
            return Ok(Vec::new());
        }
        let mut data = beside
            .account_data
            .remove(&room.number.0)
            .unwrap_or_default();
        if anew {
            data = self.stored_account_data(room).await?;
        }
        data.retain(|datum| allows_datum(filter, datum));
        Ok(data)
    }

    /// All account data of a room.
    pub(super) async fn stored_account_data(
        &self,
        room: &Room,
    ) -> Result<Vec<AccountDatum>, SyncError> {
        let data = &self.engine.users.account_data;
        let scope = Scope::Room(room.number.0);
        let found = data.of_scope(self.session.user_number, scope).await?;
        let found = found.into_iter().map(|datum| AccountDatum {
            event_type: datum.event_type,
            content: datum.content,
        });
        Ok(found.collect())
    }
}

/// What filters look at.
pub(super) fn shape(event: &VisibleEvent) -> EventShape<'_> {
    let pdu = event.pdu();
    EventShape {
        event_type: pdu.event_type(),
        sender: Some(pdu.sender().as_str()),
        content: Some(pdu.content()),
    }
}
