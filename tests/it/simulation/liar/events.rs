//! Events as the lying server makes them.

use std::{collections::BTreeSet, sync::Arc};

use homeserver::{
    events::{
        Draft, Pdu, Rules, SigningKey, Strictness,
        canonical::{parse_object, to_string},
        sign_json,
    },
    federation::OwnKeys,
};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde_json::{Value, json, value::to_raw_value};

use super::{Known, Liar};

/// Events that one follows at most.
const MAX_PREV: usize = 10;

/// What an event is made of.
#[derive(Clone, Debug)]
pub(in super::super) struct New {
    pub(in super::super) kind: String,
    pub(in super::super) state_key: Option<String>,
    pub(in super::super) content: Value,
    pub(in super::super) prev: Vec<OwnedEventId>,
    pub(in super::super) auth: Vec<OwnedEventId>,
    pub(in super::super) depth: u64,
    pub(in super::super) time: u64,
    pub(in super::super) redacts: Option<OwnedEventId>,
}

impl New {
    /// Another content.
    pub(in super::super) fn with(self, content: Value) -> Self {
        Self { content, ..self }
    }

    /// A state event.
    pub(in super::super) fn state(self, kind: &str, state_key: &str, content: Value) -> Self {
        Self {
            kind: kind.to_owned(),
            state_key: Some(state_key.to_owned()),
            content,
            ..self
        }
    }

    /// After these events.
    pub(in super::super) fn after(self, prev: &[&Pdu]) -> Self {
        let depth = prev.iter().map(|pdu| pdu.depth()).max().unwrap_or_default() + 1;
        Self {
            prev: prev.iter().map(|pdu| pdu.event_id().to_owned()).collect(),
            depth,
            ..self
        }
    }
}

impl Known {
    /// The events that let its user speak, as they were when it joined.
    fn auth(&self) -> Vec<OwnedEventId> {
        let pairs = [("m.room.create", ""), ("m.room.power_levels", "")];
        let implied = self.rules.create_is_implied();
        let pairs = pairs.into_iter().skip(usize::from(implied));
        let named = pairs.filter_map(|(kind, key)| {
            let pair = (kind.to_owned(), key.to_owned());
            self.joined_at.get(&pair).cloned()
        });
        named.chain([self.join.clone()]).collect()
    }

    /// The event of a state at the join.
    pub(in super::super) fn at_join(&self, kind: &str, key: &str) -> OwnedEventId {
        self.joined_at[&(kind.to_owned(), key.to_owned())].clone()
    }

    /// Those of the events that nothing it knows follows.
    fn prev(&self) -> Vec<OwnedEventId> {
        self.latest.iter().take(MAX_PREV).cloned().collect()
    }
}

impl Liar {
    /// A message that is as it should be.
    pub(in super::super) fn message(&self, room: &str, text: &str) -> New {
        let time = self.now();
        let new = self.knows(room, |known| {
            let prev = known.prev();
            let depth = |id| known.events.get(id).map_or(0, Pdu::depth);
            New {
                kind: "m.room.message".to_owned(),
                state_key: None,
                content: json!({ "msgtype": "m.text", "body": text }),
                auth: known.auth(),
                depth: prev.iter().map(depth).max().unwrap_or_default() + 1,
                prev,
                time,
                redacts: None,
            }
        });
        new.expect("it has joined")
    }

    /// Its own profile in a room, changed.
    pub(in super::super) fn profile(&self, room: &str, name: &str) -> New {
        let mut new = self.message(room, "");
        let rules = self.knows(room, |known| known.at_join("m.room.join_rules", ""));
        new.auth.extend(rules);
        let content = json!({ "membership": "join", "displayname": name });
        new.state("m.room.member", self.user.as_str(), content)
    }

    /// Signs an event of its user, and knows it from then on.
    pub(in super::super) fn seal(&self, room: &str, new: New) -> Pdu {
        let event = self.draft(room, new, (&self.user, &self.name, &self.key));
        self.knows(room, |known| known.learn(&event));
        event
    }

