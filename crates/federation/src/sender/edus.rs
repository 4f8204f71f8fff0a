//! What a server has not been told yet beside events. Pure.
//!
//! Only what must not be lost is written down: messages to devices, which have rows of their own,
//! and from where on changed device lists are untold. The rest is chosen when it is sent, as it is
//! then, and bounded: of what a server misses while it is away the newest counts.

use std::collections::BTreeMap;

use homeserver_storage::Position;
use homeserver_users::UserNumber;
use ruma::OwnedUserId;

use super::rows::BehindRow;

/// Users of whose typing a server is to be told.
const TYPISTS: usize = 200;

/// Receipts that a server is to be told.
const RECEIPTS: usize = 1_000;

/// Users of whose presence a server is to be told.
const PRESENCES: usize = 1_000;

/// Things to be told as they are when they are told, each with the number of its last change: what
/// changed while it was on its way is told again.
#[derive(Debug)]
pub(super) struct Notes<K> {
    limit: usize,
    changes: u64,
    noted: BTreeMap<K, u64>,
}

impl<K: Ord + Clone> Notes<K> {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            changes: 0,
            noted: BTreeMap::new(),
        }
    }

    /// Notes a thing. Where there are too many, the least is forgotten.
    pub(super) fn note(&mut self, key: K) {
        self.changes += 1;
        self.noted.insert(key, self.changes);
        if self.noted.len() > self.limit {
            self.noted.pop_first();
        }
    }

    /// Some of them.
    pub(super) fn some(&self, limit: usize) -> Vec<(K, u64)> {
        let noted = self.noted.iter().take(limit);
        noted.map(|(key, change)| (key.clone(), *change)).collect()
    }

    /// They were told as they were after these changes.
    pub(super) fn told(&mut self, told: &[(K, u64)]) {
        for (key, change) in told {
            if self.noted.get(key) == Some(change) {
                self.noted.remove(key);
            }
        }
    }
}

/// Device lists that changed in (`after`, `upto`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lists {
    pub(super) after: Position,
    pub(super) upto: Position,
}

/// What a server is to be told.
#[derive(Debug)]
pub(super) struct OwedEdus {
    /// Messages to devices wait for it, the newest at this position or before.
    pub(super) to_device: Option<Position>,
    pub(super) device_lists: Option<Lists>,
    /// Room and user.
    pub(super) typing: Notes<(u64, OwnedUserId)>,
    /// Where a receipt moved, and in which room.
    pub(super) receipts: Notes<(Position, u64)>,
    pub(super) presence: Notes<UserNumber>,
}

/// What a server was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) to_device: Option<Position>,
    /// Messages to devices that are no longer needed.
    pub(super) messages: usize,
    pub(super) device_lists: Option<Position>,
    pub(super) typing: Vec<((u64, OwnedUserId), u64)>,
    pub(super) receipts: Vec<((Position, u64), u64)>,
    pub(super) presence: Vec<(UserNumber, u64)>,
}

impl Default for OwedEdus {
    fn default() -> Self {
        Self {
            to_device: None,
            device_lists: None,
            typing: Notes::new(TYPISTS),
            receipts: Notes::new(RECEIPTS),
            presence: Notes::new(PRESENCES),
        }
    }
}

impl OwedEdus {
    /// What a row says. Entries of the journal up to `upto` will not come again.
    pub(super) fn stored(row: &BehindRow, upto: Position) -> Self {
        let lists = row.device_lists.map(|after| Lists { after, upto });
        Self {
            to_device: row.to_device.then_some(upto),
            device_lists: lists.filter(|lists| lists.after < upto),
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.to_device.is_none() && self.device_lists.is_none() && self.count() == 0
    }

    /// How much that would not survive a restart.
    pub(super) fn count(&self) -> usize {
        self.typing.noted.len() + self.receipts.noted.len() + self.presence.noted.len()
    }

    /// A message to devices was queued at a position.
    pub(super) fn note_message(&mut self, at: Position) {
        self.to_device = self.to_device.max(Some(at));
    }

    /// A device list changed at a position.
    pub(super) fn note_list(&mut self, at: Position) {
        let lists = self.device_lists.get_or_insert(Lists {
            after: at.saturating_sub(1),
            upto: at,
        });
        lists.upto = lists.upto.max(at);
    }

    /// The server is not reached: what is only true now need not wait for it.
    pub(super) fn fall_behind(&mut self) {
        self.typing = Notes::new(TYPISTS);
    }

    /// It was told, or does not need to be.
    pub(super) fn told(&mut self, told: &Told) {
        if self.to_device <= told.to_device {
            self.to_device = None;
        }
        if let (Some(lists), Some(upto)) = (&mut self.device_lists, told.device_lists) {
            lists.after = lists.after.max(upto);
            if lists.after >= lists.upto {
                self.device_lists = None;
            }
        }
        self.typing.told(&told.typing);
        self.receipts.told(&told.receipts);
        self.presence.told(&told.presence);
    }

    /// What of it is to be written down.
    pub(super) fn row(&self) -> Option<BehindRow> {
        let row = BehindRow {
            to_device: self.to_device.is_some(),
            device_lists: self.device_lists.map(|lists| lists.after),
        };
        (row != BehindRow::default()).then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_on_its_way_is_told_again() {
        let mut notes = Notes::new(2);
        notes.note(1);
        notes.note(2);
        let told = notes.some(9);
        notes.note(2);
        notes.told(&told);
        assert_eq!(notes.some(9), [(2, 3)]);
        notes.note(3);
        notes.note(4);
        let kept: Vec<_> = notes.some(9).into_iter().map(|(key, _)| key).collect();
        assert_eq!(kept, [3, 4], "the oldest goes");
        assert_eq!(notes.some(1).len(), 1);
    }

    #[test]
    fn what_must_not_be_lost_is_written_down_until_it_is_told() {
        let mut owed = OwedEdus::default();
        assert_eq!(owed.row(), None);
        owed.note_message(5);
        owed.note_list(7);
        owed.note_list(9);
        owed.typing.note((1, "@a:b".try_into().unwrap()));
        let row = owed.row().unwrap();
        let expected = BehindRow {
            to_device: true,
            device_lists: Some(6),
        };
        assert_eq!(row, expected);
        let told = |to_device, device_lists| Told {
            to_device: Some(to_device),
            device_lists: Some(device_lists),
            ..Told::default()
        };
        let mut again = OwedEdus::stored(&row, 20);
        for (owed, newest) in [(&mut owed, (5, 9)), (&mut again, (20, 20))] {
            owed.told(&told(4, 8));
            let left = BehindRow {
                to_device: true,
                device_lists: Some(8),
            };
            assert_eq!(owed.row(), Some(left));
            owed.told(&told(newest.0, newest.1));
            assert_eq!(owed.row(), None);
        }
        assert!(again.is_empty());
        assert!(!owed.is_empty());
        owed.fall_behind();
        assert!(owed.is_empty());
        assert!(OwedEdus::stored(&row, 6).device_lists.is_none());
    }
}
