//! What changed for one device, as a value: computed by the engine, written by a face such as
//! `v3`. Nothing here knows how it is written down.

use std::collections::BTreeMap;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde_json::value::RawValue;

use super::token::SyncToken;
use crate::client_event::ReadEvent;

/// Everything that a device is told at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Where the device stands after it.
    pub(crate) next: SyncToken,
    /// Rooms that the user is in.
    pub(crate) joined: Vec<JoinedRoom>,
    /// Rooms that the user is invited to.
    pub(crate) invited: Vec<StrippedRoom>,
    /// Rooms that the user knocks on.
    pub(crate) knocked: Vec<StrippedRoom>,
    /// Rooms that the user left or was removed from.
    pub(crate) left: Vec<LeftRoom>,
    /// `m.presence` events.
    pub(crate) presence: Vec<Box<RawValue>>,
    /// Account data outside rooms.
    pub(crate) account_data: Vec<AccountDatum>,
    /// To-device events.
    pub(crate) to_device: Vec<Box<RawValue>>,
    /// Users whose devices must be asked for again, or no more.
    pub(crate) device_lists: DeviceListChanges,
    /// Unclaimed one-time keys of the device, by algorithm.
    pub(crate) one_time_keys: BTreeMap<String, u64>,
    /// Algorithms for which the device has an unused fallback key.
    pub(crate) unused_fallback_types: Vec<String>,
    /// Whether the two above are news.
    pub(crate) keys_changed: bool,
}

impl Changes {
    /// Whether there is nothing that a waiting client would want to be woken for.
    pub(crate) fn is_empty(&self) -> bool {
        self.joined.is_empty()
            && self.invited.is_empty()
            && self.knocked.is_empty()
            && self.left.is_empty()
            && self.presence.is_empty()
            && self.account_data.is_empty()
            && self.to_device.is_empty()
            && self.device_lists.is_empty()
            && !self.keys_changed
    }
}

/// A value of account data.
#[derive(Clone, Debug)]
pub(crate) struct AccountDatum {
    /// The event type.
    pub(crate) event_type: String,
    /// The event content.
    pub(crate) content: Box<RawValue>,
}

/// Changes of other users' device lists.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeviceListChanges {
    /// Keys changed, or the user is met for the first time.
    pub(crate) changed: Vec<OwnedUserId>,
    /// No room is shared any more.
    pub(crate) left: Vec<OwnedUserId>,
}

impl DeviceListChanges {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// What happened in a room that the user is in.
#[derive(Clone, Debug)]
pub(crate) struct JoinedRoom {
    /// The room.
    pub(crate) room: OwnedRoomId,
    /// Who is there; absent if it did not change.
    pub(crate) summary: Option<Summary>,
    /// State beside the timeline.
    pub(crate) state: StateSection,
    /// New events.
    pub(crate) timeline: Timeline,
    /// Typing and receipts, as events.
    pub(crate) ephemeral: Vec<Box<RawValue>>,
    /// The user's account data of the room.
    pub(crate) account_data: Vec<AccountDatum>,
    /// Unread notifications; absent if nothing was computed.
    pub(crate) unread: Option<Unread>,
}

impl JoinedRoom {
    /// Whether nothing happened that the user is to be told of.
    pub(crate) fn is_empty(&self) -> bool {
        self.summary.is_none()
            && self.state.events().is_empty()
            && self.timeline.events.is_empty()
            && !self.timeline.limited
            && self.ephemeral.is_empty()
            && self.account_data.is_empty()
            && self.unread.is_none()
    }
}

/// What happened in a room up to the user's leaving.
#[derive(Clone, Debug)]
pub(crate) struct LeftRoom {
    /// The room.
    pub(crate) room: OwnedRoomId,
    /// State beside the timeline.
    pub(crate) state: StateSection,
    /// New events.
    pub(crate) timeline: Timeline,
    /// The user's account data of the room.
    pub(crate) account_data: Vec<AccountDatum>,
}

/// A room of which only stripped state is shown.
#[derive(Clone, Debug)]
pub(crate) struct StrippedRoom {
    /// The room.
    pub(crate) room: OwnedRoomId,
    /// Stripped state events.
    pub(crate) events: Vec<Box<RawValue>>,
}

/// State, told as of one end of the timeline or the other.
#[derive(Clone, Debug)]
pub(crate) enum StateSection {
    /// At the start of the timeline: `state`.
    Before(Vec<ReadEvent>),
    /// At its end: `state_after`.
    After(Vec<ReadEvent>),
    /// At its end, under the name from before it was in the specification.
    UnstableAfter(Vec<ReadEvent>),
}

impl StateSection {
    /// The events.
    pub(crate) fn events(&self) -> &[ReadEvent] {
        match self {
            Self::Before(events) | Self::After(events) | Self::UnstableAfter(events) => events,
        }
    }
}

/// New events of a room, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    /// The events.
    pub(crate) events: Vec<ReadEvent>,
    /// Whether events between the reader's last sync and the first one here are left out.
    pub(crate) limited: bool,
    /// Where paging back starts.
    pub(crate) prev_batch: Option<String>,
}

/// Who is in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Users to name the room by, if it has no name; absent if it has one.
    pub(crate) heroes: Option<Vec<OwnedUserId>>,
    /// Joined users.
    pub(crate) joined: u64,
    /// Invited users.
    pub(crate) invited: u64,
}

/// Unread notifications of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unread {
    /// Of the room, or of its main timeline if `threads` is present.
    pub(crate) room: Counts,
    /// By thread root, if the reader asked for it.
    pub(crate) threads: Option<BTreeMap<OwnedEventId, Counts>>,
}

/// Unread notifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Events that notify.
    pub(crate) notifications: u64,
    /// Those among them that stand out.
    pub(crate) highlights: u64,
}
