//! Filters: which events and rooms a reader wants to see.
//!
//! A [`Filter`] is made once per request from ruma's [`FilterDefinition`] and then only asked. It
//! knows nothing of how events are stored: it sees an [`EventShape`].
//!
//! Specification: client-server API, "Filtering" and `POST /user/{userId}/filter`.

#[cfg(test)]
mod tests;

use homeserver_events::push::property_path;
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId,
    api::client::filter::{
        EventFormat, Filter as EventFilterDefinition, FilterDefinition, LazyLoadOptions,
        RoomEventFilter, UrlFilter,
    },
};
use serde_json::value::RawValue;

/// Events of one room in one /sync or page unless the filter says otherwise.
pub(crate) const DEFAULT_LIMIT: usize = 10;

/// Events of one room in one /sync or page at most, whatever the filter says.
pub(crate) const MAX_LIMIT: usize = 100;

/// Alternatives in one list of a filter; longer lists are refused.
pub(crate) const MAX_LIST: usize = 1_000;

/// A filter could not be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilterError {
    /// A list has more than [`MAX_LIST`] entries.
    #[error("a filter's list may have at most {MAX_LIST} entries")]
    ListTooLong,
}

/// What a filter looks at in an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventShape<'a> {
    /// `type`.
    pub(crate) event_type: &'a str,
    /// `sender`; absent for account data.
    pub(crate) sender: Option<&'a str>,
    /// `content`, for `contains_url`.
    pub(crate) content: Option<&'a RawValue>,
}

/// A whole filter, ready to be asked.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// Property paths to keep in events; `None` keeps everything.
    pub(crate) event_fields: Option<Vec<Vec<String>>>,
    /// How events are written.
    pub(crate) format: Format,
    /// Presence of other users.
    pub(crate) presence: EventFilter,
    /// Account data outside rooms.
    pub(crate) account_data: EventFilter,
    /// Which rooms at all.
    pub(crate) rooms: RoomSelection,
    /// Whether rooms that were left are shown in a first sync.
    pub(crate) include_leave: bool,
    /// Timeline events.
    pub(crate) timeline: EventFilter,
    /// State events.
    pub(crate) state: EventFilter,
    /// Typing and receipts.
    pub(crate) ephemeral: EventFilter,
    /// Account data in rooms.
    pub(crate) room_account_data: EventFilter,
    /// Whose membership events are part of the state.
    pub(crate) lazy: LazyMembers,
    /// Whether counts are given per thread.
    pub(crate) thread_counts: bool,
}

/// How events are written for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The client format.
    Client,
    /// As received over federation.
    Federation,
}

/// Whose membership events a reader gets as state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LazyMembers {
    /// Everybody's.
    All,
    /// Those of senders, and not again if sent before.
    Senders,
    /// Those of senders, each time.
    SendersAlways,
}

impl From<LazyLoadOptions> for LazyMembers {
    fn from(options: LazyLoadOptions) -> Self {
        match options {
            LazyLoadOptions::Disabled => Self::All,
            LazyLoadOptions::Enabled {
                include_redundant_members: true,
            } => Self::SendersAlways,
            LazyLoadOptions::Enabled { .. } => Self::Senders,
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            event_fields: None,
            format: Format::Client,
            presence: EventFilter::default(),
            account_data: EventFilter::default(),
            rooms: RoomSelection::default(),
            include_leave: false,
            timeline: EventFilter::default(),
            state: EventFilter::default(),
            ephemeral: EventFilter::default(),
            room_account_data: EventFilter::default(),
            lazy: LazyMembers::All,
            thread_counts: false,
        }
    }
}

impl Filter {
    /// Makes a filter usable.
    pub(crate) fn compile(definition: FilterDefinition) -> Result<Self, FilterError> {
        let room = definition.room;
        if let Some(fields) = &definition.event_fields {
            check_length(fields)?;
        }
        let fields = definition
            .event_fields
            .map(|fields| fields.iter().map(|path| property_path(path)).collect());
        let lazy = match LazyMembers::from(room.state.lazy_load_options) {
            LazyMembers::All => LazyMembers::from(room.timeline.lazy_load_options),
            chosen => chosen,
        };
        Ok(Self {
            event_fields: fields,
            format: match definition.event_format {
                EventFormat::Federation => Format::Federation,
                _ => Format::Client,
            },
            presence: EventFilter::plain(definition.presence)?,
            account_data: EventFilter::plain(definition.account_data)?,
            rooms: RoomSelection::new(room.rooms, room.not_rooms)?,
            include_leave: room.include_leave,
            lazy,
            thread_counts: room.timeline.unread_thread_notifications,
            timeline: EventFilter::room(room.timeline)?,
            state: EventFilter::room(room.state)?,
            ephemeral: EventFilter::room(room.ephemeral)?,
            room_account_data: EventFilter::room(room.account_data)?,
        })
    }
}

