//! A room while it is being changed: loads what each decision looks at, and collects what the
//! decisions write.
//!
//! An edit appends one event after the other to a tip that only it sees; createRoom is an edit of
//! many events, sending a message one of one. What comes out is a [`RoomDelta`].

pub(crate) mod count;
pub(crate) mod member;
pub(crate) mod redact;

use std::{collections::HashMap, sync::Arc};

use homeserver_events::{CanonicalObject, EventStatus, auth};
use ruma::{EventId, OwnedEventId, OwnedServerName, UserId};
use serde::Deserialize;

use crate::{
    Rooms,
    command::NewEvent,
    decide::{AuthState, Decided, Proposal},
    delta::{Appended, Relation, RoomDelta},
    error::RoomError,
    event::StoredEvent,
    numbers::EventNumber,
    room::Room,
    rows::{Extremity, Head, JoinedUsers, Origin, StateLogRow},
    states::PendingNodes,
    tally::ClassCounts,
    tree::{Change, StateRoot},
};

/// What commits on their way have made, for the decisions that build on them.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) nodes: PendingNodes,
    /// State events of this server, and all events of others.
    pub(crate) events: HashMap<EventNumber, Arc<StoredEvent>>,
    /// Numbers given to events: to those of other servers, and to what was only mentioned.
    pub(crate) mentioned: HashMap<OwnedEventId, EventNumber>,
    /// What threads have counted.
    pub(crate) threads: HashMap<EventNumber, ClassCounts>,
    /// How many users of servers are joined.
    pub(crate) servers: HashMap<OwnedServerName, JoinedUsers>,
}

impl Pending {
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
            + self.events.len()
            + self.mentioned.len()
            + self.threads.len()
            + self.servers.len()
    }

    pub(crate) fn clear(&mut self) {
        self.nodes.clear();
        self.events.clear();
        self.mentioned.clear();
        self.threads.clear();
        self.servers.clear();
    }
}

/// A room being changed.
pub(crate) struct RoomEdit<'a> {
    pub(crate) rooms: &'a Rooms,
    pub(crate) delta: RoomDelta,
    pub(crate) pending: &'a mut Pending,
}

impl<'a> RoomEdit<'a> {
    /// An edit of the room whose tip is `head`; `None` for a room that does not exist yet.
    pub(crate) fn new(
        rooms: &'a Rooms,
        room: Arc<Room>,
        head: Option<Head>,
        pending: &'a mut Pending,
    ) -> Self {
        Self {
            rooms,
            delta: RoomDelta::new(room, head),
            pending,
        }
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.delta.room
    }

    /// Whether only part of the room's state is here.
    pub(crate) fn is_partial(&self) -> bool {
        self.rooms.is_partial(self.room().number)
    }

    /// The event of a state key at the tip.
    pub(crate) async fn state(
        &self,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        self.state_in(self.delta.head.root, event_type, state_key)
            .await
    }

    /// The event of a state key in some state of the room.
    pub(crate) async fn state_in(
        &self,
        root: StateRoot,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        let key = (event_type, state_key);
        let found = self
            .rooms
            .state_item(self.room(), &self.pending.nodes, root, key);
        match found.await? {
            Some(item) => Ok(Some(self.event(item.event).await?)),
            None => Ok(None),
        }
    }

    /// An event of the room, also one that is on its way to disk.
    pub(crate) async fn event(&self, number: EventNumber) -> Result<Arc<StoredEvent>, RoomError> {
        match self.pending.events.get(&number) {
            Some(event) => Ok(Arc::clone(event)),
            None => self.rooms.events.load(self.room(), number).await,
        }
    }

