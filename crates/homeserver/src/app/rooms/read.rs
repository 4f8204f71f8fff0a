//! Reading rooms: who may read at all, and what is handed to the visibility check.
//!
//! Two doors, and no other way in: a *member's door* ([`RoomReads::enter`]) for members, former
//! members (up to where they left) and anybody in a world-readable room; and the visibility of a
//! single event, for what is asked by event id. Whatever event leaves is a `VisibleEvent`.
//!
//! Specification: client-server API, "Getting events for a room", "Room history visibility".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use homeserver_federation::Inbound;
use homeserver_rooms::{
    EventNumber, Membership, ReadableState, Reader, Room, RoomError, Rooms, UserMembership,
    VisibleEvent,
};
use homeserver_runtime::Runtime;
use homeserver_users::{AccountData, Accounts, Failure, Users};
use ruma::{EventId, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    app::{ignored::IgnoredUsers, session::Session},
    client_event::present::Presenter,
};

/// How long the members of a room are waited for of whose state only part is here: as long as clients
/// usually wait for an answer.
pub(super) const MEMBERS_PATIENCE: Duration = Duration::from_secs(30);

/// Member events that are read in one go where only what they show is kept.
const MEMBERS_AT_ONCE: usize = 500;

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The reader is not and was not in the room, or has forgotten it, or there is no such room.
    #[error("You are not a member of this room")]
    NotInRoom,
    /// The room is not known here, and the endpoint may say so.
    #[error("The room was not found")]
    NoSuchRoom,
    /// There is no such event in the room, or the reader may not see it.
    #[error("The event was not found")]
    NoSuchEvent,
    /// The state has no such entry.
    #[error("The room has no state of this type and key")]
    NoSuchState,
    /// No event lies in the direction asked for.
    #[error("No event was found from this time in this direction")]
    NothingNear,
    /// The text is not a token, or not one of this database.
    #[error("This token is not valid")]
    BadToken,
    /// The rooms could not be read.
    #[error(transparent)]
    Room(RoomError),
    /// The reader's settings could not be read.
    #[error("the reader's settings could not be read")]
    Users(#[from] Failure),
}

impl From<RoomError> for ReadError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::UnknownRoom => Self::NotInRoom,
            RoomError::UnknownEvent => Self::NoSuchEvent,
            RoomError::InvalidToken => Self::BadToken,
            other => Self::Room(other),
        }
    }
}

impl ReadError {
    /// Whether it says that the reader may not see something.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::NotInRoom | Self::NoSuchRoom | Self::NoSuchEvent)
    }
}

/// A state event, written in both ways that clients ask for.
#[derive(Debug)]
pub(crate) struct StateEntry {
    /// The content alone.
    pub(crate) content: Box<RawValue>,
    /// The whole event.
    pub(crate) event: Box<RawValue>,
}

/// What a member event shows of its user.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ShownMember {
    /// The display name.
    pub(crate) displayname: Option<String>,
    /// The avatar, an `mxc:` URI.
    pub(crate) avatar_url: Option<String>,
}

/// Reads rooms for users of this server.
#[derive(Clone, Debug)]
pub(crate) struct RoomReads {
    pub(super) rooms: Arc<Rooms>,
    runtime: Runtime,
    accounts: Accounts,
    account_data: AccountData,
    /// Fetches history that is missing.
    pub(super) inbound: Inbound,
}

/// Somebody who was let into a room to read.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) room: Arc<Room>,
    pub(super) reader: Reader,
    /// The state that the reader sees.
    pub(super) state: ReadableState,
}

impl RoomReads {
    /// Reads these rooms, whose history is fetched by `inbound` where it is missing.
    pub(crate) fn new(
        rooms: Arc<Rooms>,
        runtime: Runtime,
        users: &Users,
        inbound: Inbound,
    ) -> Self {
        Self {
            rooms,
            runtime,
            accounts: users.accounts.clone(),
            account_data: users.account_data.clone(),
            inbound,
        }
    }

    /// Whom the reader ignores.
    pub(super) async fn ignored_by(&self, session: &Session) -> Result<IgnoredUsers, ReadError> {
        let ignored = IgnoredUsers::of(&session.user, &self.accounts, &self.account_data);
        Ok(ignored.await?)
    }

    /// The member's door: lets in members, former members who have not forgotten the room, and
    /// anybody if the room is world-readable.
    pub(super) async fn enter(&self, user: &UserId, room: &RoomId) -> Result<Visit, ReadError> {
        let (room, reader) = self.approach(user, room).await?;
        let state = self.rooms.state_root_for(&reader, &room).await?;
        let state = state.ok_or(ReadError::NotInRoom)?;
        Ok(Visit {
            room,
            reader,
            state,
        })
    }

