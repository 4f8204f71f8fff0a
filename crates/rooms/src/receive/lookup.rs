//! What is here of a received event, and of what it refers to.

use std::{collections::HashMap, sync::Arc};

use homeserver_events::Pdu;
use ruma::{EventId, OwnedEventId};

use super::{Incoming, Received};
use crate::{
    Rooms, edit::RoomEdit, error::RoomError, event::StoredEvent, numbers::EventNumber, room::Room,
    tables::EVENT_IDS,
};

/// Numbers of events that were looked up. They never change.
pub(crate) type Ids = HashMap<OwnedEventId, EventNumber>;

/// Ids looked up in one go.
pub(crate) const IDS_AT_ONCE: usize = 500;

/// What is here of an event that is received.
pub(crate) enum Known {
    /// Nothing.
    Nothing,
    /// Others named it.
    Mentioned(EventNumber),
    /// An outlier, as its row on disk has it.
    Outlier(Box<StoredEvent>),
    /// It was received before.
    Placed(Arc<StoredEvent>),
    /// It is on its way to disk.
    Underway,
}

/// What an event of another server builds on.
pub(crate) struct Foundations {
    pub(crate) prev: Vec<Arc<StoredEvent>>,
    pub(crate) auth: Vec<Arc<StoredEvent>>,
}

impl Rooms {
    /// Adds the numbers of those of these ids that have one and are not in `ids` yet.
    pub(crate) async fn event_numbers<'i>(
        &self,
        room: &Room,
        wanted: impl Iterator<Item = &'i EventId>,
        ids: &mut Ids,
    ) -> Result<(), RoomError> {
        let mut unknown: Vec<_> = wanted.filter(|id| !ids.contains_key(*id)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        for some in unknown.chunks(IDS_AT_ONCE) {
            let keys: Vec<_> = some.iter().map(|id| (room.number.0, id.as_str())).collect();
            let found = self.store.multi_get(&EVENT_IDS, &keys).await?;
            for (id, number) in some.iter().zip(found) {
                if let Some(number) = number {
                    ids.insert((*id).to_owned(), EventNumber(number));
                }
            }
        }
        Ok(())
    }
}

impl RoomEdit<'_> {
    /// Looks up what these events are and refer to.
    pub(crate) async fn look_up(
        &self,
        events: &[Incoming],
        ids: &mut Ids,
    ) -> Result<(), RoomError> {
        let named = events.iter().flat_map(|event| names(&event.pdu));
        let unknown = named.filter(|id| !self.pending.mentioned.contains_key(*id));
        self.rooms.event_numbers(self.room(), unknown, ids).await?;
        // Into the cache, in one go.
        let mut numbers: Vec<_> = events
            .iter()
            .flat_map(|event| names(&event.pdu))
            .filter_map(|id| ids.get(id).copied())
            .filter(|number| !self.pending.events.contains_key(number))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        self.rooms.events.find_all(self.room(), &numbers).await?;
        Ok(())
    }

    /// What is here of an event, whose id was looked up.
    pub(crate) async fn known(&self, id: &EventId, ids: &Ids) -> Result<Known, RoomError> {
        let Some(number) = self.known_number(id, ids) else {
            return Ok(Known::Nothing);
        };
        let rewritten = || {
            self.delta
                .rewritten
                .iter()
                .any(|event| event.number == number)
        };
        if self.pending.events.contains_key(&number) || rewritten() {
            return Ok(Known::Underway);
        }
        let events = &self.rooms.events;
        if let Some(event) = events.find(self.room(), number).await?
            && event.is_placed()
        {
            return Ok(Known::Placed(event));
        }
        // Whether it is placed decides whether it is judged again: no matter for a cache.
        let here = events.on_disk(self.room(), number).await?;
        Ok(match here {
            Some(event) if event.is_placed() => Known::Placed(Arc::new(event)),
            Some(event) => Known::Outlier(Box::new(event)),
            None => Known::Mentioned(number),
        })
    }

    fn known_number(&self, id: &EventId, ids: &Ids) -> Option<EventNumber> {
        let found = self.pending.mentioned.get(id).or_else(|| ids.get(id));
        found.copied()
    }

    /// The events that `pdu` refers to, or the names of those that are not here.
    pub(crate) async fn foundations(
        &self,
        pdu: &Pdu,
        ids: &Ids,
    ) -> Result<(Foundations, Received), RoomError> {
        let (mut prev, mut auth) = (Vec::new(), Vec::new());
        let (mut prev_missing, mut auth_missing) = (Vec::new(), Vec::new());
        for id in pdu.prev_events() {
            // The state after a rejected event is the one before it; only of what has no place in
            // the graph it is not known.
            match self.placed(id, ids).await? {
                Some(event) => prev.push(event),
                None => prev_missing.push(id.clone()),
            }
        }
        for id in pdu.auth_events() {
            match self.referred(id, ids).await? {
                Some(event) => auth.push(event),
                None => auth_missing.push(id.clone()),
            }
        }
        let missing = Received::Missing {
            prev: prev_missing,
            auth: auth_missing,
        };
        Ok((Foundations { prev, auth }, missing))
    }

    /// An event if it has a place in the graph.
    async fn placed(&self, id: &EventId, ids: &Ids) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let Some(event) = self.referred(id, ids).await? else {
            return Ok(None);
        };
        if event.is_placed() {
            return Ok(Some(event));
        }
        // Another process may have placed it since it was cached.
        let here = self.rooms.events.on_disk(self.room(), event.number).await?;
        Ok(here.filter(StoredEvent::is_placed).map(Arc::new))
    }

    async fn referred(
        &self,
        id: &EventId,
        ids: &Ids,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        match self.known_number(id, ids) {
            Some(number) => self.find(number).await,
            None => Ok(None),
        }
    }
}

/// The event itself and all that it refers to.
fn names(pdu: &Pdu) -> impl Iterator<Item = &EventId> {
    let referred = pdu.prev_events().iter().chain(pdu.auth_events());
    std::iter::once(pdu.event_id())
        .chain(referred.map(|id| &**id))
        .chain(pdu.redacts())
}
