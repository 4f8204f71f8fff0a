//! Resolving states: loads what [`homeserver_events::resolve`] asks for.
//!
//! A resolution may take long, so it is done before the tip of the room is taken, one at a time for
//! each room, and is kept: while a fork is open, every event resolves the same states again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use homeserver_events::resolve::{
    Ahead, Answer, Conflict, Limit, Limits, Links, LoadedEvent, Need, Resolution, Step,
};

use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::{EventId, OwnedEventId};

use crate::{
    Rooms,
    edit::{Pending, RoomEdit},
    error::RoomError,
    event::StoredEvent,
    live::LiveRoom,
    numbers::{EventNumber, KeyNumber, RoomNumber},
    room::Room,
    tree::{Change, SealedNode, StateRoot},
};

/// Bytes of resolutions that are kept.
const KEPT_BYTES: u64 = 16 * 1024 * 1024;

/// Resolutions that are kept, about.
const KEPT: usize = 1024;

/// Resolutions over their limits that are remembered.
const OVER_LIMIT: usize = 1024;

/// For so long a resolution that was over its limits is not tried again, in milliseconds: each
/// event on such a fork would cost all that the limits allow.
pub(crate) const OVER_LIMIT_LIFETIME: u64 = 10 * 60 * 1000;

/// Looks that may all find what they want in memory; then other tasks have their turn.
const LOOKS_AT_ONCE: usize = 256;

/// Rooms share a count of what made their resolutions untrue with those of the same number modulo
/// this.
const COUNTS: usize = 64;

/// Different states, in order.
pub(crate) type Roots = Vec<StateRoot>;

