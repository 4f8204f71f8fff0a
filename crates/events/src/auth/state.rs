//! The state of a room as the rules look at it.

use ruma::UserId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::levels::Levels;
use super::{AuthError, StateLookup};
use crate::pdu::Pdu;
use crate::rules::Rules;

/// A state with what every rule needs of it already read.
pub(super) struct State<'a> {
    pub(super) rules: &'static Rules,
    lookup: StateLookup<'a>,
    create: Pdu,
    power_levels: Option<Pdu>,
    levels: Levels,
}

impl<'a> State<'a> {
    pub(super) fn new(rules: &'static Rules, lookup: StateLookup<'a>) -> Result<Self, AuthError> {
        let create = lookup("m.room.create", "")
            .ok_or(AuthError::Refused("the state has no create event"))?;
        let power_levels = lookup("m.room.power_levels", "");
        let levels = Levels::new(rules, &create, power_levels.clone());
        Ok(Self {
            rules,
            lookup,
            create,
            power_levels,
            levels,
        })
    }

    pub(super) fn create(&self) -> &Pdu {
        &self.create
    }

    pub(super) fn levels(&self) -> &Levels {
        &self.levels
    }

    pub(super) fn power_levels(&self) -> Option<&Pdu> {
        self.power_levels.as_ref()
    }

    /// The one who may join right after the create event: its first creator.
    pub(super) fn first_joiner(&self) -> Option<&UserId> {
        self.levels.creators().first().map(AsRef::as_ref)
    }

    /// Only a literal `false` keeps other servers out.
    pub(super) fn federates(&self) -> bool {
        #[derive(Deserialize)]
        struct Content<'a> {
            #[serde(borrow, rename = "m.federate")]
            federate: Option<&'a RawValue>,
        }
        let content: Option<Content<'_>> = self.create.content_as().ok();
        let federate = content.and_then(|content| content.federate);
        federate.is_none_or(|value| value.get() != "false")
    }

    pub(super) fn membership(&self, user: &UserId) -> Membership {
        let member = (self.lookup)("m.room.member", user.as_str());
        member.map_or(Membership::None, |member| Membership::of(&member))
    }

    pub(super) fn is_joined(&self, user: &UserId) -> bool {
        self.membership(user) == Membership::Join
    }

    /// The join rule; `invite` where there is none, as in a room that has not set it yet.
    pub(super) fn join_rule(&self) -> JoinRule {
        #[derive(Deserialize)]
        struct Content {
            join_rule: String,
        }
        let Some(event) = (self.lookup)("m.room.join_rules", "") else {
            return JoinRule::Invite;
        };
        match event.content_as::<Content>() {
            Ok(content) => JoinRule::parse(&content.join_rule, self.rules),
            Err(_) => JoinRule::Other,
        }
    }

    pub(super) fn third_party_invite(&self, token: &str) -> Option<Pdu> {
        (self.lookup)("m.room.third_party_invite", token)
    }
}

/// `membership` of a member event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// There is no member event.
    None,
    Join,
    Invite,
    Leave,
    Ban,
    Knock,
    /// Missing or not one of the specification's.
    Other,
}

impl Membership {
    pub(super) fn of(member: &Pdu) -> Self {
        #[derive(Deserialize)]
        struct Content {
            membership: String,
        }
        match member.content_as::<Content>() {
            Ok(content) => Self::parse(&content.membership),
            Err(_) => Membership::Other,
        }
    }

    pub(super) fn parse(membership: &str) -> Self {
        match membership {
            "join" => Membership::Join,
            "invite" => Membership::Invite,
            "leave" => Membership::Leave,
            "ban" => Membership::Ban,
            "knock" => Membership::Knock,
            _ => Membership::Other,
        }
    }
}

/// What the join rule means in a room version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinRule {
    Public,
    Invite,
    Knock,
    Restricted,
    KnockRestricted,
    /// Unknown, or not yet known in this room version: nobody may join by it.
    Other,
}

impl JoinRule {
    fn parse(join_rule: &str, rules: &Rules) -> Self {
        match join_rule {
            "public" => JoinRule::Public,
            "invite" => JoinRule::Invite,
            "knock" if rules.knocking => JoinRule::Knock,
            "restricted" if rules.restricted_joins => JoinRule::Restricted,
            "knock_restricted" if rules.knock_restricted => JoinRule::KnockRestricted,
            _ => JoinRule::Other,
        }
    }
}
