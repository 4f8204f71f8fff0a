//! The pure decision about one event of this server: choose what it builds on, seal it, and ask
//! the authorisation rules. Everything it looks at is handed in.

use std::{collections::BTreeSet, sync::Arc};

use homeserver_events::{
    CanonicalObject, CanonicalValue, Draft, EventReference, Pdu, Rules, SealError, SigningKey,
    auth, rules::EventIdFormat,
};
use ruma::{OwnedEventId, OwnedRoomId, ServerName, UserId};

use crate::{
    command::NewEvent, error::RoomError, event::StoredEvent, numbers::EventNumber, rows::Extremity,
};

/// Previous events that an event of ours names. The federation allows 20; more only costs.
pub(crate) const MAX_PREV_EVENTS: usize = 10;

/// State events that a decision looks at.
#[derive(Debug, Default)]
pub(crate) struct AuthState {
    events: Vec<Arc<StoredEvent>>,
}

impl AuthState {
    pub(crate) fn push(&mut self, event: Arc<StoredEvent>) {
        self.events.push(event);
    }

    /// All events.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Arc<StoredEvent>> {
        self.events.iter()
    }

    /// Whether it consists of exactly these events, which may be named more than once.
    pub(crate) fn is_made_of<'a>(
        &self,
        others: impl Iterator<Item = &'a Arc<StoredEvent>>,
    ) -> bool {
        let own: BTreeSet<_> = self.events.iter().map(|event| event.number).collect();
        let others: BTreeSet<_> = others.map(|event| event.number).collect();
        own == others
    }

    /// The event with this type and key, if it was handed in.
    pub(crate) fn find(&self, event_type: &str, state_key: &str) -> Option<&Arc<StoredEvent>> {
        let mut events = self.events.iter();
        events.find(|event| event.is_state(event_type, state_key))
    }

    /// The numbers of all but the create event where the room id implies that one.
    pub(crate) fn chosen<'a>(
        &'a self,
        rules: &'a Rules,
    ) -> impl Iterator<Item = &'a Arc<StoredEvent>> {
        let implied = rules.create_is_implied();
        self.events
            .iter()
            .filter(move |event| !(implied && event.pdu.event_type() == "m.room.create"))
    }

    /// The check of the authorisation rules of `pdu` in this state.
    pub(crate) fn check(&self, rules: &'static Rules, pdu: &Pdu) -> Result<(), auth::AuthError> {
        let find = |event_type: &str, state_key: &str| {
            self.find(event_type, state_key)
                .map(|event| event.pdu.clone())
        };
        auth::check(rules, pdu, &find)
    }
}

/// An event that somebody wants to send.
pub(crate) struct Proposal<'a> {
    pub(crate) rules: &'static Rules,
    /// `None` for a create event that names its room.
    pub(crate) room_id: Option<OwnedRoomId>,
    pub(crate) sender: &'a UserId,
    pub(crate) event: &'a NewEvent,
    pub(crate) redacts: Option<OwnedEventId>,
    /// Milliseconds since the epoch.
    pub(crate) now: u64,
    /// The tip it is to follow.
    pub(crate) extremities: &'a [Extremity],
    /// The state that the rules look at.
    pub(crate) state: &'a AuthState,
}

/// The event that was decided, and what it builds on.
pub(crate) struct Decided {
    pub(crate) pdu: Pdu,
    /// The extremities it follows; the rest stay extremities.
    pub(crate) follows: usize,
    pub(crate) auth: Vec<EventNumber>,
    pub(crate) auth_height: u64,
}

impl Proposal<'_> {
    /// Seals the event, if the rules allow it.
    pub(crate) fn decide(
        self,
        server_name: &ServerName,
        key: &SigningKey,
    ) -> Result<Decided, RoomError> {
        let follows = self.follows();
        let mut auth = Vec::new();
        let mut auth_height = 0;
        for event in self.state.chosen(self.rules) {
            auth.push(event.number);
            auth_height = auth_height.max(event.auth_height + 1);
        }
        let (rules, state) = (self.rules, self.state);
        let pdu = self
            .draft()?
            .seal(rules, server_name, key)
            .map_err(|why| refuse_draft(&why))?;
        state
            .check(rules, &pdu)
            .map_err(|why| RoomError::forbidden(why.to_string()))?;
        Ok(Decided {
            pdu,
            follows,
            auth,
            auth_height,
        })
    }

    /// The event as whoever sends it has to complete and sign it, if the rules allow it.
    pub(crate) fn template(self) -> Result<CanonicalObject, RoomError> {
        let (rules, state) = (self.rules, self.state);
        let template = self.draft()?.template(rules);
        let template = template.map_err(|why| refuse_draft(&why))?;
        let mut stand_in = template.clone();
        let empty = CanonicalObject::from([("sha256".to_owned(), "".into())]);
        stand_in.insert("hashes".to_owned(), CanonicalValue::Object(empty));
        stand_in.insert(
            "signatures".to_owned(),
            CanonicalValue::Object(CanonicalObject::new()),
        );
        if rules.event_id == EventIdFormat::Field {
            stand_in.insert("event_id".to_owned(), "$template:template".into());
        }
        let pdu = Pdu::of_object(&stand_in, rules)
            .map_err(|why| RoomError::BadContent(with_source(&why)))?;
        state
            .check(rules, &pdu)
            .map_err(|why| RoomError::forbidden(why.to_string()))?;
        Ok(template)
    }

    /// How many extremities the event follows.
    fn follows(&self) -> usize {
        self.extremities.len().min(MAX_PREV_EVENTS)
    }

    fn draft(self) -> Result<Draft, RoomError> {
        let prev = &self.extremities[..self.follows()];
        let mut auth_events = Vec::new();
        for event in self.state.chosen(self.rules) {
            let reference = event.pdu.reference();
            auth_events.push(reference.map_err(|e| RoomError::damaged(e.to_string()))?);
        }
        Ok(Draft {
            room_id: self.room_id,
            sender: self.sender.to_owned(),
            event_type: self.event.event_type.clone(),
            state_key: self.event.state_key.clone(),
            content: self.event.content.clone(),
            origin_server_ts: self.event.timestamp.unwrap_or(self.now),
            prev_events: prev.iter().map(reference).collect(),
            auth_events,
            depth: prev
                .iter()
                .map(|e| e.depth)
                .max()
                .map_or(1, |d| d.saturating_add(1)),
            redacts: self.redacts,
        })
    }
}

fn reference(extremity: &Extremity) -> EventReference {
    EventReference {
        event_id: extremity.id.clone(),
        reference_hash: extremity.reference_hash,
    }
}

fn refuse_draft(why: &SealError) -> RoomError {
    match why {
        SealError::TooLarge | SealError::Form(_) => RoomError::TooLarge(with_source(why)),
        _ => RoomError::BadContent(with_source(why)),
    }
}

/// An error and what caused it, in one line.
fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
