//! Why a room refuses, or cannot tell.

use homeserver_storage::StorageError;

/// Why a command or a read of a room failed. Each variant says which answer it is over HTTP.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The room's rules forbid it. `M_FORBIDDEN`.
    #[error("{0}")]
    Forbidden(String),
    /// No such room, or none that the sender may know of. `M_NOT_FOUND` where the endpoint names
    /// it, otherwise `M_FORBIDDEN`.
    #[error("this server does not know that room")]
    UnknownRoom,
    /// This server has no users in the room: what others send there is not for it. `M_NOT_FOUND`
    /// where a peer named the room.
    #[error("this server is not in that room")]
    NotInRoom,
    /// No such event in this room, or none that the sender may see. `M_NOT_FOUND`.
    #[error("no such event in this room")]
    UnknownEvent,
    /// No such alias. `M_NOT_FOUND`.
    #[error("no such alias")]
    UnknownAlias,
    /// `M_UNSUPPORTED_ROOM_VERSION`.
    #[error("this server does not support room version {0}")]
    UnsupportedRoomVersion(String),
    /// The alias points at a room already. `M_ROOM_IN_USE` in createRoom, 409 `M_UNKNOWN` in the
    /// directory.
    #[error("the alias {0} is in use")]
    AliasInUse(String),
    /// An alias is not of this server or is not a valid one. `M_INVALID_PARAM`.
    #[error("{0} is not an alias of this server")]
    InvalidAlias(String),
    /// An alias in `m.room.canonical_alias` does not exist or points elsewhere. `M_BAD_ALIAS`.
    #[error("{0} does not point at this room")]
    BadAlias(String),
    /// The first state of a new room contradicts itself. `M_INVALID_ROOM_STATE`.
    #[error("{0}")]
    InvalidRoomState(String),
    /// The content is not what such an event must hold. `M_BAD_JSON`.
    #[error("{0}")]
    BadContent(String),
    /// The event is larger than events may be. `M_TOO_LARGE`.
    #[error("{0}")]
    TooLarge(String),
    /// The same reaction by the same user is there already. `M_DUPLICATE_ANNOTATION`.
    #[error("you have sent this annotation already")]
    DuplicateAnnotation,
    /// Threads do not nest. 400 `M_UNKNOWN`, says the specification.
    #[error("a thread cannot start from an event that relates to another")]
    NestedThread,
    /// A room can only be forgotten by users who have left it. `M_UNKNOWN`.
    #[error("only rooms that you have left can be forgotten")]
    StillInRoom,
    /// No member of this server may let the user in. `M_UNABLE_TO_AUTHORISE_JOIN`.
    #[error("this server cannot check the conditions to join this room")]
    UnableToAuthoriseJoin,
    /// The user may join, but no member of this server may let anybody in: another server may be
    /// asked. `M_UNABLE_TO_GRANT_JOIN`.
    #[error("no user of this server can let you into this room")]
    UnableToGrantJoin,
    /// An event is not the one that a handshake of servers takes. `M_INVALID_PARAM`.
    #[error("{0}")]
    NotTheEvent(String),
    /// A history token is broken, of another room or of another database. `M_INVALID_PARAM`.
    #[error("this token is not valid")]
    InvalidToken,
    /// The state before an event, as another server told it, does not allow it. Nothing was stored:
    /// another server may tell another state.
    #[error("the state that was told does not allow the event")]
    NotAllowedByTold,
    /// Only part of the room's state is here as yet, and this needs the rest. 503, try again; of a
    /// peer `M_NOT_FOUND`, so that it asks another server.
    #[error("this server does not know the whole state of that room yet")]
    PartialState,
    /// Too many commands wait for this room. 503, try again.
    #[error("too many requests wait for this room")]
    Busy,
    /// The room's head moved each time the command was decided. 503, try again.
    #[error("the room changed too often while this was decided")]
    Contended,
    /// The states of a fork could not be resolved within the limits. The event stays pending.
    #[error("the state could not be resolved within the limit of {0}")]
    Unresolved(String),
    /// An event that the database names is not in it, or is not what it should be.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// The commit was not done, or nobody knows whether it was: 503.
    #[error("the change could not be stored")]
    NotStored(#[source] homeserver_storage::CommitError),
    /// The database could not be read: 500.
    #[error("the database could not be read")]
    Storage(#[from] StorageError),
    /// The server is stopping: 503.
    #[error("the server is stopping")]
    Stopping,
}

impl RoomError {
    /// Whether the same request may succeed when it is made again.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Busy | Self::Contended | Self::Stopping => true,
            Self::NotStored(error) => error.is_passing(),
            Self::Storage(error) => error.is_passing(),
            _ => false,
        }
    }

    /// Whether something that is stored cannot be read, so that other rows still can.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged(_) | Self::Storage(StorageError::Decode { .. })
        )
    }

    /// A refusal by the rules, with the reason for people.
    pub(crate) fn forbidden(why: impl Into<String>) -> Self {
        Self::Forbidden(why.into())
    }

    /// Damage, with what is wrong.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}
