//! The conditions of push rules, compiled.
//!
//! Specification: Client-Server API, "Conditions" of push rules.

use std::{collections::BTreeMap, ops::RangeBounds};

use ruma::{
    UInt,
    push::{PushCondition, RoomMemberCountIs, ScalarJsonValue},
};
use serde_json::Value;

use super::{
    event::{Path, PushEvent},
    glob::Glob,
};

/// The level a sender needs for a kind of notification that `m.room.power_levels` does not name.
pub const DEFAULT_NOTIFICATION_LEVEL: i64 = 50;

/// What conditions look at beside the event: the room as the reader finds it at that event.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Joined members of the room.
    pub member_count: u64,
    /// The reader's display name in the room.
    pub display_name: Option<&'a str>,
    /// What the sender may notify about.
    pub permission: &'a SenderPermission,
}

/// The power level of an event's sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SenderLevel {
    /// A level from `m.room.power_levels` or its defaults.
    Level(i64),
    /// A creator in a room version where creators stand above all levels.
    Creator,
}

/// Which kinds of notification the sender of an event may trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderPermission {
    /// The sender's level.
    pub sender: SenderLevel,
    /// `notifications` of the room's power levels: kind (`room`) to the level needed.
    pub needed: BTreeMap<String, i64>,
}

impl SenderPermission {
    /// Whether the sender may trigger this kind of notification, such as `room`.
    pub fn allows(&self, kind: &str) -> bool {
        let needed = self
            .needed
            .get(kind)
            .copied()
            .unwrap_or(DEFAULT_NOTIFICATION_LEVEL);
        self.sender >= SenderLevel::Level(needed)
    }
}

/// One condition, ready to be held against many events.
#[derive(Debug)]
pub(super) enum Condition {
    EventMatch {
        path: Path,
        glob: Glob,
    },
    PropertyIs {
        path: Path,
        value: Value,
    },
    PropertyContains {
        path: Path,
        value: Value,
    },
    ContainsDisplayName,
    MemberCount(RoomMemberCountIs),
    SenderMayNotify {
        kind: String,
    },
    /// A condition this server does not know; it matches no event.
    Unknown,
}

impl Condition {
    pub(super) fn compile(condition: &PushCondition) -> Self {
        match condition {
            PushCondition::EventMatch(data) => Self::EventMatch {
                path: Path::new(&data.key),
                glob: Glob::new(&data.pattern),
            },
            PushCondition::EventPropertyIs(data) => Self::PropertyIs {
                path: Path::new(&data.key),
                value: scalar(&data.value),
            },
            PushCondition::EventPropertyContains(data) => Self::PropertyContains {
                path: Path::new(&data.key),
                value: scalar(&data.value),
            },
            #[expect(
                deprecated,
                reason = "rules that use it are still stored and must be honoured"
            )]
            PushCondition::ContainsDisplayName => Self::ContainsDisplayName,
            PushCondition::RoomMemberCount(data) => Self::MemberCount(data.is),
            PushCondition::SenderNotificationPermission(data) => Self::SenderMayNotify {
                kind: data.key.to_string(),
            },
            _ => Self::Unknown,
        }
    }

    pub(super) fn matches(&self, event: &PushEvent, context: &Context<'_>) -> bool {
        match self {
            Self::EventMatch { path, glob } if path.is_body() => {
                event.body().is_some_and(|body| glob.matches_words_in(body))
            }
            Self::EventMatch { path, glob } => event
                .at(path)
                .and_then(Value::as_str)
                .is_some_and(|value| glob.matches_whole(value)),
            Self::PropertyIs { path, value } => event.at(path) == Some(value),
            Self::PropertyContains { path, value } => event
                .at(path)
                .and_then(Value::as_array)
                .is_some_and(|array| array.contains(value)),
            Self::ContainsDisplayName => contains_display_name(event, context.display_name),
            Self::MemberCount(is) => {
                UInt::new(context.member_count).is_some_and(|n| is.contains(&n))
            }
            Self::SenderMayNotify { kind } => context.permission.allows(kind),
            Self::Unknown => false,
        }
    }
}

/// A display name is text: a star in somebody's name is a star.
fn contains_display_name(event: &PushEvent, name: Option<&str>) -> bool {
    match (event.body(), name) {
        (Some(body), Some(name)) if !name.is_empty() => Glob::literal(name).matches_words_in(body),
        _ => false,
    }
}

fn scalar(value: &ScalarJsonValue) -> Value {
    match value {
        ScalarJsonValue::Null => Value::Null,
        ScalarJsonValue::Bool(value) => (*value).into(),
        ScalarJsonValue::Integer(value) => i64::from(*value).into(),
        ScalarJsonValue::String(value) => value.as_str().into(),
    }
}
