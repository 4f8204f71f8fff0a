//! What a room tells of itself to those who may know that it is there: directory entries, room
//! summaries. Whether somebody may know is the caller's decision; nothing but what is listed here
//! can be learnt.
//!
//! Specification: client-server API, "Published room directory", "Room summary".

use std::sync::Arc;

use homeserver_events::Pdu;
use homeserver_storage::Position;
use ruma::{OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId};
use serde_json::Value;

use crate::{Rooms, error::RoomError, room::Room, tree::StateRoot};

/// A room, described from its state. Absent and malformed state are the same here.
#[derive(Clone, Debug)]
pub struct Description {
    /// The room.
    pub room: Arc<Room>,
    /// `m.room.name`.
    pub name: Option<String>,
    /// The plain text of `m.room.topic`.
    pub topic: Option<String>,
    /// The `url` of `m.room.avatar`.
    pub avatar_url: Option<String>,
    /// The `alias` of `m.room.canonical_alias`.
    pub canonical_alias: Option<OwnedRoomAliasId>,
    /// The `type` of `m.room.create`.
    pub room_type: Option<String>,
    /// `join_rule`; `invite` when absent, which is what the authorisation rules make of it.
    pub join_rule: String,
    /// The rooms whose members may join, of a restricted room.
    pub allowed_rooms: Vec<OwnedRoomId>,
    /// Whether anybody may read it without joining.
    pub world_readable: bool,
    /// Whether guests may join.
    pub guest_can_join: bool,
    /// The algorithm of `m.room.encryption`.
    pub encryption: Option<String>,
    /// Joined users.
    pub joined: u64,
}

impl Rooms {
    /// Describes a room as it was at a position, at most the durable one.
    pub async fn description(
        &self,
        room: &Arc<Room>,
        at: Position,
    ) -> Result<Description, RoomError> {
        let log = self.state_at(room.number, at).await?;
        let join_rules = self.content(room, log.root, "m.room.join_rules").await?;
        let topic = self.content(room, log.root, "m.room.topic").await?;
        let alias = self
            .text(room, log.root, "m.room.canonical_alias", "alias")
            .await?;
        let join_rule = join_rules.get("join_rule").and_then(Value::as_str);
        let visibility = self
            .text(
                room,
                log.root,
                "m.room.history_visibility",
                "history_visibility",
            )
            .await?;
        let guests = self
            .text(room, log.root, "m.room.guest_access", "guest_access")
            .await?;
        Ok(Description {
            room: Arc::clone(room),
            name: self.text(room, log.root, "m.room.name", "name").await?,
            topic: plain_topic(&topic),
            avatar_url: self.text(room, log.root, "m.room.avatar", "url").await?,
            canonical_alias: alias.and_then(|alias| RoomAliasId::parse(alias).ok()),
            room_type: self.text(room, log.root, "m.room.create", "type").await?,
            join_rule: join_rule.unwrap_or("invite").to_owned(),
            allowed_rooms: allowed_rooms(&join_rules),
            world_readable: visibility.as_deref() == Some("world_readable"),
            guest_can_join: guests.as_deref() == Some("can_join"),
            encryption: self
                .text(room, log.root, "m.room.encryption", "algorithm")
                .await?,
            joined: log.joined,
        })
    }

    /// The `m.space.child` events of a room at a position, in no order, at most `limit`.
    pub async fn space_children(
        &self,
        room: &Arc<Room>,
        at: Position,
        limit: usize,
    ) -> Result<Vec<Pdu>, RoomError> {
        let root = self.state_at(room.number, at).await?.root;
        let children = self
            .some_of_type(room, root, "m.space.child", limit)
            .await?;
        let numbers: Vec<_> = children.into_iter().map(|(_, number)| number).collect();
        let events = self.events.load_all(room, &numbers).await?;
        Ok(events.iter().map(|event| event.pdu.clone()).collect())
    }

    /// A text in a state event with an empty key; an empty text is none.
    async fn text(
        &self,
        room: &Room,
        root: StateRoot,
        event_type: &str,
        field: &str,
    ) -> Result<Option<String>, RoomError> {
        let content = self.content(room, root, event_type).await?;
        let text = content.get(field).and_then(Value::as_str);
        Ok(text.filter(|text| !text.is_empty()).map(str::to_owned))
    }

    /// The content of a state event with an empty key; `null` when there is none.
    async fn content(
        &self,
        room: &Room,
        root: StateRoot,
        event_type: &str,
    ) -> Result<Value, RoomError> {
        let event = self.state_event(room, root, event_type, "").await?;
        let content = event.and_then(|event| serde_json::from_str(event.pdu.content().get()).ok());
        Ok(content.unwrap_or(Value::Null))
    }
}

/// The plain text among the representations of a topic, else the older `topic` field.
fn plain_topic(content: &Value) -> Option<String> {
    let representations = content.get("m.topic").and_then(|topic| topic.get("m.text"));
    let representations = representations.and_then(Value::as_array);
    let plain = representations.and_then(|all| {
        all.iter().find(|one| {
            let mimetype = one.get("mimetype").and_then(Value::as_str);
            mimetype.is_none_or(|mimetype| mimetype == "text/plain")
        })
    });
    let text = plain.and_then(|plain| plain.get("body"));
    let text = text
        .or_else(|| content.get("topic"))
        .and_then(Value::as_str)?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// The rooms named by the conditions of a restricted join rule.
fn allowed_rooms(join_rules: &Value) -> Vec<OwnedRoomId> {
    let rule = join_rules.get("join_rule").and_then(Value::as_str);
    if !matches!(rule, Some("restricted" | "knock_restricted")) {
        return Vec::new();
    }
    let conditions = join_rules.get("allow").and_then(Value::as_array);
    let conditions = conditions.into_iter().flatten();
    let member_of = conditions.filter(|condition| {
        condition.get("type").and_then(Value::as_str) == Some("m.room_membership")
    });
    member_of
        .filter_map(|condition| RoomId::parse(condition.get("room_id")?.as_str()?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_plain_text_of_a_topic_is_found() {
        let cases = [
            (json!({}), None),
            (json!({"topic": ""}), None),
            (json!({"topic": "old"}), Some("old")),
            (
                json!({"topic": "old", "m.topic": {"m.text": [{"body": "new"}]}}),
                Some("new"),
            ),
            (
                json!({"m.topic": {"m.text": [
                    {"mimetype": "text/html", "body": "<b>new</b>"},
                    {"mimetype": "text/plain", "body": "new"},
                ]}}),
                Some("new"),
            ),
            (
                json!({"m.topic": {"m.text": [{"mimetype": "text/html", "body": "b"}]}}),
                None,
            ),
            (json!({"topic": 1}), None),
        ];
        for (content, topic) in cases {
            assert_eq!(plain_topic(&content).as_deref(), topic, "{content}");
        }
    }

    #[test]
    fn only_restricted_rooms_name_allowed_rooms() {
        let allow = json!([
            {"type": "m.room_membership", "room_id": "!a:b"},
            {"type": "other", "room_id": "!c:b"},
            {"type": "m.room_membership", "room_id": "c"},
            {"type": "m.room_membership"},
        ]);
        let named = |rule: &str| allowed_rooms(&json!({"join_rule": rule, "allow": allow})).len();
        assert_eq!(named("restricted"), 1);
        assert_eq!(named("knock_restricted"), 1);
        assert_eq!(named("invite"), 0);
        assert_eq!(
            allowed_rooms(&json!({"join_rule": "restricted", "allow": 3})).len(),
            0
        );
    }
}
