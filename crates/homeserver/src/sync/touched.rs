//! In which rooms something happened between two positions.
//!
//! Between positions close to each other the journal itself is read; otherwise the last positions
//! of the user's rooms are compared. Either way the cost follows what happened, or the number of
//! the user's rooms, whichever is less.

use std::collections::BTreeSet;

use homeserver_rooms::{RoomNumber, UserNumber, journal as rooms_journal};
use homeserver_storage::{Position, Topic};
use homeserver_users::journal as users_journal;

use super::{SyncEngine, SyncError, memberships::Memberships};

/// Journal entries that are read rather than comparing the last position of every room.
const ENTRIES_READ: u64 = 300;

/// Entries of one user that are looked at for private receipts; beyond it, every room counts.
const OWN_ENTRIES: usize = 2_000;

/// What happened, by room number. May name rooms that the user has nothing to do with.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Events arrived or the state changed.
    pub(super) rooms: BTreeSet<u64>,
    /// Receipts moved.
    pub(super) receipts: BTreeSet<u64>,
}

impl SyncEngine {
    /// What happened in (`after`, `upto`] in rooms of the user.
    pub(super) async fn touched(
        &self,
        user: UserNumber,
        mine: &Memberships,
        (after, upto): (Position, Position),
    ) -> Result<Touched, SyncError> {
        if upto.saturating_sub(after) <= ENTRIES_READ {
            return self.touched_by_reading(user, after, upto).await;
        }
        let mut touched = Touched::default();
        let rooms: Vec<u64> = mine.all.iter().map(|one| one.room.0).collect();
        let topics: Vec<Topic> = rooms
            .iter()
            .map(|room| rooms_journal::room_topic(RoomNumber(*room)))
            .collect();
        let last = self.store.journal().last(&topics).await?;
        for (room, last) in rooms.iter().zip(last) {
            if last.is_some_and(|last| last > after) {
                touched.rooms.insert(*room);
            }
        }
        let receipts = self
            .users
            .receipts
            .changed_rooms(&mine.joined, after)
            .await?;
        touched.receipts.extend(receipts);
        self.private_receipts(user, (after, upto), &mut touched, mine)
            .await?;
        Ok(touched)
    }

    async fn touched_by_reading(
        &self,
        user: UserNumber,
        after: Position,
        upto: Position,
    ) -> Result<Touched, SyncError> {
        let mut touched = Touched::default();
        let limit = ENTRIES_READ as usize + 1;
        for (_, entry) in self.store.journal().read_all(after, upto, limit).await? {
            let Some(first) = entry.numbers.first().copied() else {
                continue;
            };
            match entry.kind {
                rooms_journal::ROOM_EVENT | rooms_journal::STATE_CHANGED => {
                    touched.rooms.insert(first);
                }
                users_journal::RECEIPT_CHANGED => {
                    touched.receipts.insert(first);
                }
                users_journal::PRIVATE_RECEIPT_CHANGED if entry.numbers.get(1) == Some(&user.0) => {
                    touched.receipts.insert(first);
                }
                _ => {}
            }
        }
        Ok(touched)
    }

    /// Private receipts are under the user's own topic only.
    async fn private_receipts(
        &self,
        user: UserNumber,
        (after, upto): (Position, Position),
        touched: &mut Touched,
        mine: &Memberships,
    ) -> Result<(), SyncError> {
        let topic = users_journal::user(homeserver_users::UserNumber(user.0));
        let journal = self.store.journal();
        let entries = journal.read(topic, after, upto, OWN_ENTRIES).await?;
        if entries.len() == OWN_ENTRIES {
            touched.receipts.extend(mine.joined.iter().copied());
            return Ok(());
        }
        for (_, entry) in entries {
            if entry.kind == users_journal::PRIVATE_RECEIPT_CHANGED {
                touched.receipts.extend(entry.numbers.first().copied());
            }
        }
        Ok(())
    }
}
