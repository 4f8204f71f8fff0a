//! Pages of history, what surrounds an event, and who was a member at some time.
//!
//! Specification: client-server API, "Getting events for a room", "Lazy-loading room members".

use std::collections::{BTreeMap, BTreeSet};

use homeserver_rooms::{HistoryPage, HistoryToken, Place, Towards, VisibleEvent, Wanted};
use homeserver_storage::Position;
use ruma::{EventId, OwnedUserId, RoomId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::{ReadError, RoomReads, Visit};
use crate::{
    app::{ignored::IgnoredUsers, session::Session},
    sync::{
        filter::{EventFilter, EventShape},
        token::SyncToken,
    },
};

/// Events in one page at most, whatever the client asks for.
pub(crate) const MAX_PAGE: usize = 250;

/// Times that history is fetched for one page.
const GAPS_OF_PAGE: usize = 6;

/// Times that it is fetched for what surrounds an event.
const GAPS_OF_CONTEXT: usize = 2;

const MEMBER: &str = "m.room.member";

/// Which events of a page the client wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// The filter.
    pub(crate) filter: EventFilter,
    /// Whether member events of senders are wanted beside the events.
    pub(crate) with_senders: bool,
}

impl Selection {
    /// Whether an event is wanted by a reader who ignores these users.
    fn wants(&self, event: &VisibleEvent, ignored: &IgnoredUsers) -> bool {
        let pdu = event.pdu();
        let is_hidden = ignored.hides(pdu.sender(), pdu.state_key().is_some());
        !is_hidden
            && self.filter.allows(EventShape {
                event_type: pdu.event_type(),
                sender: Some(pdu.sender().as_str()),
                content: Some(pdu.content()),
            })
    }
}

/// What `/messages` asks for.
#[derive(Clone, Debug)]
pub(crate) struct PageRequest {
    /// Where to begin; at the end of the room that the direction starts from if absent.
    pub(crate) from: Option<String>,
    /// Where to stop.
    pub(crate) to: Option<String>,
    /// Which way.
    pub(crate) towards: Towards,
    /// How many events at most.
    pub(crate) limit: usize,
    /// Which events.
    pub(crate) selection: Selection,
}

/// A page of events.
#[derive(Debug)]
pub(crate) struct Page {
    /// The token it begins at.
    pub(crate) start: String,
    /// The token to go on from; absent at the end.
    pub(crate) end: Option<String>,
    /// The events in the direction asked for.
    pub(crate) events: Vec<Box<RawValue>>,
    /// State that helps to show them.
    pub(crate) state: Vec<Box<RawValue>>,
}

/// An event and those around it.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The token before all of them.
    pub(crate) start: String,
    /// The token after all of them.
    pub(crate) end: String,
    /// Before the event, newest first.
    pub(crate) before: Vec<Box<RawValue>>,
    /// The event.
    pub(crate) event: Box<RawValue>,
    /// After the event, oldest first.
    pub(crate) after: Vec<Box<RawValue>>,
    /// The state at the last of them.
    pub(crate) state: Vec<Box<RawValue>>,
}

/// Whose member events are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemberSelection {
    /// The time, as a token.
    pub(crate) at: Option<String>,
    /// With this membership.
    pub(crate) only: Option<String>,
    /// Or without this one.
    pub(crate) not: Option<String>,
}

impl MemberSelection {
    /// The two conditions are joined by "or", and neither means everybody.
    fn wants(&self, membership: &str) -> bool {
        match (&self.only, &self.not) {
            (None, None) => true,
            (only, not) => {
                only.as_deref() == Some(membership)
                    || not.as_deref().is_some_and(|not| not != membership)
            }
        }
    }
}

