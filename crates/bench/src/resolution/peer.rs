//! The same resolution by `ruma-state-res`, which is handed everything at once.

use std::collections::{BTreeSet, HashMap};

use homeserver_events::resolve::{EventNumber, LoadedEvent};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UInt, UserId, events::TimelineEventType,
};
use ruma_state_res::{Event, StateMap, utils::event_id_set::EventIdSet};
use serde_json::value::RawValue;

use super::graph::{Graph, State};
use crate::Error;

/// An event as `ruma-state-res` takes it.
struct PeerEvent<'a> {
    id: OwnedEventId,
    loaded: &'a LoadedEvent,
    event_type: TimelineEventType,
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
        let time = UInt::new(self.loaded.event.origin_server_ts());
        MilliSecondsSinceUnixEpoch(time.unwrap_or_default())
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
        Box::new(self.loaded.event.auth_events().iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        None
    }

    fn rejected(&self) -> bool {
        self.loaded.rejected
    }
}

/// The states of a graph in the form of `ruma-state-res`.
pub(super) struct Peer<'a> {
    graph: &'a Graph,
    states: Vec<StateMap<OwnedEventId>>,
    events: HashMap<OwnedEventId, PeerEvent<'a>>,
}

/// What has to be found out about auth chains before the resolution.
pub(super) struct Chains {
    of_states: Vec<EventIdSet<OwnedEventId>>,
    subgraph: EventIdSet<OwnedEventId>,
}

impl<'a> Peer<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        let event = |loaded: &'a LoadedEvent| {
            let id = loaded.event.event_id().to_owned();
            let event = PeerEvent {
                id: id.clone(),
                loaded,
                event_type: loaded.event.event_type().into(),
            };
            (id, event)
        };
        let map = |state: &State| {
            let named = state.iter().map(|((kind, key), number)| {
                let key = (kind.as_str().into(), key.clone());
                (key, graph.id(*number).to_owned())
            });
            named.collect()
        };
        Self {
            graph,
            states: graph.states.iter().map(map).collect(),
            events: graph.all().iter().map(event).collect(),
        }
    }

    /// The sets that the resolution is handed.
    pub(super) fn chains(&self) -> Chains {
        let graph = self.graph;
        let named = |numbers: BTreeSet<EventNumber>| {
            let ids = numbers
                .into_iter()
                .map(|number| graph.id(number).to_owned());
            ids.collect()
        };
        let subgraph = if graph.rules.create_is_implied() {
            graph.subgraph(&graph.conflicted())
        } else {
            BTreeSet::new()
        };
        Chains {
            of_states: graph.chains().into_iter().map(named).collect(),
            subgraph: named(subgraph),
        }
    }

    pub(super) fn resolve(&self, chains: Chains) -> Result<StateMap<OwnedEventId>, Error> {
        let unknown = || Error::Server("a room version that ruma does not know".to_owned());
        let rules = self.graph.rules.version_id().rules().ok_or_else(unknown)?;
        let resolved = ruma_state_res::resolve(
            &rules.authorization,
            rules.state_res.v2_rules().ok_or_else(unknown)?,
            &self.states,
            chains.of_states,
            |id| self.events.get(id),
            |_| Some(chains.subgraph.clone()),
        );
        resolved.map_err(|error| Error::Server(error.to_string()))
    }

    /// Fails unless both came to the same state.
    pub(super) fn compare(
        &self,
        ours: &State,
        theirs: &StateMap<OwnedEventId>,
    ) -> Result<(), Error> {
        for ((kind, key), number) in ours {
            let id = theirs.get(&(kind.as_str().into(), key.clone()));
            if id.is_none_or(|id| id != self.graph.id(*number)) {
                let text = format!(
                    "{kind} {key}: {} here, {id:?} there",
                    self.graph.id(*number)
                );
                return Err(Error::Server(text));
            }
        }
        if ours.len() != theirs.len() {
            let text = format!("{} keys here, {} there", ours.len(), theirs.len());
            return Err(Error::Server(text));
        }
        Ok(())
    }
}
