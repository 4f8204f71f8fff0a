//! What other servers are told of our users' device lists: chosen when it is sent, so that of many
//! changes of one device the last is told, with the keys as they are then.
//!
//! Each update names the one before it, as far as its user goes. A server that was not told that one
//! finds the gap, and fetches the whole list.

use std::collections::{BTreeMap, BTreeSet};

use homeserver_storage::Position;
use homeserver_users::UserNumber;
use ruma::{OwnedDeviceId, ServerName};
use serde_json::value::RawValue;

use super::{RemoteUsers, UsersError, edus};

/// Changes of one user that are looked at together.
const CHANGES_OF_USER: usize = 1_000;

/// Accounts read at once.
const ACCOUNTS_AT_ONCE: usize = 500;

/// Updates for a server.
#[derive(Debug, Default)]
pub struct DeviceListEdus {
    /// Type and content of each, in order.
    pub edus: Vec<(&'static str, Box<RawValue>)>,
    /// Everything up to this position is told by them, or need not be.
    pub upto: Position,
}

/// Something of a user that has to be told.
type What = (Position, UserNumber, Option<OwnedDeviceId>);

impl RemoteUsers {
    /// What to tell `destination` of device lists and cross-signing keys of our users that changed in
    /// `(after, upto]`: of those who share a room with it. At most `limit` updates; how far they go
    /// is said with them.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub async fn device_list_edus(
        &self,
        destination: &ServerName,
        (after, upto): (Position, Position),
        limit: usize,
    ) -> Result<DeviceListEdus, UsersError> {
        let mut upto = upto;
        let mut told: Vec<What> = Vec::new();
        for user in self.changed_users(destination, (after, upto)).await? {
            let lists = &self.inner.users.device_lists;
            let changes = lists.told(user, (after, upto), CHANGES_OF_USER).await?;
            if changes.len() == CHANGES_OF_USER {
                // The rest another time.
                upto = changes.last().map_or(upto, |change| change.position);
            }
            let mut last: BTreeMap<Option<OwnedDeviceId>, Position> = BTreeMap::new();
            for change in changes {
                last.insert(change.device, change.position);
            }
            told.extend(last.into_iter().map(|(device, at)| (at, user, device)));
        }
        told.retain(|(at, ..)| *at <= upto);
        told.sort_unstable();
        if told.len() > limit {
            told.truncate(limit);
            upto = told.last().map_or(after, |(at, ..)| *at);
        }
        let mut edus = Vec::with_capacity(told.len());
        let mut previous: BTreeMap<UserNumber, Position> = BTreeMap::new();
        for (at, user, device) in told {
            let Some(device) = device else {
                edus.extend(self.told_signing_keys(user).await?);
                continue;
            };
            let before = match previous.get(&user) {
                Some(before) => *before,
                None => self.inner.users.device_lists.version(user, after).await?,
            };
            edus.extend(self.told_device(user, device, (before, at)).await?);
            previous.insert(user, at);
        }
        Ok(DeviceListEdus { edus, upto })
    }

    /// Our users with changes, who share a room with the server. If the journal does not go back so
    /// far, all who do.
    async fn changed_users(
        &self,
        destination: &ServerName,
        (after, upto): (Position, Position),
    ) -> Result<BTreeSet<UserNumber>, UsersError> {
        let inner = &*self.inner;
        let mut candidates = BTreeSet::new();
        if after < inner.store.journal().trim_point().await? {
            candidates = self.all_users().await?;
        } else {
            let changed = inner.users.device_lists.changed(after, upto).await?;
            for user in changed {
                let id = inner.users.user_id(user).await?;
                if id.is_some_and(|id| self.is_own(&id)) {
                    candidates.insert(user);
                }
            }
        }
        let at = inner.rooms.durable();
        let mut sharing = BTreeSet::new();
        for user in candidates {
            if self.shares_with(user, destination, at).await? {
                sharing.insert(user);
            }
        }
        Ok(sharing)
    }

    /// All our users.
    async fn all_users(&self) -> Result<BTreeSet<UserNumber>, UsersError> {
        let accounts = &self.inner.users.accounts;
        let mut users = BTreeSet::new();
        let mut after = None;
        loop {
            let page = accounts.list(after, ACCOUNTS_AT_ONCE).await?;
            users.extend(page.iter().map(|account| account.number));
            match page.last() {
                Some(last) if page.len() == ACCOUNTS_AT_ONCE => after = Some(last.number),
                _ => return Ok(users),
            }
        }
    }

    async fn told_signing_keys(
        &self,
        user: UserNumber,
    ) -> Result<Option<(&'static str, Box<RawValue>)>, UsersError> {
        let users = &self.inner.users;
        let Some(id) = users.user_id(user).await? else {
            return Ok(None);
        };
        let keys = users.cross_signing.public_keys((user, &id)).await?;
        Ok(Some((
            edus::SIGNING_KEY_UPDATE,
            edus::signing_key_update(&id, &keys),
        )))
    }

    async fn told_device(
        &self,
        user: UserNumber,
        device: OwnedDeviceId,
        numbers: (Position, Position),
    ) -> Result<Option<(&'static str, Box<RawValue>)>, UsersError> {
        let users = &self.inner.users;
        let Some(id) = users.user_id(user).await? else {
            return Ok(None);
        };
        let only = [device];
        let mut keys = users.keys.public(user, &only).await?;
        let [device] = only;
        let keys = keys.remove(&device);
        Ok(Some((
            edus::DEVICE_LIST_UPDATE,
            edus::device_list_update((&id, &device), numbers, keys.as_deref()),
        )))
    }
}