/// A list of rooms to show and one not to show.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoomSelection {
    only: Option<Vec<OwnedRoomId>>,
    never: Vec<OwnedRoomId>,
}

impl RoomSelection {
    fn new(only: Option<Vec<OwnedRoomId>>, never: Vec<OwnedRoomId>) -> Result<Self, FilterError> {
        check_length(only.as_deref().unwrap_or_default())?;
        check_length(&never)?;
        Ok(Self { only, never })
    }

    /// Whether the room is shown.
    pub(crate) fn allows(&self, room: &RoomId) -> bool {
        !self.never.iter().any(|id| id == room)
            && self
                .only
                .as_ref()
                .is_none_or(|only| only.iter().any(|id| id == room))
    }
}

/// One event filter or room event filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventFilter {
    limit: Option<usize>,
    types: Option<Vec<String>>,
    not_types: Vec<String>,
    senders: Option<Vec<OwnedUserId>>,
    not_senders: Vec<OwnedUserId>,
    url: Option<UrlFilter>,
    rooms: RoomSelection,
}

impl EventFilter {
    fn plain(definition: EventFilterDefinition) -> Result<Self, FilterError> {
        check_length(definition.types.as_deref().unwrap_or_default())?;
        check_length(&definition.not_types)?;
        check_length(definition.senders.as_deref().unwrap_or_default())?;
        check_length(&definition.not_senders)?;
        Ok(Self {
            limit: definition.limit.map(limit_of),
            types: definition.types,
            not_types: definition.not_types,
            senders: definition.senders,
            not_senders: definition.not_senders,
            url: None,
            rooms: RoomSelection::default(),
        })
    }

    /// Makes a room event filter usable, as in /sync, /messages and /context.
    pub(crate) fn room(definition: RoomEventFilter) -> Result<Self, FilterError> {
        check_length(definition.types.as_deref().unwrap_or_default())?;
        check_length(&definition.not_types)?;
        check_length(definition.senders.as_deref().unwrap_or_default())?;
        check_length(&definition.not_senders)?;
        Ok(Self {
            limit: definition.limit.map(limit_of),
            types: definition.types,
            not_types: definition.not_types,
            senders: definition.senders,
            not_senders: definition.not_senders,
            url: definition.url_filter,
            rooms: RoomSelection::new(definition.rooms, definition.not_rooms)?,
        })
    }

    /// How many events at most: what the filter says, within [`MAX_LIMIT`]. Zero is allowed:
    /// clients that want no timeline ask for it so.
    pub(crate) fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT)
    }

    /// Whether anything of the room may pass.
    pub(crate) fn allows_room(&self, room: &RoomId) -> bool {
        self.rooms.allows(room)
    }

    /// Whether nothing can pass, whatever it is.
    pub(crate) fn allows_nothing(&self) -> bool {
        self.types.as_ref().is_some_and(Vec::is_empty)
            || self.senders.as_ref().is_some_and(Vec::is_empty)
            || self.not_types.iter().any(|pattern| pattern == "*")
    }

    /// Whether an event of this type may pass; the other conditions are not asked.
    pub(crate) fn allows_type(&self, event_type: &str) -> bool {
        !self
            .not_types
            .iter()
            .any(|pattern| glob(pattern, event_type))
            && self
                .types
                .as_ref()
                .is_none_or(|types| types.iter().any(|pattern| glob(pattern, event_type)))
    }

    /// Whether the event passes.
    pub(crate) fn allows(&self, event: EventShape<'_>) -> bool {
        self.allows_type(event.event_type)
            && event.sender.is_none_or(|sender| self.allows_sender(sender))
            && self.url.is_none_or(|url| {
                let has_url = event.content.is_some_and(has_url);
                has_url == (url == UrlFilter::EventsWithUrl)
            })
    }

    /// Whether events of this sender pass; the other conditions are not asked.
    pub(crate) fn allows_sender(&self, sender: &str) -> bool {
        !self.not_senders.iter().any(|id| id == sender)
            && self
                .senders
                .as_ref()
                .is_none_or(|senders| senders.iter().any(|id| id == sender))
    }
}

fn limit_of(limit: ruma::UInt) -> usize {
    usize::try_from(u64::from(limit)).unwrap_or(MAX_LIMIT)
}

fn check_length<T>(list: &[T]) -> Result<(), FilterError> {
    if list.len() > MAX_LIST {
        return Err(FilterError::ListTooLong);
    }
    Ok(())
}

/// Whether the content has a `url` that is a string (`null` and other values are none).
fn has_url(content: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct Url {
        url: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Url>(content.get()).is_ok_and(|content| content.url.is_some())
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters, also none.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(end)
}
