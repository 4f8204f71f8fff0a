//! Rooms of the other server, made up: their state, and events that follow it.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use homeserver_events::{Draft, EventReference, Pdu, RoomVersion, Rules, SigningKey};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde_json::{Value, json, value::to_raw_value};

use crate::Error;

/// When the first event was made, in milliseconds since 1970.
const START: u64 = 1_700_000_000_000;

/// Makes every room differ from the others.
static ROOMS: AtomicU64 = AtomicU64::new(0);

/// A room of version 12 with members of the peer only.
pub(super) struct Generated {
    pub(super) id: OwnedRoomId,
    creator: OwnedUserId,
    /// What answers say of the state, made before it is asked for.
    told: Told,
    /// The first member's event.
    member: Option<OwnedEventId>,
    /// What an event of a member names as its auth events: power levels, join rules.
    authorising: Vec<OwnedEventId>,
    last: OwnedEventId,
    depth: u64,
}

fn rules() -> &'static Rules {
    RoomVersion::V12.rules()
}

/// Seals events of the peer's users.
struct Scribe<'a> {
    server: &'a ServerName,
    key: &'a SigningKey,
}

impl Scribe<'_> {
    fn seal(
        &self,
        room: Option<&OwnedRoomId>,
        (sender, event_type, state_key): (&OwnedUserId, &str, Option<&str>),
        content: &Value,
        (prev, auth): (Option<&OwnedEventId>, &[OwnedEventId]),
        depth: u64,
    ) -> Result<Pdu, Error> {
        let draft = Draft {
            room_id: room.cloned(),
            sender: sender.clone(),
            event_type: event_type.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            content: to_raw_value(content).map_err(|error| Error::Server(error.to_string()))?,
            origin_server_ts: START + depth,
            prev_events: prev
                .cloned()
                .map(EventReference::from)
                .into_iter()
                .collect(),
            auth_events: auth.iter().cloned().map(EventReference::from).collect(),
            depth,
            redacts: None,
        };
        let sealed = draft.seal(rules(), self.server, self.key);
        sealed.map_err(|error| Error::Server(error.to_string()))
    }
}

impl Generated {
    /// A room with so many joined members.
    pub(super) fn new(server: &str, key: &SigningKey, members: usize) -> Result<Self, Error> {
        let unusable = |error: ruma::IdParseError| Error::Server(error.to_string());
        let server = ServerName::parse(server).map_err(unusable)?;
        let scribe = Scribe {
            server: &server,
            key,
        };
        let user = |number: usize| {
            OwnedUserId::try_from(format!("@member-{number}:{server}")).map_err(unusable)
        };
        let creator = user(0)?;
        let number = ROOMS.fetch_add(1, Ordering::Relaxed);
        let content = json!({ "room_version": "12", "bench": number });
        let by_creator = |kind| (&creator, kind, Some(""));
        let create = scribe.seal(None, by_creator("m.room.create"), &content, (None, &[]), 1)?;
        let id = create.room_id().to_owned();
        let mut state = vec![create];
        let add = |who: (&OwnedUserId, &str, Option<&str>),
                   content: &Value,
                   auth: &[OwnedEventId],
                   state: &mut Vec<Pdu>|
         -> Result<OwnedEventId, Error> {
            let last = state.last().map(|event| event.event_id().to_owned());
            let depth = state.len() as u64 + 1;
            let event = scribe.seal(Some(&id), who, content, (last.as_ref(), auth), depth)?;
            let event_id = event.event_id().to_owned();
            state.push(event);
            Ok(event_id)
        };
        let joined = json!({ "membership": "join" });
        let who = (&creator, "m.room.member", Some(creator.as_str()));
        let first = add(who, &joined, &[], &mut state)?;
        let levels = json!({ "users": {}, "invite": 0 });
        let auth = [first.clone()];
        let who = by_creator("m.room.power_levels");
        let levels = add(who, &levels, &auth, &mut state)?;
        let auth = [first, levels.clone()];
        let rule = json!({ "join_rule": "public" });
        let rule = add(by_creator("m.room.join_rules"), &rule, &auth, &mut state)?;
        let seen = json!({ "history_visibility": "shared" });
        let who = by_creator("m.room.history_visibility");
        add(who, &seen, &auth, &mut state)?;
        let authorising = vec![levels, rule];
        for number in 1..members {
            let member = user(number)?;
            let who = (&member, "m.room.member", Some(member.as_str()));
            add(who, &joined, &authorising, &mut state)?;
        }
        let last = state.last().map(|event| event.event_id().to_owned());
        Ok(Self {
            depth: state.len() as u64,
            last: last.ok_or_else(|| Error::Server("a room has events".to_owned()))?,
            id,
            creator,
            told: Told::of(&server, &state),
            member: state.get(1).map(|event| event.event_id().to_owned()),
            authorising,
        })
    }

