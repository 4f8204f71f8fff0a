//! Events whose previous events are not here: what is here of them, what authorises them, and how
//! one is received with the state before it that another server told.
//!
//! The told state is collected as an import (see `import`), which keeps its tree from being swept
//! until an event row names it. Nothing of it is switched in: it is the state before one event, and
//! counts in the room only as that event's branch does.
//!
//! Specification: server-server API, "Backfilling and retrieving missing events".

use std::{
    collections::{HashMap, HashSet},
    slice,
    sync::Arc,
};

use homeserver_events::{EventStatus, Pdu};
use homeserver_storage::{At, Batch, CommitError};
use ruma::OwnedEventId;
use smallvec::SmallVec;

use crate::{
    ImportId, Imported, Incoming, PartTaken, Received, Rooms,
    delta::put_event,
    edit::RoomEdit,
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    import::{ATTEMPTS, IMPORT_PART},
    judge,
    live::Wants,
    numbers::EventNumber,
    receive::{
        MAX_JUDGEMENTS, MAX_PREPARED,
        judging::{Hands, Taken, Told},
        lookup::Ids,
    },
    resolving::Prepared,
    room::Room,
    tables,
    tree::StateRoot,
    whereabouts::put_whereabouts,
};

/// Outliers stored by one batch: five operations each at most.
const OUTLIERS_AT_ONCE: usize = 190;

/// Bytes of them, so that they fit with all that is around them.
const OUTLIER_BYTES: usize = 4_000_000;

/// What became of outliers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutliersTaken {
    /// Given events whose auth events are neither here nor among them. They were not stored.
    pub left_out: Vec<OwnedEventId>,
}

/// The state before an event, as another server tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldState {
    /// Its events. Those that are not here are left out of it.
    pub events: Vec<OwnedEventId>,
    /// Whether all of it could be had. What is judged by less is judged by what the room has beside
    /// it.
    pub whole: bool,
}

impl From<Vec<OwnedEventId>> for ToldState {
    fn from(events: Vec<OwnedEventId>) -> Self {
        let whole = true;
        Self { events, whole }
    }
}

impl Rooms {
    /// The forward extremities of a room as they are now.
    pub async fn extremities(&self, room: &Room) -> Result<Vec<OwnedEventId>, RoomError> {
        let head = self.store.get(&tables::HEADS, &room.number.0).await?;
        let extremities = head.unwrap_or_default().extremities;
        Ok(extremities.into_iter().map(|one| one.id).collect())
    }

    /// Which of these events are not here, each once.
    pub async fn missing_of(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        let found = self.found(room, ids).await?.into_iter();
        let missing = found.filter(|(_, event)| event.is_none());
        Ok(missing.map(|(id, _)| id).collect())
    }

    /// Which of these events have no place in the graph, each once: what is not here, and outliers.
    pub async fn unplaced_of(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        let found = self.found(room, ids).await?.into_iter();
        let unplaced = found.filter(|(_, event)| !event.as_ref().is_some_and(|e| e.is_placed()));
        Ok(unplaced.map(|(id, _)| id).collect())
    }

    /// Events by their ids, each once, in the order of `ids`.
    async fn found(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<Vec<(OwnedEventId, Option<Arc<StoredEvent>>)>, RoomError> {
        let mut numbers = Ids::new();
        self.event_numbers(room, ids.iter().map(|id| &**id), &mut numbers)
            .await?;
        let mut seen = HashSet::new();
        let unique = ids.iter().filter(|id| seen.insert(*id));
        let unique: Vec<_> = unique.cloned().collect();
        let known: Vec<_> = unique.iter().filter_map(|id| numbers.get(id)).collect();
        let known: Vec<_> = known.into_iter().copied().collect();
        let mut events = self.events.find_all(room, &known).await?.into_iter();
        let found = unique.into_iter().map(|id| {
            let event = numbers.get(&id).and_then(|_| events.next().flatten());
            (id, event)
        });
        Ok(found.collect())
    }

    /// Stores events that authorise others, each after its own auth events. They are judged by
    /// those, and have no place in the graph. What is here stays as it is.
    pub async fn receive_outliers(
        self: &Arc<Self>,
        room: &Arc<Room>,
        events: Vec<Pdu>,
    ) -> Result<OutliersTaken, RoomError> {
        let (rooms, room) = (Arc::clone(self), Arc::clone(room));
        let received = async move {
            let mut taken = OutliersTaken::default();
            let mut rest = events.as_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = |pdu: &&Pdu| {
                    bytes += pdu.json().len();
                    bytes <= OUTLIER_BYTES
                };
                let at_once = rest.iter().take(OUTLIERS_AT_ONCE).take_while(fits).count();
                let (some, later) = rest.split_at(at_once.max(1));
                rest = later;
                taken
                    .left_out
                    .extend(rooms.take_outliers(&room, some).await?);
            }
            Ok(taken)
        };
        self.runtime.tasks.see_through(received).await
    }

