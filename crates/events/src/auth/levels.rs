//! Power levels: reading `m.room.power_levels` in the syntax of a room version, with its defaults,
//! and the level that a user or an action has in a room.

use std::collections::BTreeMap;
use std::fmt;

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::value::RawValue;

use super::present;
use crate::pdu::Pdu;
use crate::rules::{CreatorRule, LevelSyntax, Rules};

/// A user's power level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PowerLevel {
    /// A number.
    Finite(i64),
    /// Higher than every number: a creator in room version 12 and later.
    Infinite,
}

impl PartialEq<i64> for PowerLevel {
    fn eq(&self, other: &i64) -> bool {
        *self == PowerLevel::Finite(*other)
    }
}

impl PartialOrd<i64> for PowerLevel {
    fn partial_cmp(&self, other: &i64) -> Option<std::cmp::Ordering> {
        self.partial_cmp(&PowerLevel::Finite(*other))
    }
}

/// A level is not written as the room version allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a power level")]
pub struct UnreadableLevel;

/// The levels that have a name of their own in the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the fields")]
pub enum LevelName {
    UsersDefault,
    EventsDefault,
    StateDefault,
    Ban,
    Redact,
    Kick,
    Invite,
}

impl LevelName {
    /// Every named level.
    pub const ALL: [LevelName; 7] = [
        LevelName::UsersDefault,
        LevelName::EventsDefault,
        LevelName::StateDefault,
        LevelName::Ban,
        LevelName::Redact,
        LevelName::Kick,
        LevelName::Invite,
    ];

    /// The level where the field is missing, or the whole event.
    pub const fn default_level(self) -> i64 {
        match self {
            LevelName::UsersDefault | LevelName::EventsDefault | LevelName::Invite => 0,
            LevelName::StateDefault | LevelName::Ban | LevelName::Redact | LevelName::Kick => 50,
        }
    }
}

/// One level as it was read.
type Reading = Result<i64, UnreadableLevel>;
/// `users`, `events` or `notifications` as it was read; an error if it is not an object.
type LevelMap = Result<BTreeMap<String, Reading>, UnreadableLevel>;

/// The content of an `m.room.power_levels` event. Reading it never fails; what is not a level is
/// an error for whoever asks for that level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerLevels {
    named: [Option<Reading>; 7],
    pub(super) users: LevelMap,
    pub(super) events: LevelMap,
    pub(super) notifications: LevelMap,
}

#[derive(Default, Deserialize)]
struct Content<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    users_default: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    events_default: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    state_default: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    ban: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    redact: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    kick: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    invite: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    users: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    events: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    notifications: Option<&'a RawValue>,
}

impl PowerLevels {
    /// Reads the content of an `m.room.power_levels` event.
    pub fn read(content: &str, rules: &Rules) -> Self {
        // An event's content always is an object, so the default is never taken for an event.
        let content: Content<'_> = serde_json::from_str(content).unwrap_or_default();
        let one = |raw: Option<&RawValue>| raw.map(|raw| read_level(raw, rules.levels));
        let map = |raw: Option<&RawValue>| read_map(raw, rules.levels);
        Self {
            named: [
                one(content.users_default),
                one(content.events_default),
                one(content.state_default),
                one(content.ban),
                one(content.redact),
                one(content.kick),
                one(content.invite),
            ],
            users: map(content.users),
            events: map(content.events),
            notifications: map(content.notifications),
        }
    }

    /// A named level as it stands there; `None` if it does not.
    pub(super) fn explicit(&self, name: LevelName) -> Result<Option<i64>, UnreadableLevel> {
        self.named[name as usize].transpose()
    }

    /// A named level, or its default.
    pub fn named(&self, name: LevelName) -> Result<i64, UnreadableLevel> {
        Ok(self.explicit(name)?.unwrap_or(name.default_level()))
    }

    /// The level that the content gives a user (creators of room version 12 and later stand above
    /// this, see [`Levels`]).
    pub fn user(&self, user: &UserId) -> Result<i64, UnreadableLevel> {
        match entry(&self.users, user.as_str())? {
            Some(level) => Ok(level),
            None => self.named(LevelName::UsersDefault),
        }
    }

    /// The level needed to send an event of this type.
    pub fn event(&self, event_type: &str, is_state: bool) -> Result<i64, UnreadableLevel> {
        match entry(&self.events, event_type)? {
            Some(level) => Ok(level),
            None if is_state => self.named(LevelName::StateDefault),
            None => self.named(LevelName::EventsDefault),
        }
    }

    /// The level needed for a notification (`room`), 50 by default.
    pub fn notification(&self, key: &str) -> Result<i64, UnreadableLevel> {
        Ok(entry(&self.notifications, key)?.unwrap_or(50))
    }

    /// The users that the content gives a level of their own, in order. Unreadable ones are left
    /// out.
    pub fn listed_users(&self) -> impl Iterator<Item = (&str, i64)> {
        let users = self.users.iter().flatten();
        users.filter_map(|(user, level)| Some((user.as_str(), (*level).ok()?)))
    }

    /// Whether every level that is there can be read: what room version 10 and later demand of a
    /// new event.
    pub(super) fn is_readable(&self) -> bool {
        let map_is = |map: &LevelMap| {
            map.as_ref()
                .is_ok_and(|map| map.values().all(Result::is_ok))
        };
        self.named.iter().flatten().all(Result::is_ok)
            && map_is(&self.users)
            && map_is(&self.events)
            && map_is(&self.notifications)
    }
}

