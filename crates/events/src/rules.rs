//! What differs between room versions: one row of enums and flags per version.
//!
//! The source of each column is `content/rooms/v1.md` to `v12.md` of the specification. Code
//! elsewhere asks these columns and never compares version numbers.

use ruma::RoomVersionId;

use crate::canonical::Strictness;
use crate::limits::{MAX_CANONICAL_INTEGER, MAX_LENIENT_DEPTH};

/// A room version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum RoomVersion {
    V1,
    V2,
    V3,
    V4,
    V5,
    V6,
    V7,
    V8,
    V9,
    V10,
    V11,
    V12,
}

impl RoomVersion {
    /// Every version, oldest first.
    pub const ALL: [RoomVersion; 12] = [
        RoomVersion::V1,
        RoomVersion::V2,
        RoomVersion::V3,
        RoomVersion::V4,
        RoomVersion::V5,
        RoomVersion::V6,
        RoomVersion::V7,
        RoomVersion::V8,
        RoomVersion::V9,
        RoomVersion::V10,
        RoomVersion::V11,
        RoomVersion::V12,
    ];

    /// The version as it stands in `room_version`.
    pub const fn as_str(self) -> &'static str {
        match self {
            RoomVersion::V1 => "1",
            RoomVersion::V2 => "2",
            RoomVersion::V3 => "3",
            RoomVersion::V4 => "4",
            RoomVersion::V5 => "5",
            RoomVersion::V6 => "6",
            RoomVersion::V7 => "7",
            RoomVersion::V8 => "8",
            RoomVersion::V9 => "9",
            RoomVersion::V10 => "10",
            RoomVersion::V11 => "11",
            RoomVersion::V12 => "12",
        }
    }

    /// The version named by this string, if it is a known one.
    pub fn parse(version: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == version)
    }

    /// The rules of this version.
    pub fn rules(self) -> &'static Rules {
        match self {
            RoomVersion::V1 => &V1,
            RoomVersion::V2 => &V2,
            RoomVersion::V3 => &V3,
            RoomVersion::V4 => &V4,
            RoomVersion::V5 => &V5,
            RoomVersion::V6 => &V6,
            RoomVersion::V7 => &V7,
            RoomVersion::V8 => &V8,
            RoomVersion::V9 => &V9,
            RoomVersion::V10 => &V10,
            RoomVersion::V11 => &V11,
            RoomVersion::V12 => &V12,
        }
    }
}

/// Where an event's id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventIdFormat {
    /// `$opaque:domain`, chosen by the server, sent in the field `event_id`.
    Field,
    /// `$` and the reference hash in standard unpadded base64.
    HashStandard,
    /// `$` and the reference hash in URL-safe unpadded base64.
    HashUrlSafe,
}

/// How `prev_events` and `auth_events` name events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceShape {
    /// `[id, {"sha256": reference hash}]`.
    Pairs,
    /// The id alone.
    Ids,
}

/// Where a room's id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomIdFormat {
    /// `!opaque:domain`, chosen by the creating server.
    Domain,
    /// `!` and the rest of the create event's id. The create event itself has no `room_id`, and is
    /// implied by the room id instead of being named in `auth_events`.
    CreateEvent,
}

/// The state resolution algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateResolution {
    /// Of room version 1.
    V1,
    /// Of room versions 2 to 11.
    V2,
    /// Of room version 12.
    V2_1,
}

/// How the numbers of `m.room.power_levels` may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelSyntax {
    /// Integers, strings of integers, and where the JSON allows them floats.
    Historical,
    /// Integers only; anything else is rejected.
    Integers,
}

/// Who counts as a creator of the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreatorRule {
    /// `content.creator` of the create event, which must be there.
    Content,
    /// The sender of the create event.
    Sender,
    /// The sender and `content.additional_creators`, with an infinitely high power level.
    SenderAndAdditional,
}

/// Where a redaction event names its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedactsPlace {
    /// In the field `redacts` of the event.
    TopLevel,
    /// In `content.redacts`.
    Content,
}

/// What the redaction algorithm keeps beyond the base list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedactionRules {
    /// Top level: `origin`, `membership`, `prev_state` (versions 1 to 10).
    pub keeps_origin_membership_prev_state: bool,
    /// `m.room.aliases`: `aliases` (versions 1 to 5).
    pub keeps_aliases: bool,
    /// `m.room.join_rules`: `allow` (version 8 on).
    pub keeps_join_rules_allow: bool,
    /// `m.room.member`: `join_authorised_via_users_server` (version 9 on).
    pub keeps_member_authorised_via: bool,
    /// Version 11 on: all of `m.room.create`, `invite` of `m.room.power_levels`, `redacts` of
    /// `m.room.redaction`, `third_party_invite.signed` of `m.room.member`.
    pub keeps_version_11: bool,
}

