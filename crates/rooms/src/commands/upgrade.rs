//! Replacing a room by one of another version, in one batch (client-server API, "Room Upgrades").

use std::sync::Arc;

use homeserver_events::rules::RoomIdFormat;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use super::{
    create::append,
    membership::{content, member_event},
    preset::creators_stand_above,
};
use crate::{
    Rooms,
    command::{CreateRoom, NewEvent, UpgradeRoom},
    edit::{Pending, RoomEdit},
    error::RoomError,
    execute::Decision,
    room::Room,
    rowchange::RowChange,
    rows::{Effect, Membership},
    tables::ALIASES,
};

/// State that the new room takes over, in this order (the specification's recommendation, and the
/// canonical alias with the aliases that move). The power levels come first, by themselves.
const TRANSFERRED: [&str; 9] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.canonical_alias",
];

impl Rooms {
    pub(super) async fn decide_upgrade(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        upgrade: &UpgradeRoom,
    ) -> Result<Decision, RoomError> {
        if !self.may_set(edit, sender, "m.room.tombstone").await? {
            return Err(RoomError::forbidden("you may not replace this room"));
        }
        let mut pending = Pending::default();
        let old = edit.room().id.clone();
        let create = CreateRoom {
            profile: upgrade.profile.clone(),
            ..CreateRoom::default()
        };
        let mut creation = self.creation_content(edit).await?;
        creation.insert("predecessor".to_owned(), json!({ "room_id": old }));
        if !upgrade.additional_creators.is_empty() {
            let creators = json!(upgrade.additional_creators);
            creation.insert("additional_creators".to_owned(), creators);
        }
        let version = &upgrade.new_version;
        let rules = homeserver_events::Rules::for_version(version);
        let rules = rules.ok_or_else(|| RoomError::UnsupportedRoomVersion(version.to_string()))?;
        let knows_id = rules.room_id == RoomIdFormat::Domain;
        let mut new;
        if knows_id {
            // The old room ends first: the create event names its tombstone.
            let id = self.random_room_id()?;
            let tombstone = self.bury(edit, sender, &id).await?;
            creation.insert(
                "predecessor".to_owned(),
                json!({ "room_id": old, "event_id": tombstone }),
            );
            new = self
                .begin_room(Some(id), (sender, version), creation, &create, &mut pending)
                .await?;
        } else {
            new = self
                .begin_room(None, (sender, version), creation, &create, &mut pending)
                .await?;
            let id = new.room().id.clone();
            self.bury(edit, sender, &id).await?;
        }
        let member = content(Membership::Join, &upgrade.profile, None);
        append(&mut new, sender, &member_event(sender, member)).await?;
        self.transfer(edit, &mut new, sender).await?;
        freeze(edit, sender).await?;
        let mut decision = Decision::from(Effect::Upgraded(new.room().id.clone()));
        decision.rows = self.moved_aliases(edit.room(), new.room()).await?;
        let listed = std::mem::take(&mut edit.delta.head.listed);
        new.delta.head.listed = listed;
        decision.beside.push(new.delta);
        Ok(decision)
    }

    /// What the new create event takes over from the old one.
    async fn creation_content(&self, edit: &RoomEdit<'_>) -> Result<Map<String, Value>, RoomError> {
        let create = edit.state("m.room.create", "").await?;
        let old: Map<String, Value> = create
            .and_then(|create| create.pdu.content_as().ok())
            .unwrap_or_default();
        let taken_over = ["type", "m.federate"];
        Ok(old
            .into_iter()
            .filter(|(key, _)| taken_over.contains(&key.as_str()))
            .collect())
    }

    /// Ends the old room. Gives the id of the tombstone.
    async fn bury(
        &self,
        edit: &mut RoomEdit<'_>,
        sender: &UserId,
        replacement: &ruma::RoomId,
    ) -> Result<ruma::OwnedEventId, RoomError> {
        let content = json!({
            "body": "This room has been replaced",
            "replacement_room": replacement,
        });
        let event = NewEvent::of("m.room.tombstone", Some(""), &content);
        let tombstone = edit.append(sender, &event, None).await?;
        Ok(tombstone.pdu.event_id().to_owned())
    }