    /// Stores some in one batch. Gives those whose auth events are missing.
    async fn take_outliers(
        &self,
        room: &Room,
        events: &[Pdu],
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        for _ in 0..ATTEMPTS {
            match self.try_outliers(room, events).await {
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_outliers(
        &self,
        room: &Room,
        events: &[Pdu],
    ) -> Result<Vec<OwnedEventId>, RoomError> {
        let names = events.iter().flat_map(|pdu| {
            let auth = pdu.auth_events().iter().cloned();
            auth.chain([pdu.event_id().to_owned()])
        });
        let names: Vec<_> = names.collect();
        let mut numbers = Ids::new();
        self.event_numbers(room, names.iter().map(|id| &**id), &mut numbers)
            .await?;
        let found = self.found(room, &names).await?.into_iter();
        let mut here: HashMap<_, _> = found.filter_map(|(id, event)| Some((id, event?))).collect();
        let create = self.events.load(room, room.create).await?;
        let (mut batch, mut left_out) = (Batch::new(), Vec::new());
        for pdu in events {
            let id = pdu.event_id();
            if here.contains_key(id) {
                continue;
            }
            let auth = pdu.auth_events().iter();
            let auth: Option<Vec<_>> = auth.map(|id| here.get(id).cloned()).collect();
            let (Some(auth), true) = (auth, pdu.room_id() == room.id) else {
                left_out.push(id.to_owned());
                continue;
            };
            let known = numbers.get(id).copied();
            let number = match known {
                Some(number) => number,
                None => self.numbering.new_event().await?,
            };
            let event = outlier(room, &create, (pdu, number), &auth);
            put_whereabouts(&mut batch, room.number.0, id);
            if known.is_none() {
                let key = (room.number.0, id.as_str());
                batch.assert_absent(&tables::EVENT_IDS, &key);
                batch.put(&tables::EVENT_IDS, &key, &number.0);
            }
            batch.assert_absent(&tables::EVENTS, &(room.number.0, number.0));
            put_event(&mut batch, &event, At::Known(0));
            here.insert(id.to_owned(), Arc::new(event));
        }
        if !batch.is_empty() {
            // On disk with whatever builds on them.
            self.write_prepared(batch).await?;
        }
        Ok(left_out)
    }

    /// Judges an event by the state before it that another server told, and stores it, whether or
    /// not its previous events are here. Nothing of what was prepared for it stays.
    ///
    /// # Errors
    /// Those of [`Rooms::receive`]; that the told state does not allow the event; of a room of
    /// partial state, that it is one.
    pub async fn receive_over_gap(
        self: &Arc<Self>,
        room: &Arc<Room>,
        event: Incoming,
        state: ToldState,
    ) -> Result<Received, RoomError> {
        let (rooms, room) = (Arc::clone(self), Arc::clone(room));
        let received = async move {
            let import = rooms.begin_state(&room).await?;
            let collected = rooms.collect_into(&room, import, &state.events).await;
            let received = match collected {
                Ok(()) => rooms.over_gap(&room, &event, (import, state.whole)).await,
                Err(error) => Err(error),
            };
            let abandoned = rooms.abandon_arrival(import).await;
            if let Err(error) = abandoned {
                // It is swept like any that nobody goes on with.
                tracing::warn!(%error, room = %room.id, "a state that was told is left behind");
            }
            received
        };
        self.runtime.tasks.see_through(received).await
    }

    /// Collects the state before some event from events that are here. Those that are not are left
    /// out of it. Whoever asks uses the import up, or abandons it.
    pub async fn collect_state(
        &self,
        room: &Room,
        ids: &[OwnedEventId],
    ) -> Result<ImportId, RoomError> {
        let import = self.begin_state(room).await?;
        if let Err(error) = self.collect_into(room, import, ids).await {
            self.abandon_arrival(import).await?;
            return Err(error);
        }
        Ok(import)
    }

    /// Puts a state together from events that are here.
    async fn collect_into(
        &self,
        room: &Room,
        import: ImportId,
        ids: &[OwnedEventId],
    ) -> Result<(), RoomError> {
        let mut parts = 0;
        for some in ids.chunks(IMPORT_PART) {
            let found = self.found(room, some).await?;
            let events = found.into_iter().filter_map(|(_, event)| event);
            let some: Vec<_> = events
                .map(|event| Imported::State(event.pdu.clone()))
                .collect();
            match self.import_part(import, parts, &some).await? {
                PartTaken::Stored => parts += 1,
                PartTaken::Missing(_) => return Err(RoomError::UnknownEvent),
            }
        }
        Ok(())
    }

    async fn over_gap(
        self: &Arc<Self>,
        room: &Arc<Room>,
        incoming: &Incoming,
        (import, whole): (ImportId, bool),
    ) -> Result<Received, RoomError> {
        let row = self.import_row(import).await?;
        if incoming.pdu.room_id() != room.id {
            return Err(RoomError::UnknownRoom);
        }
        if !self.is_resident(room).await? {
            return Err(RoomError::NotInRoom);
        }
        if self.is_partial(room.number) {
            return Err(RoomError::PartialState);
        }
        let live = self.live.room(room.number);
        let (mut prepared, mut number) = (Prepared::default(), None);
        let followed = self.followed_over_gaps(room).await?;
        for attempt in 0..MAX_JUDGEMENTS {
            prepared.in_place = attempt >= MAX_PREPARED;
            let place = live.queue()?;
            let mut tip = live.tip(&self.store, Wants::Settled).await?;
            let (head, pending) = tip.parts();
            let mut edit = RoomEdit::new(self, Arc::clone(room), Some(head), pending);
            let mut ids = Ids::new();
            let looked_up = edit.look_up(slice::from_ref(incoming), &mut ids).await;
            let hands = Hands {
                ids: &ids,
                number: &mut number,
                prepared: &prepared,
                followed: &followed,
                settled: true,
                gap: Some(Told {
                    root: row.root,
                    whole,
                    doubted: true,
                }),
                origin: None,
            };
            let taken = match looked_up {
                Ok(()) => edit.take_received(incoming, hands).await,
                Err(error) => Err(error),
            };
            let delta = edit.delta;
            match taken {
                Ok(Taken::Judged(status, positions)) => {
                    let debts = delta.appended.iter().any(|event| event.debt.is_some());
                    let outcome = self.send_off(&live, &mut tip, delta).await;
                    tip.spoil();
                    drop((tip, place));
                    match outcome?.await.map_err(|_| RoomError::Stopping)? {
                        Ok(committed) => {
                            if debts {
                                self.pay_debts_of(room).await?;
                            }
                            let position = committed.positions.first().copied();
                            let position = position.filter(|_| positions > 0);
                            return Ok(Received::Judged { status, position });
                        }
                        Err(CommitError::Conflict { .. }) => {}
                        Err(error) => return Err(not_stored(error)),
                    }
                }
                Ok(Taken::Unresolved(roots)) => {
                    tip.spoil();
                    let pending = std::mem::take(&mut tip.pending);
                    drop((tip, place));
                    let _resolver = live.resolver()?;
                    let resolved = self.prepare_resolution(room, &live, &roots, pending);
                    let resolved = resolved.await?;
                    prepared.add(roots, resolved);
                }
                Ok(Taken::Answered(received)) => {
                    tip.spoil();
                    return Ok(received);
                }
                Ok(Taken::NeedsSettled) => tip.spoil(),
                Err(error) => {
                    tip.spoil();
                    return Err(error);
                }
            }
        }
        Err(RoomError::Contended)
    }
}

/// An event without a place, as its auth events have it.
fn outlier(
    room: &Room,
    create: &Arc<StoredEvent>,
    (pdu, number): (&Pdu, EventNumber),
    auth: &[Arc<StoredEvent>],
) -> StoredEvent {
    let status = match judge::by_auth_events(room.rules, create, pdu, auth) {
        Ok(()) => EventStatus::Outlier,
        Err(why) => EventStatus::Rejected {
            why,
            partial: false,
        },
    };
    let auth_heights = auth.iter().map(|event| event.auth_height + 1);
    StoredEvent {
        number,
        room: room.number,
        pdu: pdu.clone(),
        status,
        after: StateRoot::EMPTY,
        position: None,
        height: 0,
        backfill_tie: None,
        auth_height: auth_heights.max().unwrap_or(0),
        auth: auth.iter().map(|event| event.number).collect(),
        // They are linked when it is received with them.
        prev: SmallVec::new(),
        over_gap: false,
        replaces: None,
        redacted_by: None,
        origin: None,
    }
}