impl RoomReads {
    /// A page of the room's history.
    pub(crate) async fn messages(
        &self,
        session: &Session,
        room: &RoomId,
        wanted: PageRequest,
    ) -> Result<Page, ReadError> {
        let visit = self.enter(&session.user, room).await?;
        let to = wanted.to.as_deref().map(|to| self.token(to)).transpose()?;
        let from = match &wanted.from {
            Some(from) => self.token(from)?,
            None => self.outermost(&visit, wanted.towards),
        };
        let limit = wanted.limit.min(MAX_PAGE);
        let ignored = self.ignored_by(session).await?;
        let selection = &wanted.selection;
        let select = |event: &VisibleEvent| selection.wants(event, &ignored);
        let way = (wanted.towards, limit);
        let page = self.page_over_gaps(&visit, from, way, &select).await?;
        let found = page.events.len();
        let mut events = page.events;
        if let Some(to) = to {
            events.truncate(count_before(&events, to, wanted.towards));
        }
        let stopped = events.len() < found;
        let end = page.next.filter(|_| !stopped);
        let state = self.senders_of(&visit, selection, &events).await?;
        Ok(Page {
            start: from.to_string(),
            end: end.map(|end| end.to_string()),
            events: self
                .present(session, &visit.room, &visit.reader, &events)
                .await?,
            state: self
                .present(session, &visit.room, &visit.reader, &state)
                .await?,
        })
    }

    /// A page of history. What is missing on its way is fetched from other servers, a few times;
    /// where nobody gives it in time, the page ends. One that begins where it is missing goes on
    /// over it: that was tried before.
    async fn page_over_gaps(
        &self,
        visit: &Visit,
        from: HistoryToken,
        (towards, limit): (Towards, usize),
        wanted: Wanted<'_>,
    ) -> Result<HistoryPage, ReadError> {
        if towards == Towards::Older {
            self.fill_gap(visit, &from).await?;
        }
        let (reader, room) = (&visit.reader, &visit.room);
        let way = (towards, limit);
        let mut page = self
            .rooms
            .history(reader, room, Some(from), way, wanted)
            .await?;
        for _ in 0..GAPS_OF_PAGE {
            let at = match &page.next {
                Some(at) if page.at_gap && page.events.len() < limit => *at,
                _ => break,
            };
            if !self.fill_gap(visit, &at).await? {
                break;
            }
            let way = (towards, limit - page.events.len());
            let rest = self.rooms.history(reader, room, Some(at), way, wanted);
            let rest = rest.await?;
            page.events.extend(rest.events);
            (page.next, page.at_gap) = (rest.next, rest.at_gap);
        }
        Ok(page)
    }

    /// Has what is missing at a place fetched. Gives whether there is more to read there now.
    async fn fill_gap(&self, visit: &Visit, at: &HistoryToken) -> Result<bool, ReadError> {
        Ok(self.inbound.backfill(&visit.room, at).await?)
    }

    /// The same, where something is known to be missing. Nothing more is to be read elsewhere.
    async fn fill_known_gap(&self, visit: &Visit, at: &HistoryToken) -> Result<bool, ReadError> {
        if self.rooms.is_partial(visit.room.number) {
            return Ok(false);
        }
        let gap = self.rooms.gap_at(&visit.room, at).await?;
        Ok(gap.is_some() && self.fill_gap(visit, at).await?)
    }

    /// The place that a page without `from` begins at: the reader's newest, or the oldest there is.
    fn outermost(&self, visit: &Visit, towards: Towards) -> HistoryToken {
        let newest = self.rooms.token_at(visit.state.position);
        match towards {
            Towards::Older => newest,
            Towards::Newer => HistoryToken {
                place: Place::Start,
                ..newest
            },
        }
    }

    /// Reads a token of `/messages` or the like, or of `/sync`.
    pub(super) fn token(&self, text: &str) -> Result<HistoryToken, ReadError> {
        if let Ok(sync) = text.parse::<SyncToken>() {
            let token = HistoryToken::at_position(sync.epoch, sync.position);
            return Ok(self.rooms.parse_token(&token.to_string())?);
        }
        Ok(self.rooms.parse_token(text)?)
    }

