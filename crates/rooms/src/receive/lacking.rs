//! Whether the state of a room knows what an event that came late, under a gap, brings about.
//!
//! Such an event is no extremity, for one that is here follows it: its state is part of what that
//! one's server told. A server may tell less. What it left out then counts nowhere, unless the late
//! event counts by itself.

use crate::{
    edit::RoomEdit, error::RoomError, event::StoredEvent, numbers::EventNumber, tree::StateRoot,
};

/// Keys in which the state after a late event may differ from that of the room, to be looked at one
/// by one. Where there are more, only the event itself is.
const MAX_DIFFERENCES: usize = 500;

/// State events that followed each other under one key, as far as that is looked back.
const MAX_REPLACED: usize = 16;

impl RoomEdit<'_> {
    /// Whether `root` has nothing of what the event brings about, nor anything newer: it has no
    /// value where the state after the event has one, or the very value that this one replaced.
    pub(super) async fn lacks(
        &self,
        root: StateRoot,
        event: &StoredEvent,
    ) -> Result<bool, RoomError> {
        if root == event.after {
            return Ok(false);
        }
        if let Some((event_type, state_key)) = event.pdu.state_pair() {
            let here = self.state_in(root, event_type, state_key).await?;
            let here = here.map(|here| here.number);
            if here != Some(event.number) && self.is_older(here, event.number).await? {
                return Ok(true);
            }
        }
        let (room, roots) = (self.room().number, (root, event.after));
        let states = &self.rooms.states;
        let differences = states.difference(room, &self.pending.nodes, roots).await?;
        if differences.len() > MAX_DIFFERENCES {
            return Ok(false);
        }
        for difference in differences {
            let here = difference.before.map(|(number, _)| number);
            if let Some((number, _)) = difference.after
                && self.is_older(here, number).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a value under the key of an event is none, or one that the event replaced.
    async fn is_older(
        &self,
        value: Option<EventNumber>,
        event: EventNumber,
    ) -> Result<bool, RoomError> {
        let Some(value) = value else {
            return Ok(true);
        };
        let mut event = event;
        for _ in 0..MAX_REPLACED {
            match self.event(event).await?.replaces {
                Some(replaced) if replaced == value => return Ok(true),
                Some(replaced) => event = replaced,
                None => break,
            }
        }
        Ok(false)
    }
}
