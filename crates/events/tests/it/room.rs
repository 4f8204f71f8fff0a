//! A room in memory: builds events with the crate's own functions, judges them, keeps its state.

use std::collections::BTreeMap;

use homeserver_events::auth::{self, AuthEvent};
use homeserver_events::{AuthError, Draft, Pdu, RoomVersion, Rules, SigningKey};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

pub(crate) const ALICE: &str = "@alice:one.example";
pub(crate) const BOB: &str = "@bob:two.example";
pub(crate) const CAROL: &str = "@carol:one.example";
pub(crate) const DAVE: &str = "@dave:two.example";
pub(crate) const USERS: [&str; 4] = [ALICE, BOB, CAROL, DAVE];

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed("test", &[7; 32]).unwrap()
}

pub(crate) fn user(id: &str) -> &UserId {
    <&UserId>::try_from(id).unwrap()
}

#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) rules: &'static Rules,
    pub(crate) id: OwnedRoomId,
    pub(crate) state: BTreeMap<(String, String), Pdu>,
    pub(crate) events: BTreeMap<OwnedEventId, Pdu>,
    last: Pdu,
    clock: u64,
}

/// What an event is made of, besides what the room adds.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) sender: String,
    pub(crate) event_type: String,
    pub(crate) state_key: Option<String>,
    pub(crate) content: Value,
    pub(crate) redacts: Option<OwnedEventId>,
}

pub(crate) fn state(sender: &str, event_type: &str, key: &str, content: Value) -> Proposal {
    Proposal {
        state_key: Some(key.to_owned()),
        ..message(sender, event_type, content)
    }
}

pub(crate) fn message(sender: &str, event_type: &str, content: Value) -> Proposal {
    Proposal {
        sender: sender.to_owned(),
        event_type: event_type.to_owned(),
        state_key: None,
        content,
        redacts: None,
    }
}

pub(crate) fn member(sender: &str, target: &str, membership: &str) -> Proposal {
    state(
        sender,
        "m.room.member",
        target,
        json!({ "membership": membership }),
    )
}

pub(crate) fn create_content(version: RoomVersion) -> Value {
    json!({ "creator": ALICE, "room_version": version.as_str() })
}

impl Room {
    /// Only the create event, with this content.
    pub(crate) fn created(version: RoomVersion, content: &Value) -> Self {
        let rules = version.rules();
        let draft = Draft {
            room_id: (!rules.create_is_implied())
                .then(|| RoomId::parse("!room:one.example").unwrap()),
            sender: UserId::parse(ALICE).unwrap(),
            event_type: "m.room.create".to_owned(),
            state_key: Some(String::new()),
            content: to_raw_value(content).unwrap(),
            origin_server_ts: 1_000,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 1,
            redacts: None,
        };
        let create = draft
            .seal(rules, user(ALICE).server_name(), &key())
            .unwrap();
        let mut room = Self {
            rules,
            id: create.room_id().to_owned(),
            state: BTreeMap::new(),
            events: BTreeMap::new(),
            last: create.clone(),
            clock: 1_000,
        };
        room.take(create);
        room
    }

    /// A public room of Alice's, with the usual power levels.
    pub(crate) fn new(version: RoomVersion) -> Self {
        let mut room = Self::created(version, &create_content(version));
        room.must(&member(ALICE, ALICE, "join"));
        room.must(&state(
            ALICE,
            "m.room.join_rules",
            "",
            json!({ "join_rule": "public" }),
        ));
        let mut levels = json!({});
        if !room.rules.create_is_implied() {
            levels["users"] = json!({ ALICE: 100 });
        }
        room.must(&state(ALICE, "m.room.power_levels", "", levels));
        room
    }

    /// Adds an event without judging it.
    pub(crate) fn take(&mut self, event: Pdu) {
        if let Some((event_type, key)) = event.state_pair() {
            self.state
                .insert((event_type.to_owned(), key.to_owned()), event.clone());
        }
        self.events
            .insert(event.event_id().to_owned(), event.clone());
        self.last = event;
    }

    pub(crate) fn lookup(&self, event_type: &str, key: &str) -> Option<Pdu> {
        self.state
            .get(&(event_type.to_owned(), key.to_owned()))
            .cloned()
    }

    pub(crate) fn last(&self) -> &Pdu {
        &self.last
    }

    /// The auth events that the algorithm selects.
    pub(crate) fn selection(&self, proposal: &Proposal) -> Vec<Pdu> {
        auth::auth_types(
            self.rules,
            &proposal.event_type,
            user(&proposal.sender),
            proposal.state_key.as_deref(),
            &to_raw_value(&proposal.content).unwrap(),
        )
        .iter()
        .filter_map(|(event_type, key)| self.lookup(event_type, key))
        .collect()
    }

    pub(crate) fn draft(&mut self, proposal: &Proposal) -> Draft {
        self.clock += 1;
        let auth_events = self.selection(proposal);
        Draft {
            room_id: Some(self.id.clone()),
            sender: UserId::parse(proposal.sender.as_str()).unwrap(),
            event_type: proposal.event_type.clone(),
            state_key: proposal.state_key.clone(),
            content: to_raw_value(&proposal.content).unwrap(),
            origin_server_ts: self.clock,
            prev_events: vec![self.last.reference().unwrap()],
            auth_events: auth_events
                .iter()
                .map(|event| event.reference().unwrap())
                .collect(),
            depth: self.last.depth() + 1,
            redacts: proposal.redacts.clone(),
        }
    }

    pub(crate) fn build(&mut self, proposal: &Proposal) -> Pdu {
        let draft = self.draft(proposal);
        let server = draft.sender.server_name().to_owned();
        draft.seal(self.rules, &server, &key()).unwrap()
    }

    pub(crate) fn check(&self, event: &Pdu) -> Result<(), AuthError> {
        let known = |id: &EventId| self.events.get(id).cloned().map(AuthEvent::Allowed);
        auth::check_auth_events(self.rules, event, &known)?;
        auth::check(self.rules, event, &|event_type, key| {
            self.lookup(event_type, key)
        })
    }

    pub(crate) fn try_event(&mut self, proposal: &Proposal) -> Result<Pdu, AuthError> {
        let event = self.build(proposal);
        self.check(&event)?;
        self.take(event.clone());
        Ok(event)
    }

    /// The event must be allowed.
    pub(crate) fn must(&mut self, proposal: &Proposal) -> Pdu {
        match self.try_event(proposal) {
            Ok(event) => event,
            Err(error) => panic!("{proposal:?} was refused: {error}"),
        }
    }

    /// The event must be refused with this reason.
    #[track_caller]
    pub(crate) fn refused(&mut self, proposal: &Proposal, why: &str) {
        let event = self.build(proposal);
        match self.check(&event) {
            Ok(()) => panic!("version {:?} allowed {proposal:?}", self.rules.version),
            Err(error) => assert_eq!(
                error.to_string(),
                why,
                "version {:?}, {proposal:?}",
                self.rules.version
            ),
        }
    }
}
