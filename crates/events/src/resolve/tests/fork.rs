//! Random rooms: forks on which users do what they are allowed to do.

use proptest::prelude::*;
use ruma::EventId;
use serde_json::{Value, json};

use super::{EventNumber, State, TestRoom, key, peer};
use crate::{RoomVersion, auth, resolve::judge};

/// The first creates the room, the second is a moderator.
pub(super) const USERS: [&str; 5] = [
    "@alice:a.org",
    "@bob:b.org",
    "@carol:c.org",
    "@dave:d.org",
    "@ella:e.org",
];

/// What a user tries to do on one of the forks.
#[derive(Debug, Clone)]
pub(super) struct Action {
    fork: usize,
    actor: usize,
    target: usize,
    deed: Deed,
    /// Few values, so that events often bear the same time.
    time: u64,
}

#[derive(Debug, Clone)]
enum Deed {
    Topic,
    Join,
    Leave,
    Invite,
    Kick,
    Ban,
    Level(i64),
    JoinRule(&'static str),
    StateDefault(i64),
    /// No user's deed: some event is found out to be rejected.
    Reject(usize),
    /// The fork goes on from what it and the fork of the target resolve to.
    Merge,
}

pub(super) fn actions(most: usize) -> impl Strategy<Value = Vec<Action>> {
    let deed = prop_oneof![
        3 => Just(Deed::Topic),
        2 => Just(Deed::Join),
        1 => Just(Deed::Leave),
        1 => Just(Deed::Invite),
        1 => Just(Deed::Kick),
        2 => Just(Deed::Ban),
        3 => prop::sample::select(vec![0, 50, 99, 100]).prop_map(Deed::Level),
        2 => prop::sample::select(vec!["public", "invite", "knock"]).prop_map(Deed::JoinRule),
        1 => prop::sample::select(vec![0, 50, 100]).prop_map(Deed::StateDefault),
        1 => any::<usize>().prop_map(Deed::Reject),
        1 => Just(Deed::Merge),
    ];
    // The first two users may do most, so they act most.
    let actor = prop_oneof![3 => 0..2_usize, 2 => 0..USERS.len()];
    let action = (0..3_usize, actor, 0..USERS.len(), deed, 0..4_u64).prop_map(
        |(fork, actor, target, deed, time)| Action {
            fork,
            actor,
            target,
            deed,
            time,
        },
    );
    prop::collection::vec(action, 1..=most)
}

/// A room with three forks.
pub(super) struct ForkedRoom {
    pub(super) room: TestRoom,
    pub(super) states: Vec<State>,
    create_id: String,
    sent: u64,
}

impl ForkedRoom {
    /// A public room where Bob is a moderator and everybody but Ella has joined.
    pub(super) fn new(version: RoomVersion, mask: EventNumber) -> Self {
        let mut this = Self {
            room: TestRoom::numbered(version, mask),
            states: vec![State::new()],
            create_id: String::new(),
            sent: 0,
        };
        let mut users = serde_json::Map::new();
        if !this.room.rules.create_is_implied() {
            users.insert(USERS[0].into(), 100.into());
        }
        users.insert(USERS[1].into(), 50.into());
        let create = json!({ "room_version": version.as_str(), "creator": USERS[0] });
        this.must_send(USERS[0], "m.room.create", "", &create);
        this.must_send(
            USERS[0],
            "m.room.member",
            USERS[0],
            &json!({ "membership": "join" }),
        );
        this.must_send(
            USERS[0],
            "m.room.power_levels",
            "",
            &json!({ "users": users }),
        );
        this.must_send(
            USERS[0],
            "m.room.join_rules",
            "",
            &json!({ "join_rule": "public" }),
        );
        for user in &USERS[1..4] {
            this.must_send(
                user,
                "m.room.member",
                user,
                &json!({ "membership": "join" }),
            );
        }
        this.states = vec![this.states[0].clone(); 3];
        this
    }

    fn must_send(&mut self, sender: &str, event_type: &str, state_key: &str, content: &Value) {
        assert!(self.send(0, sender, event_type, state_key, content, self.sent));
    }

