//! A client within the process: a user of this homeserver, without tokens and HTTP.
//!
//! What it does passes the same checks as everybody's requests, and the same rooms; what it is told
//! is what the user may see, in the order of the journal.

use std::{collections::VecDeque, sync::Arc};

use homeserver_events::Pdu;
use homeserver_federation::{InviteError, MembershipError, PolicyError};
use homeserver_rooms::{
    CreateRoom, EventNumber, Membership, MembershipChange, NewEvent, Reader, RoomAction,
    RoomAnswer, RoomError, RoomNumber, Rooms, journal,
};
use homeserver_runtime::Tasks;
use homeserver_storage::{Entry, Position, StorageError, Store};
use homeserver_users::{Accounts, Failure, UserNumber};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName,
    OwnedUserId, RoomId, UInt, UserId,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::{oneshot, watch};

use crate::{
    app::rooms::{Actor, ChangeError, Door, RoomChanges},
    http::Components,
};

/// Journal entries read in one go.
const ENTRIES_AT_ONCE: usize = 100;

/// What was asked of the homeserver was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such account, or it is closed.
    #[error("{0} is not a user of this homeserver")]
    NoSuchUser(String),
    /// The content is not JSON.
    #[error("the content cannot be written as JSON")]
    Content(#[from] serde_json::Error),
    /// The alias leads nowhere.
    #[error("there is no room {0}")]
    NoSuchRoom(OwnedRoomOrAliasId),
    /// The user takes no invites.
    #[error("{0} does not accept invites")]
    InviteBlocked(OwnedUserId),
    /// The content is not what its type must hold.
    #[error("{0}")]
    BadContent(&'static str),
    /// The room refused.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The server of the invited user did not sign the invite.
    #[error(transparent)]
    Invite(Box<InviteError>),
    /// The room is elsewhere, and no server there let the user in.
    #[error(transparent)]
    Elsewhere(Box<MembershipError>),
    /// What belongs to the user could not be read.
    #[error(transparent)]
    Users(#[from] Failure),
    /// The journal could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It ended without an answer; it may or may not have been done.
    #[error("what was asked ended without an answer")]
    Unanswered,
    /// The room's policy server does not recommend the event.
    #[error(transparent)]
    Policy(Box<PolicyError>),
    /// The rooms answered something else than was asked.
    #[error("an unexpected answer")]
    Answer,
}

impl From<ChangeError> for ClientError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Room(error) => Self::Room(error),
            ChangeError::InviteBlocked(user) => Self::InviteBlocked(user),
            ChangeError::BadContent(problem) => Self::BadContent(problem),
            ChangeError::Invite(error) => Self::Invite(Box::new(error)),
            ChangeError::Policy(error) => Self::Policy(Box::new(error)),
            ChangeError::Elsewhere(error) => Self::Elsewhere(Box::new(error)),
            ChangeError::Users(error) => Self::Users(error),
            // Nothing here asks for one.
            ChangeError::Identity(_) => Self::Answer,
        }
    }
}

/// A user of this homeserver, within the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalUser {
    user: OwnedUserId,
    number: UserNumber,
    rooms: Arc<Rooms>,
    accounts: Accounts,
    changes: RoomChanges,
    store: Store,
    tasks: Tasks,
}

impl LocalUser {
    pub(crate) async fn open(components: &Components, user: &str) -> Result<Self, ClientError> {
        let missing = || ClientError::NoSuchUser(user.to_owned());
        let user_id = UserId::parse(user).map_err(|_| missing())?;
        let account = components.accounts.by_id(&user_id).await?;
        let account = account.filter(homeserver_users::Account::is_active);
        let account = account.ok_or_else(missing)?;
        Ok(Self {
            user: account.user_id,
            number: account.number,
            rooms: Arc::clone(&components.rooms),
            accounts: components.accounts.clone(),
            changes: components.room_changes.clone(),
            store: components.store.clone(),
            tasks: components.runtime.tasks.clone(),
        })
    }

    /// The user id.
    pub fn user_id(&self) -> &UserId {
        &self.user
    }

    /// Makes a room.
    pub async fn create_room(&self, mut room: CreateRoom) -> Result<OwnedRoomId, ClientError> {
        self.changes.introduce(&self.user, &mut room).await?;
        match self.act(RoomAction::Create(Box::new(room))).await? {
            RoomAnswer::Created { room, .. } => Ok(room),
            _ => Err(ClientError::Answer),
        }
    }