/// The rules of one room version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The version itself.
    pub version: RoomVersion,
    /// Where event ids come from.
    pub event_id: EventIdFormat,
    /// How events name other events.
    pub references: ReferenceShape,
    /// Where the room id comes from.
    pub room_id: RoomIdFormat,
    /// How conflicting states are resolved.
    pub resolution: StateResolution,
    /// Whether a signature needs a key whose `valid_until_ts` covers the event.
    pub enforces_key_validity: bool,
    /// Whether canonical JSON is enforced.
    pub strictness: Strictness,
    /// Greatest `depth`.
    pub max_depth: u64,
    /// What a redaction keeps.
    pub redaction: RedactionRules,
    /// Where a redaction names its target.
    pub redacts: RedactsPlace,
    /// `m.room.aliases` has an authorisation rule of its own (versions 1 to 5).
    pub aliases_rule: bool,
    /// `m.room.redaction` has an authorisation rule of its own (versions 1 and 2).
    pub redaction_rule: bool,
    /// `notifications` of power levels is checked (version 6 on).
    pub checks_notification_levels: bool,
    /// Knocking exists (version 7 on).
    pub knocking: bool,
    /// The `restricted` join rule exists (version 8 on).
    pub restricted_joins: bool,
    /// The `knock_restricted` join rule exists (version 10 on).
    pub knock_restricted: bool,
    /// How power levels are written.
    pub levels: LevelSyntax,
    /// Who the creators are.
    pub creators: CreatorRule,
    /// The server in the event id must have signed too (versions 1 and 2).
    pub event_id_server_signs: bool,
}

impl Rules {
    /// The rules of this room version, if it is a known one.
    pub fn for_version(version: &RoomVersionId) -> Option<&'static Rules> {
        RoomVersion::parse(version.as_str()).map(RoomVersion::rules)
    }

    /// The version as ruma's type.
    pub fn version_id(&self) -> RoomVersionId {
        match self.version {
            RoomVersion::V1 => RoomVersionId::V1,
            RoomVersion::V2 => RoomVersionId::V2,
            RoomVersion::V3 => RoomVersionId::V3,
            RoomVersion::V4 => RoomVersionId::V4,
            RoomVersion::V5 => RoomVersionId::V5,
            RoomVersion::V6 => RoomVersionId::V6,
            RoomVersion::V7 => RoomVersionId::V7,
            RoomVersion::V8 => RoomVersionId::V8,
            RoomVersion::V9 => RoomVersionId::V9,
            RoomVersion::V10 => RoomVersionId::V10,
            RoomVersion::V11 => RoomVersionId::V11,
            RoomVersion::V12 => RoomVersionId::V12,
        }
    }

    /// Whether the create event is implied by the room id (version 12 on), and therefore must not
    /// stand in `auth_events`.
    pub fn create_is_implied(&self) -> bool {
        self.room_id == RoomIdFormat::CreateEvent
    }
}

const V1: Rules = Rules {
    version: RoomVersion::V1,
    event_id: EventIdFormat::Field,
    references: ReferenceShape::Pairs,
    room_id: RoomIdFormat::Domain,
    resolution: StateResolution::V1,
    enforces_key_validity: false,
    strictness: Strictness::Lenient,
    max_depth: MAX_LENIENT_DEPTH,
    redaction: RedactionRules {
        keeps_origin_membership_prev_state: true,
        keeps_aliases: true,
        keeps_join_rules_allow: false,
        keeps_member_authorised_via: false,
        keeps_version_11: false,
    },
    redacts: RedactsPlace::TopLevel,
    aliases_rule: true,
    redaction_rule: true,
    checks_notification_levels: false,
    knocking: false,
    restricted_joins: false,
    knock_restricted: false,
    levels: LevelSyntax::Historical,
    creators: CreatorRule::Content,
    event_id_server_signs: true,
};

const V2: Rules = Rules {
    version: RoomVersion::V2,
    resolution: StateResolution::V2,
    ..V1
};

const V3: Rules = Rules {
    version: RoomVersion::V3,
    event_id: EventIdFormat::HashStandard,
    references: ReferenceShape::Ids,
    redaction_rule: false,
    event_id_server_signs: false,
    ..V2
};