    /// Copies state into the new room. The power levels come first, with a sender who may set all
    /// that follows, and last as they are to be: a room must not lose its rules about who may join
    /// or which servers it keeps out because its upgrade was left to a moderator.
    async fn transfer(
        &self,
        old: &RoomEdit<'_>,
        new: &mut RoomEdit<'_>,
        sender: &UserId,
    ) -> Result<(), RoomError> {
        let set = |event_type: &str, content: &Value| NewEvent::of(event_type, Some(""), content);
        let levels = self.levels_for(old, new, sender).await?;
        let raised = if creators_stand_above(new.room().rules) {
            levels.clone()
        } else {
            with_power_over_state(&levels, sender)
        };
        append(new, sender, &set("m.room.power_levels", &raised)).await?;
        for event_type in TRANSFERRED {
            if let Some(state) = old.state(event_type, "").await? {
                let event = NewEvent {
                    content: state.pdu.content().to_owned(),
                    ..set(event_type, &Value::Null)
                };
                append(new, sender, &event).await?;
            }
        }
        if raised != levels {
            append(new, sender, &set("m.room.power_levels", &levels)).await?;
        }
        Ok(())
    }

    /// The power levels of the new room: those of the old one as its version can hold them.
    async fn levels_for(
        &self,
        old: &RoomEdit<'_>,
        new: &RoomEdit<'_>,
        sender: &UserId,
    ) -> Result<Value, RoomError> {
        let rules = new.room().rules;
        let above = creators_stand_above(rules);
        let mut levels: Map<String, Value> = match old.state("m.room.power_levels", "").await? {
            Some(levels) => levels.pdu.content_as().unwrap_or_default(),
            // Whoever made the room had all power in it, and only they may do this.
            None => Map::from_iter([("users".to_owned(), json!({ sender.as_str(): 100 }))]),
        };
        let users = levels.entry("users").or_insert_with(|| json!({}));
        if let Some(users) = users.as_object_mut() {
            if above {
                let creators: Vec<OwnedUserId> = self.creators_of(new).await?;
                users.retain(|user, _| {
                    user != sender.as_str() && creators.iter().all(|c| c != user)
                });
            } else if creators_stand_above(old.room().rules) {
                users.insert(sender.to_string(), 100.into());
            }
        }
        if above {
            let state_default = levels
                .get("state_default")
                .and_then(Value::as_i64)
                .unwrap_or(50);
            let events = levels.entry("events").or_insert_with(|| json!({}));
            if let Some(events) = events.as_object_mut() {
                let tombstone = (state_default + 1).max(150);
                events.insert("m.room.tombstone".to_owned(), tombstone.into());
            }
        }
        Ok(Value::Object(levels))
    }

    /// Aliases move to the new room.
    async fn moved_aliases(
        &self,
        old: &Arc<Room>,
        new: &Arc<Room>,
    ) -> Result<Vec<RowChange>, RoomError> {
        let mut rows = Vec::new();
        for alias in self.aliases(old.number).await? {
            if let Some(row) = self.store.get(&ALIASES, &alias.as_str()).await? {
                rows.push(RowChange::MoveAlias(alias, row, new.number));
            }
        }
        Ok(rows)
    }
}

/// Power levels in which a user may set all state that an upgrade copies.
fn with_power_over_state(levels: &Value, user: &UserId) -> Value {
    // Old versions have levels that are text.
    let level = |value: &Value| match value {
        Value::String(text) => text.trim().parse().ok(),
        value => value.as_i64(),
    };
    let named = |name: &str| levels.get(name).and_then(level);
    let of_user = levels["users"].get(user.as_str()).and_then(level);
    let of_user = of_user.or_else(|| named("users_default"));
    let events = levels["events"].as_object().into_iter().flatten();
    let needed = events
        .filter(|(event_type, _)| TRANSFERRED.contains(&event_type.as_str()))
        .filter_map(|(_, needed)| level(needed))
        .chain([named("state_default").unwrap_or(50)])
        .chain(levels["events"].get("m.room.power_levels").and_then(level))
        .fold(0, i64::max);
    let mut raised = levels.clone();
    let users = raised.get_mut("users").and_then(Value::as_object_mut);
    if let (Some(users), true) = (users, of_user.unwrap_or(0) < needed) {
        users.insert(user.to_string(), needed.into());
    }
    raised
}

/// Keeps people from talking on in the old room, if the sender may: `events_default` and `invite`
/// become the greater of 50 and `users_default + 1`.
async fn freeze(edit: &mut RoomEdit<'_>, sender: &UserId) -> Result<(), RoomError> {
    let Some(levels) = edit.state("m.room.power_levels", "").await? else {
        return Ok(());
    };
    let mut content: Map<String, Value> = levels.pdu.content_as().unwrap_or_default();
    let users_default = content
        .get("users_default")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    let frozen = 50.max(users_default.saturating_add(1));
    for key in ["events_default", "invite"] {
        let now = content.get(key).and_then(Value::as_i64).unwrap_or(0);
        content.insert(key.to_owned(), now.max(frozen).into());
    }
    let event = NewEvent::of("m.room.power_levels", Some(""), &Value::Object(content));
    match edit.append(sender, &event, None).await {
        // The specification asks for it only "if possible".
        Ok(_) | Err(RoomError::Forbidden(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
