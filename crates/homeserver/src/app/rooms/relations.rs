//! Events that relate to an event, and what relates to those.
//!
//! Specification: client-server API, "Relationships API".

use std::collections::HashSet;

use homeserver_rooms::{EventNumber, RelationFilter, Towards, VisibleEvent};
use ruma::{OwnedEventId, RoomId};
use serde_json::value::RawValue;

use super::{
    page::{MAX_PAGE, count_before},
    read::{ReadError, RoomReads, Visit},
};
use crate::app::session::Session;

/// Events of a page unless the client says otherwise.
const DEFAULT_PAGE: usize = 20;

/// How far relations of relations are followed.
const MAX_RECURSION: u64 = 3;

/// Events whose relations are followed for one answer.
const MAX_FOLLOWED: usize = 100;

/// What `/relations` asks for.
#[derive(Clone, Debug)]
pub(crate) struct RelationRequest {
    /// The event that others relate to.
    pub(crate) target: OwnedEventId,
    /// Only this kind of relation.
    pub(crate) relation_type: Option<String>,
    /// Only events of this type.
    pub(crate) event_type: Option<String>,
    /// Where to begin.
    pub(crate) from: Option<String>,
    /// Where to stop.
    pub(crate) to: Option<String>,
    /// Which way.
    pub(crate) towards: Towards,
    /// How many events at most.
    pub(crate) limit: Option<usize>,
    /// Whether to give what relates to related events, too.
    pub(crate) recurse: bool,
}

impl RelationRequest {
    fn filter(&self) -> RelationFilter<'_> {
        RelationFilter {
            rel_type: self.relation_type.as_deref(),
            event_type: self.event_type.as_deref(),
        }
    }
}

/// A page of relations.
#[derive(Debug)]
pub(crate) struct RelationAnswer {
    /// The events in the direction asked for.
    pub(crate) events: Vec<Box<RawValue>>,
    /// The token to go on from.
    pub(crate) next: Option<String>,
    /// The token that the page began at.
    pub(crate) previous: Option<String>,
    /// How far relations of relations were followed, if asked for.
    pub(crate) recursion_depth: Option<u64>,
}

impl RoomReads {
    /// A page of the events that relate to one.
    pub(crate) async fn relations(
        &self,
        session: &Session,
        room: &RoomId,
        wanted: RelationRequest,
    ) -> Result<RelationAnswer, ReadError> {
        let visit = self.enter(&session.user, room).await?;
        let target = self
            .rooms
            .visible_by_id(&visit.reader, &visit.room, &wanted.target)
            .await?;
        let target = target.ok_or(ReadError::NoSuchEvent)?;
        let from = wanted
            .from
            .as_deref()
            .map(|from| self.token(from))
            .transpose()?;
        let to = wanted.to.as_deref().map(|to| self.token(to)).transpose()?;
        let limit = wanted.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
        let page = self
            .rooms
            .relations(
                &visit.reader,
                &visit.room,
                target.number(),
                wanted.filter(),
                (from, wanted.towards, limit),
            )
            .await?;
        let mut events = page.events;
        let found = events.len();
        if let Some(to) = to {
            events.truncate(count_before(&events, to, wanted.towards));
        }
        let stopped = events.len() < found;
        if wanted.recurse {
            self.follow(&visit, &wanted, &mut events).await?;
        }
        let ignored = self.ignored_by(session).await?;
        events.retain(|event| {
            let pdu = event.pdu();
            !ignored.hides(pdu.sender(), pdu.state_key().is_some())
        });
        Ok(RelationAnswer {
            events: self
                .present(session, &visit.room, &visit.reader, &events)
                .await?,
            next: page.next.filter(|_| !stopped).map(|next| next.to_string()),
            previous: wanted.from,
            recursion_depth: wanted.recurse.then_some(MAX_RECURSION),
        })
    }

    /// Adds what relates to `events`, and to that, so that an event comes with the page of the one
    /// it relates to; then puts all in the order of the page.
    async fn follow(
        &self,
        visit: &Visit,
        wanted: &RelationRequest,
        events: &mut Vec<VisibleEvent>,
    ) -> Result<(), ReadError> {
        let mut seen: HashSet<EventNumber> = events.iter().map(VisibleEvent::number).collect();
        let mut fringe: Vec<EventNumber> = events.iter().map(VisibleEvent::number).collect();
        let mut followed = 0;
        // The events of the page are the first step.
        for _ in 1..MAX_RECURSION {
            let mut further = Vec::new();
            for number in fringe {
                followed += 1;
                if followed > MAX_FOLLOWED {
                    break;
                }
                let span = (None, Towards::Older, MAX_PAGE);
                let (reader, room) = (&visit.reader, &visit.room);
                let page = self
                    .rooms
                    .relations(reader, room, number, wanted.filter(), span);
                for event in page.await?.events {
                    if seen.insert(event.number()) {
                        further.push(event.number());
                        events.push(event);
                    }
                }
            }
            fringe = further;
        }
        events.sort_by_key(VisibleEvent::history_key);
        if wanted.towards == Towards::Older {
            events.reverse();
        }
        Ok(())
    }
}