    /// The event that made the creator a member.
    pub(super) fn first_member(&self) -> Result<OwnedEventId, Error> {
        let member = self.member.clone();
        member.ok_or_else(|| Error::Server("a room has a member".to_owned()))
    }

    /// The answer to `make_join`.
    pub(super) fn join_template(&self, user: &str) -> Value {
        json!({
            "room_version": "12",
            "event": {
                "room_id": self.id,
                "sender": user,
                "state_key": user,
                "type": "m.room.member",
                "content": { "membership": "join" },
                "origin_server_ts": START + self.depth + 1,
                "depth": self.depth + 1,
                "prev_events": [self.last],
                "auth_events": self.authorising,
            },
        })
    }

    /// The answer to `send_join` with this event, in two pieces, with or without the members.
    pub(super) fn join_answer(&self, server: &str, join: &str, omit: bool) -> [Bytes; 2] {
        let head = format!("{{\"origin\":\"{server}\",\"event\":{join},");
        let told = if omit {
            &self.told.omitting
        } else {
            &self.told.whole
        };
        [head.into(), told.clone()]
    }

    /// The answer to `state` for the join event.
    pub(super) fn state_answer(&self) -> Bytes {
        self.told.before.clone()
    }

    /// A line of messages after the join event with this id, in their order.
    pub(super) fn messages(
        &self,
        server: &str,
        key: &SigningKey,
        join: &OwnedEventId,
        count: usize,
    ) -> Result<Vec<Pdu>, Error> {
        let unusable = |error: ruma::IdParseError| Error::Server(error.to_string());
        let server = ServerName::parse(server).map_err(unusable)?;
        let scribe = Scribe {
            server: &server,
            key,
        };
        let levels = self.authorising.iter().take(1).cloned();
        let auth: Vec<_> = levels.chain([self.first_member()?]).collect();
        let mut last = join.clone();
        let mut messages = Vec::with_capacity(count);
        for number in 0..count {
            let body = json!({ "msgtype": "m.text", "body": format!("message {number}") });
            let who = (&self.creator, "m.room.message", None);
            let depth = self.depth + 2 + number as u64;
            let event = scribe.seal(Some(&self.id), who, &body, (Some(&last), &auth), depth)?;
            event.event_id().clone_into(&mut last);
            messages.push(event);
        }
        Ok(messages)
    }
}

/// What answers say of the state: in the rest of the answer to a join, with members and without,
/// and before the join.
struct Told {
    whole: Bytes,
    omitting: Bytes,
    before: Bytes,
}

impl Told {
    fn of(server: &ServerName, state: &[Pdu]) -> Self {
        let few = state
            .iter()
            .filter(|event| event.event_type() != "m.room.member");
        let omitted = format!("\"members_omitted\":true,\"servers_in_room\":[\"{server}\"],");
        Self {
            whole: lists("\"members_omitted\":false,", "state", state, state.iter()),
            omitting: lists(&omitted, "state", state, few),
            before: lists("{", "pdus", state, state.iter()),
        }
    }
}

/// The auth chain, which are the first events of the state, and some of the state.
fn lists<'a>(
    before: &str,
    name: &str,
    state: &[Pdu],
    told: impl Iterator<Item = &'a Pdu> + Clone,
) -> Bytes {
    let lengths = told.clone().map(|event| event.json_str().len() + 1);
    let mut text = String::with_capacity(lengths.sum::<usize>() + 8192);
    text.push_str(before);
    text.push_str("\"auth_chain\":[");
    push_all(&mut text, state.iter().take(4));
    text.push_str("],\"");
    text.push_str(name);
    text.push_str("\":[");
    push_all(&mut text, told);
    text.push_str("]}");
    text.into()
}

fn push_all<'a>(answer: &mut String, events: impl Iterator<Item = &'a Pdu>) {
    for (index, event) in events.enumerate() {
        if index > 0 {
            answer.push(',');
        }
        answer.push_str(event.json_str());
    }
}
