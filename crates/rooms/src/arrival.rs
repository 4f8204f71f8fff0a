//! Taking in a room whose state another server has told, with the join of a local user.
//!
//! The room is prepared out of sight, as an import (see `import`): its create event first, then its
//! state and what authorises that. [`Rooms::arrive`] is the switch: in one batch the room is found
//! by its id, has the told state, and the join event is its only extremity. The events before the
//! join are not here, so a gap is below it. A room that is here, but was left by all local users, is
//! taken in anew in the same way: its old extremities and its old state are history then, but for
//! extremities that the other server does not know: those are branches that it lacks.
//!
//! An arrival that fails leaves nothing that anybody sees, and what it wrote is removed; one that a
//! killed process left is removed when the rooms are opened.
//!
//! Specification: server-server API, "Joining Rooms".

use std::sync::Arc;

use homeserver_events::{EventStatus, Pdu, Rules, auth};
use homeserver_storage::{
    AppendRef, At, Batch, CommitError, Direction, Durability, Position, ScanRange,
};
use ruma::{EventId, OwnedEventId, OwnedServerName, RoomId, RoomVersionId, UserId};
use smallvec::{SmallVec, smallvec};

use crate::{
    ImportId, Rooms,
    delta::{Appended, MemberChange, RoomDelta, put_event},
    edit::{RoomEdit, member::count},
    error::RoomError,
    event::StoredEvent,
    execute::not_stored,
    import::ATTEMPTS,
    judge,
    live::Wants,
    members::MEMBER,
    numbers::{EventNumber, RoomNumber},
    outside::write_outside_room,
    receive::judging::bound_extremities,
    resolving::Prepared,
    room::Room,
    rows::{
        Extremity, Head, ImportPartRow, ImportRow, IndexDebtRow, Membership, StateLogRow,
        TreeSweepRow,
    },
    tables,
    tree::StateRoot,
    visible::membership_of,
};

/// A room that is being taken in.
#[derive(Clone, Debug)]
pub struct Arriving {
    /// The room. It is not found by its id yet, unless it was here before.
    pub room: Arc<Room>,
    /// The import that its state is given to, the create event among it.
    pub import: ImportId,
    /// The number of the first part.
    pub first_part: u64,
}

/// What the other server told of the room.
#[derive(Clone, Copy)]
enum Told<'a> {
    /// All of its state. These extremities of a room that was here before it does not know.
    Whole { beside: &'a [OwnedEventId] },
    /// Not all members, but the servers that are in it.
    Partial { servers: &'a [OwnedServerName] },
}

impl<'a> Told<'a> {
    fn beside(self) -> &'a [OwnedEventId] {
        match self {
            Self::Whole { beside } => beside,
            Self::Partial { .. } => &[],
        }
    }

    fn partial(self) -> Option<&'a [OwnedServerName]> {
        match self {
            Self::Whole { .. } => None,
            Self::Partial { servers } => Some(servers),
        }
    }
}

