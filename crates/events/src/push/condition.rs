//! The conditions of push rules, compiled.
//!
//! Specification: Client-Server API, "Conditions" of push rules.

use std::ops::RangeBounds;

use ruma::{
    UInt, UserId,
    push::{PushCondition, RoomMemberCountIs, ScalarJsonValue},
};
use serde_json::Value;

use super::{
    event::{Path, PushEvent},
    glob::{Glob, MAX_PATTERN_CHARS, Steps},
};
use crate::{Pdu, PowerLevel, Rules, auth::Levels};

/// The level a sender needs to notify in a room without `m.room.power_levels`, and for what that
/// does not name.
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

/// Which kinds of notification the sender of an event may trigger.
#[derive(Debug, Clone)]
pub struct SenderPermission {
    /// The sender's level.
    pub sender: PowerLevel,
    /// The room's power levels event, which says what is needed.
    pub power_levels: Option<Pdu>,
}

impl SenderPermission {
    /// What `sender` may notify about in a state with these events.
    pub fn new(
        rules: &'static Rules,
        create: &Pdu,
        power_levels: Option<Pdu>,
        sender: &UserId,
    ) -> Self {
        let levels = Levels::new(rules, create, power_levels.clone());
        // A level that cannot be read permits nothing.
        let sender = levels.user(sender).unwrap_or(PowerLevel::Finite(i64::MIN));
        Self {
            sender,
            power_levels,
        }
    }

    /// Whether the sender may trigger this kind of notification, such as `room`.
    pub fn allows(&self, kind: &str) -> bool {
        let needed = match &self.power_levels {
            Some(event) => event.power_levels().notification(kind),
            None => Ok(DEFAULT_NOTIFICATION_LEVEL),
        };
        needed.is_ok_and(|needed| self.sender >= needed)
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

    /// Whether the event meets the condition, as far as `steps` allow to look.
    pub(super) fn matches(&self, event: &PushEvent, context: &Context<'_>, steps: &Steps) -> bool {
        match self {
            Self::EventMatch { path, glob } if path.is_body() => event
                .body()
                .is_some_and(|body| glob.matches_words_within(body, steps)),
            Self::EventMatch { path, glob } => event
                .at(path)
                .and_then(Value::as_str)
                .is_some_and(|value| glob.matches_whole_within(value, steps)),
            Self::PropertyIs { path, value } => event.at(path) == Some(value),
            Self::PropertyContains { path, value } => event
                .at(path)
                .and_then(Value::as_array)
                .is_some_and(|array| steps.take(array.len()) && array.contains(value)),
            Self::ContainsDisplayName => contains_display_name(event, context.display_name, steps),
            Self::MemberCount(is) => {
                UInt::new(context.member_count).is_some_and(|n| is.contains(&n))
            }
            Self::SenderMayNotify { kind } => context.permission.allows(kind),
            Self::Unknown => false,
        }
    }
}

/// A display name is text: a star in somebody's name is a star.
fn contains_display_name(event: &PushEvent, name: Option<&str>, steps: &Steps) -> bool {
    let (Some(body), Some(name)) = (event.body(), name.filter(|name| !name.is_empty())) else {
        return false;
    };
    // A name that is too long matches nothing, and must not cost the rules after it their steps.
    if name.chars().nth(MAX_PATTERN_CHARS).is_some() {
        return false;
    }
    // The name is compiled for this one event.
    steps.take(name.len()) && Glob::literal(name).matches_words_within(body, steps)
}

fn scalar(value: &ScalarJsonValue) -> Value {
    match value {
        ScalarJsonValue::Null => Value::Null,
        ScalarJsonValue::Bool(value) => (*value).into(),
        ScalarJsonValue::Integer(value) => i64::from(*value).into(),
        ScalarJsonValue::String(value) => value.as_str().into(),
    }
}