    /// An event of somebody else's user, which it signs in the name of that user's server.
    pub(in super::super) fn forge(&self, room: &str, new: New, user: &OwnedUserId) -> Pdu {
        self.draft(room, new, (user, user.server_name(), &self.key))
    }

    /// The keys of a server that does not exist, as this one invented them, and vouches for them.
    pub(in super::super) fn vouch(&self, server: &ServerName, key: &Arc<SigningKey>) -> Value {
        let own = OwnKeys::new(server.to_owned(), Arc::clone(key), Vec::new());
        let document = own.document(self.now());
        let mut document = parse_object(document.as_bytes(), Strictness::Strict).unwrap();
        sign_json(&mut document, self.name.as_str(), &self.key);
        serde_json::from_str(&to_string(&document)).unwrap()
    }

    /// An event of anybody, signed by any key.
    pub(in super::super) fn invent(
        &self,
        room: &str,
        new: New,
        (user, key): (&OwnedUserId, &SigningKey),
    ) -> Pdu {
        let event = self.draft(room, new, (user, user.server_name(), key));
        self.keep(room, &event);
        event
    }

    /// Signs an event of its user, without following it later.
    pub(in super::super) fn aside(&self, room: &str, new: New) -> Pdu {
        let event = self.draft(room, new, (&self.user, &self.name, &self.key));
        self.keep(room, &event);
        event
    }

    /// Knows an event without following it.
    pub(in super::super) fn keep(&self, room: &str, event: &Pdu) {
        self.knows(room, |known| {
            let id = event.event_id().to_owned();
            known.events.insert(id, event.clone());
        });
    }

    fn draft(
        &self,
        room: &str,
        new: New,
        (sender, server, key): (&OwnedUserId, &ServerName, &SigningKey),
    ) -> Pdu {
        let rules = self
            .knows(room, |known| known.rules)
            .expect("it has joined");
        let prev: BTreeSet<_> = new.prev.into_iter().collect();
        let draft = Draft {
            room_id: Some(OwnedRoomId::try_from(room).unwrap()),
            sender: sender.clone(),
            event_type: new.kind,
            state_key: new.state_key,
            content: to_raw_value(&new.content).unwrap(),
            origin_server_ts: new.time,
            depth: new.depth,
            prev_events: prev.into_iter().map(Into::into).collect(),
            auth_events: new.auth.into_iter().map(Into::into).collect(),
            redacts: new.redacts,
        };
        draft.seal(rules, server, key).unwrap()
    }

    /// Signs what a template says, if it is about its user.
    pub(super) fn signed_template(&self, rules: &'static Rules, template: &Value) -> Pdu {
        let ids = |field: &str| -> Vec<OwnedEventId> {
            serde_json::from_value(template[field].clone()).unwrap()
        };
        let text = |field: &str| template[field].as_str().map(str::to_owned);
        let draft = Draft {
            room_id: text("room_id").and_then(|id| OwnedRoomId::try_from(id).ok()),
            sender: self.user.clone(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(self.user.to_string()),
            content: to_raw_value(&template["content"]).unwrap(),
            origin_server_ts: self.now(),
            depth: template["depth"].as_u64().unwrap_or(1),
            prev_events: ids("prev_events").into_iter().map(Into::into).collect(),
            auth_events: ids("auth_events").into_iter().map(Into::into).collect(),
            redacts: None,
        };
        draft.seal(rules, &self.name, &self.key).unwrap()
    }
}

/// The text of an event with some fields replaced, whatever that does to its hashes.
pub(in super::super) fn altered(event: &Pdu, fields: &[(&str, Value)]) -> String {
    let mut json: Value = serde_json::from_slice(event.json()).unwrap();
    for (field, value) in fields {
        json[*field] = value.clone();
    }
    json.to_string()
}