impl Rooms {
    /// Begins to take in the room that `create` made. Its format, hash and signatures were checked.
    ///
    /// Not allowed are create events that the rules forbid, and of a room that is here all but its
    /// own. One arrival of a room at a time: the caller sees to that.
    pub async fn begin_arrival(
        &self,
        id: &RoomId,
        version: &RoomVersionId,
        create: &Pdu,
    ) -> Result<Arriving, RoomError> {
        let unsupported = || RoomError::UnsupportedRoomVersion(version.to_string());
        let rules = Rules::for_version(version).ok_or_else(unsupported)?;
        let is_create = create.state_pair() == Some(("m.room.create", ""));
        if !is_create || create.room_id() != id {
            return Err(RoomError::forbidden("not the create event of this room"));
        }
        auth::check(rules, create, &|_: &str, _: &str| None)
            .map_err(|why| RoomError::forbidden(why.to_string()))?;
        for _ in 0..ATTEMPTS {
            let begun = match self.room(id).await? {
                Some(room) => self.begin_again(room, version, create).await,
                None => self.begin_unseen(id, (version, rules), create).await,
            };
            match begun {
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        Err(RoomError::Contended)
    }

    /// Begins to take in a room that is here anew.
    async fn begin_again(
        &self,
        room: Arc<Room>,
        version: &RoomVersionId,
        create: &Pdu,
    ) -> Result<Arriving, RoomError> {
        let own = self.events.load(&room, room.create).await?;
        if own.pdu.event_id() != create.event_id() || room.version != *version {
            return Err(RoomError::forbidden("not the create event of this room"));
        }
        let mut batch = Batch::new();
        self.begin(room, &mut batch, |_, _| Ok(0)).await
    }

    /// Begins to take in a room that is not here.
    async fn begin_unseen(
        &self,
        id: &RoomId,
        (version, rules): (&RoomVersionId, &'static Rules),
        create: &Pdu,
    ) -> Result<Arriving, RoomError> {
        let mut batch = Batch::new();
        let known = self.outside_number(id, version).await?;
        let number = match known {
            Some(number) => number,
            None => self.numbering.new_room().await?,
        };
        let create = self.unjudged(number, create).await?;
        let room = Room {
            number,
            id: id.to_owned(),
            version: version.clone(),
            rules,
            create: create.number,
        };
        match known {
            Some(_) => batch.put(&tables::ROOMS, &number.0, &room.row()),
            None => write_outside_room(&mut batch, &room),
        }
        put_event(&mut batch, &create, At::Known(0));
        let first = |import: ImportId, batch: &mut Batch| {
            let event_id = create.pdu.event_id().to_owned();
            let key = (import.0, event_id.as_str());
            batch.put(&tables::IMPORT_IDS, &key, &create.number.0);
            let events = vec![(create.number, event_id.clone())];
            let row = ImportPartRow { events };
            batch.put(&tables::IMPORT_PARTS, &(import.0, 0_u64), &row);
            Ok(1)
        };
        self.begin(Arc::new(room), &mut batch, first).await
    }

    /// Begins the import. `first` writes its first parts and says how many.
    async fn begin(
        &self,
        room: Arc<Room>,
        batch: &mut Batch,
        first: impl FnOnce(ImportId, &mut Batch) -> Result<u64, RoomError>,
    ) -> Result<Arriving, RoomError> {
        let import = ImportId(self.numbering.new_event().await?.0);
        let first_part = first(import, batch)?;
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip_or_none(&self.store, Wants::Settled).await?;
        let seen = tip.head();
        match &seen {
            Some(seen) => batch.assert_value(&tables::HEADS, &room.number.0, seen),
            None => batch.assert_absent(&tables::HEADS, &room.number.0),
        };
        let mut head = seen.unwrap_or_default();
        head.sequence += 1;
        batch.put(&tables::HEADS, &room.number.0, &head);
        let row = ImportRow {
            room: room.number.0,
            touched: self.clock.unix_millis(),
            parts: first_part,
            base: head.root,
            root: StateRoot::EMPTY,
            generation: head.generation,
            abandoned: false,
            planted: first_part,
        };
        batch.assert_absent(&tables::IMPORTS, &import.0);
        batch.put(&tables::IMPORTS, &import.0, &row);
        batch.put(&tables::ARRIVING, &import.0, &room.number.0);
        let batch = std::mem::take(batch);
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let commit = live.submitted(&mut tip, head);
        drop(tip);
        let outcome = ticket.await;
        commit.settle(outcome.is_ok());
        outcome.map_err(not_stored)?;
        Ok(Arriving {
            room,
            import,
            first_part,
        })
    }

    /// Removes what an arrival prepared.
    pub async fn abandon_arrival(&self, import: ImportId) -> Result<(), RoomError> {
        loop {
            let Some(row) = self.store.get(&tables::IMPORTS, &import.0).await? else {
                break;
            };
            if row.abandoned || self.abandon(import.0, &row).await? {
                self.remove_import(import.0, RoomNumber(row.room)).await?;
                break;
            }
        }
        let mut batch = Batch::new();
        batch.delete(&tables::ARRIVING, &import.0);
        self.store.commit(batch).await.map_err(not_stored)?;
        Ok(())
    }

    /// Removes the arrivals that a process left which is no more.
    pub(crate) async fn end_arrivals(&self) -> Result<(), RoomError> {
        let all = ScanRange::all();
        let table = &tables::ARRIVING;
        let scan = self.store.scan(table, all, Direction::Forward, usize::MAX);
        for (import, _) in scan.await? {
            self.abandon_arrival(ImportId(import)).await?;
        }
        Ok(())
    }

    /// Switches the state that was prepared in, with the join event of a local user after it. The
    /// event's format and signatures were checked. Forbidden is what that state does not allow.
    ///
    /// The answer comes when all is on disk and indexed; dropping the future takes nothing back.
    pub async fn arrive(
        self: &Arc<Self>,
        import: ImportId,
        join: Pdu,
    ) -> Result<Position, RoomError> {
        self.arrive_beside(import, join, Vec::new()).await
    }

    /// Like [`Rooms::arrive`], of a room that was here before: these of its forward extremities are
    /// not known to the server that told the state, and stay. Forbidden is also what the room does
    /// not allow by them.
    pub async fn arrive_beside(
        self: &Arc<Self>,
        import: ImportId,
        join: Pdu,
        beside: Vec<OwnedEventId>,
    ) -> Result<Position, RoomError> {
        let rooms = Arc::clone(self);
        let arriving = async move {
            let told = Told::Whole { beside: &beside };
            rooms.arrive_here(import, &join, told).await
        };
        self.runtime.tasks.see_through(arriving).await
    }

    /// As [`Rooms::arrive`], with a state that lacks members: the room is one of partial state from
    /// then on. `servers` are those that are said to be in it. Forbidden of a room that is here.
    pub async fn arrive_partial(
        self: &Arc<Self>,
        import: ImportId,
        join: Pdu,
        servers: Vec<OwnedServerName>,
    ) -> Result<Position, RoomError> {
        let rooms = Arc::clone(self);
        let arriving = async move {
            let told = Told::Partial { servers: &servers };
            rooms.arrive_here(import, &join, told).await
        };
        self.runtime.tasks.see_through(arriving).await
    }

    async fn arrive_here(
        &self,
        import: ImportId,
        join: &Pdu,
        told: Told<'_>,
    ) -> Result<Position, RoomError> {
        for _ in 0..ATTEMPTS {
            match self.try_arrive(import, join, told).await {
                Ok((room, position)) => {
                    self.pay_debts_of(&room).await?;
                    return Ok(position);
                }
                Err(RoomError::NotStored(CommitError::Conflict { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Err(RoomError::Contended)
    }

    async fn try_arrive(
        &self,
        import: ImportId,
        join: &Pdu,
        told: Told<'_>,
    ) -> Result<(Arc<Room>, Position), RoomError> {
        let row = self.import_row(import).await?;
        let room = self.room_by_number(RoomNumber(row.room)).await?;
        let counts = self.imported_counts(import, &row).await?;
        let live = self.live.room(room.number);
        let _place = live.queue()?;
        let mut tip = live.tip(&self.store, Wants::Settled).await?;
        let (seen, pending) = tip.parts();
        let mut edit = RoomEdit::new(self, Arc::clone(&room), Some(seen.clone()), pending);
        edit.take_over(counts);
        edit.join(import, join, told).await?;
        let delta = edit.delta;
        let mut batch = Batch::new();
        batch.assert_value(&tables::IMPORTS, &import.0, &row);
        batch.delete(&tables::IMPORTS, &import.0);
        batch.delete(&tables::ARRIVING, &import.0);
        let append = self
            .write_arrival(&mut batch, import, (&seen, &delta))
            .await?;
        let partial = self.write_partial(&mut batch, (&delta, append), told.partial())?;
        let submitted = self.store.submit(batch, Durability::Durable).await;
        let ticket = submitted.map_err(not_stored)?;
        let commit = live.submitted(&mut tip, delta.head.clone());
        let outcome = ticket.await;
        let deltas = [delta];
        self.remember(&outcome, &deltas);
        if let Ok(done) = &outcome {
            let position = done.positions.first().copied().unwrap_or(0);
            self.partials.arrived(room.number, position, partial);
        }
        commit.settle(outcome.is_ok());
        // Whoever decides next knows whether the room is partial.
        drop(tip);
        let done = outcome.map_err(not_stored)?;
        Ok((room, done.positions.first().copied().unwrap_or(0)))
    }

    /// What makes the room seen, and what is left to do.
    async fn write_arrival(
        &self,
        batch: &mut Batch,
        import: ImportId,
        (seen, delta): (&Head, &RoomDelta),
    ) -> Result<AppendRef, RoomError> {
        let (room, id) = (delta.room.number, delta.room.id.as_str());
        match self.store.get(&tables::ROOM_IDS, &id).await? {
            Some(here) if here == room.0 => {}
            Some(_) => return Err(RoomError::damaged("the room is here under another number")),
            None => {
                batch.assert_absent(&tables::ROOM_IDS, &id);
                batch.put(&tables::ROOM_IDS, &id, &room.0);
                let key = (id, delta.room.version.as_str());
                batch.delete(&tables::OUTSIDE_ROOMS, &key);
            }
        }
        let appends = delta.write(batch);
        let Some(append) = appends.first() else {
            return Err(RoomError::damaged("a join has no place"));
        };
        let debt = IndexDebtRow {
            import: import.0,
            from: seen.root,
            to: delta.head.root,
            done: 0,
        };
        batch.put(&tables::INDEX_DEBTS, &(room.0, At::Append(*append)), &debt);
        batch.put(&tables::TREE_SWEEPS, &room.0, &TreeSweepRow::ASKED);
        Ok(*append)
    }

    /// An event of the room, or one that the import brings.
    async fn here_or_in(
        &self,
        room: &Room,
        import: ImportId,
        id: &EventId,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        if let Some(number) = self.events.number(room.number, id).await?
            && let Some(found) = self.events.find(room, number).await?
        {
            return Ok(Some(found));
        }
        let key = (import.0, id.as_str());
        match self.store.get(&tables::IMPORT_IDS, &key).await? {
            Some(number) => self.events.find(room, EventNumber(number)).await,
            None => Ok(None),
        }
    }
}

impl RoomEdit<'_> {
    /// Makes the prepared state that of the room. No event that is here has it.
    fn take_over(&mut self, counts: StateLogRow) {
        let head = &mut self.delta.head;
        head.root = counts.root;
        head.joined = counts.joined;
        head.invited = counts.invited;
        head.apart = None;
    }

    /// Appends the join after the state of the room, over a gap.
    async fn join(
        &mut self,
        import: ImportId,
        join: &Pdu,
        told: Told<'_>,
    ) -> Result<(), RoomError> {
        let partial = matches!(told, Told::Partial { .. });
        let (rooms, room) = (self.rooms, Arc::clone(self.room()));
        let user = join.state_key().and_then(|key| UserId::parse(key).ok());
        let user = user.filter(|user| join.event_type() == MEMBER && rooms.is_local(user));
        let user = user.ok_or_else(|| RoomError::forbidden("not a membership of a local user"))?;
        let auth = self.authorised_by(import, join).await?;
        if partial {
            self.add_members_among(&auth).await?;
        }
        self.allowed_by_state(join).await?;
        let before = self.delta.head.root;
        let replaced = self.state_in(before, MEMBER, user.as_str()).await?;
        let mut event = StoredEvent {
            number: match rooms.events.number(room.number, join.event_id()).await? {
                Some(number) => number,
                None => rooms.numbering.new_event().await?,
            },
            room: room.number,
            pdu: join.clone(),
            status: EventStatus::Accepted { before, partial },
            after: before,
            position: None,
            height: self.height_over_gap(join),
            backfill_tie: None,
            auth_height: auth.iter().map(|e| e.auth_height + 1).max().unwrap_or(0),
            auth: auth.iter().map(|event| event.number).collect(),
            prev: SmallVec::new(),
            over_gap: true,
            replaces: replaced.as_ref().map(|event| event.number),
            redacted_by: None,
            origin: None,
        };
        event.after = self.edit_state(before, &[&event]).await?;
        let membership = membership_of(&event);
        let mut appended = Appended::plain(event);
        if membership != Some(Membership::Join) {
            return Err(RoomError::forbidden("not a join"));
        }
        appended.members.push(MemberChange {
            user: rooms.numbering.user(&user).await?,
            membership: Membership::Join,
            event: appended.event.number,
            stripped: None,
        });
        appended.gap = join.prev_events().to_vec();
        self.note_count(&mut appended).await?;
        let head = &mut self.delta.head;
        count(head, replaced.as_deref().and_then(membership_of), -1);
        count(head, membership, 1);
        let mut kept = self.delta.head.extremities.clone();
        kept.retain(|extremity| told.beside().contains(&extremity.id));
        self.follow_only(&mut appended)?;
        if !kept.is_empty() {
            self.stay_beside(kept, &mut appended, &user).await?;
        }
        self.push(appended);
        Ok(())
    }

    /// Makes extremities of before stand beside the join: their states are resolved with that after
    /// it.
    async fn stay_beside(
        &mut self,
        mut kept: SmallVec<[Extremity; 1]>,
        appended: &mut Appended,
        user: &UserId,
    ) -> Result<(), RoomError> {
        let (number, after) = (appended.event.number, appended.event.after);
        let event = Arc::new(appended.event.clone());
        self.pending.events.insert(number, event);
        let states = kept.iter().map(|extremity| extremity.after);
        let states: Vec<_> = states.chain([after]).collect();
        let in_place = Prepared::in_place();
        let root = match self.resolved(states.into_iter(), &in_place).await {
            Ok(Ok(root)) => root,
            // They are history then.
            Ok(Err(_)) | Err(RoomError::Unresolved(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let member = self.state_in(root, MEMBER, user.as_str()).await?;
        if member.is_none_or(|member| member.number != number) {
            let why = "what is known here of the room does not let you in";
            return Err(RoomError::forbidden(why));
        }
        self.count_members_between(after, root).await?;
        let head = &mut self.delta.head;
        kept.extend(head.extremities.drain(..));
        if bound_extremities(&mut kept) {
            head.apart = Some(root);
        }
        (head.extremities, head.root) = (kept, root);
        appended.log = Some(StateLogRow {
            root,
            joined: head.joined,
            invited: head.invited,
        });
        Ok(())
    }

    /// Greater than all that is here, and at least the depth that the event claims.
    pub(crate) fn height_over_gap(&self, join: &Pdu) -> u64 {
        join.depth().max(self.delta.head.highest.saturating_add(1))
    }

    /// The members among the events that authorise the join are part of a state that lacks them:
    /// whoever invited the user or vouches, and the invite.
    async fn add_members_among(&mut self, auth: &[Arc<StoredEvent>]) -> Result<(), RoomError> {
        let root = self.delta.head.root;
        let members = self.members_unknown_in(root, auth).await?;
        for member in &members {
            count(&mut self.delta.head, membership_of(member), 1);
        }
        let members: Vec<_> = members.iter().map(|member| &**member).collect();
        self.delta.head.root = self.edit_state(root, &members).await?;
        Ok(())
    }

    /// The events that authorise the join, if they do.
    async fn authorised_by(
        &self,
        import: ImportId,
        join: &Pdu,
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let room = self.room();
        let mut auth = Vec::with_capacity(join.auth_events().len());
        for id in join.auth_events() {
            let found = self.rooms.here_or_in(room, import, id).await?;
            auth.push(found.ok_or_else(|| {
                RoomError::forbidden(format!("{id}, which authorises the join, is missing"))
            })?);
        }
        let create = self.event(room.create).await?;
        judge::by_auth_events(room.rules, &create, join, &auth)
            .map_err(|why| RoomError::forbidden(format!("the join is not authorised: {why:?}")))?;
        Ok(auth)
    }

    /// Whether the state that was told is one of this room, and allows the join.
    async fn allowed_by_state(&self, join: &Pdu) -> Result<(), RoomError> {
        let room = self.room();
        let root = self.delta.head.root;
        let made = self.state_in(root, "m.room.create", "").await?;
        if made.is_none_or(|made| made.number != room.create) {
            return Err(RoomError::forbidden("the state is not that of the room"));
        }
        let state = self.auth_state_in(root, join).await?;
        let checked = state.check(room.rules, join);
        checked.map_err(|why| RoomError::forbidden(why.to_string()))
    }

    /// Makes an event the only extremity.
    fn follow_only(&mut self, appended: &mut Appended) -> Result<(), RoomError> {
        let event = &appended.event;
        let reference = event.pdu.reference();
        let reference = reference.map_err(|error| RoomError::damaged(error.to_string()))?;
        let head = &mut self.delta.head;
        head.root = event.after;
        head.extremities = smallvec![Extremity {
            number: event.number,
            id: event.pdu.event_id().to_owned(),
            reference_hash: reference.reference_hash,
            height: event.height,
            depth: event.pdu.depth(),
            after: event.after,
        }];
        head.sequence += 1;
        appended.log = Some(StateLogRow {
            root: head.root,
            joined: head.joined,
            invited: head.invited,
        });
        Ok(())
    }
}
