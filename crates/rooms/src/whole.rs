//! Making a room of partial state whole (see `partial`).
//!
//! Another server tells the whole state before the join by which the room was taken in; it is
//! prepared as an import. Where it differs from the state that was told with the join, the two are
//! resolved like branches of the room: neither server is believed more than the other.
//!
//! Then, with the tip held, the join and everything that was judged since is judged again in the
//! same order, and the last batch switches: the head names the new extremities and their state, the
//! journal says that the state changed, and the rest is a debt as after any switch. What was shown
//! and is not allowed is not shown any more and is in no state. What was refused before stays so.
//! Statuses are written in as many batches as needed; a process that is killed between them goes on
//! when the rooms are opened again, before anything else is judged.
//!
//! Last, the servers that were in the room all the time are noted for the time when its members were
//! not known: by that it is decided who may see what was sent then.
//!
//! Specification: server-server API, `send_join`, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use homeserver_events::EventStatus;
use homeserver_storage::{
    At, Batch, CommitError, Direction, Durability, Position, Positioned, ScanRange, batch::MAX_OPS,
};
use ruma::UserId;
use smallvec::SmallVec;

use crate::{
    ImportId, Rooms,
    delta::RoomDelta,
    edit::{Pending, RoomEdit, member::count},
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    import::ATTEMPTS,
    live::{LiveRoom, Tip, Wants},
    members::MEMBER,
    numbers::{EventNumber, RoomNumber},
    partial::PartialRoom,
    receive::{judging::bound_extremities, lookup::Foundations},
    resolving::Prepared,
    room::Room,
    rows::{Extremity, Head, ImportRow, JoinedUsers, Membership, PartialRow, PartialStage},
    states::write_nodes,
    switch::write_switch,
    tables,
    tree::{Change, StateRoot},
    visible::membership_of,
};

/// Keys in which a told state may differ from the one that came with the join.
const MAX_DIFFERENT: usize = 500;

/// Operations at which a batch takes no more events, of a thousand: one more event takes few.
const FULL_OPS: usize = MAX_OPS / 2;

/// Bytes at which a batch takes no more events.
const FULL_BYTES: usize = 2_000_000;

/// Events that are loaded in one go.
const EVENTS_AT_ONCE: usize = 200;

/// Servers whose presence is noted by one batch.
const SERVERS_AT_ONCE: usize = 100;

/// Rows of the list of partial events that are deleted by one batch.
const LISTED_AT_ONCE: usize = 500;

/// How many are joined and invited in a state.
#[derive(Clone, Copy)]
struct Counts {
    root: StateRoot,
    joined: u64,
    invited: u64,
}

/// The room as it comes to be while its events are judged again.
struct Again {
    /// The state before the join.
    first: StateRoot,
    extremities: SmallVec<[Extremity; 1]>,
    /// The state of the extremities.
    root: StateRoot,
}

impl Rooms {
    /// Begins to prepare the whole state before the join by which a room of partial state was taken
    /// in. It is given by [`Rooms::import_part`]s from zero on, the create event among it.
    pub async fn begin_whole(&self, room: &Room) -> Result<ImportId, RoomError> {
        let import = self.begin_state(room).await?;
        // What a killed process leaves goes when the rooms are opened.
        let mut batch = Batch::new();
        batch.put(&tables::ARRIVING, &import.0, &room.number.0);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(import)
    }

    /// Makes a room of partial state whole with a state that was prepared. Dropping the future takes
    /// nothing back.
    ///
    /// # Errors
    /// `Forbidden` where the state is not to be used; then it is to be abandoned, and the room is as
    /// before.
    pub async fn make_whole(self: &Arc<Self>, import: ImportId) -> Result<Position, RoomError> {
        let rooms = Arc::clone(self);
        let making = async move {
            let row = rooms.import_row(import).await?;
            let room = rooms.room_by_number(RoomNumber(row.room)).await?;
            rooms.settle_whole_state(&room, import).await?;
            rooms.finish_whole(&room, import).await
        };
        self.runtime.tasks.see_through(making).await
    }

