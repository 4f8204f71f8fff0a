//! Resolving states: loads what [`homeserver_events::resolve`] asks for.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_events::resolve::{
    Answer, Conflict, Limits, Links, LoadedEvent, Need, Resolution, Step,
};

use crate::{
    edit::RoomEdit,
    error::RoomError,
    event::StoredEvent,
    numbers::{EventNumber, KeyNumber},
    tree::{Change, StateRoot},
};

/// The states of one resolution, and where they differ.
struct States {
    roots: Vec<StateRoot>,
    conflicted: BTreeSet<KeyNumber>,
}

impl RoomEdit<'_> {
    /// The resolution of these states. Equal states resolve to themselves.
    pub(crate) async fn resolve(&mut self, roots: &[StateRoot]) -> Result<StateRoot, RoomError> {
        let distinct: BTreeSet<_> = roots.iter().copied().collect();
        let mut distinct = distinct.into_iter();
        let (Some(first), second) = (distinct.next(), distinct.next()) else {
            return Ok(StateRoot::EMPTY);
        };
        let Some(second) = second else {
            return Ok(first);
        };
        let roots: Vec<_> = [first, second].into_iter().chain(distinct).collect();
        let (states, conflict) = self.conflict(roots).await?;
        let resolved = self.run(&states, conflict).await?;
        self.settle(first, &states.conflicted, resolved).await
    }

    /// Where the states differ: every key in which some state differs from the first.
    async fn conflict(&self, roots: Vec<StateRoot>) -> Result<(States, Conflict), RoomError> {
        let room = self.room().number;
        let mut conflicted = BTreeSet::new();
        for other in &roots[1..] {
            let pair = (roots[0], *other);
            let found = self
                .rooms
                .states
                .difference(room, &self.pending.nodes, pair)
                .await?;
            conflicted.extend(found.into_iter().map(|difference| difference.key));
        }
        let mut conflict = Conflict::new(roots.len());
        for key in &conflicted {
            let name = self.rooms.numbering.key_name(*key).await?;
            let mut values = Vec::with_capacity(roots.len());
            for root in &roots {
                let item =
                    self.rooms
                        .state_item(self.room(), &self.pending.nodes, *root, name.pair());
                values.push(item.await?.map(|item| item.event.0));
            }
            let name = (name.event_type().to_owned(), name.state_key().to_owned());
            conflict.insert(name, values);
        }
        Ok((States { roots, conflicted }, conflict))
    }

    async fn run(
        &self,
        states: &States,
        conflict: Conflict,
    ) -> Result<BTreeMap<(String, String), u64>, RoomError> {
        let room = self.room();
        let mut resolution =
            Resolution::new(room.rules, room.create.0, conflict, Limits::default());
        let mut answer = Answer::default();
        loop {
            match resolution.step(answer) {
                Step::Need(need) => answer = self.answer(states, &need).await?,
                Step::Done(resolved) => return Ok(resolved),
                Step::OverLimit(limit) => return Err(RoomError::Unresolved(format!("{limit:?}"))),
                Step::Missing(need) => {
                    return Err(RoomError::damaged(format!("resolution misses {need:?}")));
                }
            }
        }
    }

    async fn answer(&self, states: &States, need: &Need) -> Result<Answer, RoomError> {
        let mut answer = Answer::default();
        for number in &need.links {
            answer
                .links
                .push(links(&*self.event(EventNumber(*number)).await?));
        }
        for number in &need.events {
            let event = self.event(EventNumber(*number)).await?;
            answer.events.push(LoadedEvent {
                links: links(&event),
                rejected: event.status.before().is_none()
                    && event.status.kind() != homeserver_events::StatusKind::Outlier,
                event: event.pdu.clone(),
            });
        }
        for key in &need.unconflicted {
            let value = self.unconflicted(states, key).await?;
            answer.unconflicted.push((key.clone(), value));
        }
        if let Some(above) = &need.highest {
            let higher = self.higher(states, above.height).await?;
            let after = |item: &(u64, u64)| above.after.is_none_or(|after| *item < after);
            answer.highest = higher.into_iter().filter(after).take(above.limit).collect();
        }
        Ok(answer)
    }

    /// The value on which all states agree.
    async fn unconflicted(
        &self,
        states: &States,
        (event_type, state_key): &(String, String),
    ) -> Result<Option<u64>, RoomError> {
        let pair = (event_type.as_str(), state_key.as_str());
        let (nodes, root) = (&self.pending.nodes, states.roots[0]);
        let item = self
            .rooms
            .state_item(self.room(), nodes, root, pair)
            .await?;
        Ok(item
            .filter(|item| !states.conflicted.contains(&item.key))
            .map(|item| item.event.0))
    }

    /// The unconflicted state events above a height, greatest (height, number) first.
    async fn higher(&self, states: &States, height: u64) -> Result<Vec<(u64, u64)>, RoomError> {
        let (room, nodes) = (self.room().number, &self.pending.nodes);
        let items = self
            .rooms
            .states
            .above(room, nodes, states.roots[0], height)
            .await?;
        let mut heights: Vec<_> = items
            .iter()
            .filter(|item| !states.conflicted.contains(&item.key))
            .map(|item| (item.height, item.event.0))
            .collect();
        heights.sort_unstable_by(|a, b| b.cmp(a));
        Ok(heights)
    }

    /// The tree of the resolved state: the first one with the conflicted keys as resolved, and with
    /// the keys that none of the states has and that events of their auth chains bring.
    pub(crate) async fn settle(
        &mut self,
        first: StateRoot,
        conflicted: &BTreeSet<KeyNumber>,
        resolved: BTreeMap<(String, String), u64>,
    ) -> Result<StateRoot, RoomError> {
        let mut keys = conflicted.clone();
        for (event_type, state_key) in resolved.keys() {
            keys.insert(self.rooms.numbering.key(event_type, state_key).await?);
        }
        let mut changes = Vec::with_capacity(keys.len());
        for key in &keys {
            let name = self.rooms.numbering.key_name(*key).await?;
            let pair = (name.event_type().to_owned(), name.state_key().to_owned());
            let value = match resolved.get(&pair) {
                Some(number) => {
                    let event = self.event(EventNumber(*number)).await?;
                    Some((event.number, event.auth_height))
                }
                None => None,
            };
            changes.push(Change {
                hash: self.rooms.states.place(name.event_type(), name.state_key()),
                key: *key,
                value,
            });
        }
        self.change_tree(first, &changes).await
    }
}

fn links(event: &StoredEvent) -> Links {
    Links {
        number: event.number.0,
        height: event.auth_height,
        auth: event.auth.iter().map(|number| number.0).collect(),
    }
}
