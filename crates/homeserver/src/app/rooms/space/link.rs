//! From a space to one of its children (`m.space.child`).

use std::cmp::Ordering;

use homeserver_events::Pdu;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde_json::{Value, json};

/// Characters of an `order` at most; longer ones count as none.
const MAX_ORDER: usize = 50;

/// Servers of one child that are kept.
const MAX_VIA: usize = 10;

/// A child as its parent names it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The child.
    pub(super) room: OwnedRoomId,
    /// Servers that know it; never none.
    pub(super) via: Vec<OwnedServerName>,
    /// Whether it is suggested.
    pub(super) suggested: bool,
    /// The event as it is shown.
    pub(super) shown: Value,
    order: Option<String>,
    time: u64,
}

impl Link {
    /// The link that an event makes; `None` if it names no child, or takes it away.
    pub(super) fn of(event: &Pdu) -> Option<Self> {
        let content: Value = serde_json::from_str(event.content_str()).ok()?;
        Self::read(&json!({
            "type": event.event_type(),
            "state_key": event.state_key()?,
            "sender": event.sender(),
            "origin_server_ts": event.origin_server_ts(),
            "content": content,
        }))
    }

    /// The link that a stripped event makes.
    pub(super) fn read(event: &Value) -> Option<Self> {
        let text = |name: &str| event.get(name).and_then(Value::as_str);
        if text("type") != Some("m.space.child") {
            return None;
        }
        let content = event.get("content")?;
        let via = content.get("via")?.as_array()?.iter();
        let via = via.filter_map(|name| ServerName::parse(name.as_str()?).ok());
        let via: Vec<_> = via.take(MAX_VIA).collect();
        let order = content.get("order").and_then(Value::as_str);
        let valid = |order: &&str| {
            (1..=MAX_ORDER).contains(&order.len())
                && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
        };
        let order = order.filter(valid);
        let suggested = content.get("suggested") == Some(&Value::Bool(true));
        // No more than the specification names: the rest has no bound.
        let mut content = json!({ "via": via });
        if let Some(order) = order {
            content["order"] = order.into();
        }
        if suggested {
            content["suggested"] = true.into();
        }
        let shown = json!({
            "type": "m.space.child",
            "state_key": text("state_key")?,
            "sender": text("sender")?,
            "origin_server_ts": event.get("origin_server_ts")?.as_u64()?,
            "content": content,
        });
        (!via.is_empty()).then_some(Self {
            room: RoomId::parse(text("state_key")?).ok()?,
            via,
            suggested,
            order: order.map(str::to_owned),
            time: event.get("origin_server_ts")?.as_u64()?,
            shown,
        })
    }

    /// The order of the children of a space.
    pub(super) fn order(one: &Self, other: &Self) -> Ordering {
        let by_order = match (&one.order, &other.order) {
            (Some(one), Some(other)) => one.cmp(other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        by_order
            .then(one.time.cmp(&other.time))
            .then_with(|| one.room.cmp(&other.room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(room: &str, time: u64, content: &Value) -> Option<Link> {
        Link::read(&json!({
            "type": "m.space.child", "state_key": room, "sender": "@a:b",
            "origin_server_ts": time, "content": content,
        }))
    }

    #[test]
    fn children_stand_in_the_order_of_the_specification() {
        let with = |order: &str| json!({ "via": ["b"], "order": order });
        let without = json!({ "via": ["b"] });
        let long = "a".repeat(51);
        let mut links: Vec<_> = [
            ("!late:b", 9, without.clone()),
            ("!long:b", 8, with(&long)),
            ("!odd:b", 7, with("\u{1f}")),
            ("!second:b", 6, with("b")),
            ("!space:b", 5, with(" ")),
            ("!z:b", 4, with("a")),
            ("!y:b", 4, with("a")),
            ("!early:b", 1, without),
        ]
        .iter()
        .map(|(room, time, content)| link(room, *time, content).unwrap())
        .collect();
        links.sort_by(Link::order);
        let order: Vec<_> = links.iter().map(|link| link.room.as_str()).collect();
        let wanted = [
            "!space:b",
            "!y:b",
            "!z:b",
            "!second:b",
            "!early:b",
            "!odd:b",
            "!long:b",
            "!late:b",
        ];
        assert_eq!(order, wanted);
    }

    #[test]
    fn what_names_no_child_is_no_link() {
        for content in [
            json!({}),
            json!({ "via": [] }),
            json!({ "via": "b" }),
            json!({ "via": [1] }),
        ] {
            assert!(link("!a:b", 1, &content).is_none(), "{content}");
        }
        assert!(link("a", 1, &json!({ "via": ["b"] })).is_none());
    }
}