    /// Joins a room by id or alias, here or elsewhere. Gives its id.
    pub async fn join(
        &self,
        room: impl Into<OwnedRoomOrAliasId>,
    ) -> Result<OwnedRoomId, ClientError> {
        self.join_via(room, Vec::new()).await
    }

    /// The same, by way of servers that are in the room. Where the user is invited, or the room has an
    /// alias, they need not be named.
    pub async fn join_via(
        &self,
        room: impl Into<OwnedRoomOrAliasId>,
        via: Vec<OwnedServerName>,
    ) -> Result<OwnedRoomId, ClientError> {
        let door = self.door(room.into(), via, None).await?;
        let room = door.room.clone();
        self.by_itself(|changes, user| async move { changes.join(actor(&user), door, None).await })
            .await?;
        Ok(room)
    }

    /// Asks to be let into a room, here or elsewhere, by way of servers that are in it. Gives its id.
    pub async fn knock(
        &self,
        room: impl Into<OwnedRoomOrAliasId>,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<OwnedRoomId, ClientError> {
        let door = self.door(room.into(), via, reason).await?;
        let room = door.room.clone();
        self.by_itself(|changes, user| async move { changes.knock(actor(&user), door).await })
            .await?;
        Ok(room)
    }

    /// Leaves a room, refuses its invite or takes a knock back, wherever the room is.
    pub async fn leave(&self, room: &RoomId) -> Result<(), ClientError> {
        let room = room.to_owned();
        self.by_itself(|changes, user| async move { changes.leave(actor(&user), room, None).await })
            .await
    }

    /// The room that somebody wants to be in.
    async fn door(
        &self,
        named: OwnedRoomOrAliasId,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<Door, ClientError> {
        match self.changes.door(&named, via, reason).await {
            Err(ChangeError::Room(RoomError::UnknownAlias)) => Err(ClientError::NoSuchRoom(named)),
            other => Ok(other?),
        }
    }

    /// Invites somebody.
    pub async fn invite(&self, room: &RoomId, user: &UserId) -> Result<(), ClientError> {
        let change = MembershipChange::Invite {
            user: user.to_owned(),
            profile: self.changes.profile_of(user).await?,
            is_direct: false,
        };
        self.change_membership(room, change).await
    }

    /// Sends an event. Gives its id once it is on disk.
    pub async fn send(
        &self,
        room: &RoomId,
        event_type: &str,
        content: &impl Serialize,
    ) -> Result<OwnedEventId, ClientError> {
        self.send_event(room, event_type, None, content).await
    }

    /// Sends a state event. Gives its id once it is on disk.
    pub async fn send_state(
        &self,
        room: &RoomId,
        event_type: &str,
        state_key: &str,
        content: &impl Serialize,
    ) -> Result<OwnedEventId, ClientError> {
        self.send_event(room, event_type, Some(state_key), content)
            .await
    }

    /// Everything that happens from now on in rooms that the user is in, and to the user.
    pub fn events(&self) -> UserEvents {
        self.events_after(self.store.durable())
    }

    /// Like [`LocalUser::events`], from a position on that [`UserEvent::position`] gave.
    pub fn events_after(&self, position: Position) -> UserEvents {
        UserEvents {
            user: self.clone(),
            after: position,
            ready: VecDeque::new(),
            durable: self.store.subscribe(),
        }
    }

    async fn send_event(
        &self,
        room: &RoomId,
        event_type: &str,
        state_key: Option<&str>,
        content: &impl Serialize,
    ) -> Result<OwnedEventId, ClientError> {
        let event = NewEvent {
            event_type: event_type.to_owned(),
            state_key: state_key.map(str::to_owned),
            content: to_raw_value(content)?,
            timestamp: None,
        };
        let room = room.to_owned();
        match self.act(RoomAction::Send { room, event }).await? {
            RoomAnswer::Sent { event, .. } => Ok(event),
            _ => Err(ClientError::Answer),
        }
    }

    async fn change_membership(
        &self,
        room: &RoomId,
        change: MembershipChange,
    ) -> Result<(), ClientError> {
        let action = RoomAction::Membership {
            room: room.to_owned(),
            change,
            reason: None,
        };
        self.act(action).await.map(drop)
    }

    async fn act(&self, action: RoomAction) -> Result<RoomAnswer, ClientError> {
        self.by_itself(|changes, user| async move { changes.act(actor(&user), action).await })
            .await
    }

    /// Does something in a task of its own: whoever holds our future without polling it keeps no room
    /// waiting.
    async fn by_itself<T, F>(
        &self,
        what: impl FnOnce(RoomChanges, OwnedUserId) -> F,
    ) -> Result<T, ClientError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ChangeError>> + Send + 'static,
    {
        // The account may have been closed since this handle was made.
        let account = self.accounts.by_number(self.number).await?;
        if !account.is_some_and(|account| account.is_active()) {
            return Err(ClientError::NoSuchUser(self.user.to_string()));
        }
        let done = what(self.changes.clone(), self.user.clone());
        let (tell, hear) = oneshot::channel();
        self.tasks.spawn(async move {
            let _ = tell.send(done.await);
        });
        match hear.await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(unanswered(&self.tasks)),
        }
    }
}

/// Somebody within the process.
fn actor(user: &OwnedUserId) -> Actor<'_> {
    Actor { user, device: None }
}

