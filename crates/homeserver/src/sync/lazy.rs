//! Which membership events a device was sent, so that lazy loading does not send them again.
//!
//! An entry counts only once the device has come back with the token of the response that the
//! event was in: a response that was lost is sent again whole.
//!
//! Specification: client-server API, "Lazy-loading room members".

use std::{collections::HashMap, sync::Arc};

use homeserver_rooms::{EventNumber, RoomNumber};
use homeserver_storage::Position;
use homeserver_users::DeviceNumber;
use parking_lot::Mutex;
use quick_cache::sync::Cache;

/// Pairs of device and room that are remembered; for others, members are sent once more.
const PAIRS: usize = 20_000;

/// Members remembered for one pair; when there are more, all are forgotten.
const MEMBERS: usize = 2_000;

/// User id → the event that was sent, and the position of the token beside it.
type Sent = HashMap<String, (EventNumber, Position)>;

type SentOfPair = Arc<Mutex<Sent>>;

/// What was sent. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct SentMembers {
    sent: Arc<Cache<(DeviceNumber, RoomNumber), SentOfPair>>,
}

impl Default for SentMembers {
    fn default() -> Self {
        Self {
            sent: Arc::new(Cache::new(PAIRS)),
        }
    }
}

impl SentMembers {
    /// Whether the device, which has come back with the token of `since`, has this event of `user`.
    pub(super) fn has(
        &self,
        place: (DeviceNumber, RoomNumber),
        user: &str,
        event: EventNumber,
        since: Position,
    ) -> bool {
        let Some(sent) = self.sent.get(&place) else {
            return false;
        };
        let sent = sent.lock();
        sent.get(user)
            .is_some_and(|(known, at)| *known == event && *at <= since)
    }

    /// Notes that the event of `user` is in the response whose token is of `at`.
    pub(super) fn note(
        &self,
        place: (DeviceNumber, RoomNumber),
        user: &str,
        event: EventNumber,
        at: Position,
    ) {
        let sent = self.sent.get(&place).unwrap_or_else(|| {
            let sent = SentOfPair::default();
            self.sent.insert(place, Arc::clone(&sent));
            sent
        });
        let mut sent = sent.lock();
        if sent.len() >= MEMBERS {
            sent.clear();
        }
        sent.insert(user.to_owned(), (event, at));
    }

    /// Forgets what was sent of a room: the device starts anew there.
    pub(super) fn forget(&self, place: (DeviceNumber, RoomNumber)) {
        self.sent.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_as_sent_once_its_response_is_acknowledged() {
        let sent = SentMembers::default();
        let place = (DeviceNumber(1), RoomNumber(2));
        sent.note(place, "@a:b", EventNumber(7), 10);
        assert!(!sent.has(place, "@a:b", EventNumber(7), 9));
        assert!(sent.has(place, "@a:b", EventNumber(7), 10));
        assert!(!sent.has(place, "@a:b", EventNumber(8), 10));
        assert!(!sent.has((DeviceNumber(2), RoomNumber(2)), "@a:b", EventNumber(7), 10));
        sent.forget(place);
        assert!(!sent.has(place, "@a:b", EventNumber(7), 10));
    }
}