    /// The member events of those who sent `events`, as they were when each sent the newest of
    /// them; only for readers who load members lazily.
    async fn senders_of(
        &self,
        visit: &Visit,
        selection: &Selection,
        events: &[VisibleEvent],
    ) -> Result<Vec<VisibleEvent>, ReadError> {
        if !selection.with_senders {
            return Ok(Vec::new());
        }
        let mut newest: BTreeMap<OwnedUserId, &VisibleEvent> = BTreeMap::new();
        for event in events {
            let known = newest
                .entry(event.pdu().sender().to_owned())
                .or_insert(event);
            if event.history_key() > known.history_key() {
                *known = event;
            }
        }
        let mut numbers = Vec::with_capacity(newest.len());
        for (sender, event) in newest {
            let root = event.state_before();
            let (room, key) = (&visit.room, sender.as_str());
            numbers.extend(
                self.rooms
                    .state_value(room, root, "m.room.member", key)
                    .await?,
            );
        }
        Ok(self.rooms.state_events(&visit.state, &numbers).await?)
    }

    /// An event and what surrounds it.
    pub(crate) async fn context(
        &self,
        session: &Session,
        room: &RoomId,
        event: &EventId,
        limit: usize,
        selection: &Selection,
    ) -> Result<Surroundings, ReadError> {
        let visit = self.enter(&session.user, room).await?;
        let event = self
            .rooms
            .visible_by_id(&visit.reader, &visit.room, event)
            .await?;
        let event = event.ok_or(ReadError::NoSuchEvent)?;
        let ignored = self.ignored_by(session).await?;
        let limit = limit.min(MAX_PAGE);
        let wanted = |event: &VisibleEvent| selection.wants(event, &ignored);
        // What is missing right before is fetched, as for a page: first below the event itself.
        let mut start = HistoryToken {
            place: Place::Before(event.history_key()),
            ..self.rooms.token_at(visit.reader.position)
        };
        let before = limit.div_ceil(2);
        if before > 0 {
            self.fill_known_gap(&visit, &start).await?;
        }
        let mut around = self
            .rooms
            .context(&visit.reader, &visit.room, event.clone(), limit, &wanted)
            .await?;
        for _ in 0..GAPS_OF_CONTEXT {
            let is_whole = around.before.len() >= before || around.start == start;
            start = around.start;
            if is_whole || !self.fill_known_gap(&visit, &start).await? {
                break;
            }
            around = self
                .rooms
                .context(&visit.reader, &visit.room, event.clone(), limit, &wanted)
                .await?;
        }
        let last = around.after.last().unwrap_or(&around.event);
        let shown = around
            .before
            .iter()
            .chain(&around.after)
            .chain([&around.event]);
        let shown: Vec<_> = shown.collect();
        let shown = selection.with_senders.then_some(shown.as_slice());
        let state = self.state_after(&visit, last, shown).await?;
        let state: Vec<_> = state
            .into_iter()
            .filter(|event| selection.wants(event, &ignored))
            .collect();
        let (room, reader) = (&visit.room, &visit.reader);
        let mut middle = self.present(session, room, reader, &[around.event]).await?;
        Ok(Surroundings {
            start: around.start.to_string(),
            end: around.end.to_string(),
            before: self.present(session, room, reader, &around.before).await?,
            event: middle.pop().ok_or(ReadError::NoSuchEvent)?,
            after: self.present(session, room, reader, &around.after).await?,
            state: self.present(session, room, reader, &state).await?,
        })
    }

    /// The state after an event; of the members only the senders of `shown` if those are asked for.
    async fn state_after(
        &self,
        visit: &Visit,
        event: &VisibleEvent,
        shown: Option<&[&VisibleEvent]>,
    ) -> Result<Vec<VisibleEvent>, ReadError> {
        let (room, root) = (&visit.room, event.state_after());
        let Some(shown) = shown else {
            let all = self.rooms.state_all(room, root).await?;
            let numbers: Vec<_> = all.into_iter().map(|(_, event)| event).collect();
            return Ok(self.rooms.state_events(&visit.state, &numbers).await?);
        };
        // As much is read as is told: a room may have very many members.
        let others = self.rooms.state_except(room, root, MEMBER).await?;
        let mut numbers: Vec<_> = others.into_iter().map(|(_, event)| event).collect();
        let senders: BTreeSet<_> = shown.iter().map(|event| event.pdu().sender()).collect();
        for sender in senders {
            let member = self.rooms.state_value(room, root, MEMBER, sender.as_str());
            numbers.extend(member.await?);
        }
        Ok(self.rooms.state_events(&visit.state, &numbers).await?)
    }

