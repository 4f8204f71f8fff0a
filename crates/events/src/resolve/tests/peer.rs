//! The same resolution by `ruma-state-res`, handed everything at once.

use std::collections::{BTreeSet, HashMap};

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UInt, UserId, events::TimelineEventType,
};
use ruma_state_res::{Event, StateMap, utils::event_id_set::EventIdSet};
use serde_json::value::RawValue;

use super::super::LoadedEvent;
use super::{EventNumber, State, TestRoom};

/// An event as `ruma-state-res` takes it.
struct PeerEvent<'a> {
    id: OwnedEventId,
    loaded: &'a LoadedEvent,
    event_type: TimelineEventType,
    auth: Vec<OwnedEventId>,
}

impl<'a> PeerEvent<'a> {
    fn new(room: &TestRoom, loaded: &'a LoadedEvent) -> Self {
        let auth = loaded
            .links
            .auth
            .iter()
            .map(|auth| room.id(*auth).to_owned())
            .collect();
        Self {
            id: loaded.event.event_id().to_owned(),
            event_type: loaded.event.event_type().into(),
            loaded,
            auth,
        }
    }
}

impl Event for PeerEvent<'_> {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.id
    }

    fn room_id(&self) -> Option<&RoomId> {
        Some(self.loaded.event.room_id())
    }

    fn sender(&self) -> &UserId {
        self.loaded.event.sender()
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new(self.loaded.event.origin_server_ts()).unwrap())
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        self.loaded.event.content()
    }

    fn state_key(&self) -> Option<&str> {
        self.loaded.event.state_key()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.loaded.event.prev_events().iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.auth.iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        None
    }

    fn rejected(&self) -> bool {
        self.loaded.rejected
    }
}

/// The state that `ruma-state-res` resolves these states to.
pub(super) fn resolve(room: &TestRoom, states: &[State]) -> State {
    let rules = room.rules.version_id().rules().unwrap();
    let maps: Vec<StateMap<OwnedEventId>> =
        states.iter().map(|state| peer_map(room, state)).collect();
    let chains = states
        .iter()
        .map(|state| as_set(room, &closure(room, state.values())))
        .collect();
    let events = room.all().map(|loaded| PeerEvent::new(room, loaded));
    let events: HashMap<OwnedEventId, PeerEvent<'_>> =
        events.map(|event| (event.id.clone(), event)).collect();
    let resolved = ruma_state_res::resolve(
        &rules.authorization,
        rules.state_res.v2_rules().unwrap(),
        &maps,
        chains,
        |id| events.get(id),
        |conflicted| {
            let conflicted = conflicted
                .values()
                .flatten()
                .map(|id| room.number(id))
                .collect();
            Some(as_set(room, &subgraph(room, &conflicted)))
        },
    );
    let named = |((event_type, state_key), id): ((_, String), OwnedEventId)| {
        let event_type: ruma::events::StateEventType = event_type;
        ((event_type.to_string(), state_key), room.number(&id))
    };
    resolved.unwrap().into_iter().map(named).collect()
}

fn peer_map(room: &TestRoom, state: &State) -> StateMap<OwnedEventId> {
    let named = |((event_type, state_key), number): (&(String, String), &EventNumber)| {
        (
            (event_type.as_str().into(), state_key.clone()),
            room.id(*number).to_owned(),
        )
    };
    state.iter().map(named).collect::<HashMap<_, _>>()
}

fn as_set(room: &TestRoom, numbers: &BTreeSet<EventNumber>) -> EventIdSet<OwnedEventId> {
    numbers
        .iter()
        .map(|number| room.id(*number).to_owned())
        .collect()
}

/// These events and all that is in their auth chains.
pub(super) fn closure<'a>(
    room: &TestRoom,
    events: impl IntoIterator<Item = &'a EventNumber>,
) -> BTreeSet<EventNumber> {
    let mut open: Vec<_> = events.into_iter().copied().collect();
    let mut found = BTreeSet::new();
    while let Some(number) = open.pop() {
        if found.insert(number) {
            open.extend(&room.event(number).links.auth);
        }
    }
    found
}

/// The conflicted state subgraph, by its definition.
pub(super) fn subgraph(
    room: &TestRoom,
    conflicted: &BTreeSet<EventNumber>,
) -> BTreeSet<EventNumber> {
    let leads = |number: &EventNumber| {
        closure(room, [number])
            .iter()
            .any(|below| conflicted.contains(below))
    };
    closure(room, conflicted)
        .into_iter()
        .filter(leads)
        .collect()
}
