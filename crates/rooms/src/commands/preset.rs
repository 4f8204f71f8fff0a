//! What a new room is like before anybody asked for anything: presets and first power levels.

use std::collections::BTreeMap;

use homeserver_events::Rules;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    command::{CreateRoom, NewEvent, Preset},
    error::RoomError,
};

/// The level of the creator, and of who is trusted like one, in versions that list it.
const CREATOR_LEVEL: i64 = 100;

/// The level to replace a room, in versions whose creators stand above all levels. Higher than
/// `state_default`, as the specification asks.
const TOMBSTONE_LEVEL: i64 = 150;

/// Whether creators have no place in the power levels.
pub(super) fn creators_stand_above(rules: &Rules) -> bool {
    rules.create_is_implied()
}

impl CreateRoom {
    /// The preset asked for, or the one that follows from the visibility.
    pub(super) fn preset(&self) -> Preset {
        self.preset.unwrap_or(if self.published {
            Preset::PublicChat
        } else {
            Preset::PrivateChat
        })
    }

    /// Further creators of a room whose version knows such: those asked for, and in a trusted chat
    /// the invited users.
    pub(super) fn additional_creators(
        &self,
        rules: &Rules,
        content: &Map<String, Value>,
        sender: &UserId,
    ) -> Result<Vec<OwnedUserId>, RoomError> {
        if !creators_stand_above(rules) {
            return Ok(Vec::new());
        }
        let asked = match content.get("additional_creators") {
            None => Vec::new(),
            Some(asked) => serde_json::from_value::<Vec<OwnedUserId>>(asked.clone())
                .map_err(|_| bad("additional_creators is not a list of user ids"))?,
        };
        let trusted = self.preset() == Preset::TrustedPrivateChat;
        let invited = self.invite.iter().filter(|_| trusted).cloned();
        let mut creators: Vec<OwnedUserId> = Vec::new();
        for creator in asked.into_iter().chain(invited) {
            if creator != sender && !creators.contains(&creator) {
                creators.push(creator);
            }
        }
        Ok(creators)
    }

    /// The first power levels, with the override laid over them.
    pub(super) fn power_levels(
        &self,
        rules: &Rules,
        sender: &UserId,
        creators: &[OwnedUserId],
    ) -> Result<Value, RoomError> {
        let above = creators_stand_above(rules);
        let mut users = BTreeMap::new();
        if !above {
            users.insert(sender.to_owned(), CREATOR_LEVEL);
            if self.preset() == Preset::TrustedPrivateChat {
                users.extend(self.invite.iter().map(|user| (user.clone(), CREATOR_LEVEL)));
            }
        }
        let mut events = BTreeMap::from([
            ("m.room.name", 50),
            ("m.room.avatar", 50),
            ("m.room.canonical_alias", 50),
            ("m.room.power_levels", 100),
            ("m.room.history_visibility", 100),
            ("m.room.server_acl", 100),
            ("m.room.encryption", 100),
            ("m.room.tombstone", 100),
        ]);
        if above {
            events.insert("m.room.tombstone", TOMBSTONE_LEVEL);
        }
        let invite = match self.preset() {
            Preset::PublicChat => 50,
            Preset::PrivateChat | Preset::TrustedPrivateChat => 0,
        };
        let mut levels = json!({
            "users": users, "users_default": 0,
            "events": events, "events_default": 0, "state_default": 50,
            "ban": 50, "kick": 50, "redact": 50, "invite": invite,
            "historical": 100,
        });
        if let (Some(wanted), Some(levels)) =
            (&self.power_level_content_override, levels.as_object_mut())
        {
            levels.extend(object(wanted)?);
            if above {
                drop_creators(levels, sender, creators);
            }
        }
        Ok(levels)
    }

    /// The state that the preset sets, without what `initial_state` sets itself.
    pub(super) fn preset_state(&self) -> Vec<NewEvent> {
        let (join_rule, guests) = match self.preset() {
            Preset::PublicChat => ("public", "forbidden"),
            Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "can_join"),
        };
        let state = [
            ("m.room.join_rules", json!({ "join_rule": join_rule })),
            (
                "m.room.history_visibility",
                json!({ "history_visibility": "shared" }),
            ),
            ("m.room.guest_access", json!({ "guest_access": guests })),
        ];
        let set_itself = |kind: &str| {
            let mut initial = self.initial_state.iter();
            initial.any(|event| event.event_type == kind && event.state_key.is_empty())
        };
        state
            .iter()
            .filter(|(kind, _)| !set_itself(kind))
            .map(|(kind, content)| NewEvent::of(kind, Some(""), content))
            .collect()
    }
}

/// Clients of older habits name the creator in the override; where creators stand above all
/// levels, the rules would refuse that.
fn drop_creators(levels: &mut Map<String, Value>, sender: &UserId, creators: &[OwnedUserId]) {
    if let Some(users) = levels.get_mut("users").and_then(Value::as_object_mut) {
        users.retain(|user, _| user != sender.as_str() && creators.iter().all(|c| c != user));
    }
}

/// A JSON object that a client gave.
pub(super) fn object(json: &RawValue) -> Result<Map<String, Value>, RoomError> {
    serde_json::from_str(json.get()).map_err(|error| RoomError::BadContent(error.to_string()))
}

pub(super) fn bad(why: &str) -> RoomError {
    RoomError::BadContent(why.to_owned())
}
