//! Jumping to a time of which the history is missing here: other servers are asked which event is the
//! nearest, and that event is fetched with what is right before it.
//!
//! What a server says is a hint: the event is fetched, checked and judged like all history, and what
//! is nearest is looked for here once more.
//!
//! Specification: client-server API, "Jumping to an event by its time"; server-server API,
//! `timestamp_to_event`.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use homeserver_rooms::{HistoryToken, Room, RoomError, Towards};
use ruma::OwnedServerName;

use super::{
    Inbound,
    backfill::fill_from,
    gap::{Gap, GapError},
};
use crate::fetch::NearestElsewhere;

/// Servers that are asked, at the same time.
const ASKED: usize = 3;

/// A time that somebody wants to see.
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    /// In milliseconds.
    pub time: u64,
    /// Which way to look from there.
    pub towards: Towards,
    /// The time of the nearest event that is here.
    pub here: Option<u64>,
}

impl Jump {
    /// Whether an event of this time is nearer than what is here.
    fn is_nearer(&self, time: u64) -> bool {
        let distance = time.abs_diff(self.time);
        self.here
            .is_none_or(|here| distance < here.abs_diff(self.time))
    }
}

impl Inbound {
    /// Fetches the event that is nearest to a time, if others know one below the place of a token that
    /// is nearer than what is here. Gives whether anything came.
    ///
    /// # Errors
    /// When the room cannot be read or written.
    pub async fn fetch_nearest(
        &self,
        room: &Arc<Room>,
        place: &HistoryToken,
        jump: Jump,
    ) -> Result<bool, RoomError> {
        self.alone(room, self.jump(room, place, jump)).await
    }

    async fn jump(
        &self,
        room: &Arc<Room>,
        place: &HistoryToken,
        jump: Jump,
    ) -> Result<bool, RoomError> {
        let rooms = &self.inner.parts.rooms;
        let Some(hole) = rooms.gap_at(room, place).await? else {
            return Ok(false);
        };
        let first = [hole.sender.server_name().to_owned()];
        let servers = self.inner.servers_for(room, &first, 0).await?;
        let filling = Gap::new(&self.inner, room, servers.clone());
        for (server, nearest) in self.ask_for_nearest(room, &servers, jump).await {
            let top = Some(&*nearest.event_id);
            match fill_from(&filling, &server, (&hole, top)).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(GapError::Room(error)) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, %server, room = %room.id, "an event was not given");
                }
            }
        }
        Ok(false)
    }

    /// What some servers say, the nearest first.
    async fn ask_for_nearest(
        &self,
        room: &Arc<Room>,
        servers: &[OwnedServerName],
        jump: Jump,
    ) -> Vec<(OwnedServerName, NearestElsewhere)> {
        let fetcher = &self.inner.parts.fetcher;
        let ask = async |server: OwnedServerName| {
            let asked = (jump.time, jump.towards);
            match fetcher.nearest(&server, &room.id, asked).await {
                Ok(nearest) => Some((server, nearest)),
                Err(error) => {
                    tracing::debug!(%error, %server, room = %room.id, "no event near a time");
                    None
                }
            }
        };
        let asked = stream::iter(servers.iter().take(ASKED).cloned()).map(ask);
        let answers = asked.buffered(ASKED).filter_map(async |answer| answer);
        let mut answers: Vec<_> = answers.collect().await;
        answers.retain(|(_, nearest)| jump.is_nearer(nearest.origin_server_ts));
        answers.sort_by_key(|(_, nearest)| nearest.origin_server_ts.abs_diff(jump.time));
        answers.dedup_by(|(_, one), (_, other)| one.event_id == other.event_id);
        answers
    }
}
