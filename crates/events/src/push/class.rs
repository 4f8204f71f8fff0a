//! What an event is to the counts of everybody, worked out once when it is appended.
//!
//! A user with default rules is notified by an event according to its [`Class`], unless the event
//! mentions or invites that user; so counts can be kept per class, and only the few named users
//! need rows of their own. A test holds [`classify`] against [`super::Rules`] on default rules.
//!
//! Specification: Client-Server API, "Predefined Rules", "User and room mentions", "Threading".

use std::{borrow::Cow, collections::BTreeMap};

use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{condition::SenderPermission, glob::same_but_for_case};
use crate::Pdu;

/// Mentioned users that are kept one by one; an event that mentions more is flagged instead.
pub const MAX_MENTIONED_USERS: usize = 200;

/// Relations followed upwards to find the thread an event belongs to, as the specification advises.
pub const MAX_THREAD_HOPS: usize = 3;

/// The server-default rule that picks an event for a user whom it neither mentions nor invites.
///
/// The numbers are stored: they are never reused for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Class {
    /// No default rule matches.
    Unmatched = 0,
    /// `.m.rule.suppress_notices`. Stands before mentions: nobody is notified.
    Notice = 1,
    /// `.m.rule.member_event`. The invited user is notified. Stands before mentions.
    Member = 2,
    /// `.m.rule.is_room_mention`, by a sender who may.
    RoomMention = 3,
    /// `.m.rule.tombstone`.
    Tombstone = 4,
    /// `.m.rule.reaction`.
    Reaction = 5,
    /// `.m.rule.room.server_acl`.
    ServerAcl = 6,
    /// `.m.rule.suppress_edits`.
    Edit = 7,
    /// `.m.rule.call`.
    Call = 8,
    /// `.m.rule.encrypted`, or its rule for rooms of two.
    Encrypted = 9,
    /// `.m.rule.message`, or its rule for rooms of two.
    Message = 10,
}

impl Class {
    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Unmatched,
        Self::Notice,
        Self::Member,
        Self::RoomMention,
        Self::Tombstone,
        Self::Reaction,
        Self::ServerAcl,
        Self::Edit,
        Self::Call,
        Self::Encrypted,
        Self::Message,
    ];

    /// The class with this stored number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The stored number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Whether an event of this class is a notification under default rules.
    pub fn notifies(self) -> bool {
        self.highlights() || self.is_underride()
    }

    /// Whether that notification is a highlight.
    pub fn highlights(self) -> bool {
        matches!(self, Self::RoomMention | Self::Tombstone)
    }

    /// Whether the rule is an underride rule, so that the user's content, room and sender rules
    /// decide before it.
    pub fn is_underride(self) -> bool {
        matches!(self, Self::Call | Self::Encrypted | Self::Message)
    }

    /// Whether a mention of a user in an event of this class highlights it for that user.
    pub fn mentions_count(self) -> bool {
        !matches!(self, Self::Notice | Self::Member)
    }
}

/// The users an event mentions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentions {
    /// Users in `m.mentions` whose mention counts, without the sender, each once. Any string is
    /// possible there; only valid user ids are kept. Empty when `overflow` is set.
    pub users: Vec<OwnedUserId>,
    /// More than [`MAX_MENTIONED_USERS`] are mentioned: evaluate this event for each reader.
    pub overflow: bool,
}

/// An event's `m.relates_to` with a `rel_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// `m.thread`, `m.replace`, `m.annotation`, `m.reference`, or anything else.
    pub rel_type: String,
    /// The event it relates to.
    pub event_id: OwnedEventId,
    /// `key` of an annotation.
    pub key: Option<String>,
}

/// What [`classify`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classification {
    /// The default rule that picks it.
    pub class: Class,
    /// Whom it mentions.
    pub mentions: Mentions,
    /// The user it invites: notified, not highlighted.
    pub invites: Option<OwnedUserId>,
    /// What it relates to. Its own thread root is [`thread_root`] of this.
    pub relation: Option<Relation>,
}

/// Classifies an event under the server-default rules.
pub fn classify(event: &Pdu, permission: &SenderPermission) -> Classification {
    let (sender, event_type, state_key) = (event.sender(), event.event_type(), event.state_key());
    let content = Content::parse(event.content_str());
    let class = content.class(event_type, state_key, permission);
    let invites = (class == Class::Member)
        .then(|| content.invited(state_key))
        .flatten();
    let mentions = if class.mentions_count() {
        content.mentions(sender)
    } else {
        Mentions::default()
    };
    Classification {
        class,
        mentions,
        invites: invites.filter(|user| user != sender),
        relation: content.relation(),
    }
}