    /// Sends a state event on a fork if it is allowed there.
    pub(super) fn send(
        &mut self,
        fork: usize,
        sender: &str,
        event_type: &str,
        state_key: &str,
        content: &Value,
        time: u64,
    ) -> bool {
        self.sent += 1;
        // Ids in no order that means anything.
        let scrambled = self
            .sent
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29);
        let domain = if self.room.rules.version <= RoomVersion::V2 {
            ":a.org"
        } else {
            ""
        };
        let id = format!("${scrambled:016x}{domain}");
        let mut json = json!({
            "event_id": id, "type": event_type, "state_key": state_key, "sender": sender,
            "content": content, "origin_server_ts": time, "prev_events": [], "auth_events": [],
        });
        if event_type == "m.room.create" {
            self.create_id.clone_from(&id);
        } else {
            json["prev_events"] = json!([self.create_id]);
            if self.sent > 2 {
                json["prev_events"] = json!([self.create_id, "$another"]);
            }
        }
        if !self.room.rules.create_is_implied() {
            json["room_id"] = "!room:a.org".into();
        } else if event_type != "m.room.create" {
            json["room_id"] = self.create_id.replace('$', "!").into();
        }
        json["auth_events"] = self.auth_ids(fork, &json);
        let number = self.room.add(json);
        let event = &self.room.event(number).event;
        let state = &self.states[fork];
        let fetch = |event_type: &str, state_key: &str| {
            let number = state.get(&key(event_type, state_key))?;
            Some(self.room.event(*number).event.clone())
        };
        let allowed = auth::check(self.room.rules, event, &fetch).is_ok();
        if allowed {
            self.states[fork].insert(key(event_type, state_key), number);
        }
        allowed
    }

    fn auth_ids(&self, fork: usize, json: &Value) -> Value {
        let text = |field: &str| json[field].as_str().unwrap().to_owned();
        let content = serde_json::value::to_raw_value(&json["content"]).unwrap();
        let sender = ruma::UserId::parse(text("sender")).unwrap();
        let keys = auth::auth_types(
            self.room.rules,
            &text("type"),
            &sender,
            Some(&text("state_key")),
            &content,
        );
        let numbers = keys
            .into_iter()
            .filter_map(|(kind, user)| self.states[fork].get(&key(kind, &user)));
        numbers
            .map(|number| self.room.id(*number).as_str())
            .collect::<Vec<_>>()
            .into()
    }

    /// Where there are no join rules, the peer lets nobody join, while for this crate, as for other
    /// servers, the room is invite-only then. So nobody joins a fork that lost its join rules.
    fn lacks_join_rules(&self, fork: usize) -> bool {
        !self.states[fork].contains_key(&key("m.room.join_rules", ""))
    }

    pub(super) fn act(&mut self, action: &Action) {
        let (actor, target) = (USERS[action.actor], USERS[action.target]);
        let fork = action.fork;
        let (event_type, state_key, content) = match &action.deed {
            Deed::Topic => ("m.room.topic", "", json!({ "topic": "x" })),
            Deed::Join if self.lacks_join_rules(fork) => return,
            Deed::Join => ("m.room.member", actor, json!({ "membership": "join" })),
            Deed::Leave => ("m.room.member", actor, json!({ "membership": "leave" })),
            Deed::Invite => ("m.room.member", target, json!({ "membership": "invite" })),
            Deed::Kick => ("m.room.member", target, json!({ "membership": "leave" })),
            Deed::Ban => ("m.room.member", target, json!({ "membership": "ban" })),
            Deed::JoinRule(rule) => ("m.room.join_rules", "", json!({ "join_rule": rule })),
            Deed::Level(level) => {
                let mut levels = self.levels(fork);
                levels["users"][target] = (*level).into();
                ("m.room.power_levels", "", levels)
            }
            Deed::StateDefault(level) => {
                let mut levels = self.levels(fork);
                levels["state_default"] = (*level).into();
                ("m.room.power_levels", "", levels)
            }
            Deed::Reject(choice) => return self.room.reject(*choice),
            Deed::Merge => return self.merge(fork, action.target % self.states.len()),
        };
        self.send(
            fork,
            actor,
            event_type,
            state_key,
            &content,
            100 + action.time,
        );
    }

    /// The power levels of a fork; a resolution may have left it without any.
    fn levels(&self, fork: usize) -> Value {
        let number = self.states[fork].get(&key("m.room.power_levels", ""));
        let event = number.map(|number| &self.room.event(*number).event);
        event.map_or_else(|| json!({}), |event| event.content_as().unwrap())
    }

    /// Both must agree at every merge, not only at the end.
    fn merge(&mut self, fork: usize, other: usize) {
        let states = [self.states[fork].clone(), self.states[other].clone()];
        self.states[fork] = self.check(&states);
    }

    /// Resolves and compares with the peer, where there is one.
    pub(super) fn check(&self, states: &[State]) -> State {
        let ours = self.room.resolve(states);
        if self.room.rules.version != RoomVersion::V1 {
            let theirs = peer::resolve(&self.room, states);
            assert_eq!(self.room.named(&ours), self.room.named(&theirs));
        }
        ours
    }

    pub(super) fn build(version: RoomVersion, mask: EventNumber, actions: &[Action]) -> Self {
        let mut this = Self::new(version, mask);
        for action in actions {
            this.act(action);
        }
        this
    }

    pub(super) fn id_of(&self, state: &State, event_type: &str, state_key: &str) -> &EventId {
        self.room.id(state[&key(event_type, state_key)])
    }

    /// Whether the power event test of the crate says yes; for tests of the generator.
    pub(super) fn has_power_event(&self, state: &State) -> bool {
        state
            .values()
            .any(|number| judge::is_power_event(&self.room.event(*number).event))
    }
}
