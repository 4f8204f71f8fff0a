//! What other servers tell of their users: device lists, keys, messages to devices, typing, receipts,
//! presence.
//!
//! A server speaks of its own users only, and of those in rooms that it shares with this one: nobody
//! else is written down. What has to be fetched afterwards is noted, not waited for.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use homeserver_rooms::Room;
use homeserver_users::{
    CrossSigningKeys, DeviceListUpdate, MAX_TO_DEVICE_CONTENT, Receipt, ReceiptKind, Recipient,
    ToDeviceError, ToDeviceRequest, Transaction, Updated,
};
use ruma::{
    ServerName, UserId,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, PresenceUpdate, SigningKeyUpdateContent,
    },
    events::receipt::ReceiptThread,
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{RemoteUsers, UsersError};
use crate::inbound::{EduFailure, EduSink, RemoteReceipt};

/// How long somebody types who does not say it again. Other servers say it again after 40 seconds at
/// the latest.
const TYPES_FOR: Duration = Duration::from_mins(1);

/// Receipts that wait for their events, of all servers and of one.
const MAX_WAITING: usize = 2_000;
const MAX_WAITING_OF_SERVER: usize = 200;

/// How long a receipt waits for its event.
const WAITS_FOR: Duration = Duration::from_mins(2);

/// How often it is looked whether the events have come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Users of this server in one message of another that are looked up.
const MAX_USERS_IN_MESSAGE: usize = 1_000;