/// Why a task is gone without a word: all are ended, or it alone panicked.
fn unanswered(tasks: &Tasks) -> ClientError {
    if tasks.is_stopping() {
        RoomError::Stopping.into()
    } else {
        ClientError::Unanswered
    }
}

/// An event as a user within the process is told of it.
#[derive(Clone, Debug)]
pub struct UserEvent {
    /// The room.
    pub room: OwnedRoomId,
    /// Where it stands in the journal; [`LocalUser::events_after`] goes on from there.
    pub position: Position,
    event: Pdu,
}

impl UserEvent {
    /// The event's id.
    pub fn event_id(&self) -> &ruma::EventId {
        self.event.event_id()
    }

    /// Who sent it.
    pub fn sender(&self) -> &UserId {
        self.event.sender()
    }

    /// Its type.
    pub fn event_type(&self) -> &str {
        self.event.event_type()
    }

    /// Its state key, if it is a state event.
    pub fn state_key(&self) -> Option<&str> {
        self.event.state_key()
    }

    /// When its server says that it was sent.
    pub fn sent_at(&self) -> MilliSecondsSinceUnixEpoch {
        let millis = UInt::new_saturating(self.event.origin_server_ts());
        MilliSecondsSinceUnixEpoch(millis)
    }

    /// Its content as JSON.
    pub fn content(&self) -> &RawValue {
        self.event.content()
    }

    /// Its content as a type of ruma's or of one's own.
    pub fn content_as<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content().get())
    }
}

/// The stream of a user's events.
#[derive(Debug)]
pub struct UserEvents {
    user: LocalUser,
    after: Position,
    ready: VecDeque<UserEvent>,
    durable: watch::Receiver<Position>,
}

impl UserEvents {
    /// The next event; `None` once the homeserver has stopped.
    pub async fn next(&mut self) -> Option<Result<UserEvent, ClientError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            let durable = *self.durable.borrow_and_update();
            if self.after < durable {
                if let Err(error) = self.read(durable).await {
                    return Some(Err(error));
                }
            } else {
                self.durable.changed().await.ok()?;
            }
        }
    }

    async fn read(&mut self, durable: Position) -> Result<(), ClientError> {
        let journal = self.user.store.journal();
        let entries = journal
            .read_all(self.after, durable, ENTRIES_AT_ONCE)
            .await?;
        let full = entries.len() == ENTRIES_AT_ONCE;
        let last = entries.last().map(|(position, _)| *position);
        let upto = last.filter(|_| full).unwrap_or(durable);
        let rooms = Arc::clone(&self.user.rooms);
        let reader = rooms.reader(self.user.user.clone(), upto).await?;
        let mut read = Vec::new();
        for (position, entry) in entries {
            match self.user.read_one(&reader, position, &entry).await {
                Ok(event) => read.extend(event),
                // One damaged room costs only itself.
                Err(ClientError::Room(error)) if error.is_damage() => {
                    tracing::error!(%error, position, "not told within the process");
                }
                Err(error) => return Err(error),
            }
        }
        // Together and after the last error: what is read again was not told yet.
        self.ready.extend(read);
        self.after = upto;
        Ok(())
    }
}