    /// The events, which something names, in the order of `numbers`.
    pub(crate) async fn events(
        &self,
        numbers: &[EventNumber],
    ) -> Result<Vec<Arc<StoredEvent>>, RoomError> {
        let pending = |number: &EventNumber| self.pending.events.get(number).map(Arc::clone);
        let mut found: Vec<_> = numbers.iter().map(pending).collect();
        let stored = numbers.iter().zip(&found);
        let stored: Vec<_> = stored
            .filter(|(_, found)| found.is_none())
            .map(|(number, _)| *number)
            .collect();
        let mut stored = self
            .rooms
            .events
            .load_all(self.room(), &stored)
            .await?
            .into_iter();
        for found in &mut found {
            if found.is_none() {
                *found = stored.next();
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// An event of the room if it is here or, as far as that is known, on its way to disk.
    pub(crate) async fn find(
        &self,
        number: EventNumber,
    ) -> Result<Option<Arc<StoredEvent>>, RoomError> {
        match self.pending.events.get(&number) {
            Some(event) => Ok(Some(Arc::clone(event))),
            None => self.rooms.events.find(self.room(), number).await,
        }
    }

    /// The number of an event of this room, also of one that was only mentioned.
    pub(crate) async fn number_of(&self, id: &EventId) -> Result<Option<EventNumber>, RoomError> {
        match self.pending.mentioned.get(id) {
            Some(number) => Ok(Some(*number)),
            None => self.rooms.events.number(self.room().number, id).await,
        }
    }

    /// The number of an event of this room, given now if it is mentioned for the first time.
    pub(crate) async fn mention(&mut self, id: &EventId) -> Result<EventNumber, RoomError> {
        if let Some(number) = self.number_of(id).await? {
            return Ok(number);
        }
        let number = self.rooms.numbering.new_event().await?;
        self.pending.mentioned.insert(id.to_owned(), number);
        self.delta.mentioned.push((id.to_owned(), number));
        Ok(number)
    }

    /// Whether the create event of this room is yet to come and will name the room.
    fn names_the_room(&self, event: &NewEvent) -> bool {
        event.event_type == "m.room.create" && self.room().rules.create_is_implied()
    }

    /// Appends an event of this server to the tip, if the rules allow it.
    pub(crate) async fn append(
        &mut self,
        sender: &UserId,
        event: &NewEvent,
        origin: Option<Origin>,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let decided = self.propose(sender, event).await?;
        self.take(decided, origin).await
    }

    /// Seals an event of this server that would follow the tip, if the rules allow it.
    pub(crate) async fn propose(
        &self,
        sender: &UserId,
        event: &NewEvent,
    ) -> Result<Decided, RoomError> {
        let state = self.auth_state(sender, event).await?;
        let proposal = self.proposal(sender, event, &state)?;
        proposal.decide(&self.rooms.options.server_name, &self.rooms.signing_key)
    }

    /// The template of an event by a user of another server that would follow the tip, if the rules
    /// allow it.
    pub(crate) async fn template(
        &self,
        sender: &UserId,
        event: &NewEvent,
    ) -> Result<CanonicalObject, RoomError> {
        let state = self.auth_state(sender, event).await?;
        self.proposal(sender, event, &state)?.template()
    }

    fn proposal<'p>(
        &'p self,
        sender: &'p UserId,
        event: &'p NewEvent,
        state: &'p AuthState,
    ) -> Result<Proposal<'p>, RoomError> {
        Ok(Proposal {
            rules: self.room().rules,
            room_id: (!self.names_the_room(event)).then(|| self.room().id.clone()),
            sender,
            event,
            redacts: redact::redacts(event)?,
            now: self.rooms.clock.unix_millis(),
            extremities: &self.delta.head.extremities,
            state,
        })
    }

    /// The state that the rules look at for this event.
    async fn auth_state(&self, sender: &UserId, event: &NewEvent) -> Result<AuthState, RoomError> {
        let mut state = AuthState::default();
        let rules = self.room().rules;
        let state_key = event.state_key.as_deref();
        let kinds = auth::auth_types(rules, &event.event_type, sender, state_key, &event.content);
        let mut create_seen = false;
        for (event_type, state_key) in &kinds {
            create_seen |= *event_type == "m.room.create";
            if let Some(found) = self.state(event_type, state_key).await? {
                state.push(found);
            }
        }
        // Where the room id stands for the create event it is not chosen, but looked at.
        if !create_seen && let Some(create) = self.state("m.room.create", "").await? {
            state.push(create);
        }
        Ok(state)
    }

    /// Makes a decided event part of the tip.
    async fn take(
        &mut self,
        decided: Decided,
        origin: Option<Origin>,
    ) -> Result<Arc<StoredEvent>, RoomError> {
        let number = self.rooms.numbering.new_event().await?;
        let before = self.delta.head.root;
        let partial = self.is_partial();
        let mut event = StoredEvent {
            number,
            room: self.room().number,
            status: EventStatus::Accepted { before, partial },
            after: before,
            position: None,
            height: self.delta.head.next_height(),
            backfill_tie: None,
            auth_height: decided.auth_height,
            auth: decided.auth.into(),
            prev: self.delta.head.extremities[..decided.follows]
                .iter()
                .map(|extremity| extremity.number)
                .collect(),
            over_gap: false,
            replaces: None,
            redacted_by: None,
            origin,
            pdu: decided.pdu,
        };
        let mut replaced = None;
        if let Some((event_type, state_key)) = event.pdu.state_pair() {
            replaced = self.state(event_type, state_key).await?;
            event.replaces = replaced.as_ref().map(|event| event.number);
            event.after = self.edit_state(before, &[&event]).await?;
        }
        let mut appended = Appended::plain(event);
        self.note_member(&mut appended, replaced.as_deref()).await?;
        self.note_relation(&mut appended).await?;
        self.note_redaction(&appended).await?;
        self.note_count(&mut appended).await?;
        self.move_head(&mut appended, decided.follows)?;
        Ok(self.push(appended))
    }

    /// A state with these state events set.
    pub(crate) async fn edit_state(
        &mut self,
        root: StateRoot,
        events: &[&StoredEvent],
    ) -> Result<StateRoot, RoomError> {
        let mut changes = Vec::with_capacity(events.len());
        for event in events {
            let Some((event_type, state_key)) = event.pdu.state_pair() else {
                continue;
            };
            changes.push(Change {
                hash: self.rooms.states.place(event_type, state_key),
                key: self.rooms.numbering.key(event_type, state_key).await?,
                value: Some((event.number, event.auth_height)),
            });
        }
        self.change_tree(root, &changes).await
    }

    /// A state with these keys changed. Its new nodes are part of the edit.
    pub(crate) async fn change_tree(
        &mut self,
        root: StateRoot,
        changes: &[Change],
    ) -> Result<StateRoot, RoomError> {
        let room = self.room().number;
        let edited = self
            .rooms
            .states
            .edit(room, &self.pending.nodes, root, changes)
            .await?;
        for sealed in &edited.written {
            self.pending
                .nodes
                .insert(sealed.id, Arc::clone(&sealed.node));
        }
        self.delta.nodes.extend(edited.written);
        Ok(edited.root)
    }

    /// Moves the tip to an accepted event that follows the first `follows` extremities.
    fn move_head(&mut self, appended: &mut Appended, follows: usize) -> Result<(), RoomError> {
        let event = &appended.event;
        let head = &mut self.delta.head;
        if event.after != head.root {
            head.root = event.after;
            appended.log = Some(StateLogRow {
                root: head.root,
                joined: head.joined,
                invited: head.invited,
            });
        }
        let reference = event.pdu.reference();
        let reference = reference.map_err(|e| RoomError::damaged(e.to_string()))?;
        head.extremities.drain(..follows);
        // The event's own state is the room's, which that is part of.
        head.apart = None;
        head.extremities.push(Extremity {
            number: event.number,
            id: event.pdu.event_id().to_owned(),
            reference_hash: reference.reference_hash,
            height: event.height,
            depth: event.pdu.depth(),
            after: event.after,
        });
        head.sequence += 1;
        Ok(())
    }

    /// Adds an event to the delta.
    pub(crate) fn push(&mut self, mut appended: Appended) -> Arc<StoredEvent> {
        if appended.event.status.is_partial() {
            // Each event of a room has a number of its own in this count.
            appended.judged = Some(self.delta.head.sequence);
        }
        if appended.shown {
            let highest = &mut self.delta.head.highest;
            *highest = (*highest).max(appended.event.height);
            appended.highest = *highest;
        }
        let event = Arc::new(appended.event.clone());
        if event.pdu.state_key().is_some() {
            self.pending.events.insert(event.number, Arc::clone(&event));
        }
        if let (Some(root), Some(counts)) = (appended.count.thread, appended.count.in_thread) {
            self.pending.threads.insert(root, counts);
        }
        self.delta.appended.push(appended);
        event
    }

    /// Notes the relation that an event declares in its content.
    pub(crate) async fn note_relation(&mut self, appended: &mut Appended) -> Result<(), RoomError> {
        let Some(declared) = declared_relation(&appended.event) else {
            return Ok(());
        };
        // Possible in room versions 1 and 2, where the sender chooses the id.
        if declared.target == appended.event.pdu.event_id() {
            return Ok(());
        }
        appended.relation = Some(Relation {
            target: self.mention(&declared.target).await?,
            rel_type: declared.rel_type,
            key: declared.key,
        });
        Ok(())
    }
}

/// Bytes of a `rel_type` at most: it is part of keys. An event with a longer one relates to nothing.
const MAX_REL_TYPE: usize = 200;

/// A relation as an event declares it (client-server API, "Forming relationships between events").
pub(crate) struct DeclaredRelation {
    pub(crate) target: OwnedEventId,
    pub(crate) rel_type: String,
    pub(crate) key: Option<String>,
}

/// The relation that an event declares. State events form none.
pub(crate) fn declared_relation(event: &StoredEvent) -> Option<DeclaredRelation> {
    match event.pdu.state_key() {
        Some(_) => None,
        None => declared_in(event.pdu.content_str()),
    }
}

/// The relation in the content of an event.
pub(crate) fn declared_in(content: &str) -> Option<DeclaredRelation> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: RelatesTo,
    }
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: String,
        event_id: OwnedEventId,
        key: Option<String>,
    }
    if !content.contains("m.relates_to") {
        return None;
    }
    let content: Content = serde_json::from_str(content).ok()?;
    let relates_to = content.relates_to;
    // An empty type would fall together with the index of all relations.
    let fits = (1..=MAX_REL_TYPE).contains(&relates_to.rel_type.len());
    fits.then_some(DeclaredRelation {
        target: relates_to.event_id,
        rel_type: relates_to.rel_type,
        key: relates_to.key,
    })
}