    /// The member's door to a room whose members are asked for: where they are on their way, they
    /// are waited for.
    pub(super) async fn enter_whole(
        &self,
        user: &UserId,
        room: &RoomId,
    ) -> Result<Visit, ReadError> {
        let visit = self.enter(user, room).await?;
        let number = visit.room.number;
        if !self.rooms.is_partial(number) {
            return Ok(visit);
        }
        let whole = tokio::time::timeout(MEMBERS_PATIENCE, self.rooms.until_whole(number));
        if whole.await.is_err() {
            return Err(RoomError::PartialState.into());
        }
        self.enter(user, room).await
    }

    /// The room and who reads, without letting anybody in: what is read next is checked event by
    /// event.
    pub(super) async fn approach(
        &self,
        user: &UserId,
        room: &RoomId,
    ) -> Result<(Arc<Room>, Reader), ReadError> {
        let room = self.rooms.room(room).await?.ok_or(ReadError::NotInRoom)?;
        let reader = self
            .rooms
            .reader(user.to_owned(), self.rooms.store().durable())
            .await?;
        let mine = self.membership_of(&reader, &room).await?;
        if mine.is_some_and(|mine| mine.forgotten) {
            return Err(ReadError::NotInRoom);
        }
        Ok((room, reader))
    }

    pub(super) async fn membership_of(
        &self,
        reader: &Reader,
        room: &Room,
    ) -> Result<Option<UserMembership>, ReadError> {
        let Some(number) = reader.number else {
            return Ok(None);
        };
        let mine = self.rooms.membership(number, room.number, reader.position);
        Ok(mine.await?)
    }

    /// Whether the reader is in the room.
    pub(super) async fn is_member(&self, visit: &Visit) -> Result<bool, ReadError> {
        let mine = self.membership_of(&visit.reader, &visit.room).await?;
        Ok(mine.is_some_and(|mine| mine.membership == Membership::Join))
    }

    /// Whether anybody may see the room's present state: what a reader without any membership sees.
    pub(super) async fn is_world_readable(&self, visit: &Visit) -> Result<bool, ReadError> {
        let stranger = Reader {
            number: None,
            ..visit.reader.clone()
        };
        let state = self.rooms.state_root_for(&stranger, &visit.room).await?;
        Ok(state.is_some())
    }

    /// Events as this session sees them.
    pub(super) async fn present(
        &self,
        session: &Session,
        room: &Room,
        reader: &Reader,
        events: &[VisibleEvent],
    ) -> Result<Vec<Box<RawValue>>, ReadError> {
        let presenter = Presenter::new(&self.rooms, &*self.runtime.clock, reader, &session.device);
        let written = presenter.all(room, events).await?;
        let whole = written.iter().map(|event| event.to_json(Some(&room.id)));
        Ok(whole.collect())
    }

    /// The rooms that the user is in.
    pub(crate) async fn joined_rooms(&self, user: &UserId) -> Result<Vec<OwnedRoomId>, ReadError> {
        let position = self.rooms.store().durable();
        let reader = self.rooms.reader(user.to_owned(), position).await?;
        let Some(number) = reader.number else {
            return Ok(Vec::new());
        };
        let mut joined = Vec::new();
        for mine in self.rooms.memberships(number, position).await? {
            if mine.membership == Membership::Join {
                joined.push(self.rooms.room_by_number(mine.room).await?.id.clone());
            }
        }
        Ok(joined)
    }

    /// Whether this server knows the room.
    pub(crate) async fn exists(&self, room: &RoomId) -> Result<bool, ReadError> {
        Ok(self.rooms.room(room).await?.is_some())
    }

    /// Whether the user is in the room and sees the event: only then may it be reported.
    pub(crate) async fn may_report(
        &self,
        session: &Session,
        room: &RoomId,
        event: &EventId,
    ) -> Result<bool, ReadError> {
        let Some(room) = self.rooms.room(room).await? else {
            return Ok(false);
        };
        let reader = self
            .rooms
            .reader(session.user.clone(), self.rooms.store().durable())
            .await?;
        let mine = self.membership_of(&reader, &room).await?;
        if mine.is_none_or(|mine| mine.membership != Membership::Join) {
            return Ok(false);
        }
        Ok(self
            .rooms
            .visible_by_id(&reader, &room, event)
            .await?
            .is_some())
    }

    /// The aliases of this server for a room, for its members and anybody if it is world-readable.
    pub(crate) async fn aliases(
        &self,
        session: &Session,
        room: &RoomId,
    ) -> Result<Vec<OwnedRoomAliasId>, ReadError> {
        let visit = self.enter(&session.user, room).await?;
        // Aliases have no history: those of today are not for who has left.
        if !self.is_member(&visit).await? && !self.is_world_readable(&visit).await? {
            return Err(ReadError::NotInRoom);
        }
        Ok(self.rooms.aliases(visit.room.number).await?)
    }

