//! Appending many events of local users at once: for seeding rooms and for moving histories in.
//!
//! Every event is decided as any other, but a batch holds as many as fit, and batches follow each
//! other without waiting. Until the last one is on disk nothing is answered.

use std::{collections::VecDeque, sync::Arc};

use homeserver_events::push::MAX_MENTIONED_USERS;
use homeserver_storage::{Position, batch::MAX_OPS};
use ruma::{OwnedUserId, RoomId};

use crate::{
    Rooms,
    command::NewEvent,
    edit::RoomEdit,
    error::RoomError,
    execute::{not_stored, wants_for as wants},
    live::{LiveRoom, Wants},
    receive::Outcome,
    room::Room,
};

/// Operations left for the rest of a batch when it takes another event, with all whom it mentions.
const ROOM_FOR_ONE: usize = 60 + MAX_MENTIONED_USERS;

/// Bytes at which a batch takes no more events.
const FULL: usize = 2_000_000;

/// Batches on their way at once.
const ON_THEIR_WAY: usize = 8;

impl Rooms {
    /// Appends these events to a room, in their order. Gives the position of the last one.
    ///
    /// # Errors
    /// On the first event that is not allowed; those before it are in the room.
    pub async fn append_many(
        self: &Arc<Self>,
        room: &RoomId,
        events: &[(OwnedUserId, NewEvent)],
    ) -> Result<Position, RoomError> {
        let room = self.room(room).await?.ok_or(RoomError::UnknownRoom)?;
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut rest = events;
        let mut last = 0;
        let mut sent: VecDeque<Outcome> = VecDeque::new();
        let mut refused = None;
        while !rest.is_empty() && refused.is_none() {
            let (taken, refusal) = self.append_some(&room, &live, rest, &mut sent).await?;
            refused = refusal;
            rest = &rest[taken..];
            if sent.len() >= ON_THEIR_WAY {
                last = stored(sent.pop_front()).await?.unwrap_or(last);
            }
        }
        while !sent.is_empty() {
            last = stored(sent.pop_front()).await?.unwrap_or(last);
        }
        refused.map_or(Ok(last), Err)
    }

    /// Submits one batch of events. Gives how many, and why the next one was refused.
    async fn append_some(
        self: &Arc<Self>,
        room: &Arc<Room>,
        live: &Arc<LiveRoom>,
        events: &[(OwnedUserId, NewEvent)],
        sent: &mut VecDeque<Outcome>,
    ) -> Result<(usize, Option<RoomError>), RoomError> {
        let wants = events
            .first()
            .map_or(Wants::Newest, |(_, event)| wants(event));
        let mut tip = live.tip(&self.store, wants).await?;
        let (head, pending) = tip.parts();
        let mut edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
        let (taken, refusal) = fill(&mut edit, events, wants).await;
        let delta = edit.delta;
        if taken == 0 {
            return Ok((0, refusal));
        }
        sent.push_back(self.send_off(live, &mut tip, delta).await?);
        Ok((taken, refusal))
    }
}

/// The last position of a batch, once it is on disk.
async fn stored(outcome: Option<Outcome>) -> Result<Option<Position>, RoomError> {
    let Some(outcome) = outcome else {
        return Ok(None);
    };
    let committed = outcome.await.map_err(|_| RoomError::Stopping)?;
    let committed = committed.map_err(not_stored)?;
    Ok(committed.positions.last().copied())
}

/// Appends events while they fit into one batch. Gives how many, and why the next one was refused.
async fn fill(
    edit: &mut RoomEdit<'_>,
    events: &[(OwnedUserId, NewEvent)],
    tip: Wants,
) -> (usize, Option<RoomError>) {
    for (taken, (sender, event)) in events.iter().enumerate() {
        let (operations, bytes) = edit.delta.size();
        if operations + ROOM_FOR_ONE > MAX_OPS || bytes > FULL {
            return (taken, None);
        }
        // A redaction looks for its target on disk; members are counted on a settled tip.
        let redacts = event.event_type == "m.room.redaction";
        if taken > 0 && (redacts || (wants(event) == Wants::Settled && tip != Wants::Settled)) {
            return (taken, None);
        }
        if let Err(error) = edit.append(sender, event, None).await {
            return (taken, Some(error));
        }
    }
    (events.len(), None)
}