impl LocalUser {
    /// The event of a journal entry, if it is one and concerns the user.
    async fn read_one(
        &self,
        reader: &Reader,
        position: Position,
        entry: &Entry,
    ) -> Result<Option<UserEvent>, ClientError> {
        let &[room, event, ..] = entry.numbers.as_slice() else {
            return Ok(None);
        };
        if entry.kind == journal::MEMBERS_CHANGED {
            return self.read_outside(RoomNumber(room), position).await;
        }
        if entry.kind != journal::ROOM_EVENT {
            return Ok(None);
        }
        let number = self.rooms.user_number(&self.user).await?;
        let room = RoomNumber(room);
        let membership = self.rooms.membership(number, room, position).await?;
        let concerned = membership.is_some_and(|membership| {
            membership.membership == Membership::Join || membership.since == position
        });
        let room = self.rooms.room_by_number(room).await?;
        let numbers = [EventNumber(event)];
        let mut events = self.rooms.visible(reader, &room, &numbers).await?;
        // The first event of a room comes before its creator's membership.
        let event = events.pop();
        let event = event.filter(|event| concerned || event.pdu().sender() == self.user);
        Ok(event.map(|event| UserEvent {
            room: room.id.clone(),
            position,
            event: event.pdu().clone(),
        }))
    }

