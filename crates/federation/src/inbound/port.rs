//! What of the rooms is not there yet.

use std::sync::Arc;

use async_trait::async_trait;
use homeserver_events::Pdu;
use homeserver_rooms::{ImportId, Incoming, Received, Room, RoomError, Rooms};
use ruma::OwnedEventId;

pub(super) const MAX_OUTLIERS: usize = 10_000;

pub(super) struct OutliersTaken {
    pub(super) left_out: Vec<OwnedEventId>,
}

#[derive(Clone)]
pub(super) struct StateGiven {
    pub(super) state: Vec<Pdu>,
    pub(super) auth_chain: Vec<Pdu>,
    #[expect(dead_code, reason = "states at gaps are not taken yet")]
    pub(super) known: Vec<OwnedEventId>,
}

pub(super) enum StateTaken {
    #[expect(dead_code, reason = "states at gaps are not taken yet")]
    Collected(ImportId),
    Missing(Vec<OwnedEventId>),
}

#[async_trait]
pub(super) trait RoomsPort {
    async fn missing_of(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, RoomError>;
    async fn unplaced_of(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, RoomError>;
    async fn extremities(&self, room: &Room) -> Result<Vec<OwnedEventId>, RoomError>;
    async fn receive_outliers(
        &self,
        room: &Arc<Room>,
        events: Vec<Pdu>,
    ) -> Result<OutliersTaken, RoomError>;
    async fn collect_state(
        &self,
        room: &Arc<Room>,
        given: StateGiven,
    ) -> Result<StateTaken, RoomError>;
    async fn receive_over_gap(
        &self,
        room: &Arc<Room>,
        event: Incoming,
        state: ImportId,
    ) -> Result<Received, RoomError>;
    async fn abandon_import(&self, import: ImportId) -> Result<(), RoomError>;
}

#[async_trait]
impl RoomsPort for Arc<Rooms> {
    async fn missing_of(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        let mut missing = Vec::new();
        for id in ids {
            let here = match self.event_number(room.number, id).await? {
                Some(number) => self.event_id(room, number).await?.is_some(),
                None => false,
            };
            if !here {
                missing.push(id.clone());
            }
        }
        Ok(missing)
    }

    async fn unplaced_of(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        self.missing_of(room, ids).await
    }

    async fn extremities(&self, _: &Room) -> Result<Vec<OwnedEventId>, RoomError> {
        Ok(Vec::new())
    }

    async fn receive_outliers(
        &self,
        _: &Arc<Room>,
        _: Vec<Pdu>,
    ) -> Result<OutliersTaken, RoomError> {
        Err(RoomError::UnknownEvent)
    }

    async fn collect_state(&self, _: &Arc<Room>, _: StateGiven) -> Result<StateTaken, RoomError> {
        Ok(StateTaken::Missing(Vec::new()))
    }

    async fn receive_over_gap(
        &self,
        _: &Arc<Room>,
        _: Incoming,
        _: ImportId,
    ) -> Result<Received, RoomError> {
        Err(RoomError::UnknownEvent)
    }

    async fn abandon_import(&self, _: ImportId) -> Result<(), RoomError> {
        Ok(())
    }
}