    /// Goes on with what a killed process left.
    pub(crate) async fn resume_partials(&self) -> Result<(), RoomError> {
        let all = ScanRange::all();
        let table = &tables::PARTIAL_ROOMS;
        let rooms = self
            .store
            .scan(table, all, Direction::Forward, usize::MAX)
            .await?;
        for (number, row) in rooms {
            if matches!(row.value.stage, PartialStage::Partial | PartialStage::Whole) {
                continue;
            }
            let room = self.room_by_number(RoomNumber(number)).await?;
            let resumed = self.go_on_from(&room, row.value.stage).await;
            // One room that cannot be read keeps no other closed.
            if let Err(error) = resumed {
                tracing::error!(%error, room = number, "a room is not whole yet");
            }
        }
        Ok(())
    }

    /// Goes on where a room stands between being partial and being whole. Gives whether nothing is
    /// left to do.
    ///
    /// # Errors
    /// When that cannot be read or stored.
    pub async fn go_on_whole(self: &Arc<Self>, room: &Arc<Room>) -> Result<bool, RoomError> {
        let row = self.store.get(&tables::PARTIAL_ROOMS, &room.number.0);
        let Some(row) = row.await? else {
            return Ok(true);
        };
        let (rooms, room) = (Arc::clone(self), Arc::clone(room));
        let going_on = async move { rooms.go_on_from(&room, row.value.stage).await };
        self.runtime.tasks.see_through(going_on).await
    }

    async fn go_on_from(&self, room: &Arc<Room>, stage: PartialStage) -> Result<bool, RoomError> {
        match stage {
            PartialStage::Partial => return Ok(false),
            PartialStage::Judging(import) => drop(self.finish_whole(room, ImportId(import)).await?),
            PartialStage::Settling => self.settle_whole(room).await?,
            PartialStage::Whole => {}
        }
        Ok(true)
    }

    /// Removes what was prepared for a room and is not to be used. Once the room's events are being
    /// judged by it, it stays: see [`Rooms::go_on_whole`].
    ///
    /// # Errors
    /// When that cannot be stored.
    pub async fn abandon_whole(&self, room: &Room, import: ImportId) -> Result<(), RoomError> {
        let row = self.store.get(&tables::PARTIAL_ROOMS, &room.number.0);
        match row.await?.map(|row| row.value.stage) {
            Some(PartialStage::Judging(judging)) if judging == import.0 => Ok(()),
            _ => self.abandon_arrival(import).await,
        }
    }

    fn partial_room(&self, room: &Room) -> Result<PartialRoom, RoomError> {
        let partial = self.partials.get(room.number);
        let partial = partial.filter(|room| room.whole.is_none());
        partial.ok_or_else(|| RoomError::forbidden("the room's state is not partial"))
    }