    /// The event by which the user was invited to a room that is elsewhere, or the like.
    async fn read_outside(
        &self,
        room: RoomNumber,
        position: Position,
    ) -> Result<Option<UserEvent>, ClientError> {
        let number = self.rooms.user_number(&self.user).await?;
        let membership = self.rooms.membership(number, room, position).await?;
        if membership.is_none_or(|membership| membership.since != position) {
            return Ok(None);
        }
        let room = self.rooms.room_by_number(room).await?;
        let standing = self.rooms.standing_of(&self.user, &room.id).await?;
        let standing = standing.filter(|standing| standing.outside);
        Ok(standing.map(|standing| UserEvent {
            room: room.id.clone(),
            position,
            event: standing.pdu,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, ops::Range};

    use homeserver_storage::engines::{
        faulty::{Fault, FaultPlan, FaultyEngine},
        memory::MemoryEngine,
    };
    use serde_json::json;

    use super::*;
    use crate::http::tests::{fresh, fresh_on};

    #[tokio::test]
    async fn events_are_told_to_those_in_the_room_in_order() {
        let fresh = fresh().await;
        for name in ["alice", "bob", "eve"] {
            let administration = fresh.homeserver.administration();
            administration.create_user(name, None, false).await.unwrap();
        }
        let user = async |name: &str| {
            let id = format!("@{name}:localhost");
            fresh.homeserver.user(&id).await.unwrap()
        };
        let (alice, bob, eve) = (user("alice").await, user("bob").await, user("eve").await);
        let (mut to_bob, mut to_eve) = (bob.events(), eve.events());
        let room = alice.create_room(CreateRoom::default()).await.unwrap();
        alice.invite(&room, bob.user_id()).await.unwrap();
        bob.join(room.clone()).await.unwrap();
        let mut sent = Vec::new();
        for n in 0..10 {
            let content = json!({ "msgtype": "m.text", "body": n.to_string() });
            sent.push(alice.send(&room, "m.room.message", &content).await.unwrap());
        }
        // Eve is told nothing of all this, only of what is hers.
        let own = eve.create_room(CreateRoom::default()).await.unwrap();
        let first = to_eve.next().await.unwrap().unwrap();
        assert_eq!(
            (first.room.clone(), first.event_type()),
            (own, "m.room.create")
        );

        let mut received = Vec::new();
        let mut memberships = Vec::new();
        while received.len() < sent.len() {
            let event = to_bob.next().await.unwrap().unwrap();
            match event.event_type() {
                "m.room.message" => received.push(event.event_id().to_owned()),
                "m.room.member" => memberships.push(event.state_key().unwrap().to_owned()),
                _ => {}
            }
        }
        assert_eq!(received, sent);
        assert_eq!(memberships, ["@bob:localhost", "@bob:localhost"]);
        assert!(eve.join(room).await.is_err());
    }

    /// What a user is told of a room of their own, asked again after each error, on a disk with
    /// these faults; the calls of the disk that reading takes, and the errors.
    async fn told_with(faults: Vec<(u64, Fault)>) -> (Range<u64>, usize) {
        let plan = FaultPlan {
            at: faults,
            ..FaultPlan::none(1)
        };
        let disk = Arc::new(FaultyEngine::new(Arc::new(MemoryEngine::new()), plan));
        let fresh = fresh_on(Arc::clone(&disk) as _).await;
        let administration = fresh.homeserver.administration();
        let made = administration.create_user("alice", None, false);
        made.await.unwrap();
        let alice = fresh.homeserver.user("@alice:localhost").await.unwrap();
        let mut events = alice.events();
        let room = alice.create_room(CreateRoom::default()).await.unwrap();
        let content = json!({ "msgtype": "m.text", "body": "last" });
        let last = alice.send(&room, "m.room.message", &content).await.unwrap();
        let start = disk.calls();
        let (mut told, mut errors) = (Vec::new(), 0);
        while told.last() != Some(&last) {
            match events.next().await.unwrap() {
                Ok(event) => told.push(event.event_id().to_owned()),
                Err(_) => errors += 1,
            }
        }
        let end = disk.calls();
        let once: BTreeSet<_> = told.iter().collect();
        assert_eq!(once.len(), told.len(), "told twice");
        (start..end, errors)
    }

    #[tokio::test]
    async fn an_event_is_told_once_whatever_read_fails() {
        let (calls, _) = told_with(Vec::new()).await;
        let mut errors = 0;
        for call in calls {
            errors += told_with(vec![(call, Fault::Error)]).await.1;
        }
        assert!(errors > 1, "{errors}");
    }

    #[tokio::test]
    async fn what_is_damaged_keeps_nobody_from_what_follows() {
        let fresh = fresh().await;
        let administration = fresh.homeserver.administration();
        let made = administration.create_user("alice", None, false);
        made.await.unwrap();
        let alice = fresh.homeserver.user("@alice:localhost").await.unwrap();
        let mut events = alice.events();
        let mut batch = homeserver_storage::Batch::new();
        let of_no_room = Entry::new(journal::ROOM_EVENT, &[u64::MAX, 1]);
        batch.append(&of_no_room, &[]);
        alice.store.commit(batch).await.unwrap();
        let room = alice.create_room(CreateRoom::default()).await.unwrap();
        let told = events.next().await.unwrap().unwrap();
        assert_eq!(
            (told.room.clone(), told.event_type()),
            (room, "m.room.create")
        );
    }

    #[test]
    fn a_task_that_broke_is_not_a_homeserver_that_stops() {
        let tasks = Tasks::default();
        assert!(matches!(unanswered(&tasks), ClientError::Unanswered));
        tasks.stop();
        let stopping = unanswered(&tasks);
        assert!(matches!(stopping, ClientError::Room(RoomError::Stopping)));
    }

    /// What a request of the user's would be refused is refused here too.
    #[tokio::test]
    async fn the_checks_of_requests_hold_within_the_process() {
        let fresh = fresh().await;
        let administration = fresh.homeserver.administration();
        for name in ["alice", "bob"] {
            administration.create_user(name, None, false).await.unwrap();
        }
        let user = async |name: &str| {
            let id = format!("@{name}:localhost");
            fresh.homeserver.user(&id).await.unwrap()
        };
        let (alice, bob) = (user("alice").await, user("bob").await);
        let room = alice.create_room(CreateRoom::default()).await.unwrap();
        let content = json!({ "redacts": 5 });
        let redaction = alice.send(&room, "m.room.redaction", &content).await;
        assert!(matches!(redaction, Err(ClientError::BadContent(_))));
        let content = to_raw_value(&json!({ "default_action": "block" })).unwrap();
        let data = &fresh.homeserver.components().account_data;
        let scope = homeserver_users::Scope::Global;
        let set = data.set(bob.number, scope, "m.invite_permission_config", &content);
        set.await.unwrap();
        let invited = alice.invite(&room, bob.user_id()).await;
        assert!(matches!(invited, Err(ClientError::InviteBlocked(user)) if user == bob.user_id()));
        let wanted = CreateRoom {
            invite: vec![bob.user_id().to_owned()],
            ..CreateRoom::default()
        };
        let made = alice.create_room(wanted).await;
        assert!(matches!(made, Err(ClientError::InviteBlocked(_))));
        administration.deactivate("alice", false).await.unwrap();
        let late = alice.send(&room, "m.room.message", &json!({})).await;
        assert!(matches!(late, Err(ClientError::NoSuchUser(_))));
    }
}
