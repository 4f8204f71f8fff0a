//! Changes of rows that are no events: aliases, forgotten rooms.

use homeserver_storage::{At, Batch, Entry};
use ruma::OwnedRoomAliasId;
use smallvec::SmallVec;

use crate::{
    delta::{journal, put_member},
    numbers::{RoomNumber, UserNumber},
    rows::{AliasRow, MembershipRow},
    tables::{ALIASES, ROOM_ALIASES},
};

/// A change of rows that are no events.
#[derive(Debug)]
pub(crate) enum RowChange {
    /// A new alias.
    AddAlias(OwnedRoomAliasId, AliasRow),
    /// An alias that goes; asserts what it was.
    RemoveAlias(OwnedRoomAliasId, AliasRow),
    /// An alias that points at another room from now on; asserts what it was.
    MoveAlias(OwnedRoomAliasId, AliasRow, RoomNumber),
    /// A room that a user does not want to see.
    Forget(RoomNumber, UserNumber, MembershipRow),
}

impl RowChange {
    pub(crate) fn write(&self, batch: &mut Batch) {
        match self {
            Self::AddAlias(alias, row) => {
                batch.assert_absent(&ALIASES, &alias.as_str());
                batch.put(&ALIASES, &alias.as_str(), row);
                batch.put(&ROOM_ALIASES, &(row.room, alias.as_str()), &());
            }
            Self::RemoveAlias(alias, row) => {
                batch.assert_value(&ALIASES, &alias.as_str(), row);
                batch.delete(&ALIASES, &alias.as_str());
                batch.delete(&ROOM_ALIASES, &(row.room, alias.as_str()));
            }
            Self::MoveAlias(alias, row, to) => {
                batch.assert_value(&ALIASES, &alias.as_str(), row);
                let moved = AliasRow {
                    room: to.0,
                    creator: row.creator.clone(),
                };
                batch.put(&ALIASES, &alias.as_str(), &moved);
                batch.delete(&ROOM_ALIASES, &(row.room, alias.as_str()));
                batch.put(&ROOM_ALIASES, &(to.0, alias.as_str()), &());
            }
            Self::Forget(room, user, row) => {
                let entry = Entry {
                    kind: journal::FORGOTTEN,
                    version: journal::VERSION,
                    numbers: SmallVec::from_slice(&[room.0, user.0]),
                };
                let append = batch.append(&entry, &[journal::user_topic(*user)]);
                put_member(batch, (user.0, room.0), row, At::Append(append));
            }
        }
    }
}