    /// Whether a room is listed in this server's directory.
    pub(crate) async fn is_published(&self, room: &RoomId) -> Result<bool, ReadError> {
        let room = self.rooms.room(room).await?.ok_or(ReadError::NoSuchRoom)?;
        Ok(self.rooms.is_published(room.number).await?)
    }

    /// One event.
    pub(crate) async fn event(
        &self,
        session: &Session,
        room: &RoomId,
        event: &EventId,
    ) -> Result<Box<RawValue>, ReadError> {
        let (room, reader) = self.approach(&session.user, room).await?;
        let event = self.rooms.visible_by_id(&reader, &room, event).await?;
        let event = event.ok_or(ReadError::NoSuchEvent)?;
        let mut written = self.present(session, &room, &reader, &[event]).await?;
        written.pop().ok_or(ReadError::NoSuchEvent)
    }

    /// The whole state.
    pub(crate) async fn state(
        &self,
        session: &Session,
        room: &RoomId,
    ) -> Result<Vec<Box<RawValue>>, ReadError> {
        let visit = self.enter_whole(&session.user, room).await?;
        let all = self.rooms.state_all(&visit.room, visit.state.root).await?;
        let numbers: Vec<_> = all.into_iter().map(|(_, event)| event).collect();
        let events = self.rooms.state_events(&visit.state, &numbers).await?;
        self.present(session, &visit.room, &visit.reader, &events)
            .await
    }

    /// One entry of the state.
    pub(crate) async fn state_entry(
        &self,
        session: &Session,
        room: &RoomId,
        event_type: &str,
        state_key: &str,
    ) -> Result<StateEntry, ReadError> {
        let mut visit = self.enter(&session.user, room).await?;
        let find = async |visit: &Visit| {
            let (room, root) = (&visit.room, visit.state.root);
            self.rooms
                .state_value(room, root, event_type, state_key)
                .await
        };
        let mut number = find(&visit).await?;
        if number.is_none() && event_type == "m.room.member" {
            // It may be on its way.
            visit = self.enter_whole(&session.user, room).await?;
            number = find(&visit).await?;
        }
        let number = number.ok_or(ReadError::NoSuchState)?;
        let room = &visit.room;
        let events = self.rooms.state_events(&visit.state, &[number]).await?;
        let event = events.first().ok_or(ReadError::NoSuchState)?;
        let content = event.pdu().content().to_owned();
        let mut written = self.present(session, room, &visit.reader, &events).await?;
        let event = written.pop().ok_or(ReadError::NoSuchState)?;
        Ok(StateEntry { content, event })
    }

    /// Who is in the room, with what their member events show. Only for those who are in it.
    pub(crate) async fn joined_members(
        &self,
        session: &Session,
        room: &RoomId,
    ) -> Result<BTreeMap<OwnedUserId, ShownMember>, ReadError> {
        #[derive(Deserialize)]
        struct Content {
            membership: String,
            #[serde(flatten)]
            shown: ShownMember,
        }
        let visit = self.enter_whole(&session.user, room).await?;
        if !self.is_member(&visit).await? {
            return Err(ReadError::NotInRoom);
        }
        let mut joined = BTreeMap::new();
        let numbers = self.member_numbers(&visit.room, &visit.state).await?;
        // The events of large rooms are not held all at once.
        for some in numbers.chunks(MEMBERS_AT_ONCE) {
            for event in self.rooms.state_events(&visit.state, some).await? {
                let content = event.pdu().content_as::<Content>();
                let user = event.pdu().state_key();
                let user = user.and_then(|user| UserId::parse(user).ok());
                if let (Some(user), Ok(content)) = (user, content)
                    && content.membership == "join"
                {
                    joined.insert(user, content.shown);
                }
            }
        }
        Ok(joined)
    }

    /// All member events of a state.
    pub(super) async fn member_events(
        &self,
        room: &Room,
        state: &ReadableState,
    ) -> Result<Vec<VisibleEvent>, ReadError> {
        let numbers = self.member_numbers(room, state).await?;
        Ok(self.rooms.state_events(state, &numbers).await?)
    }

    async fn member_numbers(
        &self,
        room: &Room,
        state: &ReadableState,
    ) -> Result<Vec<EventNumber>, ReadError> {
        let members = self
            .rooms
            .state_of_type(room, state.root, "m.room.member")
            .await?;
        Ok(members.into_iter().map(|(_, event)| event).collect())
    }
}