/// What was told is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ignored {
    /// It is not what it should be, and never will be.
    #[error("{0}")]
    Refused(&'static str),
    /// It could not be stored, or be judged.
    #[error(transparent)]
    Failed(#[from] UsersError),
}

impl From<homeserver_users::Failure> for Ignored {
    fn from(error: homeserver_users::Failure) -> Self {
        Self::Failed(error.into())
    }
}

impl From<homeserver_rooms::RoomError> for Ignored {
    fn from(error: homeserver_rooms::RoomError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Ignored> for EduFailure {
    fn from(ignored: Ignored) -> Self {
        match ignored {
            // A few times, also where it may stay so: it is this server that fails.
            Ignored::Failed(error) => Self::Passing(error.to_string()),
            refused @ Ignored::Refused(_) => Self::Refused(refused.to_string()),
        }
    }
}

#[async_trait]
impl EduSink for RemoteUsers {
    async fn typing(
        &self,
        room: &Arc<Room>,
        user: &UserId,
        typing: bool,
    ) -> Result<(), EduFailure> {
        Ok(self.take_typing(room, user, typing).await?)
    }

    async fn receipt(&self, room: &Arc<Room>, receipt: RemoteReceipt) -> Result<(), EduFailure> {
        Ok(self.take_receipt(room, receipt).await?)
    }

    async fn presence(&self, update: PresenceUpdate) -> Result<(), EduFailure> {
        Ok(self.take_presence(update).await?)
    }

    async fn device_list_update(
        &self,
        origin: &ServerName,
        update: DeviceListUpdateContent,
    ) -> Result<(), EduFailure> {
        Ok(self.take_device(origin, update).await?)
    }

    async fn signing_key_update(
        &self,
        origin: &ServerName,
        update: SigningKeyUpdateContent,
    ) -> Result<(), EduFailure> {
        Ok(self.take_signing_keys(origin, update).await?)
    }

    async fn to_device(
        &self,
        origin: &ServerName,
        message: DirectDeviceContent,
    ) -> Result<(), EduFailure> {
        Ok(self.take_message(origin, message).await?)
    }
}

/// Receipts whose events are not here yet, the oldest first.
#[derive(Debug, Default)]
pub(super) struct WaitingReceipts(VecDeque<(Instant, Arc<Room>, RemoteReceipt)>);

impl RemoteUsers {
    /// Somebody's device changed.
    async fn take_device(
        &self,
        origin: &ServerName,
        update: DeviceListUpdateContent,
    ) -> Result<(), Ignored> {
        self.check_of(origin, &update.user_id)?;
        let users = &self.inner.users;
        let Some(number) = users.known_number(&update.user_id).await? else {
            return Ok(());
        };
        let told = DeviceListUpdate {
            device_id: update.device_id,
            stream_id: update.stream_id.into(),
            prev_ids: update.prev_id.into_iter().map(u64::from).collect(),
            keys: update.keys.map(Raw::into_json),
            name: update.device_display_name,
            deleted: update.deleted.unwrap_or_default(),
        };
        let user = (number, &*update.user_id);
        if users.remote_lists.update(user, &told).await? == Updated::Stale {
            self.fetch_soon(origin);
        }
        Ok(())
    }

    /// Somebody's cross-signing keys changed.
    async fn take_signing_keys(
        &self,
        origin: &ServerName,
        update: SigningKeyUpdateContent,
    ) -> Result<(), Ignored> {
        self.check_of(origin, &update.user_id)?;
        let users = &self.inner.users;
        let Some(number) = users.known_number(&update.user_id).await? else {
            return Ok(());
        };
        let keys = CrossSigningKeys {
            master: update.master_key.map(Raw::into_json),
            self_signing: update.self_signing_key.map(Raw::into_json),
            user_signing: None,
        };
        let user = (number, &*update.user_id);
        let updated = users.remote_lists.update_cross_signing(user, &keys).await?;
        if updated == Updated::Stale {
            self.fetch_soon(origin);
        }
        Ok(())
    }

    /// Messages for devices of ours. A repetition by its server does nothing for a day.
    async fn take_message(
        &self,
        origin: &ServerName,
        message: DirectDeviceContent,
    ) -> Result<(), Ignored> {
        self.check_of(origin, &message.sender)?;
        let users = &self.inner.users;
        let mut messages = BTreeMap::new();
        for (user, of_user) in message.messages.into_iter().take(MAX_USERS_IN_MESSAGE) {
            if !self.is_own(&user) {
                continue;
            }
            let account = users.accounts.by_id(&user).await?;
            let Some(account) = account.filter(homeserver_users::Account::is_active) else {
                continue;
            };
            let of_user = of_user.into_iter().map(|(device, content)| {
                let to = match device {
                    DeviceIdOrAllDevices::AllDevices => Recipient::AllDevices,
                    DeviceIdOrAllDevices::DeviceId(device) => Recipient::Device(device),
                };
                (to, content.into_json())
            });
            // One message that is too large costs only itself.
            let of_user = of_user.filter(|(_, content)| fits(content));
            messages.insert(account.number, of_user.collect());
        }
        let id = message.message_id.to_string();
        let request = ToDeviceRequest {
            sender: message.sender,
            event_type: message.ev_type.to_string(),
            messages,
            remote: BTreeMap::new(),
            transaction: Some(Transaction::Server(origin.to_owned(), id)),
        };
        match users.inbox.send(&request).await {
            Ok(()) => Ok(()),
            Err(ToDeviceError::Failure(error)) => Err(error.into()),
            Err(_) => Err(Ignored::Refused("the message is malformed or too large")),
        }
    }

    /// Somebody types in a room, or no longer does.
    async fn take_typing(
        &self,
        room: &Arc<Room>,
        user: &UserId,
        typing: bool,
    ) -> Result<(), Ignored> {
        self.check_of(user.server_name(), user)?;
        self.check_joined(room, user).await?;
        let list = &self.inner.users.typing;
        if typing {
            list.start_typing(room.number.0, user.to_owned(), TYPES_FOR);
        } else {
            list.stop_typing(room.number.0, &user.to_owned());
        }
        Ok(())
    }

    /// Somebody has read up to an event, which may come later than this.
    async fn take_receipt(&self, room: &Arc<Room>, receipt: RemoteReceipt) -> Result<(), Ignored> {
        self.check_of(receipt.user.server_name(), &receipt.user)?;
        self.check_joined(room, &receipt.user).await?;
        if self.put_down(room, &receipt).await? {
            return Ok(());
        }
        let mut waiting = self.inner.receipts.lock();
        let server = receipt.user.server_name();
        let of_server = waiting.0.iter();
        let of_server = of_server.filter(|(.., other)| other.user.server_name() == server);
        if of_server.count() >= MAX_WAITING_OF_SERVER || waiting.0.len() >= MAX_WAITING {
            return Err(Ignored::Refused("too many receipts wait for their events"));
        }
        let until = Instant::now() + WAITS_FOR;
        waiting.0.push_back((until, Arc::clone(room), receipt));
        self.inner.waiting.notify_one();
        Ok(())
    }

    /// Stores a receipt, if its event is here, and the root of its thread.
    async fn put_down(
        &self,
        room: &Arc<Room>,
        receipt: &RemoteReceipt,
    ) -> Result<bool, UsersError> {
        let (rooms, users) = (&self.inner.rooms, &self.inner.users);
        let mut newest = None;
        for id in receipt.event_ids.iter().take(MAX_EVENTS_OF_RECEIPT) {
            if let Some(arrival) = rooms.arrival_of(room, id).await? {
                newest = newest.max(Some((arrival, id)));
            }
        }
        let Some((arrival, event_id)) = newest else {
            return Ok(false);
        };
        if let ReceiptThread::Thread(root) = &receipt.thread
            && rooms.arrival_of(room, root).await?.is_none()
        {
            return Ok(false);
        }
        let receipt = Receipt {
            user: users.number(&receipt.user).await?,
            kind: ReceiptKind::Public,
            thread: receipt.thread.clone(),
            event_id: event_id.clone(),
            arrival,
            at: receipt.ts.min(MAX_TIME),
        };
        users.receipts.set(room.number.0, &receipt).await?;
        Ok(true)
    }

    /// Stores waiting receipts whose events have come, and presences of users who were met, until
    /// shutdown.
    pub(super) async fn put_down_what_waits(self) {
        loop {
            let receipts = self.inner.receipts.lock().0.is_empty();
            let empty = receipts && self.inner.presences.lock().is_empty();
            let look = async {
                if empty {
                    self.inner.waiting.notified().await;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            };
            tokio::select! {
                biased;
                () = self.inner.runtime.tasks.stopping() => return,
                () = look => {}
            }
            self.put_down_receipts().await;
            self.put_down_presences().await;
        }
    }

    async fn put_down_receipts(&self) {
        let all = std::mem::take(&mut self.inner.receipts.lock().0);
        let now = Instant::now();
        for (until, room, receipt) in all {
            if until <= now {
                continue;
            }
            let waits = match self.put_down(&room, &receipt).await {
                Ok(done) => !done,
                Err(error) => {
                    tracing::debug!(%error, "a receipt was not stored");
                    error.is_passing()
                }
            };
            if waits {
                let mut waiting = self.inner.receipts.lock();
                waiting.0.push_back((until, room, receipt));
            }
        }
    }

    pub(super) fn check_of(&self, origin: &ServerName, user: &UserId) -> Result<(), Ignored> {
        if self.is_of(user, origin) {
            return Ok(());
        }
        Err(Ignored::Refused("the user belongs to another server"))
    }

    async fn check_joined(&self, room: &Arc<Room>, user: &UserId) -> Result<(), Ignored> {
        let rooms = &self.inner.rooms;
        let at = rooms.durable();
        let root = rooms.state_at(room.number, at).await?.root;
        if rooms.is_joined_in(room, root, user).await? {
            return Ok(());
        }
        Err(Ignored::Refused("the user is not in the room"))
    }
}

/// Events of one receipt that are looked up; there should be one.
const MAX_EVENTS_OF_RECEIPT: usize = 5;

/// The greatest time that JSON numbers of all clients can hold.
const MAX_TIME: u64 = (1 << 53) - 1;

fn fits(content: &RawValue) -> bool {
    content.get().len() <= MAX_TO_DEVICE_CONTENT && content.get().starts_with('{')
}

#[cfg(test)]
mod tests {
    use homeserver_storage::{EngineError, StorageError};

    use super::*;

    #[test]
    fn what_this_server_fails_at_is_tried_again() {
        let source = std::io::ErrorKind::Other.into();
        let disk = EngineError::Io {
            what: "cannot read",
            path: "file".into(),
            source,
        };
        let failed = Ignored::Failed(StorageError::Engine(disk).into());
        let failed = EduFailure::from(failed);
        assert!(matches!(failed, EduFailure::Passing(_)), "{failed}");
        let refused = EduFailure::from(Ignored::Refused("no"));
        assert_eq!(refused, EduFailure::Refused("no".to_owned()));
    }
}