    /// Member events, now or at some time.
    pub(crate) async fn members(
        &self,
        session: &Session,
        room: &RoomId,
        wanted: MemberSelection,
    ) -> Result<Vec<Box<RawValue>>, ReadError> {
        #[derive(Deserialize)]
        struct Content {
            membership: String,
        }
        let mut visit = self.enter_whole(&session.user, room).await?;
        if let Some(at) = &wanted.at {
            let token = self.token(at)?;
            // Of the time when not all were known, those who were there when they were.
            let at = self.rooms.whole_from(visit.room.number, position_of(token));
            self.go_back(&mut visit, at).await?;
        }
        let mut members = self.member_events(&visit.room, &visit.state).await?;
        members.retain(|event| {
            let content = serde_json::from_str::<Content>(event.pdu().content().get());
            content.is_ok_and(|content| wanted.wants(&content.membership))
        });
        self.present(session, &visit.room, &visit.reader, &members)
            .await
    }

    /// Turns a visit to an earlier state, if the reader may see events of that time.
    async fn go_back(&self, visit: &mut Visit, to: Position) -> Result<(), ReadError> {
        if to >= visit.state.position {
            return Ok(());
        }
        let last = self.rooms.last_arrival(visit.room.number, to).await?;
        let last = last.ok_or(ReadError::NotInRoom)?;
        let seen = self
            .rooms
            .visible(&visit.reader, &visit.room, &[last.event])
            .await?;
        if seen.is_empty() {
            return Err(ReadError::NotInRoom);
        }
        visit.state.root = self.rooms.state_at(visit.room.number, to).await?.root;
        visit.state.position = to;
        Ok(())
    }
}

/// The position in the order of arrival that a token stands for, as near as it can be said.
fn position_of(token: HistoryToken) -> Position {
    match token.place {
        Place::Before(key) if key.live => key.tie.saturating_sub(1).min(token.bound),
        Place::After(key) if key.live => key.tie.min(token.bound),
        _ => token.bound,
    }
}

/// How many of a page's events, in its order, lie before the place where it is to stop.
pub(super) fn count_before(events: &[VisibleEvent], stop: HistoryToken, towards: Towards) -> usize {
    let beyond = |event: &VisibleEvent| {
        let is_older = lies_before(event, stop);
        match towards {
            Towards::Older => is_older,
            Towards::Newer => !is_older,
        }
    };
    events.iter().position(beyond).unwrap_or(events.len())
}

/// Whether an event lies on the older side of a place.
fn lies_before(event: &VisibleEvent, place: HistoryToken) -> bool {
    match place.place {
        Place::Start => false,
        Place::Before(key) => event.history_key() < key,
        Place::After(key) => event.history_key() <= key,
        // What never arrived is history, older than every arrival.
        Place::Bound => event
            .position()
            .is_none_or(|position| position <= place.bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_membership_conditions_are_joined_by_or() {
        let cases = [
            (None, None, ["join", "leave", "ban"].as_slice()),
            (Some("join"), None, &["join"]),
            (None, Some("join"), &["leave", "ban"]),
            (Some("join"), Some("leave"), &["join", "ban"]),
            (Some("leave"), Some("leave"), &["join", "leave", "ban"]),
        ];
        for (only, not, wanted) in cases {
            let selection = MemberSelection {
                at: None,
                only: only.map(str::to_owned),
                not: not.map(str::to_owned),
            };
            let all = ["join", "leave", "ban"].into_iter();
            let found: Vec<_> = all
                .filter(|membership| selection.wants(membership))
                .collect();
            assert_eq!(found, wanted, "{only:?} {not:?}");
        }
    }
}