/// What states were resolved to, with the nodes of the new tree: who uses it writes them.
#[derive(Debug)]
pub(crate) struct Resolved {
    root: StateRoot,
    nodes: Vec<SealedNode>,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<(RoomNumber, Roots), Arc<Resolved>> for Weigh {
    fn weight(&self, (_, roots): &(RoomNumber, Roots), resolved: &Arc<Resolved>) -> u64 {
        let nodes = resolved.nodes.iter();
        let nodes: usize = nodes.map(|node| node.encoded.len() + 700).sum();
        (nodes + roots.len() * 32 + 100) as u64
    }
}

/// Resolutions of late. Equal states resolve to the same one until an event that was looked at
/// changes: it is redacted, or one that an import brought is rejected.
pub(crate) struct Resolutions {
    kept: Cache<(RoomNumber, Roots), Arc<Resolved>, Weigh>,
    /// The limits that resolutions of late were over, and when that was.
    over_limit: Cache<(RoomNumber, Roots), (Limit, u64)>,
    /// The events for which they were made: each time one comes it would bring another state.
    given_up: Cache<(RoomNumber, OwnedEventId), (String, u64)>,
    /// Counts such changes, so that a resolution that began before one is not kept after it.
    changes: Mutex<[u64; COUNTS]>,
    /// What one resolution may use.
    pub(crate) limits: Mutex<Limits>,
    #[cfg(test)]
    pub(crate) asked: std::sync::atomic::AtomicUsize,
    #[cfg(test)]
    pub(crate) made: std::sync::atomic::AtomicUsize,
}

impl Resolutions {
    pub(crate) fn new() -> Self {
        Self {
            kept: Cache::with_weighter(KEPT, KEPT_BYTES, Weigh),
            over_limit: Cache::new(OVER_LIMIT),
            given_up: Cache::new(OVER_LIMIT),
            changes: Mutex::new([0; COUNTS]),
            limits: Mutex::new(Limits::default()),
            #[cfg(test)]
            asked: std::sync::atomic::AtomicUsize::new(0),
            #[cfg(test)]
            made: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    /// How often what resolutions of this room look at has changed. To be asked before one begins.
    fn changes(&self, room: RoomNumber) -> u64 {
        self.changes.lock()[count_of(room)]
    }

    /// Keeps a resolution, unless what it looked at may have changed in the meantime.
    fn keep(&self, changes: u64, key: (RoomNumber, Roots), resolved: &Arc<Resolved>) {
        let now = self.changes.lock();
        if now[count_of(key.0)] == changes {
            self.kept.insert(key, Arc::clone(resolved));
        }
    }

    /// Forgets the resolutions of a room: what they looked at has changed.
    pub(crate) fn forget(&self, room: RoomNumber) {
        let mut changes = self.changes.lock();
        changes[count_of(room)] += 1;
        self.kept.retain(|(of, _), _| *of != room);
        self.over_limit.retain(|(of, _), _| *of != room);
        self.given_up.retain(|(of, _), _| *of != room);
    }

    /// Remembers that an event could not be judged for a resolution over its limits.
    pub(crate) fn give_up(&self, room: RoomNumber, event: &EventId, limit: &str, now: u64) {
        let key = (room, event.to_owned());
        self.given_up.insert(key, (limit.to_owned(), now));
    }

    /// The limit for which an event could not be judged of late.
    pub(crate) fn gave_up(&self, room: RoomNumber, event: &EventId, now: u64) -> Option<String> {
        if self.given_up.is_empty() {
            return None;
        }
        let (limit, at) = self.given_up.get(&(room, event.to_owned()))?;
        (now < at + OVER_LIMIT_LIFETIME).then_some(limit)
    }
}

fn count_of(room: RoomNumber) -> usize {
    usize::try_from(room.0 % COUNTS as u64).unwrap_or(0)
}

/// A resolution with the count of changes before it began.
#[derive(Clone)]
pub(crate) struct Counted {
    resolved: Arc<Resolved>,
    changes: u64,
}

/// What was found out before the tip is taken.
#[derive(Default)]
pub(crate) struct Prepared {
    resolved: HashMap<Roots, Counted>,
    /// The room changes so often that what is prepared never fits: resolve while the tip is held.
    pub(crate) in_place: bool,
}

impl Prepared {
    /// Nothing was found out: what is needed is resolved while the tip is held.
    pub(crate) fn in_place() -> Self {
        Self {
            in_place: true,
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, roots: Roots, resolved: Counted) {
        self.resolved.insert(roots, resolved);
    }
}

impl Rooms {
    /// Resolves states while nobody holds the tip. `pending` has what is not on disk of them.
    pub(crate) async fn prepare_resolution(
        &self,
        room: &Arc<Room>,
        live: &LiveRoom,
        roots: &Roots,
        mut pending: Pending,
    ) -> Result<Counted, RoomError> {
        #[cfg(test)]
        self.resolutions
            .asked
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _turn = live.resolving.lock().await;
        let changes = self.resolutions.changes(room.number);
        let key = (room.number, roots.clone());
        if let Some(resolved) = self.resolutions.kept.get(&key) {
            return Ok(Counted { resolved, changes });
        }
        let mut edit = RoomEdit::new(self, Arc::clone(room), None, &mut pending);
        let resolved = edit.resolve(roots.clone()).await?;
        Ok(Counted { resolved, changes })
    }
}

/// The states of one resolution, and where they differ.
struct States {
    roots: Vec<StateRoot>,
    conflicted: BTreeSet<KeyNumber>,
    /// The events that some states have under these keys.
    disputed: HashSet<EventNumber>,
}

impl RoomEdit<'_> {
    /// The resolution of these states, if it is at hand; otherwise, what has to be resolved. Equal
    /// states resolve to themselves.
    pub(crate) async fn resolved(
        &mut self,
        roots: impl Iterator<Item = StateRoot>,
        prepared: &Prepared,
    ) -> Result<Result<StateRoot, Roots>, RoomError> {
        let distinct: BTreeSet<_> = roots.collect();
        let distinct: Roots = distinct.into_iter().collect();
        match distinct[..] {
            [] => return Ok(Ok(StateRoot::EMPTY)),
            [one] => return Ok(Ok(one)),
            _ => {}
        }
        let key = (self.room().number, distinct);
        let resolutions = &self.rooms.resolutions;
        let changes = resolutions.changes(key.0);
        let prepared_now = prepared.resolved.get(&key.1);
        let known = match prepared_now.filter(|known| known.changes == changes) {
            Some(known) => Some(Arc::clone(&known.resolved)),
            None => resolutions.kept.get(&key),
        };
        let Some(known) = known else {
            if prepared.in_place {
                let resolved = self.resolve(key.1).await?;
                return Ok(Ok(resolved.root));
            }
            return Ok(Err(key.1));
        };
        let nodes = &mut self.pending.nodes;
        nodes.extend(known.nodes.iter().map(|n| (n.id, Arc::clone(&n.node))));
        self.delta.nodes.extend(known.nodes.iter().cloned());
        Ok(Ok(known.root))
    }

    /// Resolves two or more different states, and keeps the outcome.
    async fn resolve(&mut self, roots: Roots) -> Result<Arc<Resolved>, RoomError> {
        let key = (self.room().number, roots.clone());
        let now = self.rooms.clock.unix_millis();
        let over_limit = &self.rooms.resolutions.over_limit;
        if let Some((limit, at)) = over_limit.get(&key)
            && now < at + OVER_LIMIT_LIFETIME
        {
            return Err(RoomError::Unresolved(format!("{limit:?}")));
        }
        #[cfg(test)]
        self.rooms
            .resolutions
            .made
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let room = self.room().number;
        let changes = self.rooms.resolutions.changes(room);
        let earlier = self.delta.nodes.len();
        let (states, conflict) = self.conflict(roots).await?;
        let resolved = match self.run(&states, conflict).await? {
            Ok(resolved) => resolved,
            Err(limit) => {
                self.rooms.resolutions.over_limit.insert(key, (limit, now));
                return Err(RoomError::Unresolved(format!("{limit:?}")));
            }
        };
        let (first, conflicted) = (states.roots[0], &states.conflicted);
        let root = self.settle(first, conflicted, resolved).await?;
        let nodes = self.delta.nodes[earlier..].to_vec();
        let resolved = Arc::new(Resolved { root, nodes });
        let key = (room, states.roots);
        self.rooms.resolutions.keep(changes, key, &resolved);
        Ok(resolved)
    }

    /// Where the states differ: every key in which some state differs from the first.
    async fn conflict(&self, roots: Roots) -> Result<(States, Conflict), RoomError> {
        let room = self.room().number;
        let mut values = BTreeMap::<KeyNumber, Vec<Option<u64>>>::new();
        for (at, other) in roots.iter().enumerate().skip(1) {
            let pair = (roots[0], *other);
            let nodes = &self.pending.nodes;
            for found in self.rooms.states.difference(room, nodes, pair).await? {
                let first = found.before.map(|(event, _)| event.0);
                // States that are not mentioned have what the first one has.
                let of_key = values
                    .entry(found.key)
                    .or_insert_with(|| vec![first; roots.len()]);
                of_key[at] = found.after.map(|(event, _)| event.0);
            }
        }
        let mut conflict = Conflict::new(roots.len());
        let disputed = values.values().flatten().flatten();
        let disputed = disputed.copied().map(EventNumber).collect();
        let conflicted = values.keys().copied().collect();
        for (count, (key, values)) in values.into_iter().enumerate() {
            give_way(count).await;
            let name = self.rooms.numbering.key_name(key).await?;
            let name = (name.event_type().to_owned(), name.state_key().to_owned());
            conflict.insert(name, values);
        }
        let states = States {
            roots,
            conflicted,
            disputed,
        };
        Ok((states, conflict))
    }

    async fn run(
        &self,
        states: &States,
        conflict: Conflict,
    ) -> Result<Result<BTreeMap<(String, String), u64>, Limit>, RoomError> {
        let room = self.room();
        let limits = *self.rooms.resolutions.limits.lock();
        let mut resolution = Resolution::new(room.rules, room.create.0, conflict, limits);
        let mut answer = Answer::default();
        loop {
            let step = move || {
                let step = resolution.step(answer);
                (resolution, step)
            };
            let stepped = self.rooms.runtime.cpu.run(step).await;
            let step;
            (resolution, step) = stepped.map_err(|_| RoomError::Stopping)?;
            match step {
                Step::Need(need) => answer = self.answer(states, &need).await?,
                Step::Done(resolved) => return Ok(Ok(resolved)),
                Step::OverLimit(limit) => return Ok(Err(limit)),
                Step::Missing(need) => {
                    return Err(RoomError::damaged(format!("resolution misses {need:?}")));
                }
            }
        }
    }

    async fn answer(&self, states: &States, need: &Need) -> Result<Answer, RoomError> {
        let mut answer = Answer {
            links: self.links(states, need).await?,
            ..Answer::default()
        };
        let events: Vec<_> = need.events.iter().copied().map(EventNumber).collect();
        for (count, event) in self.events(&events).await?.into_iter().enumerate() {
            give_way(count).await;
            answer.events.push(LoadedEvent {
                links: links(&event),
                rejected: event.status.before().is_none()
                    && event.status.kind() != homeserver_events::StatusKind::Outlier,
                event: event.pdu.clone(),
            });
        }
        for (count, key) in need.unconflicted.iter().enumerate() {
            give_way(count).await;
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

    /// The links that are asked for, and some below them.
    async fn links(&self, states: &States, need: &Need) -> Result<Vec<Links>, RoomError> {
        let (mut ahead, mut next) = Ahead::of(need);
        let mut found = Vec::new();
        while !next.is_empty() {
            let numbers: Vec<_> = next.into_iter().map(EventNumber).collect();
            let from = found.len();
            for event in self.events(&numbers).await? {
                give_way(found.len()).await;
                found.push(Links {
                    in_all: Some(self.is_in_all(states, &event).await?),
                    ..links(&event)
                });
            }
            next = ahead.below(&found[from..]);
        }
        Ok(found)
    }

    /// Whether all states have an event.
    async fn is_in_all(&self, states: &States, event: &StoredEvent) -> Result<bool, RoomError> {
        if states.disputed.contains(&event.number) {
            return Ok(false);
        }
        let Some((event_type, state_key)) = event.pdu.state_pair() else {
            return Ok(false);
        };
        let key = (event_type.to_owned(), state_key.to_owned());
        let value = self.unconflicted(states, &key).await?;
        Ok(value == Some(event.number.0))
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
        for (count, (event_type, state_key)) in resolved.keys().enumerate() {
            give_way(count).await;
            keys.insert(self.rooms.numbering.key(event_type, state_key).await?);
        }
        let mut changes = Vec::with_capacity(keys.len());
        for (count, key) in keys.iter().enumerate() {
            give_way(count).await;
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

/// Lets other tasks run before every so many-th look.
async fn give_way(count: usize) {
    if count % LOOKS_AT_ONCE == LOOKS_AT_ONCE - 1 {
        tokio::task::yield_now().await;
    }
}

fn links(event: &StoredEvent) -> Links {
    Links {
        number: event.number.0,
        height: event.auth_height,
        auth: event.auth.iter().map(|number| number.0).collect(),
        is_power_levels: event.is_state("m.room.power_levels", ""),
        in_all: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_a_change_is_not_kept_after_it() {
        let resolutions = Resolutions::new();
        let (room, other) = (RoomNumber(1), RoomNumber(2));
        let resolved = Arc::new(Resolved {
            root: StateRoot::EMPTY,
            nodes: Vec::new(),
        });
        let key = |room| (room, vec![StateRoot::EMPTY]);
        let (before, elsewhere) = (resolutions.changes(room), resolutions.changes(other));
        resolutions.keep(before, key(room), &resolved);
        resolutions.keep(elsewhere, key(other), &resolved);
        resolutions.forget(room);
        assert!(resolutions.kept.get(&key(room)).is_none());
        assert!(resolutions.kept.get(&key(other)).is_some());
        resolutions.keep(before, key(room), &resolved);
        assert!(resolutions.kept.get(&key(room)).is_none());
        resolutions.keep(resolutions.changes(room), key(room), &resolved);
        assert!(resolutions.kept.get(&key(room)).is_some());
    }
}
