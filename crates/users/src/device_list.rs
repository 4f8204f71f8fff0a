//! Which users' device lists changed when: what `/sync` and `/keys/changes` tell.
//!
//! A change is a history row `(user, position)` that is never overwritten, and a journal entry
//! under the topic of all device lists. A user who signs somebody else's key sees a change that
//! nobody else sees; that is an entry under the signer's own topic.
//!
//! Whom a reader may hear about (users who share a room) is not decided here.
//!
//! Spec: Client-Server API, "Tracking the device list for a user".

use std::collections::BTreeSet;

use homeserver_storage::{At, Batch, Durability, Entry, Position};

use crate::{Failure, UserNumber, ground::Ground, journal, tables::DEVICE_LIST_CHANGES};

/// Entries read from the journal at a time.
const PAGE: usize = 1_000;
/// Changes forgotten by one batch.
const FORGOTTEN_AT_ONCE: usize = 500;

/// Notes in `batch` that what `/keys/query` says about `user` has changed.
pub(crate) fn list_changed(batch: &mut Batch, user: UserNumber) {
    let entry = journal::entry(journal::DEVICE_LIST_CHANGED, &[user.0]);
    let position = batch.append(&entry, &[journal::device_lists(), journal::user(user)]);
    batch.put(&DEVICE_LIST_CHANGES, &(user.0, At::Append(position)), &());
}

/// The history of device lists. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeviceLists {
    ground: Ground,
}

impl DeviceLists {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground }
    }

    /// Users, local or not, whose device lists changed in `(after, upto]`.
    pub async fn changed(
        &self,
        after: Position,
        upto: Position,
    ) -> Result<BTreeSet<UserNumber>, Failure> {
        let mut changed = BTreeSet::new();
        let mut after = after;
        loop {
            let journal = self.ground.store.journal();
            let page = journal
                .read(journal::device_lists(), after, upto, PAGE)
                .await?;
            let users = page.iter().filter_map(|(_, entry)| entry.numbers.first());
            changed.extend(users.map(|user| UserNumber(*user)));
            match page.last() {
                Some((position, _)) if page.len() == PAGE => after = *position,
                _ => return Ok(changed),
            }
        }
    }

    /// Users whose keys `signer` signed in `(after, upto]`: a change that only the signer sees.
    pub async fn signed_by(
        &self,
        signer: UserNumber,
        after: Position,
        upto: Position,
    ) -> Result<BTreeSet<UserNumber>, Failure> {
        let mut signed = BTreeSet::new();
        let mut after = after;
        loop {
            let journal = self.ground.store.journal();
            let page = journal
                .read(journal::user(signer), after, upto, PAGE)
                .await?;
            let ours = page
                .iter()
                .filter(|(_, entry)| entry.kind == journal::SIGNATURE_ADDED);
            let targets = ours.filter_map(|(_, entry)| entry.numbers.get(1));
            signed.extend(targets.map(|user| UserNumber(*user)));
            match page.last() {
                Some((position, _)) if page.len() == PAGE => after = *position,
                _ => return Ok(signed),
            }
        }
    }

    /// Forgets changes before those that `expired` tells of: journal entries that are about to be
    /// removed. The newest change of a user is never forgotten.
    pub async fn forget_before(&self, expired: &[(Position, Entry)]) -> Result<(), Failure> {
        let ours = expired
            .iter()
            .filter(|(_, entry)| entry.kind == journal::DEVICE_LIST_CHANGED);
        for (position, entry) in ours {
            let Some(user) = entry.numbers.first() else {
                continue;
            };
            let (from, to) = ((*user, 0_u64), (*user, *position));
            loop {
                let rows = self
                    .ground
                    .scan_between(&DEVICE_LIST_CHANGES, from, to, FORGOTTEN_AT_ONCE)
                    .await?;
                let mut batch = Batch::new();
                for (key, ()) in &rows {
                    batch.delete(&DEVICE_LIST_CHANGES, key);
                }
                if !rows.is_empty() {
                    self.ground
                        .store
                        .submit(batch, Durability::Lazy)
                        .await?
                        .await?;
                }
                if rows.len() < FORGOTTEN_AT_ONCE {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether a user's device list changed in `(after, upto]`.
    pub async fn has_changed(
        &self,
        user: UserNumber,
        after: Position,
        upto: Position,
    ) -> Result<bool, Failure> {
        let from = (user.0, after.saturating_add(1));
        let to = (user.0, upto.saturating_add(1));
        let rows = self
            .ground
            .scan_between(&DEVICE_LIST_CHANGES, from, to, 1)
            .await?;
        Ok(!rows.is_empty())
    }

    /// The position of the last change of a user's device list at or before `upto`; 0 if there is
    /// none. Federation numbers its updates by it.
    pub async fn last_change(&self, user: UserNumber, upto: Position) -> Result<Position, Failure> {
        let from = (user.0, 0_u64);
        let to = (user.0, upto.saturating_add(1));
        let rows = self
            .ground
            .scan_last(&DEVICE_LIST_CHANGES, from, to, 1)
            .await?;
        Ok(rows.first().map_or(0, |((_, position), ())| *position))
    }
}
