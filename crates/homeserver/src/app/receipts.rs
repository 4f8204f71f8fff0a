//! Receipts, read markers and typing: what members of a room tell about their reading and writing.
//!
//! Specification: client-server API, "Receipts", "Fully read markers", "Typing Notifications".

use std::{sync::Arc, time::Duration};

use homeserver_rooms::{Membership, Room, RoomError, Rooms, UserNumber, VisibleEvent};
use homeserver_runtime::Runtime;
use homeserver_users::{AccountDataError, Failure, Receipt, ReceiptKind, Users};
use ruma::{EventId, RoomId, events::receipt::ReceiptThread};

use super::session::Session;

/// How long somebody types who does not say.
const DEFAULT_TYPING: Duration = Duration::from_secs(30);

/// What somebody says of their typing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TypingNotice {
    /// They type, for so long if they say for how long.
    Begins(Option<Duration>),
    /// They no longer do.
    Ends,
}

/// Why nothing was noted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarkError {
    /// Only members may.
    #[error("You are not in this room")]
    NotInRoom,
    /// There is no such event in the room, or the user may not see it.
    #[error("There is no such event in this room")]
    NoSuchEvent,
    /// The thread is neither `main` nor an event id.
    #[error("`thread_id` must be `main` or the id of a thread's root")]
    BadThread,
    /// The room could not be read.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The marker could not be stored.
    #[error(transparent)]
    AccountData(#[from] AccountDataError),
    /// The receipt could not be stored.
    #[error(transparent)]
    Users(#[from] Failure),
}

/// Notes what members of rooms tell. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RoomMarks {
    rooms: Arc<Rooms>,
    users: Users,
    runtime: Runtime,
}

impl RoomMarks {
    /// Marks in these rooms.
    pub(crate) fn new(rooms: Arc<Rooms>, users: Users, runtime: Runtime) -> Self {
        Self {
            rooms,
            users,
            runtime,
        }
    }

    /// The user has read up to an event.
    pub(crate) async fn receipt(
        &self,
        session: &Session,
        room: &RoomId,
        event: &EventId,
        kind: ReceiptKind,
        thread: ReceiptThread,
    ) -> Result<(), MarkError> {
        check_thread(&thread)?;
        let room = self.joined(session, room).await?;
        let event = self.event(session, &room, event).await?;
        let receipt = Receipt {
            user: session.user_number,
            kind,
            thread,
            event_id: event.pdu().event_id().to_owned(),
            arrival: event.position().unwrap_or(0),
            at: self.runtime.clock.unix_millis(),
        };
        self.users.receipts.set(room.number.0, &receipt).await?;
        self.users.presence.active(session.user_number);
        Ok(())
    }

    /// The user has read everything up to an event with attention.
    pub(crate) async fn fully_read(
        &self,
        session: &Session,
        room: &RoomId,
        event: &EventId,
    ) -> Result<(), MarkError> {
        let room = self.joined(session, room).await?;
        let event = self.event(session, &room, event).await?;
        let (id, at) = (event.pdu().event_id(), event.position().unwrap_or(0));
        let data = &self.users.account_data;
        let number = session.user_number;
        data.set_fully_read(number, room.number.0, id, at).await?;
        Ok(())
    }

    /// The user types, or no longer does.
    pub(crate) async fn typing(
        &self,
        session: &Session,
        room: &RoomId,
        notice: TypingNotice,
    ) -> Result<(), MarkError> {
        let room = self.joined(session, room).await?;
        let typing = &self.users.typing;
        match notice {
            TypingNotice::Begins(how_long) => {
                let how_long = how_long.unwrap_or(DEFAULT_TYPING);
                typing.start_typing(room.number.0, session.user.clone(), how_long);
                self.users.presence.active(session.user_number);
            }
            TypingNotice::Ends => typing.stop_typing(room.number.0, &session.user),
        }
        Ok(())
    }

    /// The room, if the user is in it.
    async fn joined(&self, session: &Session, room: &RoomId) -> Result<Arc<Room>, MarkError> {
        let room = self.rooms.room(room).await?.ok_or(MarkError::NotInRoom)?;
        let user = UserNumber(session.user_number.0);
        let at = self.rooms.durable();
        let membership = self.rooms.membership(user, room.number, at).await?;
        let joined = membership.is_some_and(|one| one.membership == Membership::Join);
        joined.then_some(room).ok_or(MarkError::NotInRoom)
    }

    async fn event(
        &self,
        session: &Session,
        room: &Room,
        event: &EventId,
    ) -> Result<VisibleEvent, MarkError> {
        let at = self.rooms.durable();
        let reader = self.rooms.reader(session.user.clone(), at).await?;
        let event = self.rooms.visible_by_id(&reader, room, event).await?;
        event.ok_or(MarkError::NoSuchEvent)
    }
}

fn check_thread(thread: &ReceiptThread) -> Result<(), MarkError> {
    match thread {
        ReceiptThread::Unthreaded | ReceiptThread::Main | ReceiptThread::Thread(_) => Ok(()),
        _ => Err(MarkError::BadThread),
    }
}