const V4: Rules = Rules {
    version: RoomVersion::V4,
    event_id: EventIdFormat::HashUrlSafe,
    ..V3
};

const V5: Rules = Rules {
    version: RoomVersion::V5,
    enforces_key_validity: true,
    ..V4
};

const V6: Rules = Rules {
    version: RoomVersion::V6,
    strictness: Strictness::Strict,
    max_depth: MAX_CANONICAL_INTEGER as u64,
    redaction: RedactionRules {
        keeps_aliases: false,
        ..V5.redaction
    },
    aliases_rule: false,
    checks_notification_levels: true,
    ..V5
};

const V7: Rules = Rules {
    version: RoomVersion::V7,
    knocking: true,
    ..V6
};

const V8: Rules = Rules {
    version: RoomVersion::V8,
    redaction: RedactionRules {
        keeps_join_rules_allow: true,
        ..V7.redaction
    },
    restricted_joins: true,
    ..V7
};

const V9: Rules = Rules {
    version: RoomVersion::V9,
    redaction: RedactionRules {
        keeps_member_authorised_via: true,
        ..V8.redaction
    },
    ..V8
};

const V10: Rules = Rules {
    version: RoomVersion::V10,
    knock_restricted: true,
    levels: LevelSyntax::Integers,
    ..V9
};

const V11: Rules = Rules {
    version: RoomVersion::V11,
    redaction: RedactionRules {
        keeps_origin_membership_prev_state: false,
        keeps_version_11: true,
        ..V10.redaction
    },
    redacts: RedactsPlace::Content,
    creators: CreatorRule::Sender,
    ..V10
};

const V12: Rules = Rules {
    version: RoomVersion::V12,
    room_id: RoomIdFormat::CreateEvent,
    resolution: StateResolution::V2_1,
    creators: CreatorRule::SenderAndAdditional,
    ..V11
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_found_by_its_name_and_names_itself() {
        for version in RoomVersion::ALL {
            let id = RoomVersionId::try_from(version.as_str()).unwrap();
            let rules = Rules::for_version(&id).unwrap();
            assert_eq!(rules.version, version);
            assert_eq!(rules.version_id(), id);
        }
        let unknown = RoomVersionId::try_from("org.example.13").unwrap();
        assert!(Rules::for_version(&unknown).is_none());
    }

    #[test]
    fn the_table_agrees_with_ruma() {
        use ruma::room_version_rules::{EventIdFormatVersion, RoomIdFormatVersion};
        for version in RoomVersion::ALL {
            let ours = version.rules();
            let theirs = ours.version_id().rules().unwrap();
            let auth = &theirs.authorization;
            assert_eq!(ours.aliases_rule, auth.special_case_room_aliases);
            assert_eq!(ours.redaction_rule, auth.special_case_room_redaction);
            assert_eq!(
                ours.checks_notification_levels,
                auth.limit_notifications_power_levels
            );
            assert_eq!(ours.knocking, auth.knocking);
            assert_eq!(ours.restricted_joins, auth.restricted_join_rule);
            assert_eq!(ours.knock_restricted, auth.knock_restricted_join_rule);
            assert_eq!(
                ours.levels == LevelSyntax::Integers,
                auth.integer_power_levels
            );
            assert_eq!(
                ours.creators != CreatorRule::Content,
                auth.use_room_create_sender
            );
            assert_eq!(
                ours.create_is_implied(),
                auth.room_create_event_id_as_room_id
            );
            assert_eq!(ours.enforces_key_validity, theirs.enforce_key_validity);
            assert_eq!(
                ours.room_id == RoomIdFormat::CreateEvent,
                matches!(theirs.room_id_format, RoomIdFormatVersion::V2)
            );
            assert_eq!(
                ours.event_id == EventIdFormat::HashUrlSafe,
                matches!(theirs.event_id_format, EventIdFormatVersion::V3)
            );
            let kept = &theirs.redaction;
            assert_eq!(ours.redaction.keeps_aliases, kept.keep_room_aliases_aliases);
            assert_eq!(
                ours.redaction.keeps_join_rules_allow,
                kept.keep_room_join_rules_allow
            );
            assert_eq!(
                ours.redaction.keeps_member_authorised_via,
                kept.keep_room_member_join_authorised_via_users_server
            );
            assert_eq!(
                ours.redaction.keeps_version_11,
                kept.keep_room_create_content
            );
        }
    }
}