    /// Makes of the told state the one that counts before the join.
    async fn settle_whole_state(
        &self,
        room: &Arc<Room>,
        import: ImportId,
    ) -> Result<(), RoomError> {
        for _ in 0..ATTEMPTS {
            let row = self.import_row(import).await?;
            match self.try_whole_state(room, import, &row).await {
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_whole_state(
        &self,
        room: &Arc<Room>,
        import: ImportId,
        row: &ImportRow,
    ) -> Result<(), RoomError> {
        let partial = self.partial_room(room)?;
        let create = self
            .state_event(room, row.root, "m.room.create", "")
            .await?;
        if create.is_none_or(|create| create.number != room.create) {
            return Err(RoomError::forbidden("the state is not that of the room"));
        }
        let known = self.events.load(room, partial.join).await?.before();
        let found = self.changed_keys(room, (known, row.root)).await?;
        let different = found.iter().filter(|key| key.before.is_some());
        let different: Vec<_> = different.collect();
        if different.is_empty() {
            return Ok(());
        }
        if different.len() > MAX_DIFFERENT {
            let why = "the state differs too much from that which came with the join";
            return Err(RoomError::forbidden(why));
        }
        tracing::info!(room = %room.id, keys = different.len(), "two servers tell another state");
        let mut changes = Vec::with_capacity(different.len());
        for difference in different {
            let key = self.numbering.key_name(difference.key).await?;
            changes.push(Change {
                hash: self.states.place(key.event_type(), key.state_key()),
                key: difference.key,
                value: difference.before,
            });
        }
        let mut pending = Pending::default();
        let mut edit = RoomEdit::new(self, Arc::clone(room), None, &mut pending);
        let other = edit.change_tree(row.root, &changes).await?;
        let both = [row.root, other].into_iter();
        let resolved = edit.resolved(both, &Prepared::in_place()).await?;
        let root = resolved.map_err(|_| RoomError::damaged("two states are not resolved"))?;
        let mut batch = Batch::new();
        write_nodes(&mut batch, (room.number, row.generation), &edit.delta.nodes);
        let settled = ImportRow {
            root,
            touched: self.clock.unix_millis(),
            ..row.clone()
        };
        batch.assert_value(&tables::IMPORTS, &import.0, row);
        batch.put(&tables::IMPORTS, &import.0, &settled);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }

    /// Judges again, switches, and does what that leaves to do.
    async fn finish_whole(
        &self,
        room: &Arc<Room>,
        import: ImportId,
    ) -> Result<Position, RoomError> {
        let row = self.import_row(import).await?;
        let counts = self.counts_of(room, import, row.root).await?;
        let position = self.judge_again(room, import, counts).await?;
        self.settle_whole(room).await?;
        Ok(position)
    }

    /// Does what the switch leaves to do.
    async fn settle_whole(&self, room: &Arc<Room>) -> Result<(), RoomError> {
        self.pay_debts_of(room).await?;
        self.settle_servers(room).await
    }

    /// How many are joined and invited in a state that an import prepared. Only members whom it did
    /// not bring are read.
    async fn counts_of(
        &self,
        room: &Room,
        import: ImportId,
        root: StateRoot,
    ) -> Result<Counts, RoomError> {
        let known = self.imported_members(import).await?;
        let place = self.states.place(MEMBER, "");
        let members = self.states.of_type(room.number, root, place, usize::MAX);
        let (mut counted, mut unknown) = (Head::default(), Vec::new());
        for item in members.await? {
            match known.get(&item.event) {
                Some(membership) => count(&mut counted, *membership, 1),
                None => unknown.push(item.event),
            }
        }
        for some in unknown.chunks(EVENTS_AT_ONCE) {
            for event in self.events.load_all(room, some).await? {
                if event.pdu.event_type() == MEMBER {
                    count(&mut counted, membership_of(&event), 1);
                }
            }
        }
        Ok(Counts {
            root,
            joined: counted.joined,
            invited: counted.invited,
        })
    }

    /// Calls something for each member of a state.
    async fn each_member(
        &self,
        room: &Room,
        root: StateRoot,
        mut what: impl FnMut(&str, Option<Membership>) + Send,
    ) -> Result<(), RoomError> {
        let members = self.state_of_type(room, root, MEMBER).await?;
        for some in members.chunks(EVENTS_AT_ONCE) {
            let numbers: Vec<_> = some.iter().map(|(_, event)| *event).collect();
            let events = self.events.load_all(room, &numbers).await?;
            for ((key, _), event) in some.iter().zip(&events) {
                what(key.state_key(), membership_of(event));
            }
        }
        Ok(())
    }

    /// Judges everything since the join again and switches. The tip is held all the time.
    async fn judge_again(
        &self,
        room: &Arc<Room>,
        import: ImportId,
        counts: Counts,
    ) -> Result<Position, RoomError> {
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        // Only now: it may have been left and taken in anew meanwhile.
        let partial = self.partial_room(room)?;
        let listed = self.listed(room.number).await?;
        let mut again = Again {
            first: counts.root,
            extremities: SmallVec::new(),
            root: counts.root,
        };
        let mut rest = listed.as_slice();
        loop {
            let (seen, pending) = tip.parts();
            let mut edit = RoomEdit::new(self, Arc::clone(room), Some(seen.clone()), pending);
            let step = edit.judge_step(rest, &mut again, (counts, partial.join));
            let (step, delta) = (step.await, edit.delta);
            if step.is_err() {
                tip.spoil();
            }
            rest = rest.get(step?..).unwrap_or_default();
            let is_last = rest.is_empty();
            let mut batch = Batch::new();
            delta.write(&mut batch);
            let stage = if is_last {
                let append = write_switch(&mut batch, room, import, (&seen, &delta.head));
                batch.put(&tables::MADE_WHOLE, &room.number.0, &At::Append(append));
                batch.delete(&tables::IMPORTS, &import.0);
                PartialStage::Settling
            } else {
                PartialStage::Judging(import.0)
            };
            batch.delete(&tables::ARRIVING, &import.0);
            put_stage(&mut batch, room.number, &partial, stage);
            let position = self.judged(&live, &mut tip, (batch, delta)).await?;
            if is_last {
                self.partials.whole(room.number, position);
                return Ok(position);
            }
        }
    }

    /// Commits a step, and gives its last position.
    async fn judged(
        &self,
        live: &Arc<LiveRoom>,
        tip: &mut Tip,
        (batch, delta): (Batch, RoomDelta),
    ) -> Result<Position, RoomError> {
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let room = delta.room.number;
        let commit = live.submitted(tip, delta.head.clone());
        let outcome = ticket.await;
        self.remember(&outcome, &[delta]);
        self.resolutions.forget(room);
        commit.settle(outcome.is_ok());
        let done = outcome.map_err(not_stored)?;
        Ok(done.positions.last().copied().unwrap_or(0))
    }

    /// The events that were judged on incomplete state, in order.
    async fn listed(&self, room: RoomNumber) -> Result<Vec<EventNumber>, RoomError> {
        let range = ScanRange::prefix(&room.0);
        let table = &tables::PARTIAL_EVENTS;
        let scan = self
            .store
            .scan(table, range, Direction::Forward, usize::MAX);
        let rows = scan.await?.into_iter();
        Ok(rows.map(|(_, event)| EventNumber(event)).collect())
    }

    /// Notes which servers were in a room while its members were not known, and forgets what was
    /// only needed meanwhile.
    async fn settle_servers(&self, room: &Arc<Room>) -> Result<(), RoomError> {
        let Some(partial) = self.partials.get(room.number) else {
            return Ok(());
        };
        let row = self.store.get(&tables::PARTIAL_ROOMS, &room.number.0);
        let row = row.await?;
        let Some(row) = row.filter(|row| row.value.stage == PartialStage::Settling) else {
            return Ok(());
        };
        let join = self.events.load(room, partial.join).await?;
        let before = join.status.before().copied().unwrap_or(join.after);
        let mut servers: BTreeSet<String> = BTreeSet::new();
        self.each_member(room, before, |user, membership| {
            if let (Some(Membership::Join), Ok(user)) = (membership, UserId::parse(user)) {
                servers.insert(user.server_name().to_string());
            }
        })
        .await?;
        let servers: Vec<_> = servers.into_iter().collect();
        for some in servers.chunks(SERVERS_AT_ONCE) {
            let mut batch = Batch::new();
            for server in some {
                self.note_presence(&mut batch, room, &partial, server)
                    .await?;
            }
            if !batch.is_empty() {
                self.store.commit(batch).await.map_err(not_stored)?;
            }
        }
        self.forget_listed(room.number).await?;
        let mut batch = Batch::new();
        self.forget_told(&mut batch, room.number);
        // It may have been left and taken in anew meanwhile.
        batch.assert_value(&tables::PARTIAL_ROOMS, &room.number.0, &row);
        put_stage(&mut batch, room.number, &partial, PartialStage::Whole);
        self.store.commit(batch).await.map_err(not_stored)?;
        self.partials.settled(room.number);
        Ok(())
    }

    /// Notes that a server with members before the join was in the room from then on.
    async fn note_presence(
        &self,
        batch: &mut Batch,
        room: &Room,
        partial: &PartialRoom,
        server: &str,
    ) -> Result<(), RoomError> {
        let (since, whole) = (partial.since, partial.whole.unwrap_or(partial.since));
        let number = room.number.0;
        let key = (number, server);
        let counted = self.store.get(&tables::SERVER_COUNTS, &key);
        let is_present = counted.await?.is_some_and(JoinedUsers::present);
        let range = ScanRange::prefix(&(number, server.to_owned()));
        let table = &tables::SERVER_LOG;
        let scan = self
            .store
            .scan(table, range, Direction::Forward, usize::MAX);
        let log: BTreeMap<Position, u64> = scan
            .await?
            .into_iter()
            .map(|((_, _, at), present)| (at, present))
            .collect();
        let put = |batch: &mut Batch, at: Position, present: u64| {
            batch.put(table, &(number, server, At::Known(at)), &present);
        };
        if log.range(..=since).next().is_none() {
            put(batch, since, 1);
        }
        if is_present {
            // Only of those of its users who were known it seemed that none was left.
            let wrong = log.range(since + 1..whole);
            for (at, _) in wrong.filter(|(_, present)| **present == 0) {
                put(batch, *at, 1);
            }
        } else if log
            .range(since + 1..)
            .next()
            .is_none_or(|(_, present)| *present == 1)
        {
            put(batch, whole, 0);
        }
        Ok(())
    }

    async fn forget_listed(&self, room: RoomNumber) -> Result<(), RoomError> {
        loop {
            let range = ScanRange::prefix(&room.0);
            let table = &tables::PARTIAL_EVENTS;
            let scan = self
                .store
                .scan(table, range, Direction::Forward, LISTED_AT_ONCE);
            let rows = scan.await?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for (key, _) in rows {
                batch.delete(table, &key);
            }
            self.store.commit(batch).await.map_err(not_stored)?;
        }
    }
}

fn put_stage(batch: &mut Batch, room: RoomNumber, partial: &PartialRoom, stage: PartialStage) {
    let row = PartialRow {
        join: partial.join,
        stage,
    };
    let row = Positioned::new(At::Known(partial.since), row);
    batch.put(&tables::PARTIAL_ROOMS, &room.0, &row);
}

impl RoomEdit<'_> {
    /// Judges as many of these events again as fit into a batch, and with the last of them makes the
    /// tip that of the whole room. Gives how many that are.
    async fn judge_step(
        &mut self,
        events: &[EventNumber],
        again: &mut Again,
        (counts, join): (Counts, EventNumber),
    ) -> Result<usize, RoomError> {
        let taken = self.judge_some(events, again).await?;
        self.delta.head.sequence += 1;
        if taken == events.len() {
            self.become_whole(again, counts, join).await?;
        }
        Ok(taken)
    }

    async fn judge_some(
        &mut self,
        events: &[EventNumber],
        again: &mut Again,
    ) -> Result<usize, RoomError> {
        let mut taken = 0;
        for some in events.chunks(EVENTS_AT_ONCE) {
            // Into the cache, in one go.
            self.rooms.events.find_all(self.room(), some).await?;
            for number in some {
                let (operations, bytes) = self.delta.size();
                let rewritten = self.delta.rewritten.iter();
                let bodies: usize = rewritten.map(|event| event.pdu.json().len() + 600).sum();
                if operations > FULL_OPS || bytes + bodies > FULL_BYTES {
                    return Ok(taken);
                }
                self.judge_one(*number, again).await?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    async fn judge_one(&mut self, number: EventNumber, again: &mut Again) -> Result<(), RoomError> {
        let mut event = self.event(number).await?;
        // One that is whole was judged before the process was killed.
        if event.status.is_partial() {
            let judged = Arc::new(self.judged_whole(&event, again).await?);
            self.pending.events.insert(number, Arc::clone(&judged));
            self.delta.rewritten.push((*judged).clone());
            event = judged;
        }
        if !event.status.is_shown() {
            return Ok(());
        }
        let followed = &event.prev;
        again
            .extremities
            .retain(|extremity| !followed.contains(&extremity.number));
        again.extremities.push(extremity(&event)?);
        bound_extremities(&mut again.extremities);
        let roots: Vec<_> = again.extremities.iter().map(|one| one.after).collect();
        again.root = self.resolve_now(roots).await?;
        Ok(())
    }

    async fn resolve_now(&mut self, roots: Vec<StateRoot>) -> Result<StateRoot, RoomError> {
        let at_once = Prepared::in_place();
        let resolved = self.resolved(roots.into_iter(), &at_once).await?;
        resolved.map_err(|_| RoomError::damaged("states are not resolved"))
    }

    /// An event as it is judged on the whole state.
    async fn judged_whole(
        &mut self,
        event: &StoredEvent,
        again: &Again,
    ) -> Result<StoredEvent, RoomError> {
        let mut on = Foundations {
            prev: Vec::with_capacity(event.prev.len()),
            auth: Vec::with_capacity(event.auth.len()),
        };
        for number in &event.prev {
            on.prev.push(self.event(*number).await?);
        }
        for number in &event.auth {
            on.auth.push(self.event(*number).await?);
        }
        let mut roots: Vec<_> = on.prev.iter().map(|event| event.after).collect();
        if event.over_gap {
            // What it follows is what the join follows.
            roots.push(again.first);
        }
        let before = self.resolve_now(roots).await?;
        let status = match event.status.clone() {
            EventStatus::Accepted { .. } => {
                let states = (before, again.root);
                self.status(&event.pdu, None, &on, states).await?
            }
            EventStatus::SoftFailed { why, .. } => EventStatus::SoftFailed {
                before,
                why,
                partial: false,
            },
            other => other.judged_on(false),
        };
        let mut judged = StoredEvent {
            status,
            after: before,
            replaces: None,
            ..event.clone()
        };
        let rejected = judged.status.is_rejected();
        if let (Some((event_type, state_key)), false) = (judged.pdu.state_pair(), rejected) {
            let replaced = self.state_in(before, event_type, state_key).await?;
            judged.replaces = replaced.map(|event| event.number);
            judged.after = self.edit_state(before, &[&judged]).await?;
        }
        Ok(judged)
    }

    /// Makes the tip that of the whole room.
    async fn become_whole(
        &mut self,
        again: &Again,
        counts: Counts,
        join: EventNumber,
    ) -> Result<(), RoomError> {
        let mut extremities = again.extremities.clone();
        if extremities.is_empty() {
            // Nothing is allowed, nor the join: nobody here is in the room.
            extremities.push(extremity(&*self.event(join).await?)?);
        }
        let head = &mut self.delta.head;
        head.extremities = extremities;
        head.root = again.root;
        head.apart = None;
        head.joined = counts.joined;
        head.invited = counts.invited;
        let (room, roots) = (self.room().number, (counts.root, again.root));
        let nodes = &self.pending.nodes;
        let changes = self.rooms.states.difference(room, nodes, roots).await?;
        let mut members = Vec::new();
        for change in changes {
            let key = self.rooms.numbering.key_name(change.key).await?;
            if key.event_type() == MEMBER {
                members.push((key, change));
            }
        }
        self.count_members(&members).await
    }
}

fn extremity(event: &StoredEvent) -> Result<Extremity, RoomError> {
    let reference = event.pdu.reference();
    let reference = reference.map_err(|error| RoomError::damaged(error.to_string()))?;
    Ok(Extremity {
        number: event.number,
        id: event.pdu.event_id().to_owned(),
        reference_hash: reference.reference_hash,
        height: event.height,
        depth: event.pdu.depth(),
        after: event.after,
    })
}
