//! What clients ask of rooms, beside what the rooms decide themselves: whose profile a membership
//! event shows, who may be invited, which rooms are listed, what a page of history holds.
//!
//! Whether the room allows something is decided in `homeserver-rooms`, and every read of an event
//! goes through its visibility check.

mod change;
mod content;
mod elsewhere;
mod nearest;
mod page;
mod public;
mod read;
mod relations;
mod space;
mod summary;
mod third_party;

pub(crate) use change::{Actor, ChangeError, RoomChanges, Transaction};
pub(crate) use elsewhere::{Door, InviteError};
pub(crate) use page::{MemberSelection, PageRequest, Selection};
pub(crate) use public::{Listed, PublicRooms, PublicRoomsRequest};
pub(crate) use read::{ReadError, RoomReads};
pub(crate) use relations::RelationRequest;
pub(crate) use space::{Spaces, TreeRequest};
pub(crate) use summary::RoomSummary;
pub(crate) use third_party::{Exchange, ExchangeError};