/// The class of an event that has no [`Pdu`].
pub(super) fn class_of_parts(
    event_type: &str,
    state_key: Option<&str>,
    content: &str,
    permission: &SenderPermission,
) -> Class {
    Content::parse(content).class(event_type, state_key, permission)
}

/// The root of the thread an event with this relation belongs to, `None` for the main timeline.
///
/// `relation_of` gives the relation of another event of the room; it is asked at most
/// [`MAX_THREAD_HOPS`] times.
pub fn thread_root(
    relation: Option<&Relation>,
    mut relation_of: impl FnMut(&EventId) -> Option<Relation>,
) -> Option<OwnedEventId> {
    let mut current = relation.cloned()?;
    for _ in 0..MAX_THREAD_HOPS {
        if current.rel_type == "m.thread" {
            break;
        }
        current = relation_of(&current.event_id)?;
    }
    (current.rel_type == "m.thread").then_some(current.event_id)
}

/// A content whose values are parsed only when asked for. A repeated key counts as its last.
struct Content<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Content<'a> {
    fn parse(content: &'a str) -> Self {
        Self(serde_json::from_str(content).unwrap_or_default())
    }

    fn value(&self, key: &str) -> Option<Value> {
        serde_json::from_str(self.0.get(key)?.get()).ok()
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The class of an event, in the order of the rules.
    fn class(
        &self,
        event_type: &str,
        state_key: Option<&str>,
        permission: &SenderPermission,
    ) -> Class {
        let is_type = |name| same(event_type, name);
        let is_state = |name| is_type(name) && state_key == Some("");
        let relates =
            || Some(self.value("m.relates_to")?.get("rel_type")?.as_str()? == "m.replace");
        let is_notice = || self.text("msgtype").is_some_and(|it| same(&it, "m.notice"));
        if is_notice() {
            Class::Notice
        } else if is_type("m.room.member") {
            Class::Member
        } else if self.mentions_room() && permission.allows("room") {
            Class::RoomMention
        } else if is_state("m.room.tombstone") {
            Class::Tombstone
        } else if is_type("m.reaction") {
            Class::Reaction
        } else if is_state("m.room.server_acl") {
            Class::ServerAcl
        } else if relates() == Some(true) {
            Class::Edit
        } else if is_type("m.call.invite") {
            Class::Call
        } else if is_type("m.room.encrypted") {
            Class::Encrypted
        } else if is_type("m.room.message") {
            Class::Message
        } else {
            Class::Unmatched
        }
    }

    fn mentions_room(&self) -> bool {
        self.value("m.mentions")
            .is_some_and(|mentions| mentions.get("room") == Some(&true.into()))
    }

    fn mentions(&self, sender: &UserId) -> Mentions {
        let Some(mentions) = self.value("m.mentions") else {
            return Mentions::default();
        };
        let named = mentions
            .get("user_ids")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let mut users: Vec<OwnedUserId> = named
            .filter_map(|user| UserId::parse(user.as_str()?).ok())
            .filter(|user| user != sender)
            .collect();
        users.sort();
        users.dedup();
        if users.len() > MAX_MENTIONED_USERS {
            return Mentions {
                users: Vec::new(),
                overflow: true,
            };
        }
        Mentions {
            users,
            overflow: false,
        }
    }

    fn invited(&self, state_key: Option<&str>) -> Option<OwnedUserId> {
        let is_invite = same(&self.text("membership")?, "invite");
        is_invite.then(|| UserId::parse(state_key?).ok()).flatten()
    }

    fn relation(&self) -> Option<Relation> {
        let relates_to = self.value("m.relates_to")?;
        let text = |key| relates_to.get(key).and_then(Value::as_str);
        Some(Relation {
            rel_type: text("rel_type")?.to_owned(),
            event_id: EventId::parse(text("event_id")?).ok()?,
            key: text("key").map(ToOwned::to_owned),
        })
    }
}

/// `event_match` without wildcards: equal but for case.
fn same(value: &str, wanted: &str) -> bool {
    value == wanted || same_but_for_case(value, wanted)
}
