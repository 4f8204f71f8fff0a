//! Which users' device lists changed when: what `/sync` and `/keys/changes` tell.
//!
//! A change is a history row `(user, position)` that is never overwritten, and a journal entry
//! under the topic of all device lists. A user who signs somebody else's key sees a change that
//! nobody else sees; that is an entry under the signer's own topic.
//!
//! Of changes that other servers are told, a second row says which device it was: what an update
//! holds, and the numbers by which updates follow each other. The name of a device is not among
//! them, which is nobody's business there.
//!
//! Whom a reader may hear about (users who share a room) is not decided here.
//!
//! Spec: Client-Server API, "Tracking the device list for a user"; Server-Server API, "Device
//! Management".

use std::collections::BTreeSet;

use homeserver_storage::{At, Batch, Durability, Entry, Position};
use ruma::{DeviceId, OwnedDeviceId};
use serde::{Deserialize, Serialize};

use crate::{
    Failure, UserNumber,
    ground::Ground,
    journal,
    tables::{DEVICE_CHANGES, DEVICE_LIST_CHANGES},
};

/// Entries read from the journal at a time.
const PAGE: usize = 1_000;
/// Changes forgotten by one batch.
const FORGOTTEN_AT_ONCE: usize = 500;

/// Changes looked at for the last one of a device.
const CHANGES_LOOKED_AT: usize = 20;

/// Row of [`DEVICE_CHANGES`]: the device, or none if the cross-signing keys changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceChangeRow(pub(crate) Option<String>);
homeserver_storage::row!(DeviceChangeRow, 1);

/// What of a change other servers are told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told<'a> {
    /// Nothing: a name changed, or the user belongs to another server.
    Nothing,
    /// The keys of this device, or that it is gone.
    Device(&'a str),
    /// The master and self-signing keys.
    CrossSigning,
}

/// Notes in `batch` that what `/keys/query` says about `user` has changed.
pub(crate) fn list_changed(batch: &mut Batch, user: UserNumber, told: Told<'_>) {
    let entry = journal::entry(journal::DEVICE_LIST_CHANGED, &[user.0]);
    let position = batch.append(&entry, &[journal::device_lists(), journal::user(user)]);
    let key = (user.0, At::Append(position));
    batch.put(&DEVICE_LIST_CHANGES, &key, &());
    let row = match told {
        Told::Nothing => return,
        Told::Device(device) => DeviceChangeRow(Some(device.to_owned())),
        Told::CrossSigning => DeviceChangeRow(None),
    };
    batch.put(&DEVICE_CHANGES, &key, &row);
}

/// A change of a user of this server that other servers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceChange {
    /// Where it happened: the number of its update.
    pub position: Position,
    /// The device; `None` if it is the cross-signing keys that changed.
    pub device: Option<OwnedDeviceId>,
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
            self.forget_told(*user, *position).await?;
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

    /// The changes of a user of this server in `(after, upto]` that other servers are told, the
    /// oldest first, at most `limit`.
    pub async fn told(
        &self,
        user: UserNumber,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<Vec<DeviceChange>, Failure> {
        let from = (user.0, after.saturating_add(1));
        let to = (user.0, upto.saturating_add(1));
        let rows = self.ground.scan_between(&DEVICE_CHANGES, from, to, limit);
        let changes = rows.await?.into_iter();
        let change = |((_, position), row): ((u64, Position), DeviceChangeRow)| DeviceChange {
            position,
            device: row.0.map(|id| <&DeviceId>::from(id.as_str()).to_owned()),
        };
        Ok(changes.map(change).collect())
    }

    /// The version of a user's device list as other servers are told it: the position of the last
    /// change of a device at or before `upto`; 0 if there is none.
    pub async fn version(&self, user: UserNumber, upto: Position) -> Result<Position, Failure> {
        let from = (user.0, 0_u64);
        let mut upto = upto;
        loop {
            let to = (user.0, upto.saturating_add(1));
            let rows = self
                .ground
                .scan_last(&DEVICE_CHANGES, from, to, CHANGES_LOOKED_AT)
                .await?;
            let of_device = rows.iter().find(|(_, row)| row.0.is_some());
            if let Some(((_, position), _)) = of_device {
                return Ok(*position);
            }
            match rows.last() {
                Some(((_, oldest), _)) if rows.len() == CHANGES_LOOKED_AT && *oldest > 0 => {
                    upto = *oldest - 1;
                }
                _ => return Ok(0),
            }
        }
    }

    /// Forgets what other servers were told before the last change at or before `upto`, and before
    /// the last one of a device, by which the next update is tied to those before.
    async fn forget_told(&self, user: u64, upto: Position) -> Result<(), Failure> {
        let version = self.version(UserNumber(user), upto).await?;
        let (from, to) = ((user, 0_u64), (user, version));
        loop {
            let rows = self
                .ground
                .scan_between(&DEVICE_CHANGES, from, to, FORGOTTEN_AT_ONCE)
                .await?;
            let mut batch = Batch::new();
            for (key, _) in &rows {
                batch.delete(&DEVICE_CHANGES, key);
            }
            if !rows.is_empty() {
                let submitted = self.ground.store.submit(batch, Durability::Lazy);
                submitted.await?.await?;
            }
            if rows.len() < FORGOTTEN_AT_ONCE {
                return Ok(());
            }
        }
    }
}
