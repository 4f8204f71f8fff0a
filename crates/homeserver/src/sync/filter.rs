//! Filters: which events and rooms a reader wants to see.
//!
//! A [`Filter`] is made once per request from ruma's [`FilterDefinition`] and then only asked. It
//! knows nothing of how events are stored: it sees an [`EventShape`].
//!
//! Specification: client-server API, "Filtering" and `POST /user/{userId}/filter`.

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

/// The properties named by a dot-separated path, in which `\.` is a dot and `\\` a backslash
/// (appendices, "Dot-separated property paths").
fn property_path(path: &str) -> Vec<String> {
    let mut properties = vec![String::new()];
    let mut characters = path.chars().peekable();
    while let Some(character) = characters.next() {
        let Some(last) = properties.last_mut() else {
            break;
        };
        match (character, characters.peek().copied()) {
            ('\\', Some(escaped @ ('.' | '\\'))) => {
                last.push(escaped);
                characters.next();
            }
            ('.', _) => properties.push(String::new()),
            (other, _) => last.push(other),
        }
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compiled(json: Value) -> Filter {
        Filter::compile(serde_json::from_value(json).unwrap()).unwrap()
    }

    fn passes(filter: &EventFilter, event_type: &str, sender: &str, content: &str) -> bool {
        let content: Box<RawValue> = serde_json::from_str(content).unwrap();
        filter.allows(EventShape {
            event_type,
            sender: Some(sender),
            content: Some(&content),
        })
    }

    #[test]
    fn an_empty_filter_lets_everything_through() {
        let filter = compiled(json!({}));
        assert!(passes(&filter.timeline, "m.room.message", "@a:b", "{}"));
        assert_eq!(filter.timeline.limit(), DEFAULT_LIMIT);
        assert_eq!(filter.lazy, LazyMembers::All);
        assert!(!filter.thread_counts);
    }

    #[test]
    fn conditions_on_type_sender_and_url() {
        // (filter, type, sender, content, passes)
        let cases = [
            (
                json!({"types": ["m.room.*"]}),
                "m.room.name",
                "@a:b",
                "{}",
                true,
            ),
            (
                json!({"types": ["m.room.*"]}),
                "m.reaction",
                "@a:b",
                "{}",
                false,
            ),
            (json!({"types": []}), "m.reaction", "@a:b", "{}", false),
            (
                json!({"types": ["*"], "not_types": ["m.*"]}),
                "m.reaction",
                "@a:b",
                "{}",
                false,
            ),
            (json!({"types": ["a.*.c"]}), "a.b.c", "@a:b", "{}", true),
            (json!({"types": ["a.*.c"]}), "a.c", "@a:b", "{}", false),
            (json!({"types": ["ab*ba"]}), "aba", "@a:b", "{}", false),
            (
                json!({"types": ["m.room.name"]}),
                "m.room.name2",
                "@a:b",
                "{}",
                false,
            ),
            (json!({"senders": ["@a:b"]}), "x", "@a:b", "{}", true),
            (json!({"senders": ["@a:b"]}), "x", "@c:b", "{}", false),
            (
                json!({"senders": ["@a:b"], "not_senders": ["@a:b"]}),
                "x",
                "@a:b",
                "{}",
                false,
            ),
            (
                json!({"contains_url": true}),
                "x",
                "@a:b",
                r#"{"url":"mxc://a/b"}"#,
                true,
            ),
            (
                json!({"contains_url": true}),
                "x",
                "@a:b",
                r#"{"body":"url"}"#,
                false,
            ),
            (
                json!({"contains_url": false}),
                "x",
                "@a:b",
                r#"{"url":"mxc://a/b"}"#,
                false,
            ),
            (json!({"contains_url": false}), "x", "@a:b", "{}", true),
        ];
        for (definition, event_type, sender, content, expected) in cases {
            let filter = compiled(json!({"room": {"timeline": definition}}));
            let found = passes(&filter.timeline, event_type, sender, content);
            assert_eq!(
                found, expected,
                "{definition} on {event_type} {sender} {content}"
            );
        }
    }

    #[test]
    fn rooms_are_chosen_before_events() {
        let filter = compiled(json!({"room": {
            "rooms": ["!a:b", "!c:b"], "not_rooms": ["!c:b"],
            "timeline": {"not_rooms": ["!a:b"]},
        }}));
        let [a, c, d] = ["!a:b", "!c:b", "!d:b"].map(|id| <&RoomId>::try_from(id).unwrap());
        assert!(filter.rooms.allows(a) && !filter.rooms.allows(c) && !filter.rooms.allows(d));
        assert!(!filter.timeline.allows_room(a) && filter.state.allows_room(a));
    }

    #[test]
    fn limits_are_capped_and_zero_stays_zero() {
        for (limit, expected) in [(0, 0), (1, 1), (100, 100), (1_000_000, MAX_LIMIT)] {
            let filter = compiled(json!({"room": {"timeline": {"limit": limit}}}));
            assert_eq!(filter.timeline.limit(), expected);
        }
    }

    #[test]
    fn lazy_loading_and_thread_counts() {
        let filter = compiled(json!({"room": {
            "state": {"lazy_load_members": true, "include_redundant_members": true},
            "timeline": {"unread_thread_notifications": true},
        }}));
        assert_eq!(filter.lazy, LazyMembers::SendersAlways);
        assert!(filter.thread_counts);
        let filter = compiled(json!({"room": {"state": {"lazy_load_members": true}}}));
        assert_eq!(filter.lazy, LazyMembers::Senders);
    }

    #[test]
    fn long_lists_are_refused() {
        let types = vec!["a"; MAX_LIST + 1];
        let definition = json!({"room": {"timeline": {"types": types}}});
        let definition = serde_json::from_value(definition).unwrap();
        assert_eq!(
            Filter::compile(definition).unwrap_err(),
            FilterError::ListTooLong
        );
    }

    #[test]
    fn property_paths_unescape_dots() {
        let cases: [(&str, &[&str]); 4] = [
            ("content.body", &["content", "body"]),
            (r"content.m\.relates_to", &["content", "m.relates_to"]),
            (r"a\\.b", &[r"a\", "b"]),
            (r"a\b", &[r"a\b"]),
        ];
        for (path, expected) in cases {
            assert_eq!(property_path(path), expected, "{path}");
        }
    }
}