fn entry(map: &LevelMap, key: &str) -> Result<Option<i64>, UnreadableLevel> {
    map.as_ref()
        .map_err(|error| *error)?
        .get(key)
        .copied()
        .transpose()
}

fn read_map(raw: Option<&RawValue>, syntax: LevelSyntax) -> LevelMap {
    let Some(raw) = raw else {
        return Ok(BTreeMap::new());
    };
    let map: BTreeMap<String, &RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| UnreadableLevel)?;
    Ok(map
        .into_iter()
        .map(|(key, raw)| (key, read_level(raw, syntax)))
        .collect())
}

fn read_level(raw: &RawValue, syntax: LevelSyntax) -> Reading {
    let written: Written = serde_json::from_str(raw.get()).map_err(|_| UnreadableLevel)?;
    match (written, syntax) {
        (Written::Integer(level), _) => Ok(level),
        (Written::Float(level), LevelSyntax::Historical) => Ok(level.trunc() as i64),
        (Written::Text(text), LevelSyntax::Historical) => read_text(&text),
        (Written::Float(_) | Written::Text(_), LevelSyntax::Integers) => Err(UnreadableLevel),
    }
}

/// `[white space] [+|-] digits [white space]`; numbers beyond 64 bits count as the greatest or
/// least one.
fn read_text(text: &str) -> Reading {
    let trimmed = text.trim();
    let (negative, digits) = match trimmed.as_bytes().first() {
        Some(b'-') => (true, &trimmed[1..]),
        Some(b'+') => (false, &trimmed[1..]),
        _ => (false, trimmed),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UnreadableLevel);
    }
    let size = digits.parse().unwrap_or(i64::MAX);
    Ok(if negative { -size } else { size })
}

/// A level as JSON may write it. Integers beyond 64 bits come as floats.
enum Written {
    Integer(i64),
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WrittenVisitor;
        impl Visitor<'_> for WrittenVisitor {
            type Value = Written;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an integer, a float or a string")
            }

            fn visit_i64<E: de::Error>(self, level: i64) -> Result<Written, E> {
                Ok(Written::Integer(level))
            }

            fn visit_u64<E: de::Error>(self, level: u64) -> Result<Written, E> {
                Ok(Written::Integer(i64::try_from(level).unwrap_or(i64::MAX)))
            }

            fn visit_f64<E: de::Error>(self, level: f64) -> Result<Written, E> {
                Ok(Written::Float(level))
            }

            fn visit_str<E: de::Error>(self, level: &str) -> Result<Written, E> {
                Ok(Written::Text(level.to_owned()))
            }
        }
        deserializer.deserialize_any(WrittenVisitor)
    }
}

/// The level of a creator where there is no `m.room.power_levels` event.
const CREATOR_LEVEL: i64 = 100;

/// The power levels that hold in a room: those of the event, its defaults, and the creators.
#[derive(Clone, Debug)]
pub struct Levels {
    rules: &'static Rules,
    event: Option<Pdu>,
    creators: Vec<OwnedUserId>,
}

impl Levels {
    /// From a state's create event and power levels.
    pub fn new(rules: &'static Rules, create: &Pdu, event: Option<Pdu>) -> Self {
        Self {
            rules,
            event,
            creators: creators(rules, create),
        }
    }

    /// The room's creators, in the sense of the room version.
    pub fn creators(&self) -> &[OwnedUserId] {
        &self.creators
    }

    fn content(&self) -> Option<&PowerLevels> {
        self.event.as_ref().map(Pdu::power_levels)
    }

    /// A user's level.
    pub fn user(&self, user: &UserId) -> Result<PowerLevel, UnreadableLevel> {
        let is_creator = self.creators.iter().any(|creator| creator == user);
        if is_creator && self.rules.creators == CreatorRule::SenderAndAdditional {
            return Ok(PowerLevel::Infinite);
        }
        let level = match self.content() {
            Some(levels) => levels.user(user)?,
            None if is_creator => CREATOR_LEVEL,
            None => LevelName::UsersDefault.default_level(),
        };
        Ok(PowerLevel::Finite(level))
    }

    /// A named level.
    pub fn named(&self, name: LevelName) -> Result<i64, UnreadableLevel> {
        self.content()
            .map_or(Ok(name.default_level()), |levels| levels.named(name))
    }

    /// The level needed to send an event of this type.
    pub fn event(&self, event_type: &str, is_state: bool) -> Result<i64, UnreadableLevel> {
        let default = if is_state {
            LevelName::StateDefault
        } else {
            LevelName::EventsDefault
        };
        match self.content() {
            Some(levels) => levels.event(event_type, is_state),
            None => Ok(default.default_level()),
        }
    }

    /// The level needed for a notification (`room`).
    pub fn notification(&self, key: &str) -> Result<i64, UnreadableLevel> {
        self.content()
            .map_or(Ok(50), |levels| levels.notification(key))
    }
}

/// The creators of a room. A creator that cannot be read is none.
fn creators(rules: &Rules, create: &Pdu) -> Vec<OwnedUserId> {
    #[derive(Deserialize)]
    struct Content {
        creator: OwnedUserId,
    }
    match rules.creators {
        CreatorRule::Content => create
            .content_as::<Content>()
            .map(|content| content.creator)
            .into_iter()
            .collect(),
        CreatorRule::Sender => vec![create.sender().to_owned()],
        CreatorRule::SenderAndAdditional => {
            let additional = super::additional_creators(create).unwrap_or_default();
            let additional = additional
                .iter()
                .filter_map(|user| UserId::parse(user).ok());
            std::iter::once(create.sender().to_owned())
                .chain(additional)
                .collect()
        }
    }
}
