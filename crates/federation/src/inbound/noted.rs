//! Events that were refused since too many waited: fetched when the room is worked off.

use std::{collections::BTreeMap, sync::Arc};

use homeserver_rooms::Room;
use homeserver_storage::{Batch, Durability};
use ruma::{OwnedEventId, OwnedServerName};

use super::{Inner, admit::Taken, queue::Standing, store::ToKeep};
use crate::tables::INBOUND_NOTED;

/// Events that are fetched in one go.
const AT_ONCE: usize = 100;

/// What is left of the events that were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// Fewer than before.
    Fewer,
    /// As many: nobody gave any, or there is no room for them yet.
    AsMany,
}

impl Inner {
    /// Fetches events that were refused, and takes them as rows would have been. After attempts in
    /// vain it is others: some may never have been.
    pub(super) async fn fetch_noted(self: &Arc<Self>, room: &Arc<Room>, attempts: u8) -> Left {
        let before = self.queues.noted_count(room.number);
        self.fetch_some_noted(room, AT_ONCE * usize::from(attempts))
            .await;
        match self.queues.noted_count(room.number) {
            0 => Left::Nothing,
            left if left < before => Left::Fewer,
            _ => Left::AsMany,
        }
    }

    async fn fetch_some_noted(self: &Arc<Self>, room: &Arc<Room>, skip: usize) {
        let noted = self.queues.noted(room.number, (skip, AT_ONCE));
        let ids: Vec<_> = noted.iter().map(|(id, _)| id.clone()).collect();
        let Ok(lacking) = self.parts.rooms.unplaced_of(room, &ids).await else {
            return;
        };
        let mut here = ids;
        here.retain(|id| !lacking.contains(id));
        self.forget_noted(room, here).await;
        let mut by_origin: BTreeMap<OwnedServerName, Vec<OwnedEventId>> = BTreeMap::new();
        for (id, origin) in noted {
            if lacking.contains(&id) {
                by_origin.entry(origin).or_default().push(id);
            }
        }
        for (origin, ids) in by_origin {
            self.fetch_noted_of(room, &origin, ids).await;
        }
    }

    /// Fetches those that one server sent, from it or from others.
    async fn fetch_noted_of(
        self: &Arc<Self>,
        room: &Arc<Room>,
        origin: &OwnedServerName,
        ids: Vec<OwnedEventId>,
    ) {
        let first = std::slice::from_ref(origin);
        let Ok(servers) = self.servers_for(room, first, 0).await else {
            return;
        };
        let fetcher = &self.parts.fetcher;
        let fetched = fetcher.events(&servers, (&**room).into(), &ids).await;
        self.forget_noted(room, fetched.unusable).await;
        // Of strangers nothing is noted.
        let member = (&**origin, Standing::Member);
        let mut keep = ToKeep::default();
        for pdu in fetched.events {
            let Ok(place) = self.queues.take_place(room.number, member) else {
                break;
            };
            keep.taken.push(Taken {
                room: Arc::clone(room),
                pdu,
                verified: true,
                place,
            });
        }
        if let Err(error) = self.keep(origin, keep).await {
            tracing::debug!(%error, room = %room.id, "events that were refused are not taken");
        }
    }

    /// Gives all up that were refused: they were not to be had for too long.
    pub(super) async fn give_noted_up(&self, room: &Room) {
        let noted = self.queues.noted(room.number, (0, usize::MAX));
        tracing::warn!(count = noted.len(), room = %room.id, "events that were refused are given up");
        let ids: Vec<_> = noted.into_iter().map(|(id, _)| id).collect();
        for some in ids.chunks(AT_ONCE) {
            self.forget_noted(room, some.to_vec()).await;
        }
    }

    async fn forget_noted(&self, room: &Room, ids: Vec<OwnedEventId>) {
        if ids.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        for id in &ids {
            batch.delete(&INBOUND_NOTED, &(room.number.0, id.as_str()));
        }
        let removed = match self.parts.store.submit(batch, Durability::Durable).await {
            Ok(ticket) => ticket.await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            // The next start looks at them again.
            tracing::warn!(%error, room = %room.id, "notes of events stay on disk");
        }
        self.queues.forget_noted(room.number, &ids);
    }
}
